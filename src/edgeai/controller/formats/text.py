"""csv and jsonl: a line per row, appended to as examples come. Read from the byte where the last reading ended.

Text is UTF-8. A last line without an end may still be being written: unless nobody writes, it is left for the next reading, and
if it is read, so that it is not lost, the position stays before it.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgeai.controller.formats.base import (
    MAX_LINE,
    START,
    DatasetProblem,
    Field,
    Found,
    Known,
    Layout,
    Misfit,
    Position,
    Record,
    Records,
    Row,
    Written,
    as_json,
    chosen_label,
    id_of_values,
    label_text,
    left_out,
    spread,
)

_BOM = b"\xef\xbb\xbf"
_SCHEMA_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class Scan:
    """What was counted up to a position, which is the start of a line: rows, and columns as far as rows name them."""

    position: Position = START
    samples: int = 0
    schema: Mapping[str, str] = field(default_factory=dict)


class Lines:
    """The lines of a file from a position on, and where they are. Raises DatasetProblem for one that is too long or no text."""

    def __init__(self, file: IO[bytes], path: Path, start: Position = START, what: str = "text") -> None:
        self._file, self._path, self._what = file, path, what
        self.position = start
        self.whole = True
        """the last line ended as lines do"""
        self.ended = False
        """no line was left when one was asked for"""
        file.seek(start.offset)

    def __iter__(self) -> Iterator[str]:
        while raw := self._file.readline(4 * MAX_LINE):
            first = self.position.offset == 0
            self.whole = raw.endswith(b"\n")
            self.position = Position(self.position.offset + len(raw), self.position.line + 1)
            try:
                line = raw.removeprefix(_BOM).decode() if first else raw.decode()
            except UnicodeDecodeError as error:
                raise DatasetProblem(f"{self._path} is not a {self._what} file in UTF-8 ({error})") from error
            if len(line) >= MAX_LINE:
                raise DatasetProblem(f"{self._path} has a line of {MAX_LINE} characters or more")
            yield line
        self.ended = True


def whole_lines(file: IO[bytes], start: Position) -> Iterator[tuple[Position, str, str]]:
    """Each line that has its end: where the next one begins, its text, and why it has none, if it has none."""
    file.seek(start.offset)
    position = start
    while raw := file.readline(4 * MAX_LINE):
        size, end = len(raw), raw
        while not end.endswith(b"\n"):
            if not (end := file.readline(4 * MAX_LINE)):
                return
            size += len(end)
        first = position.offset == 0
        position = Position(position.offset + size, position.line + 1)
        text, problem = "", ""
        try:
            text = (raw.removeprefix(_BOM) if first else raw).decode() if size == len(raw) else ""
        except UnicodeDecodeError as error:
            problem = f"it is not UTF-8 ({error})"
        if size > len(raw) or len(text) >= MAX_LINE:
            text, problem = "", f"it has {MAX_LINE} characters or more"
        yield position, text, problem


class Csv:
    """The first line names the columns. All values are text."""

    name = written = "csv"
    ending = ".csv"
    appends = fixed_columns = True

    def inspect(self, path: Path) -> Found:
        return self.scan(path)[0]

    def scan(self, path: Path, before: Scan | None = None) -> tuple[Found, Scan]:
        """As `inspect`, from where an earlier one ended; and where this one did. Raises as that."""
        scan = before or Scan()
        header = self._header(path)
        samples, position = scan.samples, scan.position
        for _, position, whole in self._cells(path, header, scan.position):
            samples += 1
            if whole:
                scan = Scan(position, samples)
        if not samples:
            raise DatasetProblem(f"{path} has a header and no rows")
        return Found(samples, dict.fromkeys(header, "text")), scan

    def layout(self, path: Path, label: str = "") -> Layout:
        header = self._header(path)
        if len(set(header)) != len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise DatasetProblem(f"{path} has two columns named {twice}")
        return Layout(tuple(Field(name, "text") for name in header), chosen_label(header, label, path))

    def rows(
        self,
        path: Path,
        layout: Layout,
        start: Position = START,
        *,
        settled: bool = True,
        known: Known = frozenset(),
    ) -> Generator[Row, None, None]:
        header = [each.name for each in layout.fields]
        for cells, position, whole in self._cells(path, header, start):
            if not whole and not settled:
                return
            values = dict(zip(header, cells, strict=True))
            label = values.pop(layout.label, "")
            yield Row(id_of_values(values), as_json(label) if label else None, _dumped(values), position)

    def check_label(self, label: str, layout: Layout) -> None:
        """Any goes into a cell."""

    def write(self, path: Path, layout: Layout, records: Records, files: Path) -> Written:
        layout = layout if layout.fields else _layout_of_first(records)
        misfits: dict[str, int] = {}
        samples = 0
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(each.name for each in layout.fields)
            for record in records():
                try:
                    writer.writerow(_cells_of(record, layout))
                    samples += 1
                except Misfit as misfit:
                    left_out(misfits, misfit)
        return Written(samples, misfits)

    def _header(self, path: Path) -> list[str]:
        with path.open("rb") as file, _csv_explained(path):
            header = next(csv.reader(Lines(file, path, what="CSV")), None)
        if not header:
            raise DatasetProblem(f"{path} is empty")
        return header

    def _cells(self, path: Path, header: list[str], start: Position) -> Iterator[tuple[list[str], Position, bool]]:
        """Rows, where the next one begins (not behind one that may go on), and whether it is whole."""
        with path.open("rb") as file, _csv_explained(path):
            lines = Lines(file, path, start, "CSV")
            reader = csv.reader(lines)
            if start.offset == 0:
                next(reader, None)
            before = lines.position
            for row in reader:
                # Without an end, or with a quoted cell that is still open when the file ends.
                whole = lines.whole and not lines.ended
                if row and len(row) != len(header):
                    if not whole:
                        return
                    raise DatasetProblem(
                        f"{path}: line {lines.position.line} has {len(row)} columns, the header {len(header)}"
                    )
                if row:
                    yield row, lines.position if whole else before, whole
                before = lines.position


class _csv_explained:  # noqa: N801 - reads as a verb
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, csv.Error):
            raise DatasetProblem(f"{self._path} is not a CSV file in UTF-8 ({error})") from error


def _cells_of(record: Record, layout: Layout) -> list[str]:
    values = spread(record, layout) if record.hard else json.loads(record.payload)
    missing = next((each.name for each in layout.inputs if each.name not in values), None)
    if missing is not None:
        raise Misfit(f"it has no {missing}")
    values[layout.label] = label_text(record.label)
    return [value if isinstance(value := values[each.name], str) else as_json(value) for each in layout.fields]


class Jsonl:
    """A JSON object per line. The first one names the fields; later ones may leave some out."""

    name = written = "jsonl"
    ending = ".jsonl"
    appends = True
    fixed_columns = False

    def inspect(self, path: Path) -> Found:
        return self.scan(path)[0]

    def scan(self, path: Path, before: Scan | None = None) -> tuple[Found, Scan]:
        """As `inspect`, from where an earlier one ended; and where this one did. Raises as that."""
        before = before or Scan()
        samples, position, schema = before.samples, before.position, dict(before.schema)
        last: Scan | None = None
        for values, position_after, whole in self._objects(path, before.position):
            if not whole:
                last = Scan(position, samples, dict(schema))
            samples, position = samples + 1, position_after
            for name, value in values.items():
                if name in schema or len(schema) < _SCHEMA_FIELDS:
                    schema[name] = _merged(schema.get(name), _kind(value))
        if not samples:
            raise DatasetProblem(f"{path} has no rows")
        return Found(samples, schema), last or Scan(position, samples, schema)

    def layout(self, path: Path, label: str = "") -> Layout:
        first = next(self._objects(path, Position()), None)
        if first is None:
            raise DatasetProblem(f"{path} has no rows")
        names = list(first[0])
        return Layout(tuple(Field(name, _kind(first[0][name])) for name in names), chosen_label(names, label, path))

    def rows(
        self,
        path: Path,
        layout: Layout,
        start: Position = START,
        *,
        settled: bool = True,
        known: Known = frozenset(),
    ) -> Generator[Row, None, None]:
        for values, position, whole in self._objects(path, start):
            if not whole and not settled:
                return
            label = values.pop(layout.label, None)
            text = None if label is None or label == "" else as_json(label)
            yield Row(id_of_values(values), text, _dumped(values), position)

    def check_label(self, label: str, layout: Layout) -> None:
        """Any is a value."""

    def write(self, path: Path, layout: Layout, records: Records, files: Path) -> Written:
        misfits: dict[str, int] = {}
        samples = 0
        with path.open("w", encoding="utf-8", newline="") as file:
            for record in records():
                try:
                    values = spread(record, layout) if record.hard else json.loads(record.payload)
                except Misfit as misfit:
                    left_out(misfits, misfit)
                    continue
                values[layout.label or "y"] = json.loads(record.label)
                order = {each.name: number for number, each in enumerate(layout.fields)}
                ordered = dict(sorted(values.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
                file.write(json.dumps(ordered, ensure_ascii=False, allow_nan=False) + "\n")
                samples += 1
        return Written(samples, misfits)

    def _objects(self, path: Path, start: Position) -> Iterator[tuple[dict[str, Any], Position, bool]]:
        with path.open("rb") as file:
            for values, before, lines in json_lines(file, path, start):
                if isinstance(values, dict):
                    yield values, lines.position if lines.whole else before, lines.whole
                elif lines.whole:
                    raise DatasetProblem(f"{path}: line {lines.position.line} is not a JSON object")


def json_lines(file: IO[bytes], path: Path, start: Position) -> Iterator[tuple[Any, Position, Lines]]:
    """The values of lines that are not empty (None: it is no JSON), where each begins, and the lines."""
    lines = Lines(file, path, start, "JSON lines")
    before = lines.position
    for line in lines:
        if line.strip():
            yield parsed(line), before, lines
        before = lines.position


def parsed(line: str) -> Any:
    """The value of a line; None: it is no JSON."""
    try:
        value = json.loads(line, parse_constant=_not_json, parse_float=_finite)
        if "\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()  # half a pair of UTF-16 is no text
    except (ValueError, RecursionError):
        return None
    return value


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _dumped(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list():
            return "list"
        case dict():
            return "object"
        case _:
            return "null"


def _merged(before: str | None, kind: str) -> str:
    if before is None or before in {kind, "null"}:
        return kind
    return before if kind == "null" else "mixed"


def _layout_of_first(records: Records) -> Layout:
    """Columns for examples where no dataset says how: as many as the first one has values."""
    for record in records():
        try:
            values = spread(record, Layout())["x"]
        except Misfit:
            continue
        count = _size(values)
        return Layout((*(Field(f"x{number}", "text") for number in range(count)), Field("y", "text")), "y")
    return Layout((Field("x", "text"), Field("y", "text")), "y")


def _size(values: Any) -> int:
    return sum(_size(each) for each in values) if isinstance(values, list) else 1
