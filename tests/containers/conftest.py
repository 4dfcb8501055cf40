"""Containers under a real engine: run a script in one, and leave none behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from edgeai.launcher.base import MIB, ContainerSpec, ExitRecord, LaunchSpec, Running
from edgeai.launcher.docker import DockerLauncher

sys.path.append(str(Path(__file__).parents[1] / "e2e"))  # living_world: the same world, with other workers

BASE = ContainerSpec("python:3.11-slim-bookworm", memory_bytes=128 * MIB, pids=64)
ONE_AFTER_THE_OTHER = """
import json, subprocess, sys
for name, script in {scripts!r}.items():
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    print(json.dumps([name, done.stdout + done.stderr]), flush=True)
"""


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
        return await _ended(launcher, spec(script, **options))

    return to_its_end


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run_each(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Awaitable[dict[str, str]]]:
    """Runs scripts in one container, each as a process of its own, and returns what each has printed."""

    async def to_their_end(scripts: Mapping[str, str], **options: object) -> dict[str, str]:
        launcher, slot = DockerLauncher("edge1", url=engine), tmp_path_factory.mktemp("each") / "slot"
        argv = ["python", "-c", ONE_AFTER_THE_OTHER.format(scripts=dict(scripts))]
        try:
            outcome = await _ended(
                launcher,
                LaunchSpec("w", slot, argv, container=replace(BASE, **options)),  # type: ignore[arg-type]
            )
        finally:
            await launcher.remove(slot)
        return dict(json.loads(line) for line in outcome.log.splitlines())

    return to_their_end


async def _ended(launcher: DockerLauncher, spec: LaunchSpec) -> Outcome:
    running = await launcher.start(spec)
    async with asyncio.timeout(60):
        record = await launcher.wait(running)
    return Outcome(record, (await launcher.read_log(spec.slot_dir, -64 * 1024)).text.decode())


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
