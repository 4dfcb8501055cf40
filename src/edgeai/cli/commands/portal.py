"""`portal`, `portal link`, `portal token`: the web page, and who may come into it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgeai.cli import options as given

group = typer.Typer(help="The web page and REST API, and who may come in.", invoke_without_command=True)
tokens = typer.Typer(help="Tokens of people and programs, on the portal's machine.", no_args_is_help=True)


class Role(StrEnum):
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


_Where = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="FOLDER",
        help="The portal's, or of the cloud that runs it; default: the one that is found.",
    ),
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the token.")]


def register(app: typer.Typer) -> None:
    group.add_typer(tokens, name="token")
    app.add_typer(group, name="portal")


@group.callback()
def serve(
    context: typer.Context,
    *,
    state_dir: given.StateDir = None,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Where to listen; TLS is needed beyond loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: the port of last time, at first any free one.")] = 0,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate of the portal, in PEM; with --tls-key.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of the certificate, in PEM.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Further host name of the portal.")] = None,
    no_link: Annotated[bool, typer.Option("--no-link", help="Print no link that logs in.")] = False,
) -> None:
    """Serve the web page and REST API of the cloud that the context names."""
    context.obj = state_dir
    if context.invoked_subcommand is not None:
        return
    from edgeai.cli.portal import run_portal, settings_of

    settings = settings_of(
        state_dir, host=host, port=port, tls_certificate=tls_certificate, tls_key=tls_key, names=name or []
    )
    run_portal(settings, link=not no_link)


@group.command()
def link(
    context: typer.Context,
    *,
    state_dir: _Where = None,
    role: Annotated[Role, typer.Option(metavar=given.one_of(Role), help="What whoever opens it may do.")] = Role.ADMIN,
) -> None:
    """Print a link that logs one browser in, once, within ten minutes."""
    from edgeai.cli.admission import make_link

    print(make_link(state_dir or context.obj, role.value))


@tokens.command()
def create(
    context: typer.Context,
    name: _Name,
    *,
    role: Annotated[Role, typer.Option(metavar=given.one_of(Role), help="What its bearer may do.")],
    state_dir: _Where = None,
) -> None:
    """Make a token and print it: it is shown this once."""
    from edgeai.cli.admission import create_token

    print(create_token(state_dir or context.obj, given.checked_name(name), role.value))


@tokens.command("list")
def list_(context: typer.Context, *, state_dir: _Where = None) -> None:
    """Show the tokens there are, without their secrets."""
    from edgeai.cli.admission import token_lines

    print("\n".join(token_lines(state_dir or context.obj)))


@tokens.command()
def revoke(context: typer.Context, name: _Name, *, state_dir: _Where = None) -> None:
    """Revoke a token and end the sessions that were opened with it."""
    from edgeai.cli.admission import revoke_token

    revoke_token(state_dir or context.obj, given.checked_name(name))
