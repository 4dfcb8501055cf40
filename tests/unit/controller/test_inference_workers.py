"""What workers of joint inference services are to serve is put where they find it; what they tell is observed, but seldom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import generate_latest

from edgeai import metrics
from edgeai.controller.cache import BlobCache
from edgeai.controller.inference import InferenceWorkers, Node, job_fed_by
from edgeai.controller.places import ProcessPlaces
from edgeai.errors import NotFound
from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    Inferences,
    InferenceWork,
    Inferring,
    ModelVersionRef,
    Role,
    Scores,
    ServeModel,
    ServiceChanged,
    ServingWanted,
)
from edgeai.events.envelope import decode
from edgeai.launcher.slots import SlotDir, read_serving
from edgeai.lifecycle.swaps import Known
from edgeai.store.edge import EdgeStore
from edgeai.store.files import digest_bytes
from edgeai.store.journal import SqliteJournal

TASK, UID, WORKER = "digits-01234567", "01234567" * 4, "little"
MINE = Assignment(TASK, "digits", UID, 1, WORKER, Role.EDGE)


class Shelf:
    """An object store that may not have a blob yet."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    async def get(self, digest: str, path: Path) -> None:
        if digest not in self.blobs:
            raise NotFound("blob", digest)
        path.write_bytes(self.blobs[digest])


@dataclass
class World:
    workers: InferenceWorkers
    shelf: Shelf
    slot: SlotDir
    store: EdgeStore
    again: Callable[[], InferenceWorkers]
    """those of the controller's next life"""
    told: list[ServeModel] = field(default_factory=list)
    observed: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def wanted(self, content: bytes, version: int) -> ServingWanted:
        digest = digest_bytes(content)
        self.shelf.blobs[digest] = content
        blob = BlobRef(digest, len(content))
        return ServingWanted(TASK, UID, WORKER, "digits-small", ModelVersionRef(version, blob, "npz"))

    async def until_told(self, count: int) -> ServeModel:
        async with asyncio.timeout(10):
            while len(self.told) < count:
                self.news.clear()
                await self.news.wait()
        return self.told[count - 1]

    async def facts(self) -> list[tuple[str, int]]:
        """What of workers was told to the history: what it is, and the version that serves."""
        events = [decode(row.payload).event for row in await self.store.waiting(0, 100)]
        assert all(isinstance(event, ServiceChanged) for event in events)
        return [(event.what, event.version) for event in events]  # type: ignore[attr-defined]

    def files(self) -> set[str]:
        return {path.name for path in self.slot.models.iterdir()} - {"serving.json"}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    shelf, slot = Shelf(), SlotDir(tmp_path / "slot")

    async def tell(_level: str, _worker: str, event: ServeModel) -> None:
        found.told.append(event)
        found.news.set()

    async def changed() -> None:
        found.observed += 1

    places = ProcessPlaces("cloud", "nats://none", tmp_path / "login")
    node = Node(places, lambda _level, _worker: slot, tell, changed)
    cache = BlobCache(tmp_path / "blobs", "cloud", None, None, shelf)  # type: ignore[arg-type]  # not asked
    store = await EdgeStore.open(tmp_path / "node.sqlite")
    journal = SqliteJournal(store, Known, node="edge1", source="edge1", machine="inference")
    node = replace(node, journal=journal)
    found = World(InferenceWorkers(node, cache), shelf, slot, store, lambda: InferenceWorkers(node, cache))
    runner = asyncio.create_task(found.workers.run())
    yield found
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    await store.close()


def figures(digest: str, inferences: int) -> Inferring:
    return Inferring(digest, Inferences(inferences=inferences))


async def test_a_model_is_brought_when_the_worker_has_a_place_for_it(world: World) -> None:
    first = world.wanted(b"one", 1)
    world.workers.take([first])
    await world.workers.prepare(MINE, world.slot)
    told = await world.until_told(1)
    serving = read_serving(world.slot.models)
    assert serving is not None
    assert (serving.model, serving.version, told.model) == (told.model, 1, serving.model)
    assert (world.slot.models / told.model.name).read_bytes() == b"one"


async def test_the_model_before_stays_and_older_ones_go(world: World) -> None:
    await world.workers.prepare(MINE, world.slot)
    for number, content in enumerate((b"one", b"two", b"three"), 1):
        world.workers.take([world.wanted(content, number)])
        await world.until_told(number)
    assert world.files() == {f"{digest_bytes(content)}.npz" for content in (b"two", b"three")}


async def test_a_new_number_of_the_same_model_is_told_without_bringing_it_again(world: World) -> None:
    await world.workers.prepare(MINE, world.slot)
    world.workers.take([world.wanted(b"one", 1)])
    await world.until_told(1)
    again = world.wanted(b"one", 2)
    world.shelf.blobs.clear()
    world.workers.take([again])
    assert (await world.until_told(2)).version == 2


async def test_a_model_that_is_not_there_keeps_no_other_worker_waiting(world: World) -> None:
    missing = world.wanted(b"one", 1)
    world.shelf.blobs.clear()
    await world.workers.prepare(MINE, world.slot)
    world.workers.take([missing])
    world.workers.take([world.wanted(b"two", 2)])
    assert (await world.until_told(1)).version == 2


