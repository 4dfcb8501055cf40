"""Files of arrays: updates and models at rest, in the format of `events.arrays`.

Written array by array and read as maps of the file, so a model of any size costs no more memory than the pages in use.
Files are whole or absent (`store.files`). All of this blocks: async callers use a thread. What the values mean is not
known here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, overload

import numpy as np

from edgeai.errors import DamagedFile, MalformedEvent, NotFound, StoreError, UpdateError
from edgeai.events.arrays import Array, ArrayTable, header, header_size, parse_header, raw, table_of, view_of
from edgeai.store.files import WholeFile, digest_bytes


def write_arrays(path: Path, arrays: Sequence[Array]) -> tuple[str, int]:
    """Write a file, whole or not at all; return its digest and size in bytes.

    Raises:
        UpdateError: a dtype that does not travel.
        StoreError: the file cannot be written.
    """
    with ArrayWriter(path, table_of(arrays)) as writer:
        for array in arrays:
            writer.write(array)
        return writer.finish()


class ArrayWriter:
    """Writes the arrays of a table one after another; the file appears at `finish`, or not at all.

    The table is one of `table_of`. Use as a context manager, so that what is not finished is removed. Raises StoreError
    when the file cannot be written.
    """

    def __init__(self, path: Path, table: ArrayTable) -> None:
        self._table, self._written = table, 0
        self._file = WholeFile(path)
        self._file.write(header(table))

    def write(self, array: Array) -> None:
        """Raises UpdateError if this is not the next array of the table."""
        expected = self._table.entries[self._written] if self._written < len(self._table.entries) else None
        if expected is None or (array.dtype.name, array.shape) != (expected.dtype, expected.shape):
            wanted = f"{expected.dtype} {expected.shape}" if expected else "none"
            raise UpdateError(f"array {self._written} is {array.dtype.name} {array.shape}, expected {wanted}")
        self._file.write(raw(array))
        self._written += 1

    def finish(self) -> tuple[str, int]:
        """Make the file durable; return its digest and size in bytes. Raises UpdateError if arrays are missing."""
        if self._written != len(self._table.entries):
            raise UpdateError(f"{self._written} of {len(self._table.entries)} arrays were written")
        self._file.commit()
        return self._file.digest, self._file.size_bytes

    def discard(self) -> None:
        """Remove what is not finished. Does nothing after `finish`."""
        self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


class ArrayFile(Sequence[Array]):
    """A file of arrays as a sequence of read-only maps, in submitted order; nothing is read before it is used.

    A map stays valid after the file is removed or replaced. The file must not be cut while it is mapped.
    """

    def __init__(self, path: Path, table: ArrayTable, content: Array) -> None:
        """Use `open`. `content` is all of the file, as uint8."""
        self.path, self.table = path, table
        self._bytes = content

    @classmethod
    def open(cls, path: Path, digest: str | None = None) -> Self:
        """Open and check the table; with `digest`, read all of the file once and check that too.

        Raises:
            NotFound: no such file.
            DamagedFile: not a file of arrays, or not the one with this digest.
        """
        try:
            with path.open("rb") as file:  # once: the path may soon mean another file
                table = _read_table(file)
                content = np.memmap(file, np.uint8, mode="r")
        except FileNotFoundError as error:
            raise NotFound("file", str(path)) from error
        except MalformedEvent as error:
            raise DamagedFile(path, str(error)) from error
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
        if digest is not None and (found := digest_bytes(content.data)) != digest:
            raise DamagedFile(path, f"its digest is {found[:12]}, not {digest[:12]}")
        return cls(path, table, content)

    def __len__(self) -> int:
        return len(self.table.entries)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [view_of(self._bytes, entry) for entry in self.table.entries[index]]
        return view_of(self._bytes, self.table.entries[index])

    def __iter__(self) -> Iterator[Array]:
        return (view_of(self._bytes, entry) for entry in self.table.entries)


def _read_table(file: BinaryIO) -> ArrayTable:
    prefix = file.read(8)
    prefix += file.read(header_size(prefix) - len(prefix))
    return parse_header(prefix, os.fstat(file.fileno()).st_size)
