"""The daemons of real machines, and who may connect to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeai.cli import options as given

nodes = typer.Typer(help="Edges that may connect to this machine's cloud.", no_args_is_help=True)

_Port = Annotated[
    int | None, typer.Option(min=1, max=65535, metavar="N", help="Of the embedded broker, on loopback; default: any.")
]
_Credentials = typer.Option(metavar="FILE", help="Credentials file for an external broker.")
_File = Annotated[Path | None, _Credentials]
_Node = Annotated[str, typer.Option(metavar="NAME", help="Name of the node.")]


def register(app: typer.Typer) -> None:
    for command in (cloud, edge, coordinator, controller, bridge, stop):
        app.command()(command)
    app.add_typer(nodes, name="node")


def cloud(
    *,
    config: given.Config = None,
    state_dir: given.StateDir = None,
    edge: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Edge node that may connect (repeatable).")
    ] = None,
    port: _Port = None,
    allowed_root: given.Roots = None,
    launcher: given.DaemonLauncher = None,
    allowed_network: given.Networks = None,
    secrets_dir: given.SecretsDir = None,
    nats_url: Annotated[
        str | None, typer.Option(metavar="URL", help="External NATS instead of an embedded one.")
    ] = None,
    coordinator_credentials: _File = None,
    worker_credentials: _File = None,
    operator_credentials: _File = None,
    metrics_port: given.MetricsPort = None,
    portal_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="N", help="Of the portal; 0: any, remembered. Default: no portal."),
    ] = None,
    portal_host: Annotated[
        str | None, typer.Option(metavar="HOST", help="Where it listens; TLS is needed beyond loopback.")
    ] = None,
    portal_tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate of the portal, in PEM; with --portal-tls-key.")
    ] = None,
    portal_tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of that certificate, in PEM.")
    ] = None,
    portal_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Further host name of the portal (repeatable).")
    ] = None,
) -> None:
    """Run the cloud: coordinator, the cloud node's controller, nats-server; and the portal, if it is given a port."""
    from edgeai.cli.config import cloud_options
    from edgeai.cli.daemons.cloud import run_cloud

    run_cloud(
        cloud_options(
            config,
            state_dir=state_dir,
            edges=edge,
            port=port,
            allowed_roots=allowed_root,
            launcher=launcher.value if launcher else None,
            allowed_networks=allowed_network,
            secrets_dir=secrets_dir,
            nats_url=nats_url,
            coordinator_credentials=coordinator_credentials,
            worker_credentials=worker_credentials,
            operator_credentials=operator_credentials,
            metrics_port=metrics_port,
            portal_port=portal_port,
            portal_host=portal_host,
            portal_tls_certificate=portal_tls_certificate,
            portal_tls_key=portal_tls_key,
            portal_names=portal_name,
        )
    )


def edge(
    *,
    config: given.Config = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Name of this edge node.")] = None,
    cloud: Annotated[str | None, typer.Option(metavar="URL", help="URL of the cloud's NATS, nats://host:port.")] = None,
    credentials: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the cloud has issued for this node.")
    ] = None,
    state_dir: given.StateDir = None,
    broker: Annotated[
        given.EdgeBrokerKind | None,
        typer.Option(metavar=given.one_of(given.EdgeBrokerKind), help="Embedded broker; auto: mosquitto if installed."),
    ] = None,
    port: _Port = None,
    allowed_root: given.Roots = None,
    launcher: given.DaemonLauncher = None,
    allowed_network: given.Networks = None,
    secrets_dir: given.SecretsDir = None,
    job_examples_mib: Annotated[
        int | None, typer.Option(metavar="N", help="Labelled examples that one job may keep, in MiB; default: 1024.")
    ] = None,
    job_models: Annotated[
        int | None, typer.Option(metavar="N", help="Models of one job that may wait for the cloud; default: 10.")
    ] = None,
    mqtt_url: Annotated[
        str | None, typer.Option(metavar="URL", help="External MQTT broker instead of an embedded one.")
    ] = None,
    controller_credentials: _File = None,
    bridge_credentials: _File = None,
    worker_credentials: _File = None,
    app_credentials: _File = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="N", help="HTTP for joint inference, on loopback; 0: any. Default: none."
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65534,
            metavar="N",
            help="Of /metrics, on loopback; the bridge's is the next one. 0: any. Default: none.",
        ),
    ] = None,
) -> None:
    """Run an edge node: controller, bridge, and the edge's MQTT broker."""
    from edgeai.cli.config import edge_options
    from edgeai.cli.daemons.edge import run_edge

    run_edge(
        edge_options(
            config,
            node=node,
            cloud=cloud,
            credentials=credentials,
            state_dir=state_dir,
            broker=broker.value if broker else None,
            port=port,
            allowed_roots=allowed_root,
            launcher=launcher.value if launcher else None,
            allowed_networks=allowed_network,
            secrets_dir=secrets_dir,
            job_examples_mib=job_examples_mib,
            job_models=job_models,
            mqtt_url=mqtt_url,
            controller_credentials=controller_credentials,
            bridge_credentials=bridge_credentials,
            worker_credentials=worker_credentials,
            app_credentials=app_credentials,
            http_port=http_port,
            metrics_port=metrics_port,
        )
    )


