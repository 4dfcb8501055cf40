"""The kinds of tasks that the coordinator moves: what it does alike for all of them, and what each kind sees its own way.

One reactor and one journal for each kind; the machines are `lifecycle.task`, `lifecycle.job` and `lifecycle.service`. What
goes out to the nodes follows from all kinds together (`coordinator.placement`), and the bus is the service's business.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic

import structlog

from edgeai.coordinator import inference
from edgeai.coordinator.journal import TaskJournal
from edgeai.coordinator.nodes import Nodes
from edgeai.coordinator.placement import (
    Library,
    Task,
    level_of,
    problems_of,
    references_of,
    serving_of,
)
from edgeai.coordinator.registry import Registry
from edgeai.coordinator.spans import deployed
from edgeai.crashpoints import crash_point
from edgeai.errors import BusUnavailable, EdgeaiError
from edgeai.events.catalogue import Fact, Inferring, Role, TrainingCompleted, WorkerObserved
from edgeai.events.envelope import Header
from edgeai.lifecycle import job as jobs
from edgeai.lifecycle import scaling
from edgeai.lifecycle import service as services
from edgeai.lifecycle import task as tasks
from edgeai.lifecycle.base import Emit, Machine, TimerFired
from edgeai.lifecycle.draft import T
from edgeai.reactor import Reactor
from edgeai.resources.base import instant
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import ArrivingModel, IncrementalLearningJob, Taken
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.model import Model
from edgeai.store.base import BlobStore, Change, ResourceStore

log = structlog.get_logger()

Waiting = Callable[[], Awaitable[None]]
OnCommit = Callable[[Iterable[str]], Awaitable[None]]
WAITING_S = 5.0
"""How many requests wait is written so seldom, unless the number of replicas changes."""


def now() -> str:
    return instant(datetime.now(UTC))


@dataclass(slots=True)
class View:
    """What the coordinator sees beside tasks. `placed`: node -> generation and uids of what it was last told to run."""

    nodes: Nodes
    datasets: dict[str, Dataset] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    jobs: dict[str, IncrementalLearningJob] = field(default_factory=dict)
    placed: dict[str, tuple[int, frozenset[str]]] = field(default_factory=dict)

    @property
    def library(self) -> Library:
        return Library(self.datasets, self.models, self.jobs)

    def is_undecided(self, node: str, task_uid: str) -> bool:
        """Whether a node that is there may yet take up workers of this task, or has not said what it runs."""
        if node not in self.nodes.names() or node in self.nodes.absent():
            return False
        generation, uids = self.placed.get(node, (0, frozenset()))
        return task_uid in uids or not generation or self.nodes.taken(node) != generation

    def workers_of(self, task: Task) -> dict[str, WorkerObserved]:
        """What nodes observe of a task's workers; of those that have still to say, what was last known."""
        level, uid = level_of(task), task.metadata.uid
        expected = {
            row.name: WorkerObserved(level, uid, row.name, Role(row.role), 0, row.state, row.reason, row.restarts)
            for row in task.status.workers
            if self.is_undecided(row.node, uid)
        }
        return {**expected, **self.nodes.workers_of(uid)}


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the tasks' reactors keep what they know; `publish` sends their facts to the history."""

    resources: ResourceStore
    publish: Callable[[Emit], Awaitable[None]]
    blobs: BlobStore | None = None


class Tasks(ABC, Generic[T]):
    """All tasks of one kind. `resource` is its class."""

    resource: type[T]

    def __init__(
        self,
        view: View,
        stores: Stores,
        machine: Machine[T | None],
        on_commit: OnCommit,
    ) -> None:
        self._view = view
        journal = TaskJournal(self.resource, stores.resources, stores.publish, stores.blobs)
        self.reactor: Reactor[T | None] = Reactor(machine, journal, _perform, on_commit=on_commit)
        self._early: dict[str, T] = {}
        self._in_view = False

    @abstractmethod
    def seen(self, task: T) -> Any:
        """The event that a task, or something it refers to, was read."""

    @abstractmethod
    def nodes_seen(self, task: T) -> Any:
        """The event of what nodes observe of it."""

    @abstractmethod
    async def fact_seen(self, task: T, fact: Fact, header: Header, before: Waiting) -> Any:
        """The event of a fact that was said by who may. `before` waits until the facts before it have taken effect.

        Raises MalformedEvent if the fact cannot be true.
        """

    @property
    def kind(self) -> str:
        return str(self.resource.model_fields["kind"].default)

    def there(self) -> list[T]:
        return [task for task in self.reactor.states.values() if task is not None]

    def at(self, level: str) -> T | None:
        return next((task for task in self.there() if level_of(task) == level), None)

    def take_in(self, change: Change) -> None:
        """A resource of this kind was written or removed. Raises ManifestError if it cannot be read."""
        if change.document is not None:
            self.post_seen(self.resource.from_document(change.document))
            return
        known = self.reactor.states.get(change.name)
        if known is not None and known.metadata.deletion_timestamp is None:
            # Somebody removed the document itself; its workers have still to end.
            gone = known.metadata.model_copy(update={"deletion_timestamp": now()})
            self.post_seen(known.model_copy(update={"metadata": gone}))

    def come_into_view(self) -> None:
        """Only now is it known what there is: a part of it would look as if the rest had been deleted."""
        self._in_view = True
        for task in self._early.values():
            self.post_seen(task)
        self._early.clear()

    def post_all_seen(self) -> None:
        if self._in_view:
            for task in self.there():
                self.post_seen(task)

    def post_seen(self, task: T) -> None:
        if not self._in_view:
            self._early[task.metadata.name] = task
            return
        self.reactor.post(task.metadata.name, self.seen(task))
        self.post_nodes(task)

    def post_nodes(self, task: T) -> None:
        self.reactor.post(task.metadata.name, self.nodes_seen(task))

    def post_all_nodes(self) -> None:
        for task in self.there():
            self.post_nodes(task)


