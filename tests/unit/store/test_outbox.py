"""Facts on their way: in order, again and again until the coordinator's receipt, whatever the bus loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.errors import BusUnavailable
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import Receipt
from edgeai.store.edge import EdgeStore
from edgeai.store.outbox import Outbox

SOURCE = "edge1"
FACT = Address("edge1", Direction.UP, EventClass.FACT, "worker-failed", "digits-0a1b2c3d", "work0")


class World:
    """A source with a coordinator that writes down what arrives. `lose` says which sequences the bus loses."""

    def __init__(self, store: EdgeStore, resend_s: float) -> None:
        self.store, self.broker = store, MemoryBroker()
        self.bus = MemoryBus(self.broker, "edge1")
        self.outbox = Outbox(store, self.bus, SOURCE, resend_s=resend_s)
        self.arrived: list[int] = []

    async def emit(self, count: int = 1) -> None:
        await self.store.commit({}, {}, [lambda sequence: (FACT.topic(), b"%d" % sequence)] * count)
        self.outbox.wake()

    async def receipt(self, sequence: int, *, source: str = SOURCE, incarnation: int | None = None) -> None:
        mine = self.store.incarnation if incarnation is None else incarnation
        await self.outbox.receipted(Receipt(source, mine, sequence))

    async def left(self) -> list[int]:
        return [row.sequence for row in await self.store.waiting(0, 1000)]


@asynccontextmanager
async def world(path: Path, resend_s: float = 60.0) -> AsyncIterator[World]:
    store = await EdgeStore.open(path / "controller.db")
    made = World(store, resend_s)
    async with (
        made.bus,
        MemoryBus(made.broker, "cloud") as cloud,
        cloud.subscribe(Pattern(event_class=EventClass.FACT)) as facts,
    ):

        async def listen() -> None:
            async for delivery in facts:
                made.arrived.append(int(delivery.payload))

        tasks = [asyncio.create_task(listen()), asyncio.create_task(made.outbox.run())]
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_facts_are_sent_in_order(tmp_path):
    async with world(tmp_path) as made:
        await made.emit(3)
        await made.emit(2)
        await until(lambda: len(made.arrived) == 5)
        assert made.arrived == [1, 2, 3, 4, 5]


async def test_facts_that_wait_since_before_a_restart_are_sent(tmp_path):
    store = await EdgeStore.open(tmp_path / "controller.db")
    await store.commit({}, {}, [lambda sequence: (FACT.topic(), b"%d" % sequence)] * 2)
    await store.close()
    async with world(tmp_path) as made:
        await until(lambda: made.arrived == [1, 2])


async def test_more_facts_than_a_window_are_sent(tmp_path):
    async with world(tmp_path) as made:
        await made.emit(600)
        await until(lambda: made.arrived == list(range(1, 601)))


async def test_a_fact_is_sent_again_until_its_receipt(tmp_path):
    async with world(tmp_path, resend_s=0.01) as made:
        await made.emit()
        await until(lambda: len(made.arrived) >= 3)
        await made.receipt(1)
        assert await made.left() == []
    assert set(made.arrived) == {1}


async def test_a_receipt_is_cumulative(tmp_path):
    async with world(tmp_path) as made:
        await made.emit(5)
        await made.receipt(3)
        assert await made.left() == [4, 5]


@pytest.mark.parametrize("receipts", [[3, 2, 1], [1, 3, 3], [3]], ids=["late", "repeated", "lost"])
async def test_late_repeated_and_lost_receipts_do_no_harm(tmp_path, receipts):
    async with world(tmp_path) as made:
        await made.emit(4)
        for sequence in receipts:
            await made.receipt(sequence)
        assert await made.left() == [4]


async def test_a_receipt_for_another_source_is_nothing(tmp_path):
    async with world(tmp_path) as made:
        await made.emit(2)
        await made.receipt(2, source="edge2")
        assert await made.left() == [1, 2]


async def test_a_receipt_for_another_incarnation_is_nothing(tmp_path):
    """It is about facts of a store that was lost."""
    async with world(tmp_path) as made:
        await made.emit(2)
        await made.receipt(2, incarnation=made.store.incarnation - 1)
        assert await made.left() == [1, 2]


async def test_a_receipt_beyond_the_last_fact_drops_no_later_one(tmp_path):
    async with world(tmp_path) as made:
        await made.emit()
        await made.receipt(100)
        await made.emit()
        await until(lambda: 2 in made.arrived)
        assert await made.left() == [2]


async def test_everything_is_sent_again_after_a_reconnect(tmp_path):
    async with world(tmp_path) as made:
        await made.emit(2)
        await until(lambda: made.arrived == [1, 2])
        made.broker.stop(forget=True)
        made.broker.start()
        await until(lambda: made.arrived == [1, 2, 1, 2])


async def test_a_broker_that_is_away_only_delays(tmp_path):
    async with world(tmp_path) as made:
        made.broker.stop()
        await made.emit(2)
        with pytest.raises(BusUnavailable):
            await made.bus.publish(FACT, b"")
        assert made.arrived == []
        made.broker.start()
        await until(lambda: made.arrived == [1, 2])


async def test_a_reconnect_in_the_middle_of_a_publish_begins_from_the_oldest(tmp_path, monkeypatch):
    """What was sent on the connection before may be lost: the place must not jump over it."""
    async with world(tmp_path) as made:
        publish, reconnected = made.bus.publish, []

        async def interrupted(address: Address, payload: bytes) -> None:
            await publish(address, payload)
            if payload == b"2" and not reconnected:
                reconnected.append(True)
                made.broker.stop()
                made.broker.start()
                await asyncio.sleep(0.01)

        monkeypatch.setattr(made.bus, "publish", interrupted)
        await made.emit(3)
        await until(lambda: made.arrived[-1:] == [3])
        assert made.arrived == [1, 2, 1, 2, 3]


async def test_a_lost_fact_is_sent_again_though_new_ones_keep_coming(tmp_path, monkeypatch):
    """The coordinator takes nothing beyond a gap: waiting for a quiet moment could take for ever."""
    async with world(tmp_path, resend_s=0.02) as made:
        publish, lost = made.bus.publish, []

        async def losing(address: Address, payload: bytes) -> None:
            if payload == b"1" and not lost:
                lost.append(True)
                return
            await publish(address, payload)

        monkeypatch.setattr(made.bus, "publish", losing)
        async with asyncio.timeout(10):
            while 1 not in made.arrived:
                await made.emit()
                await asyncio.sleep(0.005)


async def test_drained_means_that_everything_has_its_receipt(tmp_path):
    async with world(tmp_path) as made:
        await made.emit(2)
        drained = asyncio.create_task(made.outbox.drained())
        await until(lambda: made.arrived == [1, 2])
        await made.receipt(1)
        await asyncio.sleep(0)
        assert not drained.done()
        await made.receipt(2)
        await asyncio.wait_for(drained, 10)


async def test_an_empty_outbox_is_drained(tmp_path):
    async with world(tmp_path) as made:
        await asyncio.wait_for(made.outbox.drained(), 10)
