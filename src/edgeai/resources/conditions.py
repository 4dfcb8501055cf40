"""Conditions in the form of Kubernetes: what is true of a resource right now, why, and since when."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from edgeai.resources.base import Count, Instant, Part


class ConditionType(StrEnum):
    ACCEPTED = "Accepted"
    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(Part):
    """`reason` is one CamelCase word for programs, `message` one line for people."""

    type: ConditionType
    status: ConditionStatus
    reason: str = ""
    message: str = ""
    last_transition_time: Instant
    observed_generation: Count = 0


Conditions = tuple[Condition, ...]


def find_condition(conditions: Sequence[Condition], type: ConditionType) -> Condition | None:
    return next((condition for condition in conditions if condition.type == type), None)


def trouble_in(conditions: Sequence[Condition], *, or_not_ready: bool = False) -> str:
    """The one sentence that says why a resource does not go on, or goes on badly; empty if all is well."""
    bad: list[tuple[ConditionType, ConditionStatus]] = [
        (ConditionType.FAILED, "True"),
        (ConditionType.ACCEPTED, "False"),
        (ConditionType.DEGRADED, "True"),
    ]
    if or_not_ready:
        bad += [(ConditionType.READY, "False"), (ConditionType.READY, "Unknown")]
    found = ((find_condition(conditions, type), status) for type, status in bad)
    return next((each.message for each, status in found if each is not None and each.status == status), "")


def set_condition(
    conditions: Sequence[Condition],
    type: ConditionType,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    now: str,
    observed_generation: int | None = None,
) -> Conditions:
    """The conditions with this one set, in the same order (a new one last).

    `now` (see `base.instant`) becomes the transition time only if the status changed. Without `observed_generation` the
    one that was there stays.
    """
    before = find_condition(conditions, type)
    generation = (
        observed_generation if observed_generation is not None else (before.observed_generation if before else 0)
    )
    after = Condition(
        type=type,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=before.last_transition_time if before and before.status == status else now,
        observed_generation=generation,
    )
    if before is None:
        return (*conditions, after)
    return tuple(after if condition.type == type else condition for condition in conditions)
