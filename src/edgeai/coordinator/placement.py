"""What every node is to run, as it follows from the tasks and datasets. Pure: no state of its own, no bus.

Scripts and base models are named by digest; `apply` has put them into the object store and noted them in annotations:
`script.edgeai.io/<worker>` and `source.edgeai.io/digest` hold `<sha256>:<size in bytes>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from edgeai.events.address import CLOUD, task_level
from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    BlobWanted,
    DatasetWanted,
    Desired,
    Fact,
    JobWanted,
    Member,
    Membership,
    ModelDeployed,
    ModelVersionRef,
    Needs,
    Role,
    RoundPlan,
    ServiceChanged,
    ServingWanted,
    StageChanged,
    WorkerEnded,
    WorkerFailed,
    WorkerObserved,
    WorkerStarted,
)
from edgeai.lifecycle import job as jobs
from edgeai.lifecycle.task import References, is_over, is_placed
from edgeai.resources.base import SCRIPT_ANNOTATION, TRIGGER_ANNOTATION, Metadata
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask, FinishedModel, TrainingWorker
from edgeai.resources.incremental import IncrementalLearningJob, ServingModel
from edgeai.resources.joint import MAX_REPLICAS, JointInferenceService
from edgeai.resources.model import Model, ModelFormat, ModelVersion
from edgeai.resources.needs import WorkerSpec, cpus, disk_bytes, memory_bytes
from edgeai.store.files import is_digest

Task = FederatedTask | IncrementalLearningJob | JointInferenceService

OPERATOR = "operator"
"""Who publishes facts by hand: `<node>/operator` (see client)."""


def noted_blob(metadata: Metadata, annotation: str) -> BlobRef | None:
    """The blob that `apply` noted, if any."""
    digest, _, size = metadata.annotations.get(annotation, "").partition(":")
    return BlobRef(digest, int(size)) if is_digest(digest) and size.isdecimal() and len(size) < 19 else None


@dataclass(frozen=True, slots=True)
class Library:
    """The datasets, models and incremental learning jobs that there are, by name."""

    datasets: Mapping[str, Dataset]
    models: Mapping[str, Model]
    jobs: Mapping[str, IncrementalLearningJob] = field(default_factory=dict)


def level_of(task: Task) -> str:
    return task_level(task.metadata.name, task.metadata.uid)


def is_source(source: str, node: str, tasks: Iterable[FederatedTask]) -> bool:
    """Whether facts from this node may be numbered under `source`: the node, an operator there, or a worker of a task.

    The workers of jobs and services tell their node, which has their facts among its own.
    """
    if source in {node, f"{node}/{OPERATOR}"}:
        return True
    return any(
        source == f"{node}/{level_of(task)}/{worker}"
        for task in tasks
        for worker, place in _places(task)
        if place == node
    )


def may_say(task: Task, fact: Fact, source: str, worker: str) -> bool:
    """A worker's start and end are its node's to report, as are the stages of a job and what a service's worker serves;
    rounds the aggregation worker's.

    An operator may say what the node may that it speaks for.
    """
    node = source.removesuffix(f"/{OPERATOR}")
    if isinstance(fact, WorkerStarted | WorkerEnded | WorkerFailed):
        return (worker, node) in _places(task)
    if isinstance(task, IncrementalLearningJob):
        return isinstance(fact, StageChanged | ModelDeployed) and node == task.spec.node_name
    if isinstance(task, JointInferenceService):
        return isinstance(fact, ServiceChanged) and (worker, node) in _places(task)
    return source in {f"{CLOUD}/{level_of(task)}/{task.spec.aggregation_worker.name}", f"{CLOUD}/{OPERATOR}"}


def _places(task: Task) -> Iterator[tuple[str, str]]:
    """The workers of a task and their nodes; of a service also replicas that are not wanted now: they have still to end."""
    if isinstance(task, IncrementalLearningJob):
        yield from ((worker, task.spec.node_name) for worker in task.spec.worker_specs())
        return
    if isinstance(task, JointInferenceService):
        yield from ((worker.name, worker.node_name) for worker in task.spec.edge_workers)
        yield from ((task.spec.cloud_worker.replica(number), CLOUD) for number in range(MAX_REPLICAS))
        return
    yield task.spec.aggregation_worker.name, CLOUD
    for worker in task.spec.training_workers:
        yield worker.name, worker.node_name


def references_of(
    task: FederatedTask, nodes: Iterable[str], datasets: Mapping[str, Dataset], models: Mapping[str, Model]
) -> References:
    """What the task refers to, or the sentences that say what is missing."""
    known, problems = set(nodes), []
    for worker in task.spec.training_workers:
        if worker.node_name not in known:
            problems.append(
                f"node {worker.node_name} of worker {worker.name} has never joined: start `edgeai edge --node "
                f"{worker.node_name}` there, or change nodeName"
            )
        name = worker.worker_spec.dataset.name
        dataset = datasets.get(name)
        if dataset is None:
            problems.append(f"dataset {name} of worker {worker.name} does not exist: apply a Dataset of that name")
        elif dataset.spec.node_name != worker.node_name:
            problems.append(
                f"dataset {name} is on {dataset.spec.node_name}, worker {worker.name} on {worker.node_name}: "
                "change one of them"
            )
    model = models.get(task.spec.aggregation_worker.model.name)
    if model is None:
        name = task.spec.aggregation_worker.model.name
        problems.append(f"model {name} does not exist: apply a Model of that name")
        return References(tuple(problems))
    if model.spec.url is not None and not model.status.versions:
        problems.append(f"model {model.name} has a url, but its first version is not stored yet")
    newest = model.status.versions[-1] if model.status.versions else None
    stored = newest.format if newest else (model.spec.format or ModelFormat.SAFETENSORS).stored
    if stored is not ModelFormat.SAFETENSORS:
        problems.append(
            f"model {model.name} is a file of format {stored.value}, and a federated task trains arrays: use a Model of "
            "format safetensors or npz"
        )
        return References(tuple(problems))
    base = FinishedModel(name=model.name, version=newest.version, digest=newest.digest) if newest else None
    return References(tuple(problems), base)


def problems_of(job: IncrementalLearningJob, nodes: Iterable[str], library: Library) -> tuple[str, ...]:
    """The sentences that say what of a job's references is missing."""
    spec, problems = job.spec, []
    node = spec.node_name
    if node not in set(nodes):
        problems.append(f"node {node} has never joined: start `edgeai edge --node {node}` there, or change nodeName")
    for name in _datasets_of(job):
        dataset = library.datasets.get(name)
        if dataset is None:
            problems.append(f"dataset {name} does not exist: apply a Dataset of that name")
        elif dataset.spec.node_name != node:
            problems.append(f"dataset {name} is on {dataset.spec.node_name}, the job on {node}: change one of them")
    missing = [each for each in _models_of(job) if each not in library.models]
    problems += [f"model {each} does not exist: apply a Model of that name" for each in missing]
    if not missing and version_for(job, library.models) is None:
        problems.append(no_version(library.models[spec.initial_model.name]))
    return tuple(problems)


