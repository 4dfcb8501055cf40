"""What a script's predict raises: a sentence for the caller that says where, and a traceback in the worker's log.

The log stays readable: of each kind of error (its type, and the line that raised it) one traceback a minute, with how many
there were since the last one. Who gets the sentence is the business of `joint_applications` and `joint_cloud`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

import structlog

from edgeai.errors import EdgeaiError
from edgeai.worker.predicting import sentence

log = structlog.get_logger()

MINUTE_S, MAX_KINDS = 60.0, 64


class Failures:
    def __init__(self, who: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`who`: as the sentence begins, such as `edge worker little of service digits`."""
        self._who, self._clock = who, clock
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    def told(self, error: Exception) -> str:
        """One line for the caller; what is no error of ours stands in the log."""
        if not isinstance(error, EdgeaiError):
            self._note(error)
        return f"{self._who}: {sentence(error)}"

    def _note(self, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        kind, now_s = (type(error).__name__, place), self._clock()
        told_s, times = self._kinds.pop(kind, (-MINUTE_S, 0))
        times += 1
        if now_s - told_s >= MINUTE_S:
            log.error("predict_failed", kind=kind[0], at=place, times=times, exc_info=error)
            told_s, times = now_s, 0
        self._kinds[kind] = told_s, times
        while len(self._kinds) > MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]


__all__ = ["Failures"]
