"""The aggregation worker is a NATS service, so that `nats micro` tools find it."""

import json

import pytest

from edgeai.cli.playground import Playground
from edgeai.events.catalogue import RoundStarted
from edgeai.resources.federated import FederatedTask
from edgeai.settings import shipped

TASK = """
apiVersion: edgeai.io/v1alpha1
kind: Model
metadata: {name: served}
---
apiVersion: edgeai.io/v1alpha1
kind: FederatedTask
metadata: {name: served}
spec:
  aggregationWorker:
    name: aggregation-worker
    model: {name: served}
    workerSpec: {aggregationAlgorithm: FedAvg, parameters: [{key: rounds, value: 500}]}
  trainingWorkers:
    - name: work0
      nodeName: edge1
      workerSpec:
        dataset: {name: dataset0}
        trainScriptDir: %s
        trainScriptBootFile: main.py
        frameworkType: numpy
"""


@pytest.mark.timeout(120)
async def test_the_aggregation_worker_answers_as_a_service_while_its_task_runs(tmp_path):
    scripts = shipped("workers/federated-numpy")
    (tmp_path / "train").symlink_to(scripts)
    manifest = tmp_path / "task.yaml"
    manifest.write_text(TASK % "./train")
    async with Playground(tmp_path / "world", edges=1).running() as cloud:
        await cloud.apply(manifest)
        task = await cloud.get("FederatedTask", "served")
        assert isinstance(task, FederatedTask)
        async for line in cloud.history(task, follow=True):
            if isinstance(line.event, RoundStarted):
                break
        name = f"edgeai-served-{task.metadata.uid[:8]}"
        info = json.loads((await cloud.bus.connection.request(f"$SRV.INFO.{name}", b"", timeout=5)).data)
        [endpoint] = info["endpoints"]
        status = json.loads((await cloud.bus.connection.request(endpoint["subject"], b"", timeout=5)).data)

    assert info["name"] == name
    assert endpoint["name"] == "status"
    assert status["task"] == "served"
    assert status["joined"] == ["work0"]
