"""The edge worker of a joint inference service: it answers, asks the cloud about what is hard, and keeps every deadline.

The order of things for one request: refused by name, or because too many wait (`taken`); answered by the small model and
mined, or mined by its input; sent to the cloud if it is hard and the policy lets it; at the deadline there is an answer or an
error, whatever the cloud, the bus or the script's predict does.

Beside this: the model and the script in `serving`, the way to the cloud in `joint_offload`, applications in
`joint_applications`, what is no input in `joint_inputs`, sums and the signal in `joint_counts`, hard examples in `joint_feeds`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from edgeai.bus.base import Bus
from edgeai.errors import DeadlineMissed, ModelError, Overloaded, Refused
from edgeai.events.catalogue import Inferring
from edgeai.launcher.slots import SessionFile
from edgeai.learning.hard_examples import Hardness
from edgeai.resources.mining import MiningAlgorithm, described
from edgeai.store.files import digest_bytes
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.figures import Figures
from edgeai.worker.inference import Answer, check_id
from edgeai.worker.joint_applications import Applications, Request
from edgeai.worker.joint_counts import Counts, Teller
from edgeai.worker.joint_feeds import Example, Feeds, label_of
from edgeai.worker.joint_inputs import checked, packed
from edgeai.worker.joint_offload import Cloud, Fallback
from edgeai.worker.joint_scores import Judged, differs
from edgeai.worker.joint_work import Background, service_of
from edgeai.worker.mining import Mining
from edgeai.worker.predicting import Found, Load, Loaded, OneThread, Predict, in_pool
from edgeai.worker.serving import ModelServer

RESERVE_S, RESERVE_SHARE = 0.02, 0.1
"""Of a deadline for the way back of the cloud's answer: the smaller one."""
MAX_DEADLINE_S = 600.0
_LAST_TIMES, _LAST_MOMENT_S = 16, 0.001


class _Shed(Overloaded):
    """Refused for load, so that it is no inference."""


