"""What every bus needs on this side of the wire: who gets a delivery, and whether there is a connection at all.

`Router` copies each delivery to the inboxes that want it, `Link` knows whether the bus is connected and wakes those who
wait for that. Neither knows a broker or a client library; `memory`, `mqtt` and `nats` beside this module bring those.

Every inbox is bounded by bytes. What does not fit is dropped and counted, the newest first: the two ends repair it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog

from edgeai.bus.base import Delivery
from edgeai.bus.cancelling import cancellation_kept
from edgeai.errors import AddressError, BusError, BusUnavailable
from edgeai.events.address import Address, EventClass, Pattern

log = structlog.get_logger()

INBOX_LIMIT_BYTES = 256 * 1024 * 1024
OVERHEAD_BYTES = 512  # what a waiting delivery costs beside its payload, roughly
BACK_OFF_FIRST_S, BACK_OFF_LAST_S = 0.1, 5.0
_TURN = 64  # deliveries after which a reader that never waits lets others run
_HINTS_LIMIT = 65536


def back_off_s(attempt: int) -> float:
    """How long to wait before `attempt` (0 is the first retry): doubling, with jitter so that not all come at once."""
    longest_s = min(BACK_OFF_LAST_S, BACK_OFF_FIRST_S * 2.0 ** min(attempt, 10))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class Seldom:
    """Keeps a log readable: `due()` is true at most once per interval, however often something happens."""

    def __init__(self, interval_s: float = 10.0) -> None:
        self._interval_s = interval_s
        self._last: float | None = None

    def due(self) -> bool:
        now = time.monotonic()
        if self._last is not None and now - self._last < self._interval_s:
            return False
        self._last = now
        return True


class Inbox(AsyncIterator[Delivery]):
    """What one `subscribe()` has still to read."""

    def __init__(self, patterns: Sequence[Pattern], limit_bytes: int, group: str = "") -> None:
        """Raises BusError: a group with more than one pattern, of whose deliveries several members would get a copy."""
        if group and len(patterns) != 1:
            raise BusError(f"the group {group!r} subscribes {len(patterns)} patterns: a group takes one")
        self.patterns, self.group = tuple(patterns), group
        self._limit_bytes = limit_bytes
        self._waiting: deque[Delivery] = deque()
        self._waiting_bytes = 0
        self._hinted: set[Address] = set()
        self._woken = asyncio.Event()
        self._closed = False
        self._taken = 0

    def wants(self, delivery: Delivery) -> bool:
        """True if a pattern matches, unless this is a retained hint of an address that was delivered already.

        A broker repeats its retained hints for every subscription of a connection, whichever inbox asked.
        """
        if not any(pattern.matches(delivery.address) for pattern in self.patterns):
            return False
        return not (delivery.retained and delivery.address in self._hinted)

    def put(self, delivery: Delivery) -> bool:
        """False if there is no room."""
        size_bytes = len(delivery.payload) + OVERHEAD_BYTES
        if self._waiting_bytes + size_bytes > self._limit_bytes:
            return False
        if delivery.address.event_class is EventClass.STATE and len(self._hinted) < _HINTS_LIMIT:
            self._hinted.add(delivery.address)
        self._waiting_bytes += size_bytes
        self._waiting.append(delivery)
        self._woken.set()
        return True

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def forget_hints(self) -> None:
        self._hinted.clear()

    def close(self) -> None:
        """Readers get what is waiting, then the end."""
        self._closed = True
        self._woken.set()

    async def __anext__(self) -> Delivery:
        self._taken += 1
        if self._taken % _TURN == 0:
            await asyncio.sleep(0)
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        delivery = self._waiting.popleft()
        self._waiting_bytes -= len(delivery.payload) + OVERHEAD_BYTES
        return delivery


class Router:
    """The inboxes of one bus, and the count of what reached none of them."""

    def __init__(self, url: str, inbox_limit_bytes: int = INBOX_LIMIT_BYTES) -> None:
        self._url = url
        self._inbox_limit_bytes = inbox_limit_bytes
        self._inboxes: list[Inbox] = []
        self._seldom = Seldom()
        self.malformed = 0
        self.overflowed = 0

    @property
    def dropped(self) -> int:
        return self.malformed + self.overflowed

    @property
    def inboxes(self) -> tuple[Inbox, ...]:
        return tuple(self._inboxes)

    @property
    def patterns(self) -> list[Pattern]:
        return [pattern for inbox in self._inboxes for pattern in inbox.patterns]

    def open(self, patterns: Sequence[Pattern], group: str = "") -> Inbox:
        inbox = Inbox(patterns, self._inbox_limit_bytes, group)
        self._inboxes.append(inbox)
        return inbox

    def close(self, inbox: Inbox) -> None:
        inbox.close()
        if inbox in self._inboxes:
            self._inboxes.remove(inbox)

    def close_all(self) -> None:
        for inbox in self.inboxes:
            self.close(inbox)

    def forget_hints(self) -> None:
        """A new connection: the broker's retained hints are news again, because changes may have been missed."""
        for inbox in self._inboxes:
            inbox.forget_hints()

    def route(self, delivery: Delivery) -> None:
        """To the inboxes that want it and are in no group: which of a group gets it is the broker's choice."""
        for inbox in self._inboxes:
            if not inbox.group and inbox.wants(delivery):
                self.put(inbox, delivery)

    def put(self, inbox: Inbox, delivery: Delivery) -> None:
        if not inbox.put(delivery):
            self.overflowed += 1
            if self._seldom.due():
                log.warning(
                    "delivery_dropped", url=self._url, address=delivery.address.topic(), dropped=self.overflowed
                )

    def count_malformed(self, error: AddressError) -> None:
        self.malformed += 1
        if self._seldom.due():
            log.warning("malformed_address_dropped", url=self._url, error=str(error), dropped=self.malformed)


