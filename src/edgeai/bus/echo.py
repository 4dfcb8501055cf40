"""How long a broker takes for a message: an `echo` event to an address that its own sender listens to.

It goes out and comes back over the same connection as everything else, so it sees what they see: a broker that is overloaded,
one that lets clients in and forwards nothing, one whose permissions are wrong. Knows any `Bus`; who measures and what follows
from it is told by heartbeats (`controller`, `coordinator`) and pages (`portal`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from edgeai.bus.base import Bus, Deliveries
from edgeai.errors import BusError, MalformedEvent
from edgeai.events.address import Address, Pattern
from edgeai.events.catalogue import Echo
from edgeai.events.envelope import Envelope, Header, decode_header, encode

ECHO_S = 2.0
"""A broker that takes longer does not answer."""


class Echoes:
    """Measures; entered with `echoing`."""

    def __init__(self, bus: Bus, address: Address) -> None:
        self._bus, self._address = bus, address
        self._awaited: dict[bytes, asyncio.Future[float]] = {}

    async def round_trip(self, timeout_s: float = ECHO_S) -> tuple[float | None, bool]:
        """Seconds, and whether the broker was silent; (None, False): it could not be asked, there is no connection."""
        correlation = secrets.token_bytes(16)
        back = self._awaited[correlation] = asyncio.get_running_loop().create_future()
        payload = encode(Envelope(Header(self._address.node, correlation=correlation), Echo()))
        began, connections = time.perf_counter(), self._bus.connections
        try:
            async with asyncio.timeout(timeout_s):
                await self._bus.publish(self._address, payload)
                return await back - began, False
        except TimeoutError:
            return None, self._bus.connected and self._bus.connections == connections
        except BusError:
            return None, False
        finally:
            del self._awaited[correlation]

    async def _hear(self, deliveries: Deliveries) -> None:
        async for delivery in deliveries:
            with suppress(MalformedEvent):
                back = self._awaited.get(decode_header(delivery.payload).correlation)
                if back is not None and not back.done():
                    back.set_result(time.perf_counter())


@asynccontextmanager
async def echoing(bus: Bus, node: str, worker: str = "") -> AsyncIterator[Echoes]:
    """Listen at (node, worker), so that `round_trip` can be called. Raises BusError if the broker does not let us."""
    address = Address(node, Echo.direction, Echo.event_class, Echo.kind, "", worker)
    echoes = Echoes(bus, address)
    pattern = Pattern(address.node, address.direction, address.event_class, address.kind, "", worker)
    async with bus.subscribe(pattern) as deliveries:
        hearing = asyncio.create_task(echoes._hear(deliveries))
        try:
            yield echoes
        finally:
            hearing.cancel()
            await asyncio.wait({hearing})
