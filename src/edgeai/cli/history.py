"""The history of facts as lines for people and documents for programs. Pure."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from edgeai.client import HistoryLine
from edgeai.events.catalogue import RoundStarted
from edgeai.events.envelope import body_of

_LEFT_OUT = frozenset({"task_uid", "train"})  # stands in the address already; said in a word
TITLES = ("TIME", "NODE", "TASK", "WORKER", "EVENT", "DETAILS")


def line_cells(line: HistoryLine) -> tuple[str, ...]:
    """The cells of one row under TITLES."""
    time = datetime.fromtimestamp(line.time, UTC).strftime("%H:%M:%S.%f")[:-3]
    return time, line.node, task_name(line) or "-", line.worker or "-", line.event.kind, details(line.event)


def without_task(row: tuple[str, ...]) -> tuple[str, ...]:
    """The same row where it is clear whose task it is."""
    return (*row[:2], *row[3:])


def task_name(line: HistoryLine) -> str:
    """The name in the level of its address, which ends with a part of the uid."""
    return line.task.rpartition("-")[0]


def details(event: Any) -> str:
    """What an event says, in short: `name=value`, nested values by their own fields."""
    if isinstance(event, RoundStarted) and not event.train:
        return f"validation asked={_short(event.asked)}"
    return " ".join(_parts(event))


def _parts(value: Any) -> list[str]:
    found: list[str] = []
    for item in fields(value):
        inner = getattr(value, item.name)
        if item.name in _LEFT_OUT or inner is None or inner in ("", (), {}):
            continue
        found += _parts(inner) if is_dataclass(inner) else [f"{item.name}={_short(inner)}"]
    return found


def _short(value: Any) -> str:
    match value:
        case Enum():
            return str(value.value)
        case float():
            return f"{value:.4g}"
        case dict():
            return ",".join(f"{key}:{_short(inner)}" for key, inner in value.items())
        case list() | tuple():
            return ",".join(_short(inner) for inner in value)
        case bytes():
            return f"{len(value)} bytes"
        case str() if len(value) == 64 and " " not in value:
            return value[:12]
        case str() if " " in value:
            return json.dumps(value, ensure_ascii=False)
    return str(value)


def line_json(line: HistoryLine) -> str:
    """One document on one line."""
    moment = datetime.fromtimestamp(line.time, UTC).isoformat(timespec="milliseconds")
    document = {
        "sequence": line.sequence,
        "time": moment.replace("+00:00", "Z"),
        "node": line.node,
        "task": line.task,
        "worker": line.worker,
        "kind": line.event.kind,
        "body": body_of(line.event),
    }
    return json.dumps(document, ensure_ascii=False, default=lambda value: f"{len(value)} bytes")
