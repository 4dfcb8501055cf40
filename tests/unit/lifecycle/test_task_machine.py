"""A federated task as the coordinator sees it: phases and conditions that tell the truth, whatever is repeated or late."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeai.events.catalogue import (
    Fact,
    Role,
    RoundClosed,
    RoundMissed,
    RoundRecord,
    RoundStarted,
    RoundValidated,
    TrainingCompleted,
    UpdateRefused,
    WorkerEnded,
    WorkerJoined,
    WorkerObserved,
)
from edgeai.lifecycle.base import CancelTimer, Command, Emit, Forget, SetTimer, TimerFired
from edgeai.lifecycle.task import (
    DRAIN_S,
    MAX_HISTORY_CHARACTERS,
    MAX_REASON,
    TRANSITIONS,
    Clocked,
    FactSeen,
    ModelRegistered,
    References,
    Seen,
    WorkersSeen,
    is_over,
    is_placed,
    resume,
    step,
)
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import FederatedTask, FinishedModel, TaskPhase

NOW, LATER = "2030-01-31T12:00:00Z", "2030-01-31T12:00:05Z"
UID, OTHER_UID = "0a1b2c3d" * 4, "f" * 32
BASE = FinishedModel(name="cnn", version=4, digest="b" * 64)
MODEL = FinishedModel(name="cnn", version=5, digest="d" * 64)
DIGEST = "d" * 64


def task(uid: str = UID, generation: int = 1, deleted: bool = False, **keys: Any) -> FederatedTask:
    """Three workers, quorum 2, three rounds; `keys` are parameters (`task_deadline_seconds=60`), `paused` is the spec's."""
    paused = keys.pop("paused", False)
    values = {"rounds": 3, "min node number": 2} | {key.replace("_", " "): value for key, value in keys.items()}
    training = [
        {
            "name": f"work{number}",
            "nodeName": f"edge{number}",
            "workerSpec": {
                "dataset": {"name": f"dataset{number}"},
                "trainScriptDir": "./train",
                "trainScriptBootFile": "main.py",
                "frameworkType": "numpy",
            },
        }
        for number in range(3)
    ]
    metadata = {"name": "digits", "uid": uid, "generation": generation}
    aggregation = {
        "aggregationAlgorithm": "FedAvg",
        "parameters": [{"key": key, "value": value} for key, value in values.items()],
    }
    return FederatedTask.from_document(
        {
            "kind": "FederatedTask",
            "metadata": metadata | ({"deletionTimestamp": NOW} if deleted else {}),
            "spec": {
                "aggregationWorker": {"name": "aggregation", "model": {"name": "cnn"}, "workerSpec": aggregation},
                "trainingWorkers": training,
                "paused": paused,
            },
        }
    )


TASK = task()


def seen(given_task: FederatedTask = TASK, *problems: str) -> Seen:
    return Seen(given_task, References(problems, None if problems else BASE), NOW)


def fact(found: Fact, now: str = NOW) -> FactSeen:
    return FactSeen(found, now)


def row(name: str, state: str = "Running", reason: str = "", **changes: Any) -> WorkerObserved:
    role = Role.AGGREGATION if name == "aggregation" else Role.TRAINING
    return WorkerObserved("digits-0a1b2c3d", UID, name, role, 1, state, reason, **changes)


def observed(*rows: WorkerObserved, silent: tuple[str, ...] = ()) -> WorkersSeen:
    return WorkersSeen({item.worker: item for item in rows}, frozenset(silent), NOW)


ALL = [row(name) for name in ("aggregation", "work0", "work1", "work2")]


def record(number: int, refused: dict[str, str] | None = None, **changes: Any) -> RoundRecord:
    accepted = dict.fromkeys(("work0", "work1"), 10)
    values = {"metrics": {"loss": 1.0}, "bytes_up": 1, "bytes_down": 2, "seconds": 1.5} | changes
    return RoundRecord(number, 1, accepted, refused or {}, "b" * 64, DIGEST, 10, **values)


def joined(*names: str) -> list[FactSeen]:
    return [fact(WorkerJoined(UID, name)) for name in names]


COMPLETED = TrainingCompleted(UID, DIGEST, 10, 3, {"accuracy": 0.97})
REGISTERED = ModelRegistered(MODEL, COMPLETED, NOW)
PREPARING = [seen()]
STARTED = [*PREPARING, *joined("work0", "work1")]
SUCCEEDED = [*STARTED, REGISTERED]
FAILED = [*STARTED, observed(row("aggregation", "Failed", "killed"))]
DELETING = [*STARTED, seen(task(deleted=True))]


