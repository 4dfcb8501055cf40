"""The frozen parts of a job's examples: folders that are written once, whole, and never change.

    old.<ending>  new.<ending>    training examples that an earlier snapshot trained on, and those that are new
    eval.<ending>                 examples that are held out
    files/                        inputs that are files (txt list)
    snapshot.json                 round, format, field of the label, and of each part: file, digest, samples; what was left out

The digest of a snapshot is that of its snapshot.json. It depends on the examples alone: no time, no order of arrival. Which
examples are in it is decided in `example_book`. Blocks.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeai.controller.formats import DatasetProblem, Format, Layout, Record, Written
from edgeai.controller.formats.base import all_together
from edgeai.controller.formats.files import FILES
from edgeai.crashpoints import crash_point
from edgeai.errors import NotFound, StoreError
from edgeai.lifecycle.stage import Snapshot
from edgeai.store.files import digest_bytes, digest_of, write_whole

PARTS = ("old", "new", "eval")
DESCRIPTION = "snapshot.json"
MAX_REASONS = 3
"""Why examples were left out: so many are told in one sentence, and all are in the description."""
_FILE_MODE = 0o444


@dataclass(frozen=True, slots=True)
class Source:
    """What a snapshot is written from: `records` of a part, each time the same; `files` holds inputs that are files."""

    round: int
    format: Format
    layout: Layout
    records: Callable[[str], Iterator[Record]]
    files: Path


def write_snapshot(folder: Path, source: Source) -> Snapshot:
    """Write a snapshot to `folder`, or find that it stands there. Raises DatasetProblem: no examples; StoreError: no space."""
    standing = read_snapshot(folder)
    if standing is not None and standing[0] == source.round:
        return standing[1]
    part = folder.with_name(f".{folder.name}.part")
    try:
        remove_folder(folder)
        remove_folder(part)
        part.mkdir(parents=True)
        description = _written(part, source)
        write_whole(part / DESCRIPTION, description, _FILE_MODE)
        crash_point("examples.snapshot_written")
        _sync(part)
        part.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        remove_folder(part)
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from error
    except (DatasetProblem, StoreError):
        remove_folder(part)
        raise
    return _snapshot(json.loads(description), description)


def read_snapshot(folder: Path) -> tuple[int, Snapshot] | None:
    """Round and snapshot of a folder; None if it is not there, or not what it says of itself."""
    try:
        content = (folder / DESCRIPTION).read_bytes()
        found = json.loads(content)
        for name in PARTS:
            part = found["parts"][name]
            if digest_of(folder / part["file"]) != part["digest"]:
                return None
        if sum(1 for _ in _beside(folder)) != found["files"]:
            return None
        return int(found["round"]), _snapshot(found, content)
    except (OSError, ValueError, KeyError, TypeError, NotFound, StoreError):
        return None


def tidy_snapshots(parent: Path, keep: int, in_use: Collection[int]) -> tuple[list[int], list[int]]:
    """Remove all but the newest `keep` snapshots and those in use, and what a crash has left; returns the rounds that were
    removed, and those that stand."""
    rounds = sorted(int(path.name) for path in parent.glob("*") if path.name.isdecimal())
    unfinished = {f".{number}.part" for number in in_use}
    for path in parent.glob(".*"):
        if path.name not in unfinished:
            remove_folder(path)
    surplus = [number for number in rounds[: max(0, len(rounds) - keep)] if number not in in_use]
    for number in surplus:
        remove_folder(parent / str(number))
    return surplus, [number for number in rounds if number not in surplus]


def remove_folder(folder: Path) -> None:
    """First out of its place, so that no half of it is found there."""
    if not folder.exists():
        return
    gone = folder.with_name(f".{folder.name.lstrip('.')}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _written(folder: Path, source: Source) -> bytes:
    parts: dict[str, Any] = {}
    written: list[Written] = []
    for name in PARTS:
        path = folder / f"{name}{source.format.ending}"
        made = source.format.write(path, source.layout, lambda name=name: source.records(name), source.files)  # type: ignore[misc]
        written.append(made)
        path.chmod(_FILE_MODE)
        _sync(path)
        parts[name] = {"file": path.name, "digest": digest_of(path), "samples": made.samples}
    left_out = all_together(written)
    if not parts["old"]["samples"] + parts["new"]["samples"] or not parts["eval"]["samples"]:
        what = "held out" if not parts["eval"]["samples"] else "to train on"
        why = f"; {_left_out(left_out)}" if left_out else ""
        raise DatasetProblem(f"there is no labelled example {what} yet{why}")
    files = 0
    for path in _beside(folder):
        files += 1
        path.chmod(_FILE_MODE)
        _sync(path)
    found = {
        "version": 1,
        "round": source.round,
        "format": source.format.written,
        "label": source.layout.label,
        "fields": [asdict(each) for each in source.layout.fields],
        "parts": parts,
        "files": files,
        "left_out": left_out,
    }
    return json.dumps(found, indent=1, sort_keys=True).encode()


def _beside(folder: Path) -> Iterator[Path]:
    beside = folder / FILES
    if beside.is_dir():
        yield from (Path(entry.path) for entry in os.scandir(beside))


def _snapshot(found: Any, content: bytes) -> Snapshot:
    old, new, held_out = (int(found["parts"][name]["samples"]) for name in PARTS)
    return Snapshot(digest_bytes(content), old + new, held_out, new, _left_out(found.get("left_out") or {}))


def _left_out(reasons: Mapping[str, int]) -> str:
    """As a sentence, the most frequent reasons first; empty if nothing was."""
    if not reasons:
        return ""
    ordered = sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
    if len(ordered) == 1:
        [(reason, count)] = ordered
        return f"{count} left out ({reason})"
    named = "; ".join(f"{count}: {reason}" for reason, count in ordered[:MAX_REASONS])
    more = "; ..." if len(ordered) > MAX_REASONS else ""
    return f"{sum(reasons.values())} left out ({named}{more})"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
