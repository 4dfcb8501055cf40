"""What the coordinator remembers in the resource store: status, timers, documents, and how far each source is."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_world import UID, task
from structlog.testing import capture_logs

from edgeai.coordinator.journal import CURSOR, DOCUMENT, IDENTITY, TASK, TIMERS, Cursors, KvDocuments, TaskJournal, put
from edgeai.errors import BusUnavailable, Conflict, NotFound
from edgeai.events.catalogue import PhaseChanged
from edgeai.lifecycle.base import Emit
from edgeai.reactor import Batch
from edgeai.resources.federated import FederatedTask, TaskPhase
from edgeai.store.base import Document, Stored
from edgeai.store.edge import DocumentRow
from edgeai.store.memory import MemoryResourceStore

FACT = Emit(PhaseChanged(UID, "Running", "why"), "digits")


class Busy(MemoryResourceStore):
    """A user is always faster: `meanwhile` runs between a read and the write that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Any] = []

    async def _interrupted(self) -> None:
        if self.meanwhile:
            await self.meanwhile.pop(0)()

    async def replace(self, stored: Stored, document: Document) -> Stored:
        await self._interrupted()
        return await super().replace(stored, document)

    async def delete(self, stored: Stored) -> None:
        await self._interrupted()
        await super().delete(stored)


@pytest.fixture
def resources() -> Busy:
    return Busy()


@pytest.fixture
def journal(resources: Busy) -> TaskJournal:
    return TaskJournal(FederatedTask, resources, published)


PUBLISHED: list[Emit] = []


async def published(emit: Emit) -> None:
    PUBLISHED.append(emit)


def running(found: FederatedTask) -> FederatedTask:
    return found.model_copy(update={"status": found.status.model_copy(update={"phase": TaskPhase.RUNNING})})


async def applied(resources: MemoryResourceStore, found: FederatedTask) -> Stored:
    return await resources.create(TASK, found.name, found.to_document())


async def current(resources: MemoryResourceStore) -> FederatedTask:
    return FederatedTask.from_document((await resources.get(TASK, "digits")).document)


# --- status


async def test_tasks_and_timers_come_back(resources, journal):
    await applied(resources, running(task()))
    await journal.commit(Batch(timers={("digits", "deadline"): 60.2, ("gone", "deadline"): 5.0}))
    assert await TaskJournal(FederatedTask, resources, published).load() == (
        {"digits": running(task())},
        {("digits", "deadline"): 60.0},
    )


async def test_the_status_is_written_and_nothing_else(resources, journal):
    stored = await applied(resources, task(generation=3))
    await journal.commit(Batch(states={"digits": running(task(generation=1, rounds=9))}))
    found = await resources.get(TASK, "digits")
    assert found.document == stored.document | {"status": found.document["status"]}
    assert found.document["status"]["phase"] == "Running"


async def test_an_equal_status_is_not_written(resources, journal):
    stored = await applied(resources, running(task()))
    await journal.commit(Batch(states={"digits": running(task())}))
    assert (await resources.get(TASK, "digits")).revision == stored.revision


async def test_a_spec_that_a_user_changes_meanwhile_is_kept(resources, journal):
    await applied(resources, task())

    async def user() -> None:
        stored = await MemoryResourceStore.get(resources, TASK, "digits")
        await MemoryResourceStore.replace(resources, stored, task(generation=2, rounds=7).to_document())

    resources.meanwhile = [user, user, user]
    await journal.commit(Batch(states={"digits": running(task())}))
    found = await current(resources)
    assert (found.status.phase, found.metadata.generation, found.spec.rules().rounds) == (TaskPhase.RUNNING, 2, 7)


async def test_the_status_of_a_task_that_was_applied_anew_is_left_alone(resources, journal):
    await applied(resources, task(uid="f" * 32))
    await journal.commit(Batch(states={"digits": running(task())}))
    assert (await current(resources)).status.phase is TaskPhase.PENDING


async def test_a_status_without_a_document_is_nothing(resources, journal):
    await journal.commit(Batch(states={"digits": running(task())}))
    with pytest.raises(NotFound):
        await resources.get(TASK, "digits")


async def test_a_task_that_cannot_be_read_does_not_keep_the_others(resources, journal):
    await applied(resources, task())
    await resources.create(TASK, "broken", {"kind": "FederatedTask", "of": "another version"})
    with capture_logs() as logs:
        states, _ = await journal.load()
    assert list(states) == ["digits"]
    assert [(entry["event"], entry["name"]) for entry in logs] == [("resource_unreadable", "broken")]


# --- removal


async def test_a_deleted_task_is_removed(resources, journal):
    await applied(resources, task(deleted=True))
    await journal.commit(Batch(states={"digits": None}))
    await journal.commit(Batch(states={"digits": None}))
    with pytest.raises(NotFound):
        await resources.get(TASK, "digits")


async def test_a_task_that_was_applied_anew_meanwhile_is_not_removed(resources, journal):
    await applied(resources, task(uid="f" * 32))
    await journal.commit(Batch(states={"digits": None}))
    assert (await current(resources)).metadata.uid == "f" * 32


async def test_a_removal_is_repeated_when_somebody_was_faster(resources, journal):
    await applied(resources, task(deleted=True))

    async def user() -> None:
        stored = await MemoryResourceStore.get(resources, TASK, "digits")
        await MemoryResourceStore.replace(resources, stored, task(deleted=True, generation=5).to_document())

    resources.meanwhile = [user]
    await journal.commit(Batch(states={"digits": None}))
    with pytest.raises(NotFound):
        await resources.get(TASK, "digits")


