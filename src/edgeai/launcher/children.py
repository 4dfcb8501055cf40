"""Keeps the helper programs of a daemon running: its broker, its bridge; for `demo` and `up`, the daemons themselves.

A child that ends is started again, with back-off. Each runs in a session of its own, so Ctrl-C reaches only the parent,
and is written down in `<state-dir>/run/<role>-<node>.json` before it does anything, so that after the parent was killed
the next one finds it: it *adopts* the child and starts no second one. A child is known by pid *and* start time.

    children = Children(state_dir)
    child = await children.start(ChildSpec("broker", "edge1", broker.argv, log, before_start=broker.prepare))
    ...
    await children.stop_all(grace_s=5)      # or children.release(): leave them running for the next one to adopt

In the other direction, `parent_gone` lets a daemon notice that the `demo` or `up` that started it was killed.

This module must not know what the children are: brokers are `bus/embedded.py`, workers are `launcher/process.py` (they
run once and leave an exit record; here nothing is meant to end).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import structlog

from edgeai.bus.credentials import write_private
from edgeai.errors import EdgeaiError, LaunchError
from edgeai.events.address import checked_name
from edgeai.launcher import shim

log = structlog.get_logger()

PARENT_VARIABLE = "EDGEAI_PARENT"
FIRST_DELAY_S, LONGEST_DELAY_S, STEADY_AFTER_S = 0.2, 10.0, 30.0
_LOG_LIMIT_BYTES = 10 * 1024 * 1024
_POLL_S = 0.2


# --- processes


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told from a later one with the same pid. As text: `pid:start_time`.

    `start_time` is in clock ticks since boot on Linux (the wall clock may be set meanwhile), elsewhere in 1/100 s.
    """

    pid: int
    start_time: int

    def __str__(self) -> str:
        return f"{self.pid}:{self.start_time}"

    @staticmethod
    def parse(text: str) -> ProcessId:
        """Raises ValueError."""
        pid, _, start_time = text.partition(":")
        return ProcessId(int(pid), int(start_time))

    @staticmethod
    def of(pid: int) -> ProcessId:
        """Raises ProcessLookupError if there is none (any more)."""
        start_time = _start_time(pid)
        if start_time is None:
            raise ProcessLookupError(f"no process {pid}")
        return ProcessId(pid, start_time)

    def runs(self) -> bool:
        return _start_time(self.pid) == self.start_time


def _start_time(pid: int) -> int | None:
    """None if the process does not run; one that has ended and is not yet waited for does not."""
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 100)
        except psutil.Error:
            return None
    found = shim.process(pid)
    return None if found is None or found.state in "ZX" else found.start_time


async def gone(process: ProcessId) -> None:
    """Return when the process has ended, whoever started it; without polling where the system allows."""
    descriptor = _process_descriptor(process.pid)
    if descriptor is None:
        while process.runs():  # noqa: ASYNC110 - nobody here could set an event
            await asyncio.sleep(_POLL_S)
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        if process.runs():  # looked at after the descriptor was opened: so it is this process' descriptor
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _process_descriptor(pid: int) -> int | None:
    """None where the system has no such thing, or no such process."""
    open_descriptor: Callable[[int], int] | None = getattr(os, "pidfd_open", None)  # some builds for Linux lack it, too
    try:
        return open_descriptor(pid) if open_descriptor else None
    except OSError:
        return None


def parent_from_environment(environment: Mapping[str, str] | None = None) -> ProcessId | None:
    """Who started this daemon and wants it to end with itself, if anybody. Raises LaunchError if unreadable."""
    text = (os.environ if environment is None else environment).get(PARENT_VARIABLE)
    if not text:
        return None
    try:
        return ProcessId.parse(text)
    except ValueError as error:
        raise LaunchError(f"{PARENT_VARIABLE}={text!r} is not pid:start") from error


def as_parent() -> dict[str, str]:
    """What to add to a child's environment so that it ends with this process (see `parent_gone`)."""
    return {PARENT_VARIABLE: str(ProcessId.of(os.getpid()))}


async def parent_gone(environment: Mapping[str, str] | None = None) -> None:
    """Return when the process named by EDGEAI_PARENT has ended; never, if none is named."""
    parent = parent_from_environment(environment)
    if parent is None:
        await asyncio.Event().wait()
    else:
        await gone(parent)


# --- the registry


@dataclass(frozen=True, slots=True)
class Record:
    """What the registry says of one child. `supervisor` is who would start it again.

    `boot` names the run of the machine: start times in ticks repeat after it was restarted.
    """

    role: str
    node: str
    process: ProcessId
    argv: tuple[str, ...]
    supervisor: ProcessId
    boot: str

    def runs(self) -> bool:
        return self.boot == shim.boot() and self.process.runs()


def record_path(state_dir: Path, role: str, node: str) -> Path:
    return state_dir / "run" / f"{checked_name(role)}-{checked_name(node)}.json"


