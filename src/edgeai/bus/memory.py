"""A bus without a broker process, for tests and for a whole world in one process.

Behaves like the MQTT bus: state is retained, a stopped broker refuses publishes, a restarted one takes its clients back
and repeats its retained hints, a client that dies leaves its will. Passes `tests/contract/test_bus.py` like the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from edgeai.bus.base import Delivery
from edgeai.bus.routing import INBOX_LIMIT_BYTES, Inbox, Link, Router
from edgeai.errors import PayloadTooLarge
from edgeai.events.address import Address, EventClass, Pattern

MEMORY_LIMIT_BYTES = 8 * 1024 * 1024 - 64 * 1024


class MemoryBroker:
    """Connects the buses that name it. Runs from the start; `stop` and `start` play an outage."""

    def __init__(self) -> None:
        self.running = True
        self.retained: dict[Address, bytes] = {}
        self._buses: list[MemoryBus] = []
        self._turn = 0

    def stop(self, *, forget: bool = False) -> None:
        """Cut all clients off. With `forget` the retained state is lost, as with a killed broker."""
        self.running = False
        if forget:
            self.retained.clear()
        for bus in tuple(self._buses):
            bus.lose("the broker was stopped")

    def start(self) -> None:
        self.running = True
        for bus in tuple(self._buses):
            bus.find()

    def attach(self, bus: MemoryBus) -> None:
        self._buses.append(bus)
        if self.running:
            bus.find()

    def detach(self, bus: MemoryBus) -> None:
        if bus in self._buses:
            self._buses.remove(bus)

    def publish(self, address: Address, payload: bytes) -> None:
        if address.event_class is EventClass.STATE:
            if payload:
                self.retained[address] = payload
            else:
                self.retained.pop(address, None)
        delivery = Delivery(address, payload)
        for bus in tuple(self._buses):
            bus.receive(delivery)
        self._to_groups(delivery)

    def _to_groups(self, delivery: Delivery) -> None:
        """To one member of each group, in turn."""
        groups: dict[tuple[str, Pattern], list[tuple[MemoryBus, Inbox]]] = {}
        for bus in self._buses:
            for inbox in bus.members(delivery):
                groups.setdefault((inbox.group, inbox.patterns[0]), []).append((bus, inbox))
        for members in groups.values():
            self._turn += 1
            bus, inbox = members[self._turn % len(members)]
            bus.give(inbox, delivery)


class MemoryBus:
    """A client of a MemoryBroker; see `edgeai.bus.base.Bus`."""

    def __init__(
        self,
        broker: MemoryBroker,
        name: str = "memory",
        *,
        will: tuple[Address, bytes] | None = None,
        limit_bytes: int = MEMORY_LIMIT_BYTES,
        inbox_limit_bytes: int = INBOX_LIMIT_BYTES,
    ) -> None:
        self._broker = broker
        self._url = f"memory://{name}"
        self._will = will
        self._limit_bytes = limit_bytes
        self._router = Router(self._url, inbox_limit_bytes)
        self._link = Link(self._url)

    @property
    def url(self) -> str:
        return self._url

    @property
    def limit_bytes(self) -> int:
        return self._limit_bytes

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def connections(self) -> int:
        return self._link.connections

    @property
    def dropped(self) -> int:
        return self._router.dropped

    async def __aenter__(self) -> Self:
        self._link.open()
        self._broker.attach(self)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._broker.detach(self)
        self._router.close_all()
        await self._link.close()

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        await self._link.wait(timeout_s)

    async def publish(self, address: Address, payload: bytes) -> None:
        if len(payload) > self._limit_bytes:
            raise PayloadTooLarge(len(payload), self._limit_bytes)
        async with self._link.hold():
            self._broker.publish(address, payload)
            await asyncio.sleep(0)

    @asynccontextmanager
    async def subscribe(self, *patterns: Pattern, group: str = "") -> AsyncIterator[Inbox]:
        inbox = self._router.open(patterns, group)
        if self.connected and not group:
            self._hint(inbox)
        try:
            yield inbox
        finally:
            self._router.close(inbox)

    def on_connect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._link.on_connect(callback)

    def die(self) -> None:
        """Play the death of this client: it is cut off for good, the broker publishes its will."""
        self._broker.detach(self)
        self.lose("died")
        if self._will is not None and self._broker.running:
            self._broker.publish(*self._will)

    def receive(self, delivery: Delivery) -> None:
        """For the broker."""
        self._router.route(delivery)

    def members(self, delivery: Delivery) -> list[Inbox]:
        """For the broker: the inboxes in groups that want it, while connected."""
        return [inbox for inbox in self._router.inboxes if inbox.group and self.connected and inbox.wants(delivery)]

    def give(self, inbox: Inbox, delivery: Delivery) -> None:
        """For the broker: to this member of a group."""
        self._router.put(inbox, delivery)

    def find(self) -> None:
        """For the broker: connected, with everything that means."""
        self._router.forget_hints()
        for inbox in self._router.inboxes:
            if not inbox.group:
                self._hint(inbox)
        self._link.up()

    def lose(self, cause: str) -> None:
        """For the broker: cut off."""
        self._link.down(cause)

    def _hint(self, inbox: Inbox) -> None:
        for address, payload in self._broker.retained.items():
            delivery = Delivery(address, payload, retained=True)
            if inbox.wants(delivery):
                self._router.put(inbox, delivery)
