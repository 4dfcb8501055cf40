"""A network with one hidden layer, in NumPy alone, learns handwritten digits on this edge, round after round."""

import asyncio
import zlib

import numpy as np

import edgeai

HIDDEN = 64


def initial_weights() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    shapes = [(64, HIDDEN), (HIDDEN, 10)]
    matrices = [random.normal(0, np.sqrt(2 / rows), (rows, columns)).astype("float32") for rows, columns in shapes]
    return [matrices[0], np.zeros(HIDDEN, "float32"), matrices[1], np.zeros(10, "float32")]


def predict(weights: list[np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hidden layer and the probability of each digit."""
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    scores = hidden @ weights[2] + weights[3]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def evaluate(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    _, chances = predict(weights, x)
    loss = -np.log(chances[np.arange(len(y)), y] + 1e-9).mean()
    return {"accuracy": float((chances.argmax(axis=1) == y).mean()), "loss": float(loss)}


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


async def main() -> None:
    async with edgeai.join() as task:
        with np.load(task.dataset.path) as data:
            x_train, x_test = (data[f"x_{part}"].reshape(-1, 64).astype("float32") / 16 for part in ("train", "test"))
            y_train, y_test = data["y_train"], data["y_test"]

        async for round in task.rounds():
            if not round.weights:  # there is no model yet: this worker gives the first weights
                await round.submit(initial_weights(), num_examples=len(x_train))
                continue
            if round.validate:
                await round.report(evaluate(round.weights, x_test, y_test), num_examples=len(x_test))
            if round.train:
                # Seeded by worker and round: a round trained again after a crash gives the same update.
                random = np.random.default_rng(zlib.crc32(f"{task.worker} {round.number}".encode()))
                weights = await asyncio.to_thread(train, round.weights, x_train, y_train, task.parameters, random)
                await round.submit(weights, num_examples=len(x_train), metrics=evaluate(weights, x_train, y_train))


asyncio.run(main())
