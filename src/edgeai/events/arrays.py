"""The array contract: a list of arrays as one blob, on the bus and at rest.

The format is safetensors (https://github.com/huggingface/safetensors, "Format"): eight bytes of header length,
little-endian; a JSON header; the raw data, little-endian, without gaps. Our arrays are called `0000`, `0001`, ... in
the order in which they were submitted, the data lies in that order, and `__metadata__` holds `order`, the names joined
by commas, because other writers sort. Files of other writers are read in the order their metadata says, else in that of
their header. Never pickle.

Everything in a header is checked before an array is made from it: it may come from anybody. What the numbers mean is
not known here; `learning.aggregation` looks at values, `store.arrays` at files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgeai.errors import MalformedEvent, UpdateError

Array = NDArray[Any]

HEADER_LIMIT_BYTES = 4 * 1024 * 1024
ARRAY_LIMIT = 100_000
DIMENSION_LIMIT = 32
_LENGTH_BYTES = 8
_LIMIT = 2**63  # numpy counts elements and bytes in a signed 64-bit integer
_METADATA, _ORDER = "__metadata__", "order"
_DTYPES = {
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
_TAGS = {dtype: tag for tag, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """Where one array lies in a blob: `offset` counts from the first byte of the blob; `dtype` is as in `float32`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ArrayTable:
    """The arrays of a blob in submitted order. `header_bytes` includes the length in front; the data begins there."""

    entries: tuple[ArrayInfo, ...]
    header_bytes: int
    total_size: int


def table_of(arrays: Sequence[Array]) -> ArrayTable:
    """Lay out a blob for these arrays.

    Raises:
        UpdateError: a dtype that does not travel (float16/32/64, integers and bool do), or too many arrays.
    """
    if len(arrays) > ARRAY_LIMIT:
        raise UpdateError(f"{len(arrays)} arrays are more than the {ARRAY_LIMIT} that fit one update")
    entries, offset = [], 0
    for index, array in enumerate(arrays):
        if array.dtype.name not in _TAGS or array.ndim > DIMENSION_LIMIT:
            kind = f"dtype {array.dtype.name}" if array.ndim <= DIMENSION_LIMIT else f"{array.ndim} dimensions"
            raise UpdateError(f"array {index} has {kind}, which does not travel; convert it first")
        entries.append(ArrayInfo(f"{index:04d}", array.dtype.name, array.shape, offset, array.nbytes))
        offset += array.nbytes
    header_bytes = len(_header(entries, 0))
    if header_bytes > HEADER_LIMIT_BYTES:
        raise UpdateError(
            f"{len(arrays)} arrays need a table of {header_bytes} bytes; {HEADER_LIMIT_BYTES} are allowed"
        )
    placed = tuple(
        ArrayInfo(each.name, each.dtype, each.shape, each.offset + header_bytes, each.size_bytes) for each in entries
    )
    return ArrayTable(placed, header_bytes, header_bytes + offset)


def header(table: ArrayTable) -> bytes:
    """The first `table.header_bytes` bytes of the blob of a table that `table_of` made."""
    return _header(table.entries, table.header_bytes)


def raw(array: Array) -> memoryview:
    """The bytes of an array as they lie in a blob; without a copy if it is contiguous and little-endian already."""
    flat = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data


def encode(arrays: Sequence[Array]) -> bytes:
    """One blob in memory: for small arrays. `store.arrays` writes large ones to a file. Raises UpdateError."""
    return b"".join((header(table_of(arrays)), *map(raw, arrays)))


def decode(blob: bytes | bytearray | memoryview) -> list[Array]:
    """The arrays of a blob: read-only views of it, not aligned to their type. Raises MalformedEvent."""
    view = memoryview(blob).toreadonly().cast("B")
    table = parse_header(bytes(view[: header_size(bytes(view[:_LENGTH_BYTES]))]), len(view))
    return [view_of(view, entry) for entry in table.entries]


def view_of(blob: memoryview | Array, entry: ArrayInfo) -> Array:
    """One array of a blob (its bytes, or them as an array of uint8) as a view, read-only if the blob is."""
    dtype = np.dtype(entry.dtype).newbyteorder("<")
    if entry.size_bytes == 0:
        return np.broadcast_to(np.zeros((), dtype), entry.shape)
    count = entry.size_bytes // dtype.itemsize
    return np.frombuffer(blob, dtype, count, entry.offset).reshape(entry.shape)


