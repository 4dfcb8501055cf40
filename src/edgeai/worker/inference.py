"""The inference worker of an incremental learning job: its script's requests are answered, and what is hard is kept.

Which model answers, and how another takes over, is in `serving`. Hard examples are on disk (`hard_log`) before their answer is
returned. Requests are answered one at a time, in the order of their calls.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edgeai.bus.base import Bus
from edgeai.crashpoints import crash_point
from edgeai.errors import BusError, Refused
from edgeai.events.address import Address, Direction
from edgeai.events.catalogue import Serving
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.launcher.slots import SessionFile
from edgeai.store.files import digest_bytes
from edgeai.store.identity import new_id
from edgeai.worker.answers import as_json
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.examples import Columns, Growing
from edgeai.worker.figures import Figures
from edgeai.worker.hard_log import HardLog, sync
from edgeai.worker.mining import Mining
from edgeai.worker.models import LocalModel
from edgeai.worker.predicting import Found, Load, Predict, in_pool
from edgeai.worker.serving import ModelServer

TELL_S, SYNC_S = 1.0, 1.0
MAX_ID = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model made of one input.

    Attributes:
        prediction: what predict returned for this input, without the batch axis, with NumPy arrays.
        hard, score: whether the job's mining calls it hard, and the score by which it does.
        model: the model that answered: `digest`, `version`, `path`, `format`; in a joint inference service its `name`. One in
            the cloud has no `path`.
        seconds: from the call of `infer` to the answer, waiting for its turn included.
        id: the given one, else one made of the content of the input.
        by: edge or cloud.
        fell_back: why the edge answers what is hard; empty: it is not, or the cloud has answered.
    """

    prediction: Any
    hard: bool
    score: float
    model: LocalModel
    seconds: float
    id: str
    by: str = "edge"
    fell_back: str = ""
    _late: asyncio.Future[Answer | None] | None = field(default=None, repr=False, compare=False)

    async def correction(self) -> Answer | None:
        """The cloud's answer, when it comes after this one and the service's policy asks for corrections; None: none comes."""
        return await asyncio.shield(self._late) if self._late is not None else None


class Inference:
    """Everything between the bus, the slot directory and the script."""

    def __init__(self, environment: WorkerEnvironment, bus: Bus) -> None:
        """Reads the slot directory. Raises DamagedFile if its slot.json is missing or damaged."""
        self.environment, self._bus = environment, bus
        self.slot_file = environment.slot.read_slot()
        self.log = structlog.get_logger().bind(task=environment.task, worker=environment.worker)
        self._server = ModelServer(environment, bus)
        self._mining: Mining | None = None
        self._hard_log: HardLog | None = None
        self._figures = Figures()

    # --- what the script does

    async def serve(self, predict: Predict, load: Load | None, batched: bool) -> None:
        """Returns when a model serves. Raises Refused: called twice, or the job's mining cannot be done here."""
        self._server.check(predict, load)
        work = self.slot_file.assignment.work
        if work is not None and work.mining:
            self._mining = Mining(work.mining, work.mining_parameters)
        self._hard_log = await asyncio.to_thread(HardLog, self.environment.slot.hard)
        await self._server.serve(predict, load, batched)

    async def infer(self, x: Any, id: str | None) -> Answer:
        """Raises what predict raises for this input, ModelError if it gives no answer, Refused before `serve`."""
        if self._server.serving is None:
            raise Refused("no model serves yet: call await task.serve(load=..., predict=...) first")
        check_id(id)
        began_s = time.monotonic()
        try:
            served, found = await self._server.answer(x, lambda found: self._mined(x, id, found))
        except Exception:
            self._figures.not_answered()
            raise
        ended_s = time.monotonic()
        self._figures.answered(ended_s, ended_s - began_s, found.hard)
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

    def _mined(self, x: Any, id_: str | None, found: Found) -> Found:
        """In the thread that answers. Whatever goes wrong here, there is an answer."""
        try:
            return self._looked_at(x, id_, found)
        except Exception as error:  # noqa: BLE001 - an input may be anything, and so may its repr
            if self._hard_log is not None:
                self._hard_log.not_kept(f"{type(error).__name__}: {error}")
            return replace(found, id=id_ or new_id().hex())

    def _looked_at(self, x: Any, id_: str | None, found: Found) -> Found:
        content = as_npy(x) if id_ is None else None
        name = id_ if id_ is not None else _id_of(content, x)
        if self._mining is None:
            return replace(found, id=name)
        hardness = self._mining.look(found.prediction, name)
        if hardness.hard:
            self._keep(name, content or as_npy(x), found.prediction, hardness.score)
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

    # --- what is told

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the serving file and tell figures in the background, until the context is left."""
        await asyncio.to_thread(self.environment.slot.write_session, SessionFile())
        async with self._server.running():
            work = [asyncio.create_task(each) for each in (self._tell(), self._sync())]
            try:
                yield
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)
                if self._hard_log is not None:
                    self._server.answering.submit(self._hard_log.close)

    async def _tell(self) -> None:
        while True:
            self._server.changed.clear()
            await self._publish(self.figures())
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_S):
                    await self._server.changed.wait()

    async def _sync(self) -> None:
        """Hard examples outlast a loss of power, but for those of the last second; no request waits for the disk."""
        while True:
            await asyncio.sleep(SYNC_S)
            if self._hard_log is None:
                continue
            try:
                descriptor = await in_pool(self._server.answering, self._hard_log.unsynced)
                if descriptor is not None:
                    await asyncio.to_thread(sync, descriptor)
            except OSError as error:
                self.log.warning("hard_examples_not_synced", reason=str(error))

    def figures(self) -> Serving:
        p50_s, p99_s = self._figures.percentiles(time.monotonic())
        return Serving(
            digest=self._server.serving.model.digest if self._server.serving else "",
            requests=self._figures.requests,
            failed=self._figures.failed,
            hard=self._figures.hard,
            hard_rate=self._figures.hard_rate,
            p50_s=p50_s,
            p99_s=p99_s,
            refused=dict(self._server.refused),
            dropped=self._hard_log.dropped if self._hard_log else 0,
        )

    async def _publish(self, event: Serving) -> None:
        me = self.environment
        to = Address(me.node, Direction.LOCAL, event.event_class, event.kind, me.task, me.worker)
        try:
            await self._bus.publish(to, encode(Envelope(Header(me.source), event, new_id(), time.time(), me.task)))
        except BusError as error:
            self.log.debug("event_not_sent", kind=event.kind, cause=str(error))


def check_id(id_: str | None) -> None:
    """Raises Refused."""
    if id_ is not None and not (isinstance(id_, str) and 0 < len(id_) <= MAX_ID and id_.isprintable()):
        raise Refused(f"an id is printable text of at most {MAX_ID} characters, not {str(id_)[:50]!r}")


def as_npy(x: Any) -> bytes | None:
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
