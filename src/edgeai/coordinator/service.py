"""GlobalCoordinator: brings tasks, nodes, datasets and models together.

Data flows one way: resources, observed documents and facts come in; the machine of each kind of task decides
(coordinator.tasks); the new status is written; what nodes are to run follows from all tasks (coordinator.placement) and goes
out as documents. It knows who and when (names, counts, digests), never what (arrays) and never sees data.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

import structlog

from edgeai import metrics, tracing
from edgeai.bus.base import Bus, Delivery
from edgeai.bus.echo import Echoes, echoing
from edgeai.coordinator.inference import placed_services
from edgeai.coordinator.journal import Cursors, KvDocuments
from edgeai.coordinator.nodes import Nodes
from edgeai.coordinator.placement import Jobs, Task, desired_documents, is_source, level_of, may_say, membership_of
from edgeai.coordinator.registry import Registry, digests_in_use
from edgeai.coordinator.spans import TaskSpans, trained
from edgeai.coordinator.tasks import FederatedTasks, InferenceServices, LearningJobs, Stores, Tasks, View, now
from edgeai.crashpoints import crash_point
from edgeai.errors import BusError, EdgeaiError, MalformedEvent, ManifestError
from edgeai.events.address import CLOUD, Address, Direction, EventClass, Pattern, task_level
from edgeai.events.catalogue import (
    Bridging,
    Desired,
    Event,
    Fact,
    HealthAnswered,
    HealthRequested,
    Heartbeat,
    HeldAtEdge,
    HeldInCloud,
    Inferring,
    JobWanted,
    Membership,
    ModelDeployed,
    NodeGone,
    Observed,
    PhaseChanged,
    Receipt,
    RoundClosed,
    RoundMissed,
    RoundState,
    ServiceChanged,
    ServiceEndpoint,
    StageChanged,
    UpdateRefused,
    Usage,
    UsageAnswered,
    UsageRequested,
    UsageRow,
)
from edgeai.events.envelope import Envelope, Header, decode, decode_header, encode
from edgeai.lifecycle import task as tasks
from edgeai.lifecycle.base import Emit
from edgeai.lifecycle.health import Healths
from edgeai.lifecycle.stage import Stage, StageState
from edgeai.lifecycle.usage import MAY_RUN, Usages
from edgeai.metrics import Refusal
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.model import Model
from edgeai.store.base import BlobStore, Change, ResourceStore
from edgeai.store.documents import Documents
from edgeai.store.history import FactRecord, FactStream
from edgeai.store.identity import new_id

log = structlog.get_logger()

_WORKER = "coordinator"
SOURCE = f"{CLOUD}/{_WORKER}"
DURABLE = "coordinator"
_COMPARE_S = 60.0
_BEAT_S, _ASK_S, _USED_S = 5.0, 2.0, 30.0
_SCALE_S = 1.0
_STAGE_ENDS = frozenset({StageState.COMPLETED, StageState.FAILED})
_USAGE_ROWS, _HEALTH_ROWS = 1000, 500
"""In one answer: they have to fit an event."""


class GlobalCoordinator:
    """The coordinator over a bus, a resource store and the stream of facts."""

    def __init__(self, bus: Bus, resources: ResourceStore, facts: FactStream, blobs: BlobStore | None = None) -> None:
        self._bus, self._resources, self._facts = bus, resources, facts
        self._cursors, self._nodes = Cursors(resources), Nodes(resources)
        self._registry = Registry(resources, blobs, self._models_in_use)
        self._view, stores = View(self._nodes), Stores(resources, self._tell, blobs)
        self._federated = FederatedTasks(self._view, stores, self._registry, self._committed)
        self._learning = LearningJobs(self._view, stores, self._registry, self._committed)
        self._inference = InferenceServices(self._view, stores, self._committed)
        kinds: tuple[Tasks[Any], ...] = (self._federated, self._learning, self._inference)
        self._kinds: dict[str, Tasks[Any]] = {each.kind: each for each in kinds}
        self._documents: Documents
        self._spans = TaskSpans()
        self._in_view = asyncio.Event()
        self._look_again = asyncio.Event()
        self._usages, self._healths = Usages(), Healths()
        self._used, self._used_at = (0, 0), 0.0
        self.refused: Counter[str] = Counter()

    async def run(self) -> None:
        """Run until cancelled."""
        metrics.stages_may_end(Stage, _STAGE_ENDS)
        self._documents = Documents(await KvDocuments.open(self._resources), self._bus, SOURCE)
        await self._documents.load()
        await self._cursors.load()
        for tasks_of_kind in self._kinds.values():
            await tasks_of_kind.reactor.load()
        self._spans.load(task for each in self._kinds.values() for task in each.there())
        patterns = (
            Pattern(None, Direction.UP, EventClass.STATE, Observed.kind),
            Pattern(None, Direction.UP, EventClass.SIGNAL, Heartbeat.kind, "", ""),
            Pattern(None, Direction.UP, EventClass.SIGNAL, NodeGone.kind, "", ""),
            Pattern(None, Direction.UP, EventClass.SIGNAL, Bridging.kind, "", ""),
            Pattern(None, Direction.UP, EventClass.SIGNAL, HeldAtEdge.kind),
            Pattern(None, Direction.UP, EventClass.SIGNAL, Usage.kind),
            Pattern(CLOUD, Direction.UP, EventClass.SIGNAL, Inferring.kind),
            Pattern(CLOUD, Direction.DOWN, EventClass.REQUEST, UsageRequested.kind),
            Pattern(CLOUD, Direction.DOWN, EventClass.REQUEST, HealthRequested.kind),
        )
        kinds = (*self._kinds, "Dataset", "Model", "EdgeNode")
        async with (
            self._bus.subscribe(*patterns) as deliveries,
            self._resources.watch(*kinds) as changes,
            self._facts.consume(DURABLE) as batches,
            echoing(self._bus, CLOUD, _WORKER) as echoes,
            asyncio.TaskGroup() as group,
        ):
            for tasks_of_kind in self._kinds.values():
                group.create_task(tasks_of_kind.reactor.run())
            group.create_task(self._follow_resources(changes))
            group.create_task(self._follow_facts(batches))
            group.create_task(self._watch_silence())
            group.create_task(self._beat(echoes))
            group.create_task(self._scale_for_ever())
            group.create_task(self._place_for_ever())
            group.create_task(self._compare_for_ever())
            self._bus.on_connect(self._compare)
            async for delivery in deliveries:
                try:
                    await self._handle(delivery)
                except MalformedEvent as error:
                    self._refuse(delivery.address)
                    log.warning("event_refused", topic=delivery.address.topic(), reason=str(error))

    def _refuse(self, address: Address, why: Refusal = Refusal.MALFORMED) -> None:
        self.refused[address.node] += 1
        metrics.message_refused(why)

    # --- resources

    async def _follow_resources(self, changes: Any) -> None:
        async for change in changes:
            if change is not None:
                await _until_done(partial(self._changed, change))
            elif not self._in_view.is_set():
                self._in_view.set()
                for tasks_of_kind in self._kinds.values():
                    tasks_of_kind.come_into_view()
                self._look_again.set()

    async def _changed(self, change: Change) -> None:
        try:
            await self._take_in(change)
        except ManifestError as error:
            # Another version wrote it, or somebody by hand: the others go on.
            log.error("resource_unreadable", kind=change.kind, name=change.name, reason=str(error))

    async def _take_in(self, change: Change) -> None:
        match change.kind:
            case kind if kind in self._kinds:
                self._kinds[kind].take_in(change)
                if kind == self._learning.kind:
                    _keep(self._view.jobs, change, IncrementalLearningJob)
                    self._inference.post_all_seen()
            case "Dataset":
                datasets = self._view.datasets
                _keep(datasets, change, Dataset)
                await self._registry.observe_dataset(change.name, datasets.get(change.name), self._nodes)
                self._post_all_seen()
            case "Model":
                _keep(self._view.models, change, Model)
                model = self._view.models.get(change.name)
                if model is not None:
                    await self._registry.import_version(model, now())
                self._post_all_seen()
            case "EdgeNode":
                before = self._nodes.names()
                self._nodes.known(change.name, change.document)
                if self._nodes.names() == before:
                    return
                self._post_all_seen()
        self._look_again.set()

    def _post_all_seen(self) -> None:
        for tasks_of_kind in self._kinds.values():
            tasks_of_kind.post_all_seen()

    # --- nodes

    async def _handle(self, delivery: Delivery) -> None:
        if not delivery.payload:
            return
        address, envelope = delivery.address, decode(delivery.payload)
        match envelope.event:
            case Observed() as observed:
                if await self._documents.accept(delivery, envelope.header):
                    await self._nodes.observed(address.node, observed, now())
                    for name, dataset in self._view.datasets.items():
                        if dataset.spec.node_name == address.node:
                            await self._registry.observe_dataset(name, dataset, self._nodes)
                    self._nodes_changed()
            case Heartbeat() as beat:
                self._healths.beat(address.node, beat, time.time() - envelope.time, time.monotonic())
                if await self._nodes.heard(address.node, now()):
                    self._nodes_changed()
                if not self._nodes.is_observed(address.node):
                    await self._compare_with(address.node)
            case NodeGone():
                self._healths.gone(address.node)
                await self._nodes.gone(address.node, now())
                self._nodes_changed()
            case HeldAtEdge(documents=held) if not address.task or address.node == CLOUD:
                # Controllers and aggregation workers; a training worker reads nothing of the coordinator's.
                await self._documents.resend(address, held)
            case Usage() as usage:
                self._usages.hear(address.node, address.task, address.worker, usage, time.monotonic())
            case Inferring() as told:
                self._inference.hear(address.task, address.worker, told, time.monotonic())
            case Bridging() as bridging:
                self._healths.bridge(address.node, bridging, time.monotonic())
            case UsageRequested():
                await self._answer_usage(address, envelope.header)
            case HealthRequested() as asked:
                await self._answer_health(asked, envelope.header)

    async def _answer_usage(self, asked: Address, header: Header) -> None:
        there: list[Task] = [*self._federated.there(), *self._learning.there(), *self._inference.there()]
        rows = [row for task in there if asked.task in {"", level_of(task)} for row in self._usage_of(task)]
        rows.sort(key=lambda row: (row.node, row.task, row.worker))
        answer = UsageAnswered(tuple(rows[:_USAGE_ROWS]), max(len(rows) - _USAGE_ROWS, 0))
        await self._reply(asked.task, answer, header)

    async def _answer_health(self, asked: HealthRequested, header: Header) -> None:
        """Of all nodes, or of one: of one that nobody has heard of, nothing is known."""
        now_s = time.monotonic()
        names = [asked.node] if asked.node else sorted(name for name in self._nodes.names() if name > asked.after)
        found = tuple(self._healths.known(name, now_s) for name in names[:_HEALTH_ROWS])
        mine = self._healths.known(SOURCE, now_s)
        await self._reply("", HealthAnswered(found, mine, max(len(names) - _HEALTH_ROWS, 0)), header)

    async def _reply(self, task: str, answer: Event, header: Header) -> None:
        to = Address(CLOUD, answer.direction, answer.event_class, answer.kind, task)
        reply = Header(SOURCE, correlation=header.correlation)
        await self._send(to, Envelope(reply, answer, new_id(), time.time(), task))

    def _usage_of(self, task: Task) -> list[UsageRow]:
        level, away, now_s = level_of(task), self._nodes.silent(), time.monotonic()
        rows = [row for row in task.status.workers if row.state in MAY_RUN]
        found = [self._usages.known(row.node, level, row.name, now_s, away=row.node in away) for row in rows]
        return [
            UsageRow(row.node, task.metadata.name, row.name, *known) for row, known in zip(rows, found, strict=True)
        ]

    def _nodes_changed(self) -> None:
        for tasks_of_kind in self._kinds.values():
            tasks_of_kind.post_all_nodes()
        self._look_again.set()

    async def _beat(self, echoes: Echoes) -> None:
        """Show that the coordinator lives: what only it moves is unknown while it is away."""
        address = Address(CLOUD, Heartbeat.direction, Heartbeat.event_class, Heartbeat.kind, "", _WORKER)
        started = time.monotonic()
        while True:
            began = time.monotonic()
            broker_s, silent = await echoes.round_trip(_ASK_S)
            waiting, used, limit = await self._ask_store()
            beat = Heartbeat(
                time.monotonic() - started, 0, broker_s, silent, waiting, store_bytes=used, store_limit_bytes=limit
            )
            self._healths.beat(SOURCE, beat, 0.0, time.monotonic())
            await self._send(address, Envelope(Header(SOURCE), beat, new_id(), time.time()))
            await asyncio.sleep(_BEAT_S - min(time.monotonic() - began, _BEAT_S / 2))

    async def _ask_store(self) -> tuple[int | None, int | None, int]:
        """Facts that wait, bytes stored, their limit; None while the store does not answer."""
        try:
            async with asyncio.timeout(_ASK_S):
                waiting = await self._facts.backlog(DURABLE)
                if self._used_at == 0.0 or time.monotonic() - self._used_at > _USED_S:
                    self._used, self._used_at = await self._facts.used(), time.monotonic()
                return waiting, *self._used
        except (TimeoutError, EdgeaiError) as error:
            log.debug("store_not_asked", cause=str(error))
            return None, None, 0

    async def _scale_for_ever(self) -> None:
        await self._in_view.wait()
        while True:
            await asyncio.sleep(_SCALE_S)
            self._inference.scale(time.monotonic())

    async def _watch_silence(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if await self._nodes.silenced(now()):
                self._nodes_changed()
            self._measure()

    def _measure(self) -> None:
        silent = self._nodes.silent()
        metrics.nodes(self._nodes.names() - silent, silent)
        metrics.tasks((kind, task.status.phase) for kind, each in self._kinds.items() for task in each.there())

    # --- facts

    async def _follow_facts(self, batches: Any) -> None:
        async for batch in batches:
            # May be repeated: what has taken effect is known by its cursor, what has not by its own key.
            await _until_done(partial(self._take, batch))

    async def _take(self, batch: list[FactRecord]) -> None:
        """Apply a batch in order, store how far each source is, acknowledge, send receipts."""
        reached: dict[str, tuple[int, int]] = {}
        applied: list[asyncio.Event] = []
        taken: dict[str, list[Fact]] = {}
        for record in batch:
            try:
                header = decode_header(record.payload)
            except MalformedEvent as error:
                self._refuse(record.address)
                log.warning("fact_set_aside", topic=record.address.topic(), reason=str(error))
                continue
            if header.source == SOURCE:
                continue
            if not is_source(header.source, record.address.node, self._federated.there()):
                self._refuse(record.address, Refusal.FOREIGN)
                reason = f"facts of {record.address.node} do not come from {header.source[:80]}"
                log.warning("fact_refused", topic=record.address.topic(), reason=reason)
                continue
            incarnation, sequence = reached.get(header.source) or self._cursors.get(header.source)
            if header.incarnation > incarnation:
                incarnation, sequence = header.incarnation, 0
            elif header.incarnation < incarnation:
                continue
            if header.sequence > sequence + 1:
                # One is missing: the outbox sends everything again, in order.
                continue
            reached[header.source] = (incarnation, max(sequence, header.sequence))
            if header.sequence == sequence + 1:
                done, told = await self._apply(record, header, applied)
                applied += done
                taken.setdefault(header.source, []).extend(told)
        for event in applied:
            await event.wait()
        crash_point("coordinator.fact_applied")
        for source, (incarnation, sequence) in reached.items():
            if self._cursors.get(source) != (incarnation, sequence):
                await self._cursors.advance(source, incarnation, sequence)
                for fact in taken.get(source, ()):  # once for ever: what has a cursor is not taken again
                    _measure_fact(fact)
        await self._facts.ack(batch)
        for source, (incarnation, sequence) in reached.items():
            await self._receipt(source, incarnation, sequence)

    async def _apply(
        self, record: FactRecord, header: Header, before: list[asyncio.Event]
    ) -> tuple[list[asyncio.Event], list[Fact]]:
        """Hand a fact to its task; returns what to wait for until it has taken effect, as those `before` may not have yet.

        And the fact itself, unless it was refused or its task is gone.
        """
        kind, task = self._at(record.address.task)
        why = Refusal.MALFORMED
        try:
            envelope, began_s = decode(record.payload), time.time()
            fact = envelope.event
            if not isinstance(fact, Fact) or fact.kind != record.address.kind:
                raise MalformedEvent(f"{fact.kind} on the address of a fact of kind {record.address.kind}")
            if kind is None or task is None:
                return [], []
            if not may_say(task, fact, header.source, record.address.worker):
                why = Refusal.FOREIGN
                raise MalformedEvent(f"{header.source} has no say in this")
            event = await kind.fact_seen(task, fact, header, partial(_all_set, before))
            if isinstance(event, tasks.ModelRegistered) and isinstance(task, FederatedTask):
                trained(task, event.completed, event.model, envelope.trace, began_s)
        except MalformedEvent as error:
            self._refuse(record.address, why)
            log.warning("fact_set_aside", topic=record.address.topic(), source=header.source, reason=str(error))
            return [], []
        done = asyncio.Event()

        async def acknowledge() -> None:
            done.set()

        kind.reactor.post(task.metadata.name, event, acknowledge)
        return [done], [fact]

    def _at(self, level: str) -> tuple[Tasks[Any] | None, Any]:
        """The task of a level, with those of its kind."""
        for kind in self._kinds.values():
            if (task := kind.at(level)) is not None:
                return kind, task
        return None, None

    async def _receipt(self, source: str, incarnation: int, sequence: int) -> None:
        node, _, rest = source.partition("/")
        task, _, worker = rest.partition("/")
        to = Address(node, Direction.DOWN, EventClass.STATE, Receipt.kind, task, worker)
        header = Header(SOURCE, incarnation, sequence)
        await self._send(to, Envelope(header, Receipt(source, incarnation, sequence), new_id(), time.time()))

    # --- what goes out

    async def _committed(self, _keys: Iterable[str]) -> None:
        if tracing.recording():
            self._spans.look(task for each in self._kinds.values() for task in each.there())
        self._look_again.set()

    async def _place_for_ever(self) -> None:
        """Write and send the documents whenever something they follow from has changed."""
        await self._in_view.wait()
        while True:
            await self._look_again.wait()
            self._look_again.clear()
            try:
                await self._place()
            except BusError as error:
                log.warning("documents_delayed", cause=str(error))
                await asyncio.sleep(1.0)
                self._look_again.set()

    async def _place(self) -> None:
        await self._learning.register_arrived(self._nodes.blobs_in_library(), self._nodes.lost_blobs())
        current, learning, inference = self._federated.there(), self._learning.there(), self._inference.there()
        documents: dict[Address, Event] = {}
        wanted = Jobs(tuple(learning), self._told_of_jobs())
        view = self._view
        desired_by_node = desired_documents(
            current,
            view.datasets,
            view.models,
            self._nodes.names(),
            wanted,
            services=placed_services(inference, view.models),
        )
        for node, desired in desired_by_node.items():
            documents[_down(node, Desired.kind)] = desired
        for task in current:
            if not tasks.is_placed(task):
                continue
            level, aggregation = level_of(task), task.spec.aggregation_worker.name
            observed = self._nodes.workers_of(task.metadata.uid)
            members = membership_of(task, self._nodes.absent(), observed)
            documents[_down(CLOUD, Membership.kind, level, aggregation)] = members
            if any(row.role == "aggregation" and row.state == "Running" for row in task.status.workers):
                service = ServiceEndpoint(task.metadata.uid, f"edgeai-{level}", CLOUD, aggregation)
                for node in {worker.node_name for worker in task.spec.training_workers}:
                    documents[_down(node, ServiceEndpoint.kind, level)] = service
        await self._send_out(documents)
        there: tuple[Task, ...] = (*current, *learning, *inference)
        levels = {level_of(task) for task in there}
        self._usages.forget_all_but(levels)
        for address in [address for address in self._documents.own() if address.task and address.task not in levels]:
            await self._documents.withdraw(address)
            # The rounds of a task that is gone: its aggregation worker can no longer clear the edge broker's hint.
            await self._clear_hint(_down(address.node, RoundState.kind, address.task))
        await self._cursors.forget_tasks(levels)

    async def _send_out(self, documents: Mapping[Address, Event]) -> None:
        """Publish them, and remember what each node is to take up (see `View.is_undecided`)."""
        placed = self._view.placed
        coming = {
            address.node: frozenset(_uids(event)) for address, event in documents.items() if isinstance(event, Desired)
        }
        before = dict(placed)
        for node, uids in coming.items():
            if before.get(node, (0, None))[1] != uids:
                # From here on the node may take it up; as which generation is known when it is published.
                placed[node] = 0, uids
        for address, event in documents.items():
            generation = await self._documents.publish(address, event)
            if isinstance(event, Desired):
                placed[address.node] = generation, coming[address.node]
        if placed != before:
            self._nodes_changed()

    def _told_of_jobs(self) -> dict[str, JobWanted]:
        """What nodes were last told of jobs, by uid."""
        told = (event.jobs for event in self._documents.own().values() if isinstance(event, Desired))
        return {job.task_uid: job for jobs in told for job in jobs}

    def _models_in_use(self) -> frozenset[str]:
        return digests_in_use(self._federated.there(), self._learning.there(), self._told_of_jobs().values())

    async def _clear_hint(self, address: Address) -> None:
        try:
            await self._bus.publish(address, b"")
        except BusError as error:
            log.debug("hint_not_cleared", topic=address.topic(), cause=str(error))

    async def _compare(self) -> None:
        for node in {*self._nodes.names(), CLOUD}:
            await self._compare_with(node)
        await self._documents.resend_all()

    async def _compare_with(self, node: str) -> None:
        await self._documents.compare(Address(node, Direction.DOWN, EventClass.SIGNAL, HeldInCloud.kind))

    async def _compare_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_COMPARE_S)
            await self._compare()

    async def _tell(self, emit: Emit) -> None:
        """A fact of the coordinator's own goes into the history only."""
        fact = emit.fact
        assert isinstance(fact, PhaseChanged | ServiceChanged)
        # Not from the task's state: of a new task there is none before this step is committed.
        level = task_level(emit.task, fact.task_uid)
        address = Address(CLOUD, fact.direction, fact.event_class, fact.kind, level)
        trace = str(tracing.task_span(fact.task_uid))
        await self._send(address, Envelope(Header(SOURCE), fact, new_id(), time.time(), emit.task, trace))

    async def _send(self, address: Address, envelope: Envelope) -> None:
        try:
            await self._bus.publish(address, encode(envelope))
        except BusError as error:
            log.debug("event_not_sent", topic=address.topic(), cause=str(error))


