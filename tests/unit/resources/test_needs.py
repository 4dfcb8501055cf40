"""What a worker may ask of its machine, and how a wrong quantity or name is refused."""

from __future__ import annotations

from typing import Any

import pytest
from resource_documents import task_document

from edgeai.errors import ManifestError
from edgeai.resources.federated import FederatedTask
from edgeai.resources.needs import cpus, memory_bytes


@pytest.mark.parametrize(("value", "found"), [(2, 2.0), (0.5, 0.5), ("0.25", 0.25), ("500m", 0.5), ("1", 1.0)])
def test_processors_are_a_number_or_thousandths(value: object, found: float) -> None:
    assert cpus(value) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [("512Mi", 512 * 1024**2), ("1.5Gi", 1536 * 1024**2), ("100M", 10**8), (2**30, 2**30), ("1073741824", 2**30)],
)
def test_memory_is_bytes_with_a_unit(value: object, found: int) -> None:
    assert memory_bytes(value) == found


@pytest.mark.parametrize(
    ("worker", "what"),
    [
        ({"image": "UPPER case"}, "image: 'UPPER case' is not an image"),
        ({"image": "a@sha256:12"}, "image: 'a@sha256:12' is not an image"),
        ({"image": ""}, "image: '' is not an image"),
        ({"resources": {"cpu": "half"}}, "resources.cpu: "),
        ({"resources": {"cpu": 0}}, "resources.cpu: "),
        ({"resources": {"cpu": True}}, "resources.cpu: "),
        ({"resources": {"memory": "12"}}, "resources.memory: "),
        ({"resources": {"memory": "1 GB"}}, "resources.memory: "),
        ({"resources": {"memory": 1.5e9}}, "resources.memory: "),
        ({"resources": {"gpus": -1}}, "resources.gpus: "),
        ({"resources": {"disk": "1 byte"}}, 'resources.disk: disk is a size of at least "16Mi"'),
        ({"resources": {"disc": "1Gi"}}, "resources.disc: unknown field"),
        ({"env": [{"name": "EDGEAI_BUS", "value": "x"}]}, "env[0].name: EDGEAI_BUS: names that start with EDGEAI_"),
        ({"env": [{"name": "A=B", "value": "x"}]}, "env[0].name: 'A=B' is not a name of a variable"),
        ({"env": [{"name": "A", "value": 1}]}, "env[0].value: "),
        ({"env": [{"name": "A", "value": ""}, {"name": "A", "value": ""}]}, "env[1].name: 'A' is given twice"),
        ({"secrets": [{"name": "key", "file": "../key"}]}, "secrets[0].file: '../key' is not a file inside"),
        ({"secrets": [{"name": "key", "file": "/etc/shadow"}]}, "secrets[0].file: "),
        ({"secrets": [{"name": "a/b", "file": "key"}]}, "secrets[0].name: a name has"),
        ({"network": "container:other"}, "network: string should match pattern"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_field(worker: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        FederatedTask.from_document(task_document(worker=worker))
    assert str(refusal.value).startswith("spec.trainingWorkers[0].workerSpec." + what)


def test_what_is_asked_comes_back_as_it_was_written() -> None:
    asked = {
        "image": "registry.example.org:5000/team/worker:1.0@sha256:" + "0" * 64,
        "resources": {"cpu": "500m", "memory": "512Mi", "disk": "2Gi", "gpus": 1},
        "env": [{"name": "COLOUR", "value": "blue"}],
        "secrets": [{"name": "key", "file": "team/key.pem"}],
        "network": "lab_net",
    }
    document = FederatedTask.from_document(task_document(worker=asked)).to_document()
    found = document["spec"]["trainingWorkers"][0]["workerSpec"]
    assert {name: found[name] for name in asked} == asked
