"""A program: a portal over a cloud in memory with 1,000 edges that beat, 200 tasks, and 20 rounds a second until it is ended.

Prints its url and a token as JSON, then goes on. The cloud's own memory counts as if it were the portal's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.client import Cloud
from edgeai.events.address import Address, Direction, task_level
from edgeai.events.catalogue import Event, Heartbeat, RoundClosed, RoundRecord, RoundStarted
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.portal.access import Access, Role
from edgeai.portal.app import PortalSettings, serve
from edgeai.store.identity import new_id
from edgeai.store.memory import MemoryBlobStore, MemoryFactStream, MemoryResourceStore

API = "edgeai.io/v1alpha1"
EDGES, TASKS, WORKERS, ROUNDS_PER_S, PAST_ROUNDS = 1000, 200, 20, 20, 20


class Load:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.resources, self.facts = MemoryResourceStore(), MemoryFactStream()
        self.bus = MemoryBus(self.broker, "portal")
        self.cloud = Cloud(self.bus, self.resources, MemoryBlobStore(), self.facts)
        self.rounds = dict.fromkeys(range(TASKS), 0)

    async def fill(self) -> None:
        for number in range(EDGES):
            metadata = {"name": f"edge{number}", "uid": f"{number:032x}", "generation": 1}
            document = {"apiVersion": API, "kind": "EdgeNode", "metadata": metadata, "spec": {}, "status": {}}
            await self.resources.create("EdgeNode", f"edge{number}", document)
        for number in range(TASKS):
            await self.resources.create("FederatedTask", f"task{number}", self.task(number))
            for _ in range(PAST_ROUNDS):
                self.round(number)

    def workers(self, task: int) -> list[tuple[str, str]]:
        return [(f"work{place}", f"edge{(task * WORKERS + place) % EDGES}") for place in range(WORKERS)]

    def task(self, number: int) -> dict[str, Any]:
        spec = {
            "dataset": {"name": "d"},
            "trainScriptDir": "/x",
            "trainScriptBootFile": "m.py",
            "frameworkType": "numpy",
        }
        workers = self.workers(number)
        return {
            "apiVersion": API,
            "kind": "FederatedTask",
            "metadata": {"name": f"task{number}", "uid": f"{number:08x}" * 4, "generation": 1},
            "spec": {
                "aggregationWorker": {
                    "name": "a",
                    "model": {"name": "m"},
                    "workerSpec": {"aggregationAlgorithm": "FedAvg"},
                },
                "trainingWorkers": [{"name": name, "nodeName": node, "workerSpec": spec} for name, node in workers],
            },
            "status": {
                "phase": "Running",
                "workers": [
                    {"name": name, "node": node, "role": "training", "state": "Running"} for name, node in workers
                ],
            },
        }

    def round(self, task: int) -> None:
        """One more round of a task: two facts, and its status."""
        self.rounds[task] += 1
        number, names = self.rounds[task], [name for name, _ in self.workers(task)]
        uid = f"{task:08x}" * 4
        self.emit(task, RoundStarted(uid, number, 1, tuple(names)))
        answered = dict.fromkeys(names, 0.1)
        accepted = dict.fromkeys(names, 10)
        metrics = {"loss": 1.0 / number, "accuracy": 1 - 1.0 / number}
        record = RoundRecord(number, 1, accepted, {}, "", "ab" * 32, 8, metrics, 1000, 1000, 0.1, answered)
        self.emit(task, RoundClosed(uid, record))

    def emit(self, task: int, event: Event) -> None:
        level = task_level(f"task{task}", f"{task:08x}" * 4)
        address = Address("cloud", Direction.UP, event.event_class, event.kind, level)
        self.facts.record(address, encode(Envelope(Header("cloud/x"), event, new_id(), time.time())))

    async def beat(self) -> None:
        while True:
            for number in range(EDGES):
                where = Address(f"edge{number}", Direction.UP, Heartbeat.event_class, Heartbeat.kind)
                self.broker.publish(
                    where, encode(Envelope(Header(f"edge{number}"), Heartbeat(1.0), new_id(), time.time()))
                )
                await asyncio.sleep(5 / EDGES)

    async def train(self) -> None:
        task = 0
        while True:
            self.round(task)
            stored = await self.resources.get("FederatedTask", f"task{task}")
            status = {**stored.document["status"], "round": self.rounds[task]}
            await self.resources.replace(stored, {**stored.document, "status": status})
            task = (task + 1) % TASKS
            await asyncio.sleep(1 / ROUNDS_PER_S)


async def main(state_dir: Path) -> None:
    load = Load()
    await load.fill()

    @contextlib.asynccontextmanager
    async def source() -> Any:
        async with load.bus:
            yield load.cloud

    def started(url: str) -> None:
        token = Access(state_dir).create_token("load", Role.VIEWER)
        print(json.dumps({"url": url, "token": token}), flush=True)

    running = asyncio.create_task(serve(source, PortalSettings(state_dir), started=started))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    playing = [asyncio.create_task(load.beat()), asyncio.create_task(load.train())]
    with contextlib.suppress(asyncio.CancelledError):
        await running
    for task in playing:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
