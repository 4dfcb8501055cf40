"""Incremental learning jobs of one node: what their machine (`lifecycle.stage`) asks for is done here.

It collects examples, freezes snapshots, takes trained models over, and puts the model to serve where the inference worker
finds it. Workers are run by the controller beside this (`service`): it is told which ones follow from the jobs, and tells what
becomes of them. Nothing here needs a WAN. Neither a model nor an example is opened, except for canary inputs.

    <state dir>/jobs/<task level>/examples.db     every example of the job (`examples`)
    <state dir>/jobs/<task level>/snapshots/<n>/  frozen for round n
    <state dir>/jobs/<task level>/models/         models that serve, served, or are to be compared
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from edgeai.controller.cache import BlobCache
from edgeai.controller.datasets import DatasetProblem
from edgeai.controller.examples import Examples
from edgeai.controller.places import Places
from edgeai.controller.scripts import PreparationProblem
from edgeai.crashpoints import crash_point
from edgeai.errors import DamagedFile, EdgeaiError, NotFound, StoreError
from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    DatasetWanted,
    ExampleCounts,
    JobObserved,
    JobWanted,
    ModelFile,
    Role,
    ServeModel,
    Serving,
    StageWork,
)
from edgeai.launcher.slots import ServingFile, SlotDir, read_serving, write_serving
from edgeai.lifecycle import stage as stages
from edgeai.lifecycle.base import Command
from edgeai.lifecycle.stage import Job, Served
from edgeai.lifecycle.worker import Slot, WorkerPhase
from edgeai.reactor import Reactor
from edgeai.resources.incremental import IncrementalLearningJobSpec
from edgeai.store.edge import EdgeStore
from edgeai.store.files import copy_whole
from edgeai.store.journal import SqliteJournal

log = structlog.get_logger()

MACHINE = "job"
"""Name of the jobs' machine in the node's store."""
COLLECT_S = 1.0
KEPT_SNAPSHOTS = 3
MODEL_RETRY_S = 5.0
CANARY_INPUTS = 32
MAX_MODEL_BYTES = 64 * 1024**3
CANARY = "canary.npy"
NO_MINUTE = -1
"""Of a look that only tells counts: no trigger fires on it."""


@dataclass(frozen=True, slots=True)
class Node:
    """What the jobs are given by their controller.

    `changed` is called when workers may follow differently from the jobs, `workers_gone` returns when a task has none left,
    `slot` gives a worker's slot directory, `feeders` the workers of joint inference services whose hard examples are for the
    job of this name, as task level and worker, `dataset` a dataset's description and file and `labels` the file behind a url
    (both raise DatasetProblem), `tell` sends a local event.
    """

    name: str
    state_dir: Path
    places: Places
    changed: Callable[[], Awaitable[None]]
    workers_gone: Callable[[str], Awaitable[None]]
    slot: Callable[[str, str], SlotDir]
    feeders: Callable[[str], Sequence[tuple[str, str]]]
    dataset: Callable[[str], Awaitable[tuple[DatasetWanted, Path]]]
    labels: Callable[[str], Path]
    tell: Callable[[str, ServeModel], Awaitable[None]]


class Jobs:
    """The jobs of a node, by task level."""

    def __init__(self, node: Node, store: EdgeStore, cache: BlobCache) -> None:
        self._node, self._cache = node, cache
        journal = SqliteJournal(store, Job, node=node.name, source=node.name, machine=MACHINE)
        self._reactor: Reactor[Job] = Reactor(stages.MACHINE, journal, self._perform, on_commit=self._committed)
        self._examples: dict[str, Examples] = {}
        self._opening = asyncio.Lock()
        self._looked: dict[str, float] = {}
        self._complaints: dict[str, str] = {}
        self._figures: dict[str, Serving] = {}
        self._served: dict[str, tuple[int, int]] = {}
        """by task: requests and hard examples of inference workers that have ended"""

    # --- for the controller

    async def load(self) -> None:
        await self._reactor.load()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reactor.run())
            group.create_task(self._collect_for_ever())

    async def close(self) -> None:
        for examples in self._examples.values():
            await examples.close()

    def take(self, wanted: Sequence[JobWanted]) -> None:
        """Bring the jobs in line with the desired document."""
        names = {job.task for job in wanted}
        for level in self._reactor.states.keys() - names:
            self._reactor.post(level, stages.Unwanted())
        for job in wanted:
            self._reactor.post(job.task, stages.Wanted(job))

    def assignments(self) -> list[Assignment]:
        """The workers that follow from the jobs."""
        return [each for job in self._reactor.states.values() for each in stages.workers_of(job)]

    def observe(self) -> tuple[JobObserved, ...]:
        found = (stages.observe(job) for _, job in sorted(self._reactor.states.items()))
        return tuple(each for each in found if each is not None)

    def models_in_use(self) -> set[str]:
        return {digest for job in self._reactor.states.values() for digest in stages.models_in_use(job)}

    def holds(self, level: str) -> bool:
        return level in self._reactor.states

    def model_file(self, level: str, digest: str) -> Path | None:
        """A model of a job that lies here, for whoever asks for its blob."""
        folder = self._folder(level) / "models"
        return next((path for path in folder.glob(f"{digest}*") if path.is_file()), None)

    async def prepare(self, assignment: Assignment, slot: SlotDir) -> Path | None:
        """Put into a slot what a worker of a job needs; returns its dataset.

        Raises:
            PreparationProblem, NotFound, StoreError, DamagedFile.
        """
        work, level = assignment.work, assignment.task
        assert work is not None
        models = self._node.places.models(slot)
        await asyncio.to_thread(models.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(_begin_run, slot, work)
        for model in work.models:
            await self._link(level, model, models)
        if assignment.role is Role.DEPLOY:
            job = self._reactor.states.get(level)
            served = stages.to_serve(job) if job is not None else None
            if served is not None:
                await self._stage(level, served, slot)
            await asyncio.to_thread(self._node.places.open_up, models)
            return None
        await asyncio.to_thread(self._node.places.open_up, models)
        snapshot = self._folder(level) / "snapshots" / str(work.round)
        if not snapshot.is_dir():
            raise PreparationProblem(f"the snapshot of round {work.round} is gone from {self._node.name}")
        return snapshot

    def dataset_of(self, assignment: Assignment) -> Path | None:
        """The folder that `prepare` returned."""
        work = assignment.work
        if work is None or assignment.role is Role.DEPLOY:
            return None
        return self._folder(assignment.task) / "snapshots" / str(work.round)

    async def slots_changed(self, slots: Iterable[Slot]) -> None:
        """Tell the machines what has become of the workers of their stages."""
        for slot in slots:
            assignment = slot.assignment
            if assignment is None or assignment.work is None or assignment.finished:
                continue
            job = self._reactor.states.get(assignment.task)
            if job is None:
                continue
            run = assignment.work.run
            if slot.phase is WorkerPhase.RUNNING and assignment.role is not Role.DEPLOY:
                self._reactor.post(assignment.task, stages.WorkerStarted(run))
            elif slot.phase is WorkerPhase.FAILED:
                self._reactor.post(assignment.task, stages.RunFailed(run, slot.reason))
            elif slot.phase is WorkerPhase.DONE and run == stages.run_of(job):
                self._reactor.post(assignment.task, await self._result(assignment))

    def hear(self, level: str, serving: Serving) -> None:
        """What an inference worker says of itself."""
        if level not in self._reactor.states:
            return
        before = self._figures.get(level)
        if before is not None and serving.requests < before.requests:
            requests, hard = self._served.get(level, (0, 0))
            self._served[level] = requests + before.requests, hard + before.hard
        self._figures[level] = serving
        if serving.digest:
            self._reactor.post(level, stages.NowServes(serving.digest))
        for digest, reason in serving.refused.items():
            self._reactor.post(level, stages.ModelRefused(digest, reason[:500]))

    async def take_last(self, name: str, service: str, worker: str) -> None:
        """What a worker that is stopped, and will be removed, has left for the job of this name."""
        for level, job in list(self._reactor.states.items()):
            if job.wanted is None or job.removing or job.wanted.task_name != name:
                continue
            try:
                examples = await self._open(level, stages.spec_of(job.wanted))
                await examples.collect_hard(self._node.slot(service, worker).hard, f"{service}/{worker}")
            except (EdgeaiError, OSError, ValueError) as error:
                self._complain(level, str(error))

    async def examples_of(self, level: str) -> Examples:
        """Raises NotFound: there is no such job here."""
        job = self._reactor.states.get(level)
        if job is None or job.wanted is None:
            raise NotFound("job", level, f"it is not on {self._node.name}")
        return await self._open(level, stages.spec_of(job.wanted))

    # --- what the machines ask for

    async def _perform(self, level: str, command: Command) -> Any:
        match command:
            case stages.TakeSnapshot(round=number):
                return await self._snapshot(level, number)
            case stages.Serve(served=served):
                return await self._serve(level, served)
            case stages.Remove():
                return await self._remove(level)
        raise AssertionError(f"unknown command {command}")

    async def _snapshot(self, level: str, number: int) -> Any:
        job = self._reactor.states[level]
        try:
            await self._collect(level, job)
            examples, snapshots = await self.examples_of(level), self._folder(level) / "snapshots"
            await examples.tidy(snapshots, KEPT_SNAPSHOTS)
            snapshot = await examples.snapshot(number, snapshots / str(number))
            crash_point("job.snapshot_taken")
            await asyncio.to_thread(self._node.places.open_up, snapshots / str(number))
        except (EdgeaiError, DatasetProblem, OSError) as error:
            return stages.SnapshotFailed(number, f"{self._node.name}: {error}")
        return stages.SnapshotTaken(number, snapshot)

    async def _serve(self, level: str, served: Served) -> Any:
        job = self._reactor.states.get(level)
        if job is None or stages.to_serve(job) != served:
            return None  # overtaken
        while True:
            try:
                await self._stage(level, served, self._node.slot(level, Role.DEPLOY.value))
                break
            except (NotFound, StoreError, DamagedFile, OSError) as error:
                log.warning("model_not_staged", task=level, digest=served.model.blob.digest[:12], reason=str(error))
            await asyncio.sleep(MODEL_RETRY_S)
        crash_point("job.model_staged")
        return stages.Staged(served.model.blob.digest)

    async def _stage(self, level: str, served: Served, slot: SlotDir) -> None:
        """The model, inputs to try it on, and the word which it is."""
        models = self._node.places.models(slot)
        await asyncio.to_thread(models.mkdir, parents=True, exist_ok=True)
        await self._link(level, served.model, models)
        canary = await self._canary(level, models)
        wanted = ServingFile(served.model, served.version, canary)
        if await asyncio.to_thread(read_serving, models) != wanted:
            await asyncio.to_thread(write_serving, models, wanted)
        await asyncio.to_thread(self._node.places.open_up, models)
        await asyncio.to_thread(self._clean_models, level, models)
        await self._node.tell(level, ServeModel(wanted.model, wanted.version, wanted.canary))

    async def _canary(self, level: str, models: Path) -> str:
        """Held-out inputs, if there are any yet."""
        try:
            examples = await self.examples_of(level)
            found = await examples.canary(CANARY_INPUTS)
        except (EdgeaiError, ValueError) as error:
            log.warning("no_canary_inputs", task=level, reason=str(error))
            return ""
        if not found:
            return ""
        path = models / CANARY
        if not path.exists() or await asyncio.to_thread(path.read_bytes) != found:
            await asyncio.to_thread(_write, path, found)
        return CANARY

    def _clean_models(self, level: str, models: Path) -> None:
        """Only models that are in use stay, here and in the inference worker's folder. Blocks."""
        job = self._reactor.states.get(level)
        if job is None:
            return
        used = stages.models_in_use(job)
        for folder in (models, self._folder(level) / "models"):
            for path in folder.iterdir() if folder.is_dir() else ():
                digest = path.name.partition(".")[0]
                if len(digest) == 64 and digest not in used:
                    path.unlink(missing_ok=True)

    async def _link(self, level: str, model: ModelFile, models: Path) -> None:
        """A model's file appears in a folder of a worker. Raises NotFound, StoreError, DamagedFile."""
        source, target = self._folder(level) / "models" / model.name, models / model.name
        if not source.exists():
            await self._cache.bring(model.blob)
            await self._cache.link(model.blob.digest, source)
        if not target.exists():
            await asyncio.to_thread(copy_whole, source, target)

    async def _result(self, assignment: Assignment) -> Any:
        """What a worker that has finished leaves: an event for its job."""
        work, slot = assignment.work, self._node.slot(assignment.task, assignment.worker)
        assert work is not None
        result = await asyncio.to_thread(slot.read_result)
        if result is None or result.run != work.run:
            return stages.RunFailed(work.run, f"{assignment.worker} ended without task.report(...)")
        if assignment.role is Role.EVAL:
            return stages.Evaluated(work.run, result.metrics)
        try:
            model = await asyncio.to_thread(self._take_model, assignment.task, slot, result.model, result.format)
            crash_point("job.model_taken")
            await (await self.examples_of(assignment.task)).mark_trained(work.round)
        except (EdgeaiError, OSError) as error:
            return stages.RunFailed(work.run, f"the new model cannot be taken over: {error}")
        return stages.Trained(work.run, model, result.metrics.get("", {}))

    def _take_model(self, level: str, slot: SlotDir, name: str, kind: str) -> ModelFile:
        """Copy the model that a worker made to where no worker writes. Blocks. Raises StoreError, OSError."""
        path = slot.output / name
        if (
            not name
            or path.is_symlink()
            or not path.is_file()
            or not path.resolve().is_relative_to(slot.output.resolve())
        ):
            raise StoreError(f"{name or 'no file'} is not a file in the worker's output folder")
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise StoreError(f"{name} is larger than {MAX_MODEL_BYTES // 1024**3} GiB")
        folder = self._folder(level) / "models"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        taken = folder / f"taken{path.suffix}"
        digest = copy_whole(path, taken)
        suffix = path.suffix or f".{kind or 'file'}"
        target = folder / f"{digest}{suffix}"
        taken.replace(target)
        return ModelFile(target.name, BlobRef(digest, target.stat().st_size), kind or "file")

    async def _remove(self, level: str) -> Any:
        """Once its workers are stopped by their slots; what those wrote goes with them."""
        await self._node.workers_gone(level)
        examples = self._examples.pop(level, None)
        if examples is not None:
            await examples.close()
        for known in (self._looked, self._figures, self._served, self._complaints):
            known.pop(level, None)
        self._complaints.pop(f"{level}/labels", None)
        await asyncio.to_thread(shutil.rmtree, self._folder(level), ignore_errors=True)
        return stages.Removed()

    # --- examples

    async def _collect_for_ever(self) -> None:
        while True:
            for level, job in list(self._reactor.states.items()):
                if job.wanted is None or job.serving is None or job.removing:
                    continue
                try:
                    await self._look_at(level, job)
                except (EdgeaiError, DatasetProblem, OSError, ValueError) as error:
                    self._complain(level, str(error))
            await asyncio.sleep(COLLECT_S)

    async def _look_at(self, level: str, job: Job) -> None:
        assert job.wanted is not None
        spec = stages.spec_of(job.wanted)
        complete = await self._is_collected(level, job)
        counts = await self._counts(level, spec)
        period, now = spec.train.trigger.check_period_seconds, time.monotonic()
        if complete and now - self._looked.get(level, -1e9) >= period:
            self._looked[level] = now
            moment = datetime.now()
            self._reactor.post(level, stages.Checked(counts, moment.hour * 60 + moment.minute))
        elif _of_book(counts) != _of_book(job.counts):
            self._reactor.post(level, stages.Checked(counts, NO_MINUTE))

    async def _is_collected(self, level: str, job: Job) -> bool:
        """False: what there is may not be all, so that no trigger may fire on it."""
        try:
            await self._collect(level, job)
        except (EdgeaiError, DatasetProblem, OSError, ValueError) as error:
            self._complain(level, str(error))
            return False
        return True

    async def _collect(self, level: str, job: Job) -> None:
        """New rows of the dataset, hard examples of inference workers, labels of the labels file."""
        assert job.wanted is not None
        spec = stages.spec_of(job.wanted)
        examples = await self._open(level, spec)
        await examples.collect_hard(self._node.slot(level, Role.DEPLOY.value).hard)
        for service, worker in self._node.feeders(job.wanted.task_name):
            await examples.collect_hard(self._node.slot(service, worker).hard, f"{service}/{worker}")
        if spec.dataset.labels_url is not None:
            try:
                await examples.follow_labels(self._node.labels(spec.dataset.labels_url))
            except DatasetProblem as error:  # whoever writes it may not have begun
                self._complain(f"{level}/labels", str(error))
        wanted, path = await self._node.dataset(spec.dataset.name)
        await examples.take_rows(path, wanted.format, wanted.label_field)

    async def _counts(self, level: str, spec: IncrementalLearningJobSpec) -> ExampleCounts:
        counts = await (await self._open(level, spec)).counts()
        figures, (requests, hard) = self._figures.get(level), self._served.get(level, (0, 0))
        if figures is None:
            return replace(counts, requests=requests, hard=hard)
        return replace(
            counts, requests=requests + figures.requests, hard=hard + figures.hard, hard_rate=figures.hard_rate
        )

    async def _open(self, level: str, spec: IncrementalLearningJobSpec) -> Examples:
        async with self._opening:
            if level not in self._examples:
                folder = self._folder(level)
                await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
                self._examples[level] = await Examples.open(
                    folder / "examples.db",
                    train_fraction=spec.dataset.train_fraction,
                    initial_known=spec.dataset.initial_samples == "old",
                    max_unlabelled=spec.keep.max_unlabelled,
                )
            return self._examples[level]

    def _complain(self, source: str, reason: str) -> None:
        """Once for each reason in a row: it is looked at every second. `source` is a task level, and what of it."""
        if self._complaints.get(source) != reason:
            self._complaints[source] = reason
            log.warning("examples_not_collected", task=source, reason=reason)

    # --- after a change

    async def _committed(self, _keys: Iterable[str]) -> None:
        await self._node.changed()

    def _folder(self, level: str) -> Path:
        return self._node.state_dir / "jobs" / level


def _begin_run(slot: SlotDir, work: StageWork) -> None:
    """What an earlier run left in this slot is none of this one's. Blocks."""
    try:
        before = slot.read_slot().assignment.work
    except DamagedFile:
        return
    if before is not None and before.run != work.run:
        slot.forget_run()
        slot.create()


def _of_book(counts: ExampleCounts) -> ExampleCounts:
    """Without what changes with every request."""
    return replace(counts, requests=0, hard=0, hard_rate=0.0)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
