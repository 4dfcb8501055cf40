"""State documents: the newest wins, whatever is lost, repeated or reordered; the owner sends only what differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edgeai.bus.base import Delivery
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import DatasetWanted, Desired, Event, Held, HeldAtEdge, HeldInCloud, Observed
from edgeai.events.envelope import Envelope, Header, decode, decode_header, encode
from edgeai.store.documents import Documents, MemoryDocuments
from edgeai.store.edge import DocumentRow, EdgeStore

TASK = "digits-0a1b2c3d"
DESIRED = Address("edge1", Direction.DOWN, EventClass.STATE, Desired.kind)
HELD = Address("edge1", Direction.UP, EventClass.SIGNAL, HeldAtEdge.kind)


def desired(text: str) -> Desired:
    return Desired((), (DatasetWanted(text, f"/data/{text}", "npz"),))


def address(node: str = "edge1", task: str = "", worker: str = "", kind: str = "round") -> Address:
    return Address(node, Direction.DOWN, EventClass.STATE, kind, task, worker)


def delivery(incarnation: int, generation: int, text: str = "x", at: Address = DESIRED) -> Delivery:
    header = Header("cloud/coordinator", incarnation, generation)
    return Delivery(at, encode(Envelope(header, desired(text))))


async def accepted(documents: Documents, item: Delivery) -> bool:
    return await documents.accept(item, decode_header(item.payload))


def content(payload: bytes) -> str:
    event = decode(payload).event
    assert isinstance(event, Desired)
    return event.datasets[0].name


class World:
    """An owner on a bus, and what its readers' side of the broker has seen."""

    def __init__(self, store: MemoryDocuments) -> None:
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker, "owner")
        self.store = store
        self.documents = Documents(store, self.bus, "cloud/coordinator")
        self.seen: list[Delivery] = []

    def sent(self) -> list[Address]:
        """The addresses of what was sent since the last call."""
        found, self.seen = [item.address for item in self.seen], []
        return found


@asynccontextmanager
async def world(store: MemoryDocuments | None = None) -> AsyncIterator[World]:
    made = World(store or MemoryDocuments())
    async with made.bus, MemoryBus(made.broker, "reader") as reader, reader.subscribe(Pattern()) as deliveries:

        async def listen() -> None:
            async for item in deliveries:
                made.seen.append(item)

        task = asyncio.create_task(listen())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# --- as owner


async def test_a_published_document_is_stored_before_it_is_sent():
    async with world() as made:
        assert await made.documents.publish(DESIRED, desired("a")) == 1
        [row] = await made.store.documents()
        assert made.broker.retained[DESIRED] == row.payload
        assert (row.own, row.incarnation, row.generation) == (True, made.store.incarnation, 1)
        assert decode_header(row.payload) == Header("cloud/coordinator", made.store.incarnation, 1)


async def test_a_change_is_the_next_generation():
    async with world() as made:
        assert [await made.documents.publish(DESIRED, desired(text)) for text in ("a", "b", "c")] == [1, 2, 3]
        assert content(made.broker.retained[DESIRED]) == "c"


async def test_equal_content_changes_nothing_and_is_not_sent():
    async with world() as made:
        await made.documents.publish(DESIRED, desired("a"))
        await asyncio.sleep(0)
        made.sent()
        assert await made.documents.publish(DESIRED, desired("a")) == 1
        await asyncio.sleep(0)
        assert made.sent() == []


async def test_generations_go_on_after_a_restart():
    store = MemoryDocuments()
    async with world(store) as made:
        await made.documents.publish(DESIRED, desired("a"))
    async with world(store) as made:
        await made.documents.load()
        assert await made.documents.publish(DESIRED, desired("a")) == 1
        assert await made.documents.publish(DESIRED, desired("b")) == 2


async def test_what_is_published_at_the_same_time_never_shares_a_generation():
    class Slow(MemoryDocuments):
        async def save_document(self, row: DocumentRow) -> None:
            await asyncio.sleep(0)
            await super().save_document(row)

    async with world(Slow()) as made:
        texts = ["a", "b", "c", "d"]
        found = await asyncio.gather(*(made.documents.publish(DESIRED, desired(text)) for text in texts))
        assert found == [1, 2, 3, 4]
        assert content(made.broker.retained[DESIRED]) == "d"


