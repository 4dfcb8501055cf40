"""A node's datasets: where they may lie, what is in them.

Verification reads the file once: it must lie under an allowed root, be a regular file, and be what its format says. Pickled
arrays are never loaded.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np

from edgeai.events.catalogue import DatasetObserved, DatasetWanted
from edgeai.store.files import digest_of


class DatasetProblem(Exception):
    """Why a dataset cannot be used, in one line."""


@dataclass(frozen=True, slots=True)
class _Found:
    samples: int
    schema: dict[str, str]


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
    real = path.resolve()
    if not any(real.is_relative_to(root.resolve()) for root in allowed_roots):
        roots = ", ".join(str(root) for root in allowed_roots) or "none"
        raise DatasetProblem(f"{path} is not under an allowed root of this node (allowed_roots: {roots}); add one or move it")
    if not real.exists():
        raise DatasetProblem(f"{path} does not exist on this node; put it there or change the path")
    if want_file and not real.is_file():
        raise DatasetProblem(f"{path} is not a regular file")
    return real


def verify(wanted: DatasetWanted, allowed_roots: Sequence[Path]) -> DatasetObserved:
    """Read a dataset once and say what it is. Blocking; never raises."""
    try:
        path = local_path(wanted.url, allowed_roots)
        found = _READERS[wanted.format](path)
        return DatasetObserved(wanted.name, True, "", found.samples, digest_of(path), found.schema)
    except DatasetProblem as problem:
        return DatasetObserved(wanted.name, False, str(problem))
    except KeyError:
        return DatasetObserved(wanted.name, False, f"format {wanted.format} is not supported; use {', '.join(_READERS)}")
    except OSError as error:
        return DatasetObserved(wanted.name, False, f"{wanted.url} cannot be read: {error.strerror or error}")


def _npz(path: Path) -> _Found:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            shapes = {name: arrays[name] for name in arrays.files}
            schema = {name: f"{array.dtype}{list(array.shape)}" for name, array in shapes.items()}
            counts = [len(array) for name, array in shapes.items() if array.ndim and not name.endswith("_test")]
    except Exception as error:  # numpy and zipfile raise many types for a damaged archive
        raise DatasetProblem(f"{path} is not an npz file without pickled objects; save it with numpy.savez") from error
    if not counts:
        raise DatasetProblem(f"{path} holds no arrays")
    return _Found(max(counts), schema)


def _csv(path: Path) -> _Found:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if not header:
                raise DatasetProblem(f"{path} is empty")
            samples = 0
            for row in reader:
                if row and len(row) != len(header):
                    raise DatasetProblem(f"{path}: line {reader.line_num} has {len(row)} columns, the header {len(header)}")
                samples += bool(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetProblem(f"{path} is not a CSV file in UTF-8 ({error})") from error
    return _Found(samples, dict.fromkeys(header, "text"))


_READERS = {"npz": _npz, "csv": _csv}
