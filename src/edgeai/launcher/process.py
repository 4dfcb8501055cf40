"""Workers as plain processes of this machine: no container engine, and no isolation either.

`shim.py` runs beside every worker and does what must go on when this process is gone; here is what a controller does:
start it, find it again, wait for it, stop it. What is known about a worker is read from its slot directory each time,
so a launcher holds no state and any number of them may look at one slot. Must not know what the program does.

A worker gets a short list of this process' environment and what its LaunchSpec says: a daemon's environment may hold
secrets.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import structlog

from edgeai.errors import LaunchError
from edgeai.launcher import shim
from edgeai.launcher.base import ExitReason, ExitRecord, LaunchSpec, LogPart, Running, Stats, read_log_file

log = structlog.get_logger()

_PASSED_ON = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *("VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"),
    }
)
_PASSED_ON_PREFIXES = ("LC_", "OPENBLAS_", "OMP_", "MKL_")
_REPORT_S = 60.0  # an interpreter starts in 0.05 s; a machine that swaps needs longer
_TAKEN_S = 20.0
_KILL_S = 5.0
_POLL_S = 0.2  # only where the system has no pidfd


class ProcessLauncher:
    """Starts workers as processes. Implements `launcher.base.Launcher`."""

    async def start(self, spec: LaunchSpec) -> Running:
        slot = spec.slot_dir
        deadline = time.monotonic() + _TAKEN_S
        while (running := await self.adopt(spec.name, slot)) is None:
            if await asyncio.to_thread(_spawn, spec):
                running = _running(spec.name, slot)
                log.info("worker_started", worker=spec.name, pid=running.pid)
                break
            # Another launcher was faster, and its program is about to run.
            if time.monotonic() > deadline:
                raise LaunchError(f"{spec.name} could not be started: another process holds {slot / shim.LOCK}")
            await asyncio.sleep(0.05)
        return running

    async def adopt(self, name: str, slot_dir: Path) -> Running | None:
        run = _read_run(slot_dir)
        if run is None or _read_exit(slot_dir) is not None:
            return None
        if _is_held(slot_dir, run):
            return Running(name, slot_dir, run.child_pid)
        await asyncio.to_thread(_end_lost, run)
        return None

    async def wait(self, running: Running) -> ExitRecord:
        run = _read_run(running.slot_dir)
        if run is None:
            return ExitRecord(ExitReason.LOST)
        async with _watching(run) as gone:
            await gone.wait()
        return await _record(running.slot_dir, run)

    async def last_exit(self, slot_dir: Path) -> ExitRecord | None:
        if (ended := _read_exit(slot_dir)) is not None:
            return ended[1]
        run = _read_run(slot_dir)
        if run is None or _is_held(slot_dir, run):
            return None
        return await _record(slot_dir, run)

    async def stop(self, running: Running, grace_s: float) -> ExitRecord:
        run = _read_run(running.slot_dir)
        if run is None:
            return ExitRecord(ExitReason.LOST)
        _signal_shim(run, signal.SIGTERM)  # hands it on to the program
        record = await self._wait_at_most(running, grace_s)
        if record is None:
            await asyncio.to_thread(_kill_members, run)  # the shim then kills what is left and writes the record
            record = await self._wait_at_most(running, _KILL_S)
        if record is None:
            _signal_shim(run, signal.SIGKILL)
            record = await self.wait(running)
        log.info("worker_stopped", worker=running.name, reason=record.reason, code=record.code, signal=record.signal)
        return record

    async def read_log(self, slot_dir: Path, offset: int = 0) -> LogPart:
        run = _read_run(slot_dir)
        ended = run is None or not _is_held(slot_dir, run)  # looked at before the log, which is complete then
        return await asyncio.to_thread(read_log_file, slot_dir / shim.LOG, offset, ended=ended)

    async def stats(self, running: Running) -> AsyncGenerator[Stats]:
        """No limit of a process is known: it shares its machine."""
        while (run := _read_run(running.slot_dir)) is not None:
            stats = await asyncio.to_thread(_stats, run)
            if stats is None:
                return
            yield stats
            await asyncio.sleep(1.0)

    async def remove(self, slot_dir: Path) -> None:
        if (running := await self.adopt(slot_dir.name, slot_dir)) is not None:
            await self.stop(running, 0.0)

    async def _wait_at_most(self, running: Running, seconds: float) -> ExitRecord | None:
        try:
            async with asyncio.timeout(seconds):
                return await self.wait(running)
        except TimeoutError:
            return None


@dataclass(frozen=True, slots=True)
class _Run:
    """What `run.json` says of one run."""

    run_id: str
    shim_pid: int
    start_time: int
    child_pid: int
    boot: str
    log_start: int


def worker_environment(own: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: what is safe and useful of our own, and over it what the spec says."""
    passed = {name: value for name, value in own.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES)}
    if "PYTHONPATH" in own:  # the worker runs in another directory, so relative entries must not stay relative
        passed["PYTHONPATH"] = os.pathsep.join(
            str(Path(each).absolute()) for each in own["PYTHONPATH"].split(os.pathsep)
        )
    return passed | dict(extra)


