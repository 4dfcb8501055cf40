"""Named places where a test may end the process, as `kill -9` would.

`EDGEAI_CRASH_AT=name[:n]` ends the process the n-th time (default: first) it passes the point. A process that is started
again passes it again and ends again; so for whole systems there is `EDGEAI_CRASH_FOLDER`: a file in that folder, named
`<point>` or `<point>@<who>` and holding n (empty: 1), ends one process once; the process takes the file away before it
ends. `who` is the name of a worker, or the command that a daemon was started as (`cloud`, `edge`). Workers in containers see
the same folder, which their user must be allowed to write.

All of this only with `EDGEAI_TEST=1`, so that a stray variable cannot stop a real installation. `NAMES` is the whole list;
a test checks that it is true.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

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
        "aggregation.before_answer",
        "aggregation.model_stored",
        "worker.update_written",
        "worker.offered",
        "examples.rows_taken",
        "examples.hard_taken",
        "examples.snapshot_fixed",
        "examples.snapshot_written",
        "job.snapshot_taken",
        "job.model_taken",
        "job.model_linked",
        "job.serving_written",
        "job.model_staged",
        "job.new_model_heard",
        "job.deployed_committed",
        "worker.stage_reported",
        "worker.hard_example_kept",
        "worker.model_swapped",
        "worker.model_noted",
        "coordinator.fact_applied",
        "coordinator.status_written",
        "coordinator.model_registered",
        "coordinator.deployed_registered",
    }
)

_passed: dict[str, int] = {}


def crash_point(name: str) -> None:
    """Die here if the environment says so."""
    if os.environ.get("EDGEAI_TEST") != "1":
        return
    point, _, count = os.environ.get("EDGEAI_CRASH_AT", "").partition(":")
    if point == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(count or 1):
            _die()
    folder = os.environ.get("EDGEAI_CRASH_FOLDER")
    if folder:
        for armed in (Path(folder, f"{name}@{_who()}"), Path(folder, name)):
            if _is_due(armed):
                _die()


def _is_due(armed: Path) -> bool:
    """Whether this passing is the one; of several processes only one takes the file away."""
    try:
        wanted = int(armed.read_text() or 1)
        key = str(armed)
        _passed[key] = _passed.get(key, 0) + 1
        if _passed[key] < wanted:
            return False
        armed.unlink()
    except FileNotFoundError:
        return False
    del _passed[key]
    return True


def _who() -> str:
    return os.environ.get("EDGEAI_WORKER") or (sys.argv[1] if len(sys.argv) > 1 else "")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
