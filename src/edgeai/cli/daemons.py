"""The daemons: parts wired together in one process, their helpers supervised as children.

`cloud` runs coordinator and the cloud node's controller, with nats-server as a child; `edge` runs the edge's controller, with
its broker and its bridge as children. SIGTERM leaves workers, brokers and bridges running for the next start to adopt. A
daemon that was started by `demo` or `up` ends with it, and then takes everything with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from edgeai.bridge.service import Bridge
from edgeai.bus.credentials import read_credentials_file
from edgeai.bus.embedded import NatsCloud, choose_edge_broker
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.controller.service import ControllerSettings, LocalController
from edgeai.coordinator.service import GlobalCoordinator
from edgeai.errors import LaunchError
from edgeai.events.address import CLOUD, Address
from edgeai.events.catalogue import NodeGone
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.launcher.children import Children, ChildSpec, parent_gone
from edgeai.launcher.process import ProcessLauncher
from edgeai.store.edge import EdgeStore
from edgeai.store.nats import NatsBlobStore, NatsFactStream, NatsResourceStore

log = structlog.get_logger()

READY_S = 30.0
_INBOX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CloudOptions:
    """`edges` may connect besides those that were added before; `port` None: any free one, remembered."""

    state_dir: Path
    edges: Sequence[str] = ()
    port: int | None = None
    allowed_roots: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """`cloud_credentials` is the file that the cloud has issued for this node's bridge; `broker` auto, mosquitto or nats."""

    node: str
    state_dir: Path
    cloud_url: str
    cloud_credentials: Path
    broker: str = "auto"
    port: int | None = None
    allowed_roots: Sequence[Path] = ()


async def run_cloud(options: CloudOptions) -> None:
    """The cloud's daemon, until SIGTERM or SIGINT."""
    broker = NatsCloud(options.state_dir, edges=options.edges, port=options.port)
    async with Children(options.state_dir) as children:
        child = await children.start(
            ChildSpec(
                "broker", CLOUD, broker.argv, options.state_dir / "broker.log", before_start=broker.prepare
            )
        )
        await broker.ready(READY_S)
        if child.adopted and child.pid is not None:
            await broker.reload(child.pid)
        login = broker.credential("coordinator")
        credentials = broker.credentials_file("worker")
        store = await EdgeStore.open(options.state_dir / "controller.db")
        async with (
            NatsBus(broker.url, username=login.username, password=login.password, name="coordinator") as coordinator_bus,
            NatsBus(broker.url, username=login.username, password=login.password, name="controller") as bus,
            _closing(store),
        ):
            await coordinator_bus.wait_connected(READY_S)
            resources, facts = NatsResourceStore(coordinator_bus), NatsFactStream(coordinator_bus)
            blobs = NatsBlobStore(bus)
            await bus.wait_connected(READY_S)
            await resources.ensure()
            await facts.ensure()
            await blobs.ensure()
            settings = ControllerSettings(
                node=CLOUD,
                state_dir=options.state_dir,
                worker_bus=broker.url,
                worker_credentials=credentials,
                allowed_roots=options.allowed_roots,
                info={"broker": "nats-server", "launcher": "process"},
                worker_env=_worker_env(),
            )
            controller = LocalController(settings, bus, store, ProcessLauncher(), blobs)
            coordinator = GlobalCoordinator(coordinator_bus, resources, facts)
            await _until_stopped(
                [coordinator.run, controller.run],
                lambda: _take_down(children, controller),
            )


