"""The nodes as the coordinator knows them: silent ones are unknown, with the time of their last sign of life."""

from __future__ import annotations

import pytest
from coordinator_world import UID, observed_worker
from structlog.testing import capture_logs

from edgeai.coordinator.nodes import KIND, MAX_INFO, MAX_TEXT, Nodes
from edgeai.events.catalogue import DatasetObserved, Observed
from edgeai.lifecycle.node import SILENT_AFTER_S
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.node import EdgeNode
from edgeai.store.memory import MemoryResourceStore


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def at(minute: int) -> str:
    return f"2030-01-31T12:{minute:02}:00Z"


class World:
    def __init__(self) -> None:
        self.clock, self.resources = Clock(), MemoryResourceStore()
        self.nodes = Nodes(self.resources, self.clock)

    async def resource(self, name: str = "edge1") -> EdgeNode:
        return EdgeNode.from_document((await self.resources.get(KIND, name)).document)

    async def ready(self, name: str = "edge1") -> tuple[str, str]:
        found = find_condition((await self.resource(name)).status.conditions, ConditionType.READY)
        assert found is not None
        return found.status, found.reason


@pytest.fixture
def world() -> World:
    return World()


OBSERVED = Observed(
    3,
    (observed_worker("work0"), observed_worker("other", uid="f" * 32)),
    (DatasetObserved("d", True),),
    {"python": "3.11"},
)


async def test_a_node_registers_itself_by_being_heard_of(world):
    assert await world.nodes.heard("edge1", at(0))
    found = await world.resource()
    assert (found.metadata.generation, len(found.metadata.uid), found.status.last_seen) == (1, 32, at(0))
    assert await world.ready() == ("True", "Heard")
    assert world.nodes.names() == {"cloud", "edge1"}


async def test_a_heartbeat_is_news_only_from_who_is_new_or_was_silent(world):
    assert [await world.nodes.heard("edge1", at(0)) for _ in range(3)] == [True, False, False]


async def test_nothing_is_written_per_heartbeat(world):
    await world.nodes.heard("edge1", at(0))
    before = (await world.resources.get(KIND, "edge1")).revision
    await world.nodes.heard("edge1", at(1))
    assert (await world.resources.get(KIND, "edge1")).revision == before


async def test_when_a_node_was_heard_of_is_written_once_a_minute(world):
    """It is no news: nothing else follows from it."""
    await world.nodes.heard("edge1", at(0))
    news, seen = [], []
    for second in range(10, 130, 10):
        world.clock.now += 10
        news.append(await world.nodes.heard("edge1", f"2030-01-31T12:00:00.{second}Z"))
        seen.append((await world.resource()).status.last_seen)
    assert not any(news)
    assert list(dict.fromkeys(seen)) == [at(0), "2030-01-31T12:00:00.60Z", "2030-01-31T12:00:00.120Z"]


async def test_a_node_falls_silent_after_a_while(world):
    await world.nodes.heard("edge1", at(0))
    await world.nodes.heard("cloud", at(0))
    world.clock.now += SILENT_AFTER_S
    assert not await world.nodes.silenced(at(1))
    world.clock.now += 0.1
    assert await world.nodes.silenced(at(1))
    assert (world.nodes.silent(), world.nodes.absent()) == ({"edge1", "cloud"}, {"edge1", "cloud"})
    assert await world.ready() == ("Unknown", "Silent")


async def test_a_silence_is_news_once(world):
    await world.nodes.heard("edge1", at(0))
    world.clock.now += 60
    assert [await world.nodes.silenced(at(1)) for _ in range(3)] == [True, False, False]


async def test_a_silent_node_shows_when_it_was_last_heard_of(world):
    """Not when it registered, and not when it was found silent."""
    await world.nodes.heard("edge1", at(0))
    await world.nodes.heard("edge1", at(7))
    world.clock.now += 60
    await world.nodes.silenced(at(9))
    found = (await world.resource()).status
    assert found.last_seen == at(7)
    assert found.conditions[0].message == f"edge1 has not been heard of since {at(7)}"


async def test_a_silent_node_comes_back(world):
    await world.nodes.heard("edge1", at(0))
    world.clock.now += 60
    await world.nodes.silenced(at(1))
    assert await world.nodes.heard("edge1", at(2))
    assert (world.nodes.silent() & {"edge1"}, await world.ready()) == (set(), ("True", "Heard"))


async def test_a_node_whose_broker_lost_it_is_unknown_at_once_and_not_absent_yet(world):
    """Its controller may be restarting: nobody gives its workers up."""
    await world.nodes.observed("edge1", OBSERVED, at(0))
    await world.nodes.gone("edge1", at(1))
    assert ("edge1" in world.nodes.silent(), "edge1" in world.nodes.absent()) == (True, False)
    assert await world.ready() == ("Unknown", "ConnectionLost")
    assert list(world.nodes.workers_of(UID)) == ["work0"]


