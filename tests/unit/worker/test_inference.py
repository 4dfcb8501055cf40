"""The inference worker: answers go on while models come, go and fail; hard examples are on disk before their answer is given.

A model here is one number that inputs are multiplied with; the controller's side is played on a slot directory.
"""

from __future__ import annotations

import asyncio
import gc
import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeai
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.errors import ModelError, Refused
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import Assignment, BlobRef, ModelFile, Role, ServeModel, Serving, StageWork
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.launcher.slots import TRIAL_FILE, ServingFile, SlotDir, SlotFile, read_serving, write_serving
from edgeai.store.arrays import write_arrays
from edgeai.store.files import digest_bytes
from edgeai.store.records_log import read
from edgeai.worker import examples as growing_files
from edgeai.worker import hard_log as hard_logs
from edgeai.worker import inference as inferences
from edgeai.worker import trial as trials
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.examples import Growing
from edgeai.worker.hard_log import HardLog
from edgeai.worker.inference import Answer, Inference
from edgeai.worker.models import LocalModel
from edgeai.worker.task import Task
from scripted_aggregation import environment_of, until

UID, TASK, WORKER = "0123abcd" * 4, "digits-0123abcd", "deploy"
X = np.array([1.0, 2.0])
BAD_LOAD, NOT_FINITE, WRONG_SHAPE, BAD_LATER = -1.0, -2.0, -3.0, -4.0
"""Models that are none: see `load` and `predict`."""


def load(model: LocalModel) -> float:
    value = float(model.load()[0][0])
    if value == BAD_LOAD:
        raise ValueError("no such layer\nand more")
    return value


def predict(model: float, x: Any) -> Any:
    if model == NOT_FINITE:
        return x * np.nan
    if model == WRONG_SHAPE:
        return x[:, :1]
    if x.max() >= 1000:
        raise ValueError("an input that nobody can answer")
    if model == BAD_LATER and x.max() >= 100:
        raise ValueError("too large for this model")
    return x * model


@dataclass
class Controller:
    """What a controller does for its inference worker, and hears of it."""

    slot: SlotDir
    bus: MemoryBus
    heard: list[Serving] = field(default_factory=list)
    digests: dict[str, float] = field(default_factory=dict)
    """by digest of the model: its number"""

    def stored(self, value: float) -> ModelFile:
        beside = self.slot.models / "beside"
        digest, size_bytes = write_arrays(beside, [np.array([value])])
        beside.replace(self.slot.model(digest))
        self.digests[digest] = value
        return ModelFile(f"{digest}.safetensors", BlobRef(digest, size_bytes))

    def ask(self, value: float, *, canary: str = "", version: int = 1) -> str:
        """Ask for a model to be served; returns its digest."""
        model = self.stored(value)
        write_serving(self.slot.models, ServingFile(model, version, canary))
        return model.blob.digest

    async def deploy(self, value: float, **more: Any) -> str:
        """The same, and wait until the worker says that it serves it."""
        digest = self.ask(value, **more)
        await self.hint()
        await until(lambda: self.told.digest == digest)
        return digest

    async def refused(self, value: float, **more: Any) -> str:
        """Ask for a model that will not do; returns the reason that the worker gives."""
        digest = self.ask(value, **more)
        await self.hint()
        await until(lambda: digest in self.told.refused)
        return self.told.refused[digest]

    async def hint(self) -> None:
        to = Address("edge1", Direction.LOCAL, EventClass.STATE, ServeModel.kind, TASK, WORKER)
        event = ServeModel(ModelFile("m", BlobRef("0" * 64, 1)))
        await self.bus.publish(to, encode(Envelope(Header("edge1"), event)))

    @property
    def told(self) -> Serving:
        return self.heard[-1] if self.heard else Serving("")

    async def listen(self) -> None:
        async with self.bus.subscribe(Pattern("edge1", Direction.LOCAL, EventClass.SIGNAL)) as deliveries:
            async for delivery in deliveries:
                event = decode(delivery.payload).event
                assert isinstance(event, Serving)
                self.heard.append(event)

    def hard_examples(self) -> list[dict[str, Any]]:
        files = sorted(self.slot.hard.glob("*.log"), key=lambda path: int(path.stem))
        return [record for path in files for record in read(path).records]


def slot_at(folder: Path, *, mining: str = "", dataset: str = "", **parameters: Any) -> SlotDir:
    slot = SlotDir(folder)
    slot.create()
    work = StageWork(mining=mining, mining_parameters=parameters)
    assignment = Assignment(TASK, "digits", UID, 1, WORKER, Role.DEPLOY, work=work)
    slot.write_slot(SlotFile("edge1", assignment, dataset))
    return slot


