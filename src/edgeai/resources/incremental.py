"""IncrementalLearningJob: one edge serves a model, and improves it from the examples that the model finds hard.

The spec is what a user asks for; the status is what the edge has told. How a job lives is in `lifecycle.stage`, what makes an
example hard and when a trigger fires in `learning`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from edgeai.resources.base import Count, Digest, DigestOrNone, Flag, Metrics, Number, Part, Resource
from edgeai.resources.conditions import Conditions
from edgeai.resources.dataset import checked_url
from edgeai.resources.federated import (
    Reference,
    TaskPhase,
    WorkerStatus,
    checked_boot_file,
    checked_script_dir,
    checked_version,
)
from edgeai.resources.mining import MiningAlgorithm, check
from edgeai.resources.names import Name
from edgeai.resources.needs import WorkerSpec
from edgeai.resources.parameters import TaskParameters, merged
from edgeai.resources.refusals import FieldRefused, quoted

_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
MAX_COMPARISONS, MAX_DEPTH = 64, 8
"""Of the condition of one trigger."""
DEFAULT_CHECK_S = 60


class HardExampleMining(Part):
    """`parameters` are those of the algorithm; `Custom` takes `entry point`: `module:function` of the worker's script."""

    algorithm: MiningAlgorithm = MiningAlgorithm.CROSS_ENTROPY
    parameters: TaskParameters = ()

    @model_validator(mode="after")
    def _parameters_fit_the_algorithm(self) -> HardExampleMining:
        try:
            check(self.algorithm, self.values())
        except FieldRefused as refused:
            if not refused.path:
                raise FieldRefused(str(refused), "parameters") from refused
            key, part = refused.path
            place = [parameter.key for parameter in self.parameters].index(str(key))
            raise FieldRefused(str(refused), "parameters", place, part) from refused
        return self

    def values(self) -> dict[str, Any]:
        return {parameter.key: parameter.value for parameter in self.parameters}


Operator = Literal[">", ">=", "<", "<=", "==", "!="]


class TriggerCondition(Part):
    """A comparison, or `all`/`any` of other conditions.

    Metrics of the train trigger: num_of_samples (labelled, for training, new since the last snapshot), num_of_unlabelled,
    hard_example_rate (of the last requests), and those that the last evaluation of the serving model gave. Of the deploy
    trigger: those of the new model, and `<metric>_delta`, the new model's minus the serving one's. `label` takes the
    metric of one class.
    """

    metric: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    operator: Operator | None = None
    threshold: Number | None = None
    label: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    all: tuple[TriggerCondition, ...] | None = None
    any: tuple[TriggerCondition, ...] | None = None

    @model_validator(mode="after")
    def _is_one_of_three(self) -> TriggerCondition:
        forms = [name for name in ("metric", "all", "any") if getattr(self, name) is not None]
        if len(forms) != 1:
            raise FieldRefused("a condition is a metric with operator and threshold, or all: [...], or any: [...]")
        if self.metric is not None:
            for name in ("operator", "threshold"):
                if getattr(self, name) is None:
                    raise FieldRefused(f"a condition on a metric needs {name}", name)
        elif self.operator is not None or self.threshold is not None or self.label is not None:
            raise FieldRefused(f"{forms[0]} stands alone: put the comparison into its list", forms[0])
        elif not (self.all or self.any):
            raise FieldRefused("at least one condition is needed", forms[0])
        return self

    def parts(self) -> tuple[TriggerCondition, ...]:
        return self.all or self.any or ()

    def leaves(self) -> int:
        return 1 if self.metric is not None else sum(each.leaves() for each in self.parts())

    def depth(self) -> int:
        return 1 + max((each.depth() for each in self.parts()), default=0)


def _checked_time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a time of day such as 02:00")
    return text


TimeOfDay = Annotated[str, AfterValidator(_checked_time)]


class Window(Part):
    """A part of every day, in the node's time zone; one that ends before it starts goes over midnight."""

    start: TimeOfDay
    end: TimeOfDay


def _bounded(condition: TriggerCondition) -> TriggerCondition:
    if condition.leaves() > MAX_COMPARISONS:
        raise ValueError(f"a trigger has at most {MAX_COMPARISONS} comparisons")
    if condition.depth() > MAX_DEPTH:
        raise ValueError(f"all and any of a trigger are nested at most {MAX_DEPTH - 1} deep")
    return condition


class TrainTrigger(Part):
    """Without a condition only `edgeai trigger` starts a round."""

    condition: Annotated[TriggerCondition, AfterValidator(_bounded)] | None = None
    window: Window | None = None
    check_period_seconds: Annotated[int, Field(strict=True, ge=1, le=86400)] = DEFAULT_CHECK_S


class DeployTrigger(Part):
    condition: Annotated[TriggerCondition, AfterValidator(_bounded)] | None = None


def _checked_boot_file(text: str) -> str:
    try:
        return checked_boot_file(text)
    except ValueError as error:
        raise ValueError(f"{quoted(text)} is not a file inside scriptDir") from error


