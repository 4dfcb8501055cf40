"""`model list`, `pull`, `rollback`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

group = typer.Typer(help="Versions of models.", no_args_is_help=True)
_Version = Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of the version.")]
_Model = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="model")


@group.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model; default: all.")] = None,
) -> None:
    """Show every version of models."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.models import list_versions

    found = _checked(name) if name else None
    on_cloud(lambda cloud: list_versions(cloud, found))


@group.command()
def pull(
    name: _Model,
    version: _Version = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PATH", help="File or folder; default: here.")
    ] = None,
) -> None:
    """Write a version (default: the newest) to a file of its format; prints its path."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.models import pull

    found = _checked(name)
    on_cloud(lambda cloud: pull(cloud, found, version, output))


@group.command()
def rollback(name: _Model, version: _Version = None) -> None:
    """Make an old version (default: the one before) the newest again, under a new number."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.models import rollback

    found = _checked(name)
    on_cloud(lambda cloud: rollback(cloud, found, version))


def _checked(text: str) -> str:
    from edgeai.cli.naming import one_resource

    return one_resource(text)[1] if "/" in text else one_resource("model", text)[1]
