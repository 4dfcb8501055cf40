"""A portal over a cloud in memory: the real `Cloud` over stores and a bus that pass the same contracts as the real ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.client import Cloud
from edgeai.events.address import CLOUD, Address, Direction, task_level
from edgeai.events.catalogue import Event, Heartbeat, NodeGone, RoundClosed, RoundRecord, RoundStarted
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.portal.access import Role
from edgeai.portal.app import create_app
from edgeai.portal.context import Portal
from edgeai.portal.live import COORDINATOR, Live
from edgeai.portal.settings import PortalSettings
from edgeai.resources.kinds import from_document
from edgeai.store.identity import new_id
from edgeai.store.memory import MemoryBlobStore, MemoryFactStream, MemoryResourceStore

API = "edgeai.io/v1alpha1"
BASE_URL = "http://127.0.0.1:8123"
NOW = "2030-01-31T12:00:00Z"


@dataclass
class MemoryCloud:
    """What the portal is put on. `beat`, `emit` and the stores play the rest of the system."""

    broker: MemoryBroker = field(default_factory=MemoryBroker)
    resources: MemoryResourceStore = field(default_factory=MemoryResourceStore)
    blobs: MemoryBlobStore = field(default_factory=MemoryBlobStore)
    facts: MemoryFactStream = field(default_factory=MemoryFactStream)

    def __post_init__(self) -> None:
        self.bus = MemoryBus(self.broker, "portal")
        self.cloud = Cloud(self.bus, self.resources, self.blobs, self.facts)

    def emit(self, event: Event, task: Any = None, worker: str = "", *, at: float = 1000.0, node: str = CLOUD) -> int:
        """A fact in the history; returns its sequence."""
        level = task_level(task.metadata.name, task.metadata.uid) if task is not None else ""
        address = Address(node, Direction.UP, event.event_class, event.kind, level, worker)
        return self.facts.record(address, encode(Envelope(Header(node), event, new_id(), at)))

    def pass_by(self, event: Event, node: str, task: Any = None, worker: str = "", *, at: float | None = None) -> None:
        """A signal or verdict on the bus, there for whoever listens."""
        level = task_level(task.metadata.name, task.metadata.uid) if task is not None else ""
        address = Address(node, event.direction, event.event_class, event.kind, level, worker)
        self.broker.publish(address, encode(Envelope(Header(node), event, new_id(), time.time() if at is None else at)))

    def beat(self, *nodes: str, outbox: int = 0) -> None:
        """Signs of life of these nodes and of the coordinator."""
        for node in nodes:
            self.pass_by(Heartbeat(1.0, outbox), node)
        self.pass_by(Heartbeat(1.0), CLOUD, worker=COORDINATOR.partition("/")[2])

    def gone(self, node: str) -> None:
        self.pass_by(NodeGone(), node)

    async def node(self, name: str, **status: Any) -> None:
        document = {
            "apiVersion": API,
            "kind": "EdgeNode",
            "metadata": {"name": name, "uid": f"uid-{name}", "generation": 1},
            "spec": {},
            "status": {"conditions": [condition("Ready", "True")], "lastSeen": NOW, **status},
        }
        await self.resources.create("EdgeNode", name, document)

    async def task(self, name: str = "digits", *, labels: dict[str, str] | None = None, **status: Any) -> Any:
        """A task as the coordinator would have it, returned as resource."""
        applied = await self.cloud.apply([from_document(task_document(name, labels=labels))])
        if status:
            await self.set_status("FederatedTask", name, **status)
        return applied[0].resource

    async def set_status(self, kind: str, name: str, **status: Any) -> None:
        stored = await self.resources.get(kind, name)
        changed = {**stored.document, "status": {**stored.document.get("status", {}), **status}}
        await self.resources.replace(stored, changed)


def condition(kind: str, status: str, message: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": "Because",
        "message": message,
        "lastTransitionTime": NOW,
        "observedGeneration": 1,
    }


def worker_row(name: str, node: str, state: str = "Running", role: str = "training") -> dict[str, Any]:
    return {"name": name, "node": node, "role": role, "state": state, "reason": "", "restarts": 0}


def task_document(
    name: str = "digits", *, folder: str = "/srv/train", labels: dict[str, str] | None = None, rounds: int = 3
) -> dict[str, Any]:
    workers = [
        {
            "name": f"work{number}",
            "nodeName": f"edge{number}",
            "workerSpec": {
                "dataset": {"name": f"dataset{number}"},
                "trainScriptDir": folder,
                "trainScriptBootFile": "main.py",
                "frameworkType": "numpy",
            },
        }
        for number in (1, 2)
    ]
    parameters = [{"key": "rounds", "value": rounds}]
    aggregation = {"aggregationAlgorithm": "FedAvg", "parameters": parameters}
    return {
        "apiVersion": API,
        "kind": "FederatedTask",
        "metadata": {"name": name, **({"labels": labels} if labels else {})},
        "spec": {
            "aggregationWorker": {"name": "aggregation", "model": {"name": "cnn"}, "workerSpec": aggregation},
            "trainingWorkers": workers,
        },
    }


def started(task: Any, number: int, *asked: str, attempt: int = 1) -> RoundStarted:
    return RoundStarted(task.metadata.uid, number, attempt, asked)


def closed(task: Any, number: int, *accepted: str, **fields: Any) -> RoundClosed:
    record = {
        "number": number,
        "attempt": 1,
        "accepted": dict.fromkeys(accepted, 10),
        "refused": {},
        "base_digest": "",
        "model_digest": "ab" * 32,
        "model_size_bytes": 8,
        "metrics": {"loss": 1.0 / (number + 1)},
        "bytes_up": 100,
        "bytes_down": 200,
        "seconds": 1.5,
    }
    return RoundClosed(task.metadata.uid, RoundRecord(**(record | fields)))


@dataclass
class RunningPortal:
    """An application with its read model running, and clients for it."""

    memory: MemoryCloud
    app: Starlette

    @property
    def portal(self) -> Portal:
        found: Portal = self.app.state.portal
        return found

    @property
    def live(self) -> Live:
        return self.portal.live

    def transport(self) -> httpx.ASGITransport:
        return httpx.ASGITransport(self.app, client=("127.0.0.1", 40000))

    @asynccontextmanager
    async def client(self, role: Role | None = Role.ADMIN, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        """With a bearer token of this role, or without any."""
        if role is not None:
            name = f"{role.word}-{len(self.portal.access.tokens())}"
            headers["Authorization"] = f"Bearer {self.portal.access.create_token(name, role)}"
        async with httpx.AsyncClient(transport=self.transport(), base_url=BASE_URL, headers=headers) as client:
            yield client

    @asynccontextmanager
    async def browser(self, role: Role = Role.ADMIN) -> AsyncIterator[httpx.AsyncClient]:
        """With the cookie of a login; sends the CSRF token with everything."""
        link = self.portal.access.issue_link("owner", role)
        async with httpx.AsyncClient(transport=self.transport(), base_url=BASE_URL) as client:
            assert (await client.get("/login", params={"link": link})).status_code == 200
            client.headers["X-CSRF-Token"] = (await client.get("/api/v1/me")).json()["csrf_token"]
            yield client

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Return when the read model fulfils this."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running_portal(
    state_dir: Path, memory: MemoryCloud | None = None, **settings: Any
) -> AsyncIterator[RunningPortal]:
    """A portal that has seen its cloud."""
    memory = memory or MemoryCloud()
    app = create_app(memory.cloud, PortalSettings(state_dir, **settings))
    async with memory.bus, app.router.lifespan_context(app):
        found = RunningPortal(memory, app)
        await found.until(lambda: not found.live.problems() and found.live.history_loaded)
        yield found