@dataclass
class World:
    controller: Controller
    broker: MemoryBroker

    @property
    def slot(self) -> SlotDir:
        return self.controller.slot

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[Task]:
        bus = MemoryBus(self.broker)
        inference = Inference(WorkerEnvironment(TASK, WORKER, "edge1", "", "", self.slot), bus)
        async with bus, inference.running():
            yield Task(inference)

    @asynccontextmanager
    async def serving(self, value: float | None = 1.0, **how: Any) -> AsyncIterator[Task]:
        """A task whose worker serves the model that is asked for; None: the one that was asked for already."""
        if value is not None:
            self.controller.ask(value)
        async with self.joined() as task:
            await task.serve(**{"load": load, "predict": predict, **how})
            yield task


@asynccontextmanager
async def world_at(slot: SlotDir) -> AsyncIterator[World]:
    broker = MemoryBroker()
    controller = Controller(slot, MemoryBus(broker))
    async with controller.bus:
        listening = asyncio.create_task(controller.listen())
        yield World(controller, broker)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_at(slot_at(tmp_path / "slot")) as found:
        yield found


@pytest.fixture
async def mined(tmp_path: Path) -> AsyncIterator[World]:
    """Every example is hard."""
    async with world_at(slot_at(tmp_path / "slot", mining="CloudOnly")) as found:
        yield found


# --- answers


async def test_an_input_without_a_batch_axis_is_answered_without_one(world):
    async with world.serving(3.0) as task:
        assert (await task.infer(X)).prediction.tolist() == [3.0, 6.0]


async def test_predict_gets_a_batch_of_one(world):
    shapes = []
    async with world.serving(predict=lambda model, x: shapes.append(x.shape) or x) as task:
        await task.infer(X)
    assert shapes == [(1, 2)]


async def test_without_batches_predict_gets_the_input_alone(world):
    async with world.serving(predict=lambda model, x: f"{x} {model}", batched=False) as task:
        assert (await task.infer("red")).prediction == "red 1.0"


async def test_an_answer_names_the_model_that_gave_it(world):
    async with world.serving() as task:
        digest = await world.controller.deploy(2.0, version=7)
        answer = await task.infer(X)
    assert (answer.model.digest, answer.model.version) == (digest, 7)


async def test_an_answer_has_the_id_that_was_given(world):
    async with world.serving() as task:
        assert (await task.infer(X, id="image-7")).id == "image-7"


async def test_equal_inputs_have_the_same_id(world):
    async with world.serving() as task:
        ids = [(await task.infer(x)).id for x in (X, X.copy(), X + 1)]
    assert (ids[0] == ids[1], ids[0] == ids[2]) == (True, False)


async def test_without_a_loader_a_model_is_its_arrays(world):
    async with world.serving(5.0, load=None, predict=lambda model, x: x * model[0]) as task:
        assert (await task.infer(X)).prediction.tolist() == [5.0, 10.0]


async def test_an_onnx_model_answers_with_the_loader_of_the_docs(world):
    reason = "pip install 'edgeai[onnx]' onnx"
    onnxruntime = pytest.importorskip("onnxruntime", reason=reason)
    onnx = pytest.importorskip("onnx", reason=reason)
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 2]) for name in ("x", "y"))
    twice = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "twice", [x], [y])
    made = onnx.helper.make_model(twice, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 13)])
    content = made.SerializeToString()
    name = f"{digest_bytes(content)}.onnx"
    (world.slot.models / name).write_bytes(content)
    model = ModelFile(name, BlobRef(digest_bytes(content), len(content)), "onnx")
    write_serving(world.slot.models, ServingFile(model, 1))

    def load(model: LocalModel) -> Any:
        return onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])

    def predict(session: Any, x: Any) -> Any:
        return session.run(None, {session.get_inputs()[0].name: x})[0]

    async with world.serving(None, load=load, predict=predict) as task:
        answer = await task.infer(np.array([1.0, 2.0], "float32"))
    assert (answer.prediction.tolist(), answer.model.format) == ([2.0, 4.0], "onnx")


async def test_functions_of_the_script_may_be_async(world):
    async def load_later(model: LocalModel) -> float:
        await asyncio.sleep(0)
        return load(model)

    async def predict_later(model: float, x: Any) -> Any:
        await asyncio.sleep(0)
        return x * model

    async with world.serving(2.0, load=load_later, predict=predict_later) as task:
        assert (await task.infer(X)).prediction.tolist() == [2.0, 4.0]


