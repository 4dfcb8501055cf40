"""A worker's session with its task: `async with edgeai.join() as task`.

The session reads the environment, joins the node's bus and follows the task's round document. It answers rounds from the
slot directory: an update is on disk before it is offered, offered until there is a verdict, and kept until its round is
closed. Killed at any moment, the next session goes on from there; a finished update is offered again, not trained again.

It imports no ML framework and knows nothing of aggregation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt
import structlog

from edgeai.bus.base import Bus, Delivery
from edgeai.crashpoints import crash_point
from edgeai.errors import BusError, DamagedFile, MalformedEvent
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.arrays import decode as decode_arrays
from edgeai.events.catalogue import (
    INLINE_BYTES,
    BlobRef,
    Evaluation,
    Event,
    HeldAtEdge,
    ModelAtHand,
    Offer,
    Outcome,
    Progress,
    Pull,
    Report,
    RoundPhase,
    RoundState,
    Verdict,
)
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.launcher.slots import SessionFile
from edgeai.store.arrays import ArrayFile
from edgeai.store.documents import Documents, MemoryDocuments
from edgeai.store.identity import new_id
from edgeai.store.transfers import Sender
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.round import Round
from edgeai.worker.updates import KeptUpdate, UpdateFolder

RESEND_S = 5.0


@dataclass(frozen=True, slots=True)
class DatasetAtHand:
    """The worker's dataset: a read-only local path; None in `task.dataset` when the worker has none."""

    name: str
    path: Path


