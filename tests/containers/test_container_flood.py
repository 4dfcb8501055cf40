"""A worker that prints without end, as fast as it can: the others train, their logs can be followed, memory stays bounded."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
import pytest_asyncio
from living_world import Worker, World

from edgeai.cli.playground import Playground

pytestmark = [pytest.mark.containers, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

CHATTY = Worker("work1", "edge1", "dataset0", "../containers/scripts/chatty")
COUNTING = Worker("work2", "edge2", "dataset1", "../containers/scripts/counting")
MOST_GROWTH_BYTES = 64 * 1024**2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flooded(engine: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A playground in which one worker floods its log while another trains."""
    folder = tmp_path_factory.mktemp("flood")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DOCKER_HOST", engine)
        environment.setenv("EDGEAI_CONTEXT", str(folder / "world/cloud/context.json"))
        playground = Playground(folder / "world", 2, launcher="docker")
        async with playground.running() as cloud:
            world = World(playground, cloud, folder)
            middle = asyncio.create_task(world.training("flood", "work1", 1))
            await world.apply("flood", (CHATTY, COUNTING), rounds=200, pause=1)
            await middle
            yield world
            await world.delete("flood")


@asynccontextmanager
async def logs(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`edgeai logs flood ...`, ended with the block."""
    command = (sys.executable, "-m", "edgeai", "logs", "flood", *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line_with(process: asyncio.subprocess.Process, text: bytes) -> bytes:
    async with asyncio.timeout(60):
        async for line in process.stdout:
            if text in line:
                return line
    raise AssertionError(f"the log ended without {text!r}")


def memory(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


async def test_the_log_of_another_worker_goes_on_beside_a_flood(flooded: World):
    async with logs("-f") as following:
        for _ in range(3):
            await line_with(following, b"work2       | round ")


async def test_following_a_flood_needs_bounded_memory_in_the_controller_and_the_reader(flooded: World):
    controller = flooded.daemon("edge1")
    async with logs("work1", "-f") as following:
        await line_with(following, b"x")
        before, reader = memory(controller), memory(following.pid)
        for _ in range(20_000):
            await line_with(following, b"x")
        assert memory(controller) - before < MOST_GROWTH_BYTES
        assert memory(following.pid) - reader < MOST_GROWTH_BYTES


async def test_the_end_of_a_flood_can_be_followed(flooded: World):
    async with logs("work1", "-f", "--tail", "3") as following:
        for _ in range(5):
            await line_with(following, b"x")


async def test_what_there_is_of_a_flood_has_an_end(flooded: World):
    async with logs("work1", "--tail", "3") as printing:
        async with asyncio.timeout(120):
            text, _ = await printing.communicate()
        assert (printing.returncode, len(text.splitlines())) == (0, 3)
