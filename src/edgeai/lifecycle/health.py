"""Whether controllers, brokers and bridges do well, as far as it was heard of late: coordinator and portal keep it like this.

`Heartbeat` and `Bridging` are signals: nobody stores them, and any one may be lost. So there is only the latest of each node,
with its moment; what is old is not known any more, and never shown as if it were. `usage` beside this does the same for what
workers use. From what is known follow the sentences for a person (`needs`) and the document for programs
(`health_document`), so that pages, the API and the command line say the same. Moments are monotonic seconds of whoever
keeps it.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, fields
from typing import Any

from edgeai.events.address import CLOUD
from edgeai.events.catalogue import Bridging, Heartbeat, LaneCounts, NodeHealth

FRESH_S = 16.0
"""One every 5 s: two that are lost change nothing."""
SLOW_S, SKEW_S = 1.0, 5.0
CROWDED, CROWDED_S = 1000, 60.0
"""So many that wait are too many; of what has arrived, if it lasts so long."""
DROPS_APART_S = 30.0
"""Messages that are dropped further apart than this have nothing to do with each other."""
LIMIT = 10_000
"""Nodes that are remembered; beyond it the one that was heard of longest ago goes."""
_RATE_OVER_S = 2.0


@dataclass(slots=True)
class _Heard:
    """`dropping` is when the bridge first and last told of messages dropped, and how often in a row."""

    gone: bool = False
    beat: Heartbeat | None = None
    beat_at_s: float = 0.0
    skew_s: float = 0.0
    crowded_since_s: float | None = None
    bridging: Bridging | None = None
    bridging_at_s: float = 0.0
    rated: Bridging | None = None
    rates: tuple[float, float] | None = None
    dropping: tuple[float, float, int] | None = None


class Healths:
    """The latest by node. Who has a second name (the coordinator: cloud/coordinator) is kept under it like a node."""

    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}

    def __len__(self) -> int:
        return len(self._heard)

    def beat(self, node: str, beat: Heartbeat, skew_s: float, at_s: float) -> None:
        heard = self._of(node)
        heard.gone, heard.beat, heard.beat_at_s, heard.skew_s = False, beat, at_s, skew_s
        if (beat.waiting or 0) <= CROWDED:
            heard.crowded_since_s = None
        elif heard.crowded_since_s is None:
            heard.crowded_since_s = at_s

    def gone(self, node: str) -> None:
        """Its broker has lost the controller."""
        if node in self._heard:
            self._heard[node].gone = True

    def bridge(self, node: str, told: Bridging, at_s: float) -> bool:
        """True if it told of more than that it forwards: a connection, a reconnect, something dropped."""
        heard = self._of(node)
        before, heard.bridging, heard.bridging_at_s = heard.bridging, told, at_s
        if before is None or told.uptime_s < before.uptime_s:  # it began anew, and so did its sums
            heard.rated, heard.rates = told, None
            return True
        _rate(heard, told)
        dropped = _dropped(told) > _dropped(before)
        if dropped:
            since_s, last_s, times = heard.dropping or (at_s, at_s, 0)
            again = at_s - last_s <= DROPS_APART_S
            heard.dropping = (since_s, at_s, times + 1) if again else (at_s, at_s, 1)
        return dropped or _connections(told) != _connections(before)

    def forget_all_but(self, nodes: Container[str]) -> None:
        for node in [node for node in self._heard if node not in nodes]:
            del self._heard[node]

    def known(self, node: str, now_s: float, *, away: bool = False) -> NodeHealth:
        """`away`: nothing can be heard at present."""
        heard = self._heard.get(node)
        if heard is None:
            return NodeHealth(node)
        found: dict[str, Any] = {}  # made into a value once: a portal asks this of every node at every look
        if heard.beat is not None:
            found["heartbeat_age_s"] = age_s = max(now_s - heard.beat_at_s, 0.0)
            if not (away or heard.gone or age_s > FRESH_S):
                found |= {"heartbeat": heard.beat, "skew_s": heard.skew_s}
                if heard.crowded_since_s is not None:
                    found["crowded_s"] = max(now_s - heard.crowded_since_s, 0.0)
        if heard.bridging is not None:
            found["bridging_age_s"] = age_s = max(now_s - heard.bridging_at_s, 0.0)
            if not (away or age_s > FRESH_S):
                up, down = heard.rates or (None, None)
                found |= {"bridging": heard.bridging, "up_per_s": up, "down_per_s": down}
                found["dropping_s"] = _dropping_s(heard, now_s)
        return NodeHealth(node, heard.gone, **found)

    def _of(self, node: str) -> _Heard:
        found = self._heard.pop(node) if node in self._heard else _Heard()
        self._heard[node] = found
        if len(self._heard) > LIMIT:
            del self._heard[next(iter(self._heard))]
        return found


def _rate(heard: _Heard, told: Bridging) -> None:
    before = heard.rated
    if before is None or (over_s := told.uptime_s - before.uptime_s) < _RATE_OVER_S:
        return
    counts = (told.up.forwarded - before.up.forwarded, told.down.forwarded - before.down.forwarded)
    heard.rated, heard.rates = told, (max(counts[0], 0) / over_s, max(counts[1], 0) / over_s)


def _dropping_s(heard: _Heard, now_s: float) -> float | None:
    """Once is what any outage costs, and the ends have repaired it; again is a matter for a person."""
    if heard.dropping is None:
        return None
    since_s, last_s, times = heard.dropping
    return now_s - since_s if times > 1 and now_s - last_s <= DROPS_APART_S else None


def _dropped(told: Bridging) -> int:
    return told.up.dropped + told.down.dropped


def _connections(told: Bridging) -> tuple[bool, int, int]:
    return told.edge_connected, told.edge_reconnects, told.cloud_reconnects


# --- what follows from it


def silence(who: str, age_s: float | None, *, gone: bool = False) -> str:
    """Why nothing is known now of who was last heard of so long ago; empty if it is. None: never heard of."""
    if gone:
        return f"the broker of {who} has lost its controller"
    if age_s is None:
        return f"{who} has not been heard of yet"
    return f"{who} has not been heard of for {in_words(age_s)}" if age_s > FRESH_S else ""


def bridge_lives(health: NodeHealth) -> bool | None:
    """Who hears the controller of an edge hears it through the bridge. None: not known."""
    return True if health.bridging is not None or health.heartbeat is not None else None


def bridge_unknown(health: NodeHealth) -> str:
    """Why what the bridge counts is not known; empty if it is."""
    if health.bridging is not None:
        return ""
    age_s = health.bridging_age_s
    last = "nothing was heard of it yet" if age_s is None else f"last heard {in_words(age_s)} ago"
    return f"it forwards what the controller says and tells nothing of itself: {last}" if health.heartbeat else last


def needs(health: NodeHealth) -> tuple[str, ...]:
    """Sentences for a person, the gravest first."""
    node, beat, bridge = health.node, health.heartbeat, health.bridging
    found = []
    if bridge is not None and not bridge.edge_connected:
        found.append(f"the bridge of {node} lives, the node's broker is away: see the broker's log there, or start it")
    elif bridge is not None and beat is None:
        silent = "" if health.heartbeat_age_s is None else f" for {in_words(health.heartbeat_age_s)}"
        found.append(
            f"the bridge of {node} lives, the controller is silent{silent}: see the log of `edgeai edge` there"
        )
    if beat is not None:
        found += _of_beat(health, beat)
    if bridge is not None and health.dropping_s is not None:
        since = f"for {in_words(health.dropping_s)}, {_dropped(bridge):,} since it began"
        found.append(f"the bridge of {node} drops messages {since}: the page of the edge says why, its log which")
    return tuple(found)


def _of_beat(health: NodeHealth, beat: Heartbeat) -> list[str]:
    node, found = health.node, []
    who, broker = ("the coordinator", "the cloud's broker") if "/" in node else (node, f"the broker of {node}")
    if beat.broker_silent:
        found.append(f"{broker} takes messages of {who} and brings none back: see its log and its permissions")
    elif beat.broker_s is not None and beat.broker_s > SLOW_S:
        found.append(f"{broker} takes {beat.broker_s:.1f} s for a message: see what keeps its machine busy")
    if health.crowded_s is not None and health.crowded_s > CROWDED_S:
        what = f"has had more than {CROWDED:,} messages waiting for {in_words(health.crowded_s)}"
        found.append(
            f"{who} {what}, now {beat.waiting:,}: see its log, and whether its machine has processors to spare"
        )
    if beat.outbox > CROWDED:
        held = f"{node} holds {beat.outbox:,} facts that the coordinator has not confirmed"
        found.append(f"{held}: see whether the coordinator runs, and the bridge of {node}")
    if health.skew_s is not None and abs(health.skew_s) > SKEW_S and "/" not in node:
        way = "behind" if health.skew_s > 0 else "ahead of"
        found.append(f"the clock of {node} is {abs(health.skew_s):.0f} s {way} this one: let NTP set it there")
    return found


def in_words(age_s: float) -> str:
    if age_s < 60:
        return f"{age_s:.0f} s"
    return f"{age_s / 60:.0f} min" if age_s < 5400 else f"{age_s / 3600:.0f} h"


def health_document(health: NodeHealth) -> dict[str, Any]:
    """For programs: all keys in any case; what is not known is None. Ages and times in seconds.

    The bridge is None of the cloud's own node, which needs none.
    """
    beat = health.heartbeat
    return {
        "broker": _broker_document(health),
        "bridge": None if health.node == CLOUD else _bridge_document(health),
        "waiting": beat.waiting if beat else None,
        "attention": list(needs(health)),
    }


def coordinator_document(health: NodeHealth) -> dict[str, Any]:
    """As `health_document`, of the coordinator: `waiting` are facts, the store is the cloud's JetStream."""
    beat = health.heartbeat
    return {
        "broker": _broker_document(health),
        "waiting": beat.waiting if beat else None,
        "store_bytes": beat.store_bytes if beat else None,
        "store_limit_bytes": (beat.store_limit_bytes or None) if beat else None,
        "attention": list(needs(health)),
    }


