"""What workers use, as a person sees it on the page of a task and of an edge."""

from __future__ import annotations

import re

import httpx
import pytest
from memory_portal import RunningPortal, worker_row

from edgeai.events.catalogue import Usage

BUSY = Usage(cpu_s=12.0, memory_bytes=5_000_000, memory_limit_bytes=2_000_000_000, pids=37, cpus=0.5)
PAGES = ["/tasks/federatedtasks/digits", "/edges/edge1"]


def cells(page: httpx.Response, worker: str) -> dict[str, str]:
    """The text of what a worker uses, by the label of its cell."""
    row = re.search(rf'<th scope="row">{worker}.*?</tr>', page.text, re.DOTALL)
    assert row is not None, page.text
    found = re.findall(r'<td data-label="((?:CPU|Memory|Processes)[^"]*)"[^>]*>(.*?)</td>', row.group(), re.DOTALL)
    return {name: re.sub(r"<[^>]*>", "", text).strip() for name, text in found}


@pytest.mark.parametrize("address", PAGES)
async def test_a_row_shows_what_its_worker_uses_or_that_nobody_knows(running: RunningPortal, address: str):
    memory, live = running.memory, running.live
    await memory.node("edge1")
    task = await memory.task(phase="Running", workers=[worker_row("work1", "edge1"), worker_row("work2", "edge1")])
    await running.until(lambda: live.entries["FederatedTask"] and live.entries["EdgeNode"])
    memory.beat("edge1")
    memory.pass_by(BUSY, "edge1", task, "work1")
    entry = live.entry("FederatedTask", "digits")
    await running.until(lambda: live.usage(entry, "work1", "edge1")["known"] and live.coordinator_life().known)

    async with running.browser() as browser:
        page = await browser.get(address)

    busy = cells(page, "work1")
    assert (busy["CPU"], busy["Memory"], busy["Processes"]) == ("0.50", "5.0 MB of 2.0 GB", "37")
    assert cells(page, "work2") == {"CPU, memory, processes": "unknown, nothing was heard yet"}
