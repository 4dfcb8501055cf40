"""Where an event travels: the one place that knows topics and subjects.

An address has eight levels, always all of them, so that a wildcard is one level and MQTT's `#` (which also matches the
parent level, where NATS' `>` does not) is never needed between edge and cloud:

    edgeai / 1 / <node> / <up|down|local> / <class> / <kind> / <task> / <worker>

The same with dots is the NATS subject. `-` fills an empty level. Names are checked where they enter, nothing is escaped:
`+ # / $ > * .` and spaces cannot occur. The class is a level, so the bridge forwards without opening a body.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from edgeai.errors import AddressError
from edgeai.resources.names import NAME, NAME_RULE

# A task's level is its name and eight characters of its uid: up to nine characters longer than a name.
LEVEL_PATTERN = r"[a-z0-9]([-a-z0-9]{0,57}[a-z0-9])?"
_LEVEL = re.compile(LEVEL_PATTERN)
_ROOT, _VERSION, _EMPTY, _LEVELS = "edgeai", "1", "-", 8
CLOUD = "cloud"


class Direction(StrEnum):
    UP = "up"
    DOWN = "down"
    LOCAL = "local"


class EventClass(StrEnum):
    """The five ways an event travels; see docs/architecture.md for the promise of each."""

    STATE = "state"
    FACT = "fact"
    TRANSFER = "transfer"
    SIGNAL = "signal"
    REQUEST = "request"


def checked_name(text: str) -> str:
    """Return `text` if it is a valid name, else raise AddressError saying what a name looks like."""
    if not NAME.fullmatch(text):
        raise AddressError(text, NAME_RULE)
    return text


def task_level(name: str, uid: str) -> str:
    """The level of a task: its name and the first eight characters of its uid (32 hexadecimal digits)."""
    return f"{name}-{uid[:8]}"


@dataclass(frozen=True, slots=True)
class Address:
    """One address. Empty `task` or `worker` travels as `-`."""

    node: str
    direction: Direction
    event_class: EventClass
    kind: str
    task: str = ""
    worker: str = ""

    def __post_init__(self) -> None:
        _check_levels(self.node, self.kind, *filter(None, (self.task, self.worker)))

    def topic(self) -> str:
        return "/".join(self._levels())

    def subject(self) -> str:
        return ".".join(self._levels())

    def _levels(self) -> tuple[str, ...]:
        return (
            _ROOT,
            _VERSION,
            self.node,
            self.direction.value,
            self.event_class.value,
            self.kind,
            self.task or _EMPTY,
            self.worker or _EMPTY,
        )

    @staticmethod
    def from_topic(topic: str) -> Address:
        return _parse(topic, "/")

    @staticmethod
    def from_subject(subject: str) -> Address:
        return _parse(subject, ".")


def _check_levels(*levels: str) -> None:
    for level in levels:
        if not _LEVEL.fullmatch(level):
            raise AddressError(level, "not a valid level of an address")


def _parse(text: str, separator: str) -> Address:
    if len(text) > 512:
        raise AddressError(text, "longer than 512 characters")
    levels = text.split(separator)
    if len(levels) != _LEVELS or levels[0] != _ROOT:
        raise AddressError(text, f"not {_ROOT} and {_LEVELS} levels")
    if "" in levels:
        raise AddressError(text, f"an empty level is written {_EMPTY}")
    if levels[1] != _VERSION:
        raise AddressError(text, f"address version {levels[1]!r} is unknown here; this program speaks {_VERSION}")
    try:
        direction, event_class = Direction(levels[3]), EventClass(levels[4])
    except ValueError as error:
        raise AddressError(text, str(error)) from error
    task, worker = (("" if level == _EMPTY else level) for level in levels[6:8])
    return Address(levels[2], direction, event_class, levels[5], task, worker)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A set of addresses: every level that is None matches anything (an empty task or worker included)."""

    node: str | None = None
    direction: Direction | None = None
    event_class: EventClass | None = None
    kind: str | None = None
    task: str | None = None
    worker: str | None = None

    def __post_init__(self) -> None:
        given = (level for level in (self.node, self.kind) if level is not None)
        _check_levels(*given, *filter(None, (self.task, self.worker)))

    def topic(self) -> str:
        return "/".join(self._levels("+"))

    def subject(self) -> str:
        return ".".join(self._levels("*"))

    def matches(self, address: Address) -> bool:
        return all(
            mine is None or mine == theirs
            for mine, theirs in (
                (self.node, address.node),
                (self.direction, address.direction),
                (self.event_class, address.event_class),
                (self.kind, address.kind),
                (self.task, address.task),
                (self.worker, address.worker),
            )
        )

    def _levels(self, wildcard: str) -> tuple[str, ...]:
        def level(value: str | None) -> str:
            return wildcard if value is None else (value or _EMPTY)

        return (
            _ROOT,
            _VERSION,
            level(self.node),
            level(self.direction and self.direction.value),
            level(self.event_class and self.event_class.value),
            level(self.kind),
            level(self.task),
            level(self.worker),
        )
