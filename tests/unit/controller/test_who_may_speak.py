"""A controller passes on what its workers say, if it carries the token of the worker's current run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.controller.service import ControllerSettings, LocalController
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import Assignment, Event, Heartbeat, Progress, Role
from edgeai.events.envelope import Envelope, Header, decode, encode, stamped
from edgeai.events.tokens import TOKEN_BYTES, token_digest
from edgeai.launcher.process import ProcessLauncher
from edgeai.lifecycle.worker import Slot, WorkerPhase
from edgeai.store.edge import EdgeStore

TASK, UID = "digits-01234567", "0" * 32
TOKEN, OTHER = b"t" * TOKEN_BYTES, b"o" * TOKEN_BYTES


def slot_of(worker: str, token: bytes, phase: WorkerPhase = WorkerPhase.RUNNING) -> Slot:
    mine = Assignment(TASK, "digits", UID, 1, worker, Role.TRAINING)
    return Slot(phase, mine, token=token_digest(UID, worker, token))


@dataclass
class Node:
    """A controller with two workers that run."""

    controller: LocalController
    bus: MemoryBus
    heard: list[tuple[str, Event]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, slot: Slot) -> None:
        assert slot.assignment is not None
        self.controller._reactor.states[f"{TASK}/{slot.assignment.worker}"] = slot

    async def say(self, worker: str, event: Event, token: bytes) -> None:
        payload = encode(Envelope(Header(f"edge1/{TASK}/{worker}"), event, bytes(16)))
        to = Address("edge1", Direction.LOCAL, EventClass.SIGNAL, Progress.kind, TASK, worker)
        await self.bus.publish(to, stamped(payload, token) if token else payload)

    async def passed_on(self) -> list[tuple[str, Event]]:
        """All that went up, when everything said so far has been dealt with."""
        last = Progress(99, "submitted")
        await self.say("work1", last, TOKEN)
        async with asyncio.timeout(5):
            while ("work1", last) not in self.heard:
                self.news.clear()
                await self.news.wait()
        return [each for each in self.heard if each[1] != last]

    async def listen(self, listening: asyncio.Event) -> None:
        pattern = Pattern("edge1", Direction.UP, EventClass.SIGNAL, Progress.kind)
        async with self.bus.subscribe(pattern) as deliveries:
            listening.set()
            async for delivery in deliveries:
                self.heard.append((delivery.address.worker, decode(delivery.payload).event))
                self.news.set()

    async def until_it_passes_on(self) -> None:
        """A controller first reads what it remembers; what is said before it listens is lost, as any signal may be."""
        async with asyncio.timeout(5):
            while not self.heard:
                self.put(slot_of("work1", TOKEN))
                self.put(slot_of("work2", OTHER))
                await self.say("work1", Progress(0, "joined"), TOKEN)
                await asyncio.sleep(0.01)
        assert await self.passed_on()
        self.heard.clear()
        self.controller.refused.clear()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    store, broker = await EdgeStore.open(tmp_path / "controller.db"), MemoryBroker()
    settings = ControllerSettings("edge1", tmp_path, "mqtt://127.0.0.1:1", tmp_path / "none.json")
    async with MemoryBus(broker) as own, MemoryBus(broker) as bus:
        controller = LocalController(settings, own, store, ProcessLauncher())
        found, listening = Node(controller, bus), asyncio.Event()
        tasks = [asyncio.create_task(found.listen(listening)), asyncio.create_task(controller.run())]
        try:
            await listening.wait()
            await found.until_it_passes_on()
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await store.close()


async def test_what_carries_the_token_of_its_run_goes_up(node: Node):
    await node.say("work1", Progress(3, "training"), TOKEN)
    assert await node.passed_on() == [("work1", Progress(3, "training"))]


@pytest.mark.parametrize(
    ("worker", "token"),
    [("work2", b""), ("work2", TOKEN), ("work2", bytes(TOKEN_BYTES)), ("work3", TOKEN)],
    ids=["no token", "of a neighbour", "made up", "of nobody"],
)
async def test_what_does_not_is_heard_by_nobody(node: Node, worker: str, token: bytes):
    await node.say(worker, Progress(3, "training"), token)
    assert await node.passed_on() == []


@pytest.mark.parametrize("phase", [phase for phase in WorkerPhase if phase is not WorkerPhase.RUNNING])
async def test_a_token_is_worth_nothing_when_its_run_is_over(node: Node, phase: WorkerPhase):
    node.put(slot_of("work2", OTHER, phase))
    await node.say("work2", Progress(3, "training"), OTHER)
    assert await node.passed_on() == []


async def test_the_next_run_has_another_token(node: Node):
    node.put(slot_of("work2", b"n" * TOKEN_BYTES))
    await node.say("work2", Progress(3, "training"), OTHER)
    assert await node.passed_on() == []


async def test_only_progress_goes_this_way(node: Node):
    await node.say("work1", Heartbeat(1.0, 0), TOKEN)
    assert await node.passed_on() == []


async def test_what_is_refused_is_counted_by_name(node: Node):
    for _ in range(3):
        await node.say("work2", Progress(3, "training"), TOKEN)
    await node.passed_on()
    assert node.controller.refused == {f"{TASK}/work2": 3}


async def test_names_that_do_not_exist_take_no_memory(node: Node):
    for number in range(10):
        await node.say(f"nobody{number}", Progress(3, "training"), TOKEN)
    await node.passed_on()
    assert node.controller.refused == {"": 10}


async def test_no_event_at_all_is_refused_as_well(node: Node):
    await node.bus.publish(
        Address("edge1", Direction.LOCAL, EventClass.SIGNAL, Progress.kind, TASK, "work2"), b"\xff" * 99
    )
    await node.passed_on()
    assert node.controller.refused == {f"{TASK}/work2": 1}
