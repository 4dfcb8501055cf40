"""An installation on brokers of its own: no part starts a broker, every part is a process by itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

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

    def start(self, *arguments: str) -> None:
        log = self._stack.enter_context((self.folder / f"{arguments[0]}-{len(os.listdir(self.folder))}.log").open("w"))
        argv = [sys.executable, "-m", "edgeai", *arguments]
        daemon = subprocess.Popen(argv, env=self._environment, stdout=log, stderr=log)
        self._stack.callback(self._end, daemon)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "edgeai", *arguments]
        return subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    @staticmethod
    def _end(daemon: subprocess.Popen[bytes]) -> None:
        daemon.terminate()
        daemon.wait(LIMIT_S)
        assert daemon.returncode == 0


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

    machines.start("coordinator", "--nats", nats_url, "--credentials", cloud)
    same = ["--allowed-root", str(tmp_path)]
    for node, bus, file in (("cloud", nats_url, cloud), ("edge1", mosquitto_url, edge), ("edge2", mosquitto_url, edge)):
        where = ["--node", node, "--state-dir", str(tmp_path / node), "--bus", bus]
        machines.start("controller", *where, "--credentials", file, "--worker-credentials", file, *same)
    for node in ("edge1", "edge2"):
        ends = ["--mqtt", mosquitto_url, "--mqtt-credentials", edge, "--nats", nats_url, "--nats-credentials", cloud]
        machines.start("bridge", "--node", node, *ends)
    machines.start("edge", "--config", str(config))
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
    finally:
        machines.run("delete", "task", "federated-digits-numpy", "--wait", "--timeout", "20")


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
