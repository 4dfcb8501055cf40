"""A joint inference service in the portal: listed, read, applied, deleted, and shown to a person."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import httpx
import pytest_asyncio
from memory_portal import API, NOW, RunningPortal

from edgeai.events.catalogue import Inferences, Inferring, ServiceChanged
from edgeai.portal import openapi
from edgeai.portal.api import OPERATIONS
from edgeai.portal.inferring import COLUMNS
from edgeai.portal.live import COORDINATOR
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
    "workers": [
        {"name": "big-0", "node": "cloud", "role": "cloud", "state": "Running"},
        {"name": "little", "node": "edge1", "role": "edge", "state": "Running"},
    ],
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


def scored() -> list[dict[str, Any]]:
    """The edge of the service, with a score for each of 200 inferences."""
    columns = {
        "inferences": [100, *[0] * 18, 100],
        "answered": [*[0] * 19, 45],
        "changed": [*[0] * 19, 9],
    }
    scores = {
        **columns,
        "edge": DIGEST,
        "cloud": DIGEST,
        "hard": 70,
        "mining": "CrossEntropy softmax=False threshold=0.5",
    }
    return [{**STATUS["edges"][0], "scores": scores}]


async def test_the_page_says_what_other_thresholds_would_send(served: RunningPortal):
    await served.memory.set_status("JointInferenceService", "digits", edges=scored())
    await served.until(lambda: b'"scores"' in served.live.entries["JointInferenceService"]["digits"].body)
    async with served.browser() as browser:
        text = words(await browser.get(PAGE))
    for sentence in (
        "200 inferences since these models and this mining serve together; "
        "of 45 compared answers, the cloud changed 9 (20 %).",
        "Now a certainty (1 - entropy) below 0.50 is hard: 35 % of the inferences.",
        "A certainty (1 - entropy) below 0.03 would send 30 %, the whole budget.",
        "0.05 50.0 % 10.0 % 45",
        "1.0 100.0 % unknown 45",
    ):
        assert sentence in text


async def test_the_page_says_what_changed_newest_first(served: RunningPortal):
    service = await served.memory.cloud.get("JointInferenceService", "digits")
    uid = service.metadata.uid
    for change, worker in (
        (ServiceChanged(uid, "model", "ab" * 32, "cd" * 32, "a new version", version_before=2, version=3), "little"),
        (ServiceChanged(uid, "breaker-opened", reason="the cloud does not answer", times=4), "little"),
        (ServiceChanged(uid, "replicas", "1", "3", "3 of 4: 12 requests waited"), ""),
    ):
        served.memory.emit(change, service, worker)
    await served.until(lambda: [len(found.changes) for found in served.live.timelines.values()] == [3])
    async with served.browser() as browser:
        text = words(await browser.get(PAGE)).partition("What changed")[2]
    said = (
        "big 3 replicas are wanted, 1 before 3 of 4: 12 requests waited",
        "little stopped asking the cloud, 4 times the cloud does not answer",
        "little serves version 3, version 2 before a new version",
    )
    places = [text.find(sentence) for sentence in said]
    assert places == sorted(places), text
    assert -1 not in places


async def test_the_api_has_the_last_hour_and_the_curves(served: RunningPortal, admin: httpx.AsyncClient):
    await served.memory.set_status("JointInferenceService", "digits", edges=scored())
    await served.until(lambda: b'"scores"' in served.live.entries["JointInferenceService"]["digits"].body)
    found = (await admin.get(f"{SERVICES}/digits/inference")).json()
    assert {len(found["history"][name]) for name in COLUMNS} == {len(found["history"]["at"])}
    [curve] = found["curves"]
    assert (curve["inferences"], curve["answers"], curve["changed"], curve["budget"]) == (200, 45, 9, 0.3)
    assert curve["points"][-1] == {"threshold": 1.0, "sent": 1.0, "changed": None, "answers": 45}


async def test_a_kind_of_task_that_infers_nothing_has_no_such_numbers(running: RunningPortal, admin: httpx.AsyncClient):
    await running.memory.task("digits")
    assert (await admin.get("/api/v1/federatedtasks/digits/inference")).status_code == 404


async def test_what_workers_say_in_passing_is_remembered(served: RunningPortal):
    service = await served.memory.cloud.get("JointInferenceService", "digits")
    level = served.live.entries["JointInferenceService"]["digits"].level
    await served.until(lambda: served.live.inferring.of(level) is not None)
    served.memory.pass_by(Inferring("", Inferences(inferences=7)), "edge1", service, "little")
    history = served.live.inferring.of(level)
    assert history is not None
    await served.until(lambda: ("edge1", "little") in history.workers)


async def test_what_an_edge_says_of_workers_that_are_not_its_own_is_not_heard(served: RunningPortal):
    service = await served.memory.cloud.get("JointInferenceService", "digits")
    level = served.live.entries["JointInferenceService"]["digits"].level
    await served.until(lambda: served.live.inferring.of(level) is not None)
    for node, worker in (("edge2", "little"), ("edge1", "invented"), ("edge1", "big-0"), ("edge1", "little")):
        served.memory.pass_by(Inferring("", Inferences(), waiting=1), node, service, worker)
    history = served.live.inferring.of(level)
    assert history is not None
    await served.until(lambda: history.workers)
    assert set(history.workers) == {("edge1", "little")} == {(node, worker) for node, _, worker in served.live._queues}


# --- what is not known


async def silent(served: RunningPortal, *nodes: str) -> None:
    for node in nodes:
        served.memory.gone(node)
    await served.until(lambda: all(served.live.signs[node].gone for node in nodes))


async def test_what_an_edge_does_is_unknown_when_its_controller_is_silent(served: RunningPortal):
    await silent(served, "edge1")
    async with served.browser() as browser:
        text = words(await browser.get(PAGE))
    assert "little edge1 unknown Unknown 200 70 50" in text
    assert "Replicas 1 of 2 ready" in text


async def test_what_replicas_do_is_unknown_when_the_controller_of_the_cloud_is_silent(served: RunningPortal):
    await silent(served, "cloud")
    async with served.browser() as browser:
        text = words(await browser.get(PAGE))
    assert "Replicas unknown of 2 ready" in text
    assert "7 requests wait ." not in text
    assert "little edge1 version 3" in text


async def test_nothing_that_a_service_does_is_known_without_its_coordinator(served: RunningPortal):
    served.live.signs[COORDINATOR].gone = True
    async with served.browser() as browser, served.client() as client:
        text = words(await browser.get(PAGE))
        status = (await client.get(f"{SERVICES}/digits")).json()["status"]
    described = openapi.document(OPERATIONS)["components"]["schemas"]
    assert {"type": "null"} in described["ReplicaCount"]["properties"]["ready"]["anyOf"]
    assert status["edges"][0].keys() <= described["EdgeServing"]["properties"].keys()
    assert status["workers"][0].keys() <= described["WorkerStatus"]["properties"].keys()
    assert "Replicas unknown (1 to 4)" in text
    assert "little edge1 unknown Unknown" in text
    assert [status["replicas"][name] for name in ("wanted", "ready", "waiting")] == [None] * 3
    assert (status["cloudServing"], status["edges"][0]["serving"], status["edges"][0]["cloud"]) == (
        None,
        None,
        "Unknown",
    )
    assert status["counts"]["inferences"] == 200


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
    assert "/models/large" not in found.text


def test_before_the_replicas_are_known_the_line_says_so():
    found = {"replicas": {"wanted": 2, "ready": None}, "counts": {"inferences": 5}}
    assert line_of(found) == "5 inferences, 0% sent, unknown of 2 replicas"


def test_what_is_no_service_has_no_line():
    assert line_of({"phase": "Running"}) == ""


def test_before_the_first_inference_there_is_no_share():
    page = service_page(document() | {"status": {"edges": [{"worker": "little", "node": "edge1"}]}})
    assert (page["share"], page["edges"][0]["share"], page["models"]) == (None, None, ["large", "small"])
