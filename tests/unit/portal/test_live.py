"""The read model: what it says of what it cannot know, how it follows, and that it stays bounded. Time is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from memory_portal import MemoryCloud, closed, condition, started, worker_row

from edgeai import metrics
from edgeai.client import Cloud
from edgeai.errors import BusUnavailable, NotFound
from edgeai.events.catalogue import Heartbeat, Outcome, Usage, Verdict
from edgeai.lifecycle.usage import FRESH_S
from edgeai.portal import views
from edgeai.portal.feed import Key
from edgeai.portal.live import COORDINATOR, SILENT_AFTER_S, Live, of_one


@dataclass
class Clock:
    """Seconds that pass when told."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Following:
    memory: MemoryCloud
    live: Live
    clock: Clock

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)

    def summary(self, kind: str, name: str) -> dict[str, Any]:
        return views.summary(self.live, self.live.entry(kind, name))

    def resource(self, kind: str, name: str) -> dict[str, Any]:
        return views.resource(self.live, self.live.entry(kind, name))

    async def heard(self, *nodes: str) -> None:
        """These nodes (and the coordinator) beat now, and the model has noticed."""
        self.memory.beat(*nodes)
        await self.until(
            lambda: all((sign := self.live.signs.get(node)) and sign.heard == self.clock() for node in nodes)
        )
        await self.until(lambda: self.live.coordinator_life().known)


@asynccontextmanager
async def following(memory: MemoryCloud) -> AsyncIterator[Following]:
    clock = Clock()
    live = Live(of_one(memory.cloud), clock=clock)
    async with memory.bus:
        running = asyncio.create_task(live.run())
        found = Following(memory, live, clock)
        await found.until(lambda: not live.problems() and live.history_loaded)
        yield found
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def world() -> AsyncIterator[Following]:
    async with following(MemoryCloud()) as found:
        yield found


# --- nodes


async def test_a_node_that_was_not_heard_of_yet_is_unknown_whatever_its_resource_says(world: Following) -> None:
    await world.memory.node("edge1")
    await world.until(lambda: world.live.entries["EdgeNode"])
    found = world.resource("EdgeNode", "edge1")
    assert (found["live"]["known"], found["live"]["age_s"]) == (False, None)
    assert [item["status"] for item in found["status"]["conditions"]] == ["Unknown"]
    assert world.summary("EdgeNode", "edge1")["state"] == "unknown"


async def test_a_node_that_beats_is_ready(world: Following) -> None:
    await world.memory.node("edge1")
    await world.until(lambda: world.live.entries["EdgeNode"])
    world.memory.beat("edge1", outbox=7)
    await world.until(lambda: "edge1" in world.live.signs)
    found = world.summary("EdgeNode", "edge1")
    assert (found["state"], found["outbox"], found["live"]["known"], found["live"]["age_s"]) == ("ready", 7, True, 0.0)


async def test_a_silent_node_shows_its_age_and_none_of_its_last_values(world: Following) -> None:
    await world.memory.node("edge1")
    await world.heard("edge1")
    world.clock.now += SILENT_AFTER_S + 4
    found = world.summary("EdgeNode", "edge1")
    assert (found["state"], found["live"]["known"], found["live"]["age_s"]) == ("silent", False, 20.0)
    assert (found["outbox"], found["uptime_s"], found["clock_skew_s"]) == (None, None, None)
    assert "20 s" in found["needs"]


async def test_a_node_whose_broker_lost_it_is_gone_at_once(world: Following) -> None:
    await world.memory.node("edge1")
    await world.heard("edge1")
    world.memory.gone("edge1")
    await world.until(lambda: world.live.signs["edge1"].gone)
    assert world.summary("EdgeNode", "edge1")["state"] == "gone"


async def test_readers_are_told_when_a_node_falls_silent_and_when_it_is_back(world: Following) -> None:
    await world.memory.node("edge1")
    await world.heard("edge1")
    place = world.live.feed.sequence
    world.clock.now += SILENT_AFTER_S + 1
    await world.until(lambda: world.live.feed.since(place, lambda key: key == Key("EdgeNode", "edge1")))
    place = world.live.feed.sequence
    await world.heard("edge1")
    assert world.live.feed.since(place, lambda key: key == Key("EdgeNode", "edge1"))


