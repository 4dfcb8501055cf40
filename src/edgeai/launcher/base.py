"""What every launcher promises, whatever runs the worker.

A launcher starts one worker program in one *slot directory* and tells how it ended. What it needs to find the worker again
(pid and start time, or container id) and the exit record live in the slot directory, written before they are true for anyone
else, so a restarted controller adopts instead of starting twice. `process` and (later) `docker` pass
`tests/contract/test_launcher.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One program to run. `argv[0]` is absolute or `python` (this interpreter, or the image's)."""

    name: str
    slot_dir: Path
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None


class ExitReason(StrEnum):
    EXITED = "exited"  # by itself, with `code`
    KILLED = "killed"  # by `signal`
    LOST = "lost"  # gone without a record: the machine restarted, or the shim was killed as well


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How a worker ended. `last_line` is the last line of its log that is not blank (at most 500 characters)."""

    reason: ExitReason
    code: int | None = None
    signal: str | None = None
    last_line: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A worker that was started or adopted. `pid` is for people; `slot_dir` is how the launcher knows it."""

    name: str
    slot_dir: Path
    pid: int


class Launcher(Protocol):
    async def start(self, spec: LaunchSpec) -> Running:
        """Start the program; the log is appended to `slot_dir/worker.log`.

        If the slot runs already, return that one: never two for one slot.

        Raises:
            LaunchError: it could not be started (says why).
        """

    async def adopt(self, name: str, slot_dir: Path) -> Running | None:
        """The worker that runs in this slot, or None: none was started, or it has ended."""

    async def wait(self, running: Running) -> ExitRecord:
        """Return when the program has ended; without polling where the system allows. May be cancelled and repeated."""

    async def last_exit(self, slot_dir: Path) -> ExitRecord | None:
        """The record of the last run in this slot; None while it runs or if it never ran."""

    async def stop(self, running: Running, grace_s: float) -> ExitRecord:
        """Terminate the program and all its children; kill what is left after `grace_s` seconds."""
