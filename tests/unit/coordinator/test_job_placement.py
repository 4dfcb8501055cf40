"""What the node of a job is to know, whose word counts, and how its models become versions."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_world import NOW, UID, task
from job_world import FIRST, LEVEL, SNAPSHOT, dataset, deployed, job, keras, models, stage, version

from edgeai.coordinator.placement import (
    Jobs,
    Library,
    blobs_wanted,
    desired_documents,
    job_wanted,
    level_of,
    may_say,
    problems_of,
    references_of,
    serving_of,
    version_for,
)
from edgeai.coordinator.registry import Registry
from edgeai.errors import NotFound
from edgeai.events.catalogue import (
    BlobRef,
    BlobWanted,
    Desired,
    JobWanted,
    Role,
    RoundMissed,
    WorkerFailed,
)
from edgeai.lifecycle.stage import spec_of
from edgeai.resources.base import SCRIPT_ANNOTATION, SOURCE_ANNOTATION, TRIGGER_ANNOTATION
from edgeai.resources.incremental import ArrivingModel, IncrementalLearningJob
from edgeai.resources.model import Model, ModelFormat
from edgeai.store.memory import MemoryResourceStore

DATASETS = {"dataset0": dataset()}
MODELS = models(version(1))
NODES = ["edge0", "cloud"]
PLACED = {"phase": "Preparing"}


def placed(
    *there: IncrementalLearningJob, found: Any = MODELS, before: dict[str, JobWanted] | None = None
) -> dict[str, Desired]:
    return desired_documents([], DATASETS, found, NODES, Jobs(there, before or {}))


def arriving(number: int, digest: str = "", snapshot: str = SNAPSHOT) -> ArrivingModel:
    fact = deployed(number, digest or None)
    return ArrivingModel(
        round=number,
        name=fact.model.name,
        digest=fact.model.blob.digest,
        size_bytes=20,
        format="keras",
        snapshot=snapshot,
        samples=80,
        metrics={"accuracy": 0.9},
    )


# --- references


def test_a_job_with_everything_has_no_problem():
    assert problems_of(job(), NODES, Library(DATASETS, MODELS)) == ()


@pytest.mark.parametrize(
    ("nodes", "datasets", "found", "sentence"),
    [
        ([], DATASETS, MODELS, "node edge0 has never joined: start `edgeai edge --node edge0` there"),
        (NODES, {}, MODELS, "dataset dataset0 does not exist: apply a Dataset"),
        (NODES, {"dataset0": dataset(node="edge1")}, MODELS, "dataset dataset0 is on edge1, the job on edge0"),
        (NODES, DATASETS, {}, "model cnn does not exist: apply a Model"),
        (NODES, DATASETS, models(), "model cnn has no version to begin with"),
        (NODES, DATASETS, models(url="m.npz", format="npz"), "its first version is not stored yet"),
    ],
    ids=["node", "dataset", "dataset elsewhere", "model", "no version", "not stored"],
)
def test_what_is_missing_is_said_by_name(nodes, datasets, found, sentence):
    [problem] = problems_of(job(), nodes, Library(datasets, found))
    assert sentence in problem


def test_the_dataset_that_the_inference_worker_is_asked_is_a_reference():
    [problem] = problems_of(job(stream="asked"), NODES, Library(DATASETS, MODELS))
    assert "dataset asked does not exist" in problem


def test_an_output_model_with_versions_is_enough():
    found = models() | models(version(4), name="better")
    assert problems_of(job(output="better"), NODES, Library(DATASETS, found)) == ()


def test_a_federated_task_does_not_train_a_model_that_is_no_arrays():
    datasets = {f"dataset{number}": dataset(f"dataset{number}", f"edge{number}") for number in range(2)}
    [problem] = references_of(task(), ["edge0", "edge1"], datasets, models(keras(1))).problems
    assert problem.startswith("model cnn is a file of format keras, and a federated task trains arrays")


# --- what the node is to know


@pytest.mark.parametrize("phase", ["Preparing", "Running", "Paused", "Failed"])
def test_a_job_goes_to_its_node_and_stays_there(phase):
    [found] = placed(job(status={"phase": phase}))["edge0"].jobs
    assert (found.task, found.task_name, found.task_uid, found.generation) == (LEVEL, "drift", UID, 1)


@pytest.mark.parametrize("phase", ["Pending", "Deleting"])
def test_a_job_that_waits_or_is_deleted_is_nowhere(phase):
    assert all(document.jobs == () for document in placed(job(status={"phase": phase})).values())


def test_the_node_can_read_the_spec_as_it_was_written():
    [found] = placed(job(status=PLACED))["edge0"].jobs
    assert spec_of(found) == job().spec


def test_the_workers_are_named_as_their_stages():
    annotations = {f"{SCRIPT_ANNOTATION}eval": f"{'e' * 64}:17"}
    [found] = placed(job(status=PLACED, annotations=annotations, stream="asked"))["edge0"].jobs
    train, evaluation, deploy = found.workers
    assert [(each.worker, each.role) for each in found.workers] == [
        (role.value, role) for role in (Role.TRAIN, Role.EVAL, Role.DEPLOY)
    ]
    assert (train.script, train.script_dir, train.boot_file, train.needs.cpus) == (None, "/srv/job", "main.py", 2.0)
    assert (evaluation.script, evaluation.script_dir) == (BlobRef("e" * 64, 17), "")
    assert (deploy.parameters["rate"], deploy.dataset, train.dataset) == (5, "asked", "")


@pytest.mark.parametrize(("noted", "count"), [("3", 3), ("", 0), ("x", 0), ("-1", 0), ("9" * 40, 0)])
def test_rounds_that_were_asked_for_by_hand_are_counted(noted, count):
    found = job_wanted(job(annotations={TRIGGER_ANNOTATION: noted}), MODELS)
    assert found is not None
    assert found.triggers == count


def test_the_job_goes_on_from_the_newest_version_of_its_output_model():
    found = models(version(1)) | models(version(4), version(7), name="better")
    wanted = version_for(job(output="better"), found)
    assert wanted is not None
    assert (wanted.version, wanted.blob) == (7, BlobRef(f"{7:064x}", 10))


def test_without_one_it_goes_on_from_the_initial_model():
    wanted = version_for(job(output="better"), models(keras(2)) | models(name="better"))
    assert wanted is not None
    assert (wanted.version, wanted.format, wanted.own) == (2, "keras", False)


def test_a_version_that_the_job_made_is_its_own_and_one_that_was_made_the_newest_again_is_not():
    """Else a node without WAN, which is ahead of the cloud, would go back to its older models one after the other."""
    own = version(2, task_uid=UID, round=1)
    again = own.model_copy(update={"version": 3})
    assert [getattr(version_for(job(), models(*found)), "own", None) for found in ((own,), (own, again))] == [
        True,
        False,
    ]


def test_a_job_whose_model_is_gone_stays_as_its_node_knows_it():
    """A node removes the examples of a job that it is not told of any more."""
    [before] = placed(job(status=PLACED))["edge0"].jobs
    assert placed(job(status=PLACED), found={}, before={UID: before})["edge0"].jobs == (before,)


def test_the_cloud_brings_the_models_that_are_on_their_way():
    there = job(status={"phase": "Running", "arriving": [arriving(1).model_dump(by_alias=True)]})
    assert blobs_wanted([there]) == (BlobWanted(BlobRef(f"{101:064x}", 20), "edge0", LEVEL),)
    documents = placed(there)
    assert (len(documents["cloud"].blobs), documents["edge0"].blobs) == (1, ())


def test_tasks_and_jobs_of_one_name_have_levels_of_their_own():
    assert level_of(job("digits", "f" * 32)) != level_of(task("digits"))


def test_the_model_that_serves_has_its_newest_number():
    found = serving_of(job(), FIRST, models(version(1), version(2), version(3, digest=FIRST)))
    assert found is not None
    assert (found.version, found.digest) == (3, FIRST)


def test_a_job_that_serves_its_initial_model_says_so_and_not_the_model_that_it_makes():
    found = serving_of(job(output="made"), FIRST, models(version(1)) | models(name="made"))
    assert found is not None
    assert (found.name, found.version) == ("cnn", 1)


def test_a_model_without_a_number_serves_as_that_of_its_round():
    there = job(status={"arriving": [arriving(6).model_dump(by_alias=True)]})
    found = serving_of(there, f"{106:064x}", MODELS)
    assert found is not None
    assert (found.name, found.version, found.round) == ("cnn", 0, 6)


# --- who may say what


@pytest.mark.parametrize(
    ("fact", "source", "worker", "allowed"),
    [
        (stage(), "edge0", "train", True),
        (stage(), "edge0/operator", "train", True),
        (stage(), "edge1", "train", False),
        (stage(), "cloud/operator", "train", False),
        (deployed(1), "edge0", "deploy", True),
        (deployed(1), "edge1", "deploy", False),
        (WorkerFailed(UID, Role.TRAIN, "x"), "edge0", "train", True),
        (WorkerFailed(UID, Role.TRAIN, "x"), "edge1", "train", False),
        (WorkerFailed(UID, Role.TRAIN, "x"), "edge0", "other", False),
        (RoundMissed(UID, 1, 1, "x"), "edge0", "", False),
    ],
)
def test_only_the_node_of_a_job_has_a_say_in_it(fact, source, worker, allowed):
    assert may_say(job(), fact, source, worker) is allowed


def test_nobody_has_a_say_about_stages_of_a_federated_task():
    assert not may_say(task(), stage(), "edge0", "work0")


# --- versions


@pytest.fixture
def resources() -> MemoryResourceStore:
    return MemoryResourceStore()


async def stored(resources: MemoryResourceStore) -> Model:
    return Model.from_document((await resources.get("Model", "cnn")).document)


async def test_a_deployed_model_is_the_next_version_with_its_lineage(resources):
    await resources.create("Model", "cnn", MODELS["cnn"].to_document())
    await Registry(resources).register_deployed(job(), arriving(3), NOW)
    made = (await stored(resources)).status.versions[-1]
    assert (made.version, made.digest, made.size_bytes, made.format) == (2, f"{103:064x}", 20, ModelFormat.KERAS)
    assert (made.task, made.task_uid, made.round, made.edge) == ("drift", UID, 3, "edge0")
    assert (made.snapshot, made.samples, made.metrics) == (SNAPSHOT, 80, {"accuracy": 0.9})
    assert made.file_suffix == ".keras"


async def test_the_version_of_a_job_names_its_dataset_its_generation_then_and_what_was_held_out(resources):
    await resources.create("Model", "cnn", MODELS["cnn"].to_document())
    told = arriving(3).model_copy(update={"held_out": 20, "generation": 4})
    await Registry(resources).register_deployed(job(), told, NOW)
    lineage = (await stored(resources)).status.versions[-1].lineage
    assert lineage is not None
    assert (lineage.kind, lineage.generation, lineage.held_out) == ("IncrementalLearningJob", 4, 20)
    assert [(each.node, each.dataset) for each in lineage.sources] == [("edge0", job().spec.dataset.name)]


async def test_a_deployed_model_is_one_version_however_often_it_is_told(resources):
    await resources.create("Model", "cnn", MODELS["cnn"].to_document())
    for _ in range(2):
        await Registry(resources).register_deployed(job(), arriving(3), NOW)
    assert len((await stored(resources)).status.versions) == 2


async def test_a_model_that_the_edge_went_back_to_is_the_newest_again(resources):
    await resources.create("Model", "cnn", MODELS["cnn"].to_document())
    registry = Registry(resources)
    await registry.register_deployed(job(), arriving(3), NOW)
    for _ in range(2):
        await registry.register_deployed(job(), arriving(0, FIRST, snapshot=""), NOW)
    versions = (await stored(resources)).status.versions
    assert [(each.version, each.digest) for each in versions] == [(1, FIRST), (2, f"{103:064x}"), (3, FIRST)]
    assert versions[-1].lineage is not None
    assert versions[-1].lineage.copy_of == 1


async def test_a_format_that_nobody_knows_is_a_file(resources):
    await resources.create("Model", "cnn", MODELS["cnn"].to_document())
    strange = arriving(3).model_copy(update={"format": "gguf", "name": "model.gguf"})
    await Registry(resources).register_deployed(job(), strange, NOW)
    made = (await stored(resources)).status.versions[-1]
    assert (made.format, made.file_suffix) == (ModelFormat.FILE, ".gguf")


@pytest.mark.parametrize(
    ("url", "format_", "stored_as", "suffix"),
    [
        ("m.npz", "npz", "safetensors", ".safetensors"),
        ("m.keras", "keras", "keras", ".keras"),
        ("m.tflite", "file", "file", ".tflite"),
        ("m", "onnx", "onnx", ".onnx"),
    ],
)
async def test_the_file_that_was_applied_keeps_its_format(resources, url, format_, stored_as, suffix):
    found = models(url=url, format=format_)["cnn"]
    noted = found.metadata.model_copy(update={"annotations": {SOURCE_ANNOTATION: f"{FIRST}:17"}})
    applied = found.model_copy(update={"metadata": noted})
    await resources.create("Model", "cnn", applied.to_document())
    await Registry(resources).import_version(applied, NOW)
    [made] = (await stored(resources)).status.versions
    assert (made.format.value, made.file_suffix) == (stored_as, suffix)


async def test_a_model_that_is_gone_is_made_again_for_what_serves(resources):
    with pytest.raises(NotFound):
        await stored(resources)
    await Registry(resources).register_deployed(job(), arriving(3), NOW)
    assert len((await stored(resources)).status.versions) == 1