async def test_a_heartbeat_that_says_nothing_new_is_no_change(world: Following) -> None:
    await world.memory.node("edge1")
    await world.heard("edge1")
    place = world.live.feed.sequence
    world.clock.now += 5
    await world.heard("edge1")
    assert world.live.feed.since(place, lambda key: key.topic == "EdgeNode") == []


# --- tasks, datasets


async def test_workers_of_a_silent_node_are_unknown_and_the_others_are_not(world: Following) -> None:
    rows = [worker_row("work1", "edge1"), worker_row("work2", "edge2")]
    await world.memory.task(phase="Running", workers=rows)
    await world.heard("edge1", "edge2")
    world.clock.now += SILENT_AFTER_S + 1
    await world.heard("edge2")
    found = world.resource("FederatedTask", "digits")
    assert [row["state"] for row in found["status"]["workers"]] == ["Unknown", "Running"]
    assert found["status"]["phase"] == "Running"


async def test_without_a_coordinator_the_phase_of_a_running_task_is_unknown_with_its_age(world: Following) -> None:
    await world.memory.task(phase="Running", conditions=[condition("Ready", "True"), condition("Accepted", "True")])
    await world.heard("edge1")
    world.clock.now += SILENT_AFTER_S + 2
    found = world.resource("FederatedTask", "digits")
    assert (found["status"]["phase"], found["live"]["age_s"]) == ("Unknown", 18.0)
    assert [item["status"] for item in found["status"]["conditions"]] == ["Unknown", "True"]
    assert views.overview(world.live)["tasks"] == {"Unknown": 1}


async def test_a_task_that_has_ended_stays_what_it_is_without_a_coordinator(world: Following) -> None:
    await world.memory.task(phase="Succeeded", workers=[worker_row("work1", "edge1", "Done")])
    await world.until(lambda: world.live.entries["FederatedTask"])
    found = world.resource("FederatedTask", "digits")
    assert (found["status"]["phase"], found["status"]["workers"][0]["state"]) == ("Succeeded", "Done")


async def test_a_dataset_is_known_when_its_node_is(world: Following) -> None:
    document = {
        "apiVersion": "edgeai.io/v1alpha1",
        "kind": "Dataset",
        "metadata": {"name": "d", "uid": "u", "generation": 1},
        "spec": {"nodeName": "edge1", "url": "/d.npz", "format": "npz"},
        "status": {"conditions": [condition("Ready", "True")]},
    }
    await world.memory.resources.create("Dataset", "d", document)
    await world.until(lambda: world.live.entries["Dataset"])
    before = world.resource("Dataset", "d")["status"]["conditions"][0]["status"]
    await world.heard("edge1")
    assert (before, world.resource("Dataset", "d")["status"]["conditions"][0]["status"]) == ("Unknown", "True")


async def test_everything_is_unknown_while_the_bus_is_away_and_known_again_after(world: Following) -> None:
    await world.memory.node("edge1")
    await world.memory.task(phase="Succeeded")
    await world.heard("edge1")
    world.memory.broker.stop()
    await world.until(lambda: not world.live.cloud_life().known)
    during = [
        world.summary(kind, name)["live"]["known"]
        for kind, name in (("EdgeNode", "edge1"), ("FederatedTask", "digits"))
    ]
    world.memory.broker.start()
    await world.until(lambda: world.live.cloud_life().known)
    await world.heard("edge1")
    assert during == [False, False]
    assert world.summary("FederatedTask", "digits")["live"]["known"]


async def test_a_store_that_is_away_behind_a_bus_that_is_there_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeai.portal.live._PROBE_S", 0.05)
    async with following(MemoryCloud()) as world:
        await _store_goes_and_comes(world)


async def _store_goes_and_comes(world: Following) -> None:
    world.memory.resources.reachable = False
    await world.until(lambda: any("store" in problem for problem in world.live.problems()))
    world.memory.resources.reachable = True
    await world.until(lambda: not world.live.problems())


