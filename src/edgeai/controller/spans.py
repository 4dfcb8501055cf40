"""What a controller records of a task's trace: each start of a worker, and the stages of jobs.

It looks at what happens and decides nothing; what it remembers is in memory only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from edgeai import tracing
from edgeai.events.catalogue import Assignment
from edgeai.lifecycle.stage import Job, Stage, StageState

SERVICE = "edgeai-controller"
_AT_WORK = frozenset({StageState.STARTING, StageState.RUNNING})


@dataclass(slots=True)
class _Start:
    """A worker that is being started. `told`: why it was not."""

    began_s: float
    told: set[str] = field(default_factory=set)


class StartSpans:
    """From the assignment of a worker to its program. Those that fail are recorded once for every reason."""

    def __init__(self, node: str) -> None:
        self._part = tracing.Part(SERVICE, node)
        self._starts: dict[str, _Start] = {}

    def preparing(self, key: str) -> None:
        if tracing.recording():
            self._starts.setdefault(key, _Start(time.time()))

    def started(self, key: str, assignment: Assignment, token: str, prepared_s: float) -> None:
        """`token`: digest of the run's. `prepared_s`: when its program could be started."""
        start = self._starts.pop(key, None)
        here = tracing.start_span(assignment.task_uid, assignment.worker, token)
        began_s = start.began_s if start is not None else prepared_s
        about: tracing.Attributes = {**_about(assignment), "prepare_seconds": round(prepared_s - began_s, 3)}
        self._part.record("start worker", here, tracing.task_span(assignment.task_uid), began_s, about)

    def failed(self, key: str, assignment: Assignment, reason: str) -> None:
        if not tracing.recording():
            return
        start = self._starts.setdefault(key, _Start(time.time()))
        if reason in start.told:
            return
        start.told.add(reason)
        uid = assignment.task_uid
        here = tracing.span_of(uid, "start", assignment.worker, "failed", int(start.began_s), reason)
        self._part.record("start worker", here, tracing.task_span(uid), start.began_s, _about(assignment), error=reason)

    def forget(self, key: str) -> None:
        self._starts.pop(key, None)


class StageSpans:
    """The stages of a node's jobs, by task level: from the begin of its work to whatever follows."""

    def __init__(self, node: str) -> None:
        self._part = tracing.Part(SERVICE, node)
        self._open: dict[str, tuple[Stage, int, int, float]] = {}

    def look(self, level: str, job: Job | None) -> None:
        """After every change of a job; None: it is gone."""
        if not tracing.recording():
            return
        place = None if job is None or job.wanted is None else (job.stage, job.round, job.attempt)
        was = self._open.get(level)
        if was is not None and (place != was[:3] or job is None or job.state not in _AT_WORK):
            del self._open[level]
            if job is not None and job.wanted is not None:
                self._record(job, *was)
        if place is not None and job is not None and job.state in _AT_WORK:
            self._open.setdefault(level, (*place, time.time()))

    def _record(self, job: Job, stage: Stage, number: int, attempt: int, began_s: float) -> None:
        assert job.wanted is not None
        uid, name = job.wanted.task_uid, stage.value.lower()
        here = tracing.stage_span(uid, number, name)
        if attempt and stage is not Stage.DEPLOY:
            here = tracing.span_of(uid, "round", number, name, attempt)
        has_failed = job.stage is stage and job.state is StageState.FAILED
        about: tracing.Attributes = {
            "task": job.wanted.task_name,
            "kind": "IncrementalLearningJob",
            "generation": job.wanted.generation,
            "round": number,
            "attempt": attempt,
        }
        error = (job.cause or job.reason or "failed") if has_failed else ""
        self._part.record(f"stage {name}", here, tracing.task_span(uid), began_s, about, error=error)


def _about(assignment: Assignment) -> tracing.Attributes:
    return {
        "task": assignment.task_name,
        "worker": assignment.worker,
        "role": assignment.role.value,
        "generation": assignment.generation,
    }
