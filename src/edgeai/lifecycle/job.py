"""An incremental learning job from `apply` to its deletion, as the coordinator sees it.

    Pending -> Preparing -> Running <-> Paused                  references found; the inference worker serves
    Preparing, Running, Paused -> Failed -> Preparing, Running  it was given up; somebody has changed something
    any -> Deleting -> removed

`TRANSITIONS` is this drawing for programs.

The job runs by itself on its node (`lifecycle.stage`); here is what is known of it. The state is the resource: its spec belongs
to the user, its status to this machine. Stage and counts are what the node last observed, the history is made of its facts. A
job is only `Failed` when nothing can work: without the inference worker nobody serves, and nothing can be deployed. Everything
else that goes wrong is tried again at the edge, and makes the job `Degraded`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeai.events.catalogue import ExampleCounts, JobObserved, ModelDeployed, Role, StageChanged, WorkerObserved
from edgeai.lifecycle.base import Command, Forget, Machine, Step
from edgeai.lifecycle.draft import MAX_REASON, Draft, shortened, worker_status
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import TaskPhase, WorkerStatus
from edgeai.resources.incremental import (
    ArrivingModel,
    IncrementalLearningJob,
    JobCounts,
    ServingModel,
    StageRecord,
    Taken,
)

MAX_HISTORY, MAX_ARRIVING = 100, 50
"""Stages, and models on their way, that a status keeps: the newest. All stages are in the history of facts."""
MAX_METRICS, MAX_NAME, MAX_DROPPED = 100, 100, 10
"""Of one stage; characters of a metric's name; sentences on what was dropped."""
UNKNOWN = "Unknown"
_PLACED = frozenset({TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.PAUSED, TaskPhase.FAILED})
_DEPLOY = Role.DEPLOY.value
_DATASET_TROUBLE, _MODEL_LOST = frozenset({"DatasetUnusable", "DatasetShrunk"}), "ModelLost"
"""Reasons of the condition Degraded: the first are the node's words, and stand until it takes them back."""

TRANSITIONS: dict[TaskPhase, frozenset[TaskPhase]] = {
    TaskPhase.PENDING: frozenset({TaskPhase.PREPARING, TaskPhase.DELETING}),
    TaskPhase.PREPARING: frozenset({TaskPhase.RUNNING, TaskPhase.PAUSED, TaskPhase.FAILED, TaskPhase.DELETING}),
    TaskPhase.RUNNING: frozenset({TaskPhase.PAUSED, TaskPhase.FAILED, TaskPhase.DELETING}),
    TaskPhase.PAUSED: frozenset({TaskPhase.RUNNING, TaskPhase.FAILED, TaskPhase.DELETING}),
    TaskPhase.FAILED: frozenset({TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.PAUSED, TaskPhase.DELETING}),
    TaskPhase.DELETING: frozenset(),
}

State = IncrementalLearningJob | None
_Draft = Draft[IncrementalLearningJob]


@dataclass(frozen=True, slots=True)
class Seen:
    """The resource, or something it refers to, was read. `problems` are sentences a person can act on."""

    job: IncrementalLearningJob
    problems: tuple[str, ...]
    now: str


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What the job's node observes of it. `serving` is the model that it says it serves, as the registry knows it.

    `silent_since`: the node is not heard of since then (an instant, or `?`), and what it runs is unknown.
    """

    workers: Mapping[str, WorkerObserved]
    observed: JobObserved | None
    serving: ServingModel | None
    silent_since: str
    now: str


@dataclass(frozen=True, slots=True)
class FactSeen:
    """`taken`: its place among the facts of the job's node; None: an operator has said it."""

    fact: Any
    now: str
    taken: Taken | None = None


@dataclass(frozen=True, slots=True)
class ModelRegistered:
    """A model that was on its way is a version of the output model."""

    task_uid: str
    model: ArrivingModel
    now: str


@dataclass(frozen=True, slots=True)
class ModelLost:
    """A model that was on its way can never be a version: its node does not have it any more."""

    task_uid: str
    model: ArrivingModel
    reason: str
    now: str


JobEvent = Seen | NodeSeen | FactSeen | ModelRegistered | ModelLost


