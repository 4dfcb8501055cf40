"""Edge and cloud workers of a joint inference service in one process: who answers, when, and what is counted."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import struct
import threading
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.errors import DeadlineMissed, Overloaded, Refused
from edgeai.events.address import Address, Direction, EventClass
from edgeai.events.catalogue import InferenceAsked, Role
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.events.values import unpack
from edgeai.launcher.slots import SlotDir
from edgeai.resources.joint import MAX_INPUT_BYTES, JointInferenceServiceSpec
from edgeai.store.records_log import read
from edgeai.worker.joint_counts import Counts
from edgeai.worker.joint_feeds import label_of
from edgeai.worker.joint_inputs import checked
from edgeai.worker.task import Task
from joint_world import SERVICE, Application, Listener, deploy, joined, serving, slot_of, spec_of, until

X = np.array([1.0, 2.0], "float32")
SMALL, LARGE = 2.0, 3.0
EASY = {"hardExampleMining": {"algorithm": "EdgeOnly"}}


@dataclass
class World:
    folder: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)

    def bus(self) -> MemoryBus:
        return MemoryBus(self.broker)

    def slot(self, spec: JointInferenceServiceSpec, role: Role, worker: str, **more: Any) -> SlotDir:
        node = "cloud" if role is Role.CLOUD else "edge1"
        return slot_of(self.folder / worker, spec, role, node=node, worker=worker, **more)

    @asynccontextmanager
    async def edge(
        self, spec: JointInferenceServiceSpec, value: float | None = SMALL, **how: Any
    ) -> AsyncIterator[Task]:
        slot = self.slot(spec, Role.EDGE, "little", has_model=value is not None)
        async with serving(slot, self.bus(), value, **how) as task:
            yield task

    @asynccontextmanager
    async def cloud(
        self, spec: JointInferenceServiceSpec, value: float | None = LARGE, *, worker: str = "big-0", **how: Any
    ) -> AsyncIterator[Task]:
        slot = self.slot(spec, Role.CLOUD, worker, has_model=value is not None)
        async with serving(slot, self.bus(), value, **how) as task:
            yield task

    @asynccontextmanager
    async def both(self, spec: JointInferenceServiceSpec) -> AsyncIterator[Task]:
        async with self.cloud(spec), self.edge(spec) as task:
            yield task

    @asynccontextmanager
    async def application(self) -> AsyncIterator[Application]:
        async with self.bus() as bus:
            found = Application(bus)
            async with found.listening():
                yield found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def counts_of(task: Task) -> dict[str, int]:
    noted = task._part._counts.noted().counts
    return {name: getattr(noted, name) for name in noted.__slots__ if getattr(noted, name) and "bytes" not in name}


async def answered_by_both(world: World, spec: JointInferenceServiceSpec) -> tuple[Any, dict[str, int]]:
    async with world.both(spec) as task:
        return await task.infer(X), counts_of(task)


async def until_listening(shop: Application) -> None:
    """Return when the edge worker hears applications."""
    async with asyncio.timeout(20):
        while not any(shop.heard.values()):
            await shop.ask(X)
            await asyncio.sleep(0.01)


class Gate:
    """A predict that waits until it is let go."""

    def __init__(self) -> None:
        self.open, self.begun = threading.Event(), threading.Event()

    def __call__(self, model: float, x: Any) -> Any:
        self.begun.set()
        assert self.open.wait(20)
        return x * model


@pytest.fixture
def gate() -> Any:
    found = Gate()
    yield found
    found.open.set()


# --- who answers


async def test_what_is_easy_is_answered_by_the_edge_alone(world):
    answer, counts = await answered_by_both(world, spec_of(edge=EASY))
    assert (answer.prediction.tolist(), answer.by, answer.hard, answer.fell_back) == ([2.0, 4.0], "edge", False, "")
    assert counts == {"inferences": 1}


async def test_what_is_hard_is_answered_by_the_cloud(world):
    answer, counts = await answered_by_both(world, spec_of())
    assert (answer.prediction.tolist(), answer.by, answer.hard, answer.score) == ([3.0, 6.0], "cloud", True, 1.0)
    assert (answer.model.name, answer.model.version) == ("large", 1)
    assert counts == {"inferences": 1, "hard": 1, "sent": 1, "answered": 1}


async def test_the_model_of_an_answer_of_the_edge_has_its_name(world):
    answer, _ = await answered_by_both(world, spec_of(edge=EASY))
    assert (answer.model.name, answer.model.version) == ("small", 1)


async def test_mining_before_inference_does_not_ask_the_small_model(world):
    asked = []
    spec = spec_of(edge={"mode": "MiningThenInference"})
    async with world.cloud(spec), world.edge(spec, predict=lambda model, x: asked.append(1) or x * model) as task:
        answer = await task.infer(X)
    assert (answer.by, answer.hard) == ("cloud", True)
    assert asked == []


async def test_mining_before_inference_asks_the_small_model_in_time_if_the_cloud_is_silent(world):
    spec = spec_of(edge={"mode": "MiningThenInference"}, deadlineSeconds=2.0)
    async with world.edge(spec) as task:
        answer = await task.infer(X)
    assert (answer.by, answer.hard) == ("edge", True)
    assert "no answer in time" in answer.fell_back


async def test_every_inference_and_every_answer_of_the_cloud_is_counted_by_its_score(world):
    spec = spec_of(maxOffloadFraction=0.25)
    async with world.both(spec) as task:
        for _ in range(16):
            await task.infer(X)
        scores, counts = task._part._counts.noted().scores, counts_of(task)
    assert (sum(scores.inferences), scores.hard) == (counts["inferences"], counts["hard"]) == (16, 16)
    assert sum(scores.answered) == scores.answered[-1] == counts["answered"] == 4
    assert (scores.mining, scores.apart) == ("CloudOnly", 0)


async def test_where_the_small_model_is_not_asked_answers_cannot_be_compared(world):
    async with world.both(spec_of(edge={"mode": "MiningThenInference"})) as task:
        await task.infer(X)
        scores = task._part._counts.noted().scores
    assert (sum(scores.inferences), sum(scores.answered), scores.apart) == (1, 0, 1)


async def test_the_budget_is_kept_and_said(world):
    spec = spec_of(maxOffloadFraction=0.25)
    async with world.both(spec) as task:
        answers = [await task.infer(X) for _ in range(16)]
        counts = counts_of(task)
    assert [answer.by for answer in answers].count("cloud") == 4
    assert "over the budget of 0.25 of the inferences" in answers[0].fell_back
    assert counts == {"inferences": 16, "hard": 16, "sent": 4, "answered": 4, "over_budget": 12, "fell_back": 12}


async def test_many_requests_at_once_are_all_sent_where_all_may_be(world):
    async with world.both(spec_of(maxWaiting=100)) as task:
        answers = await asyncio.gather(*(task.infer(X) for _ in range(60)))
    assert {answer.by for answer in answers} == {"cloud"}


@pytest.mark.parametrize(("model", "by"), [("small", "edge"), ("large", "cloud"), ("", "cloud")])
async def test_an_application_may_name_the_model_that_is_to_answer(world, model, by):
    spec = spec_of()
    async with world.both(spec), world.application() as shop:
        assert (await shop.answer(X, model=model)).by == by


async def test_a_cloud_worker_without_a_model_answers(world):
    spec = spec_of(cloud={"model": None})
    async with (
        world.cloud(spec, None, load=None, predict=lambda model, x: x * 7 if model is None else x),
        world.edge(spec) as task,
    ):
        assert (await task.infer(X)).prediction.tolist() == [7.0, 14.0]


async def test_an_edge_worker_without_a_model_answers(world):
    spec = spec_of(edge={"model": None, "hardExampleMining": {"algorithm": "EdgeOnly"}})
    async with world.edge(spec, None, load=None, predict=lambda _, x: x + 1) as task:
        assert (await task.infer(X)).prediction.tolist() == [2.0, 3.0]


async def test_the_cloud_worker_takes_up_another_model(world):
    spec = spec_of()
    async with world.cloud(spec), world.edge(spec) as task:
        deploy(SlotDir(world.folder / "big-0"), 10.0, 2)

        async def new() -> bool:
            answer = await task.infer(X)
            return answer.prediction.tolist() == [10.0, 20.0] and answer.model.version == 2

        async with asyncio.timeout(20):
            while not await new():
                await asyncio.sleep(0.01)


# --- deadlines


async def test_a_silent_cloud_costs_no_more_than_the_deadline(world):
    spec = spec_of(deadlineSeconds=1.0)
    async with world.edge(spec) as task:
        answer = await task.infer(X)
        counts = counts_of(task)
    assert (answer.by, answer.prediction.tolist()) == ("edge", [2.0, 4.0])
    assert counts == {"inferences": 1, "hard": 1, "sent": 1, "fell_back": 1}


async def test_a_silent_cloud_is_an_error_where_the_policy_says_so(world):
    spec = spec_of(deadlineSeconds=1.0, onCloudFailure="fail")
    async with world.edge(spec) as task, world.application() as shop:
        with pytest.raises(DeadlineMissed, match="the cloud gave no answer in time"):
            await task.infer(X)
        assert (await shop.answer(X)).error_kind == "late"
        assert counts_of(task) == {"inferences": 2, "hard": 2, "sent": 2, "failed": 2}


async def test_a_predict_that_hangs_is_an_error_at_the_deadline(world, gate):
    spec = spec_of(deadlineSeconds=0.2)
    async with world.edge(spec, predict=gate) as task:
        with pytest.raises(DeadlineMissed, match=r"little had no answer within 0\.2 s"):
            await task.infer(X)
        with pytest.raises(DeadlineMissed):
            await task.infer(X, deadline_s=0.05)


async def given_up(task: Task, x: Any, deadline_s: float = 0.1) -> str:
    try:
        await task.infer(x, deadline_s=deadline_s)
    except (DeadlineMissed, Overloaded) as error:
        return type(error).__name__
    return ""


async def test_behind_a_predict_that_hangs_nothing_is_kept_of_what_was_given_up(world, gate):
    async with world.edge(spec_of(), predict=gate) as task:
        given: list[weakref.ref[Any]] = []
        for number in range(5):
            x = X * number
            given.append(weakref.ref(x))
            assert await given_up(task, x, 0.05) == "DeadlineMissed"
        del x
        gc.collect()
        # The first is in the thread, and of the last one asyncio may keep the exception.
        assert [each() for each in given[1:-1]] == [None] * 3


async def test_after_a_predict_that_hung_the_next_is_answered(world, gate):
    async with world.edge(spec_of(edge=EASY), predict=gate) as task:
        assert await given_up(task, X) == "DeadlineMissed"
        gate.open.set()
        assert (await task.infer(X)).prediction.tolist() == [2.0, 4.0]


async def test_behind_a_predict_that_hangs_one_tries_and_the_others_are_refused(world, gate):
    async with world.edge(spec_of(), predict=gate) as task:
        await given_up(task, X)
        assert await asyncio.gather(*(given_up(task, X) for _ in range(3))) == [
            "DeadlineMissed",
            "Overloaded",
            "Overloaded",
        ]


async def test_mining_before_inference_refuses_at_once_what_would_wait_too_long(world, gate):
    spec = spec_of(edge={**EASY, "mode": "MiningThenInference"}, maxWaiting=1)
    async with world.edge(spec, predict=gate) as task:
        first = asyncio.create_task(task.infer(X))
        await until(gate.begun.is_set)
        with pytest.raises(Overloaded, match="1 requests wait at little: try again later"):
            await task.infer(X)
        gate.open.set()
        await first
        assert counts_of(task) == {"inferences": 1, "shed": 1}


MINING = """
import threading
begun, go_on = threading.Event(), threading.Event()
def look(x):
    begun.set()
    go_on.wait(20)
    return False
