"""What the coordinator records of a task's trace: the task itself, its preparation, and the versions that it makes.

It looks at what is committed and decides nothing. What it saw of a task is in memory: after a restart, begins are known from
the resource, and a task that ended while the coordinator was away or being killed is recorded from there, once more if need be.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from edgeai import tracing
from edgeai.coordinator.placement import Task
from edgeai.events.address import CLOUD
from edgeai.events.catalogue import TrainingCompleted
from edgeai.resources.conditions import ConditionType, find_condition, trouble_in
from edgeai.resources.federated import FederatedTask, FinishedModel, TaskPhase
from edgeai.resources.incremental import ArrivingModel, IncrementalLearningJob

JUST_ENDED_S = 10.0
_PART = tracing.Part("edgeai-coordinator", CLOUD)
_BEFORE = frozenset({TaskPhase.PENDING, TaskPhase.PREPARING})
_OVER = frozenset({TaskPhase.SUCCEEDED, TaskPhase.FAILED, TaskPhase.DELETING})


@dataclass(slots=True)
class _Seen:
    began_s: float
    is_prepared: bool = False
    is_over: bool = False


class TaskSpans:
    """Of all tasks, by uid."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def load(self, tasks: Iterable[Task]) -> None:
        """What there was before this process."""
        for task in tasks if tracing.recording() else ():
            phase, ended_s = task.status.phase, _ended_s(task)
            seen = _Seen(_created_s(task), phase not in _BEFORE, _is_over(task))
            self._seen[task.metadata.uid] = seen
            if ended_s is not None and time.time() - ended_s <= JUST_ENDED_S:
                _record_task(task, seen.began_s, ended_s)

    def look(self, tasks: Iterable[Task]) -> None:
        """After every commit; `tasks` are all there are."""
        there = {task.metadata.uid: task for task in tasks}
        for uid, task in there.items():
            seen = self._seen.setdefault(uid, _Seen(time.time()))
            if not seen.is_prepared and task.status.phase not in _BEFORE:
                seen.is_prepared = True
                error = trouble_in(task.status.conditions) if task.status.phase is TaskPhase.FAILED else ""
                here = tracing.span_of(uid, "prepare")
                _PART.record("prepare", here, tracing.task_span(uid), seen.began_s, _about(task), error=error)
            if not seen.is_over and _is_over(task):
                seen.is_over = True
                _record_task(task, seen.began_s)
        for uid in self._seen.keys() - there.keys():
            del self._seen[uid]


def trained(
    task: FederatedTask, completed: TrainingCompleted, model: FinishedModel, trace: str, began_s: float
) -> None:
    """The finished model is a version. `trace`: of the fact that told of it."""
    uid = task.metadata.uid
    here, parent = tracing.span_of(uid, "version"), tracing.parent_of(trace, uid, "round", completed.number + 1)
    about: tracing.Attributes = {
        **_about(task),
        "model": model.name,
        "version": model.version,
        "bytes": completed.model_size_bytes,
    }
    _PART.record("new version", here, parent, began_s, about)


def deployed(job: IncrementalLearningJob, model: ArrivingModel, began_s: float, error: str = "") -> None:
    """A model that serves at the edge is a version, or never will be."""
    uid = job.metadata.uid
    here = tracing.span_of(uid, "version", model.round, model.digest[:16])
    about: tracing.Attributes = {
        **_about(job),
        "model": job.spec.output_model.name,
        "round": model.round,
        "bytes": model.size_bytes,
    }
    _PART.record("new version", here, tracing.stage_span(uid, model.round, "deploy"), began_s, about, error=error)


def _record_task(task: Task, began_s: float, ended_s: float | None = None) -> None:
    uid, phase = task.metadata.uid, task.status.phase
    error = trouble_in(task.status.conditions) or "failed" if phase is TaskPhase.FAILED else ""
    about: tracing.Attributes = {**_about(task), "phase": phase.value}
    if isinstance(task, FederatedTask):
        about = {**about, "rounds": len(task.status.rounds)}
    _PART.record("task", tracing.task_span(uid), tracing.span_of(uid), began_s, about, ended_s=ended_s, error=error)


def _about(task: Task) -> tracing.Attributes:
    return {"task": task.metadata.name, "kind": task.kind, "generation": task.metadata.generation}


def _is_over(task: Task) -> bool:
    """Jobs and services have no end: their span ends when they first run."""
    phase = task.status.phase
    return phase in _OVER or (not isinstance(task, FederatedTask) and phase not in _BEFORE)


def _created_s(task: Task) -> float:
    return _seconds(task.metadata.creation_timestamp) or time.time()


def _ended_s(task: Task) -> float | None:
    for type_ in (ConditionType.SUCCEEDED, ConditionType.FAILED):
        found = find_condition(task.status.conditions, type_)
        if found is not None and found.status == "True":
            return _seconds(found.last_transition_time)
    return None


def _seconds(instant: str | None) -> float | None:
    return datetime.fromisoformat(instant).timestamp() if instant else None
