"""The pages over 1,000 edges, 200 tasks and 20 rounds a second."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from browser_world import Visits

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
PROGRAM = Path(__file__).parents[1] / "portal" / "loaded_portal.py"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("loaded")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(folder), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        told: dict[str, str] = {}
        async with asyncio.timeout(60):
            while "url" not in told:
                line = await process.stdout.readline()
                told = json.loads(line) if line.startswith(b"{") else told
            async with httpx.AsyncClient(base_url=told["url"], trust_env=False) as client:
                while (await client.get("/readyz")).status_code != 200:
                    await asyncio.sleep(0.1)
        yield told
    finally:
        process.terminate()
        await process.communicate()


async def entered(visit: Visits, told: dict[str, str]) -> Any:
    found = await visit(told["url"])
    await found.open("/login")
    await found.page.fill("#token", told["token"])
    await found.page.get_by_role("button", name="Log in").click()
    await found.sees("#live")
    return found


async def test_the_overview_of_a_large_cloud_counts_all_and_shows_the_worst_first(
    loaded: dict[str, str], visit: Visits
) -> None:
    found = await entered(visit, loaded)
    await found.sees(".tile", "/ 1\u202f000 ready")
    assert await found.page.locator(".board li").count() == 240
    assert await found.page.locator("#live .list tbody tr").count() == 12
    await found.shot("large")


async def test_a_large_list_comes_in_pages_and_can_be_narrowed(loaded: dict[str, str], visit: Visits) -> None:
    found = await entered(visit, loaded)
    await found.open("/edges")
    rows = found.page.locator("[data-row]")
    first = await rows.first.inner_text()
    assert await rows.count() == 100
    await found.page.get_by_role("link", name="Next page").click()
    await found.page.wait_for_url("**/edges?after=*")
    assert (await rows.count(), await rows.first.inner_text() == first) == (100, False)
    await found.page.fill("#find", "edge99")
    await found.page.wait_for_function("() => document.querySelectorAll('[data-row]').length === 11")
    assert await found.page.locator("#find").input_value() == "edge99", "what is typed survives what arrives"


async def test_a_page_of_a_busy_cloud_follows_its_task(loaded: dict[str, str], visit: Visits) -> None:
    found = await entered(visit, loaded)
    await found.open("/tasks/federatedtasks/task7")
    newest = found.page.locator(".round").first
    before = await newest.get_attribute("id")
    await found.page.wait_for_function("before => document.querySelector('.round').id !== before", arg=before)
    await found.page.locator("figure[data-chart=metric-accuracy] canvas").wait_for()


async def test_a_large_list_is_narrowed_walked_and_opened_by_keyboard(loaded: dict[str, str], visit: Visits) -> None:
    found = await entered(visit, loaded)
    await found.open("/edges")
    keyboard = found.page.keyboard
    await keyboard.press("/")
    await keyboard.type("edge99")
    await found.page.wait_for_function("() => document.querySelectorAll('[data-row]').length === 11")
    await keyboard.press("Escape")
    names = await found.page.locator("[data-row] th a").all_inner_texts()
    focused = []
    for key in ("j", "j", "k"):
        await keyboard.press(key)
        focused.append(await found.page.evaluate("document.activeElement.textContent"))
    assert focused == [names[0], names[1], names[0]]
    await keyboard.press("Enter")
    await found.page.wait_for_url(f"**/edges/{names[0]}")
