"""What a dataset has held over time: an entry for each change, few enough to keep, and the whole span of them.

Entries are in order, the newest last. Of a minute with many changes the first and the last stay; of more than `MAX_COUNTS`
entries every other one of the older half goes, never the very first. Pure: who observes is `coordinator.registry`.
"""

from __future__ import annotations

from datetime import datetime

from edgeai.resources.base import Count, Digest, Instant, Part

MAX_COUNTS = 200
PACE_S = 60.0


class DatasetCount(Part):
    """What was there from `at` on."""

    at: Instant
    samples: Count
    size_bytes: Count | None = None
    digest: Digest | None = None


def noted(history: tuple[DatasetCount, ...], found: DatasetCount) -> tuple[DatasetCount, ...]:
    """With what was found now. The same object, if that is nothing new."""
    if not history:
        return (found,)
    last = history[-1]
    if (last.samples, last.digest) == (found.samples, found.digest):
        return history
    if _seconds(last.at, found.at) < 0:
        found = found.model_copy(update={"at": last.at})  # a clock was set back
    before = history[:-1]
    if before and _seconds(before[-1].at, found.at) < PACE_S:
        return (*before, found)
    return _thinned((*history, found))


def _thinned(history: tuple[DatasetCount, ...]) -> tuple[DatasetCount, ...]:
    if len(history) <= MAX_COUNTS:
        return history
    middle = len(history) // 2
    return (*history[:middle:2], *history[middle:])


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
