"""What a file looked like when it was read, so that a later look can tell what has become of it.

A trace is the file's stat and a digest of its beginning. Of a long beginning only samples are digested: a file that grows by a
line a second is not read whole each time. Whoever rewrites bytes between the samples, keeps the rest, and makes the file longer
goes unnoticed; no program that writes datasets does. Blocks. It knows nothing of formats.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_WHOLE_BYTES = 1024 * 1024
_SAMPLES, _SAMPLE_BYTES = 64, 4096


class Change(StrEnum):
    SAME = "same"
    APPEARED = "appeared"
    APPENDED = "appended"
    REWRITTEN = "rewritten"
    SHRUNK = "shrunk"
    ROTATED = "rotated"
    """another file has its name"""
    VANISHED = "vanished"


LOSSES = frozenset({Change.REWRITTEN, Change.SHRUNK, Change.ROTATED, Change.VANISHED})
"""What was read before may not be there any more."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file system says of a file; nobody writes to a file without changing it."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Trace:
    """`beginning` is the sampled digest of the first `length` bytes."""

    stamp: Stamp
    length: int
    beginning: str


def stamp_from(found: os.stat_result) -> Stamp:
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def stamp_or_none(path: Path) -> Stamp | None:
    """None: nothing has this name (any more), or it cannot be looked at."""
    try:
        found = path.stat()
        return stamp_of_folder(path) if stat.S_ISDIR(found.st_mode) else stamp_from(found)
    except (OSError, ValueError):
        return None


def stamp_of_folder(folder: Path) -> Stamp:
    """A stamp that changes with that of each file under a folder. Raises OSError if the folder is not there."""
    itself = folder.stat()
    sha256, total, newest = hashlib.sha256(), 0, itself.st_mtime_ns
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            try:
                found = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            total, newest = total + found.st_size, max(newest, found.st_mtime_ns)
            sha256.update(
                f"{place}/{name}\0{found.st_ino}:{found.st_size}:{found.st_mtime_ns}\n".encode("utf-8", "replace")
            )
    changed = int.from_bytes(sha256.digest()[:7])
    return Stamp(itself.st_dev, itself.st_ino, total, newest, changed)


def trace_of(path: Path, length: int | None = None) -> Trace | None:
    """A file up to `length` bytes (default: all); None if it is not there, is no regular file, or is shorter."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb"):
            found = os.fstat(descriptor)
            length = found.st_size if length is None else length
            if not stat.S_ISREG(found.st_mode) or found.st_size < length:
                return None
            return Trace(stamp_from(found), length, _sampled(descriptor, length))
    except (OSError, ValueError):
        return None


def compare(before: Trace | None, path: Path, *, appends: bool) -> Change:
    """What has become of a file since `before`. `appends`: its format can be read on from where it ended."""
    now = stamp_or_none(path)
    if now is None:
        return Change.VANISHED
    if before is None:
        return Change.APPEARED
    if now == before.stamp:
        return Change.SAME
    again = trace_of(path, before.length)
    if again is not None and again.beginning == before.beginning:
        if appends and now.size_bytes > before.stamp.size_bytes:
            return Change.APPENDED
        if now.size_bytes == before.stamp.size_bytes and before.length <= _WHOLE_BYTES:
            return Change.SAME
    if (now.device, now.inode) != (before.stamp.device, before.stamp.inode):
        return Change.ROTATED
    return Change.SHRUNK if now.size_bytes < before.stamp.size_bytes else Change.REWRITTEN


def _sampled(descriptor: int, length: int) -> str:
    sha256 = hashlib.sha256(str(length).encode())
    if length <= _WHOLE_BYTES:
        places = [(0, length)]
    else:
        step = (length - _SAMPLE_BYTES) / (_SAMPLES - 1)
        places = [(int(number * step), _SAMPLE_BYTES) for number in range(_SAMPLES)]
    for offset, size in places:
        sha256.update(os.pread(descriptor, size, offset))
    return sha256.hexdigest()
