"""What a training worker does between its bus and its script (the script's side is `task` and `round` beside this).

The session follows the task's round document and answers rounds from the slot directory: an update is on disk before it is
offered, offered until there is a verdict, and kept until its round is closed. Killed at any moment, the next session goes on
from there; a finished update is offered again, not trained again.

It imports no ML framework and knows nothing of aggregation, of processes, or of how a script is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import structlog

from edgeai.bus.base import Bus, Delivery
from edgeai.crashpoints import crash_point
from edgeai.errors import BusError, BusUnavailable, EdgeaiError, MalformedEvent, NotFound, StoreError
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.arrays import decode as decode_arrays
from edgeai.events.catalogue import (
    INLINE_BYTES,
    Abstention,
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
from edgeai.store.files import digest_bytes
from edgeai.store.identity import new_id
from edgeai.store.transfers import Sender
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.round import Round
from edgeai.worker.spans import TrainingSpans
from edgeai.worker.updates import KeptUpdate, UpdateFolder

RESEND_S = 5.0
MODEL_LOOK_S = 2.0
"""How often a session looks for a big model by itself: what the controller says about it is a hint."""
BROKER_PATIENCE_S = 2.0

RoundKey = tuple[int, int, str]
"""Number, attempt and base digest: what makes two round documents ask for the same thing."""


@dataclass(frozen=True, slots=True)
class _Reported:
    """A report of the round that is open; sent until it is settled."""

    report: Report
    settled: bool = False


class Session:
    """Everything between the bus and the script. Scripts see `Task` and `Round`."""

    def __init__(self, environment: WorkerEnvironment, bus: Bus) -> None:
        """Reads the slot directory. Raises DamagedFile if its slot.json is missing or damaged."""
        self.environment, self._bus = environment, bus
        self.slot_file = environment.slot.read_slot()
        self._uid = self.slot_file.assignment.task_uid
        self.log = structlog.get_logger().bind(task=environment.task, worker=environment.worker)
        self._spans = TrainingSpans(environment, self.slot_file.assignment)
        self._documents = Documents(MemoryDocuments(), bus, environment.source)
        self._updates = UpdateFolder(environment.slot.updates)
        self._kept: dict[int, KeptUpdate] = self._updates.load()
        self._verdicts: dict[int, Verdict] = {}
        self._reports: dict[int, _Reported] = {}
        self._abstentions: dict[int, Abstention] = {}
        """those without a verdict, by round"""
        self._sender = Sender(bus, environment.source)
        self._state: RoundState | None = None
        self.opened_s = self._asked_s = self.now()
        self._current: Round | None = None
        self._waits_for_report: int | None = None
        self._failure: BaseException | None = None
        self._changed, self._resend = asyncio.Event(), asyncio.Event()
        self._noting, self._noted = asyncio.Lock(), environment.slot.read_session()
        self._submitted = max(len(self._kept), self._noted.submitted if self._noted else 0)
        self._answering: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        return time.monotonic()

    @property
    def ended(self) -> bool:
        return self._state is not None and self._state.phase is RoundPhase.ENDED

    # --- what the script does

    async def next_round(self, done: RoundKey | None) -> RoundState | None:
        """The next round that asks this worker for something, other than `done`; None when the task has ended."""
        await self._until(lambda: self.ended or self._asks(done))
        return None if self.ended else self._state

    async def weights_of(self, state: RoundState) -> list[npt.NDArray[Any]] | None:
        """The round's model, when it is here; None if the round was overtaken meanwhile."""
        if state.model is None:
            return []
        if state.model.inline is not None:
            return decode_arrays(state.model.inline)
        path = self.environment.slot.model(state.model.digest)
        while self._state is state:
            # The controller removes models that are no longer asked for: the file may go between a look and its opening.
            with suppress(NotFound):
                return list(ArrayFile.open(path))
            await self._until(lambda: self._state is not state or path.exists(), MODEL_LOOK_S)
        return None

    def entered(self, round_: Round) -> None:
        self._current, self._asked_s = round_, self.opened_s

    async def submit(
        self, round_: Round, arrays: list[npt.NDArray[Any]], num_examples: int, metrics: dict[str, float]
    ) -> None:
        """Returns when the update is safe on disk."""
        reported = self._reports.get(round_.number)
        if round_.validate and not round_.reported:
            # An offer says what is known of the evaluation. One that may still come is waited for: see `_release`.
            self._waits_for_report = round_.number
        kept = await asyncio.to_thread(
            self._updates.write,
            arrays,
            number=round_.number,
            base_digest=round_.base_digest,
            num_examples=int(num_examples),
            metrics=metrics,
            evaluation=reported.report.evaluation if reported else None,
        )
        self._kept[kept.number] = kept
        self._verdicts.pop(kept.number, None)
        self._submitted += 1
        self._spans.trained(kept.number, kept.digest, kept.size_bytes, kept.num_examples, self.now() - self._asked_s)
        await self.note()
        await self.progress(round_.number, "submitted")
        self._resend.set()

    async def report(self, round_: Round, metrics: dict[str, float], num_examples: int) -> None:
        self._spans.validated(round_.number, int(num_examples), self.now() - self._asked_s)
        await self._report(round_, Evaluation(metrics, int(num_examples)))

    async def finished(self, round_: Round) -> None:
        """The script has left the round: what was asked and not given is declined, so that nobody waits for it."""
        self._current = None
        if round_.validate and not round_.reported:
            await self._report(round_, None)
        self._release(round_.number)

    def abstain(self, round_: Round) -> None:
        """The script has gone on without an update. One that ends instead may be started again and train: see `finished`."""
        number = round_.number
        reported = self._reports.get(number)
        evaluation = reported.report.evaluation if reported else None
        self._abstentions[number] = Abstention(self._uid, number, round_.base_digest, evaluation)
        self._resend.set()

    async def verdict(self, number: int) -> Verdict:
        """What became of the update of a round: counted, stale or refused. Waits for it."""
        self._release(number)
        await self._until(lambda: self.ended or number in self._verdicts or number not in self._kept)
        if (verdict := self._verdicts.get(number)) is not None:
            return verdict
        why = "the task has ended" if self.ended else f"round {number} is closed"
        return Verdict(self._uid, number, "offer", Outcome.STALE, reason=why)

    async def leave(self) -> None:
        """Return when everything that was submitted or reported has its verdict, or the task has ended."""
        if self._current is not None:
            await self.finished(self._current)
        await self._until(
            lambda: self.ended or not (self._unsettled() or self._unsettled_reports() or self._abstentions)
        )

    async def note(self) -> None:
        """Tell the controller, on disk, how far this session is."""
        async with self._noting:
            noted = SessionFile(self.ended, self._submitted, 0 if self.ended else len(self._unsettled()))
            if noted == self._noted:
                return
            try:
                await asyncio.to_thread(self.environment.slot.write_session, noted)
            except StoreError as error:
                self.log.warning("session_not_noted", reason=str(error))
            else:
                self._noted = noted

    async def progress(self, number: int, step: str) -> None:
        """Through the controller: it knows whose word this is."""
        await self._send(Progress(number, step), Direction.LOCAL)

    # --- what the session does meanwhile

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Listen and send again in the background. If that breaks, whoever waits for something gets the error."""
        runner = asyncio.create_task(self._run())
        runner.add_done_callback(self._stopped)
        try:
            yield
        finally:
            for task in (runner, *self._answering):
                task.cancel()
            await asyncio.gather(runner, *self._answering, return_exceptions=True)

    def _stopped(self, runner: asyncio.Task[None]) -> None:
        error = None if runner.cancelled() else runner.exception()
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is not None:
            self._failure = error
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, true: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Wait until it is true, at most `timeout_s`. Raises what broke the session."""
        try:
            async with asyncio.timeout(timeout_s) as limit:
                while not true():
                    if self._failure is not None:
                        raise self._failure
                    await self._changed.wait()
        except TimeoutError:
            if not limit.expired():
                raise

    async def _run(self) -> None:
        me = self.environment
        patterns = (
            Pattern(me.node, Direction.DOWN, EventClass.STATE, RoundState.kind, me.task, ""),
            Pattern(me.node, Direction.DOWN, EventClass.TRANSFER, Verdict.kind, me.task, me.worker),
            Pattern(me.node, Direction.DOWN, EventClass.TRANSFER, Pull.kind, me.task, me.worker),
            Pattern(me.node, Direction.LOCAL, EventClass.STATE, ModelAtHand.kind, me.task, ""),
        )
        async with self._bus.subscribe(*patterns) as deliveries, asyncio.TaskGroup() as group:
            group.create_task(self._await_broker())
            group.create_task(self._documents.compare_for_ever(self._address(HeldAtEdge)))
            group.create_task(self._resend_for_ever())
            self._bus.on_connect(self._on_connect)
            async for delivery in deliveries:
                try:
                    await self._handle(delivery)
                except MalformedEvent as error:
                    self.log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))

    async def _await_broker(self) -> None:
        try:
            await self._bus.wait_connected(BROKER_PATIENCE_S)
        except BusUnavailable as error:
            self.log.warning("broker_awaited", url=self._bus.url, cause=str(error))
            await self._bus.wait_connected()
        self._spans.joined()
        self.log.info("task_joined", node=self.environment.node, updates_kept=len(self._kept))

    async def _on_connect(self) -> None:
        await self._documents.compare(self._address(HeldAtEdge))
        self._resend.set()

    async def _handle(self, delivery: Delivery) -> None:
        if not delivery.payload:
            return
        envelope = decode(delivery.payload)
        match envelope.event:
            case RoundState() as state:
                if state.task_uid != self._uid:
                    return
                if state.model is not None and state.model.inline is not None:
                    _check_digest(state.model.inline, state.model.digest)
                if await self._documents.accept(delivery, envelope.header):
                    self._spans.asked(state.number, envelope.trace)
                    await self._round_changed(state)
                else:
                    # Sent again because its owner was away and may have missed what it was told: do not wait for the timers.
                    await self._documents.compare(self._address(HeldAtEdge))
                    self._resend.set()
            case ModelAtHand():
                # Where the model lies is ours to compute: a container sees its slot elsewhere than the controller does.
                self._wake()
            case Verdict(task_uid=uid) as verdict if uid == self._uid:
                await self._settle(verdict)
            case Pull() as pull:
                task = asyncio.create_task(self._answer(pull))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case other:
                self.log.debug("event_ignored", kind=other.kind)

    async def _round_changed(self, state: RoundState) -> None:
        before, self._state = self._state, state
        if before is None or (before.number, before.attempt) != (state.number, state.attempt):
            self.opened_s = self.now()
        self._reports = {number: each for number, each in self._reports.items() if number >= state.number}
        self._abstentions = {number: each for number, each in self._abstentions.items() if number >= state.number}
        kept = self._kept.get(state.number)
        if kept is not None and kept.outcome and kept.outcome != Outcome.REFUSED and self._wants(kept):
            # Late for another attempt, or counted by an aggregation worker that lost what it knew: it fits this round.
            self._kept[kept.number] = replace(kept, outcome="", reason="")
        # One round longer than needed: an aggregation worker that is restarted goes on with the round it was in.
        for number in [number for number in self._kept if number < state.number - 1]:
            del self._kept[number]
            await asyncio.to_thread(self._updates.drop, number)
        self._wake()
        await self.note()
        if before is None:
            # The owner may have started after this worker and not know of it yet.
            await self._documents.compare(self._address(HeldAtEdge))
        self._resend.set()

    async def _settle(self, verdict: Verdict) -> None:
        if verdict.of == "report":
            self._settle_report(verdict)
            return
        if verdict.of == Abstention.kind:
            self._abstentions.pop(verdict.number, None)
            self._wake()
            return
        kept = self._kept.get(verdict.number)
        if kept is None or kept.outcome or kept.digest != verdict.digest:
            return
        if verdict.outcome is Outcome.STALE and self._wants(kept):
            # Said of an attempt that is over, or by someone whose next round is on its way: offer it again.
            self.log.debug("verdict_overtaken", round=verdict.number, reason=verdict.reason)
            return
        try:
            settled = await asyncio.to_thread(self._updates.settle, kept, verdict.outcome.value, verdict.reason)
        except StoreError as error:
            settled = replace(kept, outcome=verdict.outcome.value, reason=verdict.reason)
            # Not needed to go on: after a restart it is offered again, and is a duplicate.
            self.log.warning("verdict_not_noted", round=verdict.number, reason=str(error))
        if self._kept.get(verdict.number) is not kept:
            return
        self._kept[verdict.number] = settled
        self._verdicts[verdict.number] = final = _final(verdict)
        tell = self.log.info if final.outcome is Outcome.COUNTED else self.log.warning
        why = {"reason": final.reason} if final.reason else {}
        tell("update_settled", round=verdict.number, outcome=final.outcome.value, **why)
        self._wake()
        await self.note()

    def _settle_report(self, verdict: Verdict) -> None:
        reported = self._reports.get(verdict.number)
        if reported is None or reported.settled:
            return
        if verdict.outcome is Outcome.REFUSED:
            self.log.warning("report_refused", round=verdict.number, reason=verdict.reason)
        self._reports[verdict.number] = replace(reported, settled=True)
        self._wake()

    def _unsettled(self) -> list[KeptUpdate]:
        return [kept for kept in self._kept.values() if not kept.outcome]

    def _unsettled_reports(self) -> list[Report]:
        return [each.report for each in self._reports.values() if not each.settled]

    def _open(self) -> RoundState | None:
        """The round as it stands, if it is open and asks this worker."""
        state = self._state
        if state is None or state.phase is not RoundPhase.OPEN or self.environment.worker not in state.asked:
            return None
        return state

    def _asks(self, done: RoundKey | None) -> bool:
        state = self._open()
        if state is None or round_key(state) == done:
            return False
        kept = self._kept.get(state.number)
        return kept is None or kept.outcome == Outcome.REFUSED or kept.base_digest != _base(state)

    def _wants(self, kept: KeptUpdate) -> bool:
        """Whether an update that lies here answers the round as it stands."""
        state = self._open()
        return state is not None and state.train and state.number == kept.number and _base(state) == kept.base_digest

    async def _report(self, round_: Round, evaluation: Evaluation | None) -> None:
        number = round_.number
        self._reports[number] = _Reported(Report(self._uid, number, round_.base_digest, evaluation))
        kept = self._kept.get(number)
        if kept is not None and evaluation is not None and kept.base_digest == round_.base_digest:
            self._kept[number] = amended = replace(kept, evaluation=evaluation)
            await asyncio.to_thread(self._updates.note, amended)
        self._release(number)
        self._resend.set()

    def _release(self, number: int) -> None:
        """Nothing more will be said about the evaluation in this round: its update may be offered."""
        if self._waits_for_report == number:
            self._waits_for_report = None
            self._resend.set()

    async def _resend_for_ever(self) -> None:
        while True:
            self._resend.clear()
            if not self.ended:
                for report in self._unsettled_reports():
                    await self._send(report, trace=self._spans.trace_of_report(report.number))
                for abstention in self._abstentions.values():
                    await self._send(abstention, trace=self._spans.trace_of_round(abstention.number))
                for kept in self._unsettled():
                    if kept.number != self._waits_for_report:
                        await self._offer(kept)
            # Without anything to settle there is nothing to repeat.
            waits = not self.ended and bool(self._unsettled_reports() or self._abstentions or self._unsettled())
            with suppress(TimeoutError):
                # Not wait_for: Python 3.11 loses a cancellation that comes together with the event.
                async with asyncio.timeout(RESEND_S if waits else None):
                    await self._resend.wait()

    async def _offer(self, kept: KeptUpdate) -> None:
        try:
            inline = await asyncio.to_thread(self._inline, kept)
        except FileNotFoundError:
            return  # its round was closed meanwhile
        blob = BlobRef(kept.digest, kept.size_bytes, inline)
        await self._send(
            Offer(self._uid, kept.number, kept.base_digest, blob, kept.num_examples, kept.metrics, kept.evaluation),
            trace=self._spans.trace_of_offer(kept.number, kept.digest),
        )
        crash_point("worker.offered")

    def _inline(self, kept: KeptUpdate) -> bytes | None:
        return self._updates.blob(kept.number).read_bytes() if kept.size_bytes <= INLINE_BYTES else None

    async def _answer(self, pull: Pull) -> None:
        kept = next((each for each in self._kept.values() if each.digest == pull.digest), None)
        if kept is None:
            self.log.warning("pull_not_answered", digest=pull.digest, reason="this worker does not hold the blob")
            return
        me = self.environment
        to = Address(me.node, Direction.UP, EventClass.TRANSFER, "chunk", me.task, me.worker)
        try:
            await self._sender.answer(pull.digest, pull.ranges, self._updates.blob(kept.number), kept.size_bytes, to)
        except EdgeaiError as error:
            self.log.warning("pull_not_answered", digest=pull.digest, reason=str(error))

    def _address(self, event: type[Event], direction: Direction | None = None) -> Address:
        me = self.environment
        return Address(me.node, direction or event.direction, event.event_class, event.kind, me.task, me.worker)

    async def _send(self, event: Event, direction: Direction | None = None, *, trace: str = "") -> None:
        header = Header(self.environment.source)
        payload = encode(Envelope(header, event, new_id(), time.time(), self.environment.task, trace))
        try:
            await self._bus.publish(self._address(type(event), direction), payload)
        except BusError as error:
            # Offers and reports are repeated, progress may be lost.
            self.log.debug("event_not_sent", kind=event.kind, cause=str(error))


def round_key(state: RoundState) -> RoundKey:
    return state.number, state.attempt, _base(state)


def _base(state: RoundState) -> str:
    return state.model.digest if state.model else ""


def _final(verdict: Verdict) -> Verdict:
    """A verdict as the script sees it: a repeated update counts already, unless another of this worker does."""
    if verdict.outcome is not Outcome.DUPLICATE:
        return verdict
    return replace(verdict, outcome=Outcome.STALE if verdict.reason else Outcome.COUNTED)


def _check_digest(blob: bytes, digest: str) -> None:
    if (found := digest_bytes(blob)) != digest:
        raise MalformedEvent(f"the round's model has digest {found[:12]}, not {digest[:12]}")
