"""What nodes are to run of a joint inference service, and what does not disturb those that run already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from coordinator_world import UID
from inference_world import FIRST, LEVEL, MODELS, SECOND, service
from job_world import job, models, version

from edgeai.coordinator.inference import placed_services, problems_of, serving_of
from edgeai.coordinator.placement import Library, desired_documents, may_say
from edgeai.events.catalogue import (
    Assignment,
    Desired,
    RoundMissed,
    ServiceChanged,
    ServingWanted,
    StageChanged,
    WorkerEnded,
)
from edgeai.events.catalogue import Role as Roles
from edgeai.resources.base import SCRIPT_ANNOTATION
from edgeai.resources.joint import JointInferenceService, JointInferenceServiceSpec

NODES = ["edge0", "edge1", "cloud"]
PREPARING = {"phase": "Preparing", "replicas": {"wanted": 1}}


def placed(*there: JointInferenceService, found: Any = MODELS) -> dict[str, Desired]:
    return desired_documents([], {}, found, NODES, services=placed_services(there, found))


def workers(desired: Desired) -> list[str]:
    return [assignment.worker for assignment in desired.assignments]


def spec_of(assignment: Assignment) -> JointInferenceServiceSpec:
    assert assignment.inference is not None
    return JointInferenceServiceSpec.model_validate_json(assignment.inference.spec, by_alias=True, by_name=False)


def running(wanted: int = 1, **changes: Any) -> JointInferenceService:
    return service(status={"phase": "Running", "replicas": {"wanted": wanted}}, **changes)


# --- references


def test_a_service_with_everything_has_no_problem():
    assert problems_of(service(), NODES, Library({}, MODELS)) == ()


def test_workers_without_a_model_need_none():
    bare = service(edges=1, edge={"model": None}, cloud={"model": None})
    assert problems_of(bare, NODES, Library({}, {})) == ()


@pytest.mark.parametrize(
    ("nodes", "found", "sentence"),
    [
        (["edge0"], MODELS, "node edge1 of worker little1 has never joined: start `edgeai edge --node edge1` there"),
        (NODES, {"small": MODELS["small"]}, "model big does not exist: apply a Model of that name"),
        (NODES, MODELS | models(name="big"), "model big has no version to begin with"),
        (
            NODES,
            MODELS | models(name="small", url="m.npz", format="npz"),
            "model small has a url, but its first version",
        ),
    ],
    ids=["node", "model", "no version", "not stored"],
)
def test_what_is_missing_is_said_by_name(nodes, found, sentence):
    [problem] = problems_of(service(), nodes, Library({}, found))
    assert problem.startswith(sentence)


@pytest.mark.parametrize(
    ("jobs", "sentence"),
    [
        ({}, "job drift that worker little0 feeds does not exist"),
        ({"drift": job(node="edge1")}, "job drift is on edge1, worker little0 that feeds it on edge0"),
    ],
    ids=["missing", "elsewhere"],
)
def test_a_job_that_is_fed_has_to_be_on_the_same_node(jobs, sentence):
    feeding = service(edge={"feeds": {"job": "drift"}})
    [problem] = problems_of(feeding, NODES, Library({}, MODELS, jobs))
    assert problem.startswith(sentence)
    assert problems_of(feeding, NODES, Library({}, MODELS, {"drift": job()})) == ()


# --- workers


@pytest.mark.parametrize("phase", ["Preparing", "Running", "Failed"])
def test_every_edge_has_its_worker_and_the_cloud_the_wanted_replicas(phase):
    found = placed(service(status={"phase": phase, "replicas": {"wanted": 2}}))
    assert {node: workers(found[node]) for node in NODES} == {
        "edge0": ["little0"],
        "edge1": ["little1"],
        "cloud": ["big-0", "big-1"],
    }
    [edge] = found["edge0"].assignments
    assert (edge.task, edge.task_name, edge.task_uid, edge.role) == (LEVEL, "digits", UID, Roles.EDGE)
    assert {assignment.role for assignment in found["cloud"].assignments} == {Roles.CLOUD}


@pytest.mark.parametrize("phase", ["Pending", "Deleting"])
def test_a_service_that_waits_or_is_deleted_is_nowhere(phase):
    assert all(document == Desired() for document in placed(service(status={"phase": phase})).values())


def test_replicas_share_one_bundle_and_edges_have_their_own():
    notes = {f"{SCRIPT_ANNOTATION}{name}": f"{digest * 64}:7" for name, digest in (("little0", "a"), ("big", "b"))}
    found = placed(running(2, annotations=notes))
    scripts = [assignment.script for assignment in found["cloud"].assignments]
    assert [script.digest for script in scripts if script] == ["b" * 64, "b" * 64]
    [edge] = found["edge0"].assignments
    assert edge.script is not None
    assert (edge.script.digest, edge.script_dir) == ("a" * 64, "")
    assert found["edge1"].assignments[0].script_dir == "/srv/joint"


def test_parameters_and_needs_of_a_replica_are_those_of_the_cloud_worker():
    spec = {
        "scriptDir": "/srv/joint",
        "scriptBootFile": "main.py",
        "frameworkType": "numpy",
        "parameters": [{"key": "depth", "value": 3}],
        "resources": {"cpu": 2},
    }
    [replica] = placed(running(cloud={"workerSpec": spec}))["cloud"].assignments
    assert (replica.parameters["depth"], replica.needs.cpus, replica.boot_file) == (3, 2.0, "main.py")


def test_an_edge_worker_knows_the_policy_and_itself_but_no_other_edge():
    spec = spec_of(placed(running(policy={"deadlineSeconds": 0.25}))["edge1"].assignments[0])
    assert [worker.name for worker in spec.edge_workers] == ["little1"]
    assert (spec.policy.deadline_seconds, spec.cloud_worker.name) == (0.25, "big")
    assert spec.cloud_worker.model is not None
    assert spec.cloud_worker.model.name == "big"


def test_a_replica_knows_how_to_batch():
    spec = spec_of(placed(running(cloud={"batch": {"maxSize": 7}}))["cloud"].assignments[0])
    assert spec.cloud_worker.batch.max_size == 7


def test_a_worker_without_a_model_is_told_so():
    found = placed(running(cloud={"model": None}))
    [replica], [edge] = found["cloud"].assignments, found["edge0"].assignments
    assert replica.inference is not None
    assert edge.inference is not None
    assert (replica.inference.has_model, edge.inference.has_model) == (False, True)


_OTHER = {"scriptDir": "/srv/other", "scriptBootFile": "main.py", "frameworkType": "numpy"}


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({"edges": 1}, ["edge0", "cloud"]),
        ({"wanted": 2}, ["edge0", "edge1"]),
        ({"replicas": {"min": 1, "max": 9}}, ["edge0", "edge1", "cloud"]),
        ({"cloud": {"batch": {"maxSize": 7}}}, ["edge0", "edge1"]),
        ({"cloud": {"workerSpec": _OTHER}}, ["edge0", "edge1"]),
        ({"edge": {"workerSpec": _OTHER}}, ["edge1", "cloud"]),
        ({"policy": {"maxOffloadFraction": 0.1}}, ["cloud"]),
        ({"generation": 2}, ["edge0", "edge1", "cloud"]),
    ],
    ids=["edge", "load", "most replicas", "batch", "cloud script", "edge script", "policy", "generation"],
)
def test_a_change_restarts_only_those_that_it_concerns(changes, stays):
    def same(document: Desired) -> list[Assignment]:
        return [replace(assignment, generation=0) for assignment in document.assignments]

    before, after = placed(running()), placed(running(**changes))
    assert [node for node in NODES if same(before[node]) == same(after[node])] == stays


def test_more_replicas_leave_the_others_as_they_are():
    before, after = placed(running(1))["cloud"].assignments, placed(running(3))["cloud"].assignments
    assert after[:1] == before


# --- models


def test_every_worker_is_to_serve_the_newest_version_of_its_model():
    found = placed(running(2))
    assert [(each.worker, each.name, each.model.version) for each in found["cloud"].serving] == [
        ("big-0", "big", 2),
        ("big-1", "big", 2),
    ]
    [edge] = found["edge0"].serving
    assert (edge.task, edge.task_uid, edge.name, edge.model.blob.digest) == (LEVEL, UID, "small", FIRST)


def test_a_new_version_changes_what_is_served_and_no_worker():
    newer = MODELS | models(version(1), version(2), name="small")
    before, after = placed(running()), placed(running(), found=newer)
    assert after["edge0"].assignments == before["edge0"].assignments
    assert [each.model.blob.digest for each in after["edge0"].serving] == [SECOND]


def test_where_a_model_has_gone_nothing_else_is_served():
    found = placed(running(), found={"small": MODELS["small"]})
    assert (found["cloud"].serving, workers(found["cloud"])) == ((), ["big-0"])


def test_who_needs_no_model_serves_none():
    served: tuple[ServingWanted, ...] = placed(running(cloud={"model": None}))["cloud"].serving
    assert served == ()


@pytest.mark.parametrize(
    ("worker", "digest", "number"),
    [("little0", FIRST, 1), ("big-3", SECOND, 2), ("little0", SECOND, 0)],
    ids=["edge", "replica", "not its own"],
)
def test_the_number_of_what_serves_is_that_of_the_registry(worker, digest, number):
    found = serving_of(service(), worker, digest, MODELS)
    assert found is not None
    assert (found.digest, found.version) == (digest, number)


# --- who may say what


@pytest.mark.parametrize(
    ("worker", "source", "may"),
    [
        ("little0", "edge0", True),
        ("little0", "edge1", False),
        ("big-0", "cloud", True),
        ("big-9", "cloud", True),
        ("big-0", "edge0", False),
        ("other", "cloud", False),
        ("little0", "edge0/operator", True),
    ],
)
def test_the_node_of_a_worker_reports_its_end(worker, source, may):
    assert may_say(service(), WorkerEnded(UID, Roles.EDGE, False, "x"), source, worker) is may
    assert may_say(service(), ServiceChanged(UID, "model"), source, worker) is may


@pytest.mark.parametrize("fact", [RoundMissed(UID, 1, 1, "x"), StageChanged(UID, 1, "Train", "Running")])
def test_a_service_has_no_rounds_and_no_stages(fact):
    assert not may_say(service(), fact, "edge0", "little0")
