"""The small process between a launcher and a worker: it outlives the controller and writes down how the worker ended.

Run as `python -I -S shim.py <slot_dir>`. Standard library only, and little of it (it stays in memory as long as the
worker does), so it must not import edgeai; `process.py` beside it imports the functions that both need. It knows one
slot directory and nothing of tasks.

    launch.json   read: argv, env, cwd
    lock          held with flock until the shim is gone: never two for one slot
    run.json      written before the program runs: pid and start time of the shim, pid of the program
    worker.log    output of the program, appended
    exit.json     written when the program and everything it started are gone

The shim leads a session of its own, the program a process group in it. On Linux orphans of the program become children
of the shim (subreaper), so nothing the program started outlives it; and if the shim is killed, the kernel kills the
program. The last line on stdout is for the launcher: `running`, `taken` or `failed <why>`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

TYPE_CHECKING = False  # importing typing for it would cost memory
if TYPE_CHECKING:
    from typing import Any

LINUX = sys.platform == "linux"
LOCK, LAUNCH, RUN, EXIT, LOG = "lock", "launch.json", "run.json", "exit.json", "worker.log"
LAST_LINE_CHARACTERS = 500
_TAIL_BYTES = 64 * 1024
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Process:
    """One line of /proc. (A plain class: dataclasses would double the memory of the shim.)"""

    __slots__ = ("parent", "pid", "session", "start_time", "state")

    def __init__(self, pid: int, stat: str) -> None:
        fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
        self.pid, self.state = pid, fields[0]
        self.parent, self.session, self.start_time = int(fields[1]), int(fields[3]), int(fields[19])


def process(pid: int) -> Process | None:
    """The process as /proc knows it; None if it is gone, or on a system without /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return Process(pid, file.read())
    except (OSError, IndexError, ValueError):
        return None


def start_time(pid: int) -> int:
    """Ticks from boot to the start of the process, 0 where /proc is missing. Names a process, with its pid."""
    found = process(pid)
    return found.start_time if found else 0


def boot() -> str:
    """Names this boot and pid namespace: a pid means nothing outside. Empty where /proc is missing."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def members(shim_pid: int) -> list[Process]:
    """All processes in the session of a shim and all their descendants, without the shim itself."""
    if not LINUX:
        return []
    known = [found for entry in os.listdir("/proc") if entry.isdigit() and (found := process(int(entry)))]
    inside = {shim_pid} | {each.pid for each in known if each.session == shim_pid}
    size = 0
    while size != len(inside):
        size = len(inside)
        inside |= {each.pid for each in known if each.parent in inside}
    return [each for each in known if each.pid in inside and each.pid != shim_pid]


def send(pid: int, signum: int) -> None:
    """Signal a process that may be gone already."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def write_whole(path: str, document: dict[str, object]) -> None:
    """Write a JSON file whole or not at all, readable by its owner only."""
    folder = os.path.dirname(path)
    temporary = f"{path}.{os.urandom(4).hex()}.part"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError:
        remove(temporary)
        raise
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def last_line(log: str, start: int) -> str:
    """The last line of a log that is not blank, looking at what was appended after `start` bytes."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = start if start <= size else 0  # somebody emptied the log meanwhile
            file.seek(max(start, size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:LAST_LINE_CHARACTERS] for line in reversed(lines) if line.strip()), "")


def try_lock(path: str) -> int | None:
    """Take the lock of a slot and return its descriptor, which holds it until closed; None if somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def main(slot: str) -> None:
    if os.fork():
        os._exit(0)  # the launcher waits for this one only, and has no child to forget
    os.setsid()
    try:
        _supervise(slot)
    except (OSError, ValueError, KeyError) as error:
        _report(f"failed {error}")
        raise


