"""Requests of applications on the node to an edge worker of a joint inference service, and the answers to them.

`edgeai/1/<node>/local/request/infer/<service>/<application>`, an `InferenceAsked`; the answer goes to `infer-answer` with the
same service, application and correlation. Every request gets one answer or one error, and may get a correction after that; one
that cannot be read gets an error if its header can. How an answer comes about is the business of `joint_edge`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from edgeai.bus.base import Bus, Delivery
from edgeai.bus.routing import Seldom
from edgeai.errors import DeadlineMissed, MalformedEvent, ModelError, Overloaded, Refused
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import InferenceAnswered, InferenceAsked
from edgeai.events.envelope import Envelope, Header, decode, decode_header, encode
from edgeai.events.values import pack, unpack
from edgeai.store.identity import new_id
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.inference import Answer
from edgeai.worker.joint_failures import Failures
from edgeai.worker.joint_work import FLUSH_S, STOP_S
from edgeai.worker.outgoing import Outgoing
from edgeai.worker.predicting import sentence
from edgeai.worker.spans import RequestSpans, Traced, traced

log = structlog.get_logger()

REPLY_S = 1.0
"""How long after its deadline an answer is still sent."""
_SENTENCE = 500


@dataclass(frozen=True, slots=True)
class Request:
    """An input that was taken. Times are those of the loop's clock. `content`: it, as it travels; `traced`: if it is."""

    x: Any
    content: bytes
    id: str
    began_s: float
    deadline_s: float
    model: str = ""
    on_late: Callable[[Answer | None], None] | None = None
    traced: Traced | None = None


class Answering(Protocol):
    """What `joint_edge` does for applications."""

    def taken(
        self,
        x: Any,
        content: bytes,
        *,
        id: str | None,
        deadline_s: float | None,
        model: str,
        on_late: Callable[[Answer | None], None] | None,
    ) -> Request:
        """Raises Refused, Overloaded, ModelError."""

    def refused(self) -> None:
        """Told of a request that cannot be read."""

    async def answer(self, request: Request) -> Answer: ...


@dataclass(frozen=True, slots=True)
class _Reply:
    correlation: bytes
    answer: InferenceAnswered


class Applications:
    def __init__(self, environment: WorkerEnvironment, bus: Bus, service: str, answering: Answering) -> None:
        self._environment, self._bus, self._service, self._answering = environment, bus, service, answering
        self._outgoing: Outgoing[_Reply] = Outgoing(bus, self._encoded, lambda _, __: None, together=1)
        self._spans = RequestSpans(environment, service)
        self._tasks: set[asyncio.Task[None]] = set()
        self._seldom = Seldom()
        self._failures = Failures(f"edge worker {environment.worker} of service {service}")
        self.send = self._outgoing.run

    async def run(self) -> None:
        """Take requests; `send` has to go on beside this. Raises BusError if the broker refuses the subscription."""
        me = self._environment
        pattern = Pattern(me.node, Direction.LOCAL, EventClass.REQUEST, InferenceAsked.kind, self._service, None)
        async with self._bus.subscribe(pattern) as deliveries:
            async for delivery in deliveries:
                try:
                    self._arrived(delivery)
                except MalformedEvent as error:
                    if self._seldom.due():
                        log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))

    async def finish(self) -> None:
        """After `run`: what is under way may end, the rest is told that this worker stops. Returns when that is sent."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._outgoing.flush(FLUSH_S)

    def _arrived(self, delivery: Delivery) -> None:
        """Never waits: what is refused is refused at once. Raises MalformedEvent."""
        to = Address(
            self._environment.node,
            Direction.LOCAL,
            EventClass.REQUEST,
            InferenceAnswered.kind,
            self._service,
            delivery.address.worker,
        )
        try:
            asked, correlation, trace = _read(delivery.payload)
        except MalformedEvent as error:
            if any(unread := decode_header(delivery.payload).correlation):
                self._answering.refused()
                self._put(to, unread, failure(Refused(str(error)), ""))
            raise

        def corrected(answer: Answer | None) -> None:
            if answer is not None:
                self._put(to, correlation, self._told(answer, correction=True))

        try:
            x = unpack(asked.content)
        except MalformedEvent as error:
            self._answering.refused()
            self._put(to, correlation, failure(Refused(f"the input does not travel: {error}"), asked.id))
            return
        try:
            request = self._answering.taken(
                x,
                asked.content,
                id=asked.id or None,
                deadline_s=asked.deadline_s or None,
                model=asked.model,
                on_late=corrected,
            )
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, somebody waits for an answer
            self._put(to, correlation, failure(error, asked.id))
            return
        if (found := traced(trace, correlation)) is not None:
            request = replace(request, traced=found)
        task = asyncio.create_task(self._answer(request, to, correlation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Request, to: Address, correlation: bytes) -> None:
        try:
            reply = self._told(await self._answering.answer(request))
        except asyncio.CancelledError:
            self._put(to, correlation, failure(ModelError(f"{self._environment.worker} stops: ask again"), request.id))
            raise
        except Exception as error:  # noqa: BLE001 - of the script's predict, too
            reply = failure(error, request.id, self._failures.told)
        self._put(to, correlation, reply)
        if request.traced is not None:
            seconds = asyncio.get_running_loop().time() - request.began_s
            self._spans.answered(request.traced, seconds, reply)

    def _put(self, to: Address, correlation: bytes, reply: InferenceAnswered) -> None:
        until_s = asyncio.get_running_loop().time() + REPLY_S
        if not self._outgoing.put(to, _Reply(correlation, reply), len(reply.content), until_s) and self._seldom.due():
            log.warning("answer_dropped", reason="too many bytes wait for the broker")

    def _told(self, answer: Answer, *, correction: bool = False) -> InferenceAnswered:
        return InferenceAnswered(
            content=pack(answer.prediction),
            by=answer.by,
            hard=answer.hard,
            score=answer.score,
            model=answer.model.name,
            version=answer.model.version,
            digest=answer.model.digest,
            seconds=answer.seconds,
            fell_back=answer.fell_back,
            correction=correction,
            id=answer.id,
        )

    def _encoded(self, replies: Sequence[_Reply]) -> bytes:
        [reply] = replies
        me = self._environment
        header = Header(me.source, correlation=reply.correlation)
        return encode(Envelope(header, reply.answer, new_id(), time.time(), me.task))


def _read(payload: bytes) -> tuple[InferenceAsked, bytes, str]:
    """The request, its correlation and its trace. Raises MalformedEvent."""
    envelope = decode(payload)
    if not isinstance(envelope.event, InferenceAsked):
        raise MalformedEvent(f"{envelope.event.kind} where a request is expected")
    return envelope.event, envelope.header.correlation, envelope.trace


def failure(error: Exception, id_: str, told: Callable[[Exception], str] = sentence) -> InferenceAnswered:
    """An error as it travels. `told`: the sentence for one that is none of ours."""
    match error:
        case Refused():
            kind = "refused"
        case Overloaded():
            kind = "overloaded"
        case DeadlineMissed():
            kind = "late"
        case _:
            kind = "failed"
    text = str(error) if kind != "failed" else told(error)
    return InferenceAnswered(error=text[:_SENTENCE] or kind, error_kind=kind, id=id_)
