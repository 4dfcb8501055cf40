"""What a node or a worker remembers: one SQLite file, one writer, whole transactions.

It holds the states of machines with what is left of their timers, the outbox of facts, and the state documents that were
published or read. New states and the facts that go with them are committed together. WAL with `synchronous=FULL`: what a
call has returned from survives a power cut. The file is made anew, under a new incarnation, if it is lost or damaged; the
damaged one is set aside by name. One process at a time holds it: the lock is on a file beside it and ends with the process.

It knows nothing of what the states and facts mean: callers hand in bytes (reactor, outbox, documents).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import structlog

from edgeai.errors import StoreError
from edgeai.store.damage import is_damage, set_aside

log = structlog.get_logger()
T = TypeVar("T")

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

    def __init__(self, path: Path, connection: aiosqlite.Connection, hold: int, incarnation: int) -> None:
        self._path, self._connection, self._hold = path, connection, hold
        self._lock = asyncio.Lock()
        self.incarnation = incarnation

    @staticmethod
    async def open(path: Path) -> EdgeStore:
        """Raises StoreError: another process holds it, or it cannot be read for a reason that may pass (rights, space)."""
        hold = _hold(path)
        try:
            connection = await _connect_or_set_aside(path)
            [(incarnation,)] = await connection.execute_fetchall("SELECT value FROM meta WHERE name = 'incarnation'")
        except BaseException:
            os.close(hold)
            raise
        return EdgeStore(path, connection, hold, incarnation)

    async def close(self) -> None:
        """Waits for what is being written."""
        async with self._lock:
            await self._connection.close()
            if self._hold >= 0:
                os.close(self._hold)
                self._hold = -1

    async def load(self, machine: str = "") -> Loaded:
        """The states and timers of one machine as last committed. Several may live in one store: each has a name."""
        states = await self._read(_STATES_OF, *_own(machine))
        timers = await self._read(_TIMERS_OF, *_own(machine))
        return Loaded(dict(states), {(key, name): left for key, name, left in timers})

    async def commit(
        self,
        states: Mapping[str, bytes | None],
        timers: Mapping[tuple[str, str], float],
        facts: Sequence[FactMaker] = (),
        machine: str = "",
    ) -> None:
        """Write new states of a machine (None removes), all its running timers, and facts, in one transaction."""
        prefix = _prefix(machine)

        async def write() -> None:
            execute, execute_many = self._connection.execute, self._connection.executemany
            for key, body in states.items():
                if body is None:
                    await execute("DELETE FROM states WHERE key = ?", (prefix + key,))
                else:
                    await execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (prefix + key, body))
            await execute(_NO_TIMERS_OF, _own(machine)[1:])
            rows = [(prefix + key, name, left) for (key, name), left in timers.items()]
            await execute_many("INSERT INTO timers VALUES (?, ?, ?)", rows)
            if facts:
                [(last,)] = await self._connection.execute_fetchall("SELECT value FROM meta WHERE name = 'sequence'")
                told = [(number, *make(number)) for number, make in enumerate(facts, last + 1)]
                await execute_many("INSERT INTO outbox VALUES (?, ?, ?)", told)
                await execute("UPDATE meta SET value = ? WHERE name = 'sequence'", (last + len(told),))

        await self._written(write)

    async def waiting(self, after: int, limit: int) -> list[Row]:
        """Facts without receipt, in order, from the one after sequence `after` on."""
        rows = await self._read(
            "SELECT sequence, topic, payload FROM outbox WHERE sequence > ? ORDER BY sequence LIMIT ?", after, limit
        )
        return [Row(*row) for row in rows]

    async def waiting_count(self) -> int:
        [(count,)] = await self._read("SELECT count(*) FROM outbox")
        return int(count)

    async def remove_until(self, sequence: int) -> int:
        """Drop the facts up to and including `sequence`; returns how many."""

        async def write() -> int:
            return (await self._connection.execute("DELETE FROM outbox WHERE sequence <= ?", (sequence,))).rowcount

        return await self._written(write)

    async def documents(self) -> list[DocumentRow]:
        rows = await self._read("SELECT topic, own, incarnation, generation, payload FROM documents ORDER BY topic")
        return [DocumentRow(topic, bool(own), *rest) for topic, own, *rest in rows]

    async def save_document(self, row: DocumentRow) -> None:
        async def write() -> None:
            await self._connection.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)",
                (row.topic, row.own, row.incarnation, row.generation, row.payload),
            )

        await self._written(write)

    async def drop_document(self, topic: str) -> None:
        async def write() -> None:
            await self._connection.execute("DELETE FROM documents WHERE topic = ?", (topic,))

        await self._written(write)

    async def _read(self, statement: str, *values: object) -> Iterable[Any]:
        """Never in the middle of a transaction: there is one connection, and it sees what is not committed yet."""
        async with self._lock:
            try:
                return await self._connection.execute_fetchall(statement, values)
            except sqlite3.Error as error:
                raise StoreError(f"{self._path} cannot be read: {error}") from error

    async def _written(self, write: Callable[[], Awaitable[T]]) -> T:
        """One transaction, whole or not at all. It is not interrupted: after half a cancellation nobody knows which."""
        return await asyncio.shield(asyncio.ensure_future(self._transaction(write)))

    async def _transaction(self, write: Callable[[], Awaitable[T]]) -> T:
        async with self._lock:
            try:
                result = await write()
                await self._connection.commit()
            except sqlite3.Error as error:
                await self._connection.rollback()
                raise StoreError(f"{self._path} cannot be written: {error}") from error
            except BaseException:
                await self._connection.rollback()
                raise
            return result


# Keys hold no colon, so the name of a machine and a colon in front tell its keys from those of the others.
_STATES_OF = "SELECT substr(key, ?), body FROM states WHERE substr(key, 1, instr(key, ':')) = ? ORDER BY key"
_TIMERS_OF = "SELECT substr(key, ?), name, left_s FROM timers WHERE substr(key, 1, instr(key, ':')) = ?"
_NO_TIMERS_OF = "DELETE FROM timers WHERE substr(key, 1, instr(key, ':')) = ?"


def _prefix(machine: str) -> str:
    return f"{machine}:" if machine else ""


def _own(machine: str) -> tuple[int, str]:
    """Where the keys of a machine begin, and what stands before that."""
    prefix = _prefix(machine)
    return len(prefix) + 1, prefix


def _hold(path: Path) -> int:
    """A handle that holds the store until it is closed or this process ends; children do not inherit it."""
    beside = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{beside} cannot be opened: {error.strerror or error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise StoreError(f"{path} is in use by process {holder}: stop it, or choose another state directory") from error
    os.truncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


async def _connect_or_set_aside(path: Path) -> aiosqlite.Connection:
    try:
        return await _connect(path, time.time_ns())
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise StoreError(f"{path} cannot be opened: {error}") from error
        incarnation = _replaced(path, str(error))
    return await _connect(path, incarnation)


def _replaced(path: Path, cause: str) -> int:
    """Set a damaged file aside; returns the incarnation of the one that follows."""
    # Readers take the higher incarnation for the newer one, also when the clock was set back meanwhile.
    incarnation = max(time.time_ns(), path.stat().st_mtime_ns + 1)
    log.error("store_damaged", path=str(path), set_aside=str(set_aside(path)), cause=cause)
    return incarnation


async def _connect(path: Path, incarnation: int) -> aiosqlite.Connection:
    """Open the file, new or not, with everything in it. `incarnation` is what a new one gets."""
    # First here: aiosqlite's own thread may outlive the event loop when the file cannot be opened.
    await asyncio.to_thread(lambda: sqlite3.connect(path).close())
    connection = await aiosqlite.connect(path)
    try:
        await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute("PRAGMA synchronous=FULL")
        [(answer,)] = await connection.execute_fetchall("PRAGMA quick_check(1)")
        if answer != "ok":
            raise sqlite3.DatabaseError(str(answer))
        await connection.executescript(_SCHEMA)
        await connection.execute(
            "INSERT OR IGNORE INTO meta VALUES ('incarnation', ?), ('sequence', 0)", (incarnation,)
        )
        await connection.commit()
    except BaseException:
        await connection.close()
        raise
    return connection
