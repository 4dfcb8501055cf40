"""A portal with 1,000 edges, 200 tasks, 20 rounds a second and 50 open pages, as a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import psutil
from real_portal import Events

PAGES, SEEN = 50, 5
LIMIT_BYTES = 300 * 1024 * 1024


async def test_fifty_open_pages_on_a_large_cloud_stay_within_300_mb(tmp_path: Path) -> None:
    program = Path(__file__).with_name("loaded_portal.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        told: dict[str, str] = {}
        async with asyncio.timeout(60):
            while "url" not in told:
                line = await process.stdout.readline()
                told = json.loads(line) if line.startswith(b"{") else told
        await _read(told)
        peak = psutil.Process(process.pid).memory_info().rss
    finally:
        process.terminate()
        async with asyncio.timeout(20):
            await process.communicate()
    assert process.returncode == 0
    assert peak < LIMIT_BYTES


async def _read(told: dict[str, str]) -> None:
    """Every page sees all that is there, then some changes of tasks."""
    headers = {"Authorization": f"Bearer {told['token']}"}
    limits = httpx.Limits(max_connections=None)
    topics = "Overview,EdgeNode,FederatedTask,Timeline:FederatedTask/task0"
    async with httpx.AsyncClient(
        base_url=told["url"], headers=headers, timeout=60, limits=limits, trust_env=False
    ) as client:
        async with asyncio.timeout(30):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.1)

        async def page() -> None:
            async with AsyncExitStack() as stack:
                answer = await stack.enter_async_context(
                    client.stream("GET", "/api/v1/live", params={"topics": topics}, timeout=None)
                )
                events = Events(answer.aiter_lines())
                await events.until(lambda event, _: event == "synced", 90)
                events.seen.clear()
                for _ in range(SEEN):
                    await events.until(lambda _, data: data.get("topic") == "FederatedTask", 90)

        async with asyncio.TaskGroup() as group:
            for _ in range(PAGES):
                group.create_task(page())
