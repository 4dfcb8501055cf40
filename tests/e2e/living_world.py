"""What tests of the whole system share: a playground of real processes, tasks for it, and a way to find and kill its parts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgeai.cli.playground import Playground
from edgeai.client import Cloud
from edgeai.errors import BusUnavailable
from edgeai.events.address import task_level
from edgeai.events.catalogue import Progress
from edgeai.launcher.children import record_path
from edgeai.resources.conditions import find_condition
from edgeai.resources.federated import FederatedTask, TaskPhase
from edgeai.resources.kinds import from_document

HERE = Path(__file__).parent
API = "edgeai.io/v1alpha1"
OVER = frozenset({TaskPhase.SUCCEEDED, TaskPhase.FAILED})
PATIENCE_S = 150.0


@dataclass(frozen=True)
class Worker:
    """A training worker of a test's task. `folder` is relative to tests/e2e, or absolute."""

    name: str = "work1"
    node: str = "edge1"
    dataset: str = "dataset0"
    folder: str = "scripts/steady"
    boot_file: str = "main.py"
    framework: str = "numpy"
    version: str = ">=1.26"
    parameters: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "dataset": {"name": self.dataset},
            "trainScriptDir": self.folder,
            "trainScriptBootFile": self.boot_file,
            "frameworkType": self.framework,
            "frameworkVersion": self.version,
            "parameters": _parameters(self.parameters or {}),
        }
        return {"name": self.name, "nodeName": self.node, "workerSpec": spec}


THREE = tuple(Worker(f"work{number}", f"edge{number}", f"dataset{number - 1}") for number in (1, 2, 3))


def manifests(name: str, workers: Sequence[Worker] = THREE, *, model: str = "", **parameters: Any) -> list[Any]:
    """A task and its model (by default of the same name). `parameters`, with _ for a blank, stand over short defaults."""
    defaults = {"rounds": 4, "pause": 0.2, "floats": 1000, "min node number": 1, "round deadline seconds": 60}
    wanted = defaults | {key.replace("_", " "): value for key, value in parameters.items()}
    spec = {
        "aggregationWorker": {
            "name": "aggregation",
            "model": {"name": model or name},
            "workerSpec": {"aggregationAlgorithm": "FedAvg", "parameters": _parameters(wanted)},
        },
        "trainingWorkers": [worker.document() for worker in workers],
    }
    of_model = {"apiVersion": API, "kind": "Model", "metadata": {"name": model or name}, "spec": {}}
    task = {"apiVersion": API, "kind": "FederatedTask", "metadata": {"name": name}, "spec": spec}
    return [from_document(of_model), from_document(task)]


def _parameters(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in values.items()]


