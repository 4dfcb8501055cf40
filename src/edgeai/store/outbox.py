"""Facts on their way: sent in order from the store, again and again, until the coordinator's receipt.

The receipt is cumulative and names the source's incarnation, so a lost, late or repeated receipt does no harm. A broker's
acknowledgement is taken as nothing. What is waiting is bounded by the disk and counted in every heartbeat.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from edgeai.bus.base import Bus
from edgeai.crashpoints import crash_point
from edgeai.errors import BusError
from edgeai.events.address import Address
from edgeai.events.catalogue import Receipt
from edgeai.store.edge import EdgeStore

log = structlog.get_logger()

RESEND_S = 5.0
_WINDOW = 256


class Outbox:
    """Sends what `store` holds under `source`. `wake()` after a commit, `receipted()` for every receipt that arrives."""

    def __init__(self, store: EdgeStore, bus: Bus, source: str, *, resend_s: float = RESEND_S) -> None:
        self._store, self._bus, self._source, self._resend_s = store, bus, source, resend_s
        self._wake = asyncio.Event()
        self._sent = 0
        self._beginnings = 0
        self._progress_s = 0.0
        """by the loop's clock: since when a receipt is awaited that settles something"""
        self._received = asyncio.Event()
        bus.on_connect(self._from_the_start)

    def wake(self) -> None:
        """There may be new facts."""
        self._wake.set()

    async def receipted(self, receipt: Receipt) -> None:
        """Drop what the coordinator has stored. Receipts for another source or incarnation are ignored."""
        if receipt.source != self._source or receipt.source_incarnation != self._store.incarnation:
            return
        crash_point("outbox.before_remove")
        if await self._store.remove_until(receipt.source_sequence):
            self._progress_s = asyncio.get_running_loop().time()
        self._received.set()

    async def run(self) -> None:
        """Send for ever; from the oldest on again whenever nothing was settled for a while."""
        loop, nothing_waits, beginnings = asyncio.get_running_loop(), True, -1
        while True:
            self._wake.clear()
            await self._send_new()
            if nothing_waits or beginnings != self._beginnings:
                self._progress_s, beginnings = loop.time(), self._beginnings
            nothing_waits = not await self._store.waiting_count()
            left_s = self._progress_s + self._resend_s - loop.time()
            if not nothing_waits and left_s <= 0:
                # However much is new meanwhile: what comes after a lost fact is not received before it is.
                self._begin_again()
                continue
            with suppress(TimeoutError):
                # Not wait_for: Python 3.11 loses a cancellation that comes together with the event.
                async with asyncio.timeout(None if nothing_waits else left_s):
                    await self._wake.wait()

    async def drained(self) -> None:
        """Return when every fact committed so far has its receipt."""
        while await self._store.waiting_count():
            self._received.clear()
            self.wake()
            await self._received.wait()

    async def _from_the_start(self) -> None:
        self._begin_again()
        self.wake()

    def _begin_again(self) -> None:
        self._sent = 0
        self._beginnings += 1

    async def _send_new(self) -> None:
        """Send what was not sent yet on this connection, as far as the bus takes it."""
        while rows := await self._store.waiting(self._sent, _WINDOW):
            for row in rows:
                crash_point("outbox.before_send")
                beginning = self._beginnings
                try:
                    await self._bus.publish(Address.from_topic(row.topic), row.payload)
                except BusError as error:
                    log.debug("fact_not_sent", source=self._source, sequence=row.sequence, cause=str(error))
                    return
                if self._beginnings != beginning:
                    break  # a new connection: what was sent on the one before may be lost
                self._sent = row.sequence