async def test_requests_are_answered_in_the_order_of_their_calls(world):
    answered: list[int] = []

    async def ask(task: Task, number: int) -> None:
        await task.infer(np.array([float(number)]))
        answered.append(number)

    async with world.serving() as task, asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(ask(task, number))
    assert answered == list(range(50))


async def test_a_request_before_serve_is_refused(world):
    async with world.joined() as task:
        with pytest.raises(Refused, match="no model serves yet"):
            await task.infer(X)


async def test_serve_is_called_once(world):
    async with world.serving() as task:
        with pytest.raises(Refused, match="was called already"):
            await task.serve(predict=predict)


@pytest.mark.parametrize("given", ["", "a" * 201, "a\nb", 7])
async def test_an_id_is_printable_text(world, given):
    async with world.serving() as task:
        with pytest.raises(Refused, match="an id is printable text"):
            await task.infer(X, id=given)


async def test_a_batch_of_several_is_no_answer_for_one_input(world):
    async with world.serving(predict=lambda model, x: np.zeros((3, 2))) as task:
        with pytest.raises(ValueError, match=r"answered \[3, 2\]"):
            await task.infer(X)


async def test_the_loop_is_not_held_while_a_model_predicts(world):
    let_go = threading.Event()

    def slowly(model: float, x: Any) -> Any:
        assert let_go.wait(20)
        return x

    async with world.serving(predict=slowly) as task:
        waiting = asyncio.create_task(task.infer(X))
        await asyncio.sleep(0)
        let_go.set()  # reached only by a loop that turns
        await waiting


# --- swaps


async def test_ten_swaps_under_load_fail_and_drop_nothing(world):
    answers: list[tuple[float, Answer]] = []
    stop = asyncio.Event()

    async def one(task: Task, number: int) -> None:
        answers.append((float(number), await task.infer(np.array([float(number)]))))

    async def camera(task: Task) -> int:
        """200 images a second, whatever becomes of the ones before."""
        loop, count = asyncio.get_running_loop(), 0
        begin_s = loop.time()
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                group.create_task(one(task, count % 90))
                count += 1
                await asyncio.sleep(max(0.0, begin_s + count / 200 - loop.time()))
        return count

    async with world.serving(1.0) as task:
        sending = asyncio.create_task(camera(task))
        for version in range(2, 12):
            await world.controller.deploy(float(version), version=version)
            seen = len(answers)
            await until(lambda seen=seen: len(answers) >= seen + 20)
        stop.set()
        sent = await sending
    assert len(answers) == sent
    numbers = [world.controller.digests[answer.model.digest] for _, answer in answers]
    assert [answer.prediction.item() for _, answer in answers] == [
        x * number for (x, _), number in zip(answers, numbers, strict=True)
    ]
    assert numbers == sorted(numbers)  # never back to the one before
    assert set(numbers) == {float(number) for number in range(1, 12)}


async def test_requests_go_on_while_a_model_loads(world):
    loading, let_go = threading.Event(), threading.Event()

    def load_slowly(model: LocalModel) -> float:
        value = load(model)
        if value == 2.0:
            loading.set()
            assert let_go.wait(20)
        return value

    async with world.serving(1.0, load=load_slowly) as task:
        digest = world.controller.ask(2.0)
        await until(loading.is_set)
        answers = [(await task.infer(X)).prediction[0] for _ in range(10)]
        let_go.set()
        await until(lambda: world.controller.told.digest == digest)
    assert answers == [1.0] * 10


async def test_at_most_two_models_are_in_memory(world):
    class Held:
        def __init__(self, value: float) -> None:
            self.value = value

    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most = 0

    def load_held(model: LocalModel) -> Held:
        nonlocal most
        held = Held(load(model))
        alive.add(held)
        gc.collect()
        most = max(most, len(alive))
        return held

    async with world.serving(1.0, load=load_held, predict=lambda model, x: x * model.value) as task:
        for version in range(2, 8):
            await world.controller.deploy(float(version))
            await task.infer(X)
    assert most == 2


async def test_the_model_before_serves_again_without_being_loaded(world):
    loaded = []

    async with world.serving(1.0, load=lambda model: loaded.append(load(model)) or loaded[-1]):
        await world.controller.deploy(2.0)
        await world.controller.deploy(1.0)
    assert loaded == [1.0, 2.0]


async def test_a_version_number_that_comes_later_is_taken_over(world):
    async with world.serving(1.0) as task:
        world.controller.ask(1.0, version=9)
        await until(lambda: task._part._server.serving.model.version == 9)
        assert (await task.infer(X)).model.version == 9


