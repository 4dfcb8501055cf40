"""One suite for every Bus: memory, MQTT on mosquitto, MQTT on nats-server's listener, and NATS."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from edgeai.bus import Bus, Delivery
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.bus.mqtt import MqttBus, disjoint
from edgeai.bus.nats import NatsBus
from edgeai.bus.routing import Inbox, Link
from edgeai.errors import BusError, BusUnavailable, PayloadTooLarge
from edgeai.events.address import Address, Direction, EventClass, Pattern

SOON_S = 20
_numbers = count()


@dataclass(frozen=True)
class Kind:
    """How to make a bus of one kind, and what it can do."""

    name: str
    retains: bool

    def bus(self, broker: Any) -> Bus:
        name = f"client-{os.getpid()}-{next(_numbers)}"
        match self.name:
            case "memory":
                return MemoryBus(broker, name)
            case "nats":
                return NatsBus(broker.url, name=name)
            case _:
                return MqttBus(broker.url, client_id=name)


@dataclass(frozen=True)
class Shared:
    """A broker of the session, by its url."""

    url: str


KINDS = [
    Kind("memory", retains=True),
    Kind("mosquitto", retains=True),
    Kind("nats_mqtt", retains=True),
    Kind("nats", retains=False),
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_retaining_kind = pytest.mark.parametrize("kind", [k for k in KINDS if k.retains], ids=lambda kind: kind.name)
each_grouping_kind = pytest.mark.parametrize("kind", [KINDS[0], KINDS[3]], ids=lambda kind: kind.name)
each_mqtt_kind = pytest.mark.parametrize("kind", KINDS[1:3], ids=lambda kind: kind.name)


@pytest.fixture
def broker(kind: Kind, request: pytest.FixtureRequest) -> Any:
    """A running broker of this kind, shared with other tests."""
    if kind.name == "memory":
        return MemoryBroker()
    return Shared(request.getfixturevalue(f"{kind.name}_url"))


@pytest.fixture
def own_broker(kind: Kind, new_broker: Callable[[str], Any]) -> Any:
    """A broker of this kind with `stop` and `start`."""
    return MemoryBroker() if kind.name == "memory" else new_broker({"nats": "nats_core"}.get(kind.name, kind.name))


@pytest.fixture
async def bus(kind: Kind, broker: Any) -> AsyncIterator[Bus]:
    async with kind.bus(broker) as bus:
        await bus.wait_connected(SOON_S)
        yield bus


@pytest.fixture
async def other(kind: Kind, broker: Any) -> AsyncIterator[Bus]:
    async with kind.bus(broker) as bus:
        await bus.wait_connected(SOON_S)
        yield bus


def state(node: str, kind: str = "observed", worker: str = "") -> Address:
    return Address(node, Direction.UP, EventClass.STATE, kind, worker=worker)


def fact(node: str, kind: str = "joined", worker: str = "") -> Address:
    return Address(node, Direction.UP, EventClass.FACT, kind, worker=worker)


def signal_(node: str, kind: str = "progress", worker: str = "") -> Address:
    return Address(node, Direction.UP, EventClass.SIGNAL, kind, worker=worker)


async def take(deliveries: AsyncIterator[Delivery], number: int) -> list[Delivery]:
    async with asyncio.timeout(SOON_S):
        return [await anext(deliveries) for _ in range(number)]


async def payloads_until(deliveries: AsyncIterator[Delivery], last: bytes) -> list[bytes]:
    """All payloads up to and with `last`: shows that nothing else came before it."""
    payloads: list[bytes] = []
    async with asyncio.timeout(SOON_S):
        while not payloads or payloads[-1] != last:
            payloads.append((await anext(deliveries)).payload)
    return payloads


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.01)


async def published(bus: Bus, address: Address, payload: bytes) -> None:
    """Publish, as often as it takes for the connection to be there."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                return await bus.publish(address, payload)
            except BusUnavailable:
                await bus.wait_connected()


