"""Asking a joint inference service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeai.cli import options as given


def register(app: typer.Typer) -> None:
    app.command()(infer)


def infer(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="Name of the JointInferenceService.")],
    *,
    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", metavar="FILE", help="The input: .npy, .npz (array x), or text."),
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="The input as text.")] = None,
    json: Annotated[
        str | None, typer.Option(metavar="JSON", help="The input as JSON; a list is an array, also in a map.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Of the values of an array, such as uint8; default: as it is.")
    ] = "",
    rows: Annotated[bool, typer.Option("--rows", help="Ask about each row of the array.")] = False,
    edge: Annotated[
        str | None, typer.Option(metavar="NODE", help="The edge to ask; default: the only one here.")
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(min=0.001, max=600, metavar="SECONDS", help="For each answer; default: the service's own."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="The Model that is to answer.")] = "",
    credentials: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of the user app of the edge's broker; default: found here.")
    ] = None,
    output: Annotated[given.Form, typer.Option("-o", "--output", metavar=given.one_of(given.Form))] = given.Form.TABLE,
) -> None:
    """Ask a joint inference service on an edge of this machine."""
    import asyncio

    from edgeai.cli.asking import ask, inputs_from, login_of

    if sum(each is not None for each in (file, text, json)) != 1:
        raise typer.BadParameter("give one of --file, --text and --json")
    if credentials is not None and edge is None:
        raise typer.BadParameter("--credentials needs --edge")
    inputs = inputs_from(file, text, json, rows=rows, dtype=dtype)
    node, login = (edge, credentials) if edge and credentials else login_of(edge)
    asyncio.run(
        ask(
            *(node, login, given.checked_name(service), inputs),
            deadline_s=deadline,
            model=model,
            as_json=output is given.Form.JSON,
        )
    )
