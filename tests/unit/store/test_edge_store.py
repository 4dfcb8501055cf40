"""The SQLite file of a node: transactions whole or absent, damaged files set aside, one process at a time."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edgeai.errors import StoreError
from edgeai.store.edge import DocumentRow, EdgeStore, FactMaker, Row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "controller.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[EdgeStore]:
    opened = await EdgeStore.open(path)
    yield opened
    await opened.close()


def fact(text: str) -> FactMaker:
    return lambda sequence: (f"topic/{text}", f"{text} {sequence}".encode())


def failing(_sequence: int) -> tuple[str, bytes]:
    raise ValueError("cannot be encoded")


DOCUMENT = DocumentRow("a/b", True, 5, 7, b"payload")


async def filled(path: Path) -> int:
    """A store with something in every table; returns its incarnation."""
    store = await EdgeStore.open(path)
    await store.commit({"k": b"state"}, {("k", "t"): 5.0}, [fact("a"), fact("b")])
    await store.save_document(DOCUMENT)
    await store.close()
    return store.incarnation


# --- what is written is there


async def test_a_new_store_is_empty(store):
    loaded = await store.load()
    assert (loaded.states, loaded.timers) == ({}, {})
    assert (await store.waiting(0, 10), await store.waiting_count(), await store.documents()) == ([], 0, [])


async def test_what_was_committed_survives_a_restart(path):
    incarnation = await filled(path)
    store = await EdgeStore.open(path)
    loaded = await store.load()
    assert (loaded.states, loaded.timers) == ({"k": b"state"}, {("k", "t"): 5.0})
    assert await store.waiting(0, 10) == [Row(1, "topic/a", b"a 1"), Row(2, "topic/b", b"b 2")]
    assert await store.documents() == [DOCUMENT]
    assert store.incarnation == incarnation
    await store.close()


async def test_a_state_of_none_is_removed(store):
    await store.commit({"k": b"1", "l": b"2"}, {})
    await store.commit({"k": None, "unknown": None}, {})
    assert (await store.load()).states == {"l": b"2"}


async def test_timers_are_those_of_the_last_commit(store):
    await store.commit({}, {("k", "t"): 5.0, ("k", "u"): 6.0})
    await store.commit({}, {("k", "u"): 3.5})
    assert (await store.load()).timers == {("k", "u"): 3.5}


async def test_a_document_replaces_the_one_before(store):
    await store.save_document(DOCUMENT)
    newer = DocumentRow("a/b", False, 6, 1, b"newer")
    await store.save_document(newer)
    assert await store.documents() == [newer]
    await store.drop_document("a/b")
    await store.drop_document("a/b")
    assert await store.documents() == []


async def test_the_file_is_written_through(store):
    [(journal,)] = await store._connection.execute_fetchall("PRAGMA journal_mode")
    [(synchronous,)] = await store._connection.execute_fetchall("PRAGMA synchronous")
    assert (journal, synchronous) == ("wal", 2)


# --- facts


async def test_facts_are_numbered_in_order_from_1(store):
    await store.commit({}, {}, [fact("a")])
    await store.commit({}, {}, [fact("b"), fact("c")])
    assert [(row.sequence, row.payload) for row in await store.waiting(0, 10)] == [
        (1, b"a 1"),
        (2, b"b 2"),
        (3, b"c 3"),
    ]


async def test_facts_are_read_from_a_place_on_and_up_to_a_number(store):
    await store.commit({}, {}, [fact(str(number)) for number in range(5)])
    assert [row.sequence for row in await store.waiting(1, 3)] == [2, 3, 4]


async def test_receipted_facts_are_dropped(store):
    await store.commit({}, {}, [fact("a"), fact("b"), fact("c")])
    assert await store.remove_until(2) == 2
    assert await store.remove_until(2) == 0
    assert [row.sequence for row in await store.waiting(0, 10)] == [3]


async def test_a_sequence_is_never_used_again(path):
    await filled(path)
    store = await EdgeStore.open(path)
    await store.remove_until(2)
    await store.close()
    store = await EdgeStore.open(path)
    await store.commit({}, {}, [fact("c")])
    assert [row.sequence for row in await store.waiting(0, 10)] == [3]
    await store.close()


# --- whole or not at all


async def test_a_transaction_that_fails_leaves_nothing(store):
    await store.commit({"k": b"before"}, {("k", "t"): 1.0}, [fact("a")])
    with pytest.raises(ValueError, match="cannot be encoded"):
        await store.commit({"k": b"after", "new": b"1"}, {}, [fact("b"), failing])
    loaded = await store.load()
    assert (loaded.states, loaded.timers) == ({"k": b"before"}, {("k", "t"): 1.0})
    assert [row.payload for row in await store.waiting(0, 10)] == [b"a 1"]
    await store.commit({}, {}, [fact("c")])
    assert [row.payload for row in await store.waiting(0, 10)] == [b"a 1", b"c 2"]


async def test_what_is_not_committed_is_not_seen(store):
    """The outbox must not send a fact that a crash could still take back."""
    writing = asyncio.create_task(store.commit({str(n): b"x" for n in range(50)}, {}, [fact("a")]))
    while not writing.done():
        rows = await store.waiting(0, 10)
        assert rows == [] or writing.done() or not store._connection.in_transaction
    await writing
    assert len(await store.waiting(0, 10)) == 1


async def test_a_cancelled_commit_is_whole_and_its_numbers_are_not_used_again(store):
    for number in range(20):
        writing = asyncio.create_task(store.commit({"k": b"%d" % number}, {}, [fact("a"), fact("b")]))
        for _ in range(number):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    await store.commit({}, {}, [fact("last")])
    sequences = [row.sequence for row in await store.waiting(0, 100)]
    assert sequences == list(range(1, len(sequences) + 1))
    assert len(sequences) % 2 == 1


async def test_a_commit_without_space_is_an_error_and_leaves_nothing(store):
    await store.commit({"k": b"before"}, {}, [fact("a")])
    [(pages,)] = await store._connection.execute_fetchall("PRAGMA page_count")
    await store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"controller\.db cannot be written: database or disk is full"):
        await store.commit({"k": bytes(1_000_000)}, {}, [fact("b")])
    assert (await store.load()).states == {"k": b"before"}
    await store._connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    await store.commit({"k": bytes(1_000_000)}, {}, [fact("b")])
    assert [row.sequence for row in await store.waiting(0, 10)] == [1, 2]


WRITER = """
import asyncio, sys
from pathlib import Path
from edgeai.store.edge import EdgeStore

