"""The parts of the shim that can be looked at without starting one."""

from __future__ import annotations

import json
import os

import pytest

from edgeai.launcher import shim


def test_a_process_name_with_brackets_and_spaces_does_not_confuse_the_parser():
    found = shim.Process(7, "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20")

    assert (found.state, found.parent, found.session, found.start_time) == ("S", 1, 3, 4711)


@pytest.mark.skipif(not shim.LINUX, reason="needs /proc")
def test_the_start_time_of_a_living_process_is_known():
    assert shim.start_time(os.getpid()) > 0


def test_a_process_that_does_not_exist_has_no_start_time():
    assert shim.start_time(2**22 + 1) == 0


@pytest.mark.parametrize(
    ("log", "start", "line"),
    [
        (b"", 0, ""),
        (b"one\ntwo\n", 0, "two"),
        (b"one\n\n  \r\n", 0, "one"),
        (b"no end of line", 0, "no end of line"),
        (b"one\ntwo\n", 8, ""),
        (b"one\n", 100, "one"),
        (b"\xff\xfe\n", 0, "\ufffd\ufffd"),
        (b"x" * 200_000, 0, "x" * 500),
    ],
    ids=["empty", "last", "blank", "open", "earlier-run", "emptied-meanwhile", "not-utf8", "long"],
)
def test_the_last_line_of_a_log(tmp_path, log, start, line):
    (tmp_path / "log").write_bytes(log)

    assert shim.last_line(str(tmp_path / "log"), start) == line


def test_a_log_that_does_not_exist_has_no_last_line(tmp_path):
    assert shim.last_line(str(tmp_path / "log"), 0) == ""


def test_a_file_is_written_whole_and_private(tmp_path):
    shim.write_whole(str(tmp_path / "run.json"), {"a": 1})

    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_renamed_leaves_no_part(tmp_path):
    (tmp_path / "run.json").mkdir()

    with pytest.raises(OSError, match=r"run\.json"):
        shim.write_whole(str(tmp_path / "run.json"), {})

    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]


def test_a_lock_is_held_until_its_descriptor_is_closed(tmp_path):
    held = shim.try_lock(str(tmp_path / "lock"))
    assert shim.try_lock(str(tmp_path / "lock")) is None

    os.close(held)

    os.close(shim.try_lock(str(tmp_path / "lock")))


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        (0, {"reason": "exited", "code": 0, "signal": None}),
        (3 << 8, {"reason": "exited", "code": 3, "signal": None}),
        (9, {"reason": "killed", "code": None, "signal": "SIGKILL"}),
        (11 | 0x80, {"reason": "killed", "code": None, "signal": "SIGSEGV"}),
        (40, {"reason": "killed", "code": None, "signal": "SIG40"}),
    ],
)
def test_a_wait_status_is_told_by_reason_code_and_signal(status, ending):
    assert shim._ending(status) == ending
