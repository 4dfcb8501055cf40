"""How much disk a slot takes, and how it is removed, whatever a worker has made of it.

What lies in a slot was made by a stranger, who may change it while we look: links, pipes, a million files, folders without
end or without rights. So no link is followed, no path is put together, only some folders are open at a time, and whoever
measures stops at the limit. All functions block. Must not know who ends a worker that takes too much (`docker.py`).
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

from edgeai.launcher.base import MAX_DEPTH, ExitReason

_BLOCK_BYTES = 512  # of st_blocks, whatever the blocks of the file system are
_BATCH = 1000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH = getattr(os, "O_PATH", 0) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Allowed:
    """`entries` counts files, folders and whatever else has a name. 0: without limit."""

    size_bytes: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True)
class Excess:
    """What was too much, and the limit: bytes for DISK, a number for FILES."""

    reason: ExitReason
    limit: int


def in_words(size_bytes: int) -> str:
    """A limit for people, as they would write it."""
    for unit, name in ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.4g} {name}"
    return f"{size_bytes} bytes"


@dataclass(frozen=True, slots=True)
class Thing:
    """Something with a name in a folder that is open as `folder`, which lies `depth` folders below the first."""

    folder: int
    name: str
    depth: int
    status: os.stat_result


def excess(slot_dir: Path, skip: str, allowed: Allowed, *, pid: int = 0, container: str = "") -> Excess | None:
    """In what a slot exceeds its limits; None if it keeps them. `skip` names a part of it that is not the worker's.

    With the first process of a container, what its processes have deleted and still hold open is counted as well.
    """
    if not slot_dir.is_dir():
        return None
    device = slot_dir.stat().st_dev
    size_bytes, seen = 0, set[int]()
    with closing(walk(slot_dir, skip)) as things, closing(_held(pid, container)) as held:
        named = ((thing.status, thing.depth) for thing in things)
        for entries, (status, depth) in enumerate(chain(named, ((status, 0) for status in held)), 1):
            if (
                status.st_dev == device and status.st_ino not in seen
            ):  # by another name, or before it was moved or deleted
                seen.add(status.st_ino)
                size_bytes += status.st_blocks * _BLOCK_BYTES
            if allowed.size_bytes and size_bytes > allowed.size_bytes:
                return Excess(ExitReason.DISK, allowed.size_bytes)
            if allowed.entries and (entries > allowed.entries or depth >= MAX_DEPTH):
                return Excess(ExitReason.FILES, allowed.entries)
    return None


def walk(top: Path, skip: str = "") -> Generator[Thing]:
    """All that is in a folder, down to MAX_DEPTH, without what is called `skip` directly in it. OSError: `top` is not there."""
    opened: list[tuple[int, list[str]]] = []
    folder: int | None = os.open(top, _FOLDER)
    try:
        while folder is not None or opened:
            if folder is not None:
                depth, inner = len(opened), list[str]()
                opened.append((folder, inner))
                for name, status in _listed(folder):
                    if name == skip and depth == 0:
                        continue
                    if stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH:
                        inner.append(name)
                    yield Thing(folder, name, depth, status)
            above, waiting = opened[-1]
            folder = _open(waiting.pop(), above) if waiting else None
            if folder is None and not waiting:
                os.close(opened.pop()[0])
    finally:
        for folder, _ in opened:
            os.close(folder)


def _listed(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed meanwhile
                yield entry.name, entry.stat(follow_symlinks=False)


def _open(name: str, above: int) -> int | None:
    """A folder; None if it is gone, or something else has taken its place. Rights that it lacks are given to it."""
    try:
        return os.open(name, _FOLDER, dir_fd=above)
    except PermissionError:
        pass
    except OSError:
        return None
    try:
        handle = os.open(name, _PATH, dir_fd=above)
        try:
            os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)  # by its name, a link might have come between
        finally:
            os.close(handle)
        return os.open(name, _FOLDER, dir_fd=above)
    except OSError:
        return None


# --- what was deleted and is still open


def _held(pid: int, container: str) -> Generator[os.stat_result]:
    """Deleted files that a process of this container holds, each once. Nothing where its processes cannot be seen."""
    if not pid or container not in _text(f"/proc/{pid}/cgroup"):
        return  # of another machine, or somebody else's by now
    seen = set[tuple[int, int]]()
    for process in _family(pid):
        for path in chain(_descriptors(process), _mappings(process)):
            with suppress(OSError):
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode) and not status.st_nlink and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    yield status


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants: in a container, all that are in it."""
    waiting = [pid]
    while waiting:
        yield (parent := waiting.pop())
        for thread in _names(f"/proc/{parent}/task"):
            waiting += map(int, _text(f"/proc/{parent}/task/{thread}/children").split())


def _descriptors(pid: int) -> Iterator[str]:
    return (f"/proc/{pid}/fd/{number}" for number in _names(f"/proc/{pid}/fd"))


def _mappings(pid: int) -> Iterator[str]:
    """Of deleted files that are in memory; whom the system lets look (root)."""
    for line in _text(f"/proc/{pid}/maps").splitlines():
        if line.endswith(" (deleted)"):
            start, _, end = line.split(" ", 1)[0].partition("-")
            yield f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}"


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


# --- removing


def remove_tree(top: Path) -> None:
    """Remove a folder with all that is in it, however deep. What cannot be removed stays. Nobody may be at work there."""
    with suppress(OSError):
        root = os.open(top, _FOLDER)
        try:
            _empty(root)
        finally:
            os.close(root)
        top.rmdir()


def _empty(root: int) -> None:
    """Every folder is moved to the top before it is looked into: so depth costs neither open folders nor long paths."""
    waiting, mark, numbers = list[str](), secrets.token_hex(8), count()

    def move_up(name: str, folder: int) -> None:
        if (inner := _open(name, folder)) is not None:
            try:
                os.fchmod(inner, stat.S_IRWXU)  # moving it changes it
            finally:
                os.close(inner)
        moved = f"{mark}-{next(numbers)}"
        os.rename(name, moved, src_dir_fd=folder, dst_dir_fd=root)
        waiting.append(moved)

    _unload(root, move_up, mark)
    while waiting:
        name = waiting.pop()
        if (folder := _open(name, root)) is not None:
            try:
                _unload(folder, move_up, mark)
            finally:
                os.close(folder)
        with suppress(OSError):
            os.rmdir(name, dir_fd=root)


def _unload(folder: int, move_up: Callable[[str, int], None], mark: str) -> None:
    """Remove what is in a folder, some of it at a time; folders are moved away."""
    stuck = set[str]()
    while batch := [
        (name, stat.S_ISDIR(status.st_mode))
        for name, status in islice(
            (found for found in _listed(folder) if found[0] not in stuck and not found[0].startswith(mark)), _BATCH
        )
    ]:
        for name, is_folder in batch:
            try:
                if is_folder:
                    move_up(name, folder)
                else:
                    os.unlink(name, dir_fd=folder)
            except OSError:
                stuck.add(name)
