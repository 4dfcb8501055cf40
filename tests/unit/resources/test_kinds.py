from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from pydantic import ValidationError
from resource_documents import NOW, dataset_document, model_document, resources, task_document

from edgeai.errors import ManifestError
from edgeai.resources.base import Metadata, Resource, instant
from edgeai.resources.conditions import ConditionType, set_condition
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask, TaskPhase
from edgeai.resources.kinds import from_document
from edgeai.resources.model import Model
from edgeai.resources.node import EdgeNode, EdgeNodeStatus


@settings(deadline=None)
@given(resources)
def test_a_document_leads_back_to_the_resource(resource: Resource) -> None:
    assert from_document(json.loads(json.dumps(resource.to_document(), allow_nan=False))) == resource


def test_a_document_uses_the_names_of_the_yaml_form() -> None:
    document = FederatedTask.from_document(task_document()).to_document()
    assert document["apiVersion"] == "edgeai.io/v1alpha1"
    assert document["spec"]["trainingWorkers"][0]["workerSpec"]["trainScriptBootFile"] == "main.py"
    assert document["status"]["observedGeneration"] == 0


def test_a_new_task_is_pending_and_not_paused() -> None:
    task = FederatedTask.from_document(task_document())
    assert (task.status.phase, task.spec.paused) == (TaskPhase.PENDING, False)


def test_resources_cannot_be_changed_in_place() -> None:
    task = FederatedTask.from_document(task_document())
    with pytest.raises(ValidationError, match="frozen"):
        task.spec.paused = True  # type: ignore[misc]


def test_an_instant_is_utc_in_whole_seconds() -> None:
    zone = timezone(timedelta(hours=2))
    assert (
        instant(datetime(2030, 1, 31, 14, 0, 0, 999, tzinfo=zone))
        == instant(datetime(2030, 1, 31, 12, tzinfo=UTC))
        == NOW
    )