def step(state: State, event: JobEvent) -> Step[State]:
    """Advance one job. Never raises on late, repeated or foreign events."""
    match event:
        case Seen(job=job, problems=problems, now=now):
            if state is not None and state.metadata.uid == job.metadata.uid:
                job = job.model_copy(update={"status": state.status})
            return _seen(Draft(job, now), problems).done()
        case _ if state is None:
            return None, ()
        case NodeSeen():
            return _node(Draft(state, event.now), event).done()
        case FactSeen(fact=fact, now=now, taken=taken) if fact.task_uid == state.metadata.uid and _is_news(
            state, taken
        ):
            draft = _fact(Draft(state, now), fact)
            return (draft.status(taken=taken) if taken is not None else draft).done()
        case ModelRegistered(task_uid=task_uid, model=model) if task_uid == state.metadata.uid:
            return _arrived(Draft(state, event.now), model).done()
        case ModelLost(task_uid=task_uid, model=model) if task_uid == state.metadata.uid:
            return _lost(Draft(state, event.now), model, event.reason).done()
    return state, ()


def _is_news(job: IncrementalLearningJob, place: Taken | None) -> bool:
    """Whether a fact has not been taken yet: a coordinator that was restarted may be told again."""
    taken = job.status.taken
    return place is None or (place.incarnation, place.sequence) > (taken.incarnation, taken.sequence)


def resume(_state: State) -> tuple[Command, ...]:
    """Everything that a job waits for is brought again by watching."""
    return ()


def is_placed(job: IncrementalLearningJob) -> bool:
    """Its node is to know it. Also one that has failed: its examples lie there."""
    return job.status.phase in _PLACED


# --- the resource and what it refers to


def _seen(draft: _Draft, problems: tuple[str, ...]) -> _Draft:
    metadata, status = draft.task.metadata, draft.task.status
    if metadata.deletion_timestamp is not None:
        return draft.phase(TaskPhase.DELETING, "deleted by a user")
    draft = draft.status(observed_generation=metadata.generation)
    if problems:
        return draft.condition(ConditionType.ACCEPTED, "False", "ReferencesMissing", "; ".join(problems))
    draft = draft.condition(ConditionType.ACCEPTED, "True", "ReferencesFound")
    if status.phase is TaskPhase.PENDING:
        draft = draft.condition(ConditionType.PROGRESSING, "True", "Preparing", "the inference worker is being started")
        return draft.phase(TaskPhase.PREPARING, "all references exist")
    return _paused_or_not(draft)


def _paused_or_not(draft: _Draft) -> _Draft:
    paused, phase = draft.task.spec.paused, draft.task.status.phase
    if paused and phase is TaskPhase.RUNNING:
        draft = draft.condition(ConditionType.PROGRESSING, "False", "Paused", "it serves, and begins no stage")
        return draft.phase(TaskPhase.PAUSED, "spec.paused is true")
    if not paused and phase is TaskPhase.PAUSED:
        draft = draft.condition(ConditionType.PROGRESSING, "True", "Learning")
        return draft.phase(TaskPhase.RUNNING, "spec.paused is false")
    return draft


# --- what its node observes


def _node(draft: _Draft, seen: NodeSeen) -> _Draft:
    draft = draft.status(workers=_rows(draft.task, seen))
    if draft.task.status.phase is TaskPhase.DELETING:
        return draft if seen.workers or seen.observed is not None else draft.then(Forget())
    if not is_placed(draft.task):
        return draft
    return _degraded(_lived(_observed(draft, seen), seen), seen.observed)


def _rows(job: IncrementalLearningJob, seen: NodeSeen) -> tuple[WorkerStatus, ...]:
    node, silent, found = job.spec.node_name, bool(seen.silent_since), []
    for name in job.spec.worker_specs():
        row = worker_status(name, node, name, seen.workers.get(name), silent)
        if row.state == "Pending" and name != _DEPLOY and seen.observed is not None:
            # Its stage has not begun: nobody waits for the worker.
            row = row.model_copy(update={"state": "Waiting"})
        found.append(row)
    return tuple(found)


