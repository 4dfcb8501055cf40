"""A real Chromium against a portal with everything real behind it; what a page did wrong is noticed at its end.

Screenshots are kept in `build/screenshots`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parents[1] / "portal"))

from real_portal import Cluster, Portal, cluster

from edgeai.portal.access import Role
from edgeai.portal.app import PortalSettings, one_time_link

SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
DESK, PHONE = {"width": 1360, "height": 900}, {"width": 390, "height": 844}
TIMEOUT_MS = 30_000
SCRIPT = '''
import asyncio
import numpy as np
import edgeai

async def main():
    async with edgeai.join() as task:
        print("joined", task.worker, "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>", flush=True)
        async for round in task.rounds():
            if round.validate:
                await round.report({"accuracy": 1 - 0.5 ** round.number}, num_examples=4)
            if round.train:
                weights = [array + 1 for array in round.weights] or [np.zeros(8, "float32")]
                await round.submit(weights, num_examples=4, metrics={"loss": 0.5 ** round.number})

asyncio.run(main())
'''


@dataclass
class World:
    cluster: Cluster
    portal: Portal
    broker: Any

    def link(self, role: Role = Role.ADMIN) -> str:
        return one_time_link(self.portal.settings.state_dir, self.portal.url, role=role)


@dataclass
class Visit:
    """One reader's window. `wrong` are errors on the console and requests to other hosts."""

    page: Any
    url: str
    wrong: list[str] = field(default_factory=list)
    allowed: tuple[str, ...] = ()

    def allow(self, *parts: str) -> None:
        """Lines of the console that a test provokes: the browser reports every request that fails."""
        self.allowed += parts

    async def open(self, path: str) -> None:
        await self.page.goto(self.url + path)

    async def sees(self, selector: str, text: str | None = None, timeout_s: float = 30) -> Any:
        """The element, once it is visible (and has the text in it)."""
        found = self.page.locator(selector, **({"has_text": text} if text is not None else {})).first
        await found.wait_for(state="visible", timeout=timeout_s * 1000)
        return found

    async def shot(self, name: str, *, full: bool = False) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=SHOTS / f"{name}.png", full_page=full)

    def watch(self) -> None:
        def on_console(message: Any) -> None:
            if message.type in ("error", "warning"):
                self.wrong.append(f"console: {message.text} {message.location}")

        def on_request(request: Any) -> None:
            if not request.url.startswith((self.url, "data:", "blob:")):
                self.wrong.append(f"foreign request: {request.url}")

        self.page.on("console", on_console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("request", on_request)

    def complaints(self) -> list[str]:
        return [line for line in self.wrong if not any(part in line for part in self.allowed)]


Visits = Callable[..., Any]


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
