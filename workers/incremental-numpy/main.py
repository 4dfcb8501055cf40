"""A network with one hidden layer, in NumPy alone, keeps learning handwritten digits on the edge that serves it.

One script for the three workers of a job: `train` goes on from the serving model with all examples, old and new; `eval` says
what each model makes of examples that none has seen; `deploy` answers the images of a file, one after the other, for ever.
"""

import asyncio
import itertools
import zlib

import numpy as np

import edgeai

HIDDEN = 64


def initial_weights() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    shapes = [(64, HIDDEN), (HIDDEN, 10)]
    matrices = [random.normal(0, np.sqrt(2 / rows), (rows, columns)).astype("float32") for rows, columns in shapes]
    return [matrices[0], np.zeros(HIDDEN, "float32"), matrices[1], np.zeros(10, "float32")]


def scaled(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, 64).astype("float32") / 16


def predict(weights: list[np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer and the probability of each digit."""
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    scores = hidden @ weights[2] + weights[3]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def evaluate(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Loss and accuracy, the latter of all digits and of each."""
    _, chances = predict(weights, x)
    loss = -np.log(chances[np.arange(len(y)), y] + 1e-9).mean()
    right = chances.argmax(axis=1) == y
    by_digit = {f"accuracy/{digit}": float(right[y == digit].mean()) for digit in np.unique(y)}
    return {"accuracy": float(right.mean()), "loss": float(loss), **by_digit}


def train(
    weights: list[np.ndarray], x: np.ndarray, y: np.ndarray, parameters: dict, random: np.random.Generator
) -> list[np.ndarray]:
    batch_size, rate = parameters["batch size"], parameters["learning rate"]
    for _ in range(parameters.get("epochs", 1)):
        order = random.permutation(len(x))
        for rows in (order[start : start + batch_size] for start in range(0, len(x), batch_size)):
            hidden, chances = predict(weights, x[rows])
            error = (chances - np.eye(10, dtype="float32")[y[rows]]) / len(rows)
            hidden_error = (error @ weights[2].T) * (hidden > 0)
            gradients = [x[rows].T @ hidden_error, hidden_error.sum(0), hidden.T @ error, error.sum(0)]
            weights = [array - rate * gradient for array, gradient in zip(weights, gradients, strict=True)]
    return weights


async def train_stage(task) -> None:
    data = task.dataset.load("train")  # old examples too: trained on new ones alone, a network forgets
    x, y = scaled(data["x"]), data["y"].astype(int)
    weights = task.base_model.load() if task.base_model else initial_weights()
    # Seeded by the round: one trained again after a crash gives the same model.
    random = np.random.default_rng(zlib.crc32(f"{task.name} {task.round}".encode()))
    weights = await asyncio.to_thread(train, weights, x, y, task.parameters, random)
    await task.report(evaluate(weights, x, y), model=weights)


async def eval_stage(task) -> None:
    data = task.dataset.load("eval")
    x, y = scaled(data["x"]), data["y"].astype(int)
    for model in task.models:
        await task.report(evaluate(model.load(), x, y), model=model)


async def deploy_stage(task) -> None:
    path = task.parameters.get("stream") or task.dataset.path  # npz with images `x`; a relative path is in this folder
    with np.load(path) as data:
        images = data["x"]
    await task.serve(predict=lambda weights, x: predict(weights, scaled(x))[1])
    for count in itertools.count():
        row = count % len(images)
        await task.infer(images[row], id=f"stream-{row}")
        await asyncio.sleep(1 / task.parameters.get("requests per second", 20))


async def main() -> None:
    stages = {"train": train_stage, "eval": eval_stage, "deploy": deploy_stage}
    async with edgeai.join() as task:
        await stages[task.role](task)


asyncio.run(main())