"""


async def test_more_than_may_wait_for_slow_mining_are_refused_at_once(world, monkeypatch):
    (world.folder / "slow_mining.py").write_text(MINING)
    monkeypatch.syspath_prepend(world.folder)
    mining = {"algorithm": "Custom", "parameters": [{"key": "entry point", "value": "slow_mining:look"}]}
    spec = spec_of(edge={"hardExampleMining": mining, "mode": "MiningThenInference"}, maxWaiting=1)
    async with world.edge(spec) as task:
        slow_mining = importlib.import_module("slow_mining")
        first = asyncio.create_task(task.infer(X))
        await until(slow_mining.begun.is_set)
        refused = asyncio.create_task(task.infer(X))
        await asyncio.wait([refused], timeout=1)
        slow_mining.go_on.set()
        with pytest.raises(Overloaded, match="1 requests wait for the mining of little"):
            await refused
        assert (await first).by == "edge"


async def test_without_a_broker_the_edge_answers_at_once(world):
    spec = spec_of(deadlineSeconds=10.0)
    async with world.edge(spec) as task:
        world.broker.stop()
        answer = await task.infer(X)
        counts = counts_of(task)
    assert answer.fell_back == "the broker of this node does not answer"
    assert answer.seconds < 5
    assert "sent" not in counts


async def test_a_cloud_that_stays_silent_is_not_asked_any_more(world):
    spec = spec_of(deadlineSeconds=1.0)
    async with world.edge(spec) as task:
        await asyncio.gather(*(task.infer(X) for _ in range(5)))
        answer = await task.infer(X)
        counts = counts_of(task)
        assert task._part.figures().breaker == "open"
    assert answer.fell_back == "the cloud does not answer"
    assert (counts["sent"], counts["breaker_open"], counts["fell_back"]) == (5, 1, 6)


async def test_a_cloud_that_is_back_is_asked_again(world):
    spec = spec_of(deadlineSeconds=1.0)
    async with world.edge(spec) as task:
        await asyncio.gather(*(task.infer(X) for _ in range(5)))
        async with world.cloud(spec), asyncio.timeout(10):
            while (await task.infer(X, deadline_s=5)).by != "cloud":
                await asyncio.sleep(0.05)


async def test_a_cloud_whose_predict_fails_is_asked_again(world):
    def fails(model: float, x: Any) -> Any:
        raise ValueError("no")

    async with world.cloud(spec_of(), predict=fails), world.edge(spec_of()) as task:
        answers = [await task.infer(X) for _ in range(6)]
    assert {answer.fell_back for answer in answers} == {"the cloud: big-0: ValueError: no"}


async def test_what_waited_for_the_connection_is_sent_within_the_rate_or_not_at_all(world):
    """While one message is held up, permits of two more seconds are given."""
    spec = spec_of(maxOffloadPerSecond=1, maxWaiting=100)
    async with world.cloud(spec), world.edge(spec) as task:
        held, let_go, sent = asyncio.Event(), asyncio.Event(), 0
        bus = task._part._cloud._line._outgoing._bus
        publish = bus.publish

        async def stalled(address: Any, payload: bytes) -> None:
            nonlocal sent
            if address.kind == "infer-batch":
                sent += len(decode(payload).event.requests)
                held.set()
                await let_go.wait()
            await publish(address, payload)

        bus.publish = stalled
        first = asyncio.create_task(task.infer(X))
        await held.wait()
        second = await until_sent(task)
        let_go.set()
        answers = [await first, await second]
        counts = counts_of(task)
    assert [answer.by for answer in answers] == ["cloud", "edge"]
    assert answers[1].fell_back == "over the budget of 1 requests per second"
    assert (counts["sent"], sent) == (1, 1)


async def until_sent(task: Task) -> asyncio.Task[Any]:
    """An inference that has a permit again."""
    async with asyncio.timeout(20):
        while True:
            asked = asyncio.create_task(task.infer(X))
            await asyncio.wait([asked], timeout=0.2)
            if not asked.done():
                return asked


@pytest.mark.parametrize("id_", ["a", "\U0001f600" * 200])
async def test_the_bytes_of_the_budget_are_no_less_than_those_on_the_wire(world, id_):
    async with world.both(spec_of()) as task:
        asked: list[int] = []
        ask = task._part._cloud._offloading.ask
        task._part._cloud._offloading.ask = lambda size, now_s: asked.append(size) or ask(size, now_s)
        await task.infer(X, id=id_)
        await until(lambda: task._part._counts["bytes_sent"])
        assert asked[0] >= task._part._counts["bytes_sent"]


async def test_what_waits_for_the_cloud_is_bounded_in_bytes(world, gate, monkeypatch):
    monkeypatch.setattr("edgeai.worker.joint_line.MAX_PENDING_BYTES", 1000)
    async with world.cloud(spec_of(), predict=gate) as _, world.edge(spec_of()) as task:
        first = asyncio.create_task(task.infer(np.ones(200, "float32")))
        await until(gate.begun.is_set)
        second = await task.infer(np.ones(200, "float32"))
        gate.open.set()
        assert (await first).by == "cloud"
    assert second.fell_back == "too many requests wait for the cloud"


async def test_an_error_that_comes_late_is_no_late_answer(world, gate):
    def fails(model: float, x: Any) -> Any:
        gate(model, x)
        raise ValueError("no")

    spec = spec_of(deadlineSeconds=1.0, corrections=True)
    async with world.cloud(spec, predict=fails), world.edge(spec) as task:
        answer = await task.infer(X)
        gate.open.set()
        async with asyncio.timeout(20):
            assert await answer.correction() is None
        assert "late" not in counts_of(task)


async def test_late_answers_are_counted(world, gate):
    spec = spec_of(deadlineSeconds=1.0)
    async with world.cloud(spec, predict=gate), world.edge(spec) as task:
        await task.infer(X)
        gate.open.set()
        await until(lambda: counts_of(task).get("late") == 1)
        assert counts_of(task)["fell_back"] == 1


async def test_a_late_answer_is_a_correction_for_a_script_that_waits_for_it(world, gate):
    spec = spec_of(deadlineSeconds=1.0, corrections=True)
    async with world.cloud(spec, predict=gate), world.edge(spec) as task:
        answer = await task.infer(X)
        gate.open.set()
        async with asyncio.timeout(20):
            correction = await answer.correction()
    assert answer.prediction.tolist() == [2.0, 4.0]
    assert (correction.by, correction.prediction.tolist(), correction.id) == ("cloud", [3.0, 6.0], answer.id)


async def test_there_is_no_correction_of_what_was_in_time(world):
    async with world.both(spec_of(corrections=True)) as task:
        assert await (await task.infer(X)).correction() is None


async def test_there_is_no_correction_of_what_was_never_sent(world):
    spec = spec_of(corrections=True, maxOffloadFraction=0.0)
    async with world.both(spec) as task:
        assert await (await task.infer(X)).correction() is None


async def test_an_application_gets_a_correction_under_the_same_correlation(world, gate):
    spec = spec_of(deadlineSeconds=1.0, corrections=True)
    async with world.cloud(spec, predict=gate), world.edge(spec), world.application() as shop:
        correlation = await shop.ask(X)
        await shop.answers(correlation)
        gate.open.set()
        first, second = await shop.answers(correlation, 2)
    assert (first.by, first.correction, unpack(first.content).tolist()) == ("edge", False, [2.0, 4.0])
    assert (second.by, second.correction, unpack(second.content).tolist()) == ("cloud", True, [3.0, 6.0])


# --- what is refused


INPUTS = {"inputs": {"shape": [2], "dtype": "float32"}}
NO_INPUTS = {
    "wrong shape": (np.zeros(3, "float32"), r"an input of shape \[3\] does not fit: the service takes \[2\]"),
    "wrong type": (np.zeros(2, "float64"), "an input of type float64 does not fit: the service takes float32"),
    "text": ("cat", r"a str is no input; the service takes an array of shape \[2\]"),
    "not a number": (np.array([1, np.nan], "float32"), "not finite"),
    "infinite": (np.array([1, np.inf], "float32"), "not finite"),
    "too large": (np.zeros(MAX_INPUT_BYTES, "float32"), "4000000 bytes is too large: at most 1000000"),
    "a list": ([1.0, 2.0], "a list is no input; make an array of it"),
    "an empty map": ({}, "an empty map is no input; give one with at least one value"),
    "objects": (np.array([object()] * 2), "an array of type object is no input"),
}


@pytest.mark.parametrize(("x", "what"), NO_INPUTS.values(), ids=NO_INPUTS)
async def test_what_is_no_input_is_refused_by_name(world, x, what):
    async with world.edge(spec_of(edge={**INPUTS, **EASY})) as task:
        with pytest.raises(Refused, match=what):
            await task.infer(x)
        assert counts_of(task) == {"refused": 1}
        assert (await task.infer(X)).by == "edge"


async def test_an_application_is_told_why_it_is_refused(world):
    async with world.both(spec_of(edge=INPUTS)), world.application() as shop:
        shape = await shop.answer(np.zeros(3, "float32"))
        content = await shop.answer(content=b"\xc1")
        model = await shop.answer(X, model="another")
        assert (await shop.answer(X)).by == "cloud"
    assert {each.error_kind for each in (shape, content, model)} == {"refused"}
    assert "shape [3]" in shape.error
    assert "the input does not travel" in content.error
    assert "the service has no model another; its models are large and small" in model.error


async def test_lengths_that_may_differ_are_taken():
    inputs = spec_of(edge={"inputs": {"shape": [None, 2], "dtype": "uint8"}}).edge_workers[0].inputs
    assert checked(np.zeros((5, 2), "uint8"), inputs).shape == (5, 2)


@pytest.mark.parametrize("deadline_s", [-1.0, float("nan"), float("inf"), "1"])
async def test_a_deadline_that_is_none_is_refused(world, deadline_s):
    async with world.edge(spec_of()) as task:
        with pytest.raises(Refused, match="a deadline is a number of seconds above 0"):
            await task.infer(X, deadline_s=deadline_s)


@pytest.mark.parametrize("body", [{}, {"content": 1}, {"content": b"\x01", "deadline_s": "soon"}], ids=str)
async def test_an_application_whose_request_cannot_be_read_is_told(world, body):
    async with world.edge(spec_of()) as task, world.application() as shop:
        await until_listening(shop)
        correlation = os.urandom(16)
        shop.heard[correlation] = []
        asked = encode(Envelope(Header("shop", correlation=correlation), InferenceAsked(b"")))
        (length,) = struct.unpack_from(">H", asked, 4)
        to = Address("edge1", Direction.LOCAL, EventClass.REQUEST, "infer", SERVICE, "shop")
        await shop.bus.publish(to, asked[:length] + msgpack.packb({"kind": "infer", "body": body}))
        [answer] = await shop.answers(correlation)
        assert counts_of(task)["refused"] == 1
    assert (answer.error_kind, answer.error[:6]) == ("refused", "infer:")


async def test_an_application_that_asks_too_early_is_told(world):
    slot = world.slot(spec_of(), Role.EDGE, "little")
    async with joined(slot, world.bus()), world.application() as shop:
        await until_listening(shop)
        answer = await shop.answer(X)
    assert (answer.error_kind, answer.error) == ("failed", "little serves no model yet: try again later")


async def test_what_predict_raises_is_told(world):
    spec = spec_of(edge=EASY)
    async with world.edge(spec) as task, world.application() as shop:
        with pytest.raises(ValueError, match="nobody can answer"):
            await task.infer(X * 1000)
        answer = await shop.answer(X * 1000)
        assert counts_of(task) == {"inferences": 2, "failed": 2}
    assert (answer.error_kind, answer.error) == (
        "failed",
        "edge worker little of service digits: ValueError: an input that nobody can answer",
    )


async def test_more_than_may_wait_are_refused_at_once(world, gate):
    spec = spec_of(edge=EASY, maxWaiting=3)
    async with world.edge(spec, predict=gate) as task:
        waiting = [asyncio.create_task(task.infer(X)) for _ in range(3)]
        await until(lambda: task._part.figures().waiting == 3)
        with pytest.raises(Overloaded, match="3 requests wait at little: try again later"):
            await task.infer(X)
        gate.open.set()
        assert [answer.by for answer in await asyncio.gather(*waiting)] == ["edge"] * 3
        assert counts_of(task) == {"inferences": 3, "shed": 1}


async def test_a_request_that_would_be_late_is_refused_at_once(world):
    spec = spec_of(edge=EASY, deadlineSeconds=1.0)
    async with world.edge(spec, predict=lambda model, x: time.sleep(0.1) or x * model) as task:
        await task.infer(X)
        waiting = [asyncio.create_task(task.infer(X, deadline_s=10)) for _ in range(5)]
        await until(lambda: task._part.figures().waiting >= 3)
        with pytest.raises(Overloaded, match="which takes about"):
            await task.infer(X, deadline_s=0.05)
        await asyncio.gather(*waiting)


# --- the cloud worker


async def test_requests_of_several_edges_are_one_batch(world):
    spec = spec_of(cloud={"batch": {"maxSize": 8, "maxWaitSeconds": 1.0}})
    shapes: list[tuple[int, ...]] = []
    names = [f"edge{number}" for number in range(4)]

    def recording(model: float, x: Any) -> Any:
        shapes.append(x.shape)
        return x * model

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.cloud(spec, predict=recording))
        slots = [slot_of(world.folder / name, spec, Role.EDGE, node=name, worker="little") for name in names]
        tasks = [await stack.enter_async_context(serving(slot, world.bus(), SMALL)) for slot in slots]
        shapes.clear()
        answers = await asyncio.gather(*(task.infer(X * number) for number in range(2) for task in tasks))
    assert shapes == [(8, 2)]
    assert [answer.prediction.tolist() for answer in answers] == [[0.0, 0.0]] * 4 + [[3.0, 6.0]] * 4


async def test_inputs_of_another_form_go_into_a_batch_of_their_own(world):
    spec = spec_of(cloud={"batch": {"maxSize": 4, "maxWaitSeconds": 1.0}})
    shapes: list[tuple[int, ...]] = []
    async with (
        world.cloud(spec, predict=lambda model, x: shapes.append(x.shape) or x * model),
        world.edge(spec) as task,
    ):
        longer = np.ones(3, "float32")
        answers = await asyncio.gather(*(task.infer(x) for x in (X, longer, X, longer)))
    assert sorted(shapes[-2:]) == [(2, 2), (2, 3)]
    assert [answer.prediction.tolist() for answer in answers] == [[3.0, 6.0], [3.0, 3.0, 3.0]] * 2


async def test_an_input_that_cannot_be_answered_spoils_no_other(world):
    spec = spec_of(cloud={"batch": {"maxSize": 3, "maxWaitSeconds": 1.0}})
    async with world.cloud(spec), world.edge(spec, predict=lambda model, x: x * model) as task:
        answers = await asyncio.gather(*(task.infer(x) for x in (X, X * 1000, X)))
    assert [answer.by for answer in answers] == ["cloud", "edge", "cloud"]
    assert answers[1].fell_back == "the cloud: big-0: ValueError: an input that nobody can answer"


async def test_maps_and_texts_are_batches_too(world):
    spec = spec_of(cloud={"batch": {"maxSize": 2, "maxWaitSeconds": 1.0}})
    asked = []

    def lengths(_: float, x: Any) -> Any:
        asked.append(x)
        return {"length": np.array([len(text) for text in x["text"]]), "twice": x["value"] * 2}

    def little(_: float, x: Any) -> Any:
        return {"length": np.zeros(1), "twice": np.zeros(1)}

    async with world.cloud(spec, predict=lengths), world.edge(spec, predict=little) as task:
        inputs = [{"text": "cat", "value": np.float32(1)}, {"text": "horse", "value": np.float32(2)}]
        answers = await asyncio.gather(*(task.infer(x) for x in inputs))
    assert [(int(a.prediction["length"]), float(a.prediction["twice"])) for a in answers] == [(3, 2.0), (5, 4.0)]
    assert asked[-1]["text"].tolist() == ["cat", "horse"]


async def test_an_async_predict_for_one_input_is_run_for_several_at_once(world):
    spec = spec_of(cloud={"model": None, "batch": {"maxSize": 3}})
    here, together = 0, asyncio.Event()

    async def ask_an_api(_: Any, x: str) -> str:
        nonlocal here
        here += 1
        if here == 3:
            together.set()
        await together.wait()
        return x.upper()

    async with (
        world.cloud(spec, None, load=None, predict=ask_an_api, batched=False),
        world.edge(spec, predict=lambda model, x: "?", batched=False) as task,
    ):
        answers = await asyncio.gather(*(task.infer(x) for x in ("a", "b", "c")))
    assert [answer.prediction for answer in answers] == ["A", "B", "C"]


async def test_every_request_is_answered_by_one_of_the_replicas(world):
    spec = spec_of(cloud={"replicas": {"min": 2, "max": 2}})
    async with (
        world.cloud(spec, worker="big-0") as one,
        world.cloud(spec, worker="big-1") as two,
        world.edge(spec) as task,
    ):
        for number in range(20):
            assert (await task.infer(X * number)).prediction.tolist() == [3.0 * number, 6.0 * number]
        counts = [counts_of(each)["inferences"] for each in (one, two)]
    assert sum(counts) == 20
    assert min(counts) > 0


async def test_what_is_late_already_is_not_predicted(world, gate):
    spec = spec_of(deadlineSeconds=1.0, cloud={"batch": {"maxSize": 1}})
    asked = []

    def counting(model: float, x: Any) -> Any:
        asked.append(x.tolist())
        return gate(model, x)

    async with world.cloud(spec, predict=counting) as cloud, world.edge(spec) as task:
        await asyncio.gather(task.infer(X), task.infer(X * 2))
        [waiting] = cloud._part._queue._waiting
        await until(lambda: asyncio.get_running_loop().time() > waiting.until_s)  # by the cloud's own clock
        gate.open.set()
        await until(lambda: counts_of(cloud).get("late") == 2)  # one was answered too late, the other was not worth it
    assert len(asked) == 1


async def test_a_full_cloud_worker_says_so_and_the_edge_answers_at_once(world, gate, monkeypatch):
    monkeypatch.setattr("edgeai.worker.joint_queue.MIN_WAITING", 1)
    monkeypatch.setattr("edgeai.worker.joint_queue.BATCHES_WAITING", 1)
    spec = spec_of(deadlineSeconds=10.0, cloud={"batch": {"maxSize": 1}})
    async with world.cloud(spec, predict=gate) as cloud, world.edge(spec) as task:
        first = asyncio.create_task(task.infer(X))
        await until(gate.begun.is_set)
        second = asyncio.create_task(task.infer(X))
        await until(lambda: cloud._part.figures().waiting == 1)
        answer = await task.infer(X)
        assert answer.fell_back == "the cloud: 1 requests wait at the cloud worker"
        gate.open.set()
        assert [each.by for each in await asyncio.gather(first, second)] == ["cloud", "cloud"]


# --- what stops, and what is stuck


async def test_what_is_under_way_when_an_edge_worker_stops_is_answered(world, gate):
    async with world.application() as shop:
        async with world.edge(spec_of(edge=EASY), predict=gate):
            await until_asked(shop, gate)
            asyncio.get_running_loop().call_later(0.1, gate.open.set)
        answers = [answer for heard in shop.heard.values() for answer in heard]
    assert {answer.by for answer in answers} == {"edge"}


async def test_what_does_not_end_when_an_edge_worker_stops_is_told(world, gate, monkeypatch):
    monkeypatch.setattr("edgeai.worker.joint_applications.STOP_S", 0.05)
    async with world.application() as shop:
        async with world.edge(spec_of(edge=EASY), predict=gate):
            await until_asked(shop, gate)
        await until(lambda: any(shop.heard.values()))
        [answer] = [answer for heard in shop.heard.values() for answer in heard][:1]
    assert (answer.error_kind, answer.error) == ("failed", "little stops: ask again")


async def until_asked(shop: Application, gate: Gate) -> None:
    """Return when a request of an application is under way."""
    async with asyncio.timeout(20):
        while not gate.begun.is_set():
            await shop.ask(X)
            await asyncio.sleep(0.01)


async def test_what_a_cloud_worker_has_not_answered_when_it_stops_is_told(world, gate):
    spec = spec_of(deadlineSeconds=20.0)
    async with world.edge(spec) as task, world.cloud(spec, predict=gate) as cloud:
        asked = asyncio.create_task(task.infer(X))
        await until(gate.begun.is_set)
        await cloud._part.stop(0.05)
        assert (await asked).fell_back == "the cloud: big-0 stops"


async def test_a_replica_whose_predict_hangs_ends_itself(world, gate, monkeypatch):
    ended: list[int] = []
    for name, value in {"HANGS_S": 0.0, "FIRST_HANGS_S": 0.0, "WATCH_S": 0.01, "end_process": ended.append}.items():
        monkeypatch.setattr(f"edgeai.worker.joint_cloud.{name}", value)
    spec = spec_of(deadlineSeconds=0.5)
    async with world.cloud(spec, predict=gate) as cloud, world.edge(spec) as task:
        await task.infer(X)
        await until(lambda: bool(ended))
        assert ended == [1]
        answer = await task.infer(X)  # nobody takes it any more
        assert cloud._part.figures().waiting == 0
    assert answer.fell_back == "the cloud gave no answer in time"


# --- what is told and kept


async def test_both_tell_what_they_do(world):
    spec = spec_of(cloud={"batch": {"maxSize": 4}})
    async with world.bus() as bus:
        listener = Listener(bus)
        async with listener.listening(), world.cloud(spec), world.edge(spec) as task:
            answer = await task.infer(X)
            told = listener.told
            await until(lambda: all(told.get(name) and told[name].counts.inferences for name in ("little", "big-0")))
    edge, cloud = told["little"], told["big-0"]
    assert (edge.counts.hard, edge.counts.sent, edge.counts.answered, edge.breaker) == (1, 1, 1, "closed")
    assert edge.counts.bytes_sent > answer.prediction.nbytes < edge.counts.bytes_received
    assert edge.models == {edge.digest: 1}
    assert edge.cloud_p50_s > 0
    assert cloud.batch == 1.0
    assert cloud.digest == answer.model.digest


async def test_counts_go_on_after_a_restart(world):
    spec = spec_of(edge=EASY)
    for count in (1, 2):
        async with world.edge(spec) as task:
            await task.infer(X)
            assert counts_of(task) == {"inferences": count}
            assert list(task._part._counts.noted().models.values()) == [count]


def test_counts_that_are_damaged_begin_anew(tmp_path):
    (tmp_path / "inferences.json").write_text('{"counts": {"hard": -1}}')
    assert Counts(tmp_path)["hard"] == 0


def hard_examples(slot: SlotDir) -> list[dict[str, Any]]:
    return [record for path in sorted(slot.hard.glob("*.log")) for record in read(path).records]


@pytest.mark.parametrize("label_by", ["cloud", "nobody"])
async def test_hard_examples_are_kept_for_a_job_with_the_label_of_the_cloud(world, label_by):
    spec = spec_of(edge={"feeds": {"job": "learn", "labelBy": label_by}})
    async with world.both(spec) as task:
        answer = await task.infer(X, id="one")
        assert answer.by == "cloud"
        [record] = hard_examples(SlotDir(world.folder / "little"))
    assert (record["id"], record["score"], record["predicted"]) == ("one", 1.0, "[2.0, 4.0]")
    assert record.get("label") == (1 if label_by == "cloud" else None)


async def test_a_hard_example_that_the_cloud_does_not_answer_has_no_label(world):
    spec = spec_of(edge={"feeds": {"job": "learn", "labelBy": "cloud"}}, maxOffloadFraction=0.0)
    async with world.both(spec) as task:
        await task.infer(X)
        [record] = hard_examples(SlotDir(world.folder / "little"))
    assert "label" not in record


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        (np.array([0.1, 0.7, 0.2]), 1),
        (np.array([[0.1, 0.7, 0.2]]), 1),
        ({"probabilities": [0.9, 0.1]}, 0),
        ("cat", "cat"),
        (np.int64(3), 3),
        (np.array([0.5]), 0.5),
        (np.zeros((2, 3)), None),
        ({"boxes": []}, None),
        ([], None),
    ],
    ids=str,
)
def test_the_label_is_the_place_of_the_largest_score_or_the_value_itself(prediction, label):
    assert label_of(prediction) == label


# --- the verbs


async def test_a_cloud_worker_does_not_infer(world):
    async with world.cloud(spec_of()) as task:
        with pytest.raises(Refused, match=r"task\.infer is for a deploy worker, and big-0 of digits is a cloud worker"):
            await task.infer(X)


async def test_a_worker_that_has_nothing_else_to_do_stays_until_it_is_stopped(world):
    async with world.cloud(spec_of()) as task:
        waiting = asyncio.create_task(task.until_stopped())
        await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(20):
        await waiting


async def test_inferring_before_serving_is_refused(world):
    async with joined(world.slot(spec_of(), Role.EDGE, "little"), world.bus()) as task:
        with pytest.raises(Refused, match=r"call await task\.serve"):
            await task.infer(X)