def _datasets_of(job: IncrementalLearningJob) -> tuple[str, ...]:
    asked = job.spec.deploy.dataset
    return (job.spec.dataset.name, *((asked.name,) if asked else ()))


def _models_of(job: IncrementalLearningJob) -> tuple[str, ...]:
    return tuple(dict.fromkeys((job.spec.initial_model.name, job.spec.output_model.name)))


def no_version(model: Model) -> str:
    if model.spec.url is not None:
        return f"model {model.name} has a url, but its first version is not stored yet"
    return f"model {model.name} has no version to begin with: give it a url, or train one first"


def version_for(job: IncrementalLearningJob, models: Mapping[str, Model]) -> ModelVersionRef | None:
    """The version that a job is to go on from: the newest of the output model, else of the initial one."""
    for name in reversed(_models_of(job)):
        versions = models[name].status.versions if name in models else ()
        if versions:
            newest = versions[-1]
            blob = BlobRef(newest.digest, newest.size_bytes)
            return ModelVersionRef(newest.version, blob, newest.format.value, newest.suffix, _is_own(job, versions))
    return None


def _is_own(job: IncrementalLearningJob, versions: tuple[ModelVersion, ...]) -> bool:
    """Whether the job made the newest version; one that somebody made the newest again was there before."""
    newest = versions[-1]
    origin = (newest.task_uid, newest.round, newest.digest)
    before = {(each.task_uid, each.round, each.digest) for each in versions[:-1]}
    return newest.task_uid == job.metadata.uid and origin not in before


