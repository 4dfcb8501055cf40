"""The reactor's journal on a node: states and timers come back as they were, facts go out as events of their source."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edgeai.events.address import Address
from edgeai.events.catalogue import Assignment, Role, WorkerFailed
from edgeai.events.envelope import decode
from edgeai.lifecycle.base import Emit
from edgeai.lifecycle.worker import Slot, WorkerPhase
from edgeai.reactor import Batch
from edgeai.store.edge import EdgeStore
from edgeai.store.journal import SqliteJournal

UID = "0a1b2c3d" * 4
TASK = "digits-0a1b2c3d"
SLOT = Slot(
    WorkerPhase.RUNNING,
    Assignment(
        TASK, "digits", UID, 1, "work0", Role.TRAINING, parameters={"layers": [32, {"kind": "dense"}], "on": True}
    ),
    pid=7,
)


@dataclass(frozen=True, slots=True)
class Other:
    """What another version might have written."""

    numbers: tuple[int, ...] = ()
    names: dict[str, str] = field(default_factory=dict)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EdgeStore]:
    opened = await EdgeStore.open(tmp_path / "controller.db")
    yield opened
    await opened.close()


@pytest.fixture
def journal(store: EdgeStore) -> SqliteJournal[Slot]:
    return SqliteJournal(store, Slot, node="edge1", source="edge1")


async def test_states_and_timers_come_back_as_they_were(journal):
    await journal.commit(Batch(states={"a/w": SLOT, "b/w": Slot()}, timers={("a/w", "stable"): 3.5}))
    assert await journal.load() == ({"a/w": SLOT, "b/w": Slot()}, {("a/w", "stable"): 3.5})


async def test_a_removed_state_takes_its_timers_along(journal):
    await journal.commit(Batch(states={"a/w": SLOT}, timers={("a/w", "stable"): 3.5}))
    await journal.commit(Batch(states={"a/w": None}, timers={("a/w", "stable"): 3.5}))
    assert await journal.load() == ({}, {})


async def test_a_fact_waits_in_the_outbox_as_an_event_of_its_source(journal, store):
    fact = WorkerFailed(UID, Role.TRAINING, "no TensorFlow")
    await journal.commit(Batch(states={"a/w": SLOT}, facts=[Emit(fact, TASK, "work0"), Emit(fact, TASK)]))
    first, second = await store.waiting(0, 10)
    assert Address.from_topic(first.topic) == Address(
        "edge1", fact.direction, fact.event_class, "worker-failed", TASK, "work0"
    )
    envelope = decode(first.payload)
    assert (envelope.event, envelope.subject, len(envelope.id)) == (fact, f"{TASK}/work0", 16)
    header = envelope.header
    assert (header.source, header.incarnation, header.sequence) == ("edge1", store.incarnation, 1)
    assert (decode(second.payload).header.sequence, decode(second.payload).subject) == (2, TASK)


async def test_a_fact_that_cannot_be_sent_takes_its_state_back(journal):
    """The state and what it led to are one transaction."""
    with pytest.raises(Exception, match="not a valid level"):
        await journal.commit(
            Batch(states={"a/w": SLOT}, facts=[Emit(WorkerFailed(UID, Role.TRAINING, "x"), "NO LEVEL")])
        )
    assert await journal.load() == ({}, {})


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x91" * 2000, b"\x81\xa5phase\xa7unknown", b"\xc0", b"\x05", b"\xa1\xff"]
)
async def test_a_state_that_cannot_be_read_is_left_out_and_told(journal, store, body):
    await journal.commit(Batch(states={"good/w": SLOT}))
    await store.commit({"bad/w": body}, {("bad/w", "t"): 1.0, ("good/w", "t"): 2.0})
    with capture_logs() as logs:
        states, timers = await journal.load()
    assert (states, timers) == ({"good/w": SLOT}, {("good/w", "t"): 2.0})
    assert [(entry["event"], entry["key"]) for entry in logs] == [("state_unreadable", "bad/w")]


async def test_fields_of_another_version_are_ignored_or_have_their_default(store):
    older: SqliteJournal[Other] = SqliteJournal(store, Other, node="edge1", source="edge1")
    await older.commit(Batch(states={"k": Other((1, 2), {"a": "b"})}))
    newer: SqliteJournal[Slot] = SqliteJournal(store, Slot, node="edge1", source="edge1")
    assert await newer.load() == ({"k": Slot()}, {})
