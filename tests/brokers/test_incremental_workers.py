"""The shipped worker of an incremental learning job, stage by stage, as processes on slot directories made by a test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import edgeai
from edgeai.events.catalogue import Assignment, BlobRef, ModelFile, Role, StageWork
from edgeai.launcher.slots import ServingFile, SlotDir, SlotFile, read_serving, write_serving
from edgeai.store.files import digest_of
from edgeai.store.records_log import read
from scripted_aggregation import TASK, UID, environment_of

ROOT = Path(__file__).parents[2]
MAIN = ROOT / "workers" / "incremental-numpy" / "main.py"
PARAMETERS = {"batch size": 16, "learning rate": 0.2, "epochs": 40, "requests per second": 500}
NO_BROKER = "mqtt://127.0.0.1:1"
PATIENCE_S = 60


def digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Every fifth image is held out."""
    with np.load(ROOT / "config" / "examples" / "digits.npz") as data:
        x, y = data["x"], data["y"]
    chosen = (np.arange(len(y)) % 5 == 0) == (part == "test")
    return x[chosen], y[chosen]


def put(slot: SlotDir, model: Path) -> ModelFile:
    digest = digest_of(model)
    slot.model(digest).write_bytes(model.read_bytes())
    return ModelFile(f"{digest}.safetensors", BlobRef(digest, model.stat().st_size))


def slot_for(folder: Path, role: Role, work: StageWork, dataset: Path | None = None, **parameters: object) -> SlotDir:
    slot = SlotDir(folder)
    slot.create()
    known = {**PARAMETERS, **parameters}
    assignment = Assignment(TASK, "digits", UID, 1, role.value, role, dataset="stream", parameters=known, work=work)
    slot.write_slot(SlotFile("edge1", assignment, str(dataset) if dataset else ""))
    return slot


def started(slot: SlotDir) -> subprocess.Popen[bytes]:
    role = slot.read_slot().assignment.role.value
    environ = {**os.environ, **environment_of(slot, NO_BROKER), "EDGEAI_WORKER": role}
    environ["PYTHONPATH"] = str(Path(edgeai.__file__).parents[1])
    return subprocess.Popen([sys.executable, str(MAIN)], env=environ, cwd=MAIN.parent, stderr=subprocess.PIPE)


def run(slot: SlotDir) -> None:
    _, said = (worker := started(slot)).communicate(timeout=PATIENCE_S)
    assert worker.returncode == 0, said.decode()


def trained(folder: Path, snapshot: Path, number: int, *models: Path) -> Path:
    """A round of the train stage; returns the new model."""
    slot = SlotDir(folder)
    slot.create()
    given = tuple(put(slot, model) for model in models)
    slot = slot_for(folder, Role.TRAIN, StageWork(number, f"{number}.0", "a" * 64, given), snapshot)
    run(slot)
    result = slot.read_result()
    assert result is not None
    return slot.output / result.model


def snapshot(folder: Path, old: np.ndarray, new: np.ndarray) -> Path:
    """`old` and `new`: which digits."""
    folder.mkdir()
    x, y = digits("train")
    for part, chosen in {"old": np.isin(y, old), "new": np.isin(y, new)}.items():
        np.savez(folder / f"{part}.npz", x=x[chosen], y=y[chosen])
    x, y = digits("test")
    np.savez(folder / "eval.npz", x=x, y=y)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("first")
    return trained(folder / "slot", snapshot(folder / "snapshot", np.arange(0), np.arange(5)), 1)


def test_a_network_that_meets_new_digits_learns_them_and_forgets_none(first, tmp_path):
    data = snapshot(tmp_path / "snapshot", np.arange(5), np.arange(5, 10))
    second = trained(tmp_path / "train", data, 2, first)
    slot = SlotDir(tmp_path / "eval")
    slot.create()
    given = tuple(put(slot, model) for model in (second, first))
    run(slot_for(slot.path, Role.EVAL, StageWork(2, "2.0", "a" * 64, given), data))
    result = slot.read_result()
    assert result is not None
    new, old = (result.metrics[model.blob.digest] for model in given)

    def on_old(metrics: dict[str, float]) -> float:
        return sum(metrics[f"accuracy/{digit}"] for digit in range(5)) / 5

    assert new["accuracy"] > 0.9 > 0.6 > old["accuracy"]
    assert on_old(new) > on_old(old) - 0.05


def test_a_round_that_is_trained_again_gives_the_same_model(first, tmp_path):
    data = snapshot(tmp_path / "snapshot", np.arange(5), np.arange(5, 10))
    digests = {digest_of(trained(tmp_path / name, data, 2, first)) for name in ("once", "again")}
    assert len(digests) == 1


def test_digits_that_the_network_has_not_seen_are_hard(first, tmp_path):
    slot = SlotDir(tmp_path / "slot")
    slot.create()
    x, y = digits("test")
    np.savez(tmp_path / "stream.npz", x=x)
    work = StageWork(mining="CrossEntropy", mining_parameters={"threshold": 0.5})
    slot = slot_for(slot.path, Role.DEPLOY, work, stream=str(tmp_path / "stream.npz"))
    write_serving(slot.models, ServingFile(put(slot, first), 1))
    worker = started(slot)
    deadline = time.monotonic() + PATIENCE_S
    found: list[dict[str, object]] = []
    while len(found) < 20 and time.monotonic() < deadline and worker.poll() is None:
        found = (
            [record for path in slot.hard.glob("*.log") for record in read(path).records] if slot.hard.exists() else []
        )
        time.sleep(0.02)
    worker.terminate()
    worker.communicate(timeout=PATIENCE_S)
    new = sum(y[int(str(record["id"]).removeprefix("stream-"))] >= 5 for record in found)
    assert new > 0.7 * len(found) > 0


def test_a_deploy_worker_notes_what_it_serves(first, tmp_path):
    slot = SlotDir(tmp_path / "slot")
    slot.create()
    np.savez(tmp_path / "stream.npz", x=digits("test")[0])
    slot = slot_for(slot.path, Role.DEPLOY, StageWork(), stream=str(tmp_path / "stream.npz"))
    wanted = ServingFile(put(slot, first), 1)
    write_serving(slot.models, wanted)
    worker = started(slot)
    deadline = time.monotonic() + PATIENCE_S
    while (noted := read_serving(slot.path)) is None and time.monotonic() < deadline and worker.poll() is None:
        time.sleep(0.02)
    worker.terminate()
    worker.communicate(timeout=PATIENCE_S)
    assert noted == wanted
