"""What workers wrote, what they use and what happened; an event by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeai.cli import options as given


def register(app: typer.Typer) -> None:
    for command in (logs, top, events, publish):
        app.command()(command)


def logs(
    task: given.TaskName,
    worker: Annotated[str | None, typer.Argument(metavar="[WORKER]", help="One worker; default: all of them.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the workers have ended.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only the last N lines.")] = None,
) -> None:
    """Show what the workers of a task, job or service have written."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.naming import task_named
    from edgeai.cli.telling import logs

    kind, name = task_named(task)
    on_cloud(lambda cloud: logs(cloud, (kind, name), worker, follow=follow, tail=tail))


def top(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="One task, job or service; default: all of them.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once, instead of every 2 s until Ctrl-C.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One document a line.")] = False,
) -> None:
    """Show what the workers use that run: processors, memory, processes and threads, and how old that is."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.naming import task_named
    from edgeai.cli.top import top

    named = task_named(task) if task else None
    on_cloud(lambda cloud: top(cloud, named, once=once, as_json=json))


def events(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="One task, job or service; default: everything.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of the past, only the last N.")] = None,
    output: given.EventForm = given.Form.TABLE,
) -> None:
    """Show what has happened, from the oldest to the newest."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.naming import task_named
    from edgeai.cli.telling import events

    named = task_named(task) if task else None
    on_cloud(lambda cloud: events(cloud, named, follow=follow, tail=tail, form=output))


def publish(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Kind of the event, see docs/events.md.")],
    node: Annotated[str, typer.Option(metavar="NODE", help="Node that it is from or for.")],
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Task that it is about.")] = None,
    worker: Annotated[str | None, typer.Option(metavar="WORKER", help="Worker that it is from or for.")] = None,
    data: Annotated[str, typer.Option(metavar="JSON", help="Its fields; task_uid is filled in.")] = "{}",
) -> None:
    """Put an event on the bus by hand; prints where it went."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.naming import task_named
    from edgeai.cli.telling import body_from, publish

    body, named = body_from(data), task_named(task) if task else None
    on_cloud(lambda cloud: publish(cloud, kind, body, node=node, task=named, worker=worker))
