"""A federated task from `apply` to its end, as the coordinator sees it.

    Pending -> Preparing -> Running -> Succeeded
                            Running -> Paused -> Running
    Preparing, Running, Paused -> Succeeded, Failed
    any -> Deleting -> removed

`TRANSITIONS` is this drawing for programs.

The state is the resource itself: its spec belongs to the user, its status to this machine. Nodes, datasets and models are
seen through `References`, workers through what controllers observe, rounds through the facts of the aggregation worker.
What nodes are to run follows from the state (coordinator.placement) and is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeai.events.catalogue import (
    RoundClosed,
    RoundMissed,
    RoundStarted,
    RoundValidated,
    TrainingCompleted,
    WorkerJoined,
    WorkerObserved,
)
from edgeai.lifecycle.base import CancelTimer, Command, Forget, Machine, SetTimer, Step, TimerFired
from edgeai.lifecycle.draft import MAX_REASON, Draft, shortened, worker_status
from edgeai.resources import lineage
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import (
    FederatedTask,
    FinishedModel,
    RoundRecord,
    TaskPhase,
    WorkerStatus,
)

DRAIN_S = 15.0
"""How long workers of a finished task may take to end by themselves."""
_DEADLINE, _DRAIN = "deadline", "drain"
_OVER = frozenset({TaskPhase.SUCCEEDED, TaskPhase.FAILED})
_GONE = frozenset({"Done", "Failed"})
_AT_WORK = frozenset({TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.PAUSED})

MAX_HISTORY_CHARACTERS = 400_000
"""Of the closed rounds that a status keeps, the newest ones; all of them are in the history of facts."""

_SOURCE_CHARACTERS = 200

TRANSITIONS: dict[TaskPhase, frozenset[TaskPhase]] = {
    TaskPhase.PENDING: frozenset({TaskPhase.PREPARING, TaskPhase.DELETING}),
    TaskPhase.PREPARING: frozenset({TaskPhase.RUNNING, *_OVER, TaskPhase.DELETING}),
    TaskPhase.RUNNING: frozenset({TaskPhase.PAUSED, *_OVER, TaskPhase.DELETING}),
    TaskPhase.PAUSED: frozenset({TaskPhase.RUNNING, *_OVER, TaskPhase.DELETING}),
    TaskPhase.SUCCEEDED: frozenset({TaskPhase.DELETING}),
    TaskPhase.FAILED: frozenset({TaskPhase.DELETING}),
    TaskPhase.DELETING: frozenset(),
}

State = FederatedTask | None


@dataclass(frozen=True, slots=True)
class References:
    """What the task's references lead to: sentences a person can act on in `problems`, the model's newest version in `base`."""

    problems: tuple[str, ...] = ()
    base: FinishedModel | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """The resource, or something it refers to, was read. `now` is an instant for people."""

    task: FederatedTask
    references: References
    now: str


@dataclass(frozen=True, slots=True)
class WorkersSeen:
    """What the nodes observe of this task's workers. `silent` nodes are not heard of: what they run is unknown."""

    workers: Mapping[str, WorkerObserved]
    silent: frozenset[str]
    now: str


@dataclass(frozen=True, slots=True)
class FactSeen:
    fact: Any
    now: str


@dataclass(frozen=True, slots=True)
class ModelRegistered:
    """The finished model is a version of the Model resource."""

    model: FinishedModel
    completed: TrainingCompleted
    now: str


@dataclass(frozen=True, slots=True)
class Clocked:
    """A timer, with the instant that the shell adds."""

    name: str
    now: str


TaskEvent = Seen | WorkersSeen | FactSeen | ModelRegistered | Clocked | TimerFired


_Draft = Draft[FederatedTask]


def step(state: State, event: TaskEvent) -> Step[State]:
    """Advance one task. Never raises on late, repeated or foreign events."""
    match event:
        case Seen(task=task, references=references, now=now):
            if state is not None and state.metadata.uid == task.metadata.uid:
                task = task.model_copy(update={"status": state.status})
                return _seen(Draft(task, now), references)
            # Another task of this name: timers of the one before are none of its business.
            draft = Draft(task, now).then(CancelTimer(_DEADLINE), CancelTimer(_DRAIN)) if state else Draft(task, now)
            return _seen(draft, references)
        case _ if state is None:
            return None, ()
        case WorkersSeen(workers=workers, silent=silent, now=now):
            return _workers(Draft(state, now), workers, silent)
        case FactSeen(fact=fact, now=now) if fact.task_uid == state.metadata.uid:
            return _fact(Draft(state, now), fact)
        case ModelRegistered(model=model, completed=completed, now=now) if completed.task_uid == state.metadata.uid:
            return _registered(Draft(state, now), model, completed)
        case Clocked(name="deadline", now=now) if state.status.phase in _AT_WORK:
            return _fail(Draft(state, now), "DeadlineExceeded", "the task's own deadline passed").done()
        case Clocked(name="drain", now=now):
            return _drained(Draft(state, now)).done()
    return state, ()


