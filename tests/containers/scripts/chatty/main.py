"""Prints without end beside its work, as fast as it can."""

import asyncio
import sys
import threading

import numpy as np

import edgeai


def chat() -> None:
    line = "x" * 1000 + "\n"
    while True:
        sys.stdout.write(line * 1000)


async def main() -> None:
    threading.Thread(target=chat, daemon=True).start()
    async with edgeai.join() as task:
        async for round in task.rounds():
            if round.validate:
                await round.report({"accuracy": 0.5}, num_examples=1)
            if round.train:
                await asyncio.sleep(task.parameters["pause"])
                await round.submit(round.weights or [np.zeros(4, "float32")], num_examples=1)
    sys.stdout.flush()


asyncio.run(main())
