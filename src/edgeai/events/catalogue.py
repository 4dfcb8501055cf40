"""Every event of the system: what happened, of which class, in which direction, with which fields.

An event is a frozen dataclass. Its class attributes say how it travels; `docs/events.md` is generated from this page and a
test compares them. Where an event comes from and which number it has in its sequence are in the envelope, not here; node,
task level and worker are in the address.

Durations are in seconds, sizes in bytes, digests are sha256 in 64 hexadecimal digits. `task_uid` is 32 hexadecimal digits.
What becomes part of a path or of a database row is checked when an event is decoded: digests, levels, counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from edgeai.events.address import LEVEL_PATTERN, Direction, EventClass
from edgeai.resources.base import Count, Digest

INLINE_BYTES = 256 * 1024
"""A blob of at most this size rides inside its event."""

DigestOrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Level = Annotated[str, Field(pattern=f"^{LEVEL_PATTERN}$")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ranges = tuple[tuple[Count, Count], ...]
"""Parts of a blob: (offset, length)."""


MAX_EXAMPLES = 10**12
"""More examples than this in one update are not plausible."""


class Event:
    """Base of all events. `kind` is the level of the address, `event_class` and `direction` say how it travels."""

    __slots__ = ()
    kind: ClassVar[str]
    event_class: ClassVar[EventClass]
    direction: ClassVar[Direction]


# --- values inside events ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob by digest; `inline` holds the bytes themselves when they are at most INLINE_BYTES."""

    digest: Digest
    size_bytes: Count
    inline: bytes | None = None


class Role(StrEnum):
    TRAINING = "training"
    AGGREGATION = "aggregation"
    TRAIN = "train"
    EVAL = "eval"
    DEPLOY = "deploy"
    EDGE = "edge"
    CLOUD = "cloud"


JOB_ROLES = frozenset({Role.TRAIN, Role.EVAL, Role.DEPLOY})
"""The workers of an incremental learning job, one for each stage, and named as it."""
SERVICE_ROLES = frozenset({Role.EDGE, Role.CLOUD})
"""The workers of a joint inference service."""


@dataclass(frozen=True, slots=True)
class Member:
    """A training worker as the aggregation worker knows it."""

    worker: str
    node: str


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What rules the rounds of a federated task (the parameters of ARCHITECTURE section 6, typed)."""

    algorithm: str
    rounds: Count
    min_node_number: Count
    rounds_between_validations: Count
    round_deadline_s: float
    target_accuracy: float | None
    members: tuple[Member, ...]
    model: str
    base: BlobRef | None = None


@dataclass(frozen=True, slots=True)
class DatasetWanted:
    """`digest` is what the file must have, if that is known beforehand."""

    name: str
    url: str
    format: str
    digest: DigestOrNone = ""
    label_field: str = ""
    """which field of a row is its label; empty: y, label, or the last one"""
    secret: str = ""
    """a file of the node's secrets folder that a store asks for; its content never travels"""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a worker asks of its place besides a program; zero or empty: what the node gives to everybody.

    `secrets` maps the name of a file in the worker to a file of the node's secrets folder; contents never travel.
    """

    image: str = ""
    cpus: float = 0.0
    memory_bytes: Count = 0
    disk_bytes: Count = 0
    gpus: Count = 0
    env: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    network: str = ""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model as a worker finds it: `name` is that of the file in the worker's models folder."""

    name: str
    blob: BlobRef
    format: str = "safetensors"


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a worker of an incremental learning job is to do.

    `run` names one run of a stage (round and attempt): the same worker with another run is another program. Train workers get
    a `snapshot` (digest) and the serving model, eval workers the snapshot and the models to compare, the new one first.
    An inference worker gets its model through `ServeModel`, so that it need not be restarted for another.
    """

    round: Count = 0
    run: str = ""
    snapshot: DigestOrNone = ""
    models: tuple[ModelFile, ...] = ()
    mining: str = ""
    mining_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferenceWork:
    """What a worker of a joint inference service is to do; `spec` is the service's (`resources.joint`) as JSON.

    Of an edge worker without the other edges' workers. Which model it serves comes through `ServeModel`.
    """

    spec: str
    has_model: bool = True
    """False: the script's predict needs no model of ours"""


@dataclass(frozen=True, slots=True)
class ServingWanted:
    """The model that a worker of a joint inference service is to serve. `name` is that of its Model resource."""

    task: Level
    task_uid: str
    worker: Level
    name: Level
    model: ModelVersionRef


