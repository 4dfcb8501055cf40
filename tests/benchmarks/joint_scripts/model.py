"""The model of the benchmark, at the edge and in the cloud: next to no work, so that what is left is what a system costs.

Whether an answer is hard is in the image: the first pixel is 0 where it is easy.
"""

import numpy as np

EASY, HARD = np.eye(10)[0], np.full(10, 0.1)


def predict(_model, images):
    """Ten probabilities for each image of 28 x 28."""
    return np.where(images[:, 0, :1] == 0, EASY, HARD)


def image(*, hard: bool):
    x = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    x[0, 0] = 255 if hard else 0
    return x