def _spawn(spec: LaunchSpec) -> bool:
    """Run the shim until it reports. False: another shim holds the slot. Blocks for some 50 ms."""
    slot = spec.slot_dir.absolute()
    try:
        slot.mkdir(parents=True, exist_ok=True)
        shim.write_whole(str(slot / shim.LAUNCH), _launch(spec, slot))
        # The shim goes on in a process of its own when it has reported; what ends here is only its parent.
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(Path(shim.__file__).absolute()), str(slot)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=worker_environment(os.environ, {}),
            cwd="/",
            timeout=_REPORT_S,
            check=False,
        )
    except (OSError, ValueError) as error:
        raise LaunchError(f"{spec.name} could not be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{spec.name} could not be started: its shim did not report in {_REPORT_S:.0f} s") from error
    lines = done.stdout.decode("utf-8", "replace").split("\n")
    if "running" in lines or "taken" in lines:
        return "running" in lines
    failed = [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
    why = failed or [line for line in lines if line.strip()][-1:] or [f"its shim ended with code {done.returncode}"]
    raise LaunchError(f"{spec.name} could not be started: {why[0]}")


def _launch(spec: LaunchSpec, slot: Path) -> dict[str, object]:
    if not spec.argv:
        raise ValueError("no program is given")
    program, *arguments = spec.argv
    if program == "python":
        program = sys.executable
    if not os.path.isabs(program):
        raise ValueError(f"{program!r} is neither an absolute path nor python")
    return {
        "argv": [program, *arguments],
        "env": worker_environment(os.environ, spec.env),
        "cwd": str(spec.cwd.absolute() if spec.cwd else slot),
    }


def _running(name: str, slot: Path) -> Running:
    run = _read_run(slot)
    if run is None:
        raise LaunchError(f"{name} was started, but {slot / shim.RUN} is gone: another program removed it")
    return Running(name, slot, run.child_pid)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if the file is missing or damaged (a machine may have lost power)."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _read_run(slot: Path) -> _Run | None:
    document = _read(slot / shim.RUN) or {}
    values = {each.name: document.get(each.name) for each in fields(_Run)}
    kinds = {each.name: int if each.type == "int" else str for each in fields(_Run)}
    if any(type(value) is not kinds[name] for name, value in values.items()):
        return None
    run = _Run(**values)  # type: ignore[arg-type]
    return run if run.shim_pid > 1 and run.child_pid > 1 else None  # 0, 1 and negative pids mean somebody else


def _read_exit(slot: Path) -> tuple[str, ExitRecord] | None:
    """Run id and record."""
    match _read(slot / shim.EXIT):
        case {
            "reason": ("exited" | "killed") as reason,
            "code": int() | None as code,
            "signal": str() | None as name,
            "last_line": str(line),
            "run_id": str(run_id),
        }:
            return run_id, ExitRecord(ExitReason(reason), code, name, line[: shim.LAST_LINE_CHARACTERS])
    return None


async def _record(slot: Path, run: _Run) -> ExitRecord:
    """How a run ended whose shim is gone."""
    ended = _read_exit(slot)
    if ended is not None and ended[0] == run.run_id:
        return ended[1]
    await asyncio.to_thread(_end_lost, run)
    return ExitRecord(ExitReason.LOST, last_line=shim.last_line(str(slot / shim.LOG), run.log_start))


def _is_alive(run: _Run) -> bool:
    """Is this still the shim? A pid alone may have been given to another process."""
    if shim.LINUX:
        return run.boot == shim.boot() and run.start_time == shim.start_time(run.shim_pid)
    import psutil

    try:
        alive: bool = psutil.Process(run.shim_pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    return alive


def _is_held(slot: Path, run: _Run) -> bool:
    """Does the shim of this run live, and hold the lock?"""
    if not _is_alive(run):
        return False
    try:
        descriptor = shim.try_lock(str(slot / shim.LOCK))
    except OSError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


@asynccontextmanager
async def _watching(run: _Run) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the shim is gone: by the kernel where it can tell, else by looking."""
    gone = asyncio.Event()
    try:
        descriptor = os.pidfd_open(run.shim_pid)
    except ProcessLookupError:
        gone.set()
        yield gone
        return
    except (AttributeError, OSError):
        async with asyncio.TaskGroup() as tasks:
            polling = tasks.create_task(_poll(run, gone))
            yield gone
            polling.cancel()
        return
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(descriptor, gone.set)
        if not _is_alive(run):  # looked at after the pid was pinned
            gone.set()
        yield gone
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        _reap(run)


async def _poll(run: _Run, gone: asyncio.Event) -> None:
    while _is_alive(run):
        _reap(run)
        await asyncio.sleep(_POLL_S)
    gone.set()


def _reap(run: _Run) -> None:
    """Where this process is pid 1 of a container, the orphaned shim has become its child."""
    with suppress(ChildProcessError):
        os.waitpid(run.shim_pid, os.WNOHANG)


def _signal_shim(run: _Run, signum: signal.Signals) -> None:
    try:
        descriptor = os.pidfd_open(run.shim_pid)
    except (AttributeError, OSError):
        if _is_alive(run):
            shim.send(run.shim_pid, signum)
        return
    try:
        if _is_alive(run):
            signal.pidfd_send_signal(descriptor, signum)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _kill_members(run: _Run) -> None:
    """Kill the program and everything it started; the shim itself stays and writes the record."""
    if not _is_alive(run):
        return
    if not shim.LINUX:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(run.child_pid, signal.SIGKILL)
    for each in shim.members(run.shim_pid):
        shim.send(each.pid, signal.SIGKILL)


def _end_lost(run: _Run) -> None:
    """Kill what outlived its shim. Blocks until it is gone (the kernel has killed the program itself already)."""
    deadline = time.monotonic() + _KILL_S
    while (left := _left_over(run)) and time.monotonic() < deadline:
        for pid in left:
            shim.send(pid, signal.SIGKILL)
        time.sleep(0.01)


def _stats(run: _Run) -> Stats | None:
    """What the program and everything it started use; None if it has ended. Blocks for some milliseconds."""
    import psutil

    if not _is_alive(run):
        return None
    cpu_s, memory_bytes, pids = 0.0, 0, 0
    try:
        shim_process = psutil.Process(run.shim_pid)
        inside = shim_process.children(recursive=True)
        # What has ended is counted by who waited for it: its parent, or the shim.
        cpu_s = shim_process.cpu_times().children_user + shim_process.cpu_times().children_system
    except psutil.Error:
        return None
    for each in inside:
        with suppress(psutil.Error), each.oneshot():
            times, used, threads = each.cpu_times(), each.memory_info().rss, each.num_threads()
            cpu_s += times.user + times.system + times.children_user + times.children_system
            memory_bytes, pids = memory_bytes + used, pids + threads
    return Stats(cpu_s, memory_bytes, 0, pids) if pids else None


def _left_over(run: _Run) -> list[int]:
    """Living members of the session of a shim that is gone; none if its pid may mean another session by now."""
    if run.boot != shim.boot() or not run.boot or os.getsid(0) == run.shim_pid:
        return []
    leader = shim.process(run.shim_pid)
    if leader is not None and leader.start_time != run.start_time:
        return []
    mine = os.getpid()
    return [
        each.pid
        for each in shim.members(run.shim_pid)
        if each.state not in "ZX" and each.start_time >= run.start_time and each.pid != mine
    ]
