"""A Keras model's part in a federated task, in one call. The only door to tensorflow and keras, opened when it is used.

What a script would write by hand with the lib: join, load the round's weights, evaluate, fit, submit. A round trained again
after a crash gives the same update: each begins from the same state of optimizer and random numbers, seeded by worker and
round. (TensorFlow's own sums may depend on threads; `tf.config.experimental.enable_op_determinism` is the script's choice.)
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeai.errors import Refused, UpdateError
from edgeai.worker.round import Round, Weights
from edgeai.worker.sync import SyncRound, SyncTask, join_sync
from edgeai.worker.task import Task, join

Held = tuple[Any, ...]
"""Held-out examples, as Keras takes them: (x, y) or (x, y, sample weights)."""


@dataclass(frozen=True, slots=True)
class Examples:
    x: Any
    y: Any
    held_out: Held | None

    def of(self, task: Task | SyncTask) -> Examples:
        """`x` may be a function that loads the examples of a task."""
        if not callable(self.x) or self.y is not None:
            return self
        x, y, *more = self.x(task)
        return Examples(x, y, more[0] if more else self.held_out)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What `train` was asked for; None: what the task's parameters say."""

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)


def train(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    validation_data: Held | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    task: SyncTask | None = None,
    **fit_options: Any,
) -> None:
    """Train a compiled Keras model in all rounds of this worker's task; returns when the task has ended.

    In every round the model gets the round's weights; it is evaluated on `validation_data` if the round validates, then
    trained on `x` and `y` and submitted, weighted by `len(x)`. Its optimizer starts anew each round. In the end the model
    has the last weights that this worker was sent, or has trained.

    Args:
        model: compiled, with weights; `metrics=["accuracy"]` gives what `target accuracy` looks at.
        x, y: examples and labels. Or, without `y`, a function of the task that gives (x, y) or (x, y, validation data):
            `train(model, lambda task: load(task.dataset.path))`.
        validation_data: held-out (x, y) or (x, y, sample weights). Without, this worker does not evaluate.
        epochs, batch_size, learning_rate: default to the parameters `epochs`, `batch size` and `learning rate` of the
            task. An optimizer that was compiled with a schedule keeps it.
        seed: another one for every repetition of an experiment.
        task: a task that was joined with `join_sync()`; joins by itself without.
        fit_options: handed to `model.fit`, e.g. `callbacks`, `class_weight`, `verbose` (default 0).

    Raises:
        Refused: the model is not compiled or has no weights, or there are no examples.
        UpdateError: the round's weights do not fit the model.
    """
    examples = Examples(x, y, validation_data)
    options = FitOptions(epochs, batch_size, learning_rate, seed, fit_options)
    with ExitStack() as stack:
        joined = task or stack.enter_context(join_sync())
        trainer = _Trainer(joined, model, examples.of(joined), options)
        for round_ in joined.rounds():
            if not round_.weights:
                round_.submit(model.get_weights(), num_examples=trainer.num_examples)
                continue
            trainer.load(round_.weights)
            if round_.validate and trainer.num_held_out:
                round_.report(trainer.evaluate(), num_examples=trainer.num_held_out)
            if round_.train:
                metrics = trainer.fit(round_)
                round_.submit(model.get_weights(), num_examples=trainer.num_examples, metrics=metrics)


async def train_async(
    model: Any,
    x: Any,
    y: Any = None,
    *,
    validation_data: Held | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    task: Task | None = None,
    **fit_options: Any,
) -> None:
    """As `train`, for a script with an event loop: Keras works in a thread, one call at a time."""
    examples = Examples(x, y, validation_data)
    options = FitOptions(epochs, batch_size, learning_rate, seed, fit_options)
    async with AsyncExitStack() as stack:
        joined: Task = task if task is not None else await stack.enter_async_context(join())
        trainer = _Trainer(joined, model, await asyncio.to_thread(examples.of, joined), options)
        async for round_ in joined.rounds():
            if not round_.weights:
                await round_.submit(model.get_weights(), num_examples=trainer.num_examples)
                continue
            trainer.load(round_.weights)
            if round_.validate and trainer.num_held_out:
                metrics = await asyncio.to_thread(trainer.evaluate)
                await round_.report(metrics, num_examples=trainer.num_held_out)
            if round_.train:
                metrics = await asyncio.to_thread(trainer.fit, round_)
                await round_.submit(model.get_weights(), num_examples=trainer.num_examples, metrics=metrics)