class StageWorkerSpec(WorkerSpec):
    """`script_dir` is relative to the manifest (packed by `apply`) or an absolute path on the node."""

    script_dir: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(checked_script_dir)]
    script_boot_file: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_checked_boot_file)]
    framework_type: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*([-_.][a-z0-9]+)*$", max_length=50)]
    framework_version: Annotated[str, Field(max_length=200), AfterValidator(checked_version)] | None = None


class TrainStage(Part):
    worker_spec: StageWorkerSpec
    trigger: TrainTrigger = TrainTrigger()


class EvalStage(Part):
    worker_spec: StageWorkerSpec


class DeployStage(Part):
    """The inference worker. Without a condition a new model is deployed if it is at least as accurate as the serving one.

    `dataset` is what the worker is asked, where that comes as a file: a Dataset of the node, which may grow.
    """

    worker_spec: StageWorkerSpec
    dataset: Reference | None = None
    trigger: DeployTrigger = DeployTrigger()


class JobDataset(Part):
    """The labelled examples that the job learns from: what the Dataset holds, and hard examples that got a label.

    `train_fraction` of the examples are trained on, the others are held out, for ever: it is decided by the example's id.
    `initial_samples`: whether what the Dataset holds at first is known to the initial model (`old`), or to be learned (`new`).
    `labels_url` is a file on the node (jsonl: `{"id": ..., "label": ...}`) that somebody appends labels to.
    """

    name: Name
    train_fraction: Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)] = 0.8
    initial_samples: Literal["old", "new"] = "old"
    labels_url: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(checked_url)] | None = None


class Keeping(Part):
    """How much of its past a job keeps on its node."""

    max_versions: Annotated[int, Field(strict=True, ge=2, le=1000)] = 10
    max_unlabelled: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] = 10_000


class IncrementalLearningJobSpec(Part):
    node_name: Name
    initial_model: Reference
    output_model: Reference
    dataset: JobDataset
    hard_example_mining: HardExampleMining = HardExampleMining()
    train: TrainStage
    eval: EvalStage
    deploy: DeployStage
    keep: Keeping = Keeping()
    paused: Flag = False

    def worker_specs(self) -> dict[str, StageWorkerSpec]:
        """By name of the worker, which is that of its stage."""
        return {
            "train": self.train.worker_spec,
            "eval": self.eval.worker_spec,
            "deploy": self.deploy.worker_spec,
        }

    def parameters(self, worker: str) -> dict[str, Any]:
        return merged(self.worker_specs()[worker].parameters)


class JobCounts(Part):
    """Examples of a job: labelled ones by use, those since the last snapshot, those that wait for a label.

    `dropped`: hard ones that were not kept, or gave way before they had a label.
    """

    train: Count = 0
    held_out: Count = 0
    new: Count = 0
    unlabelled: Count = 0
    requests: Count = 0
    hard: Count = 0
    dropped: Count = 0


class StageRecord(Part):
    """What a stage of a round came to. `metrics` are the new model's, `serving` those of the one it was compared with.

    `samples` were trained on and `held_out` evaluated on, as they were frozen under the digest `snapshot`.
    """

    round: Count
    stage: str
    state: str
    reason: str = ""
    at: str = ""
    metrics: Metrics = Field(default_factory=dict)
    serving: Metrics = Field(default_factory=dict)
    samples: Count = 0
    snapshot: DigestOrNone = ""
    held_out: Count = 0


class ServingModel(Part):
    """The model that answers, and the `Model` (`name`) that it is a version of.

    `version` 0: it has no number yet (the cloud has not heard of it). `name` empty: it is not known.
    """

    name: str = ""
    digest: Digest
    version: Count = 0
    round: Count = 0


class ArrivingModel(Part):
    """A model that serves at the edge: it becomes the newest version of the output model when it is in the library.

    Without a snapshot it was not trained now: the edge has gone back to it.
    """

    round: Count
    name: str
    digest: Digest
    size_bytes: Count
    format: str
    snapshot: DigestOrNone = ""
    samples: Count = 0
    metrics: Metrics = Field(default_factory=dict)
    held_out: Count = 0
    generation: Count = 0


class Taken(Part):
    """Which of the node's facts the status is made of: all of this incarnation up to this sequence."""

    incarnation: Count = 0
    sequence: Count = 0


class IncrementalLearningJobStatus(Part):
    """`stage` and `state` are those of the current round; `history` holds the newest stages of all rounds.

    `arriving` are the models that this job has deployed and that are still on their way to the cloud. `dropped` says what
    the node has removed to keep within its limits, and why.
    """

    phase: TaskPhase = TaskPhase.PENDING
    conditions: Conditions = ()
    observed_generation: Count = 0
    round: Count = 0
    stage: str = ""
    state: str = ""
    reason: str = ""
    counts: JobCounts = JobCounts()
    serving: ServingModel | None = None
    metrics: Metrics = Field(default_factory=dict)
    workers: tuple[WorkerStatus, ...] = ()
    history: tuple[StageRecord, ...] = ()
    arriving: tuple[ArrivingModel, ...] = ()
    dropped: tuple[str, ...] = ()
    taken: Taken = Taken()


class IncrementalLearningJob(Resource):
    kind: Literal["IncrementalLearningJob"] = "IncrementalLearningJob"
    spec: IncrementalLearningJobSpec
    status: IncrementalLearningJobStatus = IncrementalLearningJobStatus()
