"""What other programs call: `async with edgeai.connect() as cloud`, then apply, get, watch, wait, logs, events, publish.

The command line and the portal are written against this. It talks to the cloud's NATS only: resources through the store,
logs through requests, history through the stream of facts.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edgeai import tracing
from edgeai.bus.base import Bus
from edgeai.bus.credentials import read_credentials_file
from edgeai.bus.nats import NatsBus
from edgeai.errors import (
    BusUnavailable,
    Conflict,
    MalformedEvent,
    ManifestError,
    NotFound,
    Refused,
    WaitTimeout,
    noun,
)
from edgeai.events.address import CLOUD, Address, Direction, EventClass, Pattern, task_level
from edgeai.events.catalogue import (
    CATALOGUE,
    Event,
    ExamplesAnswered,
    ExamplesRequested,
    HealthAnswered,
    HealthRequested,
    LabelsGiven,
    LabelsTaken,
    LogAnswered,
    LogRequested,
    NodeHealth,
    Progress,
    UsageAnswered,
    UsageRequested,
)
from edgeai.events.envelope import Envelope, Header, decode, encode, value_of
from edgeai.resources.base import (
    SCRIPT_ANNOTATION,
    SOURCE_ANNOTATION,
    TRIGGER_ANNOTATION,
    Metadata,
    Resource,
    instant,
)
from edgeai.resources.conditions import trouble_in
from edgeai.resources.federated import FederatedTask, TaskPhase
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import MAX_REPLICAS, JointInferenceService
from edgeai.resources.kinds import KINDS, from_document
from edgeai.resources.manifest import load_manifests, read_manifests
from edgeai.resources.model import Model, ModelVersion
from edgeai.settings import read_context
from edgeai.store.base import BlobStore, ResourceStore, Stored
from edgeai.store.bundles import ScriptFields, pack_model, pack_scripts
from edgeai.store.files import digest_bytes, write_whole
from edgeai.store.history import FactStream
from edgeai.store.identity import new_id, new_uid
from edgeai.store.nats import NatsBlobStore, NatsFactStream, NatsResourceStore

_Answer = TypeVar("_Answer", bound=Event)
Task = FederatedTask | IncrementalLearningJob | JointInferenceService
TASK_KINDS = ("FederatedTask", "IncrementalLearningJob", "JointInferenceService")
"""Kinds whose resources run: one that is deleted is gone when its workers are."""
_OVER = frozenset({TaskPhase.SUCCEEDED, TaskPhase.FAILED})
_AT_WORK = frozenset({TaskPhase.PREPARING, TaskPhase.RUNNING, TaskPhase.PAUSED})
_SUFFIXES = frozenset({".yaml", ".yml", ".json"})
CONNECT_S = 5.0
REQUEST_S = 5.0
MAX_LABELS = 1000
"""Of one request; the rest follows in others."""


class Action(StrEnum):
    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Resources that were written together. `base` is the folder that their relative paths refer to, `file` for errors."""

    resources: tuple[Resource, ...]
    base: Path
    file: str = ""

    @staticmethod
    def read(path: Path) -> list[Manifest]:
        """A file, or every .yaml, .yml and .json file of a folder, by name. Raises ManifestError."""
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES and file.is_file())
            if not files:
                raise ManifestError(f"holds no {', '.join(sorted(_SUFFIXES))} file", file=str(path))
        return [Manifest(tuple(read_manifests(file)), file.parent, str(file)) for file in files]

    @staticmethod
    def parse(text: str, file: str, base: Path) -> Manifest:
        """From text; `file` is only its name for errors. Raises ManifestError."""
        return Manifest(tuple(load_manifests(text, file)), base, file)


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did with one resource, which is stored durably."""

    resource: Resource
    action: Action
    revision: int = 0


Check = Callable[[Stored | None], None]
"""Looks at what is stored just before it is overwritten (None: nothing); raises Conflict to prevent that."""


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One fact of the history, oldest first. `sequence` is its place in the stream."""

    sequence: int
    time: float
    node: str
    task: str
    worker: str
    event: Event