async def main():
    store = await EdgeStore.open(Path(sys.argv[1]))
    for number in range(100_000):
        text = b"%d" % number
        await store.commit({"a": text, "b": text}, {("a", "t"): float(number)}, [lambda sequence: ("t", text)])
        print(number, flush=True)

asyncio.run(main())
"""


async def test_a_killed_writer_leaves_whole_transactions(path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    told = -1
    while told < 20:
        told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    told = int(([told, *process.stdout.read().split()])[-1])
    process.stdout.close()
    store = await EdgeStore.open(path)
    loaded = await store.load()
    last = int(loaded.states["a"])
    assert last >= told
    assert (loaded.states["b"], loaded.timers) == (loaded.states["a"], {("a", "t"): float(last)})
    assert [int(row.payload) for row in await store.waiting(0, 10_000)] == list(range(last + 1))
    await store.close()


# --- damaged


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def overwritten(path: Path) -> None:
    path.write_bytes(b"This is not a database. " * 400)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def broken_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:8192] = os.urandom(4096)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [zeroed, overwritten, truncated, broken_inside], ids=lambda damage: damage.__name__)
async def test_a_damaged_file_is_set_aside_by_name_and_the_store_begins_anew(path, damage):
    before = await filled(path)
    damage(path)
    with capture_logs() as logs:
        store = await EdgeStore.open(path)
    assert (await store.load()).states == {}
    assert await store.waiting_count() == 0
    assert store.incarnation > before
    await store.commit({}, {}, [fact("a")])
    assert [row.sequence for row in await store.waiting(0, 10)] == [1]
    await store.close()
    [aside] = path.parent.glob("controller.db.damaged-*")
    assert [(entry["event"], entry["set_aside"]) for entry in logs] == [("store_damaged", str(aside))]


async def test_an_empty_file_is_a_new_store(path):
    before = await filled(path)
    path.write_bytes(b"")
    store = await EdgeStore.open(path)
    assert (store.incarnation > before, (await store.load()).states) == (True, {})
    await store.close()


async def test_the_new_incarnation_is_newer_even_if_the_clock_was_set_back(path, monkeypatch):
    before = await filled(path)
    overwritten(path)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    store = await EdgeStore.open(path)
    assert store.incarnation > before
    await store.close()


@pytest.mark.parametrize("error", ["database is locked", "disk I/O error"])
async def test_a_file_that_cannot_be_opened_now_is_not_taken_for_damaged(path, monkeypatch, error):
    """A full disk or a lock must not cost a node its memory."""
    await filled(path)

    async def refuse(*_args: object) -> None:
        found = sqlite3.OperationalError(error)
        found.sqlite_errorcode = sqlite3.SQLITE_BUSY if "locked" in error else sqlite3.SQLITE_IOERR
        raise found

    with monkeypatch.context() as patch:
        patch.setattr("edgeai.store.edge.aiosqlite.connect", refuse)
        with pytest.raises(StoreError, match=f"controller.db cannot be opened: {error}"):
            await EdgeStore.open(path)
    store = await EdgeStore.open(path)
    assert (await store.load()).states == {"k": b"state"}
    await store.close()


async def test_a_folder_in_place_of_the_file_is_an_error_in_one_line(path):
    path.mkdir(parents=True)
    with pytest.raises(StoreError, match=r"controller\.db cannot be opened") as caught:
        await EdgeStore.open(path)
    assert "\n" not in str(caught.value)


async def test_a_place_that_cannot_be_written_is_an_error_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/controller\.db\.lock cannot be opened"):
        await EdgeStore.open(tmp_path / "file" / "controller.db")


# --- one process at a time


async def test_a_second_controller_on_a_state_directory_is_refused_in_one_line(path, store):
    with pytest.raises(StoreError) as caught:
        await EdgeStore.open(path)
    assert str(caught.value) == (
        f"{path} is in use by process {os.getpid()}: stop it, or choose another state directory"
    )
    await store.commit({"k": b"1"}, {})
    assert (await store.load()).states == {"k": b"1"}


async def test_a_store_that_was_closed_can_be_opened_again(path, store):
    await store.close()
    again = await EdgeStore.open(path)
    await again.close()
    await again.close()


HOLDER = """
import asyncio, subprocess, sys
from pathlib import Path
from edgeai.store.edge import EdgeStore

async def main():
    store = await EdgeStore.open(Path(sys.argv[1]))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    print(child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_store_is_free_when_its_process_was_killed_though_its_children_live(path):
    """Workers outlive their controller: they must not keep its successor out."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(StoreError, match=f"in use by process {process.pid}"):
            await EdgeStore.open(path)
        process.kill()
        process.wait(10)
        store = await EdgeStore.open(path)
        await store.close()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


async def test_a_store_that_could_not_be_opened_is_not_held(path):
    path.mkdir(parents=True)
    with pytest.raises(StoreError):
        await EdgeStore.open(path)
    path.rmdir()
    store = await EdgeStore.open(path)
    await store.close()