@pytest.mark.parametrize(
    ("second", "news"), [(figures("ab" * 32, 2), 1), (figures("cd" * 32, 1), 2)], ids=["counters", "another model"]
)
async def test_counters_alone_are_no_news(world: World, second: Inferring, news: int) -> None:
    world.workers.observe()
    await world.workers.hear(TASK, UID, WORKER, figures("ab" * 32, 1))
    before = world.workers.observe()
    await world.workers.hear(TASK, UID, WORKER, second)
    assert world.observed == news
    assert (world.workers.observe() == before) is (news == 1)


async def test_another_model_is_a_fact_once_also_across_a_restart_of_the_controller(world: World) -> None:
    for version, content in ((1, b"one"), (2, b"two")):
        wanted = world.wanted(content, version)
        world.workers.take([wanted])
        await world.workers.hear(TASK, UID, WORKER, figures(wanted.model.blob.digest, 1))
    again = world.again()
    await again.load()
    again.take([wanted])
    await again.hear(TASK, UID, WORKER, figures(wanted.model.blob.digest, 1))
    assert await world.facts() == [("model", 1), ("model", 2)]


async def test_of_a_worker_that_is_removed_nothing_is_remembered(world: World) -> None:
    await world.workers.hear(TASK, UID, WORKER, figures("ab" * 32, 1))
    await world.workers.forget(TASK, WORKER)
    assert (await world.store.load("inference")).states == {}


async def test_scores_of_another_size_are_not_observed(world: World) -> None:
    scores = Scores(mining="Margin", inferences=(1,) * 7, answered=(0,) * 20, changed=(0,) * 20)
    await world.workers.hear(TASK, UID, WORKER, replace(figures("ab" * 32, 1), scores=scores))
    [observed] = world.workers.observe()
    assert observed.scores == Scores()


async def test_a_worker_that_is_removed_is_observed_no_more(world: World) -> None:
    await world.workers.hear(TASK, UID, WORKER, figures("ab" * 32, 1))
    await world.workers.forget(TASK, WORKER)
    assert world.workers.observe() == ()


@pytest.mark.parametrize(
    ("worker", "role", "job"),
    [("little", Role.EDGE, "learned"), ("other", Role.EDGE, ""), ("little", Role.CLOUD, "")],
    ids=["the-worker-that-feeds", "another-worker", "a-replica"],
)
def test_the_job_that_a_worker_feeds_is_that_of_its_own_entry(worker: str, role: Role, job: str) -> None:
    script = {"scriptDir": "/x", "scriptBootFile": "main.py", "frameworkType": "numpy"}
    little = {"name": "little", "nodeName": "edge1", "workerSpec": script, "feeds": {"job": "learned"}}
    spec = {"edgeWorkers": [little], "cloudWorker": {"name": "big", "workerSpec": script}}
    inference = InferenceWork(json.dumps(spec), has_model=False)
    assert job_fed_by(replace(MINE, worker=worker, role=role, inference=inference)) == job


def test_a_spec_of_another_version_of_the_system_feeds_no_job() -> None:
    assert job_fed_by(replace(MINE, role=Role.EDGE, inference=InferenceWork('{"unknown": 1}', has_model=False))) == ""


async def test_what_a_worker_says_is_observed_within_bounds(world: World) -> None:
    many = {f"{number:064x}": "why" * 1000 for number in range(1000)}
    told = Inferring("ab" * 32, Inferences(), {**many, "no digest": 1}, {**many, "x": "y"}, "open" * 100)  # type: ignore[arg-type]
    await world.workers.hear(TASK, UID, WORKER, told)
    [observed] = world.workers.observe()
    assert (len(observed.refused_models), len(observed.models), len(observed.breaker)) == (16, 32, 20)
    assert max(map(len, observed.refused_models.values())) == 300


async def test_counts_and_times_are_metrics_until_the_worker_is_removed(world: World) -> None:
    counts = Inferences(inferences=7, sent=3)
    told = Inferring("ab" * 32, counts, breaker="open", edge_p50_s=0.25, waiting=4)
    await world.workers.hear(TASK, UID, WORKER, told)
    await world.workers.hear(TASK, UID, WORKER, replace(told, counts=replace(counts, inferences=9)))
    text = generate_latest(metrics.REGISTRY).decode()
    assert 'edgeai_inferences_total{count="inferences",service="digits"} 9.0' in text
    assert 'edgeai_inference_breaker_open{service="digits"} 1.0' in text
    assert 'edgeai_inference_seconds{by="edge",quantile="0.5",service="digits"} 0.25' in text
    await world.workers.forget(TASK, WORKER)
    assert 'service="digits"' not in generate_latest(metrics.REGISTRY).decode()


async def test_the_levels_of_several_workers_of_a_service_are_one(world: World) -> None:
    """What waits is a sum; times and the breaker are the worst; what is removed counts no more, and the others do."""

    def level(name: str, **labels: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(f"edgeai_inference_{name}", {"service": "digits", **labels})

    def levels() -> tuple[float | None, ...]:
        return level("waiting"), level("breaker_open"), level("seconds", by="edge", quantile="0.5")

    first = Inferring("ab" * 32, Inferences(), breaker="open", edge_p50_s=0.25, waiting=40)
    second = Inferring("ab" * 32, Inferences(), breaker="half-open", edge_p50_s=0.5, waiting=2)
    await world.workers.hear(TASK, UID, WORKER, first)
    await world.workers.hear(TASK, UID, "another", second)
    assert levels() == (42, 1, 0.5)
    await world.workers.forget(TASK, WORKER)
    assert levels() == (2, 0.5, 0.5)
    await world.workers.forget(TASK, "another")
    assert levels() == (None, None, None)
