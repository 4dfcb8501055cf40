"""How brokers and bridges do, as lines and documents: unknown is written as unknown."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import cli_documents as documents
import pytest

from edgeai.cli.health import cells, columns, node_blocks, node_document
from edgeai.events.catalogue import Bridging, HealthAnswered, Heartbeat, LaneCounts, NodeHealth
from edgeai.resources.node import EdgeNode

BEAT = Heartbeat(100.0, 2, 0.0021, False, 1)
TOLD = Bridging(90.0, True, 1, 0, LaneCounts(50, 2048, dropped_away=3, waiting=4), LaneCounts(20, 100))
WELL = NodeHealth("edge1", heartbeat=BEAT, heartbeat_age_s=1.0, bridging=TOLD, bridging_age_s=2.0, up_per_s=10.0)
COORDINATOR = NodeHealth("cloud/coordinator", heartbeat=replace(BEAT, waiting=7, store_bytes=4096))


@pytest.mark.parametrize(
    ("health", "shown"),
    [
        (WELL, ("2.1 ms", "connected", "3", "2")),
        (NodeHealth("edge1"), ("unknown", "unknown", "unknown", "unknown")),
        (replace(WELL, bridging=None), ("2.1 ms", "lives", "unknown", "2")),
        (
            replace(WELL, bridging=replace(TOLD, edge_connected=False), heartbeat=None),
            ("unknown", "broker away", "3", "unknown"),
        ),
        (
            replace(WELL, heartbeat=replace(BEAT, broker_s=None, broker_silent=True)),
            ("no answer", "connected", "3", "2"),
        ),
        (replace(WELL, node="cloud", bridging=None), ("2.1 ms", "-", "-", "2")),
    ],
    ids=["well", "never-heard", "bridge-says-nothing", "broker-away", "broker-silent", "cloud"],
)
def test_cells(health: NodeHealth, shown: tuple[str, ...]):
    assert cells(health) == shown


def node(name: str = "edge1") -> EdgeNode:
    return EdgeNode.from_document(documents.node(name))


def test_a_node_that_is_not_in_the_answer_is_unknown():
    lines = columns([node("edge1"), node("edge2")], HealthAnswered((WELL,)))
    assert [line[0] for line in lines] == ["ROUND TRIP", "2.1 ms", "unknown"]


def test_describe_shows_lanes_and_queues():
    blocks = dict(node_blocks("edge1", HealthAnswered((WELL,))))
    text = "\n".join(line for lines in blocks.values() for line in lines)
    assert [" ".join(line.split()) for line in blocks["Bridge"]] == [
        "Lives: for 2 min, heard 2 s ago",
        "Broker: connected, 1 reconnect",
        "Cloud: connected, 0 reconnects",
        "LANE FORWARDED PER SECOND BYTES AWAY REFUSED NO ROOM",
        "up 50 10.0 2.0 KiB 3 0 0",
        "down 20 - 100 B 0 0 0",
    ]
    assert "4 up, 0 down" in text
    assert "2 facts without receipt" in text


def test_describe_says_since_when_a_bridge_is_unknown():
    health = NodeHealth("edge1", heartbeat_age_s=200.0, bridging_age_s=200.0)
    blocks = dict(node_blocks("edge1", HealthAnswered((health,))))
    assert blocks["Bridge"] == ["unknown: last heard 3 min ago"]


def test_describe_of_the_cloud_shows_its_coordinator():
    blocks = dict(node_blocks("cloud", HealthAnswered((NodeHealth("cloud"),), COORDINATOR)))
    assert "Bridge" not in blocks
    assert "7 facts" in "\n".join(blocks["Coordinator"])


def test_what_needs_a_person_is_said_in_sentences():
    slow = replace(WELL, heartbeat=replace(BEAT, broker_s=2.0))
    [sentence] = dict(node_blocks("edge1", HealthAnswered((slow,))))["Needs a person"]
    assert sentence == "the broker of edge1 takes 2.0 s for a message: see what keeps its machine busy"


def test_the_document_of_a_node_carries_its_health():
    document = node_document(node(), HealthAnswered((WELL,)))
    assert (document["kind"], document["health"]["bridge"]["up"]["waiting"]) == ("EdgeNode", 4)


def test_the_document_is_unknown_where_the_coordinator_does_not_answer():
    health = node_document(node(), None)["health"]
    assert (health["broker"]["known"], health["bridge"]["known"], health["bridge"]["lives"]) == (False, False, None)


def test_get_nodes_wide_shows_brokers_and_bridges(console):
    console.health = HealthAnswered((WELL,))
    asyncio.run(console.put(documents.node()))
    said = console("get", "nodes", "-o", "wide")
    titles, row = said.out.splitlines()
    assert titles.split()[-6:] == ["ROUND", "TRIP", "BRIDGE", "DROPPED", "OUTBOX", "REASON"]
    assert "2.1 ms" in row
    assert "connected" in row


def test_describe_node_says_unknown_where_the_coordinator_does_not_answer(console):
    console.health = None
    asyncio.run(console.put(documents.node()))
    said = console("describe", "node", "edge1")
    assert "unknown: nothing was heard of it yet" in said.out


def test_describe_node_in_json_has_its_health(console):
    console.health = HealthAnswered((WELL,))
    asyncio.run(console.put(documents.node()))
    assert json.loads(console("describe", "node", "edge1", "--json").out)["health"]["broker"]["round_trip_s"] == 0.0021
