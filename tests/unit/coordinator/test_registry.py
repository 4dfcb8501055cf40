"""Dataset status and model versions: written once, whatever is repeated, and never from what cannot be true."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coordinator_world import DIGEST, NOW, UID, dataset, model, task
from job_world import job

from edgeai.coordinator.nodes import Nodes
from edgeai.coordinator.registry import MAX_COLUMNS, MAX_TEXT, WITH_SOURCES, Registry, digests_in_use
from edgeai.errors import MalformedEvent, PayloadTooLarge
from edgeai.events.catalogue import BlobRef, DatasetObserved, JobWanted, ModelVersionRef, Observed, TrainingCompleted
from edgeai.resources.base import SOURCE_ANNOTATION
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FinishedModel, RoundRecord
from edgeai.resources.lineage import Lineage, Source
from edgeai.resources.model import Model
from edgeai.store.memory import MemoryBlobStore, MemoryResourceStore

COMPLETED = TrainingCompleted(UID, DIGEST, 17, 3, {"accuracy": 0.97})
FOUND = DatasetObserved("dataset0", True, "", 100, DIGEST, {"x": "float32"}, {"x": (64,)})


@pytest.fixture
def resources() -> MemoryResourceStore:
    return MemoryResourceStore()


@pytest.fixture
def registry(resources: MemoryResourceStore) -> Registry:
    return Registry(resources)


async def stored_model(resources: MemoryResourceStore) -> Model:
    return Model.from_document((await resources.get("Model", "cnn")).document)


# --- models


async def test_a_finished_model_is_the_next_version(resources, registry):
    await resources.create("Model", "cnn", model(1, 2).to_document())
    rounds = (RoundRecord(round=3, updates=2),)
    finished = task().model_copy(update={"status": task().status.model_copy(update={"rounds": rounds})})
    found = await registry.register(finished, COMPLETED, NOW)
    assert (found.name, found.version, found.digest) == ("cnn", 3, DIGEST)
    made = (await stored_model(resources)).status.versions[-1]
    assert (made.task, made.task_uid, made.round, made.updates, made.size_bytes) == ("digits", UID, 3, 2, 17)
    assert (made.metrics, made.created_at) == ({"accuracy": 0.97}, NOW)


async def test_a_version_writes_down_what_made_it(resources, registry):
    await resources.create("Model", "cnn", model(1).to_document())
    sources = tuple(
        Source(worker=name, node="edge1", dataset="dataset0", digest=DIGEST, samples=100, rounds=rounds)
        for name, rounds in (("work1", 3), ("work0", 2), ("asked-only", 0))
    )
    base = FinishedModel(name="cnn", version=1, digest=DIGEST)
    status = task().status.model_copy(update={"sources": sources, "base": base})
    await registry.register(task().model_copy(update={"status": status}), COMPLETED, NOW)
    lineage = (await stored_model(resources)).status.versions[-1].lineage
    assert lineage is not None
    assert (lineage.kind, lineage.generation) == ("FederatedTask", task().metadata.generation)
    assert ([each.worker for each in lineage.sources], lineage.counted) == (["work0", "work1"], 2)
    assert (lineage.base_model, lineage.base_version) == ("cnn", 1)


async def test_versions_of_many_workers_lose_names_before_any_version_is_lost(resources, monkeypatch):
    """Only how many workers there were is kept of the older ones."""
    lineage = Lineage(sources=(Source(worker="w", node="n", dataset="d", rounds=1),), counted=1)
    old = [each.model_copy(update={"lineage": lineage}) for each in model(*range(1, 21)).status.versions]
    stored = model().model_copy(update={"status": model().status.model_copy(update={"versions": tuple(old)})})
    await resources.create("Model", "cnn", stored.to_document())
    replace_whole = resources.replace

    async def replace_small(before, document):
        if sum(bool(each["lineage"]["sources"]) for each in document["status"]["versions"]) > WITH_SOURCES:
            raise PayloadTooLarge(2, 1)
        return await replace_whole(before, document)

    monkeypatch.setattr(resources, "replace", replace_small)
    await Registry(resources).register(task(), COMPLETED, NOW)
    versions = (await stored_model(resources)).status.versions
    assert (len(versions), {each.lineage.counted for each in versions[:-1]}) == (21, {1})


async def test_a_task_makes_one_version_however_often_it_is_told(resources, registry):
    await resources.create("Model", "cnn", model().to_document())
    assert await registry.register(task(), COMPLETED, NOW) == await registry.register(task(), COMPLETED, NOW)
    assert len((await stored_model(resources)).status.versions) == 1


async def test_two_tasks_make_two_versions(resources, registry):
    await resources.create("Model", "cnn", model().to_document())
    await registry.register(task(), COMPLETED, NOW)
    other = await registry.register(task("other", "b" * 32), replace(COMPLETED, task_uid="b" * 32), NOW)
    assert other.version == 2


async def test_the_result_is_kept_though_the_model_was_deleted_meanwhile(resources, registry):
    assert (await registry.register(task(), COMPLETED, NOW)).version == 1
    assert (await registry.register(task(), COMPLETED, NOW)).version == 1
    found = await stored_model(resources)
    assert (len(found.status.versions), len(found.metadata.uid)) == (1, 32)


async def test_a_version_number_is_not_used_again_when_an_old_one_was_dropped(resources, registry):
    await resources.create("Model", "cnn", model(4, 7).to_document())
    assert (await registry.register(task(), COMPLETED, NOW)).version == 8


# --- old versions


def keeping(most: int, *versions: int) -> Model:
    return model(*versions, keep={"maxVersions": most})


async def dropping(resources, stored: Model, *, in_use: frozenset[str] = frozenset(), others: tuple[Model, ...] = ()):
    """Register one more version; returns the numbers that stay, and the blobs that go."""
    for each in (stored, *others):
        await resources.create("Model", each.name, each.to_document())
    removed: list[str] = []

    class Blobs(MemoryBlobStore):
        async def delete(self, digest: str) -> None:
            removed.append(digest)

    await Registry(resources, Blobs(), lambda: in_use).register(task(), COMPLETED, NOW)
    return [version.version for version in (await stored_model(resources)).status.versions], removed


async def test_versions_that_are_more_than_the_model_keeps_go_with_their_blobs(resources):
    assert await dropping(resources, keeping(2, 1, 2, 3)) == ([3, 4], [f"{number:064x}" for number in (1, 2)])


async def test_a_hundred_versions_stay_unless_the_model_says_otherwise(resources):
    kept, _ = await dropping(resources, model(*range(1, 101)))
    assert kept == list(range(2, 102))


async def test_a_version_that_something_runs_on_stays(resources):
    kept, removed = await dropping(resources, keeping(1, 1, 2), in_use=frozenset({f"{1:064x}"}))
    assert (kept, removed) == ([1, 3], [f"{2:064x}"])


async def test_a_blob_that_another_model_has_stays(resources):
    other = model(1).model_copy(update={"metadata": model().metadata.model_copy(update={"name": "other"})})
    assert await dropping(resources, keeping(1, 1, 2), others=(other,)) == ([3], [f"{2:064x}"])


async def test_the_file_that_apply_has_stored_stays(resources):
    first = keeping(1, 1)
    annotations = {SOURCE_ANNOTATION: f"{1:064x}:10"}
    first = first.model_copy(update={"metadata": first.metadata.model_copy(update={"annotations": annotations})})
    assert await dropping(resources, first) == ([2], [])


async def test_versions_that_do_not_fit_the_store_give_way(resources, monkeypatch):
    replacing = resources.replace

    async def small(stored, document):
        if len(document["status"]["versions"]) > 3:
            raise PayloadTooLarge(2, 1)
        return await replacing(stored, document)

    monkeypatch.setattr(resources, "replace", small)
    assert await dropping(resources, model(1, 2, 3, 4, 5)) == ([4, 5, 6], [f"{number:064x}" for number in (1, 2, 3)])


def test_what_runs_is_named_by_jobs_and_by_tasks_that_are_not_over():
    base = {"name": "cnn", "version": 1, "digest": "1" * 64}
    running = task(status={"phase": "Running", "base": base})
    ended = task("ended", "e" * 32, status={"phase": "Failed", "base": {**base, "digest": "2" * 64}})
    arriving = {"round": 1, "name": "m", "digest": "4" * 64, "sizeBytes": 1, "format": "keras"}
    learning = job(status={"serving": {"digest": "3" * 64}, "arriving": [arriving]})
    told = JobWanted("t", "t", "u", 1, "", (), ModelVersionRef(1, BlobRef("5" * 64, 1)))
    found = digests_in_use([running, ended], [learning], [told])
    assert found == {digit * 64 for digit in "1345"}


async def test_a_change_by_a_user_meanwhile_is_kept(resources, registry, monkeypatch):
    await resources.create("Model", "cnn", model().to_document())
    replacing = resources.replace

    async def beaten(stored, document):
        monkeypatch.undo()
        changed = {**stored.document, "metadata": {**stored.document["metadata"], "labels": {"a": "b"}}}
        await replacing(stored, changed)
        return await replacing(stored, document)

    monkeypatch.setattr(resources, "replace", beaten)
    await registry.register(task(), COMPLETED, NOW)
    found = await stored_model(resources)
    assert (found.metadata.labels, len(found.status.versions)) == ({"a": "b"}, 1)


@pytest.mark.parametrize(
    "changes",
    [{"model_digest": "x"}, {"model_size_bytes": -1}, {"number": -1}, {"metrics": {"accuracy": float("nan")}}],
    ids=str,
)
async def test_what_does_not_describe_a_model_is_malformed(resources, registry, changes):
    await resources.create("Model", "cnn", model().to_document())
    with pytest.raises(MalformedEvent, match="training-completed does not describe a model"):
        await registry.register(task(), replace(COMPLETED, **changes), NOW)
    assert (await stored_model(resources)).status.versions == ()


async def test_the_file_that_was_applied_is_version_1(resources, registry):
    annotated = model(url="./m.npz", format="npz")
    metadata = annotated.metadata.model_copy(update={"annotations": {SOURCE_ANNOTATION: f"{DIGEST}:17"}})
    applied = annotated.model_copy(update={"metadata": metadata})
    await resources.create("Model", "cnn", applied.to_document())
    await registry.import_version(applied, NOW)
    await registry.import_version(applied, NOW)
    [made] = (await stored_model(resources)).status.versions
    assert (made.version, made.digest, made.size_bytes, made.task) == (1, DIGEST, 17, "")


async def test_another_file_that_is_applied_is_a_new_version_once(resources, registry):
    other = "f" * 64
    for digest in (DIGEST, other, other, DIGEST):
        annotated = model(url="./m.npz", format="npz")
        metadata = annotated.metadata.model_copy(update={"annotations": {SOURCE_ANNOTATION: f"{digest}:17"}})
        applied = annotated.model_copy(update={"metadata": metadata})
        if digest == DIGEST and not await resources.list("Model"):
            await resources.create("Model", "cnn", applied.to_document())
        await registry.import_version(applied, NOW)
    made = (await stored_model(resources)).status.versions
    assert [(each.version, each.digest) for each in made] == [(1, DIGEST), (2, other)]


async def test_a_model_without_a_file_has_no_version_yet(resources, registry):
    await resources.create("Model", "cnn", model().to_document())
    await registry.import_version(model(), NOW)
    assert (await stored_model(resources)).status.versions == ()


# --- datasets


async def observed(resources: MemoryResourceStore, found: DatasetObserved) -> Dataset:
    """What becomes of the resource when its node finds this."""
    nodes = Nodes(resources)
    await nodes.observed("edge0", Observed(1, (), (found,)), NOW)
    await Registry(resources).observe_dataset("dataset0", dataset(0), nodes)
    return Dataset.from_document((await resources.get("Dataset", "dataset0")).document)


async def test_what_the_node_found_is_the_status(resources):
    await resources.create("Dataset", "dataset0", dataset(0).to_document())
    status = (await observed(resources, FOUND)).status
    ready = find_condition(status.conditions, ConditionType.READY)
    assert (ready.status, status.sample_count, status.digest) == ("True", 100, DIGEST)
    assert [(column.name, column.dtype, column.shape) for column in status.columns] == [("x", "float32", (64,))]


async def test_a_dataset_that_cannot_be_used_says_why(resources):
    await resources.create("Dataset", "dataset0", dataset(0).to_document())
    status = (await observed(resources, DatasetObserved("dataset0", False, "/data/0.npz does not exist"))).status
    ready = find_condition(status.conditions, ConditionType.READY)
    assert (ready.status, ready.reason, ready.message) == ("False", "NotUsable", "/data/0.npz does not exist")
    assert (status.sample_count, status.digest) == (None, None)


async def test_a_dataset_keeps_what_it_has_held(resources):
    await resources.create("Dataset", "dataset0", dataset(0).to_document())
    await observed(resources, FOUND)
    await observed(resources, DatasetObserved("dataset0", False, "/data/0.npz does not exist"))
    status = (await observed(resources, replace(FOUND, samples=120, digest="b" * 64, size_bytes=900))).status
    assert [(each.samples, each.digest) for each in status.history] == [(100, DIGEST), (120, "b" * 64)]
    assert (status.size_bytes, status.history[-1].size_bytes) == (900, 900)


async def test_an_equal_finding_is_not_written_again(resources):
    await resources.create("Dataset", "dataset0", dataset(0).to_document())
    await observed(resources, FOUND)
    before = (await resources.get("Dataset", "dataset0")).revision
    await observed(resources, FOUND)
    assert (await resources.get("Dataset", "dataset0")).revision == before


async def test_what_a_node_says_of_a_dataset_is_bounded(resources):
    await resources.create("Dataset", "dataset0", dataset(0).to_document())
    schema = {f"{number:04}{'n' * 9000}": "t" * 9000 for number in range(1000)}
    status = (await observed(resources, replace(FOUND, schema=schema))).status
    assert len(status.columns) == MAX_COLUMNS
    assert (
        {len(column.name) for column in status.columns}
        == {len(column.dtype) for column in status.columns}
        == {MAX_TEXT}
    )


async def test_a_finding_about_a_dataset_that_is_gone_is_nothing(resources, registry):
    nodes = Nodes(resources)
    await nodes.observed("edge0", Observed(1, (), (FOUND,)), NOW)
    await registry.observe_dataset("dataset0", dataset(0), nodes)
    await registry.observe_dataset("dataset0", None, nodes)
    assert await resources.list("Dataset") == []
