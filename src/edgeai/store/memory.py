"""The stores in one process, without a broker: for tests and for the world of `edgeai.testing`.

They pass the same contract as the real ones (`tests/contract/`), so a test that passes with them means something. They
keep documents as packed bytes, so that no caller can change what is stored by changing what it was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from edgeai.bus.base import Bus
from edgeai.errors import BusUnavailable, Conflict, DamagedFile, NotFound
from edgeai.events.address import Address, Pattern
from edgeai.store.base import Change, Document, Stored
from edgeai.store.files import digest_bytes, is_digest, read_checked, write_whole
from edgeai.store.history import BATCH_RECORDS, FACTS, FactRecord
from edgeai.store.layout import checked_kind, checked_kinds, key_of, pack, parse_key, unpack

_URL = "memory://"


class MemoryResourceStore:
    """Documents in a dictionary. While `reachable` is False every call raises BusUnavailable."""

    def __init__(self) -> None:
        self.reachable = True
        self._revision = 0
        self._entries: dict[str, tuple[int, bytes]] = {}
        self._watchers: dict[asyncio.Queue[Change | None], frozenset[str]] = {}

    async def ensure(self) -> None:
        _check(self.reachable)

    async def get(self, kind: str, name: str) -> Stored:
        _check(self.reachable)
        key = key_of(kind, name)
        if key not in self._entries:
            raise NotFound(kind, name)
        return self._stored(key)

    async def list(self, kind: str) -> list[Stored]:
        _check(self.reachable)
        start = f"{checked_kind(kind)}."
        return [self._stored(key) for key in sorted(self._entries) if key.startswith(start)]

    async def create(self, kind: str, name: str, document: Document) -> Stored:
        _check(self.reachable)
        key = key_of(kind, name)
        if key in self._entries:
            raise Conflict(kind, name, "exists already")
        return self._write(key, document)

    async def replace(self, stored: Stored, document: Document) -> Stored:
        return self._write(self._current(stored), document)

    async def delete(self, stored: Stored) -> None:
        del self._entries[self._current(stored)]
        self._revision += 1
        self._tell(Change(stored.kind, stored.name, None, self._revision))

    @asynccontextmanager
    async def watch(self, *kinds: str) -> AsyncIterator[AsyncIterator[Change | None]]:
        _check(self.reachable)
        wanted = frozenset(checked_kinds(kinds))
        changes: asyncio.Queue[Change | None] = asyncio.Queue()
        for key in sorted(self._entries, key=lambda key: self._entries[key][0]):
            if parse_key(key)[0] in wanted:
                changes.put_nowait(_change(self._stored(key)))
        changes.put_nowait(None)
        self._watchers[changes] = wanted
        try:
            yield _taken(changes)
        finally:
            del self._watchers[changes]

    def _current(self, stored: Stored) -> str:
        _check(self.reachable)
        key = key_of(stored.kind, stored.name)
        if self._entries.get(key, (0, b""))[0] != stored.revision:
            raise Conflict(stored.kind, stored.name)
        return key

    def _write(self, key: str, document: Document) -> Stored:
        data = pack(document)
        self._revision += 1
        self._entries[key] = (self._revision, data)
        self._tell(_change(self._stored(key)))
        return self._stored(key)

    def _stored(self, key: str) -> Stored:
        revision, data = self._entries[key]
        return Stored(*parse_key(key), unpack(key, data), revision)

    def _tell(self, change: Change) -> None:
        for changes, wanted in self._watchers.items():
            if change.kind in wanted:
                changes.put_nowait(change)


class MemoryBlobStore:
    """Blobs in a dictionary. While `reachable` is False every call raises BusUnavailable."""

    def __init__(self) -> None:
        self.reachable = True
        self._blobs: dict[str, bytes] = {}

    async def ensure(self) -> None:
        _check(self.reachable)

    async def put(self, digest: str, path: Path) -> None:
        _check(self.reachable)
        if not is_digest(digest):
            raise DamagedFile(path, f"{digest[:80]!r} is not a digest")
        if digest not in self._blobs:
            self._blobs[digest] = await asyncio.to_thread(read_checked, path, digest)

    async def get(self, digest: str, path: Path) -> None:
        _check(self.reachable)
        if digest not in self._blobs:
            raise NotFound("blob", digest[:80])
        data = self._blobs[digest]
        if digest_bytes(data) != digest:
            raise DamagedFile(path, "the stored blob has another digest")
        await asyncio.to_thread(write_whole, path, data)

    async def has(self, digest: str) -> bool:
        _check(self.reachable)
        return digest in self._blobs

    async def delete(self, digest: str) -> None:
        _check(self.reachable)
        self._blobs.pop(digest, None)


class MemoryFactStream:
    """Facts in a list. `capture` fills it from a bus, as the real stream is filled by its server; `record` by hand."""

    def __init__(self) -> None:
        self.dropped = 0
        self._facts: list[FactRecord] = []
        self._acknowledged: dict[str, set[int]] = {}
        self._grown = asyncio.Event()

    async def ensure(self) -> None:
        pass

    def record(self, address: Address, payload: bytes) -> int:
        """Append a fact and return its sequence."""
        sequence = len(self._facts) + 1
        self._facts.append(FactRecord(sequence, address, payload))
        self._grown.set()
        self._grown = asyncio.Event()
        return sequence

    @asynccontextmanager
    async def capture(self, bus: Bus) -> AsyncIterator[None]:
        """Record every fact that passes on `bus` until the context is left."""
        async with bus.subscribe(FACTS) as deliveries:

            async def record_all() -> None:
                async for delivery in deliveries:
                    self.record(delivery.address, delivery.payload)

            recording = asyncio.create_task(record_all())
            try:
                yield
            finally:
                recording.cancel()
                await asyncio.gather(recording, return_exceptions=True)

    @asynccontextmanager
    async def consume(self, durable: str) -> AsyncIterator[AsyncIterator[list[FactRecord]]]:
        yield self._batches(durable, self._acknowledged.setdefault(durable, set()))

    async def ack(self, batch: Sequence[FactRecord]) -> None:
        for record in batch:
            self._acknowledged[record.receipt].add(record.sequence)

    async def backlog(self, durable: str) -> int:
        return len(self._facts) - len(self._acknowledged.get(durable, ()))

    async def used(self) -> tuple[int, int]:
        return sum(len(record.payload) for record in self._facts), 0

    async def read(
        self, task: str | None = None, after_sequence: int = 0, follow: bool = False
    ) -> AsyncIterator[FactRecord]:
        wanted = Pattern(task=task)
        while True:
            grown = self._grown
            for record in self._facts[after_sequence:]:
                after_sequence = record.sequence
                if wanted.matches(record.address):
                    yield record
            if not follow:
                return
            await grown.wait()

    async def _batches(self, durable: str, acknowledged: set[int]) -> AsyncIterator[list[FactRecord]]:
        delivered = 0
        while True:
            grown = self._grown
            batch = [
                FactRecord(record.sequence, record.address, record.payload, durable)
                for record in self._facts[delivered:]
                if record.sequence not in acknowledged
            ][:BATCH_RECORDS]
            if batch:
                delivered = batch[-1].sequence
                yield batch
            else:
                await grown.wait()


def _check(reachable: bool) -> None:
    if not reachable:
        raise BusUnavailable(_URL, "made unreachable")


def _change(stored: Stored) -> Change:
    return Change(stored.kind, stored.name, stored.document, stored.revision)


async def _taken(changes: asyncio.Queue[Change | None]) -> AsyncIterator[Change | None]:
    while True:
        yield await changes.get()
