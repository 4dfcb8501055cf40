"""Status of datasets and versions of models. Every write may be repeated.

A new version makes the oldest ones go that are more than the model keeps, and their blobs with them; never one that a task or a
job runs on (`digests_in_use`). A process that ends in between leaves a blob that nothing names, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from datetime import UTC, datetime

import structlog
from pydantic import ValidationError

from edgeai.coordinator.nodes import Nodes
from edgeai.coordinator.placement import noted_blob
from edgeai.errors import Conflict, EdgeaiError, MalformedEvent, NotFound, PayloadTooLarge
from edgeai.events.catalogue import DatasetObserved, JobWanted, Role, TrainingCompleted
from edgeai.lifecycle.task import is_over
from edgeai.resources.base import SOURCE_ANNOTATION, Metadata, instant
from edgeai.resources.conditions import ConditionType, set_condition
from edgeai.resources.counts import DatasetCount, noted
from edgeai.resources.dataset import Column, Dataset, DatasetStatus
from edgeai.resources.federated import FederatedTask, FinishedModel
from edgeai.resources.incremental import ArrivingModel, IncrementalLearningJob
from edgeai.resources.lineage import Lineage, Source, counted_sources
from edgeai.resources.model import Model, ModelFormat, ModelVersion, file_suffix
from edgeai.store.base import BlobStore, Document, ResourceStore
from edgeai.store.identity import new_uid

log = structlog.get_logger()

MAX_COLUMNS, MAX_TEXT, MAX_DIMENSIONS = 200, 500, 64
"""Of what a node says about a dataset: a status must fit its store."""
WITH_SOURCES = 10
"""Versions of a model that keep all of their lineage when it does not fit its document."""


def digests_in_use(
    tasks: Iterable[FederatedTask], learning: Iterable[IncrementalLearningJob], told: Iterable[JobWanted]
) -> frozenset[str]:
    """Of the models that something runs on. `told`: what nodes are to know of their jobs."""
    found = {job.model.blob.digest for job in told}
    for job in learning:
        found |= {model.digest for model in job.status.arriving}
        found |= {job.status.serving.digest} if job.status.serving else set()
    for task in tasks:
        named = (task.status.base, task.status.model) if not is_over(task) else ()
        found |= {model.digest for model in named if model is not None}
    return frozenset(found)


class Registry:
    """Writes Dataset status and Model versions into the resource store. `in_use`: digests of models that must stay."""

    def __init__(
        self,
        resources: ResourceStore,
        blobs: BlobStore | None = None,
        in_use: Callable[[], Set[str]] = frozenset,
    ) -> None:
        self._resources, self._blobs, self._in_use = resources, blobs, in_use

    async def observe_dataset(self, name: str, dataset: Dataset | None, nodes: Nodes) -> None:
        """Copy what the node found into the resource's status, if it differs."""
        found = nodes.dataset(dataset.spec.node_name, name) if dataset else None
        if dataset is None or found is None:
            return
        now = instant(datetime.now(UTC))
        while True:
            try:
                stored = await self._resources.get("Dataset", name)
            except NotFound:
                return
            current = Dataset.from_document(stored.document)
            status = _status(current, found, now)
            if status == current.status:
                return
            try:
                changed = current.model_copy(update={"status": status})
                await self._resources.replace(stored, changed.to_document())
            except Conflict:
                continue
            return

    async def import_version(self, model: Model, now: str) -> None:
        """The file that `apply` has stored becomes the newest version, unless there is one of this content."""
        blob = noted_blob(model.metadata, SOURCE_ANNOTATION)
        if blob is None or any(item.digest == blob.digest for item in model.status.versions):
            return
        stored = (model.spec.format or ModelFormat.SAFETENSORS).stored

        def version(current: Model) -> ModelVersion | None:
            if any(item.digest == blob.digest for item in current.status.versions):
                return None
            return ModelVersion(
                version=max((item.version for item in current.status.versions), default=0) + 1,
                digest=blob.digest,
                size_bytes=blob.size_bytes,
                format=stored,
                suffix=model.spec.suffix if stored is model.spec.format else "",
                created_at=now,
                lineage=Lineage(file=model.spec.url or ""),
            )

        await self._add(model.name, version)

    async def register(self, task: FederatedTask, fact: TrainingCompleted, now: str) -> FinishedModel:
        """The finished model of a task becomes a new version, once. Raises MalformedEvent if the fact cannot be true."""
        name, uid = task.spec.aggregation_worker.model.name, task.metadata.uid
        last = next((row for row in task.status.rounds if row.round == fact.number), None)

        def version(current: Model) -> ModelVersion | None:
            if any(item.task_uid == uid for item in current.status.versions):
                return None
            try:
                return ModelVersion(
                    version=max((item.version for item in current.status.versions), default=0) + 1,
                    digest=fact.model_digest,
                    size_bytes=fact.model_size_bytes,
                    task=task.metadata.name,
                    task_uid=uid,
                    round=fact.number,
                    updates=last.updates if last else 0,
                    created_at=now,
                    metrics=fact.metrics,
                    lineage=_lineage_of(task),
                )
            except ValidationError as error:
                raise MalformedEvent(f"{fact.kind} does not describe a model: {error.error_count()} fields") from error

        model = await self._add(name, version)
        made = next(item for item in model.status.versions if item.task_uid == uid)
        return FinishedModel(name=name, version=made.version, digest=made.digest)

    async def register_deployed(self, job: IncrementalLearningJob, deployed: ArrivingModel, now: str) -> None:
        """A model that a job serves becomes the newest version of its output model, once.

        One that the edge has gone back to gets a new number beside its old one, with the origin of that.
        """

        def version(current: Model) -> ModelVersion | None:
            versions = current.status.versions
            number = max((item.version for item in versions), default=0) + 1
            same = [item for item in versions if item.digest == deployed.digest]
            if not deployed.snapshot and same:
                there = versions[-1].digest == deployed.digest
                return None if there else same[-1].again(number, now)
            if any((item.task_uid, item.round) == (job.metadata.uid, deployed.round) for item in same):
                return None
            return _version_of(job, deployed, number, now)

        await self._add(job.spec.output_model.name, version)

    async def _add(self, name: str, make: Callable[[Model], ModelVersion | None]) -> Model:
        """Append what `make` gives for the newest document; nothing if it gives None. Raises PayloadTooLarge."""
        limit: int | None = None
        briefly = False
        while True:
            try:
                stored = await self._resources.get("Model", name)
            except NotFound:
                # Deleted while it was trained: the result is kept under its name all the same.
                now = instant(datetime.now(UTC))
                fresh = Model(metadata=Metadata(name=name, uid=new_uid(), generation=1, creation_timestamp=now))
                try:
                    stored = await self._resources.create("Model", name, fresh.to_document())
                except Conflict:
                    continue
            current = Model.from_document(stored.document)
            version = make(current)
            if version is None:
                return current
            limit = min(limit or current.spec.keep.max_versions, current.spec.keep.max_versions)
            there = (*current.status.versions, version)
            kept = _newest(there, limit, self._in_use())
            kept = _told_briefly(kept) if briefly else kept
            changed = current.model_copy(update={"status": current.status.model_copy(update={"versions": kept})})
            try:
                await self._resources.replace(stored, changed.to_document())
            except Conflict:
                continue
            except PayloadTooLarge:
                if not briefly:
                    briefly = True  # versions made by many workers
                    continue
                if len(kept) == len(_newest(there, 1, self._in_use())):
                    raise
                limit = max(len(kept) // 2, 1)  # versions with many metrics: fewer of them fit one document
                continue
            await self._drop_blobs(name, {each.digest for each in there} - {each.digest for each in kept})
            return changed

    async def _drop_blobs(self, name: str, digests: set[str]) -> None:
        """Of versions that are gone, unless something else has the same content. A failure leaves blobs, and is said."""
        if not digests or self._blobs is None:
            return
        try:
            needed = {digest for each in await self._resources.list("Model") for digest in _digests_of(each.document)}
            for digest in sorted(digests - needed - self._in_use()):
                await self._blobs.delete(digest)
        except EdgeaiError as error:
            log.warning("old_versions_not_removed", model=name, reason=str(error))
            return
        log.info("old_versions_removed", model=name, versions=len(digests))


def _newest(versions: tuple[ModelVersion, ...], limit: int, in_use: Set[str]) -> tuple[ModelVersion, ...]:
    first = len(versions) - limit
    return tuple(each for place, each in enumerate(versions) if place >= first or each.digest in in_use)


def _told_briefly(versions: tuple[ModelVersion, ...]) -> tuple[ModelVersion, ...]:
    """How many workers made a version is kept; who they were only of the newest versions."""
    return (
        *(
            each.model_copy(update={"lineage": each.lineage and each.lineage.model_copy(update={"sources": ()})})
            for each in versions[:-WITH_SOURCES]
        ),
        *versions[-WITH_SOURCES:],
    )


def _digests_of(document: Document) -> set[str]:
    """What a Model's versions, and the file that `apply` has stored for it, are known by."""
    source = document.get("metadata", {}).get("annotations", {}).get(SOURCE_ANNOTATION, "")
    versions = document.get("status", {}).get("versions", ())
    return {source.partition(":")[0], *(each["digest"] for each in versions)}


def _lineage_of(task: FederatedTask) -> Lineage:
    base, (sources, counted) = task.status.base, counted_sources(task.status.sources)
    return Lineage(
        kind=task.kind,
        generation=task.metadata.generation,
        sources=sources,
        counted=counted,
        base_model=base.name if base else "",
        base_version=base.version if base else 0,
    )


def _version_of(job: IncrementalLearningJob, deployed: ArrivingModel, number: int, now: str) -> ModelVersion:
    known = deployed.format in frozenset(ModelFormat)
    return ModelVersion(
        version=number,
        digest=deployed.digest,
        size_bytes=deployed.size_bytes,
        format=ModelFormat(deployed.format) if known else ModelFormat.FILE,
        suffix=file_suffix(deployed.name),
        task=job.metadata.name,
        task_uid=job.metadata.uid,
        round=deployed.round,
        snapshot=deployed.snapshot,
        samples=deployed.samples,
        edge=job.spec.node_name,
        created_at=now,
        metrics=deployed.metrics,
        lineage=_lineage_of_job(job, deployed) if deployed.snapshot else None,
    )


def _lineage_of_job(job: IncrementalLearningJob, deployed: ArrivingModel) -> Lineage:
    """`snapshot` and `samples` of the version say what it was trained on; the dataset is where the examples came from."""
    source = Source(worker=Role.TRAIN.value, node=job.spec.node_name, dataset=job.spec.dataset.name, rounds=1)
    return Lineage(
        kind=job.kind,
        generation=deployed.generation or job.metadata.generation,
        sources=(source,),
        counted=1,
        held_out=deployed.held_out,
    )


def _status(dataset: Dataset, found: DatasetObserved, now: str) -> DatasetStatus:
    return DatasetStatus(
        conditions=set_condition(
            dataset.status.conditions,
            ConditionType.READY,
            "True" if found.ready else "False",
            "Verified" if found.ready else "NotUsable",
            found.reason[:MAX_TEXT],
            now=now,
            observed_generation=dataset.metadata.generation,
        ),
        observed_generation=dataset.metadata.generation,
        sample_count=found.samples if found.ready else None,
        size_bytes=found.size_bytes or None,
        digest=found.digest or None,
        columns=tuple(
            Column(name=column[:MAX_TEXT], dtype=kind[:MAX_TEXT], shape=found.shapes.get(column, ())[:MAX_DIMENSIONS])
            for column, kind in list(found.schema.items())[:MAX_COLUMNS]
        ),
        history=_counted(dataset.status.history, found, now),
    )


def _counted(history: tuple[DatasetCount, ...], found: DatasetObserved, now: str) -> tuple[DatasetCount, ...]:
    """While a dataset cannot be used, nobody knows what it holds."""
    if not found.ready:
        return history
    size_bytes, digest = found.size_bytes or None, found.digest or None
    return noted(history, DatasetCount(at=now, samples=found.samples, size_bytes=size_bytes, digest=digest))
