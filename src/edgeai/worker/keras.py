"""A Keras model's part in a task, in one call. The only door to tensorflow and keras, opened when it is used.

Federated (`train`), and in the stages of an incremental learning job (`retrain`, `serve`).

What a script would write by hand with the lib: join, load the round's weights, evaluate, fit, submit. A round trained again
after a crash gives the same update: each begins from the same state of optimizer and random numbers, seeded by worker and
round. (TensorFlow's own sums may depend on threads; `tf.config.experimental.enable_op_determinism` is the script's choice.)
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeai.errors import ModelError, Refused, UpdateError
from edgeai.worker.examples import Columns
from edgeai.worker.models import LocalModel
from edgeai.worker.round import Weights
from edgeai.worker.sync import SyncTask, join_sync
from edgeai.worker.task import Task, join

MAX_CLASSES = 100
"""More are not reported one by one."""
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
                metrics = trainer.fit(round_.number)
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
                metrics = await asyncio.to_thread(trainer.fit, round_.number)
                await round_.submit(model.get_weights(), num_examples=trainer.num_examples, metrics=metrics)


Build = Callable[[], Any]
"""Makes a compiled model of the right layers; its weights do not matter."""
Split = Callable[[Columns], tuple[Any, Any]]
"""Makes (x, y) of columns of examples."""


def retrain(
    build: Build | None = None,
    *,
    examples: Split | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    task: SyncTask | None = None,
    **fit_options: Any,
) -> None:
    """The train or the eval stage of an incremental learning job, as the worker's role asks; one script may be both.

    Train: the serving model is trained further on all examples of the snapshot, old and new, and reported, in the form that
    it came in (`.keras`, or arrays). Eval: each model is evaluated on the held-out examples. Its accuracy by class is reported
    as `accuracy/<label>`, where labels are whole numbers.

    Args:
        build: makes a compiled model; needed where the job's models are arrays, and for `.keras` files that are not compiled.
        examples: makes (x, y) of the columns of a snapshot; by default the columns `x` and `y`.
        epochs, batch_size, learning_rate: default to the worker's parameters.
        seed: another one for every repetition of an experiment. A round trained again gives the same weights.
        task: a task that was joined with `join_sync()`; joins by itself without.
        fit_options: handed to `model.fit`, e.g. `callbacks`, `class_weight`, `verbose` (default 0).

    Raises:
        Refused: another role, no base model and no `build`, or no examples.
        ModelError: a model's arrays do not fit the one that `build` makes.
    """
    with ExitStack() as stack:
        joined = task or stack.enter_context(join_sync())
        stage = _Stage(joined, build, examples or _x_and_y)
        if joined.role == "eval":
            for model in joined.models:
                joined.report(stage.metrics(model), model=model)
            return
        options = FitOptions(epochs, batch_size, learning_rate, seed, fit_options)
        metrics, new = stage.trained(options)
        joined.report(metrics, model=new)


async def retrain_async(
    build: Build | None = None,
    *,
    examples: Split | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    task: Task | None = None,
    **fit_options: Any,
) -> None:
    """As `retrain`, for a script with an event loop: Keras works in a thread."""
    async with AsyncExitStack() as stack:
        joined: Task = task if task is not None else await stack.enter_async_context(join())
        stage = _Stage(joined, build, examples or _x_and_y)
        if joined.role == "eval":
            for model in joined.models:
                await joined.report(await asyncio.to_thread(stage.metrics, model), model=model)
            return
        options = FitOptions(epochs, batch_size, learning_rate, seed, fit_options)
        metrics, new = await asyncio.to_thread(stage.trained, options)
        await joined.report(metrics, model=new)


def serve(task: SyncTask, build: Build | None = None) -> None:
    """Serve the Keras models of a job: call it once, then `task.infer(x)` for each input. Returns when a model serves.

    `build` makes a model of the right layers; needed where the job's models are arrays.
    """
    task.serve(load=lambda model: _loaded(model, build, compiled=False), predict=_predict)


async def serve_async(task: Task, build: Build | None = None) -> None:
    """As `serve`, for a task that was joined with `join()`."""
    await task.serve(load=lambda model: _loaded(model, build, compiled=False), predict=_predict)


def _predict(model: Any, inputs: Any) -> Any:
    return model.predict_on_batch(inputs)


def _x_and_y(columns: Columns) -> tuple[Any, Any]:
    missing = [name for name in ("x", "y") if name not in columns]
    if missing:
        raise Refused(
            f"the snapshot has no column {missing[0]}, only {', '.join(columns)}: give examples=, which makes (x, y)"
        )
    return columns["x"], columns["y"]


def _loaded(model: LocalModel, build: Build | None, *, compiled: bool) -> Any:
    """A Keras model of a `.keras` file or of arrays. Raises Refused, ModelError."""
    import keras

    if model.format == "keras":
        found = keras.saving.load_model(model.path, compile=compiled, safe_mode=True)
        if not compiled or getattr(found, "compiled", False):
            return found
        weights = found.get_weights()
    else:
        weights = model.load()
    if build is None:
        raise Refused(
            f"a model of format {model.format} needs build=, a function that makes a compiled Keras model for it"
        )
    found = build()
    try:
        found.set_weights(weights)
    except ValueError as error:
        raise ModelError(f"the arrays of model {model.digest[:12]} do not fit what build makes: {error}") from error
    return found


class _Stage:
    """A train or eval run of a job."""

    def __init__(self, task: Task | SyncTask, build: Build | None, split: Split) -> None:
        if task.dataset is None:
            raise Refused("retrain needs a snapshot of examples: this worker has no dataset")
        self._task, self._build, self._split, self._dataset = task, build, split, task.dataset

    def metrics(self, model: LocalModel) -> dict[str, float]:
        x, y = self._split(self._dataset.load("eval"))
        held = _loaded(model, self._build, compiled=True)
        found = held.evaluate(x, y, verbose=0, return_dict=True)
        return {**{name: float(value) for name, value in found.items()}, **_by_class(held, x, y)}

    def trained(self, options: FitOptions) -> tuple[dict[str, float], Any]:
        """Metrics of the training, and the new model: the path of a file, or arrays."""
        base = self._task.base_model
        if base is None and self._build is None:
            raise Refused("there is no model to start from: give retrain a function that builds one")
        model = _loaded(base, self._build, compiled=True) if base is not None else self._build()  # type: ignore[misc]
        x, y = self._split(self._dataset.load("train"))
        trainer = _Trainer(self._task, model, Examples(x, y, None), options)
        metrics = trainer.fit(self._task.round)
        if base is not None and base.format == "keras":
            path = self._task.output_dir / "model.keras"
            path.parent.mkdir(exist_ok=True)
            model.save(path)
            return metrics, path
        return metrics, model.get_weights()


def _by_class(model: Any, x: Any, y: Any) -> dict[str, float]:
    """Accuracy of each class, where labels are whole numbers and the model answers a score for each."""
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        return {}
    scores = np.asarray(model.predict(x, verbose=0))
    if scores.ndim != 2 or scores.shape[1] < 2:
        return {}
    right = scores.argmax(axis=1) == labels
    return {f"accuracy/{label}": float(right[labels == label].mean()) for label in np.unique(labels)[:MAX_CLASSES]}


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

    def fit(self, number: int) -> dict[str, float]:
        """Train one round; returns the last value of each metric."""
        self._begin(zlib.crc32(f"{self._options.seed} {self._task.worker} {number}".encode()))
        options = {"epochs": self._epochs, "batch_size": self._batch_size, "verbose": 0, **self._options.more}
        history = self._model.fit(self._examples.x, self._examples.y, **options)
        metrics = {name: float(values[-1]) for name, values in history.history.items() if values}
        shown = {name: round(value, 4) for name, value in metrics.items()}
        self._task.log.info("round_trained", round=number, examples=self.num_examples, metrics=shown)
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
