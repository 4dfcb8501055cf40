"""Brokers, bridges and queues as a person sees them, and as the API tells them: unknown is never the last good value."""

from __future__ import annotations

import re

import httpx
from memory_portal import RunningPortal, worker_row

from edgeai.events.address import CLOUD, Address
from edgeai.events.catalogue import Bridging, Heartbeat, Inferences, Inferring, LaneCounts
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.portal.formats import NOTHING
from edgeai.portal.live import COORDINATOR

BEAT = Heartbeat(100.0, 2, 0.0021, False, 1)
TOLD = Bridging(90.0, True, 1, 0, LaneCounts(51, 2048, dropped_away=3, waiting=4), LaneCounts(20, 100))


def facts(page: httpx.Response) -> dict[str, str]:
    """What stands under each small title of a page."""
    assert page.status_code == 200, page.text
    pairs = re.findall(r"<dt>(.*?)</dt><dd[^>]*>(.*?)</dd>", page.text, re.DOTALL)
    return {re.sub(r"<[^>]*>", "", name): " ".join(re.sub(r"<[^>]*>", "", text).split()) for name, text in pairs}


async def heard(running: RunningPortal, node: str, *events: Heartbeat | Bridging) -> None:
    """Register a node and have it say this."""
    memory, live = running.memory, running.live
    await memory.node(node, versions={"broker": "mosquitto"})
    await running.until(lambda: node in live.entries["EdgeNode"])
    for event in events:
        memory.pass_by(event, node)
    memory.beat()
    await running.until(lambda: live.coordinator_life().known)


async def test_the_page_of_an_edge_shows_broker_bridge_and_queues(running: RunningPortal):
    await heard(running, "edge1", BEAT, TOLD)
    async with running.browser() as browser:
        page = await browser.get("/edges/edge1")
    found = facts(page)
    assert (found["Broker"], found["Round trip"]) == ("mosquitto", "2.1 ms")
    assert (found["Bridge to the broker"], found["Bridge to the cloud"]) == ("connected 1 reconnect", "connected")
    assert (found["Outbox"], found["Controller"]) == ("2 facts without receipt", "1 to be read")
    assert found["Bridge"] == "4 up, 0 down"
    row = re.search(r"Up, to the cloud.*?</tr>", page.text, re.DOTALL)
    assert row is not None
    assert re.findall(r"<td[^>]*>(.*?)</td>", row.group()) == ["51", NOTHING, "2.0 kB", "3", "0", "0"]


async def test_of_an_edge_that_was_never_heard_all_is_unknown(running: RunningPortal):
    await heard(running, "edge1")
    async with running.browser() as browser:
        page = await browser.get("/edges/edge1")
    found = facts(page)
    names = ("Round trip", "Bridge to the broker", "Bridge to the cloud", "Outbox", "Controller", "Bridge")
    assert {found[name] for name in names} == {"unknown"}
    assert "nothing was heard of it yet" in page.text


async def test_a_bridge_that_is_heard_alone_lives_while_its_controller_is_silent(running: RunningPortal):
    await heard(running, "edge1", TOLD)
    await running.until(lambda: running.live.health("edge1").bridging)
    async with running.client() as client:
        summary = (await client.get("/api/v1/edgenodes?view=summary")).json()["items"][0]
        overview = (await client.get("/api/v1/overview")).json()
    sentence = "the bridge of edge1 lives, the controller is silent: see the log of `edgeai edge` there"
    assert (summary["state"], summary["needs"], summary["health"]["bridge"]["lives"]) == ("unknown", sentence, True)
    assert [item["sentence"] for item in overview["attention"]] == [sentence]


async def test_what_needs_a_person_is_on_the_overview_with_who_and_what_to_do(running: RunningPortal):
    await heard(running, "edge1", Heartbeat(100.0, 1234, 0.002))
    async with running.browser() as browser:
        page = await browser.get("/")
    assert (
        "edge1 holds 1,234 facts that the coordinator has not confirmed: see whether the coordinator runs" in page.text
    )


async def test_the_overview_shows_how_the_cloud_does(running: RunningPortal):
    await heard(running, CLOUD, BEAT)
    beat = Heartbeat(1.0, 0, 0.0035, False, 12, 5_000_000, 8_000_000_000)
    running.memory.pass_by(beat, CLOUD, worker="coordinator")
    await running.until(lambda: running.live.health(COORDINATOR).heartbeat == beat and running.live.bus_trip[0])
    async with running.browser() as browser:
        found = facts(await browser.get("/"))
    assert found["Bus, from the portal and back"].endswith(" ms")
    assert found["Bus, from the coordinator and back"] == "3.5 ms"
    assert found["Facts that wait for the coordinator"] == "12"
    assert found["Store"] == "5.0 MB of 8.0 GB"


async def test_what_the_cloud_suffers_from_is_said_of_the_cloud(running: RunningPortal):
    await heard(running, CLOUD, BEAT)
    running.memory.pass_by(Heartbeat(1.0, broker_silent=True), CLOUD, worker="coordinator")
    await running.until(lambda: (beat := running.live.health(COORDINATOR).heartbeat) and beat.broker_silent)
    async with running.client() as client:
        attention = (await client.get("/api/v1/overview")).json()["attention"]
    assert [(item["name"], "brings none back" in item["sentence"]) for item in attention] == [(CLOUD, True)]


async def test_nothing_is_known_while_the_bus_is_away(running: RunningPortal):
    await heard(running, "edge1", BEAT, TOLD)
    running.memory.broker.stop()
    await running.until(lambda: not running.live.connected)
    health = running.live.health("edge1")
    assert (health.heartbeat, health.bridging, health.bridging_age_s is None) == (None, None, False)


async def test_requests_that_wait_at_a_worker_of_a_service_are_among_the_queues(running: RunningPortal):
    await heard(running, "edge1", BEAT)
    memory, live = running.memory, running.live
    status = {"phase": "Running", "workers": [worker_row("camera", "edge1", role="edge")]}
    document = {"metadata": {"name": "eyes", "uid": "0a1b2c3d" * 4}, "spec": {"edgeWorkers": []}, "status": status}
    await memory.resources.create("JointInferenceService", "eyes", {"kind": "JointInferenceService", **document})
    await running.until(lambda: live.entries["JointInferenceService"])
    entry = live.entry("JointInferenceService", "eyes")
    await running.until(lambda: live.inferring.of(entry.level))
    told = Inferring("", Inferences(), waiting=9)
    address = Address("edge1", told.direction, told.event_class, told.kind, entry.level, "camera")
    memory.broker.publish(address, encode(Envelope(Header("edge1"), told)))
    await running.until(lambda: live.waiting(entry, "camera", "edge1") == 9)
    async with running.browser() as browser:
        found = facts(await browser.get("/edges/edge1"))
    assert found["camera of eyes"] == "9 requests"
