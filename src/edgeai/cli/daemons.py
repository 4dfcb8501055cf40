"""The daemons: parts wired together in one process, their helpers supervised as children.

`cloud` runs coordinator and the cloud node's controller, with nats-server as a child; `edge` runs the edge's controller, with
its broker and its bridge as children. Brokers may also be given from outside, and every part may run alone.

SIGTERM leaves workers, brokers and bridges running for the next start to adopt. A daemon that was started by `demo` or `up`
ends with it, however that ends, and then takes everything with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from edgeai.bridge.service import Bridge
from edgeai.bus.credentials import read_credentials_file
from edgeai.bus.embedded import EdgeBroker, NatsCloud, choose_edge_broker
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.cli.lock import locked
from edgeai.cli.signals import taken_signals
from edgeai.cli.takedown import TEMPORARY_VARIABLE, remove_temporary, take_down
from edgeai.controller.service import ControllerSettings, LocalController
from edgeai.coordinator.service import GlobalCoordinator
from edgeai.errors import LaunchError
from edgeai.events.address import CLOUD, Address
from edgeai.events.catalogue import NodeGone
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.launcher.children import Children, ChildSpec, parent_gone
from edgeai.launcher.process import ProcessLauncher
from edgeai.logs import configure
from edgeai.settings import Context, write_context
from edgeai.store.edge import EdgeStore
from edgeai.store.nats import NatsBlobStore, NatsFactStream, NatsResourceStore

log = structlog.get_logger()

READY_S = 30.0
_INBOX_BYTES = 64 * 1024 * 1024
_PASSED_TO_WORKERS = ("EDGEAI_TEST", "EDGEAI_LOG", "EDGEAI_LOG_FORMAT", "EDGEAI_WORKER_CRASH_AT")

Body = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class CloudOptions:
    """`edges` may connect besides those that were added before; `port` None: any free one, remembered.

    With `nats_url` no nats-server is started; the two credentials files are then needed.
    """

    state_dir: Path
    edges: Sequence[str] = ()
    port: int | None = None
    allowed_roots: Sequence[Path] = ()
    nats_url: str | None = None
    coordinator_credentials: Path | None = None
    worker_credentials: Path | None = None


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """`credentials` is the file that the cloud has issued for this node's bridge; `broker` auto, mosquitto or nats.

    With `mqtt_url` no broker is started; the three credentials files are then needed.
    """

    node: str
    state_dir: Path
    cloud: str
    credentials: Path
    broker: Literal["auto", "mosquitto", "nats"] = "auto"
    port: int | None = None
    allowed_roots: Sequence[Path] = ()
    mqtt_url: str | None = None
    controller_credentials: Path | None = None
    bridge_credentials: Path | None = None
    worker_credentials: Path | None = None


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """A controller alone: `bus` is the node's broker, mqtt:// at an edge and nats:// for the node `cloud`."""

    node: str
    state_dir: Path
    bus: str
    credentials: Path
    worker_credentials: Path
    allowed_roots: Sequence[Path] = ()
    broker: str = "external"


@dataclass(frozen=True, slots=True)
class BridgeOptions:
    node: str
    mqtt: str
    mqtt_credentials: Path
    nats: str
    nats_credentials: Path


@dataclass(frozen=True, slots=True)
class _Broker:
    """A broker that serves: where, with which credentials files by user, and what it is."""

    url: str
    files: Mapping[str, Path]
    who: str


def run_cloud(options: CloudOptions) -> None:
    """The cloud's daemon, until SIGTERM or SIGINT."""
    run_daemon(lambda: _cloud(options), options.state_dir, "cloud")


def run_edge(options: EdgeOptions) -> None:
    """An edge's daemon, until SIGTERM or SIGINT."""
    run_daemon(lambda: _edge(options), options.state_dir, "edge")


def run_controller(options: ControllerOptions) -> None:
    """A node's controller alone, until SIGTERM or SIGINT."""
    run_daemon(lambda: _controller(options), options.state_dir, "controller")


def run_coordinator(url: str, credentials: Path) -> None:
    """The coordinator alone, until SIGTERM or SIGINT. It keeps everything in the cloud's store."""
    run_daemon(lambda: _coordinator(url, credentials))


def run_bridge(options: BridgeOptions) -> None:
    """A node's bridge, until SIGTERM or SIGINT."""
    run_daemon(lambda: _bridge(options))


