"""The hard examples that an inference worker has found, in its slot directory until the controller has taken them over.

Files `hard/<n>.log` of framed records (`store.records_log`); a new one is begun when the newest is full, and at each start. The
controller reads them all, and removes those that are not the newest. What it does not collect is bounded: then new ones are
counted and told, and not kept. Blocks; used from one thread, but for `sync`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import structlog

from edgeai.errors import StoreError
from edgeai.store import records_log

log = structlog.get_logger()

SEGMENT_BYTES, LIMIT_BYTES = 8 * 1024 * 1024, 64 * 1024 * 1024
_TELL_S = 60.0


class HardLog:
    """`dropped`: so many were not kept."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, limit_bytes: int = LIMIT_BYTES) -> None:
        """Raises StoreError if the folder cannot be written."""
        self._folder, self._segment_bytes, self._limit_bytes = folder, segment_bytes, limit_bytes
        self.dropped = 0
        self._told_s = -_TELL_S
        self._descriptor, self._number, self._size, self._others = -1, 0, 0, 0
        self._synced = 0
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            self._number = max((number for number, _ in self._files()), default=0)
            self._begin_another()
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from error

    def append(self, record: dict[str, Any]) -> bool:
        """Whether it is kept: then it survives the end of this process."""
        try:
            if self._descriptor < 0 or self._size >= self._segment_bytes:
                self._begin_another()
            if self._others + self._size >= self._limit_bytes:
                self._others = self._size_of_others()
            if self._others + self._size >= self._limit_bytes:
                raise StoreError(f"{self._others + self._size} bytes wait for the controller to collect them")
            self._size += records_log.append(self._descriptor, record)
        except (StoreError, OSError) as error:
            self.not_kept(str(error))
            return False
        return True

    def not_kept(self, reason: str) -> None:
        self.dropped += 1
        if time.monotonic() - self._told_s >= _TELL_S:
            self._told_s = time.monotonic()
            log.warning("hard_examples_not_kept", dropped=self.dropped, reason=reason)

    def unsynced(self) -> int | None:
        """A descriptor for `sync`, if something was appended since the last one; whoever takes it does sync it."""
        if self._descriptor < 0 or self._synced == self._size:
            return None
        self._synced = self._size
        return os.dup(self._descriptor)

    def close(self) -> None:
        """What is not synced yet is synced first. Raises OSError."""
        if (descriptor := self.unsynced()) is not None:
            sync(descriptor)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _begin_another(self) -> None:
        self.close()
        self._number, self._size, self._synced = self._number + 1, 0, 0
        path = self._folder / f"{self._number}.log"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        sync(
            os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        )  # else the file has no name after a loss of power
        self._others = self._size_of_others()

    def _files(self) -> list[tuple[int, Path]]:
        return [(int(path.stem), path) for path in self._folder.glob("*.log") if path.stem.isdecimal()]

    def _size_of_others(self) -> int:
        total = 0
        for number, path in self._files():
            if number != self._number:
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    continue
        return total


def sync(descriptor: int) -> None:
    """Make what was written outlast a loss of power, and close the descriptor. In any thread. Raises OSError."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
