"""Workers of joint inference services of one node: the models they serve, and what they tell.

What a worker is to serve stands in the desired document (`ServingWanted`), apart from its assignment, so that a new version
restarts nobody. It is brought into the node's cache and put beside the one that serves; the worker swaps by itself
(`worker.inference`). Slots, scripts and restarts are the controller's business (`service`), requests never pass through here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path

import structlog

from edgeai import metrics
from edgeai.controller.cache import BlobCache
from edgeai.controller.places import Places
from edgeai.controller.threads import to_its_end
from edgeai.errors import EdgeaiError, StoreError
from edgeai.events.catalogue import (
    Assignment,
    InferenceObserved,
    Inferences,
    Inferring,
    ModelFile,
    Role,
    Scores,
    ServeModel,
    ServingWanted,
)
from edgeai.launcher.slots import ServingFile, SlotDir, read_serving, write_serving
from edgeai.learning.offload_curve import BINS
from edgeai.lifecycle import swaps
from edgeai.lifecycle.base import Emit
from edgeai.lifecycle.swaps import Known, Pace
from edgeai.resources.joint import JointInferenceServiceSpec
from edgeai.store.files import copy_whole, is_digest
from edgeai.store.journal import SqliteJournal

log = structlog.get_logger()

RETRY_S, OBSERVE_S = 5.0, 5.0
DIGEST_LENGTH = 64
MAX_REFUSED, MAX_REASON, MAX_MODELS, MAX_BREAKER = 16, 300, 32, 20
_WORSE = {"half-open": 1, "open": 2}
"""Of the states of a breaker; all others are well."""
_COUNTS = tuple(each.name for each in fields(Inferences))

Key = tuple[str, str]
"""Task level and worker."""


@dataclass(frozen=True, slots=True)
class Node:
    """What this is given by the controller: `slot` is a worker's slot directory, `tell` sends it a local event, `changed` is
    called when there is something new to observe."""

    places: Places
    slot: Callable[[str, str], SlotDir]
    tell: Callable[[str, str, ServeModel], Awaitable[None]]
    changed: Callable[[], Awaitable[None]]
    journal: SqliteJournal[Known] | None = None
    """where it stands what was told of workers last, with the facts; none: nothing becomes a fact"""


@dataclass(frozen=True, slots=True)
class _Level:
    """What a worker has said last that is measured, and not observed."""

    seconds: dict[tuple[str, str], float]
    breaker: str
    waiting: int


@dataclass(slots=True)
class _Batch:
    """What is committed together."""

    states: dict[str, Known | None]
    facts: list[Emit]
    timers: dict[tuple[str, str], float] = field(default_factory=dict)


class InferenceWorkers:
    """The workers of joint inference services, by task level and name."""

    def __init__(self, node: Node, cache: BlobCache) -> None:
        self._node, self._cache = node, cache
        self._wanted: dict[Key, ServingWanted] = {}
        self._told: dict[Key, InferenceObserved] = {}
        self._levels: dict[Key, _Level] = {}
        self._known: dict[Key, Known] = {}
        self._paces: dict[Key, Pace] = {}
        self._observed: tuple[InferenceObserved, ...] = ()
        self._observed_s = -OBSERVE_S
        self._staging: dict[Key, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """What an earlier life has told."""
        if self._node.journal is not None:
            states, _ = await self._node.journal.load()
            self._known = {_key(name): known for name, known in states.items()}

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            while True:
                self._changed.clear()
                self._follow()
                await self._changed.wait()
        finally:
            for staging in self._staging.values():
                staging.cancel()

    def take(self, wanted: Sequence[ServingWanted]) -> None:
        """Bring what is served in line with the desired document."""
        self._wanted = {(each.task, each.worker): each for each in wanted}
        self._changed.set()

    async def prepare(self, assignment: Assignment, slot: SlotDir) -> None:
        """The folder of its models; what is to be in it follows, and the worker waits for it. Raises OSError."""
        models = self._node.places.models(slot)
        await to_its_end(models.mkdir, parents=True, exist_ok=True)
        await to_its_end(self._node.places.open_up, models)
        staging = self._staging.pop((assignment.task, assignment.worker), None)
        if staging is not None:
            staging.cancel()
        self._changed.set()

    def models_in_use(self) -> set[str]:
        return {each.model.blob.digest for each in self._wanted.values()}

    async def hear(self, task: str, task_uid: str, worker: str, told: Inferring) -> None:
        """What a worker says of itself, every second; observed seldom, unless another model serves or was refused."""
        before = self._told.get((task, worker))
        found = _bounded(task, task_uid, worker, told)
        self._told[task, worker] = found
        self._measure(task, worker, told, before.counts if before is not None else Inferences())
        news = before is None or (before.digest, before.refused_models, before.breaker) != (
            found.digest,
            found.refused_models,
            found.breaker,
        )
        await self._tell_history((task, worker), found)
        if news or time.monotonic() - self._observed_s >= OBSERVE_S:
            await self._node.changed()

    async def _tell_history(self, key: Key, told: InferenceObserved) -> None:
        if self._node.journal is None:
            return
        known = self._known.get(key, Known())
        found, facts = swaps.news(
            known, told, self._wanted.get(key), self._paces.setdefault(key, Pace()), time.monotonic()
        )
        if found == known and not facts:
            return
        batch = _Batch({"/".join(key): found}, [Emit(fact, *key) for fact in facts])
        try:
            await self._node.journal.commit(batch)
            self._known[key] = found
        except StoreError as error:
            log.warning("history_not_told", task=key[0], worker=key[1], reason=str(error))

    async def forget(self, task: str, worker: str) -> None:
        """A worker is removed."""
        key = task, worker
        self._paces.pop(key, None)
        if self._known.pop(key, None) is not None and self._node.journal is not None:
            await self._node.journal.commit(_Batch({"/".join(key): None}, []))
        self._told.pop(key, None)
        if self._levels.pop(key, None) is not None:
            self._measure_levels(_service(task))

    def _measure(self, task: str, worker: str, told: Inferring, before: Inferences) -> None:
        """Sums go on over restarts of the worker; those from before this controller's start are counted by the first one."""
        more = {name: getattr(told.counts, name) - getattr(before, name) for name in _COUNTS}
        metrics.inferences(_service(task), more)
        seconds = {("edge", "0.5"): told.edge_p50_s, ("edge", "0.99"): told.edge_p99_s}
        seconds |= {("cloud", "0.5"): told.cloud_p50_s, ("cloud", "0.99"): told.cloud_p99_s}
        self._levels[task, worker] = _Level(seconds, told.breaker, told.waiting)
        self._measure_levels(_service(task))

    def _measure_levels(self, service: str) -> None:
        """Of all its workers on this node: what waits together, the slowest, the breaker that is worst."""
        levels = [level for (task, _), level in self._levels.items() if _service(task) == service]
        if not levels:
            metrics.infers_no_more(service, _COUNTS)
            return
        seconds = {which: max(level.seconds[which] for level in levels) for which in levels[0].seconds}
        breaker = max((level.breaker for level in levels), key=lambda word: _WORSE.get(word, 0))
        metrics.inference_levels(service, seconds, breaker, sum(level.waiting for level in levels))

    def observe(self) -> tuple[InferenceObserved, ...]:
        """What was told, at most every OBSERVE_S, so that counters alone do not make a document a second."""
        now_s, found = time.monotonic(), tuple(each for _, each in sorted(self._told.items()))
        if now_s - self._observed_s >= OBSERVE_S or _but_counts(found) != _but_counts(self._observed):
            self._observed, self._observed_s = found, now_s
        return self._observed

    # --- models

    def _follow(self) -> None:
        for key in self._staging.keys() - self._wanted.keys():
            self._staging.pop(key).cancel()
        for key, wanted in self._wanted.items():
            staging = self._staging.get(key)
            if staging is not None and staging.get_name() == _name(wanted):
                continue
            if staging is not None:
                staging.cancel()
            self._staging[key] = asyncio.create_task(self._stage_until_done(wanted), name=_name(wanted))

    async def _stage_until_done(self, wanted: ServingWanted) -> None:
        while True:
            slot = self._node.slot(wanted.task, wanted.worker)
            if not self._node.places.models(slot).is_dir():
                return  # not prepared yet: `prepare` will ask again
            try:
                await self._stage(wanted, slot)
                return
            except (EdgeaiError, OSError) as error:
                log.warning(
                    "model_not_staged", task=wanted.task, worker=wanted.worker, model=wanted.name, reason=str(error)
                )
            await asyncio.sleep(RETRY_S)

    async def _stage(self, wanted: ServingWanted, slot: SlotDir) -> None:
        models, model = self._node.places.models(slot), _file_of(wanted)
        here = models / model.name
        if not here.exists():
            # A copy: a worker that is a process could write into the cache through a link.
            await to_its_end(copy_whole, await self._cache.bring(model.blob), here)
        serving = ServingFile(model, wanted.model.version, "")
        before = await asyncio.to_thread(read_serving, models)
        if before != serving:
            await to_its_end(write_serving, models, serving)
        await to_its_end(self._node.places.open_up, models)
        await to_its_end(_clean, models, {model.name, before.model.name if before is not None else model.name})
        await self._node.tell(wanted.task, wanted.worker, ServeModel(model, wanted.model.version))


