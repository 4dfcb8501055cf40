"""What another threshold of a service's mining would send to the cloud, and what the cloud would change. Pure.

An edge worker counts each inference in one of BINS bins of its score (0 easy to 1 hard, `hard_examples`), and each answer of
the cloud that can be compared with the edge's in the same bin, with whether it was another one. No label is needed. From these
sums follow, for every threshold that lies between two bins, the share of inferences that it would send, and the share whose
answer the cloud would change. What no answer speaks of is unknown (None), never zero.

Scores say the same for all algorithms; thresholds do not: users of Margin know a margin, which is small for what is hard.
`axis_of` turns one into the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgeai.resources.mining import MiningAlgorithm

BINS = 20


@dataclass(frozen=True, slots=True)
class Histogram:
    """By bin, from the easiest on: inferences, answers of the cloud that were compared, and those that were other ones.

    `hard`: inferences that the mining called hard. `apart`: answers of the cloud that could not be compared.
    """

    inferences: tuple[int, ...] = (0,) * BINS
    answered: tuple[int, ...] = (0,) * BINS
    changed: tuple[int, ...] = (0,) * BINS
    hard: int = 0
    apart: int = 0

    @property
    def total(self) -> int:
        return sum(self.inferences)


@dataclass(frozen=True, slots=True)
class Point:
    """All from the score `cut` on are sent. Shares of all inferences; `changed` None: nobody knows of some that are sent.

    `answers`: on so many it rests.
    """

    cut: float
    sent: float
    changed: float | None
    answers: int


@dataclass(frozen=True, slots=True)
class Axis:
    """A threshold as users write it. `below`: hard is what is under it, so it is 1 - score."""

    what: str
    key: str
    below: bool

    def threshold(self, cut: float) -> float:
        return 1 - cut if self.below else cut

    def words(self, threshold: float) -> str:
        return f"{self.what} {'below' if self.below else 'above'} {threshold:.2f}"


_AXES = {
    MiningAlgorithm.THRESHOLD: Axis("a best probability (of boxes: a mean score)", "threshold", True),
    MiningAlgorithm.CROSS_ENTROPY: Axis("a certainty (1 - entropy)", "threshold", True),
    MiningAlgorithm.MARGIN: Axis("a margin", "threshold", True),
    MiningAlgorithm.RANDOM: Axis("a draw", "rate", True),
    MiningAlgorithm.ENTROPY: Axis("an entropy", "threshold", False),
    MiningAlgorithm.LEAST_CONFIDENCE: Axis("a doubt (1 - best probability)", "threshold", False),
    MiningAlgorithm.IBT: Axis("a share of weak boxes", "threshold_img", False),
    MiningAlgorithm.CUSTOM: Axis("a score of the script's miner", "", False),
}


def axis_of(algorithm: MiningAlgorithm) -> Axis | None:
    """None: it has no threshold (EdgeOnly, CloudOnly)."""
    return _AXES.get(algorithm)


def bin_of(score: float) -> int:
    """A score outside of 0 to 1, as a script's miner may give, counts in the first or last bin."""
    return min(max(int(score * BINS), 0), BINS - 1)


def is_yes_or_no(histogram: Histogram) -> bool:
    """Whether all scores lie in the first and the last bin: such a miner says hard or not, and no threshold would change it."""
    return not any(histogram.inferences[1:-1])


def summed(found: Iterable[Histogram]) -> Histogram:
    """Of several edges with the same models and mining."""
    each = list(found)
    return Histogram(
        _added(one.inferences for one in each),
        _added(one.answered for one in each),
        _added(one.changed for one in each),
        sum(one.hard for one in each),
        sum(one.apart for one in each),
    )


def _added(columns: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*columns, strict=True))) or (0,) * BINS


def curve(histogram: Histogram) -> tuple[Point, ...]:
    """A point for each border between bins, from sending nothing (cut 1) to sending all (cut 0). Empty: no inference yet."""
    total = histogram.total
    if not total:
        return ()
    points = [Point(1.0, 0.0, 0.0, 0)]
    sent = answers = 0
    changed: float | None = 0.0
    for place in reversed(range(BINS)):
        count, answered = histogram.inferences[place], histogram.answered[place]
        sent, answers = sent + count, answers + answered
        if count and not answered:
            changed = None  # and of all thresholds beyond it, too
        elif count and changed is not None:
            changed += count * histogram.changed[place] / answered
        points.append(Point(place / BINS, sent / total, None if changed is None else changed / total, answers))
    return tuple(points)


def cut_for(histogram: Histogram, share: float) -> float | None:
    """The score from which on just this share would be sent, as if scores lay evenly within a bin. None: no inference yet."""
    points = curve(histogram)
    if not points:
        return None
    for before, after in pairwise(points):
        if after.sent > share:
            part = (share - before.sent) / (after.sent - before.sent)
            return before.cut + max(part, 0.0) * (after.cut - before.cut)
    return 0.0


def threshold_in_use(algorithm: MiningAlgorithm, values: Mapping[str, Any]) -> float | None:
    """Of a mining with these parameters, as users write it; None: it has none."""
    axis = axis_of(algorithm)
    found = values.get(axis.key) if axis is not None and axis.key else None
    return float(found) if isinstance(found, int | float) else None


__all__ = [
    "BINS",
    "Axis",
    "Histogram",
    "Point",
    "axis_of",
    "bin_of",
    "curve",
    "cut_for",
    "is_yes_or_no",
    "summed",
    "threshold_in_use",
]
