"""A Unix socket that leads to a broker's TCP port, for workers that have no network.

mosquitto listens on a Unix socket by itself; nats-server does not, and neither may a broker that was given from outside. The
relay moves bytes and understands none: login and permissions stay the broker's. It lives in the controller; while that is
away, workers see a lost connection and come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import structlog

from edgeai.errors import LaunchError

log = structlog.get_logger()

PATH_LIMIT_BYTES = 100
"""Of the path of a Unix socket; systems differ between 104 and 108."""
_PIECE_BYTES = 256 * 1024
_CONNECTIONS = 256
_CONNECT_S = 5.0


def fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= PATH_LIMIT_BYTES


class Relay:
    """Serves at `path` while its context is entered, for this user and the group `gid`; `host` and `port` are the broker's."""

    def __init__(self, path: Path, host: str, port: int, *, gid: int | None = None) -> None:
        self._path, self._host, self._port, self._gid = path, host, port, gid
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Relay:
        """Raises LaunchError."""
        try:
            self._path.unlink(missing_ok=True)  # of an earlier life, which ended without tidying up
            with _bindable(self._path) as path:
                self._server = await asyncio.start_unix_server(self._accepted, path, limit=_PIECE_BYTES)
            if self._gid is not None:
                os.chown(self._path, -1, self._gid)
            self._path.chmod(0o660)
        except OSError as error:
            raise LaunchError(f"{self._path} cannot be served: {error.strerror or error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connected(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        try:
            if len(self._open) > _CONNECTIONS:
                log.warning("relay_refused", path=str(self._path), reason=f"{_CONNECTIONS} connections are open")
                return
            async with asyncio.timeout(_CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(self._host, self._port, limit=_PIECE_BYTES)
            try:
                await _first_end(_copy(reader, far_writer), _copy(far_reader, writer))
            finally:
                far_writer.close()
        except (OSError, TimeoutError) as error:
            log.debug("relay_connection_ended", path=str(self._path), cause=str(error))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.contextmanager
def _bindable(path: Path) -> Iterator[Path]:
    """The path, or a short one that means the same, where Linux offers it. Raises LaunchError."""
    if fits(path):
        yield path
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = Path(f"/proc/self/fd/{folder}") / path.name
        if not short.parent.is_dir():
            raise LaunchError(
                f"{path} is too long for a socket (at most {PATH_LIMIT_BYTES} bytes): use a shorter --state-dir"
            )
        yield short
    finally:
        os.close(folder)


async def _first_end(*copies: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(copy) for copy in copies]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Waits for a slow reader, so memory does not grow."""
    while piece := await source.read(_PIECE_BYTES):
        target.write(piece)
        await target.drain()
