"""When a dataset is to be looked at again: the file system says that something happened, or a clock says that it is time.

An event is a hint, and a file system may give none (over a network, or when its watches have run out): so each dataset is
compared with its trace from time to time as well. A change is told when the file has been quiet for a moment, or has been busy
for long. A long look makes the next pause long, so that a huge file that never rests costs a bounded part of the time.

What a dataset is, is found by whoever is told (`service`, through `datasets.inspect`); what became of it by `traces`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from edgeai.controller.datasets import DatasetProblem
from edgeai.controller.formats import FORMATS
from edgeai.controller.traces import LOSSES, Change, Trace, compare, stamp_or_none, trace_of
from edgeai.events.catalogue import DatasetObserved, DatasetWanted

log = structlog.get_logger()

QUIET_S, LONGEST_S = 0.5, 10.0
"""So long nobody writes before a change is told, and so long it is waited for."""
POLL_S, POLL_WITHOUT_EVENTS_S = 30.0, 2.0
REST = 10
"""A look that took a second is followed by so many seconds without one."""
MAX_REST_S = 300.0
MAX_FOLDERS = 1000
_STEP_MS, _GROUP_MS, _TURN_MS = 100, 400, 1000

Place = Callable[[DatasetWanted], Path]
"""Where a dataset is read. Blocks. Raises DatasetProblem."""
Look = Callable[[DatasetWanted, Change], Awaitable[None]]
Note = Callable[[DatasetWanted], str]
"""What is to be known of a dataset beside its file (`datasets.note_of`)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a watcher is."""

    quiet_s: float = QUIET_S
    longest_s: float = LONGEST_S
    poll_s: float = POLL_S
    poll_without_events_s: float = POLL_WITHOUT_EVENTS_S
    events: bool = True


@dataclass(slots=True)
class _Followed:
    wanted: DatasetWanted
    task: asyncio.Task[None]
    woken: asyncio.Event
    folders: frozenset[Path] = field(default_factory=frozenset)


class Watcher:
    """Watches the datasets of one node. `look` is called at first, and whenever something may be different."""

    def __init__(self, place: Place, look: Look, pace: Pace | None = None, *, note: Note = lambda _: "") -> None:
        self._place, self._look, self._pace, self._note = place, look, pace or Pace(), note
        self._wanted: dict[str, DatasetWanted] = {}
        self._followed: dict[str, _Followed] = {}
        self._refresh = asyncio.Event()
        self._events = self._pace.events

    def follow(self, datasets: Iterable[DatasetWanted]) -> None:
        """Watch these, and no others, as soon as `run` does. One that is wanted as before goes on as it was."""
        self._wanted = {dataset.name: dataset for dataset in datasets}
        self._refresh.set()

    async def run(self) -> None:
        """Wait for file events until cancelled; then nothing is watched any more."""
        # It says at this level that something changed, which is said here when it means something.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        try:
            while True:
                self._refresh.clear()
                self._begin_and_end()
                folders = self._folders()
                if not self._events or not folders:
                    await self._refresh.wait()
                else:
                    await self._watch(folders)
        finally:
            tasks = [followed.task for followed in self._followed.values()]
            self._followed.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin_and_end(self) -> None:
        for name in list(self._followed):
            if self._wanted.get(name) != self._followed[name].wanted:
                self._followed.pop(name).task.cancel()
        for name, dataset in self._wanted.items():
            if name not in self._followed:
                woken = asyncio.Event()
                task = asyncio.create_task(self._follow(dataset, woken))
                self._followed[name] = _Followed(dataset, task, woken)

    # --- one dataset

    async def _follow(self, wanted: DatasetWanted, woken: asyncio.Event) -> None:
        trace: Trace | None = None
        first, missing, told = True, False, ""
        while True:
            woken.clear()
            change = await self._compare(wanted, trace)
            note = self._note(wanted)
            rest_s = 0.0
            if first or change not in {Change.SAME, Change.VANISHED} or (change is Change.VANISHED and not missing):
                if not first and change is not Change.VANISHED:
                    await self._quiet(wanted)
                trace = await asyncio.to_thread(self._trace, wanted)
                rest_s = await self._tell(wanted, change)
                self._note_folders(wanted, await asyncio.to_thread(self._folders_of, wanted))
            elif note != told:
                rest_s = await self._tell(wanted, change)
            first, missing, told = False, change is Change.VANISHED, note
            await asyncio.sleep(rest_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pace.poll_s if self._events else self._pace.poll_without_events_s):
                    await woken.wait()

    async def _tell(self, wanted: DatasetWanted, change: Change) -> float:
        """Returns how long to rest after it."""
        began = time.monotonic()
        if change is not Change.SAME:
            log.info("dataset_changed", dataset=wanted.name, change=change.value)
        try:
            await self._look(wanted, change)
        except Exception:
            log.exception("dataset_not_looked_at", dataset=wanted.name)
        return min(MAX_REST_S, (time.monotonic() - began) * REST) if change is not Change.VANISHED else 0.0

    async def _compare(self, wanted: DatasetWanted, trace: Trace | None) -> Change:
        def compared() -> Change:
            try:
                path = self._place(wanted)
            except DatasetProblem:
                return Change.VANISHED
            format = FORMATS.get(wanted.format)
            return compare(trace, path, appends=format is not None and format.appends)

        return await asyncio.to_thread(compared)

    def _trace(self, wanted: DatasetWanted) -> Trace | None:
        try:
            path = self._place(wanted)
        except DatasetProblem:
            return None
        if path.is_dir():
            stamp = stamp_or_none(path)
            return Trace(stamp, 0, "") if stamp is not None else None
        return trace_of(path)

    async def _quiet(self, wanted: DatasetWanted) -> None:
        """Until nobody has written for a moment, or it takes too long."""
        until = time.monotonic() + self._pace.longest_s
        before = await asyncio.to_thread(self._stamp, wanted)
        while time.monotonic() < until:
            await asyncio.sleep(self._pace.quiet_s)
            now = await asyncio.to_thread(self._stamp, wanted)
            if now == before:
                return
            before = now

    def _stamp(self, wanted: DatasetWanted) -> object:
        try:
            return stamp_or_none(self._place(wanted))
        except DatasetProblem:
            return None

    # --- file events

    def _folders_of(self, wanted: DatasetWanted) -> frozenset[Path]:
        """The folders in which something happens when this dataset changes: of its name, and of the file it leads to."""
        named = Path(unquote(urlsplit(wanted.url).path)) if wanted.url.startswith("file://") else Path(wanted.url)
        folders = {named.parent}
        try:
            path = self._place(wanted)
            folders.add(path.parent)
            if path.is_dir():
                inner = (Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
                folders |= {path, *sorted(inner)[:MAX_FOLDERS]}
        except (DatasetProblem, OSError):
            pass  # it may come back to where it was
        return frozenset(folder for folder in folders if folder.is_absolute() and folder.is_dir())

    def _note_folders(self, wanted: DatasetWanted, folders: frozenset[Path]) -> None:
        followed = self._followed.get(wanted.name)
        if followed is not None and followed.folders != folders:
            followed.folders = folders
            self._refresh.set()

    def _folders(self) -> Mapping[Path, list[asyncio.Event]]:
        found: dict[Path, list[asyncio.Event]] = {}
        for followed in self._followed.values():
            for folder in followed.folders:
                found.setdefault(folder, []).append(followed.woken)
        return found

    async def _watch(self, folders: Mapping[Path, list[asyncio.Event]]) -> None:
        """Wake those whose folders something happens in, until other folders are to be watched."""
        from watchfiles import awatch

        try:
            changes = awatch(
                *folders,
                watch_filter=None,
                debounce=_GROUP_MS,
                step=_STEP_MS,
                stop_event=self._refresh,
                rust_timeout=_TURN_MS,
                yield_on_timeout=True,
                recursive=False,
                force_polling=False,
            )
            stand = False
            async with aclosing(changes):
                async for some in changes:
                    if not stand:
                        # What happened before the watches stood is found by looking once.
                        stand = True
                        _wake(event for events in folders.values() for event in events)
                    for _, name in some:
                        _wake(folders.get(Path(name).parent, ()))
                        _wake(folders.get(Path(name), ()))
        except (OSError, RuntimeError) as error:
            log.warning("file_events_not_to_be_had", reason=str(error), poll_s=self._pace.poll_without_events_s)
            self._events = False


def _wake(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()


def noted(
    before: DatasetObserved | None, found: DatasetObserved, change: Change | None, format: str
) -> DatasetObserved:
    """What is told of a dataset that can be used, with a sentence if it has lost something since `before`.

    `change` None: it was looked at for another reason. A file that cannot be appended to is rewritten to hold more.
    """
    if not found.ready or before is None or not before.ready:
        return found
    if before.digest == found.digest:
        return replace(found, reason=before.reason)
    appends = format in FORMATS and FORMATS[format].appends
    if found.samples >= before.samples and not (appends and change in LOSSES):
        return found
    what = change.value if change in LOSSES and change is not None else "changed"
    return replace(found, reason=f"the file was {what}: it had {before.samples} samples, now it has {found.samples}")
