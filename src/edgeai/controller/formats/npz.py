"""npz: arrays with one row per example, `x` and `y` as a rule. Read and written in pieces, whatever its size.

Arrays of another length than the longest, and those named `..._test`, are no part of the examples; the label has as many rows
as the longest of the others. A file is rewritten to hold more, so there is no reading on. Arrays in Fortran order are read
whole.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import msgpack
import numpy as np
from numpy.lib import format as npy

from edgeai.controller.formats.base import (
    LABELS,
    START,
    Array,
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
    fitted,
    id_of_array,
    id_of_values,
    left_out,
    read_npy,
    read_npy_header,
)

_PIECE_BYTES = 1024 * 1024
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_BROKEN = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError, struct.error)


class Npz:
    name = written = "npz"
    ending = ".npz"
    appends = False
    fixed_columns = True

    def inspect(self, path: Path) -> Found:
        shapes: dict[str, tuple[int, ...]] = {}
        schema: dict[str, str] = {}
        with _explained(path), zipfile.ZipFile(path) as archive:
            for name in _names(archive):
                with archive.open(f"{name}.npy") as file:
                    shapes[name], dtype = _read_through(file)
                schema[name] = str(dtype)
        return Found(_samples(shapes, path), schema, {name: shape[1:] for name, shape in shapes.items()})

    def layout(self, path: Path, label: str = "") -> Layout:
        headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        with _explained(path), zipfile.ZipFile(path) as archive:
            for name in _names(archive):
                with archive.open(f"{name}.npy") as file:
                    headers[name] = read_npy_header(file)
        shapes = {name: shape for name, (shape, _) in headers.items()}
        samples = _samples(shapes, path)
        _require_rows(shapes, label, path)
        rows = {
            name: header
            for name, header in headers.items()
            if header[0][:1] == (samples,) and not name.endswith("_test")
        }
        fields = tuple(Field(name, dtype.str, shape[1:]) for name, (shape, dtype) in rows.items())
        return Layout(fields, chosen_label(list(rows), label, path))

    def rows(
        self,
        path: Path,
        layout: Layout,
        start: Position = START,
        *,
        settled: bool = True,
        known: Known = frozenset(),
    ) -> Generator[Row, None, None]:
        with _explained(path), zipfile.ZipFile(path) as archive, ExitStack() as stack:
            columns = [_column(stack.enter_context(archive.open(f"{each.name}.npy"))) for each in layout.fields]
            for values in zip(*columns, strict=True):
                named = dict(zip((each.name for each in layout.fields), values, strict=True))
                label = named.pop(layout.label, None)
                text = _label(label) if label is not None else None
                yield Row(_id(named), text, _packed(named), Position())

    def check_label(self, label: str, layout: Layout) -> None:
        if (column := layout.label_field) is not None:
            _label_array(label, column)

    def write(self, path: Path, layout: Layout, records: Records, files: Path) -> Written:
        layout = layout if layout.fields else _layout_of_first(records)
        misfits: dict[str, int] = {}
        samples, width = 0, 1
        label = layout.label_field
        for record in records():
            try:
                made = _columns(record, layout)
            except Misfit as misfit:
                left_out(misfits, misfit)
                continue
            samples += 1
            if label is not None and np.dtype(label.dtype).kind in "SU":
                width = max(width, len(made[label.name].item()))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for each in layout.fields:
                dtype = np.dtype(each.dtype)
                if label is not None and each.name == label.name and dtype.kind in "SU":
                    dtype = np.dtype(f"{dtype.kind}{width}")
                member = zipfile.ZipInfo(f"{each.name}.npy", _EARLIEST)
                member.external_attr = 0o644 << 16
                with archive.open(member, "w", force_zip64=True) as file:
                    _write_header(file, (samples, *each.shape), dtype)
                    for record in records():
                        try:
                            made = _columns(record, layout)
                        except Misfit:
                            continue
                        file.write(made[each.name].astype(dtype).tobytes())
        return Written(samples, misfits)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        why = f"{path} is not an npz file without pickled objects ({error}); save it with numpy.savez"
        raise DatasetProblem(why) from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [member.filename.removesuffix(".npy") for member in archive.infolist() if member.filename.endswith(".npy")]


def _samples(shapes: dict[str, tuple[int, ...]], path: Path) -> int:
    counts = [shape[0] for name, shape in shapes.items() if shape and not name.endswith("_test")]
    if not counts:
        raise DatasetProblem(f"{path} holds no arrays")
    return max(counts)


def _require_rows(shapes: Mapping[str, tuple[int, ...]], label: str, path: Path) -> None:
    """A label that fits no input, or only some of them, is a mistake of whoever made the file. Raises DatasetProblem."""
    name = label or next((each for each in LABELS if each in shapes), "")
    rows = {each: shape[0] for each, shape in shapes.items() if shape and not each.endswith("_test")}
    if name not in rows:
        return
    others = {each: count for each, count in rows.items() if each != name}
    if not others:
        return
    other, longest = max(others.items(), key=lambda each: each[1])
    if rows[name] != longest:
        raise DatasetProblem(
            f"{path}: {name} has {rows[name]} rows, {other} has {longest}; give each input one label, and save it again"
        )


def _read_through(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of one array, after all of its bytes were read and checked. Raises ValueError."""
    shape, dtype = read_npy_header(file)
    expected, found = math.prod(shape) * dtype.itemsize, 0
    while found <= expected and (piece := file.read(_PIECE_BYTES)):
        found += len(piece)
    if found != expected:
        raise ValueError(f"an array has {found} bytes, not {expected}")
    return shape, dtype


