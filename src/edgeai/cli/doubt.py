"""What of a stored resource is known to be true now. Pure: takes values, returns them made truthful.

A resource is what was written last. What only the coordinator moves (a phase, a breaker, replicas) is unknown while it does not
answer, and what a node tells (its workers, its datasets) is unknown while the node is silent: it is shown as `Unknown` with the
age of the last sign, never as the last good value. The portal keeps the same rules (`portal.views`); tables and pages are made
by `output` and `description`, which know nothing of who was asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from edgeai.client import Task
from edgeai.events.catalogue import HealthAnswered, NodeHealth
from edgeai.lifecycle.health import FRESH_S, in_words, silence
from edgeai.resources.base import Resource
from edgeai.resources.conditions import Condition, Conditions, ConditionType
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import TaskPhase, WorkerStatus
from edgeai.resources.joint import EdgeServing, JointInferenceService
from edgeai.resources.node import EdgeNode

_OVER = frozenset({TaskPhase.SUCCEEDED, TaskPhase.FAILED})
UNKNOWN = "Unknown"
_SILENT = "the coordinator does not answer"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why something is not known now, and how old the last sign of it is."""

    reason: str
    age_s: float | None = None

    @property
    def word(self) -> str:
        return UNKNOWN if self.age_s is None else f"{UNKNOWN} ({in_words(self.age_s)})"

    @property
    def sentence(self) -> str:
        return f"{UNKNOWN}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Heard:
    """What the coordinator answered when it was asked; None: nothing, and its last sign is `silent_s` old."""

    answer: HealthAnswered | None
    now: datetime
    silent_s: float | None = None
    _nodes: dict[str, NodeHealth] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._nodes.update({health.node: health for health in (self.answer.nodes if self.answer else ())})

    def doubt(self, resource: Resource) -> Doubt | None:
        """Of what it says of the moment: a node by itself, a dataset by its node, a task by the coordinator. None: known."""
        if not in_motion(resource):
            return None
        if isinstance(resource, EdgeNode):
            return self.node(resource.name, resource.status.last_seen)
        if isinstance(resource, Dataset):
            return self.node(resource.spec.node_name)
        return None if self.answer else self._coordinator()

    def node(self, name: str, last_seen: str | None = None) -> Doubt | None:
        seen_s = seconds_since(last_seen, self.now)
        if self.answer is None:
            last = "" if seen_s is None else f"; {name} was last heard of {in_words(seen_s)} ago"
            return Doubt(f"{_SILENT}{last}", seen_s)
        health = self._nodes.get(name, NodeHealth(name))
        if health.heartbeat is not None:
            return None
        age_s = health.heartbeat_age_s
        if age_s is None and not health.gone:  # a coordinator that has just begun
            age_s = seen_s
            if age_s is not None and age_s <= FRESH_S:
                return None
        return Doubt(silence(name, age_s, gone=health.gone) or f"{name} is not heard of", age_s)

    def truthful(self, resource: Resource) -> Resource:
        """Workers, breakers and conditions as far as they are known; what has a doubt as a whole is its reader's to show."""
        doubt = self.doubt(resource)
        if isinstance(resource, Dataset | EdgeNode):
            return (
                _with_status(resource, conditions=_conditions(resource.status.conditions, doubt)) if doubt else resource
            )
        if not isinstance(resource, Task) or resource.status.phase in _OVER:
            return resource
        found = _with_status(
            resource,
            workers=tuple(self._worker(worker, doubt) for worker in resource.status.workers),
            conditions=_conditions(resource.status.conditions, doubt),
        )
        if not isinstance(found, JointInferenceService):
            return found
        return _with_status(found, edges=tuple(self._edge(edge, doubt) for edge in found.status.edges))

    def _worker(self, worker: WorkerStatus, task: Doubt | None) -> WorkerStatus:
        doubt = task or self.node(worker.node)
        return worker.model_copy(update={"state": UNKNOWN, "reason": doubt.reason}) if doubt else worker

    def _edge(self, edge: EdgeServing, task: Doubt | None) -> EdgeServing:
        return edge.model_copy(update={"cloud": UNKNOWN}) if task or self.node(edge.node) else edge

    def _coordinator(self) -> Doubt:
        last = "" if self.silent_s is None else f"; its last sign is {in_words(self.silent_s)} old"
        return Doubt(f"{_SILENT}{last}", self.silent_s)


def in_motion(resource: Resource) -> bool:
    """Whether it says something of the moment: a model and a task that has ended do not."""
    if isinstance(resource, Task):
        return resource.status.phase not in _OVER
    return isinstance(resource, EdgeNode | Dataset)


def seconds_since(instant: str | None, now: datetime) -> float | None:
    try:
        return max((now - datetime.fromisoformat(instant)).total_seconds(), 0.0) if instant else None
    except ValueError:
        return None


def _conditions(conditions: Conditions, doubt: Doubt | None) -> Conditions:
    return tuple(_condition(each, doubt) for each in conditions) if doubt else conditions


def _condition(each: Condition, doubt: Doubt) -> Condition:
    if each.type not in {ConditionType.READY, ConditionType.PROGRESSING} or each.status == "False":
        return each
    return each.model_copy(update={"status": UNKNOWN, "reason": "NotHeardOf", "message": doubt.reason})


def _with_status(resource: Resource, **changed: object) -> Resource:
    status = resource.status.model_copy(update=changed)  # type: ignore[attr-defined]
    return resource.model_copy(update={"status": status})
