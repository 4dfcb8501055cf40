"""What every stream of facts promises (`edgeai.store.history`), in memory and on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from edgeai.bus.nats import NatsBus
from edgeai.errors import BusUnavailable
from edgeai.events.address import Address, Direction, EventClass
from edgeai.store.history import BATCH_RECORDS, FactRecord
from edgeai.store.memory import MemoryFactStream
from edgeai.store.nats import NatsFactStream

pytest_plugins = ["store_fixtures"]


def fact(task: str = "digits-0a1b2c3d", node: str = "edge1", kind: str = "round-closed") -> Address:
    return Address(node, Direction.UP, EventClass.FACT, kind, task, "work0")


async def taken(batches: AsyncIterator[list[FactRecord]], count: int) -> list[FactRecord]:
    records: list[FactRecord] = []
    async with asyncio.timeout(40):
        while len(records) < count:
            batch = await anext(batches)
            assert 0 < len(batch) <= BATCH_RECORDS
            records += batch
    return records


def payloads(records: list[FactRecord]) -> list[bytes]:
    return [record.payload for record in records]


def numbers(start: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, end)]


async def test_facts_are_consumed_in_order(facts) -> None:
    async with facts.stream.consume("coordinator") as batches:
        for number in numbers(0, 500):
            await facts.publish(fact(), number)
        records = await taken(batches, 500)
    assert payloads(records) == numbers(0, 500)
    assert [record.sequence for record in records] == sorted({record.sequence for record in records})
    assert records[0].address == fact()


async def test_facts_from_before_are_consumed(facts) -> None:
    await facts.publish(fact(), b"early")
    async with facts.stream.consume("coordinator") as batches:
        assert payloads(await taken(batches, 1)) == [b"early"]


async def test_facts_wait_until_they_are_acknowledged(facts) -> None:
    async with facts.stream.consume("coordinator") as batches:
        for number in numbers(0, 3):
            await facts.publish(fact(), number)
        records = await taken(batches, 3)
        before = await facts.stream.backlog("coordinator")
        await facts.stream.ack(records)
        after = await facts.stream.backlog("coordinator")
    assert (before, after) == (3, 0)


async def test_what_the_server_stores_is_told(facts) -> None:
    before, _ = await facts.stream.used()
    await facts.publish(fact(), bytes(5000))
    async with facts.stream.consume("coordinator") as batches:
        await taken(batches, 1)
    used_bytes, limit_bytes = await facts.stream.used()
    assert used_bytes >= before + 5000
    assert limit_bytes >= 0


async def test_acknowledged_facts_do_not_come_again(facts) -> None:
    for number in numbers(0, 3):
        await facts.publish(fact(), number)
    async with facts.stream.consume("coordinator") as batches:
        await facts.stream.ack((await taken(batches, 3))[:2])
    async with facts.stream.consume("coordinator") as batches:
        assert payloads(await taken(batches, 1)) == [b"2"]


async def test_facts_that_are_not_acknowledged_come_again_in_order(facts) -> None:
    for number in numbers(0, 3):
        await facts.publish(fact(), number)
    async with facts.stream.consume("coordinator") as batches:
        await taken(batches, 3)
    await facts.publish(fact(), b"3")
    async with facts.stream.consume("coordinator") as batches:
        assert payloads(await taken(batches, 4)) == numbers(0, 4)


async def test_every_durable_name_has_its_own_place(facts) -> None:
    await facts.publish(fact(), b"0")
    async with facts.stream.consume("one") as batches:
        await facts.stream.ack(await taken(batches, 1))
    async with facts.stream.consume("two") as batches:
        assert payloads(await taken(batches, 1)) == [b"0"]


async def test_a_waiting_consumer_gets_a_new_fact(facts) -> None:
    async with facts.stream.consume("coordinator") as batches:
        waiting = asyncio.create_task(taken(batches, 1))
        await facts.publish(fact(), b"new")
        assert payloads(await waiting) == [b"new"]


async def test_acknowledging_nothing_is_allowed(facts) -> None:
    await facts.stream.ack([])


async def test_reading_ends_with_the_newest_fact(facts) -> None:
    for number in numbers(0, 3):
        await facts.publish(fact(), number)
    async with facts.stream.consume("reader") as batches:
        await taken(batches, 3)
    assert payloads([record async for record in facts.stream.read()]) == numbers(0, 3)


async def test_reading_an_empty_history_ends_at_once(facts) -> None:
    assert [record async for record in facts.stream.read()] == []


async def test_reading_picks_a_task_and_begins_after_a_sequence(facts) -> None:
    for number in numbers(0, 4):
        await facts.publish(fact("one-0a1b2c3d" if int(number) % 2 else "two-0a1b2c3d"), number)
    async with facts.stream.consume("reader") as batches:
        records = await taken(batches, 4)
    one = [record async for record in facts.stream.read("one-0a1b2c3d")]
    assert payloads(one) == [b"1", b"3"]
    rest = [record async for record in facts.stream.read(after_sequence=records[1].sequence)]
    assert payloads(rest) == [b"2", b"3"]


async def test_a_following_reader_waits_for_more(facts) -> None:
    await facts.publish(fact(), b"0")
    reading = facts.stream.read(follow=True)
    async with asyncio.timeout(10):
        first = await anext(reading)
        await facts.publish(fact(), b"1")
        second = await anext(reading)
    await reading.aclose()
    assert payloads([first, second]) == numbers(0, 2)


async def test_the_memory_stream_captures_what_passes_on_a_bus() -> None:
    from edgeai.bus.memory import MemoryBroker, MemoryBus

    stream = MemoryFactStream()
    async with MemoryBus(MemoryBroker()) as bus, stream.capture(bus), stream.consume("coordinator") as batches:
        await bus.publish(fact(), b"0")
        assert payloads(await taken(batches, 1)) == [b"0"]


# --- what only a real server can do to us


@pytest.fixture
async def own_stream(own_bus: NatsBus) -> NatsFactStream:
    stream = NatsFactStream(own_bus)
    await stream.ensure()
    return stream


async def test_a_consumer_goes_on_after_the_server_was_killed(own_server, own_bus, own_stream) -> None:
    """The server may forget the last acknowledgements; what was not acknowledged comes in any case, and in order."""
    async with own_stream.consume("coordinator") as batches:
        await own_bus.publish(fact(), b"0")
        await own_stream.ack(await taken(batches, 1))
        await own_bus.publish(fact(), b"1")
        await taken(batches, 1)
        await own_server.restart(own_bus)
        await own_stream.ensure()
        await own_bus.publish(fact(), b"2")
        again: list[FactRecord] = []
        while b"2" not in payloads(again):
            again += await taken(batches, 1)
    assert payloads(again)[-2:] == [b"1", b"2"]


async def test_a_following_reader_misses_nothing_while_the_server_restarts(own_server, own_bus, own_stream) -> None:
    await own_bus.publish(fact(), b"0")
    reading = own_stream.read(follow=True)
    async with asyncio.timeout(40):
        records = [await anext(reading)]
        await own_server.restart(own_bus)
        await own_stream.ensure()
        await own_bus.publish(fact(), b"1")
        records.append(await anext(reading))
    await reading.aclose()
    assert payloads(records) == numbers(0, 2)


async def test_a_fact_on_a_malformed_address_is_dropped_and_the_rest_goes_on(own_bus, own_stream) -> None:
    await own_bus.connection.publish("edgeai.1.EDGE.up.fact.KIND._._", b"bad")
    await own_bus.publish(fact(), b"good")
    async with own_stream.consume("coordinator") as batches:
        await own_stream.ack(await taken(batches, 1))
    assert own_stream.dropped == 1
    info = await own_bus.connection.jetstream().consumer_info("edgeai-facts", "coordinator")
    assert info.num_ack_pending == 0


async def reply_to(bus: NatsBus, address: Address) -> list[bytes]:
    """What arrives at a subject that somebody names as the reply subject of a fact, until a marker does."""
    client, arrived = bus.connection, []
    stream = client.jetstream()
    before = (await stream.stream_info("edgeai-facts")).state.messages
    subscription = await client.subscribe("edgeai.1.edge2.down.state.desired.-.-")
    await client.publish(address.subject(), b"fact", reply="edgeai.1.edge2.down.state.desired.-.-")
    await client.flush()
    # The server answers, if it does, when it has stored the fact.
    async with asyncio.timeout(10):
        while (await stream.stream_info("edgeai-facts")).state.messages == before:
            continue
    await stream.stream_info("edgeai-facts")
    await client.publish("edgeai.1.edge2.down.state.desired.-.-", b"marker")
    while not arrived or arrived[-1] != b"marker":
        arrived.append((await subscription.next_msg(timeout=10)).data)
    await subscription.unsubscribe()
    return arrived


async def test_a_fact_cannot_make_the_server_write_to_a_reply_subject(own_bus, own_stream) -> None:
    """Else an edge could publish into the subjects of another."""
    assert await reply_to(own_bus, fact()) == [b"marker"]
    async with own_stream.consume("coordinator") as batches:
        assert payloads(await taken(batches, 1)) == [b"fact"]


async def test_a_stream_of_an_earlier_version_stops_answering(own_bus) -> None:
    from nats.js import api

    await own_bus.connection.jetstream().add_stream(
        api.StreamConfig(name="edgeai-facts", subjects=["edgeai.1.*.up.fact.*.*.*"])
    )
    assert len(await reply_to(own_bus, fact())) == 2
    await NatsFactStream(own_bus).ensure()
    assert await reply_to(own_bus, fact()) == [b"marker"]


async def test_consuming_says_at_once_that_the_server_is_down(own_server, own_bus, own_stream) -> None:
    await own_server.crash(own_bus)
    with pytest.raises(BusUnavailable):
        await asyncio.wait_for(own_stream.consume("coordinator").__aenter__(), 1)
    with pytest.raises(BusUnavailable):
        await asyncio.wait_for(anext(own_stream.read()), 1)


async def test_acknowledging_says_at_once_that_the_server_is_down(own_server, own_bus, own_stream) -> None:
    await own_bus.publish(fact(), b"0")
    async with own_stream.consume("coordinator") as batches:
        records = await taken(batches, 1)
        await own_server.crash(own_bus)
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(own_stream.ack(records), 1)


async def test_what_the_server_has_forgotten_is_not_acknowledged_for_ever(own_bus, own_stream) -> None:
    """As after a kill, when what was delivered had not been written down."""
    await own_bus.publish(fact(), b"0")
    async with own_stream.consume("coordinator") as batches:
        records = await taken(batches, 1)
        await own_bus.connection.jetstream().delete_consumer("edgeai-facts", "coordinator")
        async with asyncio.timeout(60):
            await own_stream.ack(records)
