"""A small convolutional network learns handwritten digits on this edge, one federated round after the other."""

import asyncio
import os
import zlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its sums depend on the number of threads

import numpy as np
import tensorflow as tf

import edgeai

tf.config.threading.set_intra_op_parallelism_threads(1)  # an edge is small, and in a demo several share one machine
tf.config.threading.set_inter_op_parallelism_threads(1)


def build(learning_rate: float) -> tf.keras.Model:
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    # Plain SGD keeps nothing from one step to the next, so a round trained again after a crash gives the same update.
    optimizer = tf.keras.optimizers.SGD(learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


def examples(path: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as data:
        return data[f"x_{part}"][..., np.newaxis].astype("float32") / 16, data[f"y_{part}"].astype("int32")


def train(model: tf.keras.Model, x: np.ndarray, y: np.ndarray, parameters: dict, seed: int) -> dict:
    tf.keras.utils.set_random_seed(seed)
    epochs, batch_size = parameters.get("epochs", 1), parameters["batch size"]
    history = model.fit(x, y, epochs=epochs, batch_size=batch_size, verbose=0).history
    return {name: values[-1] for name, values in history.items()}


async def main() -> None:
    async with edgeai.join() as task:
        x_train, y_train = examples(task.dataset.path, "train")
        x_test, y_test = examples(task.dataset.path, "test")
        model = build(task.parameters["learning rate"])

        async for round in task.rounds():
            if not round.weights:  # there is no model yet: this worker gives the first weights
                await round.submit(model.get_weights(), num_examples=len(x_train))
                continue
            model.set_weights(round.weights)
            if round.validate:
                metrics = await asyncio.to_thread(
                    model.evaluate, x_test, y_test, batch_size=256, verbose=0, return_dict=True
                )
                await round.report(metrics, num_examples=len(x_test))
            if round.train:
                seed = zlib.crc32(f"{task.worker} {round.number}".encode())
                metrics = await asyncio.to_thread(train, model, x_train, y_train, task.parameters, seed)
                await round.submit(model.get_weights(), num_examples=len(x_train), metrics=metrics)


asyncio.run(main())
