"""One task, one trace: from `edgeai apply` through the daemons to the workers and back, as a collector sees it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from living_world import HERE, OVER, THREE, Worker, World, digest_of, kill, manifests

from collector import Collector, Span, collecting
from edgeai import tracing
from edgeai.settings import write_context

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

EDGES = 2
ROUNDS = 2
WORKERS = tuple(Worker(each.name, each.node, each.dataset, folder="steady") for each in THREE[:EDGES])
SLACK_S = 1.0
"""Clocks are read in several processes, and a message that says so comes after what it tells of."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
        yield found
        tracing.stop()  # the collector is gone, and this process goes on


@dataclass(frozen=True)
class Traced:
    """A world whose parts send traces. Tasks are applied by the command line, as a process of its own."""

    world: World
    collector: Collector
    folder: Path

    async def apply(self, name: str, **parameters: object) -> str:
        """Returns the task's uid."""
        documents = [each.to_document() for each in manifests(name, WORKERS, rounds=ROUNDS, **parameters)]
        for document in documents:
            document.pop("status", None)
        file = self.folder / f"{name}.yaml"
        file.write_text("\n---\n".join(json.dumps(document) for document in documents))
        context = self.folder / "context.json"
        write_context(self.world.playground.context(), context)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgeai", "apply", "-f", str(file), env={**os.environ, "EDGEAI_CONTEXT": str(context)}
        )
        assert await process.wait() == 0
        return (await self.world.cloud.get("FederatedTask", name)).metadata.uid

    async def trace(self, uid: str) -> list[Span]:
        """When the task's end is known to the collector, so is everything else."""

        def is_whole(spans: list[Span]) -> bool:
            names = [span.name for span in spans]
            return {"task", "apply", "new version"} <= {*names} and names.count("join") == EDGES + 1

        return await asyncio.to_thread(self.collector.until, uid, is_whole)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced(collector: Collector, world: World, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    folder = tmp_path_factory.mktemp("traced")
    shutil.copytree(HERE / "scripts/steady", folder / "steady")
    return Traced(world, collector, folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spans(traced: Traced) -> list[Span]:
    """The trace of a task that nothing disturbed."""
    uid = await traced.apply("traced", pause=0.2)
    digest_of(await traced.world.ended("traced"))
    return await traced.trace(uid)


def check_is_a_tree(spans: list[Span]) -> None:
    by_id = {span.id: span for span in spans}
    assert [span.name for span in spans if not span.parent] == ["apply"]
    assert [f"{span.service} {span.name}" for span in spans if span.parent and span.parent not in by_id] == []


def path_to(spans: list[Span], span: Span) -> list[str]:
    """Names from the root."""
    by_id = {each.id: each for each in spans}
    names = [span.name]
    while span.parent:
        span = by_id[span.parent]
        names.insert(0, span.name)
    return names


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


async def test_all_spans_of_a_task_are_one_tree(spans: list[Span]):
    check_is_a_tree(spans)


async def test_no_span_comes_twice(spans: list[Span]):
    assert len({span.id for span in spans}) == len(spans)


async def test_every_part_has_recorded_its_own(spans: list[Span]):
    found = {(span.service, span.node, span.name) for span in spans}
    edges = [f"edge{number}" for number in range(1, EDGES + 1)]
    assert found >= {
        ("edgeai-cli", "", "apply"),
        ("edgeai-coordinator", "cloud", "task"),
        ("edgeai-coordinator", "cloud", "prepare"),
        ("edgeai-coordinator", "cloud", "new version"),
        ("edgeai-controller", "cloud", "start worker"),
        ("edgeai-worker", "cloud", "round"),
        ("edgeai-worker", "cloud", "collect update"),
        ("edgeai-worker", "cloud", "aggregate"),
        *(("edgeai-controller", edge, "start worker") for edge in edges),
        *(("edgeai-worker", edge, name) for edge in edges for name in ("join", "train", "validate")),
    }


async def test_what_a_worker_trained_is_found_below_its_round_and_leads_to_its_verdict(spans: list[Span]):
    paths = {
        (span.about["from_worker"], span.about["round"]): path_to(spans, span)
        for span in named(spans, "collect update")
        if span.about["round"] > 0
    }
    expected = ["apply", "task", "round", "train", "collect update"]
    assert paths == {(worker.name, number): expected for worker in WORKERS for number in range(1, ROUNDS + 1)}


async def test_the_new_version_belongs_to_the_last_round(spans: list[Span]):
    [version] = named(spans, "new version")
    assert path_to(spans, version) == ["apply", "task", "round", "new version"]
    assert version.about["version"] == 1


async def test_spans_lie_within_their_parents_as_time_does(spans: list[Span]):
    by_id = {span.id: span for span in spans}
    early = [
        f"{span.name} begins {by_id[span.parent].began_s - span.began_s:.1f} s before its {by_id[span.parent].name}"
        for span in spans
        if span.parent and span.began_s < by_id[span.parent].began_s - SLACK_S
    ]
    inside = {"prepare", "start worker", "round", "train", "validate", "aggregate"}
    late = [
        f"{span.name} ends {span.ended_s - by_id[span.parent].ended_s:.1f} s after its {by_id[span.parent].name}"
        for span in spans
        if span.name in inside and span.ended_s > by_id[span.parent].ended_s + SLACK_S
    ]
    assert (early, late) == ([], [])


async def test_workers_are_not_given_the_password_of_the_collector(traced: Traced, spans: list[Span]):
    sent = [headers.get("authorization", headers.get("Authorization")) for headers in traced.collector.headers]
    assert "secret" in sent
    assert None in sent


async def test_a_coordinator_that_is_killed_in_mid_task_changes_no_id(traced: Traced, spans: list[Span]):
    uid = await traced.apply("killed", pause=1.0)
    await traced.world.in_round("killed", 1)
    kill(traced.world.daemon("cloud"))
    digest_of(await traced.world.ended("killed"))
    found = await traced.trace(uid)
    check_is_a_tree(found)
    assert {span.id for span in found if span.name == "task"} == {tracing.task_span(uid).span_id}
    assert len({span.id for span in found}) == len({(span.id, span.began_s, span.ended_s) for span in found})


@pytest.mark.parametrize("how", ["it hangs", "it refuses"])
async def test_a_collector_that_is_of_no_use_changes_nothing(traced: Traced, spans: list[Span], how: str):
    name = how.replace(" ", "-")
    try:
        if how == "it hangs":
            traced.collector.silent.set()
        else:
            traced.collector.answer = 500
        await traced.apply(name, pause=0.1)
        task = await traced.world.ended(name)
    finally:
        traced.collector.silent.clear()
        traced.collector.answer = 200
    assert task.status.phase in OVER
    assert digest_of(task)
    assert [row.updates for row in task.status.rounds] == [EDGES] * ROUNDS
