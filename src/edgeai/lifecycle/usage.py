"""What workers use, as far as it was heard of late: the coordinator and the portal keep it like this.

`Usage` is a signal: nobody stores it, and any one may be lost. So there is only the latest of each worker, with its moment;
what is old, or comes from a node that is away, is not known any more and never shown as if it were. Moments are monotonic
seconds of whoever keeps it. What a worker's state is, and whether its node is away, others know.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from edgeai.events.catalogue import Usage

FRESH_S = 25.0
"""One every 10 s: a single one that is lost changes nothing."""
MAY_RUN = frozenset({"Running", "Unknown"})
"""States of a worker that uses something, or of which nobody can say."""
LIMIT = 10_000
"""Workers that are remembered; beyond it the one that was heard of longest ago goes."""


@dataclass(frozen=True, slots=True)
class _Heard:
    at_s: float
    usage: Usage


class Usages:
    """The latest by node, task level and worker: who speaks for a worker of another node changes nothing."""

    def __init__(self) -> None:
        self._heard: dict[tuple[str, str, str], _Heard] = {}

    def __len__(self) -> int:
        return len(self._heard)

    def hear(self, node: str, task: str, worker: str, usage: Usage, at_s: float) -> None:
        key = node, task, worker
        self._heard.pop(key, None)
        self._heard[key] = _Heard(at_s, usage)
        if len(self._heard) > LIMIT:
            del self._heard[next(iter(self._heard))]

    def forget_all_but(self, tasks: Container[str]) -> None:
        """`tasks` are levels."""
        for key in [key for key in self._heard if key[1] not in tasks]:
            del self._heard[key]

    def known(
        self, node: str, task: str, worker: str, now_s: float, *, away: bool = False
    ) -> tuple[Usage | None, float | None]:
        """What it uses (None: not known now), and how many seconds ago that was heard (None: never)."""
        heard = self._heard.get((node, task, worker))
        if heard is None:
            return None, None
        age_s = max(now_s - heard.at_s, 0.0)
        return (None if away or age_s > FRESH_S else heard.usage), age_s

    def grown_old(self, after_s: float, now_s: float) -> list[str]:
        """Levels of tasks of which something has become unknown since `after_s`."""
        return sorted({key[1] for key, heard in self._heard.items() if after_s <= heard.at_s + FRESH_S < now_s})


def usage_document(usage: Usage | None, age_s: float | None) -> dict[str, Any]:
    """For programs: all keys in any case; what is not known is None."""
    return {
        "known": usage is not None,
        "age_s": None if age_s is None else round(age_s, 1),
        "cpus": usage.cpus if usage else None,
        "memory_bytes": usage.memory_bytes if usage else None,
        "memory_limit_bytes": (usage.memory_limit_bytes or None) if usage else None,
        "pids": usage.pids if usage else None,
    }
