"""The read model: what the portal knows of one cloud, always current, fed by the cloud and never by asking in a loop.

Four streams come in: changes of all resources, facts (with their history, so a timeline survives a restart of everything),
verdicts and signals in passing. One sequence of changes goes out (`feed`). All pages and API readers share this one model.

It says when it does not know: a node that is not heard of, a coordinator that is silent, a broker or store that is away make
what hangs on them unknown, with the age of the last sign (`Life`). How that is shown is in `views`.

When the broker, the store or the coordinator comes back, the model follows again by itself. Bounded: resources are kept as
JSON, timelines of tasks that are gone are dropped, oldest first.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from edgeai import metrics
from edgeai.bus.echo import echoing
from edgeai.client import Cloud
from edgeai.errors import BusUnavailable, EdgeaiError, MalformedEvent, NotFound
from edgeai.events.address import CLOUD, Direction, EventClass, Pattern, task_level
from edgeai.events.catalogue import (
    Bridging,
    Heartbeat,
    Inferring,
    NodeGone,
    NodeHealth,
    Progress,
    RoundClosed,
    Usage,
    Verdict,
)
from edgeai.events.envelope import Envelope, decode
from edgeai.lifecycle.health import FRESH_S, Healths, silence
from edgeai.lifecycle.usage import Usages, usage_document
from edgeai.portal.feed import Feed, Key
from edgeai.portal.inferring import Histories
from edgeai.portal.references import brief_of, datasets_of, models_of
from edgeai.portal.timeline import Timeline
from edgeai.resources.kinds import KINDS

log = structlog.get_logger()

CloudSource = Callable[[], AbstractAsyncContextManager[Cloud]]
TIMELINE, OVERVIEW = "Timeline", "Overview"
COORDINATOR = f"{CLOUD}/coordinator"
"""As a source and among the signs: the slash keeps it apart from names of nodes."""
SILENT_AFTER_S = FRESH_S
TASK_KINDS = tuple(
    kind
    for kind, model in sorted(KINDS.items())
    if "phase" in getattr(model.model_fields["status"].annotation, "model_fields", {})
)
FINAL = frozenset({"Succeeded", "Failed"})
_SPARE_TIMELINES, _SIGNS_LIMIT = 256, 10_000
_RETRY_S, _TICK_S, _PROBE_S, _PROBE_TIMEOUT_S = 1.0, 1.0, 5.0, 3.0
_WINDOW_S = 60
_PIECE = 64


@dataclass(frozen=True, slots=True)
class Life:
    """Whether something is known right now, and how old the last sign of it is (None: never seen)."""

    known: bool
    age_s: float | None
    reason: str = ""

    def document(self) -> dict[str, Any]:
        age = None if self.age_s is None else round(max(0.0, self.age_s), 1)
        return {"known": self.known, "age_s": age, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Entry:
    """A resource as stored: `body` is its document as JSON, the rest what is asked for so often that it is kept beside it.

    `nodes` are those that it hangs on, `workers` the rows of a task's status, `members` node and name of each, `needs` what a
    person should read, `datasets` and `models` what it refers to (`references`).
    """

    kind: str
    name: str
    uid: str
    revision: int
    body: bytes
    labels: dict[str, str]
    phase: str = ""
    nodes: tuple[str, ...] = ()
    workers: tuple[dict[str, Any], ...] = ()
    members: frozenset[tuple[str, str]] = frozenset()
    needs: str = ""
    datasets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    brief: bytes = b""

    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    def brief_document(self) -> dict[str, Any]:
        """As much of it as a line of a list needs (`references.brief_of`)."""
        return dict(json.loads(self.brief or self.body))

    @property
    def key(self) -> Key:
        return Key(self.kind, self.name)

    @property
    def level(self) -> str:
        return task_level(self.name, self.uid)


@dataclass(slots=True)
class Sign:
    """The last that was heard of a node; `heard` is monotonic."""

    heard: float
    uptime_s: float = 0.0
    outbox: int = 0
    skew_s: float = 0.0
    gone: bool = False


@dataclass(slots=True)
class Throughput:
    """Counts of the last minute, by second."""

    seconds: deque[tuple[int, Counter[str]]] = field(default_factory=lambda: deque(maxlen=_WINDOW_S))

    def count(self, second: int, what: str, amount: int = 1) -> None:
        if not self.seconds or self.seconds[-1][0] != second:
            self.seconds.append((second, Counter()))
        self.seconds[-1][1][what] += amount

    def rate(self, now: int, what: str, over_s: int = 10) -> float:
        """Per second, over the last full seconds."""
        total = sum(counts[what] for second, counts in self.seconds if now - over_s <= second < now)
        return round(total / over_s, 2)


def of_one(cloud: Cloud) -> CloudSource:
    """A source that lends a cloud which somebody else has connected and will close."""

    @asynccontextmanager
    async def lend() -> AsyncIterator[Cloud]:
        yield cloud

    return lend


class Live:
    """Run it as a task; read it from the same loop."""

    def __init__(
        self,
        source: CloudSource,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._source, self._clock, self._wall = source, clock, wall
        self.feed = Feed(int(wall() * 1_000_000))
        self.entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self.timelines: OrderedDict[str, Timeline] = OrderedDict()
        self.signs: dict[str, Sign] = {}
        self.throughput = Throughput()
        self.inferring = Histories()
        self._usages, self._usages_at = Usages(), clock()
        self._healths = Healths()
        self._queues: dict[tuple[str, str, str], tuple[float, int]] = {}
        """requests that wait at workers of joint inference services, and when that was heard: by node, level, worker"""
        self.bus_trip: tuple[float | None, bool] = (None, False)
        """of a message of the portal's own: seconds, and whether the broker does not bring it back"""
        self.synced = self.history_loaded = False
        self._cloud: Cloud | None = None
        self._cause = "not connected yet"
        self._store_cause = "not asked yet"
        self._store_ok = False
        self._last_fact = 0
        self._by_node: dict[str, set[Key]] = {}
        self._by_dataset: dict[str, set[Key]] = {}
        self._by_level: dict[str, Key] = {}
        self._known_before: dict[str, bool] = {}
        self._global_before = (False, False)
        self._lost_at: float | None = None

    # --- what others ask

    @property
    def cloud(self) -> Cloud:
        """The connection, for writing. Raises BusUnavailable while there is none."""
        if self._cloud is None:
            raise BusUnavailable("the cloud", self._cause)
        if not self._cloud.bus.connected:
            raise BusUnavailable(self._cloud.bus.url, "not connected")
        return self._cloud

    def now(self) -> float:
        return self._wall()

    def rate(self, what: str) -> float:
        """Per second, over the last ten: `facts`, `signals`, `rounds` or `bytes`."""
        return self.throughput.rate(int(self._clock()), what)

    def entry(self, kind: str, name: str) -> Entry:
        """Raises NotFound; BusUnavailable before the first look at the store."""
        self.require_synced()
        found = self.entries[kind].get(name)
        if found is None:
            raise NotFound(kind, name)
        return found

    def sorted(self, kind: str) -> list[Entry]:
        """All of a kind, by name."""
        self.require_synced()
        return [self.entries[kind][name] for name in sorted(self.entries[kind])]

    def require_synced(self) -> None:
        if not self.synced:
            raise BusUnavailable(
                "the cloud", "the portal has not seen its resources yet: " + (self.problems() or [""])[0]
            )

    def on_node(self, node: str) -> list[Entry]:
        """Tasks and datasets that hang on a node, by kind and name."""
        keys = sorted(self._by_node.get(node, ()), key=lambda key: (key.topic, key.name))
        return [self.entries[key.topic][key.name] for key in keys if key.name in self.entries[key.topic]]

    def from_dataset(self, dataset: str) -> list[Entry]:
        """Models, tasks and jobs that were made from a dataset or use it, by kind and name."""
        keys = sorted(self._by_dataset.get(dataset, ()), key=lambda key: (key.topic, key.name))
        return [self.entries[key.topic][key.name] for key in keys if key.name in self.entries[key.topic]]

    def timeline_keys(self) -> list[Key]:
        """Of the tasks there are, by kind and name."""
        return [Key(TIMELINE, f"{kind}/{name}") for kind in TASK_KINDS for name in sorted(self.entries[kind])]

    def timeline(self, entry: Entry) -> Timeline:
        return self.timelines.get(entry.level) or Timeline()

    async def reached(self, kind: str, name: str, revision: int, timeout_s: float = 2.0) -> None:
        """Return when this version has been seen here; after the timeout in any case."""
        try:
            async with asyncio.timeout(timeout_s):
                while (self.entries[kind].get(name) or _NOTHING).revision < revision:
                    await self.feed.beyond(self.feed.sequence)
        except TimeoutError:
            log.info("change_not_seen_yet", kind=kind, name=name, revision=revision)

    async def vanished(self, kind: str, name: str, uid: str, timeout_s: float = 2.0) -> None:
        """Return when the resource with this uid is marked or gone; after the timeout in any case."""
        try:
            async with asyncio.timeout(timeout_s):
                while (
                    (found := self.entries[kind].get(name))
                    and found.uid == uid
                    and b'"deletionTimestamp"' not in found.body
                ):
                    await self.feed.beyond(self.feed.sequence)
        except TimeoutError:
            log.info("change_not_seen_yet", kind=kind, name=name)

    # --- what is known

    @property
    def connected(self) -> bool:
        return self._cloud is not None and self._cloud.bus.connected

    def problems(self) -> list[str]:
        """Why the model may be behind, one sentence each; empty when all is well."""
        found = []
        if not self.connected:
            found.append(f"the bus is away: {self._cause}" if self._cloud is None else "the bus is away")
        elif not self._store_ok:
            found.append(f"the store is away: {self._store_cause}")
        if not self.synced:
            found.append("the resources have not been read yet")
        return found

    def cloud_life(self) -> Life:
        """Of everything that comes from the store."""
        if self.connected and self._store_ok:
            return Life(True, 0.0)
        age = None if self._lost_at is None else self._clock() - self._lost_at
        return Life(False, age, (self.problems() or ["the cloud is away"])[0])

    def coordinator_life(self) -> Life:
        """Of what only the coordinator moves."""
        cloud = self.cloud_life()
        return cloud if not cloud.known else self._heard_life(COORDINATOR, "the coordinator")

    def node_life(self, name: str) -> Life:
        if not self.connected:
            sign = self.signs.get(name)
            return Life(False, None if sign is None else self._clock() - sign.heard, self.cloud_life().reason)
        return self._heard_life(name, name)

    def life(self, entry: Entry) -> Life:
        """Of a resource: a node by its heartbeat, a dataset by its node, a task by the coordinator unless it has ended."""
        cloud = self.cloud_life()
        if entry.kind == "EdgeNode":
            return self.node_life(entry.name)
        if not cloud.known or entry.kind == "Model" or entry.phase in FINAL:
            return cloud
        if entry.kind == "Dataset":
            return self.node_life(entry.nodes[0]) if entry.nodes else cloud
        return self.coordinator_life()

    def usage(self, entry: Entry, worker: str, node: str) -> dict[str, Any]:
        """What a worker of a task uses; not known when that was heard too long ago, or its node is away."""
        away = not self.node_life(node).known
        return usage_document(*self._usages.known(node, entry.level, worker, self._clock(), away=away))

    def waiting(self, entry: Entry, worker: str, node: str) -> int | None:
        """Requests that wait at a worker of a joint inference service; None: not known, or it is another worker."""
        heard_s, count = self._queues.get((node, entry.level, worker), (0.0, 0))
        return count if heard_s and self._clock() - heard_s <= SILENT_AFTER_S and self.connected else None

    def health(self, name: str) -> NodeHealth:
        """Of a node, its broker and bridge, or of the coordinator, as far as it was heard of late."""
        return self._healths.known(name, self._clock(), away=not self.connected)

    def _heard_life(self, name: str, shown: str) -> Life:
        sign = self.signs.get(name)
        if sign is None:
            return Life(False, None, f"{shown} has not been heard of since the portal started")
        age = self._clock() - sign.heard
        why = silence(shown, age, gone=sign.gone)
        return Life(not why, age, why)

    # --- following the cloud

    async def run(self) -> None:
        """Follow the cloud until cancelled, across every outage."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tick())
                group.create_task(self._follow())
        finally:
            self.feed.close()

    async def _follow(self) -> None:
        while True:
            try:
                async with self._source() as cloud, asyncio.TaskGroup() as group:
                    self._cloud = cloud
                    metrics.follow_bus("portal", cloud.bus)
                    for part in (self._resources, self._facts, self._signals, self._probe, self._measure):
                        group.create_task(self._again(part, cloud))
            except EdgeaiError as error:
                self._cause = str(error)
                log.warning("portal_not_connected", cause=str(error))
            finally:
                self._cloud = None
            await asyncio.sleep(_RETRY_S)

    async def _again(self, part: Callable[[Cloud], Awaitable[None]], cloud: Cloud) -> None:
        while True:
            try:
                await part(cloud)
            except EdgeaiError as error:
                log.warning("portal_interrupted", part=part.__name__.strip("_"), cause=str(error))
            except Exception:
                log.exception("portal_part_failed", part=part.__name__.strip("_"))
            await asyncio.sleep(_RETRY_S)

    async def _resources(self, cloud: Cloud) -> None:
        """Changes of all kinds, with their revisions; entered anew, what is no longer there is dropped."""
        there: set[Key] | None = set()
        async with cloud.resources.watch(*KINDS) as changes:
            async for change in changes:
                if change is None:
                    for key in self._missing(there or set()):
                        self._drop(key)
                    there = None
                    self.synced = True
                    self.feed.touch(Key(OVERVIEW))
                    continue
                key = Key(change.kind, change.name)
                await _breathe(change.revision)
                if change.document is None:
                    self._drop(key)
                    continue
                if there is not None:
                    there.add(key)
                self._set(entry_of(change.kind, change.name, change.document, change.revision))

    def _missing(self, there: set[Key]) -> list[Key]:
        return [entry.key for entries in self.entries.values() for entry in entries.values() if entry.key not in there]

    def _set(self, entry: Entry) -> None:
        before = self.entries[entry.kind].get(entry.name)
        if before is not None and before.revision == entry.revision:
            return
        if before is not None:
            self._unlink(before)
        self.entries[entry.kind][entry.name] = entry
        for node in entry.nodes:
            self._by_node.setdefault(node, set()).add(entry.key)
        for dataset in entry.datasets:
            self._by_dataset.setdefault(dataset, set()).add(entry.key)
        if entry.kind in TASK_KINDS:
            self._by_level[entry.level] = Key(TIMELINE, f"{entry.kind}/{entry.name}")
        self.feed.touch(entry.key)
        if before is None or (before.phase, before.needs) != (entry.phase, entry.needs):
            self.feed.touch(Key(OVERVIEW))  # what else there is in it, every tick tells
        if entry.kind == "Dataset" or before is None or before.workers != entry.workers:
            for node in {*entry.nodes, *(before.nodes if before else ())} & self.entries["EdgeNode"].keys():
                self.feed.touch(Key("EdgeNode", node))

    def _drop(self, key: Key) -> None:
        entry = self.entries[key.topic].pop(key.name, None)
        if entry is None:
            return
        self._unlink(entry)
        if entry.kind in TASK_KINDS:
            self.timelines.pop(entry.level, None)
            self.feed.drop(Key(TIMELINE, f"{entry.kind}/{entry.name}"))
        self.feed.drop(key)
        self.feed.touch(Key(OVERVIEW))

    def _unlink(self, entry: Entry) -> None:
        for node in entry.nodes:
            self._by_node.get(node, set()).discard(entry.key)
            if not self._by_node.get(node):
                self._by_node.pop(node, None)
        for dataset in entry.datasets:
            self._by_dataset.get(dataset, set()).discard(entry.key)
            if not self._by_dataset.get(dataset):
                self._by_dataset.pop(dataset, None)
        self._by_level.pop(entry.level, None)

    async def _facts(self, cloud: Cloud) -> None:
        """The history to its end, then what follows."""
        for follow in (False, True):
            async for record in cloud.facts.read(None, after_sequence=self._last_fact, follow=follow):
                if record.sequence <= self._last_fact:
                    # The stream was made anew: what it held is gone with it.
                    self.timelines.clear()
                self._last_fact = record.sequence
                await _breathe(record.sequence)
                envelope = self._decoded(record.payload)
                if envelope is not None:
                    self._fact(record.sequence, record.address.task, record.address.worker, envelope)
            self.history_loaded = True

    def _fact(self, sequence: int, level: str, worker: str, envelope: Envelope) -> None:
        self._count("facts")
        if isinstance(envelope.event, RoundClosed) and self.history_loaded:
            record = envelope.event.record
            self._count("rounds")
            self._count("bytes", record.bytes_up + record.bytes_down)
        if envelope.header.source == COORDINATOR and self.history_loaded:
            self._heard(COORDINATOR)
        if not level:
            return
        timeline = self.timelines.setdefault(level, Timeline())
        self.timelines.move_to_end(level)
        timeline.apply(sequence, envelope.time, worker, envelope.event)
        self._touch_level(level)
        self._bound_timelines()

    async def _signals(self, cloud: Cloud) -> None:
        patterns = (
            Pattern(None, Direction.UP, EventClass.SIGNAL, Heartbeat.kind, "", ""),
            Pattern(CLOUD, Direction.UP, EventClass.SIGNAL, Heartbeat.kind, "", COORDINATOR.partition("/")[2]),
            Pattern(None, Direction.UP, EventClass.SIGNAL, NodeGone.kind, "", ""),
            Pattern(None, Direction.UP, EventClass.SIGNAL, Bridging.kind, "", ""),
            Pattern(None, Direction.UP, EventClass.SIGNAL, Progress.kind),
            Pattern(None, Direction.UP, EventClass.SIGNAL, Usage.kind),
            Pattern(None, Direction.UP, EventClass.SIGNAL, Inferring.kind),
            Pattern(None, Direction.DOWN, EventClass.TRANSFER, Verdict.kind),
        )
        async with cloud.bus.subscribe(*patterns) as deliveries:
            async for delivery in deliveries:
                address = delivery.address
                speaker = address.node, address.worker
                if address.kind == Inferring.kind and not self.inferring.wants(address.task, speaker):
                    continue
                envelope = self._decoded(delivery.payload) if delivery.payload else None
                if envelope is None:
                    continue
                self._count("signals")
                match envelope.event:
                    case Heartbeat() as beat:
                        self._beat("/".join(filter(None, (address.node, address.worker))), beat, envelope.time)
                    case NodeGone():
                        self._gone(address.node)
                    case Bridging() as bridging:
                        if self._healths.bridge(address.node, bridging, self._clock()):
                            self._touch_node(address.node)
                    case Usage() as usage if speaker in self._members(address.task):
                        self._usages.hear(address.node, address.task, address.worker, usage, self._clock())
                        self._touch_level(address.task)
                    case Inferring() as told:
                        self.inferring.hear(address.task, speaker, told, self._clock())
                        self._queues[address.node, address.task, address.worker] = self._clock(), told.waiting
                    case Progress() | Verdict() as event:
                        timeline = self.timelines.get(address.task)
                        if timeline and timeline.hint(envelope.time, address.worker, event):
                            self._touch_level(address.task)

    def _beat(self, name: str, beat: Heartbeat, at: float) -> None:
        sign = self._heard(name)
        changed = sign.outbox != beat.outbox
        self._healths.beat(name, beat, self._wall() - at, self._clock())
        sign.uptime_s, sign.outbox, sign.gone = beat.uptime_s, beat.outbox, False
        sign.skew_s = round(self._wall() - at, 1)
        if changed:
            self._touch_node(name)

    def _touch_node(self, name: str) -> None:
        if name in self.entries["EdgeNode"]:
            self.feed.touch(Key("EdgeNode", name))

    def _heard(self, name: str) -> Sign:
        if name not in self.signs and len(self.signs) >= _SIGNS_LIMIT:
            self._forget_strangers()
        sign = self.signs.setdefault(name, Sign(self._clock()))
        sign.heard = self._clock()
        self._look_at(name)
        return sign

    def _forget_strangers(self) -> None:
        """Signs of the coordinator and of the nodes there are stay."""
        there = self.entries["EdgeNode"].keys() | {COORDINATOR}
        self.signs = {name: sign for name, sign in self.signs.items() if name in there}
        self._known_before = {name: known for name, known in self._known_before.items() if name in there}
        self._healths.forget_all_but(there)

    def _gone(self, name: str) -> None:
        self._healths.gone(name)
        if sign := self.signs.get(name):
            sign.gone = True
            self._look_at(name)

    def _look_at(self, name: str) -> None:
        """Tell readers when a node (or the coordinator) became known or unknown."""
        known = (self.coordinator_life() if name == COORDINATOR else self.node_life(name)).known
        if self._known_before.get(name, False) == known:
            return
        self._known_before[name] = known
        if name == COORDINATOR:
            keys = [entry.key for kind in TASK_KINDS for entry in self.entries[kind].values()]
        else:
            keys = [Key("EdgeNode", name)] if name in self.entries["EdgeNode"] else []
            keys += [entry.key for entry in self.on_node(name)]
        for key in (*keys, Key(OVERVIEW)):
            self.feed.touch(key)

    async def _probe(self, cloud: Cloud) -> None:
        """Ask the store for one document now and then: a bus without JetStream behind it looks connected."""
        while True:
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    await cloud.resources.get("EdgeNode", CLOUD)
            except TimeoutError:
                self._store_ok, self._store_cause = False, "it does not answer"
            except NotFound:
                self._store_ok = True
            except EdgeaiError as error:
                self._store_ok, self._store_cause = False, str(error)
            else:
                self._store_ok = True
            self._look_at_cloud()
            await asyncio.sleep(_PROBE_S if self._store_ok else _RETRY_S)

    async def _measure(self, cloud: Cloud) -> None:
        """Send the portal's own messages through the broker."""
        async with echoing(cloud.bus, CLOUD, "portal") as echoes:
            while True:
                self.bus_trip = await echoes.round_trip()
                await asyncio.sleep(_PROBE_S)

    async def _tick(self) -> None:
        """Notice silence: nothing arrives to say it."""
        while True:
            self._look_at_cloud()
            for name in list(self.signs):
                self._look_at(name)
            self._look_at_usages()
            services = self.entries["JointInferenceService"].values()
            self.inferring.look({entry.level: entry.members for entry in services}, self._clock(), self._wall())
            self.feed.touch(Key(OVERVIEW))
            metrics.changes_seen(self.feed.sequence - self.feed.started)
            await asyncio.sleep(_TICK_S)

    def _look_at_usages(self) -> None:
        before, self._usages_at = self._usages_at, self._clock()
        for level in self._usages.grown_old(before, self._usages_at):
            self._touch_level(level)
        self._usages.forget_all_but(self._by_level)
        oldest = self._usages_at - SILENT_AFTER_S
        self._queues = {key: heard for key, heard in self._queues.items() if heard[0] >= oldest}

    def _look_at_cloud(self) -> None:
        state = (self.connected, self._store_ok)
        if not self.connected:
            self._store_ok = False
            self._store_cause = "not asked since the bus came back"
            state = (False, False)
        if state == self._global_before:
            return
        if self._global_before == (True, True):
            self._lost_at = self._clock()
        self._global_before = state
        for entries in self.entries.values():
            for entry in entries.values():
                self.feed.touch(entry.key)
        self.feed.touch(Key(OVERVIEW))

    def _members(self, level: str) -> frozenset[tuple[str, str]]:
        """Node and name of each worker of a task: nobody else speaks for it."""
        kind, _, name = self._by_level[level].name.partition("/") if level in self._by_level else ("", "", "")
        return self.entries[kind][name].members if kind else frozenset()

    def _touch_level(self, level: str) -> None:
        if key := self._by_level.get(level):
            self.feed.touch(key)

    def _bound_timelines(self) -> None:
        spare = len(self.timelines) - len(self._by_level) - _SPARE_TIMELINES
        if spare <= 0:
            return
        for level in [level for level in self.timelines if level not in self._by_level][:spare]:
            del self.timelines[level]

    def _decoded(self, payload: bytes) -> Envelope | None:
        try:
            return decode(payload)
        except MalformedEvent as error:
            metrics.message_refused(metrics.Refusal.MALFORMED)
            log.debug("event_refused", reason=str(error))
            return None

    def _count(self, what: str, amount: int = 1) -> None:
        self.throughput.count(int(self._clock()), what, amount)


