"""The reactor's journal on a node: states, timers and facts in the node's SQLite file."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeVar

import msgpack
import structlog

from edgeai.errors import MalformedEvent
from edgeai.events.address import Address
from edgeai.events.catalogue import Event
from edgeai.events.envelope import Envelope, Header, body_of, encode, value_of
from edgeai.lifecycle.base import Emit
from edgeai.store.edge import EdgeStore
from edgeai.store.identity import new_id
from edgeai.tracing import task_span

log = structlog.get_logger()
S = TypeVar("S")


class BatchLike(Protocol[S]):
    states: dict[str, S | None]
    facts: list[Emit]
    timers: dict[tuple[str, str], float]


class SqliteJournal(Generic[S]):
    """States of type `state` in `store`; facts go to its outbox as events of `source` on `node`.

    `machine` tells the states of one reactor from those of others in the same store. `trace` gives the span that a fact
    belongs to.
    """

    def __init__(
        self,
        store: EdgeStore,
        state: type[S],
        *,
        node: str,
        source: str,
        machine: str = "",
        trace: Callable[[Event], str] | None = None,
    ) -> None:
        self._store, self._state, self._node, self._source, self._machine = store, state, node, source, machine
        self._trace = trace or _of_its_task

    async def load(self) -> tuple[dict[str, S], dict[tuple[str, str], float]]:
        loaded = await self._store.load(self._machine)
        states: dict[str, S] = {}
        for key, body in loaded.states.items():
            try:
                states[key] = value_of(self._state, msgpack.unpackb(body, strict_map_key=False))
            except (MalformedEvent, ValueError) as error:
                # Written by another version or damaged: the desired state will bring the key back.
                log.error("state_unreadable", key=key, cause=str(error))
        return states, {timer: left for timer, left in loaded.timers.items() if timer[0] in states}

    async def commit(self, batch: BatchLike[S]) -> None:
        bodies = {key: None if state is None else msgpack.packb(body_of(state)) for key, state in batch.states.items()}
        facts = [partial(self._fact, fact) for fact in batch.facts]
        await self._store.commit(bodies, batch.timers, facts, self._machine)

    def _fact(self, emit: Emit, sequence: int) -> tuple[str, bytes]:
        fact: Event = emit.fact
        address = Address(self._node, fact.direction, fact.event_class, fact.kind, emit.task, emit.worker)
        header = Header(self._source, self._store.incarnation, sequence)
        subject = "/".join(part for part in (emit.task, emit.worker) if part)
        return address.topic(), encode(Envelope(header, fact, new_id(), time.time(), subject, self._trace(fact)))


def _of_its_task(fact: Event) -> str:
    uid = getattr(fact, "task_uid", "")
    return str(task_span(uid)) if uid else ""
