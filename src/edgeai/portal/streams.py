"""Server-sent events over the feed: any number of readers, each at its own pace, none of them costing memory.

A reader without a place gets everything that is there, then `synced`, then changes. A reader with a place (the number of
the last event it has seen) gets what changed since, each thing once, in its current state. A place that is not known any
more, after a restart of the portal for instance, is answered with 410: look at everything again. Readers pull: what a slow
one has not taken is not kept for it anywhere.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

from edgeai.portal import views
from edgeai.portal.context import Portal
from edgeai.portal.feed import Key, TooOld
from edgeai.portal.live import OVERVIEW, Live
from edgeai.portal.problems import Problem

log = structlog.get_logger()

PING_S = 15
SEND_TIMEOUT_S = 30.0
_CACHE_S = 1.0
_CACHE_LIMIT = 4000
_TURN = 16
Wanted = Callable[[Key], bool]


@dataclass(slots=True)
class Rendered:
    """What was sent to one reader a moment ago, for the next one: fifty pages share the work."""

    live: Live
    clock: Callable[[], float] = time.monotonic
    _cache: dict[tuple[Key, bool], tuple[float, int, str]] = field(default_factory=dict)

    def data(self, key: Key, sequence: int, *, full: bool) -> str | None:
        """JSON of what a key looks like now; None if it is gone. Not older than a second, and not older than `sequence`."""
        now = self.clock()
        found = self._cache.get((key, full))
        if found is not None and now - found[0] < _CACHE_S and found[1] >= sequence:
            return found[2]
        document = views.changed(self.live, key, full=full)
        if document is None:
            return None
        text = to_json(document)
        self._forget(now - _CACHE_S)
        self._cache.pop((key, full), None)
        self._cache[key, full] = (now, self.live.feed.sequence, text)
        return text

    def _forget(self, before: float) -> None:
        """They lie in the order in which they were made."""
        while self._cache:
            oldest = next(iter(self._cache))
            if self._cache[oldest][0] >= before and len(self._cache) < _CACHE_LIMIT:
                return
            del self._cache[oldest]


@dataclass(frozen=True, slots=True)
class Stream:
    """What one reader wants. `full`: resources as stored instead of lines of a list. `since` None: from the beginning.

    `brief`: only that something has changed, not what it looks like now, but for the overview.
    """

    portal: Portal
    rendered: Rendered
    wanted: Wanted
    full: bool
    since: int | None = None
    still_allowed: Callable[[], bool] = lambda: True
    brief: bool = False

    async def events(self) -> AsyncIterator[ServerSentEvent]:
        live, feed = self.portal.live, self.portal.live.feed
        place = self.since
        try:
            if place is None:
                place = feed.sequence
                # Without numbers: whoever breaks off here starts again.
                for count, key in enumerate(self._there()):
                    await _turn(count)
                    if (event := self._event("set", key, None, place)) is not None:
                        yield event
                yield _event("synced", place, {"sequence": place, "live": live.cloud_life().document()})
            looked = time.monotonic()
            while not feed.closed:
                until = feed.sequence
                for count, change in enumerate(feed.since(place, self.wanted)):
                    await _turn(count)
                    kind = "deleted" if change.gone else "set"
                    if (event := self._event(kind, change.key, change.sequence, change.sequence)) is not None:
                        yield event
                place = until
                await feed.beyond(place)
                await asyncio.sleep(_until_next(self.portal.settings.pace_s))
                if time.monotonic() - looked > PING_S:
                    looked = time.monotonic()
                    if not self.still_allowed():
                        return
        except TooOld:
            # More than can be remembered was deleted while this reader took its time.
            yield ServerSentEvent(event="reset", data="{}")

    def _there(self) -> list[Key]:
        live = self.portal.live
        keys = [Key(kind, name) for kind, entries in live.entries.items() for name in sorted(entries)]
        keys += [key for key in (Key("Overview"), *live.timeline_keys()) if key not in keys]
        return [key for key in keys if self.wanted(key)]

    def _event(self, kind: str, key: Key, number: int | None, sequence: int) -> ServerSentEvent | None:
        head = f'{{"topic":{json.dumps(key.topic)},"name":{json.dumps(key.name)}'
        place = None if number is None else str(number)
        if kind == "deleted" or (self.brief and key.topic != OVERVIEW):
            return ServerSentEvent(event=kind, id=place, data=head + "}")
        data = self.rendered.data(key, sequence, full=self.full)
        if data is None:
            return None
        return ServerSentEvent(event=kind, id=place, data=f'{head},"object":{data}}}')


class EventStream(EventSourceResponse):
    """The response. A reader that takes nothing for half a minute is let go."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.events(), ping=PING_S, send_timeout=SEND_TIMEOUT_S)
        self._portal = stream.portal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("stream_ended", reason="the reader takes nothing")
        finally:
            self._portal.stream_closed()


def opened(stream: Stream) -> EventStream:
    """Raises Problem 410 for a place that is not known here, 503 while there is nothing to show or too many read."""
    portal = stream.portal
    portal.live.require_synced()
    if stream.since is not None:
        try:
            portal.live.feed.check(stream.since)
        except TooOld as error:
            raise Problem(410, "this place in the changes is not known any more: read everything again") from error
    portal.stream_opened()
    return EventStream(stream)


def _until_next(pace_s: float) -> float:
    """All readers look at the same moments, so that what one of them is shown is what the others are shown too."""
    return pace_s - asyncio.get_running_loop().time() % pace_s if pace_s else 0.0


async def _turn(count: int) -> None:
    """A reader that takes everything at once must not hold up the loop."""
    if count % _TURN == _TURN - 1:
        await asyncio.sleep(0)


def to_json(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _event(name: str, number: int, document: Any) -> ServerSentEvent:
    return ServerSentEvent(event=name, id=str(number), data=to_json(document))
