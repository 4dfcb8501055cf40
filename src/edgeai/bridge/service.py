"""Carries one node's events between its edge broker (MQTT) and the cloud (NATS): `up` from MQTT to NATS, `down` back.

It remembers nothing, opens no body and promises nothing: killing it at any moment loses at most what is on the way, and
the two ends repair that. It knows only its own node; `local` addresses never cross. The buses (`edgeai.bus`) bring the
connections, `cli` wires them; bound memory with their `inbox_limit_bytes`, which is where a burst waits.

Order is kept per direction: publishes are begun in order of arrival, and a window of them may be under way, so that an
acknowledgement that takes long does not hold up the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog

from edgeai.bus.base import Bus, Delivery
from edgeai.bus.routing import Seldom
from edgeai.errors import BusError, BusUnavailable
from edgeai.events.address import Direction, EventClass, Pattern, checked_name

log = structlog.get_logger()

WINDOW_BYTES = 16 * 1024 * 1024
WINDOW_COUNT = 256
REPEAT_QUIET_S, REPEAT_LONGEST_S = 1.0, 30.0


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
        self._up = _Lane("up", nats)
        self._down = _Lane("down", mqtt)
        self._nats = nats
        nats.on_connect(self._repeat_state)

    @property
    def up(self) -> Counters:
        return self._up.counters

    @property
    def down(self) -> Counters:
        return self._down.counters

    async def run(self) -> None:
        """Raises BusError if a broker refuses the subscription of this node's addresses."""
        async with (
            self._mqtt.subscribe(Pattern(self._node, Direction.UP)) as up,
            self._nats.subscribe(Pattern(self._node, Direction.DOWN)) as down,
        ):
            log.info("bridge_started", node=self._node, mqtt=self._mqtt.url, nats=self._nats.url)
            try:
                async with asyncio.TaskGroup() as lanes:
                    lanes.create_task(self._up.forward(up))
                    lanes.create_task(self._down.forward(down))
            finally:
                log.info("bridge_stopped", node=self._node, up=str(self.up), down=str(self.down))

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
            delivery = await asyncio.wait_for(anext(deliveries), REPEAT_QUIET_S)
        except (TimeoutError, StopAsyncIteration):
            return
        if delivery.retained:
            yield delivery


class _Lane:
    """One direction: a window of publishes, begun in order."""

    def __init__(self, name: str, target: Bus) -> None:
        self.counters = Counters()
        self.lost_state = False
        self._name = name
        self._target = target
        self._under_way = 0
        self._under_way_bytes = 0
        self._room = asyncio.Event()
        self._seldom = Seldom()

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
