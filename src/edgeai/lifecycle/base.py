"""What all state machines share: commands that the reactor itself understands, and the event of a timer.

A machine is three pure functions: `initial` makes the state of a new key, `step(state, event)` returns the new state and the
commands it wants performed, and `resume(state)` returns the commands that a state is waiting for. The reactor calls `resume`
after a restart, so what is being done follows from the state and is stored nowhere else; every command may be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from edgeai.events.catalogue import Event

S = TypeVar("S")


class Command:
    """Base of everything a machine may ask of its shell. Imperative names."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SetTimer(Command):
    """Deliver TimerFired(name) after `after_s` seconds; replaces a timer of the same name."""

    name: str
    after_s: float


@dataclass(frozen=True, slots=True)
class CancelTimer(Command):
    name: str


@dataclass(frozen=True, slots=True)
class Emit(Command):
    """Put a fact into the outbox, in the same transaction as the new state. `worker`: whom it is about, for the address."""

    fact: Event
    task: str = ""
    worker: str = ""


@dataclass(frozen=True, slots=True)
class Forget(Command):
    """The key is finished: remove its state."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    name: str


Step = tuple[S, tuple[Command, ...]]


@dataclass(frozen=True, slots=True)
class Machine(Generic[S]):
    """One state machine, as the reactor runs it. `state` is its type, for storing it."""

    state: type[S]
    initial: Callable[[str], S]
    step: Callable[[S, Any], Step[S]]
    resume: Callable[[S], tuple[Command, ...]]