async def test_a_document_published_without_a_broker_is_sent_when_its_reader_asks():
    async with world() as made:
        made.broker.stop()
        await made.documents.publish(DESIRED, desired("a"))
        made.broker.start()
        await made.documents.resend(HELD, ())
        assert content(made.broker.retained[DESIRED]) == "a"


async def test_a_withdrawn_document_is_gone_from_store_and_broker():
    async with world() as made:
        await made.documents.publish(DESIRED, desired("a"))
        await made.documents.withdraw(DESIRED)
        await made.documents.withdraw(DESIRED)
        assert (await made.store.documents(), made.broker.retained, made.documents.own()) == ([], {}, {})


async def test_own_documents_are_known_by_address():
    async with world() as made:
        await made.documents.publish(DESIRED, desired("a"))
        assert made.documents.own() == {DESIRED: desired("a")}


OWN = [
    DESIRED,
    address("edge2", kind=Desired.kind),
    address(task=TASK),
    address(task="other-0a1b2c3d"),
    address(task=TASK, worker="work0", kind="membership"),
    address(task=TASK, worker="work1", kind="membership"),
]


@pytest.mark.parametrize(
    ("reader", "expected"),
    [
        (HELD, [DESIRED, OWN[2], OWN[3], OWN[4], OWN[5]]),
        (Address("edge1", Direction.UP, EventClass.SIGNAL, HeldAtEdge.kind, TASK, "work0"), [OWN[2], OWN[4]]),
        (Address("edge3", Direction.UP, EventClass.SIGNAL, HeldAtEdge.kind), []),
        (Address("edge1", Direction.DOWN, EventClass.SIGNAL, HeldInCloud.kind), []),
    ],
    ids=["a node", "a worker", "an unknown node", "the wrong direction"],
)
async def test_a_reader_is_sent_what_is_meant_for_it(reader, expected):
    async with world() as made:
        for place in OWN:
            await made.documents.publish(place, desired("a"))
        await asyncio.sleep(0)
        made.sent()
        await made.documents.resend(reader, ())
        await asyncio.sleep(0)
        assert made.sent() == expected


async def test_a_reader_is_sent_only_what_differs():
    async with world() as made:
        for place in OWN[:4]:
            await made.documents.publish(place, desired("a"))
        await made.documents.publish(DESIRED, desired("b"))
        await asyncio.sleep(0)
        made.sent()
        mine = made.store.incarnation
        held = [
            Held(Desired.kind, "", "", mine, 1),  # outdated
            Held("round", TASK, "", mine, 1),  # as it is
            Held("round", "other-0a1b2c3d", "", mine - 1, 9),  # of an incarnation before
        ]
        await made.documents.resend(HELD, held)
        await asyncio.sleep(0)
        assert made.sent() == [DESIRED, OWN[3]]


async def test_everything_can_be_sent_again():
    async with world() as made:
        for place in OWN:
            await made.documents.publish(place, desired("a"))
        await asyncio.sleep(0)
        made.sent()
        await made.documents.resend_all()
        await asyncio.sleep(0)
        assert made.sent() == OWN


# --- as reader


async def test_a_newer_generation_is_accepted_and_remembered():
    store = MemoryDocuments()
    async with world(store) as made:
        assert await accepted(made.documents, delivery(5, 1, "a"))
        assert await accepted(made.documents, delivery(5, 2, "b"))
        assert made.documents.held() == (Held(Desired.kind, "", "", 5, 2),)
    async with world(store) as made:
        [found] = await made.documents.load()
        assert (found.address, content(found.payload)) == (DESIRED, "b")
        assert not await accepted(made.documents, delivery(5, 2, "b"))