class Link:
    """Whether a bus is connected: who waits for it, who is called back, and who has to stop when it breaks."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._up = asyncio.Event()
        self._callbacks: list[tuple[Callable[[], Awaitable[None]], asyncio.Event]] = []
        self._runners: set[asyncio.Task[None]] = set()
        self._holds: set[asyncio.Timeout] = set()
        self._open = False
        self.cause = ""
        self.connections = 0
        """so often the broker has accepted it"""

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    def open(self) -> None:
        self._open = True
        for callback, due in self._callbacks:
            self._start(callback, due)

    async def close(self) -> None:
        self.down("closed")
        self._open = False
        runners = tuple(self._runners)
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    def up(self) -> None:
        self.cause = ""
        self.connections += not self.connected
        self._up.set()
        for _, due in self._callbacks:
            due.set()

    def down(self, cause: str) -> None:
        self.cause = cause
        self._up.clear()
        for _, due in self._callbacks:
            due.clear()
        holds, self._holds = self._holds, set()
        for hold in holds:
            hold.reschedule(0)

    async def wait(self, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError as error:
            raise BusUnavailable(self._url, self.cause) from error

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Run the body only while connected: BusUnavailable at once if not, and as soon as the connection breaks."""
        if not self.connected:
            raise BusUnavailable(self._url, self.cause)
        hold: asyncio.Timeout | None = None
        with cancellation_kept():
            try:
                async with asyncio.timeout(None) as hold:
                    self._holds.add(hold)
                    try:
                        yield
                    finally:
                        self._holds.discard(hold)
            except TimeoutError as error:
                if hold is None or not hold.expired():
                    raise
                raise BusUnavailable(self._url, self.cause) from error
        if hold.expired():  # the body swallowed ours
            raise BusUnavailable(self._url, self.cause)

    def on_connect(self, callback: Callable[[], Awaitable[None]]) -> None:
        due = asyncio.Event()
        self._callbacks.append((callback, due))
        if self.connected:
            due.set()
        if self._open:
            self._start(callback, due)

    def _start(self, callback: Callable[[], Awaitable[None]], due: asyncio.Event) -> None:
        runner = asyncio.create_task(self._call_back(callback, due))
        self._runners.add(runner)
        runner.add_done_callback(self._runners.discard)

    async def _call_back(self, callback: Callable[[], Awaitable[None]], due: asyncio.Event) -> None:
        """One runner per callback: it never runs twice at a time, and a slow one holds up no other."""
        while True:
            await due.wait()
            due.clear()
            try:
                await callback()
            except BusUnavailable as error:
                log.info("on_connect_interrupted", url=self._url, error=str(error))
            except Exception:  # the next connection must call all of them again
                log.exception("on_connect_failed", url=self._url, callback=getattr(callback, "__qualname__", "?"))
