"""What edge and cloud workers of a joint inference service have in common: their service, and work beside the script."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

import structlog
from pydantic import ValidationError

from edgeai.errors import DamagedFile
from edgeai.events.catalogue import InferenceWork
from edgeai.launcher.slots import SlotFile
from edgeai.resources.joint import JointInferenceServiceSpec
from edgeai.worker.environment import WorkerEnvironment

log = structlog.get_logger()

AGAIN_S = 2.0
STOP_S, FLUSH_S = 1.0, 0.5
"""How long a worker that is asked to stop goes on with what is under way, and then with sending its answers."""


def service_of(slot_file: SlotFile, environment: WorkerEnvironment) -> tuple[InferenceWork, JointInferenceServiceSpec]:
    """Raises DamagedFile."""
    file, work = environment.slot.path / "slot.json", slot_file.assignment.inference
    if work is None:
        raise DamagedFile(file, f"a {slot_file.assignment.role} worker without a service")
    try:
        return work, JointInferenceServiceSpec.model_validate_json(work.spec)
    except ValidationError as error:
        raise DamagedFile(file, f"its service is none: {str(error).splitlines()[0]}") from error


def end_process(code: int) -> NoReturn:
    """At once, whatever its threads do: Python would wait for them. What is on disk is whole or absent."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class Background:
    """Work beside the script: what fails is begun again after a moment, with a word in the log."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def stopped(self) -> None:
        """Wait until the context is left."""
        await self._stopped.wait()

    @asynccontextmanager
    async def running(self, parts: Mapping[str, Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
        self._tasks = {name: asyncio.create_task(self._kept_up(name, part)) for name, part in parts.items()}
        try:
            yield
        finally:
            self._stopped.set()
            await self.end(*parts)

    async def end(self, *names: str) -> None:
        """For good. Returns when these have ended."""
        tasks = [self._tasks[name] for name in names if name in self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _kept_up(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await part()
            except Exception:  # whatever it is, requests are to be answered
                log.exception("part_failed", part=name)
            await asyncio.sleep(AGAIN_S)
