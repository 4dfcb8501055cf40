"""The table of events and addresses for `docs/events.md`, made from the catalogue; a test compares the two."""

from __future__ import annotations

import inspect
from dataclasses import fields
from itertools import groupby

from edgeai.events.catalogue import CATALOGUE, Event
from edgeai.events.envelope import MAX_EVENT_BYTES

_CLASSES = ("state", "fact", "transfer", "signal", "request")
_COLUMNS = "| kind | direction | fields | meaning |\n| --- | --- | --- | --- |\n"
_HEAD = """# Events and topics

Made from `src/edgeai/events/catalogue.py` by `python -m edgeai.events.reference > docs/events.md`.

An event travels on `edgeai/1/<node>/<up|down|local>/<class>/<kind>/<task>/<worker>` over MQTT, and on the same with dots over
NATS. `up` is towards the cloud, `down` towards the edge, `local` between a controller and its workers (never bridged). `-`
fills an empty level. The level of a task is its name and the first eight characters of its uid. An event has at most
{limit:,} bytes; larger things are blobs and travel as chunks.
"""


def markdown() -> str:
    """The whole page."""
    events = sorted(CATALOGUE.values(), key=lambda item: (_CLASSES.index(item.event_class), item.kind))
    parts = [_HEAD.format(limit=MAX_EVENT_BYTES)]
    for event_class, members in groupby(events, key=lambda item: item.event_class):
        parts.append(f"\n## {event_class.value.capitalize()}\n\n{_COLUMNS}")
        parts += [_row(event) for event in members]
    parts.append(
        "\nBlobs travel as `chunk` (class transfer, both directions): raw bytes after the fixed header of a chunk.\n"
    )
    return "".join(parts)


def _row(event: type[Event]) -> str:
    names = ", ".join(f"`{item.name}`" for item in fields(event)) or "none"  # type: ignore[arg-type]
    meaning = " ".join((inspect.getdoc(event) or "").split("\n\n")[0].split())
    return f"| `{event.kind}` | {event.direction.value} | {names} | {meaning} |\n"


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201
