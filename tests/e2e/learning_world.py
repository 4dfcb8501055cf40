"""What tests of incremental learning share: jobs of one edge, the inputs that they are asked, and labels given by the test.

A job of a test learns the digits of `tests/e2e/scripts/learner`, which is fast and always comes to the same model. It is asked
what the test appends to its stream; every answer stands in its journal. Rounds are asked for by hand unless a test wants it
otherwise, so that the test knows what is in a snapshot.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from living_world import API, HERE, PATIENCE_S, World

from edgeai.errors import BusUnavailable, EdgeaiError, WaitTimeout
from edgeai.events.address import task_level
from edgeai.events.catalogue import ModelDeployed, StageChanged
from edgeai.launcher.slots import ServingFile, read_serving
from edgeai.resources.incremental import IncrementalLearningJob, StageRecord
from edgeai.resources.kinds import from_document
from edgeai.resources.model import Model, ModelVersion
from edgeai.settings import shipped

EDGE, KIND = "edge1", "IncrementalLearningJob"
KNOWN = 200
"""Digits that a job's dataset holds at first; the stream's come after them."""
JOB_POINTS = frozenset(
    {
        "examples.rows_taken",
        "examples.hard_taken",
        "examples.snapshot_fixed",
        "examples.snapshot_written",
        "job.snapshot_taken",
        "job.model_taken",
        "job.model_linked",
        "job.serving_written",
        "job.model_staged",
        "job.new_model_heard",
        "job.deployed_committed",
        "worker.stage_reported",
        "worker.hard_example_kept",
        "worker.model_swapped",
        "worker.model_noted",
        "coordinator.deployed_registered",
    }
)
"""Crash points that only an incremental learning job passes."""


@dataclass(frozen=True)
class LearningWorld:
    """A world, and jobs on its one edge."""

    world: World

    @property
    def data(self) -> Path:
        return self.world.folder(EDGE) / "data"

    # --- a job

    async def start(self, name: str, asked: Iterable[int] = (), **wanted: Any) -> IncrementalLearningJob:
        """Apply a job with all it refers to. `wanted`: what `manifests` takes."""
        self.write_files(name)
        self.ask(name, asked)
        applied = await self.world.cloud.apply(self.manifests(name, **wanted), base=HERE)
        job = applied[-1].resource
        assert isinstance(job, IncrementalLearningJob)
        return job

    def write_files(self, name: str) -> None:
        x, y = digits()
        self.data.mkdir(exist_ok=True)
        np.savez(self.data / f"{name}-labelled.npz", x=x[:KNOWN], y=y[:KNOWN])
        np.savez(self.data / f"{name}-initial.npz", np.zeros((64, 10), "float32"), np.zeros(10, "float32"))
        (self.data / f"{name}-stream.jsonl").touch()

    def manifests(
        self,
        name: str,
        *,
        mining: str = "CloudOnly",
        fault: str = "none",
        fault_round: int = 1,
        pause: float = 0.0,
        believes: bool = False,
        condition: Mapping[str, Any] | None = None,
        labels: bool = False,
        paused: bool = False,
        loading: float = 0.0,
    ) -> list[Any]:
        trigger: dict[str, Any] = {"checkPeriodSeconds": 1} | ({"condition": condition} if condition else {})
        dataset = {"name": f"{name}-labelled", "trainFraction": 0.75, "initialSamples": "new"}
        if labels:
            dataset["labelsUrl"] = str(self.labels_file(name))
        learner = {"fault": fault, "fault round": fault_round, "pause": pause}
        spec = {
            "nodeName": EDGE,
            "initialModel": {"name": name},
            "outputModel": {"name": name},
            "dataset": dataset,
            "hardExampleMining": {"algorithm": mining},
            "train": {"workerSpec": _worker(learner), "trigger": trigger},
            "eval": {"workerSpec": _worker({"pause": pause, "believes": believes})},
            "deploy": {
                "workerSpec": _worker({"journal": str(self.data / f"{name}-journal.jsonl"), "loading": loading}),
                "dataset": {"name": f"{name}-stream"},
            },
            "paused": paused,
        }
        return [
            self._resource("Dataset", f"{name}-labelled", self._dataset(f"{name}-labelled.npz", "npz")),
            self._resource("Dataset", f"{name}-stream", self._dataset(f"{name}-stream.jsonl", "jsonl")),
            self._resource("Model", name, {"url": str(self.data / f"{name}-initial.npz"), "format": "npz"}),
            self._resource(KIND, name, spec),
        ]

    def _dataset(self, file: str, format: str) -> dict[str, Any]:
        return {"nodeName": EDGE, "url": str(self.data / file), "format": format}

    def _resource(self, kind: str, name: str, spec: Mapping[str, Any]) -> Any:
        return from_document({"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)})

    # --- what it is asked, and told

    def ask(self, name: str, rows: Iterable[int]) -> None:
        """Append these digits to what the job's inference worker is asked, under the id `digit-<row>`."""
        x, _ = digits()
        self.ask_inputs(name, {f"digit-{row}": x[row] for row in rows})

    def ask_inputs(self, name: str, inputs: Mapping[str, Any]) -> None:
        lines = [json.dumps({"id": key, "x": x.tolist()}) + "\n" for key, x in inputs.items()]
        with (self.data / f"{name}-stream.jsonl").open("a") as stream:
            stream.write("".join(lines))

    def journal(self, name: str) -> list[dict[str, Any]]:
        """The answers that the inference worker has given."""
        try:
            lines = (self.data / f"{name}-journal.jsonl").read_text().split("\n")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines[:-1] if line]

    async def answered(self, name: str, rows: Iterable[int]) -> str:
        """Wait until all of these digits are answered; returns the digest of the model that answered the last one."""
        return await self.answered_ids(name, {f"digit-{row}" for row in rows})

    async def answered_ids(self, name: str, wanted: set[str]) -> str:
        found: list[dict[str, Any]] = []

        def all_there() -> bool:
            found[:] = self.journal(name)
            return wanted <= {line["id"] for line in found}

        await eventually(all_there, lambda: f"{name}: {sorted(wanted - {line['id'] for line in found})} not answered")
        return str(next(line["model"] for line in reversed(found) if line["id"] in wanted))

    async def label(self, name: str, rows: Iterable[int]) -> None:
        """Give these digits their labels, by event, also while the node is being started again."""
        given = labels_of(rows)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(WaitTimeout, BusUnavailable):
                    await self.world.cloud.give_labels(await self.job(name), given)
                    return

    def labels_file(self, name: str) -> Path:
        return self.data / f"{name}-labels.jsonl"

    def label_by_file(self, name: str, rows: Iterable[int]) -> None:
        lines = [json.dumps({"id": key, "label": json.loads(value)}) + "\n" for key, value in labels_of(rows).items()]
        with self.labels_file(name).open("a") as file:
            file.write("".join(lines))

    async def ready(self, name: str, rows: Iterable[int]) -> IncrementalLearningJob:
        """Have these digits asked, labelled and counted."""
        rows = list(rows)
        await self.answered(name, rows)
        await self.label(name, rows)
        return await self.counted(name, len(rows))

    async def counted(self, name: str, hard: int) -> IncrementalLearningJob:
        """Wait until the job knows its dataset and as many labelled hard examples."""

        def all_there(job: IncrementalLearningJob) -> bool:
            counts = job.status.counts
            return counts.train + counts.held_out == KNOWN + hard and counts.unlabelled == 0

        return await self.until(name, all_there)

    async def learned(self, name: str, rows: Iterable[int], **wanted: Any) -> Outcome:
        """A whole round with these digits, from `apply` to the version in the cloud."""
        rows = list(rows)
        await self.start(name, rows, **wanted)
        await self.ready(name, rows)
        return await self.round(name, 1)

    async def round(self, name: str, number: int) -> Outcome:
        """Ask for this round and wait for its end."""
        await self.world.cloud.trigger(name)
        return await self.ended(name, number)

    async def ended(self, name: str, number: int) -> Outcome:
        """Wait until this round's model is a version of the output model."""
        await self.until(name, lambda job: row(job, number, "Deploy").state == "Completed")
        await self.version(name, number)
        await self.until(name, lambda job: not job.status.arriving)
        return await self.outcome(name, number)

    async def outcome(self, name: str, number: int) -> Outcome:
        job = await self.job(name)
        facts = [line.event async for line in self.world.cloud.history(job)]
        [deployed] = [fact for fact in facts if isinstance(fact, ModelDeployed) and fact.round == number]
        stages = [f"{fact.stage} {fact.state}" for fact in facts if isinstance(fact, StageChanged)]
        model = await self.model(name)
        made = [each for each in model.status.versions if (each.task_uid, each.round) == (job.metadata.uid, number)]
        return Outcome(deployed.model.blob.digest, deployed.snapshot, deployed.samples, tuple(stages), tuple(made))

    # --- what is there

    async def job(self, name: str) -> IncrementalLearningJob:
        found = await self.world.cloud.get(KIND, name)
        assert isinstance(found, IncrementalLearningJob)
        return found

    async def model(self, name: str) -> Model:
        found = await self.world.cloud.get("Model", name)
        assert isinstance(found, Model)
        return found

    async def version(self, name: str, number: int) -> None:
        """Wait until the output model has a version of this round."""

        def has(found: Any) -> bool:
            return isinstance(found, Model) and any(each.round == number for each in found.status.versions)

        try:
            await self.world.cloud.wait("Model", name, has, PATIENCE_S)
        except WaitTimeout as error:
            raise AssertionError(f"no version of round {number}: {await self.model(name)}") from error

    async def until(
        self, name: str, condition: Callable[[IncrementalLearningJob], bool], timeout_s: float = PATIENCE_S
    ) -> IncrementalLearningJob:
        """The job as soon as `condition` is true of it."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with suppress(BusUnavailable):
                        found = await self.world.cloud.wait(
                            KIND, name, lambda found: isinstance(found, IncrementalLearningJob) and condition(found)
                        )
                        assert isinstance(found, IncrementalLearningJob)
                        return found
                    await self.world.cloud.bus.wait_connected()
        except TimeoutError:
            raise AssertionError(await self._report(name, timeout_s)) from None

    async def in_stage(self, name: str, stage: str, state: str, number: int = 1) -> IncrementalLearningJob:
        """The job as soon as the cloud has heard that a stage is (or was) in this state."""
        async with asyncio.timeout(PATIENCE_S):
            job = await self.job(name)
            async for line in self.world.cloud.history(job, follow=True):
                fact = line.event
                if isinstance(fact, StageChanged) and (fact.round, fact.stage, fact.state) == (number, stage, state):
                    return job
        raise AssertionError("the history ended")

    async def _report(self, name: str, timeout_s: float) -> str:
        """What there is to know about a job that did not come where it should."""
        job = await self.job(name)
        facts = [f"{line.event}"[:300] async for line in self.world.cloud.history(job)]
        logs = [self.slot(job, worker) / "worker.log" for worker in ("train", "eval", "deploy")]
        logs.append(self.world.folder(EDGE) / "daemon.log")
        tails = [f"--- {log}\n{log.read_text()[-3000:]}" for log in logs if log.exists()]
        return "\n".join([f"{name}: not within {timeout_s:g} s", job.status.model_dump_json(indent=1), *facts, *tails])

    # --- the edge's processes and files

    def level(self, job: IncrementalLearningJob) -> str:
        return task_level(job.metadata.name, job.metadata.uid)

    def slot(self, job: IncrementalLearningJob, worker: str) -> Path:
        return self.world.folder(EDGE) / "slots" / self.level(job) / worker

    def folder(self, job: IncrementalLearningJob) -> Path:
        """Where the controller keeps the job's examples, snapshots and models."""
        return self.world.folder(EDGE) / "jobs" / self.level(job)

    def pid(self, job: IncrementalLearningJob, worker: str) -> int:
        return int(json.loads((self.slot(job, worker) / "run.json").read_text())["child_pid"])

    async def at_work(self, job: IncrementalLearningJob, worker: str) -> None:
        """Wait until a worker of the job runs."""

        def runs() -> bool:
            try:
                return psutil.Process(self.pid(job, worker)).status() != psutil.STATUS_ZOMBIE
            except (OSError, ValueError, psutil.NoSuchProcess):
                return False

        await eventually(runs, lambda: f"the {worker} worker of {job.metadata.name} does not start")

    def serving(self, job: IncrementalLearningJob) -> ServingFile | None:
        """The model that the inference worker says it serves, on its disk."""
        return read_serving(self.slot(job, "deploy"))

    def served(self, job: IncrementalLearningJob) -> str:
        """The digest of that model."""
        found = self.serving(job)
        return found.model.blob.digest if found else ""

    def examples(self, job: IncrementalLearningJob) -> set[str]:
        """Ids of the hard examples that the edge holds, labelled or not."""
        with closing(sqlite3.connect(f"file:{self.folder(job) / 'examples.db'}?mode=ro", uri=True)) as book:
            rows = book.execute("SELECT id FROM examples WHERE origin = 'hard' UNION SELECT id FROM aliases")
            return {name for (name,) in rows}

    def snapshot(self, job: IncrementalLearningJob, number: int) -> dict[str, list[bytes]]:
        """The inputs in each part of a snapshot."""
        folder = self.folder(job) / "snapshots" / str(number)
        found = {}
        for part in ("old", "new", "eval"):
            with np.load(folder / f"{part}.npz", allow_pickle=False) as arrays:
                found[part] = [each.astype("float32").tobytes() for each in arrays["x"]]
        return found

    async def delete(self, name: str) -> None:
        with suppress(EdgeaiError):
            await self.world.cloud.delete(KIND, name)
        await self.world.cloud.wait(KIND, name, lambda found: found is None, PATIENCE_S)


