"""`demo` and `up`: everything on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgeai.cli import options as given


def register(app: typer.Typer) -> None:
    for command in (demo, up):
        app.command()(command)


class Feature(StrEnum):
    FEDERATED = "federated"
    INCREMENTAL = "incremental"
    JOINT_INFERENCE = "joint-inference"


def demo(
    *,
    feature: Annotated[Feature, typer.Option(help="What to show.")] = Feature.FEDERATED,
    edges: Annotated[
        int | None, typer.Option(min=1, max=100, metavar="N", help="Number of edges; federated: 3, else 1.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=1_000_000, metavar="N", help="Number of rounds, of the federated demo.")
    ] = 10,
    framework: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the workers: tensorflow or numpy (federated: tensorflow by default)."),
    ] = None,
    broker: given.Broker = given.EdgeBrokerKind.AUTO,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the model.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")] = False,
    launcher: given.Launcher = given.LauncherKind.PROCESS,
) -> None:
    """Train over several edges, improve a model on one, or ask edge and cloud together: on real data, start to end."""
    from edgeai.cli.demo import DemoOptions, run_demo

    federated = feature is Feature.FEDERATED
    edges = edges or (3 if federated else 1)
    framework = framework or ("tensorflow" if federated else "numpy")
    raise typer.Exit(
        run_demo(DemoOptions(edges, rounds, framework, broker.value, output, json, launcher.value, feature.value))
    )


def up(
    *,
    edges: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Number of edges.")] = 3,
    broker: given.Broker = given.EdgeBrokerKind.AUTO,
    state_dir: given.StateDir = None,
    launcher: given.Launcher = given.LauncherKind.PROCESS,
) -> None:
    """Keep a cloud and several edges running on this machine until Ctrl-C."""
    from edgeai.cli.up import run_up

    raise typer.Exit(run_up(edges=edges, broker=broker.value, state_dir=state_dir, launcher=launcher.value))
