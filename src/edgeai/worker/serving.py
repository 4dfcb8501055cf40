"""The model that a worker serves: answers go on without a pause while models come, go and fail.

`models/serving.json` names the model to serve (`launcher.slots.ServingFile`). A new one is loaded and checked beside the one
that serves, in another thread; then a reference is swapped between two requests. The model before stays in memory: when the
new one raises, or answers what is no answer (`answers`), the same request is answered by the one before, which takes over
again. What would not serve is named, with the reason, in `refused`.

Requests are answered one at a time, in the order of their calls, unless the script's predict is async and takes one input: then
several may be. One that is given up has its turn until the thread has really ended it. The script's load and predict are its
own business. Who asks, and what becomes of an answer, is that of `inference` (incremental learning), `joint_edge` and
`joint_cloud`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edgeai.bus.base import Bus, Delivery
from edgeai.crashpoints import crash_point
from edgeai.errors import DamagedFile, MalformedEvent, ModelError, NotFound, Refused, StoreError
from edgeai.events.address import Direction, EventClass, Pattern
from edgeai.events.catalogue import BlobRef, ModelFile, ServeModel
from edgeai.events.envelope import decode
from edgeai.launcher.slots import ServingFile, read_serving, write_serving
from edgeai.store.files import digest_of
from edgeai.worker.answers import Form, fits, joined, shown
from edgeai.worker.canaries import canaries, compared
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.models import LocalModel
from edgeai.worker.predicting import (
    Found,
    Load,
    Loaded,
    OneThread,
    Predict,
    Script,
    arrays_of,
    check_functions,
    nothing,
    sentence,
    short_turns,
)
from edgeai.worker.spans import WorkerSpans
from edgeai.worker.trial import Trial

POLL_S = 0.2
MAX_RECENT, _RECENT_S = 4, 1.0
MAX_REFUSED, MAX_REASON = 16, 300


class _AnotherForm(ModelError):
    def __init__(self, found: Found, known: Form | None) -> None:
        super().__init__(f"it answers {shown(found.form)}, the model before it {shown(known)}")
        self.found = found


class ModelServer:
    """Everything between the slot directory's models and the script.

    `refused`: models that would not serve, with the reason. `changed` is set when there is something to tell.
    """

    def __init__(self, environment: WorkerEnvironment, bus: Bus, *, name: str = "") -> None:
        """`name`: that of the Model resource, where it is known."""
        self._environment, self._bus, self._name = environment, bus, name
        self._spans = WorkerSpans(environment, environment.slot.read_slot().assignment)
        self._traces: dict[str, str] = {}
        """by digest of a model that is asked for: the span that it belongs to"""
        self.log = structlog.get_logger().bind(task=environment.task, worker=environment.worker)
        self._models = environment.slot.models
        self._script: Script | None = None
        self._trial, self._answered = Trial(environment.slot.path), 0
        self.serving: Loaded | None = None
        self.before: Loaded | None = None
        self._form: Form | None = None
        """of the answers of the models that were trusted so far"""
        self.refused: dict[str, str] = {}
        self._recent: deque[Any] = deque(maxlen=MAX_RECENT)
        self._recent_s = -_RECENT_S
        self.answering = OneThread("edgeai-predict")
        self._loading = ThreadPoolExecutor(1, "edgeai-load")
        self._seen: tuple[int, int, int] | None = None
        self._told_missing = ""
        self.changed = asyncio.Event()
        self._wake, self._serves, self._called = (asyncio.Event() for _ in range(3))

    # --- what the script does

    def check(self, predict: Predict, load: Load | None) -> None:
        """Raises Refused: called before, or no functions."""
        if self._script is not None:
            raise Refused("task.serve was called already: one worker serves one model at a time")
        check_functions(predict, load)

    async def serve(self, predict: Predict, load: Load | None, batched: bool) -> None:
        """Returns when a model serves. Raises Refused."""
        self.check(predict, load)
        self._script = Script(load or arrays_of, predict, batched)
        self._called.set()
        await self._serves.wait()

    async def serve_without(self, predict: Predict, load: Load | None, batched: bool) -> None:
        """No model of ours is needed: what `load` returns, or None, is what predict gets. Raises Refused, ModelError."""
        self.check(predict, load)
        self._script = script = Script(load or nothing, predict, batched)
        none = LocalModel(Path(), "", "", 0, self._name)
        self.serving = Loaded(none, ModelFile("", BlobRef("", 0)), await script.loaded(none, self._loading))
        self._serves.set()

    @property
    def concurrent(self) -> bool:
        """Whether several requests may be answered at the same time."""
        return self._script is not None and self._script.concurrent

    @property
    def batched(self) -> bool:
        return self._script is not None and self._script.batched

    async def ready(self) -> None:
        """Return when a model serves."""
        await self._serves.wait()

    # --- requests

    async def answer(self, x: Any, then: Callable[[Found], Found] | None = None) -> tuple[Loaded, Found]:
        """A checked answer, and who gave it; `then` goes on with it in the same thread.

        Raises what predict and `then` raise; ModelError if it gives no answer.
        """
        async with self._taking_turns():
            served, found = await self._answer(x, then)
            self._answered += 1
            self._remember(x)
        return served, found

    async def answers(self, batch: Any, count: int, first: Any) -> tuple[Loaded, list[Found]]:
        """Of several inputs that were made one batch, of which `first` is one. Raises what is wrong with any of the answers."""
        async with self._taking_turns():
            served, before = self.serving, self.before
            assert served is not None
            assert self._script is not None
            found = await self._script.ask_together(served, batch, count, self.answering)
            for each in found:
                if before is not None and not fits(self._form, each.form):
                    raise _AnotherForm(each, self._form)
                if before is None:
                    self._form = joined(self._form, each.form) if self._form else each.form
            self._answered += count
            self._remember(first)
        return served, found

    def _taking_turns(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext() if self.concurrent else self.answering.turn()

    async def _answer(self, x: Any, then: Callable[[Found], Found] | None) -> tuple[Loaded, Found]:
        served, before = self.serving, self.before
        assert served is not None
        try:
            found = await self._ask(served, x, then, self._form if before else None)
        except Exception as error:
            if before is None:
                raise
            return await self._second_opinion(served, before, x, then, error)
        if before is None:
            self._form = joined(self._form, found.form) if self._form else found.form
        return served, found

    async def _second_opinion(
        self, served: Loaded, before: Loaded, x: Any, then: Callable[[Found], Found] | None, wrong: Exception
    ) -> tuple[Loaded, Found]:
        """Is it the model, or the input? Where the model before answers, it is the model, and that one serves again."""
        try:
            found = await self._ask(before, x, then, None)
        except Exception:  # noqa: BLE001 - whatever the script raises: both cannot, so the input is to blame
            raise wrong from None
        self._form = joined(self._form, found.form) if self._form else found.form
        if isinstance(wrong, _AnotherForm) and fits(self._form, wrong.found.form):
            return served, await self._ask(served, x, then, self._form)
        await self._fall_back(served, before, sentence(wrong))
        return before, found

    async def _ask(self, loaded: Loaded, x: Any, then: Callable[[Found], Found] | None, known: Form | None) -> Found:
        """Raises what is wrong with the answer."""

        def checked(found: Found) -> Found:
            if not fits(known, found.form):
                raise _AnotherForm(found, known)
            return then(found) if then is not None else found

        assert self._script is not None
        return await self._script.ask(loaded, x, self.answering, checked)

    async def _fall_back(self, bad: Loaded, before: Loaded, reason: str) -> None:
        if self.serving is not bad:
            return  # another request was first
        self.serving, self.before = before, None
        self._refuse(bad.model, reason)
        self.log.error("model_fell_back", model=bad.model.digest[:12], serving=before.model.digest[:12], reason=reason)
        await self._remember_served()
        await asyncio.to_thread(self._trial.end)

    def _remember(self, x: Any) -> None:
        """A few of the last inputs, for new models to answer."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._recent_s >= _RECENT_S:
            self._recent_s = now_s
            self._recent.append(np.array(x) if isinstance(x, np.ndarray) else x)

    # --- another model

    async def _follow(self) -> None:
        """Serve what the controller asks for, for ever. Whatever happens here, requests are answered."""
        await self._called.wait()
        try:
            await self._serve_the_last()
        except Exception:
            self.log.exception("last_model_not_served")
        while True:
            self._wake.clear()
            try:
                await self._look()
                if self._trial.look(time.monotonic(), self._answered):
                    await asyncio.to_thread(self._trial.end)
            except Exception:
                self.log.exception("serving_file_not_followed")
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()

    async def _serve_the_last(self) -> None:
        """After a restart: first what served before, so that another model has one to be compared with, and to fall back to."""
        slot, tried = self._environment.slot, self._trial.note
        last, wanted = read_serving(slot.path), read_serving(self._models)
        if tried is not None and wanted is not None and wanted.model.blob.digest == tried.digest:
            last = tried.before  # it may have been swapped in when it ended the process
        if last is None or wanted is None or last.model.blob.digest == wanted.model.blob.digest:
            return
        if not LocalModel.of(slot, last.model).path.exists():
            return
        await self._take_up(replace(last, canary=wanted.canary))
        if self.serving is not None and tried is not None and self._trial.is_over:
            self._blame(LocalModel.of(slot, wanted.model), tried.tries)

    def _blame(self, model: LocalModel, tries: int) -> None:
        self._trial.blamed = model.digest
        reason = f"the worker ended {tries} times while it loaded this model or had just begun to serve it"
        self._refuse(model, reason)
        self.log.error("model_refused", **model.named(), reason=reason)

    async def _look(self) -> None:
        try:
            found = (self._models / "serving.json").stat()
        except OSError:
            return
        seen = found.st_ino, found.st_mtime_ns, found.st_size
        if seen == self._seen:
            return
        wanted = await asyncio.to_thread(read_serving, self._models)
        if wanted is None:
            return
        if self._trial.note is not None and self._trial.note.digest != wanted.model.blob.digest:
            await asyncio.to_thread(self._trial.end)  # the controller has gone on to another one
        if wanted.model.blob.digest == self._trial.blamed or await self._take_up(wanted):
            self._seen = seen

    async def _take_up(self, wanted: ServingFile) -> bool:
        """Serve this model, or name what is wrong with it. False: its file is not here yet."""
        began_s = time.time()
        model = LocalModel.of(self._environment.slot, wanted.model, wanted.version, self._name)
        serving, before = self.serving, self.before
        if serving is not None and serving.model.digest == model.digest:
            self.serving = replace(serving, model=model)
            await self._remember_served()
            return True
        self.refused.pop(model.digest, None)
        if before is not None and before.model.digest == model.digest:
            await self._swap(replace(before, model=model))  # it has served
            return True
        if not model.path.exists():
            self._tell_missing(model)
            return False
        if serving is not None:
            now_serves = ServingFile(serving.given, serving.model.version)
            await asyncio.to_thread(self._trial.begin, model.digest, now_serves)
        # Two models in memory, never three: the one before makes room for the new one.
        async with self.answering.turn():
            self.before = None
        back = before and replace(before, content=None)
        del before
        try:
            with short_turns():
                candidate = await self._candidate(model, wanted)
        except NotFound:
            await asyncio.to_thread(self._trial.end)
            self._tell_missing(model)
            return False
        except Exception as error:  # noqa: BLE001 - load and predict are the script's: anything may come
            reason = sentence(error)
            self._refuse(model, reason)
            self.log.error("model_refused", **model.named(), reason=reason)
            self._spans.deployed(model.digest, model.version, self._traces.get(model.digest, ""), began_s, reason)
            await asyncio.to_thread(self._trial.end)
            await self._bring_back(back)
            return True
        await self._swap(candidate)
        self._spans.deployed(model.digest, model.version, self._traces.get(model.digest, ""), began_s)
        return True

    async def _bring_back(self, before: Loaded | None) -> None:
        """Of the model before, which had made room: so that there is one to fall back to."""
        if before is None or not before.model.path.exists():
            return
        assert self._script is not None
        try:
            with short_turns():
                content = await self._script.loaded(before.model, self._loading)
        except ModelError as error:
            self.log.warning("model_before_not_loaded", model=before.model.digest[:12], reason=str(error))
            return
        async with self.answering.turn():
            self.before = replace(before, content=content)

    def _tell_missing(self, model: LocalModel) -> None:
        if self._told_missing != model.digest:
            self._told_missing = model.digest
            self.log.warning("model_awaited", model=model.digest[:12], reason=f"{model.path.name} is not there yet")

    async def _swap(self, candidate: Loaded) -> None:
        async with self.answering.turn():
            self.before, self.serving = self.serving, candidate
        self._trial.swapped(candidate.model.digest, time.monotonic(), self._answered)
        crash_point("worker.model_swapped")
        await self._remember_served()
        self._serves.set()
        self.log.info("model_serves", **candidate.model.named())

    async def _candidate(self, model: LocalModel, wanted: ServingFile) -> Loaded:
        """Load a model and have it answer. Raises what is wrong with it; NotFound: its file is not here."""
        found = await asyncio.to_thread(digest_of, model.path)
        if found != model.digest:
            raise DamagedFile(model.path, f"its digest is {found[:12]}, not {model.digest[:12]}")
        assert self._script is not None
        candidate = Loaded(model, wanted.model, await self._script.loaded(model, self._loading))
        inputs = await asyncio.to_thread(canaries, self._models, wanted.canary)
        known = self._form
        for x in [*inputs, *self._recent]:
            known = await self._compared(candidate, x, known)
        self._form = joined(self._form, known) if self._form and known else known or self._form
        return candidate

    async def _compared(self, candidate: Loaded, x: Any, known: Form | None) -> Form | None:
        script, serving = self._script, self.serving
        assert script is not None

        async def by_serving() -> Found:
            assert serving is not None
            async with self._taking_turns():
                return await script.ask(serving, x, self.answering)

        return await compared(by_serving if serving else None, lambda: script.ask(candidate, x, self._loading), known)

    def _refuse(self, model: LocalModel, reason: str) -> None:
        self.refused[model.digest] = reason[:MAX_REASON]
        while len(self.refused) > MAX_REFUSED:
            del self.refused[next(iter(self.refused))]
        self.changed.set()

    async def _remember_served(self) -> None:
        self.changed.set()
        if self.serving is None:
            return
        served = ServingFile(self.serving.given, self.serving.model.version)
        try:
            await asyncio.to_thread(write_serving, self._environment.slot.path, served)
            crash_point("worker.model_noted")
        except StoreError as error:
            self.log.warning("served_model_not_noted", reason=str(error))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the serving file in the background, until the context is left."""
        work = [asyncio.create_task(each) for each in (self._follow(), self._listen())]
        try:
            yield
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            for pool in (self.answering, self._loading):
                pool.shutdown(wait=False)

    async def _listen(self) -> None:
        """The controller says that it wrote the serving file: a hint, so that nobody waits for the next look."""
        me = self._environment
        pattern = Pattern(me.node, Direction.LOCAL, EventClass.STATE, ServeModel.kind, me.task, None)
        async with self._bus.subscribe(pattern) as deliveries:
            async for delivery in deliveries:
                self._note_trace(delivery)
                self._wake.set()

    def _note_trace(self, delivery: Delivery) -> None:
        """A hint as the message itself: what is asked for is in the file."""
        try:
            envelope = decode(delivery.payload)
        except MalformedEvent:
            return
        if isinstance(envelope.event, ServeModel):
            self._traces = {envelope.event.model.blob.digest: envelope.trace}