# --- how a daemon lives and ends


def run_daemon(body: Body, state_dir: Path | None = None, what: str = "") -> None:
    """Run `body` until a signal, or until the process that started this one is gone.

    Raises:
        Refused: another one runs on this state directory. Whatever `body` raises.
    """
    configure()
    with locked(state_dir, what) if state_dir else contextlib.nullcontext():
        orphaned = asyncio.run(_until_stopped(body))
        if orphaned and state_dir:
            # In a loop of its own: the threads of the first one, which may be starting a worker, have ended.
            asyncio.run(take_down(state_dir))
            if temporary := os.environ.get(TEMPORARY_VARIABLE):
                remove_temporary(Path(temporary))


async def _until_stopped(body: Body) -> bool:
    """True if whoever started this process is gone. From the first moment on: a start may take long."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in taken_signals():
        loop.add_signal_handler(number, stopped.set)
    running = asyncio.ensure_future(body())
    waiting, orphaned = asyncio.create_task(stopped.wait()), asyncio.create_task(parent_gone())
    try:
        await asyncio.wait({running, waiting, orphaned}, return_when=asyncio.FIRST_COMPLETED)
        if orphaned.done():
            orphaned.result()
            log.warning("parent_gone", pid=os.getpid())
            return True
        if running.done():
            running.result()
            raise LaunchError("a part of the daemon ended by itself; start it again and look into its log")
        return False
    finally:
        for task in (running, waiting, orphaned):
            task.cancel()
        await asyncio.gather(running, waiting, orphaned, return_exceptions=True)


async def _together(*parts: Body) -> None:
    """Run parts until the first one ends, which none is meant to do."""
    running = [asyncio.ensure_future(part()) for part in parts]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()
    finally:
        for part in running:
            part.cancel()
        await asyncio.gather(*running, return_exceptions=True)


# --- what they are made of


async def _cloud(options: CloudOptions) -> None:
    async with Children(options.state_dir) as children:
        broker = await _cloud_broker(options, children)
        alone = ControllerOptions(
            node=CLOUD,
            state_dir=options.state_dir,
            bus=broker.url,
            credentials=broker.files["coordinator"],
            worker_credentials=broker.files["worker"],
            allowed_roots=options.allowed_roots,
            broker=broker.who,
        )
        await _together(
            lambda: _coordinator(broker.url, broker.files["coordinator"]),
            lambda: _controller(alone),
        )


async def _cloud_broker(options: CloudOptions, children: Children) -> _Broker:
    """The given one, or nats-server as a child."""
    if options.nats_url is not None:
        files = {"coordinator": options.coordinator_credentials, "worker": options.worker_credentials}
        return _external(options.nats_url, files)
    broker = NatsCloud(options.state_dir, edges=options.edges, port=options.port)
    log_file = options.state_dir / "broker.log"
    child = await children.start(ChildSpec("broker", CLOUD, broker.argv, log_file, before_start=broker.prepare))
    await broker.ready(READY_S)
    if child.adopted and child.pid is not None:
        await broker.reload(child.pid)
    operator = Context(broker.url, str(broker.credentials_file("operator")), str(options.state_dir))
    write_context(operator, options.state_dir / "context.json")
    return _Broker(broker.url, _files(broker, "coordinator", "worker"), "nats-server")


async def _edge(options: EdgeOptions) -> None:
    async with Children(options.state_dir) as children:
        broker = await _edge_broker(options, children)
        bridge = [sys.executable, "-m", "edgeai", "bridge", "--node", options.node]
        bridge += ["--mqtt", broker.url, "--mqtt-credentials", str(broker.files["bridge"])]
        bridge += ["--nats", options.cloud, "--nats-credentials", str(options.credentials)]
        await children.start(ChildSpec("bridge", options.node, bridge, options.state_dir / "bridge.log"))
        await _controller(
            ControllerOptions(
                node=options.node,
                state_dir=options.state_dir,
                bus=broker.url,
                credentials=broker.files["controller"],
                worker_credentials=broker.files["worker"],
                allowed_roots=options.allowed_roots,
                broker=broker.who,
            )
        )


async def _edge_broker(options: EdgeOptions, children: Children) -> _Broker:
    """The given one, or one as a child."""
    if options.mqtt_url is not None:
        files = {
            "controller": options.controller_credentials,
            "bridge": options.bridge_credentials,
            "worker": options.worker_credentials,
        }
        return _external(options.mqtt_url, files)
    broker: EdgeBroker = choose_edge_broker(options.broker)(options.state_dir, options.node, options.port)
    log_file = options.state_dir / "broker.log"
    await children.start(ChildSpec("broker", options.node, broker.argv, log_file, before_start=broker.prepare))
    await broker.ready(READY_S)
    return _Broker(broker.url, _files(broker, "controller", "bridge", "worker"), broker.who)


def _files(broker: NatsCloud | EdgeBroker, *users: str) -> dict[str, Path]:
    return {user: broker.credentials_file(user) for user in users}


def _external(url: str, files: Mapping[str, Path | None]) -> _Broker:
    missing = [f"{user}_credentials" for user, file in files.items() if file is None]
    if missing:
        raise LaunchError(
            f"the broker at {url} needs {', '.join(missing)}: give the files, or let edgeai start a broker"
        )
    return _Broker(url, {user: file for user, file in files.items() if file is not None}, "external")


async def _coordinator(url: str, credentials: Path) -> None:
    async with _nats(url, credentials, "coordinator") as bus:
        await bus.wait_connected(READY_S)
        resources, facts = NatsResourceStore(bus), NatsFactStream(bus)
        await resources.ensure(READY_S)
        await facts.ensure(READY_S)
        await GlobalCoordinator(bus, resources, facts).run()


async def _controller(options: ControllerOptions) -> None:
    settings = ControllerSettings(
        node=options.node,
        state_dir=options.state_dir,
        worker_bus=options.bus,
        worker_credentials=options.worker_credentials,
        allowed_roots=options.allowed_roots,
        info={"broker": options.broker, "launcher": "process"},
        worker_env=_worker_env(os.environ),
    )
    options.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with _stored(options.state_dir / "controller.db") as store:
        if options.bus.startswith("nats://"):
            async with _nats(options.bus, options.credentials, "controller") as bus:
                await bus.wait_connected(READY_S)
                blobs = NatsBlobStore(bus)
                await blobs.ensure(READY_S)
                await LocalController(settings, bus, store, ProcessLauncher(), blobs).run()
        else:
            async with _mqtt_of_controller(options) as edge_bus:
                await LocalController(settings, edge_bus, store, ProcessLauncher()).run()


async def _bridge(options: BridgeOptions) -> None:
    edge = read_credentials_file(options.mqtt_credentials)
    mqtt = MqttBus(
        options.mqtt,
        client_id=f"{options.node}-bridge",
        username=edge.username,
        password=edge.password,
        inbox_limit_bytes=_INBOX_BYTES,
    )
    nats = _nats(options.nats, options.nats_credentials, f"{options.node}-bridge", _INBOX_BYTES)
    async with mqtt, nats:
        await Bridge(options.node, mqtt, nats).run()


def _nats(url: str, credentials: Path, name: str, inbox_limit_bytes: int | None = None) -> NatsBus:
    login = read_credentials_file(credentials)
    limit = {} if inbox_limit_bytes is None else {"inbox_limit_bytes": inbox_limit_bytes}
    return NatsBus(url, username=login.username, password=login.password, name=name, **limit)


def _mqtt_of_controller(options: ControllerOptions) -> MqttBus:
    """With a will, by which the cloud learns at once that the edge's broker has lost its controller."""
    login = read_credentials_file(options.credentials)
    gone = encode(Envelope(Header(options.node), NodeGone()))
    address = Address(options.node, NodeGone.direction, NodeGone.event_class, NodeGone.kind)
    client_id = f"{options.node}-controller"
    return MqttBus(
        options.bus, client_id=client_id, username=login.username, password=login.password, will=(address, gone)
    )


@contextlib.asynccontextmanager
async def _stored(path: Path) -> AsyncIterator[EdgeStore]:
    store = await EdgeStore.open(path)
    try:
        yield store
    finally:
        await store.close()


def _worker_env(environment: Mapping[str, str]) -> dict[str, str]:
    """What workers need besides their contract: how to log, and how to be tested."""
    found = {name: environment[name] for name in _PASSED_TO_WORKERS if name in environment}
    if "EDGEAI_WORKER_CRASH_AT" in found:
        found["EDGEAI_CRASH_AT"] = found.pop("EDGEAI_WORKER_CRASH_AT")
    return found