@dataclass(frozen=True)
class World:
    """A playground that runs, seen from outside."""

    playground: Playground
    cloud: Cloud
    crash_folder: Path

    # --- tasks

    async def apply(self, name: str, workers: Sequence[Worker] = THREE, **parameters: Any) -> FederatedTask:
        applied = await self.cloud.apply(manifests(name, workers, **parameters), base=HERE)
        task = applied[-1].resource
        assert isinstance(task, FederatedTask)
        return task

    async def until(
        self, name: str, condition: Callable[[FederatedTask], bool], timeout_s: float = PATIENCE_S
    ) -> FederatedTask:
        """The task as soon as `condition` is true of it, also across an outage of the cloud's broker."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        task = await self.cloud.wait("FederatedTask", name, lambda found: _fits(found, condition))
                    except BusUnavailable:
                        await self.cloud.bus.wait_connected()
                    else:
                        assert isinstance(task, FederatedTask)
                        return task
        except TimeoutError:
            raise AssertionError(await self._report(name, timeout_s)) from None

    async def _report(self, name: str, timeout_s: float) -> str:
        """What there is to know about a task that did not come where it should."""
        task = await self.cloud.get("FederatedTask", name)
        assert isinstance(task, FederatedTask)
        facts = [f"{line.node} {line.worker} {line.event}"[:200] async for line in self.cloud.history(task)]
        logs = [(self.slot(task, worker) / "worker.log") for worker in names_of(task)]
        tails = [f"--- {log}\n{log.read_text()[-4000:]}" for log in logs if log.exists()]
        return "\n".join([f"{name}: not within {timeout_s:g} s", describe(task), *facts, *tails])

    async def ended(self, name: str, timeout_s: float = PATIENCE_S) -> FederatedTask:
        return await self.until(name, lambda task: task.status.phase in OVER, timeout_s)

    async def in_round(self, name: str, number: int) -> FederatedTask:
        return await self.until(name, lambda task: task.status.round >= number or task.status.phase in OVER)

    async def train(self, name: str, workers: Sequence[Worker] = THREE, **parameters: Any) -> FederatedTask:
        """Apply a task and wait for its end."""
        await self.apply(name, workers, **parameters)
        return await self.ended(name)

    async def delete(self, name: str) -> None:
        await self.cloud.delete("FederatedTask", name)
        await self.cloud.wait("FederatedTask", name, lambda found: found is None, PATIENCE_S)

    async def training(self, name: str, worker: str, number: int) -> None:
        """Return when the worker says that it trains in this round (or a later one). Call before applying the task."""
        async with asyncio.timeout(PATIENCE_S), self.cloud.progress() as signals:
            async for address, progress in signals:
                if address.worker == worker and _is_training(progress, number):
                    return

    # --- processes and files

    def folder(self, node: str) -> Path:
        return self.playground.folder(node)

    def slot(self, task: FederatedTask, worker: str) -> Path:
        level = task_level(task.metadata.name, task.metadata.uid)
        return self.folder(node_of(task, worker)) / "slots" / level / worker

    def daemon(self, node: str) -> int:
        role = "cloud" if node == "cloud" else "edge"
        return _pid(record_path(self.playground.state_dir, role, node), "pid")

    def child(self, role: str, node: str) -> int:
        """The broker or bridge of a node."""
        return _pid(record_path(self.folder(node), role, node), "pid")

    def worker(self, task: FederatedTask, worker: str) -> int:
        return _pid(self.slot(task, worker) / "run.json", "child_pid")

    def workers(self, task: FederatedTask) -> dict[str, int]:
        return {name: self.worker(task, name) for name in names_of(task)}

    def processes(self) -> list[psutil.Process]:
        """All processes whose command line or working directory lies in this world."""
        return list(processes_in(self.playground.state_dir))

    def arm(self, point: str, count: int = 1) -> Path:
        """Have one process die at this crash point, once (see edgeai.crashpoints)."""
        armed = self.crash_folder / point
        armed.write_text(str(count))
        return armed


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def processes_in(folder: Path) -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        try:
            where = " ".join((*process.cmdline(), process.cwd()))
        except psutil.Error:
            continue
        if str(folder) in where and process.pid != os.getpid():
            yield process


def names_of(task: FederatedTask) -> list[str]:
    return [task.spec.aggregation_worker.name, *(worker.name for worker in task.spec.training_workers)]


def node_of(task: FederatedTask, worker: str) -> str:
    return next((item.node_name for item in task.spec.training_workers if item.name == worker), "cloud")


def message(task: FederatedTask, kind: str) -> str:
    """The message of a condition that is true; empty if it is not."""
    found = find_condition(task.status.conditions, kind)  # type: ignore[arg-type]
    return found.message if found is not None and found.status == "True" else ""


def digest_of(task: FederatedTask) -> str:
    """The digest of what a task has made. Fails the test with the reasons if it has made nothing."""
    assert task.status.phase is TaskPhase.SUCCEEDED, describe(task)
    assert task.status.model is not None
    return task.status.model.digest


def updates_of(task: FederatedTask) -> list[int]:
    return [row.updates for row in task.status.rounds]


def describe(task: FederatedTask) -> str:
    conditions = [f"{item.type}={item.status} {item.reason}: {item.message}" for item in task.status.conditions]
    workers = [f"{row.name} {row.state} {row.reason}" for row in task.status.workers]
    return "\n".join([f"{task.metadata.name} {task.status.phase} round {task.status.round}", *conditions, *workers])


def _fits(found: object, condition: Callable[[FederatedTask], bool]) -> bool:
    return isinstance(found, FederatedTask) and condition(found)


def _is_training(progress: Progress, number: int) -> bool:
    return progress.step == "training" and progress.number >= number


def _pid(path: Path, field: str) -> int:
    return int(json.loads(path.read_text())[field])