def after(*events: Any) -> tuple[FederatedTask, tuple[Command, ...]]:
    """The task after `events`, and the commands of the last one."""
    state, commands = None, ()
    for event in events:
        state, commands = step(state, event)
    return state, commands


def phase(*events: Any) -> TaskPhase:
    return after(*events)[0].status.phase


def condition(state: FederatedTask, kind: ConditionType) -> tuple[str, str, str] | None:
    found = find_condition(state.status.conditions, kind)
    return None if found is None else (found.status, found.reason, found.message)


def facts(commands: tuple[Command, ...]) -> list[Any]:
    return [command.fact for command in commands if isinstance(command, Emit)]


# --- from Pending to Preparing


def test_a_task_whose_references_are_missing_waits_and_says_what_to_do():
    state, commands = after(seen(TASK, "dataset d0 does not exist", "node edge9 has never joined"))
    assert state.status.phase is TaskPhase.PENDING
    message = "dataset d0 does not exist; node edge9 has never joined"
    assert condition(state, ConditionType.ACCEPTED) == ("False", "ReferencesMissing", message)
    assert commands == ()


def test_a_task_is_prepared_when_what_was_missing_is_there():
    state, commands = after(seen(TASK, "model cnn does not exist"), seen())
    assert state.status.phase is TaskPhase.PREPARING
    assert condition(state, ConditionType.ACCEPTED)[:2] == ("True", "ReferencesFound")
    assert [found.phase for found in facts(commands)] == ["Preparing"]


def test_the_version_that_training_starts_from_is_noted_once():
    newer = Seen(TASK, References((), MODEL), NOW)
    assert after(*PREPARING, newer)[0].status.base == BASE


def test_what_vanishes_later_is_not_asked_about_again():
    assert phase(*PREPARING, seen(TASK, "dataset d0 does not exist")) is TaskPhase.PREPARING


def test_the_generation_that_was_seen_is_noted():
    assert after(*PREPARING, seen(task(generation=7)))[0].status.observed_generation == 7


def test_the_status_belongs_to_the_coordinator_and_the_spec_to_the_user():
    state, _ = after(*STARTED, seen(task(generation=2, rounds=9)))
    assert (state.status.phase, state.spec.rules().rounds) == (TaskPhase.RUNNING, 9)


# --- Running


def test_a_task_runs_when_enough_workers_have_joined():
    assert phase(*PREPARING, *joined("work0")) is TaskPhase.PREPARING
    state, commands = after(*STARTED)
    assert (state.status.phase, state.status.joined) == (TaskPhase.RUNNING, ("work0", "work1"))
    assert condition(state, ConditionType.READY)[:2] == ("True", "WorkersJoined")
    assert facts(commands)[0].reason == "2 training workers have joined"


def test_a_worker_that_joins_twice_is_one_worker():
    assert phase(*PREPARING, *joined("work0", "work0")) is TaskPhase.PREPARING


def test_the_current_round_is_the_last_one_that_started():
    started = [fact(RoundStarted(UID, number, 1, ("work0",))) for number in (1, 2, 1)]
    assert after(*STARTED, *started)[0].status.round == 2


def test_the_validation_after_the_last_round_is_not_a_round_of_its_own():
    assert after(*STARTED, fact(RoundStarted(UID, 4, 1, ("work0",))))[0].status.round == 3


def test_a_closed_round_is_a_row():
    state, _ = after(*STARTED, fact(RoundClosed(UID, record(1, {"work2": "not finite"}))))
    [found] = state.status.rounds
    assert (found.round, found.updates, found.accepted, found.refused) == (
        1,
        2,
        ("work0", "work1"),
        {"work2": "not finite"},
    )
    assert (found.metrics, found.bytes_up, found.bytes_down, found.model_digest) == ({"loss": 1.0}, 1, 2, DIGEST)


def test_what_a_worker_was_prepared_with_counts_with_each_of_its_rounds():
    prepared = observed(row("work1", dataset="d" * 64, samples=40), row("work2"))
    state, _ = after(*STARTED, prepared, *(fact(RoundClosed(UID, record(number))) for number in (1, 2)))
    found = {each.worker: (each.dataset, each.digest, each.samples, each.rounds) for each in state.status.sources}
    assert found["work1"] == ("dataset1", "d" * 64, 40, 2)


