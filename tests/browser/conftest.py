"""A real Chromium against a portal with everything real behind it; what a page did wrong is noticed at its end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from browser_world import (
    DESK,
    FLAGS,
    SCRIPT,
    TIMEOUT_MS,
    Ground,
    Portal,
    PortalSettings,
    Visit,
    Visits,
    World,
    cluster,
    running_ground,
)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@pytest.fixture(scope="session")
def chromium_path() -> str:
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    missing = None if found else "chromium is not installed (Debian: apt-get install chromium)"
    try:
        import playwright  # noqa: F401
    except ImportError:
        missing = "playwright is not installed (pip install 'edgeai[browser]')"
    if missing is None:
        return str(found)
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    chromium_path: str, start_broker: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """A cloud and two edges with data and a script, and a portal."""
    folder = tmp_path_factory.mktemp("world")
    broker = start_broker("nats_core")
    async with cluster(broker.url, folder) as found:
        for edge in ("edge1", "edge2"):
            (folder / edge / "data" / "main.py").write_text(SCRIPT)
        portal = Portal(found.source, PortalSettings(folder / "portal"))
        await portal.start()
        try:
            async with portal.client() as client:
                await portal.ready(client)
            yield World(found, portal, broker)
        finally:
            await portal.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(
    chromium_path: str, start_broker: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ground]:
    """A cloud and an edge as a user has them: every part a process."""
    async with running_ground(tmp_path_factory.mktemp("ground")) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium(chromium_path: str) -> AsyncIterator[Any]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=list(FLAGS))
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def visit(chromium: Any) -> AsyncIterator[Visits]:
    """Opens windows; at the end none of them may have complained."""
    visits: list[Visit] = []
    async with AsyncExitStack() as stack:

        async def open_window(url: str, link: str | None = None, **options: Any) -> Visit:
            context = await chromium.new_context(**{"viewport": DESK, **options})
            stack.push_async_callback(context.close)
            context.set_default_timeout(TIMEOUT_MS)
            found = Visit(await context.new_page(), url)
            found.watch()
            visits.append(found)
            if link is not None:
                await found.page.goto(link)
                await found.page.wait_for_url(f"{url}/")
            return found

        yield open_window
    complaints = [line for found in visits for line in found.complaints()]
    assert not complaints, json.dumps(complaints, indent=1)
