"""Joint inference over real brokers: mosquitto, bridge and nats-server, an edge worker and two replicas of the cloud worker.

One running system, with the logins of real installations, serves all tests of this module; each asks as an application does.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from edgeai.bridge.service import Bridge
from edgeai.bus.credentials import Credential
from edgeai.bus.embedded import Broker, Mosquitto, NatsCloud
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.errors import BinaryMissing
from edgeai.events.catalogue import Role
from edgeai.events.values import unpack
from edgeai.launcher.children import Children, ChildSpec
from edgeai.launcher.slots import SlotDir
from edgeai.worker.task import Task
from joint_world import Application, Listener, deploy, serving, slot_of, spec_of, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
SMALL, LARGE = 2.0, 3.0
X = np.ones((28, 28), "float32")
SPEC = spec_of(
    edge={"inputs": {"shape": [28, 28], "dtype": "float32"}},
    cloud={"replicas": {"min": 2, "max": 2}, "batch": {"maxSize": 8, "maxWaitSeconds": 0.01}},
    deadlineSeconds=10.0,
    corrections=True,
    maxWaiting=32,
)


@dataclass
class Cloud:
    """How the replicas predict: at once, unless a test closes the gate."""

    gate: threading.Event = field(default_factory=threading.Event)
    sizes: list[int] = field(default_factory=list)

    def predict(self, model: float, x: Any) -> Any:
        assert self.gate.wait(30)
        self.sizes.append(len(x))
        return x[:, 0, :2] * model


@dataclass
class System:
    folder: Path
    shop: Application
    edge: Task
    replicas: list[Task]
    cloud: Cloud
    listener: Listener

    def counts(self) -> dict[str, int]:
        noted = self.edge._part._counts.noted().counts
        return {name: getattr(noted, name) for name in noted.__slots__}


def mqtt(login: Credential, name: str, **more: Any) -> MqttBus:
    return MqttBus(
        login.url, client_id=f"{name}-{os.getpid()}", username=login.username, password=login.password, **more
    )


def nats(login: Credential, name: str) -> NatsBus:
    return NatsBus(login.url, username=login.username, password=login.password, name=name)


@asynccontextmanager
async def running(broker: Broker, children: Children) -> AsyncIterator[None]:
    """Skips where the program is missing, but not in CI."""
    try:
        argv = broker.argv
    except BinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    log = broker.folder.parents[1] / f"{broker.node}.log"
    await children.start(ChildSpec("broker", broker.node, argv, log, before_start=broker.prepare))
    await broker.ready()
    yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    folder = tmp_path_factory.mktemp("joint")
    cloud_broker, edge_broker = NatsCloud(folder / "cloud", ["edge1"]), Mosquitto(folder / "edge", "edge1")
    cloud, replicas = Cloud(), []
    cloud.gate.set()
    children = [Children(folder / "cloud"), Children(folder / "edge")]
    async with AsyncExitStack() as stack:
        for broker, each in zip((cloud_broker, edge_broker), children, strict=True):
            stack.push_async_callback(each.stop_all, grace_s=10)
            await stack.enter_async_context(running(broker, each))
        at_edge = await stack.enter_async_context(mqtt(edge_broker.credential("bridge"), "bridge"))
        at_cloud = await stack.enter_async_context(nats(cloud_broker.edge_credential("edge1"), "bridge"))
        bridge = asyncio.create_task(Bridge("edge1", at_edge, at_cloud).run())
        for number in range(2):
            worker = f"big-{number}"
            slot = slot_of(folder / worker, SPEC, Role.CLOUD, node="cloud", worker=worker)
            bus = nats(cloud_broker.credential("trainer"), worker)
            replicas.append(await stack.enter_async_context(serving(slot, bus, LARGE, predict=cloud.predict)))
        slot = slot_of(folder / "little", SPEC, Role.EDGE, node="edge1", worker="little")
        bus = mqtt(edge_broker.credential("worker"), "little")
        edge = await stack.enter_async_context(serving(slot, bus, SMALL, predict=lambda model, x: x[:, 0, :2] * model))
        controller = await stack.enter_async_context(mqtt(edge_broker.credential("controller"), "controller"))
        listener = Listener(controller)
        await stack.enter_async_context(listener.listening())
        app = await stack.enter_async_context(mqtt(edge_broker.credential("app"), "shop"))
        for each in (at_edge, at_cloud, bus, controller, app):
            await each.wait_connected(20)
        shop = Application(app)
        await stack.enter_async_context(shop.listening())
        found = System(folder, shop, edge, replicas, cloud, listener)
        await answering(found)
        yield found
        cloud.gate.set()
        bridge.cancel()
        await asyncio.gather(bridge, return_exceptions=True)


async def answering(system: System) -> None:
    """Return when the cloud answers, and the breaker lets it."""
    async with asyncio.timeout(30):
        while (await system.edge.infer(X, deadline_s=1.0)).by != "cloud":
            await asyncio.sleep(0.05)


async def test_the_cloud_answers_an_application_at_the_edge(system: System):
    answer = await system.shop.answer(X)
    assert (answer.by, unpack(answer.content).tolist(), answer.model) == ("cloud", [LARGE, LARGE], "large")


async def test_every_request_gets_exactly_one_answer_of_its_own(system: System):
    asked = {await system.shop.ask(X * number): number for number in range(24)}
    for correlation, number in asked.items():
        [answer] = await system.shop.answers(correlation)
        assert unpack(answer.content).tolist() in ([LARGE * number] * 2, [SMALL * number] * 2)
    await system.shop.answer(X)  # what would have come twice has come by now
    assert {len(system.shop.heard[correlation]) for correlation in asked} == {1}


async def test_both_replicas_answer_and_several_requests_at_once(system: System):
    system.cloud.sizes.clear()

    def inferences() -> list[int]:
        return [replica._part._counts["inferences"] for replica in system.replicas]

    before = inferences()

    async def rounds() -> bool:
        await asyncio.gather(*(system.edge.infer(X) for _ in range(16)))
        return min(now - then for now, then in zip(inferences(), before, strict=True)) > 0

    async with asyncio.timeout(30):
        while not await rounds():
            pass
    assert max(system.cloud.sizes) > 1


async def test_a_silent_cloud_costs_no_answer_and_its_late_one_is_a_correction(system: System):
    await answering(system)
    late = system.counts()["late"]
    system.cloud.gate.clear()
    correlation = await system.shop.ask(X, deadline_s=1.0)
    [first] = await system.shop.answers(correlation)
    system.cloud.gate.set()
    answers = await system.shop.answers(correlation, 2)
    assert (first.by, first.fell_back) == ("edge", "the cloud gave no answer in time")
    assert (answers[1].by, answers[1].correction) == ("cloud", True)
    assert system.counts()["late"] == late + 1


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (np.ones((28, 27), "float32"), "shape [28, 27]"),
        (np.ones((28, 28), "float64"), "type float64"),
        (np.full((28, 28), np.nan, "float32"), "not finite"),
        ("text", "takes an array of shape [28, 28]"),
    ],
    ids=["shape", "type", "nan", "text"],
)
async def test_what_is_no_input_is_refused_by_name(system: System, x: Any, why: str):
    sent = system.counts()["sent"]
    answer = await system.shop.answer(x)
    assert answer.error_kind == "refused"
    assert why in answer.error
    assert system.counts()["sent"] == sent


async def test_more_than_may_wait_are_refused_at_once_and_the_others_answered(system: System):
    await answering(system)
    opened = threading.Event()
    script = system.edge._part._server._script
    slow = lambda model, x: opened.wait(30) and x[:, 0, :2] * model  # noqa: E731
    object.__setattr__(script, "predict", slow)
    asked = [await system.shop.ask(X) for _ in range(60)]
    heard = system.shop.heard
    await until(lambda: sum(bool(heard[each]) for each in asked) >= 28)
    refused = [heard[each][0].error_kind for each in asked if heard[each]]
    opened.set()
    kinds = [(await system.shop.answers(each))[0].error_kind for each in asked]
    assert set(refused) == {"overloaded"}
    assert sorted(set(kinds)) == ["", "overloaded"]
    assert kinds.count("") == 32


async def test_another_model_takes_over_between_two_answers(system: System):
    await answering(system)
    for number in range(2):
        deploy(SlotDir(system.folder / f"big-{number}"), 10.0, 2)
    async with asyncio.timeout(30):
        while {replica._part._server.serving.content for replica in system.replicas} != {10.0}:
            answer = await system.shop.answer(X)
            assert answer.error == ""
    answer = await system.shop.answer(X)
    assert (answer.version, unpack(answer.content).tolist()) == (2, [10.0, 10.0])


async def test_the_controller_hears_what_the_edge_worker_counts(system: System):
    await until(lambda: (told := system.listener.told.get("little")) is not None and told.counts.answered > 0)
    told = system.listener.told["little"].counts
    assert told.inferences >= told.hard >= told.sent >= told.answered
