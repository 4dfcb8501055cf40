"""The edge worker of the benchmark: asks its own service, and its predict without any service."""

import asyncio

from asking import follow
from model import predict

import edgeai


async def main() -> None:
    async with edgeai.join() as task:
        await task.serve(predict=predict)

        async def infer(x) -> str:
            return (await task.infer(x)).by

        async def bare(x) -> str:
            predict(None, x[None])
            return "edge"

        await follow(task.output_dir / "asked", {"infer": infer, "bare": bare})


asyncio.run(main())
