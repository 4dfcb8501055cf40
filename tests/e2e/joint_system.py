"""What tests of joint inference share: services of one edge and the cloud, and applications that ask without a pause.

Models are one number that inputs are multiplied with (`tests/e2e/scripts/joint`): an answer says by itself which model gave it.
Everything is hard, so that every question goes to the cloud as long as it answers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from learning_world import eventually
from living_world import API, HERE, PATIENCE_S, World

from edgeai.asking import Edge, EdgeAnswer, connect_edge
from edgeai.bus.base import Bus
from edgeai.bus.credentials import client_id_of, read_credentials_file
from edgeai.bus.mqtt import MqttBus
from edgeai.errors import BusUnavailable, EdgeaiError, WaitTimeout
from edgeai.events.address import Direction, EventClass, Pattern, task_level
from edgeai.events.catalogue import InferenceAnswered
from edgeai.events.envelope import decode
from edgeai.gateway import gateway_url
from edgeai.resources.joint import InferenceCounts, JointInferenceService
from edgeai.resources.kinds import from_document

EDGE, KIND = "edge1", "JointInferenceService"
SMALL, BIG = 2.0, 3.0
"""The models of edge and cloud, before there are new versions of them."""
PER_S, DEADLINE_S = 50, 1.0
BACK_S = 120.0
SLACK_S = 5.0
"""An answer or an error is due 50 ms after the deadline; where several systems share a machine, no test waits for that."""


@dataclass(frozen=True)
class JointSystem:
    """A world, and services on its one edge."""

    world: World

    # --- a service

    async def start(self, name: str, **wanted: Any) -> JointInferenceService:
        """Apply a service with its models, and wait until its edge worker and a replica serve. `wanted`: see `manifests`."""
        for model, value in ((f"{name}-small", SMALL), (f"{name}-big", BIG)):
            await self.publish_model(model, value)
        await self.world.cloud.apply([self.manifest(name, **wanted)], base=HERE)
        return await self.until(name, serves)

    async def publish_model(self, model: str, value: float) -> None:
        """A new version of a Model, by a new file."""
        path = self.world.folder(EDGE) / "data" / f"{model}-{value:g}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, np.array([value], "float32"))
        await self.world.cloud.apply([_resource("Model", model, {"url": str(path), "format": "npz"})])

    def manifest(
        self,
        name: str,
        *,
        pause: float = 0.0,
        cloud_pause: float = 0.0,
        mining: str = "CloudOnly",
        edge: Mapping[str, Any] | None = None,
        cloud: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> Any:
        little = {
            "name": "little",
            "nodeName": EDGE,
            "model": {"name": f"{name}-small"},
            "hardExampleMining": {"algorithm": mining},
            "inputs": {"shape": [4], "dtype": "float32"},
            "workerSpec": _worker(pause),
            **(edge or {}),
        }
        big = {"name": "big", "model": {"name": f"{name}-big"}, "workerSpec": _worker(cloud_pause), **(cloud or {})}
        spec = {
            "edgeWorkers": [little],
            "cloudWorker": big,
            "policy": {"deadlineSeconds": DEADLINE_S, **(policy or {})},
        }
        return _resource(KIND, name, spec)

    async def get(self, name: str) -> JointInferenceService:
        found = await self.world.cloud.get(KIND, name)
        assert isinstance(found, JointInferenceService)
        return found

    async def until(
        self, name: str, condition: Callable[[JointInferenceService], bool], timeout_s: float = PATIENCE_S
    ) -> JointInferenceService:
        """The service as soon as `condition` is true of it, also across an outage of the cloud."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with suppress(BusUnavailable):
                        found = await self.world.cloud.wait(KIND, name, lambda found: _fits(found, condition))
                        assert isinstance(found, JointInferenceService)
                        return found
                    await self.world.cloud.bus.wait_connected()
        except TimeoutError:
            raise AssertionError(await self._report(name, timeout_s)) from None

    async def _report(self, name: str, timeout_s: float) -> str:
        """What there is to know about a service that did not come where it should."""
        service = await self.get(name)
        logs = [self.slot(service, "little") / "worker.log", self.slot(service, "big-0") / "worker.log"]
        logs += [self.world.folder(node) / "daemon.log" for node in (EDGE, "cloud")]
        tails = [f"--- {log}\n{log.read_text()[-3000:]}" for log in logs if log.exists()]
        return "\n".join([f"{name}: not within {timeout_s:g} s", service.status.model_dump_json(indent=1), *tails])

    async def counted(self, name: str, inferences: int) -> InferenceCounts:
        """What the service has counted, as soon as that is so many."""
        found = await self.until(name, lambda service: service.status.counts.inferences >= inferences)
        return found.status.counts

    async def delete(self, name: str) -> None:
        with suppress(EdgeaiError):
            await self.world.cloud.delete(KIND, name)
        try:
            await self.world.cloud.wait(KIND, name, lambda found: found is None, PATIENCE_S)
        except WaitTimeout as error:
            raise AssertionError(await self._report(name, PATIENCE_S)) from error

    # --- its processes and files

    def slot(self, service: JointInferenceService, worker: str) -> Path:
        node = EDGE if worker == "little" else "cloud"
        level = task_level(service.metadata.name, service.metadata.uid)
        return self.world.folder(node) / "slots" / level / worker

    def pid(self, service: JointInferenceService, worker: str) -> int:
        return int(json.loads((self.slot(service, worker) / "run.json").read_text())["child_pid"])

    @property
    def login(self) -> Path:
        """Of an application on the edge."""
        return self.world.folder(EDGE) / "credentials" / f"{EDGE}.app.json"

    @property
    def url(self) -> str:
        """Of the gateway."""
        return gateway_url(self.world.folder(EDGE))

    # --- applications

    def connect(self) -> connect_edge:
        return connect_edge(EDGE, credentials_file=self.login)

    @asynccontextmanager
    async def asking(self, name: str, per_s: float = PER_S, deadline_s: float = DEADLINE_S) -> AsyncIterator[Load]:
        """Questions at an even rate, whatever becomes of them. When the context is left, all have ended."""
        async with self.connect() as edge, self._counting() as answers:
            load = Load(edge, name, per_s, deadline_s, answers)
            asking = asyncio.create_task(load.run())
            try:
                yield load
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                await load.end()

    @asynccontextmanager
    async def _counting(self) -> AsyncIterator[Counter[bytes]]:
        """How many answers there are to each question, counted by somebody who only listens."""
        answers: Counter[bytes] = Counter()
        login = read_credentials_file(self.login)
        name = client_id_of(f"{EDGE}-app-listener", login.password.encode())
        bus: Bus = MqttBus(login.url, client_id=name, username=login.username, password=login.password)
        pattern = Pattern(EDGE, Direction.LOCAL, EventClass.REQUEST, InferenceAnswered.kind)
        async with bus, bus.subscribe(pattern) as deliveries:

            async def listen() -> None:
                async for delivery in deliveries:
                    answers[decode(delivery.payload).header.correlation] += 1

            listening = asyncio.create_task(listen())
            try:
                yield answers
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)


