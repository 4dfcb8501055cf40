"""The load of `tests/benchmarks/portal.py`: a cloud of 1,000 edges and 200 tasks that only looks busy, on a real nats-server.

    python load.py nats://host:port

What a coordinator, controllers, bridges and workers would say: signs of life every 5 s, what workers use every 10 s, their
progress and verdicts, facts of rounds, status documents. Says `{"ready": true}`, then of every round when the store had
acknowledged its status (monotonic seconds, the same for all processes of a machine). `full` or `calm` on stdin: everything, or
signs of life and one round a second of a task whose page is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import Awaitable, Iterable
from typing import Any

from edgeai.bus.nats import NatsBus
from edgeai.events.address import CLOUD, Address, task_level
from edgeai.events.catalogue import (
    Bridging,
    Event,
    Heartbeat,
    LaneCounts,
    Outcome,
    Progress,
    RoundClosed,
    RoundRecord,
    RoundStarted,
    Usage,
    Verdict,
)
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.store.base import Stored
from edgeai.store.identity import new_id
from edgeai.store.nats import NatsFactStream, NatsResourceStore

API, SINCE = "edgeai.io/v1alpha1", "2026-01-01T00:00:00Z"
EDGES, TASKS, WORKERS, VERSIONS, PAST_ROUNDS = 1000, 200, 5, 10, 20
ROUNDS_PER_S, BEAT_S, USAGE_S = 20, 5, 10
CALM_TASKS = 8
TASK = "FederatedTask"
COORDINATOR = "coordinator"


class Load:
    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self._resources, self._facts = NatsResourceStore(bus), NatsFactStream(bus)
        self._tasks: dict[int, Stored] = {}
        self._rounds = dict.fromkeys(range(TASKS), 0)
        self.full = False

    # --- what is there

    async def fill(self) -> None:
        await self._resources.ensure()
        await self._facts.ensure()
        everything = [
            *(self._create("EdgeNode", f"edge{n}", {}, _edge(n)) for n in range(EDGES)),
            *(self._create("Dataset", f"data{n}", *_dataset(n)) for n in range(EDGES)),
            *(self._create("Model", f"model{n}", {}, _model(n)) for n in range(TASKS)),
        ]
        await _some_at_once(everything)
        for task in range(TASKS):
            for _ in range(PAST_ROUNDS):
                await self._open(task)
                await self._close(task)
            self._tasks[task] = await self._create(TASK, f"task{task}", _spec(task), self._status(task))

    async def _create(self, kind: str, name: str, spec: Any, status: Any) -> Stored:
        metadata = {"name": name, "uid": _uid(name), "generation": 1, "creationTimestamp": SINCE}
        document = {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec, "status": status}
        return await self._resources.create(kind, name, document)

    def _status(self, task: int) -> dict[str, Any]:
        number = self._rounds[task]
        rows = [{"name": name, "node": node, "role": "training", "state": "Running"} for name, node in _workers(task)]
        return {
            "phase": "Running",
            "observedGeneration": 1,
            "round": number,
            "metrics": _metrics(number),
            "workers": rows,
            "conditions": [_condition("Accepted"), _condition("Ready"), _condition("Progressing")],
        }

    # --- what happens

    async def rounds(self) -> None:
        """One after the other; the next of a task is opened when one is closed."""
        due = time.monotonic()
        for turn in itertools.count():
            due += 1 / ROUNDS_PER_S if self.full else 1.0
            await asyncio.sleep(due - time.monotonic())
            task = turn % (TASKS if self.full else CALM_TASKS)
            if self.full:  # those that close next, and later
                await self._answers((task + TASKS // 2) % TASKS)
            await self._close(task)
            stored = self._tasks[task]
            document = {**stored.document, "status": self._status(task)}
            self._tasks[task] = await self._resources.replace(stored, document)
            _say({"task": f"task{task}", "round": self._rounds[task], "at": time.monotonic()})
            await self._open(task)

    async def _open(self, task: int) -> None:
        names = tuple(name for name, _ in _workers(task))
        await self._fact(task, RoundStarted(_uid(f"task{task}"), self._rounds[task] + 1, 1, names))

    async def _answers(self, task: int) -> None:
        number, level = self._rounds[task] + 1, _level(task)
        for name, node in _workers(task):
            await self._say(node, Progress(number, "submitted"), level, name)
            verdict = Verdict(_uid(f"task{task}"), number, "offer", Outcome.COUNTED)
            await self._say(node, verdict, level, name)

    async def _close(self, task: int) -> None:
        self._rounds[task] += 1
        number, names = self._rounds[task], [name for name, _ in _workers(task)]
        accepted, answered = dict.fromkeys(names, 100), dict.fromkeys(names, 0.4)
        record = RoundRecord(
            number, 1, accepted, {}, "", "ab" * 32, 8000, _metrics(number), 40_000, 40_000, 0.5, answered
        )
        await self._fact(task, RoundClosed(_uid(f"task{task}"), record))

    async def _fact(self, task: int, event: Event) -> None:
        await self._say(CLOUD, event, _level(task), COORDINATOR)

    async def beats(self) -> None:
        """Every edge in its turn; the outbox of one in ten changes."""
        for number in itertools.count():
            turn, edge = divmod(number, EDGES)
            outbox = turn if edge % 10 == 0 else 0
            await self._say(f"edge{edge}", Heartbeat(number / EDGES * BEAT_S, outbox))
            await self._say(
                f"edge{edge}", Bridging(turn * BEAT_S, True, up=LaneCounts(turn, turn), down=LaneCounts(turn, turn))
            )
            if number % (EDGES // BEAT_S) == 0:
                await self._say(CLOUD, Heartbeat(1.0), worker=COORDINATOR)
            await self._pause(number, BEAT_S / EDGES)

    async def usages(self) -> None:
        everyone = [(task, name, node) for task in range(TASKS) for name, node in _workers(task)]
        random.Random(1).shuffle(everyone)
        for number, (task, name, node) in enumerate(itertools.cycle(everyone)):
            if self.full:
                await self._say(node, Usage(number / 100, 200_000_000 + number, 0, 12, 0.5), _level(task), name)
            await self._pause(number, USAGE_S / len(everyone))

    async def _pause(self, number: int, seconds: float) -> None:
        """A timer for each would cost more than what it waits for."""
        if number % 20 == 19:
            await asyncio.sleep(20 * seconds)

    async def _say(self, node: str, event: Event, level: str = "", worker: str = "") -> None:
        address = Address(node, event.direction, event.event_class, event.kind, level, worker)
        source = "/".join(filter(None, (node, worker)))
        await self._bus.publish(address, encode(Envelope(Header(source), event, new_id(), time.time())))


# --- documents


def _uid(name: str) -> str:
    return name.encode().hex().rjust(32, "0")


def _level(task: int) -> str:
    return task_level(f"task{task}", _uid(f"task{task}"))


def _workers(task: int) -> list[tuple[str, str]]:
    return [(f"work{place}", f"edge{(task * WORKERS + place) % EDGES}") for place in range(WORKERS)]


def _metrics(number: int) -> dict[str, float]:
    return {"accuracy": 1 - 1.0 / (number + 1), "loss": 1.0 / (number + 1)}


def _condition(kind: str) -> dict[str, Any]:
    return {
        "type": kind,
        "status": "True",
        "reason": "AsExpected",
        "message": "",
        "lastTransitionTime": SINCE,
        "observedGeneration": 1,
    }


def _spec(task: int) -> dict[str, Any]:
    aggregation = {"aggregationAlgorithm": "FedAvg", "parameters": [{"key": "rounds", "value": 100_000}]}
    script = {"trainScriptDir": "/x", "trainScriptBootFile": "main.py", "frameworkType": "numpy"}
    workers = [
        {"name": name, "nodeName": node, "workerSpec": {"dataset": {"name": node.replace("edge", "data")}, **script}}
        for name, node in _workers(task)
    ]
    model = {"name": f"model{task}"}
    return {
        "aggregationWorker": {"name": "aggregation", "model": model, "workerSpec": aggregation},
        "trainingWorkers": workers,
    }


def _edge(number: int) -> dict[str, Any]:
    versions = {"edgeai": "0.1.0", "python": "3.11.2"}
    return {
        "conditions": [_condition("Ready")],
        "versions": versions,
        "address": f"10.0.{number // 250}.{number % 250}",
    }


def _dataset(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = {"nodeName": f"edge{number}", "url": f"/data/{number}.npz", "format": "npz"}
    status = {
        "sampleCount": 1000 + number,
        "sizeBytes": 3_000_000,
        "digest": "cd" * 32,
        "conditions": [_condition("Ready")],
    }
    return spec, status


def _model(number: int) -> dict[str, Any]:
    made = {"taskUid": _uid(f"task{number}"), "digest": "ab" * 32, "sizeBytes": 8000, "createdAt": SINCE}
    versions = [{"version": n, "round": n, "metrics": _metrics(n), **made} for n in range(1, VERSIONS + 1)]
    return {"versions": versions, "conditions": [_condition("Ready")]}


# --- the program


async def _some_at_once(wanted: Iterable[Awaitable[Any]], limit: int = 50) -> None:
    gate = asyncio.Semaphore(limit)

    async def one(each: Awaitable[Any]) -> None:
        async with gate:
            await each

    await asyncio.gather(*(one(each) for each in wanted))


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


async def main(url: str) -> None:
    loop = asyncio.get_running_loop()
    async with NatsBus(url, name="load") as bus:
        await bus.wait_connected(10)
        load = Load(bus)
        await load.fill()
        _say({"ready": True})
        begun = asyncio.Event()

        def hear() -> None:
            for word in sys.stdin.readline().split():
                load.full = word == "full"
                begun.set()

        loop.add_reader(sys.stdin.fileno(), hear)
        await begun.wait()
        playing = asyncio.gather(load.rounds(), load.beats(), load.usages())
        loop.add_signal_handler(signal.SIGTERM, playing.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await playing


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
