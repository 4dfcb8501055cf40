"""Which answers are hard: the job's algorithm (`learning.hard_examples`), or a function of the script's own.

Mining never costs an answer: what cannot be scored is not hard, and that is said once in a while.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import structlog

from edgeai.errors import Refused
from edgeai.learning.hard_examples import EASIEST, Hardness, miner, verdict
from edgeai.resources.mining import ENTRY_POINT, MiningAlgorithm

log = structlog.get_logger()

_TELL_S = 60.0


class Mining:
    """`failed`: so many answers could not be scored."""

    def __init__(self, algorithm: str, parameters: Mapping[str, Any]) -> None:
        """Raises Refused: an algorithm, a parameter or an entry point that is none."""
        found = miner(algorithm, parameters)
        custom = found.algorithm is MiningAlgorithm.CUSTOM
        self._score: Callable[[Any, str], Hardness] = _custom(str(found.values[ENTRY_POINT])) if custom else found.score
        self._algorithm, self.failed, self._told_s = algorithm, 0, -_TELL_S

    def look(self, prediction: Any, example_id: str) -> Hardness:
        try:
            return self._score(prediction, example_id)
        except Exception as error:  # noqa: BLE001 - of a function of the script, or an answer of another kind
            self.failed += 1
            if time.monotonic() - self._told_s >= _TELL_S:
                self._told_s = time.monotonic()
                reason = f"{self._algorithm}: {type(error).__name__}: {error}"
                log.warning("answers_not_mined", failed=self.failed, reason=reason)
            return EASIEST


def _custom(entry_point: str) -> Callable[[Any, str], Hardness]:
    """A function of the script: it gets a prediction, and returns whether that is hard, or that and a score."""
    module, _, name = entry_point.partition(":")
    if os.getcwd() not in sys.path:  # a controller starts scripts in their folder, whatever subfolder they begin in
        sys.path.append(os.getcwd())
    try:
        function = attrgetter(name)(importlib.import_module(module))
    except Exception as error:
        raise Refused(f"mining by {entry_point} is not possible: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise Refused(f"mining by {entry_point} is not possible: it is no function")
    return lambda prediction, _: verdict(function(prediction))
