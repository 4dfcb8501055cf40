"""`edgeai demo --feature incremental` as a user runs it: real brokers, real processes, real digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_demo import LIMIT_S, demo, processes_below

from edgeai.cli.demo_incremental import ALLOWED_LOSS, WANTED_ACCURACY
from edgeai.store.files import digest_of


@pytest.mark.timeout(LIMIT_S)
def test_the_demo_learns_all_ten_digits_keeps_the_old_ones_and_leaves_only_the_model(tmp_path: Path):
    done = demo(tmp_path, "--feature", "incremental", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # fails if there is more than one document
    last = document["accuracy"]
    assert WANTED_ACCURACY == 0.90
    assert ALLOWED_LOSS == 0.05
    assert last["all"] >= 0.90
    assert last["old"] >= last["old_before"] - 0.05
    model = Path(document["model"]["path"])
    assert digest_of(model) == document["model"]["digest"]
    assert processes_below(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([model.name, "tmp"])
