"""What was made from a dataset: derived from the lineage of versions, from jobs and from tasks, and stored nowhere.

Snapshots that a job has frozen are known by a digest of their own; federated training reads the dataset's file as it is, so
there the digest is that of the file when its worker was prepared. Pure: the portal and the command line show the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from edgeai.resources.base import Count, DigestOrNone, Part
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import IncrementalLearningJob, StageRecord
from edgeai.resources.model import Model, ModelVersion

Trainer = FederatedTask | IncrementalLearningJob
MAX_SNAPSHOTS = 200
_TRAIN = "Train"


class DatasetUse(Part):
    """A state of a dataset that something was trained on, and what came of it.

    `frozen`: the digest is that of a job's snapshot; else that of the dataset itself. `held_out`: examples to evaluate on; a
    federated worker splits by itself. `round`: of the job. `rounds`: of the task, in which an update made from it counted.
    `model` and `version`: what was made; without: nothing yet, or it did not serve. `at` is empty as long as it is in use.
    """

    at: str = ""
    digest: DigestOrNone = ""
    frozen: bool = False
    samples: Count = 0
    held_out: Count = 0
    task_kind: str = ""
    task: str = ""
    task_uid: str = ""
    worker: str = ""
    round: Count = 0
    rounds: Count = 0
    model: str = ""
    version: Count = 0


def uses_of(dataset: str, models: Iterable[Model], trainers: Iterable[Trainer]) -> list[DatasetUse]:
    """The newest first; what is in use now before all others."""
    found = [use for model in models for version in model.status.versions for use in _made(dataset, model, version)]
    made = {(use.task_uid, use.round if use.frozen else 0): use for use in found}
    for trainer in trainers:
        if isinstance(trainer, FederatedTask):
            found += _training(dataset, trainer, made)
        elif trainer.spec.dataset.name == dataset:
            found += _rounds(trainer, made)
    return sorted(found, key=lambda use: (use.at == "", use.at, use.round, use.version), reverse=True)


def _made(dataset: str, model: Model, version: ModelVersion) -> Iterator[DatasetUse]:
    """A copy of a version was made from nothing anew."""
    lineage = version.lineage
    if lineage is None or lineage.copy_of:
        return
    for source in lineage.sources:
        if source.dataset == dataset:
            yield DatasetUse(
                at=version.created_at,
                digest=version.snapshot or source.digest,
                frozen=bool(version.snapshot),
                samples=version.samples if version.snapshot else source.samples,
                held_out=lineage.held_out,
                task_kind=lineage.kind,
                task=version.task,
                task_uid=version.task_uid,
                worker=source.worker,
                round=version.round if version.snapshot else 0,
                rounds=0 if version.snapshot else source.rounds,
                model=model.name,
                version=version.version,
            )


def _training(dataset: str, task: FederatedTask, made: Mapping[tuple[str, int], DatasetUse]) -> Iterator[DatasetUse]:
    """Of a task that has made no version: what its workers have."""
    if (task.metadata.uid, 0) in made or task.status.model is not None:
        return
    for source in task.status.sources:
        if source.dataset == dataset:
            yield DatasetUse(
                at=_failed_at(task),
                digest=source.digest,
                samples=source.samples,
                task_kind=task.kind,
                task=task.name,
                task_uid=task.metadata.uid,
                worker=source.worker,
                rounds=source.rounds,
            )


def _failed_at(task: FederatedTask) -> str:
    failed = find_condition(task.status.conditions, ConditionType.FAILED)
    return failed.last_transition_time if failed is not None and failed.status == "True" else ""


def _rounds(job: IncrementalLearningJob, made: Mapping[tuple[str, int], DatasetUse]) -> Iterator[DatasetUse]:
    """Rounds of a job that have frozen a snapshot and made no version."""
    rows: dict[int, StageRecord] = {
        row.round: row for row in job.status.history if row.stage == _TRAIN and row.snapshot
    }
    for number, row in rows.items():
        if (job.metadata.uid, number) not in made:
            yield DatasetUse(
                at=row.at,
                digest=row.snapshot,
                frozen=True,
                samples=row.samples,
                held_out=row.held_out,
                task_kind=job.kind,
                task=job.name,
                task_uid=job.metadata.uid,
                worker=_TRAIN.lower(),
                round=number,
            )
