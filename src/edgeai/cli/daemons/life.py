"""How a daemon lives and ends.

SIGTERM leaves workers, brokers and bridges running for the next start to adopt. A daemon that was started by `demo` or `up`
ends with it, however that ends, and then takes everything with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from edgeai.bus.base import Bus
from edgeai.cli.lock import locked
from edgeai.cli.signals import taken_signals
from edgeai.cli.takedown import TEMPORARY_VARIABLE, remove_temporary, take_down
from edgeai.errors import LaunchError
from edgeai.launcher.children import parent_gone
from edgeai.logs import configure

log = structlog.get_logger()

Body = Callable[[], Coroutine[Any, Any, None]]


def run_daemon(body: Body, state_dir: Path | None = None, what: str = "") -> None:
    """Run `body` until a signal, or until the process that started this one is gone.

    Raises:
        Refused: another one runs on this state directory. Whatever `body` raises.
    """
    configure()
    with locked(state_dir, what) if state_dir else contextlib.nullcontext():
        orphaned = asyncio.run(_until_stopped(body))
        if orphaned and state_dir:
            # In a loop of its own: the threads of the first one, which may be starting a worker, have ended.
            asyncio.run(take_down(state_dir))
            if temporary := os.environ.get(TEMPORARY_VARIABLE):
                remove_temporary(Path(temporary))


class Announcement:
    """The line `ready key=value ...` on standard output, when all parts of a daemon have begun."""

    def __init__(self, *parts: str, **facts: object) -> None:
        self._waiting, self._facts = set(parts), facts

    def begun(self, part: str) -> None:
        if part not in self._waiting:
            return
        self._waiting.discard(part)
        if not self._waiting:
            facts = (f"{key}={value}" for key, value in self._facts.items())
            with contextlib.suppress(OSError):  # the terminal was closed
                print(" ".join(["ready", *facts]), flush=True)

    @contextlib.asynccontextmanager
    async def when_connected(self, part: str, *buses: Bus) -> AsyncIterator[None]:
        """The part has begun as soon as its brokers answer, which it need not wait for."""

        async def tell() -> None:
            for bus in buses:
                await bus.wait_connected()
            self.begun(part)

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


async def together(*parts: Body) -> None:
    """Run parts until the first one ends, which none is meant to do."""
    running = [asyncio.ensure_future(part()) for part in parts]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()
    finally:
        for part in running:
            part.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _until_stopped(body: Body) -> bool:
    """True if whoever started this process is gone. From the first moment on: a start may take long."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in taken_signals():
        loop.add_signal_handler(number, stopped.set)
    running = asyncio.ensure_future(body())
    waiting, orphaned = asyncio.create_task(stopped.wait()), asyncio.create_task(parent_gone())
    try:
        await asyncio.wait({running, waiting, orphaned}, return_when=asyncio.FIRST_COMPLETED)
        if orphaned.done():
            orphaned.result()
            log.warning("parent_gone", pid=os.getpid())
            return True
        if running.done():
            running.result()
            raise LaunchError("a part of the daemon ended by itself; start it again and look into its log")
        return False
    finally:
        for task in (running, waiting, orphaned):
            task.cancel()
        await asyncio.gather(running, waiting, orphaned, return_exceptions=True)