def _observed(draft: _Draft, seen: NodeSeen) -> _Draft:
    """Stage, counts and the serving model. What a silent node does is unknown; what it has counted stays, as it was told."""
    if seen.silent_since:
        reason = f"{draft.task.spec.node_name} is not heard of since {seen.silent_since}"
        return draft.status(state=UNKNOWN, reason=reason, serving=None)
    told = seen.observed
    if told is None:
        return draft
    return draft.status(
        round=told.round,
        stage=shortened(told.stage, MAX_NAME),
        state=shortened(told.state, MAX_NAME),
        reason=shortened(told.reason, MAX_REASON),
        counts=_counts(told.counts),
        serving=seen.serving,
        metrics=_kept_metrics(told.metrics),
        dropped=tuple(shortened(each, MAX_REASON) for each in told.dropped[:MAX_DROPPED]),
    )


def _lived(draft: _Draft, seen: NodeSeen) -> _Draft:
    """Phase and condition Ready follow from the inference worker."""
    row = next(row for row in draft.task.status.workers if row.name == _DEPLOY)
    phase = draft.task.status.phase
    if row.state == UNKNOWN:
        return draft.condition(ConditionType.READY, "Unknown", "NodeSilent", draft.task.status.reason)
    if row.state == "Failed":
        again = f"`edgeai trigger {draft.task.metadata.name}` or a change of the job starts it again"
        message = f"the inference worker on {row.node}: {row.reason}; {again}"
        draft = draft.condition(ConditionType.FAILED, "True", "InferenceWorkerFailed", message)
        draft = draft.condition(ConditionType.PROGRESSING, "False", "InferenceWorkerFailed")
        draft = draft.condition(ConditionType.READY, "False", "InferenceWorkerFailed", message)
        return draft.phase(TaskPhase.FAILED, message)
    if phase is TaskPhase.FAILED:
        draft = draft.condition(ConditionType.FAILED, "False", "TriedAgain")
        draft = draft.condition(ConditionType.PROGRESSING, "True", "Preparing", "the inference worker is being started")
        draft = draft.phase(TaskPhase.PREPARING, "the inference worker is tried again")
    if row.state != "Running" or seen.observed is None:
        return draft.condition(ConditionType.READY, "False", "NotServing", row.reason)
    draft = draft.condition(ConditionType.READY, "True", "Serving")
    if draft.task.status.phase is TaskPhase.PREPARING:
        draft = draft.condition(ConditionType.PROGRESSING, "True", "Learning")
        draft = draft.phase(TaskPhase.RUNNING, f"{row.node} serves")
    return _paused_or_not(draft)


def _degraded(draft: _Draft, told: JobObserved | None) -> _Draft:
    """What goes wrong and is tried again: a worker that is restarted, a dataset that cannot be used, or the last stage.

    A model that was lost is said until the next one has arrived. `told` None: nothing is known of the dataset but what was.
    """
    row = next(row for row in draft.task.status.workers if row.name == _DEPLOY)
    if row.state == "Backoff":
        sentence = f"the inference worker on {row.node}: {row.reason}"
        return draft.condition(ConditionType.DEGRADED, "True", "WorkerRestarting", sentence)
    if told is not None and told.trouble:
        reason = told.trouble_reason if told.trouble_reason in _DATASET_TROUBLE else "DatasetUnusable"
        return draft.condition(ConditionType.DEGRADED, "True", reason, shortened(told.trouble, MAX_REASON))
    before = find_condition(draft.task.status.conditions, ConditionType.DEGRADED)
    stands = before is not None and before.status == "True"
    if told is None and before is not None and stands and before.reason in _DATASET_TROUBLE:
        return draft
    last = draft.task.status.history[-1] if draft.task.status.history else None
    if last is not None and last.state == "Failed":
        sentence = f"{last.stage} of round {last.round}: {last.reason}"
        return draft.condition(ConditionType.DEGRADED, "True", "StageFailed", sentence)
    if before is not None and stands and before.reason != _MODEL_LOST and row.state != UNKNOWN:
        return draft.condition(ConditionType.DEGRADED, "False", "Fine")
    return draft


def _counts(told: ExampleCounts) -> JobCounts:
    return JobCounts(
        train=told.train,
        held_out=told.held_out,
        new=told.new,
        unlabelled=told.unlabelled,
        requests=told.requests,
        hard=told.hard,
        dropped=told.dropped,
    )


