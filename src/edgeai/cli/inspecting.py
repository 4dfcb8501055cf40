"""`get`, `describe`, `watch` and `wait`: what is stored, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from edgeai.cli.description import description
from edgeai.cli.doubt import Heard, in_motion, seconds_since
from edgeai.cli.goals import Goal
from edgeai.cli.health import columns, node_document
from edgeai.cli.models import servers_there
from edgeai.cli.naming import called, label
from edgeai.cli.options import Output
from edgeai.cli.outcome import say
from edgeai.cli.output import aligned, cells, columns_of, resources_text, terminal_width, utc_now
from edgeai.cli.usage import task_document
from edgeai.client import Cloud, HistoryLine, Task
from edgeai.errors import BusUnavailable, EdgeaiError, NotFound, noun
from edgeai.events.catalogue import UsageRow
from edgeai.lifecycle.health import in_words
from edgeai.lifecycle.usage import MAY_RUN
from edgeai.resources.base import Resource
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.kinds import KINDS
from edgeai.resources.manifest import dump_manifests
from edgeai.resources.model import Model
from edgeai.resources.node import EdgeNode
from edgeai.resources.snapshots import DatasetUse, uses_of

_EVENTS_S, _USAGE_S, _HEALTH_S = 3.0, 2.0, 2.0
_TRAINERS = ("FederatedTask", "IncrementalLearningJob")


async def get(cloud: Cloud, kind: str, name: str | None, form: Output) -> None:
    """Raises NotFound for a name that does not exist."""
    found = [await cloud.get(kind, name)] if name else await cloud.list(kind)
    if not found and form in {Output.TABLE, Output.WIDE}:
        say(f"there is no {noun(kind)}")
        return
    heard = None
    if form is not Output.NAME and any(map(in_motion, found)):
        heard = await _heard(cloud, name or "" if kind == "EdgeNode" else "", stored=form in {Output.JSON, Output.YAML})
    nodes = [node for node in found if isinstance(node, EdgeNode)] if form is Output.WIDE else []
    beside = columns(nodes, heard.answer if heard else None) if nodes else ()
    now, width, one = utc_now(), terminal_width(), name is not None
    if text := resources_text(found, KINDS[kind], form, one=one, now=now, width=width, beside=beside, heard=heard):
        print(text)


async def describe(cloud: Cloud, kind: str, name: str, *, as_json: bool = False) -> None:
    """Raises NotFound."""
    resource = await cloud.get(kind, name)
    heard = None
    if in_motion(resource):
        heard = await _heard(cloud, name if kind == "EdgeNode" else "", stored=as_json)
    usage: Sequence[UsageRow] = ()
    events: list[HistoryLine] = []
    if isinstance(resource, Task):
        usage = await _usage(cloud, resource) if heard is None or heard.answer is not None else ()
        if as_json:
            print(json.dumps(task_document(resource, usage), indent=2, ensure_ascii=False))
            return
        events = await _events(cloud, resource)
    uses = await _uses(cloud, resource) if isinstance(resource, Dataset) else []
    if as_json:
        answer = heard.answer if heard else None
        document = node_document(resource, answer) if isinstance(resource, EdgeNode) else resource.to_document()
        if isinstance(resource, Dataset):
            document["snapshots"] = [use.model_dump(mode="json", by_alias=True) for use in uses]
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        servers = await servers_there(cloud) if isinstance(resource, Model) else ()
        now, width = utc_now(), terminal_width()
        print(description(resource, events, now, usage, width, servers=servers, uses=uses, heard=heard))


async def _uses(cloud: Cloud, dataset: Dataset) -> list[DatasetUse]:
    models = [each for each in await cloud.list("Model") if isinstance(each, Model)]
    found = [each for kind in _TRAINERS for each in await cloud.list(kind)]
    trainers = [each for each in found if isinstance(each, FederatedTask | IncrementalLearningJob)]
    return uses_of(dataset.name, models, trainers)


async def _events(cloud: Cloud, task: Task) -> list[HistoryLine]:
    try:
        async with asyncio.timeout(_EVENTS_S):
            return [line async for line in cloud.history(task)]
    except (TimeoutError, EdgeaiError) as error:
        say(f"the events of {called(task.kind, task.name)} cannot be read: {error or 'no answer'}")
        return []


async def _usage(cloud: Cloud, task: Task) -> Sequence[UsageRow]:
    """Nobody is asked about workers that do not run."""
    if not any(worker.state in MAY_RUN for worker in task.status.workers):
        return ()
    try:
        return (await cloud.usage(task, timeout_s=_USAGE_S)).workers
    except EdgeaiError as error:
        say(f"what the workers of {called(task.kind, task.name)} use is unknown: {error}")
        return ()


async def _heard(cloud: Cloud, node: str = "", *, stored: bool = False) -> Heard:
    """What the coordinator knows of one node or, without a name, of all; if it is silent, one line says so.

    `stored`: what is printed are states as they are stored.
    """
    try:
        async with asyncio.timeout(_HEALTH_S):
            return Heard(await cloud.health(node, timeout_s=_HEALTH_S), utc_now())
    except (TimeoutError, EdgeaiError) as error:
        who = str(error) or f"the coordinator did not answer within {_HEALTH_S:g} s"
    silent_s = await _last_sign(cloud)
    since = "no sign of it is stored" if silent_s is None else f"its last sign is {in_words(silent_s)} old"
    shown = "states are those that were stored last" if stored else "what only it knows is Unknown"
    say(f"{who}, {since}: {shown}; see whether `edgeai cloud` runs, and its log")
    return Heard(None, utc_now(), silent_s)


async def _last_sign(cloud: Cloud) -> float | None:
    """Seconds since the coordinator last wrote that a node was heard of, as it does every minute; None: that is not known."""
    nodes = [node for node in await cloud.list("EdgeNode") if isinstance(node, EdgeNode)]
    ages = [seconds_since(node.status.last_seen, utc_now()) for node in nodes]
    return min((age for age in ages if age is not None), default=None)


async def watch(cloud: Cloud, kind: str, name: str | None, form: Output) -> None:
    """Print what there is and then every change, until cancelled. Raises NotFound for a name that is not there."""
    async with cloud.watch(kind) as changes:
        table = _Table(kind, form)
        seen = moving = False
        async for change in changes:
            if change is None:
                if name is not None and not seen:
                    raise NotFound(kind, name)
                table.start()
                if moving and form is not Output.NAME:
                    await _heard(cloud, stored=True)
            elif name in {None, change[1]}:
                seen, moving = True, moving or (change[2] is not None and in_motion(change[2]))
                table.show(change[1], change[2])
    raise BusUnavailable(cloud.bus.url, "the watch ended")


class _Table:
    """Rows of a table as they come: the first ones together, so that their columns are aligned."""

    def __init__(self, kind: str, form: Output) -> None:
        self._kind, self._form = kind, form
        self._first: list[list[str]] | None = [[column.title for column in columns_of(KINDS[kind], wide=self._wide)]]
        self._widths: list[int] = []
        self._shown: dict[str, list[str]] = {}

    @property
    def _wide(self) -> bool:
        return self._form is Output.WIDE

    def start(self) -> None:
        """Everything that was there has been shown."""
        rows, self._first = self._first or [], None
        if self._form in {Output.TABLE, Output.WIDE}:
            self._widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
            print("\n".join(aligned(rows)), flush=True)

    def show(self, name: str, resource: Resource | None) -> None:
        match self._form:
            case Output.TABLE | Output.WIDE:
                self._show_row(name, resource)
            case Output.NAME:
                print(label(self._kind, name), flush=True)
            case _ if resource is None:
                say(f"{called(self._kind, name)} is deleted")
            case Output.JSON:
                print(json.dumps(resource.to_document(), ensure_ascii=False), flush=True)
            case Output.YAML:
                print(f"---\n{dump_manifests([resource.to_document()])}", end="", flush=True)

    def _show_row(self, name: str, resource: Resource | None) -> None:
        titles = [column.title for column in columns_of(KINDS[self._kind], wide=self._wide)]
        row = (
            cells(resource, utc_now(), wide=self._wide) if resource else [name, "(deleted)", *[""] * (len(titles) - 2)]
        )
        # A change that no column shows is not worth a line.
        shown = [cell for title, cell in zip(titles, row, strict=True) if title != "AGE"]
        if self._shown.get(name) == shown:
            return
        self._shown[name] = shown
        if self._first is not None:
            self._first.append(row)
        else:
            print(aligned([row], self._widths)[0], flush=True)


async def wait(cloud: Cloud, kind: str, name: str, goal: Goal, timeout_s: float | None) -> None:
    """Raises WaitTimeout, NotFound, or TaskFailed."""
    found = await cloud.wait(kind, name, goal.predicate(kind, name), timeout_s)
    print(f"{label(kind, name)} {goal}", flush=True)
    if found is not None and in_motion(found):
        await _heard(cloud, name if kind == "EdgeNode" else "", stored=True)
