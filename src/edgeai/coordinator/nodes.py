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
from edgeai.events.catalogue import DatasetObserved, Observed, WorkerObserved
from edgeai.resources.base import Metadata
from edgeai.resources.conditions import ConditionStatus, ConditionType, set_condition
from edgeai.resources.node import EdgeNode
from edgeai.store.base import ResourceStore
from edgeai.store.identity import new_uid

log = structlog.get_logger()

SILENT_AFTER_S = 16.0
MAX_INFO, MAX_TEXT = 50, 200
"""Entries and characters of what a node says about itself."""
KIND = "EdgeNode"


class Nodes:
    """All nodes. The resources `EdgeNode` are written when something a person cares about changes, not per heartbeat."""

    def __init__(self, resources: ResourceStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._resources, self._clock, self._started = resources, clock, clock()
        self._heard: dict[str, float] = {}
        self._last_seen: dict[str, str] = {}
        self._silent: set[str] = set()
        self._absent: set[str] = set()
        self._observed: dict[str, Observed] = {}
        self._names: set[str] = {CLOUD}
        self._unwritten: dict[str, tuple[ConditionStatus, str, str]] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._names)

    def silent(self) -> frozenset[str]:
        """Nodes whose state is unknown: lost by their broker, or not heard of for SILENT_AFTER_S."""
        return frozenset(self._silent)

    def absent(self) -> frozenset[str]:
        """Nodes that were not heard of for SILENT_AFTER_S: nobody waits for them. A restarting controller is not absent."""
        return frozenset(self._absent)

    def workers_of(self, task_uid: str) -> Mapping[str, WorkerObserved]:
        """worker -> what its node has observed, for nodes that are not absent."""
        return {
            worker.worker: worker
            for node, observed in self._observed.items()
            if node not in self._absent
            for worker in observed.workers
            if worker.task_uid == task_uid
        }

    def is_observed(self, node: str) -> bool:
        """Its observed document has arrived since this coordinator started."""
        return node in self._observed

    def taken(self, node: str) -> int:
        """The generation of the desired document that the node has taken up; 0: not known."""
        observed = self._observed.get(node)
        return observed.desired_generation if observed else 0

    def dataset(self, node: str, name: str) -> DatasetObserved | None:
        observed = self._observed.get(node)
        return next((item for item in observed.datasets if item.name == name), None) if observed else None

    def known(self, name: str, document: Mapping[str, Any] | None) -> None:
        """An EdgeNode resource was read or deleted."""
        if document is None and name != CLOUD:
            # A node that is still there registers itself anew with its next sign of life.
            self._names.discard(name)
            self._heard.pop(name, None)
        else:
            self._names.add(name)

    async def heard(self, node: str, now: str) -> bool:
        """A sign of life; True if the node was new or silent before."""
        new = node not in self._heard or node in self._silent
        self._heard[node], self._last_seen[node] = self._clock(), now
        self._silent.discard(node)
        self._absent.discard(node)
        if new:
            self._unwritten[node] = ("True", "Heard", "")
            await self._write(now)
        return new

    async def observed(self, node: str, observed: Observed, now: str) -> None:
        changed = self._observed.get(node) is None or self._observed[node].info != observed.info
        self._observed[node] = observed
        if not await self.heard(node, now) and changed:
            self._unwritten[node] = ("True", "Heard", "")
            await self._write(now)

    async def gone(self, node: str, now: str) -> None:
        """Its broker has lost the controller."""
        self._silent.add(node)
        self._unwritten[node] = ("Unknown", "ConnectionLost", f"the broker of {node} lost its controller")
        await self._write(now)

    async def silenced(self, now: str) -> bool:
        """Look who has fallen silent since the last call."""
        moment = self._clock()
        late = [
            node
            for node in self._names - self._absent
            if moment - self._heard.get(node, self._started) > SILENT_AFTER_S
        ]
        for node in late:
            self._absent.add(node)
            self._silent.add(node)
            self._unwritten[node] = ("Unknown", "Silent", f"{node} was not heard of for {SILENT_AFTER_S:.0f} s")
        await self._write(now)
        return bool(late)

    async def _write(self, now: str) -> None:
        """Write what is not written yet; while the store is away it stays for the next call."""
        for node, condition in list(self._unwritten.items()):
            self._names.add(node)
            try:
                await self._write_one(node, *condition, now)
            except BusError as error:
                log.warning("node_not_written", node=node, cause=str(error))
                return
            if self._unwritten.get(node) == condition:
                del self._unwritten[node]

    async def _write_one(self, node: str, ready: ConditionStatus, reason: str, message: str, now: str) -> None:
        try:
            resource = EdgeNode.from_document((await self._resources.get(KIND, node)).document)
        except (NotFound, ManifestError):
            resource = EdgeNode(metadata=Metadata(name=node, uid=new_uid(), generation=1, creation_timestamp=now))
        observed = self._observed.get(node)
        conditions = set_condition(
            resource.status.conditions, ConditionType.READY, ready, reason, message, now=now, observed_generation=1
        )
        status = resource.status.model_copy(
            update={
                "conditions": conditions,
                "last_seen": self._last_seen.get(node, resource.status.last_seen),
                "versions": _bounded(observed.info) if observed else resource.status.versions,
            }
        )
        await put(self._resources, KIND, node, resource.model_copy(update={"status": status}).to_document())


def _bounded(info: Mapping[str, str]) -> dict[str, str]:
    return {name[:MAX_TEXT]: text[:MAX_TEXT] for name, text in list(info.items())[:MAX_INFO]}