def header_size(prefix: bytes) -> int:
    """How many bytes of a blob are its header, from the first eight. Raises MalformedEvent."""
    if len(prefix) < _LENGTH_BYTES:
        _refuse(f"{len(prefix)} bytes are no arrays: the length of their table is missing")
    size = _LENGTH_BYTES + int.from_bytes(prefix[:_LENGTH_BYTES], "little")
    if size > HEADER_LIMIT_BYTES:
        _refuse(f"the table of arrays has {size} bytes; {HEADER_LIMIT_BYTES} are allowed")
    return size


def parse_header(prefix: bytes, total_size: int) -> ArrayTable:
    """Read and check the table of a blob of `total_size` bytes. `prefix` is its beginning, at least all of the header.

    Raises MalformedEvent, and nothing else whatever the bytes are.
    """
    header_bytes = header_size(prefix)
    if not header_bytes <= len(prefix) <= total_size:
        _refuse(f"the table of arrays has {header_bytes} bytes; {min(len(prefix), total_size)} are there")
    document = _json_object(prefix[_LENGTH_BYTES:header_bytes])
    names = _order(document.pop(_METADATA, {}), document)
    entries = tuple(_entry(name, document[name], header_bytes) for name in names)
    _check_no_gaps(entries, header_bytes, total_size)
    return ArrayTable(entries, header_bytes, total_size)


def _header(entries: Sequence[ArrayInfo], data_start: int) -> bytes:
    document: dict[str, object] = {_METADATA: {_ORDER: ",".join(each.name for each in entries)}}
    for each in entries:
        start = each.offset - data_start
        document[each.name] = {
            "dtype": _TAGS[each.dtype],
            "shape": each.shape,
            "data_offsets": (start, start + each.size_bytes),
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8, as the library has it
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _json_object(text: bytes) -> dict[str, Any]:
    # Counted before parsing, so that four megabytes of brackets do not become a hundred megabytes of objects.
    if text[:1] != b"{" or max(text.count(b"{"), text.count(b"[") // 2) > ARRAY_LIMIT + 2:
        _refuse(f"the table of arrays is not one JSON object of at most {ARRAY_LIMIT} arrays")
    try:
        document: dict[str, Any] = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedEvent(f"the table of arrays is not JSON: {str(error)[:200]}") from error
    if len(document) > ARRAY_LIMIT + 1:
        _refuse(f"more than {ARRAY_LIMIT} arrays")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("the table of arrays has a name twice")
    return found


def _order(metadata: Any, document: dict[str, Any]) -> Sequence[str]:
    """The names in submitted order."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("the metadata of arrays is not a map of texts")
    if _ORDER not in metadata:
        return list(document)
    names = metadata[_ORDER].split(",") if metadata[_ORDER] else []
    if len(names) != len(document) or set(names) != document.keys():
        _refuse("the order of arrays does not name each of them once")
    return names


def _entry(name: str, fields: Any, header_bytes: int) -> ArrayInfo:
    match fields:
        case {"dtype": str(tag), "shape": list(shape), "data_offsets": [int(start), int(end)], **rest} if not rest:
            pass
        case _:
            _refuse(f"array {name[:80]!r} is not given by dtype, shape and data_offsets")
    if not name.isprintable():
        _refuse(f"{name[:80]!r} is no name of an array")
    if tag not in _DTYPES:
        _refuse(f"array {name[:80]!r} has dtype {tag[:20]!r}, which is not supported")
    if len(shape) > DIMENSION_LIMIT or not all(type(length) is int and 0 <= length < _LIMIT for length in shape):
        _refuse(f"array {name[:80]!r} has no valid shape")
    dtype = np.dtype(_DTYPES[tag])
    # An empty array must fit as well: numpy multiplies the other lengths all the same.
    if math.prod(length or 1 for length in shape) * dtype.itemsize >= _LIMIT:
        _refuse(f"array {name[:80]!r} is too large")
    size = math.prod(shape) * dtype.itemsize
    if isinstance(start, bool) or isinstance(end, bool) or start < 0 or end - start != size:
        _refuse(f"array {name[:80]!r} needs {size} bytes and is given others")
    return ArrayInfo(name, dtype.name, tuple(shape), header_bytes + start, size)


def _check_no_gaps(entries: Sequence[ArrayInfo], header_bytes: int, total_size: int) -> None:
    """The data of all arrays, in whatever order, fills the blob exactly: no gap, no overlap, nothing behind."""
    position = header_bytes
    for each in sorted(entries, key=_place):
        if each.offset != position:
            _refuse(f"array {each.name[:80]!r} begins at byte {each.offset}, the one before ends at {position}")
        position += each.size_bytes
    if position != total_size:
        _refuse(f"the arrays fill {position} bytes of {total_size}")


def _place(entry: ArrayInfo) -> tuple[int, int]:
    return entry.offset, entry.size_bytes


def _refuse(what: str) -> NoReturn:
    raise MalformedEvent(what)
