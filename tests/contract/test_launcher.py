"""What every launcher promises, with real processes and real containers. A new launcher joins by adding itself to `kind`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from edgeai.errors import LaunchError
from edgeai.launcher.base import (
    LOG_PART_BYTES,
    MIB,
    ContainerSpec,
    ExitReason,
    ExitRecord,
    Launcher,
    LaunchSpec,
    Running,
)
from edgeai.launcher.container import SLOT
from edgeai.launcher.docker import DockerLauncher
from edgeai.launcher.process import ProcessLauncher

CONTAINER = ContainerSpec("python:3.11-slim-bookworm", memory_bytes=256 * MIB)
GRACE_S = 10.0

# Not one pause: a signal that comes right before it would be handled only after it.
WAITS = "import time; print('waiting', flush=True)\nwhile True: time.sleep(0.05)"
IGNORES_SIGTERM = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('waiting', flush=True)
while True: signal.pause()
"""
WAITS_TO_SPEAK = """
import os, time
open("waits", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
print("last words")
"""
HAS_GRANDCHILDREN = f"""
import os, signal, subprocess, sys
ignore = {IGNORES_SIGTERM!r}
kinds = (dict(), dict(process_group=0), dict(start_new_session=True))
children = [subprocess.Popen([sys.executable, "-S", "-c", ignore], stdout=subprocess.PIPE, **kind) for kind in kinds]
for child in children:
    child.stdout.readline()
print("pids", *(child.pid for child in children), flush=True)
"""


@dataclass(frozen=True)
class Kind:
    """One of the launchers, and where the programs that it starts see their slot directory."""

    make: Callable[[], Launcher]
    inside: Callable[[Path], str] = str


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.containers)])
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param == "process":
        return Kind(ProcessLauncher)
    url = request.getfixturevalue("engine")
    return Kind(lambda: DockerLauncher("edge1", url=url), lambda _: SLOT)


only_processes = pytest.mark.parametrize("kind", ["process"], indirect=True)
only_containers = pytest.mark.parametrize("kind", [pytest.param("docker", marks=pytest.mark.containers)], indirect=True)


@pytest.fixture
def make_launcher(kind: Kind) -> Callable[[], Launcher]:
    return kind.make


@pytest.fixture
def launcher(kind: Kind) -> Launcher:
    return kind.make()


@pytest.fixture
async def slot(tmp_path: Path, launcher: Launcher) -> AsyncIterator[Path]:
    yield tmp_path / "slot"
    for folder in (tmp_path / "slot", tmp_path / "other"):
        await launcher.remove(folder)


def spec(slot: Path, script: str, **more: object) -> LaunchSpec:
    argv = ["python", "-S", "-c", script]
    return LaunchSpec("w", slot, argv, container=CONTAINER, **more)  # type: ignore[arg-type]


async def log_of(launcher: Launcher, slot: Path, offset: int = 0) -> str:
    """What is there now, from all parts."""
    text = b""
    while (part := await launcher.read_log(slot, offset)).text:
        text, offset = text + part.text, part.next_offset
    return text.decode()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def printed(launcher: Launcher, slot: Path, text: str) -> str:
    """The log, once it holds the text."""
    async with asyncio.timeout(20):
        while text not in (log := await log_of(launcher, slot)):
            await asyncio.sleep(0.01)
    return log


