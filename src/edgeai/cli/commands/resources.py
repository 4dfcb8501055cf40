"""Commands on resources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgeai.cli import options as given

if TYPE_CHECKING:
    from edgeai.client import Cloud
    from edgeai.resources.base import Resource


def register(app: typer.Typer) -> None:
    for command in (apply, get, describe, delete, watch, wait, pause, resume):
        app.command()(command)


def apply(
    filename: given.Files = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow tasks to their end, jobs and services until they serve.")
    ] = False,
    timeout: given.Timeout = None,
) -> None:
    """Create or change the resources of manifests."""
    from edgeai.cli.applying import apply, read_manifests_of
    from edgeai.cli.connection import on_cloud

    if not filename:
        raise typer.BadParameter("which manifest? Give -f FILE, a folder, or - for standard input")
    manifests = read_manifests_of(filename)
    on_cloud(lambda cloud: apply(cloud, manifests, wait=wait, timeout_s=timeout))


def get(what: given.What, name: given.Name = None, output: given.OutputForm = given.Output.TABLE) -> None:
    """Show one resource or all of a kind."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.inspecting import get
    from edgeai.cli.naming import resource_named

    kind, found = resource_named(what, name)
    on_cloud(lambda cloud: get(cloud, kind, found, output))


def describe(
    what: given.What,
    name: given.Name = None,
    json: Annotated[
        bool, typer.Option("--json", help="One document: as stored, and what each worker of a task uses.")
    ] = False,
) -> None:
    """Show everything about one resource: conditions, workers and what they use, rounds, stages or inferences, last events."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.inspecting import describe
    from edgeai.cli.naming import one_resource

    kind, found = one_resource(what, name)
    on_cloud(lambda cloud: describe(cloud, kind, found, as_json=json))


def delete(
    what: given.OptionalWhat = None,
    name: given.Name = None,
    filename: given.Files = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when everything is gone.")] = False,
    timeout: given.Timeout = None,
) -> None:
    """Delete a resource, or those of manifests. A task, job or service is gone when its workers are."""
    from edgeai.cli.applying import delete, read_manifests_of
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.naming import one_resource

    if (what is None) == (not filename):
        raise typer.BadParameter("give either KIND NAME or -f FILE")
    if what is not None:
        named = [one_resource(what, name)]
    else:
        manifests = read_manifests_of(filename or [])
        named = [(resource.kind, resource.name) for manifest in manifests for resource in manifest.resources]
    must_exist = what is not None
    on_cloud(lambda cloud: delete(cloud, named, wait=wait, timeout_s=timeout, must_exist=must_exist))


def watch(what: given.What, name: given.Name = None, output: given.OutputForm = given.Output.TABLE) -> None:
    """Show resources and every change, until Ctrl-C."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.inspecting import watch
    from edgeai.cli.naming import resource_named

    kind, found = resource_named(what, name)
    on_cloud(lambda cloud: watch(cloud, kind, found, output))


def wait(
    what: given.What,
    name: given.Name = None,
    for_: Annotated[
        str, typer.Option("--for", metavar="GOAL", help="condition=TYPE[=STATUS], phase=PHASE, or delete.")
    ] = "condition=Succeeded",
    timeout: given.Timeout = None,
) -> None:
    """Wait until something is true of a resource; fail at once when it cannot become true any more."""
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.goals import Goal
    from edgeai.cli.inspecting import wait
    from edgeai.cli.naming import one_resource

    goal = Goal.parse(for_)
    kind, found = one_resource(what, name)
    on_cloud(lambda cloud: wait(cloud, kind, found, goal, timeout))


def pause(task: given.TaskName) -> None:
    """Let a task stop before its next round, a job before its next stage; what serves goes on."""
    _set_paused(task, paused=True)


def resume(task: given.TaskName) -> None:
    """Let a paused task or job go on."""
    _set_paused(task, paused=False)


def _set_paused(text: str, *, paused: bool) -> None:
    from edgeai.cli.connection import on_cloud
    from edgeai.cli.naming import label_of, task_named

    kind, name = task_named(text)

    async def change(cloud: Cloud) -> Resource:
        found = await cloud.task(name, kind)
        return await cloud.set_paused(name, paused, kind=found.kind)

    resource = on_cloud(change)
    print(f"{label_of(resource)} {'paused' if paused else 'resumed'} (generation {resource.metadata.generation})")
