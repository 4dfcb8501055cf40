"""What the coordinator remembers, all of it in the resource store: status of tasks, timers, documents, cursors of sources.

A task's spec belongs to users, its status to the coordinator: a commit reads the newest document, puts the new status in and
writes with compare-and-set, again if somebody was faster.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic

import structlog

from edgeai.crashpoints import crash_point
from edgeai.errors import Conflict, ManifestError, NotFound
from edgeai.lifecycle.base import Emit
from edgeai.lifecycle.draft import T
from edgeai.reactor import Batch
from edgeai.resources.base import SCRIPT_ANNOTATION
from edgeai.store.base import BlobStore, ResourceStore, Stored
from edgeai.store.edge import DocumentRow

log = structlog.get_logger()

TASK, JOB, SERVICE = "FederatedTask", "IncrementalLearningJob", "JointInferenceService"
TASK_KINDS = (TASK, JOB, SERVICE)
TIMERS, DOCUMENT, CURSOR, IDENTITY = "Timers", "Document", "Cursor", "Identity"
ROUND = "Round"
"""Kind of the outcomes of rounds, written by aggregation workers and named `<task uid>.<round>`."""


class TaskJournal(Generic[T]):
    """The reactor's journal for the tasks of one kind: the key is the task's name. `publish` sends facts to the history.

    With a task go the outcomes of its rounds and, from `blobs`, the scripts that no other task of any kind names.
    """

    def __init__(
        self,
        task: type[T],
        resources: ResourceStore,
        publish: Callable[[Emit], Awaitable[None]],
        blobs: BlobStore | None = None,
    ) -> None:
        self._task: type[T] = task
        self._kind = str(task.model_fields["kind"].default)
        self._resources, self._publish, self._blobs = resources, publish, blobs
        self._timers: dict[str, dict[str, float]] = {}

    @property
    def _timers_kind(self) -> str:
        """Tasks of two kinds may have one name."""
        return TIMERS if self._kind == TASK else f"{self._kind}{TIMERS}"

    async def load(self) -> tuple[dict[str, T | None], dict[tuple[str, str], float]]:
        tasks: dict[str, T | None] = {}
        for stored in await self._resources.list(self._kind):
            try:
                tasks[stored.name] = self._task.from_document(stored.document)
            except ManifestError as error:
                log.error("resource_unreadable", kind=self._kind, name=stored.name, reason=str(error))
        timers = {
            (stored.name, name): float(left)
            for stored in await self._resources.list(self._timers_kind)
            for name, left in stored.document.items()
            if stored.name in tasks
        }
        self._timers = {}
        for (name, timer), left in timers.items():
            self._timers.setdefault(name, {})[timer] = left
        return tasks, timers

    async def commit(self, batch: Batch[T | None]) -> None:
        for name, task in batch.states.items():
            await (self._write(task) if task is not None else self._purge(name))
        crash_point("coordinator.status_written")
        await self._save_timers(batch)
        for fact in batch.facts:
            await self._publish(fact)

    async def _write(self, task: T) -> None:
        status = task.to_document()["status"]
        while True:
            try:
                stored = await self._resources.get(self._kind, task.metadata.name)
                if stored.document["metadata"]["uid"] != task.metadata.uid or stored.document.get("status") == status:
                    return
                await self._resources.replace(stored, {**stored.document, "status": status})
            except Conflict:
                continue
            except NotFound:
                return
            return

    async def _purge(self, name: str) -> None:
        """Remove a deleted task; one that was applied anew meanwhile stays."""
        while True:
            try:
                stored = await self._resources.get(self._kind, name)
                if stored.document["metadata"].get("deletionTimestamp"):
                    await self._remove_traces(stored)
                    await self._resources.delete(stored)
            except Conflict:
                continue
            except NotFound:
                return
            return

    async def _remove_traces(self, stored: Stored) -> None:
        """May be repeated: the task itself goes last."""
        uid = stored.document["metadata"]["uid"]
        for outcome in await self._resources.list(ROUND):
            if outcome.name.startswith(f"{uid}."):
                await put(self._resources, ROUND, outcome.name, None)
        if self._blobs is None:
            return
        others = [
            other.document
            for kind in TASK_KINDS
            for other in await self._resources.list(kind)
            if (kind, other.name) != (stored.kind, stored.name)
        ]
        needed = {digest for document in others for digest in _scripts(document)}
        for digest in _scripts(stored.document) - needed:
            await self._blobs.delete(digest)

    async def _save_timers(self, batch: Batch[T | None]) -> None:
        wanted: dict[str, dict[str, float]] = {}
        for (key, name), left in batch.timers.items():
            wanted.setdefault(key, {})[name] = round(left)
        for key in {*wanted, *self._timers}:
            if wanted.get(key) != self._timers.get(key):
                await put(self._resources, self._timers_kind, key, wanted.get(key))
        self._timers = wanted


class KvDocuments:
    """DocumentStore of the coordinator. What it reads is not kept: readers' lists bring it back."""

    def __init__(self, resources: ResourceStore, incarnation: int) -> None:
        self._resources, self.incarnation = resources, incarnation

    @staticmethod
    async def open(resources: ResourceStore) -> KvDocuments:
        """The incarnation is made with the store and lost with it."""
        try:
            stored = await resources.create(IDENTITY, "coordinator", {"incarnation": time.time_ns()})
        except Conflict:
            stored = await resources.get(IDENTITY, "coordinator")
        return KvDocuments(resources, int(stored.document["incarnation"]))

    async def documents(self) -> list[DocumentRow]:
        rows = await self._resources.list(DOCUMENT)
        return [
            DocumentRow(
                row.document["topic"],
                True,
                row.document["incarnation"],
                row.document["generation"],
                row.document["payload"],
            )
            for row in rows
        ]

    async def save_document(self, row: DocumentRow) -> None:
        if row.own:
            document = {
                "topic": row.topic,
                "incarnation": row.incarnation,
                "generation": row.generation,
                "payload": row.payload,
            }
            await put(self._resources, DOCUMENT, _name(row.topic), document)

    async def drop_document(self, topic: str) -> None:
        await put(self._resources, DOCUMENT, _name(topic), None)


