"""JointInferenceService: small models answer at the edges, and ask one in the cloud about what they find hard.

The spec is what a user asks for; the status is what nodes have told. How a service lives is in `lifecycle.service`, how many
replicas of the cloud worker there are in `lifecycle.scaling`, what may be sent to the cloud in `learning.offloading`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from edgeai.resources.base import Count, Flag, Part, Resource
from edgeai.resources.conditions import Conditions
from edgeai.resources.federated import Reference, TaskPhase, WorkerStatus
from edgeai.resources.incremental import HardExampleMining, ServingModel, StageWorkerSpec
from edgeai.resources.mining import MiningAlgorithm
from edgeai.resources.names import Name
from edgeai.resources.parameters import merged
from edgeai.resources.refusals import FieldRefused, quoted

MAX_INPUT_BYTES = 1_000_000
"""Of one input as it travels: larger ones are refused at the edge. With its envelope it is an event (1 MiB)."""
MAX_REPLICAS, MAX_EDGE_WORKERS = 64, 1000
_OF_INPUTS = frozenset(
    {MiningAlgorithm.CUSTOM, MiningAlgorithm.RANDOM, MiningAlgorithm.EDGE_ONLY, MiningAlgorithm.CLOUD_ONLY}
)
_DTYPES = {
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
}

Rate = Annotated[float, Field(strict=True, gt=0, le=1e12, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]


def _checked_dtype(text: str) -> str:
    if text not in _DTYPES:
        raise ValueError(f"{quoted(text)} is none of the types of values: {', '.join(sorted(_DTYPES))}")
    return text


class Inputs(Part):
    """What one input is: the shape of its array without a batch axis (null: any length), and the type of its values.

    Without it, whatever the script's predict takes is an input; values that are not finite are refused in any case.
    """

    shape: Annotated[tuple[Annotated[int, Field(strict=True, ge=0, le=2**31)] | None, ...], Field(max_length=32)]
    dtype: Annotated[str, Field(max_length=20), AfterValidator(_checked_dtype)]


class Feeds(Part):
    """An incremental learning job on the same node that gets the hard examples of this worker.

    `label_by` cloud: the cloud's answer is their label (an index of the largest score, where it is a list of scores).
    """

    job: Name
    label_by: Literal["cloud", "nobody"] = "nobody"


class EdgeWorker(Part):
    """The small model of one edge.

    `mode`: InferenceThenMining looks at the small model's answer and sends what is hard; MiningThenInference looks at the input
    and sends what is hard without asking the small model first, which needs an algorithm that can do without an answer.
    """

    name: Name
    node_name: Name
    model: Reference | None = None
    worker_spec: StageWorkerSpec
    hard_example_mining: HardExampleMining = HardExampleMining()
    mode: Literal["InferenceThenMining", "MiningThenInference"] = "InferenceThenMining"
    inputs: Inputs | None = None
    feeds: Feeds | None = None

    @model_validator(mode="after")
    def _algorithm_fits_the_mode(self) -> EdgeWorker:
        algorithm = self.hard_example_mining.algorithm
        if self.mode == "MiningThenInference" and algorithm not in _OF_INPUTS:
            known = ", ".join(sorted(_OF_INPUTS))
            raise FieldRefused(f"{algorithm.value} needs an answer; MiningThenInference can use {known}", "mode")
        return self


class Replicas(Part):
    """How many cloud workers there are; between `min` and `max` their number follows the requests that wait."""

    min: Annotated[int, Field(strict=True, ge=1, le=MAX_REPLICAS)] = 1
    max: Annotated[int, Field(strict=True, ge=1, le=MAX_REPLICAS)] = 1

    @model_validator(mode="after")
    def _not_empty(self) -> Replicas:
        if self.max < self.min:
            raise FieldRefused(f"max ({self.max}) is less than min ({self.min})", "max")
        return self


class Batch(Part):
    """Requests, of whatever edge, that a cloud worker answers together: it waits for more at most `max_wait_seconds`."""

    max_size: Annotated[int, Field(strict=True, ge=1, le=4096)] = 16
    max_wait_seconds: Annotated[float, Field(strict=True, ge=0, le=10, allow_inf_nan=False)] = 0.002


class CloudWorker(Part):
    name: Annotated[Name, Field(max_length=46)]
    model: Reference | None = None
    worker_spec: StageWorkerSpec
    replicas: Replicas = Replicas()
    batch: Batch = Batch()

    def replica(self, number: int) -> str:
        """Name of a replica's worker; `number` counts from 0."""
        return f"{self.name}-{number}"