async def _breathe(count: int) -> None:
    """A history, or a store, comes in large pieces: pages are answered in between."""
    if count % _PIECE == 0:
        await asyncio.sleep(0)


def entry_of(kind: str, name: str, document: dict[str, Any], revision: int) -> Entry:
    """What the model keeps of a stored document."""
    metadata, spec, status = (document.get(part) or {} for part in ("metadata", "spec", "status"))
    nodes = [spec.get("nodeName", "")]
    there = [*(spec.get("trainingWorkers") or ()), *(spec.get("edgeWorkers") or ())]
    nodes += [worker.get("nodeName", "") for worker in there]
    nodes += [row.get("node", "") for row in status.get("workers") or ()]
    return Entry(
        kind,
        name,
        str(metadata.get("uid", "")),
        revision,
        _packed(document),
        dict(metadata.get("labels") or {}),
        str(status.get("phase", "")),
        tuple(sorted({node for node in nodes if node})) if kind != "EdgeNode" else (),
        tuple(status.get("workers") or ()),
        frozenset((str(row.get("node")), str(row.get("name"))) for row in status.get("workers") or ()),
        _needs(status) if kind != "EdgeNode" else "",
        datasets_of(kind, spec, status),
        models_of(spec),
        b"" if (brief := brief_of(kind, document)) is None else _packed(brief),
    )


def _packed(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")


def _needs(status: dict[str, Any]) -> str:
    """The sentence of a condition that a person should read; empty if there is none."""
    wanted = (("Failed", "True"), ("Accepted", "False"), ("Degraded", "True"), ("Ready", "False"))
    conditions = {item.get("type"): item for item in status.get("conditions") or ()}
    for kind, value in wanted:
        found = conditions.get(kind)
        if found and found.get("status") == value:
            return str(found.get("message") or found.get("reason") or kind)
    return ""


_NOTHING = Entry("", "", "", -1, b"", {})
