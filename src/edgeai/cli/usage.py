"""What workers use, for people and for programs. Pure: values in, text out.

What is not known now is written `unknown` with the age of what was heard last, never as the last good value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edgeai.cli.output import fitted, size
from edgeai.client import Task
from edgeai.events.catalogue import Usage, UsageAnswered, UsageRow
from edgeai.lifecycle.usage import MAY_RUN, usage_document
from edgeai.resources.federated import WorkerStatus

TITLES = ("CPU", "MEMORY", "PIDS", "HEARD")
NOTHING = ("-", "-", "-", "-")
_UNKNOWN = "unknown"


def cells(usage: Usage | None, age_s: float | None) -> tuple[str, ...]:
    """Under TITLES: processors in use, memory of its limit, processes and threads, and how long ago that was."""
    heard = "never" if age_s is None else f"{age_s:.0f}s ago"
    if usage is None:
        return _UNKNOWN, _UNKNOWN, _UNKNOWN, heard
    limit = f" / {size(usage.memory_limit_bytes)}" if usage.memory_limit_bytes else ""
    cpus = "-" if usage.cpus is None else f"{usage.cpus:.2f}"
    return cpus, f"{size(usage.memory_bytes)}{limit}", str(usage.pids), heard


def row_of(worker: WorkerStatus, rows: Sequence[UsageRow]) -> UsageRow | None:
    """What was answered for a worker; None for one that does not run, and so uses nothing."""
    if worker.state not in MAY_RUN:
        return None
    nobody_knows = UsageRow(worker.node, "", worker.name)
    return next((row for row in rows if (row.node, row.worker) == (worker.node, worker.name)), nobody_knows)


def worker_cells(worker: WorkerStatus, rows: Sequence[UsageRow]) -> tuple[str, ...]:
    row = row_of(worker, rows)
    return NOTHING if row is None else cells(row.usage, row.age_s)


def task_document(task: Task, rows: Sequence[UsageRow]) -> dict[str, Any]:
    """The task as stored, and in every row of a worker its `usage` (null: it does not run)."""
    document = task.to_document()
    for shown, worker in zip((document.get("status") or {}).get("workers") or (), task.status.workers, strict=True):
        row = row_of(worker, rows)
        shown["usage"] = None if row is None else usage_document(row.usage, row.age_s)
    return document


def top_lines(answer: UsageAnswered, width: int | None = None) -> list[str]:
    """`width`: of the terminal, if it is one."""
    if not answer.workers:
        return ["no worker runs"]
    rows: list[Sequence[str]] = [("NODE", "TASK", "WORKER", *TITLES)]
    rows += [(row.node, row.task, row.worker, *cells(row.usage, row.age_s)) for row in answer.workers]
    more = [f"and {answer.left_out} more: name a task to see its workers"] if answer.left_out else []
    return [*fitted(rows, width, names=(0, 1, 2)), *more]


def top_json(answer: UsageAnswered) -> str:
    """One document on one line."""
    workers = [
        {"node": row.node, "task": row.task, "worker": row.worker, **usage_document(row.usage, row.age_s)}
        for row in answer.workers
    ]
    return json.dumps({"workers": workers, "left_out": answer.left_out}, ensure_ascii=False)
