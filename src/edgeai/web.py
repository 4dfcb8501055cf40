"""uvicorn in a loop that is not its own: what the portal and an edge's gateway have in common. Knows no route."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn

from edgeai.errors import PortTaken


class Server(uvicorn.Server):
    """Signals belong to the process, and `up` is set when it accepts."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


def bound(host: str, ports: Sequence[int], who: str, option: str) -> socket.socket:
    """A listener on the first of the ports that is free; 0 is any. `option` chooses them. Raises PortTaken, by the last one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        try:
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            if port == ports[-1]:
                raise PortTaken(port, who, option) from error
        else:
            # Its connections inherit it; asyncio sets it only for sockets that say that they are TCP, which this one does
            # not. Else the body of an answer waits until its head is acknowledged, which takes 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listener
    raise AssertionError("there is always a last port")
