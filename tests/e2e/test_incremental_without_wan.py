"""An edge that reaches no cloud learns on by itself, with labels from a file; what it did arrives on return, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import pytest_asyncio
from learning_world import KNOWN, LearningWorld, eventually, row
from living_world import World, kill

from edgeai.resources.incremental import IncrementalLearningJob

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

EDGES = 1
FIRST, SECOND = range(KNOWN, KNOWN + 40), range(KNOWN + 40, KNOWN + 80)
ENOUGH = {"metric": "num_of_samples", "operator": ">=", "threshold": 20}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def learning(world: World) -> LearningWorld:
    return LearningWorld(world)


def _bridge(world: World) -> list[int]:
    return [world.child("bridge", "edge1")]


def _cloud(world: World) -> list[int]:
    return [world.daemon("cloud"), world.child("broker", "cloud")]


@pytest.mark.parametrize("away", [_bridge, _cloud], ids=["the-bridge", "the-cloud"])
async def test_whole_rounds_happen_at_the_edge_and_arrive_on_return_in_order_and_once(
    learning: LearningWorld, away: Callable[[World], list[int]]
):
    name = f"alone{away.__name__.replace('_', '-')}"
    job = await learning.start(name, FIRST, condition=ENOUGH, labels=True, believes=True)
    await learning.ended(name, 1)
    await learning.answered(name, FIRST)
    stopped = away(learning.world)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        first = await _served_next(learning, job, FIRST)
        kill(learning.world.daemon("edge1"))
        learning.ask(name, SECOND)
        assert await learning.answered(name, SECOND) == first
        second = await _served_next(learning, job, SECOND)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    outcomes = [await learning.ended(name, number) for number in (2, 3)]
    assert [outcome.digest for outcome in outcomes] == [first, second]
    found = await learning.job(name)
    assert [row(found, number, "Deploy").state for number in (1, 2, 3)] == ["Completed"] * 3
    assert [(each.round, each.stage) for each in found.status.history][:9] == [
        (number, stage) for number in (1, 2, 3) for stage in ("Train", "Eval", "Deploy")
    ]
    versions = (await learning.model(name)).status.versions
    assert [(each.version, each.round) for each in versions] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    await learning.delete(name)


async def _served_next(learning: LearningWorld, job: IncrementalLearningJob, rows: range) -> str:
    """Label these digits by file; returns the digest of the model that serves next, as the edge's disk has it."""
    before = learning.served(job)
    learning.label_by_file(job.metadata.name, rows)
    await eventually(lambda: learning.served(job) != before, lambda: "no other model serves")
    return learning.served(job)
