"""Files that are whole or absent, whatever is killed in between.

A file is written beside its place, made durable, and renamed into it. A reader that knows the digest checks it before
it believes a byte. This module knows paths and bytes only: what is in a file is the business of `events.arrays` and of
the workers. Its functions block; async callers run them in a thread (`asyncio.to_thread`).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from edgeai.errors import DamagedFile, NotFound, StoreError

PIECE_BYTES = 1024 * 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")
Bytes = bytes | bytearray | memoryview


def is_digest(text: str) -> bool:
    """Whether `text` can be a digest of this module: sha256 as 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def digest_bytes(data: Bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(path: Path) -> str:
    """The digest of a file, read in pieces. Raises NotFound."""
    with DigestedFile(path) as source:
        while source.read(PIECE_BYTES):
            pass
    return source.digest


def read_checked(path: Path, digest: str) -> bytes:
    """The content of a file. Raises NotFound; DamagedFile if it has another digest."""
    with DigestedFile(path) as source:
        data = source.read(-1)
    if source.digest != digest:
        raise DamagedFile(path, f"its digest is {source.digest[:12]}, not {digest[:12]}")
    return data


def write_whole(path: Path, data: Bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data`: after a crash either the old file is there or the new one. Raises StoreError."""
    with WholeFile(path, mode) as target:
        target.write(data)
        target.commit()


def copy_whole(source_path: Path, target: Path, mode: int = 0o600) -> str:
    """Copy a file, whole or not at all, and return the digest of what was copied. Raises NotFound, StoreError."""
    with DigestedFile(source_path) as source, WholeFile(target, mode) as copy:
        while piece := source.read(PIECE_BYTES):
            copy.write(piece)
        copy.commit()
    return copy.digest


def free_space_bytes(path: Path) -> int:
    """What an ordinary user can still write where `path` is or will be."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


class DigestedFile:
    """A file to read, and the digest of what has been read of it. Raises NotFound, StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        try:
            self._file = path.open("rb")
        except FileNotFoundError as error:
            raise NotFound("file", str(path)) from error
        except OSError as error:
            raise self._unreadable(error) from error

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()

    def read(self, size_bytes: int) -> bytes:
        """The next piece, empty at the end; everything that is left for -1."""
        try:
            piece = self._file.read(size_bytes)
        except OSError as error:
            raise self._unreadable(error) from error
        self._sha256.update(piece)
        self.size_bytes += len(piece)
        return piece

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unreadable(self, error: OSError) -> StoreError:
        return StoreError(f"{self.path} cannot be read: {error.strerror or error}")


class WholeFile:
    """A file under construction beside its place. `commit` makes it durable and moves it there; else it is removed.

    Raises StoreError when the place cannot be written (no space, no folder, no right).
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self.path = path
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()
        # The name starts with a dot and ends in `.part`: whoever lists the folder can tell it from a whole file.
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        with self._explained():
            self._file = os.fdopen(os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")

    @property
    def digest(self) -> str:
        """Of everything written so far."""
        return self._sha256.hexdigest()

    def write(self, data: Bytes) -> None:
        with self._explained():
            self.size_bytes += self._file.write(data)
        self._sha256.update(data)

    def commit(self) -> None:
        with self._explained():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.replace(self.path)
            _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove what is not committed. Does nothing after `commit`."""
        with suppress(OSError):  # closing writes what is buffered, which may fail once more on a full disk
            self._file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """A rename is durable only when the folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
