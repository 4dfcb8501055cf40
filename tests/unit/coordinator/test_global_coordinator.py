"""The coordinator on a bus and stores in memory: facts count once, gaps and strangers do not, and nothing jams it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from coordinator_world import DIGEST, LEVEL, NOW, UID, World, observed_worker, task, until, world

from edgeai.coordinator.journal import CURSOR
from edgeai.errors import Conflict
from edgeai.events.address import CLOUD, Address, Direction, EventClass
from edgeai.events.catalogue import (
    DatasetObserved,
    Desired,
    Heartbeat,
    Held,
    HeldAtEdge,
    HeldInCloud,
    Membership,
    NodeGone,
    Observed,
    Receipt,
    Role,
    RoundClosed,
    RoundMissed,
    RoundRecord,
    RoundStarted,
    ServiceEndpoint,
    TrainingCompleted,
    WorkerFailed,
    WorkerJoined,
)
from edgeai.events.envelope import Envelope, Header, decode_header, encode
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.dataset import Dataset
from edgeai.resources.model import Model

AGGREGATION = f"cloud/{LEVEL}/aggregation"
COMPLETED = TrainingCompleted(UID, DIGEST, 17, 3, {"accuracy": 0.97})


def record(number: int) -> RoundRecord:
    return RoundRecord(number, 1, {"work0": 10, "work1": 10}, {}, "b" * 64, DIGEST, 10, {"loss": 1.0}, 0, 0, 1.0)


def joined(number: int) -> WorkerJoined:
    return WorkerJoined(UID, f"work{number}")


@pytest.fixture
async def made() -> AsyncIterator[World]:
    async with world() as found:
        yield found


async def prepared(made: World) -> None:
    await made.everything(task())
    await until(lambda: _is(made, "Preparing"))


async def _is(made: World, phase: str) -> bool:
    return await made.phase() == phase


async def received(made: World, sequence: int, source: str = AGGREGATION) -> None:
    await until(lambda: sequence in made.receipts(source))


# --- from apply to the end


async def test_a_task_goes_from_pending_to_succeeded(made):
    async with made.coordinator():
        await prepared(made)
        made.fact(joined(0))
        made.fact(joined(1))
        await until(lambda: _is(made, "Running"))
        for number in (1, 2, 3):
            made.fact(RoundStarted(UID, number, 1, ("work0", "work1")))
            made.fact(RoundClosed(UID, record(number)))
        made.fact(COMPLETED)
        await until(lambda: _is(made, "Succeeded"))
    found = await made.task()
    assert [row.round for row in found.status.rounds] == [1, 2, 3]
    assert (found.status.model.version, found.status.model.digest) == (2, DIGEST)
    versions = Model.from_document((await made.resources.get("Model", "cnn")).document).status.versions
    assert [(item.version, item.updates) for item in versions] == [(1, 0), (2, 2)]


async def test_a_task_without_its_references_waits_and_goes_on_when_they_are_there(made):
    async with made.coordinator():
        await made.apply(task())
        accepted = await until(lambda: _accepted(made))
        assert accepted.reason == "ReferencesMissing"
        assert "dataset dataset0 of worker work0 does not exist" in accepted.message
        await made.everything()
        await until(lambda: _is(made, "Preparing"))


async def _accepted(made: World):
    return find_condition((await made.task()).status.conditions, ConditionType.ACCEPTED)


async def test_nodes_are_told_what_to_run(made):
    async with made.coordinator():
        await prepared(made)
        await until(lambda: made.events(Membership))
        assert [item.worker for item in made.desired("edge0").assignments] == ["work0"]
        assert [item.worker for item in made.desired(CLOUD).assignments] == ["aggregation"]
        [(address, membership), *_] = made.events(Membership)
        assert (address.node, address.task, address.worker) == (CLOUD, LEVEL, "aggregation")
        assert membership.available == ("work0", "work1")


async def test_a_running_aggregation_worker_is_published_as_a_service(made):
    async with made.coordinator():
        await prepared(made)
        await made.observe(CLOUD, observed_worker("aggregation"), generation=1)
        await until(lambda: len({address.node for address, _ in made.events(ServiceEndpoint)}) == 2)
        assert made.events(ServiceEndpoint)[0][1] == ServiceEndpoint(UID, f"edgeai-{LEVEL}", CLOUD, "aggregation")


async def test_a_deleted_task_is_removed_when_its_workers_are_gone_and_its_documents_with_it(made):
    async with made.coordinator():
        await prepared(made)
        await until(lambda: made.events(Membership))
        await made.observe("edge0", observed_worker("work0"), generation=1)
        await made.observe("edge1", generation=1)
        await made.observe(CLOUD, generation=1)
        stored = await made.resources.get("FederatedTask", "digits")
        metadata = {**stored.document["metadata"], "deletionTimestamp": NOW}
        await until(lambda: _replaced(made, metadata))
        await until(lambda: _nothing_wanted(made))
        assert await made.phase() == "Deleting"
        generations = {node: _generation(made, node) for node in ("edge0", "edge1", CLOUD)}
        for node, taken in generations.items():
            await made.observe(node, generation=2, taken=taken)
        await until(lambda: _no_task(made))
        await until(lambda: not any(address.task for address in made.broker.retained))


async def _replaced(made: World, metadata: dict) -> bool:
    stored = await made.resources.get("FederatedTask", "digits")
    try:
        await made.resources.replace(stored, {**stored.document, "metadata": metadata})
    except Conflict:
        return False
    return True


def _nothing_wanted(made: World) -> bool:
    """Every node has been sent a document without workers."""
    found = [made.desired(node) for node in ("edge0", "edge1", CLOUD)]
    return all(desired is not None and desired.assignments == () for desired in found)


async def _no_task(made: World) -> bool:
    return await made.resources.list("FederatedTask") == []


def _generation(made: World, node: str) -> int:
    address = Address(node, Direction.DOWN, EventClass.STATE, "desired")
    return decode_header(made.broker.retained[address]).sequence


async def test_a_task_whose_document_somebody_removed_is_taken_down(made):
    async with made.coordinator() as running:
        await prepared(made)
        await until(lambda: made.events(Membership))
        stored = await made.resources.get("FederatedTask", "digits")
        await made.resources.delete(stored)
        await until(lambda: _nothing_wanted(made))
        for node in ("edge0", "edge1", CLOUD):
            await made.observe(node, generation=1, taken=_generation(made, node))
        await until(lambda: not running._federated.reactor.states)


# --- facts


async def test_a_fact_counts_once_and_is_receipted(made):
    async with made.coordinator():
        await prepared(made)
        made.fact(joined(0))
        await received(made, 1)
    assert (await made.task()).status.joined == ("work0",)
    [cursor] = await made.resources.list(CURSOR)
    assert cursor.document == {"source": AGGREGATION, "incarnation": 5, "sequence": 1}


async def test_the_receipt_goes_to_its_source(made):
    async with made.coordinator():
        await prepared(made)
        made.fact(joined(0))
        made.fact(WorkerFailed(UID, Role.TRAINING, "x"), source="edge0", worker="work0")
        await received(made, 1)
        await received(made, 1, "edge0")
        to = {event.source: address for address, event in made.events(Receipt)}
        assert (to[AGGREGATION].node, to[AGGREGATION].task, to[AGGREGATION].worker) == (CLOUD, LEVEL, "aggregation")
        assert (to["edge0"].node, to["edge0"].task, to["edge0"].worker) == ("edge0", "", "")


async def test_a_repeated_fact_has_no_effect_and_is_receipted_again(made):
    """The receipt was lost: the source sends again until it has one."""
    async with made.coordinator():
        await prepared(made)
        made.fact(RoundMissed(UID, 1, 1, "first"))
        made.fact(RoundClosed(UID, record(1)))
        await received(made, 2)
        made.fact(RoundMissed(UID, 1, 1, "again"), sequence=1)
        await until(lambda: made.receipts().count(2) >= 2)
    degraded = find_condition((await made.task()).status.conditions, ConditionType.DEGRADED)
    assert (degraded.status, degraded.reason) == ("False", "RoundClosed")


async def test_nothing_beyond_a_gap_is_applied_or_receipted(made):
    async with made.coordinator():
        await prepared(made)
        made.fact(joined(0))
        made.fact(joined(1), sequence=3)
        await received(made, 1)
        made.fact(WorkerFailed(UID, Role.TRAINING, "x"), source="edge0", worker="work0")
        await received(made, 1, "edge0")
        assert ((await made.task()).status.joined, made.receipts()) == (("work0",), [1])
        made.fact(RoundStarted(UID, 1, 1, ()), sequence=2)
        made.fact(joined(1), sequence=3)
        await received(made, 3)
    assert (await made.task()).status.joined == ("work0", "work1")


async def test_a_source_that_lost_its_store_begins_anew(made):
    async with made.coordinator():
        await prepared(made)
        made.fact(joined(0))
        await received(made, 1)
        made.fact(joined(1), sequence=1, incarnation=6)
        await until(lambda: made.receipts() == [1, 1])
        made.fact(RoundMissed(UID, 1, 1, "old"), sequence=2, incarnation=5)
        made.fact(RoundStarted(UID, 1, 1, ()), sequence=2, incarnation=6)
        await received(made, 2)
    found = await made.task()
    assert found.status.joined == ("work0", "work1")
    assert find_condition(found.status.conditions, ConditionType.DEGRADED) is None


async def test_facts_that_came_while_the_coordinator_was_down_wait_for_it(made):
    async with made.coordinator():
        await prepared(made)
    made.fact(joined(0))
    made.fact(joined(1))
    async with made.coordinator():
        await until(lambda: _is(made, "Running"))


async def test_a_restarted_coordinator_goes_on_where_it_was(made):
    async with made.coordinator():
        await prepared(made)
        made.fact(RoundClosed(UID, record(1)))
        await received(made, 1)
    async with made.coordinator():
        made.fact(RoundClosed(UID, record(1)), sequence=1)
        made.fact(RoundClosed(UID, record(2)), sequence=2)
        await received(made, 2)
    assert [row.round for row in (await made.task()).status.rounds] == [1, 2]


async def test_everything_that_counts_is_acknowledged(made):
    async with made.coordinator():
        await prepared(made)
        for number in range(5):
            made.fact(joined(number % 2))
        made.raw(b"not an event")
        made.fact(joined(0), source="edge0", node="edge1")
        made.fact(joined(0))
        await received(made, 6)
        waiting = made.facts._acknowledged["coordinator"]
        await until(lambda: {1, 2, 3, 4, 5, 6, 7, 8} <= waiting)


async def test_a_store_that_is_away_only_delays(made):
    async with made.coordinator():
        await prepared(made)
        made.resources.reachable = False
        made.fact(joined(0))
        made.fact(joined(1))
        await asyncio.sleep(0.01)
        assert made.receipts() == []
        made.resources.reachable = True
        await received(made, 2)
        await until(lambda: _is(made, "Running"))


# --- what must not count, and must not jam


async def test_another_nodes_source_is_refused_and_counted(made):
    async with made.coordinator() as running:
        await prepared(made)
        made.fact(COMPLETED, node="edge0")
        made.fact(joined(0), sequence=1)
        await received(made, 1)
        assert running.refused["edge0"] == 1
    assert await made.phase() == "Preparing"


@pytest.mark.parametrize(
    "source",
    ["edge0/", "edge0/../x", "edge0/" + "x" * 200, f"edge0/{LEVEL}/unknown", "edge0/no-0a1b2c3d/work0", "edge0/!/?"],
)
async def test_a_source_that_is_nobody_is_refused_and_leaves_nothing(made, source):
    """Cursors and receipts are kept under the name of the source: it must not be any text."""
    async with made.coordinator() as running:
        await prepared(made)
        made.fact(joined(0), source=source)
        made.fact(joined(0))
        await received(made, 1)
        assert running.refused["edge0"] == 1
    assert [cursor.document["source"] for cursor in await made.resources.list(CURSOR)] == [AGGREGATION]


@pytest.mark.parametrize(
    "event",
    [COMPLETED, RoundClosed(UID, record(1)), joined(0), RoundStarted(UID, 1, 1, ())],
    ids=lambda event: event.kind,
)
async def test_an_edge_has_no_say_in_the_rounds_of_a_task(made, event):
    async with made.coordinator() as running:
        await prepared(made)
        made.fact(event, source="edge0")
        await received(made, 1, "edge0")
        assert running.refused["edge0"] == 1
    found = await made.task()
    assert (found.status.phase.value, found.status.rounds, found.status.joined) == ("Preparing", (), ())
    assert len((await made.resources.get("Model", "cnn")).document["status"]["versions"]) == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc0", b"\xc1", b"\x80", encode(Envelope(Header("x"), Heartbeat(1.0)))[41:]],
    ids=["empty", "nil", "no msgpack", "no kind", "no fact"],
)
async def test_a_fact_that_cannot_be_read_is_set_aside_and_receipted(made, body):
    """Else its source would send it, and everything after it, for ever."""
    async with made.coordinator() as running:
        await prepared(made)
        sound = encode(Envelope(Header(AGGREGATION, 5, 1), joined(0)))
        made.raw(sound[: int.from_bytes(sound[4:6], "big")] + body)
        made.sequences[AGGREGATION] = 1
        made.fact(joined(1))
        await received(made, 2)
        assert running.refused[CLOUD] == 1
    assert (await made.task()).status.joined == ("work1",)


async def test_a_fact_of_another_kind_than_its_address_says_is_set_aside(made):
    async with made.coordinator() as running:
        await prepared(made)
        made.fact(joined(0), kind="round-missed")
        await received(made, 1)
        assert running.refused[CLOUD] == 1
    assert (await made.task()).status.joined == ()


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"eA" + bytes(60), b"eA\x01\x00\xff\xff" + bytes(60)],
    ids=["empty", "short", "version", "length"],
)
async def test_a_fact_without_a_header_is_counted_and_acknowledged(made, payload):
    async with made.coordinator() as running:
        await prepared(made)
        made.raw(payload, "edge0")
        made.fact(joined(0))
        await received(made, 1)
        assert running.refused["edge0"] == 1
        await until(lambda: {1, 2} <= made.facts._acknowledged["coordinator"])


async def test_a_fact_for_a_task_that_is_gone_is_receipted(made):
    async with made.coordinator():
        await prepared(made)
        made.fact(WorkerFailed(UID, Role.TRAINING, "x"), source="edge0", task="old-0a1b2c3d")
        await received(made, 1, "edge0")


async def test_what_the_coordinator_says_itself_is_history_and_no_input(made):
    async with made.coordinator() as running:
        await prepared(made)
        made.fact(COMPLETED, source="cloud/coordinator")
        made.fact(joined(0))
        await received(made, 1)
        assert running.refused[CLOUD] == 0
    assert await made.phase() == "Preparing"


async def test_a_resource_that_cannot_be_read_does_not_stop_the_others(made):
    async with made.coordinator():
        for kind in ("FederatedTask", "Dataset", "Model", "EdgeNode"):
            await made.resources.create(kind, "broken", {"kind": kind, "of": "another version"})
        await prepared(made)
    async with made.coordinator():
        made.fact(joined(0))
        await received(made, 1)


@pytest.mark.parametrize("payload", [b"x", b"eA\x01" + bytes(60)], ids=["short", "damaged"])
async def test_a_malformed_event_of_a_node_is_counted_and_the_next_is_heard(made, payload):
    async with made.coordinator() as running:
        await made.bus.publish(Address("edge0", Direction.UP, EventClass.STATE, Observed.kind), payload)
        await until(lambda: running.refused["edge0"] == 1)
        await prepared(made)


# --- nodes


async def test_what_a_node_finds_in_a_dataset_is_its_status(made):
    async with made.coordinator():
        await prepared(made)
        found = DatasetObserved("dataset0", True, "", 100, DIGEST, {"x": "float32[100, 64]"})
        await made.send("edge0", Observed(1, (), (found,)), 1)
        await until(lambda: _samples(made))


async def _samples(made: World) -> bool:
    return Dataset.from_document((await made.resources.get("Dataset", "dataset0")).document).status.sample_count == 100


async def test_an_older_observation_is_not_taken_for_the_newest(made):
    async with made.coordinator():
        await prepared(made)
        await made.observe("edge0", observed_worker("work0", "Running"), generation=5)
        await made.observe("edge0", observed_worker("work0", "Preparing"), generation=4)
        await until(lambda: _state(made, "work0", "Running"))
        await made.observe("edge0", observed_worker("work0", "Backoff"), generation=6)
        await until(lambda: _state(made, "work0", "Backoff"))


async def _state(made: World, worker: str, state: str) -> bool:
    rows = {row.name: row.state for row in (await made.task()).status.workers}
    return rows.get(worker) == state


async def test_workers_of_a_node_that_its_broker_lost_are_unknown_until_it_is_back(made):
    async with made.coordinator():
        await prepared(made)
        await made.observe("edge0", observed_worker("work0"), generation=1)
        await until(lambda: _state(made, "work0", "Running"))
        await made.send("edge0", NodeGone())
        await until(lambda: _state(made, "work0", "Unknown"))
        await made.send("edge0", Heartbeat(1.0))
        await until(lambda: _state(made, "work0", "Running"))


async def test_a_reader_that_lists_what_it_holds_is_sent_what_differs(made):
    async with made.coordinator():
        await prepared(made)
        await until(lambda: made.desired("edge0") and made.desired("edge0").assignments)
        count = len(made.events(Desired))
        await made.send("edge0", HeldAtEdge((Held("desired", "", "", 1, 1),)))
        await until(lambda: len(made.events(Desired)) > count)


async def test_a_node_that_was_not_heard_of_before_is_asked_what_it_observes(made):
    async with made.coordinator():
        await made.send("edge9", Heartbeat(1.0))
        await until(lambda: "edge9" in [address.node for address, _ in made.events(HeldInCloud)])
