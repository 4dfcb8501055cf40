"""The inference worker of the benchmark: asks its own model at a fixed rate, whatever becomes of the requests before.

A request's time counts from when it was due, so that one that is sent late, because the process was busy, counts as slow. It
notes of each: number, when it was due (seconds since 1970), seconds until the answer, and the digest of the model that
answered, or `failed`. When the file `stop` is there, it waits for what is on its way and writes all that to `log`, a line for
each, and how many it has sent. `begun` says that it asks. While it asks it writes nothing: it would wait for the disk.
"""

import asyncio
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import edgeai

LOOK_S = 0.05


def chances(weights, x):
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    scores = hidden @ weights[2] + weights[3]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


async def serve(task) -> None:
    if task.parameters["framework"] == "numpy":
        await task.serve(predict=chances)
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    await edgeai.keras.serve_async(task)


async def ask(task, x, number: int, due_s: float, notes: list[str]) -> None:
    answered = "failed"
    try:
        answer = await task.infer(x, id=f"request-{number}")
        answered = answer.model.digest
    except Exception:
        task.log.exception("request_failed")
    notes.append(f"{number} {due_s:.6f} {time.time() - due_s:.6f} {answered}")


async def main() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.random((256, 64), dtype="float32")
    async with edgeai.join() as task:
        await serve(task)
        folder = Path(task.parameters["folder"])
        rate = task.parameters["requests per second"]
        begin_s, number, look = time.time(), 0, max(1, int(rate * LOOK_S))
        notes: list[str] = []
        async with asyncio.TaskGroup() as group:
            while number % look or not (folder / "stop").exists():
                due_s = begin_s + number / rate
                await asyncio.sleep(max(0.0, due_s - time.time()))
                group.create_task(ask(task, inputs[number % len(inputs)], number, due_s, notes))
                number += 1
                if number == look:
                    (folder / "begun").touch()
        notes.append(f"sent {number}\n")
        unfinished = folder / "log.part"
        unfinished.write_text("\n".join(notes))
        unfinished.rename(folder / "log")
        await asyncio.Event().wait()  # until it is stopped


asyncio.run(main())