class Session:
    """Everything between the bus and the script. Scripts see `Task`; roles use this directly."""

    def __init__(self, environment: WorkerEnvironment, bus: Bus) -> None:
        self.environment, self._bus = environment, bus
        self.slot_file = environment.slot.read_slot()
        self.log = structlog.get_logger().bind(task=environment.task, worker=environment.worker)
        self._documents = Documents(MemoryDocuments(), bus, environment.source)
        self._updates = UpdateFolder(environment.slot.updates)
        self._kept: dict[int, KeptUpdate] = self._updates.load()
        self._reports: dict[int, Report] = {}
        self._sender = Sender(bus, environment.source)
        self._state: RoundState | None = None
        self._models: dict[str, Path] = {}
        self._changed = asyncio.Condition()
        self._resend = asyncio.Event()
        self._submitted = len(self._kept)
        self._answering: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        return time.monotonic()

    @property
    def ended(self) -> bool:
        return self._state is not None and self._state.phase is RoundPhase.ENDED

    # --- what the script does

    async def next_round(self, after: tuple[int, int]) -> RoundState | None:
        """The next round that asks this worker for something it has not answered; None when the task has ended."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.ended or self._asks(after) is not None)
                if self.ended:
                    return None
                state = self._asks(after)
            if state is not None:
                return state

    async def weights_of(self, state: RoundState) -> list[npt.NDArray[Any]] | None:
        """The round's model, when it is here; None if the round was overtaken meanwhile."""
        if state.model is None:
            return []
        if state.model.inline is not None:
            return decode_arrays(state.model.inline)
        digest = state.model.digest
        async with self._changed:
            await self._changed.wait_for(lambda: digest in self._models or self._state != state)
            path = self._models.get(digest)
        return None if path is None else list(ArrayFile.open(path))

    async def submit(
        self, round_: Round, arrays: list[npt.NDArray[Any]], num_examples: int, metrics: dict[str, float]
    ) -> None:
        kept = await asyncio.to_thread(
            self._updates.write,
            arrays,
            number=round_.number,
            base_digest=round_.base_digest,
            num_examples=int(num_examples),
            metrics=metrics,
        )
        self._kept[kept.number] = kept
        self._submitted += 1
        await self.note()
        await self.progress(round_.number, "submitted")
        self._resend.set()

    async def report(self, round_: Round, metrics: dict[str, float], num_examples: int) -> None:
        await self._report(round_, Evaluation(metrics, int(num_examples)))

    async def finished(self, round_: Round) -> None:
        """The script has left the round: what was asked and not given is declined, so that nobody waits for it."""
        if round_.validate and not round_.reported:
            if round_.submitted and not round_.train:
                self.log.warning("update_dropped", round=round_.number, reason="the round only validates")
            await self._report(round_, None)

    async def verdict(self, number: int) -> Verdict:
        async with self._changed:
            await self._changed.wait_for(lambda: number not in self._kept or bool(self._kept[number].outcome))
            kept = self._kept.get(number)
        uid = self.slot_file.assignment.task_uid
        if kept is None:
            return Verdict(uid, number, "offer", Outcome.STALE, reason="the round is closed")
        return Verdict(uid, number, "offer", Outcome(kept.outcome), kept.digest, kept.reason)

    async def settled(self) -> None:
        """Return when every update has its verdict, or the task has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.ended or not self._unsettled())

    async def note(self) -> None:
        """Tell the controller, on disk, how far this session is."""
        noted = SessionFile(self.ended, self._submitted, 0 if self.ended else len(self._unsettled()))
        await asyncio.to_thread(self.environment.slot.write_session, noted)

    async def progress(self, number: int, step: str) -> None:
        await self._send(Progress(number, step))

    # --- what the session does meanwhile

    async def run(self) -> None:
        """Listen and re-send until cancelled."""
        me = self.environment
        patterns = (
            Pattern(me.node, Direction.DOWN, EventClass.STATE, RoundState.kind, me.task, ""),
            Pattern(me.node, Direction.DOWN, EventClass.TRANSFER, None, me.task, me.worker),
            Pattern(me.node, Direction.LOCAL, EventClass.STATE, ModelAtHand.kind, me.task, ""),
        )
        async with self._bus.subscribe(*patterns) as deliveries, asyncio.TaskGroup() as group:
            held = self._address(HeldAtEdge)
            group.create_task(self._documents.compare_for_ever(held))
            group.create_task(self._resend_for_ever())
            self._bus.on_connect(self._on_connect)
            async for delivery in deliveries:
                try:
                    await self._handle(delivery)
                except (MalformedEvent, DamagedFile) as error:
                    self.log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))

    async def _on_connect(self) -> None:
        await self._documents.compare(self._address(HeldAtEdge))
        self._resend.set()

    async def _handle(self, delivery: Delivery) -> None:
        if not delivery.payload:
            return
        envelope = decode(delivery.payload)
        match envelope.event:
            case RoundState() as state:
                if state.task_uid == self.slot_file.assignment.task_uid and await self._documents.accept(
                    delivery, envelope.header
                ):
                    await self._round_changed(state)
            case ModelAtHand(digest=digest):
                # The path is ours to compute: a container sees its slot directory elsewhere than the controller does.
                path = self.environment.slot.model(digest)
                if path.exists():
                    async with self._changed:
                        self._models[digest] = path
                        self._changed.notify_all()
            case Verdict() as verdict:
                await self._settle(verdict)
            case Pull() as pull:
                task = asyncio.create_task(self._answer(pull))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case other:
                self.log.debug("event_ignored", kind=other.kind)

    async def _round_changed(self, state: RoundState) -> None:
        if state.model is not None and state.model.inline is None:
            path = self.environment.slot.model(state.model.digest)
            if path.exists():
                self._models[state.model.digest] = path
        for number in [number for number in self._kept if number < state.number - 1]:
            await asyncio.to_thread(self._updates.drop, self._kept.pop(number).number)
        first = self._state is None
        async with self._changed:
            self._state = state
            self._reports = {number: report for number, report in self._reports.items() if number >= state.number}
            self._changed.notify_all()
        if self.ended:
            await self.note()
        if first:
            # The owner may have started after this worker and not know of it yet.
            await self._documents.compare(self._address(HeldAtEdge))
        self._resend.set()

    async def _settle(self, verdict: Verdict) -> None:
        if verdict.of == "report":
            self._reports.pop(verdict.number, None)
            return
        kept = self._kept.get(verdict.number)
        if kept is None or kept.outcome or kept.digest != verdict.digest:
            return
        settled = await asyncio.to_thread(self._updates.settle, kept, verdict.outcome.value, verdict.reason)
        if verdict.outcome not in {Outcome.COUNTED, Outcome.DUPLICATE}:
            self.log.warning(
                "update_not_counted", round=verdict.number, outcome=verdict.outcome.value, reason=verdict.reason
            )
        async with self._changed:
            self._kept[verdict.number] = settled
            self._changed.notify_all()
        await self.note()

    def _unsettled(self) -> list[KeptUpdate]:
        return [kept for kept in self._kept.values() if not kept.outcome]

    def _asks(self, after: tuple[int, int]) -> RoundState | None:
        state = self._state
        if state is None or state.phase is not RoundPhase.OPEN or (state.number, state.attempt) <= after:
            return None
        if self.environment.worker not in state.asked:
            return None
        kept = self._kept.get(state.number)
        if kept is not None and kept.outcome != Outcome.REFUSED.value and kept.base_digest == _base(state):
            return None
        return state

    async def _report(self, round_: Round, evaluation: Evaluation | None) -> None:
        uid = self.slot_file.assignment.task_uid
        self._reports[round_.number] = Report(uid, round_.number, round_.base_digest, evaluation)
        self._resend.set()

    async def _resend_for_ever(self) -> None:
        while True:
            self._resend.clear()
            uid = self.slot_file.assignment.task_uid
            for report in list(self._reports.values()):
                await self._send(report)
            for kept in self._unsettled():
                path = self._updates.blob(kept.number)
                inline = await asyncio.to_thread(path.read_bytes) if kept.size_bytes <= INLINE_BYTES else None
                blob = BlobRef(kept.digest, kept.size_bytes, inline)
                report = self._reports.get(kept.number)
                await self._send(
                    Offer(
                        uid,
                        kept.number,
                        kept.base_digest,
                        blob,
                        kept.num_examples,
                        kept.metrics,
                        report.evaluation if report else None,
                    )
                )
                crash_point("worker.offered")
            try:
                # Without anything to settle there is nothing to repeat.
                waits = bool(self._reports or self._unsettled())
                await asyncio.wait_for(self._resend.wait(), RESEND_S if waits else None)
            except TimeoutError:
                continue

    async def _answer(self, pull: Pull) -> None:
        for kept in list(self._kept.values()):
            if kept.digest == pull.digest:
                me = self.environment
                to = Address(me.node, Direction.UP, EventClass.TRANSFER, "chunk", me.task, me.worker)
                path = self._updates.blob(kept.number)
                await self._sender.answer(pull.digest, pull.ranges, path, kept.size_bytes, to)
                return
        self.log.warning("pull_not_answered", digest=pull.digest, reason="this worker does not hold the blob")

    def _address(self, event: type[Event]) -> Address:
        me = self.environment
        return Address(me.node, event.direction, event.event_class, event.kind, me.task, me.worker)

    async def _send(self, event: Event) -> None:
        header = Header(self.environment.source)
        payload = encode(Envelope(header, event, new_id(), time.time(), self.environment.task))
        try:
            await self._bus.publish(self._address(type(event)), payload)
        except BusError as error:
            # Offers and reports are repeated, progress may be lost.
            self.log.debug("event_not_sent", kind=event.kind, cause=str(error))


def _base(state: RoundState) -> str:
    return state.model.digest if state.model else ""


class Task:
    """What a script sees of its task.

    Attributes:
        name: name of the task, as in the manifest.
        node, worker: where this runs, and as whom.
        parameters: the worker's parameters by key, with defaults and the task's values filled in.
        dataset: name and read-only path, or None.
        output_dir: files written here stay until the task is deleted.
        log: a structlog logger; what it and the script print is in `edgeai logs`.
    """

    def __init__(self, session: Session) -> None:
        me, slot = session.environment, session.slot_file
        self._session = session
        self.name, self.node, self.worker = slot.assignment.task_name, me.node, me.worker
        self.parameters: Mapping[str, Any] = dict(slot.assignment.parameters)
        path = Path(slot.dataset_path) if slot.dataset_path else None
        self.dataset = DatasetAtHand(slot.assignment.dataset, path) if path else None
        self.output_dir, self.log = me.slot.output, session.log

    async def rounds(self) -> AsyncIterator[Round]:
        """The rounds this worker is asked to join, the newest first if it was away, until the task ends."""
        session, after = self._session, (-1, 0)
        while (state := await session.next_round(after)) is not None:
            weights = await session.weights_of(state)
            if weights is None:
                continue
            after = (state.number, state.attempt)
            round_ = Round(session, state, weights, self.parameters)
            await session.progress(round_.number, "training" if round_.train else "validating")
            yield round_
            await session.finished(round_)


class join:  # noqa: N801 (reads as a verb where it is used)
    """Join the task that this process was started for: `async with edgeai.join() as task`.

    Leaving waits for the verdict of what was submitted, unless an error is passing through.

    Raises:
        LaunchError: not started by a controller, or an unknown bus.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._session: Session | None = None

    async def __aenter__(self) -> Task:
        environment = WorkerEnvironment.read()
        bus = environment.open_bus()
        session = Session(environment, bus)
        await self._stack.enter_async_context(bus)
        runner = asyncio.create_task(session.run())
        self._stack.push_async_callback(_cancelled, runner)
        self._session = session
        return Task(session)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        try:
            if exc is None:
                await self._session.settled()
            await self._session.note()
        finally:
            await self._stack.aclose()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