def test_a_worker_that_is_not_heard_of_any_more_keeps_what_it_was_prepared_with():
    prepared = observed(row("work1", dataset="d" * 64, samples=40))
    state, _ = after(*STARTED, prepared, observed(silent=("edge1",)), fact(RoundClosed(UID, record(1))))
    assert [(each.digest, each.rounds) for each in state.status.sources if each.worker == "work1"] == [("d" * 64, 1)]


def test_an_update_that_was_refused_counts_for_nothing():
    state, _ = after(*STARTED, fact(RoundClosed(UID, record(1, {"work2": "not finite"}))))
    assert "work2" not in {each.worker for each in state.status.sources}


def test_initial_weights_are_not_a_row():
    assert after(*STARTED, fact(RoundClosed(UID, record(0))))[0].status.rounds == ()


def test_validated_metrics_stand_over_submitted_ones():
    events = [fact(RoundClosed(UID, record(1))), fact(RoundValidated(UID, 1, {"accuracy": 0.9}, 30))]
    state, _ = after(*STARTED, *events)
    assert (state.status.metrics, state.status.rounds[0].metrics) == ({"accuracy": 0.9}, {"accuracy": 0.9})


def test_a_refused_update_is_told_until_a_round_without_one():
    state, _ = after(*STARTED, fact(RoundClosed(UID, record(1, {"work2": "not finite"}))))
    assert condition(state, ConditionType.DEGRADED) == ("True", "UpdatesRefused", "round 1: work2: not finite")
    state, _ = step(state, fact(RoundClosed(UID, record(2))))
    assert condition(state, ConditionType.DEGRADED)[:2] == ("False", "RoundClosed")


def test_a_missed_round_is_told_until_it_is_closed():
    state, _ = after(*STARTED, fact(RoundMissed(UID, 1, 1, "1 of at least 2 updates arrived in round 1")))
    degraded = ("True", "RoundMissed", "1 of at least 2 updates arrived in round 1")
    assert (condition(state, ConditionType.DEGRADED), state.status.phase) == (degraded, TaskPhase.RUNNING)
    state, _ = step(state, fact(RoundClosed(UID, record(1))))
    assert condition(state, ConditionType.DEGRADED)[0] == "False"


def test_the_history_of_a_long_task_fits_its_store():
    """The oldest rounds are dropped from the status; their facts stay in the history."""
    state, _ = after(*STARTED)
    names = {f"worker-{number:044d}": 10 for number in range(200)}
    for number in range(1, 101):
        wide = RoundRecord(number, 1, names, {}, "b" * 64, DIGEST, 10, {"loss": 1.0}, 0, 0, 1.0)
        state, _ = step(state, fact(RoundClosed(UID, wide)))
    kept = [found.round for found in state.status.rounds]
    assert kept == list(range(kept[0], 101))
    assert len(str(state.to_document()["status"])) < 2 * MAX_HISTORY_CHARACTERS


def test_the_last_round_is_kept_however_wide_it_is():
    wide = record(1, {f"w{number}": "x" * 5000 for number in range(1000)})
    assert [found.round for found in after(*STARTED, fact(RoundClosed(UID, wide)))[0].status.rounds] == [1]


def test_what_a_node_says_is_shortened():
    state, _ = after(*STARTED, observed(*ALL[:3], row("work2", "S" * 9000, "r" * 9000)))
    found = state.status.workers[-1]
    assert (len(found.reason), len(found.state)) == (MAX_REASON, MAX_REASON)


# --- workers


def test_the_rows_of_workers_are_what_their_nodes_observe():
    state, _ = after(*PREPARING, observed(row("work0", "Backoff", "exited with code 1", restarts=2)))
    rows = {item.name: (item.node, item.role, item.state, item.restarts) for item in state.status.workers}
    assert rows == {
        "aggregation": ("cloud", "aggregation", "Pending", 0),
        "work0": ("edge0", "training", "Backoff", 2),
        "work1": ("edge1", "training", "Pending", 0),
        "work2": ("edge2", "training", "Pending", 0),
    }