@dataclass
class Load:
    """An application that asks at an even rate. Questions are numbered: the input says which one it is."""

    edge: Edge
    service: str
    per_s: float
    deadline_s: float
    answers: Counter[bytes]
    ended: list[Ended] = field(default_factory=list)
    asked: int = 0
    _asking: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Until cancelled."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(max(0.0, began + self.asked / self.per_s - time.monotonic()))
            task = asyncio.create_task(self._ask(float(self.asked % 1000)))
            self.asked += 1
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _ask(self, number: float) -> None:
        began = time.monotonic()
        answer, error = None, ""
        try:
            answer = await self.edge.infer(self.service, np.full(4, number, "float32"), deadline_s=self.deadline_s)
        except EdgeaiError as failed:
            error = f"{type(failed).__name__}: {failed}"
        self.ended.append(Ended(number, answer, error, began, time.monotonic() - began))

    async def end(self) -> None:
        """Return when every question has ended."""
        await eventually(lambda: not self._asking, lambda: f"{len(self._asking)} questions do not end")

    async def until(self, condition: Callable[[Ended], bool], what: str) -> None:
        """Wait until a question that is asked from now on ends in that way."""
        since, seen = time.monotonic(), len(self.ended)
        await eventually(
            lambda: any(condition(each) for each in self.ended[seen:] if each.at_s >= since),
            lambda: f"{what} after {BACK_S:g} s: {self.told()}",
            BACK_S,
        )

    async def answered_by_the_cloud(self) -> None:
        await self.until(lambda each: each.by == "cloud", "the cloud does not answer")

    def count(self, by: str) -> int:
        return sum(each.by == by for each in self.ended)

    @property
    def missed(self) -> int:
        """Questions whose answer was under way when the application had waited long enough."""
        return sum("gave no answer in" in each.error for each in self.ended)

    def told(self) -> str:
        """What became of the questions, for whoever reads that a test has failed."""
        errors = Counter(each.error for each in self.ended if each.error)
        slowest = max((each.seconds for each in self.ended), default=0.0)
        shares = ", ".join(f"{self.count(by)} by {by}" for by in ("edge", "cloud"))
        return (
            f"{self.asked} asked, {len(self.ended)} ended: {shares}; errors {dict(errors)}; the slowest {slowest:.3f} s"
        )

    def check(self) -> None:
        """Every question has ended, by its deadline, right, and with one answer."""
        assert len(self.ended) == self.asked, self.told()
        assert max(each.seconds for each in self.ended) <= self.deadline_s + SLACK_S, self.told()
        assert [count for count in self.answers.values() if count != 1] == [], self.told()
        wrong = [each for each in self.ended if each.answer is not None and each.factor not in {None, *FACTORS}]
        assert wrong == [], self.told()


FACTORS = {SMALL, BIG, 10 * SMALL, 10 * BIG}
"""All models that there are in these tests."""


@dataclass(frozen=True)
class Ended:
    """How a question ended. `by`: edge, cloud, or error."""

    number: float
    answer: EdgeAnswer | None
    error: str
    at_s: float
    seconds: float

    @property
    def by(self) -> str:
        return self.answer.by if self.answer is not None else "error"

    @property
    def factor(self) -> float | None:
        """The model that answered; None: the question does not tell."""
        if self.answer is None or not self.number:
            return None
        return float(self.answer.prediction[0]) / self.number


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """As if a cable were pulled at a process: what reaches it is neither taken nor refused."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def serves(service: JointInferenceService) -> bool:
    edges = [edge for edge in service.status.edges if edge.serving is not None]
    return len(edges) == len(service.spec.edge_workers) and service.status.replicas.ready > 0


def _fits(found: object, condition: Callable[[JointInferenceService], bool]) -> bool:
    return isinstance(found, JointInferenceService) and condition(found)


def _worker(pause: float) -> dict[str, Any]:
    return {
        "scriptDir": "scripts/joint",
        "scriptBootFile": "main.py",
        "frameworkType": "numpy",
        "parameters": [{"key": "pause", "value": pause}],
    }


def _resource(kind: str, name: str, spec: Mapping[str, Any]) -> Any:
    return from_document({"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)})
