"""A playground per module: one cloud and some edges as real processes, started once, taken down at the end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from living_world import World, processes_in

from edgeai.bus.embedded import choose_edge_broker
from edgeai.cli.playground import Playground
from edgeai.errors import BinaryMissing
from edgeai.launcher import children


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Parametrise it indirectly with a broker; a module's EDGES says how many edges it wants (3)."""
    broker = getattr(request, "param", "auto")
    _require(broker)
    folder = tmp_path_factory.mktemp("world")
    crash_folder = tmp_path_factory.mktemp("crash")
    playground = Playground(folder, getattr(request.module, "EDGES", 3), broker)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EDGEAI_TEST", "1")
        environment.setenv("EDGEAI_CRASH_FOLDER", str(crash_folder))
        # Tests kill daemons again and again: the next start must not wait longer each time.
        environment.setattr(children, "STEADY_AFTER_S", 1.0)
        async with playground.running() as cloud:
            yield World(playground, cloud, crash_folder)
    left = [process.cmdline() for process in processes_in(folder)]
    assert left == [], "processes were left behind"


def _require(broker: str) -> None:
    try:
        choose_edge_broker(broker)  # type: ignore[arg-type]
    except BinaryMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
