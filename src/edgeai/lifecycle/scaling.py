"""How many replicas of a cloud worker there are to be, from what the replicas tell. Pure: moments are given, none is read.

More are wanted when requests wait, or the replicas are nearly always busy, for UP_AFTER_S on end; one less when the others
could do the work with room to spare, for DOWN_AFTER_S on end. Between the two nothing changes, and after a change nothing does
until as many replicas as are wanted tell something, or SETTLE_S has passed: what is not seen yet is no reason to want more.

`Inferring` is a signal, and any one may be lost: who was not heard of for FRESH_S is not counted. When nobody is heard of,
nothing is known of the load, and the number stays. What becomes of the number is in `service`, who runs the replicas in
`coordinator.placement`.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from edgeai.events.catalogue import Inferring
from edgeai.resources.joint import Replicas

FRESH_S = 4.0
"""One every second."""
UP_AFTER_S, DOWN_AFTER_S, SETTLE_S = 2.0, 15.0, 10.0
BUSY, AIM, SPARE = 0.85, 0.6, 0.5
"""Shares of a second in which a replica predicts: at the first more are wanted, so many that it becomes the second; one less is
wanted when the others would not be busier than the third."""
LIMIT = 10_000
"""Replicas that are remembered; beyond it the one that was heard of longest ago goes."""


@dataclass(frozen=True, slots=True)
class Load:
    """Of one replica: requests that wait now, and the share of the last second in which it predicted."""

    waiting: int = 0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """`high_s`, `low_s`: since when more, or less, would do, as long as it lasts. `changed_s`: when `wanted` last did."""

    wanted: int
    changed_s: float = -math.inf
    high_s: float | None = None
    low_s: float | None = None
    reason: str = ""


def clamped(wanted: int, replicas: Replicas) -> int:
    return min(max(wanted, replicas.min), replicas.max)


def look(state: Scaling, replicas: Replicas, batch: int, loads: Sequence[Load], now_s: float) -> Scaling:
    """What is wanted now. `loads`: of the replicas that were heard of lately, `batch`: what one answers at a time."""
    inside = clamped(state.wanted, replicas)
    if inside != state.wanted:
        return Scaling(inside, now_s, reason=f"between {replicas.min} and {replicas.max}")
    if not loads or (len(loads) < state.wanted and now_s - state.changed_s < SETTLE_S):
        return replace(state, high_s=None, low_s=None)
    waiting, busy = sum(load.waiting for load in loads), sum(min(load.busy, 1.0) for load in loads)
    if waiting > batch * len(loads) or busy >= BUSY * len(loads):
        needed = math.ceil(state.wanted * busy / len(loads) / AIM)
        why = f"{waiting} requests waited, replicas were busy {busy / len(loads):.0%} of the time"
        return _high(state, replicas, needed, why, now_s)
    if state.wanted > replicas.min and waiting <= batch and busy <= SPARE * (state.wanted - 1):
        return _low(state, replicas, busy, now_s)
    return replace(state, high_s=None, low_s=None)


def _high(state: Scaling, replicas: Replicas, needed: int, why: str, now_s: float) -> Scaling:
    since_s = now_s if state.high_s is None else state.high_s
    if now_s - since_s < UP_AFTER_S:
        return replace(state, high_s=since_s, low_s=None)
    # Replicas that are busy all the time do not say how much more there is to do: at most twice as many at once.
    wanted = clamped(max(min(needed, 2 * state.wanted), state.wanted + 1), replicas)
    if wanted == state.wanted:
        return replace(state, high_s=since_s, low_s=None)
    return Scaling(wanted, now_s, reason=_figures(wanted, replicas, why))


def _low(state: Scaling, replicas: Replicas, busy: float, now_s: float) -> Scaling:
    """One at a time: what was taken away too much costs the start of a worker."""
    since_s = now_s if state.low_s is None else state.low_s
    if now_s - since_s < DOWN_AFTER_S:
        return replace(state, high_s=None, low_s=since_s)
    wanted = clamped(state.wanted - 1, replicas)
    why = f"{state.wanted} replicas were busy {busy / state.wanted:.0%} of the time"
    return Scaling(wanted, now_s, reason=_figures(wanted, replicas, why))


def _figures(wanted: int, replicas: Replicas, why: str) -> str:
    """`3 of 4: 12 requests waited, replicas were busy 97% of the time; 4 is the most`."""
    return f"{wanted} of {replicas.max}: {why}; {replicas.max} is the most"


@dataclass(frozen=True, slots=True)
class _Heard:
    at_s: float
    load: Load


class Loads:
    """The latest of every replica, by task level and worker."""

    def __init__(self) -> None:
        self._heard: dict[tuple[str, str], _Heard] = {}

    def __len__(self) -> int:
        return len(self._heard)

    def hear(self, task: str, worker: str, told: Inferring, at_s: float) -> None:
        key = task, worker
        self._heard.pop(key, None)
        self._heard[key] = _Heard(at_s, Load(told.waiting, told.busy))
        if len(self._heard) > LIMIT:
            del self._heard[next(iter(self._heard))]

    def known(self, task: str, workers: Iterable[str], now_s: float) -> tuple[Load, ...]:
        """Of those of `workers` that were heard of lately."""
        found = (self._heard.get((task, worker)) for worker in workers)
        return tuple(heard.load for heard in found if heard is not None and now_s - heard.at_s <= FRESH_S)

    def forget_all_but(self, tasks: Container[str]) -> None:
        """`tasks` are levels."""
        for key in [key for key in self._heard if key[0] not in tasks]:
            del self._heard[key]
