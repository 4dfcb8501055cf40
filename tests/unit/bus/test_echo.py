"""The round trip of a broker: measured, silent, or not to be asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from edgeai.bus.echo import echoing
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.events.address import Address
from edgeai.events.catalogue import Echo


class Deaf(MemoryBus):
    """Takes what is published and brings nothing back."""

    async def publish(self, address: Address, payload: bytes) -> None:
        await asyncio.sleep(0)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def bus(broker: MemoryBroker) -> AsyncIterator[MemoryBus]:
    async with MemoryBus(broker) as found:
        yield found


async def test_a_broker_that_answers_is_measured(bus: MemoryBus):
    async with echoing(bus, "edge1") as echoes:
        took_s, silent = await echoes.round_trip()
    assert took_s is not None
    assert 0 < took_s < 2
    assert not silent


async def test_measurements_at_the_same_time_do_not_take_each_others_echo(bus: MemoryBus):
    async with echoing(bus, "cloud", "portal") as one, echoing(bus, "cloud", "portal") as other:
        found = await asyncio.gather(*(echoes.round_trip() for echoes in (one, other) for _ in range(5)))
    assert all(took_s is not None and not silent for took_s, silent in found)


async def test_a_broker_that_brings_nothing_back_is_silent(broker: MemoryBroker):
    async with Deaf(broker) as bus, echoing(bus, "edge1") as echoes:
        assert await echoes.round_trip(0.01) == (None, True)


async def test_an_echo_that_is_lost_with_its_connection_says_nothing_of_the_broker(broker: MemoryBroker):
    async with Deaf(broker) as bus, echoing(bus, "edge1") as echoes:
        asking = asyncio.create_task(echoes.round_trip(0.05))
        await asyncio.sleep(0)
        broker.stop()
        broker.start()
        assert await asking == (None, False)


async def test_without_a_connection_nothing_is_said_of_the_broker(bus: MemoryBus, broker: MemoryBroker):
    async with echoing(bus, "edge1") as echoes:
        broker.stop()
        assert await echoes.round_trip() == (None, False)


async def test_it_goes_on_after_bytes_that_are_no_event_and_after_an_outage(bus: MemoryBus, broker: MemoryBroker):
    async with echoing(bus, "edge1") as echoes:
        broker.publish(Address("edge1", Echo.direction, Echo.event_class, Echo.kind), b"\xc1")
        broker.stop()
        broker.start()
        took_s, _ = await echoes.round_trip()
    assert took_s is not None
