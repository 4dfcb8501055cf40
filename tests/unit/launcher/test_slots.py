"""What a controller reads from a slot directory was written by a worker, who may have made anything of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeai.events.tokens import TOKEN_BYTES
from edgeai.launcher.slots import MAX_SESSION_BYTES, SessionFile, SlotDir


@pytest.fixture
def slot(tmp_path: Path) -> SlotDir:
    return SlotDir(tmp_path)


def as_link(path: Path) -> None:
    (path.parent / "elsewhere").write_text('{"ended": true}')
    path.symlink_to("elsewhere")


HOSTILE = {
    "a-pipe-that-nobody-writes-to": os.mkfifo,
    "a-link": as_link,
    "a-folder": Path.mkdir,
    "a-huge-file": lambda path: os.truncate(path, MAX_SESSION_BYTES + 1) if path.touch() is None else None,
    "no-json": lambda path: path.write_text("{"),
    "deep-json": lambda path: path.write_text("[" * 10_000),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_session_file_that_is_none_is_as_if_the_worker_never_joined(slot, make):
    make(slot.path / "session.json")
    assert slot.read_session() is None


def test_a_session_file_is_read_as_it_was_written(slot):
    slot.write_session(SessionFile(ended=True, submitted=3))
    assert slot.read_session() == SessionFile(ended=True, submitted=3)


def test_every_run_has_a_token_of_its_own_that_only_its_user_may_read(slot):
    slot.renew_token()
    first = slot.read_token()
    slot.renew_token()
    assert len(first) == TOKEN_BYTES
    assert slot.read_token() != first
    assert (slot.path / "token").stat().st_mode & 0o777 == 0o400


def test_without_a_token_file_there_is_no_token(slot):
    assert slot.read_token() == b""