def test_a_worker_on_a_silent_node_is_unknown_whatever_was_last_seen():
    state, _ = after(*STARTED, observed(*ALL), observed(*ALL, silent=("edge1",)))
    found = state.status.workers[2]
    assert (found.state, found.reason) == ("Unknown", "edge1 is not heard of")


def test_a_worker_that_is_restarted_degrades_the_task_until_it_is_forgiven():
    state, _ = after(*STARTED, observed(*ALL[:3], row("work2", "Backoff", "exited with code 1")))
    assert condition(state, ConditionType.DEGRADED) == (
        "True",
        "WorkersRestarting",
        "work2 on edge2: exited with code 1",
    )
    assert condition(step(state, observed(*ALL))[0], ConditionType.DEGRADED)[:2] == ("False", "WorkersFine")


@pytest.mark.parametrize("state", ["Starting", "Running"])
def test_a_worker_between_two_ends_is_not_called_fine(state):
    again = row("work2", state, "restarted after: exited with code 1", restarts=1)
    found, _ = after(
        *STARTED,
        observed(*ALL[:3], row("work2", "Backoff", "exited with code 1")),
        observed(*ALL[:3], again),
    )
    assert condition(found, ConditionType.DEGRADED) == (
        "True",
        "WorkersRestarting",
        "work2 on edge2: exited with code 1",
    )


def test_a_restarted_worker_whose_work_is_done_is_fine():
    found, _ = after(
        *STARTED,
        observed(*ALL[:3], row("work2", "Backoff", "exited with code 1")),
        observed(*ALL[:3], row("work2", "Done", restarts=1)),
    )
    assert condition(found, ConditionType.DEGRADED)[:2] == ("False", "WorkersFine")


def test_a_task_that_fails_with_its_workers_does_not_call_them_fine():
    broken = [row("work1", "Backoff", "killed", restarts=1), row("work2", "Backoff", "killed", restarts=1)]
    failed = [row("work1", "Failed", "killed"), row("work2", "Failed", "killed")]
    found, _ = after(*STARTED, observed(*ALL[:2], *broken), observed(*ALL), observed(*ALL[:2], *failed))
    assert condition(found, ConditionType.DEGRADED) == (
        "True",
        "WorkersFailed",
        "work1 on edge1, work2 on edge2: killed",
    )


def test_nothing_is_called_fine_while_a_node_is_not_heard_of():
    state, _ = after(*STARTED, observed(*ALL[:3], row("work2", "Failed", "killed")), observed(*ALL, silent=("edge2",)))
    assert condition(state, ConditionType.DEGRADED)[:2] == ("True", "WorkersFailed")


def test_a_task_goes_on_without_a_failed_worker_as_long_as_enough_are_left():
    state, _ = after(*STARTED, observed(*ALL[:3], row("work2", "Failed", "no TensorFlow")))
    assert state.status.phase is TaskPhase.RUNNING
    assert condition(state, ConditionType.DEGRADED) == ("True", "WorkersFailed", "work2 on edge2: no TensorFlow")


def test_a_task_fails_when_too_few_workers_are_left_and_says_who_and_why():
    state, commands = after(
        *STARTED, observed(*ALL[:2], row("work1", "Failed", "no TensorFlow"), row("work2", "Failed", "killed"))
    )
    sentence = "work1 on edge1: no TensorFlow; work2 on edge2: killed; 1 of at least 2 training workers are left"
    assert (state.status.phase, condition(state, ConditionType.FAILED)) == (
        TaskPhase.FAILED,
        ("True", "WorkersFailed", sentence),
    )
    assert facts(commands)[0].reason == sentence


def test_workers_that_fail_just_after_the_task_belong_to_its_reason_as_well():
    first = observed(*ALL[:2], *(row(name, "Failed", "killed") for name in ("work1", "work2")))
    last = observed(ALL[0], *(row(name, "Failed", "killed") for name in ("work0", "work1", "work2")))
    state, commands = after(*STARTED, first, last)
    workers = "work0 on edge0, work1 on edge1, work2 on edge2: killed"
    assert condition(state, ConditionType.FAILED)[2] == f"{workers}; 0 of at least 2 training workers are left"
    assert condition(state, ConditionType.DEGRADED)[2] == workers
    assert facts(commands) == []


def test_the_reason_of_a_failed_task_loses_no_worker_when_a_node_falls_silent():
    failed = [row(name, "Failed", "killed") for name in ("work0", "work1", "work2")]
    state, _ = after(*STARTED, observed(*ALL[:2], *failed[1:]))
    now, _ = step(state, observed(ALL[0], *failed, silent=("edge1",)))
    assert condition(now, ConditionType.FAILED) == condition(state, ConditionType.FAILED)


