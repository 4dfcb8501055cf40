"""Containers under a real engine: run a script in one, and leave none behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgeai.launcher.base import MIB, ContainerSpec, ExitRecord, LaunchSpec, Running
from edgeai.launcher.docker import DockerLauncher

sys.path.append(str(Path(__file__).parents[1] / "e2e"))  # living_world: the same world, with other workers

BASE = ContainerSpec("python:3.11-slim-bookworm", memory_bytes=128 * MIB, pids=64)


@dataclass(frozen=True)
class Outcome:
    record: ExitRecord
    log: str


@pytest.fixture
def launcher(engine: str) -> DockerLauncher:
    return DockerLauncher("edge1", url=engine)


@pytest.fixture
async def slot(tmp_path: Path, launcher: DockerLauncher) -> AsyncIterator[Path]:
    yield tmp_path / "slot"
    await launcher.remove(tmp_path / "slot")


@pytest.fixture
def spec(slot: Path) -> Callable[..., LaunchSpec]:
    def make(script: str, **options: object) -> LaunchSpec:
        return LaunchSpec("w", slot, ["python", "-c", script], container=replace(BASE, **options))  # type: ignore[arg-type]

    return make


@pytest.fixture
def waiting(launcher: DockerLauncher, slot: Path, spec: Callable[..., LaunchSpec]) -> Callable[..., Awaitable[Running]]:
    """Starts a worker that waits for a signal; returns when it does."""

    async def start(**options: object) -> Running:
        running = await launcher.start(spec("import signal; print('waiting', flush=True); signal.pause()", **options))
        async with asyncio.timeout(20):
            while b"waiting" not in (await launcher.read_log(slot)).text:
                await asyncio.sleep(0.01)
        return running

    return start


@pytest.fixture
def run(launcher: DockerLauncher, slot: Path, spec: Callable[..., LaunchSpec]) -> Callable[..., Awaitable[Outcome]]:
    """Runs a script to its end."""

    async def to_its_end(script: str, **options: object) -> Outcome:
        running = await launcher.start(spec(script, **options))
        async with asyncio.timeout(60):
            record = await launcher.wait(running)
        return Outcome(record, (await launcher.read_log(slot, -64 * 1024)).text.decode())

    return to_its_end


@dataclass(frozen=True)
class Client:
    """The `docker` command, to do what somebody else on this machine might."""

    url: str

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            ["docker", "-H", self.url, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.strip()


@pytest.fixture
def docker(engine: str) -> Client:
    return Client(engine)


@pytest.fixture
def record(slot: Path) -> Callable[[], dict[str, object]]:
    """What the launcher remembers of the slot."""
    return lambda: json.loads((slot / ".container/container.json").read_text())
