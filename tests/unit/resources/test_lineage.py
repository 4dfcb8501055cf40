"""What workers were prepared with, which of it counted, and what was made from a dataset."""

from __future__ import annotations

from edgeai.resources.base import Metadata
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.lineage import MAX_SOURCES, Lineage, Source, copied, counted, counted_sources, prepared
from edgeai.resources.model import Model, ModelStatus, ModelVersion
from edgeai.resources.snapshots import uses_of

OLD, NEW, SNAPSHOT = "0a" * 32, "1b" * 32, "2c" * 32
NOW = "2030-01-31T12:00:00Z"


def source(worker: str = "work1", digest: str = OLD, rounds: int = 0) -> Source:
    return Source(worker=worker, node="edge1", dataset="dataset1", digest=digest, samples=40, rounds=rounds)


def test_a_worker_that_is_prepared_again_with_the_same_changes_nothing():
    known = (source(rounds=3),)
    assert prepared(known, [source()]) is known


def test_what_never_counted_gives_way_to_what_the_worker_has_now():
    assert prepared((source(),), [source(digest=NEW)]) == (source(digest=NEW),)


def test_what_has_counted_stays_beside_what_the_worker_has_now():
    assert prepared((source(rounds=2),), [source(digest=NEW)]) == (source(rounds=2), source(digest=NEW))


def test_a_round_counts_for_what_the_worker_was_last_prepared_with():
    known = (source(rounds=2), source(digest=NEW))
    assert counted(known, [source(digest="")]) == (source(rounds=2), source(digest=NEW, rounds=1))


def test_a_worker_that_nobody_told_of_counts_without_a_digest():
    assert counted((), [source(digest="")]) == (source(digest="", rounds=1),)


def test_a_version_names_only_those_that_counted():
    assert counted_sources([source("b", rounds=1), source("c"), source("a", rounds=2)]) == (
        (source("a", rounds=2), source("b", rounds=1)),
        2,
    )


def test_a_version_of_very_many_workers_names_the_first_and_counts_all():
    found, number = counted_sources([source(f"work{number:04}", rounds=1) for number in range(1000)])
    assert (len(found), number) == (MAX_SOURCES, 1000)


def test_a_copy_keeps_what_its_original_was_made_from():
    assert copied(Lineage(kind="FederatedTask", generation=2), 3) == Lineage(
        kind="FederatedTask", generation=2, copy_of=3
    )


# --- what was made from a dataset


def version(number: int, at: str = NOW, **fields: object) -> ModelVersion:
    return ModelVersion(version=number, digest=f"{number:064x}", size_bytes=8, created_at=at, **fields)  # type: ignore[arg-type]


def model(*versions: ModelVersion) -> Model:
    return Model(metadata=Metadata(name="cnn"), status=ModelStatus(versions=versions))


def job(history: list[dict[str, object]]) -> IncrementalLearningJob:
    stage = {"workerSpec": {"scriptDir": "/srv/s", "scriptBootFile": "main.py", "frameworkType": "numpy"}}
    return IncrementalLearningJob.from_document(
        {
            "apiVersion": "edgeai.io/v1alpha1",
            "kind": "IncrementalLearningJob",
            "metadata": {"name": "learn", "uid": "7" * 32},
            "spec": {
                "nodeName": "edge1",
                "initialModel": {"name": "cnn"},
                "outputModel": {"name": "cnn"},
                "dataset": {"name": "dataset1"},
                "train": stage,
                "eval": stage,
                "deploy": stage,
            },
            "status": {"history": history},
        }
    )


def trained(number: int, snapshot: str) -> dict[str, object]:
    row = {"round": number, "stage": "Train", "state": "Completed", "at": f"2030-01-31T12:0{number}:00Z"}
    return {**row, "samples": 30, "heldOut": 10, "snapshot": snapshot}


def test_a_copy_was_made_from_nothing_anew():
    made = version(1, lineage=Lineage(sources=(source(rounds=1),)))
    assert [use.version for use in uses_of("dataset1", [model(made, made.again(2, NOW))], [])] == [1]


def test_a_version_older_than_its_lineage_is_not_claimed_for_any_dataset():
    assert uses_of("dataset1", [model(version(1, task="digits"))], []) == []


def test_a_round_of_a_job_stands_once_with_the_version_that_it_made():
    lineage = Lineage(kind="IncrementalLearningJob", sources=(source("train", "", 1),), held_out=10)
    made = version(1, task="learn", task_uid="7" * 32, round=1, snapshot=OLD, samples=30, lineage=lineage)
    uses = uses_of("dataset1", [model(made)], [job([trained(1, OLD), trained(2, SNAPSHOT)])])
    assert [(use.round, use.digest, use.samples, use.held_out, use.version) for use in uses] == [
        (2, SNAPSHOT, 30, 10, 0),
        (1, OLD, 30, 10, 1),
    ]
