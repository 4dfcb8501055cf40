"""The numbers of a daemon: one table, few labels, served on loopback only."""

from __future__ import annotations

import asyncio
import urllib.request
from dataclasses import dataclass
from http.client import HTTPConnection

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeai import metrics
from edgeai.bridge.service import Counters
from edgeai.errors import PortTaken, Refused


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_every_metric_is_in_the_table_and_rendered() -> None:
    text = metrics.render().decode()
    for row in metrics.TABLE:
        assert f"# HELP {row.name} {row.help}" in text


def test_what_is_not_counted_yet_is_shown_as_zero_so_that_the_first_one_is_a_rise() -> None:
    text = metrics.render().decode()
    for line in ('rounds_total{outcome="missed"}', 'messages_refused_total{reason="foreign"}'):
        assert f"edgeai_{line}" in text


def test_states_that_are_not_named_any_more_are_gone() -> None:
    metrics.workers(["Running", "Running", "Failed"])
    metrics.workers(["Running"] * 3)
    assert metrics.REGISTRY.get_sample_value("edgeai_workers", {"state": "Failed"}) is None
    assert value("edgeai_workers", state="Running") == 3


def test_a_silent_node_is_named() -> None:
    metrics.nodes(["edge1"], ["edge2"])
    assert (value("edgeai_node_ready", node="edge1"), value("edgeai_node_ready", node="edge2")) == (1, 0)
    metrics.nodes(["edge1"], [])
    assert metrics.REGISTRY.get_sample_value("edgeai_node_ready", {"node": "edge2"}) is None


def test_tasks_are_counted_by_kind_and_phase() -> None:
    metrics.tasks([("FederatedTask", "Running"), ("FederatedTask", "Running"), ("JointInferenceService", "Running")])
    assert value("edgeai_tasks", kind="FederatedTask", phase="Running") == 2


@dataclass
class Broker:
    connected: bool = True
    connections: int = 0
    dropped: int = 0


@pytest.mark.parametrize(("connections", "reconnects"), [(0, 0), (1, 0), (3, 2)])
def test_only_a_connection_after_the_first_is_a_reconnect(connections: int, reconnects: int) -> None:
    metrics.follow_bus("test", Broker(connections=connections))
    assert value("edgeai_bus_reconnects_total", bus="test") == reconnects


def test_a_bus_is_read_when_somebody_asks() -> None:
    bus = Broker()
    metrics.follow_bus("test", bus)
    bus.connected, bus.dropped = False, 7
    assert metrics.REGISTRY.get_sample_value("edgeai_bus_connected", {"bus": "test"}) == 0
    assert value("edgeai_messages_dropped_total", bus="test") == 7


def test_the_transfers_of_a_process_are_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_transfers", {})
    metrics.follow_transfers("edge1", lambda: (1, 10))
    metrics.follow_transfers("edge2", lambda: (2, 20))
    assert (value("edgeai_transfer_bytes_total", flow="in"), value("edgeai_transfer_bytes_total", flow="out")) == (
        3,
        30,
    )


@dataclass
class Lane:
    counters: Counters
    waiting: int = 0
    dropped_full: int = 0


def test_what_a_bridge_does_is_told_by_lane_and_reason() -> None:
    up = Lane(Counters(forwarded=5, forwarded_bytes=500, dropped_away=3, dropped_refused=2), waiting=4, dropped_full=1)
    metrics.follow_bridge({"up": up, "down": Lane(Counters())})
    assert value("edgeai_bridge_forwarded_total", lane="up") == 5
    assert value("edgeai_bridge_bytes_total", lane="up") == 500
    assert value("edgeai_bridge_dropped_total", lane="up", reason="away") == 3
    assert value("edgeai_bridge_dropped_total", lane="up", reason="refused") == 2
    assert value("edgeai_bridge_dropped_total", lane="up", reason="full") == 1
    assert value("edgeai_bridge_waiting", lane="up") == 4
    assert metrics.REGISTRY.get_sample_value("edgeai_bridge_forwarded_total", {"lane": "down"}) == 0


def test_what_is_rendered_can_be_parsed() -> None:
    families = {family.name for family in text_string_to_metric_families(metrics.render().decode())}
    assert {row.name.removesuffix("_total") for row in metrics.TABLE} <= families


def test_an_unknown_method_is_not_a_label_of_its_own() -> None:
    before = value("edgeai_portal_requests_total", method="other", status="4xx")
    metrics.request_answered("X" * 1000, 405)
    assert value("edgeai_portal_requests_total", method="other", status="4xx") - before == 1


async def test_a_loop_that_is_held_up_shows() -> None:
    """Time is told: the timer of 1 s wakes at 3 s."""
    times = iter([0.0, 3.0, 3.0, 4.0])
    before = value("edgeai_loop_lag_seconds_sum")
    watching = asyncio.create_task(metrics.watch_loop_lag(1e-9, lambda: next(times, 100.0)))
    async with asyncio.timeout(5):
        while value("edgeai_loop_lag_seconds_sum") - before < 2.9:
            await asyncio.sleep(0)
    watching.cancel()


def test_metrics_are_served_to_who_asks_and_stop_when_told() -> None:
    port, close = metrics.serve(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"edgeai_rounds_total" in answer.read()
    with pytest.raises(PortTaken, match=r"choose another port \(--metrics-port\)"):
        metrics.serve(port)
    assert metrics.served_at() == f"http://127.0.0.1:{port}/metrics"
    close()
    assert metrics.served_at() == ""
    metrics.serve(port)[1]()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9464", 200),
        ("localhost", 200),
        ("[::1]:1", 200),
        ("evil.example:9464", 400),
        ("127.0.0.1.evil.example", 400),
        ("192.0.2.1", 400),
        ("[", 400),
        ("", 400),
    ],
)
def test_numbers_are_served_under_names_of_this_machine_only(host: str, status: int) -> None:
    port, close = metrics.serve(0)
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics", headers={"Host": host})
        answer = connection.getresponse()
        assert (answer.status, b"edgeai_rounds_total" in answer.read()) == (status, status == 200)
    finally:
        connection.close()
        close()


def test_the_first_free_port_is_taken() -> None:
    taken, close_first = metrics.serve(0)
    port, close_second = metrics.serve(taken, 0)
    close_second()
    close_first()
    assert port != taken


def test_metrics_are_not_served_to_other_machines() -> None:
    with pytest.raises(Refused, match="loopback"):
        metrics.serve(0, host="0.0.0.0")
