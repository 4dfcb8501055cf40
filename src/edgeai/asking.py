"""What applications on an edge call: `async with edgeai.connect_edge("edge1", credentials_file=path) as edge`, `edge.infer`.

It speaks to the edge's own broker, as the user `app`, and to nobody else: an answer needs no cloud. Requests are local events
of class request (`InferenceAsked`), so any MQTT client can do the same; docs/joint-inference.md shows the bytes. The HTTP
gateway and `edgeai infer` are written against this.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from edgeai import logs
from edgeai.bus.base import Bus, Delivery
from edgeai.bus.credentials import client_id_of, read_credentials_file
from edgeai.bus.mqtt import MqttBus
from edgeai.errors import (
    DeadlineMissed,
    EdgeaiError,
    MalformedEvent,
    ModelError,
    Overloaded,
    PayloadTooLarge,
    Refused,
)
from edgeai.events.address import Address, Direction, EventClass, Pattern, checked_name
from edgeai.events.catalogue import InferenceAnswered, InferenceAsked
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.events.values import pack, unpack
from edgeai.resources.joint import MAX_INPUT_BYTES
from edgeai.store.identity import new_id
from edgeai.tracing import parse

log = structlog.get_logger()

CONNECT_S, GRACE_S = 10.0, 0.04
"""How long a broker may take to answer; how long after its deadline an answer may arrive that was sent before it."""
LAST_LOOK_S = 0.005
"""For an answer that has arrived while this program was busy with something else."""
MAX_DEADLINE_S = 600.0
SILENCE_S = 60.0
"""Who names no deadline has the service's own, which only the worker knows; but nobody waits longer than this for a worker that
does not answer at all."""
_MAX_CORRECTIONS = 10_000


@dataclass(frozen=True, slots=True)
class EdgeAnswer:
    """What a joint inference service answers.

    Attributes:
        prediction: as the script's predict returned it, without the batch axis, with NumPy arrays.
        by: edge or cloud.
        hard, score: whether the edge's mining calls it hard, and the score by which it does.
        model, version, digest: the Model that answered; version 0: it has no number.
        seconds: as measured by the edge worker, from the arrival of the request to its answer.
        fell_back: why the edge answers although it is hard; empty: it is not, or the cloud has answered.
        id: the given one, else one made of the content of the input.
    """

    prediction: Any
    by: str
    hard: bool
    score: float
    model: str
    version: int
    digest: str
    seconds: float
    fell_back: str
    id: str


OnCorrection = Callable[[EdgeAnswer], None]

_ERRORS: dict[str, type[EdgeaiError]] = {
    "refused": Refused,
    "overloaded": Overloaded,
    "late": DeadlineMissed,
    "failed": ModelError,
}


class Edge:
    """One edge's services, over a bus that the caller has entered; `connect_edge` is the usual way to it."""

    def __init__(self, node: str, bus: Bus, application: str = "") -> None:
        """`application` names this program in addresses; by default it is random. Raises AddressError: not a name."""
        self.node, self._bus = checked_name(node), bus
        self.application = checked_name(application or f"app-{secrets.token_hex(6)}")
        self._waiting: dict[bytes, asyncio.Future[InferenceAnswered]] = {}
        self._corrections: dict[bytes, OnCorrection] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            mine = Pattern(
                self.node, Direction.LOCAL, EventClass.REQUEST, InferenceAnswered.kind, None, self.application
            )
            deliveries = await stack.enter_async_context(self._bus.subscribe(mine))
            listening = asyncio.create_task(self._listen(deliveries))
            stack.push_async_callback(_ended, listening)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        for waiting in self._waiting.values():
            waiting.cancel()

    async def infer(
        self,
        service: str,
        x: Any,
        *,
        deadline_s: float | None = None,
        id: str = "",
        model: str = "",
        on_correction: OnCorrection | None = None,
        traceparent: str = "",
    ) -> EdgeAnswer:
        """Answer one input by the service's worker on this edge, or by the cloud, before the deadline.

        Args:
            service: name of the JointInferenceService.
            x: an array, text, a number, or a map of those; without a batch axis.
            deadline_s: seconds from now, at most 600; None or 0: the service's own (`policy.deadlineSeconds`). A service that
                does not answer at all has missed that one after 60 seconds.
            id: by which a label may be given to it later; by default made of its content.
            model: name of the Model that is to answer; by default the service decides.
            on_correction: called with the cloud's answer if it comes after the edge's, where the service's policy says so. What
                it raises is logged.
            traceparent: the caller's span, in the words of W3C's Trace Context, if the answer is to be part of its trace.

        Raises:
            Refused: it is no input of the service, or no deadline. Overloaded: too many wait. DeadlineMissed. ModelError: the
                model failed.
            BusUnavailable: the edge's broker does not answer.
        """
        try:
            content = pack(x, MAX_INPUT_BYTES)
        except PayloadTooLarge as error:
            what = f"an input of {error.size_bytes} bytes is too large: {service} takes at most {error.limit_bytes}"
            raise Refused(what) from error
        except MalformedEvent as error:
            raise Refused(f"this is no input: {error}") from error
        asked = InferenceAsked(content, deadline_s or 0.0, id, model)
        answer = await self.ask(service, asked, on_correction, traceparent=traceparent)
        try:
            return _opened(answer)
        except MalformedEvent as error:
            raise ModelError(f"{service} on {self.node} answers what is no value: {error}") from error

    async def ask(
        self,
        service: str,
        asked: InferenceAsked,
        on_correction: OnCorrection | None = None,
        *,
        traceparent: str = "",
    ) -> InferenceAnswered:
        """The same with what is packed already. Raises as `infer` does, for an answer that is an error too."""
        _check_deadline(asked.deadline_s)
        limit_s = asked.deadline_s or SILENCE_S
        correlation = new_id()
        answered: asyncio.Future[InferenceAnswered] = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = answered
        if on_correction is not None:
            while len(self._corrections) >= _MAX_CORRECTIONS:  # the oldest will hardly come
                del self._corrections[next(iter(self._corrections))]
            self._corrections[correlation] = on_correction
        to = Address(
            self.node, Direction.LOCAL, EventClass.REQUEST, asked.kind, checked_name(service), self.application
        )
        header = Header(self.application, correlation=correlation)
        envelope = Envelope(header, asked, new_id(), time.time(), trace=traceparent if parse(traceparent) else "")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(limit_s + GRACE_S):
                    await self._bus.publish(to, encode(envelope))
                    await asyncio.wait({answered})
            await asyncio.wait({answered}, timeout=LAST_LOOK_S)
            if not answered.done():
                self._corrections.pop(correlation, None)
                raise DeadlineMissed(
                    f"{service} on {self.node} gave no answer in {limit_s:g} s: see `edgeai describe service {service}`"
                )
            answer = answered.result()
        finally:
            del self._waiting[correlation]
        if answer.error:
            self._corrections.pop(correlation, None)
            raise _ERRORS.get(answer.error_kind, ModelError)(answer.error)
        if answer.by == "cloud":
            self._corrections.pop(correlation, None)
        return answer

    async def _listen(self, deliveries: Any) -> None:
        async for delivery in deliveries:
            try:
                self._arrived(delivery)
            except MalformedEvent as error:
                log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))

    def _arrived(self, delivery: Delivery) -> None:
        envelope = decode(delivery.payload)
        answer, correlation = envelope.event, envelope.header.correlation
        if not isinstance(answer, InferenceAnswered):
            raise MalformedEvent(f"{answer.kind} where an answer is expected")
        if answer.correction:
            told = self._corrections.pop(correlation, None)
            if told is not None:
                _tell(told, _opened(answer))
            return
        waiting = self._waiting.get(correlation)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


