"""What workers record of a task's trace: that they joined, what they trained and evaluated, what became of it, and each round.

Training and aggregation worker refer to each other's spans through `trace` in their messages; what does not come that way is
derived from the task's uid (`edgeai.tracing`). No state that anything else depends on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgeai import tracing
from edgeai.events.catalogue import (
    Assignment,
    Event,
    InferenceAnswered,
    Offer,
    Outcome,
    RoundClosed,
    RoundMissed,
    RoundRecord,
    RoundStarted,
    RoundValidated,
    TrainingCompleted,
    UpdateRefused,
    Verdict,
)
from edgeai.events.tokens import token_digest
from edgeai.lifecycle.round import Job, JobPhase
from edgeai.worker.environment import WorkerEnvironment

SERVICE = "edgeai-worker"
_UNDER_WAY = frozenset({JobPhase.OPEN, JobPhase.CLOSING, JobPhase.RETRYING})


class WorkerSpans:
    """Of any worker. Attributes: task and name of what it works for, its own name and role."""

    def __init__(self, environment: WorkerEnvironment, assignment: Assignment) -> None:
        self._part, self._environment = tracing.Part(SERVICE, environment.node), environment
        self._uid, self._worker = assignment.task_uid, environment.worker
        self._about: dict[str, str | int | float | bool] = {
            "task": assignment.task_name,
            "worker": environment.worker,
            "role": assignment.role.value,
        }
        self._began_s = time.time()

    def joined(self) -> None:
        """It has begun, and what waits for a broker has one."""
        token = self._environment.slot.read_token()
        run = token_digest(self._uid, self._worker, token) if token else ""
        start = tracing.start_span(self._uid, self._worker, run)
        here = tracing.span_of(self._uid, "join", self._worker, run[:16])
        self._part.record("join", here, start, self._began_s, self._about)

    def deployed(self, digest: str, version: int, trace: str, began_s: float, error: str = "") -> None:
        """A model serves, or was refused. `trace`: of the message that asked for it, if it came by one."""
        here = tracing.span_of(self._uid, "deploy", self._worker, digest[:16], int(began_s * 1000))
        about: tracing.Attributes = {**self._about, "model_digest": digest[:12], "version": version}
        parent = tracing.parent_of(trace, self._uid, "task")
        self._part.record("deploy model", here, parent, began_s, about, error=error)


class TrainingSpans(WorkerSpans):
    """Of a training worker: from being asked to being done, whatever its script did in between."""

    def __init__(self, environment: WorkerEnvironment, assignment: Assignment) -> None:
        super().__init__(environment, assignment)
        self._asked: tuple[int, tracing.Context] | None = None

    def asked(self, number: int, trace: str) -> None:
        """The round's document, and what it carried."""
        self._asked = number, tracing.parent_of(trace, self._uid, "round", number)

    def trained(self, number: int, digest: str, size_bytes: int, examples: int, seconds: float) -> None:
        here = tracing.train_span(self._uid, number, self._worker, digest)
        about: tracing.Attributes = {**self._about, "round": number, "bytes": size_bytes, "examples": examples}
        self._part.record("train", here, self._parent(number), time.time() - seconds, about)

    def validated(self, number: int, examples: int, seconds: float) -> None:
        about: tracing.Attributes = {**self._about, "round": number, "examples": examples}
        self._part.record("validate", self._validate(number), self._parent(number), time.time() - seconds, about)

    def trace_of_offer(self, number: int, digest: str) -> str:
        here = tracing.train_span(self._uid, number, self._worker, digest)
        return tracing.passed_on(here, self._parent(number))

    def trace_of_report(self, number: int) -> str:
        return tracing.passed_on(self._validate(number), self._parent(number))

    def trace_of_round(self, number: int) -> str:
        return str(self._parent(number))

    def _validate(self, number: int) -> tracing.Context:
        return tracing.span_of(self._uid, "round", number, "validate", self._worker)

    def _parent(self, number: int) -> tracing.Context:
        if self._asked is not None and self._asked[0] == number:
            return self._asked[1]
        return tracing.round_span(self._uid, number)


