"""Fixtures of the portal's unit tests; what they are made of is in `memory_portal`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from memory_portal import RunningPortal, running_portal

from edgeai.portal.access import Role


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RunningPortal]:
    async with running_portal(tmp_path / "portal") as found:
        yield found


@pytest.fixture
async def admin(running: RunningPortal) -> AsyncIterator[httpx.AsyncClient]:
    async with running.client(Role.ADMIN) as client:
        yield client