def test_a_deadline_stays_the_reason_whatever_workers_do_afterwards():
    late = task(task_deadline_seconds=60)
    ended = [seen(late), *joined("work0", "work1"), Clocked("deadline", NOW)]
    state, _ = after(*ended, observed(ALL[0], *(row(f"work{number}", "Failed", "killed") for number in range(3))))
    assert condition(state, ConditionType.FAILED)[1:] == ("DeadlineExceeded", "the task's own deadline passed")


def test_a_task_fails_with_its_aggregation_worker():
    state, _ = after(*FAILED)
    assert condition(state, ConditionType.FAILED) == (
        "True",
        "AggregationWorkerFailed",
        "aggregation on cloud: killed",
    )


@pytest.mark.parametrize("before", [PREPARING, STARTED], ids=["preparing", "running"])
def test_a_worker_that_cannot_be_prepared_fails_a_task_that_needs_it(before):
    rows = [row(name, "Failed", "framework tensorflow is not installed on edge0") for name in ("work0", "work1")]
    assert phase(*before, observed(*rows)) is TaskPhase.FAILED


# --- Paused


def test_a_running_task_is_paused_and_resumed():
    paused, commands = after(*STARTED, seen(task(generation=2, paused=True)))
    assert paused.status.phase is TaskPhase.PAUSED
    assert facts(commands)[0].phase == "Paused"
    assert step(paused, seen(task(generation=3)))[0].status.phase is TaskPhase.RUNNING


def test_a_task_that_is_not_running_yet_is_paused_when_it_runs():
    paused = task(generation=2, paused=True)
    assert phase(*PREPARING, seen(paused)) is TaskPhase.PREPARING
    assert phase(*PREPARING, seen(paused), *joined("work0", "work1"), seen(paused)) is TaskPhase.PAUSED


def test_the_round_that_closes_during_a_pause_is_noted():
    state, _ = after(*STARTED, seen(task(generation=2, paused=True)), fact(RoundClosed(UID, record(1))))
    assert (state.status.phase, len(state.status.rounds)) == (TaskPhase.PAUSED, 1)


# --- Succeeded


def test_a_task_has_succeeded_when_its_model_is_registered():
    state, commands = after(*SUCCEEDED)
    assert (state.status.phase, state.status.model) == (TaskPhase.SUCCEEDED, MODEL)
    assert condition(state, ConditionType.SUCCEEDED) == ("True", "TrainingCompleted", "cnn version 5 after 3 rounds")
    assert SetTimer("drain", DRAIN_S) in commands


def test_the_last_known_metrics_stay_when_nothing_was_validated():
    unvalidated = ModelRegistered(MODEL, TrainingCompleted(UID, DIGEST, 10, 3, {}), NOW)
    state, _ = after(*STARTED, fact(RoundValidated(UID, 1, {"accuracy": 0.9}, 30)), unvalidated)
    assert state.status.metrics == {"accuracy": 0.9}


def test_workers_may_end_by_themselves_before_they_are_stopped():
    state, _ = after(*SUCCEEDED, observed(*ALL))
    assert not is_over(state)
    assert condition(state, ConditionType.PROGRESSING)[:2] == ("True", "Stopping")


def test_a_succeeded_task_is_over_when_its_training_workers_have_ended():
    state, commands = after(*SUCCEEDED, observed(ALL[0], *(row(f"work{number}", "Done") for number in range(3))))
    assert is_over(state)
    assert CancelTimer("drain") in commands


def test_a_succeeded_task_is_over_when_its_workers_took_too_long():
    assert is_over(after(*SUCCEEDED, observed(*ALL), Clocked("drain", LATER))[0])


def test_a_silent_node_does_not_keep_a_succeeded_task_from_being_over():
    done = [row(f"work{number}", "Done") for number in range(2)]
    assert is_over(after(*SUCCEEDED, observed(ALL[0], *done, silent=("edge2",)))[0])


# --- Failed


def test_a_task_fails_at_its_own_deadline():
    limited = task(task_deadline_seconds=60)
    _, commands = after(seen(limited))
    assert SetTimer("deadline", 60.0) in commands
    state, _ = after(seen(limited), Clocked("deadline", LATER))
    assert condition(state, ConditionType.FAILED) == ("True", "DeadlineExceeded", "the task's own deadline passed")


