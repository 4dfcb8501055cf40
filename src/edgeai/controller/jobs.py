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
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from edgeai import metrics
from edgeai.controller.cache import BlobCache
from edgeai.controller.datasets import DatasetProblem, Stamp, stamp_of
from edgeai.controller.example_book import Tally
from edgeai.controller.examples import Examples, Taken
from edgeai.controller.formats import DatasetBusy
from edgeai.controller.places import Places
from edgeai.controller.scripts import PreparationProblem
from edgeai.controller.spans import StageSpans
from edgeai.controller.threads import to_its_end
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
from edgeai.lifecycle.stage import Job, Served, Stage, StageState
from edgeai.lifecycle.worker import Slot, WorkerPhase
from edgeai.reactor import Reactor
from edgeai.resources.incremental import IncrementalLearningJobSpec
from edgeai.store.edge import EdgeStore
from edgeai.store.files import copy_whole, digest_of
from edgeai.store.journal import SqliteJournal
from edgeai.tracing import stage_span

log = structlog.get_logger()

MACHINE = "job"
"""Name of the jobs' machine in the node's store."""
COLLECT_S = 1.0
TALLY_S = 5.0
"""So often what inference workers have counted is made durable, and whenever another run of one begins."""
KEPT_SNAPSHOTS = 3
MODEL_RETRY_S = 5.0
CANARY_INPUTS = 32
MAX_MODEL_BYTES = 64 * 1024**3
MAX_KNOWN_WHOLE = 1000
CANARY, TAKEN = "canary.npy", "taken"
NO_MINUTE = -1
"""Of a look that only tells counts: no trigger fires on it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may keep on this node: bytes of labelled examples, and models that wait for the cloud."""

    example_bytes: int = 1024**3
    models: int = 10


