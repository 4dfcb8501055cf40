"""Joins, and wants more memory than it may have."""

import asyncio

import edgeai


async def main() -> None:
    async with edgeai.join() as task:
        async for _ in task.rounds():
            print("taking memory", flush=True)
            kept = []
            while True:
                kept.append(bytearray(b"x" * 16 * 1024 * 1024))


asyncio.run(main())
