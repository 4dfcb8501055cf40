"""A page stays open while the portal, the coordinator and the broker are restarted: it says so, and recovers by itself."""

from __future__ import annotations

import pytest
from browser_world import Visits, World

from edgeai.resources.manifest import dump_manifests

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
PROVOKED = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")


async def test_the_portal_is_restarted_under_an_open_page(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    found.allow(*PROVOKED, "status of 503")
    await found.open("/edges")
    await found.sees("#row-edge-edge1", "Ready")
    await world.portal.stop()
    await found.sees("#notice", "the portal does not answer")
    await found.sees("#row-edge-edge1 [data-state=unknown]", "Unknown")
    await found.shot("portal-away")
    await world.portal.start()
    await found.sees("#row-edge-edge1 [data-state=ready]", "Ready", 60)
    await found.page.locator("#notice").wait_for(state="hidden")


async def test_the_overview_of_a_portal_that_is_away_shows_no_number_as_current(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    found.allow(*PROVOKED, "status of 503")
    await found.sees("#tile-edge1 [data-state=ready]", "Ready")
    await world.portal.stop()
    await found.sees("#notice", "the portal does not answer")
    shown = await found.page.locator(".tiles .fleeting, .tiles .tally .fleeting, .count").all_inner_texts()
    await world.portal.start()
    assert set(shown) == {"?"}
    await found.sees("#tile-edge1 [data-state=ready]", "Ready", 60)


async def test_the_coordinator_is_restarted_under_an_open_page(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    manifest = dump_manifests(world.cluster.manifest("through", 2000))
    async with world.portal.client() as client:
        await client.post("/api/v1/apply", content=manifest, headers={"Content-Type": "application/yaml"})
    await found.open("/tasks/federatedtasks/through")
    await found.sees("h1 .badge", "Running")
    await world.cluster.coordinator.end()
    try:
        await found.sees("#notice", "Tasks stand still")
        await found.sees("h1 .badge[data-state=unknown]", "Unknown")
    finally:
        world.cluster.coordinator.begin()
    await found.sees("h1 .badge", "Running")
    await found.page.locator("#notice").wait_for(state="hidden")
    await found.page.get_by_role("button", name="Delete").click()
    await found.page.click("#confirm-yes")
    await found.page.wait_for_url("**/tasks")


async def test_the_broker_is_restarted_under_an_open_page(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    await found.sees("#tile-edge1 [data-state=ready]")
    world.broker.stop(kill=True)
    await found.sees("#notice", "the bus is away")
    await found.sees("#tile-edge1 [data-state=unknown]", "Unknown")
    await found.shot("broker-away")
    world.broker.start()
    await found.sees("#tile-edge1 [data-state=ready]", "Ready", 90)
    await found.page.locator("#notice").wait_for(state="hidden")


async def test_a_page_that_is_opened_while_the_cloud_is_away_shows_itself_when_it_is_back(
    world: World, visit: Visits
) -> None:
    found = await visit(world.portal.url, world.link())
    found.allow(*PROVOKED, "status of 503")
    world.broker.stop(kill=True)
    await world.portal.stop()
    await world.portal.start()  # knows nothing yet
    await found.open("/edges")
    await found.sees("h1", "Unavailable")
    world.broker.start()
    await found.sees("#row-edge-edge1", "Ready", 90)


async def test_a_session_that_has_ended_leads_back_to_the_login(world: World, visit: Visits) -> None:
    found = await visit(world.portal.url, world.link())
    await found.sees("#tile-edge1")
    for path in (world.portal.settings.state_dir / "sessions").iterdir():
        path.unlink()
    await found.sees("#notice a", "Log in again")
    assert await found.page.get_attribute("#notice a", "href") == "/login?next=%2F"
