"""`edgeai.keras.train` with a real model, a real broker and a scripted aggregation side."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest

import edgeai
from edgeai import logs
from edgeai.bus.mqtt import MqttBus
from edgeai.errors import UpdateError
from edgeai.events.catalogue import Offer, Outcome, Report
from edgeai.launcher import ExitReason, ExitRecord, LaunchSpec, ProcessLauncher
from edgeai.launcher.slots import SlotDir
from scripted_aggregation import PATIENCE_S, WORKER, Scripted, decoded, environment_of, scripted, slot_of

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed"),
]

ROOT = Path(__file__).parents[2]
rng = np.random.default_rng(0)
X = rng.normal(size=(40, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")
HELD_OUT = (X[:10], Y[:10])


def build(optimizer: Any = None, *, dropout: float = 0.0) -> Any:
    import keras  # here: collecting these tests must not take seconds

    keras.utils.set_random_seed(1)
    layers = [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(dropout), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.5), loss, metrics=["accuracy"], jit_compile=False)
    return model


@pytest.fixture
def slot(node: str, tmp_path: Path, mosquitto_url: str, monkeypatch: pytest.MonkeyPatch) -> SlotDir:
    monkeypatch.setattr(logs, "configure", lambda: None)
    found = slot_of(tmp_path / "slot", node, **{"epochs": 2, "batch size": 8, "learning rate": 0.1})
    for name, value in environment_of(found, mosquitto_url).items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
async def side(slot: SlotDir, node: str, tmp_path: Path, mosquitto_url: str) -> AsyncIterator[Scripted]:
    async with scripted(MqttBus(mosquitto_url, client_id=f"{node}-cloud"), slot, tmp_path / "cloud") as found:
        yield found


async def played(side: Scripted, training: Any, rounds: int, *, model: Any = None) -> list[Offer]:
    """Play rounds until the script has given an update in each, and the end of the task."""
    running = asyncio.ensure_future(training)
    offers = []
    for number in range(0 if model is None else 1, rounds + 1):
        await side.open(number, model, validate=number > 1)
        opened = asyncio.ensure_future(side.offer_of(number))
        await asyncio.wait({opened, running}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            opened.cancel()
            await running
        offer = await opened
        await side.tell(offer, Outcome.COUNTED)
        offers.append(offer)
        model = decoded(offer)
    await side.end()
    async with asyncio.timeout(PATIENCE_S):
        await running
    return offers


async def test_a_model_trains_from_its_own_first_weights_to_the_end_of_the_task(side):
    model = build()
    first = model.get_weights()
    training = asyncio.to_thread(edgeai.keras.train, model, X, Y, validation_data=HELD_OUT)
    offers = await played(side, training, 3)
    assert [offer.number for offer in offers] == [0, 1, 2, 3]
    assert all(np.array_equal(mine, sent) for mine, sent in zip(first, decoded(offers[0]), strict=True))
    assert offers[3].metrics["loss"] < offers[1].metrics["loss"]
    assert {offer.num_examples for offer in offers} == {40}


async def test_the_model_of_a_round_is_evaluated_on_held_out_data(side):
    training = asyncio.to_thread(edgeai.keras.train, build(), X, Y, validation_data=HELD_OUT)
    await played(side, training, 2)
    evaluation = (await side.next(Report)).evaluation
    assert evaluation is not None
    assert (sorted(evaluation.metrics), evaluation.num_examples) == (["accuracy", "loss"], 10)


async def test_without_held_out_data_a_worker_declines_to_evaluate(side):
    await played(side, asyncio.to_thread(edgeai.keras.train, build(), X, Y), 2)
    assert (await side.next(Report)).evaluation is None


async def test_a_round_that_only_validates_trains_nothing(side):
    model = build()
    weights = [np.full_like(array, 0.25) for array in model.get_weights()]
    training = asyncio.create_task(asyncio.to_thread(edgeai.keras.train, model, X, Y, validation_data=HELD_OUT))
    await side.open(4, weights, train=False, validate=True)
    await side.next(Report)
    await side.end()
    await training
    assert (side.count(Offer), float(model.get_weights()[0].max())) == (0, 0.25)


async def test_the_same_in_a_script_with_an_event_loop(side):
    training = edgeai.keras.train_async(build(), X, Y, validation_data=HELD_OUT)
    offers = await played(side, training, 2)
    assert [offer.number for offer in offers] == [0, 1, 2]


async def test_examples_may_be_loaded_when_the_task_is_known(side):
    seen = []

    def load(task: Any) -> tuple[Any, ...]:
        seen.append(task.worker)
        return X, Y, HELD_OUT

    await played(side, asyncio.to_thread(edgeai.keras.train, build(), load), 2)
    assert (seen, (await side.next(Report)).evaluation is not None) == ([WORKER], True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "schedule"])
async def test_a_round_trained_again_by_another_process_gives_the_same_update(optimizer, side):
    """One worker has trained rounds 1 and 2, the other only round 2: optimizer and dropout must not remember."""
    import keras

    def fresh() -> Any:
        rates = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
        made = {
            "sgd": keras.optimizers.SGD(0.5, 0.9),
            "adam": keras.optimizers.Adam(),
            "schedule": keras.optimizers.SGD(rates),
        }
        return build(made[optimizer], dropout=0.5)

    weights = fresh().get_weights()
    digests = []
    for rounds in ([1, 2], [2]):
        side.forget()
        side.lose_everything()
        running = asyncio.create_task(asyncio.to_thread(edgeai.keras.train, fresh(), X, Y))
        for number in rounds:
            await side.open(number, weights)
            offer = await side.offer_of(number)
            await side.tell(offer, Outcome.COUNTED)
        digests.append(offer.blob.digest)
        await side.end()
        await running
    assert digests[0] == digests[1]


async def test_the_parameters_of_the_task_rule_unless_the_call_says_otherwise(side):
    import keras

    epochs, rates = [], []

    class Spy(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            epochs.append(self.params["epochs"])
            rates.append(round(float(self.model.optimizer.learning_rate), 4))

    for options in ({}, {"epochs": 1, "learning_rate": 0.3}):
        side.lose_everything()
        side.forget()
        training = asyncio.to_thread(edgeai.keras.train, build(), X, Y, callbacks=[Spy()], **options)
        await played(side, training, 1, model=build().get_weights())
    assert (epochs, rates) == ([2, 1], [0.1, 0.3])


async def test_weights_of_another_model_are_an_error_that_says_so(side):
    await side.open(1, [np.zeros((3, 3), "float32")])
    with pytest.raises(UpdateError, match="the round's weights do not fit the Keras model"):
        await asyncio.to_thread(edgeai.keras.train, build(), X, Y)


async def test_training_that_diverges_is_left_to_the_aggregation_worker(side):
    model = [np.full_like(array, np.nan) for array in build().get_weights()]
    [offer] = await played(side, asyncio.to_thread(edgeai.keras.train, build(), X, Y), 1, model=model)
    assert "loss" not in offer.metrics
    assert np.isnan(decoded(offer)[0]).any()


async def test_the_script_on_the_page_of_the_lib_runs_as_printed(side, slot, mosquitto_url):
    page = (ROOT / "docs" / "lib.md").read_text()
    [script] = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "keras.train(model, load)" in block
    ]
    examples = slot.path.parent / "digits.npz"
    shapes = {"x_train": (50, 8, 8), "x_test": (20, 8, 8)}
    np.savez(
        examples,
        **{name: rng.integers(0, 17, shape) for name, shape in shapes.items()},
        y_train=rng.integers(0, 10, 50),
        y_test=rng.integers(0, 10, 20),
    )
    slot_of(slot.path, side.node, dataset_path=str(examples), epochs=1)
    boot = slot.script / "main.py"
    boot.write_text(script)
    environ = {**environment_of(slot, mosquitto_url), "PYTHONPATH": str(Path(edgeai.__file__).parents[1])}
    launcher = ProcessLauncher()
    running = await launcher.start(LaunchSpec("w", slot.path, ("python", "-u", str(boot)), environ, slot.script))
    try:
        await played(side, launcher.wait(running), 2)
    finally:
        await launcher.stop(running, 0.0)
    assert (await launcher.last_exit(slot.path)) == ExitRecord(ExitReason.EXITED, 0, last_line=ANY)
