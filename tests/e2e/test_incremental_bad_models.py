"""A model that is worse, or no model at all, is named and never serves; a dataset that is spoilt spoils no snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from learning_world import KNOWN, LearningWorld, Outcome, digits, row
from living_world import World

from edgeai.resources.conditions import find_condition
from edgeai.resources.dataset import Dataset
from edgeai.resources.incremental import IncrementalLearningJob, StageRecord

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

EDGES = 1
FIRST, SECOND, THIRD = (range(start, start + 20) for start in (KNOWN, KNOWN + 20, KNOWN + 40))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def learning(world: World) -> LearningWorld:
    return LearningWorld(world)


# What is wrong with the model of the second round, the stage that says so, and what it says.
FAULTS = {
    "is worse": ("Deploy", "the new model is not deployed: not accuracy_delta >= 0"),
    "raises on load": ("Deploy", "does not load"),
    "is not finite": ("Deploy", "not finite"),
    "has another shape": ("Deploy", "it answers f[7], the serving model f[10]"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_it_is_named_never_serves_and_the_next_round_goes_on(learning: LearningWorld, fault: str):
    name = f"model-{fault.replace(' ', '-')}"
    await learning.start(name, FIRST, fault=fault, fault_round=2, believes=fault != "is worse")
    await learning.ready(name, FIRST)
    good = await learning.round(name, 1)
    learning.ask(name, SECOND)
    await learning.answered(name, SECOND)
    await learning.label(name, SECOND)
    await learning.counted(name, 40)
    stage, says = FAULTS[fault]
    await learning.world.cloud.trigger(name)
    job = await learning.until(name, lambda job: bool(row(job, 2, stage).reason or row(job, 2, "Eval").reason))
    assert says in _reasons(job, 2)
    learning.ask(name, THIRD)
    assert await learning.answered(name, THIRD) == good.digest
    served = {line["model"] for line in learning.journal(name)}
    assert served <= {good.digest, await _initial(learning, name)}
    assert [each.round for each in (await learning.model(name)).status.versions] == [0, 1]
    third = await learning.round(name, 3)
    assert [each.digest for each in third.versions] == [third.digest]
    await learning.delete(name)


async def test_a_train_worker_that_makes_no_file_is_named_and_the_model_before_goes_on(learning: LearningWorld):
    name = "model-is-no-file"
    await learning.start(name, FIRST, fault="is no file", fault_round=1)
    await learning.ready(name, FIRST)
    await learning.world.cloud.trigger(name)
    job = await learning.until(name, lambda job: row(job, 1, "Train").state == "Failed")
    assert "nowhere.npz" in row(job, 1, "Train").reason
    degraded = find_condition(job.status.conditions, "Degraded")  # type: ignore[arg-type]
    assert degraded is not None
    assert "nowhere.npz" in degraded.message
    learning.ask(name, SECOND)
    assert await learning.answered(name, SECOND) == await _initial(learning, name)
    await learning.delete(name)


async def test_a_model_that_fails_in_service_gives_way_to_the_one_before_and_no_request_fails(learning: LearningWorld):
    name = "model-fails-late"
    await learning.start(name, FIRST, fault="fails late", fault_round=2, believes=True)
    await learning.ready(name, FIRST)
    good = await learning.round(name, 1)
    bad = await learning.round(name, 2)
    x, _ = digits()
    odd = x[0].copy()
    odd[0] = 1
    learning.ask_inputs(name, {"odd": odd})
    assert await learning.answered_ids(name, {"odd"}) == good.digest
    job = await learning.until(name, lambda job: row(job, 2, "Deploy").state == "Failed")
    assert "this model cannot answer that" in row(job, 2, "Deploy").reason

    def back(found: object) -> bool:
        versions = getattr(found, "status").versions  # noqa: B009
        return bool(versions[-1].digest == good.digest)

    await learning.world.cloud.wait("Model", name, back, 30)
    learning.ask(name, THIRD)
    assert await learning.answered(name, THIRD) == good.digest
    assert bad.digest != good.digest
    await learning.delete(name)


# --- the dataset is written to while a model is trained


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def untouched(learning: LearningWorld) -> Outcome:
    return await learning.learned("untouched", FIRST)


def _truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _rewrite(path: Path) -> None:
    x, y = digits()
    np.savez(path, x=x[1000:1050], y=y[1000:1050])


@pytest.mark.parametrize(
    ("spoil", "says"), [(_truncate, "not an npz file"), (_rewrite, "it had 200 samples, now it has 50")]
)
async def test_a_dataset_that_is_written_to_while_a_model_is_trained_is_named_and_the_snapshot_stays(
    learning: LearningWorld, untouched: Outcome, spoil: Callable[[Path], None], says: str
):
    name = f"dataset{spoil.__name__.replace('_', '-')}"
    job = await learning.start(name, FIRST, pause=1.5)
    await learning.ready(name, FIRST)
    await learning.world.cloud.trigger(name)
    await learning.at_work(job, "train")
    await asyncio.to_thread(spoil, learning.data / f"{name}-labelled.npz")

    def named(found: object) -> bool:
        assert isinstance(found, Dataset)
        ready = find_condition(found.status.conditions, "Ready")  # type: ignore[arg-type]
        return ready is not None and says in ready.message

    await learning.world.cloud.wait("Dataset", f"{name}-labelled", named, 30)
    outcome = await learning.ended(name, 1)
    assert outcome.result == untouched.result
    await learning.delete(name)


async def test_a_version_says_which_snapshot_of_which_dataset_it_comes_from(untouched: Outcome):
    [version] = untouched.versions
    assert version.lineage is not None
    [source] = version.lineage.sources
    assert (version.snapshot, version.samples) == (untouched.snapshot, untouched.samples)
    assert version.lineage.kind == "IncrementalLearningJob"
    assert (source.node, source.dataset) == (version.edge, f"{version.task}-labelled")
    assert version.lineage.held_out > 0


def _reasons(job: IncrementalLearningJob, number: int) -> str:
    rows: list[StageRecord] = [each for each in job.status.history if each.round == number]
    return "; ".join(each.reason for each in rows)


async def _initial(learning: LearningWorld, name: str) -> str:
    return (await learning.model(name)).status.versions[0].digest
