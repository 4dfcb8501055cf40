"""What joint inference services have on nodes, as it follows from them and their models. Pure, as all of `placement`.

One worker on each edge, so many replicas on the cloud node as are wanted. The version that a worker serves is no part of its
assignment: a new one restarts nobody. What does not concern a worker is left out of what it is told for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeai.coordinator.placement import Library, OnNodes, level_of, needs_of, no_version, noted_blob
from edgeai.events.catalogue import Assignment, BlobRef, InferenceWork, ModelVersionRef, Role, ServingWanted
from edgeai.lifecycle import service as services
from edgeai.resources.base import SCRIPT_ANNOTATION
from edgeai.resources.incremental import IncrementalLearningJob, ServingModel
from edgeai.resources.joint import (
    Batch,
    EdgeWorker,
    JointInferenceService,
    JointInferenceServiceSpec,
    Policy,
    Replicas,
)
from edgeai.resources.model import Model


def problems_of(service: JointInferenceService, nodes: Iterable[str], library: Library) -> tuple[str, ...]:
    """The sentences that say what of a service's references is missing."""
    known, problems = set(nodes), []
    for worker in service.spec.edge_workers:
        if worker.node_name not in known:
            problems.append(
                f"node {worker.node_name} of worker {worker.name} has never joined: start `edgeai edge --node "
                f"{worker.node_name}` there, or change nodeName"
            )
        if worker.feeds is not None:
            problems += _problems_of_feeding(worker, library.jobs.get(worker.feeds.job))
    for name in dict.fromkeys(model for model in _models_served(service).values() if model is not None):
        model = library.models.get(name)
        if model is None:
            problems.append(f"model {name} does not exist: apply a Model of that name")
        elif not model.status.versions:
            problems.append(no_version(model))
    return tuple(problems)


def _problems_of_feeding(worker: EdgeWorker, job: IncrementalLearningJob | None) -> list[str]:
    assert worker.feeds is not None
    name = worker.feeds.job
    if job is None:
        return [
            f"job {name} that worker {worker.name} feeds does not exist: apply an IncrementalLearningJob of that name"
        ]
    if job.spec.node_name != worker.node_name:
        there = job.spec.node_name
        return [
            f"job {name} is on {there}, worker {worker.name} that feeds it on {worker.node_name}: change one of them"
        ]
    return []


def _models_served(service: JointInferenceService) -> dict[str, str | None]:
    """By name of the worker, as its spec has it: the name of its Model, None if it needs none."""
    cloud = service.spec.cloud_worker
    named = {**{worker.name: worker.model for worker in service.spec.edge_workers}, cloud.name: cloud.model}
    return {worker: model.name if model is not None else None for worker, model in named.items()}


def serving_of(
    service: JointInferenceService, worker: str, digest: str, models: Mapping[str, Model]
) -> ServingModel | None:
    """The model that a worker says it serves, with the newest number that the registry has for it."""
    if not digest:
        return None
    served, cloud = _models_served(service), service.spec.cloud_worker.name
    model = models.get(served[worker if worker in served else cloud] or "")
    found = (version for version in reversed(model.status.versions if model else ()) if version.digest == digest)
    newest = next(found, None)
    version, round_ = (newest.version, newest.round) if newest else (0, 0)
    return ServingModel(name=model.name if model else "", digest=digest, version=version, round=round_)


def placed_services(there: Iterable[JointInferenceService], models: Mapping[str, Model]) -> OnNodes:
    found = OnNodes()
    for service in sorted(there, key=lambda item: item.metadata.name):
        if not services.is_placed(service):
            continue
        for worker, (node, role) in services.places_of(service).items():
            found.assignments.setdefault(node, []).append(_service_worker(service, worker, role))
            if (wanted := _serving_wanted(service, worker, role, models)) is not None:
                found.serving.setdefault(node, []).append(wanted)
    return found


def _service_worker(service: JointInferenceService, worker: str, role: Role) -> Assignment:
    packed = worker if role is Role.EDGE else service.spec.cloud_worker.name
    spec = service.spec.worker_specs()[packed]
    script = noted_blob(service.metadata, SCRIPT_ANNOTATION + packed)
    part = _part_of_edge(service.spec, worker) if role is Role.EDGE else _part_of_cloud(service.spec)
    return Assignment(
        task=level_of(service),
        task_name=service.metadata.name,
        task_uid=service.metadata.uid,
        generation=service.metadata.generation,
        worker=worker,
        role=role,
        boot_file=spec.script_boot_file,
        script=script,
        script_dir="" if script else spec.script_dir,
        framework=spec.framework_type,
        framework_version=spec.framework_version or "",
        parameters=service.spec.parameters(packed),
        needs=needs_of(spec),
        inference=InferenceWork(
            part.model_dump_json(by_alias=True, exclude_none=True),
            has_model=_models_served(service)[packed] is not None,
        ),
    )


def _part_of_edge(spec: JointInferenceServiceSpec, worker: str) -> JointInferenceServiceSpec:
    """What concerns one edge worker. The rest is left at defaults, so that a change of it restarts no worker."""
    own = next(each for each in spec.edge_workers if each.name == worker)
    cloud = spec.cloud_worker.model_copy(
        update={"worker_spec": own.worker_spec, "replicas": Replicas(), "batch": Batch()}
    )
    return spec.model_copy(update={"edge_workers": (own,), "cloud_worker": cloud})


def _part_of_cloud(spec: JointInferenceServiceSpec) -> JointInferenceServiceSpec:
    """What concerns a replica: neither the edges (one stands for all: no service is without) nor how many there are."""
    first, cloud = spec.edge_workers[0], spec.cloud_worker
    edge = EdgeWorker(name=first.name, node_name=first.node_name, worker_spec=cloud.worker_spec)
    return spec.model_copy(
        update={
            "edge_workers": (edge,),
            "cloud_worker": cloud.model_copy(update={"replicas": Replicas()}),
            "policy": Policy(deadline_seconds=spec.policy.deadline_seconds),
        }
    )


def _serving_wanted(
    service: JointInferenceService, worker: str, role: Role, models: Mapping[str, Model]
) -> ServingWanted | None:
    """None: it needs no model, or the model has no version any more; then it goes on with what it serves."""
    name = _models_served(service)[worker if role is Role.EDGE else service.spec.cloud_worker.name]
    versions = models[name].status.versions if name is not None and name in models else ()
    if name is None or not versions:
        return None
    newest = versions[-1]
    blob = BlobRef(newest.digest, newest.size_bytes)
    model = ModelVersionRef(newest.version, blob, newest.format.value, newest.suffix)
    return ServingWanted(level_of(service), service.metadata.uid, worker, name, model)
