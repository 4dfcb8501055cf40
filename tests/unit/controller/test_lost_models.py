"""A model that an edge has lost: the edge says so, the cloud's node believes the edge that has made it and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.controller.service import ControllerSettings, LocalController
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import BlobGone, BlobRef, BlobWanted, Desired, Event, Observed, Pull
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.launcher.process import ProcessLauncher
from edgeai.store.edge import EdgeStore
from edgeai.store.files import digest_bytes
from edgeai.store.memory import MemoryBlobStore

LEVEL = "digits-0a1b2c3d"
CONTENT = b"a model"
DIGEST = digest_bytes(CONTENT)
WANTED = BlobWanted(BlobRef(DIGEST, len(CONTENT)), "edge1", LEVEL)


class World:
    """Nodes on one bus, and what they say that bears on a model."""

    def __init__(self, folder: Path, bus: MemoryBus, broker: MemoryBroker, stack: AsyncExitStack) -> None:
        self.folder, self.library = folder, MemoryBlobStore()
        self.bus, self._broker, self._stack = bus, broker, stack
        self.said: list[tuple[str, Event]] = []
        self.news = asyncio.Event()

    async def node(self, name: str) -> LocalController:
        folder = self.folder / name
        folder.mkdir()
        store = await EdgeStore.open(folder / "controller.db")
        self._stack.push_async_callback(store.close)
        own = await self._stack.enter_async_context(MemoryBus(self._broker))
        settings = ControllerSettings(name, folder, "mqtt://127.0.0.1:1", folder / "none.json")
        library = self.library if name == "cloud" else None
        controller = LocalController(settings, own, store, ProcessLauncher(), library)
        self.work(controller.run())
        await self.until(lambda: any(who == name and isinstance(event, Observed) for who, event in self.said))
        return controller

    def work(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)

    async def listen(self, listening: asyncio.Event) -> None:
        up = [Pattern(None, Direction.UP, kind.event_class, kind.kind) for kind in (Observed,)]
        up += [Pattern(None, Direction.UP, EventClass.TRANSFER, BlobGone.kind, None, "")]
        down = [Pattern("edge1", Direction.DOWN, EventClass.TRANSFER, Pull.kind, None, "")]
        async with self.bus.subscribe(*up, *down) as deliveries:
            listening.set()
            async for delivery in deliveries:
                if delivery.payload:
                    self.said.append((delivery.address.node, decode(delivery.payload).event))
                    self.news.set()

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(15):
            while not true():
                self.news.clear()
                await self.news.wait()

    async def send(self, node: str, event: Event, level: str = LEVEL) -> None:
        to = Address(node, event.direction, event.event_class, event.kind, level)
        await self.bus.publish(to, encode(Envelope(Header(node), event, bytes(16))))

    def lost(self) -> list[dict[str, str]]:
        return [event.lost for who, event in self.said if who == "cloud" and isinstance(event, Observed) and event.lost]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    broker = MemoryBroker()
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(MemoryBus(broker))
        found, listening = World(tmp_path, bus, broker, stack), asyncio.Event()
        found.work(found.listen(listening))
        await listening.wait()
        yield found


@asynccontextmanager
async def asked(world: World) -> AsyncIterator[LocalController]:
    """The cloud's node, which has asked edge1 for the model."""
    cloud = await world.node("cloud")
    cloud._take(Desired(blobs=(WANTED,)), 1)
    await world.until(lambda: any(isinstance(event, Pull) for _, event in world.said))
    yield cloud


async def test_an_edge_that_has_lost_a_model_says_so_and_the_cloud_waits_no_longer(world: World):
    await world.node("edge1")
    async with asked(world):
        await world.until(world.lost)
    [lost] = world.lost()
    assert "edge1 does not have it any more" in lost[DIGEST]


async def test_another_node_cannot_say_it(world: World):
    async with asked(world):
        await world.send("edge2", BlobGone(DIGEST, "edge2 says so"))
        await world.send("edge1", BlobGone(DIGEST, "another job"), "other-0a1b2c3d")
        await world.send("edge1", BlobGone(DIGEST, "edge1 says so"))
        await world.until(world.lost)
    assert world.lost()[0][DIGEST].endswith("edge1 says so")


async def test_a_model_that_is_wanted_no_more_is_not_told_of(world: World):
    async with asked(world) as cloud:
        await world.send("edge1", BlobGone(DIGEST, "edge1 says so"))
        await world.until(world.lost)
        cloud._take(Desired(), 2)
        await world.until(lambda: world.said[-1][0] == "cloud" and world.said[-1][1] == last_without_loss(world))


def last_without_loss(world: World) -> Event | None:
    found = [event for who, event in world.said if who == "cloud" and isinstance(event, Observed)]
    return found[-1] if found and not found[-1].lost else None


async def test_an_edge_gives_a_model_that_it_has(world: World):
    await world.node("edge1")
    models = world.folder / "edge1" / "jobs" / LEVEL / "models"
    models.mkdir(parents=True)
    (models / f"{DIGEST}.bin").write_bytes(CONTENT)
    async with asked(world):
        await world.until(
            lambda: any(DIGEST in event.blobs for who, event in world.said if isinstance(event, Observed))
        )
    assert await world.library.has(DIGEST)
