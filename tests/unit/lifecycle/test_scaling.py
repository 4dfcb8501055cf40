"""How many replicas are wanted: more while requests wait, fewer after a while without, and never a number that swings."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeai.events.catalogue import Inferences, Inferring
from edgeai.lifecycle.scaling import DOWN_AFTER_S, FRESH_S, LIMIT, SETTLE_S, UP_AFTER_S, Load, Loads, Scaling, look
from edgeai.resources.joint import Replicas

ONE_TO_FOUR = Replicas(min=1, max=4)
BATCH = 16
IDLE, BUSY, STEADY = Load(0, 0.05), Load(0, 1.0), Load(0, 0.7)
SWAMPED = Load(100, 1.0)


def after(
    seconds: float, *loads: Load, state: Scaling, replicas: Replicas = ONE_TO_FOUR, begin_s: float = 100.0
) -> Scaling:
    """Looked at every second, with the same load."""
    for second in range(int(seconds) + 1):
        state = look(state, replicas, BATCH, loads, begin_s + second)
    return state


def test_requests_that_wait_for_a_while_make_one_more_at_least():
    found = after(UP_AFTER_S, SWAMPED, state=Scaling(1))
    assert found.wanted == 2
    assert found.reason == "2 of 4: 100 requests waited, replicas were busy 100% of the time; 4 is the most"


def test_one_moment_of_waiting_changes_nothing():
    state = after(UP_AFTER_S - 1, SWAMPED, state=Scaling(1))
    state = look(state, ONE_TO_FOUR, BATCH, [STEADY], 100 + UP_AFTER_S)
    assert after(UP_AFTER_S - 1, SWAMPED, state=state, begin_s=200).wanted == 1


def test_replicas_that_are_always_busy_make_more_before_anything_waits():
    assert after(UP_AFTER_S, BUSY, BUSY, state=Scaling(2)).wanted == 4


def test_there_are_never_more_than_the_spec_allows():
    assert after(60, *[SWAMPED] * 4, state=Scaling(4)).wanted == 4


def test_at_most_twice_as_many_at_once():
    assert after(UP_AFTER_S, SWAMPED, state=Scaling(1), replicas=Replicas(min=1, max=64)).wanted == 2


def test_after_a_change_nothing_is_wanted_until_the_new_replicas_tell_something():
    state = after(UP_AFTER_S, SWAMPED, state=Scaling(1), begin_s=0)
    assert after(SETTLE_S - UP_AFTER_S, SWAMPED, state=state, begin_s=UP_AFTER_S).wanted == 2


def test_replicas_that_never_tell_anything_do_not_hold_up_more_for_ever():
    state = after(UP_AFTER_S, SWAMPED, state=Scaling(1), begin_s=0)
    later_s = UP_AFTER_S + SETTLE_S + 1
    assert after(UP_AFTER_S, SWAMPED, state=state, begin_s=later_s).wanted == 4


def test_one_less_when_the_others_can_do_it_with_room_to_spare():
    found = after(DOWN_AFTER_S, IDLE, IDLE, IDLE, state=Scaling(3))
    assert found.wanted == 2
    assert found.reason == "2 of 4: 3 replicas were busy 5% of the time; 4 is the most"


def test_a_short_rest_changes_nothing():
    assert after(DOWN_AFTER_S - 1, IDLE, IDLE, state=Scaling(2)).wanted == 2


def test_what_is_neither_much_nor_little_changes_nothing_for_ever():
    assert after(600, STEADY, STEADY, state=Scaling(2)).wanted == 2


def test_a_moment_of_work_begins_the_rest_anew():
    state = after(DOWN_AFTER_S - 1, IDLE, IDLE, state=Scaling(2), begin_s=0)
    state = look(state, ONE_TO_FOUR, BATCH, [STEADY, STEADY], DOWN_AFTER_S)
    assert after(DOWN_AFTER_S - 1, IDLE, IDLE, state=state, begin_s=DOWN_AFTER_S + 1).wanted == 2


def test_there_are_never_fewer_than_the_spec_wants():
    assert after(600, IDLE, IDLE, state=Scaling(2), replicas=Replicas(min=2, max=4)).wanted == 2


def test_what_nobody_tells_changes_nothing():
    assert after(600, state=Scaling(3)).wanted == 3


@pytest.mark.parametrize(("before", "wanted"), [(1, 2), (9, 4)])
def test_a_changed_spec_holds_at_once(before, wanted):
    assert look(Scaling(before), Replicas(min=2, max=4), BATCH, [], 0.0).wanted == wanted


def test_it_scales_down_one_by_one():
    state = Scaling(4)
    seen = []
    for second in range(200):
        state = look(state, ONE_TO_FOUR, BATCH, [IDLE] * state.wanted, float(second))
        seen.append(state.wanted)
    assert list(dict.fromkeys(seen)) == [4, 3, 2, 1]


_LOADS = st.lists(st.builds(Load, st.integers(0, 10_000), st.floats(0, 10)), max_size=8)


@settings(deadline=None)
@given(st.lists(_LOADS, max_size=60), st.integers(1, 4), st.integers(4, 9))
def test_whatever_the_load_the_number_stays_within_the_spec_and_changes_seldom(history, least, most):
    replicas, state, changes = Replicas(min=least, max=most), Scaling(least), []
    for second, loads in enumerate(history):
        found = look(state, replicas, BATCH, loads, float(second))
        assert least <= found.wanted <= most
        if found.wanted != state.wanted:
            changes.append(second)
        state = found
    assert all(later - earlier >= UP_AFTER_S for earlier, later in itertools.pairwise(changes))


# --- what was heard


def told(waiting: int = 0, busy: float = 0.0) -> Inferring:
    return Inferring("", Inferences(), waiting=waiting, busy=busy)


def test_the_latest_of_every_replica_is_known():
    loads = Loads()
    loads.hear("task", "big-0", told(5, 0.5), 0.0)
    loads.hear("task", "big-0", told(7, 0.25), 1.0)
    loads.hear("task", "big-1", told(1, 0.0), 1.0)
    assert loads.known("task", ["big-0", "big-1", "big-2"], 1.5) == (Load(7, 0.25), Load(1, 0.0))


def test_who_was_not_heard_of_lately_is_not_counted():
    loads = Loads()
    loads.hear("task", "big-0", told(), 0.0)
    assert loads.known("task", ["big-0"], FRESH_S + 0.1) == ()


def test_replicas_that_are_not_wanted_are_not_counted():
    loads = Loads()
    loads.hear("task", "big-1", told(), 0.0)
    assert loads.known("task", ["big-0"], 0.0) == ()


def test_services_that_are_gone_are_forgotten():
    loads = Loads()
    loads.hear("old", "big-0", told(), 0.0)
    loads.hear("new", "big-0", told(), 0.0)
    loads.forget_all_but({"new"})
    assert len(loads) == 1


def test_what_is_remembered_is_bounded():
    loads = Loads()
    for number in range(LIMIT + 5):
        loads.hear("task", f"w{number}", told(), 0.0)
    assert len(loads) == LIMIT
