"""Figures of an inference worker: how many requests, how hard, how long. Readings of the clock come in as arguments."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

WINDOW_S = 10.0
"""Latencies are those of the last seconds."""
WINDOW_REQUESTS = 200
"""The rate of hard examples is that of the last requests."""
_MAX_LATENCIES = 20_000


class Figures:
    """Counts are sums since this run began."""

    def __init__(self) -> None:
        self.requests = self.failed = self.hard = 0
        self._latencies: deque[tuple[float, float]] = deque(maxlen=_MAX_LATENCIES)
        self._last: deque[bool] = deque(maxlen=WINDOW_REQUESTS)

    def answered(self, now_s: float, seconds: float, hard: bool) -> None:
        self.requests += 1
        self.hard += hard
        self._last.append(hard)
        self._latencies.append((now_s, seconds))

    def not_answered(self) -> None:
        self.requests += 1
        self.failed += 1

    @property
    def hard_rate(self) -> float:
        return sum(self._last) / len(self._last) if self._last else 0.0

    def percentiles(self, now_s: float) -> tuple[float, float]:
        """p50 and p99 of the last seconds; 0 without requests."""
        while self._latencies and self._latencies[0][0] < now_s - WINDOW_S:
            self._latencies.popleft()
        found = sorted(seconds for _, seconds in self._latencies)
        return _percentile(found, 0.50), _percentile(found, 0.99)


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