async def test_a_model_whose_file_comes_later_is_served_then(world):
    async with world.serving(1.0):
        model = world.controller.stored(2.0)
        path = world.slot.model(model.blob.digest)
        path.rename(world.slot.path / "elsewhere")
        write_serving(world.slot.models, ServingFile(model, 2))
        await until(lambda: world.controller.told.digest and world.slot.models.exists())
        (world.slot.path / "elsewhere").rename(path)
        await until(lambda: world.controller.told.digest == model.blob.digest)


# --- models that will not do


async def test_a_model_that_raises_on_load_is_refused_in_one_line(world):
    async with world.serving(1.0) as task:
        reason = await world.controller.refused(BAD_LOAD)
        assert reason == "it does not load: ValueError: no such layer"
        assert (await task.infer(X)).prediction.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (NOT_FINITE, "it does not answer: its answer has values that are not finite"),
        (WRONG_SHAPE, "it answers f[1], the serving model f[2]"),
        (BAD_LATER, "it does not answer: ValueError: too large for this model"),
    ],
    ids=["not finite", "wrong shape", "raises"],
)
async def test_a_model_that_does_not_answer_held_out_inputs_never_serves(world, value, says):
    np.save(world.slot.models / "canary.npy", np.array([[1.0, 2.0], [100.0, 3.0]]))
    async with world.serving(1.0) as task:
        assert await world.controller.refused(value, canary="canary.npy") == says
        assert (await task.infer(X)).prediction.tolist() == [1.0, 2.0]


async def test_without_held_out_inputs_the_last_requests_are_tried(world):
    async with world.serving(1.0) as task:
        await task.infer(X)
        assert "not finite" in await world.controller.refused(NOT_FINITE)


async def test_a_held_out_input_that_the_serving_model_cannot_answer_says_nothing(world):
    np.save(world.slot.models / "canary.npy", np.array([[2000.0]]))
    async with world.serving(1.0):
        await world.controller.deploy(2.0, canary="canary.npy")


async def test_a_file_that_is_not_its_digest_is_refused(world):
    async with world.serving(1.0):
        model = world.controller.stored(2.0)
        path = world.slot.model(model.blob.digest)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        write_serving(world.slot.models, ServingFile(model))
        await until(lambda: "its digest is" in world.controller.told.refused.get(model.blob.digest, ""))


async def test_a_refused_model_that_is_asked_for_again_is_tried_again(world):
    broken = [True]

    def load_sometimes(model: LocalModel) -> float:
        value = load(model)
        if value == 2.0 and broken[0]:
            raise MemoryError
        return value

    async with world.serving(1.0, load=load_sometimes):
        await world.controller.refused(2.0)
        broken.clear()
        broken.append(False)
        await world.controller.deploy(2.0)
        assert world.controller.told.refused == {}


async def test_the_first_model_is_refused_as_well_and_the_next_one_serves(world):
    world.controller.ask(BAD_LOAD)
    async with world.joined() as task:
        serving = asyncio.create_task(task.serve(load=load, predict=predict))
        await until(lambda: world.controller.told.refused)
        await world.controller.deploy(1.0)
        await serving


# --- models that go bad while they serve


async def test_a_model_that_raises_gives_way_within_the_same_request(world):
    async with world.serving(1.0) as task:
        await world.controller.deploy(BAD_LATER)
        answer = await task.infer(np.array([100.0, 1.0]))
    assert (answer.prediction.tolist(), world.controller.digests[answer.model.digest]) == ([100.0, 1.0], 1.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(lambda x: x * np.inf, "not finite"), (lambda x: x[:, :1], r"it answers f[1], the model before it f[2]")],
    ids=["not finite", "another shape"],
)
async def test_an_answer_that_is_none_gives_way_to_the_model_before(world, wrong, says):
    def turning(model: float, x: Any) -> Any:
        return wrong(x) if model == 2.0 and x.max() >= 100 else x * model

    async with world.serving(1.0, predict=turning) as task:
        await task.infer(X)
        digest = await world.controller.deploy(2.0)
        answer = await task.infer(np.array([100.0, 1.0]))
        await until(lambda: digest in world.controller.told.refused)
    assert answer.prediction.tolist() == [100.0, 1.0]
    assert says in world.controller.told.refused[digest]


async def test_the_model_before_goes_on_serving(world):
    async with world.serving(1.0) as task:
        bad = await world.controller.deploy(BAD_LATER)
        await task.infer(np.array([100.0]))
        await until(lambda: world.controller.told.digest != bad)
        assert world.controller.told.refused == {bad: "ValueError: too large for this model"}
        assert (await task.infer(X)).prediction.tolist() == [1.0, 2.0]


