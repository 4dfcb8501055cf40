"""Server-sent events: what is there, then changes, each reader at its own pace, memory bounded."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from memory_portal import RunningPortal, started
from starlette.types import Message

from edgeai.portal.access import Role
from edgeai.portal.feed import Key
from edgeai.portal.streams import EventStream, Stream

V1 = "/api/v1"


@dataclass
class Reader:
    """Follows a stream by hand."""

    events: AsyncIterator[Any]

    async def next(self) -> tuple[str, str | None, dict[str, Any]]:
        async with asyncio.timeout(10):
            event = await anext(self.events)
        return event.event, event.id, json.loads(event.data)

    async def until(self, name: str) -> list[tuple[str, str | None, dict[str, Any]]]:
        """Everything up to the first event of this name."""
        found = [await self.next()]
        while found[-1][0] != name:
            found.append(await self.next())
        return found


def stream(running: RunningPortal, *topics: str, full: bool = False, **fields: Any) -> Stream:
    def wanted(key: Key) -> bool:
        return key.topic in topics

    return Stream(running.portal, running.app.state.rendered, wanted, full, **fields)


def reader(running: RunningPortal, *topics: str, **fields: Any) -> Reader:
    return Reader(stream(running, *topics, **fields).events())


async def test_a_reader_gets_what_is_there_then_synced_then_changes(running: RunningPortal) -> None:
    await running.memory.node("edge1")
    await running.until(lambda: running.live.entries["EdgeNode"])
    follower = reader(running, "EdgeNode")
    first = await follower.until("synced")
    await running.memory.node("edge2")
    name, number, data = await follower.next()
    assert [(event, found.get("name")) for event, _, found in first] == [("set", "edge1"), ("synced", None)]
    assert (name, data["name"]) == ("set", "edge2")
    assert int(number or 0) > first[-1][2]["sequence"]


async def test_a_reader_that_comes_back_gets_what_it_missed_once(running: RunningPortal) -> None:
    await running.memory.task()
    await running.until(lambda: running.live.entries["FederatedTask"])
    place = running.live.feed.sequence
    for number in range(5):
        await running.memory.set_status("FederatedTask", "digits", round=number)
    await running.memory.node("edge1")
    await running.until(lambda: running.live.entries["EdgeNode"])
    follower = reader(running, "FederatedTask", "EdgeNode", since=place)
    found = [await follower.next() for _ in range(2)]
    assert [data["name"] for _, _, data in found] == ["digits", "edge1"]
    assert found[0][2]["object"]["round"] == 4


async def test_a_brief_reader_is_told_what_has_changed_and_of_the_overview_what_it_is_now(
    running: RunningPortal,
) -> None:
    place = running.live.feed.sequence
    await running.memory.node("edge1")
    await running.until(lambda: running.live.entries["EdgeNode"])
    follower = reader(running, "EdgeNode", "Overview", since=place, brief=True)
    found = {data["topic"]: data for _, _, data in [await follower.next() for _ in range(2)]}
    assert found["EdgeNode"] == {"topic": "EdgeNode", "name": "edge1"}
    assert found["Overview"]["object"]["nodes"] == {"unknown": 1}


async def test_a_deletion_is_told(running: RunningPortal) -> None:
    await running.memory.task()
    await running.until(lambda: running.live.entries["FederatedTask"])
    follower = reader(running, "FederatedTask", since=running.live.feed.sequence)
    await running.memory.resources.delete(await running.memory.resources.get("FederatedTask", "digits"))
    name, _, data = await follower.next()
    assert (name, data) == ("deleted", {"topic": "FederatedTask", "name": "digits"})


async def test_the_numbers_of_what_was_there_are_not_given_before_all_of_it(running: RunningPortal) -> None:
    """A reader that breaks off in the middle must not come back as if it had seen everything."""
    for name in ("edge1", "edge2"):
        await running.memory.node(name)
    await running.until(lambda: len(running.live.entries["EdgeNode"]) == 2)
    found = await reader(running, "EdgeNode").until("synced")
    assert [number is None for _, number, _ in found] == [True, True, False]


async def test_a_full_stream_carries_resources_as_stored(running: RunningPortal) -> None:
    await running.memory.task()
    await running.until(lambda: running.live.entries["FederatedTask"])
    found = await reader(running, "FederatedTask", full=True).until("synced")
    assert found[0][2]["object"]["spec"]["trainingWorkers"][0]["name"] == "work1"


async def test_rounds_of_a_task_are_streamed(running: RunningPortal) -> None:
    task = await running.memory.task()
    await running.until(lambda: running.live.entries["FederatedTask"])
    follower = reader(running, "Timeline", since=running.live.feed.sequence)
    running.memory.emit(started(task, 1, "work1"), task)
    _, _, data = await follower.next()
    assert (data["name"], data["object"]["rounds"][0]["round"]) == ("FederatedTask/digits", 1)


async def test_a_stream_ends_when_the_portal_stops(running: RunningPortal) -> None:
    follower = reader(running, "Model", since=running.live.feed.sequence)
    waiting = asyncio.create_task(anext(follower.events, None))
    await asyncio.sleep(0)
    running.live.feed.close()
    assert await asyncio.wait_for(waiting, 10) is None


async def test_a_stream_of_somebody_who_was_shut_out_ends(
    running: RunningPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeai.portal.streams.PING_S", 0)
    follower = reader(running, "Overview", since=running.live.feed.sequence, still_allowed=lambda: False)
    async with asyncio.timeout(10):
        assert [event async for event in follower.events] == []


async def test_a_place_that_is_not_known_is_410(running: RunningPortal) -> None:
    async with running.client(Role.VIEWER) as client:
        answers = [
            await client.get(f"{V1}/watch", params={"since": "1"}),
            await client.get(f"{V1}/live", headers={"Last-Event-ID": "99999999999999999"}),
        ]
    assert [answer.status_code for answer in answers] == [410, 410]


async def test_what_the_browser_remembers_stands_over_the_address(running: RunningPortal) -> None:
    async with running.client(Role.VIEWER) as client:
        params, headers = {"since": str(running.live.feed.sequence)}, {"Last-Event-ID": "1"}
        assert (await client.get(f"{V1}/watch", params=params, headers=headers)).status_code == 410


@pytest.mark.parametrize("topics", ["Nothing", "Timeline", "Timeline:FederatedTask/../x", "Model,,Model", "Model "])
async def test_a_topic_that_does_not_exist_is_refused(running: RunningPortal, topics: str) -> None:
    async with running.client(Role.VIEWER) as client:
        assert (await client.get(f"{V1}/live", params={"topics": topics})).status_code == 400


async def test_more_streams_than_allowed_are_refused(running: RunningPortal) -> None:
    running.portal.streams.inside = running.portal.settings.max_streams
    async with running.client(Role.VIEWER) as client:
        assert (await client.get(f"{V1}/watch")).status_code == 503


async def test_fifty_readers_share_the_work_of_rendering(
    running: RunningPortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.memory.node("edge1")
    await running.until(lambda: running.live.entries["EdgeNode"])
    from edgeai.portal import streams

    rendered: list[Key] = []
    changed = streams.views.changed
    monkeypatch.setattr(
        streams.views, "changed", lambda live, key, full: (rendered.append(key), changed(live, key, full=full))[1]
    )
    for _ in range(50):
        await reader(running, "EdgeNode").until("synced")
    assert len(rendered) == 1


async def test_a_reader_that_takes_nothing_costs_no_memory(running: RunningPortal) -> None:
    await running.memory.task()
    await running.until(lambda: running.live.entries["FederatedTask"])
    stuck, asleep = asyncio.Event(), asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            stuck.set()
            await asleep.wait()

    async def receive() -> Message:
        await asleep.wait()
        return {"type": "http.disconnect"}

    running.portal.stream_opened()
    response = EventStream(stream(running, "FederatedTask", full=True))
    scope = {"type": "http", "method": "GET"}
    reading = asyncio.create_task(response(scope, receive, send))
    await stuck.wait()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    place = running.live.feed.sequence
    for number in range(2000):
        await running.memory.set_status("FederatedTask", "digits", round=number)
    await running.until(lambda: running.live.entry("FederatedTask", "digits").document()["status"]["round"] == 1999)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert running.live.feed.sequence > place + 2000
    assert grown < 1024 * 1024
    assert running.portal.streams.inside == 0