@pytest.mark.parametrize("events", [SUCCEEDED, FAILED, DELETING], ids=["succeeded", "failed", "deleting"])
def test_a_deadline_is_nothing_when_it_is_over_anyway(events):
    state, _ = after(*events)
    assert step(state, Clocked("deadline", LATER)) == (state, ())


@pytest.mark.parametrize("events", [SUCCEEDED, FAILED], ids=["succeeded", "failed"])
def test_what_is_over_stays_as_it_ended(events):
    state, _ = after(*events)
    for event in (REGISTERED, seen(task(generation=2)), *joined("work2"), fact(RoundClosed(UID, record(3)))):
        assert step(state, event)[0].status == state.status


def test_a_failed_task_is_over_and_still_placed():
    state, _ = after(*FAILED)
    assert (is_over(state), is_placed(state)) == (True, True)


# --- Deleting


@pytest.mark.parametrize(
    "events",
    [[seen(TASK, "missing")], PREPARING, STARTED, SUCCEEDED, FAILED],
    ids=["pending", "preparing", "running", "succeeded", "failed"],
)
def test_a_task_is_deleted_from_every_phase(events):
    state, commands = after(*events, seen(task(deleted=True)))
    assert state.status.phase is TaskPhase.DELETING
    assert not is_placed(state)
    assert facts(commands)[-1].phase == "Deleting"


def test_a_deleted_task_stays_until_its_workers_are_gone():
    assert after(*DELETING, observed(row("work0", "Stopping")))[1] == ()
    assert after(*DELETING, observed())[1] == (Forget(),)


def test_a_silent_node_does_not_keep_a_deleted_task():
    """It removes its workers when it is back, because nobody wants them any more."""
    assert after(*DELETING, observed(silent=("edge0", "edge1", "edge2")))[1] == (Forget(),)


def test_a_task_applied_anew_under_the_same_name_begins_from_the_start():
    state, commands = after(*FAILED, seen(task(uid=OTHER_UID)))
    assert (state.metadata.uid, state.status.phase, state.status.joined) == (OTHER_UID, TaskPhase.PREPARING, ())
    assert commands[:2] == (CancelTimer("deadline"), CancelTimer("drain"))


# --- what is not for this task


@pytest.mark.parametrize(
    "event",
    [
        fact(WorkerJoined(OTHER_UID, "work2")),
        fact(RoundClosed(OTHER_UID, record(9))),
        ModelRegistered(MODEL, TrainingCompleted(OTHER_UID, DIGEST, 10, 3, {}), NOW),
        fact(UpdateRefused(UID, 1, "work0", "not finite")),
        fact(WorkerEnded(UID, Role.TRAINING, True, "finished")),
        TimerFired("deadline"),
        Clocked("drain", NOW),
        Clocked("nothing", NOW),
    ],
    ids=["joined", "closed", "registered", "refused", "ended", "bare timer", "drain", "unknown timer"],
)
def test_what_is_not_for_this_task_or_not_now_is_nothing(event):
    state, _ = after(*STARTED)
    assert step(state, event) == (state, ())


@pytest.mark.parametrize("event", [observed(*ALL), *joined("work0"), REGISTERED, Clocked("deadline", NOW)])
def test_a_task_that_is_not_known_does_not_come_to_be_by_what_is_said_of_it(event):
    assert step(None, event) == (None, ())


# --- after a restart of the coordinator


@pytest.mark.parametrize(
    ("events", "commands"),
    [
        ([], ()),
        ([seen(task(task_deadline_seconds=60), "missing")], ()),
        ([seen(task(task_deadline_seconds=60))], (SetTimer("deadline", 60.0),)),
        (STARTED, ()),
        (SUCCEEDED, (SetTimer("drain", DRAIN_S),)),
        ([*SUCCEEDED, Clocked("drain", NOW)], ()),
        (FAILED, ()),
        (DELETING, ()),
    ],
    ids=["none", "pending", "preparing", "no deadline", "succeeded", "over", "failed", "deleting"],
)
def test_a_timer_that_was_not_stored_any_more_is_set_again(events, commands):
    assert resume(after(*events)[0]) == commands


# --- laws

