"""A job's examples, as the controller works with them: rows of the dataset, hard examples, labels, snapshots.

    examples = await Examples.open(folder / "examples.db", train_fraction=0.8)
    await examples.take_rows(path, "csv")
    await examples.collect_hard(slot.hard)
    await examples.label({"a1b2": "7"})
    snapshot = await examples.snapshot(round, folder / "snapshots" / str(round))
    await examples.learned(round)
    await examples.mark_known(round)
    await examples.close()

Everything may be called again after a crash: what is here already is not taken twice. Whatever a call returns from is durable.
What is stored is in `example_book`, how a snapshot is written in `snapshots`, how files are read in `formats`. When anything is
called, and what follows from it, is the business of `jobs`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from edgeai.controller.example_book import Added, Dropped, ExampleBook, Tally, members
from edgeai.controller.formats import START, DatasetBusy, DatasetProblem, Format, Layout, Position, Row, format_named
from edgeai.controller.formats.text import parsed, whole_lines
from edgeai.controller.hard_records import HardExample, Reached, read_hard_log, remove_segments
from edgeai.controller.snapshots import Source, tidy_snapshots, write_snapshot
from edgeai.controller.traces import LOSSES, Change, Stamp, Trace, compare, stamp_or_none, trace_of
from edgeai.crashpoints import crash_point
from edgeai.errors import NotFound, Refused
from edgeai.events.catalogue import ExampleCounts, UnlabelledExample
from edgeai.lifecycle.stage import Snapshot
from edgeai.resources.dataset import DatasetFormat
from edgeai.store.files import copy_whole

log = structlog.get_logger()
T = TypeVar("T")

BATCH_ROWS, BATCH_BYTES = 500, 8 * 1024 * 1024
SETTLED_S = 5.0
"""A file that nobody has written to for so long ends where it ends, also without a line end."""
KEEP_SNAPSHOTS = 3
MAX_COLUMNS_SHOWN = 20
MAX_LABELS = 10_000
"""Taken in one transaction."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a look at the dataset has given. `change`: what became of it since the last one."""

    change: Change = Change.SAME
    added: int = 0
    duplicates: int = 0
    relabelled: int = 0
    longest_bytes: int = 0
    """a file that is appended to was as long as that, and is shorter now; 0: it is as long as ever"""


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a look at the labels file has given. `refused`: lines that are no label; `problem` is the first of them."""

    taken: int = 0
    already: int = 0
    waiting: int = 0
    refused: int = 0
    problem: str = ""


class Examples:
    """The examples of one job: a file, and a folder `files` beside it. Open with `open`, close with `close`."""

    def __init__(self, path: Path, book: ExampleBook, pool: ThreadPoolExecutor, *, initial_known: bool) -> None:
        self.path = path
        self._book, self._pool, self._initial_known = book, pool, initial_known
        self._taking, self._collecting, self._freezing = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._told: set[str] = set()

    @staticmethod
    async def open(
        path: Path,
        *,
        train_fraction: float = 0.8,
        initial_known: bool = True,
        max_unlabelled: int = 10_000,
        max_bytes: int = 1024**3,
    ) -> Examples:
        """`initial_known`: what the dataset holds at first is known to the initial model. Raises StoreError."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="examples")
        try:
            book = await asyncio.get_running_loop().run_in_executor(
                pool, ExampleBook, path, train_fraction, max_unlabelled, max_bytes
            )
        except BaseException:
            pool.shutdown(wait=False)
            raise
        return Examples(path, book, pool, initial_known=initial_known)

    async def close(self) -> None:
        """Waits for what is being written."""
        async with self._taking, self._collecting, self._freezing:
            await self._run(self._book.close)
        self._pool.shutdown(wait=False)

    # --- the dataset

    async def take_rows(self, path: Path, format: str, label_field: str = "", *, settled: bool | None = None) -> Taken:
        """Take the rows that the dataset has now and that are not here yet; those that it has no more stay.

        Args:
            path: a file or folder of this node (`datasets.place_of`).
            settled: whether nobody is writing to it; None: nobody has for SETTLED_S.

        Raises DatasetBusy: it was changed meanwhile, which the next look takes care of; DatasetProblem: it cannot be read, or
        has other columns than the rows that are here; StoreError. Good rows in front of one that cannot be read are taken.
        """
        async with self._taking:
            kind = format_named(format)
            saved = _Saved.of(await self._run(self._book.position, "dataset"))
            begun = await self._run(self._book.begun)
            reading = await asyncio.to_thread(_Reading.begin, kind, path, label_field, saved, settled)
            if reading is None:
                return Taken(
                    Change.VANISHED if stamp_or_none(path) is None else Change.SAME, longest_bytes=saved.longest_bytes
                )
            if begun and saved.format == kind.name:
                _require_columns(path, kind, await self._run(self._book.layout), reading.layout)
            if reading.change in LOSSES and kind.appends:
                log.warning("dataset_changed", path=str(path), change=reading.change.value)
            known = await self._run(self._book.seen) if kind.written == DatasetFormat.TXT_LIST else frozenset()
            total, rows = Added(), reading.rows(known)
            try:
                last = False
                while not last:
                    batch, problem = await self._run(_batch, rows)
                    last = len(batch) == 0 and problem is None
                    if batch or last:
                        total += await self._run(self._commit, reading, batch, not begun, last)
                    if problem is not None:
                        raise problem
            finally:
                await self._run(rows.close)
            return Taken(reading.change, total.added, total.duplicates, total.relabelled, reading.longest_bytes)

    def _commit(self, reading: _Reading, batch: list[Row], initial: bool, last: bool) -> Added:
        for row in batch:
            if row.file is not None and row.id:
                self._keep_file(row)
        position = reading.checked(batch[-1].position if batch else None, last)
        added = self._book.take(
            batch,
            reading.format.name,
            position,
            layout=reading.layout,
            known=initial and self._initial_known,
            last=last,
        )
        crash_point("examples.rows_taken")
        return added

    @property
    def files(self) -> Path:
        """Inputs that are files, by id."""
        return self._book.files

    def _keep_file(self, row: Row) -> None:
        """A copy, not a link: the user's file may be written to, what was frozen may not change."""
        assert row.file is not None
        target = self.files / f"{row.id}{row.payload.decode()}"
        if target.exists():
            return
        target.parent.mkdir(exist_ok=True, mode=0o700)
        try:
            digest = copy_whole(row.file, target, 0o444)
        except NotFound as error:
            raise DatasetBusy(f"{row.file} has gone while it was read") from error
        if digest != row.id:
            target.unlink()
            raise DatasetBusy(f"{row.file} was changed while it was read")

    # --- hard examples and labels

    async def add_hard(self, records: Iterable[HardExample]) -> int:
        """Add hard examples, each id once; returns how many are new. The oldest without a label give way. Raises StoreError."""
        return await self._run(self._book.add_hard, tuple(records))

    async def collect_hard(self, folder: Path, source: str = "") -> int:
        """Take over what an inference worker has logged, and remove what is taken over. Raises StoreError.

        `source` tells the logs of several workers apart.
        """
        total, of_source = 0, f"{source}/" if source else ""
        async with self._collecting:
            found = await self._run(self._book.hard_positions)
            mine = {name for name in found if name.rpartition("/")[0] == source}
            others = {name: body for name, body in found.items() if name not in mine}
            reached = {name.removeprefix(of_source): Reached(**found[name]) for name in mine}  # type: ignore[arg-type]
            while True:
                read = await self._run(read_hard_log, folder, reached)
                self._tell_problems(folder, read.problems)
                if read.refused:
                    log.warning("hard_examples_refused", folder=str(folder), records=read.refused)
                if dict(read.reached) != reached:
                    positions = {f"{of_source}{name}": asdict(body) for name, body in read.reached.items()}
                    total += await self._run(self._book.add_hard, read.examples, others | positions, read.refused)
                    crash_point("examples.hard_taken")
                    reached = dict(read.reached)
                if read.done:
                    await self._run(remove_segments, folder, read.done)
                if not read.more:
                    return total

    def _tell_problems(self, folder: Path, problems: Mapping[str, str]) -> None:
        for name, problem in problems.items():
            if f"{folder}/{name}" not in self._told and len(self._told) < 1000:
                self._told.add(f"{folder}/{name}")
                log.warning("hard_examples_not_read", folder=str(folder), reason=problem)

    async def label(self, labels: Mapping[str, str]) -> tuple[int, int, tuple[str, ...]]:
        """Give examples labels (JSON) by id: how many were taken, had it already, and ids that are not here (100 at most).

        A label for an example that is not here yet waits for it. Raises Refused: one of them is no label, or does not fit the
        dataset's, and none is taken; StoreError.
        """
        return await self._run(self._book.label, tuple(labels.items()))

    async def follow_labels(self, path: Path) -> Labelled:
        """Take what was appended to a file of labels: lines `{"id": ..., "label": ...}`. One that is no label is told, and the
        next one read. Raises DatasetProblem: the file cannot be read; StoreError."""
        async with self._collecting:
            saved = _Saved.of(await self._run(self._book.position, "labels"))
            start = await asyncio.to_thread(_labels_start, path, saved)
            total, fits = Labelled(), await self._run(self._book.fits)
            while start is not None:
                try:
                    read = await asyncio.to_thread(_read_labels, path, start, fits)
                except OSError as error:
                    raise DatasetProblem(f"{path} cannot be read: {error.strerror or error}") from error
                if read.position == start:
                    break
                trace = await asyncio.to_thread(trace_of, path, read.position.offset)
                body = _Saved(str(path), "jsonl", "", trace, read.position, True).document()
                taken, already, unknown = await self._run(self._book.label, read.labels, body)
                total = Labelled(
                    total.taken + taken,
                    total.already + already,
                    total.waiting + len(unknown),
                    total.refused + read.refused,
                    total.problem or read.problem,
                )
                start = read.position
                if read.refused:
                    log.warning("labels_refused", path=str(path), lines=read.refused, reason=f"{path}, {read.problem}")
            return total

    async def unlabelled(
        self, limit: int, inputs: bool = False, after: str = ""
    ) -> tuple[tuple[UnlabelledExample, ...], int]:
        """Examples that wait for a label, the oldest first, as many as fit one event; and how many wait behind them.

        `after` is the id of the last one that is not wanted again. Raises NotFound: it is not here (any more).
        """
        return await self._run(self._book.unlabelled, limit, inputs, after)

    async def counts(self) -> ExampleCounts:
        """What is known here; requests and the rate of hard ones are known to whoever hears the inference worker."""
        return await self._run(self._book.counts)

    # --- snapshots

    async def dropped(self) -> Dropped:
        """What has left to keep within the limits."""
        return await self._run(self._book.dropped)

    async def tally(self) -> Tally:
        """What inference workers had counted when that was kept last."""
        return await self._run(self._book.tally)

    async def keep_tally(self, tally: Tally) -> None:
        await self._run(self._book.keep_tally, tally)

    async def canary(self, limit: int) -> bytes:
        """Held-out inputs as one array in the npy format; empty if there are none yet, or they are no arrays of one shape."""
        return await self._run(self._book.canary, limit)

    async def snapshot(self, round: int, folder: Path, format: str = "") -> Snapshot:
        """Freeze the labelled examples of a round into `folder`. The same round gives the same snapshot, whatever came since.

        Args:
            format: of a dataset; empty: that of the dataset as it was read last.

        Raises DatasetProblem: nothing to train on or to evaluate with; StoreError: no space.
        """
        async with self._freezing:
            format, layout = await self._run(self._book.freeze, round, format)
            kind = format_named(format)
            crash_point("examples.snapshot_fixed")
            path = self._book.path
            source = Source(round, kind, layout, lambda part: members(path, round, part, format), self.files)
            try:
                written = await asyncio.shield(asyncio.to_thread(write_snapshot, folder, source))
            except DatasetProblem:
                await self._run(self._book.thaw, round)
                raise
            await self._run(self._book.snapshot_written, round)
            if written.left_out:
                log.warning("examples_left_out", folder=str(folder), reason=written.left_out)
            return written

    async def begun(self) -> bool:
        """Whether all that the dataset held at first is here."""
        return await self._run(self._book.begun)

    async def learned(self, round: int) -> None:
        """A model has learned from the snapshot of this round: its examples may leave when there are too many."""
        await self._run(self._book.learned, round)

    async def mark_known(self, round: int) -> int:
        """The model that learned from the snapshot of this round serves: in later ones its examples are old."""
        return await self._run(self._book.mark_known, round)

    async def tidy(self, folder: Path, keep: int = KEEP_SNAPSHOTS, in_use: Collection[int] = ()) -> list[int]:
        """Remove the snapshots under `folder` but the newest and those of rounds in use; returns the rounds removed.

        What was in snapshots that are not there is forgotten.
        """
        async with self._freezing:
            gone, standing = await asyncio.to_thread(tidy_snapshots, folder, keep, in_use)
            await self._run(self._book.keep_snapshots, {*standing, *in_use})
            return gone

    async def _run(self, work: Callable[..., T], *values: Any) -> T:
        """In the one thread that knows the book; not interrupted, so that nobody wonders whether it was done."""
        done = asyncio.get_running_loop().run_in_executor(self._pool, work, *values)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            with suppress(Exception):
                await asyncio.wait({done})
            raise


