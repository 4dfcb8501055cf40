"""A joint inference service from `apply` to its deletion, as the coordinator sees it.

    Pending -> Preparing -> Running                     references found; the first edge worker serves
    Preparing, Running -> Failed -> Preparing, Running  every edge worker was given up; somebody has changed something
    any -> Deleting -> removed

`TRANSITIONS` is this drawing for programs.

The state is the resource: its spec belongs to the user, its status to this machine. Requests never pass through here: what the
workers do is known from what their nodes observe, at most every few seconds. The service is only `Failed` when nothing can
answer; an edge that is away, or a cloud that is, makes it `Degraded`, since the others and the edges go on. How many replicas
are wanted is decided in `scaling`; here it becomes the status that the placement follows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeai.events.address import CLOUD
from edgeai.events.catalogue import InferenceObserved, Inferences, Role, ServiceChanged, WorkerObserved
from edgeai.lifecycle.base import Command, Emit, Forget, Machine, Step
from edgeai.lifecycle.draft import MAX_REASON, Draft, shortened, worker_status
from edgeai.lifecycle.scaling import clamped
from edgeai.resources.base import INTEGER_LIMIT
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import TaskPhase, WorkerStatus
from edgeai.resources.incremental import ServingModel
from edgeai.resources.joint import (
    EdgeServing,
    EdgeWorker,
    InferenceCounts,
    JointInferenceService,
    ScoreCounts,
)

MAX_SCORED = 100
"""Edges, the first of the manifest, whose scores stand in the status: it must fit its store."""
MAX_MODELS, MAX_WORD = 20, 50
"""Models of an edge of which inferences are counted, the busiest; characters of a worker's word for how the cloud answers."""
UNKNOWN = "Unknown"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PLACED = frozenset({TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.FAILED})
_TROUBLED = frozenset({"Failed", "Backoff", UNKNOWN})

TRANSITIONS: dict[TaskPhase, frozenset[TaskPhase]] = {
    TaskPhase.PENDING: frozenset({TaskPhase.PREPARING, TaskPhase.DELETING}),
    TaskPhase.PREPARING: frozenset({TaskPhase.RUNNING, TaskPhase.FAILED, TaskPhase.DELETING}),
    TaskPhase.RUNNING: frozenset({TaskPhase.FAILED, TaskPhase.DELETING}),
    TaskPhase.FAILED: frozenset({TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.DELETING}),
    TaskPhase.DELETING: frozenset(),
}

State = JointInferenceService | None
_Draft = Draft[JointInferenceService]


@dataclass(frozen=True, slots=True)
class Seen:
    """The resource, or something it refers to, was read. `problems` are sentences a person can act on."""

    service: JointInferenceService
    problems: tuple[str, ...]
    now: str


@dataclass(frozen=True, slots=True)
class WorkersSeen:
    """What nodes observe of the service's workers, by name: their states, and what they infer.

    `serving` are the models that they say they serve, as the registry knows them. `silent` nodes are not heard of: what they
    run is unknown.
    """

    workers: Mapping[str, WorkerObserved]
    inference: Mapping[str, InferenceObserved]
    serving: Mapping[str, ServingModel]
    silent: frozenset[str]
    now: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """So many replicas are wanted now, and so many requests wait at those that there are."""

    wanted: int
    waiting: int
    reason: str
    now: str


@dataclass(frozen=True, slots=True)
class FactSeen:
    """Starts and ends of workers stand in the history; what they mean for the service, its nodes observe."""

    fact: Any
    now: str


ServiceEvent = Seen | WorkersSeen | Scaled | FactSeen


def step(state: State, event: ServiceEvent) -> Step[State]:
    """Advance one service. Never raises on late, repeated or foreign events."""
    match event:
        case Seen(service=service, problems=problems, now=now):
            if state is not None and state.metadata.uid == service.metadata.uid:
                service = service.model_copy(update={"status": state.status})
            return _seen(Draft(service, now), problems).done()
        case _ if state is None:
            return None, ()
        case WorkersSeen():
            return _workers(Draft(state, event.now), event).done()
        case Scaled():
            return _scaled(Draft(state, event.now), event).done()
    return state, ()


