"""Jobs, and what their node says of them, for the tests of this folder."""

from __future__ import annotations

from typing import Any

from coordinator_world import NOW, UID, model

from edgeai.events.catalogue import (
    BlobRef,
    ExampleCounts,
    JobObserved,
    ModelDeployed,
    ModelFile,
    Role,
    StageChanged,
    WorkerObserved,
)
from edgeai.resources.dataset import Dataset
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.model import Model, ModelFormat, ModelVersion

NAME = "drift"
LEVEL = f"{NAME}-{UID[:8]}"
SNAPSHOT = "5" * 64
FIRST = f"{1:064x}"
"""Digest of version 1 of the model."""


def job(name: str = NAME, uid: str = UID, **changes: Any) -> IncrementalLearningJob:
    """`changes`: `paused`, `deleted`, `annotations`, `generation`, `status`, `output`, `node`, `stream`."""
    metadata: dict[str, Any] = {"name": name, "uid": uid, "generation": changes.get("generation", 1)}
    metadata["annotations"] = changes.get("annotations", {})
    if changes.get("deleted"):
        metadata["deletionTimestamp"] = NOW
    worker = {"scriptDir": "/srv/job", "scriptBootFile": "main.py", "frameworkType": "numpy"}
    deploy: dict[str, Any] = {"workerSpec": worker | {"parameters": [{"key": "rate", "value": 5}]}}
    if "stream" in changes:
        deploy["dataset"] = {"name": changes["stream"]}
    return IncrementalLearningJob.from_document(
        {
            "kind": "IncrementalLearningJob",
            "metadata": metadata,
            "spec": {
                "nodeName": changes.get("node", "edge0"),
                "initialModel": {"name": "cnn"},
                "outputModel": {"name": changes.get("output", "cnn")},
                "dataset": {"name": "dataset0"},
                "train": {"workerSpec": worker | {"resources": {"cpu": 2}}},
                "eval": {"workerSpec": worker},
                "deploy": deploy,
                "paused": changes.get("paused", False),
            },
            "status": changes.get("status", {}),
        }
    )


def version(number: int, **changes: Any) -> ModelVersion:
    found = ModelVersion(version=number, digest=f"{number:064x}", size_bytes=10, created_at=NOW)
    return found.model_copy(update=changes)


def models(*versions: ModelVersion, name: str = "cnn", **spec: Any) -> dict[str, Model]:
    found = model(**spec)
    metadata = found.metadata.model_copy(update={"name": name})
    status = found.status.model_copy(update={"versions": versions})
    return {name: found.model_copy(update={"metadata": metadata, "status": status})}


def keras(number: int) -> ModelVersion:
    return version(number, format=ModelFormat.KERAS)


def dataset(name: str = "dataset0", node: str = "edge0") -> Dataset:
    spec = {"nodeName": node, "url": f"/data/{name}.npz", "format": "npz"}
    return Dataset.from_document({"kind": "Dataset", "metadata": {"name": name}, "spec": spec})


def worker(name: str, state: str = "Running", reason: str = "", uid: str = UID) -> WorkerObserved:
    return WorkerObserved(LEVEL, uid, name, Role(name), 1, state, reason)


def observed(stage: str = "Train", state: str = "Waiting", **changes: Any) -> JobObserved:
    found: dict[str, Any] = {"counts": ExampleCounts(80, 20, 80, 3, 500, 40, 0.08), "serving": FIRST, "round": 1}
    return JobObserved(LEVEL, UID, 1, stage, state, **(found | changes))


def stage(number: int = 1, name: str = "Train", state: str = "Running", **changes: Any) -> StageChanged:
    return StageChanged(UID, number, name, state, **changes)


def deployed(number: int, digest: str | None = None, **changes: Any) -> ModelDeployed:
    blob = BlobRef(digest or f"{100 + number:064x}", 20)
    found: dict[str, Any] = {"snapshot": SNAPSHOT, "samples": 80, "metrics": {"accuracy": 0.9}}
    return ModelDeployed(UID, number, ModelFile(f"{blob.digest}.keras", blob, "keras"), **(found | changes))
