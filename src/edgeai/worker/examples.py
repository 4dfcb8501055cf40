"""Examples as a script sees them: its dataset as files and as columns of arrays, and a file of inputs that grows.

The dataset of a federated or inference worker is one file. That of a train or eval worker is a snapshot: a folder, frozen by
the controller, with the files `old`, `new` and `eval`. Columns are read from npz, csv and jsonl; what else a file may be is
the business of the script, which has its path. Nothing here is told who asks.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import structlog
from pydantic import TypeAdapter, ValidationError

from edgeai.errors import NotFound, Refused
from edgeai.store.files import write_whole

log = structlog.get_logger()

Columns = dict[str, npt.NDArray[Any]]
"""By name, each with one row per example."""
POLL_S = 0.5
"""How often a file that grows is looked at."""
_SAVE_S = 1.0
_HEAD_BYTES = 4096
PIECE_BYTES = 1024 * 1024
"""So much of a file of lines is read at once; a line that is longer is left out."""


@dataclass(frozen=True, slots=True)
class DatasetAtHand:
    """The worker's dataset, to be read only: its name, and a local path.

    Of a train or eval worker the path is a folder, a snapshot that never changes: `old` are training examples that the model
    in service has learned from, `new` those that it has not, `eval` those that are held out for ever.
    """

    name: str
    path: Path

    @property
    def old(self) -> Path:
        """The file of that part. Raises Refused if the dataset is no snapshot; NotFound if it has no such part."""
        return self._part("old")

    @property
    def new(self) -> Path:
        return self._part("new")

    @property
    def train(self) -> tuple[Path, ...]:
        """The files of old and new, those that are there."""
        return tuple(self._parts("train"))

    @property
    def eval(self) -> Path:
        return self._part("eval")

    def load(self, part: str = "") -> Columns:
        """Columns of arrays, from npz, csv or jsonl, in the order of the file.

        Args:
            part: of a snapshot: "train" (old, then new), "old", "new" or "eval". Without: all of a dataset that is a file.

        Columns of csv are numbers where all of their values are, else text.

        Raises:
            Refused: another format, a part that is missing or not asked for, or rows that make no arrays.
        """
        if not part and not self.path.is_dir():
            return read_columns(self.path)
        if part not in _PARTS:
            raise Refused(f"dataset {self.name} is loaded by part, one of {', '.join(_PARTS)}, not {part!r}")
        files = self._parts(part)
        if not files:
            raise NotFound("file", str(self.path / f"{part}.*"))
        return read_columns(*files)

    def _part(self, part: str) -> Path:
        if found := self._parts(part):
            return found[0]
        raise NotFound("file", str(self.path / f"{part}.*"))

    def _parts(self, part: str) -> list[Path]:
        if not self.path.is_dir():
            raise Refused(f"dataset {self.name} has no parts: it is one file, {self.path}")
        return [path for name in _PARTS[part] for path in sorted(self.path.glob(f"{name}.*"))[:1]]


_PARTS = {"train": ("old", "new"), "old": ("old",), "new": ("new",), "eval": ("eval",)}


# --- columns of files


def read_columns(*paths: Path) -> Columns:
    """The columns of files of one format, one after the other. Raises Refused, NotFound."""
    suffix = paths[0].suffix
    try:
        match suffix:
            case ".npz":
                return _joined([_npz(path) for path in paths])
            case ".csv":
                rows = [_csv_rows(path.read_text("utf-8")) for path in paths]
                return _numbers_where_possible(_joined_rows(rows))
            case ".jsonl":
                return _arrays(_joined_rows([_jsonl_rows(path.read_text("utf-8")) for path in paths]))
    except FileNotFoundError as error:
        raise NotFound("file", str(error.filename)) from error
    except (ValueError, OSError, zipfile.BadZipFile, csv.Error) as error:
        raise Refused(f"{', '.join(map(str, paths))} cannot be read as {suffix[1:]}: {error}") from error
    raise Refused(f"{paths[0]} is not npz, csv or jsonl: read it by its path")


def _npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _joined(parts: Sequence[Columns]) -> Columns:
    """Parts without a row have no say in what the columns are."""
    parts = [part for part in parts if any(len(column) for column in part.values() if column.ndim)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


Rows = dict[str, list[Any]]


def _csv_rows(text: str) -> Rows:
    reader = csv.reader(StringIO(text, newline=""))
    header = next(reader, [])
    rows = [row for row in reader if row]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a line has {len(row)} columns, the header {len(header)}")
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def _jsonl_rows(text: str) -> Rows:
    objects = [json.loads(line) for line in text.splitlines() if line.strip()]
    if any(not isinstance(each, dict) for each in objects):
        raise ValueError("a line is not a JSON object")
    names = list(objects[0]) if objects else []
    if (different := next((each for each in objects if each.keys() != set(names)), None)) is not None:
        raise ValueError(f"a line has {sorted(different)}, the first {sorted(names)}")
    return {name: [each[name] for each in objects] for name in names}


def _joined_rows(parts: Sequence[Rows]) -> Rows:
    parts = [part for part in parts if any(part.values())] or parts[:1]
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: [value for part in parts for value in part[name]] for name in names}


def _numbers_where_possible(rows: Rows) -> Columns:
    found: Columns = {}
    for name, values in rows.items():
        for kind in (np.int64, np.float64, np.str_):
            with suppress(ValueError, OverflowError):
                found[name] = np.array([kind(value) for value in values], kind)
                break
    return found


def _arrays(rows: Rows) -> Columns:
    found = {name: np.array(values) for name, values in rows.items()}
    mixed = [name for name, column in found.items() if column.dtype.hasobject]
    if mixed:
        raise ValueError(f"the values of {mixed[0]} are of several types")
    return found


# --- a file that grows


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file was read: rows of npz, bytes of csv and jsonl. `head` tells a file that grew from another one."""

    path: str = ""
    taken: int = 0
    head: int = 0


