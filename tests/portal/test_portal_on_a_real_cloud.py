"""The portal on a real nats-server with coordinator, controllers and workers: one training seen and steered over HTTP."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from real_portal import SCRIPT, Cluster, Portal, cluster, following

from edgeai.portal.app import PortalSettings
from edgeai.resources.manifest import dump_manifests

pytestmark = pytest.mark.asyncio(loop_scope="module")
V1 = "/api/v1"
TASK = f"{V1}/federatedtasks/digits"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trained(
    start_broker: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Cluster, Portal, httpx.AsyncClient, dict[str, Any]]]:
    """A task that was applied over HTTP and has been followed on a stream to its end; the last is what the stream showed."""
    folder = tmp_path_factory.mktemp("cluster")
    async with cluster(start_broker("nats_core").url, folder) as found:
        portal = Portal(found.source, PortalSettings(folder / "portal"))
        await portal.start()
        try:
            async with portal.client() as client:
                await portal.ready(client)
                text = dump_manifests(found.manifest("digits"))
                applied = await client.post(f"{V1}/apply", content=text, headers={"Content-Type": "application/yaml"})
                assert applied.status_code == 200, applied.text
                async with following(
                    client, f"{V1}/live", topics="FederatedTask,Timeline:FederatedTask/digits"
                ) as events:
                    ended = await events.until(
                        lambda _, data: data.get("object", {}).get("phase") in ("Succeeded", "Failed")
                    )
                yield found, portal, client, ended["object"]
        finally:
            await portal.stop()


async def test_a_task_applied_over_http_is_followed_to_its_end(trained: Any) -> None:
    *_, shown = trained
    assert (shown["phase"], shown["live"]["known"]) == ("Succeeded", True), shown["conditions"]


async def test_the_timeline_says_who_answered_each_round_and_after_how_long(trained: Any) -> None:
    timeline = (await trained[2].get(f"{TASK}/timeline")).json()
    rows = {row["round"]: {line["worker"]: line for line in row["workers"]} for row in timeline["rounds"]}
    for number in (1, 2, 3):
        assert {name: line["state"] for name, line in rows[number].items()} == {
            "work1": "answered",
            "work2": "answered",
        }
        assert all(line["seconds"] is not None for line in rows[number].values())
    assert timeline["plots"]["validated"]["accuracy"] == pytest.approx([0.2, 0.3, 0.4])


async def test_every_event_of_the_task_comes_in_order(trained: Any) -> None:
    found = (await trained[2].get(f"{TASK}/events", params={"limit": "500"})).json()["items"]
    assert [item["sequence"] for item in found] == sorted(item["sequence"] for item in found)
    phases = [item["body"]["phase"] for item in found if item["kind"] == "phase-changed"]
    assert phases == ["Preparing", "Running", "Succeeded"]


async def test_the_model_is_downloaded_and_has_its_digest(trained: Any) -> None:
    client = trained[2]
    [version] = (await client.get(f"{V1}/models/digits/versions")).json()["items"]
    content = (await client.get(f"{V1}/models/digits/versions/1/content")).content
    assert hashlib.sha256(content).hexdigest() == version["digest"]


async def test_the_log_of_a_worker_is_read_from_its_node(trained: Any) -> None:
    log = await trained[2].get(f"{TASK}/workers/work1/log")
    assert "joined work1" in log.json()["text"]


async def test_nodes_and_the_coordinator_are_known_by_their_signs_of_life(trained: Any) -> None:
    async with following(trained[2], f"{V1}/live", topics="Overview") as events:
        shown = await events.until(lambda _, data: data.get("object", {}).get("nodes") == {"ready": 3})
    assert shown["object"]["coordinator"]["known"]


async def test_the_timeline_is_the_same_after_a_restart_of_portal_and_coordinator(trained: Any) -> None:
    found, portal, client, _ = trained
    before, url = (await client.get(f"{TASK}/timeline")).json(), portal.url
    await portal.stop()
    await found.coordinator.end()
    found.coordinator.begin()
    await portal.start()
    assert portal.url == url, "open pages would not find it"
    await portal.ready(client)
    after = (await client.get(f"{TASK}/timeline")).json()
    ignored = {"task", "workers"}  # ages, and progress that was only heard in passing
    assert {key: after[key] for key in after.keys() - ignored} == {key: before[key] for key in before.keys() - ignored}


# --- a dataset that is rewritten while a task trains on it


WAITING = SCRIPT.replace(
    "            if round.train:",
    """            while round.number == 2 and not Path(__file__).with_name("go").exists():
                await asyncio.sleep(0.05)
            if round.train:""",
).replace("import numpy", "from pathlib import Path\nimport numpy")


async def trains(client: httpx.AsyncClient, found: Cluster, name: str, folders: dict[str, Path]) -> None:
    """Apply a task of this name for the model `kept`, each worker with the script in the folder of its edge."""
    documents = [each for each in found.manifest("kept") if each["kind"] in ("Model", "FederatedTask")]
    for worker in documents[-1]["spec"]["trainingWorkers"]:
        worker["workerSpec"]["trainScriptDir"] = str(folders[worker["nodeName"]])
    documents[-1]["metadata"]["name"] = name
    text = dump_manifests(documents)
    applied = await client.post(f"{V1}/apply", content=text, headers={"Content-Type": "application/yaml"})
    assert applied.status_code == 200, applied.text


async def reaches(client: httpx.AsyncClient, topic: str, fits: Callable[[dict[str, Any]], bool]) -> None:
    async with following(client, f"{V1}/live", topics=topic) as events:
        await events.until(lambda _, data: bool(data.get("object")) and fits(data["object"]))


def rewritten(file: Path) -> str:
    """Three examples more, put in place of the file at once; returns the new digest."""
    fresh = file.with_name("fresh.npz")
    np.savez(fresh, x_train=np.ones((7, 2), "float32"), y_train=np.ones(7, "int64"))
    os.replace(fresh, file)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept(trained: Any) -> AsyncIterator[tuple[httpx.AsyncClient, str, str]]:
    """Two versions of a model: the file on edge1 was rewritten while the task of the first one was in its second round. Then
    both tasks were deleted and the coordinator started again. Yields the digests of the file before and after."""
    found, _, client, _ = trained
    folders = {edge: found.folder / edge / "data" / "waiting" for edge in ("edge1", "edge2")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "main.py").write_text(WAITING)
    old = (await client.get(f"{V1}/datasets/data1")).json()["status"]["digest"]
    await trains(client, found, "first", folders)
    await reaches(client, "FederatedTask", lambda task: task["name"] == "first" and task["round"] == 2)
    new = rewritten(found.folder / "edge1" / "data" / "d.npz")
    await reaches(client, "Dataset", lambda dataset: dataset["name"] == "data1" and dataset["digest"] == new)
    for folder in folders.values():
        (folder / "go").touch()
    await reaches(client, "FederatedTask", lambda task: task["name"] == "first" and task["phase"] == "Succeeded")
    await trains(client, found, "second", folders)
    await reaches(client, "FederatedTask", lambda task: task["name"] == "second" and task["phase"] == "Succeeded")
    for name in ("first", "second"):
        deleted = await client.delete(f"{V1}/federatedtasks/{name}")
        assert deleted.is_success, deleted.text
        async with found.source() as cloud:
            await cloud.wait("FederatedTask", name, lambda task: task is None, 30)
    await found.coordinator.end()
    found.coordinator.begin()
    await reaches(client, "Overview", lambda overview: overview["coordinator"]["known"])
    yield client, old, new


async def test_a_version_keeps_what_it_was_made_from(kept: Any) -> None:
    client, old, new = kept
    first, second = (await client.get(f"{V1}/models/kept/versions")).json()["items"]
    sources = [{each["worker"]: each for each in version["lineage"]["sources"]} for version in (first, second)]
    assert [found["work1"]["digest"] for found in sources] == [old, new]
    assert [found["work1"]["samples"] for found in sources] == [4, 7]
    assert [found["work2"]["digest"] for found in sources] == [sources[0]["work2"]["digest"]] * 2
    assert {each["rounds"] for found in sources for each in found.values()} == {3}
    assert [version["task"] for version in (first, second)] == ["first", "second"]
    assert (second["lineage"]["baseModel"], second["lineage"]["baseVersion"]) == ("kept", 1)


async def test_the_history_of_a_dataset_has_both_counts(kept: Any) -> None:
    client, old, new = kept
    status = (await client.get(f"{V1}/datasets/data1")).json()["status"]
    assert [(each["samples"], each["digest"]) for each in status["history"]] == [(4, old), (7, new)]
    assert status["sizeBytes"] == status["history"][-1]["sizeBytes"] > status["history"][0]["sizeBytes"] > 0


async def test_the_page_of_a_dataset_says_which_version_came_from_which_snapshot(kept: Any) -> None:
    client, old, new = kept
    found = (await client.get(f"{V1}/datasets/data1/snapshots")).json()["items"]
    made = {(use["model"], use["version"]): (use["digest"], use["task"]) for use in found}
    assert made[("kept", 1)] == (old, "first")
    assert made[("kept", 2)] == (new, "second")
    page = (await client.get("/models/kept?compare=1,2")).text
    assert old[:12] in page
    assert new[:12] in page
