"""An edge whose way to the cloud is cut, slow, one-way or reset goes on with what it holds and delivers on return."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio
from living_world import THREE, World, digest_of, kill, updates_of

from edgeai.bus.embedded import NatsCloud
from edgeai.launcher.children import Children, ChildSpec, as_parent
from edgeai.resources.base import Metadata
from edgeai.resources.dataset import Dataset, DatasetFormat, DatasetSpec
from edgeai.resources.federated import FederatedTask
from edgeai.resources.node import EdgeNode
from edgeai.testing import FaultProxy

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150)]

EDGES = 2
FAR = "edge3"
ROUNDS = 3


@dataclass(frozen=True)
class Wan:
    """A world with one more edge, which reaches the cloud only through a proxy."""

    world: World
    proxy: FaultProxy
    normal: FederatedTask


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wan(world: World) -> AsyncIterator[Wan]:
    cloud = NatsCloud(world.folder("cloud"))
    await cloud.add_edge(FAR, world.child("broker", "cloud"))
    data = world.folder(FAR) / "data" / "digits.npz"
    data.parent.mkdir(parents=True)
    shutil.copy(world.folder("edge1") / "data" / "digits.npz", data)
    spec = DatasetSpec(node_name=FAR, url=str(data), format=DatasetFormat.NPZ)
    async with FaultProxy("127.0.0.1", cloud.port) as proxy, Children(world.playground.state_dir) as children:
        argv = [sys.executable, "-m", "edgeai", "edge", "--node", FAR, "--state-dir", str(world.folder(FAR))]
        argv += ["--cloud", f"nats://127.0.0.1:{proxy.port}", "--credentials", str(cloud.edge_credentials_file(FAR))]
        argv += ["--allowed-root", str(data.parent)]
        await children.start(ChildSpec("edge", FAR, argv, world.folder(FAR) / "daemon.log", env=as_parent()))
        await world.cloud.wait("EdgeNode", FAR, lambda node: isinstance(node, EdgeNode) and node.status.ready, 30)
        await world.cloud.apply([Dataset(metadata=Metadata(name="dataset2"), spec=spec)])
        yield Wan(world, proxy, await world.train("undisturbed", rounds=ROUNDS))
        proxy.mend()
        for task in await world.cloud.list("FederatedTask"):
            await world.delete(task.metadata.name)
        await children.stop_all()


def _bridge(wan: Wan, number: signal.Signals) -> None:
    os.kill(wan.world.child("bridge", FAR), number)


FAULTS: dict[str, tuple[Callable[[Wan], None], Callable[[Wan], None]]] = {
    "cut": (lambda wan: wan.proxy.cut(), lambda wan: wan.proxy.mend()),
    "cut-upwards": (lambda wan: wan.proxy.cut(wan.proxy.up), lambda wan: wan.proxy.mend()),
    "cut-downwards": (lambda wan: wan.proxy.cut(wan.proxy.down), lambda wan: wan.proxy.mend()),
    "refused": (lambda wan: wan.proxy.refuse(), lambda wan: wan.proxy.mend()),
    "bridge-stopped": (lambda wan: _bridge(wan, signal.SIGSTOP), lambda wan: _bridge(wan, signal.SIGCONT)),
    "half-open": (lambda wan: wan.proxy.half_open(), lambda _: None),  # the bridge has to find out by itself
}


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=pytest.mark.slow) if fault == "half-open" else fault for fault in FAULTS]
)
async def test_an_update_made_without_wan_counts_on_return_and_the_result_is_the_same(wan: Wan, fault: str):
    world, name = wan.world, f"without-wan-{fault}"
    begin, end = FAULTS[fault]
    middle = asyncio.create_task(world.training(name, "work3", 2))
    task = await world.apply(name, rounds=ROUNDS, pause=0.5)
    await middle
    worker, daemon = world.worker(task, "work3"), world.daemon(FAR)
    begin(wan)
    await _exists((world.slot(task, "work3") / "updates" / "2.json").exists)
    kill(daemon)
    await _exists(lambda: world.daemon(FAR) != daemon)
    assert world.worker(task, "work3") == worker
    end(wan)
    task = await world.ended(name)
    assert digest_of(task) == digest_of(wan.normal)
    assert updates_of(task) == [len(THREE)] * ROUNDS
    assert all(row.restarts == 0 for row in task.status.workers)


async def test_a_slow_way_to_the_cloud_leaves_the_result_the_same(wan: Wan):
    lines = (wan.proxy.up, wan.proxy.down)
    for line in lines:
        line.delay_s = 0.25
    try:
        task = await wan.world.train("slow-wan", rounds=ROUNDS)
    finally:
        for line in lines:
            line.delay_s = 0
    assert digest_of(task) == digest_of(wan.normal)
    assert updates_of(task) == [len(THREE)] * ROUNDS


async def _exists(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.05)
