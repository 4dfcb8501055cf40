"""A whole world on one machine: one cloud and N edges as processes, in one state directory.

    <state-dir>/cloud/            the cloud's daemon and its broker
    <state-dir>/edge1/ ...        an edge's daemon, broker, bridge, data and slots
    <state-dir>/run/              who runs, so that everything can be stopped or adopted

`up` keeps it, `demo` runs one training in it. Every part is the one that runs on many machines; only this wiring is local.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from edgeai.bus.embedded import NatsCloud, choose_edge_broker
from edgeai.cli.daemons.options import LauncherChoice
from edgeai.cli.digits import write_shards
from edgeai.cli.naming import counted
from edgeai.cli.signals import finish
from edgeai.cli.takedown import TEMPORARY_VARIABLE, take_down
from edgeai.client import TASK_KINDS, Cloud, connect
from edgeai.errors import BusUnavailable, EdgeaiError, LaunchError
from edgeai.events.address import CLOUD
from edgeai.launcher.children import Children, ChildSpec, as_parent, stop_all_recorded
from edgeai.resources.base import Metadata, instant
from edgeai.resources.dataset import Dataset, DatasetFormat, DatasetSpec
from edgeai.resources.node import EdgeNode
from edgeai.settings import Context, shipped

READY_S = 60.0
DELETE_S = 15.0
GRACE_S = 5.0

BrokerChoice = Literal["auto", "mosquitto", "nats"]


@dataclass(frozen=True, slots=True)
class Playground:
    """What was asked for. Edges are named edge1 to edgeN. `temporary`: the state directory goes with it.

    `note` is called with a line for a person when the end begins.
    """

    state_dir: Path
    edges: int
    broker: BrokerChoice = "auto"
    temporary: bool = False
    note: Callable[[str], None] = lambda _: None
    launcher: LauncherChoice = "process"

    @property
    def nodes(self) -> list[str]:
        return [f"edge{number}" for number in range(1, self.edges + 1)]

    def folder(self, node: str) -> Path:
        return self.state_dir / node

    def context(self) -> Context:
        """How other commands find this cloud."""
        broker = NatsCloud(self.folder(CLOUD), edges=self.nodes)
        return Context(broker.url, str(broker.credentials_file("operator")), str(self.state_dir))

    def broker_urls(self) -> dict[str, str]:
        kind = choose_edge_broker(self.broker)
        return {node: kind(self.folder(node), node).url for node in self.nodes}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Cloud]:
        """Start everything, wait until every node is ready, and stop it all at the end, whatever happens.

        What an earlier life of the same state directory has left running is stopped first, its workers excepted: the
        controllers find them again.

        Raises:
            LaunchError: a part did not come up; says which and where its log is.
        """
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        choose_edge_broker(self.broker)  # a missing program is said before anything starts
        began, children = instant(datetime.now(UTC)), Children(self.state_dir)
        try:
            await stop_all_recorded(self.state_dir)
            await self._start(children)
            context = self.context()
            async with connect(context.url, credentials_file=context.credentials_file, service="edgeai-cli") as cloud:
                await self._wait_ready(cloud, began)
                await cloud.apply(self._datasets())
                try:
                    yield cloud
                finally:
                    await self._delete_tasks(cloud)
        finally:
            await finish(self._stop(children))

    async def _start(self, children: Children) -> None:
        cloud = NatsCloud(self.folder(CLOUD), edges=self.nodes)
        cloud.release()
        program = [sys.executable, "-m", "edgeai"]
        argv = [*program, "cloud", "--state-dir", str(self.folder(CLOUD))]
        argv += [part for node in self.nodes for part in ("--edge", node)]
        argv += ["--launcher", self.launcher]
        await self._child(children, "cloud", CLOUD, argv)
        await asyncio.to_thread(
            write_shards, shipped("config/examples/digits.npz"), [self.folder(node) / "data" for node in self.nodes]
        )
        for node in self.nodes:
            argv = [*program, "edge", "--node", node, "--state-dir", str(self.folder(node)), "--broker", self.broker]
            argv += ["--cloud", cloud.url, "--credentials", str(cloud.edge_credentials_file(node))]
            argv += ["--allowed-root", str(self.folder(node) / "data"), "--launcher", self.launcher, "--http-port", "0"]
            await self._child(children, "edge", node, argv)
        await cloud.ready(READY_S)

    async def _child(self, children: Children, role: str, node: str, argv: list[str]) -> None:
        env = as_parent()
        if self.temporary:
            env[TEMPORARY_VARIABLE] = str(self.state_dir)
        await children.start(ChildSpec(role, node, argv, self.folder(node) / "daemon.log", env=env))

    async def _wait_ready(self, cloud: Cloud, began: str) -> None:
        missing = {*self.nodes, CLOUD}
        try:
            async with asyncio.timeout(READY_S):
                while missing:
                    try:
                        await _see_ready(cloud, missing, began)
                    except BusUnavailable:  # the store is not made yet
                        await asyncio.sleep(0.1)
        except TimeoutError as error:
            where = self.folder(min(missing)) / "daemon.log"
            raise LaunchError(f"{', '.join(sorted(missing))} did not come up in {READY_S:g} s; see {where}") from error

    def _datasets(self) -> list[Dataset]:
        return [
            Dataset(
                metadata=Metadata(name=f"dataset{number}"),
                spec=DatasetSpec(
                    node_name=node, url=str(self.folder(node) / "data" / "digits.npz"), format=DatasetFormat.NPZ
                ),
            )
            for number, node in enumerate(self.nodes)
        ]

    async def _delete_tasks(self, cloud: Cloud) -> None:
        """Delete every task and wait until its workers are gone; what cannot be reached is stopped with its daemon."""
        try:
            async with asyncio.timeout(DELETE_S):
                there = [(kind, task.name) for kind in TASK_KINDS for task in await cloud.list(kind)]
                self.note(f"stopping: deleting {counted(len(there), 'task')}" if there else "stopping")
                for kind, name in there:
                    await cloud.delete(kind, name)
                for kind, name in there:
                    await cloud.wait(kind, name, lambda task: task is None)
        except (TimeoutError, EdgeaiError):
            return

    async def _stop(self, children: Children) -> None:
        daemons = [child.spec for child in children]
        await asyncio.gather(*(children.stop(spec.role, spec.node, GRACE_S) for spec in daemons))
        await take_down(self.state_dir)


async def _see_ready(cloud: Cloud, missing: set[str], began: str) -> None:
    """Take nodes out of `missing` as they report; return when there is none left. Reports before `began` are history."""
    async with cloud.watch("EdgeNode") as changes:
        async for change in changes:
            if change is not None and isinstance(change[2], EdgeNode):
                status = change[2].status
                if status.ready and (status.last_seen or "") >= began:
                    missing.discard(change[1])
            if not missing:
                return