def resume(_state: State) -> tuple[Command, ...]:
    """Everything that a service waits for is brought again by watching."""
    return ()


def is_placed(service: JointInferenceService) -> bool:
    """Nodes are to know its workers. Also of one that has failed: a change of its spec is to try again."""
    return service.status.phase in _PLACED


def replicas_of(service: JointInferenceService) -> int:
    """How many replicas are to run: what the status says, within what the spec allows now."""
    return clamped(service.status.replicas.wanted, service.spec.cloud_worker.replicas)


def places_of(service: JointInferenceService) -> dict[str, tuple[str, Role]]:
    """Node and role of every worker that is to run, by name: the edges in the order of the manifest, then the replicas."""
    cloud = service.spec.cloud_worker
    return {
        **{worker.name: (worker.node_name, Role.EDGE) for worker in service.spec.edge_workers},
        **{cloud.replica(number): (CLOUD, Role.CLOUD) for number in range(replicas_of(service))},
    }


# --- the resource and what it refers to


def _seen(draft: _Draft, problems: tuple[str, ...]) -> _Draft:
    metadata, status = draft.task.metadata, draft.task.status
    if metadata.deletion_timestamp is not None:
        return draft.phase(TaskPhase.DELETING, "deleted by a user")
    draft = _within_spec(draft.status(observed_generation=metadata.generation))
    if problems:
        return draft.condition(ConditionType.ACCEPTED, "False", "ReferencesMissing", "; ".join(problems))
    draft = draft.condition(ConditionType.ACCEPTED, "True", "ReferencesFound")
    if status.phase is TaskPhase.PENDING:
        draft = draft.condition(ConditionType.PROGRESSING, "True", "Preparing", "workers are being started")
        return draft.phase(TaskPhase.PREPARING, "all references exist")
    return draft


def _within_spec(draft: _Draft) -> _Draft:
    """As few replicas as may be at first, and never more or fewer than the spec says now."""
    replicas, wanted = draft.task.status.replicas, replicas_of(draft.task)
    if replicas.wanted == wanted:
        return draft
    allowed = draft.task.spec.cloud_worker.replicas
    reason = f"between {allowed.min} and {allowed.max}"
    changed = replicas.model_copy(update={"wanted": wanted, "at": draft.now, "reason": reason})
    return _told_replicas(draft.status(replicas=changed), replicas.wanted, wanted, reason)


def _told_replicas(draft: _Draft, before: int, wanted: int, reason: str) -> _Draft:
    """A fact for the history; the first number is none."""
    if not before:
        return draft
    metadata = draft.task.metadata
    fact = ServiceChanged(metadata.uid, "replicas", str(before), str(wanted), reason)
    return draft.then(Emit(fact, metadata.name))


def _scaled(draft: _Draft, event: Scaled) -> _Draft:
    if not is_placed(draft.task):
        return draft
    before = draft.task.status.replicas
    wanted = clamped(event.wanted, draft.task.spec.cloud_worker.replicas)
    changes: dict[str, Any] = {"waiting": min(max(event.waiting, 0), INTEGER_LIMIT)}
    if wanted == before.wanted:
        return draft.status(replicas=before.model_copy(update=changes))
    reason = shortened(event.reason, MAX_REASON)
    changes |= {"wanted": wanted, "at": draft.now, "reason": reason}
    return _told_replicas(draft.status(replicas=before.model_copy(update=changes)), before.wanted, wanted, reason)


# --- what its nodes observe


def _workers(draft: _Draft, seen: WorkersSeen) -> _Draft:
    rows = _rows(draft.task, seen)
    draft = draft.status(workers=rows)
    if draft.task.status.phase is TaskPhase.DELETING:
        return draft if seen.workers else draft.then(Forget())
    if not is_placed(draft.task):
        return draft
    draft = _answering(draft, seen)
    return _degraded(_lived(draft, seen), seen)


