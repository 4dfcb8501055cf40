"""How a daemon lives and ends.

SIGTERM leaves workers, brokers and bridges running for the next start to adopt. A daemon that was started by `demo` or `up`
ends with it, however that ends, and then takes everything with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from edgeai import metrics, tracing
from edgeai.bus.base import Bus
from edgeai.bus.credentials import write_private
from edgeai.cli.lock import locked
from edgeai.cli.signals import taken_signals
from edgeai.cli.takedown import TEMPORARY_VARIABLE, remove_temporary, take_down
from edgeai.errors import LaunchError, PortTaken
from edgeai.launcher.children import parent_gone
from edgeai.logs import configure

log = structlog.get_logger()

Body = Callable[[], Coroutine[Any, Any, None]]


def run_daemon(body: Body, state_dir: Path | None = None, what: str = "", *, measured: Measured | None = None) -> None:
    """Run `body` until a signal, or until the process that started this one is gone.

    Raises:
        Refused: another one runs on this state directory. PortTaken: of the metrics. Whatever `body` raises.
    """
    configure()
    tracing.start("edgeai")
    with (
        locked(state_dir, what) if state_dir else contextlib.nullcontext(),
        measured.serving() if measured else contextlib.nullcontext(),
    ):
        orphaned = asyncio.run(_until_stopped(body))
        if orphaned and state_dir:
            # In a loop of its own: the threads of the first one, which may be starting a worker, have ended.
            asyncio.run(take_down(state_dir))
            if temporary := os.environ.get(TEMPORARY_VARIABLE):
                remove_temporary(Path(temporary))


@dataclass(frozen=True, slots=True)
class Measured:
    """Where a daemon serves its numbers: `port` None: nowhere; 0: where it did last time if that is free, else anywhere.

    `needed`: if that cannot be, the daemon does not start; else it does without.
    """

    port: int | None
    state_dir: Path | None = None
    needed: bool = True

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Raises PortTaken."""
        if self.port is None:
            yield
            return
        remembered = RememberedPort(self.state_dir, "metrics")
        try:
            port, close = metrics.serve(*remembered.candidates(self.port))
        except PortTaken as error:
            if self.needed:
                raise
            log.error("metrics_not_served", reason=str(error))
            yield
            return
        remembered.keep(port)
        try:
            yield
        finally:
            close()


@dataclass(frozen=True, slots=True)
class RememberedPort:
    """Of something that serves on any free port, and stays there; without a state directory it does not stay."""

    state_dir: Path | None
    what: str

    def candidates(self, asked: int) -> tuple[int, ...]:
        """What to try, in this order."""
        if asked or self.state_dir is None:
            return (asked,)
        with contextlib.suppress(OSError, ValueError):
            return (int(self._file(self.state_dir).read_text()), 0)
        return (0,)

    def keep(self, port: int) -> None:
        if self.state_dir is not None:
            write_private(self._file(self.state_dir), f"{port}\n".encode())

    def _file(self, state_dir: Path) -> Path:
        return state_dir / f"{self.what}.port"


class Announcement:
    """The line `ready key=value ...` on standard output, when all parts of a daemon have begun."""

    def __init__(self, *parts: str, **facts: object) -> None:
        self._waiting, self._facts = set(parts), facts

    def begun(self, part: str, **known: object) -> None:
        """`known`: what is to be said of it."""
        if part not in self._waiting:
            return
        self._facts.update(known)
        self._waiting.discard(part)
        if not self._waiting:
            served = {"metrics": url} if (url := metrics.served_at()) else {}
            facts = (f"{key}={value}" for key, value in {**self._facts, **served}.items())
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
    watching = asyncio.create_task(metrics.watch_loop_lag())
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
        for task in (running, waiting, orphaned, watching):
            task.cancel()
        await asyncio.gather(running, waiting, orphaned, watching, return_exceptions=True)
