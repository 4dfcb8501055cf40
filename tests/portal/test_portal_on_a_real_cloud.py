"""The portal on a real nats-server with coordinator, controllers and workers: one training seen and steered over HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio
from real_portal import Cluster, Portal, cluster, following

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
