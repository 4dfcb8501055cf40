"""What a dataset has held over time: bounded, in order, the newest and the very first kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgeai.resources.base import instant
from edgeai.resources.counts import MAX_COUNTS, DatasetCount, noted

START = datetime(2030, 1, 31, tzinfo=UTC)
Steps = list[tuple[int, int]]


def entry(after_s: int, samples: int) -> DatasetCount:
    return DatasetCount(at=instant(START + timedelta(seconds=after_s)), samples=samples, digest=f"{samples:064x}")


def observed(steps: Steps) -> tuple[DatasetCount, ...]:
    """`steps`: seconds since the observation before, and what was there."""
    history: tuple[DatasetCount, ...] = ()
    at = 0
    for seconds, samples in steps:
        at += seconds
        history = noted(history, entry(at, samples))
    return history


STEPS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 5)), min_size=1, max_size=600)


@given(STEPS)
def test_a_history_never_grows_beyond_its_bound(steps: Steps) -> None:
    assert len(observed(steps)) <= MAX_COUNTS


@given(STEPS)
def test_the_newest_entry_is_what_is_there_now(steps: Steps) -> None:
    assert observed(steps)[-1].samples == steps[-1][1]


@given(STEPS)
def test_the_first_entry_is_never_lost(steps: Steps) -> None:
    assert observed(steps)[0] == entry(steps[0][0], steps[0][1])


@given(STEPS)
def test_entries_are_in_the_order_of_time(steps: Steps) -> None:
    times = [each.at for each in observed(steps)]
    assert times == sorted(times)


@given(st.lists(st.tuples(st.integers(-1000, 200), st.integers(0, 5)), min_size=1, max_size=100))
def test_a_clock_that_is_set_back_keeps_the_order(steps: Steps) -> None:
    times = [each.at for each in observed(steps)]
    assert times == sorted(times)


@given(STEPS)
def test_looking_again_at_the_same_changes_nothing(steps: Steps) -> None:
    history = observed(steps)
    assert noted(history, entry(10**6, history[-1].samples)) is history


@given(st.lists(st.integers(1, 59), min_size=2, max_size=300))
def test_a_minute_has_at_most_two_entries_however_often_it_changes(pauses: list[int]) -> None:
    history = observed([(pause, number) for number, pause in enumerate(pauses)])
    assert len(history) <= 2 * (sum(pauses) // 60 + 1)


def test_a_change_right_after_the_first_look_keeps_both_counts() -> None:
    assert [each.samples for each in observed([(0, 40), (1, 55)])] == [40, 55]


def test_a_change_in_the_same_minute_takes_the_place_of_the_one_before() -> None:
    assert [each.samples for each in observed([(0, 40), (1, 55), (1, 70)])] == [40, 70]


def test_old_entries_get_sparser_and_the_whole_span_stays() -> None:
    history = observed([(3600, number) for number in range(2000)])
    gaps = [later.samples - former.samples for former, later in pairwise(history)]
    assert history[0].samples == 0
    assert gaps == sorted(gaps, reverse=True)
    assert set(gaps[-MAX_COUNTS // 4 :]) == {1}
