"""How nodes, their brokers and bridges do, for people and for programs. Pure: values in, text out.

What is not known now is written `unknown` with the age of what was heard last, never as the last good value; where the
coordinator does not answer, all is unknown. The rules are those of the portal (`lifecycle.health`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeai.cli.output import aligned, size
from edgeai.events.address import CLOUD
from edgeai.events.catalogue import HealthAnswered, LaneCounts, NodeHealth
from edgeai.lifecycle.health import bridge_unknown, coordinator_document, health_document, in_words, needs
from edgeai.resources.node import EdgeNode

TITLES = ("ROUND TRIP", "BRIDGE", "DROPPED", "OUTBOX")
_UNKNOWN = "unknown"
_NOBODY = HealthAnswered(())


def health_of(node: str, answer: HealthAnswered | None) -> NodeHealth:
    found = (answer or _NOBODY).nodes
    return next((health for health in found if health.node == node), NodeHealth(node))


def cells(health: NodeHealth) -> tuple[str, ...]:
    """Under TITLES: of a message through the node's broker, the bridge, what that has dropped, facts without receipt."""
    beat, told = health.heartbeat, health.bridging
    bridge, dropped = ("-", "-") if health.node == CLOUD else (_bridge(health), _UNKNOWN)
    if told is not None:
        dropped = str(told.up.dropped + told.down.dropped)
    return _trip(health), bridge, dropped, _UNKNOWN if beat is None else str(beat.outbox)


def columns(nodes: Sequence[EdgeNode], answer: HealthAnswered | None) -> list[tuple[str, ...]]:
    """A line of titles, and one for each node."""
    return [TITLES, *(cells(health_of(node.name, answer)) for node in nodes)]


def node_blocks(node: str, answer: HealthAnswered | None) -> list[tuple[str, list[str]]]:
    """Title and lines of each block that `describe` shows of a node."""
    health = health_of(node, answer)
    blocks = [("Broker", aligned([["Round trip:", _trip(health)], ["Heard:", _ago(health.heartbeat_age_s)]]))]
    if node == CLOUD:
        blocks.append(("Coordinator", _coordinator((answer or _NOBODY).coordinator)))
    else:
        blocks.append(("Bridge", _bridge_lines(health)))
    blocks.append(("Queues", _queues(health)))
    found = needs(health)
    if node == CLOUD and answer is not None and answer.coordinator is not None:
        found += needs(answer.coordinator)
    return [*blocks, ("Needs a person", list(found))] if found else blocks


def node_document(node: EdgeNode, answer: HealthAnswered | None) -> dict[str, Any]:
    """The node as stored, its `health`, and with the cloud's own node the `coordinator`."""
    found = {**node.to_document(), "health": health_document(health_of(node.name, answer))}
    if node.name == CLOUD:
        known = (answer or _NOBODY).coordinator or NodeHealth("cloud/coordinator")
        found["coordinator"] = coordinator_document(known)
    return found


def _trip(health: NodeHealth) -> str:
    beat = health.heartbeat
    if beat is None or (beat.broker_s is None and not beat.broker_silent):
        return _UNKNOWN
    return "no answer" if beat.broker_s is None else f"{beat.broker_s * 1000:.1f} ms"


def _ago(age_s: float | None) -> str:
    return "never" if age_s is None else f"{in_words(age_s)} ago"


def _bridge(health: NodeHealth) -> str:
    """In a word or two."""
    if health.bridging is None:
        return "lives" if health.heartbeat else _UNKNOWN
    return "connected" if health.bridging.edge_connected else "broker away"


def _bridge_lines(health: NodeHealth) -> list[str]:
    told = health.bridging
    if told is None:
        return [f"{_bridge(health)}: {bridge_unknown(health)}"]
    pairs = [
        ["Lives:", f"for {in_words(told.uptime_s)}, heard {_ago(health.bridging_age_s)}"],
        ["Broker:", _link(told.edge_connected, told.edge_reconnects)],
        ["Cloud:", _link(True, told.cloud_reconnects)],
    ]
    rows = [["LANE", "FORWARDED", "PER SECOND", "BYTES", "AWAY", "REFUSED", "NO ROOM"]]
    rows += [_lane("up", told.up, health.up_per_s), _lane("down", told.down, health.down_per_s)]
    return [*aligned(pairs), *aligned(rows)]


def _link(connected: bool, again: int) -> str:
    return f"{'connected' if connected else 'away'}, {again} reconnect{'' if again == 1 else 's'}"


def _lane(name: str, lane: LaneCounts, per_s: float | None) -> list[str]:
    rate = "-" if per_s is None else f"{per_s:.1f}"
    dropped = (lane.dropped_away, lane.dropped_refused, lane.dropped_full)
    return [name, str(lane.forwarded), rate, size(lane.forwarded_bytes), *map(str, dropped)]


def _queues(health: NodeHealth) -> list[str]:
    beat, told = health.heartbeat, health.bridging
    rows = [
        ["Outbox:", _UNKNOWN if beat is None else f"{beat.outbox} facts without receipt"],
        ["Controller:", _UNKNOWN if beat is None or beat.waiting is None else f"{beat.waiting} to be read"],
    ]
    if health.node != CLOUD:
        rows.append(["Bridge:", _UNKNOWN if told is None else f"{told.up.waiting} up, {told.down.waiting} down"])
    return aligned(rows)


def _coordinator(health: NodeHealth | None) -> list[str]:
    health = health or NodeHealth("")
    beat = health.heartbeat
    waiting = _UNKNOWN if beat is None or beat.waiting is None else f"{beat.waiting} facts"
    store = _UNKNOWN if beat is None or beat.store_bytes is None else size(beat.store_bytes)
    if beat is not None and beat.store_limit_bytes:
        store += f" of {size(beat.store_limit_bytes)}"
    return aligned([["Round trip:", _trip(health)], ["Waiting:", waiting], ["Store:", store]])
