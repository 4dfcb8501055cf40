"""What the page of an incremental learning job shows beside what every task has: stages, counts, what serves, columns to plot.

Made from the stored document alone: the status holds the newest stages of all rounds. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgeai.lifecycle.stage import GAVE_UP

Document = dict[str, Any]
_LABELS = {"validated": "the new model", "submitted": "the one that served"}
"""What the two lines of a chart are; a federated task has the same keys."""


def job_page(resource: Document) -> Document:
    """stages (newest first), counts, serving (None: nothing yet), node, plots.

    `reason` is that of the job, where the newest stage does not say the same; `held`: it waits for a hand.
    """
    spec, status = resource.get("spec") or {}, resource.get("status") or {}
    history, reason = status.get("history") or [], status.get("reason") or ""
    return {
        "stage": stage_of(status),
        "reason": "" if history and history[-1].get("reason") == reason else reason,
        "held": status.get("state") == "Failed" and reason.startswith(GAVE_UP),
        "stages": list(reversed(history)),
        "counts": status.get("counts") or {},
        "serving": status.get("serving"),
        "node": spec.get("nodeName", ""),
        "plots": plots(history),
    }


def stage_of(status: Document) -> str:
    """`Train Waiting`; empty for what has no stages."""
    return f"{status['stage']} {status.get('state', '')}".strip() if status.get("stage") else ""


def plots(history: Iterable[Document]) -> Document:
    """Metrics by round, of all classes together: the new model's, and those of the model that it was compared with."""
    rounds = {row["round"]: row for row in history if row.get("stage") == "Eval" and row.get("state") == "Completed"}
    rows = [rounds[number] for number in sorted(rounds)]
    return {
        "x": [row["round"] for row in rows],
        "validated": _columns([row.get("metrics") or {} for row in rows]),
        "submitted": _columns([row.get("serving") or {} for row in rows]),
        "labels": _LABELS,
    }


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    names = sorted({name for row in rows for name in row if "/" not in name})
    return {name: [row.get(name) for row in rows] for name in names}