class Cursors:
    """How far each source's facts have taken effect: (incarnation, sequence)."""

    def __init__(self, resources: ResourceStore) -> None:
        self._resources = resources
        self._known: dict[str, tuple[int, int]] = {}

    async def load(self) -> None:
        for stored in await self._resources.list(CURSOR):
            document = stored.document
            self._known[document["source"]] = (int(document["incarnation"]), int(document["sequence"]))

    def get(self, source: str) -> tuple[int, int]:
        return self._known.get(source, (0, 0))

    async def advance(self, source: str, incarnation: int, sequence: int) -> None:
        self._known[source] = (incarnation, sequence)
        document = {"source": source, "incarnation": incarnation, "sequence": sequence}
        await put(self._resources, CURSOR, source.replace("/", "."), document)

    async def forget_tasks(self, current: set[str]) -> None:
        """Drop the cursors of workers whose task (by level) is gone; nodes keep theirs."""
        for source in [name for name in self._known if "/" in name and name.split("/")[1] not in current]:
            del self._known[source]
            await put(self._resources, CURSOR, source.replace("/", "."), None)


async def put(resources: ResourceStore, kind: str, name: str, document: Mapping[str, Any] | None) -> Stored | None:
    """Write a document of the only writer of its kind; None removes it."""
    while True:
        try:
            stored = await resources.get(kind, name)
        except NotFound:
            if document is None:
                return None
            try:
                return await resources.create(kind, name, document)
            except Conflict:
                continue
        try:
            if document is None:
                await resources.delete(stored)
                return None
            return await resources.replace(stored, document)
        except Conflict:
            continue


def _scripts(document: Mapping[str, Any]) -> set[str]:
    """Digests of the scripts that a task's manifest brought along."""
    notes = document["metadata"].get("annotations", {})
    return {text.partition(":")[0] for name, text in notes.items() if name.startswith(SCRIPT_ANNOTATION)}


def _name(topic: str) -> str:
    return topic.replace("/", ".")