async def start_waiting(launcher: Launcher, slot: Path, script: str = WAITS) -> Running:
    running = await launcher.start(spec(slot, script))
    await printed(launcher, slot, "waiting\n")
    return running


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def suspend(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def shim_pid(slot: Path) -> int:
    return int(json.loads((slot / "run.json").read_text())["shim_pid"])


async def ended(launcher: Launcher, running: Running) -> ExitRecord:
    async with asyncio.timeout(20):
        return await launcher.wait(running)


async def test_the_exit_code_of_a_program_is_recorded(launcher, slot):
    running = await launcher.start(spec(slot, "raise SystemExit(7)"))

    record = await ended(launcher, running)

    assert record == ExitRecord(ExitReason.EXITED, code=7)


async def test_the_last_line_of_a_traceback_is_in_the_record(launcher, slot):
    running = await launcher.start(spec(slot, "raise ValueError('no such digit')"))

    assert (await ended(launcher, running)).last_line == "ValueError: no such digit"


async def test_the_last_line_is_cut_at_500_characters(launcher, slot):
    running = await launcher.start(spec(slot, "print('x' * 100_000)"))

    assert (await ended(launcher, running)).last_line == "x" * 500


async def test_the_last_line_is_never_that_of_an_earlier_run(launcher, slot):
    await ended(launcher, await launcher.start(spec(slot, "print('first')")))

    assert (await ended(launcher, await launcher.start(spec(slot, "")))).last_line == ""


async def test_a_program_killed_by_a_signal_is_recorded_with_its_name(launcher, slot):
    running = await start_waiting(launcher, slot)

    os.kill(running.pid, signal.SIGKILL)

    record = await ended(launcher, running)
    assert (record.reason, record.code, record.signal) == (ExitReason.KILLED, None, "SIGKILL")


async def test_the_log_holds_stdout_and_stderr_of_all_runs(launcher, slot):
    script = "import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr)"
    for _ in range(2):
        await ended(launcher, await launcher.start(spec(slot, script)))

    # Each stream keeps its order; how the two of a container are woven together depends on who is read first.
    assert sorted((await log_of(launcher, slot)).splitlines()) == ["err", "err", "out", "out"]


async def test_a_program_reads_an_empty_standard_input(launcher, slot):
    running = await launcher.start(spec(slot, "import sys; print(repr(sys.stdin.read()))"))

    assert (await ended(launcher, running)).last_line == "''"


async def test_a_program_runs_in_its_slot_directory(kind, launcher, slot):
    running = await launcher.start(spec(slot, "import os; print(os.getcwd())"))

    assert (await ended(launcher, running)).last_line == kind.inside(slot)


async def test_a_program_runs_in_the_directory_that_is_asked_for(launcher, slot):
    running = await launcher.start(spec(slot, "import os; print(os.getcwd())", cwd=Path("/tmp")))

    assert (await ended(launcher, running)).last_line == "/tmp"


async def test_a_program_may_write_into_its_slot_directory(launcher, slot):
    await ended(launcher, await launcher.start(spec(slot, "open('result', 'w').write('42')")))

    assert (slot / "result").read_text() == "42"


async def test_a_program_may_change_what_was_put_into_its_slot_directory(launcher, slot):
    (slot / "output").mkdir(parents=True, mode=0o700)
    (slot / "state").touch(mode=0o600)
    script = "open('output/new', 'w').write('1'); open('state', 'w').write('2')"

    assert (await ended(launcher, await launcher.start(spec(slot, script)))).code == 0


async def test_the_environment_of_the_spec_reaches_the_program(launcher, slot):
    running = await launcher.start(spec(slot, "import os; print(os.environ['EDGEAI_TASK'])", env={"EDGEAI_TASK": "é"}))

    assert (await ended(launcher, running)).last_line == "é"


async def test_the_environment_of_the_daemon_does_not_leak(launcher, slot, monkeypatch):
    monkeypatch.setenv("EDGEAI_CANARY_SECRET", "s3cret")
    running = await launcher.start(spec(slot, "import os; print(sorted(os.environ))"))

    assert "CANARY" not in (await ended(launcher, running)).last_line


@only_processes
async def test_python_means_this_interpreter(launcher, slot):
    running = await launcher.start(spec(slot, "import sys; print(sys.executable)"))

    assert (await ended(launcher, running)).last_line == sys.executable


async def test_signals_have_their_default_meaning_in_a_program(launcher, slot):
    program = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.pthread_sigmask(0, ()))"
    running = await launcher.start(spec(slot, program))

    assert (await ended(launcher, running)).last_line == "True set()"


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["relative/program"], "absolute"), ([], "no program"), (["python", "a\0b"], "null byte")],
    ids=["relative", "empty", "null-byte"],
)
async def test_a_program_that_cannot_be_one_is_refused_in_one_line(launcher, slot, argv, says):
    with pytest.raises(LaunchError, match=says) as raised:
        await launcher.start(LaunchSpec("w", slot, argv, container=CONTAINER))

    assert str(raised.value).startswith("w could not be started: ")
    assert "\n" not in str(raised.value)


