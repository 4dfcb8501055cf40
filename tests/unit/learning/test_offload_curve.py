"""What other thresholds would send and the cloud would change follows from sums in bins, and what is unknown stays unknown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.learning.offload_curve import BINS, Histogram, axis_of, bin_of, curve, cut_for, is_yes_or_no, summed
from edgeai.resources.mining import MiningAlgorithm


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    inferences = tuple(draw(st.lists(st.integers(0, 50), min_size=BINS, max_size=BINS)))
    answered = tuple(draw(st.integers(0, count)) for count in inferences)
    changed = tuple(draw(st.integers(0, count)) for count in answered)
    return Histogram(inferences, answered, changed, draw(st.integers(0, 99)), draw(st.integers(0, 99)))


def bins(**counts: int) -> tuple[int, ...]:
    """`b19=3`: three in the last bin."""
    return tuple(counts.get(f"b{place}", 0) for place in range(BINS))


@given(histograms())
def test_a_lower_cut_never_sends_less(found: Histogram) -> None:
    sent = [point.sent for point in curve(found)]
    assert sent == sorted(sent)


@given(histograms())
def test_the_lowest_cut_sends_all_and_rests_on_all_answers(found: Histogram) -> None:
    last = [(point.sent, point.answers) for point in curve(found)[-1:]]
    assert last == ([(1.0, sum(found.answered))] if found.total else [])


@given(histograms())
def test_never_more_are_changed_than_sent(found: Histogram) -> None:
    assert all(point.changed is None or point.changed <= point.sent + 1e-9 for point in curve(found))


@given(histograms())
def test_what_follows_something_unknown_is_unknown(found: Histogram) -> None:
    known = [point.changed is not None for point in curve(found)]
    assert known == sorted(known, reverse=True)


@given(histograms(), histograms())
def test_the_sum_of_two_edges_has_the_counts_of_both(one: Histogram, other: Histogram) -> None:
    both = summed([one, other])
    assert (both.total, sum(both.answered), sum(both.changed), both.hard, both.apart) == (
        one.total + other.total,
        sum(one.answered) + sum(other.answered),
        sum(one.changed) + sum(other.changed),
        one.hard + other.hard,
        one.apart + other.apart,
    )


@given(histograms(), st.floats(0, 1))
def test_the_cut_for_a_share_lies_where_the_curve_crosses_it(found: Histogram, share: float) -> None:
    cut, points = cut_for(found, share), curve(found)
    assert (cut is None) == (not points)
    if cut is not None:
        # Below the next border it would send more, above the one before it less.
        assert all(point.sent <= share + 1e-9 for point in points if point.cut > cut + 1e-9)
        assert all(point.sent >= share - 1e-9 for point in points if point.cut < cut - 1e-9)


@given(st.floats(allow_nan=False))
def test_every_score_has_a_bin(score: float) -> None:
    assert 0 <= bin_of(max(min(score, 1e300), -1e300)) < BINS


def test_the_changed_answers_of_a_bin_stand_for_all_of_its_inferences() -> None:
    found = Histogram(bins(b19=40, b0=60), bins(b19=10), bins(b19=5))
    at = {point.cut: point for point in curve(found)}
    assert (at[0.95].sent, at[0.95].changed, at[0.95].answers) == (0.4, 0.2, 10)


def test_a_bin_without_answers_is_unknown_and_not_zero() -> None:
    found = Histogram(bins(b19=40, b0=60), bins(b19=10), bins(b19=5))
    assert curve(found)[-1].changed is None


def test_an_empty_histogram_has_no_curve() -> None:
    assert (curve(Histogram()), cut_for(Histogram(), 0.2)) == ((), None)


def test_within_a_bin_scores_lie_evenly() -> None:
    found = Histogram(bins(b19=10, b18=20, b0=70))
    assert cut_for(found, 0.2) == pytest.approx(0.925)


def test_a_miner_that_says_only_yes_or_no_is_known_by_its_scores() -> None:
    assert is_yes_or_no(Histogram(bins(b0=7, b19=3)))
    assert not is_yes_or_no(Histogram(bins(b0=7, b12=1, b19=3)))


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [(MiningAlgorithm.MARGIN, "a margin below 0.20"), (MiningAlgorithm.ENTROPY, "an entropy above 0.80")],
)
def test_a_threshold_is_said_as_users_of_the_algorithm_write_it(algorithm: MiningAlgorithm, words: str) -> None:
    axis = axis_of(algorithm)
    assert axis is not None
    assert axis.words(axis.threshold(0.8)) == words
