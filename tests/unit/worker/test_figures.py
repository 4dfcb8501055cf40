"""Figures of an inference worker."""

from __future__ import annotations

import pytest

from edgeai.worker.figures import WINDOW_REQUESTS, WINDOW_S, Figures


def test_percentiles_are_those_of_the_last_seconds():
    figures = Figures()
    figures.answered(0.0, 9.0, hard=False)
    for seconds in range(1, 101):
        figures.answered(WINDOW_S + 1, seconds / 100, hard=False)
    assert figures.percentiles(WINDOW_S + 1) == (0.5, 0.99)


def test_without_requests_there_are_no_latencies():
    assert Figures().percentiles(0.0) == (0.0, 0.0)


def test_the_rate_of_hard_examples_is_that_of_the_last_requests():
    figures = Figures()
    for _ in range(WINDOW_REQUESTS):
        figures.answered(0.0, 0.1, hard=True)
    for _ in range(WINDOW_REQUESTS // 4):
        figures.answered(0.0, 0.1, hard=False)
    assert figures.hard_rate == pytest.approx(0.75)


def test_a_request_without_an_answer_counts_as_failed():
    figures = Figures()
    figures.not_answered()
    assert (figures.requests, figures.failed, figures.hard) == (1, 1, 0)
