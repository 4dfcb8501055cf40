"""`edgeai bridge`: the process between an edge's broker and the cloud's."""

from __future__ import annotations

from edgeai import metrics
from edgeai.bridge.service import Bridge
from edgeai.bus.credentials import client_id_of, read_credentials_file
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.cli.daemons.life import Announcement, Measured, run_daemon
from edgeai.cli.daemons.options import BridgeOptions

_INBOX_BYTES = 64 * 1024 * 1024  # where a burst waits


def run_bridge(options: BridgeOptions) -> None:
    """A node's bridge, until SIGTERM or SIGINT. It forwards also where its numbers cannot be served."""
    run_daemon(lambda: _bridge(options), measured=Measured(options.metrics_port, needed=False))


async def _bridge(options: BridgeOptions) -> None:
    edge, cloud = read_credentials_file(options.mqtt_credentials), read_credentials_file(options.nats_credentials)
    name = f"{options.node}-bridge"
    mqtt = MqttBus(
        options.mqtt,
        client_id=client_id_of(name, edge.password.encode()),
        username=edge.username,
        password=edge.password,
        inbox_limit_bytes=_INBOX_BYTES,
    )
    nats = NatsBus(
        options.nats, username=cloud.username, password=cloud.password, name=name, inbox_limit_bytes=_INBOX_BYTES
    )
    ready = Announcement("bridge", node=options.node, mqtt=options.mqtt, nats=options.nats)
    metrics.follow_bus("mqtt", mqtt)
    metrics.follow_bus("nats", nats)
    async with mqtt, nats, ready.when_connected("bridge", mqtt, nats):
        await Bridge(options.node, mqtt, nats).run()
