"""Digits with NumPy alone, for both workers of a joint inference service: which network it is follows from its weights.

The small one looks at an image of 4 x 4 pixels (each the mean of 2 x 2) and has no hidden layer; the big one looks at all
pixels and has one. On the edge requests of applications are answered beside this script; in the cloud those of the edges are.
"""

import asyncio

import numpy as np

import edgeai


def looked_at(images: np.ndarray, inputs: int) -> np.ndarray:
    """Images of 8 x 8 pixels with values 0 to 16, as a network with so many inputs sees them."""
    scaled = images.reshape(-1, 8, 8).astype("float32") / 16
    if inputs == 16:
        scaled = scaled.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4))
    return scaled.reshape(-1, inputs)


def predict(weights: list[np.ndarray], images: np.ndarray) -> np.ndarray:
    """The probability of each digit, for every image."""
    x = looked_at(images, len(weights[0]))
    for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = np.maximum(x @ matrix + bias, 0)
    scores = x @ weights[-2] + weights[-1]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


async def main() -> None:
    async with edgeai.join() as task:
        await task.serve(predict=predict)
        await task.until_stopped()


asyncio.run(main())
