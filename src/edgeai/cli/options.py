"""Options that several commands share. Imported by `edgeai --help`, so nothing heavy may be imported here."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Output(StrEnum):
    """Forms of `get` and `watch`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class Form(StrEnum):
    """Forms of `events`."""

    TABLE = "table"
    JSON = "json"


class EdgeBrokerKind(StrEnum):
    AUTO = "auto"
    MOSQUITTO = "mosquitto"
    NATS = "nats"


class SchemaForm(StrEnum):
    CRD = "crd"
    JSON = "json"


class LauncherKind(StrEnum):
    PROCESS = "process"
    DOCKER = "docker"


def checked_name(text: str) -> str:
    """Raises typer.BadParameter."""
    from edgeai.resources.names import checked_name

    try:
        return checked_name(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}") from error


def version_line() -> str:
    from importlib import metadata

    try:
        return f"edgeai {metadata.version('edgeai')}"
    except metadata.PackageNotFoundError:
        return "edgeai (a source checkout, not installed)"


def one_of(kind: type[StrEnum]) -> str:
    return "|".join(kind)


def seconds(text: str) -> float:
    """`30`, `30s`, `5m` or `2h`."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1:]]) if text[-1:] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise typer.BadParameter(f"{text!r} is not a duration such as 30, 30s, 5m or 2h")
    return value


Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file; options given here win over it.")
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", metavar="FOLDER", help="Folder for everything that must survive a restart."),
]
Broker = Annotated[
    EdgeBrokerKind,
    typer.Option("--broker", metavar=one_of(EdgeBrokerKind), help="Broker of the edges; auto: mosquitto if installed."),
]
Launcher = Annotated[
    LauncherKind, typer.Option("--launcher", metavar=one_of(LauncherKind), help="How workers are started.")
]
DaemonLauncher = Annotated[
    LauncherKind | None,
    typer.Option("--launcher", metavar=one_of(LauncherKind), help="How workers are started; default: process."),
]
Networks = Annotated[
    list[str] | None,
    typer.Option("--allowed-network", metavar="NAME", help="Network that a task may ask for (repeatable)."),
]
SecretsDir = Annotated[
    Path | None, typer.Option("--secrets-dir", metavar="FOLDER", help="Files that tasks may refer to as secrets.")
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        "--metrics-port", min=0, max=65534, metavar="N", help="Of /metrics, on loopback; 0: any. Default: none."
    ),
]
Roots = Annotated[
    list[Path] | None,
    typer.Option("--allowed-root", metavar="FOLDER", help="Folder in which datasets and scripts may lie (repeatable)."),
]
Files = Annotated[
    list[str] | None,
    typer.Option(
        "-f", "--filename", metavar="FILE", help="Manifest, folder of manifests, or - for standard input (repeatable)."
    ),
]
Timeout = Annotated[
    float | None, typer.Option("--timeout", parser=seconds, metavar="S", help="Give up after so long: 30, 30s, 5m.")
]
What = Annotated[
    str, typer.Argument(metavar="KIND[/NAME]", help="task, job, service, dataset, model or node; or KIND/NAME.")
]
OptionalWhat = Annotated[
    str | None,
    typer.Argument(metavar="[KIND[/NAME]]", help="task, job, service, dataset, model or node; or KIND/NAME."),
]
Name = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of the resource.")]
TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of a task, job or service; or KIND/NAME.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")]
OutputForm = Annotated[Output, typer.Option("-o", "--output", metavar=one_of(Output), help="How it is written.")]
EventForm = Annotated[Form, typer.Option("-o", "--output", metavar=one_of(Form), help="How it is written.")]