# --- timers


async def test_timers_are_one_document_per_task_and_go_with_the_last(resources, journal):
    await journal.commit(Batch(timers={("a", "deadline"): 60.0, ("a", "drain"): 15.0, ("b", "deadline"): 5.0}))
    assert (await resources.get(TIMERS, "a")).document == {"deadline": 60, "drain": 15}
    await journal.commit(Batch(timers={("b", "deadline"): 4.0}))
    assert [item.name for item in await resources.list(TIMERS)] == ["b"]


async def test_timers_of_before_a_restart_go_as_well(resources, journal):
    await applied(resources, task())
    await journal.commit(Batch(timers={("digits", "deadline"): 60.0}))
    later = TaskJournal(FederatedTask, resources, published)
    await later.load()
    await later.commit(Batch())
    assert await resources.list(TIMERS) == []


async def test_timers_that_have_not_moved_are_not_written_again(resources, journal):
    await journal.commit(Batch(timers={("a", "deadline"): 60.4}))
    before = (await resources.get(TIMERS, "a")).revision
    await journal.commit(Batch(timers={("a", "deadline"): 59.6}))
    assert (await resources.get(TIMERS, "a")).revision == before


# --- facts and outages


async def test_facts_are_published_after_the_status_is_stored(resources):
    order: list[str] = []

    async def publish(_emit: Emit) -> None:
        order.append((await current(resources)).status.phase.value)

    await applied(resources, task())
    await TaskJournal(FederatedTask, resources, publish).commit(Batch(states={"digits": running(task())}, facts=[FACT]))
    assert order == ["Running"]


async def test_an_unreachable_store_is_the_reactors_to_wait_for(resources, journal):
    await applied(resources, task())
    resources.reachable = False
    with pytest.raises(BusUnavailable):
        await journal.commit(Batch(states={"digits": running(task())}))


# --- one writer


async def test_a_document_is_written_whether_or_not_it_exists(resources):
    await put(resources, CURSOR, "a", {"n": 1})
    await put(resources, CURSOR, "a", {"n": 2})
    assert (await resources.get(CURSOR, "a")).document == {"n": 2}
    await put(resources, CURSOR, "a", None)
    await put(resources, CURSOR, "a", None)
    assert await resources.list(CURSOR) == []


async def test_a_conflict_is_read_again(resources):
    await put(resources, CURSOR, "a", {"n": 1})

    async def other() -> None:
        stored = await MemoryResourceStore.get(resources, CURSOR, "a")
        await MemoryResourceStore.replace(resources, stored, {"n": 7})

    resources.meanwhile = [other]
    await put(resources, CURSOR, "a", {"n": 2})
    assert (await resources.get(CURSOR, "a")).document == {"n": 2}


async def test_a_document_that_somebody_else_creates_first_is_replaced(resources, monkeypatch):
    create = MemoryResourceStore.create

    async def beaten(kind: str, name: str, document: Document) -> Stored:
        monkeypatch.undo()
        await create(resources, kind, name, {"n": 7})
        raise Conflict(kind, name)

    monkeypatch.setattr(resources, "create", beaten)
    await put(resources, CURSOR, "a", {"n": 2})
    assert (await resources.get(CURSOR, "a")).document == {"n": 2}


# --- cursors


async def test_cursors_come_back(resources):
    cursors = Cursors(resources)
    await cursors.advance("edge1", 5, 7)
    await cursors.advance("cloud/digits-0a1b2c3d/aggregation", 6, 1)
    await cursors.advance("edge1", 5, 8)
    later = Cursors(resources)
    await later.load()
    assert (later.get("edge1"), later.get("cloud/digits-0a1b2c3d/aggregation")) == ((5, 8), (6, 1))
    assert later.get("edge2") == (0, 0)


async def test_cursors_of_tasks_that_are_gone_are_dropped_and_nodes_keep_theirs(resources):
    cursors = Cursors(resources)
    for source in ("edge1", "cloud/old-0a1b2c3d/aggregation", "cloud/new-0a1b2c3d/aggregation"):
        await cursors.advance(source, 5, 7)
    await cursors.forget_tasks({"new-0a1b2c3d"})
    assert cursors.get("cloud/old-0a1b2c3d/aggregation") == (0, 0)
    assert sorted(item.document["source"] for item in await resources.list(CURSOR)) == [
        "cloud/new-0a1b2c3d/aggregation",
        "edge1",
    ]


# --- documents


async def test_the_incarnation_is_made_with_the_store_and_lost_with_it(resources):
    first = await KvDocuments.open(resources)
    assert (await KvDocuments.open(resources)).incarnation == first.incarnation
    await put(resources, IDENTITY, "coordinator", None)
    assert (await KvDocuments.open(resources)).incarnation > first.incarnation


async def test_own_documents_are_kept_and_those_of_others_are_not(resources):
    documents = await KvDocuments.open(resources)
    own = DocumentRow("edgeai/1/edge1/down/state/desired/-/-", True, 5, 7, b"payload")
    await documents.save_document(own)
    await documents.save_document(DocumentRow("edgeai/1/edge1/up/state/observed/-/-", False, 5, 7, b"payload"))
    assert await documents.documents() == [own]
    await documents.drop_document(own.topic)
    assert await resources.list(DOCUMENT) == []
