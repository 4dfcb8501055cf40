"""A service of real processes: what it refuses, what it does when too much is asked, how it grows, what it feeds, its end."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import pytest_asyncio
from joint_system import BIG, DEADLINE_S, EDGE, SMALL, JointSystem, stopped
from learning_world import LearningWorld, eventually
from living_world import World

from edgeai.asking import Edge
from edgeai.errors import DeadlineMissed, ModelError, Refused
from edgeai.events.address import task_level
from edgeai.events.catalogue import ServiceChanged
from edgeai.events.envelope import decode
from edgeai.portal.live import Live, of_one
from edgeai.resources.joint import JointInferenceService, ScoreCounts
from edgeai.settings import write_context

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150)]

EDGES = 1
GOOD = np.arange(4, dtype="float32")
MORE_BYTES = 150 * 1024 * 1024
"""By so much may a worker grow that is asked ten times of what it can do."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(world: World) -> JointSystem:
    return JointSystem(world)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(system: JointSystem) -> JointInferenceService:
    return await system.start("numbers")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(system: JointSystem, service: JointInferenceService) -> AsyncIterator[Edge]:
    async with system.connect() as edge:
        yield edge


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(system: JointSystem) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=system.url, trust_env=False, timeout=60) as client:
        yield client


def _npy(x: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


# --- who answers


async def test_the_cloud_answers_what_is_hard(edge: Edge):
    answer = await edge.infer("numbers", GOOD, deadline_s=DEADLINE_S)
    assert (answer.by, list(answer.prediction), answer.model, answer.version) == (
        "cloud",
        list(GOOD * BIG),
        "numbers-big",
        1,
    )


# --- what is refused

REFUSED = {
    "wrong-shape": (np.zeros((2, 2), "float32"), {}, r"shape"),
    "wrong-dtype": (np.zeros(4, "int64"), {}, r"int64"),
    "not-finite": (np.array([1, np.nan, 3, 4], "float32"), {}, r"finite"),
    "a-hundred-megabytes": (np.zeros(25_000_000, "float32"), {}, r"too large"),
    "unknown-model": (GOOD, {"model": "enormous"}, r"no model enormous"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_it_is_refused_by_name_over_mqtt(edge: Edge, what: str):
    x, more, why = REFUSED[what]
    with pytest.raises(Refused, match=why):
        await edge.infer("numbers", x, **more)


@pytest.mark.parametrize("what", REFUSED)
async def test_it_is_refused_by_name_over_http(http: httpx.AsyncClient, service: JointInferenceService, what: str):
    x, more, why = REFUSED[what]
    headers = {"Content-Type": "application/x-npy", **{f"Edgeai-{name}": value for name, value in more.items()}}
    answer = await http.post("/v1/infer/numbers", content=_npy(x), headers=headers)
    assert answer.status_code in {400, 413}
    assert answer.json()["kind"] == "refused"
    assert re.search(why, answer.json()["error"])


async def test_an_unknown_service_has_nobody_who_answers_over_mqtt(edge: Edge):
    with pytest.raises(DeadlineMissed, match="nonsense on edge1"):
        await edge.infer("nonsense", GOOD, deadline_s=0.2)


async def test_an_unknown_service_is_refused_by_name_over_http(http: httpx.AsyncClient, service: JointInferenceService):
    answer = await http.post("/v1/infer/nonsense", json={"input": [1, 2, 3, 4], "dtype": "float32"})
    assert answer.status_code == 404
    assert answer.json()["error"] == "service nonsense has no worker on edge1; there is numbers"


async def test_what_is_refused_disturbs_nobody(edge: Edge, system: JointSystem, service: JointInferenceService):
    before = system.pid(service, "little"), system.pid(service, "big-0")
    for x, more, _ in REFUSED.values():
        with pytest.raises(Refused):
            await edge.infer("numbers", x, **more)
    assert (await edge.infer("numbers", GOOD, deadline_s=DEADLINE_S)).by == "cloud"
    assert (system.pid(service, "little"), system.pid(service, "big-0")) == before


# --- what it tells


def _scores(service: JointInferenceService) -> ScoreCounts:
    return service.status.edges[0].scores or ScoreCounts()


async def test_the_curve_counts_what_the_service_counts(edge: Edge, system: JointSystem):
    for _ in range(5):
        await edge.infer("numbers", GOOD, deadline_s=DEADLINE_S)

    def agree(found: JointInferenceService) -> bool:
        scores, counts = _scores(found), found.status.counts
        compared = sum(scores.answered) + scores.apart
        return (sum(scores.inferences), compared) == (counts.inferences, counts.answered) != (0, 0)

    await system.until("numbers", agree)


async def test_a_new_model_begins_a_new_curve_and_is_a_fact(edge: Edge, system: JointSystem):
    before = _scores(await system.get("numbers"))
    await system.publish_model("numbers-small", 10 * SMALL)
    await system.until("numbers", lambda found: found.status.edges[0].serving.version == 2)
    for _ in range(3):
        await edge.infer("numbers", GOOD, deadline_s=DEADLINE_S)
    found = await system.until("numbers", lambda found: _scores(found).edge not in {"", before.edge})
    found = await system.until("numbers", lambda found: sum(_scores(found).inferences) == 3)
    level = task_level("numbers", found.metadata.uid)
    facts = [
        (record.address.worker, event.before, event.after, event.version, event.reason)
        async for record in system.world.cloud.facts.read(level)
        if isinstance(event := decode(record.payload).event, ServiceChanged) and event.before
    ]
    assert facts == [("little", before.edge, _scores(found).edge, 2, "a new version")]


async def test_a_portal_hears_how_many_inferences_and_replicas_there_are(system: JointSystem):
    live = Live(of_one(system.world.cloud))
    level = task_level("numbers", (await system.get("numbers")).metadata.uid)

    def rates() -> list[tuple[float, float]]:
        history = live.inferring.of(level)
        found = history.document() if history is not None else {"inferences_per_s": (), "replicas": ()}
        return [each for each in zip(found["inferences_per_s"], found["replicas"], strict=True) if None not in each]

    following = asyncio.create_task(live.run())
    async with system.asking("numbers", per_s=20) as load:
        await eventually(lambda: bool(rates()), lambda: f"nothing was heard: {load.told()}")
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert rates()[0][0] > 0
    assert rates()[0][1] == 1


async def test_what_predict_raises_names_the_worker_and_stands_in_its_log(
    edge: Edge, system: JointSystem, service: JointInferenceService
):
    with pytest.raises(ModelError, match="edge worker little of service numbers: ValueError: nobody can answer that"):
        await edge.infer("numbers", -GOOD - 1, deadline_s=DEADLINE_S)
    log = (system.slot(service, "little") / "worker.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "nobody can answer that" in log


# --- too much


async def test_ten_times_too_much_is_refused_at_once_or_answered_and_takes_no_memory(system: JointSystem):
    service = await system.start("slow", pause=0.05, mining="EdgeOnly", policy={"maxWaiting": 8})
    worker = psutil.Process(system.pid(service, "little"))
    before = largest = worker.memory_info().rss
    async with system.asking("slow", per_s=200, deadline_s=3.0) as load:
        while load.asked < 1000:
            await asyncio.sleep(0.1)
            largest = max(largest, worker.memory_info().rss)
    load.check()
    assert {each.error.partition(":")[0] for each in load.ended} == {"", "Overloaded"}, load.told()
    assert load.count("edge") + load.count("error") == load.asked
    assert load.count("edge") > 0
    assert largest - before < MORE_BYTES
    async with system.connect() as edge:
        assert (await edge.infer("slow", GOOD, deadline_s=DEADLINE_S)).by == "edge"
    counts = await system.counted("slow", load.count("edge") + 1)
    assert (counts.shed, counts.failed) == (load.count("error"), 0), load.told()
    await system.delete("slow")


# --- how many replicas there are


async def test_replicas_grow_under_load_and_shrink_after_it(system: JointSystem, tmp_path: Path):
    one_at_a_time = {"replicas": {"min": 1, "max": 2}, "batch": {"maxSize": 1, "maxWaitSeconds": 0.0}}
    await system.start("busy", cloud_pause=0.2, cloud=one_at_a_time)
    async with system.asking("busy", per_s=15) as load:
        found = await system.until("busy", lambda service: service.status.replicas.ready > 1)
    load.check()
    assert found.status.replicas.wanted == 2
    assert found.status.replicas.reason.startswith("2 of 2: ")
    assert "requests waited" in found.status.replicas.reason
    assert "2 of 1 to 2" in await asyncio.to_thread(_described, system.world, tmp_path, "busy")
    await system.until("busy", lambda service: service.status.replicas.wanted == 1)
    await eventually(lambda: not (system.slot(found, "big-1") / "run.json").exists(), lambda: "big-1 is still there")
    await system.delete("busy")


def _described(world: World, folder: Path, name: str) -> str:
    write_context(world.playground.context(), folder / "context.json")
    done = subprocess.run(
        [sys.executable, "-m", "edgeai", "describe", "service", name],
        env={**os.environ, "EDGEAI_CONTEXT": str(folder / "context.json"), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what it feeds


@pytest.fixture
def learning(world: World) -> LearningWorld:
    return LearningWorld(world)


async def test_hard_examples_arrive_at_a_job_with_the_label_of_the_cloud(system: JointSystem, learning: LearningWorld):
    await learning.start("learned")
    feeds = {"feeds": {"job": "learned", "labelBy": "cloud"}, "inputs": {"shape": [64], "dtype": "float32"}}
    await system.start("feeding", edge=feeds)
    async with system.connect() as edge:
        for place in range(5):
            answer = await edge.infer("feeding", np.eye(64, dtype="float32")[place], deadline_s=DEADLINE_S)
            assert answer.by == "cloud"
    await system.delete("feeding")  # the last of them may not have been collected yet
    job = await learning.counted("learned", hard=5)
    assert len(learning.examples(job)) == 5
    await learning.delete("learned")


async def test_what_the_cloud_has_not_answered_arrives_without_a_label(system: JointSystem, learning: LearningWorld):
    await learning.start("asked")
    feeds = {"feeds": {"job": "asked", "labelBy": "cloud"}, "inputs": {"shape": [64], "dtype": "float32"}}
    await system.start("alone", edge=feeds)
    async with system.connect() as edge, stopped(system.world.child("bridge", EDGE)):
        for place in range(3):
            answer = await edge.infer("alone", np.eye(64, dtype="float32")[place], deadline_s=DEADLINE_S)
            assert answer.fell_back
    await learning.until("asked", lambda job: job.status.counts.unlabelled == 3)
    await system.delete("alone")
    await learning.delete("asked")


# --- the end


async def test_deleting_a_service_leaves_nothing_of_it(system: JointSystem, http: httpx.AsyncClient):
    service = await system.start("gone")
    pids = [system.pid(service, worker) for worker in ("little", "big-0")]
    slots = [system.slot(service, worker).parent for worker in ("little", "big-0")]
    await system.delete("gone")
    await eventually(lambda: not any(map(psutil.pid_exists, pids)), lambda: f"workers are left of {pids}")
    await eventually(lambda: not any(slot.exists() for slot in slots), lambda: f"there is {slots}")
    answer = await http.post("/v1/infer/gone", json={"input": [1, 2, 3, 4], "dtype": "float32"})
    assert answer.status_code == 404
