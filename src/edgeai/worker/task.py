"""A worker's task as its script sees it: `async with edgeai.join() as task`.

Here is what a script touches first: joining, what it is told about its task, and the loop over rounds. One round is in
`round`, everything that happens on the bus and on disk in `session`, the same without await in `sync`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import structlog

from edgeai import logs
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.round import Round
from edgeai.worker.session import RoundKey, Session, round_key

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a worker that was asked to stop before its task had ended."""
STOP_S = 3.0
"""Shorter than the grace of a controller, so that a program which hangs still says how it ended."""


@dataclass(frozen=True, slots=True)
class DatasetAtHand:
    """The worker's dataset: its name and a local path, to be read only."""

    name: str
    path: Path


class Task:
    """What a script sees of its task.

    Attributes:
        name: name of the task, as in the manifest.
        node, worker: where this runs, and as whom.
        parameters: the worker's parameters by key, with defaults and the task's values filled in.
        dataset: name and path; None if the worker has none.
        output_dir: files written here stay until the task is deleted.
        log: a structlog logger; what it and the script print is in `edgeai logs`.
    """

    def __init__(self, session: Session) -> None:
        me, slot = session.environment, session.slot_file
        self._session = session
        self.name, self.node, self.worker = slot.assignment.task_name, me.node, me.worker
        self.parameters: Mapping[str, Any] = dict(slot.assignment.parameters)
        path = Path(slot.dataset_path) if slot.dataset_path else None
        self.dataset = DatasetAtHand(slot.assignment.dataset, path) if path else None
        self.output_dir, self.log = me.slot.output, session.log

    async def rounds(self) -> AsyncIterator[Round]:
        """The rounds this worker is asked to join, the newest first if it was away, until the task ends."""
        session = self._session
        done: RoundKey | None = None
        while (state := await session.next_round(done)) is not None:
            weights = await session.weights_of(state)
            if weights is None:
                continue
            done = round_key(state)
            round_ = Round(session, state, weights, self.parameters, opened_s=session.opened_s)
            session.entered(round_)
            await session.progress(round_.number, "training" if round_.train else "validating")
            yield round_
            await session.finished(round_)
            if round_.train and not round_.submitted:
                session.abstain(round_)


class join:  # noqa: N801 (reads as a verb where it is used)
    """Join the task that this process was started for: `async with edgeai.join() as task`.

    Without a broker it goes on and waits for one in `rounds()`. Leaving waits for the verdict of what was submitted,
    unless an error is passing through. SIGTERM ends the program with exit code TERMINATED, unless the script handles it.

    Raises:
        LaunchError: not started by a controller, or an unknown bus.
        NotFound, DamagedFile: the credentials file or the slot directory is not as a controller leaves them.
    """

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._session: Session | None = None

    async def __aenter__(self) -> Task:
        if not structlog.is_configured():
            logs.configure()
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(_unless_terminated)
        environment = WorkerEnvironment.read()
        bus = environment.open_bus()
        session = Session(environment, bus)
        async with AsyncExitStack() as stack:
            stack.enter_context(ended_by_sigterm())
            await stack.enter_async_context(bus)
            await stack.enter_async_context(session.listening())
            await session.note()
            self._stack = stack.pop_all()
        self._session = session
        return Task(session)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        try:
            if exc is None or (isinstance(exc, SystemExit) and exc.code in (None, 0)):
                await self._session.leave()
            await self._session.note()
        finally:
            await self._stack.aclose()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the program as `sys.exit` does, so that contexts are left, and end it soon in any case.

    Not by a callback of the event loop: a script may train in the loop's own thread. A handler of the script's is left
    alone. Outside of the main thread, where Python allows no handlers, this does nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    last_resort = threading.Timer(STOP_S, _give_up)
    last_resort.daemon = True
    last_resort.start()
    raise SystemExit(TERMINATED)


def _unless_terminated(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The end may pass through any task that happens to run; nobody need read that in the log."""
    if not isinstance(context.get("exception"), SystemExit):
        loop.default_exception_handler(context)


def _give_up() -> None:
    """Python waits for threads that train. Nothing they do counts any more: what is on disk is whole or absent."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(TERMINATED)
