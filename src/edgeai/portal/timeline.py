"""One task as it went: rounds (who was asked, who answered when, who was refused and why), phases, workers, metrics to plot.

Built from facts in the order of their stream, so the same history gives the same timeline, whatever was restarted; verdicts,
which pass only once, fill in what the facts of an open round do not say yet. Everything is bounded: the newest rounds keep
who did what, older ones their numbers. Pure: times (seconds since 1970) come in with the events.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from sys import intern
from typing import Any

from edgeai.events.catalogue import (
    Event,
    Outcome,
    PhaseChanged,
    Progress,
    RoundClosed,
    RoundMissed,
    RoundStarted,
    RoundValidated,
    ServiceChanged,
    TrainingCompleted,
    UpdateRefused,
    Verdict,
    WorkerEnded,
    WorkerFailed,
    WorkerJoined,
    WorkerStarted,
)

ROUNDS_LIMIT = 500
"""Rounds that are kept at all; older ones are in the task's status and in the history."""
DETAIL_LIMIT = 2000
"""Workers whose part in a round is kept, over all rounds of a task."""
PHASES_LIMIT = 100
CHANGES_LIMIT, CHANGES_STREAMED = 200, 20
"""Of a joint inference service: models, breakers and replicas that changed."""
WORKERS_LIMIT = 1100
_STEPS = {"training", "validating", "submitted", "collecting"}


@dataclass(slots=True)
class Round:
    """`answered` and `refused` are times by worker; `examples` those that counted. `detail` False: only numbers are left.

    `ended`: the task was over before the round had an outcome.
    """

    number: int
    attempt: int = 1
    started_at: float | None = None
    asked: tuple[str, ...] = ()
    answered: dict[str, float] = field(default_factory=dict)
    refused: dict[str, tuple[float | None, str]] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    missed: list[tuple[float, int, str]] = field(default_factory=list)
    closed_at: float | None = None
    seconds: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    updates: int = 0
    model_digest: str = ""
    submitted: dict[str, float] = field(default_factory=dict)
    validated: dict[str, float] = field(default_factory=dict)
    detail: bool = True
    ended: bool = False

    def weight(self) -> int:
        return len(self.asked) if self.detail else 0

    def forget_workers(self) -> None:
        self.asked, self.answered, self.refused, self.examples, self.detail = (), {}, {}, {}, False

    def document(self) -> dict[str, Any]:
        return {
            "round": self.number,
            "attempt": self.attempt,
            "state": "closed" if self.closed_at is not None else "ended" if self.ended else "open",
            "started_at": self.started_at,
            "closed_at": self.closed_at,
            "seconds": self.seconds,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "updates": self.updates,
            "model_digest": self.model_digest,
            "submitted": dict(self.submitted),
            "validated": dict(self.validated),
            "missed": [{"at": at, "attempt": attempt, "reason": why} for at, attempt, why in self.missed],
            "detail": self.detail,
            "workers": [self._worker(name) for name in sorted({*self.asked, *self.answered, *self.refused})],
        }

    def _worker(self, name: str) -> dict[str, Any]:
        refused = self.refused.get(name)
        at = refused[0] if refused else self.answered.get(name)
        state = "refused" if refused else ("answered" if name in self.answered or name in self.examples else "asked")
        if state == "asked" and self.closed_at is not None:
            state = "missing"
        return {
            "worker": name,
            "state": state,
            "at": at,
            "seconds": None if at is None or self.started_at is None else round(max(0.0, at - self.started_at), 3),
            "examples": self.examples.get(name),
            "reason": refused[1] if refused else "",
        }


@dataclass(slots=True)
class WorkerLine:
    """What facts say of one worker's program."""

    role: str = ""
    joined_at: float | None = None
    started_at: float | None = None
    starts: int = 0
    ended_at: float | None = None
    ok: bool | None = None
    reason: str = ""
    step: str = ""
    step_round: int = 0
    step_at: float | None = None
    done: int = 0
    total: int = 0

    def document(self, name: str) -> dict[str, Any]:
        return {
            "worker": name,
            "role": self.role,
            "joined_at": self.joined_at,
            "started_at": self.started_at,
            "starts": self.starts,
            "ended_at": self.ended_at,
            "ok": self.ok,
            "reason": self.reason,
            "progress": {
                "step": self.step,
                "round": self.step_round,
                "at": self.step_at,
                "done": self.done,
                "total": self.total,
            },
        }


