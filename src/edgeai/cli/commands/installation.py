"""About this installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeai.cli import options as given

images = typer.Typer(help="Our images for workers in containers.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    for command in (schema, doctor, version):
        app.command()(command)
    app.add_typer(images, name="images")


@images.command("build")
def images_build(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Such as federated-numpy; default: those of workers."),
    ] = None,
    wheelhouse: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Wheels, where the build step has no network.")
    ] = None,
    base: Annotated[str, typer.Option(metavar="IMAGE", help="Instead of the stock Python image.")] = "",
) -> int:
    """Build the images with the Docker engine of this machine; prints their tags."""
    from edgeai.cli.images import build_images

    return build_images(names or [], wheelhouse, base)


def schema(
    form: Annotated[
        given.SchemaForm,
        typer.Argument(metavar=given.one_of(given.SchemaForm), help="crd: for Kubernetes, as YAML; json: for editors."),
    ],
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="crd of one kind; default: all.")] = None,
) -> None:
    """Print the schemas of manifests, made from the code."""
    import json

    from edgeai.client import kind_named
    from edgeai.resources.kinds import KINDS
    from edgeai.resources.manifest import dump_manifests
    from edgeai.resources.schema import crd, json_schema

    if form is given.SchemaForm.CRD:
        print(dump_manifests([crd(kind_named(kind))] if kind else map(crd, sorted(KINDS))), end="")
    elif kind:
        raise typer.BadParameter("there is one JSON schema for all kinds: leave KIND out")
    else:
        print(json.dumps(json_schema(), indent=2))


def doctor(
    crash_points: Annotated[bool, typer.Option("--crash-points", help="List the names for EDGEAI_CRASH_AT.")] = False,
) -> None:
    """Say what is installed, reachable, too old, out of space; exit 1 if something required is missing."""
    if crash_points:
        from edgeai.crashpoints import NAMES

        print("\n".join(sorted(NAMES)))
        return
    from edgeai.cli.doctor import examine

    if not examine():
        raise typer.Exit(1)


def version() -> None:
    """Print the version."""
    print(given.version_line())
