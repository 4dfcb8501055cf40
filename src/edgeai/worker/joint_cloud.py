"""The cloud worker of a joint inference service: it answers what the edges find hard, many at a time.

Replicas are a group on the bus: each message reaches one of them. Requests of any edge wait in one bounded queue; together are
answered as many as the spec's batch says, and the first waits for others no longer than it says. Inputs of equal form are one
batch for predict (`batches`), others go one by one. An async predict that takes one input (`batched=False`) is run for several
at once: a worker in front of an HTTP API. What is late is dropped and counted; what finds the queue full, or would be late, is
refused at once, so that its edge answers itself. A replica whose predict hangs leaves the group and ends: its controller starts
it again.

The model and the script are in `serving`, the queue is in `joint_queue`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import structlog

from edgeai.bus.base import Bus, Delivery
from edgeai.bus.routing import Seldom
from edgeai.errors import EdgeaiError, MalformedEvent
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import (
    InferenceAnswered,
    InferencesForwarded,
    InferencesReturned,
    Inferring,
    ReturnedInference,
)
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.events.values import pack, unpack
from edgeai.launcher.slots import SessionFile
from edgeai.store.identity import new_id
from edgeai.worker.batches import form_of_input, stacked
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.figures import Figures
from edgeai.worker.joint_applications import failure
from edgeai.worker.joint_counts import Counts, Teller
from edgeai.worker.joint_failures import Failures
from edgeai.worker.joint_queue import Asked, Busy, Queue
from edgeai.worker.joint_work import FLUSH_S, STOP_S, Background, end_process, service_of
from edgeai.worker.outgoing import Outgoing
from edgeai.worker.predicting import Found, Load, Loaded, Predict
from edgeai.worker.serving import ModelServer
from edgeai.worker.spans import RequestSpans, traced

GROUP = "replicas"
HANGS_S, FIRST_HANGS_S, WATCH_S = 5.0, 60.0, 1.0
"""How long after the last deadline of a batch its predict is held for stuck; the first one may build something."""
EXIT_STUCK = 1
_LOOK_S = 0.01


class JointCloud:
    def __init__(self, environment: WorkerEnvironment, bus: Bus) -> None:
        """Reads the slot directory. Raises DamagedFile if what it asks for is no joint inference."""
        self.environment, self._bus = environment, bus
        self.slot_file = environment.slot.read_slot()
        self._work, spec = service_of(self.slot_file, environment)
        self._spec = spec.cloud_worker
        self.log = structlog.get_logger().bind(task=environment.task, worker=environment.worker)
        self._server = ModelServer(environment, bus, name=self._spec.model.name if self._spec.model else "")
        self._counts = Counts(environment.slot.path)
        self._failures = Failures(environment.worker)
        self._spans = RequestSpans(environment, self.slot_file.assignment.task_name)
        self._queue = Queue(self._spec.batch.max_size)
        self._busy = Busy()
        self._answered_s = Figures()
        self._outgoing: Outgoing[ReturnedInference] = Outgoing(
            bus, self._encoded, lambda _, __: None, sent=lambda size_bytes: self._counts.add("bytes_sent", size_bytes)
        )
        self._running: set[asyncio.Task[None]] = set()
        self._under_way: dict[bytes, Asked] = {}
        self._has_answered = False
        self._background = Background()
        self._seldom = Seldom()

    # --- what the script does

    async def serve(self, predict: Predict, load: Load | None, batched: bool) -> None:
        """Returns when a model serves; from then on requests are answered. Raises Refused: called twice."""
        if self._work.has_model:
            await self._server.serve(predict, load, batched)
        else:
            await self._server.serve_without(predict, load, batched)
        self._server.changed.set()

    async def until_stopped(self) -> None:
        await self._background.stopped()

    async def stop(self, wait_s: float = STOP_S) -> None:
        """Take no more requests; returns when those that were taken are answered, or told that nobody will."""
        await self._background.end("requests")
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._queue.waiting or self._under_way:  # noqa: ASYNC110 - once, at the end
                    await asyncio.sleep(_LOOK_S)
        await self._background.end("answers")
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for asked in (*self._queue.emptied(), *self._under_way.values()):
            stops = f"{self.environment.worker} stops"
            self._reply(asked, InferenceAnswered(error=stops, error_kind="failed", id=asked.id))
        self._under_way.clear()
        await self._outgoing.flush(FLUSH_S)

    # --- requests come

    async def _receive(self) -> None:
        """Raises BusError if the server refuses the subscription."""
        await self._server.ready()
        pattern = Pattern(None, Direction.UP, EventClass.REQUEST, InferencesForwarded.kind, self.environment.task, None)
        async with self._bus.subscribe(pattern, group=GROUP) as deliveries:
            async for delivery in deliveries:
                self._counts.add("bytes_received", len(delivery.payload))
                try:
                    self._take(delivery)
                except MalformedEvent as error:
                    if self._seldom.due():
                        self.log.warning("event_refused", subject=delivery.address.subject(), reason=str(error))

    def _take(self, delivery: Delivery) -> None:
        event = decode(delivery.payload).event
        if not isinstance(event, InferencesForwarded):
            raise MalformedEvent(f"{event.kind} where requests are expected")
        now_s = asyncio.get_running_loop().time()
        to = Address(
            delivery.address.node,
            Direction.DOWN,
            EventClass.REQUEST,
            InferencesReturned.kind,
            self.environment.task,
            delivery.address.worker,
        )
        for forwarded in event.requests:
            request = forwarded.request
            until_s, trace = now_s + request.deadline_s, forwarded.trace
            asked = Asked(to, forwarded.correlation, request.id, request.content, now_s, until_s, trace)
            if full := self._queue.put(asked, now_s):
                self._counts.add("shed")
                self._reply(asked, InferenceAnswered(error=full, error_kind="overloaded", id=asked.id))

    # --- and are answered

    async def _work_off(self) -> None:
        """One batch after the other; or, with an async predict for one input, as many requests at once as a batch has."""
        await self._server.ready()
        places = asyncio.Semaphore(self._spec.batch.max_size)
        while True:
            if self._server.concurrent:
                await places.acquire()
                task = asyncio.create_task(self._alone(await self._queue.next()))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                task.add_done_callback(lambda _: places.release())
                continue
            size = self._spec.batch.max_size if self._server.batched else 1
            batch = await self._queue.batch(size, self._spec.batch.max_wait_seconds if size > 1 else 0.0)
            began_s = time.monotonic()
            self._under_way = {asked.correlation: asked for asked in batch}
            with self._busy.working(len(batch)):
                await self._answer(batch)
            self._under_way = {}
            self._has_answered = True
            self._queue.took(time.monotonic() - began_s)

    async def _watch(self) -> None:
        """End the process if what a batch waits for does not end: others would wait for it in vain."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._server.concurrent or not self._under_way:
                continue
            patience_s = HANGS_S if self._has_answered else FIRST_HANGS_S
            last_s = max(asked.until_s for asked in self._under_way.values())
            if asyncio.get_running_loop().time() > last_s + patience_s:
                await self._give_up(patience_s)

    async def _give_up(self, patience_s: float) -> None:
        self.log.error(
            "replica_stuck",
            reason=f"predict has not returned {patience_s:g} s after the last deadline",
            exit_code=EXIT_STUCK,
        )
        await self.stop(0)
        await asyncio.to_thread(self._counts.save)
        end_process(EXIT_STUCK)

    async def _answer(self, batch: Sequence[Asked]) -> None:
        groups: dict[Any, list[tuple[Asked, Any]]] = {}
        for asked in batch:
            try:
                x = unpack(asked.content)
            except MalformedEvent as error:
                self._failed(asked, error)
                continue
            form = form_of_input(x)
            groups.setdefault(form if form is not None else id(asked), []).append((asked, x))
        for group in groups.values():
            if len(group) == 1 or not await self._answered_together(group):
                for asked, x in group:
                    await self._answer_one(asked, x)

    async def _answered_together(self, group: list[tuple[Asked, Any]]) -> bool:
        """False: something is wrong with one of them, and each is to be asked alone."""
        try:
            batch = stacked([x for _, x in group])
            served, found = await self._server.answers(batch, len(group), group[0][1])
        except Exception as error:  # noqa: BLE001 - predict is the script's: anything may come
            self.log.debug("batch_taken_apart", count=len(group), cause=str(error))
            return False
        for (asked, _), each in zip(group, found, strict=True):
            self._succeeded(asked, served, each)
        return True

    async def _answer_one(self, asked: Asked, x: Any) -> None:
        if asked.until_s < asyncio.get_running_loop().time():
            self._counts.add("late")
            return
        try:
            served, found = await self._server.answer(x)
        except Exception as error:  # noqa: BLE001 - predict is the script's: anything may come
            self._failed(asked, error)
        else:
            self._succeeded(asked, served, found)

    async def _alone(self, asked: Asked) -> None:
        """Of several at once. Nobody waits for what is late, so it is cancelled then."""
        self._under_way[asked.correlation] = asked
        with self._busy.working(1, of=self._spec.batch.max_size):
            try:
                async with asyncio.timeout_at(asked.until_s) as limit:
                    served, found = await self._server.answer(unpack(asked.content))
            except Exception as error:  # noqa: BLE001 - predict is the script's: anything may come
                if isinstance(error, TimeoutError) and limit.expired():
                    self._counts.add("late")
                    self._under_way.pop(asked.correlation, None)
                else:
                    self._failed(asked, error)
            else:
                self._succeeded(asked, served, found)

    def _succeeded(self, asked: Asked, served: Loaded, found: Found) -> None:
        try:
            content = pack(found.prediction)
        except EdgeaiError as error:
            self._failed(asked, error)
            return
        now_s = asyncio.get_running_loop().time()
        self._counts.add("late" if now_s > asked.until_s else "inferences")
        self._counts.asked(served.model.digest)
        self._answered_s.answered(now_s, now_s - asked.since_s, hard=False)
        answer = InferenceAnswered(
            content=content,
            by="cloud",
            model=served.model.name,
            version=served.model.version,
            digest=served.model.digest,
            seconds=now_s - asked.since_s,
            id=asked.id,
        )
        self._reply(asked, answer)

    def _failed(self, asked: Asked, error: Exception) -> None:
        self._counts.add("failed")
        self._reply(asked, failure(error, asked.id, self._failures.told))

    def _reply(self, asked: Asked, answer: InferenceAnswered) -> None:
        self._under_way.pop(asked.correlation, None)
        if (request := traced(asked.trace, asked.correlation)) is not None:
            self._spans.answered(request, asyncio.get_running_loop().time() - asked.since_s, answer)
        # Late ones too: the edge counts them, and may pass them on as corrections.
        until_s = asyncio.get_running_loop().time() + 1.0
        returned = ReturnedInference(asked.correlation, answer)
        if not self._outgoing.put(asked.to, returned, len(answer.content), until_s) and self._seldom.due():
            self.log.warning("answer_dropped", reason="too many bytes wait for the server")

    def _encoded(self, answers: Sequence[ReturnedInference]) -> bytes:
        me = self.environment
        return encode(Envelope(Header(me.source), InferencesReturned(tuple(answers)), new_id(), time.time(), me.task))

    # --- beside that

    def figures(self) -> Inferring:
        now_s = asyncio.get_running_loop().time()
        p50_s, p99_s = self._answered_s.percentiles(now_s)
        noted = self._counts.noted()
        busy, batch = self._busy.told(time.monotonic())
        return Inferring(
            digest=self._server.serving.model.digest if self._server.serving else "",
            counts=noted.counts,
            models=noted.models,
            refused_models=dict(self._server.refused),
            cloud_p50_s=p50_s,
            cloud_p99_s=p99_s,
            waiting=self._queue.waiting,
            busy=busy,
            batch=batch,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.environment.slot.write_session, SessionFile())
        self._queue.on_late = lambda count: self._counts.add("late", count)
        teller = Teller(self.environment, self._bus, self._counts, self._server.changed)

        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "requests": self._receive,
            "answers": self._work_off,
            "sending": self._outgoing.run,
            "watch": self._watch,
            "signal": partial(teller.run, self.figures),
        }
        async with self._server.running():
            try:
                async with self._background.running(parts):
                    try:
                        yield
                    finally:
                        await self.stop()
            finally:
                self._counts.save()
