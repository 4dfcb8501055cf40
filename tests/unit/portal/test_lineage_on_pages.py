"""A model's lineage and a dataset's history in the portal: on the pages and in the API, with and without their task."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import httpx
from memory_portal import API, RunningPortal, task_document

from edgeai.resources.kinds import from_document

OLD, NEW, SNAPSHOT, BLOB = "0a" * 32, "1b" * 32, "2c" * 32, "ab" * 32


def words(page: httpx.Response) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.text)).split())


def version(number: int, **fields: Any) -> dict[str, Any]:
    digest = f"{number:064x}"
    return {
        "version": number,
        "digest": digest,
        "sizeBytes": 8,
        "createdAt": f"2030-01-31T12:00:{number:02}Z",
        **fields,
    }


def source(worker: str = "work1", dataset: str = "dataset1", digest: str = OLD, **fields: Any) -> dict[str, Any]:
    return {
        "worker": worker,
        "node": "edge1",
        "dataset": dataset,
        "digest": digest,
        "samples": 40,
        "rounds": 3,
        **fields,
    }


def trained(number: int, *sources: dict[str, Any], task: str = "gone", **fields: Any) -> dict[str, Any]:
    lineage = {"kind": "FederatedTask", "generation": 2, "sources": list(sources), "counted": len(sources)}
    made = {"task": task, "taskUid": f"{number:032x}", "round": 3, "updates": 2, "lineage": lineage}
    return version(number, **made, **fields)


async def store(running: RunningPortal, kind: str, name: str, status: dict[str, Any], **spec: Any) -> None:
    document = {"apiVersion": API, "kind": kind, "metadata": {"name": name, "uid": f"uid-{name}", "generation": 1}}
    stored = await running.memory.resources.create(kind, name, {**document, "spec": spec, "status": status})
    await running.live.reached(kind, name, stored.revision)


async def a_model(running: RunningPortal, *versions: dict[str, Any]) -> None:
    await store(running, "Model", "cnn", {"versions": list(versions)})


async def a_dataset(running: RunningPortal, **status: Any) -> None:
    spec = {"nodeName": "edge1", "url": "/data/1.npz", "format": "npz"}
    await store(running, "Dataset", "dataset1", status, **spec)


# --- a model


async def test_a_version_says_what_it_was_made_from_after_its_task_is_gone(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await a_model(running, trained(1, source(), source("work2", "dataset2", NEW)))
    found = words(await admin.get("/models/cnn"))
    assert "gone (deleted) , round 3, 2 updates" in found
    assert "FederatedTask gone , generation 2" in found
    assert f"work1 on edge1 : dataset1 {OLD[:12]}, 40 examples, counted in 3 rounds" in found.replace(
        f"{OLD[:12]} ,", f"{OLD[:12]},"
    )


async def test_a_version_that_is_older_than_its_lineage_says_so(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await a_model(running, version(1, task="digits", taskUid="1" * 32, round=3, updates=2))
    assert "Its workers and datasets are not recorded" in words(await admin.get("/models/cnn"))


async def test_a_copy_says_of_which_version_and_an_import_of_which_file(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await a_model(running, version(1, lineage={"file": "./initial.npz"}), trained(2, source()))
    await admin.post("/api/v1/models/cnn/rollback", json={"version": 2})
    found = words(await admin.get("/models/cnn"))
    assert "imported file ./initial.npz" in found
    assert "copy of version 2, made by gone" in found


async def test_a_jobs_version_names_its_snapshot_and_both_counts(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    made = trained(1, source("train", digest="", samples=0), snapshot=SNAPSHOT, samples=320)
    made["lineage"] |= {"kind": "IncrementalLearningJob", "heldOut": 80}
    await a_model(running, made)
    found = words(await admin.get("/models/cnn"))
    assert f"Snapshot {SNAPSHOT[:12]} : 320 examples to train on, 80 to evaluate on." in found


async def test_chosen_versions_stand_side_by_side_with_their_difference(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    numbers = {1: 0.5, 2: 0.75, 3: 0.625}
    await a_model(
        running, *(trained(number, source(), metrics={"accuracy": value}) for number, value in numbers.items())
    )
    for query in ("compare=1,3", "compare=3&compare=1"):
        page = await admin.get(f"/models/cnn?{query}")
        table = words(page).partition("Side by side")[2].partition("Versions newest first")[0]
        assert "accuracy 0.5 0.625 +0.125" in table
        assert "Version 2" not in table


async def test_one_version_alone_is_not_compared(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    await a_model(running, trained(1, source()), trained(2, source()))
    assert "Choose at least two versions" in words(await admin.get("/models/cnn?compare=2"))


async def test_a_page_shows_which_service_answers_with_a_version(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await a_model(running, trained(1, source()), trained(2, source()))
    worker = {"workerSpec": {"scriptDir": "/srv/j", "scriptBootFile": "main.py", "frameworkType": "numpy"}}
    spec = {
        "edgeWorkers": [{"name": "little", "nodeName": "edge1", "model": {"name": "cnn"}, **worker}],
        "cloudWorker": {"name": "big", **worker},
        "policy": {"maxOffloadFraction": 0.3},
    }
    status = {
        "phase": "Running",
        "edges": [{"worker": "little", "node": "edge1", "serving": {"name": "cnn", "digest": f"{1:064x}"}}],
    }
    await store(running, "JointInferenceService", "eyes", status, **spec)
    assert "Serving in eyes" in words(await admin.get("/models/cnn"))
    told = (await admin.get("/api/v1/models/cnn/versions")).json()["states"]
    assert told[0] == {"version": 1, "state": "serving", "by": [{"kind": "JointInferenceService", "name": "eyes"}]}


async def test_a_hundred_versions_of_many_workers_are_one_page(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    sources = [source(f"work{number}", f"dataset{number}") for number in range(30)]
    await a_model(running, *(trained(number, *sources) for number in range(1, 101)))
    page = await admin.get("/models/cnn")
    assert page.status_code == 200
    assert page.text.count("<li><b>work") == 100 * 12
    assert (await admin.get("/models/cnn?open=7")).text.count("<li><b>work") == 99 * 12 + 30


# --- a dataset


async def test_counts_over_time_are_in_the_page_as_numbers_and_as_a_table(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    history = [
        {"at": "2030-01-31T12:00:00Z", "samples": 40, "digest": OLD},
        {"at": "2030-01-31T13:00:00Z", "samples": 55, "digest": NEW},
    ]
    await a_dataset(running, history=history, sampleCount=55, digest=NEW)
    page = await admin.get("/datasets/dataset1")
    assert "&#34;samples&#34;: [40, 55]" in page.text
    assert "55 +15" in words(page)
    assert (await admin.get("/api/v1/datasets/dataset1")).json()["status"]["history"][0]["samples"] == 40


async def test_a_dataset_names_the_versions_that_were_made_from_it(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await a_dataset(running, digest=NEW)
    await a_model(running, trained(1, source()), trained(2, source(digest=NEW)), trained(3, source(dataset="other")))
    found = (await admin.get("/api/v1/datasets/dataset1/snapshots")).json()
    assert [(use["version"], use["digest"], use["rounds"]) for use in found["items"]] == [(2, NEW, 3), (1, OLD, 3)]
    assert "as it is now" in words(await admin.get("/datasets/dataset1"))


async def test_what_a_running_task_trains_on_stands_first(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    await a_dataset(running)
    await a_model(running, trained(1, source()))
    await running.memory.cloud.apply([from_document(task_document())])
    await running.memory.set_status("FederatedTask", "digits", phase="Running", sources=[source(digest=NEW, rounds=1)])
    stored = await running.memory.resources.get("FederatedTask", "digits")
    await running.live.reached("FederatedTask", "digits", stored.revision)
    items = (await admin.get("/api/v1/datasets/dataset1/snapshots")).json()["items"]
    assert [(use["task"], use["at"], use["digest"]) for use in items] == [
        ("digits", "", NEW),
        ("gone", "2030-01-31T12:00:01Z", OLD),
    ]
    assert "in use now" in words(await admin.get("/datasets/dataset1"))


async def test_a_dataset_that_nothing_was_trained_on_says_what_will_appear(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await a_dataset(running)
    found = words(await admin.get("/datasets/dataset1"))
    assert "Nothing was trained on it yet." in found
    assert "No number yet" in found
