"""What the Docker launcher remembers of a slot, in files that the worker can neither read nor replace.

    slot/.container/            the worker sees an empty directory in its place
        lock                    held while a container is made or removed
        container.json          written before the container exists: its name and a random owner, later its id
        excess.json             why it is to be ended: written before it is
        exit.json               how it ended
        earlier.log             what the earlier containers of this slot printed
        last.json               the end of that, with instants: for who follows the log across a restart

Everything else in a slot directory is the worker's, who may put links and pipes there: whoever reads it must mind.
Must not know the engine (`docker.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from edgeai.errors import LaunchError
from edgeai.launcher import shim
from edgeai.launcher.base import ExitReason, ExitRecord, LogPart, read_log_file
from edgeai.launcher.container import RECORDS, Frame, User
from edgeai.launcher.disk import Excess, walk

_TAKEN_S = 60.0


@dataclass(frozen=True, slots=True)
class Record:
    """Content of container.json. `id` is empty until the engine has told it; no limit is 0: an earlier version wrote it."""

    owner: str
    name: str
    id: str
    boot: str
    log_limit_bytes: int
    disk_bytes: int = 0
    entries: int = 0


class Records:
    """The files of one slot."""

    def __init__(self, slot_dir: Path) -> None:
        self._folder = slot_dir / RECORDS
        self._record, self._exit = self._folder / "container.json", self._folder / "exit.json"
        self._earlier, self._excess = self._folder / "earlier.log", self._folder / "excess.json"
        self._last = self._folder / "last.json"

    @classmethod
    @asynccontextmanager
    async def locked(cls, slot_dir: Path, *, create: bool = False) -> AsyncIterator[Self]:
        """Only one process at a time makes or removes the container of a slot. Raises LaunchError, OSError."""
        slot = cls(slot_dir)
        if create:
            slot._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock, deadline = slot._folder / shim.LOCK, time.monotonic() + _TAKEN_S
        while (descriptor := shim.try_lock(str(lock))) is None:
            if time.monotonic() > deadline:
                raise LaunchError(f"another process holds {lock}")
            await asyncio.sleep(0.05)
        try:
            yield slot
        finally:
            os.close(descriptor)

    def read(self) -> Record | None:
        document = _read(self._record) or {}
        values = {each.name: document.get(each.name, each.default) for each in fields(Record)}
        kinds = {each.name: int if each.type == "int" else str for each in fields(Record)}
        if any(type(value) is not kinds[name] for name, value in values.items()):
            return None
        return Record(**values)

    def write(self, record: Record) -> None:
        shim.write_whole(str(self._record), asdict(record))

    def forget(self) -> None:
        self._record.unlink(missing_ok=True)

    def read_exit(self, owner: str = "") -> ExitRecord | None:
        """How the container of this owner ended; of any, if none is named."""
        match _read(self._exit):
            case {
                "owner": str(whose),
                "reason": ("exited" | "killed" | "oom" | "disk" | "files" | "lost") as reason,
                "code": int() | None as code,
                "signal": str() | None as name,
                "last_line": str(line),
                **more,
            } if owner in {"", whose}:
                limit = more.get("limit", 0)
                return ExitRecord(ExitReason(reason), code, name, line, limit if isinstance(limit, int) else 0)
        return None

    def write_exit(self, ended: ExitRecord, owner: str) -> None:
        if self._folder.is_dir():  # else the slot was deleted
            shim.write_whole(str(self._exit), {**asdict(ended), "owner": owner})

    def forget_exit(self) -> None:
        self._exit.unlink(missing_ok=True)
        self._excess.unlink(missing_ok=True)

    def read_excess(self, owner: str) -> Excess | None:
        """What the container of this owner was, or is to be, ended for."""
        match _read(self._excess):
            case {"owner": str(whose), "reason": ("disk" | "files") as reason, "limit": int(limit)} if whose == owner:
                return Excess(ExitReason(reason), limit)
        return None

    def write_excess(self, excess: Excess, owner: str) -> None:
        if self._folder.is_dir():
            shim.write_whole(str(self._excess), {**asdict(excess), "owner": owner})

    def read_earlier(self, offset: int) -> LogPart:
        return read_log_file(self._earlier, offset, ended=False)

    def read_last_frames(self) -> list[Frame]:
        """The end of what the last container that was removed has printed."""
        match _read(self._last):
            case {"frames": list(found)}:
                return [Frame(instant, text.encode("latin-1")) for instant, text in found]
        return []

    def append_earlier(self, text: bytes | bytearray, limit_bytes: int, last: Sequence[Frame]) -> None:
        with self._earlier.open("ab") as file:
            file.write(text)
        if self._earlier.stat().st_size > limit_bytes:
            self._earlier.write_bytes(self._earlier.read_bytes()[-limit_bytes:])
        frames = [(frame.instant, frame.text.decode("latin-1")) for frame in last]
        shim.write_whole(str(self._last), {"frames": frames})


def has_container(slot_dir: Path) -> bool:
    """Whether a container was made for this slot and not removed."""
    return Records(slot_dir).read() is not None


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if the file is missing or damaged (a machine may have lost power)."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def hand_over(slot_dir: Path, user: User) -> None:
    """Give a slot directory and what is in it to the worker's user. Blocks; without root it does nothing.

    Nothing that the worker put there can lead outside: links are not followed. A file with several names is left alone: its
    other name may be in a cache that is not the worker's.
    """
    if os.geteuid() != 0:
        return
    os.chown(slot_dir, user.uid, user.gid)
    for thing in walk(slot_dir, RECORDS):
        if stat.S_ISDIR(thing.status.st_mode) or thing.status.st_nlink == 1:
            os.chown(thing.name, user.uid, user.gid, dir_fd=thing.folder, follow_symlinks=False)
