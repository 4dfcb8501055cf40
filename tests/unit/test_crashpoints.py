"""Named crash points: the list is true, and they end a process only where a test asks for it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgeai
from edgeai.crashpoints import NAMES, crash_point

SOURCE = Path(edgeai.__file__).parent


def calls() -> list[ast.Call]:
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "crash_point":
                found.append(node)
    return found


def test_the_list_of_names_is_true():
    names = [node.args[0].value for node in calls() if isinstance(node.args[0], ast.Constant)]
    assert len(names) == len(calls()), "the name of a crash point is written out where it is"
    assert set(names) == NAMES


def test_no_two_points_have_one_name():
    names = [node.args[0].value for node in calls()]
    assert len(names) == len(set(names))


def passing(names: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that passes these points, in order, and says so after each."""
    code = (
        "import sys\n"
        "from edgeai.crashpoints import crash_point\n"
        f"for name in {names.split()}:\n"
        "    crash_point(name)\n"
        "    print(name, flush=True)\n"
    )
    known = {key: value for key, value in os.environ.items() if not key.startswith("EDGEAI_")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=known | environment, timeout=60
    )


def test_a_process_ends_at_its_point_as_if_it_were_killed():
    ended = passing("a b c", EDGEAI_TEST="1", EDGEAI_CRASH_AT="b")
    assert (ended.returncode, ended.stdout.split()) == (-signal.SIGKILL, ["a"])


def test_a_process_may_pass_a_point_some_times_before_it_ends():
    ended = passing("a b b b", EDGEAI_TEST="1", EDGEAI_CRASH_AT="b:3")
    assert (ended.returncode, ended.stdout.split()) == (-signal.SIGKILL, ["a", "b", "b"])


@pytest.mark.parametrize(
    "environment",
    [{}, {"EDGEAI_CRASH_AT": "b"}, {"EDGEAI_TEST": "1"}, {"EDGEAI_TEST": "1", "EDGEAI_CRASH_AT": "x"}],
    ids=str,
)
def test_nothing_happens_where_no_test_asks_for_it(environment):
    ended = passing("a b", **environment)
    assert (ended.returncode, ended.stdout.split()) == (0, ["a", "b"])


def test_a_file_ends_one_process_once(tmp_path):
    """A process that is started again passes the point."""
    (tmp_path / "b").write_text("")
    environment = {"EDGEAI_TEST": "1", "EDGEAI_CRASH_FOLDER": str(tmp_path)}
    assert passing("a b", **environment).returncode == -signal.SIGKILL
    assert passing("a b", **environment).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_name_who_is_to_end(tmp_path):
    (tmp_path / "b@work1").write_text("2")
    environment = {"EDGEAI_TEST": "1", "EDGEAI_CRASH_FOLDER": str(tmp_path)}
    assert passing("b b b", EDGEAI_WORKER="work0", **environment).returncode == 0
    ended = passing("b b b", EDGEAI_WORKER="work1", **environment)
    assert (ended.returncode, ended.stdout.split()) == (-signal.SIGKILL, ["b"])


def test_a_point_costs_nothing_in_a_real_installation(monkeypatch):
    monkeypatch.delenv("EDGEAI_TEST", raising=False)
    monkeypatch.setenv("EDGEAI_CRASH_AT", "reactor.after_commit")
    crash_point("reactor.after_commit")