async def test_an_input_that_neither_model_answers_is_the_callers_mistake(world):
    async with world.serving(1.0) as task:
        digest = await world.controller.deploy(2.0)
        with pytest.raises(ValueError, match="nobody can answer"):
            await task.infer(np.array([1000.0]))
        assert (await task.infer(X)).model.digest == digest


async def test_answers_whose_length_differs_by_nature_are_no_fault(world):
    def boxes(model: float, x: Any) -> Any:
        return np.full((1, int(x.max()), 4), model)

    async with world.serving(1.0, predict=boxes) as task:
        for count in (1, 2):
            await task.infer(np.array([float(count)]))
        await world.controller.deploy(2.0)
        assert (await task.infer(np.array([5.0]))).prediction.shape == (5, 4)


async def test_a_form_that_the_model_before_has_as_well_is_no_fault(world):
    def boxes(model: float, x: Any) -> Any:
        return np.full((1, int(x.max()), 4), model)

    async with world.serving(1.0, predict=boxes) as task:
        await task.infer(np.array([1.0]))  # all answers so far have one box
        digest = await world.controller.deploy(2.0)
        assert (await task.infer(np.array([5.0]))).model.digest == digest


async def test_a_first_model_whose_answer_is_not_finite_raises(world):
    async with world.serving(1.0, predict=lambda model, x: x * np.nan) as task:
        with pytest.raises(ModelError, match="not finite"):
            await task.infer(X)


async def test_after_a_refusal_there_is_a_model_to_fall_back_to(world):
    async with world.serving(1.0) as task:
        await world.controller.deploy(BAD_LATER)
        await world.controller.refused(BAD_LOAD)
        await until(lambda: task._part._server.before is not None)
        assert (await task.infer(np.array([100.0]))).prediction.tolist() == [100.0]


async def test_after_a_restart_the_model_that_served_is_there_to_fall_back_to(world):
    async with world.serving(1.0):
        pass
    async with world.joined() as task:
        world.controller.ask(BAD_LATER)
        await task.serve(load=load, predict=predict)
        await world.controller.hint()
        await until(lambda: task._part._server.before is not None)
        assert (await task.infer(np.array([100.0]))).prediction.tolist() == [100.0]


async def test_after_a_restart_a_model_that_will_not_do_is_not_served_for_a_moment(world):
    async with world.serving(1.0):
        pass
    world.controller.ask(BAD_LOAD)
    async with world.serving(None) as task:
        assert (await task.infer(X)).prediction.tolist() == [1.0, 2.0]


# --- models that end the process


async def ended(world: World, *, load: Any, until_: Callable[[Task], bool]) -> None:
    """The worker starts, and ends when `until_` says so."""
    async with world.joined() as task:
        serving = asyncio.create_task(task.serve(load=load, predict=predict))
        await until(lambda: until_(task))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_model_that_ended_the_worker_twice_on_load_is_refused(world):
    async with world.serving(1.0):
        pass
    bad, tried, freed = world.controller.ask(7.0), [], threading.Event()

    def ends(model: LocalModel) -> float:
        if model.digest == bad:
            tried.append(model)
            freed.wait(20)  # the process is gone before this returns
        return load(model)

    for times in (1, 2):
        await ended(world, load=ends, until_=lambda _, times=times: len(tried) == times)
    freed.set()
    async with world.serving(None, load=ends) as task:
        await until(lambda: bad in world.controller.told.refused)
        assert (await task.infer(X)).prediction.tolist() == [1.0, 2.0]
    assert "ended 2 times" in world.controller.told.refused[bad]
    assert len(tried) == 2


async def test_a_model_that_ended_the_worker_twice_after_the_swap_is_refused(world):
    async with world.serving(1.0):
        bad = await world.controller.deploy(7.0)
    await ended(world, load=load, until_=lambda task: _serves(task) == bad)
    async with world.serving(None) as task:
        await until(lambda: bad in world.controller.told.refused)
        assert (await task.infer(X)).prediction.tolist() == [1.0, 2.0]


async def test_a_worker_that_ended_once_tries_the_model_again(world):
    async with world.serving(1.0):
        good = await world.controller.deploy(7.0)
    async with world.serving(None) as task:
        await until(lambda: _serves(task) == good)
        assert task._part._server.before is not None


async def test_a_model_that_has_answered_for_a_while_is_on_trial_no_more(world, monkeypatch):
    monkeypatch.setattr(trials, "TRUST_S", 0.0)
    async with world.serving(1.0) as task:
        await world.controller.deploy(7.0)
        assert (world.slot.path / TRIAL_FILE).exists()
        await task.infer(X)
        await until(lambda: not (world.slot.path / TRIAL_FILE).exists())


