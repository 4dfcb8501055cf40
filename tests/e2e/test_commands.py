"""Every command from a second terminal, against one `edgeai up` as a user starts it, with the NumPy example."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from edgeai.store.files import digest_of

TASK = "federated-digits-numpy"
EXAMPLE = Path(__file__).parents[2] / "config" / "examples" / f"{TASK}.yaml"
LIMIT_S = 240

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Terminal:
    """Where commands are called. `up` runs in another one, `ready` is the line it has written."""

    folder: Path
    state_dir: Path
    ready: str
    up: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        return environment_in(self.folder)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "edgeai", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    def said(self, *arguments: str) -> str:
        """Standard output of a command that must succeed."""
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


def environment_in(folder: Path) -> dict[str, str]:
    return {**os.environ, "EDGEAI_CONTEXT": str(folder / "context.json"), "COLUMNS": "100"}


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """One playground for all tests of this module; the example's task has succeeded in it."""
    folder = tmp_path_factory.mktemp("terminal")
    state_dir = folder / "state"
    with (folder / "up.log").open("w") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "edgeai", "up", "--state-dir", str(state_dir)],
            env=environment_in(folder),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert up.stdout is not None
    with up, up.stdout:
        try:
            ready = up.stdout.readline()
            assert ready.startswith("ready "), (folder / "up.log").read_text()
            terminal = Terminal(folder, state_dir, ready, up)
            assert f"model/digits-mlp created (generation 1)\nfederatedtask/{TASK} created" in terminal.said(
                "apply", "-f", str(EXAMPLE), "--wait", "--timeout", "90s"
            )
            yield terminal
        finally:
            up.send_signal(signal.SIGINT)
            up.wait(LIMIT_S)
    assert up.returncode == 0
    assert "stopping: deleting 1 task\n" in (folder / "up.log").read_text()
    assert not (folder / "context.json").exists()
    assert processes_naming(folder) == []


def processes_naming(folder: Path) -> list[str]:
    lines = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line:
            lines.append(line)
    return lines


def test_the_ready_line_names_the_state_directory_every_broker_and_the_portal(terminal: Terminal):
    fields = dict(part.split("=", 1) for part in terminal.ready.split()[1:])
    assert fields["state_dir"] == str(terminal.state_dir)
    assert {name: url.partition("://")[0] for name, url in fields.items() if name != "state_dir"} == {
        "cloud": "nats",
        "edge1": "mqtt",
        "edge2": "mqtt",
        "edge3": "mqtt",
        "portal": "http",
    }


def test_a_second_up_on_the_same_folder_is_refused_and_names_the_first(terminal: Terminal):
    done = terminal("up", "--state-dir", str(terminal.state_dir))
    assert done.returncode == 4
    assert f"(process {terminal.up.pid})" in done.stderr


def test_every_kind_can_be_listed(terminal: Terminal):
    assert terminal.said("get", "nodes", "-o", "name").split() == [
        f"edgenode/{n}" for n in ("cloud", "edge1", "edge2", "edge3")
    ]
    assert terminal.said("get", "datasets", "-o", "name").split() == [f"dataset/dataset{n}" for n in range(3)]
    assert terminal.said("get", "models", "-o", "name") == "model/digits-mlp\n"
    row = terminal.said("get", "tasks").splitlines()[1].split()
    assert row[:3] == [TASK, "Succeeded", "10/10"]


def test_applying_the_same_again_changes_nothing(terminal: Terminal):
    assert f"federatedtask/{TASK} unchanged (generation 1)" in terminal.said("apply", "-f", str(EXAMPLE))


def test_describe_shows_workers_rounds_and_events(terminal: Terminal):
    page = terminal.said("describe", f"task/{TASK}")
    for part in ("Workers:", "Rounds:", "Conditions:", "Last events:", "training-completed", "work2"):
        assert part in page


def test_a_wait_for_what_is_true_already_returns_at_once(terminal: Terminal):
    assert "condition Succeeded is True" in terminal.said("wait", "task", TASK, "--for=condition=Succeeded")