def read_record(path: Path) -> Record | None:
    """None if there is none, or it is damaged (then it says so in the log: what it named is to be stopped by hand)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        fields: dict[str, Any] = json.loads(content)
        return Record(
            role=str(fields["role"]),
            node=str(fields["node"]),
            process=ProcessId(int(fields["pid"]), int(fields["start_time"])),
            argv=tuple(map(str, fields["argv"])),
            supervisor=ProcessId.parse(str(fields["supervisor"])),
            boot=str(fields["boot"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        log.warning("child_record_ignored", path=str(path), reason=repr(error))
        return None


def _write_record(path: Path, record: Record) -> None:
    fields = {
        "role": record.role,
        "node": record.node,
        "pid": record.process.pid,
        "start_time": record.process.start_time,
        "argv": list(record.argv),
        "supervisor": str(record.supervisor),
        "boot": record.boot,
    }
    write_private(path, json.dumps(fields, indent=1).encode() + b"\n")


# --- the children


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One program to keep running.

    `env` is added to this process' environment. Standard output and errors are appended to `log_file`. `before_start`
    runs before every start, not before an adoption; its EdgeaiError or OSError is raised by the first start and logged
    by later ones, which try again.
    """

    role: str
    node: str
    argv: Sequence[str]
    log_file: Path
    env: Mapping[str, str] = field(default_factory=dict)
    before_start: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next start: doubling, and from the beginning after a steady life. Seconds."""

    delay_s: float = FIRST_DELAY_S

    def after(self, lived_s: float) -> tuple[float, Backoff]:
        """The delay to wait now, and the back-off for the next time."""
        delay_s = FIRST_DELAY_S if lived_s >= STEADY_AFTER_S else self.delay_s
        return delay_s, Backoff(min(delay_s * 2, LONGEST_DELAY_S))


class Child:
    """One program that is kept running, made by `Children.start`."""

    def __init__(self, spec: ChildSpec, state_dir: Path) -> None:
        self.spec = spec
        self.adopted = False
        self.restarts = 0
        self._path = record_path(state_dir, spec.role, spec.node)
        self._process: ProcessId | None = None
        self._task: asyncio.Task[None] | None = None
        self._log = log.bind(role=spec.role, child_node=spec.node)

    @property
    def process(self) -> ProcessId | None:
        """None between an end and the next start."""
        return self._process

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Adopt the recorded child if it still runs, else start one.

        Raises:
            LaunchError: the program is not there; whatever `before_start` raises.
        """
        record = read_record(self._path)
        if record and record.role == self.spec.role and record.node == self.spec.node and record.runs():
            self._process, self.adopted = record.process, True
            self._write_record(record.process, record.argv)
            self._log.info("child_adopted", pid=record.process.pid)
        else:
            self._start_once()
        self._task = asyncio.create_task(self._keep_running(), name=f"child {self.spec.role}-{self.spec.node}")

    async def release(self) -> None:
        """Stop watching; the program goes on and can be adopted."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def stop(self, grace_s: float = 5.0) -> None:
        """End the program and everything in its process group, by force after `grace_s`; forget it."""
        await self.release()
        if self._process:
            await _end(self._process, grace_s)
            self._log.info("child_stopped", pid=self._process.pid)
            self._process = None
        self._path.unlink(missing_ok=True)

    async def _keep_running(self) -> None:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            if self._process:
                await gone(self._process)
                self._bury(self._process)
            lived_s = time.monotonic() - began
            delay_s, backoff = backoff.after(lived_s)
            await asyncio.sleep(delay_s)
            try:
                self._start_once()
                self.restarts += 1
            except (EdgeaiError, OSError) as error:
                self._log.error("child_start_failed", reason=str(error), retry_s=backoff.delay_s)

    def _bury(self, process: ProcessId) -> None:
        self._process = None
        _signal_group(process.pid, signal.SIGKILL)  # what it left behind would stand in the way of the next one
        self._log.warning("child_exited", pid=process.pid, status=_reap(process.pid), log_file=str(self.spec.log_file))

    def _start_once(self) -> None:
        self.spec.before_start()
        process, go = _start_held(self.spec)
        try:
            self._write_record(process, tuple(self.spec.argv))
        except BaseException:
            os.close(go)  # without the word it ends by itself
            _reap(process.pid, wait=True)
            raise
        with contextlib.suppress(BrokenPipeError):  # it was killed already: the next start is _keep_running's
            os.write(go, b"\n")
        os.close(go)
        self._process, self.adopted = process, False
        self._log.info("child_started", pid=process.pid)

    def _write_record(self, process: ProcessId, argv: tuple[str, ...]) -> None:
        supervisor = ProcessId.of(os.getpid())
        _write_record(self._path, Record(self.spec.role, self.spec.node, process, argv, supervisor, shim.boot()))


class Children:
    """The children of one daemon, recorded in its state directory. Leaving the context releases them."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._children: dict[tuple[str, str], Child] = {}

    async def __aenter__(self) -> Children:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    def __iter__(self) -> Iterator[Child]:
        return iter(self._children.values())

    async def start(self, spec: ChildSpec) -> Child:
        """Keep this program running, from now on or from an earlier life on: never two of one role and node.

        Raises:
            LaunchError: the program is not there; whatever `before_start` raises.
        """
        key = (spec.role, spec.node)
        if key not in self._children:
            child = Child(spec, self._state_dir)
            await child.start()
            self._children[key] = child
        return self._children[key]

    async def stop(self, role: str, node: str, grace_s: float = 5.0) -> None:
        """Idempotent."""
        child = self._children.pop((role, node), None)
        if child:
            await child.stop(grace_s)

    async def stop_all(self, grace_s: float = 5.0) -> None:
        """The last started first, each with its own grace."""
        for role, node in reversed(list(self._children)):
            await self.stop(role, node, grace_s)

    async def release(self) -> None:
        """Stop watching; the programs go on, for the next Children of this state directory to adopt."""
        for child in self._children.values():
            await child.release()
        self._children.clear()