async def test_a_model_that_was_refused_for_ending_the_worker_may_be_asked_for_again(world):
    async with world.serving(1.0):
        bad = await world.controller.deploy(7.0)
    await ended(world, load=load, until_=lambda task: _serves(task) == bad)
    async with world.serving(None):
        await until(lambda: bad in world.controller.told.refused)
        await world.controller.deploy(1.0)
        await until(lambda: not (world.slot.path / TRIAL_FILE).exists())
        await world.controller.deploy(7.0)


def test_another_run_of_the_slot_begins_with_what_the_controller_asks_for(tmp_path):
    slot = slot_at(tmp_path / "slot")
    write_serving(slot.path, ServingFile(ModelFile("m", BlobRef("0" * 64, 1))))
    slot.forget_run()
    assert read_serving(slot.path) is None


def _serves(task: Task) -> str:
    served = task._part._server.serving
    return served.model.digest if served else ""


# --- mining and figures


async def test_a_hard_example_is_on_disk_when_its_answer_is_given(mined):
    async with mined.serving() as task:
        await task.infer(X, id="image-7")
        [record] = mined.controller.hard_examples()
    assert (record["id"], record["predicted"], record["score"]) == ("image-7", "[1.0, 2.0]", 1.0)


async def test_the_input_of_a_hard_example_is_kept_as_an_array(mined):
    async with mined.serving() as task:
        await task.infer(X)
        [record] = mined.controller.hard_examples()
    assert np.load(io.BytesIO(record["input"]), allow_pickle=False).tolist() == X.tolist()


async def test_what_the_model_is_sure_of_is_not_kept(tmp_path):
    async with world_at(slot_at(tmp_path / "slot", mining="LeastConfidence", threshold=0.3)) as world:
        async with world.serving(predict=lambda model, x: x) as task:
            sure, unsure = [await task.infer(np.array([p, 1 - p])) for p in (0.9, 0.6)]
        assert [record["id"] for record in world.controller.hard_examples()] == [unsure.id]
    assert (sure.hard, unsure.hard, unsure.score) == (False, True, pytest.approx(0.4))