def serving_of(job: IncrementalLearningJob, digest: str, models: Mapping[str, Model]) -> ServingModel | None:
    """The model that a node says it serves, with the newest number that the registry has for it."""
    if not digest:
        return None
    for name in reversed(_models_of(job)):
        for version in reversed(models[name].status.versions if name in models else ()):
            if version.digest == digest:
                return ServingModel(name=name, digest=digest, version=version.version, round=version.round)
    arriving = next((each.round for each in job.status.arriving if each.digest == digest), None)
    name = job.spec.output_model.name if arriving is not None else ""
    return ServingModel(name=name, digest=digest, round=arriving or 0)


def job_wanted(job: IncrementalLearningJob, models: Mapping[str, Model]) -> JobWanted | None:
    """What the node of a job is to know of it; None: there is no model to begin with."""
    model = version_for(job, models)
    if model is None:
        return None
    asked = job.metadata.annotations.get(TRIGGER_ANNOTATION, "")
    return JobWanted(
        task=level_of(job),
        task_name=job.metadata.name,
        task_uid=job.metadata.uid,
        generation=job.metadata.generation,
        spec=job.spec.model_dump_json(by_alias=True, exclude_none=True),
        workers=tuple(_stage_worker(job, name) for name in job.spec.worker_specs()),
        model=model,
        triggers=int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 0,
    )


def _stage_worker(job: IncrementalLearningJob, name: str) -> Assignment:
    spec = job.spec.worker_specs()[name]
    script = noted_blob(job.metadata, SCRIPT_ANNOTATION + name)
    return Assignment(
        task=level_of(job),
        task_name=job.metadata.name,
        task_uid=job.metadata.uid,
        generation=job.metadata.generation,
        worker=name,
        role=Role(name),
        boot_file=spec.script_boot_file,
        script=script,
        script_dir="" if script else spec.script_dir,
        framework=spec.framework_type,
        framework_version=spec.framework_version or "",
        parameters=job.spec.parameters(name),
        dataset=asked.name if name == Role.DEPLOY.value and (asked := job.spec.deploy.dataset) else "",
        needs=needs_of(spec),
    )