NAMES = st.sampled_from(["work0", "work1", "work2"])
FACTS = st.one_of(
    st.builds(WorkerJoined, st.sampled_from([UID, UID, OTHER_UID]), NAMES),
    st.builds(
        lambda number, attempt: RoundStarted(UID, number, attempt, ("work0",)), st.integers(0, 4), st.integers(1, 2)
    ),
    st.builds(
        lambda number, refused: RoundClosed(UID, record(number, refused)),
        st.integers(0, 3),
        st.sampled_from([{}, {"work2": "bad"}]),
    ),
    st.builds(
        lambda number, value: RoundValidated(UID, number, {"accuracy": value}, 10),
        st.integers(1, 3),
        st.sampled_from([0.5, 0.9]),
    ),
    st.builds(
        lambda number, attempt: RoundMissed(UID, number, attempt, f"missed {number}.{attempt}"),
        st.integers(0, 3),
        st.integers(1, 2),
    ),
)
STATES = st.sampled_from(["Preparing", "Running", "Backoff", "Failed", "Done", "Stopping"])
EVENTS = st.one_of(
    st.builds(fact, FACTS, st.sampled_from([NOW, LATER])),
    st.builds(
        lambda rows, silent: observed(*(row(name, state, "why") for name, state in rows.items()), silent=tuple(silent)),
        st.dictionaries(st.sampled_from(["aggregation", "work0", "work1", "work2"]), STATES),
        st.sets(st.sampled_from(["edge0", "cloud"])),
    ),
    st.builds(
        lambda generation, paused, deleted, problems: seen(
            task(generation=generation, paused=paused, deleted=deleted), *problems
        ),
        st.integers(1, 3),
        st.booleans(),
        st.sampled_from([False] * 9 + [True]),
        st.sampled_from([(), ("missing",)]),
    ),
    st.sampled_from([REGISTERED, Clocked("deadline", NOW), Clocked("drain", NOW)]),
)
HISTORIES = st.lists(EVENTS, max_size=25)


@settings(deadline=None)
@given(HISTORIES)
def test_an_event_delivered_twice_changes_nothing(history):
    state = None
    for event in history:
        state, commands = step(state, event)
        again, commands = step(state, event)
        assert again == state, event
        assert not facts(commands), event


@settings(deadline=None)
@given(HISTORIES)
def test_the_drawing_of_the_phases_is_true(history):
    state = None
    for event in history:
        before = state.status.phase if state else TaskPhase.PENDING
        state, _ = step(state, event)
        if state is not None:
            assert state.status.phase is before or state.status.phase in TRANSITIONS[before], event


@settings(deadline=None)
@given(HISTORIES)
def test_every_change_of_the_phase_is_told_once(history):
    state = None
    for event in history:
        before = state.status.phase if state else TaskPhase.PENDING
        state, commands = step(state, event)
        told = [found.phase for found in facts(commands)]
        assert told == ([state.status.phase.value] if state and state.status.phase is not before else [])


def true_history() -> list[FactSeen]:
    """What the aggregation worker of one task says, in its order."""
    found: list[Fact] = [WorkerJoined(UID, "work0"), WorkerJoined(UID, "work1")]
    for number in (1, 2, 3):
        found += [RoundStarted(UID, number, 1, ("work0", "work1"))]
        found += [RoundMissed(UID, number, 1, f"missed {number}"), RoundStarted(UID, number, 2, ("work0", "work1"))]
        found += [RoundValidated(UID, number - 1, {"accuracy": 0.1 * number}, 10)] if number > 1 else []
        found += [RoundClosed(UID, record(number, {"work2": "bad"} if number == 2 else {}))]
    return [fact(item) for item in found]


@pytest.mark.parametrize("end", range(1, len(true_history()) + 1))
@pytest.mark.parametrize("start", [0, 3, 8, 12])
def test_facts_that_are_applied_again_after_a_crash_change_nothing(start, end):
    """A coordinator that ends between effect and cursor sees the facts since the cursor again, in their order."""
    told = true_history()[:end]
    once, _ = after(*PREPARING, *told)
    twice, _ = after(*PREPARING, *told, *told[start:])
    assert twice.status == once.status


@settings(deadline=None)
@given(HISTORIES)
def test_a_status_survives_its_store(history):
    state = None
    for event in history:
        state, _ = step(state, event)
    if state is not None:
        assert FederatedTask.from_document(state.to_document()) == state
