"""`brokers/compose.yaml` with a real engine: a cloud and two edges, their brokers and daemons in containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeai.cli.digits import write_shards
from edgeai.launcher.images import DAEMON, own_version
from edgeai.settings import shipped

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

COMPOSE = shipped("brokers/compose.yaml")
MANIFEST = "compose-digits.yaml"
TASK, ROUNDS = "compose-digits", 60
KINDS = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))


@dataclass(frozen=True)
class Composed:
    """The services of one project. `program` is `docker compose` or `docker-compose`."""

    program: list[str]
    project: str
    environment: dict[str, str]

    def __call__(self, *arguments: str, given: str = "") -> str:
        done = subprocess.run(
            [*self.program, "--project-name", self.project, "--file", str(COMPOSE), *arguments],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def edgeai(self, *arguments: str, given: str = "") -> str:
        return self("exec", "-T", "cloud", "edgeai", *arguments, given=given)

    def document(self, *arguments: str) -> Any:
        return json.loads(self.edgeai("get", *arguments, "-o", "json"))

    def until(self, true: Callable[[], Any], timeout_s: float = 60) -> None:
        """Wait for what no event announces to somebody outside of the containers."""
        end = time.monotonic() + timeout_s
        while not true():
            assert time.monotonic() < end, self("logs", "--tail", "50")
            time.sleep(0.2)

    def ready_nodes(self) -> set[str]:
        return {
            node["metadata"]["name"]
            for node in self.document("nodes")["items"]
            for condition in node["status"]["conditions"]
            if (condition["type"], condition["status"]) == ("Ready", "True")
        }


@pytest.fixture(scope="module")
def program(engine: str) -> list[str]:
    """Compose, as plugin of `docker` or as a program; without it the test skips, in CI it fails."""
    for found in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(found[0])
            and subprocess.run([*found, "version"], capture_output=True, check=False).returncode == 0
        ):
            return found
    missing = "neither `docker compose` nor `docker-compose` is installed"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture
def composed(program: list[str], engine: str, docker, tmp_path: Path) -> Iterator[Composed]:
    """Everything is up, and each edge has its digits."""
    try:
        docker("image", "inspect", DAEMON.tag)
    except subprocess.CalledProcessError:
        missing = f"{DAEMON.tag} was not built (`edgeai images build daemon`)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    for shard in write_shards(shipped("config/examples/digits.npz"), [tmp_path / "edge1", tmp_path / "edge2"]):
        shard.parent.chmod(0o755)
        shard.chmod(0o644)
    environment = {**os.environ, "DOCKER_HOST": engine, "EDGEAI_DATA": str(tmp_path), "EDGEAI_VERSION": own_version()}
    world = Composed(program, f"edgeai-test-{uuid.uuid4().hex[:8]}", environment)
    try:
        world("up", "--detach")
        yield world
    finally:
        world("down", "--volumes")


def left_of(world: Composed, docker) -> list[str]:
    label = f"label=com.docker.compose.project={world.project}"
    return [one for kind in KINDS for one in docker(*kind, "--quiet", "--filter", label).split()]


def many_rounds() -> str:
    """The example, long enough to have something happen in the middle; on standard input, so seen from the home folder."""
    text = shipped(f"config/examples/{MANIFEST}").read_text()
    return text.replace("{key: rounds, value: 10}", f"{{key: rounds, value: {ROUNDS}}}").replace("../../", "../../../")


def test_the_example_is_trained(composed: Composed):
    composed.until(lambda: composed.ready_nodes() == {"cloud", "edge1", "edge2"})

    composed.edgeai("apply", "-f", f"/manifests/examples/{MANIFEST}", "--wait", "--timeout", "100")

    assert composed.document("task", TASK)["status"]["phase"] == "Succeeded"


def test_the_two_edges_and_the_cloud_are_ready_and_down_leaves_nothing(composed: Composed, docker):
    composed.until(lambda: composed.ready_nodes() == {"cloud", "edge1", "edge2"})

    composed("down", "--volumes")

    assert left_of(composed, docker) == []


@pytest.mark.parametrize("victim", ["edge1", "cloud"])
def test_a_container_that_dies_in_a_round_comes_back_and_the_task_succeeds(composed: Composed, docker, victim: str):
    identity = composed("ps", "--quiet", victim).strip()
    composed.until(lambda: composed.ready_nodes() == {"cloud", "edge1", "edge2"})
    composed.edgeai("apply", "-f", "-", given=many_rounds())
    composed.until(lambda: composed.document("task", TASK)["status"]["round"] >= 1)

    docker("exec", identity, "bash", "-c", "kill -9 -1")
    composed.until(lambda: int(docker("inspect", "--format", "{{.RestartCount}}", identity)) == 1)
    composed.until(lambda: composed.ready_nodes() == {"cloud", "edge1", "edge2"})
    composed.edgeai("wait", "task", TASK, "--for=phase=Succeeded", "--timeout", "120")

    status = composed.document("task", TASK)["status"]
    assert [row["updates"] for row in status["rounds"]] == [2] * ROUNDS
    assert status["metrics"]["accuracy"] > 0.95
