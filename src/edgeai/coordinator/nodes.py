"""The nodes as the coordinator knows them: who was heard of when, and what each observes.

A node registers itself by being heard of. A silent one is unknown, with the time of its last sign of life, never shown as its
last good value. Intervals run on the monotonic clock; instants are for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from edgeai.coordinator.journal import put
from edgeai.errors import BusError, ManifestError, NotFound
from edgeai.events.address import CLOUD
from edgeai.events.catalogue import DatasetObserved, InferenceObserved, JobObserved, Observed, WorkerObserved
from edgeai.lifecycle.node import Heard, Lost, Node, NodeEvent, Presence, Tell, Ticked, Told, step
from edgeai.resources.base import Metadata
from edgeai.resources.conditions import ConditionStatus, ConditionType, set_condition
from edgeai.resources.node import EdgeNode
from edgeai.store.base import ResourceStore
from edgeai.store.identity import new_uid

log = structlog.get_logger()

MAX_INFO, MAX_TEXT = 50, 200
"""Entries and characters of what a node says about itself."""
KIND = "EdgeNode"


class Nodes:
    """All nodes. The resources `EdgeNode` are written when something a person cares about changes, and once a minute, not
    per heartbeat.

    What a sign of life or its absence means is decided in `lifecycle.node`.
    """

    def __init__(self, resources: ResourceStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._resources, self._clock, self._started = resources, clock, clock()
        self._nodes: dict[str, Node] = {CLOUD: Node(CLOUD, self._started)}
        self._unwritten: dict[str, Tell] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._nodes)

    def silent(self) -> frozenset[str]:
        """Nodes whose state is unknown: lost by their broker, or absent."""
        return self._with(Presence.LOST, Presence.ABSENT)

    def absent(self) -> frozenset[str]:
        """Nodes that nobody waits for. One whose controller restarts is not absent."""
        return self._with(Presence.ABSENT)

    def workers_of(self, task_uid: str) -> Mapping[str, WorkerObserved]:
        """worker -> what its node has observed, for nodes that are not absent."""
        return {
            worker.worker: worker
            for node in self._nodes.values()
            if node.observed is not None and node.presence is not Presence.ABSENT
            for worker in node.observed.workers
            if worker.task_uid == task_uid
        }

    def job(self, name: str, task_uid: str) -> JobObserved | None:
        """What a node that is not absent observes of a job."""
        node = self._nodes.get(name)
        if node is None or node.observed is None or node.presence is Presence.ABSENT:
            return None
        return next((job for job in node.observed.jobs if job.task_uid == task_uid), None)

    def inference(self, name: str, task_uid: str) -> dict[str, InferenceObserved]:
        """worker -> what a node that is not absent observes of the workers of a joint inference service on it."""
        node = self._nodes.get(name)
        if node is None or node.observed is None or node.presence is Presence.ABSENT:
            return {}
        return {each.worker: each for each in node.observed.inference if each.task_uid == task_uid}

    def last_seen(self, name: str) -> str:
        """The instant of its last sign of life; empty: none since this coordinator started."""
        return self._nodes[name].last_seen if name in self._nodes else ""

    def blobs_in_library(self) -> frozenset[str]:
        """Digests of the wanted blobs that the cloud node has brought."""
        observed = self._nodes[CLOUD].observed
        return frozenset(observed.blobs) if observed else frozenset()

    def lost_blobs(self) -> dict[str, str]:
        """Digests of the wanted blobs that the cloud node can never bring, and why."""
        observed = self._nodes[CLOUD].observed
        return dict(observed.lost) if observed else {}

    def is_observed(self, name: str) -> bool:
        """Its observed document has arrived since this coordinator started."""
        return name in self._nodes and self._nodes[name].observed is not None

    def taken(self, name: str) -> int:
        """The generation of the desired document that the node has taken up; 0: not known."""
        observed = self._nodes[name].observed if name in self._nodes else None
        return observed.desired_generation if observed else 0

    def dataset(self, node: str, name: str) -> DatasetObserved | None:
        observed = self._nodes[node].observed if node in self._nodes else None
        return next((item for item in observed.datasets if item.name == name), None) if observed else None

    def known(self, name: str, document: Mapping[str, Any] | None) -> None:
        """An EdgeNode resource was read or deleted."""
        if document is not None:
            self._nodes.setdefault(name, Node(name, self._started))
        elif name != CLOUD:
            # One that is still there registers itself anew with its next sign of life.
            self._nodes.pop(name, None)

    async def heard(self, name: str, now: str) -> bool:
        """A sign of life; True if the node was new, lost or absent before."""
        return await self._step(name, Heard(self._clock(), now), now)

    async def observed(self, name: str, observed: Observed, now: str) -> None:
        await self._step(name, Told(observed, self._clock(), now), now)

    async def gone(self, name: str, now: str) -> None:
        """Its broker has lost the controller."""
        await self._step(name, Lost(), now)

    async def silenced(self, now: str) -> bool:
        """Look who has become absent since the last call."""
        moment = self._clock()
        changed = [await self._step(name, Ticked(moment), now) for name in list(self._nodes)]
        await self._write(now)
        return any(changed)

    async def _step(self, name: str, event: NodeEvent, now: str) -> bool:
        """Advance a node and write what it tells; True if it told something new."""
        before = self._nodes.get(name) or Node(name, self._started)
        self._nodes[name], commands = step(before, event)
        news = False
        for command in commands:
            assert isinstance(command, Tell)
            self._unwritten[name] = command
            news = news or command.news
        if commands:
            await self._write(now)
        return news

    def _with(self, *presences: Presence) -> frozenset[str]:
        return frozenset(node.name for node in self._nodes.values() if node.presence in presences)

    async def _write(self, now: str) -> None:
        """Write what is not written yet; while the store is away it stays for the next call."""
        for name, told in list(self._unwritten.items()):
            try:
                await self._write_one(self._nodes.get(name) or Node(name, self._started), told, now)
            except BusError as error:
                log.warning("node_not_written", node=name, cause=str(error))
                return
            if self._unwritten.get(name) == told:
                del self._unwritten[name]

    async def _write_one(self, node: Node, told: Tell, now: str) -> None:
        try:
            resource = EdgeNode.from_document((await self._resources.get(KIND, node.name)).document)
        except (NotFound, ManifestError):
            resource = EdgeNode(metadata=Metadata(name=node.name, uid=new_uid(), generation=1, creation_timestamp=now))
        ready: ConditionStatus = "True" if told.status == "True" else "Unknown"
        conditions = set_condition(
            resource.status.conditions,
            ConditionType.READY,
            ready,
            told.reason,
            told.message,
            now=now,
            observed_generation=1,
        )
        status = resource.status.model_copy(
            update={
                "conditions": conditions,
                "last_seen": node.last_seen or resource.status.last_seen,
                "versions": _bounded(node.observed.info) if node.observed else resource.status.versions,
            }
        )
        await put(self._resources, KIND, node.name, resource.model_copy(update={"status": status}).to_document())


def _bounded(info: Mapping[str, str]) -> dict[str, str]:
    return {name[:MAX_TEXT]: text[:MAX_TEXT] for name, text in list(info.items())[:MAX_INFO]}