class _Trainer:
    """A model with its examples, and the state in which each round finds it."""

    def __init__(self, task: Task | SyncTask, model: Any, examples: Examples, options: FitOptions) -> None:
        self._task, self._model, self._examples, self._options = task, model, examples, options
        self.num_examples = _count(examples.x)
        self.num_held_out = _count(examples.held_out[0]) if examples.held_out is not None else 0
        _check_model(model, examples.x)
        optimizer = model.optimizer
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._fresh = [np.array(variable.numpy()) for variable in optimizer.variables]
        weights = {id(variable) for variable in model.weights}
        self._random = [variable for variable in model.variables if id(variable) not in weights]
        parameters = task.parameters
        self._epochs = options.epochs or int(parameters.get("epochs") or 1)
        self._batch_size = options.batch_size or int(parameters.get("batch size") or 32)
        self._learning_rate = options.learning_rate or parameters.get("learning rate")

    def load(self, weights: Weights) -> None:
        try:
            self._model.set_weights(weights)
        except ValueError as error:
            raise UpdateError(f"the round's weights do not fit the Keras model {self._model.name}: {error}") from error

    def evaluate(self) -> dict[str, float]:
        assert self._examples.held_out is not None
        x, y, *weights = self._examples.held_out
        found = self._model.evaluate(x, y, sample_weight=weights[0] if weights else None, verbose=0, return_dict=True)
        return {name: float(value) for name, value in found.items()}

    def fit(self, round_: Round | SyncRound) -> dict[str, float]:
        """Train one round; returns the last value of each metric."""
        self._begin(zlib.crc32(f"{self._options.seed} {self._task.worker} {round_.number}".encode()))
        options = {"epochs": self._epochs, "batch_size": self._batch_size, "verbose": 0, **self._options.more}
        history = self._model.fit(self._examples.x, self._examples.y, **options)
        metrics = {name: float(values[-1]) for name, values in history.history.items() if values}
        shown = {name: round(value, 4) for name, value in metrics.items()}
        self._task.log.info("round_trained", round=round_.number, examples=self.num_examples, metrics=shown)
        return metrics

    def _begin(self, seed: int) -> None:
        """The same beginning whatever this process did before."""
        import keras

        keras.utils.set_random_seed(seed)
        optimizer = self._model.optimizer
        for variable, value in zip(optimizer.variables, self._fresh, strict=True):
            variable.assign(value)
        for index, state in enumerate(self._random):  # of dropout and the like: two numbers, seed and counter
            state.assign(np.array([(seed + index) % 2**32, 0], dtype=str(state.dtype)))
        if self._learning_rate is not None and not _scheduled(optimizer):
            optimizer.learning_rate = self._learning_rate


def _check_model(model: Any, x: Any) -> None:
    if not getattr(model, "compiled", False):
        raise Refused("the Keras model is not compiled: call model.compile(optimizer, loss, metrics=[...]) first")
    if not model.built and not isinstance(x, dict | list | tuple):
        model(np.asarray(x[:1]))  # a model without an Input layer learns its shapes from examples
    if not model.weights:
        raise Refused("the Keras model has no weights yet: begin it with an Input layer")


def _scheduled(optimizer: Any) -> bool:
    import keras

    return isinstance(getattr(optimizer, "_learning_rate", None), keras.optimizers.schedules.LearningRateSchedule)


def _count(x: Any) -> int:
    """How many examples: the length of the inputs, of the first of several (a list, tuple or dict of arrays)."""
    if isinstance(x, Mapping):
        x = tuple(x.values())
    first = x[0] if isinstance(x, list | tuple) and x and hasattr(x[0], "shape") and x[0].shape else x
    if not hasattr(first, "__len__") or len(first) == 0:
        raise Refused("no examples: they must be an array, or several inputs as arrays of the same length")
    return len(first)