class FederatedTasks(Tasks[FederatedTask]):
    """`registry` makes versions of their finished models."""

    resource = FederatedTask

    def __init__(
        self,
        view: View,
        stores: Stores,
        registry: Registry,
        on_commit: OnCommit,
    ) -> None:
        machine: Machine[tasks.State] = Machine(FederatedTask, lambda _key: None, _stamped, tasks.resume)
        super().__init__(view, stores, machine, on_commit)
        self._registry = registry

    def seen(self, task: FederatedTask) -> Any:
        view = self._view
        return tasks.Seen(task, references_of(task, view.nodes.names(), view.datasets, view.models), now())

    def nodes_seen(self, task: FederatedTask) -> Any:
        return tasks.WorkersSeen(self._view.workers_of(task), self._view.nodes.silent(), now())

    async def fact_seen(self, task: FederatedTask, fact: Fact, _header: Header, before: Waiting) -> Any:
        if not isinstance(fact, TrainingCompleted) or fact.task_uid != task.metadata.uid:
            return tasks.FactSeen(fact, now())
        await before()
        model = await self._registry.register(self.reactor.states[task.metadata.name] or task, fact, now())
        crash_point("coordinator.model_registered")
        return tasks.ModelRegistered(model, fact, now())


class LearningJobs(Tasks[IncrementalLearningJob]):
    """`registry` makes versions of the models that arrive from the edges."""

    resource = IncrementalLearningJob

    def __init__(
        self,
        view: View,
        stores: Stores,
        registry: Registry,
        on_commit: OnCommit,
    ) -> None:
        super().__init__(view, stores, jobs.MACHINE, on_commit)
        self._registry = registry
        self._recorded: set[tuple[str, str]] = set()
        """of those that arrive, by uid and digest: what is in the trace already"""

    def seen(self, task: IncrementalLearningJob) -> Any:
        return jobs.Seen(task, problems_of(task, self._view.nodes.names(), self._view.library), now())

    def nodes_seen(self, task: IncrementalLearningJob) -> Any:
        nodes, node = self._view.nodes, task.spec.node_name
        observed = nodes.job(node, task.metadata.uid)
        serving = serving_of(task, observed.serving, self._view.models) if observed else None
        silent = (nodes.last_seen(node) or "the coordinator started") if node in nodes.silent() else ""
        return jobs.NodeSeen(self._view.workers_of(task), observed, serving, silent, now())

    async def fact_seen(self, task: IncrementalLearningJob, fact: Fact, header: Header, _before: Waiting) -> Any:
        of_node = header.source == task.spec.node_name
        taken = Taken(incarnation=header.incarnation, sequence=header.sequence) if of_node else None
        return jobs.FactSeen(fact, now(), taken)

    async def register_arrived(self, in_library: frozenset[str], lost: Mapping[str, str]) -> None:
        """Make versions of the models that are in the library now, in the order in which they were deployed.

        One that never gets there (`lost`: why) is passed over; the others do not wait for it.
        """
        arriving = {(job.metadata.uid, model.digest) for job in self.there() for model in job.status.arriving}
        self._recorded &= arriving
        for job in self.there():
            for model in job.status.arriving if jobs.is_placed(job) else ():
                if model.digest in in_library:
                    event: jobs.JobEvent = await self._registered(job, model)
                elif model.digest in lost:
                    log.warning(
                        "model_lost", task=job.metadata.name, digest=model.digest[:12], reason=lost[model.digest]
                    )
                    event = jobs.ModelLost(job.metadata.uid, model, lost[model.digest], now())
                else:
                    break
                self.reactor.post(job.metadata.name, event)

    async def _registered(self, job: IncrementalLearningJob, model: ArrivingModel) -> jobs.JobEvent:
        """What became of a model that is in the library. Raises BusUnavailable: the store is away."""
        began_s = time.time()
        try:
            await self._registry.register_deployed(job, model, now())
        except BusUnavailable:
            raise
        except (EdgeaiError, ValueError) as error:
            reason = f"it cannot be registered: {error}".splitlines()[0]
            log.error("version_not_registered", task=job.metadata.name, digest=model.digest[:12], reason=reason)
            self._record(job, model, began_s, reason)
            return jobs.ModelLost(job.metadata.uid, model, reason, now())
        self._record(job, model, began_s)
        crash_point("coordinator.deployed_registered")
        return jobs.ModelRegistered(job.metadata.uid, model, now())

    def _record(self, job: IncrementalLearningJob, model: ArrivingModel, began_s: float, error: str = "") -> None:
        """Once: it is registered again until its job's status says that it is."""
        if (key := (job.metadata.uid, model.digest)) not in self._recorded:
            self._recorded.add(key)
            deployed(job, model, began_s, error)


