"""Datasets in a store: fetched into a file of the node, again when the store has another version. The only door to fsspec.

The version is the store's etag, or time and size. Credentials come from the node's environment, as the store's own library
reads them; they are in no url. Blocks.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from edgeai.controller.formats import DatasetProblem
from edgeai.errors import StoreError
from edgeai.store.files import PIECE_BYTES, WholeFile, free_space_bytes, write_whole

LOOK_S = 30.0
"""A store is not asked more often for the version of a file."""
_KEEP_FREE_BYTES = 64 * 1024 * 1024
_looked_at: dict[str, float] = {}


def fetch(url: str, folder: Path) -> Path:
    """The newest version of a dataset as a file under `folder`. Raises DatasetProblem."""
    fsspec, here = _fsspec(), place(url, folder)
    if here.exists() and time.monotonic() - _looked_at.get(url, -LOOK_S) < LOOK_S:
        return here
    try:
        store, path = fsspec.core.url_to_fs(url)
        store.invalidate_cache()
        found = store.info(path)
        version = _version(found)
        if not here.exists() or _fetched_version(here) != version:
            _copy(store, path, found, here)
            write_whole(_beside(here), json.dumps(version).encode())
        _looked_at[url] = time.monotonic()
    except (StoreError, DatasetProblem) as error:
        raise DatasetProblem(f"{url} was not fetched: {error}") from error
    except FileNotFoundError as error:
        raise DatasetProblem(f"{url} does not exist; put it there or change the url") from error
    except ImportError as error:
        raise DatasetProblem(f"{url} needs a library on this node: {error}") from error
    except Exception as error:
        raise DatasetProblem(f"{url} was not fetched: {type(error).__name__}: {_one_line(error)}") from error
    return here


def place(url: str, folder: Path) -> Path:
    """Where a dataset is, once it has been fetched."""
    return folder / hashlib.sha256(url.encode()).hexdigest()[:32] / PurePosixPath(url.partition("://")[2]).name


def _fsspec() -> Any:
    """Raises DatasetProblem."""
    try:
        import fsspec
    except ImportError as error:
        raise DatasetProblem(
            "a dataset in a store needs fsspec on this node; install it with: pip install 'edgeai[remote]'"
        ) from error
    return fsspec


def _version(found: dict[str, Any]) -> list[str]:
    names = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created", "size")
    return [f"{name}={found[name]}" for name in names if found.get(name) is not None]


def _copy(store: Any, path: str, found: dict[str, Any], here: Path) -> None:
    if found.get("type") == "directory":
        raise DatasetProblem("it is a folder; name a file in it")
    size, free = found.get("size") or 0, free_space_bytes(here)
    if size + _KEEP_FREE_BYTES > free:
        raise DatasetProblem(f"it has {size} bytes, and {free} are free on this node")
    here.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileNotFoundError):
        _beside(here).unlink()  # a file whose version is not known is fetched again
    with store.open(path, "rb") as source, WholeFile(here) as target:
        while piece := source.read(PIECE_BYTES):
            target.write(piece)
        if size and target.size_bytes != size:
            raise DatasetProblem(f"it changed meanwhile: {target.size_bytes} bytes instead of {size}")
        target.commit()


def _beside(here: Path) -> Path:
    return here.with_name(f".{here.name}.version")


def _fetched_version(here: Path) -> Any:
    try:
        return json.loads(_beside(here).read_bytes())
    except (OSError, ValueError):
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
