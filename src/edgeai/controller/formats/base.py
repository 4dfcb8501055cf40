"""What every format of datasets can do, and the values that go in and out.

A format looks through a file, reads its rows one after the other, and writes chosen rows into a file of the same kind. A row is
split into its input and its label: the input is kept as bytes that only the format understands, the label as JSON. The id of a
row is made from its input alone, so a row with a corrected label is the same example, and one sample has one id wherever it
stands. Nothing here decides what an example is used for. All of it blocks, and none of it unpickles.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from edgeai.errors import EdgeaiError

MAX_LINE = 1024 * 1024
MAX_LABEL = 64 * 1024
"""Characters of a label as JSON."""
MAX_HEADER = 100_000
LABELS = ("y", "label")
"""Names that a label has if nobody says which field it is; else it is the last one."""

Array = npt.NDArray[Any]


class DatasetProblem(EdgeaiError):
    """Why a dataset cannot be used, in one line."""


class DatasetBusy(DatasetProblem):
    """It is being written to: the next look takes care of it."""


class Misfit(Exception):
    """Why an example does not go into a file of its layout, in a few words."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a file holds. `shapes`: of one example, where a column is an array."""

    samples: int
    schema: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    digest: str = ""
    """set by a format whose dataset is not one file"""


@dataclass(frozen=True, slots=True)
class Field:
    """A column: `dtype` and `shape` where it is an array, else what its values are."""

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of a dataset, and which of them is the label (empty: none). `extra` is the format's own."""

    fields: tuple[Field, ...] = ()
    label: str = ""
    extra: str = ""

    @property
    def inputs(self) -> tuple[Field, ...]:
        return tuple(each for each in self.fields if each.name != self.label)

    @property
    def label_field(self) -> Field | None:
        return next((each for each in self.fields if each.name == self.label), None)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a file that is appended to was read: the byte, and the line, at which the next row begins."""

    offset: int = 0
    line: int = 0


START = Position()


@dataclass(frozen=True, slots=True)
class Row:
    """`label` is JSON, None: it has none. `file`: the input is this file, and `payload` the ending of its name. `key` tells
    such a row from others without reading the file; with one that is known already, `id` is empty."""

    id: str
    label: str | None
    payload: bytes
    position: Position = Position()
    file: Path | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """An example on its way into a file. `hard`: `payload` is an array in the npy format, not a row of a dataset."""

    id: str
    label: str
    payload: bytes
    hard: bool = False


Records = Callable[[], Iterator[Record]]
"""Gives the same records in the same order each time it is called."""


@dataclass(frozen=True, slots=True)
class Written:
    """How many rows a file has, and how many were left out, by reason."""

    samples: int
    left_out: Mapping[str, int] = field(default_factory=dict)


Known = Set[str]
"""Keys of rows whose files were read before."""


class Format(Protocol):
    """One format. `ending` is that of the files that `write` makes, in the format `written`; `appends`: `rows` can go on;
    `fixed_columns`: a file has a value of every column in each row."""

    name: str
    written: str
    ending: str
    appends: bool
    fixed_columns: bool

    def inspect(self, path: Path) -> Found:
        """Look through the whole of it. Raises DatasetProblem, OSError."""

    def layout(self, path: Path, label: str = "") -> Layout:
        """Its columns. `label` empty: `y`, `label`, or the last one. Raises DatasetProblem, OSError."""

    def rows(
        self,
        path: Path,
        layout: Layout,
        start: Position = START,
        *,
        settled: bool = True,
        known: Known = frozenset(),
    ) -> Generator[Row, None, None]:
        """Its rows from `start` on; close it. `settled`: nobody is writing, so a last line without an end is a row, too.

        Raises DatasetProblem, OSError.
        """

    def check_label(self, label: str, layout: Layout) -> None:
        """Whether a file of this layout can hold a label (JSON). Raises Misfit."""

    def write(self, path: Path, layout: Layout, records: Records, files: Path) -> Written:
        """Write a new file. Inputs that are files are in the folder `files`, by id. The same records make the same bytes."""


# --- labels, ids


def chosen_label(names: Sequence[str], wanted: str, path: Path) -> str:
    """Which of the columns is the label. Raises DatasetProblem if the one that is asked for is not there."""
    if wanted:
        if wanted not in names:
            shown = ", ".join(names[:10])
            raise DatasetProblem(f"{path} has no field {wanted} (there is {shown}); set labelField to one of them")
        return wanted
    return next((name for name in LABELS if name in names), names[-1] if len(names) > 1 else "")


def as_json(value: Any) -> str:
    """The one way in which a value is written, so that equal ones are equal texts. Raises ValueError: it is no JSON."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def checked_label(text: str) -> str:
    """A label that came from outside, in the one way of writing it. Raises ValueError."""
    if len(text) > MAX_LABEL:
        raise ValueError(f"longer than {MAX_LABEL} characters")
    try:
        found = as_json(json.loads(text))
        found.encode()
    except RecursionError as error:
        raise ValueError("too many lists inside each other") from error
    return found


