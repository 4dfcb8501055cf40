"""What the demo of joint inference shows fits a terminal of 80 columns, whatever the figures are."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from edgeai.cli.curves import CurveView, curve_line

LATENCY = {"p50_s": 1.2345, "p99_s": 123.4567}
POINT = {"threshold": 1.01, "sent": 1.0, "accuracy": 1.0, "at_random": 1.0, "recovered": 12.34}
SECOND = {"second": 17, "edge": 1000, "cloud": 1000, "fell_back": 1000, "errors": 1000}
COUNTS = dict.fromkeys(("inferences", "sent", "answered", "bytes_sent", "bytes_received"), 10**7)
DOCUMENT: dict[str, Any] = {
    "edge": {"accuracy": 0.5, **LATENCY},
    "cloud": {"accuracy": 1.0, **LATENCY},
    "curve": [POINT],
    "policy": {"threshold": 0.123456, "sent": 1.0, "accuracy": 1.0, "errors": 0, "edge": LATENCY, "cloud": LATENCY},
    "cut": {
        "asked": 10**6,
        "errors": 10**6,
        "cut_s": [3.0, 30.0],
        "cloud_back_after_s": 123.4,
        "longest_s": 12.3456,
        "seconds": [SECOND],
    },
    "counts": COUNTS,
}


@pytest.fixture
def lines() -> list[str]:
    out = io.StringIO()
    view = CurveView(quiet=False, notes=Console(file=out, width=80), out=Console(file=out, width=80))
    view.curve(DOCUMENT)
    view.policy(DOCUMENT["policy"])
    view.cut(DOCUMENT["cut"])
    view.sum_up(DOCUMENT)
    return out.getvalue().splitlines()


def test_no_line_is_longer_than_80_columns(lines: list[str]):
    assert [line for line in lines if len(line) > 80] == []


def test_a_second_of_the_cut_says_so(lines: list[str]):
    assert next(line for line in lines if line.startswith("17 ")).endswith("link cut")


@pytest.mark.parametrize(("accuracy", "length"), [(0.5, 0), (0.75, 8), (1.0, 16), (0.4, 0), (1.1, 16)])
def test_the_bar_is_empty_at_the_accuracy_of_the_edge_and_full_at_that_of_the_cloud(accuracy: float, length: int):
    assert curve_line(POINT | {"accuracy": accuracy}, 0.5, 1.0).count("█") == length


def test_where_the_cloud_knows_no_better_there_is_no_bar():
    assert "█" not in curve_line(POINT, 0.9, 0.9)