def _broker_document(health: NodeHealth) -> dict[str, Any]:
    beat = health.heartbeat
    told = beat is not None and (beat.broker_s is not None or beat.broker_silent)
    return {
        "known": told,
        "age_s": _rounded(health.heartbeat_age_s),
        "answers": not beat.broker_silent if beat and told else None,
        "round_trip_s": beat.broker_s if beat else None,
    }


def _bridge_document(health: NodeHealth) -> dict[str, Any]:
    told = health.bridging
    return {
        "known": told is not None,
        "age_s": _rounded(health.bridging_age_s),
        "reason": bridge_unknown(health),
        "lives": bridge_lives(health),
        "uptime_s": _rounded(told.uptime_s) if told else None,
        "edge_connected": told.edge_connected if told else None,
        "edge_reconnects": told.edge_reconnects if told else None,
        "cloud_reconnects": told.cloud_reconnects if told else None,
        "dropping_s": _rounded(health.dropping_s),
        "up": _lane(told.up, health.up_per_s) if told else None,
        "down": _lane(told.down, health.down_per_s) if told else None,
    }


def _lane(lane: LaneCounts, per_s: float | None) -> dict[str, Any]:
    counts = {item.name: getattr(lane, item.name) for item in fields(lane)}
    return {**counts, "forwarded_per_s": _rounded(per_s)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