def label_text(label: str) -> str:
    """A label as the text of a cell."""
    value = json.loads(label)
    return value if isinstance(value, str) else as_json(value)


def id_of_array(array: Array) -> str:
    """The id of an input that is an array: the same for the same numbers, whatever their type and dimensions of one.

    A number is the same as text, as float64 and as float32: 0.1 has one id, though its float32 is 0.10000000149011612.
    """
    if array.dtype.kind in "fiub":
        floats = array.astype("<f8")
        # Integers beyond 2**53 are not all floats.
        exact = array.dtype.kind in "fb" or not array.size or float(np.abs(floats).max()) < 2**53
        array = _shortest(floats) if exact else array.astype(array.dtype.newbyteorder("<"))
    shape = ",".join(str(size) for size in array.shape if size != 1)
    sha256 = hashlib.sha256(f"array {array.dtype.str} {shape}\n".encode())
    sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


_EXACT_POWERS = 10.0 ** np.arange(23)
"""The powers of ten that a float holds exactly: what is divided or multiplied by them is rounded once, as text is."""
_AT_ONCE = 16384


def _shortest(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Numbers that a float32 holds, as the shortest decimals that it is known by: `float(str(float32(value)))`; no -0.0.

    Whole numbers stay what they are, so that no two of them become one.
    """
    found = np.ascontiguousarray(values.ravel() + 0.0)  # -0.0 + 0.0 is 0.0
    with np.errstate(all="ignore"):
        for start in range(0, len(found), _AT_ONCE):
            _shorten(found[start : start + _AT_ONCE])
    return found.reshape(values.shape)


def _shorten(numbers: npt.NDArray[np.float64]) -> None:
    """In place; few enough to stay in a processor's cache."""
    short = numbers.astype(np.float32)
    asked = (short == numbers) & ((np.rint(numbers) != numbers) | (np.abs(numbers) >= 2**53)) & np.isfinite(numbers)
    chosen = np.flatnonzero(asked)
    if not len(chosen):
        return
    long, short = numbers[chosen], short[chosen]
    exponents = np.floor(np.log10(np.abs(long))).astype(np.int64)
    by_text = (exponents < -13) | (exponents > 26)  # else the powers of ten below are exact
    if by_text.any():
        long[by_text] = [float(str(value)) for value in short[by_text]]
    left = np.flatnonzero(~by_text)
    for digits in range(5, 11):  # 6 to 9 are enough; the exponent may be one too large or too small
        if not len(left):
            break
        up = digits - 1 - exponents[left]
        powers, below = _EXACT_POWERS[np.abs(up)], up < 0
        exact = long[left]
        whole = exact * powers
        if below.any():
            whole[below] = exact[below] / powers[below]
        whole = np.rint(whole)
        tried = whole / powers
        if below.any():
            tried[below] = whole[below] * powers[below]
        fits = tried.astype(np.float32) == short[left]
        long[left[fits]] = tried[fits]
        left = left[~fits]
    numbers[chosen] = long


def id_of_values(values: Mapping[str, Any]) -> str:
    """The id of an input that is named values. Numbers make the same id as the array of them does."""
    numbers = numbers_of(values)
    if numbers is not None:
        return id_of_array(numbers)
    text = json.dumps(values, ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=_shown)
    return hashlib.sha256(b"values\n" + text.encode()).hexdigest()


def _shown(value: Any) -> Any:
    return ["bytes", value.hex()] if isinstance(value, bytes) else [type(value).__name__, str(value)]


def numbers_of(values: Mapping[str, Any]) -> Array | None:
    """The values as one array of numbers: of a single value that is an array, or of values that all are numbers."""
    found = list(values.values())
    if not found:
        return None
    try:
        with np.errstate(all="ignore"):
            array = np.array(found[0] if len(found) == 1 else found)
            if array.dtype.kind == "U":
                array = np.array([float(value) for value in array.ravel()]).reshape(array.shape)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if array.dtype.kind in "fiub" and array.size else None


# --- arrays


def read_npy(data: bytes) -> Array:
    """An array that somebody sent. Raises ValueError."""
    file = io.BytesIO(data)
    shape, dtype = read_npy_header(file)
    if len(data) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError("the bytes do not fit the shape")
    file.seek(0)
    array: Array = npy.read_array(file, allow_pickle=False)
    return array


def write_npy(array: Array) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, np.asarray(array), allow_pickle=False)
    return file.getvalue()