def _key(name: str) -> Key:
    task, _, worker = name.partition("/")
    return task, worker


def job_fed_by(assignment: Assignment) -> str:
    """Name of the incremental learning job of this node that gets the worker's hard examples; empty: none does."""
    if assignment.role is not Role.EDGE or assignment.inference is None:
        return ""
    return _job_fed(assignment.inference.spec, assignment.worker)


@lru_cache(maxsize=256)
def _job_fed(spec: str, worker: str) -> str:
    try:
        workers = JointInferenceServiceSpec.model_validate_json(spec).edge_workers
    except ValueError:  # of another version of the system: the worker says so
        return ""
    found = (each.feeds.job for each in workers if each.name == worker and each.feeds is not None)
    return next(found, "")


def _clean(models: Path, used: set[str]) -> None:
    """Only the model to serve and the one before it stay. Blocks."""
    for path in models.iterdir():
        if len(path.name.partition(".")[0]) == DIGEST_LENGTH and path.name not in used:
            path.unlink(missing_ok=True)


def _bounded(task: str, task_uid: str, worker: str, told: Inferring) -> InferenceObserved:
    """What may be observed of what a worker says, which may say anything: all workers' share one document."""
    refused = [(digest, why[:MAX_REASON]) for digest, why in told.refused_models.items() if is_digest(digest)]
    models = [(digest, count) for digest, count in told.models.items() if is_digest(digest) or not digest]
    breaker = told.breaker[:MAX_BREAKER]
    return InferenceObserved(
        *(task, task_uid, worker, told.digest, told.counts),
        models=dict(models[-MAX_MODELS:]),
        breaker=breaker,
        refused_models=dict(refused[-MAX_REFUSED:]),
        scores=told.scores if _is_whole(told.scores) else Scores(),
    )


def _is_whole(scores: Scores) -> bool:
    return all(len(column) == BINS for column in (scores.inferences, scores.answered, scores.changed))


def _service(task: str) -> str:
    """The name of a service, of its task level."""
    return task.rpartition("-")[0]


def _name(wanted: ServingWanted) -> str:
    return f"stage {wanted.task}/{wanted.worker} {wanted.model.version} {wanted.model.blob.digest}"


def _file_of(wanted: ServingWanted) -> ModelFile:
    model = wanted.model
    suffix = model.suffix or f".{model.format}"
    return ModelFile(f"{model.blob.digest}{suffix}", model.blob, model.format)


def _but_counts(observed: tuple[InferenceObserved, ...]) -> list[tuple[object, ...]]:
    return [
        (each.task, each.worker, each.digest, each.breaker, sorted(each.refused_models.items())) for each in observed
    ]
