"""The rounds of a task on its page: which ones trained, what the first and the last are; what an ended task offers."""

from __future__ import annotations

import re
from html import unescape

import httpx
import pytest
from memory_portal import RunningPortal, closed, started

from edgeai.events.catalogue import PhaseChanged, TrainingCompleted

PAGE = "/tasks/federatedtasks/digits"


async def shown(running: RunningPortal, phase: str, last: int) -> str:
    """The page of a task of three rounds that has closed rounds 0 to `last` and opened the next."""
    task = await running.memory.task(phase=phase)
    emit = running.memory.emit
    for number in range(last + 1):
        emit(started(task, number, "work1"), task)
        emit(closed(task, number, "work1"), task)
    sequence = emit(started(task, last + 1, "work1", "work2"), task)
    if phase == "Succeeded":
        emit(TrainingCompleted(task.metadata.uid, "ab" * 32, 8, last, {}), task)
        sequence = emit(PhaseChanged(task.metadata.uid, phase, "Trained"), task)
    live = running.live
    running.memory.beat()
    await running.until(lambda: live.entries["FederatedTask"] and live.coordinator_life().known)
    entry = live.entry("FederatedTask", "digits")
    await running.until(lambda: live.timeline(entry).last_sequence == sequence)
    async with running.browser() as browser:
        page: httpx.Response = await browser.get(PAGE)
    return page.text


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def line(page: str, number: int) -> str:
    return words(page.partition(f'id="round-{number}"')[2].partition("</summary>")[0].partition(">")[2])


async def test_only_rounds_that_trained_are_counted_and_the_others_say_what_they_are(running: RunningPortal) -> None:
    page = await shown(running, "Succeeded", 3)
    assert "Rounds 3 trained, newest first" in words(page)
    assert line(page, 0).startswith("0 Closed initial model 1 of 1")
    assert line(page, 3).startswith("3 Closed 1 of 1")
    assert line(page, 4).startswith("4 Ended final validation")


async def test_a_task_that_reached_its_target_ends_with_a_final_validation_too(running: RunningPortal) -> None:
    assert line(await shown(running, "Succeeded", 1), 2).startswith("2 Ended final validation")


async def test_a_round_that_is_open_is_not_called_a_validation_before_the_last_one(running: RunningPortal) -> None:
    page = await shown(running, "Running", 1)
    assert "Rounds 1 trained, newest first" in words(page)
    assert "final validation" not in page


@pytest.mark.parametrize(("phase", "offered"), [("Running", 2), ("Succeeded", 0)])
async def test_a_change_is_offered_only_where_it_would_be_taken(
    running: RunningPortal, phase: str, offered: int
) -> None:
    page = await shown(running, phase, 3)
    assert page.count('href="/apply?from=federatedtasks/digits"') == offered
    assert ("under another name" in words(page)) == (offered == 0)