def resume(state: State) -> tuple[Command, ...]:
    """Everything else a task waits for is brought again by watching: resources, documents and facts.

    A timer that still runs goes on; these are for a coordinator that ended between status and timers.
    """
    if state is None:
        return ()
    match state.status.phase:
        case phase if phase in _AT_WORK:
            deadline_s = state.spec.rules().task_deadline_s
            return (SetTimer(_DEADLINE, deadline_s),) if deadline_s else ()
        case TaskPhase.SUCCEEDED if not is_over(state):
            return (SetTimer(_DRAIN, DRAIN_S),)
    return ()


def is_over(task: FederatedTask) -> bool:
    """Its workers are to be stopped and their logs kept."""
    if task.status.phase is TaskPhase.FAILED:
        return True
    progressing = find_condition(task.status.conditions, ConditionType.PROGRESSING)
    return task.status.phase is TaskPhase.SUCCEEDED and progressing is not None and progressing.status == "False"


def is_placed(task: FederatedTask) -> bool:
    """Nodes are to know its workers."""
    return task.status.phase not in {TaskPhase.PENDING, TaskPhase.DELETING}


def _seen(draft: _Draft, references: References) -> Step[State]:
    metadata, status, spec = draft.task.metadata, draft.task.status, draft.task.spec
    if metadata.deletion_timestamp is not None:
        return draft.phase(TaskPhase.DELETING, "deleted by a user").done()
    if status.phase in _OVER:
        return draft.done()
    draft = draft.status(observed_generation=metadata.generation)
    if status.phase is TaskPhase.PENDING:
        if references.problems:
            problem = "; ".join(references.problems)
            return draft.condition(ConditionType.ACCEPTED, "False", "ReferencesMissing", problem).done()
        draft = draft.condition(ConditionType.ACCEPTED, "True", "ReferencesFound").status(base=references.base)
        draft = draft.condition(ConditionType.PROGRESSING, "True", "Preparing", "workers are being started")
        draft = draft.phase(TaskPhase.PREPARING, "all references exist")
        deadline = spec.rules().task_deadline_s
        return (draft.then(SetTimer(_DEADLINE, deadline)) if deadline else draft).done()
    if spec.paused and status.phase is TaskPhase.RUNNING:
        return draft.phase(TaskPhase.PAUSED, "spec.paused is true").done()
    if not spec.paused and status.phase is TaskPhase.PAUSED:
        return draft.phase(TaskPhase.RUNNING, "spec.paused is false").done()
    return draft.done()


def _workers(draft: _Draft, seen: Mapping[str, WorkerObserved], silent: frozenset[str]) -> Step[State]:
    spec, phase = draft.task.spec, draft.task.status.phase
    rows = [(spec.aggregation_worker.name, "cloud", "aggregation")]
    rows += [(worker.name, worker.node_name, "training") for worker in spec.training_workers]
    workers = tuple(worker_status(name, node, role, seen.get(name), node in silent) for name, node, role in rows)
    before = draft.task.status.workers
    draft = draft.status(workers=workers, sources=_prepared(draft.task, seen))
    if phase is TaskPhase.DELETING:
        return (draft if seen else draft.then(Forget())).done()
    if phase is TaskPhase.SUCCEEDED:
        training_over = all(row.state in {*_GONE, "Unknown", "Pending"} for row in workers if row.role == "training")
        return (_drained(draft) if training_over else draft).done()
    if phase is TaskPhase.FAILED:
        return _completed(draft, before).done()
    return (_judge(draft) if phase in _AT_WORK else draft).done()


def _prepared(task: FederatedTask, seen: Mapping[str, WorkerObserved]) -> tuple[lineage.Source, ...]:
    """What the training workers were prepared with, with what the nodes say of it now."""
    told = [
        source.model_copy(update={"digest": found.dataset, "samples": found.samples})
        for name, source in _sources_of(task).items()
        if (found := seen.get(name)) is not None and found.dataset
    ]
    return lineage.prepared(task.status.sources, told)