def test_a_node_is_ready_when_its_condition_says_so() -> None:
    status = EdgeNodeStatus(conditions=set_condition((), ConditionType.READY, "True", "Joined", "", now=NOW))
    node = EdgeNode(metadata=Metadata(name="edge1"), status=status)
    assert node.status.ready
    assert not EdgeNodeStatus().ready


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"kind": "Pod"}, "kind: 'Pod' is not a known kind; there is Dataset, EdgeNode, FederatedTask, Incremental"),
        ({"kind": None}, "kind: this field is required"),
        ({"kind": ["Model"]}, "kind: a list is not a known kind"),
        ({"apiVersion": "v1"}, "apiVersion: must be edgeai.io/v1alpha1, not 'v1'"),
        ({"apiVersion": None}, "apiVersion: must be edgeai.io/v1alpha1"),
        ({"metadata": {"name": "A"}}, "metadata.name: a name has 1 to 50 characters"),
        ({"metadata": {"name": 7}}, "metadata.name: must be text"),
        ({"metadata": {}}, "metadata.name: this field is required"),
        ({"metadata": {"name": "a", "namespace": "b"}}, "metadata.namespace: unknown field"),
        ({"metadata": []}, "metadata: must be a map of fields, not a list"),
        ({"extra": 1}, "extra: unknown field"),
        ({"api_version": "edgeai.io/v1alpha1"}, "api_version: unknown field"),
    ],
)
def test_what_every_kind_has_is_checked(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        from_document(model_document() | change)
    assert str(refusal.value).startswith(what)


@pytest.mark.parametrize(
    ("worker", "what"),
    [
        ({"dataset": None}, "dataset: must be a map of fields, not null"),
        ({"dataset": {"name": "UP"}}, "dataset.name: a name has"),
        ({"trainScriptDir": ""}, "trainScriptDir: string should have at least 1 character"),
        ({"trainScriptDir": "a\0b"}, "trainScriptDir: a path has no control characters"),
        (
            {"trainScriptBootFile": "../main.py"},
            "trainScriptBootFile: '../main.py' is not a file inside the script folder",
        ),
        ({"trainScriptBootFile": "/main.py"}, "trainScriptBootFile: '/main.py' is not a file inside the script folder"),
        ({"trainScriptBootFile": "."}, "trainScriptBootFile: '.' is not a file inside the script folder"),
        ({"frameworkType": "Tensor Flow"}, "frameworkType: string should match pattern"),
        ({"frameworkVersion": "2.15"}, "frameworkVersion: '2.15' is not a version specifier such as >=2.15"),
        ({"frameworkVersion": ">=2.15,"}, "frameworkVersion: '>=2.15,' is not a version specifier"),
        ({"frameworkVersion": ">=2.*"}, "frameworkVersion: '>=2.*' is not a version specifier"),
        ({"frameworkVersion": 2.15}, "frameworkVersion: must be text (put it in quotes), not 2.15"),
        ({"volumes": []}, "volumes: unknown field"),
        ({"parameters": {}}, "parameters: must be a list, not a map"),
        ({"parameters": [{"key": "a"}]}, "parameters[0].value: this field is required"),
        ({"parameters": [{"key": "", "value": 1}]}, "parameters[0].key: string should have at least 1 character"),
    ],
)
def test_a_wrong_worker_spec_is_refused_by_field(worker: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        FederatedTask.from_document(task_document(worker=worker))
    assert str(refusal.value).startswith("spec.trainingWorkers[0].workerSpec." + what)


@pytest.mark.parametrize(
    "version", [">=2.15", ">=2.15,<3", "~=1.4.2", "==2.*", "!= 2.1.*", "===1.0", ">=1.0rc1", "==1!2.0.post1"]
)
def test_a_version_specifier_of_pep_440_is_accepted(version: str) -> None:
    task = FederatedTask.from_document(task_document(worker={"frameworkVersion": version}))
    assert task.spec.training_workers[0].worker_spec.framework_version == version


@pytest.mark.parametrize("framework", ["tensorflow", "pytorch", "sklearn", "numpy", "keras", "my-framework.v2"])
def test_any_plain_framework_name_is_accepted(framework: str) -> None:
    task = FederatedTask.from_document(task_document(worker={"frameworkType": framework}))
    assert task.spec.training_workers[0].worker_spec.framework_type == framework


def test_an_unknown_algorithm_is_refused_naming_what_exists() -> None:
    document = task_document()
    document["spec"]["aggregationWorker"]["workerSpec"]["aggregationAlgorithm"] = "FedProx"
    with pytest.raises(ManifestError, match="aggregationAlgorithm: 'FedProx' is not known here; there is 'FedAvg'"):
        FederatedTask.from_document(document)


def test_two_workers_of_one_name_are_refused_at_the_second() -> None:
    document = task_document()
    document["spec"]["trainingWorkers"][2]["name"] = "work0"
    with pytest.raises(ManifestError, match="'work0' is the name of another worker") as refusal:
        FederatedTask.from_document(document)
    assert refusal.value.field == "spec.trainingWorkers[2].name"


def test_a_training_worker_named_as_the_aggregation_worker_is_refused() -> None:
    document = task_document()
    document["spec"]["trainingWorkers"][0]["name"] = "aggregation"
    with pytest.raises(ManifestError, match="'aggregation' is the name of another worker"):
        FederatedTask.from_document(document)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"trainingWorkers": []}, "spec.trainingWorkers: at least one training worker is needed"),
        ({"workers": 1001}, "spec.trainingWorkers: has too many items: at most 1000"),
        ({"paused": "yes"}, "spec.paused: must be true or false, not 'yes'"),
        ({"paused": 1}, "spec.paused: must be true or false, not 1"),
    ],
)
def test_a_wrong_task_spec_is_refused_by_field(spec: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        FederatedTask.from_document(task_document(**spec))
    assert str(refusal.value) == what


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/digits.npz", "/data/digits.npz"),
        ("file:///data/my%20digits.npz", "/data/my digits.npz"),
        ("file://localhost/data/a", "/data/a"),
    ],
)
def test_a_dataset_is_an_absolute_path_on_its_node(url: str, path: str) -> None:
    assert Dataset.from_document(dataset_document(url=url)).spec.path == path


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"url": "./digits.npz"}, "spec.url: './digits.npz' is a relative path: use an absolute path on the node"),
        ({"url": "digits.npz"}, "spec.url: 'digits.npz' is a relative path"),
        ({"url": "ftp://host/x"}, "spec.url: 'ftp://' is not supported: use an absolute path on the node"),
        ({"url": "https://host"}, "spec.url: 'https://host' must be https:// and a host and the path of a file in it"),
        ({"url": "https://host/x?token=y"}, "spec.url: 'https://host/x?token=y' must be https:// and a host"),
        ({"secret": "s3.json"}, "spec.secret: a secret is for a dataset in a store"),
        ({"url": "s3://b/x", "secret": "../x"}, "spec.secret: '../x' is not a file inside the node's secrets folder"),
        ({"url": "s3://bucket"}, "spec.url: 's3://bucket' must be s3:// and a bucket and the path of a file in it"),
        ({"url": "s3://b/../x"}, "spec.url: 's3://b/../x' must be s3://"),
        ({"url": "s3://b/a.zip::file:///etc/x"}, "spec.url: 's3://b/a.zip::file:///etc/x' must be s3://"),
        ({"url": "s3://key:secret@b/x"}, "spec.url: a url has no password"),
        (
            {"url": "s3://b/list.txt", "format": "txt list"},
            "spec.url: a dataset of format txt list has to lie on the node",
        ),
        ({"url": "file://host/data"}, "spec.url: 'file://host/data' must be file:// and an absolute path"),
        ({"url": "file://[x/data"}, "spec.url: 'file://[x/data' is not a url"),
        ({"url": "/data/../etc/shadow"}, "spec.url: a path must not contain .."),
        ({"url": "file:///data/%2e%2e/etc"}, "spec.url: a path must not contain .."),
        ({"url": "file:///data/%00"}, "spec.url: a url has no control characters"),
        ({"url": "/data/\n"}, "spec.url: a url has no control characters"),
        ({"url": ""}, "spec.url: string should have at least 1 character"),
        ({"format": "pickle"}, "spec.format: 'pickle' is not known here; there is 'csv', 'npz', 'jsonl'"),
        ({"labelField": ""}, "spec.labelField: string should have at least 1 character"),
        ({"format": ["npz"]}, "spec.format: a list is not known here"),
        ({"nodeName": "Edge 1"}, "spec.nodeName: a name has"),
    ],
)
def test_a_wrong_dataset_is_refused_by_field(spec: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        Dataset.from_document(dataset_document(**spec))
    assert str(refusal.value).startswith(what)


@pytest.mark.parametrize("format", ["csv", "jsonl", "npz", "txt list", "image folder", "parquet"])
def test_a_dataset_may_have_every_format(format: str) -> None:
    assert Dataset.from_document(dataset_document(format=format)).spec.format == format


def test_a_dataset_may_lie_in_a_store() -> None:
    spec = Dataset.from_document(dataset_document(url="s3://bucket/folder/digits.npz", labelField="class")).spec
    assert (spec.url, spec.label_field) == ("s3://bucket/folder/digits.npz", "class")


def test_a_model_needs_neither_url_nor_format() -> None:
    assert Model.from_document(model_document()).spec.url is None


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"url": "./initial.npz"}, "spec.url: a model with a url needs a format"),
        ({"url": "s3://b/k", "format": "npz"}, "spec.url: 's3://' is not supported yet"),
        ({"url": "file://host/k", "format": "npz"}, "spec.url: 'file://host/k' must be file:// and an absolute path"),
        ({"url": "./a.pkl", "format": "pickle"}, "spec.format: 'pickle' is not known here"),
    ],
)
def test_a_wrong_model_is_refused_by_field(spec: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        Model.from_document(model_document(**spec))
    assert str(refusal.value).startswith(what)


def test_a_field_of_hostile_length_is_shortened_in_the_error() -> None:
    with pytest.raises(ManifestError) as refusal:
        from_document(model_document(**{"x\n" * 10_000: 1}))
    assert len(str(refusal.value)) < 200
    assert "\n" not in str(refusal.value)
