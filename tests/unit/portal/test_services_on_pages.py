"""A joint inference service in the portal: listed, read, applied, deleted, and shown to a person."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import httpx
import pytest_asyncio
from memory_portal import API, NOW, RunningPortal

from edgeai.portal.services import line_of, service_page
from edgeai.resources.base import SCRIPT_ANNOTATION
from edgeai.resources.kinds import from_document
from edgeai.resources.manifest import dump_manifests

PAGE, SERVICES = "/tasks/jointinferenceservices/digits", "/api/v1/jointinferenceservices"
YAML = {"Content-Type": "application/yaml"}
DIGEST = "ab" * 32
STATUS: dict[str, Any] = {
    "phase": "Running",
    "counts": {"inferences": 200, "hard": 70, "sent": 50},
    "edges": [
        {
            "worker": "little",
            "node": "edge1",
            "serving": {"digest": DIGEST, "version": 3},
            "counts": {"inferences": 200, "hard": 70, "sent": 50, "answered": 45, "late": 3, "fellBack": 6, "shed": 9},
            "cloud": "half-open",
        }
    ],
    "workers": [{"name": "big-0", "node": "cloud", "role": "cloud", "state": "Running"}],
    "replicas": {"wanted": 2, "ready": 1, "waiting": 7, "at": NOW, "reason": "7 requests wait"},
    "cloudServing": {"digest": DIGEST, "version": 2},
}


def document(folder: str = "/srv/joint") -> dict[str, Any]:
    worker = {"workerSpec": {"scriptDir": folder, "scriptBootFile": "main.py", "frameworkType": "numpy"}}
    spec = {
        "edgeWorkers": [{"name": "little", "nodeName": "edge1", "model": {"name": "small"}, **worker}],
        "cloudWorker": {"name": "big", "model": {"name": "large"}, "replicas": {"min": 1, "max": 4}, **worker},
        "policy": {"maxOffloadFraction": 0.3},
    }
    return {"apiVersion": API, "kind": "JointInferenceService", "metadata": {"name": "digits"}, "spec": spec}


async def apply(client: httpx.AsyncClient, *documents: dict[str, Any]) -> httpx.Response:
    return await client.post("/api/v1/apply", content=dump_manifests(documents), headers=YAML)


def words(page: httpx.Response) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.text)).split())


# --- the API


async def test_a_service_is_applied_listed_and_read(admin: httpx.AsyncClient):
    assert (await apply(admin, document())).json()["items"][0]["action"] == "created"
    listed = (await admin.get(SERVICES)).json()["items"]
    assert [item["metadata"]["name"] for item in listed] == ["digits"]
    assert (await admin.get(f"{SERVICES}/digits")).json()["spec"]["cloudWorker"]["name"] == "big"
    assert (await admin.get(f"{SERVICES}/digits/summary")).json()["nodes"] == ["edge1"]


async def test_a_service_is_marked_for_deletion_and_cannot_be_paused(running: RunningPortal, admin: httpx.AsyncClient):
    await apply(admin, document())
    assert (await admin.post(f"{SERVICES}/digits/pause")).status_code == 404
    assert (await admin.delete(f"{SERVICES}/digits")).status_code == 204
    stored = await running.memory.cloud.get("JointInferenceService", "digits")
    assert stored.metadata.deletion_timestamp is not None


async def test_a_relative_script_folder_is_refused_with_its_field(admin: httpx.AsyncClient):
    refused = await apply(admin, document("./joint"))
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "spec.edgeWorkers[0].workerSpec.scriptDir"


async def test_a_service_that_was_packed_before_can_be_edited_and_applied_again(
    running: RunningPortal, admin: httpx.AsyncClient
):
    packed = document("./joint")
    notes = {f"{SCRIPT_ANNOTATION}{name}": f"{DIGEST}:7" for name in ("little", "big")}
    packed["metadata"]["annotations"] = notes
    await running.memory.cloud.put(from_document(packed))
    await running.until(lambda: running.live.entries["JointInferenceService"])
    manifest = (await admin.get(f"{SERVICES}/digits/manifest")).text
    changed = manifest.replace("maxOffloadFraction: 0.3", "maxOffloadFraction: 0.2")
    done = await admin.post("/api/v1/apply", content=changed, headers=YAML)
    assert done.json()["items"][0]["action"] == "configured"
    assert (await running.memory.cloud.get("JointInferenceService", "digits")).metadata.annotations == notes


# --- pages


@pytest_asyncio.fixture
async def served(running: RunningPortal) -> RunningPortal:
    memory, live = running.memory, running.live
    await memory.node("edge1")
    await memory.cloud.apply([from_document(document())])
    await memory.set_status("JointInferenceService", "digits", **STATUS)
    memory.beat("edge1", "cloud")
    await running.until(
        lambda: [entry.phase for entry in live.entries["JointInferenceService"].values()] == ["Running"]
    )
    await running.until(lambda: live.coordinator_life().known)
    return running


async def test_the_page_of_a_service_shows_edges_replicas_and_workers(served: RunningPortal):
    async with served.browser() as browser:
        found = await browser.get(PAGE)
    assert found.status_code == 200, found.text
    text = words(found)
    for sentence in (
        "Inferences 200 70 hard",
        "Sent to the cloud 50 25.0 % of at most 30.0 %",
        "Replicas 1 of 2 ready (1 to 4)",
        "little edge1 version 3 abababababab half-open 200 70 50 25.0 % 45 3 6",
        "1 of 2 ready, 7 requests wait . Serving version 2 abababababab",
        "7 requests wait, since",
        "big-0 cloud cloud Running",
    ):
        assert sentence in text
    assert "Pause" not in text
    assert "Rounds" not in text


async def test_a_service_without_a_status_has_a_page(running: RunningPortal, admin: httpx.AsyncClient):
    await apply(admin, document())
    async with running.browser() as browser:
        found = await browser.get(PAGE)
    assert (found.status_code, "No edge has told anything yet" in words(found)) == (200, True)


async def test_a_service_stands_in_the_list_of_tasks_with_what_it_does(served: RunningPortal):
    async with served.browser() as browser:
        found = await browser.get("/tasks")
    assert "digits Running 200 inferences, 25% sent, 1 of 2 replicas" in words(found)


async def test_the_page_of_an_edge_names_the_models_that_serve_there(served: RunningPortal):
    async with served.browser() as browser:
        found = await browser.get("/edges/edge1")
    assert "/models/small" in found.text


def test_what_is_no_service_has_no_line():
    assert line_of({"phase": "Running"}) == ""


def test_before_the_first_inference_there_is_no_share():
    page = service_page(document() | {"status": {"edges": [{"worker": "little", "node": "edge1"}]}})
    assert (page["share"], page["edges"][0]["share"], page["models"]) == (None, None, ["large", "small"])
