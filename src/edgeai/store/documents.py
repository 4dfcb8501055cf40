"""State documents: the latest arrives, however late the reader.

A document is one event of class state at one address, with its owner's incarnation and a generation that grows by one with
every change. A reader keeps the highest (incarnation, generation) it has seen. A message only says "look again": on connect
and every 60 s a reader lists what it holds, and the owner sends what differs. Losing, repeating or reordering any message
costs delay and nothing else.

`Documents` is both sides: `publish` for what this process owns, `accept` for what it reads. Where they are remembered is
behind `DocumentStore`: the node's SQLite file, or the coordinator's KV. Changes go one at a time, in the order of the
calls: two versions never share a generation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from edgeai.bus.base import Bus, Delivery
from edgeai.crashpoints import crash_point
from edgeai.errors import BusError, MalformedEvent
from edgeai.events.address import Address
from edgeai.events.catalogue import Event, Held, HeldAtEdge, HeldInCloud
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.store.edge import DocumentRow
from edgeai.store.identity import new_id

log = structlog.get_logger()

COMPARE_S = 60.0


class DocumentStore(Protocol):
    @property
    def incarnation(self) -> int: ...

    async def documents(self) -> list[DocumentRow]: ...

    async def save_document(self, row: DocumentRow) -> None: ...

    async def drop_document(self, topic: str) -> None: ...


class MemoryDocuments:
    """For readers that start from nothing each time: a training worker."""

    def __init__(self) -> None:
        self.incarnation = time.time_ns()
        self._rows: dict[str, DocumentRow] = {}

    async def documents(self) -> list[DocumentRow]:
        return list(self._rows.values())

    async def save_document(self, row: DocumentRow) -> None:
        self._rows[row.topic] = row

    async def drop_document(self, topic: str) -> None:
        self._rows.pop(topic, None)


class Documents:
    """The documents of one process, named `source` on the bus."""

    def __init__(self, store: DocumentStore, bus: Bus, source: str) -> None:
        self._store, self._bus, self._source = store, bus, source
        self._own: dict[Address, DocumentRow] = {}
        self._events: dict[Address, Event] = {}
        self._held: dict[Address, tuple[int, int]] = {}
        self._changing = asyncio.Lock()

    async def load(self) -> list[Delivery]:
        """Read what is remembered; returns the documents read from others, as they arrived.

        One that cannot be read (another version wrote it) is not held, so its owner sends it again; an own one is sent
        again, under its next generation, when it is published.
        """
        deliveries = []
        for row in await self._store.documents():
            address, event = Address.from_topic(row.topic), _read(row)
            if row.own:
                self._own[address] = row
                if event is not None:
                    self._events[address] = event
            elif event is not None:
                self._held[address] = (row.incarnation, row.generation)
                deliveries.append(Delivery(address, row.payload))
        return deliveries

    # --- as owner

    async def publish(self, address: Address, event: Event, trace: str = "") -> int:
        """Make `event` the current document at `address`; returns its generation. Equal content changes nothing.

        `trace`: the span that it belongs to.
        """
        async with self._changing:
            before = self._own.get(address)
            if before is not None and self._events.get(address) == event:
                return before.generation
            generation = before.generation + 1 if before else 1
            header = Header(self._source, self._store.incarnation, generation)
            payload = encode(Envelope(header, event, new_id(), time.time(), address.task, trace))
            row = DocumentRow(address.topic(), True, self._store.incarnation, generation, payload)
            await self._store.save_document(row)
            crash_point("documents.saved")
            self._own[address], self._events[address] = row, event
        await self._send(row)
        return generation

    async def withdraw(self, address: Address) -> None:
        """The document is no longer needed by anybody: forget it and clear the broker's retained hint.

        For good: one that is published at this address again would begin with generation 1, which readers hold already.
        """
        async with self._changing:
            if self._own.pop(address, None) is None:
                return
            self._events.pop(address, None)
            await self._store.drop_document(address.topic())
        try:
            await self._bus.publish(address, b"")
        except BusError as error:
            log.debug("hint_not_cleared", topic=address.topic(), cause=str(error))

    def generation(self, address: Address) -> int:
        """Of the document published at `address`; 0: none."""
        return self._own[address].generation if address in self._own else 0

    async def resend(self, reader: Address, held: Iterable[Held]) -> list[Event]:
        """Answer a reader's list (sent from `reader`): send, and return, every document for it that it does not hold."""
        sent = []
        known = {(item.kind, item.task, item.worker): (item.incarnation, item.generation) for item in held}
        for address, row in list(self._own.items()):
            if _is_for(address, reader):
                key = (address.kind, address.task, address.worker)
                if known.get(key) != (row.incarnation, row.generation):
                    await self._send(row)
                    sent += [self._events[address]] if address in self._events else []
        return sent

    async def resend_all(self) -> None:
        for row in list(self._own.values()):
            await self._send(row)

    def own(self) -> dict[Address, Event]:
        return dict(self._events)

    async def _send(self, row: DocumentRow) -> None:
        try:
            await self._bus.publish(Address.from_topic(row.topic), row.payload)
        except BusError as error:
            # Not lost: the reader's next list brings it.
            log.debug("document_not_sent", topic=row.topic, generation=row.generation, cause=str(error))

    # --- as reader

    async def accept(self, delivery: Delivery, header: Header) -> bool:
        """True if this is newer than what is held; then it is remembered. Late and repeated ones are False."""
        version = (header.incarnation, header.sequence)
        async with self._changing:
            if version <= self._held.get(delivery.address, (0, 0)):
                return False
            await self._store.save_document(DocumentRow(delivery.address.topic(), False, *version, delivery.payload))
            self._held[delivery.address] = version
        return True

    async def forget(self, belongs: Callable[[Address], bool]) -> None:
        """Drop what was read at addresses that `belongs` picks."""
        async with self._changing:
            for address in [address for address in self._held if belongs(address)]:
                del self._held[address]
                await self._store.drop_document(address.topic())

    def held(self) -> tuple[Held, ...]:
        return tuple(
            Held(address.kind, address.task, address.worker, *version)
            for address, version in sorted(self._held.items(), key=lambda item: item[0].topic())
        )

    async def compare(self, address: Address) -> None:
        """Send the list of what is held to the owner, at `address` (kind held or held-in-cloud)."""
        held = self.held()
        event = HeldAtEdge(held) if address.kind == HeldAtEdge.kind else HeldInCloud(held)
        header = Header(self._source, self._store.incarnation)
        try:
            await self._bus.publish(address, encode(Envelope(header, event, new_id(), time.time())))
        except BusError as error:
            log.debug("list_not_sent", topic=address.topic(), cause=str(error))

    async def compare_for_ever(self, address: Address) -> None:
        """Compare every COMPARE_S seconds; the caller compares on connect."""
        while True:
            await asyncio.sleep(COMPARE_S)
            await self.compare(address)


def _read(row: DocumentRow) -> Event | None:
    try:
        return decode(row.payload).event
    except MalformedEvent as error:
        log.error("document_unreadable", topic=row.topic, generation=row.generation, cause=str(error))
        return None


def _is_for(document: Address, reader: Address) -> bool:
    if document.node != reader.node or document.direction is reader.direction:
        return False
    if not reader.task:
        return True
    return document.task == reader.task and document.worker in {"", reader.worker}