def test_logs_come_from_the_nodes(terminal: Terminal):
    one = terminal.said("logs", TASK, "work1")
    assert "round=10" in one
    assert terminal.said("logs", TASK, "work1", "--tail", "1") == one.splitlines(keepends=True)[-1]
    assert terminal.said("logs", TASK, "work1", "-f") == one
    assert {line.split()[0] for line in terminal.said("logs", TASK).splitlines()} >= {"work0", "work1", "work2"}


def test_events_tell_the_history(terminal: Terminal):
    lines = [json.loads(line) for line in terminal.said("events", TASK, "-o", "json").splitlines()]
    assert lines[0]["kind"] == "phase-changed"
    closed = [line["body"]["record"]["number"] for line in lines if line["kind"] == "round-closed"]
    assert closed == list(range(11)), "round 0 gives the initial weights"
    assert [line["body"]["phase"] for line in lines if line["kind"] == "phase-changed"] == [
        "Preparing",
        "Running",
        "Succeeded",
    ]


def test_an_event_published_by_hand_stands_in_the_history(terminal: Terminal):
    data = '{"number": 99, "attempt": 1, "reason": "by hand"}'
    terminal.said("publish", "round-missed", "--node", "edge1", "--task", TASK, "--worker", "work0", "--data", data)
    assert 'reason="by hand"' in terminal.said("events", TASK)


def test_a_model_is_pulled_and_rolled_back(terminal: Terminal):
    path = Path(terminal.said("model", "pull", "digits-mlp").strip())
    document = json.loads(terminal.said("get", "model/digits-mlp", "-o", "json"))
    assert digest_of(path) == document["status"]["versions"][0]["digest"]
    assert "version 2 " in terminal.said("model", "rollback", "digits-mlp", "--version", "1")
    assert len(terminal.said("model", "list").splitlines()) == 3


def test_a_watch_shows_what_there_is_and_ends_with_its_reader(terminal: Terminal):
    watch = subprocess.Popen(
        [sys.executable, "-m", "edgeai", "watch", "tasks"],
        env=terminal.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watch.stdout is not None
    with watch:
        rows = [watch.stdout.readline().split()[0] for _ in range(2)]
        watch.send_signal(signal.SIGINT)
        assert watch.wait(LIMIT_S) == 130
    assert rows == ["NAME", TASK]


def test_a_task_whose_references_are_missing_is_mentioned_and_waits(terminal: Terminal, tmp_path: Path):
    (tmp_path / "train").symlink_to(EXAMPLE.parents[2] / "workers" / "federated-numpy")
    manifest = tmp_path / "waiting.yaml"
    for old, new in ((TASK, "waiting"), ("dataset2", "dataset9"), ("../../workers/federated-numpy", "./train")):
        manifest.write_text((manifest if manifest.exists() else EXAMPLE).read_text().replace(old, new))

    done = terminal("apply", "-f", str(manifest))
    assert done.returncode == 0
    assert "task waiting waits: dataset dataset9 of worker work2 does not exist" in done.stderr

    done = terminal("apply", "-f", str(manifest), "--wait", "--timeout", "0.5")
    assert done.returncode == 124
    assert done.stderr.count("dataset dataset9 of worker work2 does not exist") == 1
    assert done.stderr.splitlines()[-1] == "edgeai: task waiting has not ended within 0.5 s (phase Pending)"

    assert terminal.said("delete", "-f", str(manifest), "--wait").splitlines() == [
        "federatedtask/waiting deleted",
        "model/digits-mlp deleted",
    ]


def test_one_more_edge_gets_its_credentials_without_a_restart(terminal: Terminal):
    path = Path(terminal.said("node", "add", "edge9", "--state-dir", str(terminal.state_dir / "cloud")).strip())
    assert json.loads(path.read_text())["username"] == "edge-edge9"


def test_doctor_reaches_the_cloud(terminal: Terminal):
    assert "answers, 4 of 4 nodes ready" in terminal.said("doctor")
