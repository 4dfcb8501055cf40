"""`kill -9` of any one process at any stage of a round delays it; model, snapshot and history are as without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
from learning_world import JOB_POINTS, KNOWN, LearningWorld, Outcome, digits
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
    ("coordinator.deployed_registered@cloud", 1),
    ("documents.saved@edge", 6),
)


# The same inside Deploy, in the order of its durable steps; the first passing after the job has begun to serve.
IN_DEPLOY = (
    "job.model_linked@edge",
    "job.serving_written@edge",
    "job.model_staged@edge",
    "worker.model_swapped@deploy",
    "worker.model_noted@deploy",
    "job.new_model_heard@edge",
    "job.deployed_committed@edge",
)


async def test_every_crash_point_of_a_job_has_a_case():
    assert {point.partition("@")[0] for point in (*IN_DEPLOY, *(point for point, _ in CASES))} >= JOB_POINTS


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


# --- inside Deploy, while the model is asked all the time


@dataclass
class Busy:
    """One job that deploys whatever it trains, and is asked all the time; each test is one more round of it."""

    learning: LearningWorld
    name: str = "busy"
    asked: list[str] = field(default_factory=list)

    async def ask(self) -> None:
        """Without end. No input is hard, so no snapshot depends on how many were asked."""
        x, _ = digits()
        while True:
            key = f"at-any-time-{len(self.asked)}"
            self.learning.ask_inputs(self.name, {key: x[len(self.asked) % KNOWN]})
            self.asked.append(key)
            await asyncio.sleep(0.02)

    async def some_more_answered(self) -> None:
        """Of what is asked from now on."""
        await self.learning.answered_ids(self.name, {f"at-any-time-{len(self.asked) + more}" for more in range(3)})

    async def is_deployed_once(self, number: int) -> None:
        """The round has one end and one version, which serves, and no model has answered that never was a version."""
        outcome = await self.learning.ended(self.name, number)
        [version] = outcome.versions
        assert version.digest == outcome.digest
        job = await self.learning.until(
            self.name, lambda job: job.status.serving is not None and job.status.serving.digest == version.digest
        )
        assert [(each.stage, each.state) for each in job.status.history if each.round == number] == [
            (stage, "Completed") for stage in ("Train", "Eval", "Deploy")
        ]
        assert self.learning.served(job) == version.digest
        asked = set(self.asked)
        async with asyncio.timeout(150):
            # A worker that was killed with a new model answers with the one before until it has tried the new one again.
            await self.some_more_answered()
            while self.learning.journal(self.name)[-1]["model"] != version.digest:
                await self.some_more_answered()
        lines = self.learning.journal(self.name)
        model = await self.learning.model(self.name)
        assert {line["model"] for line in lines} <= {each.digest for each in model.status.versions}
        assert asked <= {line["id"] for line in lines}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def busy(learning: LearningWorld) -> AsyncIterator[Busy]:
    found = Busy(learning)
    await learning.start(found.name, mining="EdgeOnly", believes=True, loading=1.0)
    await learning.counted(found.name, 0)
    asking = asyncio.create_task(found.ask())
    await found.some_more_answered()
    yield found
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await learning.delete(found.name)


@pytest.mark.parametrize("point", IN_DEPLOY)
async def test_dying_inside_deploy_leaves_one_version_and_every_request_answered(busy: Busy, point: str):
    number = (await busy.learning.job(busy.name)).status.round
    armed = busy.learning.world.arm(point)
    await busy.learning.world.cloud.trigger(busy.name)
    await busy.is_deployed_once(number)
    assert not armed.exists(), "nobody passed this point"


IN_A_DEPLOY = [name for name in VICTIMS if name not in {"the-train-worker", "the-eval-worker"}]


@pytest.mark.parametrize("victim", IN_A_DEPLOY)
async def test_killing_it_while_a_model_is_loaded_leaves_one_version_and_every_request_answered(
    busy: Busy, victim: str
):
    learning = busy.learning
    number = (await learning.job(busy.name)).status.round
    await learning.world.cloud.trigger(busy.name)
    job = await learning.in_stage(busy.name, "Deploy", "Running", number)
    kill(VICTIMS[victim].pid(learning, job))
    await busy.some_more_answered()
    await busy.is_deployed_once(number)


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
