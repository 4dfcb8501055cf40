"""A portal with 1,000 edges, 200 tasks and 20 rounds a second, as a process of its own: many pages, and some that read nothing.

How fast it is, `tests/benchmarks/portal.py` measures. That work does not grow with the windows of a page is held by
`tests/unit/portal/test_rendering.py`.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from real_portal import Events

PAGES, SEEN = 50, 5
WINDOWS, DEAF = 200, 20
TASKS, PATIENCE_S = 200, 90
LIMIT_BYTES = 300 * 1024 * 1024
PROGRAM = Path(__file__).with_name("loaded_portal.py")
_SEQUENCE, _ROUND = re.compile(r'name="sequence" content="(\d+)"'), re.compile(r'<span class="fleeting">(\d+)')


@dataclass(frozen=True, slots=True)
class Loaded:
    url: str
    token: str
    pid: int

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"Authorization": f"Bearer {self.token}"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=60, limits=limits, trust_env=False
        ) as client:
            async with asyncio.timeout(PATIENCE_S):
                while (await client.get("/readyz")).status_code != 200:
                    await asyncio.sleep(0.1)
            yield client


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    words = [sys.executable, str(PROGRAM), str(tmp_path_factory.mktemp("portal"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told: dict[str, str] = {}
        while "url" not in told and (line := process.stdout.readline()):
            told = json.loads(line) if line.startswith(b"{") else told
        yield Loaded(told["url"], told["token"], process.pid)
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


async def test_fifty_pages_see_all_there_is_and_then_changes_within_300_mb(loaded: Loaded) -> None:
    topics = "Overview,EdgeNode,FederatedTask,Timeline:FederatedTask/task0"
    async with loaded.client() as client:

        async def page(_number: int) -> None:
            async with events(client, topics=topics) as found:
                await found.until(lambda event, _: event == "synced", PATIENCE_S)
                for _ in range(SEEN):
                    found.seen.clear()
                    await found.until(lambda _, data: data.get("topic") == "FederatedTask", PATIENCE_S)

        await at_once(PAGES, page)
    assert loaded.memory < LIMIT_BYTES


async def test_two_hundred_windows_show_their_changes_beside_some_that_never_read(loaded: Loaded) -> None:
    async with loaded.client() as client, deaf_readers(loaded):

        async def window(number: int) -> bool:
            """Read again after each change, until another round is shown; whether it was never older than the change."""
            name = f"task{number % TASKS}"
            before, sequence = await read(client, name, "")
            async with events(client, topics=f"FederatedTask:{name}", since=sequence, brief="true") as found:
                current, now = True, before
                while now == before:
                    _, change, _ = await found.next()
                    now, sequence = await read(client, name, change)
                    current = current and int(sequence) >= int(change)
            return current

        async with asyncio.timeout(PATIENCE_S):
            current = await at_once(WINDOWS, window)
    assert all(current)
    assert loaded.memory < LIMIT_BYTES


async def read(client: httpx.AsyncClient, task: str, seen: str) -> tuple[int, str]:
    """As an open window does: the round that is shown, and the number of the change that it is at least as new as."""
    headers = {"X-Part": "live", "X-Seen": seen}
    text = (await client.get(f"/tasks/federatedtasks/{task}", headers=headers)).raise_for_status().text
    [round_number], [sequence] = _ROUND.findall(text)[:1], _SEQUENCE.findall(text)
    return int(round_number), sequence


@asynccontextmanager
async def events(client: httpx.AsyncClient, **query: str) -> AsyncIterator[Events]:
    async with client.stream("GET", "/api/v1/live", params=query, timeout=None) as answer:
        yield Events(answer.raise_for_status().aiter_lines())


@asynccontextmanager
async def deaf_readers(loaded: Loaded) -> AsyncIterator[None]:
    """They ask for everything from the beginning, and take nothing of it."""
    port = urlsplit(loaded.url).port
    request = f"GET /api/v1/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {loaded.token}\r\n\r\n"
    async with AsyncExitStack() as stack:
        for _ in range(DEAF):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            stack.callback(writer.close)
            writer.write(request.encode())
            await reader.readexactly(1)  # it is answered
        yield


async def at_once(count: int, each: Callable[[int], Coroutine[Any, Any, Any]]) -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each(number)) for number in range(count)]
    return [task.result() for task in tasks]
