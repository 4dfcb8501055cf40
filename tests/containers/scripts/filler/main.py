"""Joins, and writes more than it may."""

import asyncio
import itertools

import edgeai


async def main() -> None:
    async with edgeai.join() as task:
        async for _ in task.rounds():
            print("filling the disk", flush=True)
            for number in itertools.count():
                (task.output_dir / f"file{number}").write_bytes(bytes(4 << 20))
                await asyncio.sleep(0.02 if number < 50 else 1)


asyncio.run(main())
