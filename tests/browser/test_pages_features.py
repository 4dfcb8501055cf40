"""A person at the pages of a job and of a service, with a cloud and an edge behind them of which every part is a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from browser_world import PHONE, Ground, Visit, Visits

import edgeai
from edgeai.errors import EdgeaiError
from edgeai.portal.access import Role
from edgeai.resources.base import Metadata
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.manifest import dump_manifests
from edgeai.resources.model import Model, ModelFormat, ModelSpec
from edgeai.settings import shipped

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]
API = "edgeai.io/v1alpha1"
JOB, SERVICE = "/tasks/incrementallearningjobs/learns", "/tasks/jointinferenceservices/joint-digits"
EXAMPLES = shipped("config/examples")


def resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def count(text: str, what: str) -> int:
    """The number before (or after) a word of a fact."""
    found = re.search(rf"([\d\u202f]+)\)? {what}", text)
    return int(found[1].replace("\u202f", "")) if found else 0


async def fact(found: Visit, name: str) -> str:
    return str(await found.page.locator(f"dt:text-is('{name}') + dd").inner_text())


async def until(holds: Callable[[], Awaitable[bool]], within_s: float = 90) -> None:
    async with asyncio.timeout(within_s):
        while not await holds():
            await asyncio.sleep(0.2)


def digits(ground: Ground) -> dict[str, int]:
    """Lay a job's files onto the edge; returns what a person would say of each digit that is asked."""
    with np.load(EXAMPLES / "digits.npz", allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"]
    old = np.random.RandomState(7).permutation(np.flatnonzero(y < 5))[:450]
    rest = np.random.RandomState(8).permutation(np.setdiff1d(np.arange(len(y)), old))
    np.savez(ground.data / "labelled.npz", x=x[old], y=y[old])
    np.savez(ground.data / "stream.npz", x=x[rest])
    shutil.copytree(shipped("workers/incremental-numpy"), ground.data / "script", dirs_exist_ok=True)
    return {f"stream-{row}": int(label) for row, label in enumerate(y[rest])}


def job(ground: Ground) -> list[dict[str, Any]]:
    """Its datasets, and the job: it trains when it is told to."""

    def worker(**parameters: Any) -> dict[str, Any]:
        told = [{"key": key.replace("_", " "), "value": value} for key, value in parameters.items()]
        script = {"scriptDir": str(ground.data / "script"), "scriptBootFile": "main.py", "frameworkType": "numpy"}
        return {"workerSpec": {**script, "parameters": told}}

    place = {"nodeName": "edge1", "format": "npz"}
    spec = {
        "nodeName": "edge1",
        "initialModel": {"name": "learns"},
        "outputModel": {"name": "learns"},
        "dataset": {"name": "labelled", "trainFraction": 0.75, "initialSamples": "old"},
        "hardExampleMining": {"algorithm": "Margin", "parameters": [{"key": "threshold", "value": 0.9}]},
        "train": worker(batch_size=16, learning_rate=0.2, epochs=10) | {"trigger": {"checkPeriodSeconds": 1}},
        "eval": worker(),
        "deploy": worker(requests_per_second=100) | {"dataset": {"name": "stream"}},
    }
    return [
        resource("Dataset", "labelled", {**place, "url": str(ground.data / "labelled.npz")}),
        resource("Dataset", "stream", {**place, "url": str(ground.data / "stream.npz")}),
        resource("IncrementalLearningJob", "learns", spec),
    ]


@contextlib.asynccontextmanager
async def labelling(ground: Ground, known: dict[str, int]) -> AsyncIterator[None]:
    """Somebody says of every example that waits what it is."""

    async def label() -> None:
        while True:
            with contextlib.suppress(EdgeaiError):  # the job is not on its edge yet
                found = await ground.cloud.get("IncrementalLearningJob", "learns")
                assert isinstance(found, IncrementalLearningJob)
                waiting = (await ground.cloud.examples(found, 1000)).examples
                await ground.cloud.give_labels(found, {each.id: json.dumps(known[each.id]) for each in waiting})
            await asyncio.sleep(0.5)

    task = asyncio.create_task(label())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def pressed(found: Visit, button: str) -> None:
    await found.page.get_by_role("button", name=button, exact=True).click()
    await found.page.click("#confirm-yes")


async def test_a_job_is_applied_learns_when_it_is_triggered_and_serves_its_new_model(
    ground: Ground, visit: Visits
) -> None:
    known = await asyncio.to_thread(digits, ground)
    model = Model(metadata=Metadata(name="learns"), spec=ModelSpec(url="digits-0-to-4.npz", format=ModelFormat.NPZ))
    await ground.cloud.apply([model], base=EXAMPLES)
    found = await visit(ground.url, ground.link(Role.OPERATOR))
    await found.open("/apply")
    await found.page.fill("#apply-text", dump_manifests(job(ground)))
    await found.page.click("#apply-go")
    await found.sees("#confirm .changes", "IncrementalLearningJob learns")
    await found.page.click("#confirm-yes")
    await found.page.wait_for_url(f"**{JOB}")

    async def enough() -> bool:
        return count(await fact(found, "Examples"), "new") >= 100

    async with labelling(ground, known):
        await found.sees("dt:text-is('Serves') + dd", "version 1", 25)
        await until(enough)
        await pressed(found, "Trigger")
        await found.sees("#stage-1-Deploy-Completed", timeout_s=90)
    rows = await found.page.locator("tr[id^='stage-1-']").evaluate_all("rows => rows.map((row) => row.id)")
    stages = list(dict.fromkeys(row.split("-")[2] for row in reversed(rows)))
    assert stages == ["Train", "Eval", "Deploy"], "the newest is on top"
    await found.sees("dt:text-is('Serves') + dd", "version 2", 60)
    assert "accuracy" in await found.page.locator("tr[id='stage-1-Eval-Completed']").inner_text()
    chart = found.page.locator("figure[data-chart=metric-accuracy]")
    await chart.locator("canvas").wait_for()
    assert (await chart.get_attribute("aria-label") or "").startswith("accuracy per round. Last: ")
    await found.shot("job", full=True)


async def test_a_job_is_paused_and_goes_on(ground: Ground, visit: Visits) -> None:
    found = await visit(ground.url, ground.link(Role.OPERATOR))
    await found.open(JOB)
    await pressed(found, "Pause")
    await found.sees("h1 .badge", "Paused")
    await pressed(found, "Resume")
    await found.sees("h1 .badge", "Running")


async def test_a_log_grows_while_it_is_open_and_the_worker_says_what_it_uses(ground: Ground, visit: Visits) -> None:
    found = await visit(ground.url, ground.link(Role.VIEWER))
    await found.open(JOB)
    row = found.page.locator("tr[id^='worker-']").first
    await found.page.wait_for_function(
        "() => / [kM]B/.test(document.querySelector(\"tr[id^='worker-'] [data-label=Memory]\")?.textContent)"
    )
    await row.get_by_role("button").click()
    await found.sees("#log-text")
    await found.page.wait_for_function("() => document.getElementById('log-text').textContent.length > 0")


async def test_every_event_of_a_job_is_listed_in_order(ground: Ground, visit: Visits) -> None:
    found = await visit(ground.url, ground.link(Role.VIEWER))
    await found.open(JOB)
    await found.page.click("#events > summary")
    await found.sees("#events td", "model-deployed")
    cells = await found.page.locator("#events tbody tr td:first-child").all_text_contents()
    assert [int(text) for text in cells] == sorted(int(text) for text in cells)


async def test_requests_to_a_service_are_counted_on_its_open_page(ground: Ground, visit: Visits) -> None:
    await ground.cloud.apply(EXAMPLES / "joint-digits.yaml")
    found = await visit(ground.url, ground.link(Role.VIEWER))
    await found.open(SERVICE)
    await found.sees("dt:text-is('Replicas') + dd", "1 of 1 ready", 60)
    with np.load(EXAMPLES / "digits.npz", allow_pickle=False) as arrays:
        asked = list(arrays["x"][:60])
    async with edgeai.connect_edge("edge1", credentials_file=ground.login) as edge:
        for one in asked:
            await edge.infer("joint-digits", one, deadline_s=5.0)

    await found.sees("dt:text-is('Inferences') + dd", str(len(asked)))
    assert count(await fact(found, "Inferences"), "hard") > 0
    for name in ("hour-rate", "curve-0"):
        await found.sees(f"figure[data-chart={name}][aria-label] canvas")
    await found.page.click("#events > summary")
    await found.sees("#events td")
    await found.shot("service", full=True)


async def test_pages_of_an_edge_a_dataset_and_a_model_tell_of_the_job(ground: Ground, visit: Visits) -> None:
    found = await visit(ground.url, ground.link(Role.VIEWER))
    await found.open("/edges/edge1")
    await found.sees("main a", "learns")
    await found.sees("main a", "labelled")
    await found.sees("dt:text-is('Bridge') + dd", "lives")
    await found.sees("dt:text-is('Bridge to the cloud') + dd", "connected")
    await found.sees("dt:text-is('Round trip') + dd", "ms")
    await found.open("/datasets/labelled")
    await found.sees("main", "450")
    await found.open("/models/learns")
    await found.sees("#version-2", "learns")


async def test_pages_of_jobs_and_services_fit_a_phone(ground: Ground, visit: Visits) -> None:
    found = await visit(ground.url, ground.link(), viewport=PHONE, device_scale_factor=2)
    wide = []
    for path in (JOB, SERVICE, "/edges/edge1", "/datasets/labelled", "/models/learns"):
        await found.open(path)
        await found.shot(f"phone{path.replace('/', '-')}", full=True)
        if await found.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(path)
    assert wide == []
