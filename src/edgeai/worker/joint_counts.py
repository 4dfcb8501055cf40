"""What a worker of a joint inference service counts and tells: sums that go on after a restart, and the signal `Inferring`.

The sums are one small file in the slot directory, written at most once a second and when the worker ends. What is counted, and
when, is the business of `joint_edge` and `joint_cloud`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from edgeai.bus.base import Bus
from edgeai.errors import BusError, StoreError
from edgeai.events.address import Address, Direction
from edgeai.events.catalogue import Inferences, Inferring, Scores
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.launcher.slots import read_untrusted
from edgeai.resources.base import Count
from edgeai.store.files import write_whole
from edgeai.store.identity import new_id
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.joint_scores import ScoreSums

log = structlog.get_logger()

TELL_S = 1.0
MAX_MODELS, MAX_FILE_BYTES = 32, 64 * 1024
FILE = "inferences.json"


@dataclass(frozen=True, slots=True)
class CountsFile:
    counts: Inferences = field(default_factory=Inferences)
    models: dict[str, Count] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)


_FILE = TypeAdapter(CountsFile)


class Counts:
    """Sums by the names of `Inferences`, inferences by digest of the model that was asked first, and `scores` of the mining."""

    def __init__(self, folder: Path, mining: str = "") -> None:
        """What stood there before; nothing, if that is damaged. `mining` as in `resources.mining.described`; empty: none."""
        self._path = folder / FILE
        try:
            found = _FILE.validate_json(read_untrusted(self._path, MAX_FILE_BYTES))
        except FileNotFoundError:
            found = CountsFile()
        except (OSError, ValidationError) as error:
            log.warning("counts_begin_anew", path=str(self._path), reason=str(error).splitlines()[0])
            found = CountsFile()
        self._sums: dict[str, int] = asdict(found.counts)
        self._models = dict(found.models)
        self.scores = ScoreSums(mining, found.scores)
        self._saved = self.noted()

    def add(self, name: str, amount: int = 1) -> None:
        self._sums[name] += amount

    def asked(self, digest: str) -> None:
        """The model that a request asks first."""
        if digest:
            self._models[digest] = self._models.pop(digest, 0) + 1
            while len(self._models) > MAX_MODELS:
                del self._models[next(iter(self._models))]

    def __getitem__(self, name: str) -> int:
        return self._sums[name]

    def noted(self) -> CountsFile:
        return CountsFile(Inferences(**self._sums), dict(self._models), self.scores.noted())

    def save(self) -> None:
        """Blocks."""
        noted = self.noted()
        if noted == self._saved:
            return
        try:
            write_whole(self._path, _FILE.dump_json(noted))
            self._saved = noted
        except StoreError as error:
            log.warning("counts_not_saved", reason=str(error))


class Teller:
    """Tells the controller every second, and at once when `changed` is set; keeps the sums on disk."""

    def __init__(self, environment: WorkerEnvironment, bus: Bus, counts: Counts, changed: asyncio.Event) -> None:
        self._environment, self._bus, self._counts, self._changed = environment, bus, counts, changed

    async def run(self, figures: Callable[[], Inferring]) -> None:
        while True:
            self._changed.clear()
            await self._publish(figures())
            await asyncio.to_thread(self._counts.save)
            try:
                async with asyncio.timeout(TELL_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _publish(self, event: Inferring) -> None:
        me = self._environment
        to = Address(me.node, Direction.LOCAL, event.event_class, event.kind, me.task, me.worker)
        try:
            await self._bus.publish(to, encode(Envelope(Header(me.source), event, new_id(), time.time(), me.task)))
        except BusError as error:
            log.debug("event_not_sent", kind=event.kind, cause=str(error))
