"""Carries one node's events between its edge broker (MQTT) and the cloud (NATS): `up` from MQTT to NATS, `down` back.

It remembers nothing, opens no body and promises nothing: killing it at any moment loses at most what is on the way, and
the two ends repair that. It knows only its own node; `local` addresses never cross. The buses (`edgeai.bus`) bring the
connections, `cli` wires them; bound memory with their `inbox_limit_bytes`, which is where a burst waits.

Order is kept per direction: publishes are begun in order of arrival, and a window of them may be under way, so that an
acknowledgement that takes long does not hold up the next.

It says of itself how it does (`Bridging`), to the cloud directly: that is heard when the edge's broker or controller is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import structlog

from edgeai import metrics
from edgeai.bus.base import Bus, Deliveries, Delivery
from edgeai.bus.routing import Seldom
from edgeai.errors import BusError, BusUnavailable
from edgeai.events.address import Address, Direction, EventClass, Pattern, checked_name
from edgeai.events.catalogue import Bridging, LaneCounts
from edgeai.events.envelope import Envelope, Header, encode

log = structlog.get_logger()

WINDOW_BYTES = 16 * 1024 * 1024
WINDOW_COUNT = 256
REPEAT_QUIET_S, REPEAT_LONGEST_S = 1.0, 30.0
TELL_S, _LOOK_S = 5.0, 0.5


@dataclass(slots=True)
class Counters:
    """What became of the deliveries of one direction since the start."""

    forwarded: int = 0
    forwarded_bytes: int = 0
    dropped_away: int = 0  # the other side was not connected
    dropped_refused: int = 0  # too large for the other side, or refused by it

    @property
    def dropped(self) -> int:
        return self.dropped_away + self.dropped_refused


class Bridge:
    """`run()` forwards until it is cancelled. Both buses are entered (and left) by the caller.

    Raises:
        AddressError: `node` is not a name.
    """

    def __init__(self, node: str, mqtt: Bus, nats: Bus) -> None:
        self._node = checked_name(node)
        self._mqtt = mqtt
        self._up = _Lane("up", mqtt, nats)
        self._down = _Lane("down", nats, mqtt)
        self._nats = nats
        metrics.follow_bridge({"up": self._up, "down": self._down})
        self._started = time.monotonic()
        nats.on_connect(self._repeat_state)

    @property
    def up(self) -> Counters:
        return self._up.counters

    @property
    def down(self) -> Counters:
        return self._down.counters

    def told(self) -> Bridging:
        """What it says of itself."""
        return Bridging(
            time.monotonic() - self._started,
            edge_connected=self._mqtt.connected,
            edge_reconnects=max(self._mqtt.connections - 1, 0),
            cloud_reconnects=max(self._nats.connections - 1, 0),
            up=self._up.counts(),
            down=self._down.counts(),
        )

    async def run(self) -> None:
        """Raises BusError if a broker refuses the subscription of this node's addresses."""
        async with (
            self._mqtt.subscribe(Pattern(self._node, Direction.UP)) as up,
            self._nats.subscribe(Pattern(self._node, Direction.DOWN)) as down,
        ):
            log.info("bridge_started", node=self._node, mqtt=self._mqtt.url, nats=self._nats.url)
            try:
                async with asyncio.TaskGroup() as lanes:
                    lanes.create_task(self._up.follow(up))
                    lanes.create_task(self._down.follow(down))
                    lanes.create_task(self._tell_for_ever())
            finally:
                log.info("bridge_stopped", node=self._node, up=str(self.up), down=str(self.down))

    async def _tell_for_ever(self) -> None:
        """Every TELL_S, and when a connection has changed; what cannot be said now is said as soon as it can."""
        address = Address(self._node, Bridging.direction, Bridging.event_class, Bridging.kind)
        due_s, said = 0.0, None
        while True:
            now_s, state = time.monotonic(), (self._mqtt.connected, self._mqtt.connections, self._nats.connections)
            if state != said or now_s >= due_s:
                with suppress(BusError):
                    await self._nats.publish(
                        address, encode(Envelope(Header(self._node), self.told(), time=time.time()))
                    )
                    due_s, said = now_s + TELL_S, state
            await asyncio.sleep(_LOOK_S)

    async def _repeat_state(self) -> None:
        """The cloud is back: send it the state that the edge broker still holds, if some of it was dropped meanwhile.

        The ends would repair it as well, within their period. A retained hint may arrive behind a newer document;
        receivers keep the highest generation.
        """
        if not self._up.lost_state:
            return
        self._up.lost_state = False
        async with self._mqtt.subscribe(Pattern(self._node, Direction.UP, EventClass.STATE)) as deliveries:
            try:
                async with asyncio.timeout(REPEAT_LONGEST_S):
                    await self._up.forward(_retained(deliveries))
            except TimeoutError:
                log.info("bridge_state_repeat_ended_early", node=self._node)


