"""A log of small records that one process appends to and another reads: hard examples on their way to the controller.

    offset  size  field of a frame
    0       4     magic b"eaR\\x01"
    4       4     length of the record, little-endian
    8       4     CRC-32 of the record, little-endian
    12      n     the record: a map of plain values, msgpack

A frame is appended with one write, so a writer that is killed leaves whole records and at most one torn tail, which a reader
leaves alone. The writer starts a new file after a crash, so nothing ever follows a torn tail. Behind damage a reader goes on at
the next frame that is whole.

A reader trusts nothing: the file may be a link, a pipe, or nonsense; what one call takes of it, and makes of that, is bounded.
What is in a record is not known here. All of this blocks.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from edgeai.errors import StoreError

MAX_RECORD_BYTES = 16 * 1024 * 1024
MAX_FIELDS = 64
READ_BYTES = MAX_RECORD_BYTES + 1024
"""How much of a file one call reads, and so holds in memory: at least one whole frame."""
_MAGIC = b"eaR\x01"
_FRAME_BYTES = 12
_MAX_TRIES = 64


@dataclass(frozen=True, slots=True)
class Read:
    """Whole records, and where to go on. `damaged`: so many pieces were no records, and were left out."""

    records: tuple[dict[str, Any], ...]
    next_offset: int
    damaged: int = 0


def append(descriptor: int, record: Mapping[str, Any]) -> int:
    """Append a record to a file that was opened with O_APPEND; returns how many bytes that took.

    Raises StoreError: too big, or not written (no space); then the file ends where it did before.
    """
    framed = frame(record)
    before = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, framed)
    except OSError as error:
        raise StoreError(f"a record was not written: {error.strerror or error}") from error
    if written != len(framed):
        os.ftruncate(descriptor, before)
        raise StoreError("a record was not written: no space left")
    return written


def frame(record: Mapping[str, Any]) -> bytes:
    """The bytes of a record in a log. Raises StoreError if it is too big."""
    body: bytes = msgpack.packb(dict(record))
    if len(body) > MAX_RECORD_BYTES:
        raise StoreError(f"a record of {len(body)} bytes is too big for a log; {MAX_RECORD_BYTES} are allowed")
    return _MAGIC + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def read(path: Path | str, offset: int = 0, *, ended: bool = False, folder: int | None = None) -> Read:
    """The whole records from byte `offset` on, READ_BYTES at most; the same offset again: nothing more yet.

    Args:
        ended: nobody appends any more. Then a torn tail is passed over, so that the last offset is the size of the file.
        folder: descriptor of the folder that `path` is relative to.

    Raises StoreError if it cannot be read, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise StoreError(f"{path} is not a regular file")
            file.seek(offset)
            data = file.read(READ_BYTES)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    return _parsed(data, offset, last=ended and offset + len(data) >= found.st_size)


def _parsed(data: bytes, offset: int, *, last: bool) -> Read:
    records, place, damaged, tries = [], 0, 0, 0
    broken = False
    while place < len(data):
        end, body = _framed(data, place)
        if body is not None:
            record = _unpacked(body)
            if record is None:
                damaged += 1
            else:
                records.append(record)
            place, broken = end, False
            continue
        following = _next_magic(data, place, last=last)
        if end > len(data) and not (last and following < len(data)):
            # Its rest is not written yet, or was not read. At the end of a file that nobody appends to it never will be.
            return Read(tuple(records), offset + (len(data) if last else place), damaged)
        damaged, broken, tries = damaged + (not broken), True, tries + 1
        # Each try may cost a checksum over a long record, and a file can be made of nothing but beginnings.
        place = following if tries < _MAX_TRIES else len(data)
    return Read(tuple(records), offset + place, damaged)


def _framed(data: bytes, place: int) -> tuple[int, bytes | None]:
    """Where the frame at `place` ends, and its record. Ends beyond the data: not all is here; -1: there is no frame."""
    head = data[place : place + _FRAME_BYTES]
    if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
        return -1, None
    if len(head) < _FRAME_BYTES:
        return place + _FRAME_BYTES, None
    length, crc = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:12], "little")
    end = place + _FRAME_BYTES + length
    if length > MAX_RECORD_BYTES:
        return -1, None
    if end > len(data):
        return end, None
    body = data[place + _FRAME_BYTES : end]
    return (end, body) if zlib.crc32(body) == crc else (-1, None)


def _next_magic(data: bytes, place: int, *, last: bool) -> int:
    """Where a frame may begin behind damage at `place`: the end of the data if nowhere."""
    following = data.find(_MAGIC, place + 1)
    if following >= 0 or last:
        return following if following >= 0 else len(data)
    cut = next((size for size in range(len(_MAGIC) - 1, 0, -1) if data.endswith(_MAGIC[:size])), 0)
    return max(place + 1, len(data) - cut)


def _unpacked(body: bytes) -> dict[str, Any] | None:
    """A flat map: containers inside it could take a hundred times their length of memory."""
    maps = 0

    def one_map(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        nonlocal maps
        maps += 1
        if maps > 1:
            raise ValueError("a map inside a record")
        return dict(pairs)

    try:
        found = msgpack.unpackb(body, object_pairs_hook=one_map, max_ext_len=0, max_array_len=0, max_map_len=MAX_FIELDS)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return None
    return found if isinstance(found, dict) and all(isinstance(key, str) for key in found) else None