# --- following


async def test_the_timeline_is_there_when_the_portal_starts_after_the_history(world: Following) -> None:
    memory = MemoryCloud()
    task = await memory.task()
    for number in (1, 2, 3):
        memory.emit(started(task, number, "work1"), task)
        memory.emit(closed(task, number, "work1"), task)
    async with following(memory) as later:
        found = later.live.timeline(later.live.entry("FederatedTask", "digits")).document()
    assert [row["round"] for row in found["rounds"]] == [1, 2, 3]


async def test_two_readings_of_one_history_give_the_same_timeline() -> None:
    memory = MemoryCloud()
    task = await memory.task()
    memory.emit(started(task, 1, "work1", "work2"), task)
    memory.emit(closed(task, 1, "work1", answered_s={"work1": 0.25}), task)
    found = []
    for _ in range(2):
        async with following(memory) as later:
            found.append(later.live.timeline(later.live.entry("FederatedTask", "digits")).document())
    assert found[0] == found[1]


async def test_a_verdict_in_passing_reaches_the_timeline(world: Following) -> None:
    task = await world.memory.task()
    world.memory.emit(started(task, 1, "work1"), task, at=100.0)
    await world.until(lambda: world.live.timelines and world.live.entries["FederatedTask"])
    verdict = Verdict(task.metadata.uid, 1, "offer", Outcome.COUNTED)
    place = world.live.feed.sequence
    world.memory.pass_by(verdict, "edge1", task, "work1", at=101.5)
    await world.until(lambda: world.live.feed.since(place, lambda key: key.topic == "Timeline"))
    [row] = world.live.timeline(world.live.entry("FederatedTask", "digits")).document()["rounds"]
    assert (row["workers"][0]["state"], row["workers"][0]["seconds"]) == ("answered", 1.5)


def malformed() -> float:
    return metrics.REGISTRY.get_sample_value("edgeai_messages_refused_total", {"reason": "malformed"}) or 0.0


async def test_a_malformed_message_is_counted_and_the_next_one_is_heard(world: Following) -> None:
    from edgeai.events.address import Address, Direction, EventClass

    before = malformed()
    world.memory.broker.publish(Address("edge1", Direction.UP, EventClass.SIGNAL, "heartbeat"), b"nonsense")
    await world.heard("edge2")
    assert (malformed() - before, "edge1" in world.live.signs) == (1, False)


