"""A job's examples in one SQLite file: what they are, what they are used for, and which of them each snapshot froze.

Every method is one transaction, durable when it returns (WAL, synchronous FULL). An example is known by the content of its
input: the same input is one example, under whatever ids it comes, so that it cannot be trained on and held out at once. Its
split is decided when it comes, by a hash of that content, for ever. What a snapshot froze, with the labels of that moment, is a
part of the book: a snapshot can be written again and is the same.

Blocks: used by `examples` from one thread; snapshots are read through connections of their own.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from edgeai.controller.formats.base import (
    DatasetProblem,
    Field,
    Layout,
    Record,
    Row,
    checked_label,
    id_of_array,
    numbers_of,
    read_npy,
    write_npy,
)
from edgeai.controller.formats.npz import unpacked
from edgeai.controller.hard_records import HardExample, is_example_id
from edgeai.errors import Refused, StoreError
from edgeai.events.catalogue import ExampleCounts, UnlabelledExample
from edgeai.store.damage import is_damage, set_aside

log = structlog.get_logger()

MAX_PENDING = 100_000
"""Labels that wait for an example, and other ids of examples."""
MAX_UNKNOWN = 100
MAX_ANSWER, MAX_ANSWER_BYTES, MAX_INPUT_BYTES = 1000, 600 * 1024, 512 * 1024
"""Of the examples that are shown: what fits one event."""
MAX_SHOWN = 8 * 1024
DATASET, HARD = "dataset", "hard"
TRAIN, EVAL = "train", "eval"
_FAMILIES = {
    "csv": "json",
    "jsonl": "json",
    "npz": "npz",
    "parquet": "parquet",
    "txt list": "file",
    "image folder": "file",
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS examples (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, content TEXT NOT NULL UNIQUE, id TEXT NOT NULL UNIQUE, origin TEXT NOT NULL,
    family TEXT NOT NULL, split TEXT NOT NULL, input BLOB NOT NULL, label TEXT, given INTEGER NOT NULL DEFAULT 0,
    known INTEGER NOT NULL DEFAULT 0, frozen INTEGER, time REAL NOT NULL DEFAULT 0, score REAL NOT NULL DEFAULT 0,
    predicted TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS waiting ON examples (origin, seq) WHERE label IS NULL;
CREATE INDEX IF NOT EXISTS labelled ON examples (split, known, frozen) WHERE label IS NOT NULL;
CREATE TABLE IF NOT EXISTS aliases (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, content TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS aliased ON aliases (content);
CREATE TABLE IF NOT EXISTS pending (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, label TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (round INTEGER PRIMARY KEY, format TEXT NOT NULL, layout TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS members (
    round INTEGER NOT NULL, part TEXT NOT NULL, content TEXT NOT NULL, label TEXT NOT NULL,
    PRIMARY KEY (round, part, content)) WITHOUT ROWID;
"""

_Execute = Callable[..., sqlite3.Cursor]


@dataclass(frozen=True, slots=True)
class Added:
    """What became of rows: new examples, ones that were there, and ones that got another label."""

    added: int = 0
    duplicates: int = 0
    relabelled: int = 0

    def __add__(self, other: Added) -> Added:
        return Added(self.added + other.added, self.duplicates + other.duplicates, self.relabelled + other.relabelled)


def split_of(content: str, train_fraction: float) -> str:
    """Whether an example is trained on or held out, by nothing but what it is."""
    share = int.from_bytes(hashlib.sha256(f"split {content}".encode()).digest()[:8]) / 2**64
    return TRAIN if share < train_fraction else EVAL


