"""Makes the models of joint-digits.yaml: digits-small.npz, digits-big.npz and, with TensorFlow, digits-big.keras.

    python config/examples/joint_digits_models.py

All learn from the same 1000 images; the other 797, the last of the same order, are what `edgeai demo --feature joint-inference`
asks about.
"""

import itertools
import os
from pathlib import Path

import numpy as np

HERE, SEED, TRAINED = Path(__file__).parent, 11, 1000
HIDDEN = 64


def train(x: np.ndarray, y: np.ndarray, sizes: list[int], epochs: int, rate: float) -> list[np.ndarray]:
    """Weights of a network of one or two layers; float32, a matrix and a bias for each."""
    random = np.random.RandomState(1)
    weights = []
    for rows, columns in itertools.pairwise(sizes):
        weights += [(random.randn(rows, columns) * np.sqrt(2 / rows)).astype("float32"), np.zeros(columns, "float32")]
    for _ in range(epochs):
        order = random.permutation(len(x))
        for rows in (order[start : start + 16] for start in range(0, len(x), 16)):
            layers = [x[rows]]
            for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
                layers.append(np.maximum(layers[-1] @ matrix + bias, 0))
            scores = layers[-1] @ weights[-2] + weights[-1]
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            error = (odds / odds.sum(axis=1, keepdims=True) - np.eye(10, dtype="float32")[y[rows]]) / len(rows)
            for place in reversed(range(len(layers))):
                matrix, before = weights[2 * place], error
                error = (before @ matrix.T) * (layers[place] > 0)
                weights[2 * place] = matrix - rate * layers[place].T @ before
                weights[2 * place + 1] = weights[2 * place + 1] - rate * before.sum(axis=0)
    return weights


def train_keras(x: np.ndarray, y: np.ndarray, path: Path) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Reshape((8, 8, 1)),
            layers.Rescaling(1 / 16),
            layers.Conv2D(16, 3, activation="relu", padding="same"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu", padding="same"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.002), "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=30, verbose=0)
    model.save(path)


def main() -> None:
    with np.load(HERE / "digits.npz", allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"]
    rows = np.random.RandomState(SEED).permutation(len(y))[:TRAINED]
    pixels = x.astype("float32") / 16
    pooled = pixels.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    np.savez(HERE / "digits-small.npz", *train(pooled[rows], y[rows], [16, 10], 100, 0.3))
    np.savez(HERE / "digits-big.npz", *train(pixels.reshape(-1, 64)[rows], y[rows], [64, HIDDEN, 10], 60, 0.2))
    try:
        train_keras(x[rows].astype("float32"), y[rows], HERE / "digits-big.keras")
    except ImportError:
        print("digits-big.keras is left as it is: TensorFlow is not installed")


main()