async def test_a_node_that_its_broker_lost_becomes_absent_with_time(world):
    await world.nodes.heard("edge1", at(0))
    await world.nodes.gone("edge1", at(0))
    world.clock.now += 60
    await world.nodes.silenced(at(1))
    assert "edge1" in world.nodes.absent()
    assert await world.ready() == ("Unknown", "Silent")


async def test_a_node_that_a_restarted_coordinator_has_not_heard_of_is_given_the_same_time(world):
    world.nodes.known("edge1", {})
    await world.nodes.heard("cloud", at(0))
    assert not await world.nodes.silenced(at(0))
    world.clock.now += SILENT_AFTER_S + 0.1
    assert await world.nodes.silenced(at(0))
    assert "edge1" in world.nodes.absent()


async def test_a_restarted_coordinator_keeps_what_is_known_of_a_node(world):
    await world.nodes.observed("edge1", OBSERVED, at(0))
    first = await world.resource()
    later = Nodes(world.resources, world.clock)
    later.known("edge1", first.to_document())
    world.clock.now += 60
    await later.silenced(at(5))
    found = await world.resource()
    assert (found.metadata.uid, found.status.last_seen, found.status.versions) == (
        first.metadata.uid,
        at(0),
        {"python": "3.11"},
    )


# --- what nodes observe


async def test_workers_of_a_task_are_found_by_its_uid(world):
    await world.nodes.observed("edge1", OBSERVED, at(0))
    assert {name: found.state for name, found in world.nodes.workers_of(UID).items()} == {"work0": "Running"}


async def test_workers_of_an_absent_node_are_not_shown_as_they_were(world):
    await world.nodes.observed("edge1", OBSERVED, at(0))
    world.clock.now += 60
    await world.nodes.silenced(at(1))
    assert world.nodes.workers_of(UID) == {}
    await world.nodes.heard("edge1", at(2))
    assert list(world.nodes.workers_of(UID)) == ["work0"]


async def test_datasets_and_generations_are_those_last_observed(world):
    assert (world.nodes.dataset("edge1", "d"), world.nodes.taken("edge1"), world.nodes.is_observed("edge1")) == (
        None,
        0,
        False,
    )
    await world.nodes.observed("edge1", OBSERVED, at(0))
    assert (world.nodes.dataset("edge1", "d"), world.nodes.taken("edge1")) == (DatasetObserved("d", True), 3)
    assert world.nodes.is_observed("edge1")
    assert world.nodes.dataset("edge1", "other") is None


async def test_versions_are_written_though_a_heartbeat_came_first(world):
    await world.nodes.heard("edge1", at(0))
    await world.nodes.observed("edge1", OBSERVED, at(1))
    assert (await world.resource()).status.versions == {"python": "3.11"}


async def test_what_a_node_says_of_itself_is_bounded(world):
    """A status has to fit its store, whatever a node sends."""
    info = {f"{number:04}{'n' * 500}": "v" * 60_000 for number in range(1000)}
    await world.nodes.observed("edge1", Observed(1, (), (), info), at(0))
    versions = (await world.resource()).status.versions
    assert len(versions) == MAX_INFO
    assert {len(text) for item in versions.items() for text in item} == {MAX_TEXT}


# --- resources


async def test_a_deleted_node_is_gone_until_it_is_heard_of_again(world):
    await world.nodes.heard("edge1", at(0))
    await world.resources.delete(await world.resources.get(KIND, "edge1"))
    world.nodes.known("edge1", None)
    assert world.nodes.names() == {"cloud"}
    assert await world.nodes.heard("edge1", at(1))
    assert (await world.resource()).status.last_seen == at(1)


def test_the_cloud_node_is_always_there(world):
    world.nodes.known("cloud", None)
    assert world.nodes.names() == {"cloud"}


async def test_what_could_not_be_written_is_written_when_the_store_is_back(world):
    world.resources.reachable = False
    with capture_logs():
        assert await world.nodes.heard("edge1", at(0))
        assert not await world.nodes.silenced(at(0))
    world.resources.reachable = True
    await world.nodes.silenced(at(1))
    assert await world.ready() == ("True", "Heard")


async def test_labels_of_users_are_kept(world):
    await world.nodes.heard("edge1", at(0))
    stored = await world.resources.get(KIND, "edge1")
    document = {**stored.document, "metadata": {**stored.document["metadata"], "labels": {"site": "north"}}}
    await world.resources.replace(stored, document)
    await world.nodes.gone("edge1", at(1))
    assert (await world.resource()).metadata.labels == {"site": "north"}


async def test_a_resource_that_cannot_be_read_is_made_anew(world):
    await world.resources.create(KIND, "edge1", {"kind": "EdgeNode", "of": "another version"})
    await world.nodes.heard("edge1", at(0))
    assert await world.ready() == ("True", "Heard")
