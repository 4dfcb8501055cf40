"""Deleting, pausing, changing a task while it runs; and what a node's credentials do not open."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from living_world import HERE, World, describe, digest_of, kill, manifests, processes_in, updates_of

from edgeai.bus.credentials import Credential, read_credentials_file
from edgeai.bus.embedded import NatsCloud, choose_edge_broker
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.client import Action
from edgeai.errors import BusError, BusUnavailable
from edgeai.events.address import Direction, Pattern, task_level
from edgeai.resources.federated import TaskPhase

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


async def test_a_task_deleted_in_the_middle_leaves_no_process_and_no_folder_and_can_be_applied_again(world: World):
    middle = asyncio.create_task(world.training("deleted", "work1", 2))
    task = await world.apply("deleted", rounds=100)
    await middle
    slots = [world.slot(task, name) for name in ("aggregation", "work1", "work2", "work3")]
    assert all(slot.exists() for slot in slots)
    await world.delete("deleted")
    assert [slot for slot in slots if slot.parent.exists()] == []
    level = task_level(task.metadata.name, task.metadata.uid)
    assert [process.cmdline() for process in world.processes() if level in " ".join(process.cmdline())] == []
    again = await world.train("deleted", rounds=2)
    assert again.metadata.uid != task.metadata.uid
    assert digest_of(again)
    assert updates_of(again) == [3, 3]


@pytest.mark.parametrize("phase", [TaskPhase.PENDING, TaskPhase.PREPARING])
async def test_a_task_deleted_before_it_runs_leaves_no_process_and_no_folder(world: World, phase: TaskPhase):
    task = await world.apply(f"early-{phase.value.lower()}")
    await world.until(task.metadata.name, lambda found: phase in {TaskPhase.PENDING, found.status.phase})
    await world.delete(task.metadata.name)
    level = task_level(task.metadata.name, task.metadata.uid)
    assert [path for path in world.playground.state_dir.glob("*/slots/*") if path.name == level] == []
    assert list(processes_in(Path("slots") / level)) == []


@pytest.mark.parametrize("node", ["cloud", "edge1"])
async def test_a_daemon_killed_while_a_task_is_deleted_leaves_nothing_of_it(world: World, node: str):
    name = f"deleted-without-{node}"
    middle = asyncio.create_task(world.training(name, "work1", 2))
    task = await world.apply(name, rounds=100)
    await middle
    slots = [world.slot(task, worker) for worker in ("aggregation", "work1", "work2", "work3")]
    kill(world.daemon(node))
    await world.delete(name)
    assert [slot for slot in slots if slot.parent.exists()] == []


async def test_a_paused_task_opens_no_round_until_it_is_resumed_and_keeps_its_workers(world: World):
    normal = await world.train("not-paused", rounds=4)
    middle = asyncio.create_task(world.training("paused", "work1", 2))
    await world.apply("paused", rounds=4)
    await middle
    await world.cloud.set_paused("paused", True)
    task = await world.until("paused", lambda task: len(task.status.rounds) == task.status.round > 0)
    assert task.status.phase is TaskPhase.PAUSED, describe(task)
    before = world.workers(task)
    await world.cloud.set_paused("paused", False)
    task = await world.ended("paused")
    assert digest_of(task) == digest_of(normal)
    assert updates_of(task) == [3] * 4
    assert all(row.restarts == 0 for row in task.status.workers)
    assert world.workers(task) == before


async def test_applying_the_same_manifest_changes_nothing_and_a_changed_one_adds_one_to_the_generation(world: World):
    await world.apply("applied-twice", rounds=50)
    [_, unchanged] = await world.cloud.apply(manifests("applied-twice", rounds=50), base=HERE)
    assert unchanged.action is Action.UNCHANGED
    assert unchanged.resource.metadata.generation == 1
    [_, changed] = await world.cloud.apply(manifests("applied-twice", rounds=3), base=HERE)
    assert changed.action is Action.CONFIGURED
    assert changed.resource.metadata.generation == 2
    task = await world.ended("applied-twice")
    assert task.status.observed_generation == 2
    assert digest_of(task)
    assert len(task.status.rounds) == 3


async def test_a_nodes_credentials_open_no_other_nodes_broker(world: World):
    kind = choose_edge_broker()
    own, other = (kind(world.folder(node), node) for node in ("edge1", "edge2"))
    with pytest.raises(BusUnavailable):
        async with _mqtt(other.url, read_credentials_file(own.credentials_file("worker"))) as bus:
            await bus.wait_connected(2)


@pytest.mark.parametrize("direction", [Direction.UP, Direction.DOWN])
async def test_a_bridge_cannot_read_another_nodes_subjects_in_the_cloud(world: World, direction: Direction):
    cloud = NatsCloud(world.folder("cloud"))
    login = read_credentials_file(cloud.edge_credentials_file("edge1"))
    async with NatsBus(cloud.url, username=login.username, password=login.password, name="curious") as bus:
        await bus.wait_connected(5)
        with pytest.raises(BusError, match="refuses the subscription"):
            async with bus.subscribe(Pattern("edge2", direction)):
                pass


def _mqtt(url: str, login: Credential) -> MqttBus:
    return MqttBus(url, client_id="curious", username=login.username, password=login.password)
