"""Who did what, when, with which result: JSON lines that are only ever appended, in `<state-dir>/audit.jsonl`.

Every request that would change something and every login is one line, written durably before the answer leaves. At 16 MiB
the file is set aside under its number; the newest eight of those are kept. Secrets and bodies never get here.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from edgeai import metrics

log = structlog.get_logger()

FILE_BYTES = 16 * 1024 * 1024
FILES = 8


@dataclass(frozen=True, slots=True)
class Line:
    """`result` is the status of the answer, `detail` its sentence if it was a refusal."""

    time: str
    who: str
    role: str
    address: str
    action: str
    target: str
    result: int
    detail: str = ""


class AuditLog:
    """Written by the portal and by commands of its machine. `problem`: why the last line could not be written, or empty."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        self._folder, self._file_bytes, self._files = folder, file_bytes, files
        self._lock = asyncio.Lock()
        self.problem = ""

    @property
    def path(self) -> Path:
        return self._folder / "audit.jsonl"

    async def write(self, line: Line) -> None:
        """Append and make durable. A log that cannot be written is an error in the daemon's log, the metrics and /readyz."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._append, json.dumps(asdict(line), ensure_ascii=True).encode() + b"\n")
            except OSError as error:
                self.problem = f"the audit log cannot be written: {error.strerror or error}"
                metrics.audit_failed()
                log.error("audit_line_not_written", action=line.action, who=line.who, reason=self.problem)
            else:
                self.problem = ""

    async def newest(self, count: int) -> list[dict[str, Any]]:
        """The newest lines, the newest first."""
        return await asyncio.to_thread(lambda: list(self._read(count)))

    def _append(self, line: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._folder / "audit.lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._append_alone(line)
        finally:
            os.close(lock)

    def _append_alone(self, line: bytes) -> None:
        if self.path.exists() and self.path.stat().st_size + len(line) > self._file_bytes:
            self._set_aside()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _set_aside(self) -> None:
        kept = self._numbered()
        number = kept[-1][0] + 1 if kept else 1
        self.path.rename(self._folder / f"audit-{number:06d}.jsonl")
        for _, path in kept[: max(0, len(kept) + 1 - self._files)]:
            path.unlink(missing_ok=True)
            log.warning("audit_file_removed", file=path.name)

    def _numbered(self) -> list[tuple[int, Path]]:
        found = [path for path in self._folder.glob("audit-*.jsonl") if path.stem[6:].isdigit()]
        return sorted((int(path.stem[6:]), path) for path in found)

    def _read(self, count: int) -> Iterator[dict[str, Any]]:
        for path in (self.path, *(path for _, path in reversed(self._numbered()))):
            if not path.exists():
                continue
            for line in reversed(path.read_bytes().splitlines()):
                if count <= 0:
                    return
                count -= 1
                try:
                    yield dict(json.loads(line))
                except ValueError:
                    yield {"detail": "a line that cannot be read"}
