"""The REST API over a cloud in memory: lists, manifests, patches, conflicts, logs, events, models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from memory_portal import NOW, RunningPortal, closed, condition, started, task_document

from edgeai.bus.base import Delivery
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import LogAnswered, LogRequested
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.resources.base import SCRIPT_ANNOTATION, SOURCE_ANNOTATION
from edgeai.resources.kinds import from_document
from edgeai.resources.manifest import dump_manifests
from edgeai.store.files import digest_bytes, write_whole

V1 = "/api/v1"
YAML = {"Content-Type": "application/yaml"}
MERGE = {"Content-Type": "application/merge-patch+json"}


async def post_yaml(client: httpx.AsyncClient, *documents: dict, **params: str) -> httpx.Response:
    return await client.post(f"{V1}/apply", content=dump_manifests(documents), headers=YAML, params=params)


# --- apply


async def test_what_was_applied_is_found_at_once(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    done = await post_yaml(admin, task_document())
    found = await admin.get(f"{V1}/federatedtasks/digits")
    assert (done.status_code, found.status_code) == (200, 200)
    assert found.json()["spec"] == (await running.memory.cloud.get("FederatedTask", "digits")).to_document()["spec"]


async def test_applying_says_what_was_done_with_each_resource(admin: httpx.AsyncClient) -> None:
    model = {"apiVersion": "edgeai.io/v1alpha1", "kind": "Model", "metadata": {"name": "cnn"}}
    first = (await post_yaml(admin, model, task_document())).json()["items"]
    again = (await post_yaml(admin, model, task_document(rounds=5))).json()["items"]
    assert [(row["kind"], row["action"], row["generation"]) for row in first + again] == [
        ("Model", "created", 1),
        ("FederatedTask", "created", 1),
        ("Model", "unchanged", 1),
        ("FederatedTask", "configured", 2),
    ]


async def test_json_is_taken_like_yaml(admin: httpx.AsyncClient) -> None:
    document = task_document(labels={"who": "\U0001f600"})
    await admin.post(f"{V1}/apply", json=document)
    assert (await admin.get(f"{V1}/federatedtasks/digits")).json()["metadata"]["labels"] == {"who": "\U0001f600"}


async def test_a_refused_manifest_is_answered_with_line_and_field(admin: httpx.AsyncClient) -> None:
    text = dump_manifests([task_document()]).replace("frameworkType: numpy", "frameworkType: 7", 1)
    refused = await admin.post(f"{V1}/apply", content=text, headers=YAML)
    line = 1 + text.splitlines().index("      frameworkType: 7")
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    [error] = refused.json()["errors"]
    assert (error["line"], error["field"]) == (line, "spec.trainingWorkers[0].workerSpec.frameworkType")


async def test_a_relative_script_folder_is_refused_with_its_line(admin: httpx.AsyncClient) -> None:
    refused = await post_yaml(admin, task_document(folder="./train"))
    assert refused.status_code == 422
    assert "edgeai apply" in refused.json()["detail"]
    assert "below an allowed root of the node" in refused.json()["detail"]


async def test_every_worker_with_a_relative_script_folder_is_named_with_its_own_line(admin: httpx.AsyncClient) -> None:
    text = dump_manifests([task_document(folder="./train")])
    refused = await admin.post(f"{V1}/apply?dryRun=true", content=text, headers=YAML)
    lines = [number for number, line in enumerate(text.splitlines(), 1) if "trainScriptDir" in line]
    assert [(error["line"], error["field"]) for error in refused.json()["errors"]] == [
        (line, f"spec.trainingWorkers[{place}].workerSpec.trainScriptDir") for place, line in enumerate(lines)
    ]


async def test_ten_errors_of_a_manifest_are_listed_and_the_others_counted(admin: httpx.AsyncClient) -> None:
    text = dump_manifests([task_document()]) + "".join(f"x{number}: 1\n" for number in range(12))
    errors = (await admin.post(f"{V1}/apply", content=text, headers=YAML)).json()["errors"]
    assert len({error["field"] for error in errors[:10]}) == 10
    assert errors[10:] == [{"detail": "(and 2 more)"}]


async def test_a_model_file_is_never_read_where_the_portal_runs(admin: httpx.AsyncClient) -> None:
    spec = {"url": "/etc/hostname", "format": "npz"}
    model = {"apiVersion": "edgeai.io/v1alpha1", "kind": "Model", "metadata": {"name": "cnn"}, "spec": spec}
    refused = await post_yaml(admin, model)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "spec.url")


async def test_a_task_that_was_packed_before_can_be_edited_and_applied_again(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    document = task_document(folder="./train")
    notes = {f"{SCRIPT_ANNOTATION}work{number}": f"{'ab' * 32}:7" for number in (1, 2)}
    document["metadata"]["annotations"] = notes
    await running.memory.cloud.put(from_document(document))
    await running.until(lambda: running.live.entries["FederatedTask"])
    manifest = (await admin.get(f"{V1}/federatedtasks/digits/manifest")).text
    edited = manifest.replace("value: 3", "value: 8")
    done = await admin.post(f"{V1}/apply", content=edited, headers=YAML)
    assert done.json()["items"][0]["action"] == "configured"
    assert (await running.memory.cloud.get("FederatedTask", "digits")).metadata.annotations == notes


@pytest.mark.parametrize("note", [f"{SCRIPT_ANNOTATION}work1", SOURCE_ANNOTATION])
async def test_nobody_can_name_another_bundle(admin: httpx.AsyncClient, note: str) -> None:
    document = task_document()
    document["metadata"]["annotations"] = {note: f"{'cd' * 32}:7"}
    assert (await post_yaml(admin, document)).status_code == 422


async def test_a_posted_status_is_not_used(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    await post_yaml(admin, {**task_document(), "status": {"phase": "Succeeded"}})
    assert (await admin.get(f"{V1}/federatedtasks/digits")).json()["status"].get("phase") != "Succeeded"
    assert (await running.memory.cloud.get("FederatedTask", "digits")).status.phase == "Pending"  # type: ignore[attr-defined]


async def test_a_dry_run_changes_nothing(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    done = await post_yaml(admin, task_document(), dryRun="true")
    assert done.json()["items"][0]["action"] == "created"
    assert await running.memory.cloud.list("FederatedTask") == []


async def test_an_older_generation_is_refused_with_409(admin: httpx.AsyncClient) -> None:
    await post_yaml(admin, task_document())
    await post_yaml(admin, task_document(rounds=5))
    older = task_document(rounds=7)
    older["metadata"]["generation"] = 1
    refused = await post_yaml(admin, older)
    assert (refused.status_code, "generation 2" in refused.json()["detail"]) == (409, True)


async def test_nothing_is_written_when_one_resource_of_a_manifest_conflicts(admin: httpx.AsyncClient) -> None:
    await post_yaml(admin, task_document("old"))
    stale = task_document("old", rounds=9)
    stale["metadata"]["resourceVersion"] = "99999"
    refused = await post_yaml(admin, task_document("new"), stale)
    assert refused.status_code == 409
    assert (await admin.get(f"{V1}/federatedtasks/new")).status_code == 404


async def test_a_manifest_above_256_kb_is_refused(admin: httpx.AsyncClient) -> None:
    text = f"# {'x' * (256 * 1024)}\n" + dump_manifests([task_document()])
    assert (await admin.post(f"{V1}/apply", content=text, headers=YAML)).status_code == 413


async def test_a_body_without_a_length_is_stopped_at_the_limit(admin: httpx.AsyncClient) -> None:
    async def endless():
        for _ in range(1000):
            yield b"#" * 1024

    assert (await admin.post(f"{V1}/apply", content=endless(), headers=YAML)).status_code == 413


async def test_another_media_type_is_refused(admin: httpx.AsyncClient) -> None:
    refused = await admin.post(f"{V1}/apply", content="a: 1", headers={"Content-Type": "text/plain"})
    assert refused.status_code == 415


# --- lists


async def test_pages_of_a_list_follow_each_other_without_gap_or_repeat(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    for number in range(7):
        await running.memory.node(f"edge{number}")
    await running.until(lambda: len(running.live.entries["EdgeNode"]) == 7)
    seen, params = [], {"limit": "3"}
    while True:
        page = (await admin.get(f"{V1}/edgenodes", params=params)).json()
        seen.append([item["metadata"]["name"] for item in page["items"]])
        if "continue" not in page["metadata"]:
            break
        params["continue"] = page["metadata"]["continue"]
    assert seen == [["edge0", "edge1", "edge2"], ["edge3", "edge4", "edge5"], ["edge6"]]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("", ["a", "b", "c"]),
        ("team=red", ["a"]),
        ("team==red", ["a"]),
        ("team!=red", ["b", "c"]),
        ("team", ["a", "b"]),
        ("!team", ["c"]),
        ("team,tier=1", ["a"]),
    ],
)
async def test_a_list_is_narrowed_by_labels(running: RunningPortal, selector: str, found: list[str]) -> None:
    for name, labels in (("a", {"team": "red", "tier": "1"}), ("b", {"team": "blue"}), ("c", {})):
        await running.memory.task(name, labels=labels)
    await running.until(lambda: len(running.live.entries["FederatedTask"]) == 3)
    async with running.client() as client:
        page = await client.get(f"{V1}/federatedtasks", params={"labelSelector": selector})
    assert [item["metadata"]["name"] for item in page.json()["items"]] == found


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=501", "limit=x", "limit=1&limit=2", "labelSelector=a=b=c", "continue=zz", "foo=1", "view=all"],
)
async def test_a_wrong_query_is_refused_with_400(admin: httpx.AsyncClient, query: str) -> None:
    refused = await admin.get(f"{V1}/federatedtasks?{query}")
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")


async def test_a_resource_that_is_not_there_is_404_with_a_sentence(admin: httpx.AsyncClient) -> None:
    missing = await admin.get(f"{V1}/models/nope")
    assert (missing.status_code, missing.json()["detail"]) == (404, "model nope does not exist")


# --- patch, delete, pause


async def test_a_patch_merges_the_spec_and_adds_one_to_the_generation(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await post_yaml(admin, task_document())
    patch = {"spec": {"paused": True}, "metadata": {"labels": {"team": "red"}}}
    done = await admin.patch(f"{V1}/federatedtasks/digits", content=json.dumps(patch), headers=MERGE)
    found = (await admin.get(f"{V1}/federatedtasks/digits")).json()
    assert (done.json()["action"], found["metadata"]["generation"]) == ("configured", 2)
    assert (found["spec"]["paused"], found["metadata"]["labels"]) == (True, {"team": "red"})


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"spec": {"paused": 3}}, "spec.paused"),
        ({"spec": {"nonsense": 3}}, "spec.nonsense"),
        ({"status": {}}, None),
        ({"metadata": {"name": "other"}}, "metadata"),
        ({"spec": []}, "spec"),
        ([], None),
    ],
    ids=str,
)
async def test_a_patch_that_does_not_fit_is_refused(admin: httpx.AsyncClient, patch: object, field: str | None) -> None:
    await post_yaml(admin, task_document())
    refused = await admin.patch(f"{V1}/federatedtasks/digits", content=json.dumps(patch), headers=MERGE)
    assert (refused.status_code, refused.json()["errors"][0].get("field")) == (422, field)


@pytest.mark.parametrize(
    ("method", "path"), [("PATCH", ""), ("DELETE", ""), ("POST", "/pause")], ids=["patch", "delete", "pause"]
)
async def test_a_change_of_another_version_is_refused_with_409(
    admin: httpx.AsyncClient, method: str, path: str
) -> None:
    await post_yaml(admin, task_document())
    url = f"{V1}/federatedtasks/digits{path}"
    content = {"content": "{}", "headers": MERGE} if method == "PATCH" else {}
    by_generation = await admin.request(method, url, params={"generation": "7"}, **content)  # type: ignore[arg-type]
    headers = {**content.get("headers", {}), "If-Match": '"99999"'}  # type: ignore[dict-item]
    by_version = await admin.request(method, url, headers=headers, content=content.get("content"))
    assert (by_generation.status_code, by_version.status_code) == (409, 409)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"spec": {"a": "\\ud800"}}', 400),
        (b'{"spec": NaN}', 400),
        (b"{", 400),
        (b"\xff", 400),
        (b'{"spec": ' + b'{"a": ' * 40 + b"1" + b"}" * 41, 422),
        (b"[" * 100_000, 400),
        (b'{"spec": {"paused": ' + b"9" * 5000 + b"}}", 400),
    ],
    ids=["half a pair", "NaN", "cut", "no text", "deep", "very deep", "huge number"],
)
async def test_a_body_that_is_no_patch_is_refused(admin: httpx.AsyncClient, body: bytes, status: int) -> None:
    await post_yaml(admin, task_document())
    refused = await admin.patch(f"{V1}/federatedtasks/digits", content=body, headers=MERGE)
    assert (refused.status_code, refused.headers["content-type"]) == (status, "application/problem+json")


async def test_a_task_that_is_deleted_is_marked_until_its_workers_are_gone(admin: httpx.AsyncClient) -> None:
    await post_yaml(admin, task_document())
    assert (await admin.delete(f"{V1}/federatedtasks/digits")).status_code == 204
    found = (await admin.get(f"{V1}/federatedtasks/digits")).json()
    assert found["metadata"]["deletionTimestamp"]


async def test_a_task_is_paused_and_resumed(admin: httpx.AsyncClient) -> None:
    await post_yaml(admin, task_document())
    paused = await admin.post(f"{V1}/federatedtasks/digits/pause")
    resumed = await admin.post(f"{V1}/federatedtasks/digits/resume")
    assert [answer.json()["spec"]["paused"] for answer in (paused, resumed)] == [True, False]


async def test_a_task_that_has_ended_cannot_be_paused(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    await running.memory.task(phase="Succeeded")
    await running.until(lambda: running.live.entries["FederatedTask"])
    refused = await admin.post(f"{V1}/federatedtasks/digits/pause")
    assert (refused.status_code, "has ended" in refused.json()["detail"]) == (409, True)


# --- what tasks and models give


async def test_events_of_a_task_come_in_order_and_in_pages(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    task, other = await running.memory.task(), await running.memory.task("other")
    for number in (1, 2, 3):
        running.memory.emit(started(task, number, "work1"), task)
        running.memory.emit(started(other, number, "work1"), other)
    await running.until(lambda: len(running.live.entries["FederatedTask"]) == 2)
    first = (await admin.get(f"{V1}/federatedtasks/digits/events", params={"limit": "2"})).json()
    rest = (await admin.get(f"{V1}/federatedtasks/digits/events", params={"after": str(first["next"])})).json()
    assert [item["body"]["number"] for item in first["items"] + rest["items"]] == [1, 2, 3]
    assert rest["next"] is None


async def test_the_timeline_has_rounds_and_plots(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    task = await running.memory.task()
    running.memory.emit(started(task, 1, "work1", "work2"), task, at=1000.0)
    running.memory.emit(closed(task, 1, "work1", refused={"work2": "NaN"}, answered_s={"work1": 0.5}), task, at=1002.0)
    await running.until(lambda: len(running.live.timelines) and running.live.entries["FederatedTask"])
    await running.until(lambda: next(iter(running.live.timelines.values())).events == 2)
    found = (await admin.get(f"{V1}/federatedtasks/digits/timeline")).json()
    [row] = found["rounds"]
    assert [(line["worker"], line["state"], line["seconds"]) for line in row["workers"]] == [
        ("work1", "answered", 0.5),
        ("work2", "refused", None),
    ]
    assert found["plots"]["x"] == [1]
    assert found["plots"]["submitted"] == {"loss": [0.5]}


async def test_a_log_is_cut_between_characters(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    task = await running.memory.task()
    await running.until(lambda: running.live.entries["FederatedTask"])
    text = "grün".encode()[:3]
    async with answering_logs(running, LogAnswered(5, 5 + len(text), text, False)):
        found = await admin.get(f"{V1}/federatedtasks/digits/workers/work1/log", params={"offset": "5"})
    assert task.metadata.name == "digits"
    assert found.json() == {"offset": 5, "next_offset": 7, "text": "gr", "ended": False}


@asynccontextmanager
async def answering_logs(running: RunningPortal, answer: LogAnswered) -> AsyncIterator[None]:
    """What controllers would do."""
    bus = running.memory.bus

    async def answer_all(deliveries: AsyncIterator[Delivery]) -> None:
        async for delivery in deliveries:
            address = delivery.address
            header = Header(address.node, correlation=decode(delivery.payload).header.correlation)
            to = Address(address.node, Direction.UP, EventClass.REQUEST, LogAnswered.kind, address.task, address.worker)
            await bus.publish(to, encode(Envelope(header, answer)))

    async with bus.subscribe(Pattern(None, Direction.DOWN, EventClass.REQUEST, LogRequested.kind)) as deliveries:
        task = asyncio.create_task(answer_all(deliveries))
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def a_model(running: RunningPortal, *contents: bytes) -> None:
    """A model with these versions, stored."""
    versions = []
    for number, content in enumerate(contents, 1):
        path = running.portal.settings.state_dir / f"blob{number}"
        write_whole(path, content)
        await running.memory.blobs.put(digest_bytes(content), path)
        path.unlink()
        version = {"version": number, "digest": digest_bytes(content), "sizeBytes": len(content), "createdAt": NOW}
        versions.append(version)
    model = {
        "apiVersion": "edgeai.io/v1alpha1",
        "kind": "Model",
        "metadata": {"name": "cnn", "uid": "u", "generation": 1},
        "spec": {},
        "status": {"versions": versions},
    }
    await running.memory.resources.create("Model", "cnn", model)
    await running.until(lambda: running.live.entries["Model"])


async def test_a_version_is_downloaded_whole_and_leaves_no_file(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    content = bytes(range(256)) * 4096
    await a_model(running, content)
    found = await admin.get(f"{V1}/models/cnn/versions/1/content")
    assert (digest_bytes(found.content), found.headers["etag"]) == (digest_bytes(content), f'"{digest_bytes(content)}"')
    assert list((running.portal.settings.state_dir / "downloads").iterdir()) == []
    assert running.portal.downloads.inside == 0


async def test_a_version_that_is_not_there_is_404(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    await a_model(running, b"one")
    missing = await admin.get(f"{V1}/models/cnn/versions/9/content")
    assert (missing.status_code, "there is 1" in missing.json()["detail"]) == (404, True)


async def test_a_damaged_version_is_not_given_out_and_no_path_is_told(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await a_model(running, b"one")
    running.memory.blobs._blobs[digest_bytes(b"one")] = b"two"
    failed = await admin.get(f"{V1}/models/cnn/versions/1/content")
    assert (failed.status_code, str(running.portal.settings.state_dir) in failed.text) == (500, False)
    assert running.portal.downloads.inside == 0


async def test_more_downloads_than_allowed_are_refused(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    await a_model(running, b"one")
    running.portal.downloads.inside = running.portal.downloads.limit
    refused = await admin.get(f"{V1}/models/cnn/versions/1/content")
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)


async def test_rolling_back_makes_an_old_version_the_newest(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    await a_model(running, b"one", b"two")
    done = await admin.post(f"{V1}/models/cnn/rollback", json={"version": 1})
    newest = done.json()["status"]["versions"][-1]
    assert (newest["version"], newest["digest"]) == (3, digest_bytes(b"one"))


@pytest.mark.parametrize(
    "body", [{}, {"version": 0}, {"version": True}, {"version": "1"}, {"version": 1, "x": 2}, 3], ids=str
)
async def test_a_rollback_to_no_version_is_refused(
    running: RunningPortal, admin: httpx.AsyncClient, body: object
) -> None:
    await a_model(running, b"one")
    assert (await admin.post(f"{V1}/models/cnn/rollback", json=body)).status_code == 422


# --- the cloud is away


async def test_without_a_store_writing_is_503_and_reading_says_unknown(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await running.memory.task(phase="Running", conditions=[condition("Ready", "True")])
    await running.until(lambda: running.live.entries["FederatedTask"])
    running.memory.broker.stop()
    running.memory.resources.reachable = False
    await running.until(lambda: not running.live.connected)
    refused = await post_yaml(admin, task_document("new"))
    found = (await admin.get(f"{V1}/federatedtasks/digits")).json()
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
    assert (found["live"]["known"], found["status"]["phase"]) == (False, "Unknown")


async def test_readiness_says_why_not(running: RunningPortal, admin: httpx.AsyncClient) -> None:
    before = await admin.get("/readyz")
    running.memory.broker.stop()
    after = await admin.get("/readyz")
    assert (before.status_code, after.status_code, after.json()["reasons"]) == (200, 503, ["the bus is away"])
    assert (await admin.get("/healthz")).status_code == 200


async def test_an_unexpected_error_shows_no_trace(
    running: RunningPortal, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.live, "cloud_life", lambda: 1 / 0)
    failed = await admin.get(f"{V1}/overview")
    assert (failed.status_code, failed.json()["title"]) == (500, "Internal error")
    assert "Zero" not in failed.text
    assert "Traceback" not in failed.text
