"""What many open windows share: made once for each change, never too old, and nobody's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from memory_portal import RunningPortal

from edgeai.portal.access import Role
from edgeai.portal.feed import Key
from edgeai.portal.rendering import SHARED_LIMIT, SHARED_S, Shared, Templates
from edgeai.portal.streams import Rendered

WINDOWS = 40
EDGE = Key("EdgeNode", "edge1")


class World:
    """A sequence, a clock, and what is made of them."""

    def __init__(self) -> None:
        self.sequence, self.now = 1, 100.0
        self.shared = Shared(lambda: self.sequence, lambda: self.now)

    def making(self, text: str) -> Callable[[], Awaitable[str]]:
        async def make() -> str:
            await asyncio.sleep(0)
            return text

        return make

    async def read(self, text: str, seen: int = 0, key: str = "page") -> str:
        return await self.shared.text(key, seen, self.making(text))


async def test_who_asks_while_it_is_made_waits_for_it() -> None:
    world = World()
    found = await asyncio.gather(*(world.read(f"made for {number}") for number in range(WINDOWS)))
    assert set(found) == {"made for 0"}


async def test_who_has_heard_of_a_later_change_is_not_shown_what_is_older() -> None:
    world = World()
    await world.read("before")
    world.sequence = 2
    assert [await world.read("after", seen=1), await world.read("after", seen=2)] == ["before", "after"]


async def test_what_is_half_a_second_old_is_made_again() -> None:
    world = World()
    await world.read("old")
    world.now += SHARED_S
    assert await world.read("new") == "new"


async def test_what_cannot_be_made_fails_for_all_who_wait() -> None:
    world = World()

    async def fail() -> str:
        await asyncio.sleep(0)
        raise LookupError

    found = await asyncio.gather(*(world.shared.text("page", 0, fail) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in found] == [LookupError] * 3


async def test_what_was_made_is_not_kept_longer_or_in_larger_numbers_than_it_is_of_use() -> None:
    world = World()
    for number in range(3 * SHARED_LIMIT):
        await world.read("text", key=str(number))
    most = len(world.shared)
    world.now += SHARED_S
    await world.read("text")
    assert most <= SHARED_LIMIT
    assert len(world.shared) == 1


# --- in a portal


async def windows(running: RunningPortal, client: httpx.AsyncClient, count: int) -> tuple[int, set[str]]:
    """So many windows read the list of edges again at one change. How often it was made, and what they were shown."""
    running.live.feed.touch(EDGE)
    before, headers = running.app.state.shared.count, {"X-Part": "live", "X-Seen": str(running.live.feed.sequence)}
    answers = await asyncio.gather(*(client.get("/edges", headers=headers) for _ in range(count)))
    return running.app.state.shared.count - before, {answer.raise_for_status().text for answer in answers}


async def test_a_page_is_made_once_for_a_change_however_many_windows_show_it(running: RunningPortal) -> None:
    await running.memory.node("edge1")
    await running.until(lambda: running.live.entries["EdgeNode"])
    running.app.state.shared.clock = lambda: 0.0  # however slow this machine is
    async with running.client(Role.VIEWER) as client:
        one, _ = await windows(running, client, 1)
        many, shown = await windows(running, client, WINDOWS)
    assert one == many == 1
    assert len(shown) == 1


async def test_a_stream_is_written_once_for_a_change_however_many_follow_it(running: RunningPortal) -> None:
    await running.memory.node("edge1")
    await running.until(lambda: running.live.entries["EdgeNode"])
    rendered = Rendered(running.live, clock=lambda: 0.0)
    running.live.feed.touch(EDGE)
    number = running.live.feed.sequence
    texts = {id(rendered.data(EDGE, number, full=False)) for _ in range(WINDOWS)}
    assert len(texts) == 1


async def test_windows_of_another_role_are_not_shown_its_buttons(running: RunningPortal) -> None:
    await running.memory.task()
    await running.until(lambda: running.live.entries["FederatedTask"])
    headers = {"X-Part": "live"}
    async with running.client(Role.OPERATOR) as operator, running.client(Role.VIEWER) as viewer:
        with_buttons = await operator.get("/tasks/federatedtasks/digits", headers=headers)
        without = await viewer.get("/tasks/federatedtasks/digits", headers=headers)
    assert 'data-action="DELETE"' in with_buttons.text
    assert "data-action" not in without.text


async def test_every_window_gets_the_token_of_its_own_session(running: RunningPortal) -> None:
    headers = {"X-Part": "live"}
    async with running.browser() as one, running.browser() as other:
        answers = [await browser.get("/edges", headers=headers) for browser in (one, other)]
    first, second = ([*answer.text.partition("\n")] for answer in answers)
    assert first[0] != second[0]
    assert 'name="csrf-token"' in first[0]
    assert first[2] == second[2]


async def test_a_window_is_sent_only_what_it_reads(running: RunningPortal) -> None:
    async with running.client(Role.VIEWER) as client:
        part = (await client.get("/edges", headers={"X-Part": "live"})).text
    assert [f'id="{name}"' in part for name in ("live", "notice", "health")] == [True] * 3
    assert ("<header" in part, "<script" in part) == (False, False)


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{{ d.name }}", "edge1"),
        ("{{ d.nothing }}", ""),
        ("{{ d.nothing is defined }}", "False"),
        ("{% for key, _ in d.items() %}{{ key }}{% endfor %}", "namevalues"),
    ],
    ids=["key", "missing", "undefined", "method before key"],
)
def test_templates_read_keys_of_dictionaries_and_their_methods(template: str, shown: str) -> None:
    assert Templates().from_string(template).render({"d": {"name": "edge1", "values": 3}}) == shown
