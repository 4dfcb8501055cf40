"""The bridge between real brokers: mosquitto or nats-server's MQTT listener at the edge, nats-server in the cloud."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from edgeai.bridge import Bridge, service
from edgeai.bus import Bus, Delivery
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.errors import BusUnavailable
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import Bridging
from edgeai.events.envelope import decode

SOON_S = 20
CHUNK_BYTES = 512 * 1024


@pytest.fixture(params=["mosquitto", "nats_mqtt"])
def mqtt_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def edge(mqtt_url: str, node: str) -> AsyncIterator[MqttBus]:
    async with MqttBus(mqtt_url, client_id=f"edge-{node}") as bus:
        await bus.wait_connected(SOON_S)
        yield bus


@pytest.fixture
async def cloud(nats_url: str, node: str) -> AsyncIterator[NatsBus]:
    async with NatsBus(nats_url, name=f"cloud-{node}") as bus:
        await bus.wait_connected(SOON_S)
        yield bus


@asynccontextmanager
async def bridging(node: str, mqtt: Bus, nats: Bus) -> AsyncIterator[Bridge]:
    """A running bridge; when the body starts, both directions work."""
    bridge = Bridge(node, mqtt, nats)
    running = asyncio.create_task(bridge.run())
    try:
        await asyncio.gather(mqtt.wait_connected(SOON_S), nats.wait_connected(SOON_S))
        await both_ways(node, bridge, mqtt, nats)
        yield bridge
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def both_ways(node: str, bridge: Bridge, mqtt: Bus, nats: Bus) -> None:
    """Wait until a signal of another kind than the tests use was forwarded in each direction."""
    up, down = bridge.up.forwarded, bridge.down.forwarded
    async with asyncio.timeout(SOON_S):
        while bridge.up.forwarded == up or bridge.down.forwarded == down:
            await mqtt.publish(Address(node, Direction.UP, EventClass.SIGNAL, "probe"), b"")
            await nats.publish(Address(node, Direction.DOWN, EventClass.SIGNAL, "probe"), b"")
            await asyncio.sleep(0.02)


@pytest.fixture
async def bridge(mqtt_url: str, nats_url: str, node: str) -> AsyncIterator[Bridge]:
    async with (
        MqttBus(mqtt_url, client_id=f"bridge-{node}") as mqtt,
        NatsBus(nats_url, name=f"bridge-{node}") as nats,
        bridging(node, mqtt, nats) as bridge,
    ):
        yield bridge


def up(node: str, event_class: EventClass = EventClass.FACT, kind: str = "joined") -> Address:
    return Address(node, Direction.UP, event_class, kind)


def down(node: str, event_class: EventClass = EventClass.REQUEST, kind: str = "asked") -> Address:
    return Address(node, Direction.DOWN, event_class, kind)


async def take(deliveries: AsyncIterator[Delivery], number: int) -> list[Delivery]:
    async with asyncio.timeout(3 * SOON_S):
        return [await anext(deliveries) for _ in range(number)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("event_class", EventClass)
async def test_what_the_edge_sends_up_arrives_in_the_cloud_unchanged(
    bridge: Bridge, edge: Bus, cloud: Bus, node: str, event_class: EventClass
) -> None:
    payload = os.urandom(1000)
    async with cloud.subscribe(Pattern(node, kind="joined")) as deliveries:
        await edge.publish(up(node, event_class), payload)
        assert await take(deliveries, 1) == [Delivery(up(node, event_class), payload)]


@pytest.mark.parametrize("event_class", EventClass)
async def test_what_the_cloud_sends_down_arrives_at_the_edge_unchanged(
    bridge: Bridge, edge: Bus, cloud: Bus, node: str, event_class: EventClass
) -> None:
    payload = os.urandom(1000)
    async with edge.subscribe(Pattern(node, kind="asked")) as deliveries:
        await cloud.publish(down(node, event_class), payload)
        assert await take(deliveries, 1) == [Delivery(down(node, event_class), payload)]


async def test_nothing_of_another_node_crosses(bridge: Bridge, edge: Bus, cloud: Bus, node: str) -> None:
    above_pattern = Pattern(event_class=EventClass.FACT, kind="joined")
    below_pattern = Pattern(event_class=EventClass.REQUEST, kind="asked")
    async with cloud.subscribe(above_pattern) as above, edge.subscribe(below_pattern) as below:
        await edge.publish(up("foreign"), b"not mine")
        await edge.publish(up(node), b"mine")
        await cloud.publish(down("foreign"), b"not mine")
        await cloud.publish(down(node), b"mine")
        assert [delivery.address.node for delivery in await take(above, 1)] == [node]
        assert [delivery.address.node for delivery in await take(below, 1)] == [node]


async def test_each_direction_is_a_one_way_street_and_local_never_crosses(
    bridge: Bridge, edge: Bus, cloud: Bus, node: str
) -> None:
    local = Address(node, Direction.LOCAL, EventClass.FACT, "joined")
    async with cloud.subscribe(Pattern(node, kind="joined")) as deliveries:
        await edge.publish(local, b"local")
        await edge.publish(down(node, EventClass.FACT, "joined"), b"wrong way")
        await edge.publish(up(node), b"up")
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"up"]


async def test_state_that_came_down_waits_for_a_late_reader_at_the_edge(
    bridge: Bridge, edge: Bus, cloud: Bus, node: str
) -> None:
    desired = down(node, EventClass.STATE, "desired")
    await cloud.publish(desired, b"generation 2")
    await until(lambda: bridge.down.forwarded_bytes >= len(b"generation 2"))
    async with edge.subscribe(Pattern(node, Direction.DOWN)) as deliveries:
        assert await take(deliveries, 1) == [Delivery(desired, b"generation 2", retained=True)]


async def test_state_of_the_edge_goes_up_when_the_bridge_starts(
    edge: Bus, cloud: Bus, mqtt_url: str, nats_url: str, node: str
) -> None:
    observed = up(node, EventClass.STATE, "observed")
    await edge.publish(observed, b"before the bridge")
    async with (
        cloud.subscribe(Pattern(node, kind="observed")) as deliveries,
        MqttBus(mqtt_url, client_id=f"bridge-{node}") as mqtt,
        NatsBus(nats_url, name=f"bridge-{node}") as nats,
        bridging(node, mqtt, nats),
    ):
        assert await take(deliveries, 1) == [Delivery(observed, b"before the bridge")]


async def test_a_restarted_bridge_goes_on(edge: Bus, cloud: Bus, mqtt_url: str, nats_url: str, node: str) -> None:
    async with cloud.subscribe(Pattern(node, kind="joined")) as deliveries:
        for payload in (b"first life", b"second life"):
            async with (
                MqttBus(mqtt_url, client_id=f"bridge-{node}") as mqtt,
                NatsBus(nats_url, name=f"bridge-{node}") as nats,
                bridging(node, mqtt, nats),
            ):
                await edge.publish(up(node), payload)
                assert [delivery.payload for delivery in await take(deliveries, 1)] == [payload]


async def test_the_bridge_drops_while_the_cloud_is_away_and_goes_on_when_it_is_back(
    edge: Bus, mqtt_url: str, new_broker: Callable[[str], Any], node: str
) -> None:
    broker = new_broker("nats_core")
    async with (
        MqttBus(mqtt_url, client_id=f"bridge-{node}") as mqtt,
        NatsBus(broker.url, name=f"bridge-{node}") as nats,
        NatsBus(broker.url, name=f"cloud-{node}") as cloud,
        bridging(node, mqtt, nats) as bridge,
        cloud.subscribe(Pattern(node, kind="joined")) as deliveries,
    ):
        broker.stop(kill=True)
        await until(lambda: not nats.connected)
        await edge.publish(up(node), b"nobody hears this")
        await until(lambda: bridge.up.dropped_away == 1)
        broker.start()
        await asyncio.gather(nats.wait_connected(SOON_S), cloud.wait_connected(SOON_S))
        await both_ways(node, bridge, mqtt, nats)
        await edge.publish(up(node), b"back")
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"back"]


async def test_state_that_was_dropped_is_repeated_when_the_cloud_is_back(node: str) -> None:
    observed = up(node, EventClass.STATE, "observed")
    edge_broker, cloud_broker = MemoryBroker(), MemoryBroker()
    async with (
        MemoryBus(edge_broker, "edge") as mqtt,
        MemoryBus(cloud_broker, "cloud") as nats,
        nats.subscribe(Pattern(node, kind="observed")) as deliveries,
        bridging(node, mqtt, nats) as bridge,
    ):
        cloud_broker.stop()
        await mqtt.publish(observed, b"generation 7")
        await until(lambda: bridge.up.dropped_away == 1)
        cloud_broker.start()
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"generation 7"]


async def test_the_bridge_goes_on_when_the_edge_broker_was_restarted(
    cloud: Bus, nats_url: str, new_broker: Callable[[str], Any], node: str
) -> None:
    broker = new_broker("mosquitto")
    async with (
        MqttBus(broker.url, client_id=f"bridge-{node}") as mqtt,
        NatsBus(nats_url, name=f"bridge-{node}") as nats,
        bridging(node, mqtt, nats) as bridge,
        cloud.subscribe(Pattern(node, kind="joined")) as deliveries,
    ):
        broker.stop(kill=True)
        await until(lambda: not mqtt.connected)
        await cloud.publish(down(node), b"nobody hears this")
        await until(lambda: bridge.down.dropped_away == 1)
        broker.start()
        await mqtt.wait_connected(SOON_S)
        await both_ways(node, bridge, mqtt, nats)
        await mqtt.publish(up(node), b"back")
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"back"]


@pytest.mark.parametrize("direction", [Direction.UP, Direction.DOWN])
async def test_two_hundred_chunks_arrive_complete_and_in_order(
    bridge: Bridge, edge: Bus, cloud: Bus, node: str, direction: Direction
) -> None:
    source, target = (edge, cloud) if direction is Direction.UP else (cloud, edge)
    address = Address(node, direction, EventClass.TRANSFER, "chunk")
    body = os.urandom(CHUNK_BYTES - 4)
    async with target.subscribe(Pattern(node, direction, kind="chunk")) as deliveries, asyncio.TaskGroup() as sending:

        async def send() -> None:
            for number in range(200):
                await source.publish(address, number.to_bytes(4, "big") + body)

        sending.create_task(send())
        for number in range(200):
            [delivery] = await take(deliveries, 1)
            assert int.from_bytes(delivery.payload[:4], "big") == number
            assert delivery.payload[4:] == body


async def test_facts_keep_their_order_while_acknowledgements_are_under_way(
    bridge: Bridge, edge: Bus, cloud: Bus, node: str
) -> None:
    address = down(node, EventClass.FACT)
    async with edge.subscribe(Pattern(node, kind="asked")) as deliveries:
        for number in range(300):
            await cloud.publish(address, b"%d" % number)
        assert [int(delivery.payload) for delivery in await take(deliveries, 300)] == list(range(300))


class StuckBus(MemoryBus):
    """Takes publishes and never finishes them."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker(), "stuck")
        self.begun = 0

    async def publish(self, address: Address, payload: bytes) -> None:
        self.begun += address.event_class is EventClass.TRANSFER
        await asyncio.Event().wait()