class ExampleBook:
    def __init__(self, path: Path, train_fraction: float, max_unlabelled: int) -> None:
        """Raises StoreError. A damaged file is set aside: rows of the dataset come again, hard examples are lost."""
        self.path, self._train_fraction, self._max_unlabelled = path, train_fraction, max_unlabelled
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                self._connection = _connected(path)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                log.error("examples_damaged", path=str(path), set_aside=str(set_aside(path)), cause=str(error))
                self._connection = _connected(path)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error

    def close(self) -> None:
        self._connection.close()

    # --- rows of the dataset

    def take(
        self,
        rows: Sequence[Row],
        format: str,
        position: Mapping[str, object],
        *,
        layout: Layout,
        known: bool,
        last: bool,
    ) -> Added:
        """Add rows, and remember how far the dataset was read. `last`: that is all that it holds now."""
        with self._transaction() as execute:
            total = Added()
            for row in rows:
                total += self._take_one(row, _FAMILIES[format], known)
            execute("INSERT OR REPLACE INTO positions VALUES ('dataset', ?)", (json.dumps(position),))
            execute("INSERT OR REPLACE INTO meta VALUES ('layout', ?)", (_dump_layout(layout),))
            if last:
                execute("INSERT OR REPLACE INTO meta VALUES ('begun', '1')")
            return total

    def _take_one(self, row: Row, family: str, known: bool) -> Added:
        execute = self._connection.execute
        if row.key:
            execute("INSERT OR IGNORE INTO seen VALUES (?)", (row.key,))
        if not row.id:
            return Added(duplicates=1)
        found = execute("SELECT label, given FROM examples WHERE content = ?", (row.id,)).fetchone()
        if found is None:
            split = split_of(row.id, self._train_fraction)
            made = execute(
                "INSERT OR IGNORE INTO examples (content, id, origin, family, split, input, label, known)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (row.id, row.id, DATASET, family, split, row.payload, row.label, known),
            )
            if row.label is None:
                self._apply_pending(row.id)
            return Added(added=made.rowcount)
        label, given = found
        if row.label is None or row.label == label or given:
            return Added(duplicates=1)
        execute("UPDATE examples SET label = ? WHERE content = ?", (row.label, row.id))
        return Added(relabelled=1)

    def position(self, name: str) -> dict[str, object]:
        found = self._connection.execute("SELECT body FROM positions WHERE name = ?", (name,)).fetchone()
        return dict(json.loads(found[0])) if found else {}

    def seen(self) -> frozenset[str]:
        return frozenset(key for (key,) in self._connection.execute("SELECT key FROM seen"))

    def begun(self) -> bool:
        """Whether all that the dataset held at first is here."""
        return self._meta("begun") == "1"

    def layout(self) -> Layout:
        text = self._meta("layout")
        return _load_layout(text) if text else Layout()

    # --- hard examples

    def add_hard(
        self, records: Iterable[HardExample], positions: Mapping[str, Mapping[str, object]] | None = None
    ) -> int:
        """Add hard examples and, with them, remember how far their log was read; returns how many are new."""
        with self._transaction() as execute:
            added = sum(self._add_one(record) for record in records)
            if positions is not None:
                execute("DELETE FROM positions WHERE name LIKE 'hard/%'")
                rows = [(f"hard/{name}", json.dumps(body)) for name, body in positions.items()]
                self._connection.executemany("INSERT INTO positions VALUES (?, ?)", rows)
            self._count("hard", added)
            self._bound()
            return added

    def _add_one(self, record: HardExample) -> bool:
        execute = self._connection.execute
        if not is_example_id(record.id):
            return False
        if self._content(record.id) is not None:
            self._suggest(record)
            return False
        content = id_of_array(read_npy(record.input))
        if execute("SELECT 1 FROM examples WHERE content = ?", (content,)).fetchone() is not None:
            execute("INSERT INTO aliases (id, content) VALUES (?, ?)", (record.id, content))
            self._apply_pending(record.id)
            self._suggest(record)
            return False
        predicted = record.predicted if len(record.predicted) <= MAX_SHOWN else ""
        execute(
            "INSERT INTO examples (content, id, origin, family, split, input, time, score, predicted)"
            " VALUES (?, ?, ?, 'npy', ?, ?, ?, ?, ?)",
            (
                content,
                record.id,
                HARD,
                split_of(content, self._train_fraction),
                record.input,
                record.time,
                record.score,
                predicted,
            ),
        )
        self._apply_pending(record.id)
        self._suggest(record)
        return True

    def _suggest(self, record: HardExample) -> None:
        """A label that a model has given is better than none. Whoever gives one later, or gave one before, knows better."""
        if record.label:
            self._connection.execute(
                "UPDATE examples SET label = ? WHERE content = ? AND label IS NULL",
                (record.label, self._content(record.id)),
            )

    def _bound(self) -> None:
        """The oldest of the hard examples that nobody labels give way."""
        execute = self._connection.execute
        [(waiting,)] = execute("SELECT count(*) FROM examples WHERE label IS NULL AND origin = ?", (HARD,))
        if waiting > self._max_unlabelled:
            gone = execute(
                "SELECT content FROM examples WHERE label IS NULL AND origin = ? ORDER BY seq LIMIT ?",
                (HARD, waiting - self._max_unlabelled),
            ).fetchall()
            self._connection.executemany("DELETE FROM aliases WHERE content = ?", gone)
            self._connection.executemany("DELETE FROM examples WHERE content = ?", gone)
            self._count("dropped", len(gone))
        for table in ("aliases", "pending"):
            execute(
                f"DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?",  # noqa: S608
                (MAX_PENDING,),
            )

    def hard_positions(self) -> dict[str, dict[str, object]]:
        rows = self._connection.execute("SELECT name, body FROM positions WHERE name LIKE 'hard/%'")
        return {name.removeprefix("hard/"): json.loads(body) for name, body in rows}

    # --- labels

    def label(
        self, labels: Iterable[tuple[str, str]], position: Mapping[str, object] | None = None
    ) -> tuple[int, int, tuple[str, ...]]:
        """Labels by id, as JSON. Taken, there already, and ids that are not here yet. Raises Refused, and takes none."""
        checked = [(name, checked_example_label(name, text)) for name, text in labels]
        with self._transaction() as execute:
            taken = already = 0
            unknown: list[str] = []
            for name, label in checked:
                content = self._content(name)
                if content is None:
                    execute(
                        "INSERT INTO pending (id, label) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET label = ?",
                        (name, label, label),
                    )
                    unknown.append(name)
                    continue
                made = execute(
                    "UPDATE examples SET label = ? WHERE content = ? AND label IS NOT ?", (label, content, label)
                ).rowcount
                execute("UPDATE examples SET given = 1 WHERE content = ?", (content,))
                taken, already = taken + made, already + (not made)
            if position is not None:
                execute("INSERT OR REPLACE INTO positions VALUES ('labels', ?)", (json.dumps(position),))
            self._bound()
            return taken, already, tuple(unknown[:MAX_UNKNOWN])

    def unlabelled(self, limit: int, inputs: bool) -> tuple[UnlabelledExample, ...]:
        """The oldest that wait for a label, as many as fit an answer."""
        rows = self._connection.execute(
            "SELECT id, time, score, predicted, input, family FROM examples WHERE label IS NULL ORDER BY seq LIMIT ?",
            (max(0, min(limit, MAX_ANSWER)),),
        )
        found: list[UnlabelledExample] = []
        size = 0
        for name, when, score, predicted, content, family in rows:
            array = _as_npy(content, family) if inputs else b""
            size += len(array) + len(predicted.encode()) + len(name) + 64
            if size > MAX_ANSWER_BYTES and found:
                break
            found.append(UnlabelledExample(name, when, score, predicted, array))
        return tuple(found)

    def canary(self, limit: int) -> bytes:
        """Inputs that are held out, of one shape, as one array in the npy format; empty if there are none, or no arrays."""
        rows = self._connection.execute(
            "SELECT input, family FROM examples WHERE split = ? ORDER BY origin, content LIMIT ?", (EVAL, 4 * limit)
        )
        arrays = [read_npy(found) for found in (_as_npy(*row) for row in rows) if found]
        alike = [each for each in arrays if (each.shape, each.dtype) == (arrays[0].shape, arrays[0].dtype)][:limit]
        return write_npy(np.stack(alike)) if alike else b""

    def _content(self, name: str) -> str | None:
        found = self._connection.execute(
            "SELECT content FROM examples WHERE id = ? UNION ALL SELECT content FROM aliases WHERE id = ? LIMIT 1",
            (name, name),
        ).fetchone()
        return found[0] if found else None

    def _apply_pending(self, name: str) -> None:
        execute = self._connection.execute
        found = execute("SELECT label FROM pending WHERE id = ?", (name,)).fetchone()
        if found is not None:
            execute(
                "UPDATE examples SET label = ?, given = 1 WHERE content = ? AND given = 0",
                (*found, self._content(name)),
            )
            execute("DELETE FROM pending WHERE id = ?", (name,))

    # --- counts and snapshots

    def dropped(self) -> int:
        """Hard examples that gave way before anybody labelled them."""
        return int(self._meta("dropped") or 0)

    def counts(self) -> ExampleCounts:
        rows = self._connection.execute(
            "SELECT split, sum(1), sum(known = 0 AND frozen IS NULL) FROM examples WHERE label IS NOT NULL GROUP BY split"
        )
        by_split = {split: (count, new) for split, count, new in rows}
        train, new = by_split.get(TRAIN, (0, 0))
        [(waiting,)] = self._connection.execute("SELECT count(*) FROM examples WHERE label IS NULL")
        return ExampleCounts(
            train=train,
            held_out=by_split.get(EVAL, (0, 0))[0],
            new=new,
            unlabelled=waiting,
            hard=int(self._meta("hard") or 0),
        )

    def freeze(self, number: int, format: str = "") -> tuple[str, Layout]:
        """Decide, once, what is in the snapshot of a round, and in which format: that of the dataset, unless another is given.

        Raises DatasetProblem: nothing to train on, or to evaluate with.
        """
        found = self._connection.execute("SELECT format, layout FROM snapshots WHERE round = ?", (number,)).fetchone()
        if found is not None:
            return found[0], _load_layout(found[1])
        counts = self.counts()
        if not counts.train or not counts.held_out:
            what = "to train on" if not counts.train else "held out"
            raise DatasetProblem(
                f"there is no labelled example {what} yet: {counts.train} to train on, {counts.held_out} held out,"
                f" {counts.unlabelled} wait for a label"
            )
        layout, format = self.layout(), format or str(self.position("dataset").get("format", "npz"))
        with self._transaction() as execute:
            execute("INSERT INTO snapshots VALUES (?, ?, ?)", (number, format, _dump_layout(layout)))
            execute(
                "INSERT INTO members SELECT ?, CASE WHEN split = ? THEN 'eval' WHEN known THEN 'old' ELSE 'new' END,"
                " content, label FROM examples WHERE label IS NOT NULL",
                (number, EVAL),
            )
            execute(
                "UPDATE examples SET frozen = ? WHERE frozen IS NULL AND label IS NOT NULL AND split = ?",
                (number, TRAIN),
            )
        return format, layout

    def mark_trained(self, number: int) -> int:
        """What a model has learned from; returns for how many that is new."""
        with self._transaction() as execute:
            return execute(
                "UPDATE examples SET known = 1 WHERE known = 0 AND content IN"
                " (SELECT content FROM members WHERE round = ? AND part = 'new')",
                (number,),
            ).rowcount

    def forget_snapshots(self, numbers: Collection[int]) -> None:
        with self._transaction():
            for table in ("members", "snapshots"):
                self._connection.executemany(
                    f"DELETE FROM {table} WHERE round = ?",  # noqa: S608
                    [(number,) for number in numbers],
                )

    # --- inside

    def _meta(self, name: str) -> str:
        found = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else ""

    def _count(self, name: str, more: int) -> None:
        if more:
            total = int(self._meta(name) or 0) + more
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, str(total)))

    @contextmanager
    def _transaction(self) -> Iterator[_Execute]:
        """Whole or not at all. Raises StoreError."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection.execute
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise StoreError(f"{self.path} cannot be written: {error}") from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def members(path: Path, number: int, part: str, format: str) -> Iterator[Record]:
    """The examples of one part of a snapshot, by content. Those of another kind of dataset are given as what they are not:
    the format leaves them out. Through a connection of its own, so that nothing waits for it."""
    family = _FAMILIES[format]
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT e.content, m.label, e.input, e.family FROM members m JOIN examples e ON e.content = m.content"
            " WHERE m.round = ? AND m.part = ? ORDER BY m.content",
            (number, part),
        )
        for content, label, payload, found in rows:
            yield Record(content, label, payload if found in {family, "npy"} else b"", hard=found != family)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        [(answer,)] = connection.execute("PRAGMA quick_check(1)")
        if answer != "ok":
            raise sqlite3.DatabaseError(str(answer))
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


def checked_example_label(name: str, text: str) -> str:
    """A label as it is stored. Raises Refused."""
    if not is_example_id(name):
        raise Refused(f"{name[:50]!r} is no id of an example")
    try:
        label = checked_label(text)
    except ValueError as error:
        raise Refused(f"the label of {name} is no JSON value: {error}") from error
    if label == "null":
        raise Refused(f"the label of {name} is null; a label is a value")
    return label


def _as_npy(content: bytes, family: str) -> bytes:
    """An input as an array in the npy format; empty if it is none, or too big for an answer."""
    match family:
        case "npy":
            found = content
        case "npz":
            arrays = list(unpacked(content).values())
            found = write_npy(arrays[0]) if len(arrays) == 1 else b""
        case "json":
            numbers = numbers_of(json.loads(content))
            found = write_npy(numbers) if numbers is not None else b""
        case _:
            found = b""
    return found if len(found) <= MAX_INPUT_BYTES else b""


def _dump_layout(layout: Layout) -> str:
    return json.dumps([[[each.name, each.dtype, each.shape] for each in layout.fields], layout.label, layout.extra])


def _load_layout(text: str) -> Layout:

    fields, label, extra = json.loads(text)
    return Layout(tuple(Field(name, dtype, tuple(shape)) for name, dtype, shape in fields), label, extra)