@dataclass(frozen=True, slots=True)
class Assignment:
    """One worker that a node is to run: a *slot*, identified by (task_uid, worker)."""

    task: Level
    task_name: str
    task_uid: str
    generation: Count
    worker: Level
    role: Role
    boot_file: str = ""
    script: BlobRef | None = None
    script_dir: str = ""
    framework: str = ""
    framework_version: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""
    plan: RoundPlan | None = None
    needs: Needs = field(default_factory=Needs)
    work: StageWork | None = None
    inference: InferenceWork | None = None
    finished: bool = False
    """the task is over: stop the program if it still runs, keep its log until the task is deleted"""


@dataclass(frozen=True, slots=True)
class WorkerObserved:
    """State of one slot as its controller sees it; `reason` is one line for a person."""

    task: str
    task_uid: str
    worker: str
    role: Role
    generation: Count
    state: str
    reason: str = ""
    restarts: Count = 0
    pid: Count = 0
    token: DigestOrNone = ""
    """digest of the token of the current run (`events.tokens`)"""
    dataset: DigestOrNone = ""
    """digest of the dataset of a training worker, as it was verified when the worker was prepared"""
    samples: Count = 0
    """how many examples it had then"""


@dataclass(frozen=True, slots=True)
class DatasetObserved:
    name: str
    ready: bool
    reason: str = ""
    samples: Count = 0
    digest: DigestOrNone = ""
    schema: dict[str, str] = field(default_factory=dict)
    """column -> type of its values"""
    shapes: dict[str, tuple[Count, ...]] = field(default_factory=dict)
    """column -> shape of one example, where it is an array"""
    size_bytes: Count = 0


@dataclass(frozen=True, slots=True)
class ModelVersionRef:
    """A version of a Model resource. `suffix` is the end of its file's name; empty: that of the format.

    `own`: the job itself has made it. Then it is the number of something that the node knows, never a reason to change.
    """

    version: Count
    blob: BlobRef
    format: str = "safetensors"
    suffix: str = ""
    own: bool = False


@dataclass(frozen=True, slots=True)
class JobWanted:
    """An incremental learning job that a node is to run by itself, with or without a WAN.

    `spec` is the resource's (`resources.incremental`) as JSON; `workers` are the assignments of its three workers,
    without `work`. `model` is the newest version of the output model, else of the initial one. `triggers` counts how often
    somebody asked for a round by hand.
    """

    task: Level
    task_name: str
    task_uid: str
    generation: Count
    spec: str
    workers: tuple[Assignment, ...]
    model: ModelVersionRef
    triggers: Count = 0


@dataclass(frozen=True, slots=True)
class ExampleCounts:
    """Labelled examples by use, those that are new since the last snapshot, those that wait for a label; requests served.

    `dropped`: hard examples that were not kept, or gave way before they had a label.
    """

    train: Count = 0
    held_out: Count = 0
    new: Count = 0
    unlabelled: Count = 0
    requests: Count = 0
    hard: Count = 0
    hard_rate: Amount = 0.0
    """of the last requests"""
    dropped: Count = 0