_PLACE = TypeAdapter(Place)
Part = tuple[Columns, list[Place]]
"""Columns, and for each row the place behind it."""


class Growing:
    """A file of inputs that somebody appends to, or writes anew with more rows; `place` remembers across restarts.

    Rows are given in the order of the file. Of a file that shrank, or begins otherwise than before, all rows are new. Lines
    that are no rows are left out, and counted in `left_out`.
    """

    def __init__(self, path: Path, place: Path) -> None:
        if path.suffix not in {".npz", ".csv", ".jsonl"}:
            raise Refused(f"{path} is not npz, csv or jsonl: read it by its path, and call task.infer for each input")
        self._path, self._place_file = path, place
        self._place = self._saved = self._load()
        self._seen: tuple[int, int, int] | None = None
        self.left_out = 0

    async def batches(self, size: int) -> AsyncIterator[Columns]:
        """Rows as they come, at most `size` at once, for ever. A batch counts as taken when the next one is asked for."""
        loop = asyncio.get_running_loop()
        saved_s = loop.time()
        while True:
            found = await asyncio.to_thread(self._more)
            for columns, places in found or ():
                for start in range(0, len(places), size):
                    end = min(start + size, len(places))
                    yield {name: column[start:end] for name, column in columns.items()}
                    self._place = places[end - 1]
                    if loop.time() - saved_s >= _SAVE_S:
                        saved_s = loop.time()
                        await asyncio.to_thread(self.save)
            if found is None:
                await asyncio.to_thread(self.save)
                await asyncio.sleep(POLL_S)

    def save(self) -> None:
        if self._place != self._saved:
            write_whole(self._place_file, _PLACE.dump_json(self._place))
            self._saved = self._place

    def _load(self) -> Place:
        try:
            found = _PLACE.validate_json(self._place_file.read_bytes())
        except (OSError, ValidationError):
            return Place(str(self._path))
        return found if found.path == str(self._path) else Place(str(self._path))

    def _more(self) -> list[Part] | None:
        """Rows that are new, perhaps not all of them; None: there are none until the file changes. Blocks."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        seen = found.st_ino, found.st_mtime_ns, found.st_size
        if seen == self._seen:
            return None
        try:
            more = self._rows_of_npz() if self._path.suffix == ".npz" else self._lines()
        except (Refused, NotFound, OSError) as error:
            # Perhaps it is being written at this moment.
            log.warning("examples_not_read", path=str(self._path), reason=str(error))
            more = None
        if more is None or self._path.suffix == ".npz":
            self._seen = seen
        return more

    def _rows_of_npz(self) -> list[Part] | None:
        columns = read_columns(self._path)
        count = max((len(column) for column in columns.values() if column.ndim), default=0)
        columns = {name: column for name, column in columns.items() if column.ndim and len(column) == count}
        taken = self._place.taken
        head = zlib.crc32(b"".join(column[:1].tobytes() for column in columns.values())) if count else 0
        if count < taken or (taken and head != self._place.head):
            taken = self._from_the_start()
        if count == taken:
            return None
        places = [Place(str(self._path), row, head) for row in range(taken + 1, count + 1)]
        return [({name: column[taken:] for name, column in columns.items()}, places)]

    def _lines(self) -> list[Part] | None:
        """The rows of the next piece of the file. Raises OSError."""
        with self._path.open("rb") as file:
            head = self._same_head(file)
            header = file.readline(PIECE_BYTES) if self._path.suffix == ".csv" else b""
            if self._path.suffix == ".csv" and not header.endswith(b"\n"):
                return None
            start = max(self._place.taken, len(header))
            file.seek(start)
            lines = BytesIO(file.read(PIECE_BYTES)).readlines()
            if lines and not lines[-1].endswith(b"\n"):
                if len(lines[0]) == PIECE_BYTES:
                    return self._pass_over(file, head)
                lines.pop()  # it is being written, or goes on in the next piece
        if not lines:
            return None
        ends = list(accumulate(map(len, lines), initial=start))[1:]
        rows: list[Row] = []
        kept: list[Place] = []
        reasons: list[str] = []
        row_of = _csv_reader(header) if header else _jsonl_reader(head)
        for line, end in zip(lines, ends, strict=True):
            if not line.strip():
                continue
            try:
                rows.append(row_of(line.decode("utf-8", "replace")))
                kept.append(Place(str(self._path), end, zlib.crc32(head[:end])))
            except (ValueError, csv.Error, RecursionError) as error:
                reasons.append(str(error))
        if reasons:
            self._leave_out(len(reasons), reasons[0])
        behind = Place(str(self._path), ends[-1], zlib.crc32(head[: ends[-1]]))
        if not rows:
            self._place = behind
            return []
        kept[-1] = behind  # what follows the last row is not looked at again
        return [(_numbers_where_possible(_columns(rows)), kept)] if header else _alike(rows, kept)

    def _same_head(self, file: BinaryIO) -> bytes:
        """Where the file begins; if that has changed, it is another one. Leaves the file at its start."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(_HEAD_BYTES)
        before = self._place.taken
        if size < before or (before and zlib.crc32(head[:before]) != self._place.head):
            self._from_the_start()
        file.seek(0)
        return head

    def _pass_over(self, file: BinaryIO, head: bytes) -> list[Part] | None:
        """The rest of a line that is longer than a piece; None: it goes on being written."""
        while piece := file.readline(PIECE_BYTES):
            if piece.endswith(b"\n"):
                self._place = Place(str(self._path), file.tell(), zlib.crc32(head[: file.tell()]))
                self._leave_out(1, f"it is longer than {PIECE_BYTES} bytes")
                return []
        return None

    def _leave_out(self, lines: int, reason: str) -> None:
        self.left_out += lines
        log.warning("examples_left_out", path=str(self._path), lines=lines, total=self.left_out, reason=reason[:200])

    def _from_the_start(self) -> int:
        log.info("examples_begin_anew", path=str(self._path), reason="it shrank, or is another file")
        self._place = replace(self._place, taken=0, head=0)
        return 0


