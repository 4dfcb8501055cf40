"""A node whose engine is not there yet: workers wait with that as their reason, and start when it answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from caged_world import caged, reason
from living_world import Worker, updates_of

pytestmark = [pytest.mark.containers, pytest.mark.timeout(180)]
WORKERS = (Worker("work1", "edge1", "dataset0"),)


async def test_workers_wait_for_an_engine_and_are_not_blamed(engine: str, tmp_path: Path):
    socket = tmp_path / "docker.sock"
    async with caged(f"unix://{socket}", tmp_path, edges=1) as world:
        await world.apply("early", WORKERS, rounds=2)
        waiting = await reason(world, "early", "work1", "no Docker engine answers")
        socket.symlink_to(engine.removeprefix("unix://"))
        task = await world.ended("early")
        await world.delete("early")

    assert [row.restarts for row in waiting.status.workers] == [0, 0]
    assert updates_of(task) == [1, 1]
