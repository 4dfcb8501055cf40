"""LocalController: keeps one node as its desired document says.

It reads the node's desired document, runs one slot machine per assignment (lifecycle.worker), verifies datasets, brings
scripts and models, launches workers, and publishes what it observes. It needs no WAN to go on with what it holds. It decides
nothing about tasks and rounds and never opens an update.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from edgeai import metrics
from edgeai.bus.base import Bus, Deliveries, Delivery
from edgeai.bus.echo import Echoes, echoing
from edgeai.controller.cache import BlobCache
from edgeai.controller.datasets import (
    DatasetProblem,
    Fingerprint,
    Stamp,
    inspect,
    local_path,
    note_of,
    place_of,
    under_allowed_roots,
)
from edgeai.controller.inference import InferenceWorkers, job_fed_by
from edgeai.controller.inference import Node as InferenceNode
from edgeai.controller.inputs import Inputs, Verified
from edgeai.controller.jobs import Jobs, Limits, Node
from edgeai.controller.places import Places, Prepared, ProcessPlaces
from edgeai.controller.remote import Stores
from edgeai.controller.scanning import Scans
from edgeai.controller.scripts import PreparationProblem, require_boot_file
from edgeai.controller.spans import StartSpans
from edgeai.controller.threads import to_its_end
from edgeai.controller.traces import Change
from edgeai.controller.watching import Watcher, noted
from edgeai.errors import (
    BusError,
    DamagedFile,
    EdgeaiError,
    EngineUnavailable,
    LaunchError,
    MalformedEvent,
    NotFound,
    PayloadTooLarge,
    StoreError,
)
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import (
    JOB_ROLES,
    SERVICE_ROLES,
    Absent,
    Assignment,
    BlobGone,
    BlobWanted,
    DatasetObserved,
    DatasetWanted,
    Desired,
    Event,
    ExamplesAnswered,
    ExamplesRequested,
    Fetch,
    Heartbeat,
    HeldAtEdge,
    HeldInCloud,
    InferencesReturned,
    Inferring,
    LabelsGiven,
    LabelsTaken,
    LogAnswered,
    LogRequested,
    Membership,
    ModelAtHand,
    Observed,
    Progress,
    Pull,
    Ranges,
    Receipt,
    Role,
    RoundPhase,
    RoundState,
    ServeModel,
    ServiceEndpoint,
    Serving,
    Usage,
)
from edgeai.events.envelope import Envelope, Header, decode, decode_chunk, decode_header, encode
from edgeai.events.tokens import is_token, token_digest
from edgeai.launcher.base import MAX_DEPTH, ExitReason, ExitRecord, Launcher, Running, Stats
from edgeai.launcher.disk import in_words, remove_tree
from edgeai.launcher.slots import SlotDir, SlotFile, model_name
from edgeai.lifecycle import worker as slots
from edgeai.lifecycle.base import Command
from edgeai.lifecycle.swaps import Known
from edgeai.lifecycle.worker import Slot
from edgeai.logs import is_log_line
from edgeai.metrics import End, Refusal
from edgeai.reactor import Reactor
from edgeai.resources.dataset import is_remote
from edgeai.store.base import BlobStore
from edgeai.store.documents import Documents
from edgeai.store.edge import EdgeStore
from edgeai.store.identity import new_id
from edgeai.store.journal import SqliteJournal
from edgeai.store.outbox import Outbox
from edgeai.store.transfers import Receiver, Sender

log = structlog.get_logger()

HEARTBEAT_S = 5.0
STOP_GRACE_S = 5.0
TIDY_S, UNUSED_S = 60.0, 600.0
MODEL_RETRY_S = 5.0
INPUT_RETRY_S = 5.0
"""So often it is looked whether what an inference worker reads is there: it serves for ever, and its file may come later."""
MAX_DAMAGED = 3
"""So often what an edge gave of a model may be damaged; then the model is lost."""
ENGINE_RETRY_S = 2.0
STORE_RETRY_S = 30.0
USAGE_S, FIRST_USAGE_S = 10.0, 1.0
_TAKEN_UP = ""
_INFERENCE = "inference"
"""machine, in the node's store, of what workers of services have told last"""
_OWN_SIGNALS = frozenset({"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"})
"""What a program brings on itself."""
"""Key of an event that changes nothing: when it is acknowledged, those before it are committed."""


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """`worker_bus` and `worker_credentials` are handed to workers; datasets and absolute script folders must lie under
    `allowed_roots`; a dataset in a store may name a file in `secrets`."""

    node: str
    state_dir: Path
    worker_bus: str
    worker_credentials: Path
    allowed_roots: Sequence[Path] = ()
    info: dict[str, str] = field(default_factory=dict)
    worker_env: dict[str, str] = field(default_factory=dict)
    secrets: Path | None = None
    job_limits: Limits = field(default_factory=Limits)


