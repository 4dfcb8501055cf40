"""A node's controller: alone as `edgeai controller`, or as a part of `cloud` and `edge`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import structlog

from edgeai import metrics, tracing
from edgeai.bus.credentials import client_id_of, read_credentials_file
from edgeai.bus.mqtt import MqttBus
from edgeai.cli.daemons.brokers import nats_bus
from edgeai.cli.daemons.life import Announcement, Measured, run_daemon
from edgeai.cli.daemons.options import READY_S, ControllerOptions
from edgeai.controller.jobs import Limits
from edgeai.controller.places import ContainerPlaces, Places, ProcessPlaces
from edgeai.controller.service import ControllerSettings, LocalController
from edgeai.events.address import Address
from edgeai.events.catalogue import NodeGone
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.launcher.base import Launcher
from edgeai.launcher.docker import DockerLauncher, ImageProgress
from edgeai.launcher.images import own_version
from edgeai.launcher.process import ProcessLauncher
from edgeai.store.edge import EdgeStore
from edgeai.store.nats import NatsBlobStore

log = structlog.get_logger()

TELL_PULL_S = 10.0
_PASSED_TO_WORKERS = (
    *("EDGEAI_LOG", "EDGEAI_LOG_FORMAT"),
    *("EDGEAI_TEST", "EDGEAI_CRASH_FOLDER", "EDGEAI_WORKER_CRASH_AT"),
)


def run_controller(options: ControllerOptions) -> None:
    """A node's controller alone, until SIGTERM or SIGINT."""
    ready = Announcement("controller", node=options.node, state_dir=options.state_dir, broker=options.bus)
    measured = Measured(options.metrics_port, options.state_dir)
    run_daemon(lambda: controller(options, ready), options.state_dir, "controller", measured=measured)


Beside = Callable[[LocalController], AbstractAsyncContextManager[object]]


async def controller(options: ControllerOptions, ready: Announcement, beside: Beside | None = None) -> None:
    """Run until cancelled; workers stay. `beside` is entered with an edge's controller for as long as that runs."""
    launcher, places = _workers(options)
    settings = ControllerSettings(
        node=options.node,
        state_dir=options.state_dir,
        worker_bus=options.bus,
        worker_credentials=options.worker_credentials,
        allowed_roots=options.allowed_roots,
        job_limits=Limits(options.job_examples_bytes, options.job_models),
        info={"edgeai": own_version(), "broker": options.broker, "launcher": options.workers.launcher},
        secrets=options.workers.secrets_dir,
    )
    async with _stored(options.state_dir / "controller.db") as store:
        if options.bus.startswith("nats://"):
            async with nats_bus(options.bus, options.credentials, "controller") as bus:
                await bus.wait_connected(READY_S)
                blobs = NatsBlobStore(bus)
                await blobs.ensure(READY_S)
                ready.begun("controller")
                await LocalController(settings, bus, store, launcher, blobs, places=places).run()
        else:
            async with _mqtt(options) as edge_bus, ready.when_connected("controller", edge_bus):
                metrics.follow_bus("controller", edge_bus)
                mine = LocalController(settings, edge_bus, store, launcher, places=places)
                async with beside(mine) if beside is not None else contextlib.nullcontext():
                    await mine.run()


def _workers(options: ControllerOptions) -> tuple[Launcher, Places]:
    """The launcher of a node and, belonging to it, what its workers see."""
    bus, env = options.worker_bus or options.bus, worker_env(os.environ)
    if options.workers.launcher == "process":
        places = ProcessPlaces(options.node, options.bus, options.worker_credentials, env, options.training_credentials)
        return ProcessLauncher(), places
    launcher = DockerLauncher(options.node, progress=_PullTeller())
    containers = ContainerPlaces(
        options.node,
        bus,
        options.worker_credentials,
        options.state_dir / "workers",
        launcher,
        env,
        options.workers.allowed_networks,
        options.workers.secrets_dir,
        options.training_credentials,
    )
    return launcher, containers


class _PullTeller:
    """A pull may take minutes and says a thousand things: of each image one line in TELL_PULL_S."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def __call__(self, progress: ImageProgress) -> None:
        now = time.monotonic()
        if now - self._told.get(progress.image, -TELL_PULL_S) < TELL_PULL_S:
            return
        self._told[progress.image] = now
        of = f"{progress.current / 2**20:.0f} of {progress.total / 2**20:.0f} MiB" if progress.total else ""
        log.info("image_pulling", image=progress.image, step=progress.what, layer=of)


def worker_env(environment: Mapping[str, str]) -> dict[str, str]:
    """What workers need besides their contract: how to log, where to send traces, and how to be tested."""
    found = {name: environment[name] for name in _PASSED_TO_WORKERS if name in environment}
    if "EDGEAI_WORKER_CRASH_AT" in found:
        found["EDGEAI_CRASH_AT"] = found.pop("EDGEAI_WORKER_CRASH_AT")
    return {**tracing.for_workers(environment), **found}


def _mqtt(options: ControllerOptions) -> MqttBus:
    """With a will, by which the cloud learns at once that the edge's broker has lost its controller."""
    login = read_credentials_file(options.credentials)
    gone = encode(Envelope(Header(options.node), NodeGone()))
    address = Address(options.node, NodeGone.direction, NodeGone.event_class, NodeGone.kind)
    client_id = client_id_of(f"{options.node}-controller", login.password.encode())
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
