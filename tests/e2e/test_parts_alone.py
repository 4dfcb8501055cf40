"""An installation on brokers of its own: no part starts a broker, every part is a process by itself, and serves its numbers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeai.bus.credentials import write_credentials_file
from edgeai.cli.digits import write_shards
from edgeai.cli.takedown import take_down
from edgeai.settings import Context, shipped, write_context

EXAMPLES = shipped("config/examples")
LIMIT_S = 240

pytestmark = pytest.mark.timeout(240)


class Machines:
    """Daemons by their command line, ended by pid; commands of an operator."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self._environment = {**os.environ, "EDGEAI_CONTEXT": str(folder / "context.json")}

    def start(self, *arguments: str) -> Daemon:
        """At any port for its numbers."""
        path = self.folder / f"{arguments[0]}-{len(os.listdir(self.folder))}.log"
        log = self._stack.enter_context(path.open("w"))
        argv = [sys.executable, "-m", "edgeai", *arguments, "--metrics-port", "0"]
        daemon = subprocess.Popen(argv, env=self._environment, stdout=log, stderr=log)
        self._stack.callback(self.end, daemon)
        return Daemon(daemon, path)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "edgeai", *arguments]
        return subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    @staticmethod
    def end(daemon: subprocess.Popen[bytes]) -> None:
        daemon.terminate()
        daemon.wait(LIMIT_S)
        assert daemon.returncode == 0


@dataclass(frozen=True)
class Daemon:
    process: subprocess.Popen[bytes]
    log: Path

    def numbers(self, key: str = "metrics") -> Numbers:
        """Of the address that its ready line names."""
        deadline = time.monotonic() + LIMIT_S
        while not (found := re.search(rf"^ready .*\b{key}=(\S+)", self.log.read_text(), re.MULTILINE)):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return Numbers(found[1])


