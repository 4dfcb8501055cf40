"""A worker that misbehaves in the way that its parameter `fault` names, in round 2 (or at once)."""

import asyncio
import os
import signal

import numpy as np

import edgeai


async def main() -> None:
    async with edgeai.join() as task:
        fault = task.parameters["fault"]
        if fault == "leaves":
            return
        if fault == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        async for round in task.rounds():
            if not round.weights:
                await round.submit([np.zeros(10, "float32")], num_examples=1)
                continue
            weights = [array + 1 for array in round.weights]
            if round.train and round.number == 2:
                if fault == "not a number":
                    weights[0][3] = np.nan
                if fault == "wrong shape":
                    weights[0] = np.zeros(11, "float32")
                if fault == "too slow":
                    await asyncio.sleep(3600)
            if round.train:
                await round.submit(weights, num_examples=1)


asyncio.run(main())
