"""Where daemons serve their numbers: at the port that was asked for, or at any, then always the same one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edgeai import metrics
from edgeai.cli.config import cloud_options, edge_options
from edgeai.cli.daemons.edge import _bridge_metrics
from edgeai.cli.daemons.life import Announcement, Measured
from edgeai.cli.daemons.options import EdgeOptions
from edgeai.cli.portal import serving
from edgeai.errors import ManifestError, PortTaken
from edgeai.launcher import shim
from edgeai.launcher.children import ProcessId, record_path
from edgeai.portal.settings import PortalSettings
from edgeai.settings import Context


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def an_edge(folder: Path, port: int | None) -> EdgeOptions:
    return EdgeOptions("edge1", folder, "nats://cloud:4222", folder / "edge1.json", metrics_port=port)


def a_running_bridge(folder: Path, *argv: str) -> None:
    me = ProcessId.of(os.getpid())
    fields = {"role": "bridge", "node": "edge1", "pid": me.pid, "start_time": me.start_time, "argv": ["bridge", *argv]}
    path = record_path(folder, "bridge", "edge1")
    path.parent.mkdir()
    path.write_text(json.dumps({**fields, "supervisor": str(me), "boot": shim.boot()}))


def test_the_ready_line_says_where_numbers_are_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ready = Announcement("controller", node="edge1")
    with Measured(0, tmp_path).serving():
        ready.begun("controller")
        said = capsys.readouterr().out
        assert said == f"ready node=edge1 metrics={metrics.served_at()}\n"
        with urllib.request.urlopen(metrics.served_at(), timeout=5) as answer:
            assert b"edgeai_loop_lag_seconds" in answer.read()


def test_without_a_port_nothing_is_served(tmp_path: Path) -> None:
    with Measured(None, tmp_path).serving():
        assert metrics.served_at() == ""


def test_a_port_that_was_any_is_the_same_the_next_time(tmp_path: Path) -> None:
    with Measured(0, tmp_path).serving():
        first = metrics.served_at()
    with Measured(0, tmp_path).serving():
        assert metrics.served_at() == first


def test_a_remembered_port_that_is_taken_gives_way_to_another(tmp_path: Path, taken: int) -> None:
    (tmp_path / "metrics.port").write_text(f"{taken}\n")
    with Measured(0, tmp_path).serving():
        assert metrics.served_at() not in {"", metrics.url_of(taken)}


def test_a_daemon_says_in_one_line_that_its_port_is_taken(tmp_path: Path, taken: int) -> None:
    argv = ["coordinator", "--nats", "nats://127.0.0.1:1", "--credentials", str(tmp_path), "--metrics-port", str(taken)]
    done = subprocess.run(
        [sys.executable, "-m", "edgeai", *argv], capture_output=True, text=True, check=False, timeout=60
    )
    said = (
        f"edgeai: metrics: port {taken} is taken by another program; stop it or choose another port (--metrics-port)\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_bridge_goes_on_without_numbers(taken: int) -> None:
    with capture_logs() as logs, Measured(taken, needed=False).serving():
        assert metrics.served_at() == ""
    [line] = logs
    assert (line["event"], line["log_level"]) == ("metrics_not_served", "error")
    assert f"port {taken} is taken" in line["reason"]


# --- the bridge of an edge


def test_without_numbers_of_an_edge_there_are_none_of_its_bridge(tmp_path: Path) -> None:
    assert _bridge_metrics(an_edge(tmp_path, None)) is None


def test_the_bridge_has_the_next_port(tmp_path: Path, taken: int) -> None:
    with pytest.raises(PortTaken, match=f"metrics of the bridge: port {taken} is taken"):
        _bridge_metrics(an_edge(tmp_path, taken - 1))


def test_any_port_of_a_bridge_stays_the_same(tmp_path: Path) -> None:
    port = _bridge_metrics(an_edge(tmp_path, 0))
    assert port
    assert _bridge_metrics(an_edge(tmp_path, 0)) == port


def test_a_bridge_that_runs_already_keeps_its_port(tmp_path: Path) -> None:
    a_running_bridge(tmp_path, "--node", "edge1", "--metrics-port", "1234")
    assert _bridge_metrics(an_edge(tmp_path, 9474)) == 1234


def test_a_bridge_that_runs_since_before_is_left_alone_and_that_is_said(tmp_path: Path) -> None:
    a_running_bridge(tmp_path)
    with capture_logs() as logs:
        assert _bridge_metrics(an_edge(tmp_path, 9474)) is None
    [line] = logs
    assert line["event"] == "bridge_metrics_not_served"
    assert f"edgeai stop --state-dir {tmp_path}" in line["reason"]


# --- configuration


def test_the_port_may_stand_in_a_file_and_in_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cloud.toml"
    file.write_text("metrics_port = 9464\n")
    assert cloud_options(file).metrics_port == 9464
    assert cloud_options().metrics_port is None
    monkeypatch.setenv("EDGEAI_EDGE_METRICS_PORT", "0")
    edge = {"node": "edge1", "cloud": "nats://cloud:4222", "credentials": tmp_path / "edge1.json"}
    assert edge_options(None, **edge).metrics_port == 0


def test_an_edge_needs_room_for_its_bridge_behind_its_port(tmp_path: Path) -> None:
    edge = {"node": "edge1", "cloud": "nats://cloud:4222", "credentials": tmp_path / "edge1.json"}
    with pytest.raises(ManifestError, match="metrics_port: input should be less than or equal to 65534"):
        edge_options(None, **edge, metrics_port=65535)


async def test_a_portal_measures_its_loop_whoever_serves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def watch() -> None:
        begun.set()

    monkeypatch.setattr(metrics, "watch_loop_lag", watch)
    nobody = Context("nats://127.0.0.1:1", str(tmp_path / "none.json"))
    async with serving(nobody, PortalSettings(tmp_path)), asyncio.timeout(10):
        await begun.wait()
