"""`edgeai demo --launcher docker` as a user runs it: the same result as with processes, and nothing is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeai.settings import shipped

LIMIT_S = 240
pytestmark = [pytest.mark.containers, pytest.mark.timeout(LIMIT_S)]
NUMPY = ("--framework", "numpy", "--rounds", "3")


def arguments(*options: str) -> list[str]:
    return [sys.executable, "-m", "edgeai", "demo", *options]


@pytest.fixture
def environment(tmp_path: Path, engine: str) -> dict[str, str]:
    """Temporary files go below the test's folder; of a short name, as the path of a socket is."""
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "DOCKER_HOST": engine, "EDGEAI_LOG": "error"}


@pytest.fixture
def demo(tmp_path: Path, environment: dict[str, str]) -> Callable[..., dict]:
    def run(*options: str) -> dict:
        done = subprocess.run(
            arguments(*options, "--json"),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    return run


@pytest.fixture
def left(docker, tmp_path: Path) -> Callable[[], list[str]]:
    """What has come into the world since the fixture was made and is still there; of containers, those of this test."""

    def things() -> set[str]:
        kinds = (("network", "ls"), ("volume", "ls"))
        found = {f"{kind[0]} {one}" for kind in kinds for one in docker(*kind, "--quiet").split()}
        containers = docker("ps", "--all", "--no-trunc", "--format", "{{.Names}} {{.Mounts}}").splitlines()
        found |= {line for line in containers if str(tmp_path) in line}
        return found | {str(path) for path in (tmp_path / "tmp").iterdir()}

    before = things()
    return lambda: sorted(things() - before)


@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
def test_containers_make_the_same_model_as_processes_on_either_broker_and_leave_nothing(demo, left, broker: str):
    of_processes = demo(*NUMPY, "--broker", broker)
    of_containers = demo(*NUMPY, "--broker", broker, "--launcher", "docker")

    assert of_containers["model"]["digest"] == of_processes["model"]["digest"]
    assert [row["updates"] for row in of_containers["rounds"]] == [3, 3, 3]
    assert left() == []


@pytest.mark.tensorflow
def test_the_demo_with_tensorflow_reaches_95_percent_in_containers(demo, left):
    document = demo("--launcher", "docker")

    assert document["rounds"][-1]["metrics"]["accuracy"] >= 0.95
    assert left() == []


def test_the_incremental_demo_learns_all_digits_in_containers(demo, left):
    document = demo("--feature", "incremental", "--launcher", "docker")

    assert document["accuracy"]["all"] >= 0.9
    assert left() == []


def test_the_joint_inference_demo_answers_through_a_cut_link_in_containers(demo, left):
    document = demo("--feature", "joint-inference", "--launcher", "docker")

    assert (document["cut"]["errors"], document["policy"]["errors"]) == (0, 0)
    assert document["policy"]["accuracy"] > document["edge"]["accuracy"]
    assert left() == []


@pytest.mark.parametrize("moment", ["Preparing", "round 2"])
def test_an_interrupt_at_any_moment_leaves_no_container(tmp_path: Path, environment, left, moment: str):
    options = ("--framework", "numpy", "--rounds", "500", "--launcher", "docker")
    process = subprocess.Popen(
        arguments(*options),
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        seen = next((line for line in process.stderr if moment in line), "")
        process.send_signal(signal.SIGINT)
        process.stderr.read()

    assert process.wait(LIMIT_S) == 130
    assert moment in seen
    assert left() == []


def test_a_demo_that_is_killed_leaves_no_container_once_its_daemons_have_noticed(tmp_path: Path, environment, left):
    options = ("--framework", "numpy", "--rounds", "500", "--launcher", "docker")
    process = subprocess.Popen(
        arguments(*options),
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    with process.stderr:
        next(line for line in process.stderr if "round 2" in line)
        process.kill()
        process.wait(LIMIT_S)

    deadline = time.monotonic() + 60
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left() == []


def test_up_starts_workers_in_containers_and_leaves_none(tmp_path: Path, environment, docker, left):
    environment["EDGEAI_CONTEXT"] = str(tmp_path / "context.json")
    up = subprocess.Popen(
        [sys.executable, "-m", "edgeai", "up", "--launcher", "docker", "--state-dir", str(tmp_path / "tmp/up")],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert up.stdout is not None
    with up.stdout:
        assert up.stdout.readline().startswith("ready ")
        example = shipped("config/examples/federated-digits-numpy.yaml")
        applied = subprocess.run(
            [sys.executable, "-m", "edgeai", "apply", "-f", str(example), "--wait", "--timeout", "120"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        made = docker("ps", "--all", "--filter", "label=edgeai.task", "--format", "{{.Label `edgeai.worker`}}").split()
        up.send_signal(signal.SIGINT)
        up.stdout.read()

    assert applied.returncode == 0, applied.stderr
    assert len([name for name in made if "federated-digits-numpy" in name]) == 4
    assert up.wait(LIMIT_S) == 0
    shutil.rmtree(tmp_path / "tmp/up")
    assert left() == []


def test_without_an_engine_the_demo_says_what_to_do(tmp_path: Path, environment):
    done = subprocess.run(
        arguments(*NUMPY, "--launcher", "docker", "--json"),
        cwd=tmp_path,
        env={**environment, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert done.returncode == 1
    assert "no Docker engine answers" in json.loads(done.stdout)["error"]
