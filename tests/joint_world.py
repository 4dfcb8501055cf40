"""A joint inference service without coordinator and controller: slot directories as these would make them, and workers on them.

Models are one number that inputs are multiplied with. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeai.bus.base import Bus
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    InferenceAnswered,
    InferenceAsked,
    InferenceWork,
    Inferring,
    ModelFile,
    Role,
)
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.events.values import pack
from edgeai.launcher.slots import ServingFile, SlotDir, SlotFile, write_serving
from edgeai.resources.joint import JointInferenceServiceSpec
from edgeai.store.arrays import write_arrays
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.joint_cloud import JointCloud
from edgeai.worker.joint_edge import JointEdge
from edgeai.worker.models import LocalModel
from edgeai.worker.task import Task

UID, SERVICE, TASK = "0123abcd" * 4, "digits", "digits-0123abcd"
SOON_S = 20.0


def spec_of(
    *, edge: dict[str, Any] | None = None, cloud: dict[str, Any] | None = None, **policy: Any
) -> JointInferenceServiceSpec:
    """Everything is hard, unless `edge` says otherwise."""
    little = {
        "name": "little",
        "nodeName": "edge1",
        "model": {"name": "small"},
        "workerSpec": {"scriptDir": "/x", "scriptBootFile": "main.py", "frameworkType": "numpy"},
        "hardExampleMining": {"algorithm": "CloudOnly"},
        **(edge or {}),
    }
    big = {
        "name": "big",
        "model": {"name": "large"},
        "workerSpec": {"scriptDir": "/x", "scriptBootFile": "main.py", "frameworkType": "numpy"},
        **(cloud or {}),
    }
    return JointInferenceServiceSpec.model_validate(
        {"edgeWorkers": [little], "cloudWorker": big, "policy": {"deadlineSeconds": 5.0, **policy}}
    )


def slot_of(
    folder: Path, spec: JointInferenceServiceSpec, role: Role, *, node: str, worker: str, has_model: bool = True
) -> SlotDir:
    slot = SlotDir(folder)
    slot.create()
    work = InferenceWork(spec.model_dump_json(by_alias=True), has_model)
    assignment = Assignment(TASK, SERVICE, UID, 1, worker, role, inference=work)
    slot.write_slot(SlotFile(node, assignment))
    return slot


def deploy(slot: SlotDir, value: float, version: int = 1) -> str:
    """Ask the worker of this slot to serve another model; returns its digest."""
    beside = slot.models / "beside"
    digest, size_bytes = write_arrays(beside, [np.array([value])])
    beside.replace(slot.model(digest))
    write_serving(slot.models, ServingFile(ModelFile(f"{digest}.safetensors", BlobRef(digest, size_bytes)), version))
    return digest


def load(model: LocalModel) -> float:
    return float(model.load()[0][0])


def predict(model: float, x: Any) -> Any:
    if np.max(x) >= 1000:
        raise ValueError("an input that nobody can answer")
    return x * model


def part_at(slot: SlotDir, bus: Bus) -> JointEdge | JointCloud:
    found = slot.read_slot()
    environment = WorkerEnvironment(TASK, found.assignment.worker, found.node, "", "", slot)
    return (JointEdge if found.assignment.role is Role.EDGE else JointCloud)(environment, bus)


@asynccontextmanager
async def joined(slot: SlotDir, bus: Bus) -> AsyncIterator[Task]:
    """The bus is entered here."""
    part = part_at(slot, bus)
    async with bus, part.running():
        yield Task(part)


@asynccontextmanager
async def serving(slot: SlotDir, bus: Bus, value: float | None = None, **how: Any) -> AsyncIterator[Task]:
    if value is not None:
        deploy(slot, value)
    async with joined(slot, bus) as task:
        await task.serve(**{"load": load, "predict": predict, **how})
        yield task


@dataclass
class Application:
    """A program on the edge that asks over the bus, and keeps all that it hears, by correlation."""

    bus: Bus
    name: str = "shop"
    node: str = "edge1"
    heard: dict[bytes, list[InferenceAnswered]] = field(default_factory=dict)

    async def ask(self, x: Any = None, *, content: bytes | None = None, **more: Any) -> bytes:
        correlation = os.urandom(16)
        self.heard[correlation] = []
        asked = InferenceAsked(pack(x) if content is None else content, **more)
        to = Address(self.node, Direction.LOCAL, EventClass.REQUEST, asked.kind, SERVICE, self.name)
        await self.bus.publish(to, encode(Envelope(Header(self.name, correlation=correlation), asked)))
        return correlation

    async def answers(self, correlation: bytes, count: int = 1) -> list[InferenceAnswered]:
        await until(lambda: len(self.heard[correlation]) >= count)
        return self.heard[correlation]

    async def answer(self, x: Any = None, **more: Any) -> InferenceAnswered:
        return (await self.answers(await self.ask(x, **more)))[0]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        pattern = Pattern(self.node, Direction.LOCAL, EventClass.REQUEST, InferenceAnswered.kind, SERVICE, self.name)
        async with self.bus.subscribe(pattern) as deliveries:

            async def listen() -> None:
                async for delivery in deliveries:
                    envelope = decode(delivery.payload)
                    assert isinstance(envelope.event, InferenceAnswered)
                    self.heard[envelope.header.correlation].append(envelope.event)

            listener = asyncio.create_task(listen())
            yield
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


@dataclass
class Listener:
    """What the workers tell their controllers, the latest by worker."""

    bus: Bus
    told: dict[str, Inferring] = field(default_factory=dict)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with self.bus.subscribe(Pattern(None, Direction.LOCAL, EventClass.SIGNAL)) as deliveries:

            async def listen() -> None:
                async for delivery in deliveries:
                    event = decode(delivery.payload).event
                    assert isinstance(event, Inferring)
                    self.told[delivery.address.worker] = event

            listener = asyncio.create_task(listen())
            yield
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.005)