def _sources_of(task: FederatedTask) -> dict[str, lineage.Source]:
    return {
        worker.name: lineage.Source(worker=worker.name, node=worker.node_name, dataset=worker.worker_spec.dataset.name)
        for worker in task.spec.training_workers
    }


def _judge(draft: _Draft) -> _Draft:
    """Can the task still succeed with the workers that are left?"""
    workers, spec = draft.task.status.workers, draft.task.spec
    if failed := [row for row in workers if row.state == "Failed"]:
        # Also when the task fails with them: what was said of its workers before is no longer so.
        draft = draft.condition(ConditionType.DEGRADED, "True", "WorkersFailed", _sentences(failed))
    for row in failed:
        if row.role == "aggregation":
            return _fail(draft, "AggregationWorkerFailed", _sentences([row]))
    training = [row for row in workers if row.role == "training"]
    if len(training) - len(failed) < spec.rules().min_node_number:
        return _fail(draft, "WorkersFailed", _too_few(draft.task, failed))
    if failed:
        return draft
    if troubled := [row for row in training if row.state == "Backoff"]:
        return draft.condition(ConditionType.DEGRADED, "True", "WorkersRestarting", _sentences(troubled))
    if all(_is_fine(row) for row in training):
        return _recovered(draft, "WorkersRestarting", "WorkersFailed")
    return draft


def _completed(draft: _Draft, before: Sequence[WorkerStatus]) -> _Draft:
    """A task that has failed for want of workers, which others have left after it: they belong to its reason as well.

    A worker that is stopped because of that does not become Failed. Nothing is taken back when a node falls silent.
    """
    said = find_condition(draft.task.status.conditions, ConditionType.FAILED)
    rows = [row for row in draft.task.status.workers if row.role == "training"]
    failed = [row for row in rows if row.state == "Failed"]
    known = {row.name for row in before if row.role == "training" and row.state == "Failed"}
    grown = known < {row.name for row in failed} and all(row.state != "Unknown" for row in rows)
    if said is None or said.reason != "WorkersFailed" or not grown:
        return draft
    draft = draft.condition(ConditionType.DEGRADED, "True", "WorkersFailed", _sentences(failed))
    return draft.condition(ConditionType.FAILED, "True", "WorkersFailed", _too_few(draft.task, failed))


def _too_few(task: FederatedTask, failed: Sequence[WorkerStatus]) -> str:
    left, needed = len(task.spec.training_workers) - len(failed), task.spec.rules().min_node_number
    return f"{_sentences(failed)}; {left} of at least {needed} training workers are left"