@pytest.mark.parametrize("late", [(5, 2), (5, 1), (4, 9)], ids=["repeated", "late", "an incarnation before"])
async def test_what_is_not_newer_is_not_accepted(late):
    async with world() as made:
        await accepted(made.documents, delivery(5, 2, "held"))
        assert not await accepted(made.documents, delivery(*late, "late"))
        assert [content(row.payload) for row in await made.store.documents()] == ["held"]


async def test_an_owner_that_lost_its_store_begins_with_a_new_incarnation():
    async with world() as made:
        await accepted(made.documents, delivery(5, 900, "before"))
        assert await accepted(made.documents, delivery(6, 1, "after"))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=30))
def test_whatever_is_lost_repeated_or_reordered_the_newest_that_arrived_is_held(versions):
    async def play() -> tuple[tuple[Held, ...], list[bool]]:
        documents = Documents(MemoryDocuments(), MemoryBus(MemoryBroker()), "edge1")
        news = [await accepted(documents, delivery(*version)) for version in versions]
        return documents.held(), news

    held, news = asyncio.run(play())
    assert [(item.incarnation, item.generation) for item in held] == ([max(versions)] if versions else [])
    best = (0, 0)
    for version, new in zip(versions, news, strict=True):
        assert new == (version > best)
        best = max(best, version)


async def test_documents_that_belong_to_a_task_are_forgotten_with_it():
    async with world() as made:
        await accepted(made.documents, delivery(5, 1))
        await accepted(made.documents, delivery(5, 1, at=address(task=TASK)))
        await made.documents.forget(lambda place: place.task == TASK)
        assert made.documents.held() == (Held(Desired.kind, "", "", 5, 1),)
        assert [row.topic for row in await made.store.documents()] == [DESIRED.topic()]


@pytest.mark.parametrize("kind", [HeldAtEdge, HeldInCloud], ids=lambda kind: kind.__name__)
async def test_a_reader_lists_what_it_holds(kind: type[Event]):
    async with world() as made:
        await accepted(made.documents, delivery(5, 7))
        await made.documents.compare(Address("edge1", kind.direction, kind.event_class, kind.kind))
        await asyncio.sleep(0)
        event = decode(made.seen[-1].payload).event
        assert event == kind((Held(Desired.kind, "", "", 5, 7),))


async def test_a_list_that_cannot_be_sent_is_not_an_error():
    async with world() as made:
        made.broker.stop()
        await made.documents.compare(HELD)


# --- what cannot be read


@pytest.mark.parametrize(
    "payload", [b"", b"eA\x02" + bytes(60), b"eA\x01" + bytes(60)], ids=["empty", "version 2", "damaged"]
)
async def test_a_held_document_that_cannot_be_read_is_asked_for_again(payload):
    store = MemoryDocuments()
    await store.save_document(DocumentRow(DESIRED.topic(), False, 5, 7, payload))
    with capture_logs() as logs:
        async with world(store) as made:
            assert await made.documents.load() == []
            assert made.documents.held() == ()
            assert await accepted(made.documents, delivery(5, 7))
    assert [entry["event"] for entry in logs] == ["document_unreadable"]


async def test_an_own_document_that_cannot_be_read_goes_on_with_its_next_generation():
    store = MemoryDocuments()
    await store.save_document(DocumentRow(DESIRED.topic(), True, store.incarnation, 7, b"of another version"))
    with capture_logs():
        async with world(store) as made:
            await made.documents.load()
            assert await made.documents.publish(DESIRED, desired("a")) == 8


# --- on a node's file


async def test_a_nodes_file_remembers_both_sides(tmp_path):
    store = await EdgeStore.open(tmp_path / "controller.db")
    observed = Address("edge1", Direction.UP, EventClass.STATE, Observed.kind)
    async with MemoryBus(MemoryBroker()) as bus:
        documents = Documents(store, bus, "edge1")
        await documents.publish(observed, Observed(3))
        await accepted(documents, delivery(5, 1))
        await store.close()
        store = await EdgeStore.open(tmp_path / "controller.db")
        documents = Documents(store, bus, "edge1")
        assert [found.address for found in await documents.load()] == [DESIRED]
        assert documents.own() == {observed: Observed(3)}
        assert await documents.publish(observed, Observed(4)) == 2
    await store.close()
