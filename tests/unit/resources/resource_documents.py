"""Valid documents that the tests of this folder change in one place, and strategies for resources of every kind."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from edgeai.resources.base import Metadata, Resource
from edgeai.resources.conditions import Condition, ConditionType
from edgeai.resources.dataset import Column, Dataset, DatasetSpec, DatasetStatus
from edgeai.resources.federated import (
    FederatedTask,
    FederatedTaskSpec,
    FederatedTaskStatus,
    FinishedModel,
    RoundRecord,
    TaskPhase,
    WorkerStatus,
)
from edgeai.resources.model import Model, ModelSpec, ModelStatus, ModelVersion
from edgeai.resources.node import EdgeNode, EdgeNodeStatus

NOW, LATER = "2030-01-31T12:00:00Z", "2030-01-31T12:00:05Z"


def task_document(
    *parameters: dict[str, Any], worker: dict[str, Any] | None = None, workers: int = 3, **spec: Any
) -> dict[str, Any]:
    """A task; `parameters` are those of the task, `worker` changes the worker spec of the first training worker."""
    training = [
        {
            "name": f"work{number}",
            "nodeName": f"edge{number + 1}",
            "workerSpec": {
                "dataset": {"name": f"dataset{number}"},
                "trainScriptDir": "./train",
                "trainScriptBootFile": "main.py",
                "frameworkType": "tensorflow",
                **((worker or {}) if number == 0 else {}),
            },
        }
        for number in range(workers)
    ]
    aggregation = {"aggregationAlgorithm": "FedAvg", "parameters": list(parameters)}
    return {
        "apiVersion": "edgeai.io/v1alpha1",
        "kind": "FederatedTask",
        "metadata": {"name": "digits"},
        "spec": {
            "aggregationWorker": {"name": "aggregation", "model": {"name": "cnn"}, "workerSpec": aggregation},
            "trainingWorkers": training,
            **spec,
        },
    }


def dataset_document(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "edgeai.io/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": "dataset0"},
        "spec": {"nodeName": "edge1", "url": "/data/digits.npz", "format": "npz", **spec},
    }


def model_document(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "edgeai.io/v1alpha1", "kind": "Model", "metadata": {"name": "cnn"}, "spec": spec}


def made(kind: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """As `st.builds`, which would take the camelCase names in the signature for fields that are missing."""
    return st.fixed_dictionaries(fields).map(lambda values: kind(**values))


names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?", fullmatch=True)
counts = st.integers(0, 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
instants = st.sampled_from([NOW, LATER])
words = st.text(max_size=8)
metrics = st.dictionaries(words, numbers, max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
metadatas = made(
    Metadata,
    name=names,
    uid=words,
    generation=counts,
    creation_timestamp=st.none() | instants,
    deletion_timestamp=st.none() | instants,
    annotations=st.dictionaries(words, words, max_size=2),
    labels=st.dictionaries(words, words, max_size=2),
)
conditions = made(
    Condition,
    type=st.sampled_from(ConditionType),
    status=st.sampled_from(["True", "False", "Unknown"]),
    reason=words,
    message=words,
    last_transition_time=instants,
    observed_generation=counts,
)
_status = {"conditions": st.lists(conditions, max_size=2).map(tuple), "observed_generation": counts}

datasets = made(
    Dataset,
    metadata=metadatas,
    spec=made(
        DatasetSpec,
        node_name=names,
        url=st.sampled_from(["/data/x.csv", "file:///a%20b"]),
        format=st.sampled_from(["csv", "npz"]),
    ),
    status=made(
        DatasetStatus,
        sample_count=st.none() | counts,
        size_bytes=st.none() | counts,
        digest=st.none() | digests,
        columns=st.lists(
            made(Column, name=words, dtype=words, shape=st.lists(counts, max_size=2).map(tuple)), max_size=2
        ).map(tuple),
        **_status,
    ),
)
_versions = made(
    ModelVersion,
    version=st.integers(1, 2**63 - 1),
    digest=digests,
    size_bytes=counts,
    task=words,
    task_uid=words,
    round=counts,
    updates=counts,
    created_at=instants,
    metrics=metrics,
)
models = made(
    Model,
    metadata=metadatas,
    spec=made(ModelSpec, url=st.none() | st.just("./a.npz"), format=st.sampled_from(["npz", "safetensors"])),
    status=made(ModelStatus, versions=st.lists(_versions, max_size=2).map(tuple), **_status),
)
nodes = made(
    EdgeNode,
    metadata=metadatas,
    status=made(
        EdgeNodeStatus,
        last_seen=st.none() | instants,
        versions=st.dictionaries(words, words, max_size=2),
        address=words,
        **_status,
    ),
)


@st.composite
def _task_specs(draw: st.DrawFn) -> FederatedTaskSpec:
    free = st.lists(
        st.tuples(words.map(lambda word: "my " + word), json_values), max_size=3, unique_by=lambda pair: pair[0]
    )
    task = [{"key": key, "value": value} for key, value in draw(free)]
    own = [{"key": key, "value": value} for key, value in draw(free)]
    rounds = {"key": "rounds", "value": draw(st.integers(1, 1000))}
    version = draw(st.sampled_from([None, ">=2.15", "~=1.0,!=1.2.*"]))
    worker = {"parameters": own} | ({} if version is None else {"frameworkVersion": version})
    document = task_document(*task, rounds, worker=worker, workers=draw(st.integers(1, 3)), paused=draw(st.booleans()))
    return FederatedTaskSpec.model_validate(document["spec"])


_rounds = made(
    RoundRecord,
    round=counts,
    updates=counts,
    accepted=st.lists(names, max_size=2).map(tuple),
    refused=st.dictionaries(names, words, max_size=2),
    metrics=metrics,
    bytes_up=counts,
    bytes_down=counts,
    seconds=numbers,
    model_digest=st.none() | digests,
)
_workers = made(WorkerStatus, name=names, node=names, role=words, state=words, reason=words, restarts=counts)
tasks = made(
    FederatedTask,
    metadata=metadatas,
    spec=_task_specs(),
    status=made(
        FederatedTaskStatus,
        phase=st.sampled_from(TaskPhase),
        round=counts,
        rounds=st.lists(_rounds, max_size=2).map(tuple),
        workers=st.lists(_workers, max_size=2).map(tuple),
        metrics=metrics,
        model=st.none() | made(FinishedModel, name=names, version=counts, digest=digests),
        **_status,
    ),
)
resources: st.SearchStrategy[Resource] = st.one_of(datasets, models, nodes, tasks)