def _check_deadline(deadline_s: float) -> None:
    if not (isinstance(deadline_s, int | float) and 0 <= deadline_s <= MAX_DEADLINE_S):
        what = f"a deadline is a number of seconds above 0 and up to {MAX_DEADLINE_S:g}, not {str(deadline_s)[:40]}"
        raise Refused(f"{what}; None or 0 is the service's own")


def _tell(told: OnCorrection, answer: EdgeAnswer) -> None:
    """What the application's own code raises ends no listening."""
    try:
        told(answer)
    except Exception:
        log.exception("correction_callback_failed", id=answer.id)


def _opened(answer: InferenceAnswered) -> EdgeAnswer:
    return EdgeAnswer(
        prediction=unpack(answer.content),
        by=answer.by,
        hard=answer.hard,
        score=answer.score,
        model=answer.model,
        version=answer.version,
        digest=answer.digest,
        seconds=answer.seconds,
        fell_back=answer.fell_back,
        id=answer.id,
    )


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class connect_edge:  # noqa: N801 (reads as a verb where it is used)
    """`async with edgeai.connect_edge("edge1", credentials_file=path) as edge`: see `Edge`.

    `credentials_file` is the one of the user `app` that the edge's daemon has made:
    `<state-dir>/credentials/<node>.app.json`. `url` is the broker's, where it is not that of the file.

    Raises:
        NotFound, DamagedFile: the credentials file. BusUnavailable: no broker answers within ten seconds.
    """

    def __init__(self, node: str, *, credentials_file: Path | str, url: str = "", application: str = "") -> None:
        self._node, self._file, self._url, self._application = node, Path(credentials_file), url, application
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Edge:
        if not structlog.is_configured():
            logs.configure(os.environ.get("EDGEAI_LOG") or "warning")
        login = read_credentials_file(self._file)
        name = f"{self._node}-app-{secrets.token_hex(4)}"
        bus = MqttBus(
            self._url or login.url,
            client_id=client_id_of(name, login.password.encode()),
            username=login.username,
            password=login.password,
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(bus)
            await bus.wait_connected(CONNECT_S)
            edge = await stack.enter_async_context(Edge(self._node, bus, self._application))
            self._stack = stack.pop_all()
        return edge

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()


__all__ = ["Edge", "EdgeAnswer", "connect_edge"]