async def _until_done(work: Callable[[], Awaitable[None]]) -> None:
    """Repeat idempotent work while the store is away."""
    while True:
        try:
            await work()
            return
        except BusError as error:
            log.warning("coordinator_delayed", cause=str(error))
        await asyncio.sleep(1.0)


def _uids(desired: Desired) -> set[str]:
    """Of the tasks of which a node is to run something."""
    return {item.task_uid for item in desired.assignments} | {job.task_uid for job in desired.jobs}


async def _all_set(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        await event.wait()


def _down(node: str, kind: str, task: str = "", worker: str = "") -> Address:
    return Address(node, Direction.DOWN, EventClass.STATE, kind, task, worker)


def _measure_fact(fact: Fact) -> None:
    match fact:
        case RoundClosed(record=record) if record.number:  # round 0 only brings the first weights
            metrics.round_closed(record.seconds, len(record.accepted), record.bytes_up, record.bytes_down)
        case RoundMissed():
            metrics.round_missed()
        case UpdateRefused():
            metrics.update_refused()
        case StageChanged(stage=stage, state=state) if stage in set(Stage) and state in _STAGE_ENDS:
            metrics.stage_ended(stage, state)
        case ModelDeployed():
            metrics.model_deployed()


def _keep(known: dict[str, Any], change: Change, kind: Any) -> None:
    if change.document is None:
        known.pop(change.name, None)
    else:
        known[change.name] = kind.from_document(change.document)
