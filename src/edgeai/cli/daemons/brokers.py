"""The broker of a node as its daemon uses it, whether it is a child or was given from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeai import metrics
from edgeai.bus.credentials import read_credentials_file
from edgeai.bus.embedded import EdgeBroker, Mosquitto, NatsCloud, choose_edge_broker
from edgeai.bus.nats import NatsBus
from edgeai.bus.relay import fits
from edgeai.cli.daemons.options import READY_S, CloudOptions, EdgeOptions
from edgeai.errors import LaunchError
from edgeai.events.address import CLOUD
from edgeai.launcher.children import Children, ChildSpec
from edgeai.launcher.docker import default_user
from edgeai.settings import Context, write_context


@dataclass(frozen=True, slots=True)
class ServingBroker:
    """Where it serves, the credentials files by user, what it is, and where it serves workers in containers, if elsewhere."""

    url: str
    files: Mapping[str, Path]
    who: str
    worker_url: str = ""


async def cloud_broker(options: CloudOptions, children: Children) -> ServingBroker:
    """The given one, or nats-server as a child; `<state-dir>/context.json` is what other commands need, if it is known.

    Raises:
        BinaryMissing, PortTaken, LaunchError: it cannot be started.
    """
    if options.nats_url is not None:
        files = {"coordinator": options.coordinator_credentials, "worker": options.worker_credentials}
        if options.operator_credentials is not None:
            _leave_context(options, options.nats_url, options.operator_credentials)
        return _external(options.nats_url, files)
    broker = NatsCloud(options.state_dir, edges=options.edges, port=options.port)
    log_file = options.state_dir / "broker.log"
    child = await children.start(ChildSpec("broker", CLOUD, broker.argv, log_file, before_start=broker.prepare))
    await broker.ready(READY_S)
    if child.adopted and child.pid is not None:
        await broker.reload(child.pid)
    _leave_context(options, broker.url, broker.credentials_file("operator"))
    return ServingBroker(broker.url, _files(broker, "coordinator", "worker", "trainer"), broker.program())


def _leave_context(options: CloudOptions, url: str, operator: Path) -> None:
    write_context(Context(url, str(operator.absolute()), str(options.state_dir)), context_file(options))


def context_file(options: CloudOptions) -> Path:
    """How operators, and the portal, find this cloud."""
    return options.state_dir / "context.json"


async def edge_broker(options: EdgeOptions, children: Children) -> ServingBroker:
    """As cloud_broker, for an edge."""
    if options.mqtt_url is not None:
        files = {
            "controller": options.controller_credentials,
            "bridge": options.bridge_credentials,
            "worker": options.worker_credentials,
        }
        if options.app_credentials is not None:
            files["app"] = options.app_credentials
        return _external(options.mqtt_url, files)
    broker: EdgeBroker = choose_edge_broker(options.broker)(options.state_dir, options.node, options.port)
    log_file = options.state_dir / "broker.log"
    socket = ""
    if options.workers.launcher == "docker" and isinstance(broker, Mosquitto):
        broker.admit(default_user().gid)
        socket = f"mqtt+unix://{broker.socket}" if fits(broker.socket) else ""
    await children.start(ChildSpec("broker", options.node, broker.argv, log_file, before_start=broker.prepare))
    await broker.ready(READY_S)
    return ServingBroker(broker.url, _files(broker, *broker.users), broker.program(), socket)


def nats_bus(url: str, credentials: Path, name: str) -> NatsBus:
    """Raises NotFound or DamagedFile for the credentials file."""
    login = read_credentials_file(credentials)
    bus = NatsBus(url, username=login.username, password=login.password, name=name)
    metrics.follow_bus(name, bus)
    return bus


def _files(broker: NatsCloud | EdgeBroker, *users: str) -> dict[str, Path]:
    return {user: broker.credentials_file(user) for user in users}


def _external(url: str, files: Mapping[str, Path | None]) -> ServingBroker:
    missing = [f"{user}_credentials" for user, file in files.items() if file is None]
    if missing:
        raise LaunchError(
            f"the broker at {url} needs {', '.join(missing)}: give the files, or let edgeai start a broker"
        )
    return ServingBroker(url, {user: file for user, file in files.items() if file is not None}, "external")