class Numbers:
    """What a process says of itself, as a scraper reads it."""

    def __init__(self, url: str) -> None:
        self.url = url
        with urllib.request.urlopen(url, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        self._found = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._found[f"edgeai_{name}", tuple(sorted(labels.items()))]

    def all(self, name: str) -> dict[str, float]:
        """By the value of its only label."""
        return {labels[0][1]: value for (found, labels), value in self._found.items() if found == f"edgeai_{name}"}


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with ExitStack() as stack:
        # Last of all, what daemons leave for their next start: here the bridge of `edgeai edge`.
        stack.callback(lambda: asyncio.run(take_down(tmp_path)))
        yield Machines(tmp_path, stack)


def login(folder: Path, name: str, url: str) -> str:
    path = folder / f"{name}.json"
    write_credentials_file(path, url, name, "secret")
    return str(path)


def test_a_task_trains_on_external_brokers_with_every_part_alone(
    machines: Machines, tmp_path: Path, nats_url: str, mosquitto_url: str
):
    cloud, edge = login(tmp_path, "cloud", nats_url), login(tmp_path, "edge", mosquitto_url)
    write_context(Context(nats_url, cloud), tmp_path / "context.json")
    write_shards(EXAMPLES / "digits.npz", [tmp_path / node for node in ("edge1", "edge2", "edge3")])
    config = tmp_path / "edge3.toml"
    config.write_text(
        f"node = 'edge3'\ncloud = '{nats_url}'\ncredentials = 'cloud.json'\nstate_dir = 'edge3'\nallowed_roots = ['.']\n"
        f"mqtt_url = '{mosquitto_url}'\n"
        "controller_credentials = 'edge.json'\nbridge_credentials = 'edge.json'\nworker_credentials = 'edge.json'\n"
    )

    coordinator = machines.start("coordinator", "--nats", nats_url, "--credentials", cloud)
    same = ["--allowed-root", str(tmp_path)]
    controllers = {}
    for node, bus, file in (("cloud", nats_url, cloud), ("edge1", mosquitto_url, edge), ("edge2", mosquitto_url, edge)):
        where = ["--node", node, "--state-dir", str(tmp_path / node), "--bus", bus]
        login_of = ["--credentials", file, "--worker-credentials", file]
        controllers[node] = machines.start("controller", *where, *login_of, *same)
    bridges = []
    for node in ("edge1", "edge2"):
        ends = ["--mqtt", mosquitto_url, "--mqtt-credentials", edge, "--nats", nats_url, "--nats-credentials", cloud]
        bridges.append(machines.start("bridge", "--node", node, *ends))
    edge3 = machines.start("edge", "--config", str(config))
    try:
        for node in ("cloud", "edge1", "edge2", "edge3"):
            _until_ready(machines, node)
        for number in range(3):
            path = tmp_path / f"dataset{number}.yaml"
            path.write_text(DATASET.format(number=number, node=f"edge{number + 1}", folder=tmp_path))
        manifest = EXAMPLES / "federated-digits-numpy.yaml"
        done = machines.run("apply", "-f", str(tmp_path / "dataset0.yaml"), "-f", str(tmp_path / "dataset1.yaml"))
        assert done.returncode == 0, done.stderr
        done = machines.run(
            "apply", "-f", str(tmp_path / "dataset2.yaml"), "-f", str(manifest), "--wait", "--timeout", "90"
        )
        assert done.returncode == 0, done.stderr
        assert "on held-out examples" in done.stdout
        _see_that_numbers_are_true(machines, coordinator, controllers)
        for bridge in [*(each.numbers() for each in bridges), edge3.numbers("bridge_metrics")]:
            assert bridge.all("bus_connected") == {"mqtt": 1, "nats": 1}
            assert min(*bridge.all("bridge_forwarded_total").values(), *bridge.all("bridge_bytes_total").values()) > 0
            assert bridge("bridge_dropped_total", lane="up", reason="refused") == 0
        _see_that_a_bridge_goes_on(machines, edge3, str(config))
    finally:
        machines.run("delete", "task", "federated-digits-numpy", "--wait", "--timeout", "20")


def _see_that_numbers_are_true(machines: Machines, coordinator: Daemon, controllers: dict[str, Daemon]) -> None:
    document = json.loads(machines.run("get", "task", "federated-digits-numpy", "-o", "json").stdout)
    rounds = document["status"]["rounds"]
    numbers = coordinator.numbers()
    assert numbers.all("bus_connected") == {"coordinator": 1}
    assert numbers.all("node_ready") == dict.fromkeys(("cloud", "edge1", "edge2", "edge3"), 1)
    assert numbers.all("rounds_total") == {"closed": len(rounds), "missed": 0}
    assert numbers("round_seconds_count") == len(rounds)
    assert numbers("round_seconds_sum") == pytest.approx(sum(row["seconds"] for row in rounds))
    assert numbers.all("updates_total") == {"counted": sum(row["updates"] for row in rounds), "refused": 0}
    assert numbers("round_bytes_total", flow="up") == sum(row["bytesUp"] for row in rounds)
    assert numbers("loop_lag_seconds_count") > 0
    for node, role in (("cloud", "aggregation"), ("edge1", "training"), ("edge2", "training")):
        mine = controllers[node].numbers()
        assert mine.all("bus_connected") == {"controller": 1}
        assert mine("worker_starts_total", role=role) == 1
        assert sum(mine.all("workers").values()) == 1
        # The script of the workers, from the cloud's library to each edge.
        assert mine("transfer_bytes_total", flow="out" if node == "cloud" else "in") > 0


def _see_that_a_bridge_goes_on(machines: Machines, edge: Daemon, config: str) -> None:
    """It is a process of its own: what it has counted, and where it serves that, stays when its daemon restarts."""
    before = edge.numbers("bridge_metrics")
    machines.end(edge.process)
    again = machines.start("edge", "--config", config)
    after = again.numbers("bridge_metrics")
    assert after.url == before.url
    assert after("bridge_forwarded_total", lane="up") >= before("bridge_forwarded_total", lane="up")
    assert again.numbers().url == edge.numbers().url


DATASET = """
apiVersion: edgeai.io/v1alpha1
kind: Dataset
metadata: {{name: dataset{number}}}
spec: {{nodeName: {node}, url: {folder}/{node}/digits.npz, format: npz}}
"""


def _until_ready(machines: Machines, node: str) -> None:
    """The node registers itself: until then there is nothing to wait for."""
    waiting: subprocess.CompletedProcess[str] | None = None
    for _ in range(60):
        waiting = machines.run("wait", "node", node, "--for=condition=Ready", "--timeout", "30")
        if waiting.returncode == 0:
            return
        assert waiting.returncode in {3, 5}, waiting.stderr
    pytest.fail(f"{node} did not register: {waiting.stderr if waiting else ''}")
