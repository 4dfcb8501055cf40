"""Named places where a test may end the process, as `kill -9` would.

`EDGEAI_CRASH_AT=name[:n]` ends the process the n-th time (default: first) it passes the point; only with `EDGEAI_TEST=1`, so
that a stray variable cannot stop a real installation. `NAMES` is the whole list; a test checks that it is true.
"""

from __future__ import annotations

import os
import signal

NAMES = frozenset(
    {
        "reactor.before_commit",
        "reactor.after_commit",
        "outbox.before_send",
        "outbox.before_remove",
        "documents.saved",
        "aggregation.collected",
        "aggregation.model_written",
        "aggregation.outcome_fixed",
        "aggregation.model_stored",
        "worker.update_written",
        "worker.offered",
        "coordinator.fact_applied",
        "coordinator.status_written",
        "coordinator.model_registered",
    }
)

_passed: dict[str, int] = {}


def crash_point(name: str) -> None:
    """Die here if the environment says so."""
    wanted = os.environ.get("EDGEAI_CRASH_AT")
    if not wanted or os.environ.get("EDGEAI_TEST") != "1":
        return
    point, _, count = wanted.partition(":")
    if point != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
