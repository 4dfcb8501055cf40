"""The numbers of a daemon: one table, few labels, served on loopback only."""

from __future__ import annotations

import asyncio
import urllib.request

import pytest

from edgeai import metrics
from edgeai.errors import PortTaken, Refused


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_every_metric_is_in_the_table_and_rendered() -> None:
    text = metrics.render().decode()
    for row in metrics.TABLE:
        assert f"# HELP {row.name} {row.help}" in text


def test_states_that_are_not_named_any_more_are_gone() -> None:
    metrics.workers({"Running": 2, "Failed": 1})
    metrics.workers({"Running": 3})
    assert metrics.REGISTRY.get_sample_value("edgeai_workers", {"state": "Failed"}) is None
    assert value("edgeai_workers", state="Running") == 3


def test_only_a_connection_after_the_first_is_a_reconnect() -> None:
    before = value("edgeai_bus_reconnects_total", bus="test")
    metrics.connected("test", True)
    metrics.connected("test", False)
    metrics.connected("test", True, again=True)
    assert value("edgeai_bus_reconnects_total", bus="test") - before == 1
    assert value("edgeai_bus_connected", bus="test") == 1


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
    with pytest.raises(PortTaken):
        metrics.serve(port)
    close()
    metrics.serve(port)[1]()


def test_metrics_are_not_served_to_other_machines() -> None:
    with pytest.raises(Refused, match="loopback"):
        metrics.serve(0, "0.0.0.0")