def read_npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Raises ValueError: no npy, of a version that only pickled objects need, or pickled objects."""
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the npy format")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("pickled objects")
    return shape, dtype


def fitted(array: Array, dtype: np.dtype[Any], shape: Sequence[int], what: str) -> Array:
    """An array as a column wants it, if no value changes by more than rounding. Raises Misfit."""
    if array.size != math.prod(shape):
        raise Misfit(f"{what} has shape {list(array.shape)}, not {list(shape)}")
    array = array.reshape(tuple(shape))
    if array.dtype == dtype:
        return array
    if np.can_cast(array.dtype, dtype, "same_kind"):
        made = array.astype(dtype)
        if array.dtype.kind not in "iu" or np.array_equal(made, array):
            return made
    elif {array.dtype.kind, dtype.kind} <= set("fiub"):
        with np.errstate(all="ignore"):
            made = array.astype(dtype)
        if np.array_equal(made.astype(np.float64), array.astype(np.float64)):
            return made
    raise Misfit(f"{what} is {array.dtype}, which does not fit {dtype}")


def spread(record: Record, layout: Layout) -> dict[str, Any]:
    """The values of a hard example by name of the columns, as Python numbers. Raises Misfit."""
    try:
        array = read_npy(record.payload)
    except (ValueError, EOFError) as error:
        raise Misfit("the input is no array") from error
    inputs = layout.inputs
    if not inputs and not layout.fields:
        return {"x": plain(array)}
    if len(inputs) == 1:
        return {inputs[0].name: plain(array)}
    if array.size != len(inputs):
        raise Misfit(f"the input has {array.size} values, the dataset {len(inputs)} columns beside the label")
    return dict(zip((each.name for each in inputs), plain(array.ravel()), strict=True))


def plain(array: Array) -> Any:
    """As Python values; a short float keeps its short text."""
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:
        return np.array([float(str(value)) for value in array.ravel()]).reshape(array.shape).tolist()
    return array.tolist()


def left_out(counts: dict[str, int], misfit: Misfit) -> None:
    """Count a reason; there may be as many as rows."""
    reason = str(misfit)[:200]
    if reason not in counts and len(counts) >= 20:
        reason = "other reasons"
    counts[reason] = counts.get(reason, 0) + 1


def all_together(parts: Iterable[Written]) -> dict[str, int]:
    """What was left out of several files."""
    total: dict[str, int] = {}
    for part in parts:
        for reason, count in part.left_out.items():
            total[reason] = total.get(reason, 0) + count
    return total