async def test_a_function_of_the_script_may_say_what_is_hard(tmp_path, monkeypatch):
    (tmp_path / "my_mining.py").write_text("def large(prediction):\n    return prediction.max() > 5, 0.75\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    slot = slot_at(tmp_path / "slot", mining="Custom", **{"entry point": "my_mining:large"})
    async with world_at(slot) as world, world.serving() as task:
        answers = [await task.infer(np.array([value])) for value in (1.0, 9.0)]
    assert [(answer.hard, answer.score) for answer in answers] == [(False, 0.75), (True, 0.75)]


async def test_a_function_that_the_script_does_not_have_is_refused(tmp_path):
    slot = slot_at(tmp_path / "slot", mining="Custom", **{"entry point": "no_such_module:large"})
    async with world_at(slot) as world, world.joined() as task:
        with pytest.raises(Refused, match="mining by no_such_module:large is not possible"):
            await task.serve(load=load, predict=predict)


async def test_an_answer_that_cannot_be_mined_is_given_and_not_hard(tmp_path):
    async with (
        world_at(slot_at(tmp_path / "slot", mining="Margin", threshold=0.1)) as world,
        world.serving(5.0) as task,
    ):
        answer = await task.infer(X)
    assert (answer.hard, answer.prediction.tolist()) == (False, [5.0, 10.0])


class Unspeakable:
    """An input that is no array and has no text either."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("no array")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "x", [(np.zeros((2, 2)), np.zeros((2, 3))), {"a": X}, Unspeakable()], ids=["ragged", "named", "unspeakable"]
)
async def test_an_input_that_cannot_be_kept_has_an_answer(mined, x):
    async with mined.serving(predict=lambda model, x: X, batched=False) as task:
        assert (await task.infer(x)).prediction.tolist() == X.tolist()
        assert mined.controller.hard_examples() == []
        await until(lambda: task._part._hard_log.dropped == 1)


async def test_the_controller_is_told_how_many_requests_there_were(mined, monkeypatch):
    monkeypatch.setattr(inferences, "TELL_S", 0.02)
    async with mined.serving() as task:
        for _ in range(3):
            await task.infer(X)
        with pytest.raises(ValueError, match="nobody"):
            await task.infer(np.array([1000.0]))
        await until(lambda: mined.controller.told.requests == 4)
    told = mined.controller.told
    assert (told.failed, told.hard, told.hard_rate) == (1, 3, 1.0)
    assert 0 < told.p50_s <= told.p99_s


async def test_hard_examples_that_nobody_collects_are_counted_and_not_kept(mined, monkeypatch):
    monkeypatch.setattr(inferences, "TELL_S", 0.02)
    monkeypatch.setattr(inferences, "HardLog", lambda folder: HardLog(folder, segment_bytes=100, limit_bytes=500))
    async with mined.serving() as task:
        for _ in range(10):
            assert (await task.infer(X)).hard
        await until(lambda: mined.controller.told.requests == 10)
    assert len(mined.controller.hard_examples()) + mined.controller.told.dropped == 10


# --- the log of hard examples


def test_a_full_segment_is_followed_by_another(tmp_path):
    hard = HardLog(tmp_path / "hard", segment_bytes=100)
    for number in range(4):
        assert hard.append({"id": str(number), "input": b"x" * 60})
    hard.close()
    assert sorted(path.name for path in (tmp_path / "hard").iterdir()) == ["1.log", "2.log"]


def test_each_start_begins_another_segment(tmp_path):
    for _ in range(2):
        HardLog(tmp_path / "hard").close()
    assert sorted(path.name for path in (tmp_path / "hard").iterdir()) == ["1.log", "2.log"]


def test_there_is_room_again_when_the_controller_has_collected(tmp_path):
    hard = HardLog(tmp_path / "hard", segment_bytes=100, limit_bytes=200)
    kept = [hard.append({"input": b"x" * 90}) for _ in range(3)]
    (tmp_path / "hard" / "1.log").unlink()
    kept.append(hard.append({"input": b"x" * 90}))
    hard.close()
    assert (kept, hard.dropped) == ([True, True, False, True], 1)


def test_what_was_appended_is_synced_once(tmp_path):
    hard = HardLog(tmp_path / "hard")
    hard.append({"id": "1"})
    descriptor = hard.unsynced()
    assert descriptor is not None
    hard.append({"id": "2"})
    hard_logs.sync(descriptor)
    again = hard.unsynced()
    assert again is not None
    hard_logs.sync(again)
    assert hard.unsynced() is None
    hard.close()


def test_the_folder_is_synced_when_a_segment_begins(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(hard_logs.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    HardLog(tmp_path / "hard").close()
    assert synced == [(tmp_path / "hard").stat().st_ino]


KILLED = """
    import asyncio, itertools
    import numpy as np
    import edgeai

    async def main():
        async with edgeai.join() as task:
            await task.serve(predict=lambda model, x: x)
            for number in itertools.count():
                answer = await task.infer(np.full(4, float(number)), id=str(number))
                print(answer.id, flush=True)

    asyncio.run(main())
"""


def test_a_killed_worker_loses_no_hard_example_that_it_has_answered(tmp_path):
    slot = slot_at(tmp_path / "slot", mining="CloudOnly")
    controller = Controller(slot, MemoryBus(MemoryBroker()))
    controller.ask(1.0)
    environ = {**os.environ, **environment_of(slot, "mqtt://127.0.0.1:1"), "EDGEAI_WORKER": WORKER}
    environ["PYTHONPATH"] = str(Path(edgeai.__file__).parents[1])
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert worker.stdout is not None
    answered = [worker.stdout.readline().decode().strip() for _ in range(200)]
    worker.send_signal(signal.SIGKILL)
    answered += [line.decode().strip() for line in worker.stdout]
    worker.stdout.close()
    worker.wait(20)
    whole = [number for number in answered if number]
    assert len(whole) >= 200
    assert {record["id"] for record in controller.hard_examples()} >= set(whole[:-1])


# --- inputs from a file that grows


@asynccontextmanager
async def followed(slot: SlotDir, **how: Any) -> AsyncIterator[Callable[[], Any]]:
    async with world_at(slot) as world, world.joined() as task:
        batches = task.examples(**how)

        async def following() -> Any:
            async with asyncio.timeout(20):
                return {name: column.tolist() for name, column in (await anext(batches)).items()}

        yield following
        await batches.aclose()


async def test_rows_of_the_dataset_come_in_batches(tmp_path):
    np.savez(tmp_path / "stream.npz", x=np.arange(5))
    async with followed(slot_at(tmp_path / "slot", dataset=str(tmp_path / "stream.npz")), batch_size=3) as following:
        assert [await following(), await following()] == [{"x": [0, 1, 2]}, {"x": [3, 4]}]


async def test_an_npz_file_with_more_rows_gives_the_new_ones(tmp_path):
    path = tmp_path / "stream.npz"
    np.savez(path, x=np.arange(2))
    async with followed(slot_at(tmp_path / "slot"), path=path) as following:
        await following()
        np.savez(tmp_path / "next.npz", x=np.arange(4))
        (tmp_path / "next.npz").replace(path)
        assert await following() == {"x": [2, 3]}


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("s.csv", "x\n1\n", "2\n3\n"), ("s.jsonl", '{"x": 1}\n', '{"x": 2}\n{"x": 3}\n')],
    ids=["csv", "jsonl"],
)
async def test_lines_that_are_appended_are_new_rows(tmp_path, name, first, second):
    path = tmp_path / name
    path.write_text(first)
    async with followed(slot_at(tmp_path / "slot"), path=path) as following:
        found = [await following()]
        with path.open("a") as file:
            file.write(second)
        found.append(await following())
    assert found == [{"x": [1]}, {"x": [2, 3]}]


async def test_a_line_that_is_being_written_is_waited_for(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("x\n1\n2")
    async with followed(slot_at(tmp_path / "slot"), path=path) as following:
        found = [await following()]
        with path.open("a") as file:
            file.write("0\n")
        found.append(await following())
    assert found == [{"x": [1]}, {"x": [20]}]


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("s.csv", "x,y\n1,2\n3\n5,6\n", [1, 5]),
        ("s.csv", 'x,y\n1,"2\n5,6\n', [1, 5]),
        ("s.jsonl", '{"x": 1}\n{"x": \n[1]\n{"y": 1}\n{"x": [1, "a", [2]]}\n{"x": 2}\n', [1, 2]),
    ],
    ids=["a column is missing", "a quote is not closed", "no rows"],
)
def test_only_the_lines_that_are_no_rows_are_left_out(tmp_path, name, text, values):
    (tmp_path / name).write_text(text)
    growing = Growing(tmp_path / name, tmp_path / "place")
    assert [value for columns, _ in growing._more() for value in columns["x"].tolist()] == values


def test_lines_that_are_left_out_are_counted_once(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"x": 1}\nno\nno\n')
    growing = Growing(tmp_path / "s.jsonl", tmp_path / "place")
    [[(_, places)]] = [growing._more()]
    growing._place = places[-1]
    assert (growing._more(), growing.left_out) == (None, 2)


async def test_a_large_file_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(growing_files, "PIECE_BYTES", 64)
    lines = [f'{{"x": {number}}}' for number in range(100)]
    lines.insert(50, '{"x": "' + "long" * 100 + '"}')
    (tmp_path / "s.jsonl").write_text("\n".join(lines) + "\n")
    growing, found = Growing(tmp_path / "s.jsonl", tmp_path / "place"), []
    async with asyncio.timeout(20):
        async for batch in growing.batches(1000):
            assert len(batch["x"]) <= 8
            found += batch["x"].tolist()
            if len(found) == 100:
                break
    assert (found, growing.left_out) == (list(range(100)), 1)


def test_values_of_another_shape_come_in_a_batch_of_their_own(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"x": [1, 2]}\n{"x": [3, 4]}\n{"x": [5]}\n')
    growing = Growing(tmp_path / "s.jsonl", tmp_path / "place")
    assert [columns["x"].tolist() for columns, _ in growing._more()] == [[[1, 2], [3, 4]], [[5]]]


async def test_another_file_is_read_from_its_start(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("x\n1\n2\n")
    async with followed(slot_at(tmp_path / "slot"), path=path) as following:
        await following()
        (tmp_path / "next").write_text("x\n7\n8\n9\n")
        (tmp_path / "next").replace(path)
        assert await following() == {"x": [7, 8, 9]}


async def test_rows_that_were_seen_are_not_given_again_after_a_restart(tmp_path):
    path, slot = tmp_path / "s.csv", slot_at(tmp_path / "slot")
    path.write_text("x\n1\n2\n")
    async with followed(slot, path=path) as following:
        await following()
        waiting = asyncio.create_task(following())  # says that the batch is done with
        await until((slot.path / "examples.json").exists)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    with path.open("a") as file:
        file.write("3\n")
    async with followed(slot, path=path) as following:
        assert await following() == {"x": [3]}


async def test_without_a_file_to_follow_there_are_no_examples(tmp_path):
    async with followed(slot_at(tmp_path / "slot")) as following:
        with pytest.raises(Refused, match="this worker has no dataset to follow"):
            await following()


async def test_a_file_without_rows_is_refused(tmp_path):
    async with followed(slot_at(tmp_path / "slot"), path=tmp_path / "images.zip") as following:
        with pytest.raises(Refused, match="is not npz, csv or jsonl"):
            await following()
