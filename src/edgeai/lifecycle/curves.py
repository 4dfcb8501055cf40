"""The offload curves of a service, from what its edges have counted, with the sentences that say what they mean. Pure.

Edges with the same models and the same mining share a curve. Pages, the API and the command line show what is made here; the
arithmetic is in `learning.offload_curve`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeai.learning.offload_curve import (
    BINS,
    Axis,
    Histogram,
    Point,
    axis_of,
    curve,
    cut_for,
    is_yes_or_no,
    summed,
    threshold_in_use,
)
from edgeai.resources.incremental import HardExampleMining
from edgeai.resources.joint import EdgeServing, EdgeWorker, ScoreCounts
from edgeai.resources.mining import MiningAlgorithm, check, described

FEW = 100
"""On fewer inferences a curve is a guess."""


@dataclass(frozen=True, slots=True)
class OffloadCurve:
    """`points` are by rising threshold, as users of the mining write it; empty: `why` says why there are none.

    `threshold`: the one in use; None: the mining has none, or this is of one that is not in use any more. `budget`: the share
    of inferences that may be sent.
    """

    workers: tuple[str, ...]
    edge: str
    cloud: str
    mining: str
    histogram: Histogram
    axis: Axis | None
    threshold: float | None
    budget: float
    points: tuple[tuple[float, Point], ...] = ()
    why: str = ""

    @property
    def answers(self) -> int:
        return sum(self.histogram.answered)

    @property
    def changed(self) -> int:
        return sum(self.histogram.changed)


def curves_of(workers: Sequence[EdgeWorker], edges: Sequence[EdgeServing], budget: float) -> tuple[OffloadCurve, ...]:
    """The one with most inferences first."""
    minings = {worker.name: worker.hard_example_mining for worker in workers}
    groups: dict[tuple[str, str, str], list[tuple[str, ScoreCounts]]] = {}
    for edge in edges:
        scores = edge.scores
        if scores is not None and edge.worker in minings and _is_whole(scores):
            groups.setdefault((scores.edge, scores.cloud, scores.mining), []).append((edge.worker, scores))
    found = [_curve(members, minings[members[0][0]], budget) for members in groups.values()]
    return tuple(sorted(found, key=lambda each: (-each.histogram.total, each.workers)))


def _is_whole(scores: ScoreCounts) -> bool:
    return all(len(column) == BINS for column in (scores.inferences, scores.answered, scores.changed))


def _curve(members: Sequence[tuple[str, ScoreCounts]], mining: HardExampleMining, budget: float) -> OffloadCurve:
    first = members[0][1]
    histogram = summed(
        Histogram(each.inferences, each.answered, each.changed, each.hard, each.apart) for _, each in members
    )
    algorithm, values = mining.algorithm, mining.values()
    in_use = described(algorithm, values) == first.mining
    known = MiningAlgorithm.__members__.values()
    algorithm = next((each for each in known if each.value == first.mining.partition(" ")[0]), algorithm)
    axis, why = axis_of(algorithm), ""
    if axis is None:
        why = f"{algorithm.value} has no threshold: there is nothing to choose, so there is no curve"
    elif algorithm is MiningAlgorithm.CUSTOM and is_yes_or_no(histogram):
        why = "the miner of the script says only whether an answer is hard, without a score: so there is no curve"
    elif not histogram.total:
        why = "no inference was counted yet"
    points = () if axis is None or why else _by_threshold(axis, curve(histogram))
    return OffloadCurve(
        workers=tuple(worker for worker, _ in members),
        edge=first.edge,
        cloud=first.cloud,
        mining=first.mining,
        histogram=histogram,
        axis=axis,
        threshold=threshold_in_use(algorithm, check(algorithm, values)) if in_use else None,
        budget=budget,
        points=points,
        why=why,
    )


def _by_threshold(axis: Axis, points: Sequence[Point]) -> tuple[tuple[float, Point], ...]:
    return tuple(sorted(((round(axis.threshold(point.cut), 4), point) for point in points), key=lambda each: each[0]))


def sentences(found: OffloadCurve) -> tuple[str, ...]:
    """What a person should know of it, the basis first."""
    told = [_basis(found)]
    total = found.histogram.total
    if found.why:
        return (*told, f"{found.why[0].upper()}{found.why[1:]}.")
    assert found.axis is not None
    if found.threshold is not None:
        share = found.histogram.hard / total
        told.append(f"Now {found.axis.words(found.threshold)} is hard: {_percent(share)} of the inferences.")
    if found.budget < 1 and (cut := cut_for(found.histogram, found.budget)) is not None:
        threshold = found.axis.threshold(cut)
        told.append(f"{_capital(found.axis.words(threshold))} would send {_percent(found.budget)}, the whole budget.")
    if total < FEW:
        told.append(f"These are few: wait for {FEW} inferences before you change anything.")
    return tuple(told)


def _basis(found: OffloadCurve) -> str:
    counted, apart = found.histogram.total, found.histogram.apart
    since = f"{counted} inference{'' if counted == 1 else 's'} since these models and this mining serve together"
    if not found.answers:
        compared = "no answer of the cloud could be compared yet"
    else:
        share = _percent(found.changed / found.answers)
        compared = f"of {found.answers} compared answers, the cloud changed {found.changed} ({share})"
    return f"{since}; {compared}{f'; {apart} could not be compared' if apart else ''}."


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


__all__ = ["OffloadCurve", "curves_of", "sentences"]
