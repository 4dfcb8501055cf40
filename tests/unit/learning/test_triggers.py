"""Conditions over metrics, deltas between models, windows of the day."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.learning.triggers import (
    JOB_METRICS,
    described,
    holds,
    in_window,
    metric_key,
    misspelt,
    with_deltas,
)
from edgeai.resources.incremental import TriggerCondition, Window


def condition(**fields) -> TriggerCondition:
    return TriggerCondition.model_validate(fields)


def least(metric: str, threshold: float, **more) -> dict:
    return {"metric": metric, "operator": ">=", "threshold": threshold, **more}


YES, NO = least("there", 0), least("there", 2)
METRICS = {"there": 1.0}


# --- one comparison


@pytest.mark.parametrize(
    ("operator", "true_of"),
    [(">", {3}), (">=", {2, 3}), ("<", {1}), ("<=", {1, 2}), ("==", {2}), ("!=", {1, 3})],
)
def test_an_operator_means_what_it_says(operator, true_of):
    mine = condition(metric="samples", operator=operator, threshold=2)
    assert {value for value in (1, 2, 3) if holds(mine, {"samples": value})} == true_of


@pytest.mark.parametrize("operator", [">", ">=", "<", "<=", "==", "!="])
@pytest.mark.parametrize("metrics", [{}, {"samples": math.nan}, {"samples": math.inf}, {"samples": -math.inf}])
def test_a_metric_that_is_not_known_triggers_nothing(operator, metrics):
    assert not holds(condition(metric="samples", operator=operator, threshold=2), metrics)


def test_rounding_of_a_difference_does_not_decide():
    assert 0.95 - 0.94 != 0.01
    delta = with_deltas({"accuracy": 0.95}, {"accuracy": 0.94})
    assert holds(condition(**least("accuracy_delta", 0.01)), delta)


def test_rounding_does_not_make_an_equal_value_a_greater_one():
    assert 0.8 - 0.7 > 0.1
    above = condition(metric="accuracy_delta", operator=">", threshold=0.1)
    assert not holds(above, with_deltas({"accuracy": 0.8}, {"accuracy": 0.7}))


def test_a_real_difference_above_the_rounding_decides():
    assert holds(condition(metric="loss", operator=">", threshold=0.1), {"loss": 0.1 + 1e-9})


# --- classes


def test_a_label_takes_the_metric_of_one_class():
    mine = condition(**least("accuracy", 0.9, label="7"))
    assert holds(mine, {"accuracy": 0.5, "accuracy/7": 0.95})
    assert not holds(mine, {"accuracy": 0.95, "accuracy/7": 0.5})


def test_a_delta_of_one_class_is_known_by_metric_and_label():
    deltas = with_deltas({"accuracy": 0.9, "accuracy/7": 0.8}, {"accuracy": 0.9, "accuracy/7": 0.3})
    assert deltas[metric_key("accuracy_delta", "7")] == pytest.approx(0.5)


def test_a_metric_that_one_of_the_models_lacks_has_no_delta():
    assert with_deltas({"accuracy": 0.9, "loss": 1.0}, {"accuracy": 0.8, "recall": 0.5}).keys() == {
        "accuracy",
        "loss",
        "accuracy_delta",
    }


def test_deltas_stand_beside_the_new_models_metrics():
    assert with_deltas({"accuracy": 0.9}, {"accuracy": 0.8})["accuracy"] == 0.9


# --- trees


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"all": [YES, YES]}, True),
        ({"all": [YES, NO]}, False),
        ({"any": [NO, YES]}, True),
        ({"any": [NO, NO]}, False),
        ({"all": [YES, {"any": [NO, YES]}]}, True),
        ({"all": [YES, {"any": [NO, NO]}]}, False),
        ({"any": [NO, {"all": [YES, YES]}]}, True),
    ],
    ids=str,
)
def test_a_tree_combines_its_parts(tree, expected):
    assert holds(condition(**tree), METRICS) is expected


def test_an_unknown_metric_spoils_all_and_not_any():
    unknown = least("elsewhere", 0)
    assert not holds(condition(all=[YES, unknown]), METRICS)
    assert holds(condition(any=[YES, unknown]), METRICS)


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_all_and_any_are_those_of_python(values):
    parts = [YES if value else NO for value in values]
    assert holds(condition(all=parts), METRICS) is all(values)
    assert holds(condition(any=parts), METRICS) is any(values)


# --- windows


def minutes(window: Window) -> set[int]:
    return {minute for minute in range(1440) if in_window(window, minute)}


def test_without_a_window_it_is_always_time():
    assert all(in_window(None, minute) for minute in range(1440))


def test_a_window_holds_its_start_and_not_its_end():
    assert minutes(Window(start="02:00", end="06:00")) == set(range(120, 360))


def test_a_window_may_go_over_midnight():
    assert minutes(Window(start="22:30", end="01:15")) == {*range(1350, 1440), *range(75)}


def test_a_window_that_ends_at_midnight_ends_with_the_day():
    assert minutes(Window(start="23:00", end="00:00")) == set(range(1380, 1440))


def test_a_window_that_starts_at_midnight_starts_with_the_day():
    assert minutes(Window(start="00:00", end="01:00")) == set(range(60))


def test_a_window_without_length_is_the_whole_day():
    assert len(minutes(Window(start="07:00", end="07:00"))) == 1440


@given(st.integers(0, 1439), st.integers(0, 1439))
def test_a_window_and_its_opposite_make_a_day(start, end):
    one, other = f"{start // 60:02}:{start % 60:02}", f"{end // 60:02}:{end % 60:02}"
    there, back = minutes(Window(start=one, end=other)), minutes(Window(start=other, end=one))
    assert there | back == set(range(1440))
    assert start == end or not there & back


# --- for people


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (least("num_of_samples", 200), "num_of_samples >= 200"),
        (least("accuracy", 0.9, label="7"), "accuracy/7 >= 0.9"),
        ({"all": [YES, NO]}, "there >= 0 and there >= 2"),
        ({"any": [YES, {"all": [YES, NO]}]}, "there >= 0 or (there >= 0 and there >= 2)"),
    ],
)
def test_a_condition_reads_as_a_sentence(tree, text):
    assert described(condition(**tree)) == text


def test_a_condition_is_described_with_what_its_metrics_are_now():
    mine = condition(
        all=[least("num_of_samples", 200), {"any": [least("accuracy", 0.9), least("accuracy", 0.8, label="7")]}]
    )
    known = {"num_of_samples": 12, "accuracy/7": 0.25}
    assert (
        described(mine, known) == "num_of_samples >= 200 (now 12) and (accuracy >= 0.9 or accuracy/7 >= 0.8 (now 0.25))"
    )


# --- a slip of the pen


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("num_of_sample", "num_of_samples"),
        ("num_samples", "num_of_samples"),
        ("num_of_unlabeled", "num_of_unlabelled"),
        ("hard_examples_rate", "hard_example_rate"),
    ],
)
def test_a_metric_that_looks_like_one_that_a_job_has_was_probably_meant_to_be_that(written, meant):
    mine = condition(any=[least("accuracy", 1), {"all": [least(written, 1)]}])
    assert misspelt(mine, JOB_METRICS) == {written: meant}


@pytest.mark.parametrize("metric", [*JOB_METRICS, "accuracy", "loss", "f1", "samples_per_second"])
def test_a_metric_of_a_name_of_its_own_is_what_was_meant(metric):
    assert misspelt(condition(**least(metric, 1)), JOB_METRICS) == {}
