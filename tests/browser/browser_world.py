"""What the browser tests share: the world behind the portal, and one reader's window on it.

Screenshots are kept in `build/screenshots`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "portal"))

from real_portal import Cluster, Portal, cluster

from edgeai.cli.playground import Playground
from edgeai.cli.portal import serving
from edgeai.client import Cloud
from edgeai.portal.access import Role
from edgeai.portal.app import PortalSettings, one_time_link

SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")
DESK, PHONE = {"width": 1360, "height": 900}, {"width": 390, "height": 844}
TIMEOUT_MS = 30_000
SCRIPT = """
import asyncio
import numpy as np
import edgeai

async def main():
    async with edgeai.join() as task:
        print("joined", task.worker, "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>", flush=True)
        async for round in task.rounds():
            print("round", round.number, flush=True)
            if round.validate:
                await round.report({"accuracy": 1 - 0.5 ** round.number}, num_examples=4)
            if round.train:
                weights = [array + 1 for array in round.weights] or [np.zeros(8, "float32")]
                await round.submit(weights, num_examples=4, metrics={"loss": 0.5 ** round.number})

asyncio.run(main())
"""


@dataclass
class World:
    cluster: Cluster
    portal: Portal
    broker: Any

    def link(self, role: Role = Role.ADMIN) -> str:
        return one_time_link(self.portal.settings.state_dir, self.portal.url, role=role)


@dataclass
class Ground:
    """A whole installation as processes (cloud, an edge with broker and bridge, workers), and a portal in front of it."""

    playground: Playground
    cloud: Cloud
    url: str

    @property
    def data(self) -> Path:
        """Where the edge's datasets and scripts may lie."""
        return self.playground.folder("edge1") / "data"

    @property
    def login(self) -> Path:
        """Of an application on the edge."""
        return self.playground.folder("edge1") / "credentials" / "edge1.app.json"

    def link(self, role: Role = Role.ADMIN) -> str:
        return one_time_link(self.playground.state_dir / "portal", self.url, role=role)


@asynccontextmanager
async def running_ground(folder: Path) -> AsyncIterator[Ground]:
    playground = Playground(folder, 1)
    async with (
        playground.running() as cloud,
        serving(playground.context(), PortalSettings(folder / "portal")) as url,
    ):
        yield Ground(playground, cloud, url)


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
        try:
            await found.wait_for(state="visible", timeout=timeout_s * 1000)
        except Exception:
            await self.shot("not-seen", full=True)
            raise
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

__all__ = [
    "DESK",
    "FLAGS",
    "PHONE",
    "SCRIPT",
    "TIMEOUT_MS",
    "Cluster",
    "Ground",
    "Portal",
    "PortalSettings",
    "Visit",
    "Visits",
    "World",
    "cluster",
    "running_ground",
]