# Delivery


@each_kind
async def test_a_payload_arrives_at_its_address_unchanged(bus: Bus, other: Bus, node: str) -> None:
    payload = os.urandom(1024 * 1024)
    async with other.subscribe(Pattern(node)) as deliveries:
        await bus.publish(signal_(node), payload)
        assert await take(deliveries, 1) == [Delivery(signal_(node), payload)]


@each_kind
async def test_a_level_left_open_matches_anything_and_a_given_one_only_itself(bus: Bus, other: Bus, node: str) -> None:
    async with other.subscribe(Pattern(node, event_class=EventClass.SIGNAL, worker="work0")) as deliveries:
        await bus.publish(signal_(node, "progress", "work1"), b"other worker")
        await bus.publish(fact(node, "progress", "work0"), b"other class")
        await bus.publish(signal_(node, "progress", "work0"), b"progress")
        await bus.publish(signal_(node, "heartbeat", "work0"), b"heartbeat")
        assert [delivery.payload for delivery in await take(deliveries, 2)] == [b"progress", b"heartbeat"]


@each_kind
@pytest.mark.parametrize("event_class", [EventClass.TRANSFER, EventClass.FACT])
async def test_deliveries_keep_the_order_of_publishing(
    bus: Bus, other: Bus, node: str, event_class: EventClass
) -> None:
    payloads = [b"%d" % number for number in range(500)]
    address = Address(node, Direction.UP, event_class, "chunk")
    async with other.subscribe(Pattern(node)) as deliveries, asyncio.TaskGroup() as publishing:
        for payload in payloads:
            publishing.create_task(bus.publish(address, payload))
        assert [delivery.payload for delivery in await take(deliveries, 500)] == payloads


@each_kind
async def test_order_is_kept_between_the_patterns_of_one_subscription(bus: Bus, other: Bus, node: str) -> None:
    patterns = [Pattern(node, kind="red"), Pattern(node, kind="blue")]
    payloads = [b"%d" % number for number in range(200)]
    async with other.subscribe(*patterns) as deliveries, asyncio.TaskGroup() as publishing:
        for number, payload in enumerate(payloads):
            publishing.create_task(bus.publish(signal_(node, ("red", "blue")[number % 2]), payload))
        assert [delivery.payload for delivery in await take(deliveries, 200)] == payloads


@each_kind
async def test_overlapping_patterns_deliver_once(bus: Bus, other: Bus, node: str) -> None:
    patterns = [
        Pattern(node, kind="progress"),
        Pattern(node, worker="work0"),
        Pattern(node, event_class=EventClass.FACT),
        Pattern(node, event_class=EventClass.FACT, worker="work0"),
    ]
    async with other.subscribe(*patterns) as deliveries:
        await bus.publish(signal_(node, "progress", "work0"), b"matches two")
        await bus.publish(fact(node, "progress", "work0"), b"matches all")
        await bus.publish(fact(node, "last"), b"last")
        payloads = await payloads_until(deliveries, b"last")
    assert sorted(payloads) == [b"last", b"matches all", b"matches two"]


@each_kind
async def test_two_subscribers_of_one_bus_get_a_copy_each(bus: Bus, other: Bus, node: str) -> None:
    async with other.subscribe(Pattern(node)) as wide, other.subscribe(Pattern(node, kind="progress")) as narrow:
        await bus.publish(fact(node, "progress"), b"both")
        await bus.publish(fact(node, "joined"), b"wide only")
        await bus.publish(fact(node, "progress"), b"last")
        assert await payloads_until(wide, b"last") == [b"both", b"wide only", b"last"]
        assert await payloads_until(narrow, b"last") == [b"both", b"last"]


@each_kind
async def test_a_subscriber_that_leaves_takes_nothing_from_another(bus: Bus, other: Bus, node: str) -> None:
    async with other.subscribe(Pattern(node, kind="progress")) as staying:
        async with other.subscribe(Pattern(node)), other.subscribe(Pattern(node, kind="progress")):
            pass
        await bus.publish(signal_(node, "progress"), b"still here")
        assert [delivery.payload for delivery in await take(staying, 1)] == [b"still here"]


