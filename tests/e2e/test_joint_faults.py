"""Fifty questions a second go on through every fault: each ends with one answer or one error, and all comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import pytest_asyncio
from joint_system import BIG, EDGE, SMALL, JointSystem, Load, stopped
from learning_world import eventually
from living_world import World, kill

from edgeai.resources.joint import InferenceCounts, JointInferenceService

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150)]

EDGES = 1
SERVICE = "numbers"
CUT_S = 5.0
BEFORE = 50
"""Questions that are over before something happens."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(world: World) -> JointSystem:
    return JointSystem(world)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(system: JointSystem) -> JointInferenceService:
    return await system.start(SERVICE)


Pid = Callable[[JointSystem, JointInferenceService], int]

KILLED: dict[str, Pid] = {
    "the-cloud-worker": lambda system, service: system.pid(service, "big-0"),
    "the-bridge": lambda system, _: system.world.child("bridge", EDGE),
    "the-edge's-daemon": lambda system, _: system.world.daemon(EDGE),
    "the-cloud's-daemon": lambda system, _: system.world.daemon("cloud"),
}
"""Whose end takes no question away from the edge worker, which counts what becomes of it."""
KILLED_ON_THE_WAY: dict[str, Pid] = {
    "the-edge's-broker": lambda system, _: system.world.child("broker", EDGE),
    "the-edge-worker": lambda system, service: system.pid(service, "little"),
}


async def _under_way(load: Load) -> None:
    await load.answered_by_the_cloud()
    await eventually(lambda: len(load.ended) >= BEFORE, load.told)


async def _killed(system: JointSystem, service: JointInferenceService, pid: Pid) -> None:
    """Returns when somebody has started it again."""
    before = pid(system, service)
    kill(before)

    def again() -> bool:
        try:
            return pid(system, service) != before
        except (OSError, ValueError):
            return False

    await eventually(again, lambda: f"process {before} was killed, and nobody has started it again")


async def _counted_as_answered(system: JointSystem, load: Load, before: InferenceCounts) -> None:
    """The service's own sums are those of the application."""
    counts = await system.counted(SERVICE, before.inferences + load.asked)
    answered, failed = counts.answered - before.answered, counts.failed - before.failed
    assert counts.inferences - before.inferences == load.asked, load.told()
    assert load.count("cloud") <= answered <= load.count("cloud") + load.missed, load.told()
    assert failed == load.count("error") - load.missed, load.told()
    assert counts.refused == counts.shed == 0


@pytest.mark.parametrize("victim", KILLED)
async def test_killing_it_costs_no_question_and_the_cloud_answers_again(
    system: JointSystem, service: JointInferenceService, victim: str
):
    before = (await system.get(SERVICE)).status.counts
    async with system.asking(SERVICE) as load:
        await _under_way(load)
        await _killed(system, service, KILLED[victim])
        await load.answered_by_the_cloud()
    load.check()
    await _counted_as_answered(system, load, before)


async def test_a_link_that_is_cut_costs_no_question_and_the_cloud_answers_again(
    system: JointSystem, service: JointInferenceService
):
    before = (await system.get(SERVICE)).status.counts
    async with system.asking(SERVICE) as load:
        await _under_way(load)
        async with stopped(system.world.child("bridge", EDGE)):
            await asyncio.sleep(CUT_S)
        await load.answered_by_the_cloud()
    load.check()
    assert load.count("error") == 0, load.told()
    await _counted_as_answered(system, load, before)


async def test_new_versions_of_both_models_serve_without_an_error(system: JointSystem, service: JointInferenceService):
    async with system.asking(SERVICE) as load:
        await load.answered_by_the_cloud()
        await system.publish_model(f"{SERVICE}-small", 10 * SMALL)
        await system.publish_model(f"{SERVICE}-big", 10 * BIG)
        await load.until(lambda each: each.factor == 10 * BIG, "the new big model does not answer")
        async with stopped(system.world.child("bridge", EDGE)):
            await load.until(lambda each: each.factor == 10 * SMALL, "the new small model does not answer")
        await load.answered_by_the_cloud()
    load.check()
    assert load.count("error") == 0, load.told()
    found = await system.until(SERVICE, lambda service: service.status.cloud_serving.version == 2)
    assert [edge.serving.version for edge in found.status.edges if edge.serving] == [2]


@pytest.mark.parametrize("victim", KILLED_ON_THE_WAY)
async def test_killing_it_makes_errors_of_questions_until_it_runs_again_and_loses_none(
    system: JointSystem, service: JointInferenceService, victim: str
):
    async with system.asking(SERVICE) as load:
        await _under_way(load)
        await _killed(system, service, KILLED_ON_THE_WAY[victim])
        await load.answered_by_the_cloud()
    load.check()
    assert {each.error.partition(":")[0] for each in load.ended} <= {
        "",
        "BusUnavailable",
        "DeadlineMissed",
        "ModelError",
    }