def _supervise(slot: str) -> None:
    def at(name: str) -> str:
        return os.path.join(slot, name)

    if _take(at(LOCK), at(EXIT)) is None:
        return _report("taken")
    with open(at(LAUNCH), encoding="ascii") as file:
        launch = json.load(file)
    # In this order: without a run, the old exit record still tells the truth.
    remove(at(RUN))
    remove(at(EXIT))
    log = os.open(at(LOG), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    log_start = os.fstat(log).st_size
    os.dup2(log, 2)
    # A SIGTERM that comes before the program runs is kept until it can be handed on.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child, go, failure = _fork(launch, log)
    run_id, me = os.urandom(8).hex(), os.getpid()
    run: dict[str, object] = {"run_id": run_id, "shim_pid": me, "start_time": start_time(me), "child_pid": child}
    write_whole(at(RUN), {**run, "boot": boot(), "log_start": log_start})
    os.write(go, b"!")
    os.close(go)
    if why := os.read(failure, 1000).decode("utf-8", "replace"):
        remove(at(RUN))
        return _report(f"failed {why}")
    signal.signal(signal.SIGTERM, lambda signum, _: _send_group(child, signum))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _report("running")
    status = _wait(child)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_rest(child)
    _keep_trying(at(EXIT), {**_ending(status), "last_line": last_line(at(LOG), log_start), "run_id": run_id})
    return None


def _report(text: str) -> None:
    """Tell the launcher, once; it may be gone."""
    with suppress(OSError):
        os.write(1, text.replace("\n", " ").encode() + b"\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _take(lock: str, exit_record: str) -> int | None:
    """Take the lock. A shim that has written its exit record is about to go: worth a moment's patience."""
    for _ in range(200):
        descriptor = try_lock(lock)
        if descriptor is not None or not os.path.exists(exit_record):
            return descriptor
        time.sleep(0.01)
    return None


def _fork(launch: dict[str, Any], log: int) -> tuple[int, int, int]:
    """Fork the program; it starts when a byte is written to `go`, and says on `failure` why it could not."""
    prctl = _prctl()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    go_read, go = os.pipe()
    failure, failure_write = os.pipe()
    if child := os.fork():
        os.close(go_read)
        os.close(failure_write)
        return child, go, failure
    try:
        os.close(go)
        os.close(failure)
        _become(launch, log, prctl, go_read)
    except OSError as error:
        os.write(failure_write, f"{error.filename or launch['argv'][0]}: {error.strerror}".encode())
    except (ValueError, TypeError, KeyError) as error:
        os.write(failure_write, str(error).encode())
    finally:
        os._exit(127)


def _become(launch: dict[str, Any], log: int, prctl: Callable[[int, int], int], go: int) -> None:
    """In the child: turn into the program. Returns only if the shim went away meanwhile."""
    os.setpgid(0, 0)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if os.read(go, 1):
        os.chdir(launch["cwd"])
        os.execve(launch["argv"][0], launch["argv"], launch["env"])  # noqa: S606


def _prctl() -> Callable[[int, int], int]:
    """The system call, loaded before the fork; nothing where there is none."""
    if not LINUX:
        return lambda *_: 0
    import ctypes

    call: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    return call


def _send_group(group: int, signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)


def _wait(child: int) -> int:
    """Reap orphans until the program itself has ended."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            return status


def _end_rest(group: int) -> None:
    """Kill and reap what the program left behind."""
    if not LINUX:
        return _send_group(group, signal.SIGKILL)
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for each in members(os.getpid()):
                    send(each.pid, signal.SIGKILL)
                os.waitpid(-1, 0)
        except ChildProcessError:
            return None


def _ending(status: int) -> dict[str, object]:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return {"reason": "exited", "code": code, "signal": None}
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"SIG{-code}"  # real-time signals have no name
    return {"reason": "killed", "code": None, "signal": name}


def _keep_trying(path: str, document: dict[str, object]) -> None:
    """Write the exit record; a full disk may have space again in a minute. Without a record the worker is LOST."""
    for _ in range(60):
        try:
            write_whole(path, document)
            return
        except FileNotFoundError:
            return  # the slot was deleted
        except OSError:
            time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1])
