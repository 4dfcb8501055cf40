"""Bad input ends with one line that says who, what and what to do; everything else goes on.

All the bad tasks of the table are applied to one world at the same time, beside a good one.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from living_world import (
    HERE,
    THREE,
    Worker,
    World,
    describe,
    digest_of,
    manifests,
    message,
    updates_of,
)

from edgeai.bus.embedded import NatsCloud, Programs
from edgeai.cli.playground import Playground
from edgeai.client import connect
from edgeai.errors import BinaryMissing, BusUnavailable, ManifestError
from edgeai.resources.base import Metadata
from edgeai.resources.conditions import find_condition
from edgeai.resources.dataset import Dataset, DatasetFormat, DatasetSpec
from edgeai.resources.federated import FederatedTask, TaskPhase

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

ONE = Worker()


@dataclass(frozen=True)
class Bad:
    """A task that cannot work. `says` are parts of the one line that its status shows."""

    says: Sequence[str]
    workers: Sequence[Worker] = (ONE,)
    phase: TaskPhase = TaskPhase.FAILED
    parameters: dict[str, Any] = field(default_factory=dict)


def wayward(fault: str, worker: Worker = ONE) -> Worker:
    return replace(worker, folder="scripts/wayward", parameters={"fault": fault})


def two_good_and(fault: str) -> list[Worker]:
    return [wayward("none", THREE[0]), wayward("none", THREE[1]), wayward(fault, THREE[2])]


LEFT = "0 of at least 1 training workers are left"
FAILING = {
    "dataset-missing": Bad(
        ["dataset nowhere of worker work1 does not exist", "apply a Dataset"],
        [replace(ONE, dataset="nowhere")],
        TaskPhase.PENDING,
    ),
    "dataset-elsewhere": Bad(
        ["dataset dataset1 is on edge2, worker work1 on edge1"], [replace(ONE, dataset="dataset1")], TaskPhase.PENDING
    ),
    "node-missing": Bad(
        ["node edge9 of worker work1 has never joined", "edgeai edge --node edge9"],
        [replace(ONE, node="edge9")],
        TaskPhase.PENDING,
    ),
    "file-missing": Bad(["work1 on edge1", "dataset lost", "does not exist", LEFT], [replace(ONE, dataset="lost")]),
    "file-forbidden": Bad(
        ["work1 on edge1", "dataset forbidden", "not under an allowed root", "allowed_roots", LEFT],
        [replace(ONE, dataset="forbidden")],
    ),
    "file-damaged": Bad(["work1 on edge1", "dataset damaged", "not an npz file"], [replace(ONE, dataset="damaged")]),
    "script-forbidden": Bad(
        ["work1 on edge1", "/etc is not under an allowed root", "allowed_roots"], [replace(ONE, folder="/etc")]
    ),
    "import-error": Bad(
        ["work1 on edge1", "exited with code 1", "No module named 'no_such_module'", LEFT],
        [replace(ONE, folder="scripts/broken")],
    ),
    "no-update": Bad(
        ["work1 on edge1", "exited with code 0 without a finished update", "the script must submit"],
        [wayward("leaves")],
    ),
    "always-killed": Bad(["work1 on edge1", "was killed by SIGKILL", "memory"], [wayward("is killed")]),
    "framework-missing": Bad(
        ["work1 on edge1", "framework pytorch is not installed on edge1", "pip install torch"],
        [replace(ONE, framework="pytorch", version=">=2")],
    ),
    "framework-old": Bad(
        ["work1 on edge1", "numpy", "is not >=99", "install another version or change frameworkVersion"],
        [replace(ONE, version=">=99")],
    ),
    "all-fail": Bad(
        ["work1 on edge1", "work2 on edge2", "No module named", LEFT],
        [replace(worker, folder="scripts/broken") for worker in THREE[:2]],
    ),
}
GOING_ON = {
    "not-a-number": Bad([], two_good_and("not a number"), parameters={"rounds": 3}),
    "wrong-shape": Bad([], two_good_and("wrong shape"), parameters={"rounds": 3}),
    "too-slow": Bad([], two_good_and("too slow"), parameters={"rounds": 2, "round_deadline_seconds": 5}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(world: World) -> dict[str, FederatedTask]:
    """What became of every bad task, and of the good one beside them."""
    data = world.folder("edge1") / "data"
    (data / "damaged.npz").write_bytes(b"not a zip file")
    (data / "empty").mkdir()
    bad = Bad([], [replace(ONE, folder=str(data / "empty"))])
    files = {"lost": data / "lost.npz", "forbidden": Path("/etc/hostname"), "damaged": data / "damaged.npz"}
    await world.cloud.apply([_dataset(name, path) for name, path in files.items()])
    cases = {**FAILING, **GOING_ON, "boot-file-missing": bad}
    for name, case in cases.items():
        await world.apply(name, case.workers, **case.parameters)
    await world.apply("good", rounds=3)
    ended = await asyncio.gather(*(_outcome(world, name, cases.get(name, Bad([]))) for name in (*cases, "good")))
    return {task.metadata.name: task for task in ended}


def _dataset(name: str, path: Path) -> Dataset:
    spec = DatasetSpec(node_name="edge1", url=str(path), format=DatasetFormat.NPZ)
    return Dataset(metadata=Metadata(name=name), spec=spec)


async def _outcome(world: World, name: str, case: Bad) -> FederatedTask:
    if case.phase is TaskPhase.PENDING:
        return await world.until(name, lambda task: bool(task.status.conditions))
    return await world.ended(name, 120)


@pytest.mark.parametrize("name", [*FAILING, "boot-file-missing"])
async def test_the_status_says_in_one_line_who_and_what_and_what_to_do(outcomes: dict[str, FederatedTask], name: str):
    task = outcomes[name]
    case = FAILING.get(name) or Bad(["work1 on edge1", "main.py is not in trainScriptDir", LEFT])
    assert task.status.phase is case.phase, describe(task)
    line = message(task, "Failed") if case.phase is TaskPhase.FAILED else _refusal(task)
    assert "\n" not in line
    assert [part for part in case.says if part not in line] == [], line


def _refusal(task: FederatedTask) -> str:
    accepted = find_condition(task.status.conditions, "Accepted")  # type: ignore[arg-type]
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", "ReferencesMissing")
    return accepted.message


async def test_a_good_task_beside_bad_ones_counts_every_update(outcomes: dict[str, FederatedTask]):
    assert digest_of(outcomes["good"])
    assert updates_of(outcomes["good"]) == [3, 3, 3]


async def test_an_update_that_is_not_finite_is_refused_by_name_and_the_round_goes_on(
    outcomes: dict[str, FederatedTask],
):
    task = outcomes["not-a-number"]
    assert digest_of(task)
    assert updates_of(task) == [3, 2, 3]
    refused = task.status.rounds[1].refused
    assert list(refused) == ["work3"]
    assert "finite" in refused["work3"]


async def test_an_update_of_the_wrong_shape_fails_in_its_script_and_the_others_go_on(
    outcomes: dict[str, FederatedTask],
):
    task = outcomes["wrong-shape"]
    assert digest_of(task)
    assert updates_of(task) == [3, 2, 2]
    line = message(task, "Degraded")
    assert "work3 on edge3" in line
    assert "array 0 is float32[11], the round's model has float32[10]" in line


async def test_a_round_does_without_a_worker_that_is_too_slow(outcomes: dict[str, FederatedTask]):
    task = outcomes["too-slow"]
    assert digest_of(task)
    assert [row.accepted for row in task.status.rounds] == [("work1", "work2", "work3"), ("work1", "work2")]


async def test_a_boot_file_that_is_not_in_a_relative_folder_is_refused_by_apply(world: World):
    wanted = manifests("refused", [replace(ONE, boot_file="elsewhere.py")])
    with pytest.raises(ManifestError, match=r"trainScriptBootFile.*elsewhere\.py is not in"):
        await world.cloud.apply(wanted, base=HERE)


async def test_a_port_that_is_taken_is_said_in_one_line(world: World, tmp_path: Path):
    port = NatsCloud(world.folder("cloud")).port
    done = await asyncio.to_thread(_edgeai, "cloud", "--state-dir", str(tmp_path), "--port", str(port))
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line == (
        f"edgeai: cloud broker (nats-server) of cloud: port {port} is taken by another program; "
        "stop it or choose another port (--port)"
    )


async def test_a_broker_that_is_not_installed_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(_self: Programs) -> Path:
        raise BinaryMissing("mosquitto", "apt install mosquitto")

    monkeypatch.setattr(Programs, "mosquitto", missing)
    playground = Playground(tmp_path / "world", 1, "mosquitto")
    with pytest.raises(BinaryMissing, match="mosquitto is not installed; apt install mosquitto"):
        async with playground.running():
            pass
    assert list((tmp_path / "world").iterdir()) == []


async def test_a_cloud_that_is_down_is_said_by_name_within_seconds(tmp_path: Path):
    down = NatsCloud(tmp_path)
    with pytest.raises(BusUnavailable, match=f"no broker answers at {down.url}"):
        async with asyncio.timeout(20), connect(down.url, credentials_file=down.credentials_file("operator")):
            pass


def _edgeai(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeai", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
