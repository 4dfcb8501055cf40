"""The commands. Each imports what it needs when it runs, so that `edgeai --help` answers at once.

Data goes to standard output, progress and notices to standard error. Exit codes: 0 ok, 1 failed, 2 usage, 3 not found,
4 refused or conflict, 5 backend unreachable, 124 wait timed out.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeai.errors import EdgeaiError

app = typer.Typer(
    name="edgeai",
    help="Edge AI without a cluster: train, improve and serve models where the data is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StateDir = Annotated[Path, typer.Option("--state-dir", help="Folder for everything that must survive a restart.")]
Broker = Annotated[str, typer.Option("--broker", help="Edge broker: auto, mosquitto or nats.")]
Roots = Annotated[
    list[Path] | None, typer.Option("--allowed-root", help="Folder in which datasets and scripts of this node may lie.")
]


def main() -> None:
    """Entry point: an error becomes one line on standard error and an exit code."""
    try:
        app()
    except EdgeaiError as error:
        print(f"edgeai: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def _daemon(work: Coroutine[Any, Any, None]) -> None:
    from edgeai.logs import configure

    configure()
    asyncio.run(work)


@app.command()
def cloud(
    state_dir: StateDir = Path("edgeai-cloud"),
    edge: Annotated[list[str] | None, typer.Option(help="Edge node that may connect (repeatable).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of nats-server on loopback; default: any free one.")] = None,
    allowed_root: Roots = None,
) -> None:
    """Run the cloud: coordinator, the cloud node's controller, and nats-server."""
    from edgeai.cli.daemons import CloudOptions, run_cloud

    _daemon(run_cloud(CloudOptions(state_dir.absolute(), edge or (), port, allowed_root or ())))


@app.command()
def edge(
    node: Annotated[str, typer.Option(help="Name of this edge node.")],
    cloud: Annotated[str, typer.Option(help="URL of the cloud's NATS, nats://host:port.")],
    credentials: Annotated[Path, typer.Option(help="Credentials file that the cloud has issued for this node.")],
    state_dir: StateDir = Path("edgeai-edge"),
    broker: Broker = "auto",
    port: Annotated[int | None, typer.Option(help="Port of the edge broker on loopback.")] = None,
    allowed_root: Roots = None,
) -> None:
    """Run an edge node: controller, bridge, and the edge's MQTT broker."""
    from edgeai.cli.daemons import EdgeOptions, run_edge

    options = EdgeOptions(node, state_dir.absolute(), cloud, credentials.absolute(), broker, port, allowed_root or ())
    _daemon(run_edge(options))


@app.command()
def bridge(
    node: Annotated[str, typer.Option(help="Name of the edge node.")],
    mqtt: Annotated[str, typer.Option(help="URL of the edge's MQTT broker.")],
    mqtt_credentials: Annotated[Path, typer.Option(help="Credentials file for it.")],
    nats: Annotated[str, typer.Option(help="URL of the cloud's NATS.")],
    nats_credentials: Annotated[Path, typer.Option(help="Credentials file for it.")],
) -> None:
    """Run only an edge's bridge between its broker and the cloud."""
    from edgeai.cli.daemons import run_bridge

    _daemon(run_bridge(node, mqtt, mqtt_credentials, nats, nats_credentials))


@app.command()
def demo(
    edges: Annotated[int, typer.Option(min=1, max=100, help="Number of edges.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 10,
    framework: Annotated[str, typer.Option(help="Framework of the training workers: tensorflow or numpy.")] = "tensorflow",
    broker: Broker = "auto",
    output: Annotated[Path, typer.Option(help="Where the model is written.")] = Path("."),
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")] = False,
) -> None:
    """Train one model over several edges, start to end, on real data, everything on this machine."""
    from edgeai.cli.demo import run_demo

    raise SystemExit(run_demo(edges=edges, rounds=rounds, framework=framework, broker=broker, output=output, as_json=json))
