"""The requests that wait at a cloud worker, bounded by number, bytes and time; and how busy it is.

Readings of the clock are those of the loop, or come in as arguments. What a request is, and its answer, is not known here.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from edgeai.events.address import Address

MIN_WAITING, BATCHES_WAITING = 256, 16
LIMIT_BYTES = 64 * 1024 * 1024
_LAST = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """`since_s`: when it came, `until_s`: when nobody waits for its answer any more; by the loop's clock."""

    to: Address
    correlation: bytes
    id: str
    content: bytes
    since_s: float
    until_s: float
    trace: str = ""


class Queue:
    """First come, first served. `on_late` is told how many were dropped because their time was over."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._limit = max(MIN_WAITING, BATCHES_WAITING * batch_size)
        self._waiting: deque[Asked] = deque()
        self._bytes = 0
        self._changed = asyncio.Event()
        self._times: deque[float] = deque(maxlen=_LAST)
        self._usual_s = 0.0
        self.on_late: Callable[[int], None] = lambda _: None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def took(self, seconds: float) -> None:
        """A batch was answered."""
        self._times.append(seconds)
        self._usual_s = sorted(self._times)[len(self._times) // 2]

    def put(self, asked: Asked, now_s: float) -> str:
        """Empty: it waits. Else why it does not."""
        if len(self._waiting) >= self._limit or self._bytes + len(asked.content) > LIMIT_BYTES:
            return f"{len(self._waiting)} requests wait at the cloud worker"
        ahead_s = len(self._waiting) // self._batch_size * self._usual_s
        if self._waiting and now_s + ahead_s > asked.until_s:
            return f"{len(self._waiting)} requests wait at the cloud worker, which takes about {ahead_s:.2g} s"
        self._waiting.append(asked)
        self._bytes += len(asked.content)
        self._changed.set()
        return ""

    async def next(self) -> Asked:
        return (await self.batch(1, 0.0))[0]

    async def batch(self, size: int, wait_s: float) -> list[Asked]:
        """At least one, at most `size`; the first of them waits for others at most `wait_s`."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                await self._change()
            full_s = self._waiting[0].since_s + wait_s
            with suppress(TimeoutError):
                async with asyncio.timeout_at(full_s):
                    while len(self._waiting) < size and loop.time() < full_s:
                        await self._change()
            if found := self._taken(size, loop.time()):
                return found

    def emptied(self) -> list[Asked]:
        """All that wait, which nobody will answer."""
        return self._taken(len(self._waiting), -math.inf)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _taken(self, size: int, now_s: float) -> list[Asked]:
        found: list[Asked] = []
        late = 0
        while self._waiting and len(found) < size:
            asked = self._waiting.popleft()
            self._bytes -= len(asked.content)
            if asked.until_s <= now_s:
                late += 1
            else:
                found.append(asked)
        if late:
            self.on_late(late)
        return found


class Busy:
    """The share of the time in which the worker predicts, since it was last told, and the mean size of its batches."""

    def __init__(self) -> None:
        self._told_s = time.monotonic()
        self._since_s = self._told_s
        self._level = self._sum = 0.0
        self._sizes: deque[int] = deque(maxlen=_LAST)

    @contextmanager
    def working(self, size: int, *, of: int = 1) -> Iterator[None]:
        """While the body runs, a part in `of` of the worker is busy."""
        self._sizes.append(size)
        self._change(1 / of)
        try:
            yield
        finally:
            self._change(-1 / of)

    def told(self, now_s: float) -> tuple[float, float]:
        self._change(0.0, now_s)
        share = min(self._sum / max(now_s - self._told_s, 1e-9), 1.0)
        self._sum, self._told_s = 0.0, now_s
        return max(share, 0.0), sum(self._sizes) / len(self._sizes) if self._sizes else 0.0

    def _change(self, by: float, now_s: float | None = None) -> None:
        now_s = time.monotonic() if now_s is None else now_s
        self._sum += self._level * (now_s - self._since_s)
        self._since_s, self._level = now_s, self._level + by