def _rows(service: JointInferenceService, seen: WorkersSeen) -> tuple[WorkerStatus, ...]:
    """Those that are to run, then those that still do: of a service that is deleted, all of them."""
    places = places_of(service)
    before = {row.name: row.node for row in service.status.workers}
    found = [
        worker_status(name, node, role.value, seen.workers.get(name), node in seen.silent)
        for name, (node, role) in places.items()
    ]
    for name, worker in sorted(seen.workers.items()):
        if name not in places and worker.role in {Role.EDGE, Role.CLOUD}:
            node = CLOUD if worker.role is Role.CLOUD else before.get(name, UNKNOWN.lower())
            found.append(worker_status(name, node, worker.role.value, worker, node in seen.silent))
    return tuple(found)


def _answering(draft: _Draft, seen: WorkersSeen) -> _Draft:
    """What the edges count and serve, and how many replicas do. What a silent edge has counted stays, as it was told."""
    before = {edge.worker: edge for edge in draft.task.status.edges}
    workers = enumerate(draft.task.spec.edge_workers)
    edges = tuple(_edge(each, before.get(each.name), seen, scored=place < MAX_SCORED) for place, each in workers)
    ready = _ready(draft.task, seen)
    replicas = draft.task.status.replicas.model_copy(update={"ready": len(ready)})
    if not ready and replicas.waiting:
        replicas = replicas.model_copy(update={"waiting": 0})
    return draft.status(
        edges=edges,
        counts=_sum(edge.counts for edge in edges),
        replicas=replicas,
        cloud_serving=_most(seen.serving[name] for name in ready if name in seen.serving),
    )


def _edge(worker: EdgeWorker, before: EdgeServing | None, seen: WorkersSeen, *, scored: bool) -> EdgeServing:
    if before is None or before.node != worker.node_name:
        before = EdgeServing(worker=worker.name, node=worker.node_name)
    if worker.node_name in seen.silent:
        return before.model_copy(update={"serving": None, "cloud": ""})
    told = seen.inference.get(worker.name)
    if told is None:
        return before
    return EdgeServing(
        worker=worker.name,
        node=worker.node_name,
        serving=seen.serving.get(worker.name),
        counts=_counts(told.counts),
        models=_by_model(told.models),
        cloud=shortened(told.breaker, MAX_WORD),
        scores=ScoreCounts(**asdict(told.scores)) if scored and told.scores.inferences else None,
    )


def _counts(told: Inferences) -> InferenceCounts:
    return InferenceCounts(**asdict(told))


def _by_model(told: Mapping[str, int]) -> dict[str, int]:
    """What fits a status: digests and counts, of the busiest models."""
    fitting = [
        (digest, count) for digest, count in told.items() if _DIGEST.fullmatch(digest) and 0 <= count <= INTEGER_LIMIT
    ]
    busiest = sorted(fitting, key=lambda each: (-each[1], each[0]))[:MAX_MODELS]
    return dict(sorted(busiest))


def _sum(all_counts: Iterable[InferenceCounts]) -> InferenceCounts:
    total: Counter[str] = Counter()
    for counts in all_counts:
        total.update(counts.model_dump())
    return InferenceCounts(**{name: min(count, INTEGER_LIMIT) for name, count in total.items()})


def _most(models: Iterable[ServingModel]) -> ServingModel | None:
    """What most of them serve: while a new version arrives they may differ."""
    found = Counter(models_there := list(models))
    return max(models_there, key=lambda model: (found[model], model.version)) if models_there else None


def _ready(service: JointInferenceService, seen: WorkersSeen) -> list[str]:
    cloud = service.spec.cloud_worker
    names = [cloud.replica(number) for number in range(replicas_of(service))]
    rows = {row.name: row for row in service.status.workers}
    return [name for name in names if _serves(rows[name], seen, has_model=cloud.model is not None)]


def _serves(row: WorkerStatus, seen: WorkersSeen, *, has_model: bool) -> bool:
    told = seen.inference.get(row.name)
    return row.state == "Running" and told is not None and (bool(told.digest) or not has_model)


# --- what that means