@each_kind
async def test_a_subscriber_ends_when_its_context_is_left(bus: Bus, node: str) -> None:
    async with bus.subscribe(Pattern(node)) as deliveries:
        pass
    assert [delivery async for delivery in deliveries] == []


# Retained state


@each_retaining_kind
async def test_a_late_reader_gets_the_last_state_as_a_hint(bus: Bus, other: Bus, node: str) -> None:
    await bus.publish(state(node), b"old")
    await bus.publish(state(node), b"new")
    async with other.subscribe(Pattern(node)) as deliveries:
        assert await take(deliveries, 1) == [Delivery(state(node), b"new", retained=True)]


@each_retaining_kind
async def test_an_empty_payload_clears_the_hint(bus: Bus, other: Bus, node: str) -> None:
    await bus.publish(state(node), b"gone")
    await bus.publish(state(node), b"")
    async with other.subscribe(Pattern(node)) as deliveries:
        await bus.publish(fact(node), b"last")
        assert await payloads_until(deliveries, b"last") == [b"last"]


@each_retaining_kind
async def test_a_second_subscriber_gets_the_hint_and_the_first_gets_it_only_once(
    bus: Bus, other: Bus, node: str
) -> None:
    await bus.publish(state(node), b"hint")
    async with other.subscribe(Pattern(node)) as first:
        assert await take(first, 1) == [Delivery(state(node), b"hint", retained=True)]
        async with other.subscribe(Pattern(node, kind="observed")) as second:
            assert await take(second, 1) == [Delivery(state(node), b"hint", retained=True)]
            await bus.publish(state(node), b"last")
            assert await payloads_until(first, b"last") == [b"last"]


# Refusals


@each_kind
async def test_a_payload_over_the_limit_is_refused_before_sending(bus: Bus, node: str) -> None:
    with pytest.raises(PayloadTooLarge) as refusal:
        await bus.publish(signal_(node), bytes(bus.limit_bytes + 1))
    assert refusal.value.limit_bytes == bus.limit_bytes


@each_kind
async def test_the_largest_allowed_payload_arrives(bus: Bus, other: Bus, node: str) -> None:
    async with other.subscribe(Pattern(node)) as deliveries:
        await bus.publish(fact(node), bytes(bus.limit_bytes))
        [delivery] = await take(deliveries, 1)
    assert len(delivery.payload) == bus.limit_bytes


@each_kind
async def test_publishing_without_a_broker_is_refused_at_once(kind: Kind, own_broker: Any, node: str) -> None:
    own_broker.stop()
    async with kind.bus(own_broker) as bus:
        with pytest.raises(BusUnavailable):
            await bus.publish(signal_(node), b"lost")
        with pytest.raises(BusUnavailable):
            await bus.wait_connected(0.2)
        assert not bus.connected


@pytest.mark.parametrize("broker_kind", ["nats_mqtt_limited", "nats_core_limited"])
async def test_a_forbidden_subscription_raises_and_a_permitted_one_works(
    new_broker: Callable[[str], Any], broker_kind: str
) -> None:
    login = {"username": "limited", "password": "secret"}
    url = new_broker(broker_kind).url
    bus = NatsBus(url, name="limited", **login) if "core" in broker_kind else MqttBus(url, client_id="limited", **login)
    async with bus:
        await bus.wait_connected(SOON_S)
        with pytest.raises(BusError, match="refuses"):
            async with bus.subscribe(Pattern("foreign")):
                pass
        async with bus.subscribe(Pattern("own")) as deliveries:
            await bus.publish(fact("own"), b"mine")
            assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"mine"]