def _sentences(rows: Sequence[WorkerStatus]) -> str:
    """Workers with the same reason are named together."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(row.reason, []).append(f"{row.name} on {row.node}")
    return "; ".join(f"{', '.join(workers)}: {reason}" for reason, workers in by_reason.items())


def _is_fine(row: WorkerStatus) -> bool:
    """Not yet, if it is only between two ends: its node forgives its restarts when it has run for a while."""
    return row.state in _GONE or (row.state != "Unknown" and row.restarts == 0)


def _recovered(draft: _Draft, *reasons: str) -> _Draft:
    """The workers are fine, if one of these was said of them."""
    before = find_condition(draft.task.status.conditions, ConditionType.DEGRADED)
    if before is None or before.status != "True" or before.reason not in reasons:
        return draft
    return draft.condition(ConditionType.DEGRADED, "False", "WorkersFine")


def _fact(draft: _Draft, fact: Any) -> Step[State]:
    if draft.task.status.phase not in _AT_WORK:
        return draft.done()
    match fact:
        case WorkerJoined(member=member):
            joined = tuple(sorted({*draft.task.status.joined, member}))
            return _ready(draft.status(joined=joined)).done()
        case RoundStarted(number=number):
            if number >= draft.task.status.round:
                draft = draft.status(round=min(number, draft.task.spec.rules().rounds))
            return _ready(draft, started=True).done()
        case RoundClosed(record=record) if record.number > 0:
            return _closed(draft, fact).done()
        case RoundValidated(number=number) if number < _newest(draft.task):
            return draft.done()
        case RoundValidated(number=number, metrics=metrics):
            rounds = tuple(
                row.model_copy(update={"metrics": metrics, "metrics_source": "global"}) if row.round == number else row
                for row in draft.task.status.rounds
            )
            return draft.status(rounds=rounds, metrics=metrics).done()
        case RoundMissed(number=number, reason=reason) if (
            number > _newest(draft.task) and number >= draft.task.status.round
        ):
            return draft.condition(ConditionType.DEGRADED, "True", "RoundMissed", reason).done()
    return draft.done()


def _newest(task: FederatedTask) -> int:
    """The newest round that is closed; -1: none."""
    return task.status.rounds[-1].round if task.status.rounds else -1


def _ready(draft: _Draft, *, started: bool = False) -> _Draft:
    """Running at `min node number` joined workers."""
    status, needed = draft.task.status, draft.task.spec.rules().min_node_number
    if status.phase is not TaskPhase.PREPARING or (len(status.joined) < needed and not started):
        return draft
    draft = draft.condition(ConditionType.READY, "True", "WorkersJoined", f"at least {needed} training workers")
    draft = draft.condition(ConditionType.PROGRESSING, "True", "Training")
    return draft.phase(TaskPhase.RUNNING, f"{len(status.joined)} training workers have joined")


def _closed(draft: _Draft, fact: RoundClosed) -> _Draft:
    record = fact.record
    if record.number <= _newest(draft.task):
        return draft
    row = RoundRecord(
        round=record.number,
        updates=len(record.accepted),
        accepted=tuple(sorted(record.accepted)),
        refused={worker: shortened(why, MAX_REASON) for worker, why in record.refused.items()},
        metrics=record.metrics,
        metrics_source="local" if record.metrics else "",
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        seconds=record.seconds,
        model_digest=record.model_digest,
    )
    known = _sources_of(draft.task)
    accepted = [known[name] for name in row.accepted if name in known]
    sources = lineage.counted(draft.task.status.sources, accepted)
    draft = draft.status(rounds=_kept((*draft.task.status.rounds, row), len(sources)), sources=sources)
    if record.refused:
        refused = "; ".join(f"{worker}: {why}" for worker, why in sorted(record.refused.items()))
        return draft.condition(ConditionType.DEGRADED, "True", "UpdatesRefused", f"round {record.number}: {refused}")
    before = find_condition(draft.task.status.conditions, ConditionType.DEGRADED)
    if before is not None and before.status == "True" and before.reason in {"RoundMissed", "UpdatesRefused"}:
        return draft.condition(ConditionType.DEGRADED, "False", "RoundClosed")
    return draft


def _kept(rounds: tuple[RoundRecord, ...], sources: int) -> tuple[RoundRecord, ...]:
    """The newest rounds that fit into a status beside what they were made from, and always the last one."""
    left = max(MAX_HISTORY_CHARACTERS - sources * _SOURCE_CHARACTERS, MAX_HISTORY_CHARACTERS // 4)
    for place in range(len(rounds) - 1, -1, -1):
        row = rounds[place]
        names = (*row.accepted, *row.refused, *row.refused.values(), *row.metrics)
        left -= 300 + sum(len(name) + 20 for name in names)
        if left < 0 and place < len(rounds) - 1:
            return rounds[place + 1 :]
    return rounds


def _registered(draft: _Draft, model: FinishedModel, completed: TrainingCompleted) -> Step[State]:
    if draft.task.status.phase not in _AT_WORK:
        return draft.done()
    metrics = completed.metrics or draft.task.status.metrics
    message = f"{model.name} version {model.version} after {completed.number} rounds"
    draft = draft.status(model=model, metrics=metrics)
    if all(row.state != "Backoff" for row in draft.task.status.workers):
        draft = _recovered(draft, "WorkersRestarting")  # nobody looks at them any more
    draft = draft.condition(ConditionType.SUCCEEDED, "True", "TrainingCompleted", message)
    draft = draft.condition(ConditionType.PROGRESSING, "True", "Stopping", "workers are ending")
    draft = draft.phase(TaskPhase.SUCCEEDED, message)
    return draft.then(CancelTimer(_DEADLINE), SetTimer(_DRAIN, DRAIN_S)).done()


def _drained(draft: _Draft) -> _Draft:
    if draft.task.status.phase is not TaskPhase.SUCCEEDED or is_over(draft.task):
        return draft
    return draft.condition(ConditionType.PROGRESSING, "False", "Finished").then(CancelTimer(_DRAIN))


def _fail(draft: _Draft, reason: str, message: str) -> _Draft:
    draft = draft.condition(ConditionType.FAILED, "True", reason, message)
    draft = draft.condition(ConditionType.PROGRESSING, "False", reason)
    return draft.phase(TaskPhase.FAILED, message).then(CancelTimer(_DEADLINE))


MACHINE: Machine[State] = Machine(FederatedTask, lambda _key: None, step, resume)