def _lived(draft: _Draft, seen: WorkersSeen) -> _Draft:
    """Phase and condition Ready follow from the edge workers: it is them that applications ask."""
    service = draft.task
    rows = {row.name: row for row in service.status.workers}
    edges = [(rows[worker.name], worker) for worker in service.spec.edge_workers]
    serving = [row for row, worker in edges if _serves(row, seen, has_model=worker.model is not None)]
    if serving:
        return _served(draft, serving, len(edges))
    if all(row.state == "Failed" for row, _ in edges):
        return _failed(draft, [row for row, _ in edges])
    draft = _tried_again(draft)
    if silent := [row for row, _ in edges if row.state == UNKNOWN]:
        return draft.condition(ConditionType.READY, "Unknown", "NodesSilent", _sentences(silent))
    reasons = _sentences(row for row, _ in edges if row.reason)
    return draft.condition(ConditionType.READY, "False", "NotServing", reasons)


def _served(draft: _Draft, serving: Sequence[WorkerStatus], edges: int) -> _Draft:
    draft = draft.condition(ConditionType.READY, "True", "Serving", f"{len(serving)} of {edges} edges serve")
    if find_condition(draft.task.status.conditions, ConditionType.FAILED) is not None:
        draft = draft.condition(ConditionType.FAILED, "False", "Serving")
    draft = draft.condition(ConditionType.PROGRESSING, "True", "Serving")
    return draft.phase(TaskPhase.RUNNING, f"{serving[0].node} serves")


def _failed(draft: _Draft, rows: Sequence[WorkerStatus]) -> _Draft:
    message = _sentences(rows)
    draft = draft.condition(ConditionType.FAILED, "True", "EdgeWorkersFailed", message)
    draft = draft.condition(ConditionType.PROGRESSING, "False", "EdgeWorkersFailed")
    draft = draft.condition(ConditionType.READY, "False", "EdgeWorkersFailed", message)
    return draft.phase(TaskPhase.FAILED, shortened(message, MAX_REASON))


def _tried_again(draft: _Draft) -> _Draft:
    if draft.task.status.phase is not TaskPhase.FAILED:
        return draft
    draft = draft.condition(ConditionType.FAILED, "False", "TriedAgain")
    draft = draft.condition(ConditionType.PROGRESSING, "True", "Preparing", "workers are being started")
    return draft.phase(TaskPhase.PREPARING, "an edge worker is tried again")


def _degraded(draft: _Draft, seen: WorkersSeen) -> _Draft:
    """What goes wrong while the rest goes on: edges that cannot answer, a cloud that cannot, models that do not serve."""
    rows = draft.task.status.workers
    found = [
        ("EdgesInTrouble", _sentences(row for row in rows if row.role == Role.EDGE.value and row.state in _TROUBLED)),
        ("CloudInTrouble", _cloud_trouble(draft.task)),
        ("ModelRefused", _refused(draft.task, seen)),
    ]
    troubles = [(reason, sentence) for reason, sentence in found if sentence]
    if troubles:
        message = "; ".join(sentence for _, sentence in troubles)
        return draft.condition(ConditionType.DEGRADED, "True", troubles[0][0], message)
    before = find_condition(draft.task.status.conditions, ConditionType.DEGRADED)
    if before is not None and before.status == "True":
        return draft.condition(ConditionType.DEGRADED, "False", "Fine")
    return draft


def _cloud_trouble(service: JointInferenceService) -> str:
    """Empty as long as one replica works, or all of them are on their way."""
    cloud = [row for row in service.status.workers if row.role == Role.CLOUD.value]
    if not cloud or not all(row.state in _TROUBLED for row in cloud):
        return ""
    return f"no replica of {service.spec.cloud_worker.name} works, edges answer alone: {_sentences(cloud[:1])}"


def _refused(service: JointInferenceService, seen: WorkersSeen) -> str:
    """Models that a worker which is there was given and would not serve."""
    there = {row.name: row.node for row in service.status.workers if row.state != UNKNOWN}
    return "; ".join(
        f"{name} on {there[name]} does not serve model {digest[:12]}: {shortened(reason, MAX_REASON)}"
        for name, told in sorted(seen.inference.items())
        if name in there
        for digest, reason in sorted(told.refused_models.items())
    )


def _sentences(rows: Iterable[WorkerStatus]) -> str:
    return "; ".join(f"{row.name} on {row.node}: {row.reason or row.state.lower()}" for row in rows)


MACHINE: Machine[State] = Machine(JointInferenceService, lambda _key: None, step, resume)