@pytest.mark.parametrize("broker_kind", ["nats_mqtt_limited", "nats_core_limited"])
async def test_a_wrong_password_is_named_as_the_cause(new_broker: Callable[[str], Any], broker_kind: str) -> None:
    url = new_broker(broker_kind).url
    login = {"username": "limited", "password": "wrong"}
    bus = NatsBus(url, name="limited", **login) if "core" in broker_kind else MqttBus(url, client_id="limited", **login)
    cause = ""
    async with bus, asyncio.timeout(SOON_S):
        while "authori" not in cause.lower():
            with pytest.raises(BusUnavailable) as caught:
                await bus.wait_connected(0.2)
            cause = str(caught.value)


# Outages


@each_kind
async def test_a_bus_waits_for_its_broker_and_subscribes_then(kind: Kind, own_broker: Any, node: str) -> None:
    own_broker.stop()
    async with kind.bus(own_broker) as bus, bus.subscribe(Pattern(node)) as deliveries:
        own_broker.start()
        await bus.wait_connected(SOON_S)
        await bus.publish(signal_(node), b"here")
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"here"]


@each_kind
async def test_subscriptions_come_back_after_the_broker_restarted(kind: Kind, own_broker: Any, node: str) -> None:
    async with kind.bus(own_broker) as bus, kind.bus(own_broker) as other:
        await bus.wait_connected(SOON_S)
        await other.wait_connected(SOON_S)
        async with other.subscribe(Pattern(node)) as before:
            own_broker.stop()
            await until(lambda: not bus.connected and not other.connected)
            async with other.subscribe(Pattern(node)) as during:
                own_broker.start()
                await other.wait_connected(SOON_S)
                await published(bus, signal_(node), b"back")
                assert [delivery.payload for delivery in await take(before, 1)] == [b"back"]
                assert [delivery.payload for delivery in await take(during, 1)] == [b"back"]


@each_kind
async def test_callbacks_run_after_each_connect_with_subscriptions_in_place(
    kind: Kind, own_broker: Any, node: str
) -> None:
    async with kind.bus(own_broker) as bus, bus.subscribe(Pattern(node)) as deliveries:

        async def say_hello() -> None:
            await bus.publish(signal_(node), b"hello")

        bus.on_connect(say_hello)
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"hello"]
        own_broker.stop()
        await until(lambda: not bus.connected)
        assert bus.connections == 1
        own_broker.start()
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"hello"]
        assert bus.connections == 2


@each_kind
async def test_a_callback_added_while_connected_runs_at_once(bus: Bus) -> None:
    called = asyncio.Event()

    async def call() -> None:
        called.set()

    bus.on_connect(call)
    async with asyncio.timeout(SOON_S):
        await called.wait()


async def test_a_connection_that_was_closed_for_good_is_replaced(nats_url: str, node: str) -> None:
    async with NatsBus(nats_url, name=node) as bus, bus.subscribe(Pattern(node)) as deliveries:
        await bus.wait_connected(SOON_S)
        closed = bus.connection
        await closed.close()
        await published(bus, fact(node), b"by the next")
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"by the next"]
        assert bus.connection is not closed


@each_mqtt_kind
async def test_a_publish_under_way_fails_when_the_broker_dies(kind: Kind, own_broker: Any, node: str) -> None:
    async with kind.bus(own_broker) as bus:
        await bus.wait_connected(SOON_S)
        own_broker.process.send_signal(signal.SIGSTOP)
        publishing = asyncio.create_task(bus.publish(fact(node), b"never acknowledged"))
        await asyncio.sleep(0)
        own_broker.stop(kill=True)
        with pytest.raises(BusUnavailable):
            async with asyncio.timeout(SOON_S):
                await publishing