class LocalController:
    """One node's controller. `library` is given on the cloud node: it serves scripts and models to the edges.

    `places` belong to the launcher; without, workers are processes.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        bus: Bus,
        store: EdgeStore,
        launcher: Launcher,
        library: BlobStore | None = None,
        *,
        places: Places | None = None,
    ) -> None:
        self._settings, self._bus, self._store, self._launcher, self._library = settings, bus, store, launcher, library
        self._places = places or ProcessPlaces(
            settings.node, settings.worker_bus, settings.worker_credentials, settings.worker_env
        )
        self._node = settings.node
        self._info = {"python": platform.python_version(), "machine": platform.machine(), **settings.info}
        self._documents = Documents(store, bus, self._node)
        self._outbox = Outbox(store, bus, self._node)
        self._receiver = Receiver(settings.state_dir / "parts")
        self._sender = Sender(bus, self._node)
        receiver, sender = self._receiver, self._sender
        metrics.follow_transfers(self._node, lambda: (receiver.counts.received_bytes, sender.sent_bytes))
        self._cache = BlobCache(settings.state_dir / "blobs", self._node, bus, self._receiver, library)
        self._inputs = Inputs(self._node, self._places, self._cache)
        self._jobs = Jobs(self._as_jobs_see_it(), store, self._cache)
        self._inference = InferenceWorkers(self._as_services_see_it(), self._cache)
        self._stores = Stores(settings.state_dir / "fetched", settings.secrets)
        self._scans = Scans()
        self._watcher = Watcher(self._dataset_place, self._dataset_changed, note=self._dataset_note)
        self._placed: frozenset[str] = frozenset()
        self._slots_moved = asyncio.Event()
        self._blobs: frozenset[str] = frozenset()
        self._bringing: dict[str, asyncio.Task[Any]] = {}
        """what is being brought from an edge into the library, by digest"""
        self._lost: dict[str, str] = {}
        """what is wanted and can never be brought, and why"""
        journal = SqliteJournal(store, Slot, node=self._node, source=self._node)
        self._reactor = Reactor(slots.MACHINE, journal, self._perform, on_commit=self._committed)
        self._desired, self._desired_generation = Desired(), 0
        self._datasets: dict[str, DatasetObserved] = {}
        self._notes: dict[str, str] = {}
        """of datasets that can be used, what is to be known of them"""
        self._spans = StartSpans(self._node)
        self._locks: dict[str, asyncio.Lock] = {}
        self._preparing: dict[str, asyncio.Task[Any]] = {}
        self._fetching = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()
        self._rounds: dict[str, tuple[tuple[int, int], RoundState, asyncio.Task[Any]]] = {}
        """by task: its round's newest document and the version of it, and what brings that round's model"""
        self.refused: Counter[str] = Counter()
        """what came in a worker's name without the token of its run, by slot; under no name: there is no such worker"""
        self._started = time.monotonic()

    def note(self, **info: str) -> None:
        """What else is to be observed of this node."""
        self._info.update(info)

    def services(self) -> set[str]:
        """Names of the joint inference services that have a worker on this node."""
        return {
            slot.assignment.task_name
            for slot in self._slots()
            if slot.assignment is not None and slot.assignment.role is Role.EDGE
        }

    async def run(self) -> None:
        """Run until cancelled; workers stay."""
        await self._reactor.load()
        await self._jobs.load()
        await self._inference.load()
        for delivery in await self._documents.load():
            if delivery.address.kind == Desired.kind:
                envelope = decode(delivery.payload)
                assert isinstance(envelope.event, Desired)
                self._take(envelope.event, envelope.header.sequence)
        await self._jobs.slots_changed(self._slots())  # what an earlier life was about to tell them
        node = self._node
        patterns = [Pattern(node, Direction.DOWN)]
        if self._library is not None:
            patterns.append(Pattern(None, Direction.UP, EventClass.TRANSFER, Fetch.kind, "", ""))
            patterns += [
                Pattern(None, Direction.UP, EventClass.TRANSFER, kind, None, "") for kind in ("chunk", BlobGone.kind)
            ]
        async with (
            self._places.serving(),
            self._bus.subscribe(*patterns) as deliveries,
            echoing(self._bus, node) as echoes,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._reactor.run())
            group.create_task(self._jobs.run())
            group.create_task(self._inference.run())
            group.create_task(self._watcher.run())
            group.create_task(self._outbox.run())
            group.create_task(self._heartbeat(echoes, deliveries))
            group.create_task(self._tidy())
            group.create_task(self._hear_workers())
            group.create_task(self._documents.compare_for_ever(self._address(HeldAtEdge)))
            self._bus.on_connect(self._on_connect)
            await self._observe()
            async for delivery in deliveries:
                try:
                    await self._handle(delivery)
                except MalformedEvent as error:
                    metrics.message_refused(Refusal.MALFORMED)
                    log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))

    async def _on_connect(self) -> None:
        await self._documents.compare(self._address(HeldAtEdge))
        await self._documents.resend_all()
        self._receiver.nudge()

    async def _tidy(self) -> None:
        """Remove cached blobs that no worker of this node needs and nobody has asked for of late."""
        while True:
            await asyncio.sleep(TIDY_S)
            needed = {
                slot.assignment.script.digest for slot in self._slots() if slot.assignment and slot.assignment.script
            }
            models = {path.stem for slot in self._slots() for path in self._models_in(slot)}
            served = self._inference.models_in_use()
            await asyncio.to_thread(self._cache.tidy, needed | models | served, UNUSED_S)

    async def _heartbeat(self, echoes: Echoes, deliveries: Deliveries) -> None:
        while True:
            began = time.monotonic()
            broker_s, silent = await echoes.round_trip()
            outbox = await self._store.waiting_count()
            metrics.outbox_depth(self._node, outbox)
            uptime_s = time.monotonic() - self._started
            beat = Heartbeat(uptime_s, outbox, broker_s, silent, deliveries.waiting)
            await self._publish(self._address(Heartbeat), beat)
            await asyncio.sleep(HEARTBEAT_S - min(time.monotonic() - began, HEARTBEAT_S / 2))

    # --- what arrives

    async def _handle(self, delivery: Delivery) -> None:
        address = delivery.address
        if address.kind == "chunk":
            self._receiver.arrived(decode_chunk(delivery.payload)[1])
            return
        if not delivery.payload or address.kind == InferencesReturned.kind:  # these are many, and for a worker alone
            return
        envelope = decode(delivery.payload)
        match envelope.event:
            case Desired() as desired:
                if await self._documents.accept(delivery, envelope.header):
                    self._take(desired, envelope.header.sequence)
                    await self._observe()
            case RoundState() as state:
                if any(slot.assignment and slot.assignment.task == address.task for slot in self._slots()):
                    self._follow_round(address.task, envelope.header, state)
            case Absent(digest=digest, reason=reason):
                self._receiver.absent(digest, reason)
            case BlobGone(digest=digest, reason=reason):
                # Only the edge that is to give it may say so.
                if any(
                    (each.blob.digest, each.node, each.task) == (digest, address.node, address.task)
                    for each in self._desired.blobs
                ):
                    self._receiver.absent(digest, reason)
            case Receipt() as receipt:
                await self._outbox.receipted(receipt)
            case ServiceEndpoint() | Membership():
                # For this node's workers; held here as well, so that the owner need not send it again.
                await self._documents.accept(delivery, envelope.header)
            case HeldInCloud(documents=held) if not address.task:
                await self._documents.resend(address, held)
            case Fetch() as fetch:
                self._spawn(self._serve(address.node, fetch))
            case Pull() as pull if not address.worker:
                self._spawn(self._answer_pull(address, pull))
            case LogRequested() as request:
                self._spawn(self._answer_log(address, envelope, request))
            case ExamplesRequested() | LabelsGiven() as request:
                self._spawn(self._answer_about_examples(address, envelope, request))
            case other:
                log.debug("event_ignored", kind=other.kind)

    async def _hear_workers(self) -> None:
        """Workers speak to the cloud's watchers through their controller: nobody else on this node knows whose word it is.

        In an inbox of its own: a worker that says too much crowds out nothing else.
        """
        kinds = (Progress.kind, Serving.kind, Inferring.kind)
        said = [Pattern(self._node, Direction.LOCAL, EventClass.SIGNAL, kind) for kind in kinds]
        async with self._bus.subscribe(*said) as deliveries:
            async for delivery in deliveries:
                try:
                    await self._pass_on(delivery)
                except MalformedEvent as error:
                    self._refuse(delivery.address, Refusal.MALFORMED, str(error))
                except PayloadTooLarge as error:
                    self._refuse(delivery.address, Refusal.TOO_LARGE, str(error))

    async def _pass_on(self, delivery: Delivery) -> None:
        """What carries the token of its worker's run goes on in the node's name. A run that is over has no token."""
        address, token = delivery.address, decode_header(delivery.payload).token
        slot = self._reactor.states.get(f"{address.task}/{address.worker}")
        run = slots.observe(slot) if slot is not None else None
        if run is None or not is_token(run.token, run.task_uid, run.worker, token):
            reason = f"it does not carry the token of the current run of {address.worker}"
            self._refuse(address, Refusal.FOREIGN, reason)
            return
        event = decode(delivery.payload).event
        if not isinstance(event, Progress | Serving | Inferring):
            raise MalformedEvent(f"{event.kind} where a worker says how far it is")
        if isinstance(event, Serving):
            self._jobs.hear(address.task, event, run.token)
        if isinstance(event, Inferring):
            await self._inference.hear(address.task, run.task_uid, address.worker, event)
        await self._publish(replace(address, direction=event.direction), event)

    def _refuse(self, address: Address, why: Refusal, reason: str) -> None:
        """Counted by name; told the first time, and then ever less often."""
        metrics.message_refused(why)
        key = f"{address.task}/{address.worker}"
        key = key if key in self._reactor.states else ""
        self.refused[key] += 1
        if self.refused[key].bit_count() == 1:
            log.warning("event_refused", topic=address.topic(), reason=reason, refused=self.refused[key])

    def _take(self, desired: Desired, generation: int) -> None:
        """Bring jobs, slots and datasets in line with the desired document; it counts as taken up when that is committed."""
        self._desired = desired

        async def taken_up() -> None:
            self._desired_generation = max(self._desired_generation, generation)
            await self._observe()

        self._jobs.take(desired.jobs)
        self._inference.take(desired.serving)
        self._place()
        self._reactor.post(_TAKEN_UP, slots.Unwanted(), taken_up)
        names = {dataset.name for dataset in desired.datasets}
        self._datasets = {name: found for name, found in self._datasets.items() if name in names}
        self._notes = {name: note for name, note in self._notes.items() if name in names}
        self._watcher.follow(desired.datasets)
        self._scans.keep(names)
        self._bring_blobs(desired.blobs)

    def _place(self) -> None:
        """Bring the slots in line with what is desired and with what follows from the jobs."""
        wanted = {
            _key(assignment): assignment for assignment in (*self._desired.assignments, *self._jobs.assignments())
        }
        # A slot that was wanted before may not be among the states yet: what asks for it still waits to be committed.
        for key in {*self._reactor.states, *self._placed} - wanted.keys():
            self._reactor.post(key, slots.Unwanted())
        for key, assignment in wanted.items():
            self._reactor.post(key, slots.Wanted(assignment))
        self._placed = frozenset(wanted)

    def _dataset_place(self, wanted: DatasetWanted, *, bring: bool = True) -> Path:
        """Blocks if it is to be brought from a store. Raises DatasetProblem."""
        return place_of(wanted, self._settings.allowed_roots, self._stores, bring=bring)

    def _dataset_note(self, wanted: DatasetWanted) -> str:
        return note_of(wanted, self._stores)

    async def _dataset_changed(self, wanted: DatasetWanted, change: Change) -> None:
        await self._verify(wanted, change)

    async def _verify(
        self, wanted: DatasetWanted, change: Change | None = None
    ) -> tuple[DatasetObserved, Stamp | None]:
        # Whoever is to train on it asks for another reason than a change: then all of it is read.
        scans = self._scans if change is not None else None
        found, stamp = await asyncio.to_thread(inspect, wanted, self._settings.allowed_roots, self._stores, scans)
        if wanted not in self._desired.datasets:
            return found, stamp
        found = noted(self._datasets.get(wanted.name), found, change, wanted.format)
        note = self._dataset_note(wanted) if found.ready else ""
        if (self._datasets.get(wanted.name), self._notes.get(wanted.name, "")) != (found, note):
            self._datasets[wanted.name], self._notes[wanted.name] = found, note
            log.info("dataset_verified", dataset=wanted.name, ready=found.ready, reason=note or found.reason)
            await self._observe()
        return found, stamp

    def _follow_round(self, task: str, header: Header, state: RoundState) -> None:
        """Bring the model of the newest round of a task; a download for an older one ends."""
        version = header.incarnation, header.sequence
        if task in self._rounds:
            known, _, bringing = self._rounds[task]
            if version < known or (version == known and not bringing.done()):
                return
            bringing.cancel()
        self._rounds[task] = version, state, self._spawn(self._bring_round_model(task, state))

    async def _bring_round_model(self, task: str, state: RoundState) -> None:
        """Fetch a round's model once and link it into the slots of this task. Tries until it is overtaken."""
        model = state.model
        if state.phase is not RoundPhase.OPEN or model is None or model.inline is not None:
            return
        while True:
            try:
                await self._cache.bring(model, task)
                break
            except (NotFound, StoreError) as error:
                log.warning("round_model_not_fetched", task=task, round=state.number, reason=str(error))
            await asyncio.sleep(MODEL_RETRY_S)
        for slot in self._slots():
            if slot.assignment and slot.assignment.task == task and slot.assignment.role is Role.TRAINING:
                here = self._places.models(self._slot_dir(slot.assignment)) / model_name(model.digest)
                await self._cache.link(model.digest, here)
                await to_its_end(self._places.open_up, here)
                for old in self._models_in(slot):
                    if old.stem != model.digest:
                        self._cache.forget(old.stem)
                        old.unlink(missing_ok=True)
        to = Address(self._node, Direction.LOCAL, EventClass.STATE, ModelAtHand.kind, task)
        await self._publish(to, ModelAtHand(model.digest, str(self._cache.path(model.digest))))

    def _models_in(self, slot: Slot) -> list[Path]:
        """The models that this controller has put into a slot."""
        if slot.assignment is None or slot.assignment.role is not Role.TRAINING:
            return []
        return list(self._places.models(self._slot_dir(slot.assignment)).glob(model_name("*")))

    async def _serve(self, node: str, fetch: Fetch) -> None:
        """The library of the cloud node: send ranges of a blob to a node."""
        assert self._library is not None
        path = self._cache.path(fetch.digest)
        async with self._fetching:
            if not path.exists():
                try:
                    await self._library.get(fetch.digest, path)
                except NotFound:
                    to = Address(node, Direction.DOWN, EventClass.TRANSFER, Absent.kind)
                    await self._publish(to, Absent(fetch.digest, "the object store does not have this blob"))
                    return
        to = Address(node, Direction.DOWN, EventClass.TRANSFER, "chunk")
        await self._sender.answer(fetch.digest, fetch.ranges, path, path.stat().st_size, to)

    async def _answer_log(self, address: Address, envelope: Envelope, request: LogRequested) -> None:
        slot = self._reactor.states.get(f"{address.task}/{address.worker}")
        if slot is None or slot.assignment is None:
            answer = LogAnswered(0, 0, b"", True, f"{address.worker} is not on {self._node}")
        else:
            ended = slot.phase in {slots.WorkerPhase.DONE, slots.WorkerPhase.FAILED}
            answer = await self._log_part(self._slot_dir(slot.assignment), request.offset, ended)
        to = Address(self._node, Direction.UP, EventClass.REQUEST, LogAnswered.kind, address.task, address.worker)
        header = Header(self._node, correlation=envelope.header.correlation)
        await self._publish(to, answer, header)

    async def _log_part(self, folder: SlotDir, offset: int, ended: bool) -> LogAnswered:
        try:
            part = await self._launcher.read_log(folder.path, offset)
        except LaunchError as error:
            return LogAnswered(max(offset, 0), max(offset, 0), b"", False, str(error))
        return LogAnswered(part.offset, part.next_offset, part.text, part.ended and ended)

    # --- for incremental learning jobs

    def _as_jobs_see_it(self) -> Node:
        roots = self._settings.allowed_roots

        async def dataset(name: str) -> tuple[DatasetWanted, Path]:
            wanted = self._here(name)
            # What is in a store is brought by whoever watches it: no job waits for it here.
            return wanted, await asyncio.to_thread(self._dataset_place, wanted, bring=False)

        async def tell(level: str, event: ServeModel, trace: str) -> None:
            to = Address(self._node, event.direction, event.event_class, event.kind, level)
            await self._publish(to, event, trace=trace)

        return Node(
            name=self._node,
            state_dir=self._settings.state_dir,
            places=self._places,
            changed=self._jobs_changed,
            workers_gone=self._workers_gone,
            slot=lambda level, worker: SlotDir(self._settings.state_dir / "slots" / level / worker),
            feeders=lambda job: [
                (each.task, each.worker) for each in self._desired.assignments if job_fed_by(each) == job
            ],
            dataset=dataset,
            labels=lambda url: local_path(url, roots),
            tell=tell,
            limits=self._settings.job_limits,
        )

    def _as_services_see_it(self) -> InferenceNode:
        async def tell(level: str, worker: str, event: ServeModel) -> None:
            to = Address(self._node, event.direction, event.event_class, event.kind, level, worker)
            await self._publish(to, event)

        async def changed() -> None:
            self._outbox.wake()
            await self._observe()

        return InferenceNode(
            places=self._places,
            slot=lambda level, worker: SlotDir(self._settings.state_dir / "slots" / level / worker),
            tell=tell,
            changed=changed,
            journal=SqliteJournal(self._store, Known, node=self._node, source=self._node, machine=_INFERENCE),
        )

    async def _workers_gone(self, level: str) -> None:
        while True:
            if not self._slots_of(level):
                return
            await self._slots_moved.wait()

    async def _answer_about_examples(
        self, address: Address, envelope: Envelope, request: ExamplesRequested | LabelsGiven
    ) -> None:
        answer: ExamplesAnswered | LabelsTaken
        try:
            examples = await self._jobs.examples_of(address.task)
            if isinstance(request, LabelsGiven):
                answer = LabelsTaken(*await examples.label(request.labels))
            else:
                waiting = (await examples.counts()).unlabelled
                found, rest = await examples.unlabelled(request.limit, request.inputs, request.after)
                answer = ExamplesAnswered(found, waiting, rest=rest)
        except (EdgeaiError, ValueError) as error:
            failed = LabelsTaken(0, error=str(error))
            answer = failed if isinstance(request, LabelsGiven) else ExamplesAnswered((), 0, str(error))
        to = Address(self._node, answer.direction, answer.event_class, answer.kind, address.task)
        await self._publish(to, answer, Header(self._node, correlation=envelope.header.correlation))

    async def _answer_pull(self, address: Address, pull: Pull) -> None:
        """The cloud brings a model that a job of this node has made."""
        path = await self._jobs.model_file(address.task, pull.digest)
        if path is None:
            reason = f"{self._node} does not have it any more: its file was damaged, or removed to keep within a limit"
            log.warning("pull_not_answered", digest=pull.digest[:12], reason=reason)
            gone = BlobGone(pull.digest, reason)
            await self._publish(Address(self._node, gone.direction, gone.event_class, gone.kind, address.task), gone)
            return
        to = Address(self._node, Direction.UP, EventClass.TRANSFER, "chunk", address.task)
        await self._sender.answer(pull.digest, pull.ranges, path, path.stat().st_size, to)

    def _bring_blobs(self, wanted: Sequence[BlobWanted]) -> None:
        """On the cloud node: bring what edges have made into the library, each for as long as it is wanted."""
        if self._library is None:
            return
        digests = {each.blob.digest for each in wanted}
        for digest in self._bringing.keys() - digests:
            self._bringing.pop(digest).cancel()
        self._blobs &= digests
        self._lost = {digest: reason for digest, reason in self._lost.items() if digest in digests}
        known = self._bringing.keys() | self._blobs | self._lost.keys()
        for each in wanted:
            if each.blob.digest not in known:
                self._bringing[each.blob.digest] = self._spawn(self._bring_blob(self._library, each))

    async def _bring_blob(self, library: BlobStore, wanted: BlobWanted) -> None:
        digest = wanted.blob.digest
        path = self._settings.state_dir / "parts" / f"{digest}.brought"
        to = Address(wanted.node, Direction.DOWN, EventClass.TRANSFER, Pull.kind, wanted.task)

        async def ask(ranges: Ranges) -> None:
            await self._publish(to, Pull(digest, ranges))

        damaged = 0
        while True:
            try:
                if not await library.has(digest):
                    await self._receiver.fetch(digest, wanted.blob.size_bytes, ask, path)
                    await library.put(digest, path)
                self._blobs |= {digest}
                break
            except NotFound as error:
                if error.kind == "blob":
                    self._lost[digest] = str(error)
            except DamagedFile as error:
                damaged += 1
                if damaged >= MAX_DAMAGED:
                    self._lost[digest] = f"what {wanted.node} sends of it is damaged: {error}"
                log.warning("model_not_brought", digest=digest[:12], node=wanted.node, reason=str(error))
            except (EdgeaiError, OSError) as error:
                log.warning("model_not_brought", digest=digest[:12], node=wanted.node, reason=str(error))
            if digest in self._lost:
                log.warning("model_lost", digest=digest[:12], node=wanted.node, reason=self._lost[digest])
                break
            await asyncio.sleep(MODEL_RETRY_S)
        path.unlink(missing_ok=True)
        self._bringing.pop(digest, None)
        await self._observe()

    # --- what the machines ask for

    async def _perform(self, key: str, command: Command) -> Any:
        if isinstance(command, slots.Stop) and key in self._preparing:
            # It may wait for a script for as long as its source is away.
            self._preparing[key].cancel()
        async with self._locks.setdefault(key, asyncio.Lock()):
            match command:
                case slots.Prepare(assignment=assignment):
                    return await self._prepare_unless_stopped(key, assignment)
                case slots.Start(assignment=assignment):
                    return await self._start(key, assignment)
                case slots.Stop(assignment=assignment):
                    return await self._stop(assignment)
                case slots.Remove(assignment=assignment):
                    return await self._remove(assignment)
        match command:
            case slots.Watch(assignment=assignment):
                return await self._watch(assignment)
        raise AssertionError(f"unknown command {command}")

    async def _prepare_unless_stopped(self, key: str, assignment: Assignment) -> Any:
        self._spans.preparing(key)
        preparing = asyncio.ensure_future(self._prepare(assignment))
        self._preparing[key] = preparing
        try:
            await asyncio.wait({preparing})
        finally:
            preparing.cancel()
            del self._preparing[key]
        if preparing.cancelled():
            return None
        if (error := preparing.exception()) is not None:
            # Not foreseen: it is tried again, and whoever looks at the task can read it.
            log.error("preparation_failed", task=assignment.task, worker=assignment.worker, exc_info=error)
            return slots.PrepareFailed(f"{self._node}: {type(error).__name__}: {error}", retry_s=5.0)
        prepared = preparing.result()
        if isinstance(prepared, slots.PrepareFailed):
            self._spans.failed(key, assignment, prepared.reason)
        return prepared

    async def _prepare(self, assignment: Assignment) -> Any:
        folder, dataset_path, verified, samples = self._slot_dir(assignment), "", Verified(), 0
        try:
            folder.create()
            await self._places.check(assignment)
            if assignment.role is Role.TRAINING:
                self._places.models(folder).mkdir(parents=True, exist_ok=True)
                await to_its_end(self._places.open_up, self._places.models(folder))
                if assignment.dataset:
                    path, fingerprint, samples = await self._dataset(assignment.dataset)
                    dataset_path, verified = self._places.seen(path), replace(verified, dataset=fingerprint)
                await to_its_end(self._inputs.note, folder, await self._script(assignment, folder, verified))
            if assignment.role in SERVICE_ROLES:
                await self._inference.prepare(assignment, folder)
                await to_its_end(self._inputs.note, folder, await self._script(assignment, folder, verified))
            if assignment.role in JOB_ROLES:
                dataset = await self._jobs.prepare(assignment, folder)
                if assignment.dataset:
                    dataset = await asyncio.to_thread(self._dataset_place, self._here(assignment.dataset))
                dataset_path = self._places.seen(dataset) if dataset is not None else ""
                await to_its_end(self._inputs.note, folder, await self._script(assignment, folder, verified))
            await to_its_end(folder.write_slot, SlotFile(self._node, assignment, dataset_path))
        except EngineUnavailable as error:
            return slots.PrepareFailed(str(error), retry_s=ENGINE_RETRY_S)
        except DatasetProblem as error:
            wanted = self._wanted_dataset(assignment.dataset)
            in_a_store = wanted is not None and is_remote(wanted.url)
            retry_s = STORE_RETRY_S if in_a_store else _retry_s(assignment)
            return slots.PrepareFailed(str(error), retry_s=retry_s)
        except (PreparationProblem, DamagedFile) as error:
            return slots.PrepareFailed(str(error))
        except (NotFound, StoreError) as error:
            return slots.PrepareFailed(str(error), retry_s=5.0)
        except OSError as error:
            return slots.PrepareFailed(f"{self._node}: {error}", retry_s=5.0)
        return slots.Prepared(verified.dataset.digest if verified.dataset else "", samples)

    async def _script(self, assignment: Assignment, folder: SlotDir, verified: Verified) -> Verified:
        if assignment.script is not None:
            return replace(verified, script=await self._inputs.bring_script(assignment, folder))
        require_boot_file(self._given_script(assignment), assignment.boot_file)
        return verified

    def _here(self, dataset: str) -> DatasetWanted:
        """Raises DatasetProblem."""
        wanted = self._wanted_dataset(dataset)
        if wanted is None:
            raise DatasetProblem(f"dataset {dataset} is not on {self._node}")
        return wanted

    async def _dataset(self, name: str) -> tuple[Path, Fingerprint, int]:
        """Where it is, what it is known by, and how many examples it has. Raises DatasetProblem."""
        wanted = self._here(name)
        found, stamp = await self._verify(wanted)
        if not found.ready or stamp is None:
            raise DatasetProblem(f"dataset {name}: {found.reason}")
        return self._dataset_place(wanted, bring=False), Fingerprint(found.digest, stamp), found.samples

    def _wanted_dataset(self, name: str) -> DatasetWanted | None:
        return next((item for item in self._desired.datasets if item.name == name), None)

    def _given_script(self, assignment: Assignment) -> Path:
        """A script folder that lies on this node. Raises DatasetProblem."""
        return under_allowed_roots(Path(assignment.script_dir), self._settings.allowed_roots, want_file=False)

    def _prepared(self, assignment: Assignment, folder: SlotDir) -> Prepared:
        """What was brought for a worker. Raises DatasetProblem if something of it has gone."""
        if assignment.role is Role.AGGREGATION:
            return Prepared(folder)
        script = self._places.script(folder) if assignment.script is not None else self._given_script(assignment)
        wanted = self._wanted_dataset(assignment.dataset)
        dataset = self._dataset_place(wanted, bring=False) if wanted is not None else None
        return Prepared(folder, script, dataset or self._jobs.dataset_of(assignment))

    async def _start(self, key: str, assignment: Assignment) -> Any:
        folder, began_s = self._slot_dir(assignment), time.time()
        try:
            prepared = self._prepared(assignment, folder)
            spec = self._places.launch(key, assignment, prepared)
            fresh = await self._launcher.adopt(key, folder.path) is None
            if fresh:
                await self._require_verified(assignment, prepared)
                await asyncio.to_thread(folder.renew_token)
            running = await self._launcher.start(spec)
            if fresh:
                await self._require_mounted(assignment, prepared, running)
        except (EngineUnavailable, StoreError, OSError) as error:
            return slots.StartFailed(str(error), retry_s=ENGINE_RETRY_S)
        except (LaunchError, PreparationProblem, DatasetProblem) as error:
            self._spans.failed(key, assignment, str(error))
            log.warning("worker_not_started", task=assignment.task, worker=assignment.worker, cause=str(error))
            # Launchers name the slot; whoever reads the worker's row knows which one it is.
            retry_s = _retry_s(assignment) if isinstance(error, DatasetProblem) else None
            return slots.StartFailed(str(error).removeprefix(f"{key} "), retry_s)
        if fresh:
            metrics.worker_started(assignment.role)
        log.info("worker_started", task=assignment.task, worker=assignment.worker, pid=running.pid)
        token = await asyncio.to_thread(folder.read_token)
        digest = token_digest(assignment.task_uid, assignment.worker, token)
        self._spans.started(key, assignment, digest, began_s)
        return slots.Started(running.pid, digest)

    async def _require_verified(self, assignment: Assignment, prepared: Prepared) -> None:
        """Right before a start. Raises DatasetProblem, PreparationProblem, StoreError."""
        if assignment.role is Role.AGGREGATION:
            return
        # What an inference worker reads may grow.
        wanted = self._wanted_dataset(assignment.dataset) if assignment.role is Role.TRAINING else None
        damaged = await self._inputs.require(assignment, prepared, wanted)
        if damaged and assignment.task in self._rounds:
            version, state, bringing = self._rounds[assignment.task]
            bringing.cancel()
            again = self._spawn(self._bring_round_model(assignment.task, state))
            self._rounds[assignment.task] = version, state, again

    async def _require_mounted(self, assignment: Assignment, prepared: Prepared, running: Running) -> None:
        """Right after it: what was looked at is what the worker got. Raises DatasetProblem when the worker is stopped."""
        if assignment.role in JOB_ROLES | SERVICE_ROLES:
            return
        try:
            wanted = self._wanted_dataset(assignment.dataset)
            await asyncio.to_thread(self._inputs.require_mounted, prepared, wanted)
        except DatasetProblem:
            await self._launcher.stop(running, STOP_GRACE_S)
            raise

    async def _watch(self, assignment: Assignment) -> Any:
        folder = self._slot_dir(assignment)
        running = await self._launcher.adopt(_key(assignment), folder.path)
        if running is not None:
            measuring = self._spawn(self._measure(assignment, running))
            try:
                record = await self._launcher.wait(running)
            finally:
                measuring.cancel()
        else:
            record = await self._launcher.last_exit(folder.path) or ExitRecord(ExitReason.LOST)
        slot = self._reactor.states.get(_key(assignment))
        stopped = slot is None or slot.phase is slots.WorkerPhase.STOPPING
        session = await asyncio.to_thread(folder.read_session)
        complete = record.code == 0 and session is not None and session.complete
        reason = "stopped" if stopped and not complete else _sentence(record, complete, assignment.role)
        metrics.worker_ended(assignment.role, End.FINISHED if complete else End.STOPPED if stopped else End.FAILED)
        log.info("worker_ended", task=assignment.task, worker=assignment.worker, complete=complete, reason=reason)
        return slots.Ended(complete, reason, _by_itself(record))

    async def _measure(self, assignment: Assignment, running: Running) -> None:
        """Tell what a worker uses, as far as its launcher can, until cancelled."""
        to = Address(self._node, Usage.direction, Usage.event_class, Usage.kind, assignment.task, assignment.worker)
        before: tuple[float, float] | None = None
        while True:
            found = await self._stats(running)
            pause_s = USAGE_S
            if found is not None:
                now = time.monotonic(), found.cpu_s
                await self._publish(to, _usage(found, before, now))
                # A rate needs two: whoever looks at a new worker should not wait for the second.
                pause_s = FIRST_USAGE_S if before is None else USAGE_S
                before = now
            await asyncio.sleep(pause_s)

    async def _stats(self, running: Running) -> Stats | None:
        try:
            async with aclosing(self._launcher.stats(running)) as samples:
                return await anext(samples, None)
        except LaunchError as error:
            log.debug("usage_not_known", worker=running.name, cause=str(error))
            return None

    async def _stop(self, assignment: Assignment) -> Any:
        folder = self._slot_dir(assignment)
        running = await self._launcher.adopt(_key(assignment), folder.path)
        if running is not None:
            await self._launcher.stop(running, STOP_GRACE_S)
        return slots.Stopped()

    async def _remove(self, assignment: Assignment) -> Any:
        folder = self._slot_dir(assignment)
        others = [slot.assignment for slot in self._slots() if slot.assignment is not None]
        others = [other for other in others if _key(other) != _key(assignment)]
        if not any(other.task == assignment.task for other in others) and assignment.task in self._rounds:
            self._rounds.pop(assignment.task)[-1].cancel()
        self._forget_blobs(assignment, others)
        if job := job_fed_by(assignment):
            await self._jobs.take_last(job, assignment.task, assignment.worker)
        await self._launcher.remove(folder.path)
        await asyncio.to_thread(remove_tree, folder.path)
        if all(self._is_removed(slot) for slot in self._slots_of(assignment.task)):
            await self._documents.forget(lambda address: address.task == assignment.task)
            await asyncio.to_thread(_remove_if_empty, folder.path.parent)
        await asyncio.to_thread(self._receiver.sweep)
        self.refused.pop(_key(assignment), None)
        await self._inference.forget(assignment.task, assignment.worker)
        self._locks.pop(_key(assignment), None)
        self._spans.forget(_key(assignment))
        return slots.Removed()

    def _is_removed(self, slot: Slot) -> bool:
        """Whether nothing is left of it on disk: of several that are removed at a time, the last one clears up behind them."""
        if slot.assignment is None:
            return True
        return slot.phase is slots.WorkerPhase.STOPPING and not self._slot_dir(slot.assignment).path.exists()

    def _slots_of(self, task: str) -> list[Slot]:
        return [slot for slot in self._slots() if slot.assignment is not None and slot.assignment.task == task]

    def _forget_blobs(self, assignment: Assignment, others: Sequence[Assignment]) -> None:
        """Of what was cached for a worker, nothing stays that no other worker of this node needs."""
        script = assignment.script
        if script is not None and all(other.script != script for other in others):
            self._cache.forget(script.digest)
        if assignment.role is Role.TRAINING and all(other.task != assignment.task for other in others):
            for model in self._places.models(self._slot_dir(assignment)).glob(model_name("*")):
                self._cache.forget(model.stem)

    # --- what is told

    async def _committed(self, keys: Iterable[str]) -> None:
        moved, self._slots_moved = self._slots_moved, asyncio.Event()
        moved.set()
        self._outbox.wake()
        await self._jobs.slots_changed([self._reactor.states[key] for key in keys if key in self._reactor.states])
        await self._observe()

    async def _jobs_changed(self) -> None:
        self._outbox.wake()
        self._place()
        await self._observe()

    async def _observe(self) -> None:
        """Publish what is so; an unchanged document is not sent."""
        workers = tuple(
            found for _, slot in sorted(self._reactor.states.items()) if (found := slots.observe(slot)) is not None
        )
        notes = self._notes
        metrics.workers(worker.state for worker in workers)
        datasets = tuple(
            replace(found, reason=notes.get(name) or found.reason) for name, found in sorted(self._datasets.items())
        )
        event = Observed(
            self._desired_generation,
            workers,
            datasets,
            dict(self._info),
            self._jobs.observe(),
            tuple(sorted(self._blobs)),
            self._inference.observe(),
            dict(sorted(self._lost.items())),
        )
        await self._documents.publish(self._address(Observed), event)

    async def _publish(self, address: Address, event: Event, header: Header | None = None, *, trace: str = "") -> None:
        try:
            payload = encode(Envelope(header or Header(self._node), event, new_id(), time.time(), address.task, trace))
            await self._bus.publish(address, payload)
        except BusError as error:
            log.debug("event_not_sent", topic=address.topic(), cause=str(error))

    def _slots(self) -> list[Slot]:
        return list(self._reactor.states.values())

    def _slot_dir(self, assignment: Assignment) -> SlotDir:
        return SlotDir(self._settings.state_dir / "slots" / assignment.task / assignment.worker)

    def _address(self, event: type[Event]) -> Address:
        return Address(self._node, event.direction, event.event_class, event.kind)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(_logged(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step, it would be complained about
        return task


async def _logged(work: Any) -> None:
    try:
        await work
    except Exception:
        log.exception("background_work_failed")


def _key(assignment: Assignment) -> str:
    return f"{assignment.task}/{assignment.worker}"


def _retry_s(assignment: Assignment) -> float | None:
    """Of a worker whose dataset cannot be used."""
    return INPUT_RETRY_S if assignment.role is Role.DEPLOY else None


def _usage(found: Stats, before: tuple[float, float] | None, now: tuple[float, float]) -> Usage:
    """`before` and `now`: moments, and the processor seconds used until then."""
    cpus = None if before is None else max(now[1] - before[1], 0.0) / max(now[0] - before[0], 0.001)
    return Usage(found.cpu_s, found.memory_bytes, found.memory_limit_bytes, found.pids, cpus)


def _by_itself(record: ExitRecord) -> bool:
    """Whether a program is to blame for its end: not if somebody has killed it, or it is gone with its machine."""
    return record.reason is not ExitReason.LOST and not (
        record.reason is ExitReason.KILLED and record.signal not in _OWN_SIGNALS
    )


def _sentence(record: ExitRecord, complete: bool, role: Role) -> str:
    """How a program ended, in one line."""
    if complete:
        return "finished"
    tail = f": {record.last_line}" if record.last_line else ""
    # Whoever exceeds a limit was cut short: what it said last is not why it ended, and our own log lines tell nobody anything.
    aside = f" (last line: {record.last_line})" if record.last_line and not is_log_line(record.last_line) else ""
    match record.reason:
        case ExitReason.EXITED if record.code == 0 and role in {Role.DEPLOY, *SERVICE_ROLES}:
            what = "job" if role is Role.DEPLOY else "service"
            return f"exited with code 0, but an inference worker is to answer for as long as its {what} lasts"
        case ExitReason.EXITED if record.code == 0 and role in JOB_ROLES:
            return "exited with code 0 without a report; the script must `await task.report(...)`"
        case ExitReason.EXITED if record.code == 0:
            return "exited with code 0 without a finished update; the script must submit in `async for round in task.rounds()`"
        case ExitReason.EXITED:
            return f"exited with code {record.code}{tail}"
        case ExitReason.OOM:
            limit = f" of {in_words(record.limit)}" if record.limit else ""
            return f"needed more memory than its limit{limit} (resources.memory) and was ended; raise it or use less{aside}"
        case ExitReason.DISK:
            limit = in_words(record.limit)
            return f"used more disk than its limit of {limit} (resources.disk) and was ended; raise it or write less{aside}"
        case ExitReason.FILES:
            return (
                f"made more than {record.limit} files and folders, or nested them more than {MAX_DEPTH} deep, and was"
                f" ended; write fewer files{aside}"
            )
        case ExitReason.KILLED:
            who = " (memory ran out, or somebody killed it)" if record.signal == "SIGKILL" else ""
            return f"was killed by {record.signal}{who}{tail}"
        case _:
            return f"vanished without an exit record (the machine restarted?){tail}"


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return
