"""What the coordinator counts of the facts that it takes: each once, whoever sends it again and however often it restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from coordinator_world import DIGEST, LEVEL, UID, World, task, until, world

from edgeai import metrics
from edgeai.events.catalogue import NodeGone, RoundClosed, RoundMissed, RoundRecord, UpdateRefused, WorkerJoined

AGGREGATION = f"cloud/{LEVEL}/aggregation"


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"edgeai_{name}", labels) or 0.0


class Since:
    """How much the counters have risen since this was made."""

    NAMES = (
        ("rounds_total", {"outcome": "closed"}),
        ("rounds_total", {"outcome": "missed"}),
        ("updates_total", {"outcome": "counted"}),
        ("updates_total", {"outcome": "refused"}),
        ("round_bytes_total", {"flow": "up"}),
        ("round_seconds_count", {}),
        ("messages_refused_total", {"reason": "foreign"}),
        ("messages_refused_total", {"reason": "malformed"}),
    )

    def __init__(self) -> None:
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        return {" ".join((name, *labels.values())): value(name, **labels) for name, labels in self.NAMES}

    def __call__(self) -> dict[str, float]:
        risen = {name: number - self._before[name] for name, number in self._now().items()}
        return {name: number for name, number in risen.items() if number}


def closed(number: int) -> RoundClosed:
    accepted = {"work0": 10, "work1": 10}
    return RoundClosed(UID, RoundRecord(number, 1, accepted, {}, "b" * 64, DIGEST, 10, {}, 300, 100, 1.0))


@pytest.fixture
async def made() -> AsyncIterator[World]:
    async with world() as found:
        yield found


async def prepared(made: World) -> None:
    await made.everything(task())
    await until(lambda: _is_preparing(made))


async def _is_preparing(made: World) -> bool:
    return await made.phase() == "Preparing"


async def received(made: World, sequence: int) -> None:
    await until(lambda: sequence in made.receipts())


async def test_rounds_and_updates_are_counted_once_across_repeats_and_a_restart(made: World):
    since = Since()
    async with made.coordinator():
        await prepared(made)
        made.fact(RoundMissed(UID, 1, 1, "too few"))
        made.fact(UpdateRefused(UID, 1, "work1", "its shapes differ"))
        made.fact(closed(1))
        await received(made, 3)
        made.fact(closed(1), sequence=3)
    async with made.coordinator():
        made.fact(RoundMissed(UID, 1, 1, "too few"), sequence=1)
        made.fact(closed(2), sequence=4)
        await received(made, 4)
    assert since() == {
        "rounds_total closed": 2,
        "rounds_total missed": 1,
        "updates_total counted": 4,
        "updates_total refused": 1,
        "round_bytes_total up": 600,
        "round_seconds_count": 2,
    }


async def test_the_first_weights_that_a_worker_makes_are_no_round(made: World):
    since = Since()
    async with made.coordinator():
        await prepared(made)
        made.fact(closed(0))
        await received(made, 1)
    assert since() == {}


async def test_who_speaks_for_somebody_else_is_told_from_what_is_no_event(made: World):
    since = Since()
    async with made.coordinator():
        await prepared(made)
        made.fact(WorkerJoined(UID, "work0"), source="edge0", node="edge1")
        made.raw(b"not an event")
        made.fact(WorkerJoined(UID, "work0"))
        await received(made, 1)
    assert since() == {"messages_refused_total foreign": 1, "messages_refused_total malformed": 1}


async def test_a_node_that_its_broker_has_lost_is_not_ready(made: World):
    async with made.coordinator():
        await prepared(made)
        await until(lambda: value("node_ready", node="edge1") == 1)
        await made.send("edge1", NodeGone())
        await until(lambda: metrics.REGISTRY.get_sample_value("edgeai_node_ready", {"node": "edge1"}) == 0)
        assert value("node_ready", node="edge0") == 1


async def test_tasks_are_shown_by_kind_and_phase(made: World):
    async with made.coordinator():
        await prepared(made)
        await until(lambda: value("tasks", kind="FederatedTask", phase="Preparing") == 1)
