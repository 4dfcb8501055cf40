"""When a stage of an incremental learning job begins: conditions over metrics, windows of the day. Pure.

A metric that is not known makes its comparison false, whatever the operator: what was never measured triggers nothing.
Metrics of one class are known as `<metric>/<label>`.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Mapping

from edgeai.resources.incremental import TriggerCondition, Window

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
DELTA = "_delta"
JOB_METRICS = ("num_of_samples", "num_of_unlabelled", "hard_example_rate")
"""Metrics of a train trigger that a job has by itself; all others are those that an evaluation reports."""
_EPSILON = 1e-12
"""A difference of two metrics carries rounding: 0.95 - 0.94 is to count as 0.01."""


def holds(condition: TriggerCondition, metrics: Mapping[str, float]) -> bool:
    """Whether a condition is true of these metrics."""
    if condition.all is not None:
        return all(holds(each, metrics) for each in condition.all)
    if condition.any is not None:
        return any(holds(each, metrics) for each in condition.any)
    assert condition.metric is not None
    assert condition.operator is not None
    assert condition.threshold is not None
    value = metrics.get(metric_key(condition.metric, condition.label))
    if value is None or not math.isfinite(value):
        return False
    if abs(value - condition.threshold) <= _EPSILON:
        value = condition.threshold
    return _COMPARE[condition.operator](value, condition.threshold)


def metric_key(metric: str, label: str | None = None) -> str:
    """The name under which a metric, of all examples or of one class, is known."""
    return metric if label is None else f"{metric}/{label}"


def with_deltas(new: Mapping[str, float], serving: Mapping[str, float]) -> dict[str, float]:
    """The new model's metrics, and what each gains over the serving one's: `accuracy_delta`, `accuracy_delta/<label>`."""
    deltas: dict[str, float] = {}
    for key in new.keys() & serving.keys():
        metric, slash, label = key.partition("/")
        deltas[f"{metric}{DELTA}{slash}{label}"] = new[key] - serving[key]
    return {**new, **deltas}


def in_window(window: Window | None, minute: int) -> bool:
    """Whether a minute of the day (0 to 1439) lies in a window; one without length is the whole day."""
    if window is None:
        return True
    start, end = _minute(window.start), _minute(window.end)
    if start < end:
        return start <= minute < end
    return start == end or minute >= start or minute < end


def described(condition: TriggerCondition, known: Mapping[str, float] | None = None) -> str:
    """A condition as people read it: `num_of_samples >= 200 and accuracy < 0.9`; of the metrics `known`, what they are now."""
    if condition.metric is not None:
        key = metric_key(condition.metric, condition.label)
        now = f" (now {known[key]:.4g})" if known is not None and key in known else ""
        return f"{key} {condition.operator} {condition.threshold:g}{now}"
    parts, word = (condition.all, " and ") if condition.all is not None else (condition.any or (), " or ")
    said = [(each, described(each, known)) for each in parts]
    return word.join(text if each.metric is not None else f"({text})" for each, text in said)


def misspelt(condition: TriggerCondition, known: Iterable[str], likeness: float = 0.8) -> dict[str, str]:
    """Metrics of a condition that are not among the known ones, and look as if one of them (the value) was meant.

    `likeness` is 1 for the same name, and 0 for one without a common letter.
    """
    names = tuple(known)
    if condition.metric is None:
        return {name: meant for each in condition.parts() for name, meant in misspelt(each, names, likeness).items()}
    close = difflib.get_close_matches(condition.metric, names, n=1, cutoff=likeness)
    return {condition.metric: close[0]} if close and condition.metric not in names else {}


def _minute(text: str) -> int:
    return int(text[:2]) * 60 + int(text[3:])
