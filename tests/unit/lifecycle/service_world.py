"""A joint inference service and what its nodes say of it, for the tests of this folder."""

from __future__ import annotations

from typing import Any

from edgeai.events.catalogue import InferenceObserved, Inferences, Role, WorkerObserved
from edgeai.lifecycle.service import Seen, State, WorkersSeen, step
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.incremental import ServingModel
from edgeai.resources.joint import JointInferenceService

NOW, LATER, UID = "2030-01-31T12:00:00Z", "2030-01-31T12:00:05Z", "0a1b2c3d" * 4
LEVEL = "digits-0a1b2c3d"
SMALL, BIG = "5" * 64, "b" * 64


def resource(**changes: Any) -> JointInferenceService:
    """`changes`: `uid`, `generation`, `deleted`, `edges` (how many), `replicas`, `model` (False: no worker has one)."""
    metadata: dict[str, Any] = {
        "name": "digits",
        "uid": changes.get("uid", UID),
        "generation": changes.get("generation", 1),
    }
    if changes.get("deleted"):
        metadata["deletionTimestamp"] = NOW
    worker: dict[str, Any] = {
        "workerSpec": {"scriptDir": "/srv/joint", "scriptBootFile": "main.py", "frameworkType": "numpy"}
    }
    model = changes.get("model", True)
    edges = [
        {"name": f"little{number}", "nodeName": f"edge{number}", **worker}
        | ({"model": {"name": "small"}} if model else {})
        for number in range(changes.get("edges", 2))
    ]
    cloud = {"name": "big", "replicas": changes.get("replicas", {"min": 1, "max": 4}), **worker}
    spec = {"edgeWorkers": edges, "cloudWorker": cloud | ({"model": {"name": "big"}} if model else {})}
    return JointInferenceService.from_document({"kind": "JointInferenceService", "metadata": metadata, "spec": spec})


def seen(*problems: str, **changes: Any) -> Seen:
    return Seen(resource(**changes), problems, NOW)


def row(name: str, state: str = "Running", reason: str = "") -> WorkerObserved:
    role = Role.CLOUD if name.startswith("big") else Role.EDGE
    return WorkerObserved(LEVEL, UID, name, role, 1, state, reason)


def told(name: str, digest: str | None = None, **changes: Any) -> InferenceObserved:
    """What a worker infers; `models`, `breaker` and `refused_models` are what they are, the others are counters."""
    own = {key: changes.pop(key) for key in ("models", "breaker", "refused_models") if key in changes}
    found = (BIG if name.startswith("big") else SMALL) if digest is None else digest
    return InferenceObserved(LEVEL, UID, name, found, Inferences(**changes), **own)


def nodes(*workers: WorkerObserved, **changes: Any) -> WorkersSeen:
    """What all nodes say: these workers run, and those that are `Running` infer, unless `inference` says otherwise."""
    inference = changes.get("inference")
    if inference is None:
        inference = [told(worker.worker) for worker in workers if worker.state == "Running"]
    serving = {each.worker: ServingModel(digest=each.digest, version=1) for each in inference if each.digest}
    return WorkersSeen(
        {worker.worker: worker for worker in workers},
        {each.worker: each for each in inference},
        serving,
        frozenset(changes.get("silent", ())),
        changes.get("now", NOW),
    )


ALL = (row("little0"), row("little1"), row("big-0"))
RUNNING = (seen(), nodes(*ALL))


def after(*events: Any) -> tuple[JointInferenceService, list[Any]]:
    state: State = None
    commands: list[Any] = []
    for event in events:
        state, found = step(state, event)
        commands += found
    assert state is not None
    # Whatever it was told, the store has to read it again.
    assert JointInferenceService.from_document(state.to_document()) == state
    return state, commands


def service(*events: Any) -> JointInferenceService:
    return after(*events)[0]


def condition(found: JointInferenceService, kind: ConditionType) -> tuple[str, str, str]:
    it = find_condition(found.status.conditions, kind)
    return (it.status, it.reason, it.message) if it else ("", "", "")
