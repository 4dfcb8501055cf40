"""Inputs and answers of models as they travel: numbers, text, bytes, lists, maps, and arrays. Pure.

msgpack, in which an array is the extension type 1:

    offset  size   field
    0       1      type of the values: its place in `DTYPES`
    1       1      number of axes
    2       8 * n  length of each axis, little-endian
    ...            the values, little-endian, in C order

Never pickle. A scalar of NumPy is an array without axes and comes back as a scalar; a tuple comes back as a list, an array of
text as lists of text. What arrives may come from anybody: sizes, counts and depth are limited, and what was unpacked can be
packed again. What a value means is not known here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from edgeai.errors import MalformedEvent, PayloadTooLarge

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
MAX_VALUE_BYTES = 1024 * 1024 - 16 * 1024
"""Of a packed value: with its envelope it is an event."""
MAX_DEPTH, MAX_CONTAINERS, MAX_AXES = 16, 20_000, 32
MAX_LIST, MAX_MAP = 4_096, 2_048
_PLACES = {name: place for place, name in enumerate(DTYPES)}
_ARRAY, _EXT32 = 1, struct.Struct(">BIb")
_LIMITS = {
    "max_str_len": MAX_VALUE_BYTES,
    "max_bin_len": MAX_VALUE_BYTES,
    "max_array_len": MAX_LIST,
    "max_map_len": MAX_MAP,
    "max_ext_len": MAX_VALUE_BYTES,
}
_PACKER = msgpack.Packer()
_SIZES = struct.Struct("<Q")
Piece = bytes | memoryview


def pack(value: Any, limit_bytes: int = MAX_VALUE_BYTES) -> bytes:
    """Bytes of a value. Arrays are copied once.

    Raises:
        PayloadTooLarge: more than `limit_bytes`; a large array is not copied to find that out.
        MalformedEvent: a type, a depth or a count that does not travel.
    """
    pieces: list[Piece] = []
    _Packing(pieces, limit_bytes).add(value, 0)
    return b"".join(pieces)


class _Packing:
    def __init__(self, pieces: list[Piece], limit_bytes: int) -> None:
        self._pieces, self._limit_bytes = pieces, limit_bytes
        self._size_bytes = self._containers = 0

    def add(self, value: Any, depth: int) -> None:
        match value:
            case np.ndarray() | np.generic() if not isinstance(value, str | bytes | float):
                self._array(np.asarray(value), depth)
            case Mapping():
                self._enter(len(value), MAX_MAP, "entries of a map", depth)
                self._put(msgpack.Packer().pack_map_header(len(value)))
                for key, item in value.items():
                    if not isinstance(key, str):
                        raise MalformedEvent(f"the key {str(key)[:40]!r} of a map is not text")
                    self._scalar(key)
                    self.add(item, depth + 1)
            case list() | tuple():
                self._enter(len(value), MAX_LIST, "items of a list (an array has no such limit)", depth)
                self._put(msgpack.Packer().pack_array_header(len(value)))
                for item in value:
                    self.add(item, depth + 1)
            case np.floating():  # of 64 bits: a float as well
                self._array(np.asarray(value), depth)
            case None | bool() | int() | float() | str() | bytes():
                self._scalar(value)
            case _:
                raise MalformedEvent(
                    f"a {type(value).__name__} does not travel; give arrays, text, numbers, lists or maps"
                )

    def _array(self, array: NDArray[Any], depth: int) -> None:
        if array.dtype.kind in "U":
            self.add(array.tolist(), depth)
            return
        place = _PLACES.get(array.dtype.name)
        if place is None or array.ndim > MAX_AXES:
            what = f"values of type {array.dtype}" if place is None else f"{array.ndim} axes"
            raise MalformedEvent(f"an array with {what} does not travel; convert it first")
        head = bytes((place, array.ndim)) + struct.pack(f"<{array.ndim}Q", *array.shape)
        self._check(array.nbytes + len(head))
        self._put(_EXT32.pack(0xC9, len(head) + array.nbytes, _ARRAY) + head)
        if array.nbytes:
            flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
            self._put(flat.view(np.uint8).data)

    def _scalar(self, value: Any) -> None:
        if isinstance(value, str | bytes):
            self._check(len(value))
        try:
            self._put(_PACKER.pack(value))
        except (OverflowError, ValueError, TypeError) as error:
            raise MalformedEvent(f"{str(value)[:40]!r} does not travel: {str(error)[:80]}") from error

    def _enter(self, count: int, limit: int, what: str, depth: int) -> None:
        self._containers += 1
        if count > limit:
            raise MalformedEvent(f"{count} {what} are more than {limit}")
        if depth >= MAX_DEPTH or self._containers > MAX_CONTAINERS:
            raise MalformedEvent(f"maps and lists more than {MAX_DEPTH} deep, or more than {MAX_CONTAINERS} of them")

    def _put(self, piece: Piece) -> None:
        self._check(len(piece))
        self._size_bytes += len(piece)
        self._pieces.append(piece)

    def _check(self, more_bytes: int) -> None:
        if self._size_bytes + more_bytes > self._limit_bytes:
            raise PayloadTooLarge(self._size_bytes + more_bytes, self._limit_bytes)


def unpack(content: bytes) -> Any:
    """The value. Arrays are read-only; one that is alone is a view of `content`, without a copy.

    Raises MalformedEvent.
    """
    if len(content) > MAX_VALUE_BYTES:
        raise MalformedEvent(f"{len(content)} bytes; a value has at most {MAX_VALUE_BYTES}")
    if len(content) > _EXT32.size and content[0] == 0xC9:
        _, length, code = _EXT32.unpack_from(content)
        if length == len(content) - _EXT32.size:
            return _array_of(code, content, _EXT32.size)
    left = MAX_CONTAINERS

    def counted(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} maps and lists")
        if isinstance(container, dict) and not all(isinstance(key, str) for key in container):
            raise ValueError("a key that is not text")
        return container

    try:
        found = msgpack.unpackb(
            content,
            strict_map_key=True,
            object_hook=counted,
            list_hook=counted,
            ext_hook=lambda code, data: _array_of(code, data, 0),
            **_LIMITS,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise MalformedEvent(f"not a value: {str(error)[:80] or type(error).__name__}") from error
    _check_depth(found)
    return found


def _array_of(code: int, data: bytes, start: int) -> Any:
    if code != _ARRAY or len(data) < start + 2 or data[start] >= len(DTYPES) or data[start + 1] > MAX_AXES:
        raise MalformedEvent("an extension that is no array")
    dtype, axes = np.dtype(DTYPES[data[start]]).newbyteorder("<"), data[start + 1]
    begin = start + 2 + axes * _SIZES.size
    if len(data) < begin:
        raise MalformedEvent("an array without its shape")
    shape = struct.unpack_from(f"<{axes}Q", data, start + 2)
    if math.prod(shape) * dtype.itemsize != len(data) - begin:
        raise MalformedEvent(f"an array of shape {list(shape)[:8]} does not have {len(data) - begin} bytes")
    try:
        return _shaped(data, dtype, shape, begin)
    except (ValueError, OverflowError) as error:
        raise MalformedEvent(f"an array of shape {list(shape)[:8]}: {str(error)[:80]}") from error


def _shaped(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], begin: int) -> Any:
    if begin == len(data):
        array = np.zeros(shape, dtype)
    else:
        array = np.frombuffer(data, dtype, offset=begin)
        if dtype.kind == "b":
            array = array.view(np.uint8) != 0  # any other byte would be a truth of its own
        elif not array.flags.aligned:
            array = array.copy()
        array = array.reshape(shape)
    array.flags.writeable = False
    return array if shape else array[()]


def _check_depth(found: Any) -> None:
    level = [found] if isinstance(found, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        within = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in within if isinstance(item, dict | list)]
    if level:
        raise MalformedEvent(f"maps and lists more than {MAX_DEPTH} deep")
