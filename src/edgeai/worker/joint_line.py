"""An edge worker's line to the cloud: requests go up, answers come down, and nobody waits longer than he said.

A request is sent once. Its answer is matched by correlation; one that comes after its time is counted, and given to whoever
asked for corrections. What may be sent at all is decided before (`learning.offloading`), what follows from silence after
(`joint_edge`). What is pending is bounded.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

import structlog

from edgeai.bus.base import Bus
from edgeai.bus.routing import Seldom
from edgeai.errors import MalformedEvent
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import (
    ForwardedInference,
    InferenceAnswered,
    InferenceAsked,
    InferencesForwarded,
    InferencesReturned,
)
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.store.identity import new_id
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.joint_counts import Counts
from edgeai.worker.outgoing import Outgoing

log = structlog.get_logger()

MAX_PENDING, MAX_LATE, LATE_S = 1024, 4096, 60.0
"""Requests that wait for an answer, and those whose answer would be late, and for how long that is told from a foreign one."""

MAX_PENDING_BYTES = 64 * 1024 * 1024

OnLate = Callable[[InferenceAnswered | None], None]
"""Called with the late answer, or None when it will not come any more."""


class NoAnswer(Exception):
    """The cloud gave no answer. `kind` as in `InferenceAnswered`; `bad`: a sign that it does not work there; None: no sign,
    as it was not asked; `expected`: it may still come."""

    def __init__(self, kind: str, reason: str, *, bad: bool | None = True, expected: bool = False) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.bad, self.expected = kind, reason, bad, expected


class Permit(Protocol):
    """What a request needs to be sent; `joint_offload` gives it."""

    def sending(self) -> str:
        """At the moment of sending. Empty: go on; else why not."""

    def gone(self) -> None:
        """It was sent."""

    def give_back(self) -> None:
        """It was not sent, and will not be."""


@dataclass(frozen=True, slots=True)
class _Asked:
    forwarded: ForwardedInference
    permit: Permit
    future: asyncio.Future[InferenceAnswered]


@dataclass(frozen=True, slots=True)
class _Late:
    until_s: float
    tell: OnLate | None


class CloudLine:
    def __init__(self, environment: WorkerEnvironment, bus: Bus, counts: Counts) -> None:
        me = self._environment = environment
        self._bus, self._counts = bus, counts
        self._to = Address(me.node, Direction.UP, EventClass.REQUEST, InferencesForwarded.kind, me.task, me.worker)
        self._outgoing: Outgoing[_Asked] = Outgoing(
            bus,
            self._encoded,
            self._not_sent,
            sent=lambda size_bytes: counts.add("bytes_sent", size_bytes),
            sending=self._sending,
            gone=lambda asked: asked.permit.gone(),
        )
        self._pending_bytes = 0
        self._prefix, self._numbers = secrets.token_bytes(8), count()
        self._pending: dict[bytes, asyncio.Future[InferenceAnswered]] = {}
        self._late: dict[bytes, _Late] = {}
        self._seldom = Seldom()

    async def ask(
        self, request: InferenceAsked, permit: Permit, until_s: float, on_late: OnLate | None, *, trace: str = ""
    ) -> InferenceAnswered:
        """The cloud's answer before `until_s`, by the loop's clock. Raises NoAnswer at that time at the latest."""
        loop = asyncio.get_running_loop()
        left_s = until_s - loop.time()
        correlation = self._prefix + next(self._numbers).to_bytes(8, "big")
        future: asyncio.Future[InferenceAnswered] = loop.create_future()
        forwarded = ForwardedInference(correlation, replace(request, deadline_s=max(left_s, 0.0)), trace)
        if not self._outgoing.put(self._to, _Asked(forwarded, permit, future), len(request.content), until_s):
            permit.give_back()
            raise NoAnswer("overloaded", "too many bytes wait for the connection to the cloud", bad=None)
        self._pending[correlation] = future
        self._pending_bytes += len(request.content)
        try:
            async with asyncio.timeout_at(until_s):
                answer = await future
        except TimeoutError:
            self._expect_late(correlation, on_late, loop.time())
            raise NoAnswer("late", "the cloud gave no answer in time", expected=True) from None
        finally:
            del self._pending[correlation]
            self._pending_bytes -= len(request.content)
        if answer.error:
            bad = answer.error_kind in {"overloaded", "late"}  # else somebody is there, and has looked at it
            raise NoAnswer(answer.error_kind or "failed", f"the cloud: {answer.error}", bad=bad)
        return answer

    def has_room(self, size_bytes: int) -> bool:
        return len(self._pending) < MAX_PENDING and self._pending_bytes + size_bytes <= MAX_PENDING_BYTES

    async def run(self) -> None:
        """Raises BusError if the broker refuses the subscription."""
        me = self._environment
        pattern = Pattern(me.node, Direction.DOWN, EventClass.REQUEST, InferencesReturned.kind, me.task, me.worker)
        sending = asyncio.create_task(self._outgoing.run())
        try:
            async with self._bus.subscribe(pattern) as deliveries:
                async for delivery in deliveries:
                    self._counts.add("bytes_received", len(delivery.payload))
                    try:
                        self._arrived(delivery.payload)
                    except MalformedEvent as error:
                        if self._seldom.due():
                            log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def prune(self, now_s: float) -> None:
        """Give up late answers that will not come any more."""
        while self._late:
            correlation, first = next(iter(self._late.items()))
            if first.until_s > now_s and len(self._late) <= MAX_LATE:
                return
            del self._late[correlation]
            if first.tell is not None:
                first.tell(None)

    def _encoded(self, requests: Sequence[_Asked]) -> bytes:
        me = self._environment
        event = InferencesForwarded(tuple(asked.forwarded for asked in requests))
        return encode(Envelope(Header(me.source), event, new_id(), time.time(), me.task))

    def _sending(self, asked: _Asked) -> bool:
        over = asked.permit.sending()
        if over and not asked.future.done():
            asked.future.set_exception(NoAnswer("budget", over, bad=None))
        return not over

    def _not_sent(self, asked: _Asked, reason: str) -> None:
        asked.permit.give_back()
        if not asked.future.done():
            asked.future.set_exception(NoAnswer("late", reason))
        elif (late := self._late.pop(asked.forwarded.correlation, None)) is not None and late.tell is not None:
            late.tell(None)

    def _arrived(self, payload: bytes) -> None:
        event = decode(payload).event
        if not isinstance(event, InferencesReturned):
            raise MalformedEvent(f"{event.kind} where answers are expected")
        for returned in event.answers:
            future = self._pending.get(returned.correlation)
            if future is not None:
                if not future.done():
                    future.set_result(returned.answer)
                continue
            late = self._late.pop(returned.correlation, None)
            if late is not None:
                if not returned.answer.error:
                    self._counts.add("late")
                if late.tell is not None:
                    late.tell(returned.answer)

    def _expect_late(self, correlation: bytes, on_late: OnLate | None, now_s: float) -> None:
        self._late[correlation] = _Late(now_s + LATE_S, on_late)
        self.prune(now_s)