async def stop_all_recorded(state_dir: Path, grace_s: float = 5.0) -> list[str]:
    """Stop every child in the registry, whoever started it, and return their names (`<role>-<node>`).

    Also covers state directories directly below this one. A child's supervisor, if it is in the registry itself, is
    stopped first: it would start the child again. So would a `Children` of this process: release it before.
    """
    stopped: list[str] = []
    while records := _recorded(state_dir):
        processes = {record.process for record in records.values()}
        # Nobody supervises in circles, but what is read from files may say so: then all at once.
        wave = {path: r for path, r in records.items() if r.supervisor not in processes} or records
        await asyncio.gather(*(_end(record.process, grace_s) for record in wave.values()))
        for path, record in wave.items():
            if read_record(path) in (record, None):  # else its supervisor was quicker: the new one is next
                path.unlink(missing_ok=True)
            stopped.append(f"{record.role}-{record.node}")
    return stopped


def _recorded(state_dir: Path) -> dict[Path, Record]:
    """Running children by the path of their record. Records of children that are gone are removed."""
    running: dict[Path, Record] = {}
    for path in sorted((*state_dir.glob("run/*.json"), *state_dir.glob("*/run/*.json"))):
        record = read_record(path)
        if record and record.runs():
            running[path] = record
        else:
            path.unlink(missing_ok=True)
    return running


# --- starting and ending


def _start_held(spec: ChildSpec) -> tuple[ProcessId, int]:
    """Start the program, held back until a line is written to the returned descriptor.

    So its record is on disk before it does anything: a parent killed in between leaves nothing behind, since the end of
    the pipe tells the child to end. `exec` keeps pid and start time.
    """
    program = shutil.which(spec.argv[0])
    if program is None:
        raise LaunchError(f"{spec.role} of {spec.node}: {spec.argv[0]} is not a program")
    spec.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _rotate(spec.log_file)
    held, go = os.pipe()
    try:
        # A shell reads one byte at a time, so it takes no more than the line.
        pid = os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", program, *spec.argv[1:]],
            {**os.environ, **spec.env},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, held, 0),
                (os.POSIX_SPAWN_OPEN, 1, spec.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT],  # what Python ignores, or may have been told to
        )
    except OSError as error:
        os.close(go)
        raise LaunchError(f"{spec.role} of {spec.node} could not be started: {error}") from error
    finally:
        os.close(held)
    try:
        return ProcessId.of(pid), go
    except ProcessLookupError as error:
        os.close(go)
        raise LaunchError(f"{spec.role} of {spec.node} ended at once with {_reap(pid)}; see {spec.log_file}") from error


def _rotate(path: Path) -> None:
    """At a start, so a child that keeps ending cannot fill the disk; one earlier file is kept."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_LIMIT_BYTES:
            path.replace(path.with_name(path.name + ".1"))


async def _end(process: ProcessId, grace_s: float) -> None:
    """End a process and the rest of its group: it leads one, since it was started in a session of its own."""
    if not process.runs():
        _reap(process.pid)
        return
    _signal_group(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(grace_s):
            await gone(process)
    except TimeoutError:
        log.warning("child_killed", pid=process.pid, grace_s=grace_s)
    # Not yet waited for, if it is ours: until then its number, and so the group's, is not given to another.
    _signal_group(process.pid, signal.SIGKILL)
    await gone(process)
    _reap(process.pid)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _reap(pid: int, *, wait: bool = False) -> int | None:
    """The exit code (negative: the signal), or None if it is not this process' child, as when it was adopted."""
    try:
        reaped, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if reaped else None
