"""What workers that are processes use, and how brokers and bridges do, can be seen, with its age, while they run."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from living_world import THREE, World

from edgeai.settings import write_context

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


async def test_the_command_line_shows_nothing_as_current_while_the_coordinator_is_stopped(world: World, tmp_path: Path):
    await world.apply("held", THREE[:1], rounds=100, pause=0.2)
    await world.in_round("held", 1)
    daemon = world.daemon("cloud")
    os.kill(daemon, signal.SIGSTOP)
    try:
        tasks = await asyncio.to_thread(_edgeai, world, tmp_path, "get", "tasks")
        nodes = await asyncio.to_thread(_edgeai, world, tmp_path, "get", "nodes")
    finally:
        os.kill(daemon, signal.SIGCONT)
    again = await asyncio.to_thread(_edgeai, world, tmp_path, "describe", "task", "held")
    await world.delete("held")

    assert ("Unknown" in tasks.stdout, "Running" in tasks.stdout) == (True, False)
    assert ("Unknown" in nodes.stdout, "True" in nodes.stdout) == (True, False)
    assert tasks.stderr.startswith("edgeai: the coordinator did not answer within 2 s, its last sign is ")
    assert ("Running" in again.stdout, "Unknown" in again.stdout, again.stderr) == (True, False, "")


def _edgeai(world: World, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    write_context(world.playground.context(), folder / "context.json")
    done = subprocess.run(
        [sys.executable, "-m", "edgeai", *arguments],
        env={**os.environ, "EDGEAI_CONTEXT": str(folder / "context.json"), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