async def test_no_more_than_a_window_of_publishes_is_under_way(node: str) -> None:
    from edgeai.bridge.service import WINDOW_BYTES

    broker = MemoryBroker()
    limit = WINDOW_BYTES // CHUNK_BYTES
    async with MemoryBus(broker, "edge") as mqtt, StuckBus() as nats, MemoryBus(broker, "worker") as worker:
        running = asyncio.create_task(Bridge(node, mqtt, nats).run())
        await asyncio.sleep(0)
        for _ in range(2 * limit):
            await worker.publish(up(node, EventClass.TRANSFER), bytes(CHUNK_BYTES))
        await until(lambda: nats.begun >= limit)
        for _ in range(100):
            await asyncio.sleep(0)
        assert nats.begun == limit
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_bridge_can_be_cancelled_while_the_cloud_is_away(node: str) -> None:
    cloud_broker = MemoryBroker()
    cloud_broker.stop()
    async with MemoryBus(MemoryBroker(), "edge") as mqtt, MemoryBus(cloud_broker, "cloud") as nats:
        running = asyncio.create_task(Bridge(node, mqtt, nats).run())
        await mqtt.wait_connected(SOON_S)
        with pytest.raises(BusUnavailable):
            await nats.publish(up(node), b"")
        running.cancel()
        async with asyncio.timeout(SOON_S):
            with suppress(asyncio.CancelledError):
                await running