class RoundSpans(WorkerSpans):
    """Of an aggregation worker. `models`: the folder of the models that rounds start from."""

    def __init__(self, environment: WorkerEnvironment, assignment: Assignment, models: Path) -> None:
        super().__init__(environment, assignment)
        self._models = models
        self._open: tuple[int, float] | None = None
        self._offers: dict[tuple[int, str, str], tuple[float, str] | None] = {}
        """by round, worker and digest: since when, and the trace that came along; None: it was judged"""
        self._record: RoundRecord | None = None

    def offered(self, worker: str, offer: Offer, trace: str) -> None:
        """Repeated ones change nothing."""
        if tracing.recording():
            self._offers.setdefault((offer.number, worker, offer.blob.digest), (time.time(), trace))

    def judged(self, worker: str, verdict: Verdict) -> None:
        key = verdict.number, worker, verdict.digest
        offer = self._offers.get(key)
        if offer is None or verdict.outcome not in {Outcome.COUNTED, Outcome.REFUSED}:
            return
        self._offers[key] = None
        began_s, trace = offer
        here = tracing.span_of(self._uid, "round", verdict.number, "collect", worker, verdict.digest[:16])
        parent = tracing.parent_of(trace, self._uid, "round", verdict.number, "train", worker, verdict.digest[:16])
        about: tracing.Attributes = {
            **self._about,
            "from_worker": worker,
            "round": verdict.number,
            "outcome": verdict.outcome.value,
        }
        self._part.record("collect update", here, parent, began_s, about, error=verdict.reason)

    def aggregated(self, record: RoundRecord, began_s: float) -> None:
        self._record = record
        here = tracing.span_of(self._uid, "round", record.number, "aggregate")
        found: tracing.Attributes = {"updates": len(record.accepted), "bytes": record.model_size_bytes}
        about = {**self._about, "round": record.number, **found}
        self._part.record("aggregate", here, tracing.round_span(self._uid, record.number), began_s, about)

    def look(self, job: Job) -> None:
        """After every change of the rounds."""
        if not tracing.recording():
            return
        if self._open is not None and (job.number != self._open[0] or job.phase is JobPhase.FINISHING):
            self._close(*self._open)
        if self._open is None and job.phase in _UNDER_WAY:
            self._open = job.number, self._opened_s(job)

    def _close(self, number: int, began_s: float) -> None:
        about = {**self._about, "round": number}
        if (record := self._record) is not None and record.number == number:
            about |= {"updates": len(record.accepted), "refused": len(record.refused), "attempt": record.attempt}
            about |= {"bytes_up": record.bytes_up, "bytes_down": record.bytes_down}
        self._part.record("round", tracing.round_span(self._uid, number), tracing.task_span(self._uid), began_s, about)
        self._open = None
        self._offers = {key: since for key, since in self._offers.items() if key[0] >= number}

    def _opened_s(self, job: Job) -> float:
        """Now, unless this process was started in mid round: then its model was written when the round opened."""
        if self._record is not None or job.base is None or job.number < 2:
            return time.time()
        try:
            return (self._models / f"{job.base.digest}.safetensors").stat().st_mtime
        except OSError:
            return time.time()


def trace_of_round(uid: str, number: int) -> str:
    return tracing.passed_on(tracing.round_span(uid, number), tracing.task_span(uid))


def trace_of(fact: Event) -> str:
    """Of what an aggregation worker tells the coordinator: the round that it is about, of the last fact the last round."""
    match fact:
        case RoundClosed(task_uid=uid, record=record):
            return trace_of_round(uid, record.number)
        case TrainingCompleted(task_uid=uid, number=number):
            return trace_of_round(uid, number + 1)
        case RoundStarted() | RoundValidated() | RoundMissed() | UpdateRefused():
            return trace_of_round(fact.task_uid, fact.number)
    return str(tracing.task_span(uid)) if (uid := getattr(fact, "task_uid", "")) else ""


# --- single requests of a joint inference service, if whoever asks is traced and wants it


@dataclass(frozen=True, slots=True)
class Traced:
    """A request in somebody's trace: the span of whoever asks, and the one that is recorded here."""

    caller: tracing.Context
    here: tracing.Context

    @property
    def trace(self) -> str:
        return tracing.passed_on(self.here, self.caller)


def traced(trace: str, correlation: bytes) -> Traced | None:
    """None, as for nearly all requests: nobody asked for it."""
    if not trace or (caller := tracing.parse(trace)) is None or not caller.sampled:
        return None
    return Traced(caller, tracing.child_of(caller, "infer", correlation.hex()))


class RequestSpans:
    """Of an edge or cloud worker."""

    def __init__(self, environment: WorkerEnvironment, service: str) -> None:
        self._part = tracing.Part(SERVICE, environment.node)
        self._about: dict[str, str | int | float | bool] = {"task": service, "worker": environment.worker}

    def answered(self, request: Traced, seconds: float, answer: InferenceAnswered) -> None:
        about = self._about | {"by": answer.by, "hard": answer.hard, "fell_back": answer.fell_back}
        about |= {"model": answer.model, "version": answer.version, "bytes": len(answer.content)}
        began_s = time.time() - seconds
        self._part.record("infer", request.here, request.caller, began_s, about, error=answer.error)