Row = dict[str, Any]


def _csv_reader(header: bytes) -> Callable[[str], Row]:
    """Cells by name of the column. It raises ValueError or csv.Error for a line that is no row."""
    names = next(csv.reader([header.decode("utf-8", "replace")]), [])

    def row(text: str) -> Row:
        cells = next(csv.reader([text]), [])
        if len(cells) != len(names):
            raise ValueError(f"a line has {len(cells)} columns, the header {len(names)}")
        return dict(zip(names, cells, strict=True))

    return row


def _jsonl_reader(head: bytes) -> Callable[[str], Row]:
    """Arrays by name. It raises ValueError for a line that is no row; the first row of all says which names there are."""
    names: list[str] = []

    def row(text: str) -> Row:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("a line is not a JSON object")
        if names and found.keys() != set(names):
            raise ValueError(f"a line has {sorted(found)}, the first {sorted(names)}")
        made = {name: np.array(found[name]) for name in names or found}
        if odd := [name for name, array in made.items() if array.dtype.hasobject]:
            raise ValueError(f"the values of {odd[0]} are of several types")
        names[:] = made
        return made

    first, end, _ = head.partition(b"\n")
    if end:
        with suppress(ValueError, RecursionError):
            row(first.decode("utf-8", "replace"))
    return row


def _columns(rows: Sequence[Row]) -> Rows:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _alike(rows: Sequence[Row], places: Sequence[Place]) -> list[Part]:
    """Rows as arrays: neighbours whose values are of one kind and shape together."""

    def form(pair: tuple[Row, Place]) -> list[tuple[bool, tuple[int, ...]]]:
        return [(array.dtype.kind in "biuf", array.shape) for array in pair[0].values()]

    parts = []
    for _, group in groupby(zip(rows, places, strict=True), form):
        together = list(group)
        columns = {name: np.array(values) for name, values in _columns([row for row, _ in together]).items()}
        parts.append((columns, [place for _, place in together]))
    return parts
