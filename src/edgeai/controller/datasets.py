"""A node's datasets: where they may lie, what is in them.

Verification reads a dataset, in pieces: it must lie under an allowed root, be a regular file (a folder, for the format that is
one), and be what its format says. What the formats are is in `formats`; when a dataset is looked at again, in `watching`.
What was read is known again by its stamp.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlparse

from edgeai.controller.formats import FORMATS, MAX_LINE, DatasetProblem, Found, format_named
from edgeai.controller.remote import Stores, fetch, place, unreached
from edgeai.controller.scanning import Scans
from edgeai.controller.traces import Stamp, stamp_from, stamp_of_folder
from edgeai.errors import EdgeaiError
from edgeai.events.catalogue import DatasetObserved, DatasetWanted
from edgeai.resources.dataset import DatasetFormat, is_remote
from edgeai.store.files import digest_of

__all__ = [
    "MAX_COLUMNS",
    "MAX_LINE",
    "MAX_NAME",
    "DatasetProblem",
    "Fingerprint",
    "Stamp",
    "fingerprint",
    "inspect",
    "local_path",
    "note_of",
    "place_of",
    "stamp_of",
    "under_allowed_roots",
    "verify",
]

MAX_COLUMNS, MAX_NAME = 200, 200
"""Of the schema that a node tells: columns, and characters of each name."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The digest of a dataset, and its stamp when it was read."""

    digest: str
    stamp: Stamp


def stamp_of(path: Path) -> Stamp:
    """That of a folder changes with every file in it. Raises FileNotFoundError."""
    found = path.lstat()
    return stamp_of_folder(path) if stat.S_ISDIR(found.st_mode) else stamp_from(found)


def fingerprint(path: Path) -> Fingerprint:
    """Read a dataset. Blocks. Raises DatasetProblem if it is written to meanwhile; NotFound, StoreError."""
    before = stamp_of(path)
    digest = FORMATS[DatasetFormat.IMAGE_FOLDER].inspect(path).digest if path.is_dir() else digest_of(path)
    return Fingerprint(digest, _unchanged(path, before))


def _unchanged(path: Path, before: Stamp) -> Stamp:
    if stamp_of(path) != before:
        raise DatasetProblem(f"{path} was changed while it was read: wait until it is whole, then apply the task again")
    return before


def local_path(url: str, allowed_roots: Sequence[Path], format: str = "") -> Path:
    """The file behind `url`, links resolved; the folder, if that is what `format` is.

    Raises:
        DatasetProblem: not absolute, outside the allowed roots, missing, or not a regular file.
    """
    path = Path(unquote(urlparse(url).path)) if url.startswith("file://") else Path(url)
    if not path.is_absolute():
        raise DatasetProblem(f"{url} is not an absolute path on this node")
    if format == DatasetFormat.IMAGE_FOLDER:
        real = under_allowed_roots(path, allowed_roots, want_file=False)
        if not real.is_dir():
            raise DatasetProblem(f"{path} is not a folder")
        return real
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


def place_of(
    wanted: DatasetWanted, allowed_roots: Sequence[Path], stores: Stores | None = None, *, bring: bool = True
) -> Path:
    """Where a dataset is to be read on this node; one in a store is fetched first.

    Blocks, unless `bring` is false: then it is where it was fetched to before. Raises DatasetProblem.
    """
    if not is_remote(wanted.url):
        return local_path(wanted.url, allowed_roots, wanted.format)
    if stores is None:
        raise DatasetProblem(f"{wanted.url} is not an absolute path on this node")
    if bring:
        return fetch(wanted, stores)
    here = place(wanted, stores)
    if not here.exists():
        raise DatasetProblem(f"{wanted.url} has not been fetched yet")
    return under_allowed_roots(here, [stores.folder], want_file=True)


def note_of(wanted: DatasetWanted, stores: Stores | None) -> str:
    """What is to be known of a dataset that can be used: why it may be older than what its store has."""
    return unreached(wanted, stores) if stores is not None and is_remote(wanted.url) else ""


def verify(wanted: DatasetWanted, allowed_roots: Sequence[Path], stores: Stores | None = None) -> DatasetObserved:
    """Read a dataset once and say what it is. Blocking; never raises."""
    return inspect(wanted, allowed_roots, stores)[0]


def inspect(
    wanted: DatasetWanted, allowed_roots: Sequence[Path], stores: Stores | None = None, scans: Scans | None = None
) -> tuple[DatasetObserved, Stamp | None]:
    """As `verify`, with the stamp of the dataset if it is ready. Blocking; never raises.

    With `scans`, what was read before of a file that has grown is not read again, unless its digest is asked for.
    """
    try:
        format = format_named(wanted.format)
        path = place_of(wanted, allowed_roots, stores)
        before = stamp_of(path)
        found, digest = (Scans() if scans is None or wanted.digest else scans).look(wanted.name, format, path)
        if wanted.label_field:
            format.layout(path, wanted.label_field)
        if wanted.digest and digest != wanted.digest:
            raise DatasetProblem(
                f"{path} has the digest {digest}, not {wanted.digest}, which spec.digest of the dataset asks for: put that"
                " file there, or change the digest"
            )
        stamp = _unchanged(path, before)
        return _observed(wanted.name, found, digest, stamp.size_bytes), stamp
    except (DatasetProblem, EdgeaiError) as problem:
        return DatasetObserved(wanted.name, False, str(problem)), None
    except OSError as error:
        return DatasetObserved(wanted.name, False, f"{wanted.url} cannot be read: {error.strerror or error}"), None


def _observed(name: str, found: Found, digest: str, size_bytes: int) -> DatasetObserved:
    """What the coordinator is told of a dataset: as much of its columns as fits."""
    columns = list(islice(found.schema, MAX_COLUMNS))
    schema = {column[:MAX_NAME]: found.schema[column] for column in columns}
    shapes = {column[:MAX_NAME]: found.shapes[column] for column in columns if column in found.shapes}
    return DatasetObserved(name, True, "", found.samples, digest, schema, shapes, size_bytes)
