"""Documents as a cloud holds them, for the tests of this folder."""

from __future__ import annotations

from typing import Any

API = "edgeai.io/v1alpha1"
UID = "4bdfd21a14d2449287beb828ed258d77"
CREATED = "2030-01-31T12:00:00Z"
DIGEST = "ab" * 32


def condition(type: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": type, "status": status, "reason": reason, "message": message, "lastTransitionTime": CREATED}


def metadata(name: str) -> dict[str, Any]:
    return {"name": name, "uid": UID, "generation": 1, "creationTimestamp": CREATED}


def task(name: str = "digits", **status: Any) -> dict[str, Any]:
    """Two training workers, ten rounds."""
    workers = [
        {
            "name": f"work{number}",
            "nodeName": f"edge{number + 1}",
            "workerSpec": {
                "dataset": {"name": f"dataset{number}"},
                "trainScriptDir": "/srv/train",
                "trainScriptBootFile": "main.py",
                "frameworkType": "numpy",
            },
        }
        for number in range(2)
    ]
    aggregation = {"aggregationAlgorithm": "FedAvg", "parameters": [{"key": "rounds", "value": 10}]}
    return {
        "apiVersion": API,
        "kind": "FederatedTask",
        "metadata": metadata(name),
        "spec": {
            "aggregationWorker": {"name": "aggregation", "model": {"name": "cnn"}, "workerSpec": aggregation},
            "trainingWorkers": workers,
        },
        "status": status,
    }


def job(name: str = "drift", **status: Any) -> dict[str, Any]:
    """An incremental learning job on edge1."""
    worker = {"scriptDir": "/srv/job", "scriptBootFile": "main.py", "frameworkType": "numpy"}
    spec = {
        "nodeName": "edge1",
        "initialModel": {"name": "cnn"},
        "outputModel": {"name": "cnn"},
        "dataset": {"name": "dataset0"},
        "train": {"workerSpec": dict(worker)},
        "eval": {"workerSpec": dict(worker)},
        "deploy": {"workerSpec": dict(worker)},
    }
    return {
        "apiVersion": API,
        "kind": "IncrementalLearningJob",
        "metadata": metadata(name),
        "spec": spec,
        "status": status,
    }


def service(name: str = "digits", **status: Any) -> dict[str, Any]:
    """A joint inference service with a small model on edge1 and edge2, and a big one in the cloud."""
    worker = {"scriptDir": "/srv/joint", "scriptBootFile": "main.py", "frameworkType": "numpy"}
    edges = [
        {
            "name": f"little{number}",
            "nodeName": f"edge{number}",
            "model": {"name": "small"},
            "workerSpec": dict(worker),
            "hardExampleMining": {"algorithm": "Margin", "parameters": [{"key": "threshold", "value": 0.3}]},
        }
        for number in (1, 2)
    ]
    cloud = {"name": "big", "model": {"name": "cnn"}, "workerSpec": dict(worker), "replicas": {"min": 1, "max": 4}}
    policy = {"deadlineSeconds": 0.5, "maxOffloadFraction": 0.3}
    return {
        "apiVersion": API,
        "kind": "JointInferenceService",
        "metadata": metadata(name),
        "spec": {"edgeWorkers": edges, "cloudWorker": cloud, "policy": policy},
        "status": status,
    }


def stage_row(number: int, stage: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"round": number, "stage": stage, "state": state, "at": CREATED, **fields}


def closed_round(number: int, accuracy: float | None = None, **fields: Any) -> dict[str, Any]:
    metrics = {} if accuracy is None else {"accuracy": accuracy}
    row = {"round": number, "updates": 2, "metrics": metrics, "bytesUp": 58680, "bytesDown": 1234567, "seconds": 0.5}
    return {**row, **fields}


def worker(name: str, node: str, state: str, role: str = "training", **fields: Any) -> dict[str, Any]:
    return {"name": name, "node": node, "role": role, "state": state, **fields}


def model(name: str = "cnn", versions: int = 2) -> dict[str, Any]:
    made = [
        {
            "version": number,
            "digest": f"{number:064x}",
            "sizeBytes": 2048,
            "task": "digits",
            "taskUid": UID,
            "round": 10,
            "updates": 3,
            "createdAt": CREATED,
            "metrics": {"accuracy": 0.9 + number / 100},
        }
        for number in range(1, versions + 1)
    ]
    return {"apiVersion": API, "kind": "Model", "metadata": metadata(name), "spec": {}, "status": {"versions": made}}


def dataset(name: str = "dataset0", **status: Any) -> dict[str, Any]:
    spec = {"nodeName": "edge1", "url": "/data/digits.npz", "format": "npz"}
    return {"apiVersion": API, "kind": "Dataset", "metadata": metadata(name), "spec": spec, "status": status}


def node(name: str = "edge1", ready: str = "True") -> dict[str, Any]:
    status = {"conditions": [condition("Ready", ready)], "versions": {"broker": "mosquitto", "launcher": "process"}}
    return {"apiVersion": API, "kind": "EdgeNode", "metadata": metadata(name), "spec": {}, "status": status}
