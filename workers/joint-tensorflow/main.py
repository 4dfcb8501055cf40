"""A Keras model of handwritten digits as the cloud worker of a joint inference service, or as an edge's."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import edgeai


def main() -> None:
    with edgeai.join_sync() as task:
        edgeai.keras.serve(task)
        task.until_stopped()


main()
