"""`kill -9` of any one process in the middle of a task delays the result and changes nothing in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import psutil
import pytest
import pytest_asyncio
from living_world import World, digest_of, kill, updates_of

from edgeai.resources.federated import FederatedTask

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ROUNDS = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(world: World) -> FederatedTask:
    return await world.train("undisturbed", rounds=ROUNDS)


async def test_an_undisturbed_task_counts_every_update_once_and_makes_the_first_version(undisturbed: FederatedTask):
    assert digest_of(undisturbed)
    assert updates_of(undisturbed) == [3] * ROUNDS
    assert undisturbed.status.model is not None
    assert undisturbed.status.model.version == 1
    assert [row.accepted for row in undisturbed.status.rounds] == [("work1", "work2", "work3")] * ROUNDS


async def test_the_same_task_makes_the_same_model_again(world: World, undisturbed: FederatedTask):
    assert digest_of(await world.train("again", rounds=ROUNDS)) == digest_of(undisturbed)


VICTIMS: dict[str, Callable[[World, FederatedTask], int]] = {
    "the-bridge": lambda world, _: world.child("bridge", "edge1"),
    "an-edge-broker": lambda world, _: world.child("broker", "edge2"),
    "the-cloud-broker": lambda world, _: world.child("broker", "cloud"),
    "the-aggregation-worker": lambda world, task: world.worker(task, "aggregation"),
    "a-training-worker": lambda world, task: world.worker(task, "work2"),
}


@pytest.mark.parametrize("victim", VICTIMS)
async def test_killing_it_in_the_middle_leaves_the_result_the_same(
    world: World, undisturbed: FederatedTask, victim: str
):
    middle = asyncio.create_task(world.training(f"kill-{victim}", "work2", 2))
    task = await world.apply(f"kill-{victim}", rounds=ROUNDS)
    await middle
    pid = VICTIMS[victim](world, task)
    kill(pid)
    task = await world.ended(f"kill-{victim}")
    assert digest_of(task) == digest_of(undisturbed)
    assert updates_of(task) == [3] * ROUNDS
    await _is_replaced(lambda: VICTIMS[victim](world, task), pid, needed="worker" not in victim)


@pytest.mark.parametrize("node", ["edge1", "cloud"])
async def test_a_daemon_killed_in_the_middle_adopts_everything_and_leaves_the_result_the_same(
    world: World, undisturbed: FederatedTask, node: str
):
    name = f"kill-daemon-{node}"
    middle = asyncio.create_task(world.training(name, "work1", 2))
    task = await world.apply(name, rounds=ROUNDS)
    await middle
    roles = [("broker", node)] if node == "cloud" else [("broker", node), ("bridge", node)]
    before = world.workers(task), [world.child(*role) for role in roles]
    pid = world.daemon(node)
    kill(pid)
    task = await world.ended(name)
    await _is_replaced(lambda: world.daemon(node), pid, needed=True)
    assert digest_of(task) == digest_of(undisturbed)
    assert updates_of(task) == [3] * ROUNDS
    assert (world.workers(task), [world.child(*role) for role in roles]) == before
    assert all(row.restarts == 0 for row in task.status.workers)


async def test_a_cloud_daemon_that_comes_back_restarts_nothing_of_a_task_that_began_with_a_stored_model(
    world: World, undisturbed: FederatedTask
):
    middle = asyncio.create_task(world.training("goes-on", "work1", 2))
    task = await world.apply("goes-on", model="undisturbed", rounds=ROUNDS)
    await middle
    before, pid = world.workers(task), world.daemon("cloud")
    kill(pid)
    task = await world.ended("goes-on")
    await _is_replaced(lambda: world.daemon("cloud"), pid, needed=True)
    assert digest_of(task) != digest_of(undisturbed)
    assert updates_of(task) == [3] * ROUNDS
    assert world.workers(task) == before
    assert all(row.restarts == 0 for row in task.status.workers)


async def test_killing_everything_at_once_leaves_the_result_the_same(world: World, undisturbed: FederatedTask):
    middle = asyncio.create_task(world.training("kill-all", "work2", 2))
    await world.apply("kill-all", rounds=ROUNDS)
    await middle
    for process in world.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    task = await world.ended("kill-all", 90)
    assert digest_of(task) == digest_of(undisturbed)
    assert updates_of(task) == [3] * ROUNDS


async def test_a_worker_killed_between_submit_and_verdict_sends_its_update_again(
    world: World, undisturbed: FederatedTask
):
    armed = world.arm("worker.offered@work3", 3)
    task = await world.train("kill-offered", rounds=ROUNDS)
    assert not armed.exists()
    assert digest_of(task) == digest_of(undisturbed)
    assert updates_of(task) == [3] * ROUNDS


async def _is_replaced(current: Callable[[], int], before: int, *, needed: bool) -> None:
    """Wait until another process has taken the place of the killed one."""
    async with asyncio.timeout(30):
        while needed and not (current() != before and psutil.pid_exists(current())):
            await asyncio.sleep(0.05)
