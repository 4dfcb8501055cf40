"""What every launcher promises, with real processes. A new launcher joins by adding itself to `LAUNCHERS`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from edgeai.errors import LaunchError
from edgeai.launcher import ExitReason, ExitRecord, LaunchSpec, ProcessLauncher, Running

LAUNCHERS = {"process": ProcessLauncher}
GRACE_S = 10.0

WAITS = "import signal; print('waiting', flush=True); signal.pause()"
IGNORES_SIGTERM = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('waiting', flush=True)
while True: signal.pause()
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


@pytest.fixture(params=LAUNCHERS)
def make_launcher(request: pytest.FixtureRequest) -> Callable[[], ProcessLauncher]:
    return LAUNCHERS[request.param]


@pytest.fixture
def launcher(make_launcher: Callable[[], ProcessLauncher]) -> ProcessLauncher:
    return make_launcher()


@pytest.fixture
async def slot(tmp_path: Path, launcher: ProcessLauncher) -> AsyncIterator[Path]:
    yield tmp_path / "slot"
    for folder in (tmp_path / "slot", tmp_path / "other"):
        if (running := await launcher.adopt("w", folder)) is not None:
            await launcher.stop(running, 0.0)


def spec(slot: Path, script: str, **more: object) -> LaunchSpec:
    return LaunchSpec("w", slot, ["python", "-S", "-c", script], **more)  # type: ignore[arg-type]


def log_of(slot: Path) -> str:
    path = slot / "worker.log"
    return path.read_text() if path.exists() else ""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def start_waiting(launcher: ProcessLauncher, slot: Path, script: str = WAITS) -> Running:
    running = await launcher.start(spec(slot, script))
    await until(lambda: "waiting" in log_of(slot))
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


async def ended(launcher: ProcessLauncher, running: Running) -> ExitRecord:
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

    assert log_of(slot) == "out\nerr\n" * 2


async def test_a_program_reads_an_empty_standard_input(launcher, slot):
    running = await launcher.start(spec(slot, "import sys; print(repr(sys.stdin.read()))"))

    assert (await ended(launcher, running)).last_line == "''"


async def test_a_program_runs_in_its_slot_directory(launcher, slot):
    running = await launcher.start(spec(slot, "import os; print(os.getcwd())"))

    assert (await ended(launcher, running)).last_line == str(slot)


async def test_a_program_runs_in_the_directory_that_is_asked_for(launcher, slot, tmp_path):
    running = await launcher.start(spec(slot, "import os; print(os.getcwd())", cwd=tmp_path))

    assert (await ended(launcher, running)).last_line == str(tmp_path)


async def test_the_environment_of_the_spec_reaches_the_program(launcher, slot):
    running = await launcher.start(spec(slot, "import os; print(os.environ['EDGEAI_TASK'])", env={"EDGEAI_TASK": "é"}))

    assert (await ended(launcher, running)).last_line == "é"


async def test_the_environment_of_the_daemon_does_not_leak(launcher, slot, monkeypatch):
    monkeypatch.setenv("EDGEAI_CANARY_SECRET", "s3cret")
    running = await launcher.start(spec(slot, "import os; print(sorted(os.environ))"))

    assert "CANARY" not in (await ended(launcher, running)).last_line


async def test_python_means_this_interpreter(launcher, slot):
    running = await launcher.start(spec(slot, "import sys; print(sys.executable)"))

    assert (await ended(launcher, running)).last_line == sys.executable


async def test_signals_have_their_default_meaning_in_a_program(launcher, slot):
    program = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.pthread_sigmask(0, ()))"
    running = await launcher.start(spec(slot, program))

    assert (await ended(launcher, running)).last_line == "True set()"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["/no/such/program"], "No such file"),
        (["/"], "Permission denied"),
        (["relative/program"], "absolute"),
        ([], "no program"),
        (["python", "a\0b"], "null byte"),
    ],
    ids=["missing", "not-executable", "relative", "empty", "null-byte"],
)
async def test_a_program_that_cannot_start_says_why_in_one_line(launcher, slot, argv, says):
    with pytest.raises(LaunchError, match=says) as raised:
        await launcher.start(LaunchSpec("w", slot, argv))

    assert str(raised.value).startswith("w could not be started: ")
    assert "\n" not in str(raised.value)


async def test_a_missing_working_directory_is_named(launcher, slot):
    with pytest.raises(LaunchError, match="/no/such/directory"):
        await launcher.start(spec(slot, "", cwd=Path("/no/such/directory")))


async def test_a_slot_is_free_again_after_a_program_that_cannot_start(launcher, slot):
    with pytest.raises(LaunchError):
        await launcher.start(LaunchSpec("w", slot, ["/no/such/program"]))

    assert await launcher.adopt("w", slot) is None
    assert await launcher.last_exit(slot) is None


async def test_the_launch_file_is_readable_by_its_owner_only(launcher, slot):
    await ended(launcher, await launcher.start(spec(slot, "")))

    assert (slot / "launch.json").stat().st_mode & 0o777 == 0o600


async def test_a_running_slot_is_not_started_again(launcher, slot):
    first = await start_waiting(launcher, slot)

    assert await launcher.start(spec(slot, "print('second')")) == first


async def test_concurrent_starts_give_one_program(make_launcher, launcher, slot):
    starts = [make_launcher().start(spec(slot, WAITS)) for _ in range(4)]

    assert len(set(await asyncio.gather(*starts))) == 1
    await until(lambda: "waiting" in log_of(slot))
    assert log_of(slot) == "waiting\n"


async def test_a_new_launcher_adopts_the_running_program(make_launcher, launcher, slot):
    running = await start_waiting(launcher, slot)

    assert await make_launcher().adopt("w", slot) == running


async def test_an_adopted_program_can_be_waited_for(make_launcher, launcher, slot):
    await start_waiting(launcher, slot)
    second = make_launcher()
    adopted = await second.adopt("w", slot)

    os.kill(adopted.pid, signal.SIGINT)

    assert (await ended(second, adopted)).last_line == "KeyboardInterrupt"


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


async def test_a_process_with_the_pid_of_an_earlier_run_is_not_adopted(launcher, slot):
    await start_waiting(launcher, slot)
    run = json.loads((slot / "run.json").read_text())
    (slot.parent / "other").mkdir()
    (slot.parent / "other/run.json").write_text(json.dumps({**run, "start_time": run["start_time"] + 1}))

    assert await launcher.adopt("w", slot.parent / "other") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"shim_pid": -1}', b"\xff\x00"])
async def test_damaged_records_are_as_good_as_none(launcher, slot, damage):
    slot.mkdir()
    (slot / "run.json").write_bytes(damage)
    (slot / "exit.json").write_bytes(damage)

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


async def grandchildren(slot: Path) -> list[int]:
    await until(lambda: "pids" in log_of(slot) and log_of(slot).endswith("\n"))
    return [int(pid) for pid in log_of(slot).split()[-3:]]


async def test_stop_kills_grandchildren_in_groups_and_sessions_of_their_own(launcher, slot):
    running = await launcher.start(spec(slot, HAS_GRANDCHILDREN + IGNORES_SIGTERM.replace("'waiting'", "''")))
    pids = await grandchildren(slot)

    await launcher.stop(running, 0.05)

    assert [pid for pid in pids if not is_gone(pid)] == []


async def test_children_do_not_outlive_a_program_that_ends_by_itself(launcher, slot):
    running = await launcher.start(spec(slot, HAS_GRANDCHILDREN))

    assert (await ended(launcher, running)).code == 0
    assert [pid for pid in await grandchildren(slot) if not is_gone(pid)] == []


async def test_stopping_what_has_ended_returns_its_record(launcher, slot):
    running = await launcher.start(spec(slot, "raise SystemExit(4)"))
    await ended(launcher, running)

    assert (await launcher.stop(running, GRACE_S)).code == 4


async def test_a_slot_starts_again_after_a_stop(launcher, slot):
    first = await start_waiting(launcher, slot)
    await launcher.stop(first, GRACE_S)

    second = await launcher.start(spec(slot, "raise SystemExit(5)"))

    assert (await ended(launcher, second)).code == 5


async def test_a_program_that_lost_its_supervisor_is_lost(launcher, slot):
    running = await start_waiting(launcher, slot)

    os.kill(shim_pid(slot), signal.SIGKILL)

    assert await ended(launcher, running) == ExitRecord(ExitReason.LOST, last_line="waiting")
    assert await launcher.last_exit(slot) == ExitRecord(ExitReason.LOST, last_line="waiting")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
async def test_a_program_dies_with_its_supervisor_also_when_nobody_looks(launcher, slot):
    running = await start_waiting(launcher, slot)

    os.kill(shim_pid(slot), signal.SIGKILL)

    await until(lambda: is_gone(running.pid))


async def test_nothing_is_left_alive_when_a_lost_program_has_been_waited_for(launcher, slot):
    running = await launcher.start(spec(slot, HAS_GRANDCHILDREN.replace(", dict(start_new_session=True)", "") + WAITS))
    await until(lambda: "waiting" in log_of(slot))
    line = next(line for line in log_of(slot).splitlines() if line.startswith("pids"))

    os.kill(shim_pid(slot), signal.SIGKILL)
    await ended(launcher, running)

    assert [pid for pid in (running.pid, *map(int, line.split()[1:])) if not is_gone(pid)] == []


async def test_stopping_a_suspended_supervisor_leaves_nothing_alive(launcher, slot, monkeypatch):
    monkeypatch.setattr("edgeai.launcher.process._KILL_S", 0.2)
    running = await start_waiting(launcher, slot, IGNORES_SIGTERM)
    await suspend(shim_pid(slot))

    record = await launcher.stop(running, 0.05)

    assert record.reason is ExitReason.LOST
    assert is_gone(running.pid)


async def test_a_lost_slot_starts_again(launcher, slot):
    await start_waiting(launcher, slot)
    lost = shim_pid(slot)
    os.kill(lost, signal.SIGKILL)
    await until(lambda: is_gone(lost))

    second = await launcher.start(spec(slot, "raise SystemExit(6)"))

    assert (await ended(launcher, second)).code == 6


async def test_the_supervisor_needs_less_than_12_mb(launcher, slot):
    await start_waiting(launcher, slot)

    assert psutil.Process(shim_pid(slot)).memory_info().rss < 12_000_000


async def test_a_program_is_waited_for_where_the_system_has_no_pidfd(launcher, slot, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open")
    running = await start_waiting(launcher, slot)

    assert (await launcher.stop(running, GRACE_S)).signal == "SIGTERM"