async def run_edge(options: EdgeOptions) -> None:
    """An edge's daemon, until SIGTERM or SIGINT."""
    kind = choose_edge_broker(options.broker)  # type: ignore[arg-type]
    broker = kind(options.state_dir, options.node, options.port)
    async with Children(options.state_dir) as children:
        await children.start(
            ChildSpec(
                "broker",
                options.node,
                broker.argv,
                options.state_dir / "broker.log",
                before_start=broker.prepare,
            )
        )
        await broker.ready(READY_S)
        bridge = [sys.executable, "-m", "edgeai", "bridge", "--node", options.node]
        bridge += ["--mqtt", broker.url, "--mqtt-credentials", str(broker.credentials_file("bridge"))]
        bridge += ["--nats", options.cloud_url, "--nats-credentials", str(options.cloud_credentials)]
        await children.start(ChildSpec("bridge", options.node, bridge, options.state_dir / "bridge.log"))
        login = broker.credential("controller")
        store = await EdgeStore.open(options.state_dir / "controller.db")
        gone = encode(Envelope(Header(options.node), NodeGone()))
        will = Address(options.node, NodeGone.direction, NodeGone.event_class, NodeGone.kind)
        bus = MqttBus(
            broker.url,
            client_id=f"{options.node}-controller",
            username=login.username,
            password=login.password,
            will=(will, gone),
        )
        async with bus, _closing(store):
            settings = ControllerSettings(
                node=options.node,
                state_dir=options.state_dir,
                worker_bus=broker.url,
                worker_credentials=broker.credentials_file("worker"),
                allowed_roots=options.allowed_roots,
                info={"broker": broker.who, "launcher": "process"},
                worker_env=_worker_env(),
            )
            controller = LocalController(settings, bus, store, ProcessLauncher())
            await _until_stopped([controller.run], lambda: _take_down(children, controller))


async def run_bridge(
    node: str, mqtt_url: str, mqtt_credentials: Path, nats_url: str, nats_credentials: Path
) -> None:
    """A node's bridge, until SIGTERM or SIGINT."""
    edge, cloud = read_credentials_file(mqtt_credentials), read_credentials_file(nats_credentials)
    mqtt = MqttBus(
        mqtt_url,
        client_id=f"{node}-bridge",
        username=edge.username,
        password=edge.password,
        inbox_limit_bytes=_INBOX_BYTES,
    )
    nats = NatsBus(
        nats_url,
        username=cloud.username,
        password=cloud.password,
        name=f"{node}-bridge",
        inbox_limit_bytes=_INBOX_BYTES,
    )
    async with mqtt, nats:
        await _until_stopped([Bridge(node, mqtt, nats).run], _nothing)


async def _until_stopped(
    parts: Sequence[Callable[[], Awaitable[None]]], take_down: Callable[[], Awaitable[None]]
) -> None:
    """Run the parts until a signal; if the process that started this one is gone, take everything down first."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    running = [asyncio.ensure_future(part()) for part in parts]
    waiting = asyncio.create_task(stopped.wait())
    orphaned = asyncio.create_task(parent_gone())
    try:
        await asyncio.wait({*running, waiting, orphaned}, return_when=asyncio.FIRST_COMPLETED)
        if orphaned.done():
            orphaned.result()
            log.warning("parent_gone", pid=os.getpid())
        for part in running:
            if part.done():
                part.result()
                raise LaunchError("a part of the daemon ended by itself")
    finally:
        everything: list[asyncio.Future[Any]] = [*running, waiting]
        for part in everything:
            part.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        if orphaned.done():
            await take_down()
        orphaned.cancel()
        await asyncio.gather(orphaned, return_exceptions=True)


async def _take_down(children: Children, controller: LocalController) -> None:
    await controller.stop_workers()
    await children.stop_all()


async def _nothing() -> None:
    return


@contextlib.asynccontextmanager
async def _closing(store: EdgeStore) -> Any:
    try:
        yield store
    finally:
        await store.close()


def _worker_env() -> dict[str, str]:
    """What workers need to find this installation and to be tested."""
    kept = ("EDGEAI_TEST", "EDGEAI_LOG", "EDGEAI_LOG_FORMAT", "EDGEAI_WORKER_CRASH_AT", "EDGEAI_CRASH_FOLDER")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    if "EDGEAI_WORKER_CRASH_AT" in found:
        found["EDGEAI_CRASH_AT"] = found.pop("EDGEAI_WORKER_CRASH_AT")
    return found


