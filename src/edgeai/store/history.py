"""The stream of facts: what edges reported, in order of arrival, kept for a while.

The coordinator consumes it under a durable name, so that facts which arrive while it is down wait for it;
`edgeai events` reads it. It is a history and not the promise: a fact is safe in its source's outbox until the
coordinator's receipt, and the coordinator sees by incarnation and sequence when one is missing. Implementations:
`memory` and `nats`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from edgeai.events.address import Address, Direction, EventClass, Pattern

FACTS = Pattern(direction=Direction.UP, event_class=EventClass.FACT)
BATCH_RECORDS = 200


@dataclass(frozen=True, slots=True)
class FactRecord:
    """One fact as it lies in the stream. `sequence` grows with every fact of every source.

    `receipt` belongs to the stream: it names this delivery to `ack`, and is empty on what `read` yields.
    """

    sequence: int
    address: Address
    payload: bytes
    receipt: str = field(default="", compare=False, repr=False)


class FactStream(Protocol):
    async def ensure(self) -> None:
        """Create the stream if it is not there. Raises BusUnavailable if that does not succeed in time."""

    def consume(self, durable: str) -> AbstractAsyncContextManager[AsyncIterator[list[FactRecord]]]:
        """Batches of 1 to BATCH_RECORDS facts in order, each fact until it is acknowledged under this name.

        What was delivered and not acknowledged comes again, in order, when the context is entered anew and after a
        reconnect; so a fact may be seen twice; after a crash of the server even an acknowledged one, because it
        stores acknowledgements lazily. Survives reconnects. Entering raises BusUnavailable. A fact on an address that
        does not parse is counted in `dropped`, logged, and not delivered.
        """

    async def ack(self, batch: Sequence[FactRecord]) -> None:
        """These facts have taken effect. Raises BusUnavailable; then they come again."""

    async def backlog(self, durable: str) -> int:
        """How many facts are not acknowledged under this name. Raises BusUnavailable."""

    async def used(self) -> tuple[int, int]:
        """Bytes that the server stores, of facts and all else, and how many it may (0: not known). Raises BusUnavailable."""

    def read(self, task: str | None = None, after_sequence: int = 0, follow: bool = False) -> AsyncIterator[FactRecord]:
        """The facts of a task (the level of its address; None: of everything), oldest first.

        Ends with the newest one, or waits for more with `follow` (and then survives reconnects). Raises BusUnavailable.
        """
