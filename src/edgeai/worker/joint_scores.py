"""How the inferences of an edge worker lie over the scores of its mining, and what the cloud made of those that were sent.

Sums in bins (`learning.offload_curve`), for the models and the mining that serve together: another model of the edge or of the
cloud, or another mining, begins anew. What belongs to a model that was replaced a moment ago counts no more. Where the sums are
kept is the business of `joint_counts`, what is judged and sent that of `joint_edge`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeai.events.catalogue import Scores
from edgeai.learning.offload_curve import BINS, bin_of
from edgeai.worker.joint_feeds import label_of

REPLACED_S = 10.0
"""So long answers of the cloud model before may still come; after that, it is back."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An inference as it was counted. `since` names the sums that it counted in."""

    since: int
    place: int
    hard: bool


class ScoreSums:
    def __init__(self, mining: str, before: Scores, clock: Callable[[], float] = time.monotonic) -> None:
        """Goes on with `before` if that is of the same mining."""
        self._clock, self._mining = clock, mining
        self._edge = self._cloud = self._replaced = ""
        self._replaced_s, self._since = -REPLACED_S, 0
        self._begin()
        columns = before.inferences, before.answered, before.changed
        if mining and before.mining == mining and all(len(column) == BINS for column in columns):
            self._edge, self._cloud = before.edge, before.cloud
            self._inferences, self._answered, self._changed = map(list, columns)
            self._hard, self._apart = before.hard, before.apart

    def judged(self, edge: str, score: float, hard: bool, serving: str) -> Judged | None:
        """An inference of the model `edge`. None: of one that was replaced; `serving` is the one that serves now."""
        if edge != serving:
            return None
        if edge != self._edge:
            self._edge = edge
            self._begin()
        return self._count(bin_of(score), hard)

    def answered(self, judged: Judged | None, cloud: str, changed: bool | None) -> None:
        """The cloud has answered it in time. `changed` None: the two answers cannot be compared."""
        if judged is None or (cloud == self._replaced and self._clock() - self._replaced_s < REPLACED_S):
            return
        if self._cloud not in {"", cloud}:
            self._replaced, self._replaced_s = self._cloud, self._clock()
            self._begin()
            judged = self._count(judged.place, judged.hard)
        self._cloud = cloud
        if judged.since != self._since:
            return
        if changed is None:
            self._apart += 1
            return
        self._answered[judged.place] += 1
        self._changed[judged.place] += changed

    def noted(self) -> Scores:
        if not any(self._inferences):
            return Scores()
        columns = tuple(self._inferences), tuple(self._answered), tuple(self._changed)
        return Scores(self._edge, self._cloud, self._mining, *columns, self._hard, self._apart)

    def _begin(self) -> None:
        self._since += 1
        self._inferences, self._answered, self._changed = ([0] * BINS for _ in range(3))
        self._hard = self._apart = 0

    def _count(self, place: int, hard: bool) -> Judged:
        self._inferences[place] += 1
        self._hard += hard
        return Judged(self._since, place, hard)


def differs(edge: Any, cloud: Any) -> bool | None:
    """Whether two answers say another thing of the same input; None: they cannot be compared.

    By their labels, as for hard examples; of two maps by what both have under the same names.
    """
    if isinstance(edge, Mapping) and isinstance(cloud, Mapping):
        found = [differs(edge[name], cloud[name]) for name in edge if name in cloud]
        known = [each for each in found if each is not None]
        return any(known) if known else None
    one, other = label_of(edge), label_of(cloud)
    if one is None or other is None or any(isinstance(each, float) and not each.is_integer() for each in (one, other)):
        return None  # two measures of the same thing are always a little apart
    return one != other


__all__ = ["Judged", "ScoreSums", "differs"]
