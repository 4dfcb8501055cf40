"""How brokers and bridges do: the coordinator remembers the latest, says how it does itself, and answers who asks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from coordinator_world import World, until, world

from edgeai.client import Cloud
from edgeai.coordinator import service
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import Bridging, Heartbeat, LaneCounts, NodeGone, NodeHealth
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.store.memory import MemoryBlobStore

BEAT = Heartbeat(7.0, 3, 0.004, False, 2)
TOLD = Bridging(9.0, edge_connected=True, up=LaneCounts(forwarded=5))


@pytest.fixture
async def found() -> AsyncIterator[World]:
    async with world() as made, made.coordinator():
        yield made


def asking(found: World) -> Cloud:
    return Cloud(found.bus, found.resources, MemoryBlobStore(), found.facts)


async def of(found: World, node: str) -> NodeHealth:
    [health] = (await asking(found).health(node)).nodes
    return health


async def test_the_latest_of_controller_and_bridge_is_told_at_once(found: World):
    await found.send("edge0", BEAT)
    await found.send("edge0", TOLD)

    async def heard() -> bool:
        return (await of(found, "edge0")).bridging is not None

    await until(heard)
    health = await of(found, "edge0")
    assert (health.heartbeat, health.bridging) == (BEAT, TOLD)


async def test_a_controller_that_is_gone_is_unknown_and_its_bridge_is_not(found: World):
    for event in (BEAT, TOLD, NodeGone()):
        await found.send("edge0", event)

    async def gone() -> bool:
        return (await of(found, "edge0")).gone

    await until(gone)
    health = await of(found, "edge0")
    assert (health.heartbeat, health.bridging) == (None, TOLD)


async def test_of_a_node_that_nobody_has_heard_of_nothing_is_known(found: World):
    assert await of(found, "edge9") == NodeHealth("edge9")


async def test_all_nodes_are_told_of_however_many_answers_that_takes(found: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service, "_HEALTH_ROWS", 2)
    nodes = [f"edge{number}" for number in range(5)]
    for node in nodes:
        await found.send(node, BEAT)

    async def all_of_them() -> bool:
        return [health.node for health in (await asking(found).health()).nodes] == ["cloud", *nodes]

    await until(all_of_them)


async def test_what_a_worker_says_of_a_bridge_does_not_count(found: World):
    address = Address("edge0", TOLD.direction, TOLD.event_class, TOLD.kind, "digits-0a1b2c3d", "work0")
    await found.bus.publish(address, encode(Envelope(Header("edge0"), TOLD)))
    await found.send("edge0", BEAT)

    async def heard() -> bool:
        return (await of(found, "edge0")).heartbeat is not None

    await until(heard)
    assert (await of(found, "edge0")).bridging is None


async def test_the_coordinator_says_how_it_does_itself(found: World):
    async def known() -> bool:
        answer = await asking(found).health("cloud")
        return answer.coordinator is not None and answer.coordinator.heartbeat is not None

    await until(known)
    coordinator = (await asking(found).health("cloud")).coordinator
    assert coordinator is not None
    beat = coordinator.heartbeat
    assert beat is not None
    assert beat.broker_s is not None
    assert (beat.broker_silent, beat.waiting, beat.store_bytes) == (False, 0, 0)


async def test_its_heartbeat_carries_the_same():
    async with world() as made:
        pattern = Pattern("cloud", Direction.UP, EventClass.SIGNAL, Heartbeat.kind, "", "coordinator")
        async with made.bus.subscribe(pattern) as deliveries, made.coordinator():
            beat = decode((await anext(deliveries)).payload).event
    assert isinstance(beat, Heartbeat)
    assert (beat.broker_s is not None, beat.waiting, beat.store_bytes) == (True, 0, 0)