@dataclass(frozen=True, slots=True)
class Node:
    """What the jobs are given by their controller.

    `changed` is called when workers may follow differently from the jobs, `workers_gone` returns when a task has none left,
    `slot` gives a worker's slot directory, `feeders` the workers of joint inference services whose hard examples are for the
    job of this name, as task level and worker, `dataset` a dataset's description and file and `labels` the file behind a url
    (both raise DatasetProblem), `tell` sends a local event
    with the span that it belongs to.
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
    tell: Callable[[str, ServeModel, str], Awaitable[None]]
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class _Known:
    """What is known of a job and not decided by its machine.

    Attributes:
        looked: when its trigger was looked at. figures: what its inference worker says, newest last, one for each run.
        tally: what was counted, as it is remembered; saved: when that was.
        trouble: of its dataset, in one word and one sentence; suspected: seen once, and not told yet.
        dropped: what was removed to keep within limits. taking: digests of models that are taken over just now.
    """

    looked: float = -1e9
    figures: list[tuple[str, Serving]] = field(default_factory=list)
    tally: Tally | None = None
    saved: float = -1e9
    trouble: tuple[str, str] = ("", "")
    suspected: tuple[str, str] = ("", "")
    dropped: tuple[str, ...] = ()
    taking: set[str] = field(default_factory=set)


class Jobs:
    """The jobs of a node, by task level."""

    def __init__(self, node: Node, store: EdgeStore, cache: BlobCache) -> None:
        self._node, self._cache = node, cache
        journal = SqliteJournal(store, Job, node=node.name, source=node.name, machine=MACHINE)
        self._reactor: Reactor[Job] = Reactor(stages.MACHINE, journal, self._perform, on_commit=self._committed)
        self._spans = StageSpans(node.name)
        self._examples: dict[str, Examples] = {}
        self._opening = asyncio.Lock()
        self._known: defaultdict[str, _Known] = defaultdict(_Known)
        self._complaints: dict[str, str] = {}
        self._results: dict[tuple[str, str], asyncio.Task[None]] = {}
        """by task and run: what its worker has left is being taken over"""
        self._moving = threading.Lock()
        """held while a model comes to where others are cleaned away"""
        self._whole: dict[Path, Stamp] = {}
        """models that are what their name says, as they were when that was seen"""

    # --- for the controller

    async def load(self) -> None:
        await self._reactor.load()

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._reactor.run())
                group.create_task(self._collect_for_ever())
        finally:
            for task in self._results.values():
                task.cancel()
            await asyncio.gather(*self._results.values(), return_exceptions=True)

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
        found = ((self._known[level], stages.observe(job)) for level, job in sorted(self._reactor.states.items()))
        return tuple(
            replace(each, trouble_reason=known.trouble[0], trouble=known.trouble[1], dropped=known.dropped)
            for known, each in found
            if each is not None
        )

    def models_in_use(self) -> set[str]:
        return {digest for job in self._reactor.states.values() for digest in stages.models_in_use(job)}

    def holds(self, level: str) -> bool:
        return level in self._reactor.states

    async def model_file(self, level: str, digest: str) -> Path | None:
        """A model of a job that lies here and is whole, for whoever asks for its blob."""
        return await asyncio.to_thread(self._good_model, level, digest)

    def _good_model(self, level: str, digest: str) -> Path | None:
        """Among the job's models, else in the cache, else what its inference worker has. Blocks. Raises StoreError, OSError."""
        own, given = self._folder(level) / "models", self._node.places.models(self._node.slot(level, Role.DEPLOY.value))
        for path in (*own.glob(f"{digest}*"), self._cache.path(digest), *given.glob(f"{digest}*")):
            if not path.is_file() or path.is_symlink():
                continue
            stamp = stamp_of(path)
            if self._whole.get(path) != stamp:
                if digest_of(path) != digest:
                    log.warning("model_damaged", task=level, path=str(path))
                    if path.parent == own:
                        path.unlink(missing_ok=True)
                    continue
                if len(self._whole) >= MAX_KNOWN_WHOLE:
                    self._whole.clear()
                self._whole[path] = stamp
            return path
        return None

    async def prepare(self, assignment: Assignment, slot: SlotDir) -> Path | None:
        """Put into a slot what a worker of a job needs; returns its dataset.

        Raises:
            PreparationProblem, NotFound, StoreError, DamagedFile.
        """
        work, level = assignment.work, assignment.task
        assert work is not None
        models = self._node.places.models(slot)
        await to_its_end(models.mkdir, parents=True, exist_ok=True)
        await to_its_end(_begin_run, slot, work)
        for model in work.models:
            await self._link(level, model, models)
        if assignment.role is Role.DEPLOY:
            job = self._reactor.states.get(level)
            served = stages.to_serve(job) if job is not None else None
            if served is not None:
                await self._stage(level, served, slot)
            await to_its_end(self._node.places.open_up, models)
            return None
        await to_its_end(self._node.places.open_up, models)
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
                self._take_result(assignment, run)

    def hear(self, level: str, serving: Serving, run: str) -> None:
        """What an inference worker says of itself; `run` tells a run of it from the next."""
        job = self._reactor.states.get(level)
        if job is None:
            return
        figures = self._known[level].figures
        # What it had counted when this process began to listen was counted by an earlier one.
        before = Serving("") if figures else serving
        if figures and figures[-1][0] == run:
            before = figures.pop()[1]
        figures.append((run, serving))
        _measure(job, serving, before)
        if serving.digest:
            if stages.is_news(self._reactor.states[level], serving.digest):
                crash_point("job.new_model_heard")
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
            if job.serving is not None and job.serving.round:
                # What the serving model has learned from is old; that of a model that did not come to serve is new again.
                await examples.mark_known(job.serving.round)
            snapshot = await examples.snapshot(number, snapshots / str(number))
            crash_point("job.snapshot_taken")
            await examples.tidy(snapshots, KEPT_SNAPSHOTS, {number})
            await to_its_end(self._node.places.open_up, snapshots / str(number))
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
        await to_its_end(models.mkdir, parents=True, exist_ok=True)
        await self._link(level, served.model, models)
        crash_point("job.model_linked")
        canary = await self._canary(level, models)
        wanted = ServingFile(served.model, served.version, canary)
        if await asyncio.to_thread(read_serving, models) != wanted:
            await to_its_end(write_serving, models, wanted)
            crash_point("job.serving_written")
        await to_its_end(self._node.places.open_up, models)
        await to_its_end(self._clean_models, level, models)
        job = self._reactor.states.get(level)
        trace = ""
        if job is not None and job.wanted is not None and served.round:
            trace = str(stage_span(job.wanted.task_uid, served.round, "deploy"))
        await self._node.tell(level, ServeModel(wanted.model, wanted.version, wanted.canary), trace)

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
            await to_its_end(_write, path, found)
        return CANARY

    def _clean_models(self, level: str, models: Path) -> None:
        """Only models that are in use stay, here and in the inference worker's folder. Blocks."""
        with self._moving:
            # In this order: what is not being taken over any more is in the job's state.
            taking = frozenset(self._known[level].taking)
            job = self._reactor.states.get(level)
            if job is None:
                return
            used = (stages.models_in_use(job) - self._surplus(job)) | taking
            for folder in (models, self._folder(level) / "models"):
                for path in folder.iterdir() if folder.is_dir() else ():
                    digest = path.name.partition(".")[0]
                    if len(digest) == 64 and digest not in used and (path.is_file() or path.is_symlink()):
                        path.unlink(missing_ok=True)

    def _surplus(self, job: Job) -> set[str]:
        """The oldest of the models that only wait for the cloud, as far as they are more than this node keeps."""
        owed = [model.blob.digest for model in job.owed]
        return set(owed[: -self._node.limits.models]) - stages.models_in_use(replace(job, owed=()))

    async def _link(self, level: str, model: ModelFile, models: Path) -> None:
        """A model's file appears in a folder of a worker. Raises NotFound, StoreError, DamagedFile."""
        source, target = self._folder(level) / "models" / model.name, models / model.name
        found = await self.model_file(level, model.blob.digest)
        if found is None:
            await self._cache.bring(model.blob)
            await self._cache.link(model.blob.digest, source)
        elif not source.exists():
            await to_its_end(_copied, found, source, model.blob.digest)
        if not target.exists():
            await to_its_end(_copied, source, target, model.blob.digest)

    def _take_result(self, assignment: Assignment, run: str) -> None:
        """In the background: a model may be large, and nobody waits for it. After a restart it is begun again."""
        key = assignment.task, run
        if key in self._results:
            return

        async def take() -> None:
            try:
                event = await self._result(assignment)
            except Exception as error:
                log.exception("result_not_taken", task=assignment.task, run=run)
                event = stages.RunFailed(run, f"what {assignment.worker} has left cannot be taken over: {error}")
            finally:
                self._results.pop(key, None)

            async def taken() -> None:
                # Nothing else of the job is taken over meanwhile: it has one stage at a time.
                self._known[assignment.task].taking.clear()

            self._reactor.post(assignment.task, event, taken)

        self._results[key] = asyncio.create_task(take(), name=f"{assignment.task}:{run}")

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
            await (await self.examples_of(assignment.task)).learned(work.round)
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
        for left in folder.glob(f".{TAKEN}.*"):  # by a process that was killed
            left.unlink(missing_ok=True)
        digest = copy_whole(path, folder / TAKEN)
        suffix = path.suffix or f".{kind or 'file'}"
        target = folder / f"{digest}{suffix}"
        with self._moving:
            self._known[level].taking.add(digest)
            _move(folder / TAKEN, target)
        return ModelFile(target.name, BlobRef(digest, target.stat().st_size), kind or "file")

    async def _remove(self, level: str) -> Any:
        """Once its workers are stopped by their slots; what those wrote goes with them."""
        job = self._reactor.states.get(level)
        await self._node.workers_gone(level)
        await asyncio.gather(*(task for key, task in list(self._results.items()) if key[0] == level))
        examples = self._examples.pop(level, None)
        if examples is not None:
            await examples.close()
        self._known.pop(level, None)
        for source in (level, f"{level}/labels", f"{level}/dataset"):
            self._complaints.pop(source, None)
        if job is not None and job.wanted is not None:
            metrics.serves_no_more(job.wanted.task_name)
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
                except Exception as error:  # not foreseen: neither the other jobs nor the daemon end with it
                    if self._is_news(level, repr(error)):
                        log.exception("examples_not_collected", task=level)
            await asyncio.sleep(COLLECT_S)

    async def _look_at(self, level: str, job: Job) -> None:
        assert job.wanted is not None
        spec = stages.spec_of(job.wanted)
        complete = await self._is_collected(level, job)
        counts = await self._counts(level, spec)
        await self._note_dropped(level, spec, job)
        known, period, now = self._known[level], spec.train.trigger.check_period_seconds, time.monotonic()
        if complete and now - known.looked >= period:
            known.looked = now
            moment = datetime.now()
            self._reactor.post(level, stages.Checked(counts, moment.hour * 60 + moment.minute))
        elif _of_book(counts) != _of_book(job.counts) or _waits_for_a_hand(job, spec):
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
        await self._take_rows(level, spec.dataset.name, examples)

    async def _take_rows(self, level: str, dataset: str, examples: Examples) -> None:
        """Whoever looks at the job can read what is wrong with its dataset. Once all that the dataset held at first is here,
        the job goes on with what it has.

        Raises DatasetProblem, OSError: there are no rows yet.
        """
        try:
            wanted, path = await self._node.dataset(dataset)
            taken = await examples.take_rows(path, wanted.format, wanted.label_field)
        except DatasetBusy as error:
            if not await examples.begun():
                raise
            self._complain(f"{level}/dataset", str(error))
            return
        except (DatasetProblem, OSError) as error:
            begun = await examples.begun()
            follows = (
                "the job goes on with the rows that it has taken" if begun else "the job waits until it can be used"
            )
            sentence = f"dataset {dataset} on {self._node.name}: {error}; {follows}"
            await self._note_trouble(level, "DatasetUnusable", sentence)
            if not begun:
                raise
            self._complain(f"{level}/dataset", str(error))
            return
        reason, sentence = _shrunk(dataset, path, taken)
        await self._note_trouble(level, reason, sentence)

    async def _note_trouble(self, level: str, reason: str, sentence: str) -> None:
        """Told when it is seen twice: a file that is being replaced is in no good state for a moment."""
        known = self._known[level]
        again = bool(known.suspected[0]) or not reason
        known.suspected = (reason, sentence)
        if not again or known.trouble == known.suspected:
            return
        known.trouble = known.suspected
        if reason:
            log.warning("dataset_not_usable", task=level, reason=sentence)
        else:
            log.info("dataset_usable", task=level)
        await self._node.changed()

    async def _note_dropped(self, level: str, spec: IncrementalLearningJobSpec, job: Job) -> None:
        """What was removed to keep within limits, and why, in sentences."""
        node, limits = self._node.name, self._node.limits
        counts = await (await self._open(level, spec)).dropped()
        mib = f"{limits.example_bytes / 1024**2:g} MiB"
        why = f"the labelled examples were more than {mib} (job_examples_mib of {node})"
        models, waiting = len(self._surplus(job)), spec.keep.max_unlabelled
        logs = f"`edgeai logs {job.wanted.task_name} {Role.DEPLOY.value}` says why" if job.wanted is not None else ""
        sentences = (
            (counts.known, f"examples that models have learned from: {why}"),
            (counts.held_out, f"held-out examples: {why}"),
            (counts.unlabelled, f"hard examples without a label: more than {waiting} waited (keep.maxUnlabelled)"),
            (counts.refused, "records of the inference worker that were damaged, or no hard examples"),
            (
                self._not_kept(level),
                f"hard examples that the inference worker could not keep ({logs})",
            ),
            (models, f"models on their way to the cloud: more than {limits.models} waited (job_models of {node})"),
        )
        found = [f"{count} {sentence}" for count, sentence in sentences if count]
        if counts.over_bytes:
            found.append(
                f"nothing more can leave, and the labelled examples are {counts.over_bytes / 1024**2:.3g} MiB more than {mib}"
                f" (job_examples_mib of {node}): a round has to learn from the new ones first"
            )
        known = self._known[level]
        if known.dropped != tuple(found):
            known.dropped = tuple(found)
            log.info("examples_dropped", task=level, dropped=found)
            await self._node.changed()

    def _not_kept(self, level: str) -> int:
        """Of hard examples, by the inference worker."""
        tally = self._known[level].tally
        return tally.dropped if tally is not None else 0

    async def _counts(self, level: str, spec: IncrementalLearningJobSpec) -> ExampleCounts:
        examples, known = await self._open(level, spec), self._known[level]
        if known.tally is None:
            known.tally = await examples.tally()
        figures, known.figures = known.figures, known.figures[-1:]
        before = known.tally
        for run, serving in figures:
            known.tally = known.tally.counted(run, serving.requests, serving.hard, serving.dropped)
        now = time.monotonic()
        if known.tally != before and (known.tally.run != before.run or now - known.saved >= TALLY_S):
            await examples.keep_tally(known.tally)
            known.saved = now
        rate = known.figures[-1][1].hard_rate if known.figures else 0.0
        counts = await examples.counts()
        tally = known.tally
        dropped = counts.dropped + tally.dropped
        return replace(counts, requests=tally.requests, hard=tally.hard, hard_rate=rate, dropped=dropped)

    async def _open(self, level: str, spec: IncrementalLearningJobSpec) -> Examples:
        async with self._opening:
            if level not in self._examples:
                folder = self._folder(level)
                await to_its_end(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
                self._examples[level] = await Examples.open(
                    folder / "examples.db",
                    train_fraction=spec.dataset.train_fraction,
                    initial_known=spec.dataset.initial_samples == "old",
                    max_unlabelled=spec.keep.max_unlabelled,
                    max_bytes=self._node.limits.example_bytes,
                )
            return self._examples[level]

    def _complain(self, source: str, reason: str) -> None:
        """Once for each reason in a row: it is looked at every second. `source` is a task level, and what of it."""
        if self._is_news(source, reason):
            log.warning("examples_not_collected", task=source, reason=reason)

    def _is_news(self, source: str, reason: str) -> bool:
        known = self._complaints.get(source) == reason
        self._complaints[source] = reason
        return not known

    # --- after a change

    async def _committed(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._spans.look(key, self._reactor.states.get(key))
        if any(key in self._reactor.states and self._reactor.states[key].owed for key in keys):
            crash_point("job.deployed_committed")
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


def _move(source: Path, target: Path) -> None:
    """Durable when it returns. Blocks. Raises OSError."""
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _copied(source: Path, target: Path, digest: str) -> None:
    """Blocks. Raises NotFound, StoreError, DamagedFile."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if copy_whole(source, target) != digest:
        target.unlink(missing_ok=True)
        raise DamagedFile(source, "its content does not match its digest")


def _shrunk(dataset: str, path: Path, taken: Taken) -> tuple[str, str]:
    """Reason and sentence, if a file that is appended to has lost something; both empty if not."""
    if not taken.longest_bytes:
        return "", ""
    return "DatasetShrunk", (
        f"dataset {dataset}: {path} was cut short, it had {taken.longest_bytes} bytes; the job keeps what it has taken: put the"
        " rest back, or go on appending"
    )


def _of_book(counts: ExampleCounts) -> ExampleCounts:
    """Without what changes with every request."""
    return replace(counts, requests=0, hard=0, hard_rate=0.0, dropped=0)


def _waits_for_a_hand(job: Job, spec: IncrementalLearningJobSpec) -> bool:
    """Whether a round was asked for by hand while another one was under way, which is over."""
    waits = (job.stage, job.state) == (Stage.TRAIN, StageState.WAITING)
    return waits and not spec.paused and job.wanted is not None and job.wanted.triggers > job.asked


def _measure(job: Job, now: Serving, before: Serving) -> None:
    """`before`: what the same run of the worker said last; its counts never fall."""
    if job.wanted is None:
        return
    more = {
        "answered": (now.requests - now.failed) - (before.requests - before.failed),
        "failed": now.failed - before.failed,
        "hard": now.hard - before.hard,
        "not_kept": now.dropped - before.dropped,
    }
    version = job.serving.version if job.serving is not None and job.serving.model.blob.digest == now.digest else 0
    levels = {"hard_rate": now.hard_rate, "p50_s": now.p50_s, "p99_s": now.p99_s, "version": version}
    metrics.serving(job.wanted.task_name, more, levels)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
