"""What was read of datasets that are appended to, so that a look at one that has grown reads what is new and nothing else.

Of each dataset are kept: rows and columns so far, the digest of what was read, and a trace that tells whether the beginning is
still what it was (`traces` says how well). A file that is anything but longer is read from its start. A few hundred bytes are
kept for each dataset, however large it is. Blocks. What a dataset is, and whether it may be read, is `datasets`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeai.controller.formats import DatasetBusy, Format, Found
from edgeai.controller.formats.text import Csv, Jsonl, Scan
from edgeai.controller.traces import Change, Trace, compare, trace_of
from edgeai.store.files import digest_of

_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Read:
    """`sha256` is of the first `length` bytes."""

    path: Path
    format: str
    scan: Scan = field(default_factory=Scan)
    trace: Trace | None = None
    length: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)


class Scans:
    """By name of the dataset."""

    def __init__(self) -> None:
        self._read: dict[str, _Read] = {}

    def keep(self, names: Collection[str]) -> None:
        """Forget all others."""
        self._read = {name: read for name, read in self._read.items() if name in names}

    def look(self, name: str, format: Format, path: Path) -> tuple[Found, str]:
        """What a dataset holds, and its digest. Raises DatasetProblem, NotFound, StoreError, OSError."""
        if not isinstance(format, Csv | Jsonl):
            found = format.inspect(path)
            return found, found.digest or digest_of(path)
        before = self._read.pop(name, None)
        if before is None or not _goes_on(before, format, path):
            before = _Read(path, format.name)
        found, scan = format.scan(path, before.scan)
        sha256 = before.sha256.copy()
        length = _digest_on(path, before.length, sha256)
        trace = trace_of(path, length)
        if trace is None:
            raise DatasetBusy(f"{path} was changed while it was read")
        self._read[name] = _Read(path, format.name, scan, trace, length, sha256)
        return found, sha256.hexdigest()


def _goes_on(before: _Read, format: Format, path: Path) -> bool:
    if (before.path, before.format) != (path, format.name):
        return False
    return compare(before.trace, path, appends=True) in {Change.SAME, Change.APPENDED}


def _digest_on(path: Path, start: int, sha256: Any) -> int:
    """Returns where the file ended."""
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
        return file.tell()
