"""What changed, in one sequence that only grows, for any number of readers.

The feed keeps for every key only the number of its last change. So it is bounded by the number of keys, a slow reader costs
nothing, and changes of the same key between two looks of a reader are one change. What a key looks like is not stored here:
a reader renders what is current. The sequence starts with the time of the process' start: a number from an earlier process is
never taken for one of this. Pure but for the event that wakes readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

GONE_LIMIT = 5000


@dataclass(frozen=True, slots=True)
class Key:
    """`topic` is a kind of resource, `Timeline` or `Overview`."""

    topic: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Changed:
    sequence: int
    key: Key
    gone: bool


class TooOld(Exception):
    """The reader's place is not known here (any more): it has to look at everything again."""


class Feed:
    """`start` is the number before the first change; give microseconds since 1970."""

    def __init__(self, start: int, gone_limit: int = GONE_LIMIT) -> None:
        self.started = self.sequence = start
        self._floor = start
        self._limit = gone_limit
        self._last: dict[Key, int] = {}
        self._gone: dict[Key, int] = {}
        self._woken = asyncio.Event()
        self.closed = False

    def touch(self, key: Key) -> None:
        """The key has changed (or is new)."""
        self._gone.pop(key, None)
        self._note(self._last, key)

    def drop(self, key: Key) -> None:
        """The key is gone. Its mark is kept for readers, up to a limit."""
        if self._last.pop(key, None) is None:
            return
        self._note(self._gone, key)
        if len(self._gone) > self._limit:
            oldest = next(iter(self._gone))
            self._floor = self._gone.pop(oldest)

    def close(self) -> None:
        """Readers end."""
        self.closed = True
        self._wake()

    def check(self, since: int) -> None:
        """Raises TooOld."""
        if not self._floor <= since <= self.sequence:
            raise TooOld

    def since(self, since: int, wanted: Callable[[Key], bool]) -> list[Changed]:
        """What changed after `since`, each key once, oldest first. Raises TooOld."""
        self.check(since)
        found = [Changed(number, key, False) for key, number in _newer(self._last, since) if wanted(key)]
        found += [Changed(number, key, True) for key, number in _newer(self._gone, since) if wanted(key)]
        return sorted(found, key=lambda change: change.sequence)

    async def beyond(self, since: int) -> None:
        """Return when there is a change after `since`, or the feed is closed."""
        while self.sequence <= since and not self.closed:
            await self._woken.wait()

    def _note(self, place: dict[Key, int], key: Key) -> None:
        self.sequence += 1
        place.pop(key, None)
        place[key] = self.sequence
        self._wake()

    def _wake(self) -> None:
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()


def _newer(numbers: dict[Key, int], since: int) -> Iterator[tuple[Key, int]]:
    """Keys are in the order of their numbers: look from the end."""
    for key, number in reversed(numbers.items()):
        if number <= since:
            return
        yield key, number
