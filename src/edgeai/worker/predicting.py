"""Asking the functions that an inference script has given: load a model, predict with it. In threads, unless they are async.

What they return is made plain and checked here (`answers`); which model is asked, and what follows from a bad answer, is the
business of `serving`.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from edgeai.errors import DamagedFile, ModelError, Refused
from edgeai.events.catalogue import ModelFile
from edgeai.worker.answers import Form, form_of, is_finite, plain, with_batch_axis, without_batch_axis
from edgeai.worker.batches import parted
from edgeai.worker.models import LocalModel

Load = Callable[[LocalModel], Any]
Predict = Callable[[Any, Any], Any]
T = TypeVar("T")
A = ParamSpec("A")
SHORT_TURN_S = 0.0005


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory. `given` is how the controller named it."""

    model: LocalModel
    given: ModelFile
    content: Any


@dataclass(frozen=True, slots=True)
class Found:
    """An answer that is finite and plain, and what was found out about it."""

    prediction: Any
    form: Form
    hard: bool = False
    score: float = 0.0
    id: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """What a script gave to `task.serve`."""

    load: Load
    predict: Predict
    batched: bool

    @property
    def concurrent(self) -> bool:
        """Whether it may be asked for several inputs at the same time."""
        return not self.batched and is_async(self.predict)

    async def loaded(self, model: LocalModel, pool: ThreadPoolExecutor) -> Any:
        """Raises ModelError, whatever the script raises."""
        try:
            if is_async(self.load):
                return await self.load(model)
            return await in_pool(pool, lambda: self.load(model))
        except Exception as error:
            raise ModelError(f"it does not load: {sentence(error)}") from error

    async def ask(
        self, loaded: Loaded, x: Any, pool: ThreadPoolExecutor, then: Callable[[Found], Found] | None = None
    ) -> Found:
        """What the model makes of one input; `then` goes on with it in the same thread.

        Raises what predict and `then` raise; ModelError if the answer is none.
        """

        def finished(raw: Any) -> Found:
            found = self._checked(raw)
            return then(found) if then is not None else found

        batch = with_batch_axis(x) if self.batched else x
        if is_async(self.predict):
            raw = await self.predict(loaded.content, batch)
            return await in_pool(pool, lambda: finished(raw))
        return await in_pool(pool, lambda: finished(self.predict(loaded.content, batch)))

    async def ask_together(self, loaded: Loaded, batch: Any, count: int, pool: ThreadPoolExecutor) -> list[Found]:
        """What the model makes of several inputs that were made one batch. Raises what predict raises; ModelError."""

        def finished(raw: Any) -> list[Found]:
            return [_finite(each) for each in parted(plain(raw), count)]

        if is_async(self.predict):
            raw = await self.predict(loaded.content, batch)
            return await in_pool(pool, lambda: finished(raw))
        return await in_pool(pool, lambda: finished(self.predict(loaded.content, batch)))

    def _checked(self, raw: Any) -> Found:
        prediction = plain(raw)
        if self.batched:
            prediction = without_batch_axis(prediction)
        return _finite(prediction)


def _finite(prediction: Any) -> Found:
    if not is_finite(prediction):
        raise ModelError("its answer has values that are not finite")
    return Found(prediction, form_of(prediction))


def check_functions(predict: Any, load: Any) -> None:
    """Raises Refused."""
    if not callable(predict) or not (load is None or callable(load)):
        raise Refused(
            "task.serve takes functions: predict(model, inputs) and, unless it is a list of arrays, load(model)"
        )


def arrays_of(model: LocalModel) -> Any:
    return model.load()


def nothing(_model: LocalModel) -> None:
    return None


class OneThread(ThreadPoolExecutor):
    """A thread, and turns for those who use it.

    Who gives up does not end what the thread does for him: his turn lasts until it has really ended. So nothing piles up
    behind a function that hangs.
    """

    def __init__(self, name: str) -> None:
        super().__init__(1, name)
        self._turn = asyncio.Lock()
        self._last: Future[Any] | None = None

    def submit(self, function: Callable[A, T], /, *args: A.args, **named: A.kwargs) -> Future[T]:
        self._last = future = super().submit(function, *args, **named)
        return future

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        await self._turn.acquire()
        try:
            yield
        finally:
            if self._last is None or self._last.done():
                self._turn.release()
            else:
                loop = asyncio.get_running_loop()
                self._last.add_done_callback(lambda _: self._end_turn(loop))

    def _end_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits for a turn
            loop.call_soon_threadsafe(self._turn.release)


async def in_pool(pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function)


@contextmanager
def short_turns() -> Iterator[None]:
    """While a model is loaded and checked, its thread lets go of the interpreter soon when the one that answers wants it.

    A request changes threads several times, and each time waits for a turn, 5 ms by Python's default: at a few hundred requests
    a second they queue up behind a framework that builds a model in Python.
    """
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(min(before_s, SHORT_TURN_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before_s)


def is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def sentence(error: BaseException) -> str:
    """One line for people."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if isinstance(error, ModelError | DamagedFile) else f"{type(error).__name__}: {text}"
