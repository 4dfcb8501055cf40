"""Children are kept running, found again after their parent was killed, and stopped without leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from edgeai.errors import LaunchError, PortTaken
from edgeai.launcher.children import (
    FIRST_DELAY_S,
    LONGEST_DELAY_S,
    PARENT_VARIABLE,
    STEADY_AFTER_S,
    Backoff,
    Child,
    Children,
    ChildSpec,
    ProcessId,
    as_parent,
    gone,
    parent_gone,
    read_record,
    record_path,
    stop_all_recorded,
)
from edgeai.launcher.shim import boot

SLEEPER = ["/bin/sleep", "600"]


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


def sleeper(tmp_path: Path, role: str = "broker", argv: list[str] | None = None, **options: object) -> ChildSpec:
    return ChildSpec(role, "edge1", argv or SLEEPER, tmp_path / "logs" / f"{role}.log", **options)  # type: ignore[arg-type]


def pid_of(child: Child) -> int:
    assert child.pid is not None
    return child.pid


@pytest.fixture
async def children(tmp_path: Path) -> AsyncIterator[Children]:
    children = Children(tmp_path)
    yield children
    await children.stop_all(grace_s=2)
    await stop_all_recorded(tmp_path, grace_s=0)


@contextlib.contextmanager
def separate_process(argv: list[str], **options: object):
    """A process that is no child of a supervisor."""
    with subprocess.Popen(argv, **options) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


# --- back-off


def test_the_delay_doubles_up_to_its_limit():
    backoff, delays = Backoff(), []
    for _ in range(9):
        delay_s, backoff = backoff.after(lived_s=0)
        delays.append(delay_s)
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])


def test_a_steady_life_resets_the_delay():
    delay_s, backoff = Backoff(LONGEST_DELAY_S).after(STEADY_AFTER_S)
    assert (delay_s, backoff.delay_s) == (FIRST_DELAY_S, 2 * FIRST_DELAY_S)


# --- processes


def test_a_process_id_reads_as_it_is_written():
    assert ProcessId.parse(str(ProcessId(12, 345))) == ProcessId(12, 345)


def test_a_process_with_another_start_time_is_another_process():
    this = ProcessId.of(os.getpid())
    assert this.runs()
    assert not replace(this, start_time=this.start_time + 1).runs()


async def test_gone_returns_when_a_foreign_process_ends():
    with separate_process(SLEEPER) as process:
        waiting = asyncio.create_task(gone(ProcessId.of(process.pid)))
        await asyncio.sleep(0)
        assert not waiting.done()
        process.kill()
        await asyncio.wait_for(waiting, 5)


async def test_gone_returns_where_there_are_no_process_descriptors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    with separate_process(SLEEPER) as process:
        waiting = asyncio.create_task(gone(ProcessId.of(process.pid)))
        process.kill()
        await asyncio.wait_for(waiting, 5)


async def test_gone_returns_at_once_for_a_process_that_never_was():
    this = ProcessId.of(os.getpid())
    await asyncio.wait_for(gone(replace(this, start_time=this.start_time - 1)), 1)


# --- starting


async def test_a_child_runs_with_its_environment_and_log(children: Children, tmp_path: Path):
    spec = sleeper(tmp_path, argv=["/bin/sh", "-c", 'echo "hello $WHO"; exec sleep 600'], env={"WHO": "broker"})
    await children.start(spec)
    await until(lambda: spec.log_file.exists() and "hello broker" in spec.log_file.read_text())


async def test_a_child_leads_a_session_of_its_own(children: Children, tmp_path: Path):
    pid = pid_of(await children.start(sleeper(tmp_path)))
    assert os.getsid(pid) == pid


async def test_a_child_is_recorded_by_pid_start_time_and_argv(children: Children, tmp_path: Path):
    child = await children.start(sleeper(tmp_path))
    fields = json.loads((tmp_path / "run" / "broker-edge1.json").read_text())
    assert {key: fields[key] for key in ("pid", "start_time", "argv")} == {
        "pid": child.pid,
        "start_time": child.process and child.process.start_time,
        "argv": SLEEPER,
    }


async def test_starting_the_same_child_again_returns_the_one_that_runs(children: Children, tmp_path: Path):
    assert await children.start(sleeper(tmp_path)) is await children.start(sleeper(tmp_path))


async def test_a_program_that_is_not_there_is_named(children: Children, tmp_path: Path):
    with pytest.raises(LaunchError, match="/no/such/program"):
        await children.start(sleeper(tmp_path, argv=["/no/such/program"]))


async def test_what_the_check_before_the_start_says_reaches_the_caller(children: Children, tmp_path: Path):
    def check() -> None:
        raise PortTaken(4222, "broker")

    with pytest.raises(PortTaken):
        await children.start(sleeper(tmp_path, before_start=check))
    assert not record_path(tmp_path, "broker", "edge1").exists()


async def test_a_parent_killed_before_the_record_was_written_leaves_no_child(tmp_path: Path):
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from edgeai.launcher import children\n"
        "def killed(path, record):\n"
        "    print(record.process, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "children._write_record = killed\n"
        "import asyncio\n"
        f"spec = children.ChildSpec('broker', 'edge1', {SLEEPER!r}, Path({str(tmp_path / 'log')!r}))\n"
        f"asyncio.run(children.Children(Path({str(tmp_path)!r})).start(spec))\n"
    )
    with separate_process([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        line = await asyncio.to_thread(parent.stdout.readline)
        await asyncio.wait_for(gone(ProcessId.parse(line)), 10)


# --- restarting


async def test_a_killed_child_is_started_again(children: Children, tmp_path: Path):
    child = await children.start(sleeper(tmp_path))
    first = pid_of(child)
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.pid not in (None, first))
    record = read_record(record_path(tmp_path, "broker", "edge1"))
    assert record is not None
    assert (record.process, child.restarts) == (child.process, 1)


async def test_what_a_killed_child_left_in_its_group_is_ended_before_the_next_start(children: Children, tmp_path: Path):
    spec = sleeper(tmp_path, argv=["/bin/sh", "-c", "sleep 600 & echo $!; wait"])
    child = await children.start(spec)
    await until(spec.log_file.read_text)
    grandchild = int(spec.log_file.read_text().split()[0])
    first = pid_of(child)
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.pid not in (None, first))
    await until(lambda: not _alive(grandchild))


async def test_a_check_that_fails_at_a_restart_is_tried_again(children: Children, tmp_path: Path):
    checks: list[None] = []

    def check() -> None:
        checks.append(None)
        if len(checks) == 2:
            raise PortTaken(4222, "broker")

    child = await children.start(sleeper(tmp_path, before_start=check))
    first = pid_of(child)
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.pid not in (None, first))
    assert len(checks) == 3


# --- adopting


async def test_a_running_child_is_adopted_by_the_next_supervisor(children: Children, tmp_path: Path):
    first = await children.start(sleeper(tmp_path))
    pid = first.pid
    await children.release()
    second = await children.start(sleeper(tmp_path))
    assert (second.pid, second.adopted) == (pid, True)


async def test_a_child_of_a_killed_parent_is_adopted_and_started_again_when_it_dies(children: Children, tmp_path: Path):
    script = (
        "import asyncio, os\n"
        "from pathlib import Path\n"
        "from edgeai.launcher.children import Children, ChildSpec\n"
        "async def main():\n"
        f"    children = Children(Path({str(tmp_path)!r}))\n"
        f"    spec = ChildSpec('broker', 'edge1', {SLEEPER!r}, Path({str(tmp_path / 'log')!r}))\n"
        "    child = await children.start(spec)\n"
        "    os.write(2, b'%d\\n' % child.pid)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with separate_process(
        [sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as parent:
        pid = int(await asyncio.to_thread(parent.stderr.readline))
    child = await children.start(sleeper(tmp_path))
    assert (child.pid, child.adopted) == (pid, True)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: child.pid not in (None, pid))
    assert not child.adopted


async def test_a_foreign_process_that_has_the_recorded_pid_is_not_adopted(children: Children, tmp_path: Path):
    await children.start(sleeper(tmp_path))
    await children.stop_all(grace_s=2)
    with separate_process(SLEEPER) as foreign:
        record = {"role": "broker", "node": "edge1", "pid": foreign.pid, "start_time": 1, "argv": SLEEPER}
        path = record_path(tmp_path, "broker", "edge1")
        path.write_text(json.dumps({**record, "supervisor": "1:1", "boot": boot()}))
        child = await children.start(sleeper(tmp_path))
        assert child.pid != foreign.pid
        assert foreign.poll() is None


async def test_a_record_of_an_earlier_boot_is_not_adopted(children: Children, tmp_path: Path):
    first = await children.start(sleeper(tmp_path))
    path = record_path(tmp_path, "broker", "edge1")
    pid = pid_of(first)
    await children.release()
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot": "another"}))
    second = await children.start(sleeper(tmp_path))
    assert second.pid != pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def test_a_damaged_record_does_not_stop_a_start(children: Children, tmp_path: Path):
    path = record_path(tmp_path, "broker", "edge1")
    path.parent.mkdir()
    path.write_text("{")
    assert (await children.start(sleeper(tmp_path))).pid


# --- stopping


async def test_stop_leaves_neither_process_nor_record(children: Children, tmp_path: Path):
    pid = pid_of(await children.start(sleeper(tmp_path)))
    await children.stop("broker", "edge1", grace_s=5)
    assert not psutil.pid_exists(pid)
    assert not list((tmp_path / "run").iterdir())


async def test_stop_kills_what_ignores_the_request(children: Children, tmp_path: Path):
    spec = sleeper(tmp_path, argv=["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 600; done"])
    pid = pid_of(await children.start(spec))
    await until(lambda: "deaf" in spec.log_file.read_text())
    await children.stop("broker", "edge1", grace_s=0.2)
    assert not psutil.pid_exists(pid)


async def test_stop_ends_an_adopted_child(children: Children, tmp_path: Path):
    pid = pid_of(await children.start(sleeper(tmp_path)))
    await children.release()
    await children.start(sleeper(tmp_path))
    await children.stop_all(grace_s=5)
    assert not _alive(pid)


async def test_a_child_is_not_started_again_while_it_is_stopped(children: Children, tmp_path: Path):
    child = await children.start(sleeper(tmp_path))
    os.kill(pid_of(child), signal.SIGKILL)
    await until(lambda: child.pid is None)
    await children.stop_all(grace_s=5)
    assert await stop_all_recorded(tmp_path) == []


async def test_everything_in_the_registry_is_stopped(children: Children, tmp_path: Path):
    pids = [pid_of(await children.start(sleeper(tmp_path, role))) for role in ("broker", "bridge")]
    await children.release()
    assert sorted(await stop_all_recorded(tmp_path, grace_s=5)) == ["bridge-edge1", "broker-edge1"]
    assert not any(_alive(pid) for pid in pids)
    assert not list((tmp_path / "run").iterdir())


async def test_a_recorded_supervisor_is_stopped_before_what_it_would_start_again(children: Children, tmp_path: Path):
    broker_log = tmp_path / "broker.log"
    broker = ["/bin/sh", "-c", "echo up; exec sleep 600"]
    script = (
        "import asyncio\n"
        "from pathlib import Path\n"
        "from edgeai.launcher.children import Children, ChildSpec\n"
        "async def main():\n"
        f"    children = Children(Path({str(tmp_path)!r}))\n"
        f"    await children.start(ChildSpec('broker', 'edge1', {broker!r}, Path({str(broker_log)!r})))\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    await children.start(sleeper(tmp_path, "daemon", [sys.executable, "-c", script]))
    await until(lambda: broker_log.exists() and broker_log.read_text())
    await children.release()
    assert await stop_all_recorded(tmp_path, grace_s=5) == ["daemon-edge1", "broker-edge1"]


# --- parents


async def test_a_daemon_notices_that_its_parent_was_killed():
    with separate_process(SLEEPER) as parent:
        waiting = asyncio.create_task(parent_gone({PARENT_VARIABLE: str(ProcessId.of(parent.pid))}))
        parent.kill()
        await asyncio.wait_for(waiting, 5)


async def test_a_daemon_without_a_parent_never_notices_one():
    waiting = asyncio.create_task(parent_gone({}))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_this_process_names_itself_as_parent():
    assert ProcessId.parse(as_parent()[PARENT_VARIABLE]).pid == os.getpid()


async def test_an_unreadable_parent_is_refused():
    with pytest.raises(LaunchError, match=PARENT_VARIABLE):
        await parent_gone({PARENT_VARIABLE: "nobody"})


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
