"""What `edgeai.keras.train` checks before it asks anything of Keras. Training is in tests/brokers/test_keras_train.py."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeai.errors import Refused
from edgeai.worker import keras

X = np.zeros((6, 4))


@pytest.mark.parametrize(
    "x",
    [X, X.tolist(), [X, np.zeros((6, 2))], (X, X), {"left": X, "right": X}],
    ids=["array", "lists", "list of inputs", "tuple of inputs", "named inputs"],
)
def test_examples_are_counted_by_the_length_of_the_inputs(x):
    assert keras._count(x) == 6


@pytest.mark.parametrize("x", [np.zeros((0, 4)), [], {}, 7, iter([1])])
def test_no_examples_are_refused(x):
    with pytest.raises(Refused, match="no examples"):
        keras._count(x)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (SimpleNamespace(compiled=False), "is not compiled"),
        (object(), "is not compiled"),
        (SimpleNamespace(compiled=True, built=True, weights=[]), "has no weights"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(model, says):
    with pytest.raises(Refused, match=says):
        keras._check_model(model, X)


def test_a_model_without_an_input_layer_learns_its_shapes_from_the_first_example():
    seen = []

    class Model(SimpleNamespace):
        def __call__(self, x):
            seen.append(x.shape)
            self.weights = [X]

    keras._check_model(Model(compiled=True, built=False, weights=[]), X)
    assert seen == [(1, 4)]


def test_a_function_loads_the_examples_of_its_task():
    task = SimpleNamespace(name="digits")
    found = keras.Examples(lambda task: (task.name, "y", ("x", "y")), None, None).of(task)
    assert (found.x, found.y, found.held_out) == ("digits", "y", ("x", "y"))


def test_held_out_data_of_the_call_stays_when_the_function_gives_none():
    found = keras.Examples(lambda task: ("x", "y"), None, ("hx", "hy")).of(SimpleNamespace())
    assert found.held_out == ("hx", "hy")
