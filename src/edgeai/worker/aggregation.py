"""The aggregation worker: performs what the rounds' machine decides (lifecycle.round), with arrays, files and messages.

It runs in the cloud and speaks NATS. Updates lie in its slot directory as files; the mean is computed array by array, block
by block, in the order of worker names, so memory does not grow with workers and the result does not depend on arrival. What
it remembers is in `state.db`: killed at any moment it goes on with the same round and asks again for what it lacks. The
outcome of a round is fixed by creating it in the resource store: of two aggregation workers one wins, the other adopts.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from edgeai.bus.base import Delivery
from edgeai.bus.nats import NatsBus
from edgeai.bus.services import announce_service
from edgeai.crashpoints import crash_point
from edgeai.errors import BusError, Conflict, DamagedFile, MalformedEvent, NotFound
from edgeai.events.address import CLOUD, Address, Direction, EventClass, Pattern
from edgeai.events.arrays import ArrayTable
from edgeai.events.catalogue import (
    INLINE_BYTES,
    Absent,
    Abstention,
    BlobRef,
    Event,
    Fetch,
    HeldAtEdge,
    Membership,
    Offer,
    Outcome,
    Progress,
    Pull,
    Receipt,
    Report,
    RoundPhase,
    RoundRecord,
    RoundState,
)
from edgeai.events.envelope import (
    Envelope,
    Header,
    body_of,
    decode,
    decode_chunk,
    decode_header,
    encode,
    value_of,
)
from edgeai.events.tokens import is_token
from edgeai.launcher.slots import SessionFile
from edgeai.learning.aggregation import check_arrays, weighted_mean_of, weighted_metrics
from edgeai.lifecycle import round as rounds
from edgeai.lifecycle.base import Command
from edgeai.lifecycle.round import Job, JobPhase
from edgeai.reactor import Reactor
from edgeai.store.arrays import ArrayFile, ArrayWriter
from edgeai.store.documents import Documents
from edgeai.store.edge import EdgeStore
from edgeai.store.files import write_whole
from edgeai.store.identity import new_id
from edgeai.store.journal import SqliteJournal
from edgeai.store.nats import NatsBlobStore, NatsResourceStore
from edgeai.store.outbox import Outbox
from edgeai.store.transfers import Receiver, Sender
from edgeai.tracing import flush, start
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.spans import SERVICE, RoundSpans, trace_of, trace_of_round

log = structlog.get_logger()

ROUND = "Round"
"""Kind of the documents that fix outcomes, named `<task uid>.<round>`; they go with their task (coordinator.journal)."""


class Aggregation:
    """One task's aggregation worker."""

    def __init__(self, environment: WorkerEnvironment, bus: NatsBus, store: EdgeStore) -> None:
        self._me, self._bus, self._store = environment, bus, store
        self._slot = environment.slot
        assignment = self._slot.read_slot().assignment
        assert assignment.plan is not None
        self._plan, self._uid, self._name = assignment.plan, assignment.task_uid, assignment.task_name
        self._nodes = {member.worker: member.node for member in self._plan.members}
        self._resources, self._blobs = NatsResourceStore(bus), NatsBlobStore(bus)
        self._documents = Documents(store, bus, environment.source)
        self._outbox = Outbox(store, bus, environment.source)
        self._receiver, self._sender = Receiver(self._slot.parts), Sender(bus, environment.source)
        machine = rounds.machine(environment.task, self._uid, self._plan)
        journal = SqliteJournal(store, Job, node=environment.node, source=environment.source, trace=trace_of)
        self._reactor = Reactor(machine, journal, self._perform, on_commit=self._committed)
        self._spans = RoundSpans(environment, assignment, self._slot.models)
        self._opened = time.monotonic()
        self._bytes_up = self._bytes_down = 0
        self._answered_s: dict[str, float] = {}
        self._counted = (-1, 0)
        """the round and attempt that the bytes and the time belong to"""
        self._files = asyncio.Lock()
        """cleaning up, or aggregating: never both"""
        self._tokens: Mapping[str, str] = {}
        self._early: dict[tuple[str, str], tuple[Delivery, str]] = {}
        """by worker and kind: the last event with a token that is not the one known of this worker, and the known one"""
        self.refused: Counter[str] = Counter()
        """events without the token of their worker's run, by worker; under no name: there is no such worker"""
        self._answering: set[asyncio.Task[None]] = set()
        self._pulls: dict[tuple[str, str], asyncio.Future[int]] = {}
        """by worker and digest"""

    @property
    def _job(self) -> Job:
        return self._reactor.states.get(self._me.task) or Job(self._me.task, self._uid, self._plan)

    async def run(self) -> None:
        """Run until the task has ended and everything has been told, then go on answering until stopped."""
        await self._bus.wait_connected()
        self._spans.joined()
        for delivery in await self._documents.load():
            self._note_tokens(decode(delivery.payload).event)
        await self._reactor.load()
        base = await self._base_model()
        self._post(rounds.Began(base, self._plan))
        own = self._me
        patterns = (
            Pattern(None, Direction.UP, EventClass.TRANSFER, None, own.task, None),
            Pattern(None, Direction.UP, EventClass.SIGNAL, HeldAtEdge.kind, own.task, None),
            Pattern(CLOUD, Direction.DOWN, EventClass.STATE, None, own.task, own.worker),
        )
        async with self._bus.subscribe(*patterns) as deliveries, asyncio.TaskGroup() as group:
            held = Address(CLOUD, Direction.UP, EventClass.SIGNAL, HeldAtEdge.kind, own.task, own.worker)
            group.create_task(self._reactor.run())
            group.create_task(self._outbox.run())
            group.create_task(self._documents.compare_for_ever(held))
            group.create_task(announce_service(self._bus, own.task, own.worker, self._describe))
            self._bus.on_connect(self._on_connect)
            async for delivery in deliveries:
                try:
                    await self._handle(delivery)
                except MalformedEvent as error:
                    log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))

    async def _on_connect(self) -> None:
        held = Address(CLOUD, Direction.UP, EventClass.SIGNAL, HeldAtEdge.kind, self._me.task, self._me.worker)
        await self._documents.compare(held)
        await self._documents.resend_all()
        self._receiver.nudge()

    def _describe(self) -> dict[str, Any]:
        job = self._job
        return {
            "task": self._name,
            "phase": job.phase.value,
            "round": job.number,
            "joined": list(job.joined),
            "refused": self.refused.total(),
        }

    # --- what arrives

    async def _handle(self, delivery: Delivery) -> None:
        address = delivery.address
        if not delivery.payload or not self._speaks_for_its_worker(delivery):
            return
        if address.kind == "chunk":
            self._receiver.arrived(decode_chunk(delivery.payload)[1])
            return
        envelope = decode(delivery.payload)
        worker = address.worker
        if worker == self._me.worker and address.direction is Direction.UP:
            return
        if address.direction is Direction.UP and worker and self._nodes.get(worker) != address.node:
            log.warning("event_refused", topic=address.topic(), reason="no such worker on that node")
            return
        match envelope.event:
            case Offer() as offer:
                self._spans.offered(worker, offer, envelope.trace)
                self._post(rounds.Offered(worker, offer))
            case Report() as report:
                self._post(rounds.Reported(worker, report))
            case Abstention() as abstention:
                self._post(rounds.Abstained(worker, abstention))
            case HeldAtEdge(documents=held):
                self._post(rounds.Joined(worker))
                self._count_down(await self._documents.resend(address, held))
            case Fetch() as fetch:
                task = asyncio.create_task(self._serve(address.node, fetch))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case Receipt() as receipt:
                await self._outbox.receipted(receipt)
            case Membership() as membership:
                if await self._documents.accept(delivery, envelope.header):
                    self._post(rounds.MembershipChanged(membership))
                    self._note_tokens(membership)
                    await self._look_at_early()
            case other:
                log.debug("event_ignored", kind=other.kind)

    # --- who may speak

    def _note_tokens(self, event: Event) -> None:
        if isinstance(event, Membership):
            self._tokens = event.tokens

    def _speaks_for_its_worker(self, delivery: Delivery) -> bool:
        """Whether a training worker's event carries the token of its run. If not, it is kept until more tokens are known."""
        address = delivery.address
        if address.direction is not Direction.UP or not address.worker or address.worker == self._me.worker:
            return True
        token = decode_header(delivery.payload).token
        if is_token(self._tokens.get(address.worker, ""), self._uid, address.worker, token):
            return True
        if token and address.worker in self._nodes:
            self._early[address.worker, address.kind] = delivery, self._tokens.get(address.worker, "")
            log.debug("event_kept_back", topic=address.topic(), reason="its token is not known yet")
        else:
            self._refuse(delivery)
        return False

    def _refuse(self, delivery: Delivery) -> None:
        address = delivery.address
        known = address.worker if address.worker in self._nodes else ""
        self.refused[known] += 1
        reason = f"it does not carry the token of the current run of {address.worker}"
        log.warning("event_refused", topic=address.topic(), reason=reason, refused=self.refused[known])

    async def _look_at_early(self) -> None:
        """The coordinator has told of a run: what came before that counts now. What still does not is refused by name."""
        for key, (delivery, known) in list(self._early.items()):
            if self._tokens.get(key[0], "") == known:
                continue
            del self._early[key]
            try:
                await self._handle(delivery)
            except MalformedEvent as error:
                log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))
            if self._early.pop(key, None) is not None:
                self._refuse(delivery)

    def _post(self, event: Any) -> None:
        self._reactor.post(self._me.task, event)

    async def _committed(self, _keys: Any) -> None:
        self._outbox.wake()
        job = self._job
        self._spans.look(job)
        for (worker, digest), pull in tuple(self._pulls.items()):
            if not self._is_collecting(worker, digest):
                # Its round went on without it: nobody else would end it, and it holds a place and credit.
                pull.cancel()
        if job.phase is JobPhase.OPEN:
            done = len(job.updates if job.train else job.evaluations)
            progress = Progress(job.number, "collecting", done, len(job.asked))
            where = Address(CLOUD, Direction.UP, EventClass.SIGNAL, Progress.kind, self._me.task, self._me.worker)
            await self._publish(where, progress)

    async def _serve(self, node: str, fetch: Fetch) -> None:
        """Send ranges of a round's model to a node's controller."""
        path = self._slot.model(fetch.digest)
        if not path.exists():
            reason = "the aggregation worker no longer has this model"
            to = Address(node, Direction.DOWN, EventClass.TRANSFER, Absent.kind, self._me.task)
            await self._publish(to, Absent(fetch.digest, reason))
            return
        to = Address(node, Direction.DOWN, EventClass.TRANSFER, "chunk", self._me.task)
        self._bytes_down += sum(length for _, length in fetch.ranges)
        await self._sender.answer(fetch.digest, fetch.ranges, path, path.stat().st_size, to)

    # --- what the machine asks for

    async def _perform(self, _key: str, command: Command) -> Any:
        match command:
            case rounds.Announce():
                await self._announce()
            case rounds.Collect(worker=worker, offer=offer):
                return await self._collect(worker, offer)
            case rounds.Tell(worker=worker, verdict=verdict):
                if verdict.of == "offer":
                    self._spans.judged(worker, verdict)
                if verdict.of == "offer" and verdict.outcome is Outcome.COUNTED:
                    self._answered_s[worker] = round(time.monotonic() - self._opened, 3)
                to = Address(
                    self._nodes[worker],
                    Direction.DOWN,
                    EventClass.TRANSFER,
                    verdict.kind,
                    self._me.task,
                    worker,
                )
                await self._publish(to, verdict)
            case rounds.Aggregate(number=number):
                return await self._aggregate(number)
            case rounds.Finish(base=base):
                # Once that is told, this worker may be stopped at any moment.
                sent = asyncio.to_thread(flush)
                await asyncio.gather(self._blobs.put(base.digest, self._slot.model(base.digest)), sent)
                crash_point("aggregation.model_stored")
                return rounds.ModelStored()
        return None

    async def _announce(self) -> None:
        async with self._files:
            job = self._job
            if job.phase is JobPhase.OPEN:
                await asyncio.to_thread(self._clean, job)
        if job.phase is JobPhase.OPEN and self._counted != (job.number, job.attempt):
            self._counted = (job.number, job.attempt)
            self._opened, self._bytes_up, self._bytes_down, self._answered_s = time.monotonic(), 0, 0, {}
        phase = {JobPhase.OPEN: RoundPhase.OPEN, JobPhase.ENDED: RoundPhase.ENDED}.get(job.phase, RoundPhase.CLOSED)
        model = await asyncio.to_thread(self._with_inline, job.base)
        for node in sorted({*self._nodes.values()}):
            asked = tuple(worker for worker in job.asked if self._nodes[worker] == node)
            state = RoundState(
                task_uid=self._uid,
                number=job.number,
                attempt=job.attempt,
                phase=phase,
                asked=asked,
                train=job.train,
                validate=job.validate,
                deadline_s=self._plan.round_deadline_s,
                model=model if phase is RoundPhase.OPEN and asked else None,
            )
            to = Address(node, Direction.DOWN, EventClass.STATE, RoundState.kind, self._me.task)
            before = self._documents.generation(to)
            if await self._documents.publish(to, state, trace_of_round(self._uid, job.number)) != before:
                self._count_down([state])
        if job.phase is JobPhase.ENDED:
            await asyncio.to_thread(self._slot.write_session, SessionFile(ended=True))

    def _count_down(self, sent: Iterable[Event]) -> None:
        """Models inside documents that went out."""
        for event in sent:
            if isinstance(event, RoundState) and event.model is not None and event.model.inline is not None:
                self._bytes_down += event.model.size_bytes

    def _with_inline(self, base: BlobRef | None) -> BlobRef | None:
        if base is None or base.size_bytes > INLINE_BYTES:
            return base
        return BlobRef(base.digest, base.size_bytes, self._slot.model(base.digest).read_bytes())

    def _update_path(self, worker: str, digest: str) -> Path:
        return self._slot.updates / f"{worker}-{digest}.safetensors"

    def _keep_inline(self, worker: str, offer: Offer) -> None:
        """Inline bytes go to the same file as pulled ones."""
        path = self._update_path(worker, offer.blob.digest)
        if not path.exists() and offer.blob.inline is not None:
            write_whole(path, offer.blob.inline)
            self._bytes_up += len(offer.blob.inline)

    async def _collect(self, worker: str, offer: Offer) -> Any:
        def rejected(reason: str) -> rounds.UpdateRejected:
            return rounds.UpdateRejected(worker, offer.number, offer.blob.digest, reason)

        job, path = self._job, self._update_path(worker, offer.blob.digest)
        base = await asyncio.to_thread(ArrayFile.open, self._slot.model(job.base.digest)) if job.base else None
        if base is not None and offer.blob.size_bytes != base.table.total_size:
            return rejected(
                f"the update has {offer.blob.size_bytes} bytes, the round's model {base.table.total_size}: "
                "count, shape or dtype of its arrays differ"
            )
        if offer.blob.inline is not None:
            await asyncio.to_thread(self._keep_inline, worker, offer)
        if not path.exists():
            try:
                received = await self._pull(worker, offer, path)
            except DamagedFile as error:
                return rejected(f"the update is damaged: {error}")
            if received is None:
                return None
            self._bytes_up += received  # after waiting: others are added meanwhile
        problem = await asyncio.to_thread(_problem, path, offer.blob, base.table if base else None)
        if problem:
            path.unlink(missing_ok=True)
            return rejected(problem)
        crash_point("aggregation.collected")
        return rounds.UpdateVerified(worker, offer.number, offer.blob.digest)

    def _is_collecting(self, worker: str, digest: str) -> bool:
        offer = self._job.collecting.get(worker)
        return offer is not None and offer.blob.digest == digest

    async def _pull(self, worker: str, offer: Offer, path: Path) -> int | None:
        """Returns the bytes received; None if the update is no longer collected."""
        if not self._is_collecting(worker, offer.blob.digest):
            return None
        where = Address(self._nodes[worker], Direction.DOWN, EventClass.TRANSFER, Pull.kind, self._me.task, worker)

        async def ask(ranges: tuple[tuple[int, int], ...]) -> None:
            await self._bus.publish(where, self._encoded(Pull(offer.blob.digest, ranges)))

        key = worker, offer.blob.digest
        pull = asyncio.ensure_future(self._receiver.fetch(offer.blob.digest, offer.blob.size_bytes, ask, path))
        self._pulls[key] = pull
        try:
            await asyncio.wait({pull})
        finally:
            pull.cancel()
            if self._pulls.get(key) is pull:
                del self._pulls[key]
        return None if pull.cancelled() else pull.result()

    async def _aggregate(self, number: int) -> Any:
        async with self._files:
            return await self._aggregate_now(number)

    async def _aggregate_now(self, number: int) -> Any:
        job = self._job
        if job.number != number or job.phase is not JobPhase.CLOSING:
            return None
        began_s = time.time()
        digest, size_bytes = await asyncio.to_thread(self._write_mean, job)
        crash_point("aggregation.model_written")
        record = RoundRecord(
            number=number,
            attempt=job.attempt,
            accepted={worker: job.updates[worker].num_examples for worker in sorted(job.updates)},
            refused=dict(sorted(job.refused.items())),
            base_digest=job.base.digest if job.base else "",
            model_digest=digest,
            model_size_bytes=size_bytes,
            metrics=weighted_metrics(
                [(job.updates[w].metrics, job.updates[w].num_examples) for w in sorted(job.updates)]
            ),
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            seconds=round(time.monotonic() - self._opened, 3),
            answered_s={
                worker: self._answered_s[worker] for worker in sorted(job.updates) if worker in self._answered_s
            },
        )
        fixed = await self._fix(record)
        self._spans.aggregated(fixed, began_s)
        crash_point("aggregation.outcome_fixed")
        if fixed.model_digest != digest and not self._slot.model(fixed.model_digest).exists():
            await self._blobs.get(fixed.model_digest, self._slot.model(fixed.model_digest))
        crash_point("aggregation.before_answer")
        return rounds.Aggregated(fixed)

    def _write_mean(self, job: Job) -> tuple[str, int]:
        workers = sorted(job.updates)
        files = [ArrayFile.open(self._update_path(worker, job.updates[worker].digest)) for worker in workers]
        weights = [job.updates[worker].num_examples for worker in workers]
        target = self._slot.path / "models" / "next.safetensors"
        readers = [file.__getitem__ for file in files]
        with ArrayWriter(target, files[0].table) as writer:
            for index in range(len(files[0])):
                writer.write(weighted_mean_of(readers, weights, index))
            digest, size_bytes = writer.finish()
        target.replace(self._slot.model(digest))
        return digest, size_bytes

    async def _fix(self, record: RoundRecord) -> RoundRecord:
        """Create the outcome, or adopt the one that exists."""
        name = f"{self._uid}.{record.number}"
        try:
            await self._resources.create(ROUND, name, body_of(record))
        except Conflict:
            stored = await self._resources.get(ROUND, name)
            return value_of(RoundRecord, stored.document)
        return record

    def _clean(self, job: Job) -> None:
        """Remove updates that do not belong to this round, and all models but its own.

        Never before the outcome of the round they belong to is committed: a round that is aggregated again after a crash
        needs all of them.
        """
        digests = {worker: update.digest for worker, update in job.updates.items()}
        digests |= {worker: offer.blob.digest for worker, offer in job.collecting.items()}
        keep = {self._update_path(worker, digest) for worker, digest in digests.items()}
        keep |= {self._slot.model(job.base.digest)} if job.base else set()
        for folder in (self._slot.updates, self._slot.path / "models"):
            for file in folder.glob("*.safetensors"):
                if file not in keep:
                    file.unlink(missing_ok=True)

    async def _base_model(self) -> BlobRef | None:
        base = self._plan.base
        if base is None or self._job.base is not None:
            return None
        path = self._slot.model(base.digest)
        while not path.exists():
            try:
                await self._blobs.get(base.digest, path)
            except NotFound:
                log.error("base_model_missing", model=self._plan.model, digest=base.digest)
                await asyncio.sleep(5)
            except BusError as error:
                log.warning("base_model_delayed", cause=str(error))
                await asyncio.sleep(1)
        return BlobRef(base.digest, path.stat().st_size)

    # --- sending

    def _encoded(self, event: Event) -> bytes:
        header = Header(self._me.source, self._store.incarnation)
        return encode(Envelope(header, event, new_id(), time.time(), self._me.task))

    async def _publish(self, address: Address, event: Event) -> None:
        try:
            await self._bus.publish(address, self._encoded(event))
        except BusError as error:
            # Everything sent here is asked for again by its reader, or is a signal.
            log.debug("event_not_sent", topic=address.topic(), cause=str(error))


def _problem(path: Path, blob: BlobRef, base: ArrayTable | None) -> str | None:
    """What is wrong with an update's file, in one line, or None."""
    try:
        file = ArrayFile.open(path, blob.digest)
    except (DamagedFile, NotFound) as error:
        return f"the update cannot be read: {error}"
    return check_arrays(base.entries if base else None, file)


async def main() -> None:
    """Entry of the built-in role; the environment is that of any worker."""
    environment = WorkerEnvironment.read()
    start(SERVICE)
    store = await EdgeStore.open(environment.slot.state)
    bus = environment.open_bus()
    assert isinstance(bus, NatsBus)
    try:
        async with bus:
            await Aggregation(environment, bus, store).run()
    finally:
        await store.close()
