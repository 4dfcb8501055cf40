"""`edgeai demo` as a user runs it: one command, real brokers, real processes, real data."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from edgeai.store.files import digest_of

LIMIT_S = 240


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the demo in `folder`, with its temporary files below it as well."""
    (folder / "tmp").mkdir()
    return subprocess.run(
        [sys.executable, "-m", "edgeai", "demo", *options],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "EDGEAI_CONTEXT": str(folder / "context.json")},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def processes_below(folder: Path) -> list[str]:
    """Command lines of processes that name this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def check_document(document: dict, *, rounds: int, workers: int) -> None:
    assert document["phase"] == "Succeeded"
    assert [row["round"] for row in document["rounds"]] == list(range(1, rounds + 1))
    for row in document["rounds"]:
        assert row["updates"] == workers
        assert 0 <= row["metrics"]["accuracy"] <= 1
        assert row["bytes_up"] > 0
        assert row["bytes_down"] > 0
        assert row["seconds"] > 0
    path = Path(document["model"]["path"])
    assert digest_of(path) == document["model"]["digest"]
    assert load_file(path)


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
def test_the_demo_with_numpy_succeeds_on_either_broker_and_leaves_only_the_model(tmp_path, broker):
    done = demo(tmp_path, "--framework", "numpy", "--rounds", "4", "--broker", broker, "--json")
    assert done.returncode == 0, done.stderr
    check_document(json.loads(done.stdout), rounds=4, workers=3)
    assert processes_below(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-cnn-v1.safetensors", "tmp"]


@pytest.mark.tensorflow
@pytest.mark.timeout(LIMIT_S)
def test_the_demo_with_tensorflow_reaches_95_percent_on_held_out_digits(tmp_path):
    done = demo(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check_document(document, rounds=10, workers=3)
    assert document["rounds"][-1]["metrics"]["accuracy"] >= 0.95
    assert processes_below(tmp_path) == []


def test_a_failing_demo_writes_one_document_with_the_error_and_exits_with_1(tmp_path):
    done = demo(tmp_path, "--framework", "numpy", "--json", "--output", "nowhere")
    assert done.returncode == 1
    assert "nowhere" in json.loads(done.stdout)["error"]


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("moment", ["starting 1 cloud", "Preparing", "round 2"])
def test_an_interrupt_at_any_moment_leaves_nothing_behind(tmp_path, moment):
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeai", "demo", "--framework", "numpy", "--rounds", "500", "--edges", "2"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
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
    assert processes_below(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