async def test_no_edge_makes_the_portal_forget_the_coordinator(
    world: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeai.portal.live._SIGNS_LIMIT", 3)
    await world.memory.node("edge1")
    await world.heard("edge1")
    for number in range(20):
        world.memory.pass_by(Heartbeat(1.0), "edge1", worker=f"invented{number}")
        world.memory.pass_by(Heartbeat(1.0), f"stranger{number}")
    await world.until(lambda: "stranger19" in world.live.signs)
    signs, before = world.live.signs, world.live._known_before
    assert (signs.keys(), before.keys()) == ({COORDINATOR, "edge1", "stranger19"},) * 2
    assert world.live.health(COORDINATOR).heartbeat is not None


async def test_what_is_deleted_is_gone_with_its_timeline(world: Following) -> None:
    task = await world.memory.task()
    world.memory.emit(started(task, 1, "work1"), task)
    await world.until(lambda: world.live.timelines and world.live.entries["FederatedTask"])
    stored = await world.memory.resources.get("FederatedTask", "digits")
    await world.memory.resources.delete(stored)
    await world.until(lambda: not world.live.entries["FederatedTask"])
    assert not world.live.timelines
    with pytest.raises(NotFound):
        world.live.entry("FederatedTask", "digits")


async def test_timelines_of_tasks_that_are_not_there_are_few(world: Following) -> None:
    task = await world.memory.task()
    world.memory.emit(started(task, 1, "work1"), task)
    for number in range(400):
        other = task.model_copy(update={"metadata": task.metadata.model_copy(update={"uid": f"{number:032x}"[::-1]})})
        world.memory.emit(started(other, 1, "work1"), other)
    await world.until(lambda: world.live._last_fact == 401)
    assert len(world.live.timelines) <= 257
    assert world.live.entry("FederatedTask", "digits").level in world.live.timelines


async def test_a_cloud_that_cannot_be_reached_at_first_is_tried_again() -> None:
    memory, tries = MemoryCloud(), []

    @asynccontextmanager
    async def source() -> AsyncIterator[Cloud]:
        tries.append(None)
        if len(tries) == 1:
            raise BusUnavailable("nats://nowhere", "refused")
        async with memory.bus:
            yield memory.cloud

    live = Live(source)
    running = asyncio.create_task(live.run())
    async with asyncio.timeout(10):
        while live.problems():
            if len(tries) == 1:
                with pytest.raises(BusUnavailable):
                    _ = live.cloud
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert len(tries) == 2


async def test_before_the_first_look_nothing_is_claimed(world: Following) -> None:
    fresh = Live(of_one(world.memory.cloud))
    with pytest.raises(BusUnavailable):
        fresh.sorted("Model")


async def test_what_needs_a_person_is_listed_with_its_sentence(world: Following) -> None:
    await world.memory.task(phase="Failed", conditions=[condition("Failed", "True", "too few workers")])
    await world.memory.node("edge1")
    await world.heard("edge1")
    world.clock.now += SILENT_AFTER_S + 1
    found = {(item["kind"], item["name"]): item["sentence"] for item in views.overview(world.live)["attention"]}
    assert found["FederatedTask", "digits"] == "too few workers"
    assert "edge1 has not been heard of" in found["EdgeNode", "edge1"]


# --- what workers use

BUSY = Usage(cpu_s=12.0, memory_bytes=1000, memory_limit_bytes=4000, pids=3, cpus=0.5)


async def using(world: Following) -> Any:
    """A task with a worker on edge1 that runs; what it uses has been heard."""
    rows = [worker_row("work1", "edge1"), worker_row("w2", "edge1", "Done")]
    task = await world.memory.task(phase="Running", workers=rows)
    await world.until(lambda: world.live.entries["FederatedTask"])
    await world.heard("edge1")
    world.memory.pass_by(BUSY, "edge1", task, "work1")
    await world.until(lambda: usage_of(world, "work1")["age_s"] is not None)
    return task


def usage_of(world: Following, worker: str) -> Any:
    rows = world.resource("FederatedTask", "digits")["status"]["workers"]
    return next(row["usage"] for row in rows if row["name"] == worker)


async def test_a_worker_that_runs_shows_what_it_uses_and_the_others_nothing(world: Following) -> None:
    await using(world)
    found = usage_of(world, "work1")
    assert (found["known"], found["cpus"], found["memory_bytes"], found["pids"]) == (True, 0.5, 1000, 3)
    assert usage_of(world, "w2") is None


async def test_what_a_worker_uses_is_unknown_when_it_was_heard_too_long_ago(world: Following) -> None:
    await using(world)
    world.clock.now += FRESH_S + 1
    await world.heard("edge1")
    found = usage_of(world, "work1")
    assert (found["known"], found["cpus"], found["age_s"]) == (False, None, FRESH_S + 1)


async def test_what_a_worker_of_a_silent_node_uses_is_unknown(world: Following) -> None:
    await using(world)
    world.clock.now += SILENT_AFTER_S + 1
    assert usage_of(world, "work1")["known"] is False


async def test_readers_of_a_timeline_are_told_when_a_usage_grows_old(world: Following) -> None:
    await using(world)
    place = world.live.feed.sequence
    world.clock.now += FRESH_S + 1
    await world.until(lambda: world.live.feed.since(place, lambda key: key == Key("Timeline", "FederatedTask/digits")))


async def test_the_row_of_a_worker_on_its_node_shows_what_it_uses(world: Following) -> None:
    await world.memory.node("edge1")
    await using(world)
    row = world.summary("EdgeNode", "edge1")["workers"][0]
    assert (row["name"], row["usage"]["cpus"]) == ("work1", 0.5)