class Cloud:
    """A connection to one cloud. Made by `connect`."""

    def __init__(
        self, bus: Bus, resources: ResourceStore, blobs: BlobStore, facts: FactStream, *, service: str = ""
    ) -> None:
        """`service`: what this program is called in traces."""
        self.bus, self.resources, self.blobs, self.facts = bus, resources, blobs, facts
        self._part = tracing.Part(service)

    # --- resources

    async def apply(
        self, *manifests: Manifest | Path | str | Sequence[Resource], base: Path | None = None
    ) -> list[Applied]:
        """Write all resources of manifests (files, folders, or resources); scripts and model files are stored first.

        Applying the same again changes nothing; a change adds exactly 1 to the generation. `base` is the folder that
        relative paths of resources (not files) refer to.

        Raises:
            ManifestError: a file, a field or a folder is not acceptable; nothing has been written.
            Refused: a finished or vanishing task would be changed.
            BusUnavailable: no cloud answers; what was applied before stays.
        """
        began_s = time.time()
        wanted = [part for item in manifests for part in await _manifests(item, base or Path.cwd())]
        with tempfile.TemporaryDirectory(prefix="edgeai-apply-") as folder:
            packed = await asyncio.to_thread(lambda: [each for item in wanted for each in _packed(item, Path(folder))])
            for _, files in packed:
                for digest, file in files.items():
                    await self.blobs.put(digest, file)
            applied = [await self._write(resource, began_s=began_s) for resource, _ in packed]
            for _, files in packed:
                for digest, file in files.items():
                    # A task that vanished meanwhile may have taken a script of the same content with it.
                    await self.blobs.put(digest, file)
            return applied

    async def put(self, resource: Resource, *, check: Check | None = None) -> Applied:
        """Write one resource as `apply` does, without packing: its scripts and model files are stored already.

        Raises:
            Refused: as `apply`, or by `check`.
        """
        metadata = resource.metadata
        kept = Metadata(name=metadata.name, annotations=metadata.annotations, labels=metadata.labels)
        return await self._write(resource.model_copy(update={"metadata": kept}), check)

    async def modify(
        self, kind: str, name: str, change: Callable[[Resource], Resource], *, check: Check | None = None
    ) -> Applied:
        """Write what `change` makes of a resource; called again when somebody else was faster. Raises NotFound, Refused."""
        began_s = time.time()
        while True:
            stored = await self.resources.get(kind, name)
            if check is not None:
                check(stored)
            before = from_document(stored.document)
            changed = _changed(before, change(before))
            if changed is None:
                return Applied(before, Action.UNCHANGED, stored.revision)
            try:
                written = await self.resources.replace(stored, changed.to_document())
            except Conflict:
                continue
            applied = Applied(changed, Action.CONFIGURED, written.revision)
            if changed.metadata.generation != before.metadata.generation:
                self._record(applied, began_s)
            return applied

    async def _write(self, resource: Resource, check: Check | None = None, *, began_s: float | None = None) -> Applied:
        began_s = time.time() if began_s is None else began_s
        applied = await self._written(resource, check)
        self._record(applied, began_s)
        return applied

    def _record(self, applied: Applied, began_s: float) -> None:
        """Of a task, its first generation is the root of its trace."""
        resource, uid = applied.resource, applied.resource.metadata.uid
        if resource.kind not in TASK_KINDS or applied.action is Action.UNCHANGED:
            return
        generation, root = resource.metadata.generation, tracing.span_of(uid)
        about: tracing.Attributes = {"task": resource.name, "kind": resource.kind, "generation": generation}
        if applied.action is Action.CREATED:
            self._part.record("apply", root, None, began_s, about)
        else:
            self._part.record("apply", tracing.span_of(uid, "apply", generation), root, began_s, about)

    async def _written(self, resource: Resource, check: Check | None) -> Applied:
        while True:
            try:
                stored = await self.resources.get(resource.kind, resource.name)
            except NotFound:
                if check is not None:
                    check(None)
                metadata = resource.metadata.model_copy(
                    update={"uid": new_uid(), "generation": 1, "creation_timestamp": _now()}
                )
                status = type(resource).model_fields["status"].get_default()
                fresh = resource.model_copy(update={"metadata": metadata, "status": status})
                try:
                    written = await self.resources.create(resource.kind, resource.name, fresh.to_document())
                except Conflict:
                    continue
                return Applied(fresh, Action.CREATED, written.revision)
            if check is not None:
                check(stored)
            before = from_document(stored.document)
            changed = _changed(before, resource)
            if changed is None:
                return Applied(before, Action.UNCHANGED, stored.revision)
            try:
                written = await self.resources.replace(stored, changed.to_document())
            except Conflict:
                continue
            return Applied(changed, Action.CONFIGURED, written.revision)

    async def get(self, kind: str, name: str) -> Resource:
        """Raises NotFound."""
        return from_document((await self.resources.get(kind, name)).document)

    async def list(self, kind: str) -> list[Resource]:
        return [from_document(stored.document) for stored in await self.resources.list(kind)]

    async def delete(self, kind: str, name: str, *, check: Check | None = None) -> None:
        """Mark a task for deletion (it is gone when its workers are); remove any other resource.

        Raises:
            NotFound: it is not there. Refused: a task at work refers to it.
        """
        while True:
            stored = await self.resources.get(kind, name)
            if check is not None:
                check(stored)
            await self._require_unused(kind, name)
            try:
                await self._delete(stored)
            except Conflict:
                continue
            return

    async def _require_unused(self, kind: str, name: str) -> None:
        """Raises Refused."""
        if kind not in {"Dataset", "Model"}:
            return
        for task in [task for tasks in TASK_KINDS for task in await self.list(tasks)]:
            if isinstance(task, FederatedTask) and _works_with(task, kind, name):
                raise Refused(
                    f"{noun(kind)} {name} is in use by task {task.name} ({task.status.phase.value}): "
                    "delete the task first, or wait until it has ended"
                )
            if isinstance(task, IncrementalLearningJob) and _learns_from(task, kind, name):
                raise Refused(
                    f"{noun(kind)} {name} is in use by job {task.name} ({task.status.phase.value}): delete the job first"
                )
            if isinstance(task, JointInferenceService) and _serves(task, kind, name):
                phase = task.status.phase.value
                raise Refused(
                    f"{noun(kind)} {name} is in use by service {task.name} ({phase}): delete the service first"
                )

    async def _delete(self, stored: Stored) -> None:
        if stored.kind not in TASK_KINDS:
            await self.resources.delete(stored)
            return
        metadata = dict(stored.document["metadata"])
        if metadata.get("deletionTimestamp"):
            return
        metadata["deletionTimestamp"] = _now()
        await self.resources.replace(stored, {**stored.document, "metadata": metadata})

    async def set_paused(
        self, name: str, paused: bool, *, kind: str = "FederatedTask", check: Check | None = None
    ) -> Resource:
        """Pause a task before its next round (a job: before its next stage), or let it go on. Raises NotFound, Refused."""
        if kind == "JointInferenceService":
            raise Refused(f"service {name} cannot be paused or resumed: it answers until it is deleted")
        while True:
            stored = await self.resources.get(kind, name)
            if check is not None:
                check(stored)
            task: Any = from_document(stored.document)
            if isinstance(task, FederatedTask) and task.status.phase in _OVER:
                raise Refused(f"task {name} has ended ({task.status.phase.value}): there is nothing to pause or resume")
            if task.spec.paused is paused:
                return task  # type: ignore[no-any-return]
            metadata = task.metadata.model_copy(update={"generation": task.metadata.generation + 1})
            spec = task.spec.model_copy(update={"paused": paused})
            changed: Resource = task.model_copy(update={"metadata": metadata, "spec": spec})
            try:
                await self.resources.replace(stored, changed.to_document())
            except Conflict:
                continue
            return changed

    async def task(self, name: str, kind: str | None = None) -> Task:
        """The task, job or service of this name; with `kind`, only of that. Raises NotFound; Refused if there are several."""
        found = []
        for each in [kind] if kind else TASK_KINDS:
            try:
                found.append(await self.get(each, name))
            except NotFound:
                if kind:
                    raise
        if len(found) > 1:
            nouns = [noun(each.kind) for each in found]
            said = " or ".join(f"{each}/{name}" for each in nouns)
            raise Refused(f"there is {' and '.join(f'a {each}' for each in nouns)} called {name}: say {said}")
        if not found:
            raise NotFound("task", name, "nor is there a job or a service of that name")
        [one] = found
        assert isinstance(one, Task)
        return one

    async def trigger(self, name: str) -> int:
        """Ask for a round of a job, whatever its trigger says; returns how often that was done. Raises NotFound, Refused."""
        count = 0

        def once_more(job: Resource) -> Resource:
            nonlocal count
            notes = job.metadata.annotations
            before = notes.get(TRIGGER_ANNOTATION, "0")
            count = (int(before) if before.isascii() and before.isdigit() else 0) + 1
            metadata = job.metadata.model_copy(update={"annotations": {**notes, TRIGGER_ANNOTATION: str(count)}})
            return job.model_copy(update={"metadata": metadata})

        await self.modify("IncrementalLearningJob", name, once_more)
        return count

    async def rollback(self, name: str, version: int) -> ModelVersion:
        """Make an old version of a model the newest one again, under a new number. Raises NotFound."""
        while True:
            stored = await self.resources.get("Model", name)
            model = Model.from_document(stored.document)
            versions = model.status.versions
            old = next((item for item in versions if item.version == version), None)
            if old is None:
                there = ", ".join(str(item.version) for item in versions) or "none yet"
                raise NotFound("version", f"{version} of model {name}", f"there is {there}")
            new = old.again(versions[-1].version + 1, _now())
            status = model.status.model_copy(update={"versions": (*versions, new)})
            try:
                await self.resources.replace(stored, model.model_copy(update={"status": status}).to_document())
            except Conflict:
                continue
            return new

    @asynccontextmanager
    async def watch(self, *kinds: str) -> AsyncIterator[AsyncIterator[tuple[str, str, Resource | None] | None]]:
        """(kind, name, resource or None when deleted), first what there is, then None once, then every change."""
        async with self.resources.watch(*kinds) as changes:

            async def resources() -> AsyncIterator[tuple[str, str, Resource | None] | None]:
                async for change in changes:
                    if change is None:
                        yield None
                    else:
                        found = None if change.document is None else from_document(change.document)
                        yield change.kind, change.name, found

            yield resources()

    async def wait(
        self, kind: str, name: str, until: Callable[[Resource | None], bool], timeout_s: float | None = None
    ) -> Resource | None:
        """Return the resource (None: deleted) as soon as `until` is true of it.

        Raises:
            WaitTimeout: not within `timeout_s` seconds; it says what the resource waits for, if that is known.
        """
        last: Resource | None = None
        try:
            async with asyncio.timeout(timeout_s), self.watch(kind) as changes:
                seen = False
                async for change in changes:
                    if change is None:
                        if not seen and until(None):
                            return None
                        continue
                    if change[1] != name:
                        continue
                    seen, last = True, change[2]
                    if until(change[2]):
                        return change[2]
        except TimeoutError as error:
            why = f": {reason}" if (reason := _waits_for(last)) else ""
            raise WaitTimeout(f"{noun(kind)} {name}: not within {timeout_s:g} s{why}") from error
        raise BusUnavailable(self.bus.url, "the watch ended")

    # --- logs, history, events

    async def log(self, task: Task, worker: str, *, offset: int = 0) -> LogAnswered:
        """A part of a worker's log, from byte `offset` on (negative: from the end).

        Raises:
            NotFound: the task has no such worker, or it is not on its node (yet).
            WaitTimeout: the node does not answer.
        """
        node = _node_of(task, worker)
        answer = await self._ask_node(node, _level(task), worker, LogRequested(offset), LogAnswered)
        if answer.error:
            raise NotFound("worker", worker, answer.error)
        return answer

    async def examples(
        self, job: IncrementalLearningJob, limit: int, *, inputs: bool = False, after: str = ""
    ) -> ExamplesAnswered:
        """Examples of a job that wait for a label, the oldest first; `inputs`: with what the model was asked.

        There may be fewer than `limit` although more wait (`rest`): then ask again, `after` the id of the last one.

        Raises:
            Refused: the node cannot give them. WaitTimeout: it does not answer.
        """
        answer = await self._ask_node(
            job.spec.node_name, _level(job), "", ExamplesRequested(limit, inputs, after), ExamplesAnswered
        )
        if answer.error:
            raise Refused(f"job {job.name}: {answer.error}")
        return answer

    async def give_labels(self, job: IncrementalLearningJob, labels: Mapping[str, str]) -> LabelsTaken:
        """Label examples of a job by id; values are JSON. Returns when they are durable on the node; may be repeated.

        Raises:
            Refused: the node does not take them. WaitTimeout: it does not answer, and may have taken some.
        """
        taken = already = 0
        unknown: list[str] = []
        given = list(labels.items())
        for start in range(0, len(given), MAX_LABELS):
            part = LabelsGiven(dict(given[start : start + MAX_LABELS]))
            answer = await self._ask_node(job.spec.node_name, _level(job), "", part, LabelsTaken)
            if answer.error:
                raise Refused(f"job {job.name}: {answer.error}")
            taken, already = taken + answer.taken, already + answer.already
            unknown += answer.unknown
        return LabelsTaken(taken, already, tuple(unknown))

    async def _ask_node(self, node: str, level: str, worker: str, question: Event, kind: type[_Answer]) -> _Answer:
        """Raises WaitTimeout."""
        to = Address(node, Direction.DOWN, EventClass.REQUEST, question.kind, level, worker)
        try:
            return await self._ask(to, question, kind, REQUEST_S)
        except TimeoutError as error:
            raise WaitTimeout(f"{node} did not answer within {REQUEST_S:g} s; see `edgeai get nodes`") from error

    async def usage(self, task: Task | None = None, *, timeout_s: float = REQUEST_S) -> UsageAnswered:
        """What the workers use that run (of one task or of all), as the coordinator has heard of it.

        Raises:
            WaitTimeout: the coordinator does not answer.
        """
        level = task_level(task.metadata.name, task.metadata.uid) if task else ""
        to = Address(CLOUD, Direction.DOWN, EventClass.REQUEST, UsageRequested.kind, level)
        try:
            return await self._ask(to, UsageRequested(), UsageAnswered, timeout_s)
        except TimeoutError as error:
            raise WaitTimeout(f"the coordinator did not answer within {timeout_s:g} s") from error

    async def health(self, node: str = "", *, timeout_s: float = REQUEST_S) -> HealthAnswered:
        """How nodes, their brokers and bridges do (one node or all), as the coordinator has heard of it, and how it does.

        Raises:
            WaitTimeout: the coordinator does not answer.
        """
        to = Address(CLOUD, Direction.DOWN, EventClass.REQUEST, HealthRequested.kind)
        found: tuple[NodeHealth, ...] = ()
        try:
            while True:
                after = found[-1].node if found else ""
                answer = await self._ask(to, HealthRequested(node, after), HealthAnswered, timeout_s)
                found += answer.nodes
                if not (answer.left_out and answer.nodes):
                    return replace(answer, nodes=found)
        except TimeoutError as error:
            raise WaitTimeout(f"the coordinator did not answer within {timeout_s:g} s") from error

    async def _ask(self, to: Address, question: Event, kind: type[_Answer], timeout_s: float) -> _Answer:
        """Raises TimeoutError."""
        correlation = new_id()
        reply = Pattern(to.node, Direction.UP, EventClass.REQUEST, kind.kind, to.task, to.worker)
        envelope = Envelope(Header("operator", correlation=correlation), question, new_id(), time.time())
        async with asyncio.timeout(timeout_s), self.bus.subscribe(reply) as answers:
            await self.bus.publish(to, encode(envelope))
            async for delivery in answers:
                answer = decode(delivery.payload)
                if answer.header.correlation == correlation and isinstance(answer.event, kind):
                    return answer.event
        raise BusUnavailable(self.bus.url, "the subscription ended")

    async def history(self, task: Task | None = None, *, follow: bool = False) -> AsyncIterator[HistoryLine]:
        """The facts of a task (or of everything), oldest first, each once; with `follow`, for ever."""
        level = task_level(task.metadata.name, task.metadata.uid) if task else None
        seen: set[tuple[str, int, int]] = set()
        async for record in self.facts.read(level, follow=follow):
            try:
                envelope = decode(record.payload)
            except MalformedEvent:
                continue
            header, address = envelope.header, record.address
            # A source sends a fact again until it has the receipt, and the stream captures it each time.
            if header.sequence:
                if (fact := (header.source, header.incarnation, header.sequence)) in seen:
                    continue
                seen.add(fact)
            yield HistoryLine(
                record.sequence, envelope.time, address.node, address.task, address.worker, envelope.event
            )

    @asynccontextmanager
    async def progress(self) -> AsyncIterator[AsyncIterator[tuple[Address, Progress]]]:
        """Signals of progress, as they happen; some may be lost."""
        pattern = Pattern(None, Direction.UP, EventClass.SIGNAL, Progress.kind)
        async with self.bus.subscribe(pattern) as deliveries:

            async def signals() -> AsyncIterator[tuple[Address, Progress]]:
                async for delivery in deliveries:
                    try:
                        event = decode(delivery.payload).event
                    except MalformedEvent:
                        continue
                    if isinstance(event, Progress):
                        yield delivery.address, event

            yield signals()

    async def publish(self, kind: str, body: dict[str, Any], *, node: str, task: str = "", worker: str = "") -> Address:
        """Put an event on the bus by hand; returns where it went.

        Raises:
            NotFound: no such kind. MalformedEvent: the body does not fit it.
        """
        event_type = CATALOGUE.get(kind)
        if event_type is None:
            raise NotFound("event kind", kind, f"there is {', '.join(sorted(CATALOGUE))}")
        event = value_of(event_type, body)
        address = Address(node, event.direction, event.event_class, event.kind, task, worker)
        # Facts are counted by source, and a node's facts come from the node: each is the first of a source's new life.
        header = Header(f"{node}/operator", incarnation=time.time_ns(), sequence=1)
        await self.bus.publish(address, encode(Envelope(header, event, new_id(), time.time())))
        return address


