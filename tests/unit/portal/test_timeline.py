"""The timeline of a task follows from its facts alone, and stays bounded."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from memory_portal import closed, started

from edgeai.events.catalogue import (
    Outcome,
    PhaseChanged,
    Progress,
    Role,
    RoundMissed,
    RoundValidated,
    ServiceChanged,
    TrainingCompleted,
    UpdateRefused,
    Verdict,
    WorkerEnded,
    WorkerJoined,
    WorkerStarted,
)
from edgeai.portal.timeline import CHANGES_LIMIT, DETAIL_LIMIT, ROUNDS_LIMIT, Timeline

TASK: Any = SimpleNamespace(metadata=SimpleNamespace(uid="ab" * 16))
UID = TASK.metadata.uid


def timeline(*events: tuple[float, str, Any]) -> Timeline:
    found = Timeline()
    for sequence, (at, worker, event) in enumerate(events, 1):
        found.apply(sequence, at, worker, event)
    return found


def workers_of(found: Timeline, number: int) -> dict[str, tuple[str, float | None, str]]:
    rows = {row["round"]: row for row in found.document()["rounds"]}
    return {line["worker"]: (line["state"], line["seconds"], line["reason"]) for line in rows[number]["workers"]}


def test_a_round_says_who_was_asked_who_answered_when_and_who_was_refused_why() -> None:
    record = closed(TASK, 1, "w1", refused={"w2": "NaN"}, answered_s={"w1": 1.25})
    found = timeline(
        (10.0, "", started(TASK, 1, "w1", "w2", "w3")),
        (12.0, "w2", UpdateRefused(UID, 1, "w2", "NaN")),
        (14.0, "", record),
    )
    assert workers_of(found, 1) == {
        "w1": ("answered", 1.25, ""),
        "w2": ("refused", 2.0, "NaN"),
        "w3": ("missing", None, ""),
    }


def test_what_changed_in_a_service_is_kept_in_order_and_bounded() -> None:
    changes = [(float(at), "little", ServiceChanged(UID, "model", reason=str(at))) for at in range(CHANGES_LIMIT + 5)]
    found = timeline(*changes)
    assert [row["at"] for row in found.document()["changes"]] == [float(at) for at in range(5, CHANGES_LIMIT + 5)]
    assert [row["at"] for row in found.newest(1, 1)["changes"]][-1] == CHANGES_LIMIT + 4


def test_a_verdict_in_passing_says_when_a_worker_answered_before_the_round_closes() -> None:
    found = timeline((10.0, "", started(TASK, 1, "w1", "w2")))
    found.hint(11.5, "w1", Verdict(UID, 1, "offer", Outcome.COUNTED))
    assert workers_of(found, 1) == {"w1": ("answered", 1.5, ""), "w2": ("asked", None, "")}


def test_a_verdict_on_a_report_or_of_an_unknown_round_changes_nothing() -> None:
    found = timeline((10.0, "", started(TASK, 1, "w1")))
    assert not found.hint(11.0, "w1", Verdict(UID, 1, "report", Outcome.COUNTED))
    assert not found.hint(11.0, "w1", Verdict(UID, 7, "offer", Outcome.COUNTED))


def test_what_was_heard_in_passing_gives_way_to_the_record_of_the_round() -> None:
    found = timeline((10.0, "", started(TASK, 1, "w1")))
    found.hint(19.0, "w1", Verdict(UID, 1, "offer", Outcome.COUNTED))
    found.apply(2, 20.0, "", closed(TASK, 1, "w1", answered_s={"w1": 1.25}))
    assert workers_of(found, 1) == {"w1": ("answered", 1.25, "")}


def test_the_last_round_which_only_validates_ends_with_the_training() -> None:
    completed = TrainingCompleted(UID, "ab" * 32, 8, 1, {})
    found = timeline((1.0, "", closed(TASK, 1, "w1")), (2.0, "", started(TASK, 2, "w1")), (3.0, "", completed))
    assert [row["state"] for row in found.document()["rounds"]] == ["closed", "ended"]


def test_a_missed_round_is_tried_again_with_its_reason_kept() -> None:
    found = timeline(
        (10.0, "", started(TASK, 1, "w1")),
        (20.0, "", RoundMissed(UID, 1, 1, "no update from w1")),
        (22.0, "", started(TASK, 1, "w1", attempt=2)),
    )
    [row] = found.document()["rounds"]
    assert (row["attempt"], row["started_at"], row["missed"]) == (
        2,
        22.0,
        [{"at": 20.0, "attempt": 1, "reason": "no update from w1"}],
    )


def test_plots_have_one_value_per_closed_round_and_nothing_where_none_is_known() -> None:
    found = timeline(
        (1.0, "", started(TASK, 1, "w1")),
        (2.0, "", closed(TASK, 1, "w1", metrics={"loss": 0.5})),
        (3.0, "", closed(TASK, 2, "w1", metrics={"loss": 0.25, "accuracy": 0.9})),
        (4.0, "", RoundValidated(UID, 2, {"accuracy": 0.8}, 10)),
        (5.0, "", started(TASK, 3, "w1")),
    )
    plots = found.document()["plots"]
    assert plots["x"] == [1, 2]
    assert plots["submitted"] == {"accuracy": [None, 0.9], "loss": [0.5, 0.25]}
    assert plots["validated"] == {"accuracy": [None, 0.8]}


def test_the_round_of_the_initial_weights_is_shown_and_not_plotted() -> None:
    found = timeline((1.0, "", started(TASK, 0, "w1")), (2.0, "", closed(TASK, 0, "w1"))).document()
    assert ([row["round"] for row in found["rounds"]], found["plots"]["x"]) == ([0], [])


def test_a_diverged_metric_does_not_break_the_document() -> None:
    found = timeline((1.0, "", closed(TASK, 1, "w1", metrics={"loss": float("nan"), "accuracy": 0.5})))
    json.dumps(found.document(), allow_nan=False)
    assert found.document()["rounds"][0]["submitted"] == {"accuracy": 0.5}


def test_a_worker_is_followed_from_start_to_end() -> None:
    found = timeline(
        (1.0, "w1", WorkerStarted(UID, Role.TRAINING, 7)),
        (2.0, "w1", WorkerEnded(UID, Role.TRAINING, False, "exited with code 1")),
        (3.0, "w1", WorkerStarted(UID, Role.TRAINING, 8)),
        (4.0, "w1", WorkerJoined(UID, "w1")),
    )
    found.hint(5.0, "w1", Progress(2, "training"))
    [line] = found.document()["workers"]
    assert (line["starts"], line["started_at"], line["ended_at"], line["joined_at"]) == (2, 3.0, None, 4.0)
    assert (line["progress"]["step"], line["progress"]["round"]) == ("training", 2)


def test_phases_are_listed_with_their_reasons() -> None:
    found = timeline(
        (1.0, "", PhaseChanged(UID, "Running", "enough")), (2.0, "", PhaseChanged(UID, "Failed", "deadline"))
    )
    assert [(row["phase"], row["reason"]) for row in found.document()["phases"]] == [
        ("Running", "enough"),
        ("Failed", "deadline"),
    ]


def test_the_oldest_rounds_give_up_their_workers_first_and_keep_their_numbers() -> None:
    asked = [f"w{number}" for number in range(DETAIL_LIMIT // 4)]
    events = []
    for number in range(1, 7):
        events += [(number, "", started(TASK, number, *asked)), (number + 0.5, "", closed(TASK, number, "w1"))]
    rows = timeline(*events).document()["rounds"]
    assert [row["detail"] for row in rows] == [False, False, True, True, True, True]
    assert rows[0]["seconds"] == 1.5


def test_no_more_rounds_are_kept_than_the_limit() -> None:
    found = timeline(*((float(number), "", closed(TASK, number, "w1")) for number in range(1, ROUNDS_LIMIT + 5)))
    assert next(iter(found.rounds)) == 5


def test_what_a_stream_repeats_is_short() -> None:
    asked = [f"w{number:03}" for number in range(100)]
    events = [(float(number), "", started(TASK, number, *asked)) for number in range(1, 10)]
    found = timeline(*events).newest(rounds=3, rows=150)
    assert [(row["round"], len(row["workers"]), row["detail"]) for row in found["rounds"]] == [
        (7, 0, False),
        (8, 0, False),
        (9, 100, True),
    ]


@pytest.mark.parametrize(
    "event", [UpdateRefused(UID, 4, "w1", "late"), RoundMissed(UID, 4, 1, "late")], ids=["refused", "missed"]
)
def test_facts_of_a_round_whose_start_was_not_seen_are_kept(event: Any) -> None:
    assert [row["round"] for row in timeline((1.0, "w1", event)).document()["rounds"]] == [4]