class JointEdge:
    def __init__(self, environment: WorkerEnvironment, bus: Bus) -> None:
        """Reads the slot directory. Raises DamagedFile if what it asks for is no joint inference."""
        self.environment, self._bus = environment, bus
        self.slot_file = environment.slot.read_slot()
        self._work, spec = service_of(self.slot_file, environment)
        self._spec = next((each for each in spec.edge_workers if each.name == environment.worker), spec.edge_workers[0])
        self._policy = spec.policy
        self._name = self._spec.model.name if self._spec.model else ""
        self._cloud_name = spec.cloud_worker.model.name if spec.cloud_worker.model else ""
        self.log = structlog.get_logger().bind(task=environment.task, worker=environment.worker)
        self._server = ModelServer(environment, bus, name=self._name)
        mining = self._spec.hard_example_mining
        self._counts = Counts(environment.slot.path, described(mining.algorithm, mining.values()))
        self._cloud = Cloud(environment, bus, self._policy, self._counts)
        self._applications = Applications(environment, bus, self.slot_file.assignment.task_name, self)
        self._mining: Mining | None = None
        self._miner, self._wait_for_miner = OneThread("edgeai-mine"), 0
        self._feeds: Feeds | None = None
        self._by_edge_s, self._by_cloud_s = Figures(), Figures()
        self._waiting = 0
        self._times: deque[float] = deque(maxlen=_LAST_TIMES)
        self._usual_s = self._last_end_s = 0.0
        self._background = Background()

    # --- what the script does

    async def serve(self, predict: Predict, load: Load | None, batched: bool) -> None:
        """Returns when a model serves. Raises Refused: called twice, or mining that cannot be done here."""
        self._server.check(predict, load)
        mining = self._spec.hard_example_mining
        self._mining = Mining(mining.algorithm, mining.values())
        if self._spec.feeds is not None:
            self._feeds = await asyncio.to_thread(Feeds, self.environment.slot.hard)
        if self._work.has_model:
            await self._server.serve(predict, load, batched)
        else:
            await self._server.serve_without(predict, load, batched)

    async def infer(self, x: Any, id: str | None, deadline_s: float | None) -> Answer:
        """Raises Refused, Overloaded, DeadlineMissed, and what predict raises for this input."""
        if self._server.serving is None:
            raise Refused("no model serves yet: call await task.serve(load=..., predict=...) first")
        late: asyncio.Future[Answer | None] | None = None
        on_late: Callable[[Answer | None], None] | None = None
        if self._policy.corrections:
            late = asyncio.get_running_loop().create_future()
            on_late = _setting(late)
        request = self.taken(x, None, id=id, deadline_s=deadline_s, model="", on_late=on_late)
        answer = await self.answer(request)
        return replace(answer, _late=late) if answer.fell_back and late is not None else answer

    async def until_stopped(self) -> None:
        await self._background.stopped()

    async def stop(self) -> None:
        """Take no more requests of applications; returns when those that were taken are answered, or told that nobody will."""
        await self._background.end("applications")
        await self._applications.finish()

    # --- taking a request

    def taken(
        self,
        x: Any,
        content: bytes | None,
        *,
        id: str | None,
        deadline_s: float | None,
        model: str,
        on_late: Callable[[Answer | None], None] | None,
    ) -> Request:
        """At once. Raises Refused: no input of the service; Overloaded; ModelError: nobody answers yet."""
        began_s = asyncio.get_running_loop().time()
        try:
            check_id(id)
            if model and model not in {self._name, self._cloud_name}:
                known = " and ".join(sorted({self._name, self._cloud_name} - {""})) or "none with a name"
                raise Refused(f"the service has no model {model[:60]}; its models are {known}")
            limit_s = _checked_deadline(deadline_s or self._policy.deadline_seconds)
            x = checked(x, self._spec.inputs)
            content = content if content is not None else packed(x)
        except Refused:
            self._counts.add("refused")
            raise
        if self._server.serving is None:
            raise ModelError(f"{self.environment.worker} serves no model yet: try again later")
        if not self._cloud_first_of(model):
            try:
                self._check_load(limit_s)
            except _Shed as error:
                self._counts.add("shed")
                raise Overloaded(str(error)) from None
        return Request(x, content, id or digest_bytes(content)[:32], began_s, began_s + limit_s, model, on_late)

    def _check_load(self, limit_s: float) -> None:
        """Raises _Shed: an answer of the edge would take longer than that, or too many wait."""
        # Those that wait, and itself; one that finds nobody waiting is tried.
        expected_s = 0.0 if self._server.concurrent or not self._waiting else (self._waiting + 1) * self._usual_s
        if self._waiting < self._policy.max_waiting and expected_s <= limit_s:
            return
        takes = f", which takes about {expected_s:.2g} s" if expected_s > limit_s else ""
        raise _Shed(f"{self._waiting} requests wait at {self.environment.worker}{takes}: try again later")

    def refused(self) -> None:
        self._counts.add("refused")

    # --- answering it

    async def answer(self, request: Request) -> Answer:
        """At the deadline at the latest. Raises DeadlineMissed, Overloaded, and what predict raises."""
        self._counts.add("inferences")
        limit = asyncio.timeout_at(request.deadline_s)
        try:
            async with limit:
                answer = await self._answered(request, limit)
        except _Shed as error:
            self._counts.add("inferences", -1)
            self._counts.add("shed")
            raise Overloaded(str(error)) from None
        except BaseException as error:
            self._counts.add("failed")
            if isinstance(error, TimeoutError) and limit.expired():
                took_s = request.deadline_s - request.began_s
                raise DeadlineMissed(f"{self.environment.worker} had no answer within {took_s:g} s") from error
            raise
        figures = self._by_cloud_s if answer.by == "cloud" else self._by_edge_s
        if answer.by == "cloud" or not answer.fell_back:
            figures.answered(asyncio.get_running_loop().time(), answer.seconds, answer.hard)
        return answer

    async def _answered(self, request: Request, limit: asyncio.Timeout) -> Answer:
        if self._cloud_first_of(request.model):
            hardness = await self._mined_input(request) if not request.model else Hardness(False, 0.0)
            judged = self._judged(None, hardness) if not request.model else None
            if hardness.hard or request.model:
                return await self._cloud_first(request, hardness, judged)
            self._check_load(request.deadline_s - asyncio.get_running_loop().time())
            self._cloud.not_asked()
            served, found = await self._by_edge(request, lambda found: replace(found, score=hardness.score))
            return self._of_edge(request, served, found)
        served, found = await self._by_edge(request, lambda found: self._mined(request.id, found))
        # There is an answer now, and what follows waits no longer than it may: a loop that lags must not make an error of it.
        limit.reschedule(None)
        judged = self._judged(served, Hardness(found.hard, found.score))
        if not found.hard:
            self._cloud.not_asked()
            return self._of_edge(request, served, found)
        self._counts.add("hard")
        if request.model:
            self._cloud.not_asked()
            await self._feed(request, found.prediction, found.score, None)
            return self._of_edge(request, served, found)
        reserve_s = min(RESERVE_S, RESERVE_SHARE * (request.deadline_s - request.began_s))
        outcome = await self._cloud.ask(request, request.deadline_s - reserve_s, Hardness(True, found.score))
        if isinstance(outcome, Answer):
            changed = differs(found.prediction, outcome.prediction)
            self._counts.scores.answered(judged, outcome.model.digest, changed)
            await self._feed(request, found.prediction, found.score, outcome.prediction)
            return outcome
        await self._feed(request, found.prediction, found.score, None)
        self._check_fallback(request, outcome)
        self._counts.add("fell_back")
        return self._of_edge(request, served, found, outcome.reason)

    async def _cloud_first(self, request: Request, hardness: Hardness, judged: Judged | None) -> Answer:
        """The small model is asked when the cloud has not answered and there is just time enough for it."""
        self._counts.add("hard", int(hardness.hard))
        whole_s = request.deadline_s - request.began_s
        reserve_s = min(RESERVE_S, RESERVE_SHARE * whole_s)
        if self._policy.on_cloud_failure == "useEdgeAnswer":
            needed_s = (2 + self._waiting) * self._usual_s if self._times else RESERVE_SHARE * whole_s
            reserve_s = min(max(2 * reserve_s, needed_s + reserve_s), whole_s / 2)
        outcome = await self._cloud.ask(request, request.deadline_s - reserve_s, hardness)
        if isinstance(outcome, Answer):
            self._counts.asked(outcome.model.digest)
            self._counts.scores.answered(judged, outcome.model.digest, None)
            if hardness.hard:
                await self._feed(request, outcome.prediction, hardness.score, outcome.prediction)
            return outcome
        self._check_fallback(request, outcome)
        try:
            self._check_load(request.deadline_s - asyncio.get_running_loop().time())
        except _Shed as error:  # an inference all the same: it was mined, and the cloud may have been asked
            raise Overloaded(f"{outcome.reason}, and {error}") from None
        served, found = await self._by_edge(
            request, lambda found: replace(found, hard=hardness.hard, score=hardness.score)
        )
        if hardness.hard:
            await self._feed(request, found.prediction, hardness.score, None)
        self._counts.add("fell_back")
        return self._of_edge(request, served, found, outcome.reason)

    def _check_fallback(self, request: Request, outcome: Fallback) -> None:
        """Raises what the caller gets where the policy wants no edge answer in place of the cloud's."""
        if not outcome.late and request.on_late is not None:
            request.on_late(None)
        if outcome.kind == "budget" or self._policy.on_cloud_failure == "useEdgeAnswer":
            return
        match outcome.kind:
            case "late":
                raise DeadlineMissed(outcome.reason)
            case "overloaded":
                raise Overloaded(outcome.reason)
        raise ModelError(outcome.reason)

    def _cloud_first_of(self, model: str) -> bool:
        if model:
            return model != self._name
        return self._spec.mode == "MiningThenInference"

    # --- the edge

    async def _by_edge(self, request: Request, then: Callable[[Found], Found]) -> tuple[Loaded, Found]:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self._waiting += 1
        try:
            served, found = await self._server.answer(request.x, then)
        except asyncio.CancelledError:
            # What it waited for takes at least as long.
            self._took(max(loop.time() - max(began_s, self._last_end_s), self._usual_s))
            raise
        finally:
            self._waiting -= 1
        end_s = loop.time()
        self._took(end_s - max(began_s, self._last_end_s))
        self._last_end_s = end_s
        self._counts.asked(served.model.digest)
        return served, found

    def _took(self, seconds: float) -> None:
        self._times.append(seconds)
        self._usual_s = sorted(self._times)[len(self._times) // 2]

    def _mined(self, id_: str, found: Found) -> Found:
        """In the thread that answers."""
        assert self._mining is not None
        hardness = self._mining.look(found.prediction, id_)
        return replace(found, hard=hardness.hard, score=hardness.score)

    async def _mined_input(self, request: Request) -> Hardness:
        assert self._mining is not None
        mining, algorithm = self._mining, self._spec.hard_example_mining.algorithm
        if algorithm is not MiningAlgorithm.CUSTOM:
            return mining.look(request.x, request.id)
        if self._wait_for_miner >= self._policy.max_waiting:
            raise _Shed(
                f"{self._wait_for_miner} requests wait for the mining of {self.environment.worker}: try again later"
            )
        self._wait_for_miner += 1
        try:
            async with self._miner.turn():
                return await in_pool(self._miner, lambda: mining.look(request.x, request.id))
        finally:
            self._wait_for_miner -= 1

    def _judged(self, served: Loaded | None, hardness: Hardness) -> Judged | None:
        """`served`: by the model that answered; None: by the input."""
        serving = self._server.serving.model.digest if self._server.serving is not None else ""
        edge = served.model.digest if served is not None else serving
        return self._counts.scores.judged(edge, hardness.score, hardness.hard, serving)

    def _of_edge(self, request: Request, served: Loaded, found: Found, fell_back: str = "") -> Answer:
        seconds = asyncio.get_running_loop().time() - request.began_s
        return Answer(found.prediction, found.hard, found.score, served.model, seconds, request.id, "edge", fell_back)

    # --- beside that

    async def _feed(self, request: Request, prediction: Any, score: float, by_cloud: Any) -> None:
        feeds = self._spec.feeds
        if self._feeds is None or feeds is None:
            return
        label = label_of(by_cloud) if by_cloud is not None and feeds.label_by == "cloud" else None
        example = Example(request.id, request.x, prediction, score, label)
        await self._feeds.keep(example, request.deadline_s - _LAST_MOMENT_S)

    def figures(self) -> Inferring:
        now_s = asyncio.get_running_loop().time()
        self._cloud.prune(now_s)
        edge_p50_s, edge_p99_s = self._by_edge_s.percentiles(now_s)
        cloud_p50_s, cloud_p99_s = self._by_cloud_s.percentiles(now_s)
        noted = self._counts.noted()
        return Inferring(
            digest=self._server.serving.model.digest if self._server.serving else "",
            counts=noted.counts,
            models=noted.models,
            refused_models=dict(self._server.refused),
            breaker=self._cloud.breaker(now_s),
            edge_p50_s=edge_p50_s,
            edge_p99_s=edge_p99_s,
            cloud_p50_s=cloud_p50_s,
            cloud_p99_s=cloud_p99_s,
            waiting=self._waiting,
            scores=noted.scores,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.environment.slot.write_session, SessionFile())
        teller = Teller(self.environment, self._bus, self._counts, self._server.changed)

        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "cloud_line": self._cloud.run,
            "applications": self._applications.run,
            "answers": self._applications.send,
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
                self._miner.shutdown(wait=False)
                if self._feeds is not None:
                    self._feeds.close()


def _setting(future: asyncio.Future[Answer | None]) -> Callable[[Answer | None], None]:
    def tell(answer: Answer | None) -> None:
        if not future.done():
            future.set_result(answer)

    return tell


def _checked_deadline(deadline_s: float) -> float:
    if not (isinstance(deadline_s, int | float) and math.isfinite(deadline_s) and deadline_s > 0):
        raise Refused(f"a deadline is a number of seconds above 0, not {str(deadline_s)[:40]}")
    return min(float(deadline_s), MAX_DEADLINE_S)
