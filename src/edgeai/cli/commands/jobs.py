"""What there is to do with an incremental learning job while it runs: ask for a round, label examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeai.cli import options as given


def register(app: typer.Typer) -> None:
    for command in (trigger, label):
        app.command()(command)


def trigger(job: given.JobName) -> None:
    """Ask for a round of a job now, whatever its trigger says; one that has given up tries again."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.labelling import trigger
    from edgeai.cli.naming import job_named

    name = job_named(job)
    on_cloud(lambda cloud: trigger(cloud, name))


def label(
    job: given.JobName,
    labels: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID=LABEL]...", help="Labels by id of the example; a label is JSON, else text."),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", metavar="FILE", help="Labels from a .jsonl (id, label) or .csv file with these columns."
        ),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show the examples that wait for a label, the oldest first.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="List at most so many.")] = 100,
    after: Annotated[
        str | None, typer.Option("--after", metavar="ID", help="List those that come behind this one.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FOLDER", help="Write what is listed there: inputs, and labels.csv to fill in."
        ),
    ] = None,
) -> None:
    """Label hard examples of a job, or show those that wait for a label."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.labelling import give, labels_from, list_waiting
    from edgeai.cli.naming import job_named

    if sum((bool(labels), file is not None, list_)) != 1:
        raise typer.BadParameter("give either ID=LABEL ..., or --file FILE, or --list")
    if (export is not None or after) and not list_:
        raise typer.BadParameter(f"{'--after' if after else '--export'} goes with --list")
    name = job_named(job)
    if list_:
        on_cloud(lambda cloud: list_waiting(cloud, name, limit, export, after or ""))
        return
    given_labels = labels_from(labels or [], file)
    on_cloud(lambda cloud: give(cloud, name, given_labels))
