"""`edgeai demo --feature joint-inference` as a user runs it: real brokers, processes and digits, and a link that is cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_demo import LIMIT_S, demo, processes_below

FEATURE = ("--feature", "joint-inference", "--framework", "numpy")


@pytest.mark.timeout(LIMIT_S)
def test_the_demo_recovers_the_gap_with_a_fifth_sent_answers_while_cut_and_leaves_nothing(tmp_path: Path):
    done = demo(tmp_path, *FEATURE, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)  # fails if there is more than one document
    curve = document["curve"]
    assert document["cloud"]["accuracy"] > document["edge"]["accuracy"]
    assert max(point["recovered"] for point in curve if point["sent"] <= 0.21) >= 0.70
    assert [point for point in curve if point["accuracy"] < point["at_random"] - 0.01] == []
    assert document["policy"]["errors"] == 0
    cut = document["cut"]
    assert cut["errors"] == 0
    assert sum(row[name] for row in cut["seconds"] for name in ("edge", "cloud", "fell_back")) == cut["asked"]
    assert cut["cloud_back_after_s"] is not None
    counts = document["counts"]
    assert counts["failed"] == counts["refused"] == counts["shed"] == 0
    assert processes_below(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("moment", ["asking the small model", "the link is cut"])
def test_an_interrupt_at_any_moment_leaves_nothing_of_it(tmp_path: Path, moment: str):
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeai", "demo", *FEATURE],
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