class Policy(Part):
    """What holds for every request.

    Attributes:
        deadline_seconds: when a caller that names none has an answer, or an error.
        max_offload_fraction: of an edge's inferences, at most so many are sent to the cloud.
        max_offload_per_second, max_offload_bytes_per_second: of one edge; none: no limit.
        on_cloud_failure: what a caller gets when the cloud gives no answer in time.
        corrections: a late answer of the cloud is sent to the caller after the edge's.
        max_waiting: requests that an edge worker lets wait for their turn; more are refused at once.
    """

    deadline_seconds: Annotated[float, Field(strict=True, ge=0.01, le=600, allow_inf_nan=False)] = 1.0
    max_offload_fraction: Share = 1.0
    max_offload_per_second: Rate | None = None
    max_offload_bytes_per_second: Rate | None = None
    on_cloud_failure: Literal["useEdgeAnswer", "fail"] = "useEdgeAnswer"
    corrections: Flag = False
    max_waiting: Annotated[int, Field(strict=True, ge=1, le=100_000)] = 64


class JointInferenceServiceSpec(Part):
    edge_workers: Annotated[tuple[EdgeWorker, ...], Field(min_length=1, max_length=MAX_EDGE_WORKERS)]
    cloud_worker: CloudWorker
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _named_once(self) -> JointInferenceServiceSpec:
        taken = {self.cloud_worker.replica(number): "the cloud worker" for number in range(MAX_REPLICAS)}
        nodes: dict[str, str] = {}
        for place, worker in enumerate(self.edge_workers):
            if worker.name in taken or worker.name == self.cloud_worker.name:
                raise FieldRefused(f"{quoted(worker.name)} is the name of another worker", "edgeWorkers", place, "name")
            if worker.node_name in nodes:
                what = f"{worker.node_name} has {nodes[worker.node_name]} already: a service has one worker on an edge"
                raise FieldRefused(what, "edgeWorkers", place, "nodeName")
            taken[worker.name], nodes[worker.node_name] = worker.name, worker.name
        return self

    def worker_specs(self) -> dict[str, StageWorkerSpec]:
        """By name of the worker, as scripts are packed by; the cloud worker's replicas share one."""
        return {
            **{worker.name: worker.worker_spec for worker in self.edge_workers},
            self.cloud_worker.name: self.cloud_worker.worker_spec,
        }

    def parameters(self, worker: str) -> dict[str, Any]:
        return merged(self.worker_specs()[worker].parameters)


class InferenceCounts(Part):
    """What became of requests, as sums since the service began.

    inferences = answered by the edge + answered by the cloud + failed. `hard`: called hard by the mining. `sent` to the
    cloud; `answered` by it in time, `late` after that. `fell_back`: sent or meant to be, and answered by the edge.
    `over_budget`, `breaker_open`: hard and not sent, for that reason. `refused`: no input of the service, `shed`: too many
    waited; neither is an inference.
    """

    inferences: Count = 0
    hard: Count = 0
    sent: Count = 0
    answered: Count = 0
    late: Count = 0
    fell_back: Count = 0
    over_budget: Count = 0
    breaker_open: Count = 0
    failed: Count = 0
    refused: Count = 0
    shed: Count = 0
    bytes_sent: Count = 0
    bytes_received: Count = 0


class ScoreCounts(Part):
    """How inferences lie over the scores of the mining, in bins of equal width from easy (0) to hard (1).

    Since these models (digests) and this mining serve together. `answered`: by the cloud in time, and compared with the edge's
    answer; `changed`: it was another one; `apart`: answers that could not be compared.
    """

    edge: str = ""
    cloud: str = ""
    mining: str = ""
    inferences: tuple[Count, ...] = ()
    answered: tuple[Count, ...] = ()
    changed: tuple[Count, ...] = ()
    hard: Count = 0
    apart: Count = 0


class EdgeServing(Part):
    """What an edge worker does, as its node last told. `models`: inferences by digest of the model that was asked first."""

    worker: str
    node: str
    serving: ServingModel | None = None
    counts: InferenceCounts = InferenceCounts()
    models: dict[str, Count] = Field(default_factory=dict)
    cloud: str = ""
    """how the cloud answers: closed (it does), open (it does not, and is not asked), half-open (it is tried)"""
    scores: ScoreCounts | None = None
    """of the first 100 edges of the manifest"""


class ReplicaCount(Part):
    """`wanted` by the load, between min and max; `ready` serve. `at`: when `wanted` last changed, `reason`: why."""

    wanted: Count = 0
    ready: Count = 0
    waiting: Count = 0
    at: str = ""
    reason: str = ""


class JointInferenceServiceStatus(Part):
    phase: TaskPhase = TaskPhase.PENDING
    conditions: Conditions = ()
    observed_generation: Count = 0
    workers: tuple[WorkerStatus, ...] = ()
    counts: InferenceCounts = InferenceCounts()
    """of all edges"""
    edges: tuple[EdgeServing, ...] = ()
    replicas: ReplicaCount = ReplicaCount()
    cloud_serving: ServingModel | None = None


class JointInferenceService(Resource):
    kind: Literal["JointInferenceService"] = "JointInferenceService"
    spec: JointInferenceServiceSpec
    status: JointInferenceServiceStatus = JointInferenceServiceStatus()
