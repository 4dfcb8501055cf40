"""One node as the coordinator sees it: heard of, lost by its broker, or absent.

    UNHEARD -> READY <-> LOST -> ABSENT -> READY
                 `-----------------^

A *lost* controller may only be restarting: its workers go on and are waited for. One that was not heard of for
SILENT_AFTER_S is *absent*: nobody waits for it, and what it last said is no longer shown as true. Moments are monotonic
seconds of the coordinator; they come in as arguments, and so do instants for people.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from edgeai.events.catalogue import Observed
from edgeai.lifecycle.base import Command, Step

SILENT_AFTER_S = 16.0
TELL_AGAIN_S = 60.0
"""How old what is written of a node that is heard of may become."""


class Presence(StrEnum):
    UNHEARD = "unheard"
    READY = "ready"
    LOST = "lost"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Node:
    """`heard_s`: when it was last heard of; for an unheard one, since when it is waited for. `told_s`: when Ready was told."""

    name: str
    heard_s: float
    presence: Presence = Presence.UNHEARD
    last_seen: str = ""
    told_s: float = 0.0
    observed: Observed | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """A sign of life."""

    at_s: float
    now: str


@dataclass(frozen=True, slots=True)
class Told:
    """Its observed document."""

    observed: Observed
    at_s: float
    now: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Its broker has lost the controller."""


@dataclass(frozen=True, slots=True)
class Ticked:
    at_s: float


NodeEvent = Heard | Told | Lost | Ticked


@dataclass(frozen=True, slots=True)
class Tell(Command):
    """Write the node's Ready condition: `status` True or Unknown, why, and one line for a person."""

    status: str
    reason: str
    message: str
    news: bool = True
    """False: only the time of the last sign of life has changed"""


def step(node: Node, event: NodeEvent) -> Step[Node]:
    """Advance one node. Never raises."""
    match event:
        case Heard(at_s=at_s, now=now):
            heard = replace(node, presence=Presence.READY, heard_s=at_s, last_seen=now)
            if node.presence is not Presence.READY:
                return replace(heard, told_s=at_s), (_READY,)
            if at_s - node.told_s >= TELL_AGAIN_S:
                return replace(heard, told_s=at_s), (_STILL_READY,)
            return heard, ()
        case Told(observed=observed, at_s=at_s, now=now):
            before = node.observed
            told, commands = step(replace(node, observed=observed), Heard(at_s, now))
            changed = before is None or before.info != observed.info
            return told, ((_READY,) if changed else commands)
        case Lost() if node.presence is not Presence.ABSENT:
            message = f"the broker of {node.name} lost its controller"
            return replace(node, presence=Presence.LOST), (Tell("Unknown", "ConnectionLost", message),)
        case Ticked(at_s=at_s) if node.presence is not Presence.ABSENT and at_s - node.heard_s > SILENT_AFTER_S:
            message = f"{node.name} has not been heard of since {node.last_seen or 'the coordinator started'}"
            return replace(node, presence=Presence.ABSENT), (Tell("Unknown", "Silent", message),)
    return node, ()


_READY = Tell("True", "Heard", "")
_STILL_READY = replace(_READY, news=False)
