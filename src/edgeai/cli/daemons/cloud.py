"""`edgeai cloud` and `edgeai coordinator`."""

from __future__ import annotations

from pathlib import Path

from edgeai.cli.daemons.brokers import cloud_broker, nats_bus
from edgeai.cli.daemons.controller import controller
from edgeai.cli.daemons.life import Announcement, Measured, run_daemon, together
from edgeai.cli.daemons.options import READY_S, CloudOptions, ControllerOptions
from edgeai.cli.daemons.portal import PART, check_portal, portal_child
from edgeai.coordinator.service import GlobalCoordinator
from edgeai.events.address import CLOUD
from edgeai.launcher.children import Children
from edgeai.store.nats import NatsBlobStore, NatsFactStream, NatsResourceStore


def run_cloud(options: CloudOptions) -> None:
    """The cloud's daemon, until SIGTERM or SIGINT."""
    check_portal(options)
    measured = Measured(options.metrics_port, options.state_dir)
    run_daemon(lambda: _cloud(options), options.state_dir, "cloud", measured=measured)


def run_coordinator(url: str, credentials: Path, metrics_port: int | None = None) -> None:
    """The coordinator alone, until SIGTERM or SIGINT. It keeps everything in the cloud's store."""
    ready = Announcement("coordinator", nats=url)
    run_daemon(lambda: _coordinator(url, credentials, ready), measured=Measured(metrics_port))


async def _cloud(options: CloudOptions) -> None:
    async with Children(options.state_dir) as children:
        broker = await cloud_broker(options, children)
        alone = ControllerOptions(
            node=CLOUD,
            state_dir=options.state_dir,
            bus=broker.url,
            credentials=broker.files["coordinator"],
            worker_credentials=broker.files["worker"],
            allowed_roots=options.allowed_roots,
            broker=broker.who,
            workers=options.workers,
            training_credentials=broker.files.get("trainer"),
        )
        parts = ("coordinator", "controller", *((PART,) if options.portal else ()))
        ready = Announcement(*parts, state_dir=options.state_dir, nats=broker.url)
        async with portal_child(options, children, ready):
            await together(
                lambda: _coordinator(broker.url, broker.files["coordinator"], ready), lambda: controller(alone, ready)
            )


async def _coordinator(url: str, credentials: Path, ready: Announcement) -> None:
    async with nats_bus(url, credentials, "coordinator") as bus:
        await bus.wait_connected(READY_S)
        resources, facts = NatsResourceStore(bus), NatsFactStream(bus)
        await resources.ensure(READY_S)
        await facts.ensure(READY_S)
        ready.begun("coordinator")
        await GlobalCoordinator(bus, resources, facts, NatsBlobStore(bus)).run()
