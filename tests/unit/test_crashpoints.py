"""Crash points: all of them are listed, and a process dies only where and when it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import edgeai
from edgeai.crashpoints import NAMES

POINT = "documents.saved"
PROGRAM = f"""
from edgeai.crashpoints import crash_point
for number in range(3):
    crash_point({POINT!r})
    print(number, flush=True)
"""


def passed(*arguments: str, **variables: str) -> tuple[int, int]:
    """How often a program of three passings passed the point, and its exit code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGEAI_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return len(done.stdout.split()), done.returncode


def test_the_list_of_crash_points_is_that_of_the_code():
    source = Path(edgeai.__file__).parent
    found = {
        name
        for file in source.rglob("*.py")
        for name in re.findall(r'[^f]crash_point\("([a-z_.]+)"\)', file.read_text())
    }
    assert found == NAMES


def test_a_crash_point_ends_the_process_like_kill_9():
    assert passed(EDGEAI_TEST="1", EDGEAI_CRASH_AT=POINT) == (0, -signal.SIGKILL)


def test_a_crash_point_with_a_count_ends_the_process_at_that_passing():
    assert passed(EDGEAI_TEST="1", EDGEAI_CRASH_AT=f"{POINT}:3") == (2, -signal.SIGKILL)


def test_another_crash_point_ends_nothing():
    assert passed(EDGEAI_TEST="1", EDGEAI_CRASH_AT="worker.offered") == (3, 0)


def test_without_a_test_no_crash_point_ends_anything(tmp_path: Path):
    (tmp_path / POINT).touch()
    assert passed(EDGEAI_CRASH_AT=POINT, EDGEAI_CRASH_FOLDER=str(tmp_path)) == (3, 0)


def test_a_file_in_the_crash_folder_ends_one_process_once(tmp_path: Path):
    (tmp_path / POINT).touch()
    assert passed(EDGEAI_TEST="1", EDGEAI_CRASH_FOLDER=str(tmp_path)) == (0, -signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []
    assert passed(EDGEAI_TEST="1", EDGEAI_CRASH_FOLDER=str(tmp_path)) == (3, 0)


def test_a_file_in_the_crash_folder_may_hold_a_count(tmp_path: Path):
    (tmp_path / POINT).write_text("2")
    assert passed(EDGEAI_TEST="1", EDGEAI_CRASH_FOLDER=str(tmp_path)) == (1, -signal.SIGKILL)


def test_a_file_in_the_crash_folder_may_name_a_worker_or_a_daemon(tmp_path: Path):
    (tmp_path / f"{POINT}@work1").touch()
    (tmp_path / f"{POINT}@cloud").touch()
    assert passed("edge", EDGEAI_TEST="1", EDGEAI_CRASH_FOLDER=str(tmp_path)) == (3, 0)
    assert passed("cloud", EDGEAI_TEST="1", EDGEAI_CRASH_FOLDER=str(tmp_path)) == (0, -signal.SIGKILL)
    who = {"EDGEAI_TEST": "1", "EDGEAI_CRASH_FOLDER": str(tmp_path), "EDGEAI_WORKER": "work1"}
    assert passed(**who) == (0, -signal.SIGKILL)
