"""What workers use: the coordinator remembers the latest and answers who asks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from coordinator_world import LEVEL, World, observed_worker, task, until, world

from edgeai.client import Cloud
from edgeai.events.address import Address
from edgeai.events.catalogue import NodeGone, Usage, UsageRow
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.resources.federated import FederatedTask
from edgeai.store.memory import MemoryBlobStore

BUSY = Usage(cpu_s=12.0, memory_bytes=1000, memory_limit_bytes=4000, pids=3, cpus=0.5)


class Asking:
    """A cloud with two workers that run, seen by a client."""

    def __init__(self, found: World) -> None:
        self.world = found
        self.cloud = Cloud(found.bus, found.resources, MemoryBlobStore(), found.facts)

    async def tell(self, node: str, worker: str, usage: Usage = BUSY) -> None:
        address = Address(node, usage.direction, usage.event_class, usage.kind, LEVEL, worker)
        await self.world.bus.publish(address, encode(Envelope(Header(node), usage)))

    async def rows(self, of: FederatedTask | None = None) -> dict[str, UsageRow]:
        return {row.worker: row for row in (await self.cloud.usage(of)).workers}


@pytest.fixture
async def asking() -> AsyncIterator[Asking]:
    async with world() as found, found.coordinator():
        await found.everything(task())
        await found.observe("edge0", observed_worker("work0"), generation=1)
        await found.observe("edge1", observed_worker("work1"), generation=1)

        async def run() -> bool:
            rows = (await found.task()).status.workers
            return [row.state for row in rows if row.role == "training"] == ["Running", "Running"]

        await until(run)
        yield Asking(found)


async def test_the_latest_of_every_worker_is_told_at_once(asking: Asking):
    await asking.tell("edge0", "work0", Usage(1.0, 1, 1, 1))
    await asking.tell("edge0", "work0")
    row = (await asking.rows())["work0"]
    assert (row.node, row.task, row.usage) == ("edge0", "digits", BUSY)
    assert row.age_s is not None


async def test_of_a_worker_that_was_not_heard_of_nothing_is_known(asking: Asking):
    row = (await asking.rows())["work1"]
    assert (row.usage, row.age_s) == (None, None)


async def test_of_a_node_that_is_lost_nothing_is_known_any_more(asking: Asking):
    await asking.tell("edge0", "work0")
    await asking.world.send("edge0", NodeGone())
    row = (await asking.rows())["work0"]
    assert row.usage is None
    assert row.age_s is not None


async def test_a_node_does_not_speak_for_workers_of_another(asking: Asking):
    await asking.tell("edge1", "work0")
    assert (await asking.rows())["work0"].usage is None


async def test_one_task_may_be_asked_for(asking: Asking):
    other = task("other", uid="f" * 32)
    assert await asking.rows(other) == {}
    assert set(await asking.rows(task())) >= {"work0", "work1"}


async def test_a_worker_that_has_ended_uses_nothing(asking: Asking):
    await asking.tell("edge0", "work0")
    await asking.world.observe("edge0", observed_worker("work0", "Failed"), generation=2)

    async def gone() -> bool:
        return "work0" not in await asking.rows()

    await until(gone)


async def test_what_has_no_room_in_an_answer_is_counted(asking: Asking, monkeypatch):
    monkeypatch.setattr("edgeai.coordinator.service._USAGE_ROWS", 1)
    before = await asking.cloud.usage()
    assert len(before.workers) == 1
    assert before.left_out > 0
