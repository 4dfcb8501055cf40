"""What a joint inference worker sends, and how much of it goes together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.worker import outgoing
from edgeai.worker.outgoing import Outgoing

SOON_S = 10.0
EDGE, OTHER = (
    Address(node, Direction.DOWN, EventClass.REQUEST, "infer-answer", "t", "w") for node in ("edge1", "edge2")
)


class Sent:
    """Parts are text; a message is its parts with spaces between."""

    def __init__(self, bus: MemoryBus, together: int) -> None:
        self.failed: list[str] = []
        self.outgoing: Outgoing[str] = Outgoing(bus, self._encoded, self._not_sent, together=together)

    def put(self, *parts: str, to: Address = EDGE) -> None:
        for part in parts:
            assert self.outgoing.put(to, part, len(part), asyncio.get_running_loop().time() + SOON_S)

    def _encoded(self, parts: Sequence[str]) -> bytes:
        return " ".join(parts).encode()

    def _not_sent(self, part: str, _reason: str) -> None:
        self.failed.append(part)


@asynccontextmanager
async def sending(together: int = 64) -> AsyncIterator[tuple[Sent, Any]]:
    broker = MemoryBroker()
    async with MemoryBus(broker) as bus, bus.subscribe(Pattern()) as deliveries:
        sent = Sent(bus, together)
        running = asyncio.create_task(sent.outgoing.run())
        yield sent, deliveries
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def messages(deliveries: Any, count: int) -> list[str]:
    async with asyncio.timeout(SOON_S):
        return [(await anext(deliveries)).payload.decode() for _ in range(count)]


async def turns() -> None:
    """Whatever is ready has run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_gets_ready_soon_after_a_message_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "PAUSE_S", 0.5)
    async with sending() as (sent, deliveries):
        sent.put("first")
        assert await messages(deliveries, 1) == ["first"]
        sent.put("second")
        await turns()
        sent.put("third")
        assert await messages(deliveries, 1) == ["second third"]


async def test_what_goes_to_several_addresses_does_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "PAUSE_S", 3600.0)
    async with sending() as (sent, deliveries):
        sent.put("one")
        sent.put("two", to=OTHER)
        assert await messages(deliveries, 2) == ["one", "two"]


async def test_messages_of_one_part_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "PAUSE_S", 3600.0)
    async with sending(together=1) as (sent, deliveries):
        sent.put("one", "two", "three")
        assert await messages(deliveries, 3) == ["one", "two", "three"]


async def test_a_message_has_at_most_as_many_parts_as_are_allowed() -> None:
    async with sending(together=2) as (sent, deliveries):
        sent.put("a", "b", "c", "d", "e")
        assert await messages(deliveries, 3) == ["a b", "c d", "e"]


async def test_what_is_kept_back_at_the_moment_of_sending_is_not_sent() -> None:
    async with MemoryBus(MemoryBroker()) as bus, bus.subscribe(Pattern()) as deliveries:
        gone: list[str] = []
        outgoing: Outgoing[str] = Outgoing(
            bus,
            lambda parts: " ".join(parts).encode(),
            lambda *_: None,
            sending=lambda part: part != "no",
            gone=gone.append,
        )
        running = asyncio.create_task(outgoing.run())
        for part in ("yes", "no", "too"):
            assert outgoing.put(EDGE, part, 1, asyncio.get_running_loop().time() + SOON_S)
        await outgoing.flush(SOON_S)
        assert await messages(deliveries, 1) == ["yes too"]
        assert gone == ["yes", "too"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
