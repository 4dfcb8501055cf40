"""`edgeai edge`: an edge's broker and bridge as children, its controller in this process."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from edgeai import metrics
from edgeai.asking import Edge
from edgeai.bus.credentials import client_id_of, read_credentials_file
from edgeai.bus.mqtt import MqttBus
from edgeai.cli.daemons.brokers import ServingBroker, edge_broker
from edgeai.cli.daemons.controller import controller
from edgeai.cli.daemons.life import Announcement, Measured, RememberedPort, run_daemon
from edgeai.cli.daemons.options import ControllerOptions, EdgeOptions
from edgeai.controller.service import LocalController
from edgeai.errors import LaunchError, NotFound
from edgeai.launcher.children import Children, ChildSpec, read_record, record_path

log = structlog.get_logger()


def run_edge(options: EdgeOptions) -> None:
    """An edge's daemon, until SIGTERM or SIGINT."""
    _require_credentials(options)
    measured = Measured(options.metrics_port, options.state_dir)
    run_daemon(lambda: _edge(options), options.state_dir, "edge", measured=measured)


def _require_credentials(options: EdgeOptions) -> None:
    """Before anything is started: the bridge would fail by itself, again and again. Raises NotFound, DamagedFile."""
    try:
        read_credentials_file(options.credentials)
    except NotFound as error:
        hint = f"`edgeai node add {options.node}` on the cloud's machine prints which file to copy here"
        raise NotFound(error.kind, error.name, hint) from error
    for file in (
        options.controller_credentials,
        options.bridge_credentials,
        options.worker_credentials,
        options.app_credentials,
    ):
        if file is not None:
            read_credentials_file(file)


async def _edge(options: EdgeOptions) -> None:
    measured = _bridge_metrics(options)
    async with Children(options.state_dir) as children:
        broker = await edge_broker(options, children)
        bridge = [sys.executable, "-m", "edgeai", "bridge", "--node", options.node]
        bridge += ["--mqtt", broker.url, "--mqtt-credentials", str(broker.files["bridge"])]
        bridge += ["--nats", options.cloud, "--nats-credentials", str(options.credentials)]
        bridge += ["--metrics-port", str(measured)] if measured is not None else []
        await children.start(ChildSpec("bridge", options.node, bridge, options.state_dir / "bridge.log"))
        facts = {"node": options.node, "state_dir": options.state_dir, "broker": broker.url, "cloud": options.cloud}
        if measured is not None:
            facts["bridge_metrics"] = metrics.url_of(measured)
        ready = Announcement("controller", **facts)
        await controller(
            ControllerOptions(
                node=options.node,
                state_dir=options.state_dir,
                bus=broker.url,
                credentials=broker.files["controller"],
                worker_credentials=broker.files["worker"],
                allowed_roots=options.allowed_roots,
                broker=broker.who,
                workers=options.workers,
                worker_bus=broker.worker_url,
                job_examples_bytes=options.job_examples_bytes,
                job_models=options.job_models,
            ),
            ready,
            lambda mine: _gateway(options, broker, mine),
        )


def _bridge_metrics(options: EdgeOptions) -> int | None:
    """The port of the bridge's numbers: of one that runs already, where it serves them. Raises PortTaken."""
    record = read_record(record_path(options.state_dir, "bridge", options.node))
    if record is not None and record.runs():
        port = _given(record.argv, "--metrics-port")
        if port is None and options.metrics_port is not None:
            todo = f"`edgeai stop --state-dir {options.state_dir}`, then start again"
            log.warning("bridge_metrics_not_served", reason=f"the bridge runs since before they were asked for: {todo}")
        return port
    if options.metrics_port is None:
        return None
    from edgeai.web import bound

    remembered = RememberedPort(options.state_dir, "bridge-metrics")
    ports = remembered.candidates(options.metrics_port and options.metrics_port + 1)
    with bound("127.0.0.1", ports, "metrics of the bridge", "--metrics-port") as listener:
        port = int(listener.getsockname()[1])
    remembered.keep(port)
    return port


def _given(argv: Sequence[str], option: str) -> int | None:
    """The number that follows an option, if it was given."""
    places = [place for place, part in enumerate(argv[:-1]) if part == option]
    return int(argv[places[-1] + 1]) if places else None


@asynccontextmanager
async def _gateway(options: EdgeOptions, broker: ServingBroker, mine: LocalController) -> AsyncIterator[None]:
    """HTTP for the applications of this machine, where a port is given. Raises PortTaken, LaunchError."""
    async with AsyncExitStack() as stack:
        if options.http_port is not None:
            from edgeai.gateway import GatewaySettings, serving

            if "app" not in broker.files:
                raise LaunchError(f"http_port of {options.node} needs app_credentials for the broker at {broker.url}")
            login = read_credentials_file(broker.files["app"])
            client_id = client_id_of(f"{options.node}-gateway", login.password.encode())
            bus = MqttBus(broker.url, client_id=client_id, username=login.username, password=login.password)
            metrics.follow_bus("gateway", bus)
            await stack.enter_async_context(bus)
            edge = await stack.enter_async_context(Edge(options.node, bus, "gateway"))
            settings = GatewaySettings(options.state_dir, options.http_port)
            mine.note(http=await stack.enter_async_context(serving(edge, mine.services, settings)))
        yield
