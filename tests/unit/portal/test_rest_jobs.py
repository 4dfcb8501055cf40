"""Incremental learning jobs through the REST API, over a cloud in memory."""

from __future__ import annotations

from typing import Any

import httpx
from memory_portal import RunningPortal

from edgeai.resources.base import SCRIPT_ANNOTATION
from edgeai.resources.kinds import from_document
from edgeai.resources.manifest import dump_manifests

JOBS = "/api/v1/incrementallearningjobs"
YAML = {"Content-Type": "application/yaml"}


def document(folder: str = "/srv/job") -> dict[str, Any]:
    worker = {"scriptDir": folder, "scriptBootFile": "main.py", "frameworkType": "numpy"}
    return {
        "apiVersion": "edgeai.io/v1alpha1",
        "kind": "IncrementalLearningJob",
        "metadata": {"name": "drift"},
        "spec": {
            "nodeName": "edge1",
            "initialModel": {"name": "cnn"},
            "outputModel": {"name": "cnn"},
            "dataset": {"name": "dataset0"},
            **{stage: {"workerSpec": dict(worker)} for stage in ("train", "eval", "deploy")},
        },
    }


async def apply(client: httpx.AsyncClient, *documents: dict[str, Any]) -> httpx.Response:
    return await client.post("/api/v1/apply", content=dump_manifests(documents), headers=YAML)


async def test_a_job_is_applied_listed_and_read(admin: httpx.AsyncClient) -> None:
    assert (await apply(admin, document())).json()["items"][0]["action"] == "created"
    listed = (await admin.get(JOBS)).json()["items"]
    assert [item["metadata"]["name"] for item in listed] == ["drift"]
    assert (await admin.get(f"{JOBS}/drift")).json()["spec"]["nodeName"] == "edge1"
    assert (await admin.get(f"{JOBS}/drift/summary")).json()["kind"] == "IncrementalLearningJob"


async def test_a_job_is_paused_resumed_and_marked_for_deletion(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    await apply(admin, document())
    changed = [(await admin.post(f"{JOBS}/drift/{what}")).json()["spec"]["paused"] for what in ("pause", "resume")]
    assert changed == [True, False]
    assert (await admin.delete(f"{JOBS}/drift")).status_code == 204
    stored = await running.memory.cloud.get("IncrementalLearningJob", "drift")
    assert stored.metadata.deletion_timestamp is not None


async def test_relative_script_folders_of_all_stages_are_refused_with_their_fields(admin: httpx.AsyncClient) -> None:
    refused = await apply(admin, document("./job"))
    assert refused.status_code == 422
    assert [(error["field"], error["line"] > 1) for error in refused.json()["errors"]] == [
        (f"spec.{stage}.workerSpec.scriptDir", True) for stage in ("train", "eval", "deploy")
    ]


async def test_a_job_that_was_packed_before_can_be_edited_and_applied_again(
    running: RunningPortal, admin: httpx.AsyncClient
) -> None:
    packed = document("./job")
    notes = {f"{SCRIPT_ANNOTATION}{stage}": f"{'ab' * 32}:7" for stage in ("train", "eval", "deploy")}
    packed["metadata"]["annotations"] = notes
    await running.memory.cloud.put(from_document(packed))
    await running.until(lambda: running.live.entries["IncrementalLearningJob"])
    manifest = (await admin.get(f"{JOBS}/drift/manifest")).text
    done = await admin.post(
        "/api/v1/apply", content=manifest.replace("trainFraction: 0.8", "trainFraction: 0.7"), headers=YAML
    )
    assert done.json()["items"][0]["action"] == "configured"
    assert (await running.memory.cloud.get("IncrementalLearningJob", "drift")).metadata.annotations == notes