@only_processes
@pytest.mark.parametrize(
    ("argv", "says"),
    [(["/no/such/program"], "No such file"), (["/"], "Permission denied")],
    ids=["missing", "not-executable"],
)
async def test_a_program_that_cannot_start_says_why_in_one_line(launcher, slot, argv, says):
    with pytest.raises(LaunchError, match=says) as raised:
        await launcher.start(LaunchSpec("w", slot, argv))

    assert str(raised.value).startswith("w could not be started: ")
    assert "\n" not in str(raised.value)


@only_containers
@pytest.mark.parametrize(
    ("argv", "says"),
    [(["/no/such/program"], "No such file"), (["/"], "Permission denied")],
    ids=["missing", "not-executable"],
)
async def test_a_program_that_the_image_lacks_is_named_in_the_record(launcher, slot, argv, says):
    record = await ended(launcher, await launcher.start(LaunchSpec("w", slot, argv, container=CONTAINER)))

    assert record.code in {126, 127}
    assert says in record.last_line


@only_processes
async def test_a_missing_working_directory_is_named(launcher, slot):
    with pytest.raises(LaunchError, match="/no/such/directory"):
        await launcher.start(spec(slot, "", cwd=Path("/no/such/directory")))


async def test_a_slot_is_free_again_after_a_program_that_cannot_start(launcher, slot):
    with pytest.raises(LaunchError):
        await launcher.start(LaunchSpec("w", slot, ["relative/program"], container=CONTAINER))

    assert await launcher.adopt("w", slot) is None
    assert await launcher.last_exit(slot) is None


@only_processes
async def test_the_launch_file_is_readable_by_its_owner_only(launcher, slot):
    await ended(launcher, await launcher.start(spec(slot, "")))

    assert (slot / "launch.json").stat().st_mode & 0o777 == 0o600


async def test_a_running_slot_is_not_started_again(launcher, slot):
    first = await start_waiting(launcher, slot)

    assert await launcher.start(spec(slot, "print('second')")) == first


async def test_concurrent_starts_give_one_program(make_launcher, launcher, slot):
    starts = [make_launcher().start(spec(slot, WAITS)) for _ in range(4)]

    assert len(set(await asyncio.gather(*starts))) == 1
    await printed(launcher, slot, "waiting\n")
    assert await log_of(launcher, slot) == "waiting\n"


async def test_a_new_launcher_adopts_the_running_program(make_launcher, launcher, slot):
    running = await start_waiting(launcher, slot)

    assert await make_launcher().adopt("w", slot) == running


async def test_an_adopted_program_can_be_waited_for(make_launcher, launcher, slot):
    await start_waiting(launcher, slot)
    second = make_launcher()
    adopted = await second.adopt("w", slot)

    os.kill(adopted.pid, signal.SIGINT)

    assert (await ended(second, adopted)).last_line == "KeyboardInterrupt"


