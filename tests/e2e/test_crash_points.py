"""A process that dies at any named crash point is started again, goes on, and the result is the same."""

from __future__ import annotations

import pytest
import pytest_asyncio
from learning_world import JOB_POINTS
from living_world import World, digest_of, updates_of

from edgeai.crashpoints import NAMES
from edgeai.resources.federated import FederatedTask

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ROUNDS = 3

# Who passes each point, and the passing at which it dies. The cloud's daemon waits longer after each early death: it is
# not the victim twice in a row.
CASES = (
    ("coordinator.status_written@cloud", 3),
    ("reactor.before_commit@aggregation", 1),
    ("reactor.before_commit@edge", 2),
    ("aggregation.collected", 2),
    ("coordinator.fact_applied@cloud", 4),
    ("worker.update_written@work2", 2),
    ("outbox.before_send@aggregation", 3),
    ("documents.saved@edge", 3),
    ("coordinator.model_registered@cloud", 1),
    ("aggregation.model_written", 2),
    ("reactor.after_commit@edge", 3),
    ("worker.offered@work1", 2),
    ("reactor.before_commit@cloud", 4),
    ("aggregation.outcome_fixed", 2),
    ("outbox.before_remove@edge", 1),
    ("reactor.before_commit@aggregation", 12),
    ("documents.saved@cloud", 5),
    ("aggregation.model_stored", 1),
    ("outbox.before_send@edge", 1),
    ("reactor.after_commit@aggregation", 9),
    ("reactor.after_commit@cloud", 3),
    ("documents.saved@aggregation", 4),
    ("outbox.before_remove@aggregation", 2),
    ("aggregation.before_answer", 2),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(world: World) -> FederatedTask:
    return await world.train("undisturbed", rounds=ROUNDS, pause=0.1)


async def test_every_crash_point_has_a_case():
    assert {point.partition("@")[0] for point, _ in CASES} == NAMES - JOB_POINTS


@pytest.mark.parametrize(("point", "count"), CASES)
async def test_dying_there_leaves_the_result_the_same(world: World, undisturbed: FederatedTask, point: str, count: int):
    armed = world.arm(point, count)
    name = point.replace(".", "-").replace("_", "-").replace("@", "-") + f"-{count}"
    task = await world.train(name, rounds=ROUNDS, pause=0.1)
    assert not armed.exists(), "nobody passed this point so often"
    assert digest_of(task) == digest_of(undisturbed)
    assert updates_of(task) == [3] * ROUNDS
    await world.delete(name)
