"""The lib without await: `with edgeai.join_sync() as task: for round in task.rounds(): round.submit(...)`.

A background thread runs an event loop with the session in it, so the bus stays alive while the script trains in its own
thread. What a script calls here waits for the same coroutine there and raises what it raises. All meaning is in `task` and
the modules it names; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy.typing as npt

from edgeai.events.catalogue import Verdict
from edgeai.worker.examples import Columns, DatasetAtHand
from edgeai.worker.inference import Answer
from edgeai.worker.models import LocalModel
from edgeai.worker.predicting import Load, Predict
from edgeai.worker.round import Round, Weights
from edgeai.worker.stage import NewModel
from edgeai.worker.task import Task, ended_by_sigterm, join

T = TypeVar("T")
INTERRUPT_S = 2.0
"""How long an interrupted call (Ctrl-C) is given to unwind in the loop."""


class BackgroundLoop:
    """An event loop in a daemon thread, until the context is left: then what still runs in it is cancelled."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="edgeai", daemon=True)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and wait for it. What interrupts the waiting (Ctrl-C, SIGTERM) cancels it."""
        assert self._loop is not None
        ended = threading.Event()
        future: Future[T] = asyncio.run_coroutine_threadsafe(_told(work, ended), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(INTERRUPT_S)
            raise

    def _run(self) -> None:
        asyncio.run(self._wait())

    async def _wait(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._stop.wait()


async def _told(work: Coroutine[Any, Any, T], ended: threading.Event) -> T:
    try:
        return await work
    finally:
        ended.set()


class SyncRound:
    """One round: as `edgeai.worker.round.Round`, without await."""

    def __init__(self, round_: Round, loop: BackgroundLoop) -> None:
        self._round, self._loop = round_, loop
        self.number, self.train, self.validate = round_.number, round_.train, round_.validate
        self.weights: Weights = round_.weights
        self.parameters: Mapping[str, Any] = round_.parameters

    @property
    def deadline_s(self) -> float:
        return self._round.deadline_s

    @property
    def submitted(self) -> bool:
        return self._round.submitted

    @property
    def reported(self) -> bool:
        return self._round.reported

    def report(self, metrics: Mapping[str, float], *, num_examples: int) -> None:
        self._loop.call(self._round.report(metrics, num_examples=num_examples))

    def submit(
        self, weights: Sequence[npt.ArrayLike], *, num_examples: int, metrics: Mapping[str, float] | None = None
    ) -> None:
        self._loop.call(self._round.submit(weights, num_examples=num_examples, metrics=metrics))

    def verdict(self) -> Verdict:
        return self._loop.call(self._round.verdict())


class SyncTask:
    """What a script sees of its task: as `edgeai.worker.task.Task`, without await."""

    def __init__(self, task: Task, loop: BackgroundLoop) -> None:
        self._task, self._loop = task, loop
        self.name, self.node, self.worker, self.role = task.name, task.node, task.worker, task.role
        self.parameters: Mapping[str, Any] = task.parameters
        self.dataset: DatasetAtHand | None = task.dataset
        self.output_dir, self.log = task.output_dir, task.log

    def rounds(self) -> Iterator[SyncRound]:
        """The rounds this worker is asked to join, the newest first if it was away, until the task ends."""
        rounds = self._task.rounds()
        while (round_ := self._loop.call(_next(rounds))) is not None:
            yield SyncRound(round_, self._loop)

    @property
    def round(self) -> int:
        return self._task.round

    @property
    def models(self) -> tuple[LocalModel, ...]:
        return self._task.models

    @property
    def base_model(self) -> LocalModel | None:
        return self._task.base_model

    def report(
        self, metrics: Mapping[str, float], *, model: NewModel | LocalModel | None = None, format: str = ""
    ) -> None:
        self._loop.call(self._task.report(metrics, model=model, format=format))

    def serve(self, *, predict: Predict, load: Load | None = None, batched: bool = True) -> None:
        self._loop.call(self._task.serve(predict=predict, load=load, batched=batched))

    def infer(self, x: Any, *, id: str | None = None, deadline_s: float | None = None) -> Answer:
        return self._loop.call(self._task.infer(x, id=id, deadline_s=deadline_s))

    def correction(self, answer: Answer) -> Answer | None:
        """As `await answer.correction()`."""
        return self._loop.call(answer.correction())

    def until_stopped(self) -> None:
        self._loop.call(self._task.until_stopped())

    def examples(self, *, batch_size: int = 32, path: str | Path | None = None) -> Iterator[Columns]:
        batches = self._task.examples(batch_size=batch_size, path=path)
        while (batch := self._loop.call(_next(batches))) is not None:
            yield batch


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)


class join_sync:  # noqa: N801 (reads as a verb where it is used)
    """Join the task that this process was started for: `with edgeai.join_sync() as task`. Otherwise as `edgeai.join`."""

    def __init__(self) -> None:
        self._join, self._stack, self._loop = join(), ExitStack(), BackgroundLoop()

    def __enter__(self) -> SyncTask:
        with ExitStack() as stack:
            stack.enter_context(ended_by_sigterm())
            stack.enter_context(self._loop)
            task = self._loop.call(self._join.__aenter__())
            self._stack = stack.pop_all()
        return SyncTask(task, self._loop)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self._loop.call(self._join.__aexit__(exc_type, exc, trace))
