from __future__ import annotations

from resource_documents import LATER, NOW

from edgeai.resources.conditions import ConditionType, find_condition, set_condition

READY, DEGRADED = ConditionType.READY, ConditionType.DEGRADED


def test_a_new_condition_is_added_last() -> None:
    conditions = set_condition((), READY, "True", "Joined", "", now=NOW)
    conditions = set_condition(conditions, DEGRADED, "False", "", "", now=LATER)
    assert [condition.type for condition in conditions] == [READY, DEGRADED]


def test_the_transition_time_stays_while_the_status_stays() -> None:
    before = set_condition((), READY, "False", "Joining", "1 of 3", now=NOW)
    [after] = set_condition(before, READY, "False", "Joining", "2 of 3", now=LATER)
    assert (after.last_transition_time, after.message) == (NOW, "2 of 3")


def test_the_transition_time_changes_with_the_status() -> None:
    before = set_condition((), READY, "False", "Joining", "", now=NOW)
    [after] = set_condition(before, READY, "True", "Joined", "", now=LATER)
    assert after.last_transition_time == LATER


def test_setting_the_same_condition_again_changes_nothing() -> None:
    before = set_condition((), READY, "True", "Joined", "", now=NOW, observed_generation=3)
    assert set_condition(before, READY, "True", "Joined", "", now=LATER) == before


def test_a_condition_is_found_by_its_type() -> None:
    conditions = set_condition((), READY, "True", "Joined", "", now=NOW)
    assert find_condition(conditions, READY) == conditions[0]
    assert find_condition(conditions, DEGRADED) is None
