"""What the workers of joint inference services said in passing, of the last hour: a point every five seconds for each service.

Signals carry sums; a point holds what they grew by since the point before. A worker that was not heard of for a while begins
anew, so that no gap becomes a peak. Where nobody was heard there is no value (None), never zero. It begins when the portal does
and says since when it has watched. Only who stands among a service's workers, on that node, is heard. Bounded: POINTS for each
service that there is, and its workers. Readings of the clock come in as arguments.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeai.events.address import CLOUD
from edgeai.events.catalogue import Inferences, Inferring

Speaker = tuple[str, str]
"""Node and name of a worker."""
STEP_S, POINTS = 5.0, 720
COLUMNS = (
    "inferences_per_s",
    "share_sent",
    "late_per_s",
    "fell_back_per_s",
    "edge_p50_s",
    "edge_p99_s",
    "cloud_p50_s",
    "cloud_p99_s",
    "waiting_at_edges",
    "waiting_at_replicas",
    "replicas",
)
_GROWING = ("inferences", "sent", "late", "fell_back")


@dataclass(slots=True)
class _Worker:
    """`heard_s` and `counts`: of the last time."""

    heard_s: float
    counts: Inferences


@dataclass(slots=True)
class _Heard:
    """Since the last point. `rates` None: no edge was heard of twice, so nothing is known of what grew."""

    workers: set[Speaker] = field(default_factory=set)
    rates: dict[str, float] | None = None
    replicas: int = 0
    levels: dict[str, float] = field(default_factory=dict)


class History:
    """Of one service. `since`: seconds since 1970."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.at = array("d")
        self.columns = {name: array("f") for name in COLUMNS}
        self.heard = _Heard()
        self.workers: dict[Speaker, _Worker] = {}
        self.members: frozenset[Speaker] = frozenset()

    def follow(self, members: frozenset[Speaker]) -> None:
        """These are the workers of the service."""
        if members != self.members:
            self.members = members
            self.workers = {speaker: worker for speaker, worker in self.workers.items() if speaker in members}

    def hear(self, speaker: Speaker, told: Inferring, now_s: float) -> None:
        heard = self.heard
        heard.workers.add(speaker)
        if speaker[0] == CLOUD:
            heard.replicas += 1
            self._add("waiting_at_replicas", told.waiting)
            return
        self._add("waiting_at_edges", told.waiting)
        for name in ("edge_p50_s", "edge_p99_s", "cloud_p50_s", "cloud_p99_s"):
            if (seconds := getattr(told, name)) > 0:  # else it answered nothing of the kind
                heard.levels[name] = max(heard.levels.get(name, 0.0), seconds)
        before = self.workers.get(speaker)
        self.workers[speaker] = _Worker(now_s, told.counts)
        if before is None or not 0 < now_s - before.heard_s <= 2 * STEP_S + 1:
            return
        rates = heard.rates = heard.rates or dict.fromkeys(_GROWING, 0.0)
        for name in _GROWING:
            grown = getattr(told.counts, name) - getattr(before.counts, name)
            rates[name] += max(grown, 0) / (now_s - before.heard_s)

    def close(self, at: float) -> None:
        """The point of what was heard since the last one."""
        heard, rates = self.heard, self.heard.rates
        found: dict[str, float] = dict(heard.levels)
        if rates is not None:
            found["inferences_per_s"] = rates["inferences"]
            found["late_per_s"], found["fell_back_per_s"] = rates["late"], rates["fell_back"]
            if rates["inferences"]:
                found["share_sent"] = min(rates["sent"] / rates["inferences"], 1.0)
        wanted = any(node == CLOUD for node, _ in self.members)
        if heard.replicas or (heard.workers and not wanted):
            found["replicas"] = heard.replicas
        self.at.append(round(at, 1))
        for name, column in self.columns.items():
            column.append(found.get(name, math.nan))
            del column[:-POINTS]
        del self.at[:-POINTS]
        self.heard = _Heard()

    def document(self) -> dict[str, Any]:
        """Columns of equal length; None: nothing was heard."""
        columns = {name: [_plain(value) for value in column] for name, column in self.columns.items()}
        return {"since": self.since, "step_s": STEP_S, "at": list(self.at), **columns}

    def _add(self, name: str, amount: float) -> None:
        self.heard.levels[name] = self.heard.levels.get(name, 0.0) + amount


class Histories:
    """By task level of the services that there are."""

    def __init__(self) -> None:
        self._found: dict[str, History] = {}
        self._next_s = 0.0

    def of(self, level: str) -> History | None:
        return self._found.get(level)

    def wants(self, level: str, speaker: Speaker) -> bool:
        """Whether a worker of the service says something new before the next point: of many signals, only the first is read."""
        history = self._found.get(level)
        return history is not None and speaker in history.members and speaker not in history.heard.workers

    def hear(self, level: str, speaker: Speaker, told: Inferring, now_s: float) -> None:
        if (history := self._found.get(level)) is not None:
            history.hear(speaker, told, now_s)

    def look(self, services: Mapping[str, frozenset[Speaker]], now_s: float, at: float) -> None:
        """Follow the services that there are, with their workers; a point for each of them when it is time."""
        self._found = {level: self._found.get(level) or History(at) for level in services}
        for level, members in services.items():
            self._found[level].follow(members)
        if now_s < self._next_s:
            return
        self._next_s = max(self._next_s + STEP_S, now_s + STEP_S / 2)
        for history in self._found.values():
            history.close(at)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


__all__ = ["COLUMNS", "POINTS", "STEP_S", "Histories", "History"]