def coordinator(
    nats: Annotated[str, typer.Option(metavar="URL", help="URL of the cloud's NATS.")],
    credentials: Annotated[Path, typer.Option(metavar="FILE", help="Credentials file for it.")],
    metrics_port: given.MetricsPort = None,
) -> None:
    """Run only the coordinator."""
    from edgeai.cli.daemons.cloud import run_coordinator

    run_coordinator(nats, credentials, metrics_port)


def controller(
    *,
    node: _Node,
    bus: Annotated[
        str, typer.Option(metavar="URL", help="URL of the node's broker: mqtt://, or nats:// for the node cloud.")
    ],
    credentials: Annotated[Path, typer.Option(metavar="FILE", help="Credentials file for it.")],
    worker_credentials: Annotated[Path, typer.Option(metavar="FILE", help="Credentials file handed to workers.")],
    state_dir: given.StateDir = None,
    allowed_root: given.Roots = None,
    launcher: given.DaemonLauncher = None,
    allowed_network: given.Networks = None,
    secrets_dir: given.SecretsDir = None,
    metrics_port: given.MetricsPort = None,
) -> None:
    """Run only a node's controller."""
    from edgeai.cli.daemons.controller import run_controller
    from edgeai.cli.daemons.options import ControllerOptions, WorkerOptions
    from edgeai.settings import data_folder

    run_controller(
        ControllerOptions(
            node=given.checked_name(node),
            state_dir=(state_dir or data_folder() / node).absolute(),
            bus=bus,
            credentials=credentials.absolute(),
            worker_credentials=worker_credentials.absolute(),
            allowed_roots=[root.absolute() for root in allowed_root or ()],
            workers=WorkerOptions(
                launcher.value if launcher else "process",
                allowed_network or (),
                secrets_dir.absolute() if secrets_dir else None,
            ),
            metrics_port=metrics_port,
        )
    )


def bridge(
    *,
    node: _Node,
    mqtt: Annotated[str, typer.Option(metavar="URL", help="URL of the edge's MQTT broker.")],
    mqtt_credentials: Annotated[Path, typer.Option(metavar="FILE", help="Credentials file for it.")],
    nats: Annotated[str, typer.Option(metavar="URL", help="URL of the cloud's NATS.")],
    nats_credentials: Annotated[Path, typer.Option(metavar="FILE", help="Credentials file for it.")],
    metrics_port: given.MetricsPort = None,
) -> None:
    """Run only an edge's bridge between its broker and the cloud."""
    from edgeai.cli.daemons.bridge import run_bridge
    from edgeai.cli.daemons.options import BridgeOptions

    run_bridge(BridgeOptions(given.checked_name(node), mqtt, mqtt_credentials, nats, nats_credentials, metrics_port))


def stop(
    state_dir: Annotated[Path, typer.Option("--state-dir", metavar="FOLDER", help="What the daemon was given.")],
) -> None:
    """Stop everything that runs on a state directory: daemon, broker, bridge, workers. Nothing is deleted."""
    from edgeai.cli.stopping import stop_all

    stop_all(state_dir.absolute())


@nodes.command("add")
def node_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new edge.")],
    state_dir: given.StateDir = None,
    config: given.Config = None,
) -> None:
    """Issue the credentials of a further edge; prints the path of the file to copy to it."""
    from edgeai.cli.config import cloud_options
    from edgeai.cli.nodes import add_node

    print(add_node(given.checked_name(name), cloud_options(config, state_dir=state_dir).state_dir))
