"""What may be sent to the cloud: no history of requests gets past the budget; the breaker notices silence, and its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeai.learning.offloading import (
    BURST,
    CONSECUTIVE,
    LAST,
    OPEN_FIRST_S,
    OPEN_LAST_S,
    PROBE_S,
    Breaker,
    BreakerState,
    Budget,
    Held,
    Offloading,
    Sent,
)

SHARES = st.floats(0, 1)
RATES = st.floats(0.05, 50)
steps = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 400), st.booleans()), max_size=120)
"""Seconds since the one before, size in bytes, and whether it is hard."""


def sent_of(budget: Budget, history: list[tuple[float, int, bool]]) -> list[tuple[int, float, int]]:
    """Of those that were sent: how many inferences there were by then, when, and how large."""
    now_s, found = 0.0, []
    for count, (gap_s, size_bytes, hard) in enumerate(history, 1):
        now_s += gap_s
        budget.counted()
        if hard and not budget.take(size_bytes, now_s):
            found.append((count, now_s, size_bytes))
    return found


@given(SHARES, steps)
def test_never_more_than_the_share_of_inferences_is_sent(fraction, history):
    sent = sent_of(Budget(fraction), history)
    assert all(number <= fraction * count for number, (count, _, _) in enumerate(sent, 1))


@given(RATES, steps)
def test_no_window_has_more_requests_than_the_rate_allows(rate, history):
    sent = sent_of(Budget(1.0, per_second=rate), history)
    window_s = max(1.0, 1 / rate)
    for _, began_s, _ in sent:
        within = [each for each in sent if 0 <= each[1] - began_s < window_s]
        assert len(within) <= max(1, rate * window_s)


@given(RATES.map(lambda rate: rate * 20), steps)
def test_no_window_has_more_bytes_than_the_rate_allows(rate, history):
    sent = sent_of(Budget(1.0, bytes_per_second=rate), history)
    window_s = max(1.0, 1 / rate)
    for _, began_s, _ in sent:
        assert sum(size for _, at_s, size in sent if 0 <= at_s - began_s < window_s) <= max(1, rate * window_s)


@given(RATES, st.lists(st.tuples(st.floats(0, 3), st.integers(0, 3)), max_size=80))
def test_no_window_has_more_requests_than_the_rate_allows_when_they_are_sent_later(rate, history):
    """A permit is given at each step; of those that wait, some are sent: at the end all."""
    budget, now_s, waiting, sent = Budget(1.0, per_second=rate), 0.0, [], []
    for gap_s, count in [*history, (0.0, len(history))]:
        now_s += gap_s
        for number in [waiting.pop(0) for _ in range(min(count, len(waiting)))]:
            if not budget.take_again(number, 1, now_s):
                sent.append(now_s)
        budget.counted()
        if not budget.take(1, now_s):
            waiting.append(budget.number)
    window_s = max(1.0, 1 / rate)
    for began_s in sent:
        assert len([at_s for at_s in sent if 0 <= at_s - began_s < window_s]) <= max(1, rate * window_s)


def test_what_went_out_late_counts_from_then_on():
    offloading = Offloading(Budget(1.0, per_second=1))
    offloading.counted()
    offloading.counted()
    sent = offloading.ask(1, 0.0)
    assert isinstance(sent, Sent)
    assert offloading.sending(sent, 0.0) == ""
    offloading.gone(sent, 3.0)
    assert offloading.ask(1, 3.5) == Held(False, "over the budget of 1 requests per second")


def test_what_was_never_sent_is_given_back():
    offloading = Offloading(Budget(0.5, per_second=1))
    offloading.counted()
    offloading.counted()
    sent = offloading.ask(1, 0.0)
    assert isinstance(sent, Sent)
    offloading.give_back(sent)
    assert isinstance(offloading.ask(1, 0.0), Sent)


def test_a_probe_that_was_never_sent_lets_another_one_try():
    breaker = opened(Breaker())
    breaker.unsent(breaker.sent(1.0))
    assert breaker.state(1.0) is BreakerState.HALF_OPEN
    assert breaker.allows(1.0)


def test_the_whole_share_is_used_by_steady_traffic():
    budget = Budget(0.25)
    sent = sent_of(budget, [(0.01, 1, True)] * 400)
    assert len(sent) == 100


def test_no_burst_follows_a_long_quiet_time():
    budget = Budget(0.5)
    sent = sent_of(budget, [(0.01, 1, False)] * 10_000 + [(0.01, 1, True)] * 100)
    assert BURST + 48 <= len(sent) <= BURST + 50


def test_what_is_refused_costs_nothing():
    budget = Budget(1.0, per_second=1)
    budget.counted()
    budget.counted()
    assert budget.take(1, 0.0) == ""
    assert budget.take(1, 0.5) == "1 requests per second"
    assert budget.take(1, 1.0) == ""


def test_an_input_larger_than_the_bytes_of_a_second_is_never_sent():
    budget = Budget(1.0, bytes_per_second=1000)
    budget.counted()
    assert budget.take(1001, 0.0) == budget.take(1001, 100.0) == "1000 bytes per second"


# --- the breaker


def opened(breaker: Breaker, now_s: float = 0.0) -> Breaker:
    for _ in range(CONSECUTIVE):
        breaker.told(breaker.sent(now_s), False, now_s)
    return breaker


def test_silence_opens_it():
    breaker = opened(Breaker())
    assert breaker.state(0.0) is BreakerState.OPEN
    assert not breaker.allows(OPEN_FIRST_S - 0.01)


def test_one_answer_among_the_silence_keeps_it_closed():
    breaker = Breaker()
    for number in range(CONSECUTIVE * 2 - 1):
        breaker.told(breaker.sent(0), number == CONSECUTIVE - 1, 0)
    assert breaker.state(0) is BreakerState.CLOSED


def test_half_of_the_last_requests_without_an_answer_open_it():
    breaker = Breaker()
    for number in range(LAST):
        assert breaker.state(0) is BreakerState.CLOSED
        breaker.told(breaker.sent(0), number % 2 == 0, 0)
    assert breaker.state(0) is BreakerState.OPEN


def test_after_a_while_one_request_tries_and_its_answer_closes_it():
    breaker = opened(Breaker())
    assert breaker.state(OPEN_FIRST_S) is BreakerState.HALF_OPEN
    probe = breaker.sent(OPEN_FIRST_S)
    assert not breaker.allows(OPEN_FIRST_S)
    breaker.told(probe, True, OPEN_FIRST_S)
    assert breaker.state(OPEN_FIRST_S) is BreakerState.CLOSED


def test_it_stays_open_twice_as_long_each_time_but_not_for_ever():
    breaker, now_s, waits = opened(Breaker()), 0.0, []
    for _ in range(5):
        began_s = now_s
        while not breaker.allows(now_s):
            now_s += 0.125
        waits.append(now_s - began_s)
        breaker.told(breaker.sent(now_s), False, now_s)
    assert waits == [0.5, 1.0, 2.0, 2.0, 2.0] == [min(OPEN_FIRST_S * 2**n, OPEN_LAST_S) for n in range(5)]


def test_a_probe_of_which_nothing_is_heard_does_not_keep_others_from_trying():
    breaker = opened(Breaker())
    breaker.sent(1.0)
    assert not breaker.allows(1.0 + PROBE_S / 2)
    assert breaker.allows(1.0 + PROBE_S)


def test_the_outcome_of_what_was_sent_before_it_opened_changes_nothing():
    breaker = Breaker()
    straggler = breaker.sent(0.0)
    opened(breaker)
    breaker.told(straggler, True, 0.1)
    assert breaker.state(0.1) is BreakerState.OPEN


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60))
def test_ten_seconds_after_the_cloud_is_back_it_is_asked_again(outcomes):
    breaker, now_s = Breaker(), 0.0
    for gap_s, good in outcomes:
        now_s += gap_s
        if breaker.allows(now_s):
            breaker.told(breaker.sent(now_s), good, now_s)
    back_s = now_s
    while breaker.state(now_s) is not BreakerState.CLOSED:
        assert now_s < back_s + 10
        if breaker.allows(now_s):
            breaker.told(breaker.sent(now_s), True, now_s)
        now_s += 0.1


# --- both


def test_what_the_breaker_holds_back_is_not_taken_from_the_budget():
    offloading = Offloading(Budget(1.0, per_second=CONSECUTIVE))
    for _ in range(CONSECUTIVE):
        offloading.counted()
        sent = offloading.ask(1, 0.0)
        assert isinstance(sent, Sent)
        offloading.told(sent, False, 0.0)
    offloading.counted()
    assert offloading.ask(1, 0.1) == Held(True, "the cloud does not answer")
    assert isinstance(offloading.ask(1, 1.0), Sent)


def test_the_probe_is_not_used_up_by_a_request_that_is_over_budget():
    offloading = Offloading(Budget(1.0, bytes_per_second=100))
    for _ in range(CONSECUTIVE):
        offloading.counted()
        sent = offloading.ask(1, 0.0)
        assert isinstance(sent, Sent)
        offloading.told(sent, False, 0.0)
    offloading.counted()
    offloading.counted()
    assert offloading.ask(1000, 2.0) == Held(False, "over the budget of 100 bytes per second")
    assert isinstance(offloading.ask(1, 2.0), Sent)
