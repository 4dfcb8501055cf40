"""What nodes are to run follows from tasks and datasets alone; what is missing is said in sentences."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_world import DIGEST, LEVEL, UID, dataset, model, task

from edgeai.coordinator.placement import (
    desired_documents,
    is_source,
    level_of,
    may_say,
    membership_of,
    noted_blob,
    references_of,
)
from edgeai.events.catalogue import (
    BlobRef,
    DatasetWanted,
    Desired,
    Member,
    Role,
    RoundMissed,
    TrainingCompleted,
    WorkerEnded,
    WorkerFailed,
    WorkerJoined,
    WorkerStarted,
)
from edgeai.resources.base import SCRIPT_ANNOTATION, SOURCE_ANNOTATION, Metadata
from edgeai.resources.federated import FederatedTask, TaskPhase, WorkerStatus

DATASETS = {"dataset0": dataset(0), "dataset1": dataset(1)}
MODELS = {"cnn": model(1, 2)}
NODES = ["edge0", "edge1", "cloud"]
PREPARING = {"phase": "Preparing"}


def with_status(found: FederatedTask, **changes: Any) -> FederatedTask:
    return found.model_copy(update={"status": found.status.model_copy(update=changes)})


def rows(**states: str) -> tuple[WorkerStatus, ...]:
    return tuple(
        WorkerStatus(
            name=name,
            node="edge0",
            role="aggregation" if name == "aggregation" else "training",
            state=state,
            reason="why" if state == "Failed" else "",
        )
        for name, state in states.items()
    )


# --- blobs that were noted


def test_a_noted_blob_is_a_digest_and_a_size():
    noted = Metadata(name="x", annotations={SOURCE_ANNOTATION: f"{DIGEST}:17"})
    assert noted_blob(noted, SOURCE_ANNOTATION) == BlobRef(DIGEST, 17)


@pytest.mark.parametrize(
    "text",
    [
        "",
        DIGEST,
        f"{DIGEST}:",
        f"{DIGEST}:-1",
        f"{DIGEST}:x",
        f"{DIGEST}:{10**19}",
        ":5",
        "../../etc/passwd:5",
        f"{'D' * 64}:5",
        f"{DIGEST}:²",
    ],
)
def test_an_annotation_that_somebody_wrote_by_hand_is_no_blob(text):
    """It would become the name of a file on every node."""
    assert noted_blob(Metadata(name="x", annotations={SOURCE_ANNOTATION: text}), SOURCE_ANNOTATION) is None
    assert noted_blob(Metadata(name="x"), SOURCE_ANNOTATION) is None


# --- references


def test_a_task_with_everything_has_the_newest_version_as_base():
    found = references_of(task(), NODES, DATASETS, MODELS)
    assert found.problems == ()
    assert (found.base.name, found.base.version, found.base.digest) == ("cnn", 2, f"{2:064x}")


def test_a_model_without_versions_and_url_is_no_problem():
    found = references_of(task(), NODES, DATASETS, {"cnn": model()})
    assert (found.problems, found.base) == ((), None)


@pytest.mark.parametrize(
    ("nodes", "datasets", "models", "sentence"),
    [
        (
            ["edge0"],
            DATASETS,
            MODELS,
            "node edge1 of worker work1 has never joined: start `edgeai edge --node edge1` there",
        ),
        (NODES, {"dataset0": dataset(0)}, MODELS, "dataset dataset1 of worker work1 does not exist: apply a Dataset"),
        (
            NODES,
            {**DATASETS, "dataset1": dataset(1, "edge0")},
            MODELS,
            "dataset dataset1 is on edge0, worker work1 on edge1",
        ),
        (NODES, DATASETS, {}, "model cnn does not exist: apply a Model of that name"),
        (NODES, DATASETS, {"cnn": model(url="./m.npz", format="npz")}, "its first version is not stored yet"),
    ],
    ids=["node", "dataset", "dataset elsewhere", "model", "model without its file"],
)
def test_what_is_missing_is_said_by_name(nodes, datasets, models, sentence):
    [problem] = references_of(task(), nodes, datasets, models).problems
    assert sentence in problem


def test_everything_that_is_missing_is_said_at_once():
    assert len(references_of(task(), [], {}, {}).problems) == 5


# --- desired documents


def placed(*tasks: FederatedTask) -> dict[str, Desired]:
    return desired_documents(tasks, DATASETS, MODELS, NODES)


def test_a_node_without_work_gets_an_empty_document():
    assert desired_documents([], {}, {}, ["edge0"]) == {"edge0": Desired(), "cloud": Desired()}


def test_workers_go_to_their_nodes_and_the_aggregation_worker_to_the_cloud():
    found = placed(task(status=PREPARING))
    assert {node: [(item.worker, item.role) for item in document.assignments] for node, document in found.items()} == {
        "cloud": [("aggregation", Role.AGGREGATION)],
        "edge0": [("work0", Role.TRAINING)],
        "edge1": [("work1", Role.TRAINING)],
    }


def test_every_dataset_goes_to_its_node_whether_or_not_a_task_uses_it():
    assert placed()["edge1"].datasets == (DatasetWanted("dataset1", "/data/1.npz", "npz"),)


@pytest.mark.parametrize("phase", ["Pending", "Deleting"])
def test_a_task_that_waits_or_is_deleted_is_nowhere(phase):
    assert all(document.assignments == () for document in placed(task(status={"phase": phase})).values())


@pytest.mark.parametrize(
    ("phase", "finished"), [("Preparing", False), ("Running", False), ("Paused", False), ("Failed", True)]
)
def test_the_workers_of_a_task_that_is_over_are_finished(phase, finished):
    assert all(item.finished is finished for item in placed(task(status={"phase": phase}))["edge0"].assignments)


def test_a_training_worker_knows_what_it_needs():
    [found] = placed(task(status=PREPARING, generation=3))["edge0"].assignments
    assert (found.task, found.task_name, found.task_uid, found.generation) == (LEVEL, "digits", UID, 3)
    assert (found.script, found.script_dir, found.boot_file) == (None, "/srv/train", "main.py")
    assert (found.dataset, found.framework, found.plan) == ("dataset0", "numpy", None)
    assert found.parameters["batch size"] == 16


def test_a_worker_without_parameters_of_its_own_has_the_tasks_and_the_defaults():
    [found] = placed(task(status=PREPARING, batch_size=8))["edge1"].assignments
    assert (found.parameters["batch size"], found.parameters["learning rate"]) == (8, 0.01)


def test_a_packed_script_is_named_by_digest_and_its_folder_forgotten():
    annotations = {f"{SCRIPT_ANNOTATION}work0": f"{DIGEST}:17"}
    [found] = placed(task(status=PREPARING, annotations=annotations))["edge0"].assignments
    assert (found.script, found.script_dir) == (BlobRef(DIGEST, 17), "")


def test_the_aggregation_worker_gets_the_plan_of_the_rounds():
    base = {"name": "cnn", "version": 2, "digest": f"{2:064x}"}
    given = task(status=PREPARING | {"base": base}, target_accuracy=0.97, round_deadline_seconds=60)
    plan = placed(given)["cloud"].assignments[0].plan
    assert (plan.algorithm, plan.rounds, plan.min_node_number, plan.rounds_between_validations) == ("FedAvg", 3, 2, 1)
    assert (plan.round_deadline_s, plan.target_accuracy, plan.model) == (60.0, 0.97, "cnn")
    assert plan.members == (Member("work0", "edge0"), Member("work1", "edge1"))
    assert plan.base == BlobRef(f"{2:064x}", 10)


def test_the_plan_keeps_the_version_that_training_started_from():
    """A newer version of the model, or its deletion, does not change a task that runs."""
    base = {"name": "cnn", "version": 1, "digest": f"{1:064x}"}
    assert placed(task(status=PREPARING | {"base": base}))["cloud"].assignments[0].plan.base == BlobRef(f"{1:064x}", 10)


def test_documents_do_not_depend_on_the_order_of_tasks():
    one, other = task(status=PREPARING), task("other", "b" * 32, status=PREPARING)
    assert placed(one, other) == placed(other, one)


# --- who can be asked


def test_workers_on_absent_nodes_are_not_available():
    found = membership_of(task(), frozenset({"edge1"}))
    assert (found.task_uid, found.available, found.failed, found.paused) == (UID, ("work0",), {}, False)


def test_failed_workers_are_named_with_their_reason():
    found = membership_of(with_status(task(), workers=rows(work0="Failed", work1="Running")), frozenset())
    assert (found.available, found.failed) == (("work1",), {"work0": "why"})


def test_a_worker_that_has_ended_is_not_waited_for():
    found = membership_of(with_status(task(), workers=rows(work0="Done", work1="Running")), frozenset())
    assert found.failed == {"work0": "the worker has ended"}


def test_a_pause_is_passed_on():
    assert membership_of(task(paused=True), frozenset()).paused


def test_the_aggregation_worker_is_no_member():
    found = membership_of(with_status(task(), workers=rows(aggregation="Failed", work0="Running")), frozenset())
    assert found.failed == {}


# --- who may say what

RUNNING = with_status(task(), phase=TaskPhase.RUNNING)
AGGREGATION = f"cloud/{LEVEL}/aggregation"


@pytest.mark.parametrize(
    ("source", "node", "fits"),
    [
        ("edge0", "edge0", True),
        ("edge7", "edge7", True),
        (AGGREGATION, "cloud", True),
        (f"edge0/{LEVEL}/work0", "edge0", True),
        ("edge0/operator", "edge0", True),
        ("edge1", "edge0", False),
        (AGGREGATION, "edge0", False),
        (f"edge0/{LEVEL}/work1", "edge0", False),
        (f"edge0/{LEVEL}/unknown", "edge0", False),
        ("edge0/other-0a1b2c3d/work0", "edge0", False),
        ("edge0/", "edge0", False),
        ("edge0/../..", "edge0", False),
        (f"edge0/{LEVEL}/work0/more", "edge0", False),
        ("cloud/operator", "edge0", False),
        ("", "edge0", False),
    ],
)
def test_facts_are_numbered_under_the_names_of_who_is_there(source, node, fits):
    assert is_source(source, node, [RUNNING]) is fits


WORKER_FACTS = [
    WorkerStarted(UID, Role.TRAINING, 7),
    WorkerEnded(UID, Role.TRAINING, True, ""),
    WorkerFailed(UID, Role.TRAINING, "x"),
]
ROUND_FACTS = [WorkerJoined(UID, "work0"), RoundMissed(UID, 1, 1, "x"), TrainingCompleted(UID, DIGEST, 1, 3, {})]


@pytest.mark.parametrize("fact", WORKER_FACTS, ids=lambda fact: fact.kind)
@pytest.mark.parametrize(
    ("source", "worker", "fits"),
    [
        ("edge0", "work0", True),
        ("edge0/operator", "work0", True),
        ("edge1", "work0", False),
        ("edge0", "work1", False),
        ("cloud", "aggregation", True),
        ("edge0", "", False),
    ],
)
def test_a_node_speaks_of_its_own_workers(fact, source, worker, fits):
    assert may_say(RUNNING, fact, source, worker) is fits


@pytest.mark.parametrize("fact", ROUND_FACTS, ids=lambda fact: fact.kind)
@pytest.mark.parametrize(
    ("source", "fits"),
    [
        (AGGREGATION, True),
        ("cloud/operator", True),
        ("edge0", False),
        ("edge0/operator", False),
        (f"edge0/{LEVEL}/work0", False),
        ("cloud", False),
    ],
)
def test_rounds_are_reported_by_the_aggregation_worker(fact, source, fits):
    """Else an edge could end the task of all."""
    assert may_say(RUNNING, fact, source, "") is fits


def test_the_level_of_a_task_is_its_name_and_a_part_of_its_uid():
    assert level_of(RUNNING) == LEVEL