def _kept_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """What fits a status: finite, not too many; those of all examples before those of one class."""
    named = sorted(metrics.items(), key=lambda each: ("/" in each[0], each[0]))
    found = {name: float(value) for name, value in named if len(name) <= MAX_NAME and math.isfinite(value)}
    return dict(list(found.items())[:MAX_METRICS])


# --- facts


def _fact(draft: _Draft, fact: Any) -> _Draft:
    if draft.task.status.phase is TaskPhase.DELETING:
        return draft
    match fact:
        case StageChanged():
            history = _with(draft.task.status.history, _record(fact, draft.now))
            draft = draft.status(history=history)
            return _degraded(draft, None) if draft.task.status.workers else draft
        case ModelDeployed():
            return draft.status(arriving=_arriving(draft.task.status.arriving, fact))
    return draft


def _arrived(draft: _Draft, model: ArrivingModel) -> _Draft:
    arriving = tuple(each for each in draft.task.status.arriving if each != model)
    before = find_condition(draft.task.status.conditions, ConditionType.DEGRADED)
    draft = draft.status(arriving=arriving)
    if before is not None and before.status == "True" and before.reason == _MODEL_LOST:
        return draft.condition(ConditionType.DEGRADED, "False", "Fine")
    return draft


def _lost(draft: _Draft, model: ArrivingModel, reason: str) -> _Draft:
    """It is no version, and those behind it go on. Its round says so for good."""
    known = draft.task.status.arriving
    if model not in known:
        return draft
    which = f"the model of round {model.round}" if model.snapshot else "the model that the edge went back to"
    sentence = shortened(f"{which} (digest {model.digest[:12]}) never becomes a version: {reason}", MAX_REASON)
    history = tuple(
        row.model_copy(update={"reason": sentence}) if (row.round, row.stage) == (model.round, "Deploy") else row
        for row in draft.task.status.history
    )
    draft = draft.status(arriving=tuple(each for each in known if each != model), history=history)
    return draft.condition(ConditionType.DEGRADED, "True", _MODEL_LOST, sentence)


def _record(fact: StageChanged, now: str) -> StageRecord:
    return StageRecord(
        round=fact.round,
        stage=shortened(fact.stage, MAX_NAME),
        state=shortened(fact.state, MAX_NAME),
        reason=shortened(fact.reason, MAX_REASON),
        at=now,
        metrics=_kept_metrics(fact.metrics),
        serving=_kept_metrics(fact.serving),
        samples=fact.samples,
        snapshot=fact.snapshot,
        held_out=fact.held_out,
    )


def _with(history: tuple[StageRecord, ...], new: StageRecord) -> tuple[StageRecord, ...]:
    """One row for each stage of each round, as it was last told; a fact that is told again changes nothing."""
    for place, row in enumerate(history):
        if (row.round, row.stage) == (new.round, new.stage):
            kept = new.model_copy(
                update={
                    "metrics": new.metrics or row.metrics,
                    "serving": new.serving or row.serving,
                    "samples": new.samples or row.samples,
                    "snapshot": new.snapshot or row.snapshot,
                    "held_out": new.held_out or row.held_out,
                    "at": row.at if row.state == new.state else new.at,
                }
            )
            return (*history[:place], kept, *history[place + 1 :])
    return (*history, new)[-MAX_HISTORY:]


def _arriving(known: tuple[ArrivingModel, ...], fact: ModelDeployed) -> tuple[ArrivingModel, ...]:
    blob = fact.model.blob
    found = ArrivingModel(
        round=fact.round,
        name=shortened(fact.model.name, 255),
        digest=blob.digest,
        size_bytes=blob.size_bytes,
        format=shortened(fact.model.format, MAX_NAME),
        snapshot=fact.snapshot,
        samples=fact.samples,
        metrics=_kept_metrics(fact.metrics),
        held_out=fact.held_out,
        generation=fact.generation,
    )
    return (*known, found)[-MAX_ARRIVING:]


MACHINE: Machine[State] = Machine(IncrementalLearningJob, lambda _key: None, step, resume)
