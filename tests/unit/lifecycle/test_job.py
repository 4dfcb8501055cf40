"""A job as the coordinator sees it: what its node says becomes its status, once and bounded, and only that."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgeai.events.catalogue import (
    BlobRef,
    ExampleCounts,
    JobObserved,
    ModelDeployed,
    ModelFile,
    PhaseChanged,
    Role,
    StageChanged,
    WorkerObserved,
)
from edgeai.lifecycle.base import Emit, Forget
from edgeai.lifecycle.draft import MAX_REASON
from edgeai.lifecycle.job import (
    MAX_ARRIVING,
    MAX_DROPPED,
    MAX_HISTORY,
    MAX_METRICS,
    TRANSITIONS,
    FactSeen,
    ModelLost,
    ModelRegistered,
    NodeSeen,
    Seen,
    State,
    is_placed,
    step,
)
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import TaskPhase
from edgeai.resources.incremental import IncrementalLearningJob, JobCounts, ServingModel, Taken

NOW, LATER, UID = "2030-01-31T12:00:00Z", "2030-01-31T12:00:05Z", "0a1b2c3d" * 4
DIGEST, SNAPSHOT = "d" * 64, "5" * 64
SERVING = ServingModel(digest=DIGEST, version=3, round=2)


def resource(**changes: Any) -> IncrementalLearningJob:
    metadata: dict[str, Any] = {
        "name": "drift",
        "uid": changes.get("uid", UID),
        "generation": changes.get("generation", 1),
    }
    if changes.get("deleted"):
        metadata["deletionTimestamp"] = NOW
    stage = {"workerSpec": {"scriptDir": "/srv/job", "scriptBootFile": "main.py", "frameworkType": "numpy"}}
    spec = {
        "nodeName": "edge0",
        "initialModel": {"name": "cnn"},
        "outputModel": {"name": "cnn"},
        "dataset": {"name": "dataset0"},
        "train": stage,
        "eval": stage,
        "deploy": stage,
        "paused": changes.get("paused", False),
    }
    return IncrementalLearningJob.from_document({"kind": "IncrementalLearningJob", "metadata": metadata, "spec": spec})


def seen(*problems: str, **changes: Any) -> Seen:
    return Seen(resource(**changes), problems, NOW)


def observed(**changes: Any) -> JobObserved:
    found: dict[str, Any] = {"stage": "Train", "state": "Waiting", "round": 1, "serving": DIGEST}
    return JobObserved("drift-0a1b2c3d", UID, 1, **(found | changes))


def node(deploy: str = "Running", reason: str = "", **changes: Any) -> NodeSeen:
    """What the node says when the inference worker is in this state (empty: there is none)."""
    workers = {"deploy": WorkerObserved("x", UID, "deploy", Role.DEPLOY, 1, deploy, reason)} if deploy else {}
    workers |= {row.worker: row for row in changes.pop("also", ())}
    found: dict[str, Any] = {"observed": observed(), "serving": SERVING, "silent_since": "", "now": NOW}
    return NodeSeen(workers, **(found | changes))


def told(number: int = 1, stage: str = "Train", state: str = "Running", **changes: Any) -> FactSeen:
    now, taken = changes.pop("now", NOW), changes.pop("taken", None)
    return FactSeen(StageChanged(UID, number, stage, state, **changes), now, taken)


def deployed(number: int, **changes: Any) -> ModelDeployed:
    blob = BlobRef(f"{number:064x}", 20)
    found: dict[str, Any] = {"snapshot": SNAPSHOT, "samples": 80, "metrics": {"accuracy": 0.9}}
    return ModelDeployed(UID, number, ModelFile(f"{blob.digest}.keras", blob, "keras"), **(found | changes))


def after(*events: Any) -> tuple[IncrementalLearningJob, list[Any]]:
    state: State = None
    commands: list[Any] = []
    for event in events:
        state, found = step(state, event)
        commands += found
    assert state is not None
    # Whatever it was told, the store has to read it again.
    assert IncrementalLearningJob.from_document(state.to_document()) == state
    return state, commands


def job(*events: Any) -> IncrementalLearningJob:
    return after(*events)[0]


def condition(found: IncrementalLearningJob, kind: ConditionType) -> tuple[str, str, str]:
    it = find_condition(found.status.conditions, kind)
    return (it.status, it.reason, it.message) if it else ("", "", "")


RUNNING = (seen(), node())


# --- phases


def test_a_job_whose_references_are_missing_waits_and_says_what_to_do():
    found = job(seen("dataset x does not exist", "node edge0 has never joined"))
    assert found.status.phase is TaskPhase.PENDING
    assert condition(found, ConditionType.ACCEPTED) == (
        "False",
        "ReferencesMissing",
        "dataset x does not exist; node edge0 has never joined",
    )


def test_a_job_with_its_references_is_placed():
    found, commands = after(seen("model cnn does not exist"), seen())
    assert (found.status.phase, is_placed(found)) == (TaskPhase.PREPARING, True)
    assert [command.fact for command in commands] == [PhaseChanged(UID, "Preparing", "all references exist")]


def test_a_job_runs_when_its_inference_worker_does():
    assert job(seen(), node("Preparing")).status.phase is TaskPhase.PREPARING
    found = job(*RUNNING)
    assert found.status.phase is TaskPhase.RUNNING
    assert condition(found, ConditionType.READY)[:2] == ("True", "Serving")


def test_a_running_job_stays_with_its_node_when_a_reference_goes():
    """Its examples lie there."""
    found = job(*RUNNING, seen("dataset dataset0 does not exist"))
    assert (found.status.phase, is_placed(found)) == (TaskPhase.RUNNING, True)
    assert condition(found, ConditionType.ACCEPTED)[0] == "False"


def test_a_job_is_paused_and_resumed():
    assert job(*RUNNING, seen(paused=True)).status.phase is TaskPhase.PAUSED
    assert job(*RUNNING, seen(paused=True), seen()).status.phase is TaskPhase.RUNNING


def test_a_job_that_was_paused_before_it_served_is_paused_when_it_serves():
    assert job(seen(paused=True)).status.phase is TaskPhase.PREPARING
    assert job(seen(paused=True), node()).status.phase is TaskPhase.PAUSED


def test_a_job_without_inference_worker_has_failed_and_says_why():
    found = job(*RUNNING, node("Failed", "exited with code 1"))
    assert (found.status.phase, is_placed(found)) == (TaskPhase.FAILED, True)
    again = "`edgeai trigger drift` or a change of the job starts it again"
    message = f"the inference worker on edge0: exited with code 1; {again}"
    assert condition(found, ConditionType.FAILED) == ("True", "InferenceWorkerFailed", message)
    assert condition(found, ConditionType.READY)[0] == "False"


@pytest.mark.parametrize("name", ["train", "eval"])
def test_a_job_whose_other_worker_has_failed_goes_on(name):
    failed = WorkerObserved("x", UID, name, Role(name), 1, "Failed", "no memory")
    assert job(*RUNNING, node(also=(failed,))).status.phase is TaskPhase.RUNNING


def test_a_failed_job_runs_again_when_its_worker_does():
    found = job(*RUNNING, node("Failed"), node("Starting"), node())
    assert found.status.phase is TaskPhase.RUNNING
    assert condition(found, ConditionType.FAILED)[0] == "False"


def test_a_deleted_job_is_gone_when_its_node_has_nothing_of_it():
    gone = node("", observed=None, serving=None)
    state, commands = after(*RUNNING, seen(deleted=True))
    assert (state.status.phase, is_placed(state)) == (TaskPhase.DELETING, False)
    assert Forget() not in step(state, node())[1]
    assert Forget() not in step(state, node(""))[1]
    assert Forget() in step(state, gone)[1]
    assert Forget() not in commands


def test_every_change_of_phase_is_in_the_drawing():
    events = [
        seen("x"),
        *RUNNING,
        seen(paused=True),
        node("Failed"),
        node("Starting"),
        node(),
        seen(deleted=True),
        node(),
    ]
    state: State = None
    for event in events:
        before = state.status.phase if state else TaskPhase.PENDING
        state, commands = step(state, event)
        for command in commands:
            if isinstance(command, Emit):
                assert isinstance(command.fact, PhaseChanged)
                phase = TaskPhase(command.fact.phase)
                assert phase in TRANSITIONS[before]
                before = phase


def test_another_job_of_the_same_name_begins_anew():
    found = job(*RUNNING, told(), seen(uid="f" * 32))
    assert (found.status.phase, found.status.history) == (TaskPhase.PREPARING, ())


# --- what the node observes


def test_status_is_what_the_node_observes():
    counts = ExampleCounts(80, 20, 60, 3, 500, 40, 0.08, 5)
    found = job(
        seen(), node(observed=observed(state="Failed", reason="no", round=4, counts=counts, metrics={"a": 1.0}))
    )
    status = found.status
    assert (status.stage, status.state, status.round, status.reason) == ("Train", "Failed", 4, "no")
    assert status.counts == JobCounts(train=80, held_out=20, new=60, unlabelled=3, requests=500, hard=40, dropped=5)
    assert (status.serving, status.metrics) == (SERVING, {"a": 1.0})


def test_workers_of_stages_that_have_not_begun_wait():
    rows = {row.name: row.state for row in job(*RUNNING).status.workers}
    assert rows == {"train": "Waiting", "eval": "Waiting", "deploy": "Running"}


def test_what_a_silent_node_does_is_unknown_with_the_age_of_what_was_known():
    found = job(*RUNNING, node(silent_since=LATER, observed=None, serving=None))
    assert (found.status.state, found.status.serving) == ("Unknown", None)
    assert found.status.reason == f"edge0 is not heard of since {LATER}"
    assert {row.state for row in found.status.workers} == {"Unknown"}
    assert condition(found, ConditionType.READY)[:2] == ("Unknown", "NodeSilent")
    assert found.status.phase is TaskPhase.RUNNING


def test_a_node_that_returns_is_known_again():
    found = job(*RUNNING, node(silent_since=LATER, observed=None, serving=None), node())
    assert (found.status.state, found.status.reason, found.status.serving) == ("Waiting", "", SERVING)


def test_an_inference_worker_that_is_restarted_makes_the_job_degraded_until_it_runs():
    found = job(*RUNNING, node("Backoff", "killed"))
    assert condition(found, ConditionType.DEGRADED) == (
        "True",
        "WorkerRestarting",
        "the inference worker on edge0: killed",
    )
    assert condition(found, ConditionType.READY)[0] == "False"
    assert condition(job(*RUNNING, node("Backoff"), node()), ConditionType.DEGRADED)[0] == "False"


def test_what_a_node_says_is_bounded_and_finite():
    metrics = {"x" * 1000: 1.0, "nan": math.nan, "inf": math.inf, **{f"m{number:04}/c": 1.0 for number in range(1000)}}
    found = job(
        seen(), node(observed=observed(reason="r" * 9000, stage="s" * 9000, metrics={"accuracy": 1.0, **metrics}))
    )
    assert len(found.status.reason) == MAX_REASON
    assert len(found.status.metrics) == MAX_METRICS
    assert "accuracy" in found.status.metrics
    assert not {"nan", "inf"} & found.status.metrics.keys()


# --- stages


def test_a_stage_is_one_row_however_often_its_state_changes():
    found = job(*RUNNING, told(state="Ready"), told(state="Running", now=LATER), told(1, "Eval", "Starting"))
    assert [(row.round, row.stage, row.state) for row in found.status.history] == [
        (1, "Train", "Running"),
        (1, "Eval", "Starting"),
    ]
    assert found.status.history[0].at == LATER


def test_what_a_stage_came_to_is_kept_when_it_is_rolled_back():
    done = told(1, "Deploy", "Completed", metrics={"accuracy": 0.9}, serving={"accuracy": 0.8}, samples=80)
    [row] = job(*RUNNING, done, told(1, "Deploy", "Failed", reason="rolled back: NaN")).status.history
    assert (row.state, row.reason, row.samples) == ("Failed", "rolled back: NaN", 80)
    assert (row.metrics, row.serving) == ({"accuracy": 0.9}, {"accuracy": 0.8})


def test_a_failed_stage_makes_the_job_degraded_until_the_next_one_is_told_of():
    failed = told(2, "Train", "Failed", reason="exited with code 1")
    assert condition(job(*RUNNING, failed), ConditionType.DEGRADED) == (
        "True",
        "StageFailed",
        "Train of round 2: exited with code 1",
    )
    assert condition(job(*RUNNING, failed, told(2, "Train", "Running")), ConditionType.DEGRADED)[0] == "False"


def test_the_history_keeps_the_newest_stages():
    found = job(*RUNNING, *(told(number) for number in range(1, MAX_HISTORY + 20)))
    assert [row.round for row in found.status.history] == list(range(20, MAX_HISTORY + 20))


def test_facts_before_the_first_observation_are_kept():
    assert len(job(seen(), told()).status.history) == 1


def test_a_fact_about_another_job_is_nothing():
    state = job(*RUNNING)
    assert step(state, FactSeen(StageChanged("f" * 32, 1, "Train", "Running"), NOW)) == (state, ())


def test_a_fact_that_was_taken_already_changes_nothing():
    first, second = (
        told(state="Ready", taken=Taken(incarnation=5, sequence=1)),
        told(taken=Taken(incarnation=5, sequence=2)),
    )
    once = job(*RUNNING, first, second)
    assert job(*RUNNING, first, second, first, second) == once


def test_facts_of_a_node_that_lost_its_store_count_again():
    found = job(*RUNNING, told(taken=Taken(incarnation=5, sequence=9)), told(2, taken=Taken(incarnation=6, sequence=1)))
    assert [row.round for row in found.status.history] == [1, 2]


# --- models on their way


def arriving(*facts: ModelDeployed) -> list[Any]:
    return [FactSeen(fact, NOW, Taken(incarnation=5, sequence=place)) for place, fact in enumerate(facts, 1)]


def test_a_deployed_model_is_on_its_way_until_it_is_registered():
    found = job(*RUNNING, *arriving(deployed(1), deployed(2)))
    assert [(each.round, each.format, each.samples) for each in found.status.arriving] == [
        (1, "keras", 80),
        (2, "keras", 80),
    ]
    state, _ = step(found, ModelRegistered(UID, found.status.arriving[0], NOW))
    assert state is not None
    assert [each.round for each in state.status.arriving] == [2]


def test_a_model_that_the_edge_has_gone_back_to_follows_the_one_it_left():
    back = deployed(1, snapshot="", samples=0, metrics={})
    found = job(*RUNNING, *arriving(deployed(2), back))
    assert [bool(each.snapshot) for each in found.status.arriving] == [True, False]


def test_a_registration_for_another_job_of_the_name_changes_nothing():
    found = job(*RUNNING, *arriving(deployed(1)))
    assert step(found, ModelRegistered("f" * 32, found.status.arriving[0], NOW))[0] == found


# --- models that are lost on their way


def lost_in(found: IncrementalLearningJob, place: int = 0) -> ModelLost:
    return ModelLost(UID, found.status.arriving[place], "edge0 does not have it any more", LATER)


def test_a_model_that_is_lost_is_waited_for_no_more():
    found = job(*RUNNING, *arriving(deployed(1), deployed(2)))
    state, _ = step(found, lost_in(found))
    assert state is not None
    assert [each.round for each in state.status.arriving] == [2]


def test_a_lost_model_is_named_in_the_condition_until_the_next_one_has_arrived():
    found = job(*RUNNING, *arriving(deployed(1), deployed(2)))
    state, _ = step(found, lost_in(found))
    assert state is not None
    value, reason, message = condition(state, ConditionType.DEGRADED)
    assert (value, reason) == ("True", "ModelLost")
    assert message.startswith(
        "the model of round 1 (digest 000000000000) never becomes a version: edge0 does not have it"
    )
    assert condition(step(state, node())[0] or state, ConditionType.DEGRADED)[:2] == ("True", "ModelLost")
    state, _ = step(state, ModelRegistered(UID, state.status.arriving[0], LATER))
    assert state is not None
    assert condition(state, ConditionType.DEGRADED)[:2] == ("False", "Fine")


def test_the_stage_of_a_lost_model_says_so_for_good():
    found = job(*RUNNING, told(1, "Deploy", "Completed"), *arriving(deployed(1)))
    state, _ = step(found, lost_in(found))
    assert state is not None
    assert "never becomes a version" in state.status.history[-1].reason


def test_a_model_is_lost_once():
    found = job(*RUNNING, *arriving(deployed(1)))
    event = lost_in(found)
    state, _ = step(found, event)
    assert step(state, event)[0] == state


# --- trouble with its dataset


def troubled(trouble: str, reason: str = "DatasetUnusable", **changes: Any) -> NodeSeen:
    return node(observed=observed(trouble=trouble, trouble_reason=reason if trouble else ""), **changes)


def test_trouble_with_the_dataset_degrades_a_job_and_leaves_it_running():
    found = job(*RUNNING, troubled("dataset d on edge0: it does not exist"))
    assert condition(found, ConditionType.DEGRADED) == (
        "True",
        "DatasetUnusable",
        "dataset d on edge0: it does not exist",
    )
    assert (found.status.phase, condition(found, ConditionType.READY)[0]) == (TaskPhase.RUNNING, "True")


def test_the_trouble_is_over_when_the_node_says_so():
    found = job(*RUNNING, troubled("it does not exist"), node())
    assert condition(found, ConditionType.DEGRADED)[:2] == ("False", "Fine")


def test_a_stage_that_ends_well_does_not_end_the_trouble():
    found = job(*RUNNING, troubled("it was cut short", "DatasetShrunk"), told(1, "Train", "Completed"))
    assert condition(found, ConditionType.DEGRADED)[:2] == ("True", "DatasetShrunk")


def test_a_reason_that_is_not_known_is_not_passed_on():
    found = job(*RUNNING, troubled("it is gone", "no word"))
    assert condition(found, ConditionType.DEGRADED)[:2] == ("True", "DatasetUnusable")


def test_what_was_dropped_is_in_the_status_and_bounded():
    found = job(*RUNNING, node(observed=observed(dropped=tuple(f"{count} examples" for count in range(50)))))
    assert found.status.dropped == tuple(f"{count} examples" for count in range(MAX_DROPPED))


def test_models_on_their_way_are_bounded():
    found = job(*RUNNING, *arriving(*(deployed(number) for number in range(1, MAX_ARRIVING + 6))))
    assert [each.round for each in found.status.arriving][:1] == [6]


def test_events_before_the_job_was_read_are_nothing():
    for event in (node(), told(), FactSeen(deployed(1), NOW)):
        assert step(None, event) == (None, ())
