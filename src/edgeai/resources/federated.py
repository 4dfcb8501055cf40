"""FederatedTask: workers on several edges train one model together, in rounds.

The spec is what a user asks for; the status is what the coordinator has seen. How a round lives is in `lifecycle`, how
updates become a model in `learning`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from edgeai.resources.base import Count, Digest, Flag, Metrics, Number, Part, Resource
from edgeai.resources.conditions import Conditions
from edgeai.resources.lineage import Source
from edgeai.resources.names import Name
from edgeai.resources.needs import WorkerSpec
from edgeai.resources.parameters import RoundRules, WorkerParameters, merged, round_rules
from edgeai.resources.refusals import FieldRefused, quoted

_RELEASE = r"v?(\d+!)?\d+(\.\d+)*"
_SUFFIX = (
    r"([-_.]?(a|b|c|rc|alpha|beta|pre|preview)[-_.]?\d*)?([-_.]?post\d*)?([-_.]?dev\d*)?(\+[a-z0-9]+([-_.][a-z0-9]+)*)?"
)
_CLAUSE = re.compile(rf"(===|==|!=)\s*{_RELEASE}(\.\*|{_SUFFIX})|(~=|<=|>=|<|>)\s*{_RELEASE}{_SUFFIX}", re.IGNORECASE)


class AggregationAlgorithm(StrEnum):
    FED_AVG = "FedAvg"


def checked_version(text: str) -> str:
    """A list of version clauses as in PEP 440, such as `>=2.15,<3`."""
    if not all(_CLAUSE.fullmatch(clause.strip()) for clause in text.split(",")):
        raise ValueError(f"{quoted(text)} is not a version specifier such as >=2.15 or >=2.15,<3 (PEP 440)")
    return text


def checked_script_dir(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a path has no control characters")
    return text


def checked_boot_file(text: str) -> str:
    """A file inside the script directory: it must not lead out of it."""
    path = PurePosixPath(text)
    if not text.isprintable() or "\\" in text or path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{quoted(text)} is not a file inside the script folder")
    return text


class Reference(Part):
    """Another resource, by name."""

    name: Name


class AggregationSpec(WorkerSpec):
    aggregation_algorithm: AggregationAlgorithm


class AggregationWorker(Part):
    """Runs in the cloud. Its parameters are those of the whole task."""

    name: Name
    model: Reference
    worker_spec: AggregationSpec


class TrainingSpec(WorkerSpec):
    """`train_script_dir` is relative to the manifest (packed by `apply`) or an absolute path on the node."""

    dataset: Reference
    train_script_dir: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(checked_script_dir)]
    train_script_boot_file: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(checked_boot_file)]
    framework_type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*([-_.][a-z0-9]+)*$", max_length=50)]
    framework_version: Annotated[str, Field(max_length=200), AfterValidator(checked_version)] | None = None
    parameters: WorkerParameters = ()


class TrainingWorker(Part):
    name: Name
    node_name: Name
    worker_spec: TrainingSpec


class FederatedTaskSpec(Part):
    aggregation_worker: AggregationWorker
    training_workers: Annotated[tuple[TrainingWorker, ...], Field(max_length=1000)]
    paused: Flag = False

    @model_validator(mode="after")
    def _workers_fit_together(self) -> FederatedTaskSpec:
        if not self.training_workers:
            raise FieldRefused("at least one training worker is needed", "trainingWorkers")
        taken = {self.aggregation_worker.name}
        for place, worker in enumerate(self.training_workers):
            if worker.name in taken:
                what = f"'{worker.name}' is the name of another worker of this task"
                raise FieldRefused(what, "trainingWorkers", place, "name")
            taken.add(worker.name)
        self._check_quorum()
        return self

    def _check_quorum(self) -> None:
        count = len(self.training_workers)
        for place, parameter in enumerate(self.aggregation_worker.worker_spec.parameters):
            if parameter.key == "min node number" and parameter.value > count:
                what = f"'min node number' is {parameter.value}, but there are only {count} training workers"
                raise FieldRefused(what, "aggregationWorker", "workerSpec", "parameters", place, "value")

    def rules(self) -> RoundRules:
        return round_rules(self.aggregation_worker.worker_spec.parameters)

    def parameters(self, worker: TrainingWorker | None = None) -> dict[str, Any]:
        """Default < task < worker. Without a worker: those of the aggregation worker. Every known key is there."""
        task = self.aggregation_worker.worker_spec.parameters
        return merged(task, worker.worker_spec.parameters if worker else ())


class TaskPhase(StrEnum):
    PENDING = "Pending"
    PREPARING = "Preparing"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    PAUSED = "Paused"
    DELETING = "Deleting"


class RoundRecord(Part):
    """A closed round. `accepted` are worker names in order, `refused` says why by worker.

    `metrics` are those of the round's model on the workers' held-out data (source `global`), or, as long as nobody has
    evaluated it, the mean of what the workers submitted (source `local`).
    """

    round: Count
    updates: Count = 0
    accepted: tuple[str, ...] = ()
    refused: dict[str, str] = Field(default_factory=dict)
    metrics: Metrics = Field(default_factory=dict)
    metrics_source: Literal["", "local", "global"] = ""
    bytes_up: Count = 0
    bytes_down: Count = 0
    seconds: Number = 0.0
    model_digest: Digest | None = None


class WorkerStatus(Part):
    name: Name
    node: Name
    role: str
    state: str
    reason: str = ""
    restarts: Count = 0


class FinishedModel(Part):
    name: Name
    version: Count
    digest: Digest


class FederatedTaskStatus(Part):
    """`round` is the current one (0 before the first); `metrics` are the last that are known.

    `joined` are the training workers that have ever joined; `base` is the version that training started from (none: the
    first worker's initial weights), `model` the one that it made. `sources`: what the training workers were prepared with, and
    in how many rounds an update made from it counted.
    """

    phase: TaskPhase = TaskPhase.PENDING
    conditions: Conditions = ()
    observed_generation: Count = 0
    round: Count = 0
    rounds: tuple[RoundRecord, ...] = ()
    workers: tuple[WorkerStatus, ...] = ()
    metrics: Metrics = Field(default_factory=dict)
    joined: tuple[str, ...] = ()
    base: FinishedModel | None = None
    model: FinishedModel | None = None
    sources: tuple[Source, ...] = ()


class FederatedTask(Resource):
    kind: Literal["FederatedTask"] = "FederatedTask"
    spec: FederatedTaskSpec
    status: FederatedTaskStatus = FederatedTaskStatus()