# --- reading on


@dataclass(frozen=True, slots=True)
class _Saved:
    """How far a file was read, as it is remembered. `complete`: there was no more; `longest_bytes`: see Taken."""

    path: str = ""
    format: str = ""
    label_field: str = ""
    trace: Trace | None = None
    position: Position = START
    complete: bool = False
    longest_bytes: int = 0

    @staticmethod
    def of(document: Mapping[str, Any]) -> _Saved:
        if not document:
            return _Saved()
        trace = document["trace"]
        return _Saved(
            document["path"],
            document["format"],
            document["label_field"],
            Trace(Stamp(**trace["stamp"]), trace["length"], trace["beginning"]) if trace else None,
            Position(**document["position"]),
            document["complete"],
            document.get("longest_bytes", 0),
        )

    def document(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Reading:
    """One reading of a dataset, from where the last one ended if the format and what became of the file allow it."""

    format: Format
    path: Path
    label_field: str
    change: Change
    layout: Layout
    position: Position
    trace: Trace | None
    settled: bool
    longest_bytes: int = 0

    @staticmethod
    def begin(format: Format, path: Path, label_field: str, saved: _Saved, settled: bool | None) -> _Reading | None:
        """None: there is nothing to read. Raises DatasetProblem."""
        same = (saved.path, saved.format, saved.label_field) == (str(path), format.name, label_field)
        before = saved.trace if same else None
        if path.is_dir():
            change = Change.REWRITTEN if same else Change.APPEARED
            layout = format.layout(path, label_field)
            return _Reading(format, path, label_field, Change.SAME if same else change, layout, START, None, True)
        change = compare(before, path, appends=format.appends)
        if change is Change.VANISHED or (change is Change.SAME and saved.complete):
            return None
        goes_on = format.appends and change in {Change.SAME, Change.APPENDED}
        position = saved.position if goes_on else START
        try:
            _require_readable(path)
            if not format.appends:
                format.inspect(path)  # its checksums, before a row is believed
            trace = trace_of(path, position.offset if format.appends else None)
            layout = format.layout(path, label_field)
        except OSError as error:
            raise DatasetProblem(f"{path} cannot be read: {error.strerror or error}") from error
        if trace is None:
            raise DatasetBusy(f"{path} was changed while it was read")
        if settled is None:
            settled = abs(time.time() - trace.stamp.modified_ns / 1e9) > SETTLED_S
        longest = saved.longest_bytes if same else 0
        if change is Change.SHRUNK and before is not None:
            # What was never read, as it came behind a row that is not good, is not missed.
            longest = max(longest, before.stamp.size_bytes if saved.complete else before.length)
        if not format.appends or change is Change.ROTATED or trace.stamp.size_bytes >= longest:
            longest = 0
        return _Reading(format, path, label_field, change, layout, position, trace, settled, longest)

    def rows(self, known: Collection[str]) -> Generator[Row, None, None]:
        return self.format.rows(self.path, self.layout, self.position, settled=self.settled, known=frozenset(known))

    def checked(self, position: Position | None, last: bool) -> dict[str, Any]:
        """How far it was read, to be remembered with the rows. Raises DatasetProblem if they cannot be trusted."""
        if self.trace is not None:
            change = compare(self.trace, self.path, appends=self.format.appends)
            if change not in {Change.SAME, Change.APPENDED}:
                raise DatasetBusy(f"{self.path} was changed while it was read ({change.value}); it is read again")
        complete = last
        if self.format.appends:
            self.position = position or self.position
            self.trace = trace_of(self.path, self.position.offset)
            if self.trace is None:
                raise DatasetBusy(f"{self.path} was changed while it was read; it is read again")
            complete = last and (self.settled or self.position.offset == self.trace.stamp.size_bytes)
        trace = self.trace if self.format.appends or last else None
        saved = _Saved(
            str(self.path), self.format.name, self.label_field, trace, self.position, complete, self.longest_bytes
        )
        return saved.document()


def _require_readable(path: Path) -> None:
    """Raises OSError."""
    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _require_columns(path: Path, format: Format, before: Layout, now: Layout) -> None:
    """Rows of other columns would not go into one file with those that are here. Raises DatasetProblem."""
    if not format.fixed_columns or not before.fields:
        return
    was, found = ({each.name: each.shape for each in layout.fields} for layout in (before, now))
    if was != found:
        raise DatasetProblem(
            f"{path} has the columns {_columns(now)}, and the job has taken rows with {_columns(before)}: put those columns"
            " back, or delete the job and apply it again"
        )


def _columns(layout: Layout) -> str:
    named = [f"{each.name} {list(each.shape)}" if each.shape else each.name for each in layout.fields]
    return ", ".join(named[:MAX_COLUMNS_SHOWN]) + (", ..." if len(named) > MAX_COLUMNS_SHOWN else "")


def _batch(rows: Iterator[Row]) -> tuple[list[Row], DatasetProblem | None]:
    """The next rows, a bounded number of bytes, and why there are no more of them."""
    batch: list[Row] = []
    size = 0
    try:
        for row in itertools.islice(rows, BATCH_ROWS):
            batch.append(row)
            size += len(row.payload) + (row.file.stat().st_size if row.file is not None and row.id else 0)
            if size >= BATCH_BYTES:
                break
    except DatasetProblem as problem:
        return batch, problem
    except OSError as error:
        return batch, DatasetProblem(f"the dataset cannot be read: {error.strerror or error}")
    return batch, None


@dataclass(frozen=True, slots=True)
class _LabelLines:
    labels: tuple[tuple[str, str], ...]
    position: Position
    refused: int
    problem: str


def _labels_start(path: Path, saved: _Saved) -> Position | None:
    """Where to read labels on; None: there is nothing new."""
    before = saved.trace if saved.path == str(path) else None
    match compare(before, path, appends=True):
        case Change.VANISHED:
            return None
        case Change.SAME | Change.APPENDED:
            return saved.position
        case change:
            if change in LOSSES:
                log.warning("labels_file_changed", path=str(path), change=change.value)
            return START


def _read_labels(path: Path, start: Position, fits: Callable[[str, str], str]) -> _LabelLines:
    """`fits` raises Refused. Raises OSError."""
    labels, refused, problem, position = [], 0, "", start
    with path.open("rb") as file:
        for position, line, broken in itertools.islice(whole_lines(file, start), MAX_LABELS):
            try:
                if broken:
                    raise ValueError(broken)
                if line.strip():
                    labels.append(_label_of(parsed(line), fits))
            except (Refused, ValueError) as error:
                refused, problem = refused + 1, problem or f"line {position.line}: {error}"
    return _LabelLines(tuple(labels), position, refused, problem)


def _label_of(value: Any, fits: Callable[[str, str], str]) -> tuple[str, str]:
    """Raises ValueError, Refused."""
    if not isinstance(value, dict) or not {"id", "label"} <= value.keys():
        raise ValueError('it is not {"id": ..., "label": ...}')
    name = value["id"] if isinstance(value["id"], str) else json.dumps(value["id"])
    return name, fits(name, json.dumps(value["label"]))
