"""An incremental learning job as a person sees it in the portal, and a round that is asked for there."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import httpx
import pytest
import pytest_asyncio
from memory_portal import API, NOW, RunningPortal

from edgeai.portal.stages import job_page, plots
from edgeai.resources.kinds import from_document

PAGE, JOBS = "/tasks/incrementallearningjobs/drift", "/api/v1/incrementallearningjobs"
WORKER = {"workerSpec": {"scriptDir": "/srv/job", "scriptBootFile": "main.py", "frameworkType": "numpy"}}
SPEC = {
    "nodeName": "edge1",
    "initialModel": {"name": "cnn"},
    "outputModel": {"name": "cnn"},
    "dataset": {"name": "labelled"},
    "train": WORKER,
    "eval": WORKER,
    "deploy": WORKER,
}


def stage(number: int, name: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"round": number, "stage": name, "state": state, "reason": "", "at": NOW, "samples": 30, **fields}


GIVEN_UP = "failed 4 times, last: no space left; `edgeai trigger drift` or a change of the job tries again"
HISTORY = [
    stage(1, "Eval", "Completed", metrics={"accuracy": 0.75, "accuracy/7": 0.5}, serving={"accuracy": 0.25}),
    stage(1, "Deploy", "Completed", metrics={"accuracy": 0.75}, serving={"accuracy": 0.25}),
    stage(2, "Train", "Failed", reason=GIVEN_UP),
]


@pytest_asyncio.fixture
async def page(running: RunningPortal) -> httpx.Response:
    """Of a job whose second round has failed to train."""
    memory, live = running.memory, running.live
    await memory.node("edge1")
    document = {"apiVersion": API, "kind": "IncrementalLearningJob", "metadata": {"name": "drift"}, "spec": SPEC}
    await memory.cloud.apply([from_document(document)])
    await memory.set_status(
        "IncrementalLearningJob",
        "drift",
        phase="Running",
        round=2,
        stage="Train",
        state="Failed",
        counts={"train": 40, "heldOut": 10, "new": 7, "unlabelled": 5, "requests": 900, "hard": 60},
        reason=GIVEN_UP,
        serving={"name": "cnn", "digest": "ab" * 32, "version": 2, "round": 1},
        history=HISTORY,
        conditions=[
            {
                "type": "Degraded",
                "status": "True",
                "message": f"Train of round 2: {GIVEN_UP}",
                "lastTransitionTime": NOW,
            }
        ],
    )
    memory.beat("edge1")
    await running.until(
        lambda: [entry.phase for entry in live.entries["IncrementalLearningJob"].values()] == ["Running"]
    )
    await running.until(lambda: live.coordinator_life().known)
    async with running.browser() as browser:
        found = await browser.get(PAGE)
    assert found.status_code == 200, found.text
    return found


def words(page: httpx.Response) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.text)).split())


@pytest.mark.parametrize(
    "sentence",
    [
        "cnn version 2 abababababab",
        "40 to train on (7 new) , 10 held out, 5 unlabelled",
        "900, 60 hard",
        "Train Failed",
        "no space left",
        "1 Eval Completed 30 accuracy 0.75 accuracy 0.25",
    ],
)
async def test_the_page_of_a_job_says(page: httpx.Response, sentence: str):
    assert sentence in words(page)


async def test_a_job_that_waits_for_a_hand_runs_and_is_held(page: httpx.Response):
    assert "drift Running held" in words(page)


async def test_the_reason_of_the_newest_stage_stands_in_the_stages_once(page: httpx.Response):
    _, _, card = words(page).partition("newest first")
    assert card.partition("Workers")[0].count("no space left") == 1


async def test_the_overview_says_why_a_job_waits_for_a_hand(running: RunningPortal, page: httpx.Response):
    async with running.browser() as browser:
        found = await browser.get("/")
    assert f"drift task Train of round 2: {GIVEN_UP}" in words(found)


@pytest.mark.parametrize(
    ("status", "held"),
    [
        ({"state": "Failed", "reason": GIVEN_UP}, True),
        ({"state": "Failed", "reason": "no space left; tried again in 4 s"}, False),
        ({"state": "Starting", "reason": "tried again after: no space left"}, False),
        ({}, False),
    ],
    ids=["given up", "tried again", "at it", "nothing known"],
)
def test_a_job_is_held_when_no_timer_tries_its_stage_again(status: dict[str, Any], held: bool):
    assert job_page({"status": status})["held"] is held


async def test_the_page_of_a_job_holds_what_is_to_be_plotted(page: httpx.Response):
    told = re.search(r'data-plots="([^"]*)"', page.text)
    assert told is not None
    assert json.loads(unescape(told.group(1))) == plots(HISTORY)


def test_metrics_of_all_classes_are_plotted_for_the_new_model_and_the_one_that_served():
    found = plots(HISTORY)
    assert (found["x"], found["validated"], found["submitted"]) == ([1], {"accuracy": [0.75]}, {"accuracy": [0.25]})


async def test_a_job_stands_in_the_list_of_tasks_with_its_stage(running: RunningPortal, page: httpx.Response):
    async with running.browser() as browser:
        found = await browser.get("/tasks")
    assert "tries again Running 2 Train Failed" in words(found)


async def test_a_round_can_be_asked_for(running: RunningPortal, page: httpx.Response, admin: httpx.AsyncClient):
    answer = await admin.post(f"{JOBS}/drift/trigger")
    assert answer.status_code == 200, answer.text
    assert "1" in answer.json()["metadata"]["annotations"].values()