@dataclass(frozen=True, slots=True)
class JobObserved:
    """An incremental learning job as its controller sees it; `reason` is one line for a person.

    `trouble` says what is wrong with its dataset, if anything is, `trouble_reason` the same in one word; `dropped` are
    sentences on what was removed to keep within the limits of the job and of its node.
    """

    task: str
    task_uid: str
    generation: Count
    stage: str
    state: str
    round: Count
    reason: str = ""
    counts: ExampleCounts = field(default_factory=ExampleCounts)
    serving: DigestOrNone = ""
    metrics: dict[str, float] = field(default_factory=dict)
    trouble: str = ""
    trouble_reason: str = ""
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inferences:
    """Sums of a worker of a joint inference service since its slot was made; the names are those of `InferenceCounts`.

    A cloud worker has `inferences` (answered), `failed`, `late` (came too late to be worth an answer), `shed` (found its queue
    full) and bytes only.
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


@dataclass(frozen=True, slots=True)
class Scores:
    """How an edge worker's inferences lie over the scores of its mining (`learning.offload_curve`), since these models and
    this mining serve together. Empty columns: nothing is counted yet.

    `edge`, `cloud`: digests of the models; `mining`: the algorithm with its parameters. By bin of the score: `inferences`,
    answers of the cloud in time that were compared with the edge's (`answered`), and those that differed (`changed`).
    `hard` inferences, and answers that could not be compared (`apart`).
    """

    edge: DigestOrNone = ""
    cloud: DigestOrNone = ""
    mining: Annotated[str, Field(max_length=300)] = ""
    inferences: tuple[Count, ...] = ()
    answered: tuple[Count, ...] = ()
    changed: tuple[Count, ...] = ()
    hard: Count = 0
    apart: Count = 0


@dataclass(frozen=True, slots=True)
class InferenceObserved:
    """A worker of a joint inference service, as it last told its controller; brought up to date every 5 s.

    `models`: inferences by digest of the model that was asked first. `breaker`: closed, open or half-open.
    """

    task: str
    task_uid: str
    worker: str
    digest: DigestOrNone = ""
    counts: Inferences = field(default_factory=Inferences)
    models: dict[str, int] = field(default_factory=dict)
    breaker: str = ""
    refused_models: dict[str, str] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)


@dataclass(frozen=True, slots=True)
class BlobWanted:
    """A blob that the cloud node is to bring from an edge into the library."""

    blob: BlobRef
    node: Level
    task: Level


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of a model on one worker's held-out data."""

    metrics: dict[str, float]
    num_examples: int


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """The outcome of one round, fixed once for ever under (task uid, round). `metrics` are the mean of what was submitted."""

    number: Count
    attempt: Count
    accepted: dict[str, int]
    """worker -> number of examples"""
    refused: dict[str, str]
    """worker -> reason"""
    base_digest: DigestOrNone
    model_digest: Digest
    model_size_bytes: Count
    metrics: dict[str, float]
    bytes_up: Count
    bytes_down: Count
    seconds: float
    answered_s: dict[str, float] = field(default_factory=dict)
    """worker -> seconds from the opening of the round until its update counted; who is not named: not known"""


