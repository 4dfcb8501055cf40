"""`kill -9` of any one process at any stage of a round delays it; model, snapshot and history are as without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio
from learning_world import JOB_POINTS, KNOWN, LearningWorld, Outcome
from living_world import World, kill

from edgeai.resources.incremental import IncrementalLearningJob

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

EDGES = 1
ASKED = range(KNOWN, KNOWN + 40)
STAGES = {"Train Waiting", "Train Ready", "Train Starting", "Train Running", "Train Completed"}
STAGES |= {"Eval Starting", "Eval Running", "Eval Completed", "Deploy Starting", "Deploy Running", "Deploy Completed"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def learning(world: World) -> LearningWorld:
    return LearningWorld(world)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(learning: LearningWorld) -> Outcome:
    return await learning.learned("undisturbed", ASKED)


async def test_an_undisturbed_round_goes_through_every_stage_once_and_makes_one_version(
    learning: LearningWorld, undisturbed: Outcome
):
    await _is_as_undisturbed(learning, "undisturbed", undisturbed, undisturbed)


async def test_the_same_round_makes_the_same_model_again(learning: LearningWorld, undisturbed: Outcome):
    assert (await learning.learned("again", ASKED)).result == undisturbed.result
    await learning.delete("again")


# Who passes each point, and the passing at which it dies.
CASES = (
    ("examples.rows_taken@edge", 1),
    ("worker.model_swapped@deploy", 1),
    ("worker.hard_example_kept@deploy", 7),
    ("examples.hard_taken@edge", 1),
    ("examples.snapshot_fixed@edge", 1),
    ("examples.snapshot_written@edge", 1),
    ("job.snapshot_taken@edge", 1),
    ("worker.stage_reported@train", 1),
    ("job.model_taken@edge", 1),
    ("worker.stage_reported@eval", 1),
    ("worker.stage_reported@eval", 2),
    ("job.model_staged@edge", 1),
    ("job.model_staged@edge", 2),
    ("worker.model_swapped@deploy", 2),
    ("coordinator.deployed_registered@cloud", 1),
    ("documents.saved@edge", 6),
)


async def test_every_crash_point_of_a_job_has_a_case():
    assert {point.partition("@")[0] for point, _ in CASES} >= JOB_POINTS


@pytest.mark.parametrize(("point", "count"), CASES)
async def test_dying_there_leaves_the_result_the_same(
    learning: LearningWorld, undisturbed: Outcome, point: str, count: int
):
    armed = learning.world.arm(point, count)
    name = point.replace(".", "-").replace("_", "-").replace("@", "-") + f"-{count}"
    outcome = await learning.learned(name, ASKED)
    assert not armed.exists(), "nobody passed this point so often"
    await _is_as_undisturbed(learning, name, outcome, undisturbed)


@pytest.mark.parametrize(
    ("point", "passing"),
    [
        ("reactor.before_commit", 1),
        ("reactor.before_commit", 4),
        ("reactor.before_commit", 9),
        ("reactor.after_commit", 2),
        ("reactor.after_commit", 6),
        ("outbox.before_send", 3),
    ],
)
async def test_an_edge_that_dies_at_a_commit_of_the_round_leaves_the_result_the_same(
    learning: LearningWorld, undisturbed: Outcome, point: str, passing: int
):
    name = f"{point}-of-the-round-{passing}".replace(".", "-").replace("_", "-")
    await learning.start(name, ASKED)
    await learning.ready(name, ASKED)
    armed = learning.world.arm(f"{point}@edge", passing)
    outcome = await learning.round(name, 1)
    assert not armed.exists(), "nobody passed this point so often"
    await _is_as_undisturbed(learning, name, outcome, undisturbed)


@dataclass(frozen=True)
class Victim:
    """`worker` is at work when it is killed."""

    pid: Callable[[LearningWorld, IncrementalLearningJob], int]
    workers: tuple[str, ...] = ("train", "eval")


VICTIMS = {
    "the-edge's-daemon": Victim(lambda learning, _: learning.world.daemon("edge1")),
    "the-edge's-broker": Victim(lambda learning, _: learning.world.child("broker", "edge1")),
    "the-bridge": Victim(lambda learning, _: learning.world.child("bridge", "edge1")),
    "the-cloud's-daemon": Victim(lambda learning, _: learning.world.daemon("cloud")),
    "the-inference-worker": Victim(lambda learning, job: learning.pid(job, "deploy")),
    "the-train-worker": Victim(lambda learning, job: learning.pid(job, "train"), ("train",)),
    "the-eval-worker": Victim(lambda learning, job: learning.pid(job, "eval"), ("eval",)),
}


@pytest.mark.parametrize("victim", VICTIMS)
async def test_killing_it_while_a_model_is_trained_and_evaluated_leaves_the_result_the_same(
    learning: LearningWorld, undisturbed: Outcome, victim: str
):
    name = f"kill-{victim}".replace("'", "")
    job = await learning.start(name, ASKED, pause=1.0)
    await learning.ready(name, ASKED)
    await learning.world.cloud.trigger(name)
    for worker in VICTIMS[victim].workers:
        await learning.at_work(job, worker)
        kill(VICTIMS[victim].pid(learning, job))
    outcome = await learning.ended(name, 1)
    await _is_as_undisturbed(learning, name, outcome, undisturbed)


def _went_on(outcome: Outcome, job: IncrementalLearningJob) -> None:
    """Every stage was told once and none failed. The history is in order of arrival, the status in order."""
    assert len(set(outcome.stages)) == len(outcome.stages)
    assert set(outcome.stages) <= STAGES
    assert [(each.stage, each.state) for each in job.status.history if each.round == 1] == [
        (stage, "Completed") for stage in ("Train", "Eval", "Deploy")
    ]


async def _is_as_undisturbed(learning: LearningWorld, name: str, outcome: Outcome, undisturbed: Outcome) -> None:
    assert outcome.result == undisturbed.result
    _went_on(outcome, await learning.job(name))
    assert [version.digest for version in outcome.versions] == [undisturbed.digest]
    job = await learning.job(name)
    kept = {line["id"] for line in learning.journal(name) if line["hard"]}
    assert kept - learning.examples(job) == set(), "hard examples were lost"
    frozen = [each for part in learning.snapshot(job, 1).values() for each in part]
    assert len(frozen) == len(set(frozen)) == KNOWN + len(ASKED)
    assert job.status.serving is not None
    assert job.status.serving.digest == undisturbed.digest
    if name != "undisturbed":
        await learning.delete(name)