class InferenceServices(Tasks[JointInferenceService]):
    """Their replicas follow the load: what was heard of it is only here, what came of it stands in the status."""

    resource = JointInferenceService

    def __init__(self, view: View, stores: Stores, on_commit: OnCommit) -> None:
        super().__init__(view, stores, services.MACHINE, on_commit)
        self._loads = scaling.Loads()
        self._scaling: dict[str, scaling.Scaling] = {}
        self._waiting_told_s: dict[str, float] = {}

    def seen(self, task: JointInferenceService) -> Any:
        return services.Seen(task, inference.problems_of(task, self._view.nodes.names(), self._view.library), now())

    def nodes_seen(self, task: JointInferenceService) -> Any:
        """A worker that is not wanted any more is there only as long as its node says so."""
        nodes, uid = self._view.nodes, task.metadata.uid
        wanted, there = services.places_of(task), nodes.workers_of(uid)
        workers = self._view.workers_of(task)
        if services.is_placed(task):
            workers = {name: worker for name, worker in workers.items() if name in wanted or name in there}
        told = {
            name: found
            for name, (node, _) in wanted.items()
            if (found := nodes.inference(node, uid).get(name)) is not None
        }
        serving = {
            name: model
            for name, found in told.items()
            if (model := inference.serving_of(task, name, found.digest, self._view.models)) is not None
        }
        return services.WorkersSeen(workers, told, serving, nodes.silent(), now())

    async def fact_seen(self, task: JointInferenceService, fact: Fact, _header: Header, _before: Waiting) -> Any:
        return services.FactSeen(fact, now())

    def hear(self, level: str, worker: str, told: Inferring, at_s: float) -> None:
        """A replica says how busy it is."""
        if self.at(level) is not None:
            self._loads.hear(level, worker, told, at_s)

    def scale(self, now_s: float) -> None:
        """Look at the load of every service, and say what of it is new."""
        there = {task.metadata.uid: task for task in self.there() if services.is_placed(task)}
        self._loads.forget_all_but({level_of(task) for task in there.values()})
        self._waiting_told_s = {uid: told_s for uid, told_s in self._waiting_told_s.items() if uid in there}
        self._scaling = {uid: self._scaled(task, now_s) for uid, task in there.items()}

    def _scaled(self, task: JointInferenceService, now_s: float) -> scaling.Scaling:
        cloud, status, level = task.spec.cloud_worker, task.status.replicas, level_of(task)
        before = self._scaling.get(task.metadata.uid) or scaling.Scaling(services.replicas_of(task))
        loads = self._loads.known(level, map(cloud.replica, range(before.wanted)), now_s)
        found = scaling.look(before, cloud.replicas, cloud.batch.max_size, loads, now_s)
        waiting = sum(load.waiting for load in loads)
        told_s = self._waiting_told_s.get(task.metadata.uid, -WAITING_S)
        if found.wanted != status.wanted or (waiting != status.waiting and now_s - told_s >= WAITING_S):
            self._waiting_told_s[task.metadata.uid] = now_s
            event = services.Scaled(found.wanted, waiting, found.reason, now())
            self.reactor.post(task.metadata.name, event)
        return found


async def _perform(_key: str, command: Any) -> Any:
    raise AssertionError(f"unknown command {command}")


def _stamped(state: tasks.State, event: Any) -> Any:
    return tasks.step(state, tasks.Clocked(event.name, now()) if isinstance(event, TimerFired) else event)
