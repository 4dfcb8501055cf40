"""What predict raises says where it was raised, and its traceback stands in the log, but not every time."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs
from worker_clock import Clock

from edgeai.errors import ModelError
from edgeai.worker.joint_failures import Failures

WHO = "edge worker little of service digits"


def raised(text: str) -> Exception:
    try:
        raise ValueError(text)
    except ValueError as error:
        return error


def told(failures: Failures, *errors: Exception) -> list[Any]:
    with capture_logs() as lines:
        for error in errors:
            failures.told(error)
    return lines


def test_the_caller_hears_who_failed(clock: Clock) -> None:
    with capture_logs():
        assert Failures(WHO, clock).told(raised("no")) == f"{WHO}: ValueError: no"


def test_a_kind_of_error_is_logged_once_a_minute_with_how_many_there_were(clock: Clock) -> None:
    failures = Failures(WHO, clock)
    lines = told(failures, *(raised(str(number)) for number in range(5)))
    clock.now_s = 60.0
    lines += told(failures, raised("again"))
    assert [(line["event"], line["times"]) for line in lines] == [("predict_failed", 1), ("predict_failed", 5)]


def test_the_traceback_is_in_the_log(clock: Clock) -> None:
    error = raised("no")
    [line] = told(Failures(WHO, clock), error)
    assert line["exc_info"] is error


def test_an_error_of_another_line_is_another_kind(clock: Clock) -> None:
    with pytest.raises(ZeroDivisionError) as other:
        _ = 1 // 0
    assert len(told(Failures(WHO, clock), raised("no"), other.value)) == 2


def test_an_error_of_ours_has_no_traceback_to_show(clock: Clock) -> None:
    assert told(Failures(WHO, clock), ModelError("it gives no answer")) == []
