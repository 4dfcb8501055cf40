"""What the machines of the coordinator share: a task under change, and its workers as nodes observe them. Pure.

Knows nothing of any kind of task but that it has a spec, a status with phase and conditions, and workers. The machines are
in `task`, `job` and `service`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from edgeai.events.catalogue import PhaseChanged, WorkerObserved
from edgeai.lifecycle.base import Command, Emit, Step
from edgeai.resources.conditions import ConditionStatus, ConditionType, set_condition
from edgeai.resources.federated import FederatedTask, TaskPhase, WorkerStatus
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import JointInferenceService

T = TypeVar("T", FederatedTask, IncrementalLearningJob, JointInferenceService)

MAX_REASON, MAX_MESSAGE = 500, 4_000
"""Characters of what nodes say, in rows and in conditions: a status must fit its store."""


@dataclass(frozen=True, slots=True)
class Draft(Generic[T]):
    """A task under change, with the commands collected on the way. `now` is an instant for people."""

    task: T
    now: str
    commands: tuple[Command, ...] = field(default=())

    def status(self, **changes: Any) -> Draft[T]:
        status = self.task.status.model_copy(update=changes)
        return Draft(self.task.model_copy(update={"status": status}), self.now, self.commands)

    def condition(self, kind: ConditionType, value: ConditionStatus, reason: str, message: str = "") -> Draft[T]:
        conditions = set_condition(
            self.task.status.conditions,
            kind,
            value,
            reason,
            shortened(message, MAX_MESSAGE),
            now=self.now,
            observed_generation=self.task.metadata.generation,
        )
        return self.status(conditions=conditions)

    def phase(self, phase: TaskPhase, reason: str) -> Draft[T]:
        if self.task.status.phase is phase:
            return self
        fact = PhaseChanged(self.task.metadata.uid, phase.value, reason)
        return self.status(phase=phase).then(Emit(fact, self.task.metadata.name))

    def then(self, *commands: Command) -> Draft[T]:
        return Draft(self.task, self.now, (*self.commands, *commands))

    def done(self) -> Step[T | None]:
        return self.task, self.commands


def worker_status(name: str, node: str, role: str, seen: WorkerObserved | None, silent: bool) -> WorkerStatus:
    """The row of a worker. What a silent node runs is unknown."""
    if silent:
        return WorkerStatus(name=name, node=node, role=role, state="Unknown", reason=f"{node} is not heard of")
    if seen is None:
        return WorkerStatus(name=name, node=node, role=role, state="Pending")
    reason = shortened(seen.reason, MAX_REASON)
    state = shortened(seen.state, MAX_REASON)
    return WorkerStatus(name=name, node=node, role=role, state=state, reason=reason, restarts=seen.restarts)


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."
