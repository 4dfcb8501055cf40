"""`logs`, `events` and `publish`: what workers wrote, what happened, and an event by hand."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import typer

from edgeai.cli.history import TITLES, line_cells, line_json, task_name, without_task
from edgeai.cli.options import Form
from edgeai.cli.outcome import say
from edgeai.cli.output import aligned
from edgeai.client import Cloud, HistoryLine, Task, workers_of
from edgeai.errors import MalformedEvent, NotFound, Refused, WaitTimeout
from edgeai.events.address import task_level
from edgeai.events.catalogue import CATALOGUE, LogAnswered
from edgeai.events.envelope import field_names

Named = tuple[str | None, str]
"""Kind (None: a task or a job) and name."""
_POLL_S = 0.5
_LAST_BYTE = -1
_WIDTHS = (12, 5, 24, 18, 18)


# --- logs


async def logs(cloud: Cloud, named: Named, worker: str | None, *, follow: bool, tail: int | None) -> None:
    """The log of one worker, or of all with the worker's name in front of every line.

    Raises:
        NotFound: no such task or worker, or it has no log yet. WaitTimeout: its node does not answer.
    """
    task = await _task(cloud, named)
    if worker is not None:
        await _Log(cloud, task, worker, "").write(follow=follow, tail=tail)
        return
    names = workers_of(task)
    width = max(len(each) for each in names)
    each_log = [_Log(cloud, task, each, f"{each:<{width}} | ") for each in names]
    if follow:
        await asyncio.gather(*(log.write(follow=True, tail=tail) for log in each_log))
        return
    for log in each_log:
        try:
            await log.write(follow=False, tail=tail)
        except (NotFound, WaitTimeout) as error:
            say(str(error))


class _Log:
    """One worker's log, written line by line."""

    def __init__(self, cloud: Cloud, task: Task, worker: str, prefix: str) -> None:
        self._cloud, self._task, self._worker, self._prefix = cloud, task, worker, prefix
        self._rest = b""

    async def write(self, *, follow: bool, tail: int | None) -> None:
        """What there is when this is called, and with `follow` what comes then, to the end of the worker.

        A worker may write faster than anybody reads: what there is has an end all the same.
        """
        kept: deque[str] = deque(maxlen=tail)
        offset, present, caught_up = 0, -1, False
        while True:
            answer = await self._answer(_LAST_BYTE if present < 0 else offset, follow)
            if answer is None:  # it is not there yet
                await asyncio.sleep(_POLL_S)
                continue
            if present < 0:
                present = answer.next_offset
                continue
            offset = answer.next_offset
            lines = self._lines(answer.text)
            if not caught_up and tail is not None:
                kept.extend(lines)
            else:
                self._print(lines)
            if not caught_up and (offset >= present or not answer.text):
                caught_up = True
                self._print(list(kept))
            if caught_up and not (follow and (answer.text or not answer.ended)):
                self._print(self._last())
                return
            if not answer.text:
                await asyncio.sleep(_POLL_S)

    async def _answer(self, offset: int, follow: bool) -> LogAnswered | None:
        try:
            return await self._cloud.log(self._task, self._worker, offset=offset)
        except NotFound:
            await self._cloud.get(self._task.kind, self._task.name)  # raises when the task is gone
            if not follow:
                raise
        except WaitTimeout as error:
            if not follow:
                raise
            say(str(error))
        return None

    def _lines(self, text: bytes) -> list[str]:
        """Whole lines; what follows the last line end waits for its own."""
        *whole, self._rest = (self._rest + text).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def _last(self) -> list[str]:
        rest, self._rest = self._rest, b""
        return [rest.decode(errors="replace")] if rest else []

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            print(f"{self._prefix}{line}")
        if lines:
            print(end="", flush=True)


# --- events


async def events(cloud: Cloud, named: Named | None, *, follow: bool, tail: int | None, form: Form) -> None:
    """The facts of a task, also of one that is deleted; of everything without a name. `tail`: only so many of the past.

    Raises:
        NotFound: nothing is known of such a task.
    """
    task: Task | None = None
    name = named[1] if named else None
    if named is not None:
        try:
            task = await _task(cloud, named)
        except NotFound:
            task = None
    count = 0
    async for line in _history(cloud, task, name, follow=follow, tail=tail):
        if form is Form.JSON:
            print(line_json(line), flush=True)
        else:
            for row in [TITLES, line_cells(line)] if count == 0 else [line_cells(line)]:
                _print_row(row, one_task=name is not None)
        count += 1
    if name is not None and task is None and count == 0:
        raise NotFound("task", name, "and the history knows nothing of it")


async def _history(
    cloud: Cloud, task: Task | None, name: str | None, *, follow: bool, tail: int | None
) -> AsyncIterator[HistoryLine]:
    last = 0
    if tail is not None:
        past: deque[HistoryLine] = deque(maxlen=tail)
        async for line in cloud.history(task):
            last = line.sequence
            if name is None or task_name(line) == name:
                past.append(line)
        for line in past:
            yield line
        if not follow:
            return
    async for line in cloud.history(task, follow=follow):
        if line.sequence > last and (name is None or task_name(line) == name):
            yield line


def _print_row(row: tuple[str, ...], *, one_task: bool) -> None:
    widths = (*_WIDTHS[:2], *_WIDTHS[3:]) if one_task else _WIDTHS
    print(aligned([without_task(row) if one_task else row], widths)[0], flush=True)


# --- by hand


def body_from(text: str) -> dict[str, Any]:
    """The fields of an event. Raises typer.BadParameter."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--data is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise typer.BadParameter('--data is a JSON object such as {"number": 1}')
    return body


async def publish(
    cloud: Cloud, kind: str, body: dict[str, Any], *, node: str, task: Named | None, worker: str | None
) -> None:
    """Raises NotFound: no such kind or task. Refused: the fields do not fit the kind."""
    level = ""
    if task is not None:
        metadata = (await _task(cloud, task)).metadata
        level = task_level(metadata.name, metadata.uid)
        body = {**_with_uid(kind, metadata.uid), **body}
    try:
        address = await cloud.publish(kind, body, node=node, task=level, worker=worker or "")
    except MalformedEvent as error:
        raise Refused(f"{kind}: {error}; docs/events.md lists the fields") from error
    print(address.subject())


def _with_uid(kind: str, uid: str) -> dict[str, Any]:
    """Most events about a task name its uid: nobody should have to type it."""
    known = CATALOGUE.get(kind)
    return {"task_uid": uid} if known is not None and "task_uid" in field_names(known) else {}


async def _task(cloud: Cloud, named: Named) -> Task:
    kind, name = named
    return await cloud.task(name, kind)
