"""The inference worker of an incremental learning job: answers without a pause while models come, go and fail.

`models/serving.json` names the model to serve (`launcher.slots.ServingFile`). A new one is loaded and checked beside the one
that serves, in another thread; then a reference is swapped between two requests. The model before stays in memory: when the
new one raises, or answers what is no answer (`answers`), the same request is answered by the one before, which takes over
again. What would not serve is named, with the reason, in the signal `Serving`. Hard examples are on disk (`hard_log`) before
their answer is returned.

Requests are answered one at a time, in the order of their calls. The script's load and predict are its own business.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edgeai.bus.base import Bus
from edgeai.crashpoints import crash_point
from edgeai.errors import BusError, DamagedFile, ModelError, NotFound, Refused, StoreError
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import ServeModel, Serving
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.launcher.slots import ServingFile, SessionFile, read_serving, write_serving
from edgeai.store.files import digest_bytes, digest_of
from edgeai.store.identity import new_id
from edgeai.worker.answers import Form, as_json, fits, joined, shown
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.examples import Columns, Growing
from edgeai.worker.figures import Figures
from edgeai.worker.hard_log import HardLog, sync
from edgeai.worker.mining import Mining
from edgeai.worker.models import LocalModel
from edgeai.worker.predicting import Found, Load, Loaded, Predict, Script, in_pool, sentence, short_turns
from edgeai.worker.trial import Trial

POLL_S, TELL_S, SYNC_S = 0.2, 1.0, 1.0
MAX_CANARIES, MAX_RECENT = 32, 4
CANARY_PAUSE_S = 0.005
"""Requests that waited for a canary's answer are answered before the next one is asked."""
_RECENT_S = 1.0
MAX_REFUSED, MAX_REASON, MAX_ID = 16, 300, 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model made of one input.

    Attributes:
        prediction: what predict returned for this input, without the batch axis, with NumPy arrays.
        hard, score: whether the job's mining calls it hard, and the score by which it does.
        model: the model that answered: `digest`, `version`, `path`, `format`.
        seconds: from the call of `infer` to the answer, waiting for its turn included.
        id: the given one, else one made of the content of the input.
    """

    prediction: Any
    hard: bool
    score: float
    model: LocalModel
    seconds: float
    id: str


class _AnotherForm(ModelError):
    def __init__(self, found: Found, known: Form | None) -> None:
        super().__init__(f"it answers {shown(found.form)}, the model before it {shown(known)}")
        self.found = found


class Inference:
    """Everything between the bus, the slot directory and the script."""

    def __init__(self, environment: WorkerEnvironment, bus: Bus) -> None:
        """Reads the slot directory. Raises DamagedFile if its slot.json is missing or damaged."""
        self.environment, self._bus = environment, bus
        self.slot_file = environment.slot.read_slot()
        self.log = structlog.get_logger().bind(task=environment.task, worker=environment.worker)
        self._models = environment.slot.models
        self._script: Script | None = None
        self._mining: Mining | None = None
        self._hard_log: HardLog | None = None
        self._trial = Trial(environment.slot.path)
        self._serving: Loaded | None = None
        self._before: Loaded | None = None
        self._form: Form | None = None
        """of the answers of the models that were trusted so far"""
        self._refused: dict[str, str] = {}
        self._recent: deque[Any] = deque(maxlen=MAX_RECENT)
        self._recent_s = -_RECENT_S
        self._figures = Figures()
        self._turn = asyncio.Lock()
        self._answering = ThreadPoolExecutor(1, "edgeai-predict")
        self._loading = ThreadPoolExecutor(1, "edgeai-load")
        self._seen: tuple[int, int, int] | None = None
        self._told_missing = ""
        self._wake, self._change, self._serves, self._called = (asyncio.Event() for _ in range(4))

    # --- what the script does

    async def serve(self, predict: Predict, load: Load | None, batched: bool) -> None:
        """Returns when a model serves. Raises Refused: called twice, or the job's mining cannot be done here."""
        if self._script is not None:
            raise Refused("task.serve was called already: one worker serves one model at a time")
        if not callable(predict) or not (load is None or callable(load)):
            raise Refused(
                "task.serve takes functions: predict(model, inputs) and, unless it is a list of arrays, load(model)"
            )
        work = self.slot_file.assignment.work
        if work is not None and work.mining:
            self._mining = Mining(work.mining, work.mining_parameters)
        self._hard_log = await asyncio.to_thread(HardLog, self.environment.slot.hard)
        self._script = Script(load or _arrays_of, predict, batched)
        self._called.set()
        await self._serves.wait()

    async def infer(self, x: Any, id: str | None) -> Answer:
        """Raises what predict raises for this input, ModelError if it gives no answer, Refused before `serve`."""
        if self._serving is None:
            raise Refused("no model serves yet: call await task.serve(load=..., predict=...) first")
        if id is not None and not (isinstance(id, str) and 0 < len(id) <= MAX_ID and id.isprintable()):
            raise Refused(f"an id is printable text of at most {MAX_ID} characters, not {str(id)[:50]!r}")
        began_s = time.monotonic()
        async with self._turn:
            try:
                served, found = await self._answer(x, id)
            except Exception:
                self._figures.not_answered()
                raise
            ended_s = time.monotonic()
            self._figures.answered(ended_s, ended_s - began_s, found.hard)
            self._remember(x, ended_s)
        return Answer(found.prediction, found.hard, found.score, served.model, ended_s - began_s, found.id)

    async def examples(self, batch_size: int, path: str | Path | None) -> AsyncIterator[Columns]:
        """Raises Refused: there is no file to follow, or it cannot be read by rows."""
        if batch_size < 1:
            raise Refused(f"batch_size must be at least 1, not {batch_size}")
        chosen = path or self.slot_file.dataset_path
        if not chosen:
            raise Refused(
                "this worker has no dataset to follow: give task.examples(path=...), or call task.infer for each input"
            )
        place = self.environment.slot.path / "examples.json"
        growing = await asyncio.to_thread(lambda: Growing(Path(chosen).absolute(), place))
        async for batch in growing.batches(batch_size):
            yield batch

    # --- one request

    async def _answer(self, x: Any, id_: str | None) -> tuple[Loaded, Found]:
        served, before = self._serving, self._before
        assert served is not None
        try:
            found = await self._ask(served, x, id_, self._form if before else None)
        except Exception as error:
            if before is None:
                raise
            return await self._second_opinion(served, before, x, id_, error)
        if before is None:
            self._form = joined(self._form, found.form) if self._form else found.form
        return served, found

    async def _second_opinion(
        self, served: Loaded, before: Loaded, x: Any, id_: str | None, wrong: Exception
    ) -> tuple[Loaded, Found]:
        """Is it the model, or the input? Where the model before answers, it is the model, and that one serves again."""
        try:
            found = await self._ask(before, x, id_, None)
        except Exception:  # noqa: BLE001 - whatever the script raises: both cannot, so the input is to blame
            raise wrong from None
        self._form = joined(self._form, found.form) if self._form else found.form
        if isinstance(wrong, _AnotherForm) and fits(self._form, wrong.found.form):
            return served, await self._ask(served, x, id_, self._form)
        await self._fall_back(served, before, sentence(wrong))
        return before, found

    async def _ask(self, loaded: Loaded, x: Any, id_: str | None, known: Form | None) -> Found:
        """A checked answer, mined, and kept if it is hard. Raises what is wrong with it."""

        def then(found: Found) -> Found:
            if not fits(known, found.form):
                raise _AnotherForm(found, known)
            return self._mined(x, id_, found)

        assert self._script is not None
        return await self._script.ask(loaded, x, self._answering, then)

    def _mined(self, x: Any, id_: str | None, found: Found) -> Found:
        """In the thread that answers. Whatever goes wrong here, there is an answer."""
        try:
            return self._looked_at(x, id_, found)
        except Exception as error:  # noqa: BLE001 - an input may be anything, and so may its repr
            if self._hard_log is not None:
                self._hard_log.not_kept(f"{type(error).__name__}: {error}")
            return replace(found, id=id_ or new_id().hex())

    def _looked_at(self, x: Any, id_: str | None, found: Found) -> Found:
        content = _npy(x) if id_ is None else None
        name = id_ if id_ is not None else _id_of(content, x)
        if self._mining is None:
            return replace(found, id=name)
        hardness = self._mining.look(found.prediction, name)
        if hardness.hard:
            self._keep(name, content or _npy(x), found.prediction, hardness.score)
        return replace(found, hard=hardness.hard, score=hardness.score, id=name)

    def _keep(self, name: str, content: bytes | None, prediction: Any, score: float) -> None:
        """When it returns, the example survives the end of this process; what cannot be kept is counted and told."""
        assert self._hard_log is not None
        if content is None:
            self._hard_log.not_kept("its input is no array")
            return
        predicted = as_json(prediction)
        record = {"id": name, "time": time.time(), "input": content, "predicted": predicted, "score": score}
        if self._hard_log.append(record):
            crash_point("worker.hard_example_kept")

    async def _fall_back(self, bad: Loaded, before: Loaded, reason: str) -> None:
        self._serving, self._before = before, None
        self._refuse(bad.model, reason)
        self.log.error("model_fell_back", model=bad.model.digest[:12], serving=before.model.digest[:12], reason=reason)
        await self._remember_served()
        await asyncio.to_thread(self._trial.end)

    def _remember(self, x: Any, now_s: float) -> None:
        """A few of the last inputs, for new models to answer."""
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
        slot, tried = self.environment.slot, self._trial.note
        last, wanted = read_serving(slot.path), read_serving(self._models)
        if tried is not None and wanted is not None and wanted.model.blob.digest == tried.digest:
            last = tried.before  # it may have been swapped in when it ended the process
        if last is None or wanted is None or last.model.blob.digest == wanted.model.blob.digest:
            return
        if not LocalModel.of(slot, last.model).path.exists():
            return
        await self._take_up(replace(last, canary=wanted.canary))
        if self._serving is not None and tried is not None and self._trial.is_over:
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

    @property
    def _answered(self) -> int:
        return self._figures.requests - self._figures.failed

    async def _take_up(self, wanted: ServingFile) -> bool:
        """Serve this model, or name what is wrong with it. False: its file is not here yet."""
        model = LocalModel.of(self.environment.slot, wanted.model, wanted.version)
        serving, before = self._serving, self._before
        if serving is not None and serving.model.digest == model.digest:
            self._serving = replace(serving, model=model)
            await self._remember_served()
            return True
        self._refused.pop(model.digest, None)
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
        async with self._turn:
            self._before = None
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
            await asyncio.to_thread(self._trial.end)
            await self._bring_back(back)
            return True
        await self._swap(candidate)
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
        async with self._turn:
            self._before = replace(before, content=content)

    def _tell_missing(self, model: LocalModel) -> None:
        if self._told_missing != model.digest:
            self._told_missing = model.digest
            self.log.warning("model_awaited", model=model.digest[:12], reason=f"{model.path.name} is not there yet")

    async def _swap(self, candidate: Loaded) -> None:
        async with self._turn:
            self._before, self._serving = self._serving, candidate
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
        canaries = await asyncio.to_thread(self._canaries, wanted.canary)
        known = self._form
        for x in [*canaries, *self._recent]:
            known = await self._compared(candidate, x, known)
            await asyncio.sleep(CANARY_PAUSE_S)
        self._form = joined(self._form, known) if self._form and known else known or self._form
        return candidate

    async def _compared(self, candidate: Loaded, x: Any, known: Form | None) -> Form | None:
        """The form of answers, with one more input. Raises ModelError if the candidate does not answer as the serving model.

        An input that the serving model cannot answer says nothing: held-out inputs may not look as the script's do. For the
        same reason the first model of all need not answer them; if it does, then finitely.
        """
        script, serving = self._script, self._serving
        assert script is not None
        try:
            if serving is not None:
                async with self._turn:
                    expected = await script.ask(serving, x, self._answering)
                known = joined(known, expected.form) if known else expected.form
        except Exception as error:  # noqa: BLE001 - predict is the script's: anything may come
            self.log.debug("canary_left_out", cause=sentence(error))
            return known
        try:
            found = await script.ask(candidate, x, self._loading)
        except Exception as error:
            if serving is None and not isinstance(error, ModelError):
                self.log.debug("canary_left_out", cause=sentence(error))
                return known
            raise ModelError(f"it does not answer: {sentence(error)}") from error
        if serving is None:
            return joined(known, found.form) if known else found.form
        if not fits(known, found.form):
            raise ModelError(f"it answers {shown(found.form)}, the serving model {shown(known)}")
        return known

    def _canaries(self, name: str) -> list[Any]:
        """Held-out inputs that the controller put beside the models: npy, or npz whose first array they are."""
        if not name:
            return []
        path = self._models / Path(name).name
        try:
            found = np.load(path, allow_pickle=False)
            inputs = found if isinstance(found, np.ndarray) else found[found.files[0]]
            return list(inputs[:MAX_CANARIES])
        except (OSError, ValueError, IndexError, TypeError) as error:
            self.log.warning("canary_not_read", path=str(path), reason=str(error))
            return []

    def _refuse(self, model: LocalModel, reason: str) -> None:
        self._refused[model.digest] = reason[:MAX_REASON]
        while len(self._refused) > MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._change.set()

    async def _remember_served(self) -> None:
        self._change.set()
        if self._serving is None:
            return
        served = ServingFile(self._serving.given, self._serving.model.version)
        try:
            await asyncio.to_thread(write_serving, self.environment.slot.path, served)
            crash_point("worker.model_noted")
        except StoreError as error:
            self.log.warning("served_model_not_noted", reason=str(error))

    # --- what is told

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the serving file and tell figures in the background, until the context is left."""
        await asyncio.to_thread(self.environment.slot.write_session, SessionFile())
        work = [asyncio.create_task(each) for each in (self._follow(), self._tell(), self._sync(), self._listen())]
        try:
            yield
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            if self._hard_log is not None:
                self._answering.submit(self._hard_log.close)
            for pool in (self._answering, self._loading):
                pool.shutdown(wait=False)

    async def _listen(self) -> None:
        """The controller says that it wrote the serving file: a hint, so that nobody waits for the next look."""
        me = self.environment
        pattern = Pattern(me.node, Direction.LOCAL, EventClass.STATE, ServeModel.kind, me.task, None)
        async with self._bus.subscribe(pattern) as deliveries:
            async for _ in deliveries:
                self._wake.set()

    async def _tell(self) -> None:
        while True:
            self._change.clear()
            await self._publish(self.figures())
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_S):
                    await self._change.wait()

    async def _sync(self) -> None:
        """Hard examples outlast a loss of power, but for those of the last second; no request waits for the disk."""
        while True:
            await asyncio.sleep(SYNC_S)
            if self._hard_log is None:
                continue
            try:
                descriptor = await in_pool(self._answering, self._hard_log.unsynced)
                if descriptor is not None:
                    await asyncio.to_thread(sync, descriptor)
            except OSError as error:
                self.log.warning("hard_examples_not_synced", reason=str(error))

    def figures(self) -> Serving:
        p50_s, p99_s = self._figures.percentiles(time.monotonic())
        return Serving(
            digest=self._serving.model.digest if self._serving else "",
            requests=self._figures.requests,
            failed=self._figures.failed,
            hard=self._figures.hard,
            hard_rate=self._figures.hard_rate,
            p50_s=p50_s,
            p99_s=p99_s,
            refused=dict(self._refused),
            dropped=self._hard_log.dropped if self._hard_log else 0,
        )

    async def _publish(self, event: Serving) -> None:
        me = self.environment
        to = Address(me.node, Direction.LOCAL, event.event_class, event.kind, me.task, me.worker)
        try:
            await self._bus.publish(to, encode(Envelope(Header(me.source), event, new_id(), time.time(), me.task)))
        except BusError as error:
            self.log.debug("event_not_sent", kind=event.kind, cause=str(error))


def _arrays_of(model: LocalModel) -> Any:
    return model.load()


def _npy(x: Any) -> bytes | None:
    """An input in the npy format; None if it is no array without pickling, such as arrays of several shapes."""
    try:
        array = np.asarray(x)
    except (ValueError, TypeError):
        return None
    if array.dtype.hasobject:
        return None
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _id_of(content: bytes | None, x: Any) -> str:
    return digest_bytes(content if content is not None else repr(x).encode())[:32]
