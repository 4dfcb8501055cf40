"""A worker that always makes the same updates, and takes as long for them as a test wants."""

import asyncio
import zlib

import numpy as np

import edgeai


def update(task: str, worker: str, number: int, weights: list[np.ndarray]) -> list[np.ndarray]:
    random = np.random.default_rng(zlib.crc32(f"{worker} {number}".encode()))
    return [array / 2 + random.standard_normal(array.shape, dtype=array.dtype) for array in weights]


async def main() -> None:
    async with edgeai.join() as task:
        with np.load(task.dataset.path) as data:
            count = len(data["y_train"])
        print(f"joined as {task.worker}")
        async for round in task.rounds():
            if not round.weights:
                await round.submit(
                    [np.zeros(task.parameters["floats"], "float32"), np.zeros((2, 3))], num_examples=count
                )
                continue
            if round.validate:
                await round.report({"accuracy": 1 - 1 / (1 + round.number)}, num_examples=count)
            if round.train:
                await asyncio.sleep(task.parameters["pause"])
                await round.submit(update(task.name, task.worker, round.number, round.weights), num_examples=count)


asyncio.run(main())
