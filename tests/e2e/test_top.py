"""What workers that are processes use, and how brokers and bridges do, can be seen, with its age, while they run."""

from __future__ import annotations

import asyncio

import pytest
from living_world import THREE, World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

EDGES = 1


async def test_what_every_process_uses_is_known_soon_after_its_start(world: World):
    task = await world.apply("seen", THREE[:1], rounds=100, pause=0.2)
    await world.in_round("seen", 1)
    async with asyncio.timeout(30):
        while True:
            rows = {row.worker: row for row in (await world.cloud.usage(task)).workers}
            if len(rows) == 2 and all(row.usage and row.usage.cpus is not None for row in rows.values()):
                break
            await asyncio.sleep(0.1)
    await world.delete("seen")

    usage = rows["work1"].usage
    assert usage.memory_bytes > 10 * 1024**2
    assert (usage.pids > 0, usage.memory_limit_bytes) == (True, 0)
    assert (await world.cloud.usage()).workers == ()


async def test_how_broker_bridge_and_coordinator_do_is_known_of_a_real_edge(world: World):
    async with asyncio.timeout(30):
        while True:
            answer = await world.cloud.health("edge1")
            [edge] = answer.nodes
            beat, told, coordinator = edge.heartbeat, edge.bridging, answer.coordinator and answer.coordinator.heartbeat
            if beat and told and coordinator and told.up.forwarded and coordinator.store_bytes:
                break
            await asyncio.sleep(0.1)

    assert (beat.broker_silent, beat.broker_s is not None) == (False, True)
    assert (told.edge_connected, told.up.dropped_refused, told.down.dropped_refused) == (True, 0, 0)
    assert (coordinator.broker_s is not None, coordinator.waiting is not None) == (True, True)