@dataclass(frozen=True)
class Outcome:
    """What a round came to: its model, the snapshot that is the reason for it, and what was told."""

    digest: str
    snapshot: str
    samples: int
    stages: tuple[str, ...]
    versions: tuple[ModelVersion, ...]

    @property
    def result(self) -> tuple[str, str, int]:
        """What must be the same again."""
        return self.digest, self.snapshot, self.samples


def digits() -> tuple[Any, Any]:
    with np.load(shipped("config/examples/digits.npz"), allow_pickle=False) as arrays:
        return arrays["x"].reshape(-1, 64).astype("float32") / 16, arrays["y"]


def labels_of(rows: Iterable[int]) -> dict[str, str]:
    _, y = digits()
    return {f"digit-{row}": str(int(y[row])) for row in rows}


def row(job: IncrementalLearningJob, number: int, stage: str) -> StageRecord:
    """What is known of a stage of a round."""
    found = [each for each in job.status.history if (each.round, each.stage) == (number, stage)]
    return found[0] if found else StageRecord(round=number, stage=stage, state="")


async def eventually(true: Callable[[], bool], otherwise: Callable[[], str], timeout_s: float = PATIENCE_S) -> None:
    """Wait for what can only be looked at."""
    try:
        async with asyncio.timeout(timeout_s):
            while not true():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(otherwise()) from None


def _worker(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "scriptDir": "scripts/learner",
        "scriptBootFile": "main.py",
        "frameworkType": "numpy",
        "parameters": [{"key": key, "value": value} for key, value in parameters.items()],
    }
