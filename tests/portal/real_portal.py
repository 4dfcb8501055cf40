"""A portal as it runs: a real nats-server, coordinator and controllers in this process, real workers, HTTP over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from edgeai.bus.nats import NatsBus
from edgeai.client import Cloud, connect
from edgeai.controller.service import ControllerSettings, LocalController
from edgeai.coordinator.service import GlobalCoordinator
from edgeai.events.address import CLOUD
from edgeai.launcher.process import ProcessLauncher
from edgeai.portal.access import Access, Role
from edgeai.portal.app import PortalSettings, serve
from edgeai.resources.kinds import from_document
from edgeai.store.edge import EdgeStore
from edgeai.store.nats import NatsBlobStore, NatsFactStream, NatsResourceStore

API = "edgeai.io/v1alpha1"
SCRIPT = """
import asyncio, sys
import numpy as np
import edgeai

async def main():
    async with edgeai.join() as task:
        print("joined", task.worker, flush=True)
        async for round in task.rounds():
            if round.validate:
                await round.report({"accuracy": round.number / 10}, num_examples=4)
            if round.train:
                weights = [array + 1 for array in round.weights] or [np.zeros(8, "float32")]
                await round.submit(weights, num_examples=4, metrics={"loss": 1 / round.number if round.number else 1.0})

asyncio.run(main())
"""


@dataclass
class Service:
    """A part that can be stopped and started again."""

    start: Callable[[], Coroutine[Any, Any, None]]
    task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self.task = asyncio.create_task(self.start())

    async def end(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None


@dataclass
class Portal:
    """`serve` around a cloud; `client` speaks to it over its socket."""

    source: Callable[[], Any]
    settings: PortalSettings
    url: str = ""
    task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        up: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(serve(self.source, self.settings, started=up.set_result))
        await asyncio.wait({self.task, up}, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            self.task.result()
        self.url = up.result()

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    @asynccontextmanager
    async def client(self, role: Role = Role.ADMIN) -> AsyncIterator[httpx.AsyncClient]:
        access = Access(self.settings.state_dir)
        token = access.create_token(f"{role.word}-{len(access.tokens())}", role)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, trust_env=False) as client:
            yield client

    async def ready(self, client: httpx.AsyncClient) -> None:
        async with asyncio.timeout(30):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)


@dataclass
class Events:
    """Server-sent events of an open answer."""

    lines: AsyncIterator[str]
    seen: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    async def next(self) -> tuple[str, str, dict[str, Any]]:
        """(event, id, data) of the next one. Raises StopAsyncIteration at the end of the stream."""
        fields = {"event": "", "id": "", "data": ""}
        async for line in self.lines:
            if not line and fields["event"]:
                found = fields["event"], fields["id"], json.loads(fields["data"])
                self.seen.append(found)
                return found
            name, _, value = line.partition(":")
            if name in fields:
                fields[name] = value.strip()
        raise StopAsyncIteration

    async def until(self, fits: Callable[[str, dict[str, Any]], bool], timeout_s: float = 60) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            while True:
                event, _, data = await self.next()
                if fits(event, data):
                    return data


@asynccontextmanager
async def following(client: httpx.AsyncClient, path: str, **params: str) -> AsyncIterator[Events]:
    async with client.stream("GET", path, params=params, timeout=None) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield Events(answer.aiter_lines())


@dataclass
class Cluster:
    """Coordinator and controllers on one nats-server; edges speak NATS directly, the bridge is tested elsewhere."""

    url: str
    folder: Path
    coordinator: Service

    def source(self) -> connect:
        return connect(self.url)

    def manifest(self, name: str, rounds: int = 3) -> list[dict[str, Any]]:
        """A model, datasets and a task over both edges."""
        found: list[dict[str, Any]] = [{"apiVersion": API, "kind": "Model", "metadata": {"name": name}, "spec": {}}]
        workers = []
        for number in (1, 2):
            edge = f"edge{number}"
            spec = {"nodeName": edge, "url": str(self.folder / edge / "data" / "d.npz"), "format": "npz"}
            found.append({"apiVersion": API, "kind": "Dataset", "metadata": {"name": f"data{number}"}, "spec": spec})
            worker = {
                "dataset": {"name": f"data{number}"},
                "trainScriptDir": str(self.folder / edge / "data"),
                "trainScriptBootFile": "main.py",
                "frameworkType": "numpy",
            }
            workers.append({"name": f"work{number}", "nodeName": edge, "workerSpec": worker})
        parameters = [{"key": "rounds", "value": rounds}, {"key": "min node number", "value": 2}]
        aggregation = {"aggregationAlgorithm": "FedAvg", "parameters": parameters}
        spec = {
            "aggregationWorker": {"name": "aggregation", "model": {"name": name}, "workerSpec": aggregation},
            "trainingWorkers": workers,
        }
        return [*found, {"apiVersion": API, "kind": "FederatedTask", "metadata": {"name": name}, "spec": spec}]


@asynccontextmanager
async def cluster(url: str, folder: Path) -> AsyncIterator[Cluster]:
    """Ends with all tasks deleted and their workers gone."""
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(NatsBus(url, name="coordinator"))
        await bus.wait_connected(10)
        resources, facts, blobs = NatsResourceStore(bus), NatsFactStream(bus), NatsBlobStore(bus)
        for store in (resources, facts, blobs):
            await store.ensure()

        async def coordinate() -> None:
            await GlobalCoordinator(bus, resources, facts).run()

        coordinator = Service(coordinate)
        coordinator.begin()
        stack.push_async_callback(coordinator.end)
        for node in (CLOUD, "edge1", "edge2"):
            await _controller(stack, url, folder / node, node)
        cloud = Cloud(bus, resources, blobs, facts)
        stack.push_async_callback(_delete_tasks, cloud)
        yield Cluster(url, folder, coordinator)


async def _controller(stack: AsyncExitStack, url: str, folder: Path, node: str) -> None:
    data = folder / "data"
    data.mkdir(parents=True)
    np.savez(data / "d.npz", x_train=np.zeros((4, 2), "float32"), y_train=np.zeros(4, "int64"))
    (data / "main.py").write_text(SCRIPT)
    credentials = folder / "worker.json"
    credentials.write_text(json.dumps({"url": url, "username": "", "password": ""}))
    bus = await stack.enter_async_context(NatsBus(url, name=node))
    await bus.wait_connected(10)
    store = await EdgeStore.open(folder / "controller.db")
    stack.push_async_callback(store.close)
    settings = ControllerSettings(node, folder, url, credentials, [data], {"launcher": "process"})
    library = NatsBlobStore(bus) if node == CLOUD else None
    controller = Service(LocalController(settings, bus, store, ProcessLauncher(), library).run)
    controller.begin()
    stack.push_async_callback(controller.end)


async def _delete_tasks(cloud: Cloud) -> None:
    names = [task.name for task in await cloud.list("FederatedTask")]
    for name in names:
        await cloud.delete("FederatedTask", name)
    for name in names:
        await cloud.wait("FederatedTask", name, lambda task: task is None, 30)


def node_document(name: str) -> dict[str, Any]:
    document = {"apiVersion": API, "kind": "EdgeNode", "metadata": {"name": name, "uid": f"u-{name}", "generation": 1}}
    return from_document(document).to_document()