class connect:  # noqa: N801 (reads as a verb where it is used)
    """`async with edgeai.connect("nats://cloud:4222", credentials_file="operator.json") as cloud`.

    Without arguments: the context that `edgeai up` has written, or EDGEAI_CONTEXT names. `service` is what this program is
    called in traces (docs/tracing.md).

    Raises:
        NotFound: there is no context. BusUnavailable: no cloud answers within 5 s.
    """

    def __init__(
        self, url: str | None = None, *, credentials_file: Path | str | None = None, service: str = "edgeai-client"
    ) -> None:
        self._url, self._credentials, self._service = url, credentials_file, service
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Cloud:
        tracing.start(self._service)
        url, credentials = self._url, self._credentials
        if url is None:
            context = read_context()
            url, credentials = context.url, credentials or context.credentials_file
        login = read_credentials_file(Path(credentials)) if credentials else None
        bus = NatsBus(
            url,
            username=login.username if login else None,
            password=login.password if login else None,
            name=f"operator-{os.getpid()}",
        )
        await self._stack.enter_async_context(bus)
        try:
            await bus.wait_connected(CONNECT_S)
        except BusUnavailable as error:
            await self._stack.aclose()
            raise BusUnavailable(url, "start `edgeai up` or `edgeai cloud`, then repeat this") from error
        except BaseException:
            await self._stack.aclose()
            raise
        return Cloud(bus, NatsResourceStore(bus), NatsBlobStore(bus), NatsFactStream(bus), service=self._service)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        if tracing.recording():
            # Not at the end of the process: it is too late then to begin with sending.
            await asyncio.to_thread(tracing.flush)


