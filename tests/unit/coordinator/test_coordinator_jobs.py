"""Jobs on the coordinator, with a bus and stores in memory: from `apply` over versions of their models to their end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from coordinator_world import World, model, task, until, world
from job_world import FIRST, LEVEL, dataset, deployed, job, observed, stage, worker

from edgeai.coordinator.journal import TaskJournal
from edgeai.errors import NotFound, PayloadTooLarge
from edgeai.events.catalogue import Heartbeat, NodeGone, Observed
from edgeai.reactor import Batch
from edgeai.resources.base import SCRIPT_ANNOTATION
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.model import Model
from edgeai.store.files import digest_bytes
from edgeai.store.memory import MemoryBlobStore, MemoryResourceStore

WORKERS = (worker("train", "Done"), worker("deploy"))


@pytest.fixture
async def made() -> AsyncIterator[World]:
    async with world() as found:
        yield found


async def status(made: World, name: str = "drift") -> Any:
    document = (await made.resources.get("IncrementalLearningJob", name)).document
    return IncrementalLearningJob.from_document(document).status


async def versions(made: World) -> list[tuple[int, str]]:
    found = Model.from_document((await made.resources.get("Model", "cnn")).document)
    return [(each.version, each.digest) for each in found.status.versions]


async def applied(made: World, **changes: Any) -> None:
    await made.apply(dataset(), model(1), job(**changes))
    await made.send("edge0", Heartbeat(1.0))


async def tell(made: World, node: str, generation: int, document: Observed) -> None:
    await made.send(node, document, generation)


async def running(made: World) -> None:
    await applied(made)
    await until(lambda: made.desired("edge0") and made.desired("edge0").jobs)
    await tell(made, "edge0", 1, Observed(0, WORKERS, jobs=(observed(),)))

    async def runs() -> bool:
        return (await status(made)).phase.value == "Running"

    await until(runs)


def said(made: World, event: Any, worker_name: str = "train", node: str = "edge0") -> None:
    made.fact(event, source=node, node=node, task=LEVEL, worker=worker_name)


async def test_a_job_goes_to_its_node_and_runs(made):
    async with made.coordinator():
        await running(made)
        found = await status(made)
    assert (found.stage, found.state, found.serving.digest, found.serving.version) == ("Train", "Waiting", FIRST, 1)
    assert {row.name: row.state for row in found.workers} == {"train": "Done", "eval": "Waiting", "deploy": "Running"}


async def test_stages_are_history_and_receipted(made):
    async with made.coordinator():
        await running(made)
        said(made, stage(1, "Train", "Running"))
        said(made, stage(1, "Eval", "Running"))
        await until(lambda: 2 in made.receipts("edge0"))
        assert [(row.stage, row.state) for row in (await status(made)).history] == [
            ("Train", "Running"),
            ("Eval", "Running"),
        ]


async def test_facts_of_another_node_are_set_aside(made):
    async with made.coordinator() as coordinator:
        await running(made)
        await made.send("edge1", Heartbeat(1.0))
        said(made, stage(), node="edge1")
        await until(lambda: 1 in made.receipts("edge1"))
        assert (await status(made)).history == ()
        assert coordinator.refused["edge1"] == 1


async def test_a_deployed_model_becomes_a_version_when_its_blob_is_in_the_library(made):
    new = f"{101:064x}"
    async with made.coordinator():
        await running(made)
        said(made, deployed(1), "deploy")
        await until(lambda: made.desired("cloud").blobs)
        [blob] = made.desired("cloud").blobs
        assert (blob.blob.digest, blob.node, blob.task) == (new, "edge0", LEVEL)
        assert await versions(made) == [(1, FIRST)]

        await tell(made, "cloud", 1, Observed(0, blobs=(new,)))
        await until(lambda: _has_versions(made, 2))
        await until(lambda: not made.desired("cloud").blobs)
        await until(lambda: made.desired("edge0").jobs[0].model.version == 2)
        assert made.desired("edge0").jobs[0].model.own

        await tell(made, "edge0", 2, Observed(0, WORKERS, jobs=(observed(round=2, serving=new),)))
        await until(lambda: _serves(made, 2))


async def _has_versions(made: World, count: int) -> bool:
    return len(await versions(made)) == count


async def _serves(made: World, version: int) -> bool:
    serving = (await status(made)).serving
    return serving is not None and serving.version == version


async def test_models_become_versions_in_the_order_in_which_they_were_deployed(made):
    """The newest version is the one that serves, also where the second blob arrives first."""
    first, second = f"{101:064x}", f"{102:064x}"
    async with made.coordinator():
        await running(made)
        said(made, deployed(1), "deploy")
        said(made, deployed(2), "deploy")
        await until(lambda: len(made.desired("cloud").blobs) == 2)
        await tell(made, "cloud", 1, Observed(0, blobs=(second,)))
        await tell(made, "cloud", 2, Observed(0, blobs=(first, second)))
        await until(lambda: _has_versions(made, 3))
    assert [digest for _, digest in await versions(made)] == [FIRST, first, second]


async def test_a_model_that_its_edge_has_lost_does_not_hold_up_the_next_one(made):
    first, second = f"{101:064x}", f"{102:064x}"
    async with made.coordinator():
        await running(made)
        said(made, deployed(1), "deploy")
        said(made, deployed(2), "deploy")
        await until(lambda: len(made.desired("cloud").blobs) == 2)
        await tell(made, "cloud", 1, Observed(0, blobs=(second,), lost={first: "edge0 does not have it any more"}))
        await until(lambda: _has_versions(made, 2))
        await until(lambda: not made.desired("cloud").blobs)
    assert [digest for _, digest in await versions(made)] == [FIRST, second]


async def test_a_version_that_the_store_does_not_take_holds_up_nothing_else(made, monkeypatch):
    first, second = f"{101:064x}", f"{102:064x}"
    replacing = made.resources.replace

    async def small(stored, document):
        if any(version["digest"] == first for version in document.get("status", {}).get("versions", ())):
            raise PayloadTooLarge(2, 1)
        return await replacing(stored, document)

    monkeypatch.setattr(made.resources, "replace", small)
    async with made.coordinator():
        await running(made)
        said(made, stage(1, "Deploy", "Completed"), "deploy")
        said(made, deployed(1), "deploy")
        said(made, deployed(2), "deploy")
        await until(lambda: len(made.desired("cloud").blobs) == 2)
        await tell(made, "cloud", 1, Observed(0, blobs=(first, second)))
        await until(lambda: _has_versions(made, 2))
        await until(lambda: not made.desired("cloud").blobs)
        [reason] = [row.reason for row in (await status(made)).history if row.round == 1]
    assert "it cannot be registered: 2 bytes do not fit" in reason
    assert [digest for _, digest in await versions(made)] == [FIRST, second]


async def test_a_coordinator_that_was_restarted_goes_on_with_what_was_on_its_way(made):
    new = f"{101:064x}"
    async with made.coordinator():
        await running(made)
        said(made, deployed(1), "deploy")
        await until(lambda: made.desired("cloud").blobs)
    async with made.coordinator():
        await tell(made, "cloud", 1, Observed(0, blobs=(new,)))
        await until(lambda: _has_versions(made, 2))


async def test_what_a_lost_node_does_is_unknown(made):
    async with made.coordinator():
        await running(made)
        await made.send("edge0", NodeGone())

        async def unknown() -> bool:
            return (await status(made)).state == "Unknown"

        await until(unknown)
        assert (await status(made)).reason.startswith("edge0 is not heard of since 20")


async def test_a_deleted_job_is_gone_when_its_node_has_nothing_of_it(made):
    async with made.coordinator():
        await running(made)
        stored = await made.resources.get("IncrementalLearningJob", "drift")
        metadata = {**stored.document["metadata"], "deletionTimestamp": "2030-01-31T12:00:00Z"}
        await made.resources.replace(stored, {**stored.document, "metadata": metadata})
        await until(lambda: not made.desired("edge0").jobs)
        generation = [address for address, _ in made.events(type(made.desired("edge0"))) if address.node == "edge0"]
        await tell(made, "edge0", 2, Observed(len(generation), (), jobs=(observed(),)))
        await tell(made, "edge0", 3, Observed(len(generation)))

        async def gone() -> bool:
            try:
                await status(made)
            except NotFound:
                return True
            return False

        await until(gone)


async def test_a_task_and_a_job_of_one_name_do_not_disturb_each_other(made):
    async with made.coordinator():
        await made.apply(dataset(), model(1), job("digits", "f" * 32), task("digits", workers=1))
        await made.send("edge0", Heartbeat(1.0))
        await until(lambda: made.desired("edge0") and made.desired("edge0").jobs and made.desired("edge0").assignments)
        assert await made.phase("digits") == "Preparing"
        assert (await status(made, "digits")).phase.value == "Preparing"


# --- what is remembered


async def test_timers_of_a_task_and_of_a_job_of_one_name_are_kept_apart():
    resources = MemoryResourceStore()

    async def publish(_: Any) -> None:
        return

    tasks = TaskJournal(FederatedTask, resources, publish)
    jobs = TaskJournal(IncrementalLearningJob, resources, publish)
    await tasks.commit(Batch(timers={("drift", "deadline"): 60.0}))
    await jobs.commit(Batch(timers={("drift", "other"): 5.0}))
    await jobs.commit(Batch())
    assert [item.document for item in await resources.list("Timers")] == [{"deadline": 60}]


async def test_a_script_that_a_job_shares_with_a_deleted_task_stays(tmp_path):
    content = b"print(1)"
    (tmp_path / "script").write_bytes(content)
    digest = digest_bytes(content)
    note = f"{digest}:{len(content)}"
    resources, blobs = MemoryResourceStore(), MemoryBlobStore()
    await blobs.put(digest, tmp_path / "script")
    for resource in (
        task(deleted=True, annotations={f"{SCRIPT_ANNOTATION}work0": note}),
        job(annotations={f"{SCRIPT_ANNOTATION}train": note}),
    ):
        await resources.create(resource.kind, resource.name, resource.to_document())

    async def publish(_: Any) -> None:
        return

    await TaskJournal(FederatedTask, resources, publish, blobs).commit(Batch(states={"digits": None}))
    assert await blobs.has(digest)
