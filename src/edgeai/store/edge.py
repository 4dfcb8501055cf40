"""What a node or a worker remembers: one SQLite file, one writer, whole transactions.

It holds the states of machines with what is left of their timers, the outbox of facts, and the state documents that were
published or read. New states and the facts that go with them are committed together. WAL with `synchronous=FULL`: what a
call has returned from survives a power cut. The file is made anew, under a new incarnation, if it is lost or damaged; the
damaged one is set aside by name.

It knows nothing of what the states and facts mean: callers hand in bytes (reactor, outbox, documents).
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiosqlite
import structlog

from edgeai.errors import StoreError

log = structlog.get_logger()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS states (key TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS timers (key TEXT NOT NULL, name TEXT NOT NULL, left_s REAL NOT NULL, PRIMARY KEY (key, name));
CREATE TABLE IF NOT EXISTS outbox (sequence INTEGER PRIMARY KEY, topic TEXT NOT NULL, payload BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    topic TEXT PRIMARY KEY, own INTEGER NOT NULL, incarnation INTEGER NOT NULL, generation INTEGER NOT NULL,
    payload BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One fact that waits for its receipt."""

    sequence: int
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A state document: `own` if this store's owner publishes it, else one that was read."""

    topic: str
    own: bool
    incarnation: int
    generation: int
    payload: bytes


@dataclass(slots=True)
class Loaded:
    states: dict[str, bytes] = field(default_factory=dict)
    timers: dict[tuple[str, str], float] = field(default_factory=dict)


FactMaker = Callable[[int], tuple[str, bytes]]
"""Given its sequence number, makes a fact's topic and payload."""


class EdgeStore:
    """Open with `await EdgeStore.open(path)`, close with `await store.close()`."""

    def __init__(self, path: Path, connection: aiosqlite.Connection, incarnation: int, sequence: int) -> None:
        self._path, self._connection = path, connection
        self._lock = asyncio.Lock()
        self._sequence = sequence
        self.incarnation = incarnation

    @staticmethod
    async def open(path: Path) -> EdgeStore:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = await _connect(path)
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            for leftover in (path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
                leftover.unlink(missing_ok=True)
            log.error("store_damaged", path=str(path), set_aside=str(aside), cause=str(error))
            connection = await _connect(path)
        await connection.execute(
            "INSERT OR IGNORE INTO meta VALUES ('incarnation', ?), ('sequence', 0)", (time.time_ns(),)
        )
        await connection.commit()
        meta = {name: value for name, value in await connection.execute_fetchall("SELECT name, value FROM meta")}
        return EdgeStore(path, connection, meta["incarnation"], meta["sequence"])

    async def close(self) -> None:
        await self._connection.close()

    async def load(self) -> Loaded:
        """The states and timers as last committed."""
        states = await self._connection.execute_fetchall("SELECT key, body FROM states ORDER BY key")
        timers = await self._connection.execute_fetchall("SELECT key, name, left_s FROM timers")
        return Loaded(
            {key: body for key, body in states}, {(key, name): left for key, name, left in timers}
        )

    async def commit(
        self,
        states: Mapping[str, bytes | None],
        timers: Mapping[tuple[str, str], float],
        facts: Sequence[FactMaker] = (),
    ) -> None:
        """Write new states (None removes), all running timers, and facts, in one transaction."""
        async with self._lock:
            sequence, rows = self._sequence, []
            for make in facts:
                sequence += 1
                rows.append((sequence, *make(sequence)))
            try:
                for key, body in states.items():
                    if body is None:
                        await self._connection.execute("DELETE FROM states WHERE key = ?", (key,))
                    else:
                        await self._connection.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (key, body))
                await self._connection.execute("DELETE FROM timers")
                await self._connection.executemany(
                    "INSERT INTO timers VALUES (?, ?, ?)", [(*name, left) for name, left in timers.items()]
                )
                if rows:
                    await self._connection.executemany("INSERT INTO outbox VALUES (?, ?, ?)", rows)
                    await self._connection.execute("UPDATE meta SET value = ? WHERE name = 'sequence'", (sequence,))
                await self._connection.commit()
            except sqlite3.Error as error:
                await self._connection.rollback()
                raise StoreError(f"{self._path} cannot be written: {error}") from error
            except BaseException:
                await self._connection.rollback()
                raise
            self._sequence = sequence

    async def waiting(self, after: int, limit: int) -> list[Row]:
        """Facts without receipt, in order, from the one after sequence `after` on."""
        rows = await self._connection.execute_fetchall(
            "SELECT sequence, topic, payload FROM outbox WHERE sequence > ? ORDER BY sequence LIMIT ?", (after, limit)
        )
        return [Row(*row) for row in rows]

    async def waiting_count(self) -> int:
        [(count,)] = await self._connection.execute_fetchall("SELECT count(*) FROM outbox")
        return int(count)

    async def remove_until(self, sequence: int) -> int:
        """Drop the facts up to and including `sequence`; returns how many."""
        async with self._lock:
            cursor = await self._connection.execute("DELETE FROM outbox WHERE sequence <= ?", (sequence,))
            await self._connection.commit()
            return cursor.rowcount

    async def documents(self) -> list[DocumentRow]:
        rows = await self._connection.execute_fetchall(
            "SELECT topic, own, incarnation, generation, payload FROM documents ORDER BY topic"
        )
        return [DocumentRow(topic, bool(own), *rest) for topic, own, *rest in rows]

    async def save_document(self, row: DocumentRow) -> None:
        async with self._lock:
            await self._connection.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)",
                (row.topic, row.own, row.incarnation, row.generation, row.payload),
            )
            await self._connection.commit()

    async def drop_document(self, topic: str) -> None:
        async with self._lock:
            await self._connection.execute("DELETE FROM documents WHERE topic = ?", (topic,))
            await self._connection.commit()


async def _connect(path: Path) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path)
    try:
        await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute("PRAGMA synchronous=FULL")
        [(answer,)] = await connection.execute_fetchall("PRAGMA quick_check(1)")
        if answer != "ok":
            raise sqlite3.DatabaseError(str(answer))
        await connection.executescript(_SCHEMA)
        await connection.commit()
    except BaseException:
        await connection.close()
        raise
    return connection