class Timeline:
    """Of one task. `apply` takes facts in order; `hint` takes what is only heard in passing."""

    def __init__(self) -> None:
        self.rounds: OrderedDict[int, Round] = OrderedDict()
        self.workers: dict[str, WorkerLine] = {}
        self.phases: list[tuple[float, str, str]] = []
        self.changes: deque[tuple[float, str, ServiceChanged]] = deque(maxlen=CHANGES_LIMIT)
        self.events = 0
        self.first_sequence = self.last_sequence = 0
        self.first_at: float | None = None
        self.last_at: float | None = None

    def apply(self, sequence: int, at: float, worker: str, event: Event) -> None:
        """Take a fact of the history."""
        self.events += 1
        self.first_sequence, self.last_sequence = self.first_sequence or sequence, sequence
        self.first_at, self.last_at = at if self.first_at is None else self.first_at, at
        match event:
            case PhaseChanged(phase=phase, reason=reason):
                self.phases = [*self.phases, (at, phase, reason)][-PHASES_LIMIT:]
                if phase in ("Failed", "Deleting"):
                    self._over()
            case ServiceChanged():
                self.changes.append((at, worker, event))
            case RoundStarted(number=number, attempt=attempt, asked=asked):
                self._started(number, attempt, asked, at)
                self._bound()
            case RoundClosed():
                self._closed(event, at)
                self._bound()
            case RoundValidated(number=number, metrics=metrics):
                self._round(number).validated = finite(metrics)
            case RoundMissed(number=number, attempt=attempt, reason=reason):
                found = self._round(number)
                found.missed = [*found.missed, (at, attempt, reason)][-PHASES_LIMIT:]
            case UpdateRefused(number=number, member=member, reason=reason):
                found = self._round(number)
                if found.detail:
                    found.refused[member] = (at, reason)
            case TrainingCompleted():
                self._over()
            case WorkerJoined(member=member):
                if line := self._worker(member):
                    line.role, line.joined_at = line.role or "training", line.joined_at or at
            case WorkerStarted(role=role):
                if line := self._worker(worker):
                    line.role, line.started_at, line.starts = role.value, at, line.starts + 1
                    line.ended_at, line.ok, line.reason = None, None, ""
            case WorkerEnded(role=role, ok=ok, reason=reason):
                if line := self._worker(worker):
                    line.role, line.ended_at, line.ok, line.reason = role.value, at, ok, reason
            case WorkerFailed(role=role, reason=reason):
                if line := self._worker(worker):
                    line.role, line.ok, line.reason = role.value, False, reason
                    line.ended_at = line.ended_at if line.ended_at is not None else at

    def hint(self, at: float, worker: str, event: Event) -> bool:
        """Take a verdict or a signal of progress; True if it says something new."""
        match event:
            case Verdict(of="offer", number=number, outcome=outcome):
                found = self.rounds.get(number)
                if found is None or not found.detail or worker in found.answered or worker in found.refused:
                    return False
                if outcome is Outcome.COUNTED and found.closed_at is None:  # a refusal is a fact as well
                    found.answered[worker] = at
                    return True
            case Progress(number=number, step=step, done=done, total=total) if step in _STEPS:
                if line := self._worker(worker):
                    line.step, line.step_round, line.step_at, line.done, line.total = step, number, at, done, total
                    return True
        return False

    def document(self, newest: int = ROUNDS_LIMIT) -> dict[str, Any]:
        """Everything that is kept, of so many rounds."""
        rounds = list(self.rounds.values())
        return {
            **self._head(),
            "changes": self._changes(CHANGES_LIMIT),
            "rounds": [found.document() for found in rounds[-newest:]],
            "workers": [self.workers[name].document(name) for name in sorted(self.workers)],
            "plots": plots([found for found in rounds if found.number > 0]),
        }

    def newest(self, rounds: int, rows: int) -> dict[str, Any]:
        """What a stream repeats at every change: the newest rounds, at most so many rows of workers, no plots."""
        shown: list[dict[str, Any]] = []
        left = rows
        for found in list(self.rounds.values())[-rounds:][::-1]:
            line = found.document()
            left -= len(line["workers"])
            shown.append(line if left >= 0 else {**line, "workers": [], "detail": False})
        lines = sorted(self.workers)[:rows]
        return {
            **self._head(),
            "changes": self._changes(CHANGES_STREAMED),
            "rounds": shown[::-1],
            "workers": [self.workers[name].document(name) for name in lines],
        }

    def _head(self) -> dict[str, Any]:
        return {
            "events": self.events,
            "first_sequence": self.first_sequence,
            "last_sequence": self.last_sequence,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "phases": [{"at": at, "phase": phase, "reason": reason} for at, phase, reason in self.phases],
        }

    def _changes(self, limit: int) -> list[dict[str, Any]]:
        """The newest, in order."""
        return [
            {
                "at": at,
                "worker": worker,
                "what": change.what,
                "before": change.before,
                "after": change.after,
                "version_before": change.version_before,
                "version": change.version,
                "reason": change.reason,
                "times": change.times,
            }
            for at, worker, change in list(self.changes)[-limit:]
        ]

    def _round(self, number: int) -> Round:
        if number not in self.rounds:
            self.rounds[number] = Round(number)
        return self.rounds[number]

    def _worker(self, name: str) -> WorkerLine | None:
        if not name or (name not in self.workers and len(self.workers) >= WORKERS_LIMIT):
            return None
        return self.workers.setdefault(name, WorkerLine())

    def _started(self, number: int, attempt: int, asked: tuple[str, ...], at: float) -> None:
        found = self._round(number)
        if found.started_at is None or attempt != found.attempt:
            found.started_at, found.attempt = at, attempt
            found.refused = {}
        if found.detail:
            # A worker has one name in all rounds: without this, each round would keep its own copies.
            found.asked = tuple(intern(name) for name in asked)

    def _closed(self, event: RoundClosed, at: float) -> None:
        record = event.record
        found = self._round(record.number)
        found.attempt, found.closed_at, found.seconds = record.attempt, at, record.seconds
        found.bytes_up, found.bytes_down = record.bytes_up, record.bytes_down
        found.updates, found.model_digest = len(record.accepted), record.model_digest
        found.submitted = finite(record.metrics)
        if not found.detail:
            return
        found.examples = {intern(worker): count for worker, count in record.accepted.items()}
        for worker, reason in record.refused.items():
            found.refused.setdefault(worker, (None, reason))
        # What was heard in passing gives way to what everybody will read in the history.
        opened = found.started_at
        found.answered = (
            {} if opened is None else {intern(name): opened + after_s for name, after_s in record.answered_s.items()}
        )

    def _over(self) -> None:
        """No more rounds: one that is open (the last, which only validates) has ended without an outcome of its own."""
        for found in self.rounds.values():
            found.ended = found.closed_at is None

    def _bound(self) -> None:
        while len(self.rounds) > ROUNDS_LIMIT:
            self.rounds.popitem(last=False)
        total = sum(found.weight() for found in self.rounds.values())
        for found in self.rounds.values():
            if total <= DETAIL_LIMIT or found.closed_at is None:
                break
            total -= found.weight()
            found.forget_workers()


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Only what JSON can carry: a diverged loss (NaN, infinite) is left out."""
    return {name: value for name, value in metrics.items() if isfinite(value)}


def plots(rounds: list[Round]) -> dict[str, Any]:
    """Columns for a plot: `x` are the numbers of closed rounds, every series is as long as it, None where nothing is known."""
    closed = [found for found in rounds if found.closed_at is not None]
    return {
        "x": [found.number for found in closed],
        "submitted": _columns([found.submitted for found in closed]),
        "validated": _columns([found.validated for found in closed]),
        "seconds": [found.seconds for found in closed],
        "bytes_up": [found.bytes_up for found in closed],
        "bytes_down": [found.bytes_down for found in closed],
        "updates": [found.updates for found in closed],
    }


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    names = sorted({name for row in rows for name in row})
    return {name: [row.get(name) for row in rows] for name in names}
