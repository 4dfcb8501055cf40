"""What `wait --for` waits for, and when waiting has become pointless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import typer

from edgeai.cli.naming import called
from edgeai.errors import NotFound, TaskFailed
from edgeai.resources.base import Resource
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import FederatedTask, TaskPhase
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import JointInferenceService

_STATUS = {"true": "True", "false": "False", "unknown": "Unknown"}


@dataclass(frozen=True, slots=True)
class Goal:
    """`what` is condition, phase or delete."""

    what: str
    name: str = ""
    status: str = "True"

    @staticmethod
    def parse(text: str) -> Goal:
        """`condition=TYPE`, `condition=TYPE=STATUS`, `phase=PHASE` or `delete`. Raises typer.BadParameter."""
        what, _, rest = text.partition("=")
        name, _, status = rest.partition("=")
        match what.lower():
            case "delete" if not rest:
                return Goal("delete")
            case "condition" if name:
                return Goal("condition", _one_of(name, ConditionType), _status(status or "True"))
            case "phase" if name and not status:
                return Goal("phase", _one_of(name, TaskPhase))
        raise typer.BadParameter(f"--for={text} is not condition=TYPE, condition=TYPE=STATUS, phase=PHASE or delete")

    def __str__(self) -> str:
        match self.what:
            case "delete":
                return "deleted"
            case "condition":
                return f"condition {self.name} is {self.status}"
        return f"phase is {self.name}"

    def met_by(self, resource: Resource) -> bool:
        status: Any = getattr(resource, "status", None)
        match self.what:
            case "condition":
                found = find_condition(status.conditions, ConditionType(self.name))
                return found is not None and found.status == self.status
            case "phase":
                return getattr(status, "phase", None) == self.name
        return False

    def predicate(self, kind: str, name: str) -> Callable[[Resource | None], bool]:
        """For `Cloud.wait`. It raises NotFound or TaskFailed when there is nothing left to wait for."""

        def reached(resource: Resource | None) -> bool:
            if resource is None:
                if self.what == "delete":
                    return True
                raise NotFound(kind, name)
            if self.met_by(resource):
                return True
            self._see_pointless(resource)
            return False

        return reached

    def _see_pointless(self, resource: Resource) -> None:
        if self.what != "delete" and isinstance(resource, IncrementalLearningJob | JointInferenceService):
            self._see_pointless_of_lasting(resource)
        if self.what == "delete" or not isinstance(resource, FederatedTask):
            return
        phase = resource.status.phase
        if phase in {TaskPhase.SUCCEEDED, TaskPhase.FAILED}:
            failed = find_condition(resource.status.conditions, ConditionType.FAILED)
            reason = f": {failed.message}" if failed and phase is TaskPhase.FAILED else ""
            ended = f"{called(resource.kind, resource.name)} has ended ({phase.value})"
            # A task that has just succeeded still moves: its workers end, and Progressing becomes False.
            if self.what == "phase" or self.name in {ConditionType.SUCCEEDED, ConditionType.FAILED}:
                raise TaskFailed(f"{ended}{reason}")

    def _see_pointless_of_lasting(self, job: IncrementalLearningJob | JointInferenceService) -> None:
        """Of what never ends by itself."""
        if self.name in {TaskPhase.SUCCEEDED, ConditionType.SUCCEEDED}:
            said = "goes on until it is deleted: wait for condition=Ready or phase=Running"
            raise TaskFailed(f"{called(job.kind, job.name)} {said}")
        if job.status.phase is TaskPhase.FAILED and self.status == "True":
            failed = find_condition(job.status.conditions, ConditionType.FAILED)
            raise TaskFailed(f"{called(job.kind, job.name)} has failed: {failed.message if failed else 'no reason'}")


def _one_of(text: str, choices: type[ConditionType] | type[TaskPhase]) -> str:
    for choice in choices:
        if choice.value.lower() == text.lower():
            return choice.value
    raise typer.BadParameter(f"{text!r} is none of {', '.join(choice.value for choice in choices)}")


def _status(text: str) -> str:
    if text.lower() not in _STATUS:
        raise typer.BadParameter(f"{text!r} is none of True, False, Unknown")
    return _STATUS[text.lower()]
