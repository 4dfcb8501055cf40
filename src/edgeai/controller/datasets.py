"""A node's datasets: where they may lie, what is in them.

Verification reads the file, in pieces: it must lie under an allowed root, be a regular file, and be what its format says. No
array is ever made of it, pickled or not, so memory does not grow with the file. What was read is known again by its stamp.
"""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TextIO
from urllib.parse import unquote, urlparse

import numpy as np
from numpy.lib import format as npy

from edgeai.errors import EdgeaiError
from edgeai.events.catalogue import DatasetObserved, DatasetWanted
from edgeai.store.files import digest_of

MAX_COLUMNS, MAX_NAME = 200, 200
"""Of the schema that a node tells: columns, and characters of each name."""
MAX_LINE = 1024 * 1024
_PIECE_BYTES = 1024 * 1024


class DatasetProblem(Exception):
    """Why a dataset cannot be used, in one line."""


@dataclass(frozen=True, slots=True)
class _Found:
    samples: int
    schema: dict[str, str]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """of one example, where a column is an array"""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file system says of a file; nobody writes to a file without changing it."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The digest of a file, and its stamp when it was read."""

    digest: str
    stamp: Stamp


def stamp_of(path: Path) -> Stamp:
    """Raises FileNotFoundError."""
    found = path.lstat()
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def fingerprint(path: Path) -> Fingerprint:
    """Read a file. Blocks. Raises DatasetProblem if it is written to meanwhile; NotFound, StoreError."""
    before = stamp_of(path)
    digest = digest_of(path)
    return Fingerprint(digest, _unchanged(path, before))


def _unchanged(path: Path, before: Stamp) -> Stamp:
    if stamp_of(path) != before:
        raise DatasetProblem(f"{path} was changed while it was read: wait until it is whole, then apply the task again")
    return before


def local_path(url: str, allowed_roots: Sequence[Path]) -> Path:
    """The file behind `url`, links resolved.

    Raises:
        DatasetProblem: not absolute, outside the allowed roots, missing, or not a regular file.
    """
    path = Path(unquote(urlparse(url).path)) if url.startswith("file://") else Path(url)
    if not path.is_absolute():
        raise DatasetProblem(f"{url} is not an absolute path on this node")
    return under_allowed_roots(path, allowed_roots, want_file=True)


def under_allowed_roots(path: Path, allowed_roots: Sequence[Path], *, want_file: bool) -> Path:
    """`path` with links resolved, if it lies under a root and exists. Raises DatasetProblem."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a name that no file system takes
        raise DatasetProblem(f"{path} is not a path on this node: {error}") from error
    if not any(real.is_relative_to(root.resolve()) for root in allowed_roots):
        roots = ", ".join(str(root) for root in allowed_roots) or "none"
        raise DatasetProblem(
            f"{path} is not under an allowed root of this node (allowed_roots: {roots}); add one or move it"
        )
    if not real.exists():
        raise DatasetProblem(f"{path} does not exist on this node; put it there or change the path")
    if want_file and not real.is_file():
        raise DatasetProblem(f"{path} is not a regular file")
    return real


def verify(wanted: DatasetWanted, allowed_roots: Sequence[Path]) -> DatasetObserved:
    """Read a dataset once and say what it is. Blocking; never raises."""
    return inspect(wanted, allowed_roots)[0]


def inspect(wanted: DatasetWanted, allowed_roots: Sequence[Path]) -> tuple[DatasetObserved, Stamp | None]:
    """As `verify`, with the stamp of the file if it is ready. Blocking; never raises."""
    try:
        path = local_path(wanted.url, allowed_roots)
        before = stamp_of(path)
        if wanted.format not in _READERS:
            raise DatasetProblem(f"format {wanted.format} is not supported; use {', '.join(_READERS)}")
        found = _READERS[wanted.format](path)
        names = list(islice(found.schema, MAX_COLUMNS))
        schema = {name[:MAX_NAME]: found.schema[name] for name in names}
        shapes = {name[:MAX_NAME]: found.shapes[name] for name in names if name in found.shapes}
        digest = digest_of(path)
        if wanted.digest and digest != wanted.digest:
            raise DatasetProblem(
                f"{path} has the digest {digest}, not {wanted.digest}, which spec.digest of the dataset asks for: put that"
                " file there, or change the digest"
            )
        observed = DatasetObserved(wanted.name, True, "", found.samples, digest, schema, shapes)
        return observed, _unchanged(path, before)
    except (DatasetProblem, EdgeaiError) as problem:
        return DatasetObserved(wanted.name, False, str(problem)), None
    except OSError as error:
        return DatasetObserved(wanted.name, False, f"{wanted.url} cannot be read: {error.strerror or error}"), None


def _npz(path: Path) -> _Found:
    shapes: dict[str, tuple[int, ...]] = {}
    schema: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    with archive.open(member) as file:
                        shape, dtype = _read_through(file)
                    name = member.filename.removesuffix(".npy")
                    shapes[name], schema[name] = shape, str(dtype)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        why = f"{path} is not an npz file without pickled objects ({error}); save it with numpy.savez"
        raise DatasetProblem(why) from error
    counts = [shape[0] for name, shape in shapes.items() if shape and not name.endswith("_test")]
    if not counts:
        raise DatasetProblem(f"{path} holds no arrays")
    return _Found(max(counts), schema, {name: shape[1:] for name, shape in shapes.items()})


def _read_through(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one array, after all of its bytes were read and checked. Raises ValueError."""
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of the npy format")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("pickled objects")
    expected, found = math.prod(shape) * dtype.itemsize, 0
    while found <= expected and (piece := file.read(_PIECE_BYTES)):
        found += len(piece)
    if found != expected:
        raise ValueError(f"an array has {found} bytes, not {expected}")
    return shape, dtype


def _csv(path: Path) -> _Found:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(_lines(file, path))
            header = next(reader, None)
            if not header:
                raise DatasetProblem(f"{path} is empty")
            samples = 0
            for row in reader:
                if row and len(row) != len(header):
                    raise DatasetProblem(
                        f"{path}: line {reader.line_num} has {len(row)} columns, the header {len(header)}"
                    )
                samples += bool(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetProblem(f"{path} is not a CSV file in UTF-8 ({error})") from error
    if not samples:
        raise DatasetProblem(f"{path} has a header and no rows")
    return _Found(samples, dict.fromkeys(header, "text"))


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise DatasetProblem(f"{path} has a line of {MAX_LINE} characters or more")
        yield line


_READERS = {"npz": _npz, "csv": _csv}
