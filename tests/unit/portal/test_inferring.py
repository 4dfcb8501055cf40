"""The last hour of a service is kept in points: rates, gaps where nothing was heard, and not more than fits."""

from __future__ import annotations

from typing import Any

import pytest

from edgeai.events.catalogue import Inferences, Inferring
from edgeai.portal.inferring import COLUMNS, POINTS, STEP_S, Histories, History

LEVEL = "digits-01234567"
LITTLE = ("edge1", "little")
SERVICES = {LEVEL: frozenset({LITTLE})}


def figures(inferences: int = 0, sent: int = 0, **more: Any) -> Inferring:
    return Inferring("", Inferences(inferences=inferences, sent=sent), **more)


def last(history: History) -> dict[str, Any]:
    document = history.document()
    return {name: document[name][-1] for name in COLUMNS}


def heard_twice(**more: Any) -> History:
    history = History(0.0)
    history.hear(LITTLE, figures(100, 10), 10.0)
    history.close(10.0)
    history.hear(LITTLE, figures(150, 20, **more), 15.0)
    history.close(15.0)
    return history


def test_a_point_has_what_grew_since_the_one_before() -> None:
    found = last(heard_twice(edge_p50_s=0.002))
    assert (found["inferences_per_s"], found["share_sent"], found["edge_p50_s"]) == (10.0, 0.2, 0.002)


def test_what_was_not_said_is_a_gap_and_not_zero() -> None:
    history = heard_twice()
    history.close(20.0)
    assert last(history) == dict.fromkeys(COLUMNS)


def test_sums_from_before_the_first_sign_make_no_peak() -> None:
    history = History(0.0)
    history.hear(LITTLE, figures(1_000_000), 10.0)
    history.close(10.0)
    assert last(history)["inferences_per_s"] is None


def test_what_grew_while_nothing_was_heard_makes_no_peak() -> None:
    history = heard_twice()
    history.hear(LITTLE, figures(99_999), 90.0)
    history.close(90.0)
    assert last(history)["inferences_per_s"] is None


def test_no_answer_of_the_cloud_has_no_time() -> None:
    assert last(heard_twice())["cloud_p99_s"] is None


def test_replicas_and_what_waits_at_them_are_summed() -> None:
    history = History(0.0)
    for replica in ("big-0", "big-1"):
        history.hear(("cloud", replica), figures(waiting=3), 10.0)
    history.close(10.0)
    found = last(history)
    assert (found["replicas"], found["waiting_at_replicas"], found["waiting_at_edges"]) == (2, 6, None)


def test_replicas_that_are_not_heard_of_are_unknown_and_not_none() -> None:
    history = History(0.0)
    history.follow(frozenset({LITTLE, ("cloud", "big-0")}))
    history.hear(LITTLE, figures(), 10.0)
    history.close(10.0)
    assert last(history)["replicas"] is None


def test_where_no_replica_is_wanted_there_are_none() -> None:
    history = History(0.0)
    history.follow(frozenset({LITTLE}))
    history.hear(LITTLE, figures(), 10.0)
    history.close(10.0)
    assert last(history)["replicas"] == 0


def test_an_hour_is_kept() -> None:
    history = History(0.0)
    for number in range(POINTS + 5):
        history.close(number * STEP_S)
    document = history.document()
    assert {len(document[name]) for name in ("at", *COLUMNS)} == {POINTS}
    assert document["at"][0] == 5 * STEP_S


def test_services_that_are_gone_are_forgotten() -> None:
    histories = Histories()
    histories.look(SERVICES, 0.0, 1000.0)
    histories.look({}, 1.0, 1001.0)
    assert histories.of(LEVEL) is None


def test_of_many_signals_between_two_points_the_first_is_read() -> None:
    histories = Histories()
    histories.look(SERVICES, 0.0, 1000.0)
    assert histories.wants(LEVEL, LITTLE)
    histories.hear(LEVEL, LITTLE, figures(), 1.0)
    assert not histories.wants(LEVEL, LITTLE)
    histories.look(SERVICES, STEP_S, 1005.0)
    assert histories.wants(LEVEL, LITTLE)


def test_a_service_that_is_unknown_is_not_listened_to() -> None:
    assert not Histories().wants(LEVEL, LITTLE)


@pytest.mark.parametrize("speaker", [("edge2", "little"), ("edge1", "invented")])
def test_who_is_no_worker_of_the_service_is_not_heard(speaker: tuple[str, str]) -> None:
    histories = Histories()
    histories.look(SERVICES, 0.0, 1000.0)
    assert not histories.wants(LEVEL, speaker)


def test_a_worker_that_the_service_has_no_more_is_forgotten() -> None:
    histories = Histories()
    histories.look(SERVICES, 0.0, 1000.0)
    histories.hear(LEVEL, LITTLE, figures(), 1.0)
    histories.look({LEVEL: frozenset()}, 2.0, 1002.0)
    found = histories.of(LEVEL)
    assert found is not None
    assert not found.workers


def test_it_says_since_when_it_has_watched() -> None:
    histories = Histories()
    histories.look(SERVICES, 0.0, 1000.0)
    found = histories.of(LEVEL)
    assert found is not None
    assert found.document()["since"] == 1000.0
