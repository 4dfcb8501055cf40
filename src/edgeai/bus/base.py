"""What every bus promises, whatever carries it.

A bus moves payloads (bytes) between addresses. It promises little on purpose: delivery is likely and fast, certainty comes
from the two ends (outbox and receipt, document and digest, offer and verdict). Every implementation passes
`tests/contract/test_bus.py`: `memory` (tests), `mqtt` (edge), `nats` (cloud).

A bus connects in the background and reconnects for ever, subscriptions come back by themselves. While it is away,
`publish` raises BusUnavailable at once; callers that must deliver keep what they have and send it again `on_connect`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from edgeai.events.address import Address, Pattern


@dataclass(frozen=True, slots=True)
class Delivery:
    """One payload as it arrived. `retained`: the broker's stored hint rather than a live publish."""

    address: Address
    payload: bytes
    retained: bool = False


class Deliveries(Protocol):
    """What a subscription brings, in order of arrival. `waiting`: how many have arrived and were not read yet."""

    @property
    def waiting(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[Delivery]: ...

    async def __anext__(self) -> Delivery: ...


class Bus(Protocol):
    """A connection to a broker."""

    @property
    def url(self) -> str: ...

    @property
    def limit_bytes(self) -> int:
        """Largest payload that this bus takes."""

    @property
    def connected(self) -> bool: ...

    @property
    def connections(self) -> int:
        """So often a broker has accepted this client."""

    @property
    def dropped(self) -> int:
        """Deliveries that reached nobody here: an inbox was full, or their address is malformed."""

    async def __aenter__(self) -> Self:
        """Start connecting; returns at once, without waiting for a broker."""

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Return when a broker has accepted this client.

        Raises:
            BusUnavailable: not within `timeout_s`; carries the last cause (refused, bad credentials, ...).
        """

    async def publish(self, address: Address, payload: bytes) -> None:
        """Send. The quality of service and the retain flag follow from the address' class (docs/architecture.md).

        Order is kept per bus. Returns when the payload is handed to the connection (for MQTT QoS 1: when the broker
        has acknowledged it); neither proves delivery. An empty payload on a state address clears the retained hint.

        Raises:
            PayloadTooLarge: never worth retrying.
            BusUnavailable: not connected, or the connection broke meanwhile.
        """

    def subscribe(self, *patterns: Pattern, group: str = "") -> AbstractAsyncContextManager[Deliveries]:
        """Deliveries that match any pattern, each once, in order of arrival, until the context is left.

        Entering the context returns when the broker has confirmed the subscription, or, while not connected, at once:
        the subscription is then made on connect, before the `on_connect` callbacks run. A payload on a malformed
        address is counted (`dropped`) and not delivered.

        With `group` each delivery reaches one of the subscribers that name the same group and the same pattern, whichever
        bus they are on. It takes one pattern. MQTT 3.1.1 has no groups.

        Raises:
            BusError: the broker refuses the subscription, or this bus has no groups.
        """

    def on_connect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Run `callback` after every (re)connect, when subscriptions are in place; at once if connected already."""