def blobs_wanted(jobs_there: Iterable[IncrementalLearningJob]) -> tuple[BlobWanted, ...]:
    """The models that the cloud node is to bring from the edges."""
    return tuple(
        BlobWanted(BlobRef(model.digest, model.size_bytes), job.spec.node_name, level_of(job))
        for job in sorted(jobs_there, key=lambda item: item.metadata.name)
        if jobs.is_placed(job)
        for model in job.status.arriving
    )


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs that there are. `before`: what their nodes were last told of them, by uid.

    A node removes the examples of a job that it is not told of any more: a job is never left out because a model is.
    """

    there: tuple[IncrementalLearningJob, ...] = ()
    before: Mapping[str, JobWanted] = field(default_factory=dict)

    def on(self, node: str, models: Mapping[str, Model]) -> tuple[JobWanted, ...]:
        placed = [job for job in self.there if jobs.is_placed(job) and job.spec.node_name == node]
        found = [
            job_wanted(job, models) or self.before.get(job.metadata.uid)
            for job in sorted(placed, key=lambda item: item.metadata.name)
        ]
        return tuple(each for each in found if each is not None)


_NO_JOBS = Jobs()


@dataclass(frozen=True, slots=True)
class OnNodes:
    """What services have on nodes: workers, and the models that they are to serve."""

    assignments: dict[str, list[Assignment]] = field(default_factory=dict)
    serving: dict[str, list[ServingWanted]] = field(default_factory=dict)


_NOTHING = OnNodes()


def desired_documents(
    tasks: Iterable[FederatedTask],
    datasets: Mapping[str, Dataset],
    models: Mapping[str, Model],
    nodes: Iterable[str],
    learning: Jobs = _NO_JOBS,
    *,
    services: OnNodes = _NOTHING,
) -> dict[str, Desired]:
    """One document per known node (the cloud included); nodes without work get an empty one."""
    assignments: dict[str, list[Assignment]] = {node: [] for node in {*nodes, CLOUD}}
    for task in sorted(tasks, key=lambda item: item.metadata.name):
        if not is_placed(task):
            continue
        assignments[CLOUD].append(_aggregation(task, models))
        for worker in task.spec.training_workers:
            assignments.setdefault(worker.node_name, []).append(_training(task, worker))
    for node, some in services.assignments.items():
        assignments.setdefault(node, []).extend(some)
    wanted: dict[str, list[DatasetWanted]] = {}
    for _, dataset in sorted(datasets.items()):
        spec = dataset.spec
        label, secret = spec.label_field or "", spec.secret or ""
        here = DatasetWanted(dataset.name, spec.url, spec.format.value, spec.digest or "", label, secret)
        wanted.setdefault(spec.node_name, []).append(here)
    for job in learning.there:
        assignments.setdefault(job.spec.node_name, [])
    blobs = blobs_wanted(learning.there)
    return {
        node: Desired(
            tuple(some),
            tuple(wanted.get(node, ())),
            learning.on(node, models),
            blobs if node == CLOUD else (),
            tuple(services.serving.get(node, ())),
        )
        for node, some in assignments.items()
    }


def membership_of(
    task: FederatedTask, absent: frozenset[str], observed: Mapping[str, WorkerObserved] | None = None
) -> Membership:
    """Who can be asked, as far as the coordinator knows: those on nodes that are absent cannot.

    `observed` are the task's workers as their nodes see them; who may speak for them is known from there.
    """
    failed = {
        row.name: row.reason or "the worker has ended"
        for row in task.status.workers
        if row.role == "training" and row.state in {"Failed", "Done"}
    }
    available = tuple(
        worker.name
        for worker in task.spec.training_workers
        if worker.node_name not in absent and worker.name not in failed
    )
    tokens = {name: found.token for name, found in sorted((observed or {}).items()) if found.token}
    return Membership(task.metadata.uid, available, failed, task.spec.paused, tokens)


def _aggregation(task: FederatedTask, models: Mapping[str, Model]) -> Assignment:
    spec, rules = task.spec, task.spec.rules()
    plan = RoundPlan(
        algorithm=spec.aggregation_worker.worker_spec.aggregation_algorithm.value,
        rounds=rules.rounds,
        min_node_number=rules.min_node_number,
        rounds_between_validations=rules.rounds_between_validations,
        round_deadline_s=rules.round_deadline_s,
        target_accuracy=rules.target_accuracy,
        members=tuple(Member(worker.name, worker.node_name) for worker in spec.training_workers),
        model=spec.aggregation_worker.model.name,
        base=_base(task, models),
    )
    return Assignment(
        task=level_of(task),
        task_name=task.metadata.name,
        task_uid=task.metadata.uid,
        generation=task.metadata.generation,
        worker=spec.aggregation_worker.name,
        role=Role.AGGREGATION,
        parameters=spec.parameters(),
        plan=plan,
        needs=needs_of(spec.aggregation_worker.worker_spec),
        finished=is_over(task),
    )


def _base(task: FederatedTask, models: Mapping[str, Model]) -> BlobRef | None:
    base = task.status.base
    model = models.get(base.name) if base else None
    if base is None or model is None:
        return None
    return next(
        (BlobRef(item.digest, item.size_bytes) for item in model.status.versions if item.version == base.version), None
    )


def _training(task: FederatedTask, worker: TrainingWorker) -> Assignment:
    spec = worker.worker_spec
    script = noted_blob(task.metadata, SCRIPT_ANNOTATION + worker.name)
    return Assignment(
        task=level_of(task),
        task_name=task.metadata.name,
        task_uid=task.metadata.uid,
        generation=task.metadata.generation,
        worker=worker.name,
        role=Role.TRAINING,
        boot_file=spec.train_script_boot_file,
        script=script,
        script_dir="" if script else spec.train_script_dir,
        framework=spec.framework_type,
        framework_version=spec.framework_version or "",
        parameters=task.spec.parameters(worker),
        dataset=spec.dataset.name,
        needs=needs_of(spec),
        finished=is_over(task),
    )


def needs_of(spec: WorkerSpec) -> Needs:
    return Needs(
        image=spec.image or "",
        cpus=cpus(spec.resources.cpu) if spec.resources.cpu is not None else 0.0,
        memory_bytes=memory_bytes(spec.resources.memory) if spec.resources.memory is not None else 0,
        disk_bytes=disk_bytes(spec.resources.disk) if spec.resources.disk is not None else 0,
        gpus=spec.resources.gpus,
        env={variable.name: variable.value for variable in spec.env},
        secrets={secret.name: secret.file for secret in spec.secrets},
        network=spec.network or "",
    )