@only_processes
async def test_a_program_outlives_the_process_that_started_it(launcher, slot):
    script = f"""
import asyncio
from pathlib import Path
from edgeai.launcher import LaunchSpec, ProcessLauncher
spec = LaunchSpec("w", Path({str(slot)!r}), ["python", "-S", "-c", {WAITS!r}])
asyncio.run(ProcessLauncher().start(spec))
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, start_new_session=True)
    assert await parent.wait() == 0

    assert (await launcher.adopt("w", slot)) is not None


async def test_nothing_is_adopted_where_nothing_was_started(launcher, slot):
    assert await launcher.adopt("w", slot) is None


async def test_nothing_is_adopted_after_the_program_has_ended(launcher, slot):
    await ended(launcher, await launcher.start(spec(slot, "")))

    assert await launcher.adopt("w", slot) is None


@only_processes
async def test_a_process_with_the_pid_of_an_earlier_run_is_not_adopted(launcher, slot):
    await start_waiting(launcher, slot)
    run = json.loads((slot / "run.json").read_text())
    (slot.parent / "other").mkdir()
    (slot.parent / "other/run.json").write_text(json.dumps({**run, "start_time": run["start_time"] + 1}))

    assert await launcher.adopt("w", slot.parent / "other") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"shim_pid": -1}', b"\xff\x00"])
async def test_damaged_records_are_as_good_as_none(launcher, slot, damage):
    (slot / ".container").mkdir(parents=True)
    for name in ("run.json", "exit.json", ".container/container.json", ".container/exit.json"):
        (slot / name).write_bytes(damage)

    assert await launcher.adopt("w", slot) is None
    assert await launcher.last_exit(slot) is None


async def test_there_is_no_last_exit_where_nothing_ran(launcher, slot):
    assert await launcher.last_exit(slot) is None


async def test_there_is_no_last_exit_while_the_program_runs(launcher, slot):
    await ended(launcher, await launcher.start(spec(slot, "")))
    await start_waiting(launcher, slot)

    assert await launcher.last_exit(slot) is None


async def test_the_last_exit_is_told_to_a_new_launcher(make_launcher, launcher, slot):
    record = await ended(launcher, await launcher.start(spec(slot, "raise SystemExit(3)")))

    assert await make_launcher().last_exit(slot) == record


async def test_a_wait_may_be_cancelled_and_repeated(launcher, slot):
    running = await start_waiting(launcher, slot)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await launcher.wait(running)

    os.kill(running.pid, signal.SIGTERM)

    assert (await ended(launcher, running)).signal == "SIGTERM"
    assert (await ended(launcher, running)).signal == "SIGTERM"


async def test_several_may_wait_for_one_program(launcher, slot):
    running = await start_waiting(launcher, slot)
    waits = [asyncio.create_task(ended(launcher, running)) for _ in range(3)]
    await asyncio.sleep(0)

    os.kill(running.pid, signal.SIGTERM)

    assert {record.signal for record in await asyncio.gather(*waits)} == {"SIGTERM"}


async def test_stop_terminates_a_program(launcher, slot):
    running = await start_waiting(launcher, slot)

    record = await launcher.stop(running, GRACE_S)

    assert (record.reason, record.signal) == (ExitReason.KILLED, "SIGTERM")


async def test_a_program_may_end_in_its_own_way_when_stopped(launcher, slot):
    leaves = "import signal\ndef leave(*_): print('saved'); raise SystemExit(0)\nsignal.signal(signal.SIGTERM, leave)\n"
    running = await start_waiting(launcher, slot, leaves + WAITS)

    assert await launcher.stop(running, GRACE_S) == ExitRecord(ExitReason.EXITED, code=0, last_line="saved")


async def test_stop_kills_a_program_that_ignores_sigterm(launcher, slot):
    running = await start_waiting(launcher, slot, IGNORES_SIGTERM)

    assert (await launcher.stop(running, 0.05)).signal == "SIGKILL"


async def test_stop_kills_a_program_that_is_suspended(launcher, slot):
    running = await start_waiting(launcher, slot)
    await suspend(running.pid)

    assert (await launcher.stop(running, 0.05)).signal == "SIGKILL"


async def grandchildren(launcher: Launcher, slot: Path) -> list[int]:
    await printed(launcher, slot, "pids")
    log = await printed(launcher, slot, "\n")
    return [int(pid) for pid in log.split()[-3:]]


@only_processes
async def test_stop_kills_grandchildren_in_groups_and_sessions_of_their_own(launcher, slot):
    running = await launcher.start(spec(slot, HAS_GRANDCHILDREN + IGNORES_SIGTERM.replace("'waiting'", "''")))
    pids = await grandchildren(launcher, slot)

    await launcher.stop(running, 0.05)

    assert [pid for pid in pids if not is_gone(pid)] == []


@only_processes
async def test_children_do_not_outlive_a_program_that_ends_by_itself(launcher, slot):
    running = await launcher.start(spec(slot, HAS_GRANDCHILDREN))

    assert (await ended(launcher, running)).code == 0
    assert [pid for pid in await grandchildren(launcher, slot) if not is_gone(pid)] == []


async def test_stopping_what_has_ended_returns_its_record(launcher, slot):
    running = await launcher.start(spec(slot, "raise SystemExit(4)"))
    await ended(launcher, running)

    assert (await launcher.stop(running, GRACE_S)).code == 4


async def test_a_slot_starts_again_after_a_stop(launcher, slot):
    first = await start_waiting(launcher, slot)
    await launcher.stop(first, GRACE_S)

    second = await launcher.start(spec(slot, "raise SystemExit(5)"))

    assert (await ended(launcher, second)).code == 5


@only_processes
async def test_a_program_that_lost_its_supervisor_is_lost(launcher, slot):
    running = await start_waiting(launcher, slot)

    os.kill(shim_pid(slot), signal.SIGKILL)

    assert await ended(launcher, running) == ExitRecord(ExitReason.LOST, last_line="waiting")
    assert await launcher.last_exit(slot) == ExitRecord(ExitReason.LOST, last_line="waiting")


@only_processes
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
async def test_a_program_dies_with_its_supervisor_also_when_nobody_looks(launcher, slot):
    running = await start_waiting(launcher, slot)

    os.kill(shim_pid(slot), signal.SIGKILL)

    await until(lambda: is_gone(running.pid))


@only_processes
async def test_nothing_is_left_alive_when_a_lost_program_has_been_waited_for(launcher, slot):
    running = await launcher.start(spec(slot, HAS_GRANDCHILDREN.replace(", dict(start_new_session=True)", "") + WAITS))
    log = await printed(launcher, slot, "waiting\n")
    line = next(line for line in log.splitlines() if line.startswith("pids"))

    os.kill(shim_pid(slot), signal.SIGKILL)
    await ended(launcher, running)

    assert [pid for pid in (running.pid, *map(int, line.split()[1:])) if not is_gone(pid)] == []


@only_processes
async def test_stopping_a_suspended_supervisor_leaves_nothing_alive(launcher, slot, monkeypatch):
    monkeypatch.setattr("edgeai.launcher.process._KILL_S", 0.2)
    running = await start_waiting(launcher, slot, IGNORES_SIGTERM)
    await suspend(shim_pid(slot))

    record = await launcher.stop(running, 0.05)

    assert record.reason is ExitReason.LOST
    assert is_gone(running.pid)


@only_processes
async def test_a_lost_slot_starts_again(launcher, slot):
    await start_waiting(launcher, slot)
    lost = shim_pid(slot)
    os.kill(lost, signal.SIGKILL)
    await until(lambda: is_gone(lost))

    second = await launcher.start(spec(slot, "raise SystemExit(6)"))

    assert (await ended(launcher, second)).code == 6


@only_processes
async def test_the_supervisor_needs_less_than_12_mb(launcher, slot):
    await start_waiting(launcher, slot)

    assert psutil.Process(shim_pid(slot)).memory_info().rss < 12_000_000


@only_processes
async def test_a_program_is_waited_for_where_the_system_has_no_pidfd(launcher, slot, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    running = await start_waiting(launcher, slot)

    assert (await launcher.stop(running, GRACE_S)).signal == "SIGTERM"


async def test_the_log_is_empty_where_nothing_ran(launcher, slot):
    part = await launcher.read_log(slot)

    assert (part.text, part.ended) == (b"", True)


async def test_the_log_of_a_running_program_has_not_ended(launcher, slot):
    await start_waiting(launcher, slot)

    part = await launcher.read_log(slot)

    assert (part.text, part.ended) == (b"waiting\n", False)


async def test_the_log_goes_on_where_the_last_part_ended(launcher, slot):
    running = await start_waiting(launcher, slot, "print('first')\n" + WAITS)
    first = await launcher.read_log(slot)
    await launcher.stop(running, GRACE_S)
    await ended(launcher, await launcher.start(spec(slot, "print('second')")))

    assert await log_of(launcher, slot, first.next_offset) == "second\n"


@pytest.mark.parametrize("before", ["", "first\n"], ids=["had-printed-nothing", "had-printed"])
async def test_last_words_before_the_next_start_are_not_lost_to_who_follows(launcher, slot, before):
    running = await launcher.start(spec(slot, f"print({before!r}, end='', flush=True)\n{WAITS_TO_SPEAK}"))
    await until((slot / "waits").exists)
    await printed(launcher, slot, before)
    first = await launcher.read_log(slot)
    (slot / "go").touch()
    await ended(launcher, running)
    await ended(launcher, await launcher.start(spec(slot, "print('second')")))

    assert await log_of(launcher, slot, first.next_offset) == "last words\nsecond\n"


async def test_a_long_log_comes_in_parts_that_fit_together(launcher, slot):
    lines = 3 * LOG_PART_BYTES // 32
    await ended(launcher, await launcher.start(spec(slot, f"for i in range({lines}): print(f'{{i:031}}')")))

    text, offset, parts = b"", 0, 0
    while True:
        part = await launcher.read_log(slot, offset)
        text, offset, parts = text + part.text, part.next_offset, parts + 1
        assert len(part.text) <= LOG_PART_BYTES
        if part.ended:
            break

    assert text == b"".join(b"%031d\n" % number for number in range(lines))
    assert parts >= 3


@pytest.mark.parametrize(("size", "text"), [(4, b"two\n"), (6, b"e\ntwo\n"), (1000, b"one\ntwo\n")])
async def test_a_negative_offset_counts_bytes_from_the_end_of_the_log(launcher, slot, size, text):
    await ended(launcher, await launcher.start(spec(slot, "print('one'); print('two')")))

    part = await launcher.read_log(slot, -size)

    assert (part.text, part.ended) == (text, True)


BUSY_WITH_A_CHILD = """
import subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-S", "-c", "print('waiting', flush=True); input()"], stdin=subprocess.PIPE)
threading.Thread(target=lambda: child.wait(), daemon=True).start()
kept = bytearray(b"x" * 32 * 1024 * 1024)
while True: pass
"""


async def test_what_a_program_and_its_children_use_is_told(launcher, slot):
    running = await start_waiting(launcher, slot, BUSY_WITH_A_CHILD)
    async with asyncio.timeout(30), aclosing(launcher.stats(running)) as samples:
        first = await anext(samples)
        async for found in samples:
            if found.cpu_s > first.cpu_s and found.pids >= 3 and found.memory_bytes > 32 * MIB:
                break
    assert found.pids < 100


async def test_nothing_is_told_of_what_a_program_uses_that_has_ended(launcher, slot):
    running = await launcher.start(spec(slot, "pass"))
    await ended(launcher, running)
    async with aclosing(launcher.stats(running)) as samples:
        assert [found async for found in samples] == []


async def test_what_is_removed_runs_no_more(launcher, slot):
    running = await start_waiting(launcher, slot)

    await launcher.remove(slot)

    assert await launcher.adopt("w", slot) is None
    assert is_gone(running.pid)


async def test_removing_where_nothing_is_left_changes_nothing(launcher, slot):
    await launcher.remove(slot)

    assert not slot.exists()