async def _retained(deliveries: AsyncIterator[Delivery]) -> AsyncIterator[Delivery]:
    """The retained hints, until nothing has come for a while: a broker does not say which is the last."""
    while True:
        try:
            async with asyncio.timeout(REPEAT_QUIET_S):
                delivery = await anext(deliveries)
        except (TimeoutError, StopAsyncIteration):
            return
        if delivery.retained:
            yield delivery


class _Lane:
    """One direction: a window of publishes, begun in order."""

    def __init__(self, name: str, source: Bus, target: Bus) -> None:
        self.counters = Counters()
        self.lost_state = False
        self._name = name
        self._source, self._target = source, target
        self._under_way = 0
        self._under_way_bytes = 0
        self._deliveries: Deliveries | None = None
        self._room = asyncio.Event()
        self._seldom = Seldom()

    @property
    def waiting(self) -> int:
        """What has arrived and is not forwarded yet."""
        return self._under_way + (self._deliveries.waiting if self._deliveries is not None else 0)

    @property
    def dropped_full(self) -> int:
        """What the side it comes from has not handed on: it had no room for it."""
        return self._source.dropped

    def counts(self) -> LaneCounts:
        """As they travel."""
        mine = self.counters
        sums = (mine.forwarded, mine.forwarded_bytes, mine.dropped_away, mine.dropped_refused)
        return LaneCounts(*sums, dropped_full=self.dropped_full, waiting=self.waiting)

    async def follow(self, deliveries: Deliveries) -> None:
        """Forward the lane's own subscription."""
        self._deliveries = deliveries
        await self.forward(deliveries)

    async def forward(self, deliveries: AsyncIterator[Delivery]) -> None:
        async with asyncio.TaskGroup() as window:
            async for delivery in deliveries:
                await self._wait_for_room()
                self._under_way += 1
                self._under_way_bytes += len(delivery.payload)
                window.create_task(self._publish(delivery))

    async def _wait_for_room(self) -> None:
        while self._under_way >= WINDOW_COUNT or self._under_way_bytes >= WINDOW_BYTES:
            self._room.clear()
            await self._room.wait()

    async def _publish(self, delivery: Delivery) -> None:
        size_bytes = len(delivery.payload)
        try:
            await self._target.publish(delivery.address, delivery.payload)
        except BusUnavailable as error:
            self.counters.dropped_away += 1
            self._note_dropped(delivery, error)
        except BusError as error:
            self.counters.dropped_refused += 1
            self._note_dropped(delivery, error)
        else:
            self.counters.forwarded += 1
            self.counters.forwarded_bytes += size_bytes
        finally:
            self._under_way -= 1
            self._under_way_bytes -= size_bytes
            self._room.set()

    def _note_dropped(self, delivery: Delivery, error: BusError) -> None:
        if delivery.address.event_class is EventClass.STATE:
            self.lost_state = True
        if self._seldom.due():
            log.warning("bridge_dropped", lane=self._name, error=str(error), counters=str(self.counters))
