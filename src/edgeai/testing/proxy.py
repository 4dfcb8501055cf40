"""A TCP proxy that makes a network bad on purpose: slow, narrow, cut, one-way, reset or half-open. It needs no root.

    async with FaultProxy("127.0.0.1", 4222) as proxy:
        ...                             # connect clients to proxy.port instead
        proxy.up.delay_s = 0.25         # latency, per direction: `up` is from client to target
        proxy.down.bytes_per_s = 8_000
        proxy.cut()                     # a cable is pulled: nothing passes, nobody is told
        proxy.mend()                    # ... and put back: what waited goes on its way

It stands anywhere between two programs and knows nothing of what they say. Everything is decided by the test; nothing
here is random.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_READ_BYTES = 64 * 1024
_WAITING_PIECES = 64
_PIECES_PER_S = 20
_LINGER_NOTHING = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Line:
    """One direction. Changes take effect with the next bytes that arrive; None: as fast as it goes."""

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    forwarded_bytes: int = 0
    passable: asyncio.Event = field(default_factory=asyncio.Event)
    """cleared: bytes wait, and so does the end of the stream"""

    def __post_init__(self) -> None:
        self.passable.set()


@dataclass(slots=True, eq=False)
class _Connection:
    client: asyncio.StreamWriter
    target: asyncio.StreamWriter | None = None
    task: asyncio.Task[None] | None = None


class FaultProxy:
    """Listens on a free loopback port and forwards to `host`:`port`."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.up, self.down = Line(), Line()
        self._refusing = False
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [each.task for each in self._connections if each.task is not None]
        self.reset()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """Where clients connect."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        return len(self._connections)

    # --- what a test does to the network

    def cut(self, *lines: Line) -> None:
        """Let nothing pass on these lines (default: both). Connections stay open, and new ones get no answer."""
        for line in lines or (self.up, self.down):
            line.passable.clear()

    def mend(self) -> None:
        """Undo `cut` and `refuse`; what waited goes on. Delays and rates stay as they are."""
        self._refusing = False
        for line in (self.up, self.down):
            line.passable.set()

    def refuse(self) -> None:
        """Reset all connections, and every new one at once, as if nothing listened there."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """End all connections with RST, on both sides; new ones are served."""
        for connection in tuple(self._connections):
            self._end(connection)

    def half_open(self) -> None:
        """The target sees its connections end; the clients are not told, and speak into the void for ever."""
        for connection in tuple(self._connections):
            if connection.target is not None:
                _abort(connection.target)
                connection.target = None

    # --- how it is done

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _abort(writer)
            return
        connection = _Connection(writer, task=asyncio.current_task())
        self._connections.add(connection)
        try:
            await self.up.passable.wait()  # as if the first packet waited
            back, connection.target = await asyncio.open_connection(self._host, self._port)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(connection, reader, self.up, to_target=True))
                ways.create_task(self._carry(connection, back, self.down, to_target=False))
        except* OSError:
            pass  # one side has gone: so has the other
        except* asyncio.CancelledError:
            pass  # ended by the test; an error in a callback of the server would be printed
        finally:
            self._end(connection)

    async def _carry(
        self, connection: _Connection, reader: asyncio.StreamReader, line: Line, *, to_target: bool
    ) -> None:
        """Move bytes along one line. What is read waits here for its time, so that latency does not cost throughput."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING_PIECES)
        reading = asyncio.create_task(_read(reader, waiting, line))
        try:
            async for data in _due(waiting, line):
                writer = connection.target if to_target else connection.client
                if connection.target is None:
                    continue  # half-open: into the void
                assert writer is not None
                if not data:
                    with suppress(OSError):
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
                line.forwarded_bytes += len(data)
            if connection.target is None:
                await asyncio.Event().wait()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _end(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        for writer in (connection.client, connection.target):
            if writer is not None:
                _abort(writer)
        task = connection.task
        if task is not None and task is not asyncio.current_task():
            task.cancel()


async def _read(reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]], line: Line) -> None:
    now = asyncio.get_running_loop().time
    data = b"-"
    while data:
        try:
            data = await reader.read(_READ_BYTES)
        except OSError:
            data = b""
        await waiting.put((now() + line.delay_s, data))


async def _due(waiting: asyncio.Queue[tuple[float, bytes]], line: Line) -> AsyncIterator[bytes]:
    """What waited long enough, in pieces that keep to the rate; in the end an empty one."""
    now = asyncio.get_running_loop().time
    while True:
        due, data = await waiting.get()
        await asyncio.sleep(max(due - now(), 0))
        await line.passable.wait()
        if not data:
            yield data
            return
        while data:
            rate = line.bytes_per_s
            piece = data if rate is None else data[: max(int(rate / _PIECES_PER_S), 1)]
            if rate is not None:
                await asyncio.sleep(len(piece) / rate)
                await line.passable.wait()
            yield piece
            data = data[len(piece) :]


def _abort(writer: asyncio.StreamWriter) -> None:
    """End with RST."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOTHING)
    writer.transport.abort()