# --- what it says of itself


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "TELL_S", 0.2)
    monkeypatch.setattr(service, "_LOOK_S", 0.02)


def about(node: str) -> Pattern:
    return Pattern(node, Direction.UP, EventClass.SIGNAL, Bridging.kind, "", "")


async def told(deliveries: AsyncIterator[Delivery], wanted: Callable[[Bridging], bool]) -> Bridging:
    """The first telling that fulfils this."""
    async with asyncio.timeout(SOON_S):
        async for delivery in deliveries:
            event = decode(delivery.payload).event
            assert isinstance(event, Bridging)
            if wanted(event):
                return event
    raise AssertionError("the subscription ended")


@pytest.mark.usefixtures("talkative")
async def test_a_bridge_says_that_it_is_connected_and_what_it_forwards(
    bridge: Bridge, edge: Bus, cloud: Bus, node: str
) -> None:
    up_before, down_before = bridge.up.forwarded, bridge.down.forwarded
    async with cloud.subscribe(about(node)) as deliveries:
        for _ in range(3):
            await edge.publish(up(node), b"12345")
        await cloud.publish(down(node), b"1")
        found = await told(
            deliveries, lambda each: (each.up.forwarded, each.down.forwarded) == (up_before + 3, down_before + 1)
        )
    assert found.edge_connected
    assert found.up.forwarded_bytes >= 15
    assert (found.edge_reconnects, found.cloud_reconnects, found.up.dropped, found.down.dropped) == (0, 0, 0, 0)


