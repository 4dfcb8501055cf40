"""The cloud worker of the benchmark."""

import asyncio

from model import predict

import edgeai


async def main() -> None:
    async with edgeai.join() as task:
        await task.serve(predict=predict)
        await task.until_stopped()


asyncio.run(main())
