"""Resources that the coordinator's tests change in one place, and nodes that speak to it over a bus in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from edgeai.bus.base import Delivery
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.coordinator.service import GlobalCoordinator
from edgeai.events.address import CLOUD, Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import Desired, Event, Heartbeat, Observed, Receipt, Role, WorkerObserved
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask
from edgeai.resources.model import Model, ModelVersion
from edgeai.store.memory import MemoryFactStream, MemoryResourceStore

NOW, LATER = "2030-01-31T12:00:00Z", "2030-01-31T12:00:05Z"
UID = "0a1b2c3d" * 4
LEVEL = "digits-0a1b2c3d"
DIGEST = "d" * 64


def task(name: str = "digits", uid: str = UID, workers: int = 2, **changes: Any) -> FederatedTask:
    """`changes`: `paused`, `deleted`, `annotations`, `generation`, `status`; others are parameters."""
    metadata: dict[str, Any] = {"name": name, "uid": uid, "generation": changes.pop("generation", 1)}
    metadata["annotations"] = changes.pop("annotations", {})
    if changes.pop("deleted", False):
        metadata["deletionTimestamp"] = NOW
    paused, status = changes.pop("paused", False), changes.pop("status", {})
    values = {"rounds": 3, "min node number": workers} | {
        key.replace("_", " "): value for key, value in changes.items()
    }
    training = [
        {
            "name": f"work{number}",
            "nodeName": f"edge{number}",
            "workerSpec": {
                "dataset": {"name": f"dataset{number}"},
                "trainScriptDir": "/srv/train",
                "trainScriptBootFile": "main.py",
                "frameworkType": "numpy",
                "parameters": [{"key": "batch size", "value": 16}] if number == 0 else [],
            },
        }
        for number in range(workers)
    ]
    aggregation = {
        "aggregationAlgorithm": "FedAvg",
        "parameters": [{"key": key, "value": value} for key, value in values.items()],
    }
    return FederatedTask.from_document(
        {
            "kind": "FederatedTask",
            "metadata": metadata,
            "spec": {
                "aggregationWorker": {"name": "aggregation", "model": {"name": "cnn"}, "workerSpec": aggregation},
                "trainingWorkers": training,
                "paused": paused,
            },
            "status": status,
        }
    )


def dataset(number: int = 0, node: str | None = None) -> Dataset:
    spec = {"nodeName": node or f"edge{number}", "url": f"/data/{number}.npz", "format": "npz"}
    return Dataset.from_document({"kind": "Dataset", "metadata": {"name": f"dataset{number}"}, "spec": spec})


def model(*versions: int, **spec: Any) -> Model:
    found = Model.from_document({"kind": "Model", "metadata": {"name": "cnn", "uid": "m" * 32}, "spec": spec})
    made = tuple(
        ModelVersion(version=number, digest=f"{number:064x}", size_bytes=10, created_at=NOW) for number in versions
    )
    return found.model_copy(update={"status": found.status.model_copy(update={"versions": made})})


def observed_worker(name: str, state: str = "Running", uid: str = UID, **changes: Any) -> WorkerObserved:
    role = Role.AGGREGATION if name == "aggregation" else Role.TRAINING
    return WorkerObserved(LEVEL, uid, name, role, 1, state, **changes)


async def until(condition: Callable[[], Any]) -> Any:
    """Wait for something true, and return it; functions that wait are awaited."""
    async with asyncio.timeout(10):
        while True:
            found = condition()
            found = await found if asyncio.iscoroutine(found) else found
            if found:
                return found
            await asyncio.sleep(0.002)


@dataclass
class World:
    """A coordinator on stores and a bus in memory. `sequences` counts the facts of each source."""

    broker: MemoryBroker = field(default_factory=MemoryBroker)
    resources: MemoryResourceStore = field(default_factory=MemoryResourceStore)
    facts: MemoryFactStream = field(default_factory=MemoryFactStream)
    seen: list[Delivery] = field(default_factory=list)
    sequences: dict[str, int] = field(default_factory=dict)
    incarnation: int = 5

    def __post_init__(self) -> None:
        self.bus = MemoryBus(self.broker, "edges")

    @asynccontextmanager
    async def coordinator(self) -> AsyncIterator[GlobalCoordinator]:
        """It may be started again on the same stores."""
        async with MemoryBus(self.broker, "coordinator") as bus:
            running = GlobalCoordinator(bus, self.resources, self.facts)
            task = asyncio.create_task(running.run())
            try:
                await until(lambda: running._in_view.is_set() or task.done())
                yield running
                assert not task.done(), task.exception()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def apply(self, *found: Any) -> None:
        for resource in found:
            await self.resources.create(resource.kind, resource.metadata.name, resource.to_document())

    async def everything(self, *tasks: FederatedTask, workers: int = 2) -> None:
        """What a task refers to, then the tasks."""
        await self.apply(*(dataset(number) for number in range(workers)), model(1), *tasks)
        for number in range(workers):
            await self.send(f"edge{number}", Heartbeat(1.0))

    async def task(self, name: str = "digits") -> FederatedTask:
        return FederatedTask.from_document((await self.resources.get("FederatedTask", name)).document)

    async def phase(self, name: str = "digits") -> str:
        return (await self.task(name)).status.phase.value

    async def send(self, node: str, event: Event, sequence: int = 0) -> None:
        address = Address(node, event.direction, event.event_class, event.kind)
        await self.bus.publish(address, encode(Envelope(Header(node, self.incarnation, sequence), event)))

    async def observe(self, node: str, *workers: WorkerObserved, generation: int, taken: int = 0) -> None:
        await self.send(node, Observed(taken, workers), generation)

    def fact(self, event: Event, source: str = f"cloud/{LEVEL}/aggregation", **changes: Any) -> None:
        """Put a fact into the stream; `sequence`, `worker`, `node`, `kind` and `task` default to what is right."""
        sequence = changes.pop("sequence", self.sequences.get(source, 0) + 1)
        self.sequences[source] = sequence
        header = Header(source, changes.pop("incarnation", self.incarnation), sequence)
        place = {"node": source.partition("/")[0], "kind": event.kind} | changes
        self.raw(encode(Envelope(header, event)), **place)

    def raw(
        self, payload: bytes, node: str = CLOUD, *, kind: str = "worker-joined", task: str = LEVEL, worker: str = ""
    ) -> None:
        self.facts.record(Address(node, Direction.UP, EventClass.FACT, kind, task, worker), payload)

    def events(self, kind: type[Event]) -> list[tuple[Address, Any]]:
        """What the coordinator sent of a kind, in order."""
        return [
            (item.address, decode(item.payload).event)
            for item in self.seen
            if item.address.kind == kind.kind and item.payload
        ]

    def receipts(self, source: str = f"cloud/{LEVEL}/aggregation") -> list[int]:
        return [event.source_sequence for _, event in self.events(Receipt) if event.source == source]

    def desired(self, node: str) -> Desired | None:
        found = [event for address, event in self.events(Desired) if address.node == node]
        return found[-1] if found else None


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    made = World()
    async with made.bus, made.bus.subscribe(Pattern(direction=Direction.DOWN)) as deliveries:

        async def listen() -> None:
            async for item in deliveries:
                made.seen.append(item)

        listening = asyncio.create_task(listen())
        try:
            yield made
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
