"""What a worker of a joint inference service sends: in the background, in order, and what is ready together in one message.

Requests and their answers may be lost; what could not be sent, or waited too long to be of use, is told to whoever gave it. Who
gave it may also keep it back at the moment of sending. What waits is bounded. What is in a message is the business of who makes
it (`joint_line`, `joint_applications`, `joint_cloud`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from edgeai.bus.base import Bus
from edgeai.bus.routing import Seldom
from edgeai.errors import BusError
from edgeai.events.address import Address

log = structlog.get_logger()

MAX_TOGETHER, MESSAGE_BYTES = 64, 256 * 1024
"""Parts of one message; one larger part goes alone."""
LIMIT_BYTES = 32 * 1024 * 1024
PAUSE_S = 0.001
"""Between two messages to an address, where they may have many parts: what gets ready meanwhile goes together."""
_OVERHEAD_BYTES = 512
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[P]):
    part: P
    size_bytes: int
    until_s: float
    """by the loop's clock: after that it is of no use"""


class Outgoing(Generic[P]):
    """`encode` makes the payload of a message of its parts; `failed` is called for each that was not sent, with the reason."""

    def __init__(
        self,
        bus: Bus,
        encode: Callable[[Sequence[P]], bytes],
        failed: Callable[[P, str], None],
        *,
        sent: Callable[[int], None] = lambda _: None,
        sending: Callable[[P], bool] = lambda _: True,
        gone: Callable[[P], None] = lambda _: None,
        together: int = MAX_TOGETHER,
    ) -> None:
        """`sent` is told the size of each message. `sending` is asked at the moment of sending: False keeps a part
        here for good. `gone` is called for each part of a message that was sent."""
        self._bus, self._encode, self._failed, self._sent = bus, encode, failed, sent
        self._sending, self._gone = sending, gone
        self._together = together
        self._waiting: dict[Address, deque[_Waiting[P]]] = {}
        self._waiting_bytes = 0
        self._next_s = 0.0
        self._ready, self._empty = asyncio.Event(), asyncio.Event()
        self._empty.set()
        self._seldom = Seldom()

    def put(self, address: Address, part: P, size_bytes: int, until_s: float) -> bool:
        """False: too much waits already."""
        if self._waiting_bytes + size_bytes + _OVERHEAD_BYTES > LIMIT_BYTES:
            return False
        self._waiting_bytes += size_bytes + _OVERHEAD_BYTES
        self._waiting.setdefault(address, deque()).append(_Waiting(part, size_bytes, until_s))
        self._ready.set()
        self._empty.clear()
        return True

    async def flush(self, timeout_s: float) -> None:
        """Return when nothing waits any more, or after this time. `run` has to go on meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()

    async def run(self) -> None:
        while True:
            await self._ready.wait()
            await self._pause()
            self._ready.clear()
            for _ in range(len(self._waiting)):
                address, parts = self._next()
                if parts:
                    await self._send(address, parts)
            if self._waiting:
                self._ready.set()
            else:
                self._empty.set()

    async def _pause(self) -> None:
        """A message costs far more than its parts, on all of its way: under load there are fewer of them."""
        loop = asyncio.get_running_loop()
        if self._together > 1 and (early_s := self._next_s - loop.time()) > 0:
            await asyncio.sleep(early_s)
        self._next_s = loop.time() + PAUSE_S

    def _next(self) -> tuple[Address, list[P]]:
        """One message, of the address that has waited longest."""
        address = next(iter(self._waiting))
        waiting = self._waiting.pop(address)
        now_s = asyncio.get_running_loop().time()
        parts: list[P] = []
        size_bytes = 0
        while waiting and len(parts) < self._together:
            first = waiting[0]
            if parts and size_bytes + first.size_bytes > MESSAGE_BYTES:
                break
            waiting.popleft()
            self._waiting_bytes -= first.size_bytes + _OVERHEAD_BYTES
            if first.until_s < now_s:
                self._failed(first.part, "the connection was not ready in time")
                continue
            if not self._sending(first.part):
                continue
            parts.append(first.part)
            size_bytes += first.size_bytes
        if waiting:
            self._waiting[address] = waiting
        return address, parts

    async def _send(self, address: Address, parts: list[P]) -> None:
        try:
            payload = self._encode(parts)
            await self._bus.publish(address, payload)
        except BusError as error:
            for part in parts:
                self._failed(part, str(error))
            if self._seldom.due():
                log.info("requests_not_sent", count=len(parts), kind=address.kind, cause=str(error))
        else:
            self._sent(len(payload))
            for part in parts:
                self._gone(part)