async def test_a_bridge_says_at_once_that_the_edge_broker_is_away_and_then_that_it_is_back(
    cloud: Bus, nats_url: str, new_broker: Callable[[str], Any], node: str
) -> None:
    broker = new_broker("mosquitto")
    async with (
        MqttBus(broker.url, client_id=f"bridge-{node}") as mqtt,
        NatsBus(nats_url, name=f"bridge-{node}") as nats,
        bridging(node, mqtt, nats),
        cloud.subscribe(about(node)) as deliveries,
    ):
        broker.stop(kill=True)
        await told(deliveries, lambda each: not each.edge_connected)
        await cloud.publish(down(node), b"nobody hears this")
        broker.start()
        found = await told(deliveries, lambda each: each.edge_connected and each.edge_reconnects > 0)
    assert (found.edge_reconnects, found.down.dropped_away) == (1, 1)


@pytest.mark.usefixtures("talkative")
async def test_a_bridge_that_was_cut_off_from_the_cloud_says_afterwards_what_it_had_to_drop(
    edge: Bus, mqtt_url: str, new_broker: Callable[[str], Any], node: str
) -> None:
    broker = new_broker("nats_core")
    async with (
        MqttBus(mqtt_url, client_id=f"bridge-{node}") as mqtt,
        NatsBus(broker.url, name=f"bridge-{node}") as nats,
        NatsBus(broker.url, name=f"cloud-{node}") as cloud,
        bridging(node, mqtt, nats) as bridge,
        cloud.subscribe(about(node)) as deliveries,
    ):
        broker.stop(kill=True)
        await until(lambda: not nats.connected)
        for _ in range(10):
            await edge.publish(up(node), b"nobody hears this")
        await until(lambda: bridge.up.dropped_away == 10)
        broker.start()
        found = await told(deliveries, lambda each: each.cloud_reconnects > 0)
    assert (found.up.dropped_away, found.up.dropped_refused, found.cloud_reconnects) == (10, 0, 1)


async def test_what_waits_in_a_bridge_and_what_found_no_room_is_told(node: str) -> None:
    broker = MemoryBroker()
    async with (
        MemoryBus(broker, "edge", inbox_limit_bytes=3000) as mqtt,
        StuckBus() as nats,
        MemoryBus(broker, "worker") as worker,
    ):
        bridge = Bridge(node, mqtt, nats)
        running = asyncio.create_task(bridge.run())
        await until(lambda: bool(mqtt._router.inboxes))
        for size_bytes in (100, 100, 4000):
            await worker.publish(up(node), bytes(size_bytes))
        found = bridge.told()
        assert (found.up.waiting, found.up.dropped_full, found.down.waiting) == (2, 1, 0)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