def kind_named(text: str) -> str:
    """The kind behind what a user types: `task`, `tasks`, `FederatedTask`, `ft`, `job`, `service`, ... Raises NotFound."""
    short = {
        "task": "FederatedTask",
        "ft": "FederatedTask",
        "job": "IncrementalLearningJob",
        "ilj": "IncrementalLearningJob",
        "service": "JointInferenceService",
        "jis": "JointInferenceService",
        "ds": "Dataset",
        "node": "EdgeNode",
        "en": "EdgeNode",
    }
    lowered = text.lower()
    for candidate in (lowered, lowered.removesuffix("s")):
        if candidate in short:
            return short[candidate]
        for kind in KINDS:
            if candidate == kind.lower():
                return kind
    words = ["task", "job", "service", "node", "model", "dataset"]
    near = get_close_matches(lowered.removesuffix("s"), words, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise NotFound("kind", text, f"there is {', '.join(words)}{meant}")


async def _manifests(item: Manifest | Path | str | Sequence[Resource], base: Path) -> list[Manifest]:
    match item:
        case Manifest():
            return [item]
        case str() | Path():
            return await asyncio.to_thread(Manifest.read, Path(item))
    return [Manifest(tuple(item), base)]


def _packed(manifest: Manifest, folder: Path) -> list[tuple[Resource, dict[str, Path]]]:
    """Resources with their annotations, and the files by digest that belong into the object store."""
    found = []
    for resource in manifest.resources:
        try:
            found.append(_packed_one(resource, manifest.base, folder))
        except ManifestError as error:
            what = f"{resource.kind} {resource.name}: {error.what}"
            raise ManifestError(what, file=manifest.file, field=error.field) from error
    return found


def _packed_one(resource: Resource, base: Path, folder: Path) -> tuple[Resource, dict[str, Path]]:
    files: dict[str, Path] = {}
    annotations = dict(resource.metadata.annotations)
    for script in scripts_of(resource):
        if Path(script.folder).is_absolute():
            continue
        content = pack_scripts(base / script.folder, script.boot_file, script.fields)
        digest = digest_bytes(content)
        files[digest] = folder / digest
        write_whole(files[digest], content)
        annotations[SCRIPT_ANNOTATION + script.worker] = f"{digest}:{len(content)}"
    if isinstance(resource, Model) and resource.spec.url is not None and resource.spec.format is not None:
        source = base / resource.spec.url.removeprefix("file://")
        target = folder / f"model-{resource.name}"
        digest, size_bytes = pack_model(source, resource.spec.format.value, target)
        files[digest] = target
        annotations[SOURCE_ANNOTATION] = f"{digest}:{size_bytes}"
    metadata = Metadata(name=resource.name, annotations=annotations, labels=resource.metadata.labels)
    return resource.model_copy(update={"metadata": metadata}), files


@dataclass(frozen=True, slots=True)
class Script:
    """What a worker of a resource runs: a folder, relative to the manifest or absolute on its node, and a file in it."""

    worker: str
    folder: str
    boot_file: str
    fields: ScriptFields


def scripts_of(resource: Resource | None) -> list[Script]:
    """The scripts of a resource's workers, in the order of its manifest."""
    if isinstance(resource, FederatedTask):
        return [
            Script(each.name, spec.train_script_dir, spec.train_script_boot_file, ScriptFields.of_training(place))
            for place, each in enumerate(resource.spec.training_workers)
            for spec in (each.worker_spec,)
        ]
    if isinstance(resource, IncrementalLearningJob):
        specs = resource.spec.worker_specs().items()
        return [
            Script(name, spec.script_dir, spec.script_boot_file, ScriptFields.of_stage(name)) for name, spec in specs
        ]
    if isinstance(resource, JointInferenceService):
        specs = resource.spec.worker_specs().items()
        places = {worker.name: place for place, worker in enumerate(resource.spec.edge_workers)}
        return [
            Script(name, spec.script_dir, spec.script_boot_file, ScriptFields.of_serving(places.get(name)))
            for name, spec in specs
        ]
    return []


def _changed(before: Resource, wanted: Resource) -> Resource | None:
    """The new version of a stored resource, or None if nothing differs. Raises Refused."""
    wanted = _with_asked(before, wanted)
    spec_before, spec = getattr(before, "spec", None), getattr(wanted, "spec", None)
    metadata = before.metadata
    same_notes = metadata.annotations == wanted.metadata.annotations and metadata.labels == wanted.metadata.labels
    if metadata.deletion_timestamp is not None:
        raise Refused(f"{noun(before.kind)} {before.name} is being deleted: wait until it is gone, then apply again")
    if spec_before == spec and same_notes:
        return None
    if isinstance(before, FederatedTask) and before.status.phase in _OVER:
        ended = before.status.phase.value
        raise Refused(
            f"task {before.name} has ended ({ended}): delete it first (`edgeai delete task {before.name}`), or give the "
            "new one another name"
        )
    if isinstance(before, IncrementalLearningJob) and isinstance(wanted, IncrementalLearningJob):
        here, there = before.spec.node_name, wanted.spec.node_name
        if here != there:
            raise Refused(
                f"job {before.name} runs on {here}, where its examples are: to run it on {there}, delete it first "
                f"(`edgeai delete job {before.name}`), or give the new one another name"
            )
    changed = metadata.model_copy(
        update={
            "generation": metadata.generation + 1,
            "annotations": wanted.metadata.annotations,
            "labels": wanted.metadata.labels,
        }
    )
    return wanted.model_copy(update={"metadata": changed, "status": before.status})  # type: ignore[attr-defined]


def _with_asked(before: Resource, wanted: Resource) -> Resource:
    """How often somebody has asked for a round is no part of a manifest: what is applied again does not forget it."""
    asked, notes = before.metadata.annotations.get(TRIGGER_ANNOTATION), wanted.metadata.annotations
    if asked is None or TRIGGER_ANNOTATION in notes:
        return wanted
    metadata = wanted.metadata.model_copy(update={"annotations": {**notes, TRIGGER_ANNOTATION: asked}})
    return wanted.model_copy(update={"metadata": metadata})


def _learns_from(job: IncrementalLearningJob, kind: str, name: str) -> bool:
    """As `_works_with`: a job that is to begin or has begun, and is not being deleted."""
    if job.metadata.deletion_timestamp is not None or job.status.phase is TaskPhase.PENDING:
        return False
    if kind == "Model":
        return name in {job.spec.initial_model.name, job.spec.output_model.name}
    asked = job.spec.deploy.dataset
    return name == job.spec.dataset.name or (asked is not None and asked.name == name)


def _serves(service: JointInferenceService, kind: str, name: str) -> bool:
    """As `_works_with`: one that is to begin or has begun, and is not being deleted."""
    if service.metadata.deletion_timestamp is not None or service.status.phase is TaskPhase.PENDING:
        return False
    models = [*(worker.model for worker in service.spec.edge_workers), service.spec.cloud_worker.model]
    return kind == "Model" and any(model is not None and model.name == name for model in models)


def _works_with(task: FederatedTask, kind: str, name: str) -> bool:
    """One that still waits for what it refers to is not at work yet, one that is being deleted no more."""
    if task.metadata.deletion_timestamp is not None or task.status.phase not in _AT_WORK:
        return False
    if kind == "Model":
        return task.spec.aggregation_worker.model.name == name
    return any(worker.worker_spec.dataset.name == name for worker in task.spec.training_workers)


def _level(task: Task) -> str:
    return task_level(task.metadata.name, task.metadata.uid)


def _waits_for(resource: Resource | None) -> str:
    """Why a resource has not become what somebody waits for, as far as its status says."""
    status: Any = getattr(resource, "status", None)
    if resource is not None and resource.metadata.deletion_timestamp is not None:
        return next((row.reason for row in getattr(status, "workers", ()) if row.state == "Unknown"), "")
    return trouble_in(getattr(status, "conditions", ()), or_not_ready=True) or getattr(status, "reason", "")


def workers_of(task: Task) -> list[str]:
    """The names of a task's workers, in the order of its manifest; of a service, the replicas that there are."""
    if isinstance(task, IncrementalLearningJob):
        return list(task.spec.worker_specs())
    if isinstance(task, JointInferenceService):
        return list(_places_of(task))
    return [task.spec.aggregation_worker.name, *(item.name for item in task.spec.training_workers)]


def _node_of(task: Task, worker: str) -> str:
    if isinstance(task, IncrementalLearningJob):
        if worker in task.spec.worker_specs():
            return task.spec.node_name
        raise NotFound("worker", worker, f"job {task.name} has {', '.join(workers_of(task))}")
    if isinstance(task, JointInferenceService):
        if (node := _places_of(task).get(worker)) is not None:
            return node
        raise NotFound("worker", worker, f"service {task.name} has {', '.join(workers_of(task))}")
    if worker == task.spec.aggregation_worker.name:
        return CLOUD
    for training in task.spec.training_workers:
        if training.name == worker:
            return training.node_name
    raise NotFound("worker", worker, f"task {task.name} has {', '.join(workers_of(task))}")


def _places_of(service: JointInferenceService) -> dict[str, str]:
    """Nodes by worker: the edges, then the replicas that are wanted or have still to end."""
    cloud = service.spec.cloud_worker
    there = {row.name for row in service.status.workers}
    wanted = max(service.status.replicas.wanted, cloud.replicas.min)
    replicas = [cloud.replica(number) for number in range(MAX_REPLICAS)]
    return {
        **{worker.name: worker.node_name for worker in service.spec.edge_workers},
        **{name: CLOUD for number, name in enumerate(replicas) if number < wanted or name in there},
    }


def _now() -> str:
    return instant(datetime.now(UTC))


__all__ = ["Action", "Applied", "Cloud", "HistoryLine", "Manifest", "connect", "kind_named"]
