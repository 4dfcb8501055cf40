"""What every launcher promises, whatever runs the worker.

A launcher starts one worker program in one *slot directory* and tells how it ended. What it needs to find the worker again
(pid and start time, or container id) and the exit record live in the slot directory, written before they are true for anyone
else, so a restarted controller adopts instead of starting twice. `process` and `docker` pass `tests/contract/test_launcher.py`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

LOG_PART_BYTES = 256 * 1024
MIB = 1024 * 1024
GIB = 1024 * MIB
MAX_DEPTH = 64
"""Of folders in a slot, where what is in it is bounded."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of this machine as the worker sees it, at `target` (absolute)."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What a container needs to be told besides the program; launchers of plain processes ignore it.

    `image` is a tag, `name@sha256:...` or an image id. `image_id`, if given, is the id (`sha256:...`) that the image must
    have here. The slot directory is mounted at `container.SLOT` in any case; `mounts` holds the rest. `gpus` is a number,
    -1 is all. `network` is `none` or the name of a network of the engine. `file_limit_bytes` is for one file, `disk_bytes`
    and `entries` (files, folders and whatever else has a name) for all that the worker keeps in its slot directory: they are
    measured while it runs, and who exceeds them is ended. `log_limit_bytes` is for the whole log: beyond it the oldest
    lines go.
    """

    image: str
    image_id: str = ""
    mounts: Sequence[Mount] = ()
    cpus: float = 1.0
    memory_bytes: int = 2048 * MIB
    pids: int = 512
    gpus: int = 0
    network: str = "none"
    tmpfs_bytes: int = 64 * MIB
    disk_bytes: int = 10 * GIB
    entries: int = 100_000
    file_limit_bytes: int = GIB
    log_limit_bytes: int = 10 * MIB
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One program to run. `argv[0]` is absolute or `python` (this interpreter, or the image's).

    With a container, `argv`, `env` and `cwd` speak of paths as the container sees them.
    """

    name: str
    slot_dir: Path
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    container: ContainerSpec | None = None


class ExitReason(StrEnum):
    EXITED = "exited"  # by itself, with `code`
    KILLED = "killed"  # by `signal`
    OOM = "oom"  # by the kernel: it wanted more memory than its `limit` of bytes (0: not known)
    DISK = "disk"  # by the launcher: it used more disk than its `limit` of bytes
    FILES = "files"  # by the launcher: it made more files and folders than its `limit`, or nested them deeper than MAX_DEPTH
    LOST = "lost"  # gone without a record: the machine restarted, or the shim was killed as well


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a worker ended. `last_line` is the last line of its log that is not blank (at most 500 characters)."""

    reason: ExitReason
    code: int | None = None
    signal: str | None = None
    last_line: str = ""
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Running:
    """A worker that was started or adopted. `pid` is for people; `slot_dir` is how the launcher knows it."""

    name: str
    slot_dir: Path
    pid: int


@dataclass(frozen=True, slots=True)
class LogPart:
    """At most `LOG_PART_BYTES` of a worker's log.

    Offsets are opaque and only grow: bytes for processes, an instant for containers. Ask with `next_offset` for what
    follows. `ended`: nothing will follow.
    """

    text: bytes
    offset: int
    next_offset: int
    ended: bool


def read_log_file(path: Path, offset: int, *, ended: bool) -> LogPart:
    """A part of a log that is a file, with bytes as offsets. Blocks. `ended`: nothing will be appended."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            file.seek(start)
            text = file.read(LOG_PART_BYTES)
    except FileNotFoundError:
        return LogPart(b"", 0, 0, ended)
    return LogPart(text, start, start + len(text), ended and start + len(text) >= size)


@dataclass(frozen=True, slots=True)
class Stats:
    """What a worker uses now. `cpu_s` is the sum since it started; memory without what the kernel can take back at once.

    `memory_limit_bytes` 0: none is known. `pids` counts processes and threads, as a container engine does.
    """

    cpu_s: float
    memory_bytes: int
    memory_limit_bytes: int
    pids: int


class Launcher(Protocol):
    async def start(self, spec: LaunchSpec) -> Running:
        """Start the program; its output is appended to the log of the slot (`read_log`).

        If the slot runs already, return that one: never two for one slot.

        Raises:
            LaunchError: it could not be started (says why).
        """

    async def adopt(self, name: str, slot_dir: Path) -> Running | None:
        """The worker that runs in this slot, or None: none was started, or it has ended."""

    async def wait(self, running: Running) -> ExitRecord:
        """Return when the program has ended; without polling where the system allows. May be cancelled and repeated.

        As long as somebody waits, limits that no system keeps (`ContainerSpec.disk_bytes`) are kept.
        """

    async def last_exit(self, slot_dir: Path) -> ExitRecord | None:
        """The record of the last run in this slot; None while it runs or if it never ran."""

    async def stop(self, running: Running, grace_s: float) -> ExitRecord:
        """Terminate the program and all its children; kill what is left after `grace_s` seconds."""

    async def read_log(self, slot_dir: Path, offset: int = 0) -> LogPart:
        """What the programs of this slot have printed from `offset` on; negative: that many bytes from the end."""

    def stats(self, running: Running) -> AsyncGenerator[Stats]:
        """What the worker uses, every second, until it ends; nothing from a launcher that cannot tell."""

    async def remove(self, slot_dir: Path) -> None:
        """Remove what is left outside of the slot directory, a running worker included. May be repeated."""
