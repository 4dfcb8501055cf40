"""A node whose data only tests: it says how good the model is there, and has no part in it.

It goes from round to round without a submit, so the mean is that of the others. It evaluates the network of
workers/federated-numpy; another model needs another `evaluate`.
"""

import asyncio

import numpy as np

import edgeai


def evaluate(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    scores = np.maximum(x @ weights[0] + weights[1], 0) @ weights[2] + weights[3]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances = odds / odds.sum(axis=1, keepdims=True)
    loss = -np.log(chances[np.arange(len(y)), y] + 1e-9).mean()
    return {"accuracy": float((chances.argmax(axis=1) == y).mean()), "loss": float(loss)}


async def main() -> None:
    async with edgeai.join() as task:
        with np.load(task.dataset.path) as data:
            x, y = data["x_test"].reshape(-1, 64).astype("float32") / 16, data["y_test"]

        async for round in task.rounds():
            if round.validate:
                metrics = evaluate(round.weights, x, y)
                await round.report(metrics, num_examples=len(x))
                print(f"model of round {round.number - 1}: accuracy {metrics['accuracy']:.3f} on {len(x)} examples")


asyncio.run(main())