def _column(file: IO[bytes]) -> Iterator[Array]:
    """The rows of one array."""
    head = file.read(npy.MAGIC_LEN)
    version = npy.read_magic(_Again(head))
    size_bytes = file.read(2 if version == (1, 0) else 4)
    text = file.read(int.from_bytes(size_bytes, "little"))
    whole = _Again(head + size_bytes + text)
    shape, dtype = read_npy_header(whole)
    whole.seek(npy.MAGIC_LEN)
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    _, fortran, _ = reader(whole)
    if fortran and len(shape) > 1:
        data = file.read()
        yield from np.frombuffer(data, dtype).reshape(shape, order="F")
        return
    size = math.prod(shape[1:]) * dtype.itemsize
    for _ in range(shape[0]):
        piece = _exactly(file, size)
        yield np.frombuffer(piece, dtype, count=math.prod(shape[1:])).reshape(shape[1:])
    if file.read(1):
        raise ValueError("an array has more bytes than its shape says")


class _Again:
    """Bytes that were read from a file which cannot be rewound."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def read(self, size: int = -1) -> bytes:
        start, end = self._place, len(self._data) if size < 0 else self._place + size
        self._place = end
        return self._data[start:end]

    def seek(self, place: int) -> None:
        self._place = place


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            raise ValueError("an array has fewer bytes than its shape says")
        data += more
    return data


def _label(value: Array) -> str | None:
    """A value that is not a number means that there is no label."""
    if value.dtype.kind == "f" and not np.all(np.isfinite(value)):
        return None
    found = value.tolist()
    if isinstance(found, bytes):
        found = found.decode("utf-8", "replace")
    return as_json(found)


def _id(values: dict[str, Array]) -> str:
    if len(values) == 1:
        [array] = values.values()
        return id_of_array(array)
    return id_of_values({name: id_of_array(array) for name, array in values.items()})


def _packed(values: dict[str, Array]) -> bytes:
    found: bytes = msgpack.packb(
        {
            name: [array.dtype.str, list(array.shape), np.ascontiguousarray(array).tobytes()]
            for name, array in values.items()
        }
    )
    return found


def unpacked(payload: bytes) -> dict[str, Array]:
    """The arrays of a row."""
    found = msgpack.unpackb(payload)
    return {name: np.frombuffer(data, dtype).reshape(shape) for name, (dtype, shape, data) in found.items()}


def _columns(record: Record, layout: Layout) -> dict[str, Array]:
    """What each column gets from an example. Raises Misfit."""
    given = _given(record, layout)
    made = {}
    for each in layout.inputs:
        if each.name not in given:
            raise Misfit(f"it has no {each.name}")
        made[each.name] = fitted(given[each.name], np.dtype(each.dtype), each.shape, each.name)
    if (label := layout.label_field) is not None:
        made[label.name] = _label_array(record.label, label)
    return made


def _given(record: Record, layout: Layout) -> dict[str, Array]:
    if not record.hard:
        return unpacked(record.payload)
    if len(layout.inputs) != 1:
        raise Misfit(f"a hard example is one array, the dataset has {len(layout.inputs)} beside the label")
    try:
        return {layout.inputs[0].name: read_npy(record.payload)}
    except (ValueError, EOFError) as error:
        raise Misfit("the input is no array") from error


def _label_array(label: str, column: Field) -> Array:
    value, dtype = json.loads(label), np.dtype(column.dtype)
    try:
        if dtype.kind in "SU":
            text = value if isinstance(value, str) else as_json(value)
            return np.array(text.encode() if dtype.kind == "S" else text)
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise Misfit(f"a label is no {dtype}") from error
    if array.dtype.kind == "U":
        raise Misfit(f"a label is text, not {dtype}")
    return fitted(array, dtype, column.shape, "the label")


def _layout_of_first(records: Records) -> Layout:
    """Where no dataset says how: as the first example is."""
    for record in records():
        try:
            array, label = read_npy(record.payload), np.array(json.loads(record.label))
        except (ValueError, EOFError):
            continue
        kind = label.dtype.str if label.dtype.kind in "fiubU" else "<U1"
        return Layout((Field("x", array.dtype.str, array.shape), Field("y", kind, label.shape)), "y")
    return Layout((Field("x", "<f4"), Field("y", "<i8")), "y")


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