# --- state: the latest arrives ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Desired(Event):
    """What a node is to run. Coordinator to controller, one document per node."""

    kind: ClassVar[str] = "desired"
    event_class: ClassVar[EventClass] = EventClass.STATE
    direction: ClassVar[Direction] = Direction.DOWN

    assignments: tuple[Assignment, ...] = ()
    datasets: tuple[DatasetWanted, ...] = ()
    jobs: tuple[JobWanted, ...] = ()
    blobs: tuple[BlobWanted, ...] = ()
    serving: tuple[ServingWanted, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed(Event):
    """What a node runs. Controller to coordinator, one document per node."""

    kind: ClassVar[str] = "observed"
    event_class: ClassVar[EventClass] = EventClass.STATE
    direction: ClassVar[Direction] = Direction.UP

    desired_generation: Count = 0
    workers: tuple[WorkerObserved, ...] = ()
    datasets: tuple[DatasetObserved, ...] = ()
    info: dict[str, str] = field(default_factory=dict)
    jobs: tuple[JobObserved, ...] = ()
    blobs: tuple[Digest, ...] = ()
    """those of the wanted blobs that are in the library"""
    inference: tuple[InferenceObserved, ...] = ()
    lost: dict[Digest, str] = field(default_factory=dict)
    """those that can never get there, and why"""


class RoundPhase(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class RoundState(Event):
    """The round as it stands. Aggregation worker to the training workers of one node, one document per node and task.

    `asked` names the workers whose answer is wanted; `train` asks for an update, `validate` for metrics of `model`.
    `model` None asks for initial weights. `deadline_s` is what was left when this was sent. Phase `ended` ends the task.
    """

    kind: ClassVar[str] = "round"
    event_class: ClassVar[EventClass] = EventClass.STATE
    direction: ClassVar[Direction] = Direction.DOWN

    task_uid: str
    number: Count
    attempt: Count
    phase: RoundPhase
    asked: tuple[str, ...] = ()
    train: bool = True
    validate: bool = False
    deadline_s: float = 0.0
    model: BlobRef | None = None


@dataclass(frozen=True, slots=True)
class Membership(Event):
    """Which training workers can be asked. Coordinator to the aggregation worker; `failed` maps worker to reason.

    Who is in neither is silent: an open round waits for it until the deadline, a new one does not ask it.
    """

    kind: ClassVar[str] = "membership"
    event_class: ClassVar[EventClass] = EventClass.STATE
    direction: ClassVar[Direction] = Direction.DOWN

    task_uid: str
    available: tuple[str, ...]
    failed: dict[str, str]
    paused: bool = False
    tokens: dict[str, str] = field(default_factory=dict)
    """worker -> digest of the token of its current run"""


@dataclass(frozen=True, slots=True)
class ServiceEndpoint(Event):
    """Where a worker that was published as a service is found. Coordinator to the nodes of the task."""

    kind: ClassVar[str] = "service"
    event_class: ClassVar[EventClass] = EventClass.STATE
    direction: ClassVar[Direction] = Direction.DOWN

    task_uid: str
    service: str
    node: str
    worker: str


@dataclass(frozen=True, slots=True)
class Receipt(Event):
    """Cumulative receipt of facts: everything of `source` in this incarnation up to `sequence` has been stored."""

    kind: ClassVar[str] = "receipt"
    event_class: ClassVar[EventClass] = EventClass.STATE
    direction: ClassVar[Direction] = Direction.DOWN

    source: str
    source_incarnation: Count
    source_sequence: Count


@dataclass(frozen=True, slots=True)
class ModelAtHand(Event):
    """A blob is in the slot directory of this task's workers. Controller to its workers, never bridged."""

    kind: ClassVar[str] = "model"
    event_class: ClassVar[EventClass] = EventClass.STATE
    direction: ClassVar[Direction] = Direction.LOCAL

    digest: Digest
    path: str


@dataclass(frozen=True, slots=True)
class ServeModel(Event):
    """The model that a job's inference worker is to serve, as it also stands in `serving.json` of its models folder.

    Controller to its worker. `canary`: the file beside it with held-out inputs that a model has to answer before it serves.
    """

    kind: ClassVar[str] = "serve"
    event_class: ClassVar[EventClass] = EventClass.STATE
    direction: ClassVar[Direction] = Direction.LOCAL

    model: ModelFile
    version: Count = 0
    canary: str = ""


# --- transfer: a blob arrives whole, checked, with a verdict ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offer(Event):
    """A finished update. Training worker to aggregation worker; sent again until a verdict arrives."""

    kind: ClassVar[str] = "offer"
    event_class: ClassVar[EventClass] = EventClass.TRANSFER
    direction: ClassVar[Direction] = Direction.UP

    task_uid: str
    number: int
    base_digest: DigestOrNone
    blob: BlobRef
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    report: Evaluation | None = None
    """what `Report` says, once more, so that the two cannot arrive in the wrong order"""


@dataclass(frozen=True, slots=True)
class Report(Event):
    """Metrics of the round's model on the worker's held-out data; sent again until a verdict arrives.

    `evaluation` None: the script does not evaluate; nobody need wait for it.
    """

    kind: ClassVar[str] = "report"
    event_class: ClassVar[EventClass] = EventClass.TRANSFER
    direction: ClassVar[Direction] = Direction.UP

    task_uid: str
    number: int
    base_digest: DigestOrNone
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Abstention(Event):
    """No update of this round comes from this worker: it has left it. Sent again until a verdict arrives."""

    kind: ClassVar[str] = "abstention"
    event_class: ClassVar[EventClass] = EventClass.TRANSFER
    direction: ClassVar[Direction] = Direction.UP

    task_uid: str
    number: int
    base_digest: DigestOrNone
    report: Evaluation | None = None
    """as in `Offer`"""


class Outcome(StrEnum):
    COUNTED = "counted"
    DUPLICATE = "duplicate"
    STALE = "stale"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Verdict(Event):
    """The end of a sender's duty. `of` is "offer", "report" or "abstention"."""

    kind: ClassVar[str] = "verdict"
    event_class: ClassVar[EventClass] = EventClass.TRANSFER
    direction: ClassVar[Direction] = Direction.DOWN

    task_uid: str
    number: int
    of: str
    outcome: Outcome
    digest: DigestOrNone = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pull(Event):
    """The receiver of a blob asks for ranges (offset, length) of it. Towards the edge."""

    kind: ClassVar[str] = "pull"
    event_class: ClassVar[EventClass] = EventClass.TRANSFER
    direction: ClassVar[Direction] = Direction.DOWN

    digest: Digest
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Fetch(Event):
    """The same towards the cloud: from the aggregation worker (task level set) or the library of the cloud node."""

    kind: ClassVar[str] = "fetch"
    event_class: ClassVar[EventClass] = EventClass.TRANSFER
    direction: ClassVar[Direction] = Direction.UP

    digest: Digest
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Absent(Event):
    """The holder asked by a fetch does not have this blob."""

    kind: ClassVar[str] = "absent"
    event_class: ClassVar[EventClass] = EventClass.TRANSFER
    direction: ClassVar[Direction] = Direction.DOWN

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class BlobGone(Event):
    """The holder asked by a pull does not have this blob any more."""

    kind: ClassVar[str] = "blob-gone"
    event_class: ClassVar[EventClass] = EventClass.TRANSFER
    direction: ClassVar[Direction] = Direction.UP

    digest: Digest
    reason: str


# --- fact: arrives at the coordinator, in order, takes effect once ------------------------------------------------------


class Fact(Event):
    """Base of all facts: class fact, upwards."""

    __slots__ = ()
    event_class: ClassVar[EventClass] = EventClass.FACT
    direction: ClassVar[Direction] = Direction.UP


@dataclass(frozen=True, slots=True)
class WorkerStarted(Fact):
    """A worker's program was started."""

    kind: ClassVar[str] = "worker-started"

    task_uid: str
    role: Role
    pid: Count


@dataclass(frozen=True, slots=True)
class WorkerEnded(Fact):
    """A worker's program ended. `reason` is one line: exit code or signal, and its last log line if it failed."""

    kind: ClassVar[str] = "worker-ended"

    task_uid: str
    role: Role
    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerFailed(Fact):
    """The controller has given the worker up."""

    kind: ClassVar[str] = "worker-failed"

    task_uid: str
    role: Role
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerJoined(Fact):
    """Emitted by the aggregation worker when a training worker has reported for the task."""

    kind: ClassVar[str] = "worker-joined"

    task_uid: str
    member: str


@dataclass(frozen=True, slots=True)
class RoundStarted(Fact):
    """The aggregation worker has asked these training workers. Not `train`: only for what the finished model is worth."""

    kind: ClassVar[str] = "round-started"

    task_uid: str
    number: Count
    attempt: Count
    asked: tuple[str, ...]
    train: bool = True


@dataclass(frozen=True, slots=True)
class RoundClosed(Fact):
    """The outcome of a round is fixed: who counted, who was refused, which model it made."""

    kind: ClassVar[str] = "round-closed"

    task_uid: str
    record: RoundRecord


@dataclass(frozen=True, slots=True)
class RoundValidated(Fact):
    """The workers have evaluated the model that round `number` made: mean of their metrics, weighted by examples."""

    kind: ClassVar[str] = "round-validated"

    task_uid: str
    number: Count
    metrics: dict[str, float]
    num_examples: Count


@dataclass(frozen=True, slots=True)
class RoundMissed(Fact):
    """The deadline passed without enough good updates: the round is tried again, the model is unchanged."""

    kind: ClassVar[str] = "round-missed"

    task_uid: str
    number: Count
    attempt: Count
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateRefused(Fact):
    """An update was not counted, and why; the round goes on."""

    kind: ClassVar[str] = "update-refused"

    task_uid: str
    number: int
    member: str
    reason: str


@dataclass(frozen=True, slots=True)
class TrainingCompleted(Fact):
    """The last round is closed, the model is in the object store under its digest."""

    kind: ClassVar[str] = "training-completed"

    task_uid: str
    model_digest: Digest
    model_size_bytes: Count
    number: Count
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class StageChanged(Fact):
    """A stage of an incremental learning job has come to a state. Emitted by the controller that runs the job.

    `metrics` are those of the new model, `serving` those of the one that serves, on the same held-out examples. `samples` are
    trained on and `held_out` evaluated on, as frozen under the digest `snapshot`.
    """

    kind: ClassVar[str] = "stage-changed"

    task_uid: str
    round: Count
    stage: str
    state: str
    reason: str = ""
    samples: Count = 0
    metrics: dict[str, float] = field(default_factory=dict)
    serving: dict[str, float] = field(default_factory=dict)
    snapshot: DigestOrNone = ""
    held_out: Count = 0


@dataclass(frozen=True, slots=True)
class ModelDeployed(Fact):
    """A job serves another model. Its node keeps the blob until the library has it.

    `snapshot` is the digest of what it was trained on; empty, with round 0: nothing was trained, somebody rolled back.
    """

    kind: ClassVar[str] = "model-deployed"

    task_uid: str
    round: Count
    model: ModelFile
    snapshot: DigestOrNone
    samples: Count
    metrics: dict[str, float] = field(default_factory=dict)
    held_out: Count = 0
    generation: Count = 0
    """of the job, when it was deployed"""


@dataclass(frozen=True, slots=True)
class ServiceChanged(Fact):
    """Something of a joint inference service is another one now. Of a worker: emitted by its controller; else the coordinator.

    `what`: model (a worker serves another one: `version` of the Model, 0 if it has none, `before` and `after` are digests),
    model-refused (`after` is not served), breaker-opened, breaker-closed, or replicas (so many are wanted). `times`: so often
    since the last one of this kind was told; breakers are told at most once a minute.
    """

    kind: ClassVar[str] = "service-changed"

    task_uid: str
    what: str
    before: str = ""
    after: str = ""
    reason: str = ""
    times: Count = 1
    version_before: Count = 0
    version: Count = 0


@dataclass(frozen=True, slots=True)
class PhaseChanged(Fact):
    """A task entered a phase. Emitted by the coordinator."""

    kind: ClassVar[str] = "phase-changed"

    task_uid: str
    phase: str
    reason: str


# --- signal: may be lost ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heartbeat(Event):
    """The controller lives; at the worker level `coordinator` of the cloud node: the coordinator. Every 5 s.

    `broker_s` is how long an `echo` of the sender's own has just taken through its broker; None: not measured, or, with
    `broker_silent`, no answer in time. `waiting`: what has arrived and is not taken yet (of the coordinator: facts). What
    JetStream stores is told by the coordinator alone; a limit of 0: none is known.
    """

    kind: ClassVar[str] = "heartbeat"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.UP

    uptime_s: float
    outbox: Count = 0
    broker_s: Amount | None = None
    broker_silent: bool = False
    waiting: Count | None = None
    store_bytes: Count | None = None
    store_limit_bytes: Count = 0


@dataclass(frozen=True, slots=True)
class Echo(Event):
    """Comes back to its own sender: so a controller, the coordinator or a portal measures its broker."""

    kind: ClassVar[str] = "echo"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.LOCAL


@dataclass(frozen=True, slots=True)
class LaneCounts:
    """What became of the messages of one direction of a bridge since it began; `waiting`: not handed on yet.

    Dropped: the other side was away, or refused it, or there was no room to wait (`dropped_full`, malformed ones included).
    """

    forwarded: Count = 0
    forwarded_bytes: Count = 0
    dropped_away: Count = 0
    dropped_refused: Count = 0
    dropped_full: Count = 0
    waiting: Count = 0

    @property
    def dropped(self) -> int:
        return self.dropped_away + self.dropped_refused + self.dropped_full


@dataclass(frozen=True, slots=True)
class Bridging(Event):
    """The bridge of a node lives. Said by the bridge itself, to the cloud: every 5 s and when a connection changes.

    `edge_connected`: the node's broker lets it in (that the cloud's does shows in this being heard). Sums since it began.
    """

    kind: ClassVar[str] = "bridging"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.UP

    uptime_s: Amount
    edge_connected: bool
    edge_reconnects: Count = 0
    cloud_reconnects: Count = 0
    up: LaneCounts = field(default_factory=LaneCounts)
    down: LaneCounts = field(default_factory=LaneCounts)


@dataclass(frozen=True, slots=True)
class NodeGone(Event):
    """The will of a controller: its edge broker has lost it."""

    kind: ClassVar[str] = "gone"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.UP


@dataclass(frozen=True, slots=True)
class Progress(Event):
    """What a worker does right now, for progress bars. `step` is training, validating, submitted or collecting.

    A training worker says it to its controller (local), which passes it on.
    """

    kind: ClassVar[str] = "progress"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.UP

    number: int
    step: str
    done: Count = 0
    total: Count = 0


@dataclass(frozen=True, slots=True)
class Usage(Event):
    """What a worker uses, where its launcher can tell: every 10 s. `cpu_s` is the sum since this run began.

    `memory_limit_bytes` 0: none is known. `pids` counts processes and threads.
    """

    kind: ClassVar[str] = "usage"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.UP

    cpu_s: Amount
    memory_bytes: Count
    memory_limit_bytes: Count
    pids: Count
    cpus: Amount | None = None
    """processors in use since the last of these; None: there was none before"""


@dataclass(frozen=True, slots=True)
class Serving(Event):
    """What an inference worker does. To its controller, and by it to the cloud; every second and at every change.

    `digest` is that of the model that answers; `refused` are models that it would not serve, with the reason. `p50_s` and
    `p99_s` are those of the last seconds; counts are sums since this run began.
    """

    kind: ClassVar[str] = "serving"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.UP

    digest: DigestOrNone
    requests: Count = 0
    failed: Count = 0
    hard: Count = 0
    hard_rate: Amount = 0.0
    p50_s: Amount = 0.0
    p99_s: Amount = 0.0
    refused: dict[str, str] = field(default_factory=dict)
    dropped: Count = 0
    """hard examples that were not kept: nobody collected those before them"""


@dataclass(frozen=True, slots=True)
class Inferring(Event):
    """What a worker of a joint inference service does. To its controller, and by it to the cloud; every second.

    `counts` and `models` as in `InferenceObserved`. Of an edge worker: times of the last seconds, of answers of the edge alone
    and of the cloud. Of a cloud worker: `waiting` requests now, `busy` the share of the last second in which it predicted,
    `batch` the mean size of its last batches.
    """

    kind: ClassVar[str] = "inferring"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.UP

    digest: DigestOrNone
    counts: Inferences
    models: dict[str, int] = field(default_factory=dict)
    refused_models: dict[str, str] = field(default_factory=dict)
    breaker: str = ""
    edge_p50_s: Amount = 0.0
    edge_p99_s: Amount = 0.0
    cloud_p50_s: Amount = 0.0
    cloud_p99_s: Amount = 0.0
    waiting: Count = 0
    busy: Amount = 0.0
    batch: Amount = 0.0
    scores: Scores = field(default_factory=Scores)


@dataclass(frozen=True, slots=True)
class Held:
    """The version of a state document that a reader holds; generation 0: it has none yet."""

    kind: str
    task: str
    worker: str
    incarnation: Count
    generation: Count


@dataclass(frozen=True, slots=True)
class HeldAtEdge(Event):
    """Which documents a reader at the edge holds; the owner sends what differs. On connect and every 60 s."""

    kind: ClassVar[str] = "held"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.UP

    documents: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class HeldInCloud(Event):
    """The same from the cloud to a node."""

    kind: ClassVar[str] = "held-in-cloud"
    event_class: ClassVar[EventClass] = EventClass.SIGNAL
    direction: ClassVar[Direction] = Direction.DOWN

    documents: tuple[Held, ...]


# --- request: an answer before the deadline, or an error at the deadline --------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogRequested(Event):
    """Ask a controller for a worker's log from byte `offset` on (negative: that many bytes from the end)."""

    kind: ClassVar[str] = "log"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.DOWN

    offset: int


@dataclass(frozen=True, slots=True)
class LogAnswered(Event):
    """`text` starts at `offset`; `next_offset` is where to go on; `ended`: the worker is gone, nothing will follow."""

    kind: ClassVar[str] = "log-answer"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.UP

    offset: Count
    next_offset: Count
    text: bytes
    ended: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class ExamplesRequested(Event):
    """Ask a controller for examples of a job that wait for a label, the oldest first; with `after`, those behind that one."""

    kind: ClassVar[str] = "examples"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.DOWN

    limit: Count
    inputs: bool = False
    """with the inputs themselves"""
    after: str = ""
    """id of an example"""


@dataclass(frozen=True, slots=True)
class UnlabelledExample:
    """`predicted` is what the model said, as JSON; `input` the array in the npy format, if asked for."""

    id: str
    time: float
    score: float
    predicted: str = ""
    input: bytes = b""


@dataclass(frozen=True, slots=True)
class ExamplesAnswered(Event):
    """As many as fit; `waiting` is how many there are, `rest` how many of them come behind these."""

    kind: ClassVar[str] = "examples-answer"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.UP

    examples: tuple[UnlabelledExample, ...]
    waiting: Count
    error: str = ""
    rest: Count = 0


@dataclass(frozen=True, slots=True)
class LabelsGiven(Event):
    """Labels of examples by id, as JSON values. Answered when they are durable; giving one again changes nothing."""

    kind: ClassVar[str] = "labels"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.DOWN

    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class LabelsTaken(Event):
    """`unknown` are ids that no example of the job has, at most 100 of them."""

    kind: ClassVar[str] = "labels-answer"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.UP

    taken: Count
    already: Count = 0
    unknown: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class InferenceAsked(Event):
    """One input of a joint inference service, from an application to the edge worker.

    It is local: `.../local/request/infer/<service>/<application>`. The header's correlation names the answer. To the cloud it
    travels in `InferencesForwarded`, with the task level and the edge worker.
    """

    kind: ClassVar[str] = "infer"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.UP

    content: bytes
    """the input, as `events.values` packs it"""
    deadline_s: Amount = 0.0
    """what is left when this is sent; 0: the service's own"""
    id: str = ""
    model: str = ""
    """name of the Model that is to answer; empty: whichever the service has"""


@dataclass(frozen=True, slots=True)
class InferenceAnswered(Event):
    """The answer, or why there is none: `error` is a sentence, `error_kind` one of refused, overloaded, late, failed.

    `by` edge or cloud; `fell_back`: why the edge answers what the mining calls hard; `correction`: the cloud's answer to what
    the edge has answered before, under the same correlation.
    """

    kind: ClassVar[str] = "infer-answer"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.DOWN

    content: bytes = b""
    by: str = ""
    hard: bool = False
    score: float = 0.0
    model: str = ""
    version: Count = 0
    digest: DigestOrNone = ""
    seconds: Amount = 0.0
    fell_back: str = ""
    correction: bool = False
    id: str = ""
    error: str = ""
    error_kind: str = ""


@dataclass(frozen=True, slots=True)
class ForwardedInference:
    """A request on its way to the cloud; `correlation` (16 bytes) names its answer, `deadline_s` in it is what is left.

    `trace` is the span that it belongs to, if whoever asked is traced.
    """

    correlation: bytes
    request: InferenceAsked
    trace: str = ""


@dataclass(frozen=True, slots=True)
class InferencesForwarded(Event):
    """From an edge worker to the cloud worker: the requests that were ready at the same moment share a message."""

    kind: ClassVar[str] = "infer-batch"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.UP

    requests: tuple[ForwardedInference, ...]


@dataclass(frozen=True, slots=True)
class ReturnedInference:
    correlation: bytes
    answer: InferenceAnswered


@dataclass(frozen=True, slots=True)
class InferencesReturned(Event):
    """The cloud worker's answers to requests of one edge worker, in any order."""

    kind: ClassVar[str] = "infer-batch-answer"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.DOWN

    answers: tuple[ReturnedInference, ...]


@dataclass(frozen=True, slots=True)
class UsageRequested(Event):
    """Ask the coordinator what the workers use that run; with a task level: those of this task."""

    kind: ClassVar[str] = "usage-request"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.DOWN


@dataclass(frozen=True, slots=True)
class UsageRow:
    """A worker that runs, or of which nobody knows. `usage` None: not known now; `age_s` None: nothing was ever heard."""

    node: str
    task: str
    """name of the task"""
    worker: str
    usage: Usage | None = None
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class UsageAnswered(Event):
    """The latest that was heard of each, by node, task and worker. `left_out` more had no room in this event."""

    kind: ClassVar[str] = "usage-answer"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.UP

    workers: tuple[UsageRow, ...]
    left_out: Count = 0


@dataclass(frozen=True, slots=True)
class HealthRequested(Event):
    """Ask the coordinator for the health of nodes, their brokers and bridges: of one `node`, or of all `after` a name."""

    kind: ClassVar[str] = "health-request"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.DOWN

    node: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """What was heard of a node's controller and bridge of late. None: not known now; an age of None: never heard.

    `gone`: the node's broker says that its controller is away. `skew_s`: by how much its clock is behind of ours. What the
    bridge forwards per second, and for how long it has been dropping messages, follow from what it told.
    """

    node: str
    gone: bool = False
    heartbeat: Heartbeat | None = None
    heartbeat_age_s: Amount | None = None
    skew_s: float | None = None
    bridging: Bridging | None = None
    bridging_age_s: Amount | None = None
    up_per_s: Amount | None = None
    down_per_s: Amount | None = None
    dropping_s: Amount | None = None
    crowded_s: Amount | None = None
    """for how long more messages have been waiting at it than should"""


@dataclass(frozen=True, slots=True)
class HealthAnswered(Event):
    """The latest that was heard of each, by node, and the coordinator's own. `left_out` more had no room in this event."""

    kind: ClassVar[str] = "health-answer"
    event_class: ClassVar[EventClass] = EventClass.REQUEST
    direction: ClassVar[Direction] = Direction.UP

    nodes: tuple[NodeHealth, ...]
    coordinator: NodeHealth | None = None
    left_out: Count = 0


def _leaves(base: type[Event]) -> list[type[Event]]:
    return [leaf for child in base.__subclasses__() for leaf in (_leaves(child) or [child])]


CATALOGUE: dict[str, type[Event]] = {event.kind: event for event in _leaves(Event) if hasattr(event, "kind")}
