"""What every node is to run, as it follows from the tasks and datasets. Pure: no state of its own, no bus.

Scripts and base models are named by digest; `apply` has put them into the object store and noted them in annotations:
`script.edgeai.io/<worker>` and `source.edgeai.io/digest` hold `<sha256>:<size in bytes>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from edgeai.events.address import CLOUD, task_level
from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    DatasetWanted,
    Desired,
    Fact,
    Member,
    Membership,
    Needs,
    Role,
    RoundPlan,
    WorkerEnded,
    WorkerFailed,
    WorkerObserved,
    WorkerStarted,
)
from edgeai.lifecycle.task import References, is_over, is_placed
from edgeai.resources.base import SCRIPT_ANNOTATION, Metadata
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask, FinishedModel, TrainingWorker
from edgeai.resources.model import Model
from edgeai.resources.needs import WorkerSpec, cpus, disk_bytes, memory_bytes
from edgeai.store.files import is_digest

OPERATOR = "operator"
"""Who publishes facts by hand: `<node>/operator` (see client)."""


def noted_blob(metadata: Metadata, annotation: str) -> BlobRef | None:
    """The blob that `apply` noted, if any."""
    digest, _, size = metadata.annotations.get(annotation, "").partition(":")
    return BlobRef(digest, int(size)) if is_digest(digest) and size.isdecimal() and len(size) < 19 else None


def level_of(task: FederatedTask) -> str:
    return task_level(task.metadata.name, task.metadata.uid)


def is_source(source: str, node: str, tasks: Iterable[FederatedTask]) -> bool:
    """Whether facts from this node may be numbered under `source`: the node, an operator there, or a worker of a task."""
    if source in {node, f"{node}/{OPERATOR}"}:
        return True
    return any(
        source == f"{node}/{level_of(task)}/{worker}"
        for task in tasks
        for worker, place in _places(task)
        if place == node
    )


def may_say(task: FederatedTask, fact: Fact, source: str, worker: str) -> bool:
    """A worker's start and end are its node's to report, rounds the aggregation worker's; a cloud operator's as well."""
    if isinstance(fact, WorkerStarted | WorkerEnded | WorkerFailed):
        return (worker, source.removesuffix(f"/{OPERATOR}")) in _places(task)
    return source in {f"{CLOUD}/{level_of(task)}/{task.spec.aggregation_worker.name}", f"{CLOUD}/{OPERATOR}"}


def _places(task: FederatedTask) -> Iterator[tuple[str, str]]:
    """The workers of a task and their nodes."""
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
    base = FinishedModel(name=model.name, version=newest.version, digest=newest.digest) if newest else None
    return References(tuple(problems), base)


def desired_documents(
    tasks: Iterable[FederatedTask],
    datasets: Mapping[str, Dataset],
    models: Mapping[str, Model],
    nodes: Iterable[str],
) -> dict[str, Desired]:
    """One document per known node (the cloud included); nodes without work get an empty one."""
    assignments: dict[str, list[Assignment]] = {node: [] for node in {*nodes, CLOUD}}
    for task in sorted(tasks, key=lambda item: item.metadata.name):
        if not is_placed(task):
            continue
        assignments[CLOUD].append(_aggregation(task, models))
        for worker in task.spec.training_workers:
            assignments.setdefault(worker.node_name, []).append(_training(task, worker))
    wanted: dict[str, list[DatasetWanted]] = {}
    for _, dataset in sorted(datasets.items()):
        spec = dataset.spec
        here = DatasetWanted(dataset.name, spec.url, spec.format.value, spec.digest or "")
        wanted.setdefault(spec.node_name, []).append(here)
    return {node: Desired(tuple(some), tuple(wanted.get(node, ()))) for node, some in assignments.items()}


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
        needs=_needs(spec.aggregation_worker.worker_spec),
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
        needs=_needs(spec),
        finished=is_over(task),
    )


def _needs(spec: WorkerSpec) -> Needs:
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
