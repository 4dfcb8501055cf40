"""An inference worker serves for ever: what it reads may come later, and nobody has to ask again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.controller.service import INPUT_RETRY_S, ControllerSettings, LocalController
from edgeai.events.catalogue import Assignment, DatasetWanted, Desired, Role, StageWork
from edgeai.launcher.process import ProcessLauncher
from edgeai.lifecycle.worker import PrepareFailed, StartFailed
from edgeai.store.edge import EdgeStore

UID, TASK = "0a1b2c3d" * 4, "digits-0a1b2c3d"


def assignment(role: Role, script: Path) -> Assignment:
    return Assignment(
        TASK,
        "digits",
        UID,
        1,
        role.value,
        role,
        "main.py",
        script_dir=str(script),
        dataset="stream",
        work=StageWork(run="x"),
    )


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[LocalController]:
    store = await EdgeStore.open(tmp_path / "controller.db")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "main.py").write_text("")
    settings = ControllerSettings("edge1", tmp_path, "mqtt://127.0.0.1:1", tmp_path / "none.json", [tmp_path])
    async with MemoryBus(MemoryBroker()) as bus:
        found = LocalController(settings, bus, store, ProcessLauncher())
        found._desired = Desired(datasets=(DatasetWanted("stream", str(tmp_path / "stream.csv"), "csv"),))
        yield found
    await store.close()


async def test_an_inference_worker_waits_for_its_input_file(controller: LocalController, tmp_path: Path):
    wanted = assignment(Role.DEPLOY, tmp_path / "job")
    prepared = await controller._prepare(wanted)
    assert isinstance(prepared, PrepareFailed)
    assert (prepared.retry_s, "stream.csv does not exist" in prepared.reason) == (INPUT_RETRY_S, True)
    started = await controller._start(f"{TASK}/deploy", wanted)
    assert isinstance(started, StartFailed)
    assert (started.retry_s, "stream.csv does not exist" in started.reason) == (INPUT_RETRY_S, True)


async def test_another_worker_is_given_up_without_its_file(controller: LocalController, tmp_path: Path):
    wanted = assignment(Role.TRAINING, tmp_path / "job")
    prepared, started = await controller._prepare(wanted), await controller._start(f"{TASK}/train", wanted)
    assert isinstance(prepared, PrepareFailed)
    assert isinstance(started, StartFailed)
    assert (prepared.retry_s, started.retry_s) == (None, None)
