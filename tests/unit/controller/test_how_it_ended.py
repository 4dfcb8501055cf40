"""How the end of a worker, or of its start, is told in one line: the cause, the limit, what to do, and nothing in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.controller.service import ControllerSettings, LocalController, _by_itself, _sentence
from edgeai.errors import LaunchError
from edgeai.events.catalogue import Assignment, Role
from edgeai.launcher.base import ExitReason, ExitRecord, LaunchSpec, Running
from edgeai.launcher.process import ProcessLauncher
from edgeai.launcher.slots import SlotDir
from edgeai.lifecycle.worker import StartFailed
from edgeai.store.edge import EdgeStore

MEMORY = "needed more memory than its limit of 128 MiB (resources.memory) and was ended; raise it or use less"


def ended(reason: ExitReason, last_line: str = "", limit: int = 128 * 1024**2) -> str:
    record = ExitRecord(reason, signal="SIGKILL", last_line=last_line, limit=limit)
    return _sentence(record, False, Role.TRAINING)


def test_the_memory_limit_is_named():
    assert ended(ExitReason.OOM) == MEMORY


def test_a_memory_limit_that_an_earlier_version_did_not_write_down_is_not_named():
    assert ended(ExitReason.OOM, limit=0).startswith("needed more memory than its limit (resources.memory) and was")


@pytest.mark.parametrize("reason", [ExitReason.OOM, ExitReason.DISK, ExitReason.FILES])
def test_what_a_worker_said_last_stands_at_the_end(reason: ExitReason):
    assert ended(reason, "11") == f"{ended(reason)} (last line: 11)"


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-24T10:36:43.123456Z [info     ] worker_joined worker=work0",
        "\x1b[2m2026-11-24T10:36:43.123456Z\x1b[0m [\x1b[32m\x1b[1minfo     \x1b[0m] worker_joined",
        '{"worker": "work0", "event": "worker_joined", "level": "info", "timestamp": "2026-11-24T10:36:43Z"}',
    ],
    ids=["plain", "coloured", "json"],
)
def test_a_log_line_of_ours_is_not_what_a_worker_said(line: str):
    assert ended(ExitReason.OOM, line) == MEMORY


def test_the_last_line_of_a_worker_that_failed_by_itself_is_why():
    record = ExitRecord(ExitReason.EXITED, 1, last_line="ValueError: no column x")
    assert _sentence(record, False, Role.TRAINING) == "exited with code 1: ValueError: no column x"


@pytest.mark.parametrize(
    ("record", "own"),
    [
        (ExitRecord(ExitReason.EXITED, 1), True),
        (ExitRecord(ExitReason.EXITED, 0), True),
        (ExitRecord(ExitReason.OOM, signal="SIGKILL"), True),
        (ExitRecord(ExitReason.KILLED, signal="SIGSEGV"), True),
        (ExitRecord(ExitReason.KILLED, signal="SIGKILL"), False),
        (ExitRecord(ExitReason.KILLED, signal="SIGTERM"), False),
        (ExitRecord(ExitReason.LOST), False),
    ],
    ids=["error", "no report", "memory", "crash", "SIGKILL", "SIGTERM", "lost"],
)
def test_a_program_is_to_blame_for_its_end_unless_a_hand_or_the_machine_was(record: ExitRecord, own: bool):
    assert _by_itself(record) is own


class Broken(ProcessLauncher):
    """Starts nothing."""

    async def start(self, spec: LaunchSpec) -> Running:
        raise LaunchError(f"{spec.name} could not be started: no such program")


async def test_a_start_that_failed_is_told_without_the_name_of_the_slot(tmp_path: Path):
    store, folder = await EdgeStore.open(tmp_path / "controller.db"), SlotDir(tmp_path / "slots" / "gpu-0a1b2c3d" / "w")
    folder.create()
    settings = ControllerSettings("edge1", tmp_path, "mqtt://127.0.0.1:1", tmp_path / "none.json")
    try:
        async with MemoryBus(MemoryBroker()) as bus:
            controller = LocalController(settings, bus, store, Broken())
            mine = Assignment("gpu-0a1b2c3d", "gpu", "0a1b2c3d" * 4, 1, "w", Role.AGGREGATION)
            found = await controller._start("gpu-0a1b2c3d/w", mine)
    finally:
        await store.close()
    assert found == StartFailed("could not be started: no such program")