DYING_CLIENT = """
import asyncio, sys
from edgeai.bus.mqtt import MqttBus
from edgeai.events.address import Address, Direction, EventClass

async def main(url, node):
    will = Address(node, Direction.UP, EventClass.SIGNAL, "died"), b"my will"
    async with MqttBus(url, client_id=f"dying-{node}", will=will) as bus:
        await bus.wait_connected()
        print("connected", flush=True)
        await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@each_mqtt_kind
async def test_the_will_of_a_killed_client_is_published(bus: Bus, node: str) -> None:
    async with bus.subscribe(Pattern(node)) as deliveries:
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DYING_CLIENT, bus.url, node, stdout=asyncio.subprocess.PIPE
        )
        assert client.stdout is not None
        while b"connected" not in (line := await client.stdout.readline()):
            assert line, "the client ended before it was connected"
        client.kill()
        await client.communicate()
        assert await take(deliveries, 1) == [Delivery(signal_(node, "died"), b"my will")]


@each_mqtt_kind
async def test_a_client_that_leaves_publishes_no_will(kind: Kind, broker: Any, bus: Bus, node: str) -> None:
    async with bus.subscribe(Pattern(node)) as deliveries:
        async with MqttBus(broker.url, client_id=f"leaving-{node}", will=(fact(node), b"will")) as leaving:
            await leaving.wait_connected(SOON_S)
        await bus.publish(fact(node), b"last")
        assert await payloads_until(deliveries, b"last") == [b"last"]


async def test_the_will_of_a_memory_client_is_published_when_it_dies(node: str) -> None:
    broker = MemoryBroker()
    async with MemoryBus(broker, "reader") as bus, bus.subscribe(Pattern(node)) as deliveries:
        async with MemoryBus(broker, "dying", will=(signal_(node), b"will")) as dying:
            dying.die()
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"will"]


async def test_an_mqtt_broker_is_reached_through_a_unix_socket(new_broker: Callable[[str], Any], node: str) -> None:
    path = new_broker("mosquitto").folder / "mqtt.socket"
    async with MqttBus(f"mqtt+unix://{path}", client_id=node) as bus, bus.subscribe(Pattern(node)) as deliveries:
        await bus.wait_connected(SOON_S)
        await bus.publish(signal_(node), b"through a file")
        assert [delivery.payload for delivery in await take(deliveries, 1)] == [b"through a file"]


# Groups


@each_grouping_kind
async def test_of_a_group_one_subscriber_gets_each_delivery(kind: Kind, bus: Bus, other: Bus, node: str) -> None:
    pattern = Pattern(node, kind="ask")
    sent = [str(number).encode() for number in range(40)]
    async with bus.subscribe(Pattern(node)) as all_here, other.subscribe(Pattern(node)) as all_there:
        async with bus.subscribe(pattern, group="replicas") as one, other.subscribe(pattern, group="replicas") as two:
            for payload in sent:
                await bus.publish(Address(node, Direction.UP, EventClass.REQUEST, "ask"), payload)
            await bus.publish(fact(node), b"last")
            for deliveries in (all_here, all_there):  # what came on the same connection before is with the members
                await take(deliveries, len(sent) + 1)
        found = [delivery.payload for member in (one, two) async for delivery in member]
    assert sorted(found) == sorted(sent)


@each_grouping_kind
async def test_a_group_goes_on_when_a_member_has_left(kind: Kind, bus: Bus, other: Bus, node: str) -> None:
    pattern, to = Pattern(node, kind="ask"), Address(node, Direction.UP, EventClass.REQUEST, "ask")
    async with bus.subscribe(pattern, group="replicas") as stays:
        async with other.subscribe(pattern, group="replicas"):
            pass
        async with other.subscribe(Pattern(node, kind="seen")):  # the broker has seen the end of the other one
            for number in range(10):
                await bus.publish(to, str(number).encode())
        assert [delivery.payload for delivery in await take(stays, 10)] == [str(n).encode() for n in range(10)]


@each_grouping_kind
async def test_a_group_takes_one_pattern(bus: Bus, node: str) -> None:
    with pytest.raises(BusError, match="a group takes one"):
        async with bus.subscribe(Pattern(node), Pattern("other"), group="replicas"):
            pass


@each_mqtt_kind
async def test_mqtt_has_no_groups(bus: Bus, node: str) -> None:
    with pytest.raises(BusError, match="no groups"):
        async with bus.subscribe(Pattern(node), group="replicas"):
            pass


# Foreign traffic


@pytest.mark.parametrize("topic", ["edgeai/1/{}/sideways/fact/joined/-/-", "edgeai/1/{}/up/fact/J%C3/-/-"])
@each_mqtt_kind
async def test_a_malformed_topic_is_counted_and_not_delivered(bus: MqttBus, node: str, topic: str) -> None:
    import aiomqtt

    host, port = bus.url.removeprefix("mqtt://").split(":")
    async with bus.subscribe(Pattern(node)) as deliveries:
        async with aiomqtt.Client(host, int(port)) as stranger:
            await stranger.publish(topic.format(node), b"malformed", qos=1)
        await bus.publish(fact(node), b"last")
        assert await payloads_until(deliveries, b"last") == [b"last"]
        await until(lambda: bus.dropped == 1)


async def test_a_topic_that_is_not_text_is_counted_and_does_not_break_the_connection(
    new_broker: Callable[[str], Any], node: str
) -> None:
    """nats-server forwards any bytes from a NATS client to its MQTT clients."""
    broker = new_broker("nats_mqtt")
    async with MqttBus(broker.url, client_id=node) as bus, bus.subscribe(Pattern(node)) as deliveries:
        await bus.wait_connected(SOON_S)
        _, writer = await asyncio.open_connection("127.0.0.1", broker.second_port)
        good = signal_(node).subject().encode()
        writer.write(b'CONNECT {"verbose": false}\r\n')
        writer.write(b"PUB %s 3\r\nbad\r\n" % good.replace(b"progress", b"\xff\xfe"))
        writer.write(b"PUB %s 4\r\ngood\r\n" % good)
        await writer.drain()
        assert await payloads_until(deliveries, b"good") == [b"good"]
        assert bus.dropped == 1
        writer.close()
        await writer.wait_closed()


async def test_a_malformed_subject_is_counted_and_not_delivered(nats_url: str, node: str) -> None:
    async with NatsBus(nats_url, name=node) as bus, bus.subscribe(Pattern(node)) as deliveries:
        await bus.wait_connected(SOON_S)
        await bus.connection.publish(f"edgeai.1.{node}.up.fact.J\u00dc.-.-", b"malformed")
        await bus.publish(fact(node), b"last")
        assert await payloads_until(deliveries, b"last") == [b"last"]
        assert bus.dropped == 1


# The parts


def test_filters_never_overlap_and_leave_nothing_out() -> None:
    wide, narrow = Pattern("a"), Pattern("a", Direction.UP)
    left, right = Pattern("b", kind="x"), Pattern("b", worker="w")
    assert disjoint([narrow, wide, left, right, Pattern("c")]) == [wide, Pattern("b"), Pattern("c")]


def test_distinct_patterns_stay_as_they_are() -> None:
    patterns = [Pattern("a", Direction.DOWN), Pattern("a", Direction.LOCAL)]
    assert disjoint(patterns) == patterns


async def test_an_inbox_refuses_what_exceeds_its_bytes_and_takes_more_when_read() -> None:
    inbox = Inbox([Pattern()], limit_bytes=4096)
    delivery = Delivery(signal_("a"), bytes(3000))
    assert [inbox.put(delivery), inbox.put(delivery)] == [True, False]
    await anext(inbox)
    assert inbox.put(delivery)


async def test_a_failing_callback_does_not_end_the_others() -> None:
    link, calls = Link("test://"), asyncio.Queue[str]()

    async def fail() -> None:
        calls.put_nowait("failing")
        raise ValueError("a mistake")

    link.on_connect(fail)
    link.open()
    for _ in range(2):
        link.up()
        async with asyncio.timeout(SOON_S):
            assert await calls.get() == "failing"
        link.down("test")
    await link.close()
