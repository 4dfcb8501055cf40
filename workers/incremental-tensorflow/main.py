"""A small Keras model keeps learning handwritten digits on the edge that serves it.

One script for the three workers of a job, written with `edgeai.keras`: `train` and `eval` are one call, `deploy` answers the
images of a file, one after the other, for ever. Hard examples are kept as the model is asked, and learned as the dataset
has them: so scaling is a layer of the model.
"""

import itertools
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # its sums depend on the number of threads

import numpy as np
import tensorflow as tf

import edgeai

tf.config.threading.set_intra_op_parallelism_threads(1)  # an edge is small
tf.config.threading.set_inter_op_parallelism_threads(1)


def deploy(task) -> None:
    edgeai.keras.serve(task)
    with np.load(task.dataset.path) as data:  # an npz file with images `x`
        images = data["x"]
    for count in itertools.count():
        row = count % len(images)
        task.infer(images[row], id=f"stream-{row}")
        time.sleep(1 / task.parameters.get("requests per second", 20))


def main() -> None:
    with edgeai.join_sync() as task:
        if task.role == "deploy":
            deploy(task)
        else:
            edgeai.keras.retrain(task=task)


main()
