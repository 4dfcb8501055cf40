"""Both workers of a joint inference service of a test: the model is one number, the answer is the input times that.

`pause` is how long predict takes. An input whose first value is negative is one that no model can answer.
"""

import asyncio
import time

import numpy as np

import edgeai


async def main() -> None:
    async with edgeai.join() as task:
        pause = task.parameters["pause"]

        def predict(model: list[np.ndarray], x: np.ndarray) -> np.ndarray:
            if x.flat[0] < 0:
                raise ValueError("nobody can answer that")
            time.sleep(pause)
            return x * model[0][0]

        await task.serve(predict=predict)
        await task.until_stopped()


asyncio.run(main())
