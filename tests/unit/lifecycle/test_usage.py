"""What workers use: the latest while it is fresh, unknown with its age afterwards."""

from __future__ import annotations

import pytest

from edgeai.events.catalogue import Usage
from edgeai.lifecycle import usage
from edgeai.lifecycle.usage import FRESH_S, Usages, usage_document

BUSY = Usage(cpu_s=12.0, memory_bytes=1000, memory_limit_bytes=4000, pids=3, cpus=0.5)
IDLE = Usage(cpu_s=13.0, memory_bytes=2000, memory_limit_bytes=4000, pids=3, cpus=0.0)
WORK0 = ("edge1", "digits-0a1b2c3d", "work0")


@pytest.fixture
def usages() -> Usages:
    found = Usages()
    found.hear(*WORK0, BUSY, 100.0)
    return found


def test_what_was_heard_is_known_with_its_age(usages: Usages):
    assert usages.known(*WORK0, 104.0) == (BUSY, 4.0)


def test_only_the_latest_counts(usages: Usages):
    usages.hear(*WORK0, IDLE, 110.0)
    assert usages.known(*WORK0, 110.0) == (IDLE, 0.0)


def test_what_is_old_is_unknown_and_its_age_is_told(usages: Usages):
    assert usages.known(*WORK0, 100.5 + FRESH_S) == (None, FRESH_S + 0.5)


def test_of_a_node_that_is_away_nothing_is_known(usages: Usages):
    assert usages.known(*WORK0, 101.0, away=True) == (None, 1.0)


def test_of_a_worker_that_was_never_heard_of_nothing_is_known(usages: Usages):
    assert usages.known("edge1", "digits-0a1b2c3d", "work1", 101.0) == (None, None)


def test_another_node_does_not_speak_for_a_worker(usages: Usages):
    usages.hear("edge2", *WORK0[1:], IDLE, 101.0)
    assert usages.known(*WORK0, 101.0) == (BUSY, 1.0)


def test_a_task_that_is_gone_is_forgotten(usages: Usages):
    usages.forget_all_but({"other-0a1b2c3d"})
    assert len(usages) == 0


def test_beyond_the_limit_the_one_heard_of_longest_ago_goes(usages: Usages, monkeypatch):
    monkeypatch.setattr(usage, "LIMIT", 2)
    usages.hear("edge1", "a-0a1b2c3d", "w", IDLE, 101.0)
    usages.hear(*WORK0, IDLE, 102.0)
    usages.hear("edge1", "b-0a1b2c3d", "w", IDLE, 103.0)
    assert (len(usages), usages.known("edge1", "a-0a1b2c3d", "w", 103.0)) == (2, (None, None))


@pytest.mark.parametrize(
    ("after_s", "now_s", "tasks"),
    [
        (100.0, 100.0 + FRESH_S, []),
        (100.0, 100.1 + FRESH_S, ["digits-0a1b2c3d"]),
        (100.1 + FRESH_S, 200.0, []),
    ],
    ids=["fresh", "just-now", "before"],
)
def test_what_has_become_unknown_is_told_once(usages: Usages, after_s: float, now_s: float, tasks: list[str]):
    assert usages.grown_old(after_s, now_s) == tasks


def test_programs_get_all_keys_also_of_what_is_unknown():
    known, unknown = usage_document(BUSY, 4.04), usage_document(None, None)
    assert known == {
        "known": True,
        "age_s": 4.0,
        "cpus": 0.5,
        "memory_bytes": 1000,
        "memory_limit_bytes": 4000,
        "pids": 3,
    }
    assert unknown == dict.fromkeys(known) | {"known": False}
