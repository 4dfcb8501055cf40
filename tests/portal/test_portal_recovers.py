"""An open page lives through restarts of the broker and the loss of its store, and lets the portal go when it stops."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from real_portal import Portal, following, node_document

from edgeai.bus.nats import NatsBus
from edgeai.client import connect
from edgeai.errors import PortTaken, Refused
from edgeai.events.address import CLOUD, Address, Direction
from edgeai.events.catalogue import PhaseChanged
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.portal.app import PortalSettings, one_time_link, portal_url
from edgeai.store.identity import new_id
from edgeai.store.nats import NatsFactStream, NatsResourceStore

V1 = "/api/v1"


class Store:
    """What a coordinator would keep, on a broker that is stopped and started."""

    def __init__(self, broker: Any) -> None:
        self.broker = broker
        self.bus = NatsBus(broker.url, name="store")
        self.resources, self.facts = NatsResourceStore(self.bus), NatsFactStream(self.bus)

    async def ensure(self) -> None:
        await self.bus.wait_connected(20)
        await self.resources.ensure()
        await self.facts.ensure()

    async def tell(self, phase: str) -> None:
        """A fact of a task that is called task-12345678."""
        event = PhaseChanged("12345678" * 4, phase, "because")
        address = Address(CLOUD, Direction.UP, event.event_class, event.kind, "task-12345678")
        await self.bus.publish(address, encode(Envelope(Header("cloud/coordinator"), event, new_id(), 1.0)))

    async def task(self) -> None:
        spec = {
            "aggregationWorker": {
                "name": "aggregation",
                "model": {"name": "m"},
                "workerSpec": {"aggregationAlgorithm": "FedAvg"},
            },
            "trainingWorkers": [
                {
                    "name": "work1",
                    "nodeName": "edge1",
                    "workerSpec": {
                        "dataset": {"name": "d"},
                        "trainScriptDir": "/x",
                        "trainScriptBootFile": "main.py",
                        "frameworkType": "numpy",
                    },
                }
            ],
        }
        metadata = {"name": "task", "uid": "12345678" * 4, "generation": 1}
        document = {"apiVersion": "edgeai.io/v1alpha1", "kind": "FederatedTask", "metadata": metadata, "spec": spec}
        await self.resources.create("FederatedTask", "task", document)


@pytest.fixture
async def store(new_broker: Callable[[str], Any]) -> AsyncIterator[Store]:
    found = Store(new_broker("nats_core"))
    async with found.bus:
        await found.ensure()
        yield found


@pytest.fixture
async def portal(store: Store, tmp_path: Path) -> AsyncIterator[Portal]:
    found = Portal(lambda: connect(store.broker.url), PortalSettings(tmp_path / "portal"))
    await found.start()
    yield found
    await found.stop()


async def test_an_open_stream_says_unknown_while_the_broker_is_away_and_goes_on_after(
    store: Store, portal: Portal
) -> None:
    async with portal.client() as client:
        await portal.ready(client)
        async with following(client, f"{V1}/live", topics="Overview,EdgeNode") as events:
            await events.until(lambda event, _: event == "synced")
            store.broker.stop(kill=True)
            await events.until(lambda _, data: data.get("object", {}).get("live", {}).get("known") is False)
            assert (await client.get("/readyz")).status_code == 503
            store.broker.start()
            await store.ensure()
            await store.resources.create("EdgeNode", "edge1", node_document("edge1"))
            await events.until(lambda _, data: data.get("name") == "edge1")
            await portal.ready(client)


async def test_the_history_is_followed_on_after_a_restart_of_the_broker(store: Store, portal: Portal) -> None:
    await store.task()
    await store.tell("Preparing")
    async with portal.client() as client:
        await portal.ready(client)
        async with following(client, f"{V1}/live", topics="Timeline:FederatedTask/task") as events:
            await events.until(lambda _, data: len(data.get("object", {}).get("phases", [])) == 1)
            store.broker.stop(kill=True)
            store.broker.start()
            await store.ensure()
            await store.tell("Running")
            shown = await events.until(lambda _, data: len(data.get("object", {}).get("phases", [])) == 2)
    assert [row["phase"] for row in shown["object"]["phases"]] == ["Preparing", "Running"]


async def test_a_broker_that_lost_its_store_is_followed_from_the_beginning(store: Store, portal: Portal) -> None:
    await store.task()
    for phase in ("Preparing", "Running", "Paused"):
        await store.tell(phase)
    async with portal.client() as client:
        await portal.ready(client)
        async with following(client, f"{V1}/live", topics="FederatedTask,Timeline:FederatedTask/task") as events:
            await events.until(lambda _, data: len(data.get("object", {}).get("phases", [])) == 3)
            store.broker.stop(kill=True)
            shutil.rmtree(store.broker.folder / "jetstream")
            store.broker.start()
            await store.ensure()
            await events.until(lambda event, data: event == "deleted" and data["topic"] == "FederatedTask")
            await store.task()
            await store.tell("Preparing")
            shown = await events.until(lambda _, data: data.get("object", {}).get("phases"))
    assert [row["phase"] for row in shown["object"]["phases"]] == ["Preparing"]


async def test_a_portal_that_starts_before_its_broker_finds_it(store: Store, portal: Portal, tmp_path: Path) -> None:
    store.broker.stop()
    early = Portal(lambda: connect(store.broker.url), PortalSettings(tmp_path / "early"))
    await early.start()
    try:
        async with early.client() as client:
            assert (await client.get(f"{V1}/models")).status_code == 503
            store.broker.start()
            await store.ensure()
            await early.ready(client)
            assert (await client.get(f"{V1}/models")).status_code == 200
    finally:
        await early.stop()


async def test_open_streams_end_when_the_portal_stops(portal: Portal) -> None:
    async with portal.client() as client:
        await portal.ready(client)
        async with following(client, f"{V1}/watch") as events:
            await events.until(lambda event, _: event == "synced")
            async with asyncio.timeout(20):
                await portal.stop()
            with pytest.raises((StopAsyncIteration, httpx.RemoteProtocolError)):
                await events.until(lambda *_: False)


async def test_a_stopped_portal_comes_back_on_its_port(portal: Portal) -> None:
    before = portal.url
    await portal.stop()
    await portal.start()
    assert (portal.url, portal_url(portal.settings.state_dir)) == (before, before)


async def test_a_port_that_is_taken_is_said(portal: Portal, tmp_path: Path) -> None:
    port = int(portal.url.rpartition(":")[2])
    with pytest.raises(PortTaken):
        await Portal(portal.source, PortalSettings(tmp_path / "second", port=port)).start()


async def test_the_link_of_up_logs_a_browser_in_over_the_socket(portal: Portal) -> None:
    async with httpx.AsyncClient(trust_env=False) as browser:
        assert (await browser.get(one_time_link(portal.settings.state_dir))).status_code == 200
        assert (await browser.get(f"{portal.url}{V1}/me")).json()["role"] == "admin"


async def test_files_that_are_no_certificate_are_refused_before_anything_is_bound(
    portal: Portal, tmp_path: Path
) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    settings = PortalSettings(tmp_path / "tls", tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    with pytest.raises(Refused, match="no certificate"):
        await Portal(portal.source, settings).start()


async def test_with_a_certificate_the_portal_speaks_tls_only(store: Store, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, *request, "-keyout", key, "-out", certificate, *names], check=True, capture_output=True)
    settings = PortalSettings(tmp_path / "tls", tls_certificate=certificate, tls_key=key)
    portal = Portal(lambda: connect(store.broker.url), settings)
    await portal.start()
    try:
        context = ssl.create_default_context(cafile=certificate)
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            assert (await client.get(f"{portal.url}/healthz")).status_code == 200
            with pytest.raises(httpx.TransportError):
                await client.get(f"{portal.url.replace('https', 'http')}/healthz")
    finally:
        await portal.stop()
