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
    Misfit,
    Record,
    Row,
    checked_label,
    id_of_array,
    numbers_of,
    read_npy,
    write_npy,
)
from edgeai.controller.formats.npz import unpacked
from edgeai.controller.formats.registry import format_named
from edgeai.controller.hard_records import MAX_ID, HardExample, is_example_id
from edgeai.errors import NotFound, Refused, StoreError
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
    predicted TEXT NOT NULL DEFAULT '', bytes INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS waiting ON examples (origin, seq) WHERE label IS NULL;
CREATE INDEX IF NOT EXISTS labelled ON examples (split, known, frozen) WHERE label IS NOT NULL;
CREATE TABLE IF NOT EXISTS aliases (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, content TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS aliased ON aliases (content);
CREATE TABLE IF NOT EXISTS pending (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, label TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS parted (content TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unlinking (name TEXT PRIMARY KEY) WITHOUT ROWID;
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


@dataclass(frozen=True, slots=True)
class Tally:
    """What inference workers have counted: those of earlier runs, and the one that runs, by what it said last."""

    run: str = ""
    of_run: tuple[int, int, int] = (0, 0, 0)
    """requests, hard ones, and hard ones that were not kept"""
    earlier: tuple[int, int, int] = (0, 0, 0)

    @property
    def requests(self) -> int:
        return self.earlier[0] + self.of_run[0]

    @property
    def hard(self) -> int:
        return self.earlier[1] + self.of_run[1]

    @property
    def dropped(self) -> int:
        return self.earlier[2] + self.of_run[2]

    def counted(self, run: str, requests: int, hard: int, dropped: int = 0) -> Tally:
        """A worker's own counts begin anew with each run and never fall in one."""
        if run != self.run:
            return Tally(run, (requests, hard, dropped), (self.requests, self.hard, self.dropped))
        before = self.of_run
        return Tally(run, (max(requests, before[0]), max(hard, before[1]), max(dropped, before[2])), self.earlier)


@dataclass(frozen=True, slots=True)
class Dropped:
    """How many examples have left to keep within a limit, by what they were; and the bytes over it that cannot leave.

    `refused`: records of an inference worker that were no hard examples.
    """

    unlabelled: int = 0
    refused: int = 0
    known: int = 0
    held_out: int = 0
    over_bytes: int = 0


def split_of(content: str, train_fraction: float) -> str:
    """Whether an example is trained on or held out, by nothing but what it is."""
    share = int.from_bytes(hashlib.sha256(f"split {content}".encode()).digest()[:8]) / 2**64
    return TRAIN if share < train_fraction else EVAL


class ExampleBook:
    def __init__(self, path: Path, train_fraction: float, max_unlabelled: int, max_bytes: int) -> None:
        """`max_bytes`: of labelled examples. Raises StoreError.

        A damaged file is set aside: rows of the dataset come again, hard examples are lost.
        """
        self.path, self._train_fraction, self._max_unlabelled = path, train_fraction, max_unlabelled
        self._limits = {TRAIN: int(max_bytes * train_fraction), EVAL: int(max_bytes * (1 - train_fraction))}
        self._max_bytes = max_bytes
        self._grown_bytes, self._over_bytes = 0, 0
        self._told_of_ids = False
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
        with self._read():
            self._over_bytes = max(0, sum(self._sizes().values()) - max_bytes)
        self._unlink()

    @property
    def files(self) -> Path:
        """Inputs that are files, by id."""
        return self.path.with_name("files")

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
            if last or self._grown_bytes > self._max_bytes // 64:
                self._bound_bytes()
        self._unlink()
        return total

    def _take_one(self, row: Row, family: str, known: bool) -> Added:
        execute = self._connection.execute
        if row.key:
            execute("INSERT OR IGNORE INTO seen VALUES (?)", (row.key,))
        if not row.id or self._has_parted(row.id):
            return Added(duplicates=1)
        found = execute("SELECT label, given FROM examples WHERE content = ?", (row.id,)).fetchone()
        if found is None:
            split = split_of(row.id, self._train_fraction)
            made = execute(
                "INSERT OR IGNORE INTO examples (content, id, origin, family, split, input, label, known, bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (row.id, row.id, DATASET, family, split, row.payload, row.label, known, _bytes_of(row)),
            )
            self._grown_bytes += _bytes_of(row)
            if row.label is None:
                self._apply_pending(row.id)
            return Added(added=made.rowcount)
        label, given = found
        if row.label is None or row.label == label or given:
            return Added(duplicates=1)
        # Whatever has learned from it has learned something else.
        execute("UPDATE examples SET label = ?, known = ?, frozen = NULL WHERE content = ?", (row.label, known, row.id))
        return Added(relabelled=1)

    def position(self, name: str) -> dict[str, object]:
        with self._read() as execute:
            found = execute("SELECT body FROM positions WHERE name = ?", (name,)).fetchone()
        return dict(json.loads(found[0])) if found else {}

    def seen(self) -> frozenset[str]:
        with self._read() as execute:
            return frozenset(key for (key,) in execute("SELECT key FROM seen"))

    def begun(self) -> bool:
        """Whether all that the dataset held at first is here."""
        with self._read():
            return self._meta("begun") == "1"

    def layout(self) -> Layout:
        with self._read():
            text = self._meta("layout")
        return _load_layout(text) if text else Layout()

    # --- hard examples

    def add_hard(
        self,
        records: Iterable[HardExample],
        positions: Mapping[str, Mapping[str, object]] | None = None,
        refused: int = 0,
    ) -> int:
        """Add hard examples and, with them, remember how far their log was read; returns how many are new.

        `refused`: so many records beside them were no hard examples.
        """
        with self._transaction() as execute:
            added = sum(self._add_one(record) for record in records)
            if positions is not None:
                execute("DELETE FROM positions WHERE name LIKE 'hard/%'")
                rows = [(f"hard/{name}", json.dumps(body)) for name, body in positions.items()]
                self._connection.executemany("INSERT INTO positions VALUES (?, ?)", rows)
            self._count("hard", added)
            self._count("refused", refused)
            self._bound()
            return added

    def _add_one(self, record: HardExample) -> bool:
        execute = self._connection.execute
        if not is_example_id(record.id):
            return False
        content = id_of_array(read_npy(record.input))
        name = self._free_name(record.id, content)
        if not name:
            self._suggest(record.id, record)
        if not name or self._has_parted(content):
            return False
        if execute("SELECT 1 FROM examples WHERE content = ?", (content,)).fetchone() is not None:
            execute("INSERT INTO aliases (id, content) VALUES (?, ?)", (name, content))
            self._apply_pending(name)
            self._suggest(name, record)
            return False
        predicted = record.predicted if len(record.predicted) <= MAX_SHOWN else ""
        execute(
            "INSERT INTO examples (content, id, origin, family, split, input, time, score, predicted, bytes)"
            " VALUES (?, ?, ?, 'npy', ?, ?, ?, ?, ?, ?)",
            (
                content,
                name,
                HARD,
                split_of(content, self._train_fraction),
                record.input,
                record.time,
                record.score,
                predicted,
                len(record.input),
            ),
        )
        self._apply_pending(name)
        self._suggest(name, record)
        return True

    def _suggest(self, name: str, record: HardExample) -> None:
        """A label that a model has given is better than none. Whoever gives one later, or gave one before, knows better."""
        if record.label:
            self._connection.execute(
                "UPDATE examples SET label = ? WHERE content = ? AND label IS NULL", (record.label, self._content(name))
            )

    def _free_name(self, name: str, content: str) -> str:
        """The id under which an input is kept; empty: it is here. An id names one input for ever: another input that comes
        under it gets one that ends with a part of its content."""
        there = self._content(name)
        if there is None:
            return name
        if there == content:
            return ""
        other = f"{name[: MAX_ID - 9]}-{content[:8]}"
        if not self._told_of_ids:
            self._told_of_ids = True
            log.warning("example_id_used_again", path=str(self.path), id=name, kept_as=other)
        return other if self._content(other) is None else ""

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

    def _bound_bytes(self) -> None:
        """Labelled examples leave when they are too many bytes: the oldest that models have learned from (those of a model that
        has served before those of others), as long as there are more to train on than their share; then the oldest held-out
        ones, likewise. New ones stay until a round has learned from them, and while a snapshot is being written all do. What
        has left does not come back."""
        sizes = self._sizes()
        self._grown_bytes, self._over_bytes = 0, max(0, sum(sizes.values()) - self._max_bytes)
        if not self._over_bytes or self._is_writing_a_snapshot():
            return
        learned = int(self._meta("learned") or 0)
        for split, new, name in ((TRAIN, 0, "known"), (EVAL, 1, "held_out")):
            over = min(sum(sizes.values()) - self._max_bytes, sizes[split] - self._limits[split])
            if over <= 0:
                continue
            rows = self._connection.execute(
                "SELECT content, bytes, family, input FROM examples WHERE split = ? AND label IS NOT NULL"
                " AND (? OR known OR frozen <= ?) ORDER BY known DESC, seq",
                (split, new, learned),
            )
            leaving: list[tuple[str]] = []
            files: list[tuple[str]] = []
            for content, size, family, payload in rows:
                if over <= 0:
                    break
                leaving.append((content,))
                files += [(f"{content}{payload.decode()}",)] if family == "file" else []
                over, sizes[split] = over - size, sizes[split] - size
            many = self._connection.executemany
            many("INSERT OR IGNORE INTO parted VALUES (?)", leaving)
            many("INSERT OR IGNORE INTO unlinking VALUES (?)", files)
            many("DELETE FROM aliases WHERE content = ?", leaving)
            many("DELETE FROM examples WHERE content = ?", leaving)
            self._count(f"dropped {name}", len(leaving))
        self._over_bytes = max(0, sum(sizes.values()) - self._max_bytes)

    def _unlink(self) -> None:
        """The files of examples that have left. What is not done before a crash is done when the book is opened."""
        with self._read() as execute:
            names = execute("SELECT name FROM unlinking").fetchall()
        if not names:
            return
        for (name,) in names:
            (self.files / name).unlink(missing_ok=True)
        with self._transaction() as execute:
            execute("DELETE FROM unlinking")

    def _sizes(self) -> dict[str, int]:
        """Bytes of labelled examples by split."""
        rows = self._connection.execute("SELECT split, sum(bytes) FROM examples WHERE label IS NOT NULL GROUP BY split")
        return {TRAIN: 0, EVAL: 0} | dict(rows.fetchall())

    def _is_writing_a_snapshot(self) -> bool:
        [(newest,)] = self._connection.execute("SELECT coalesce(max(round), 0) FROM snapshots")
        return bool(newest > int(self._meta("written") or 0))

    def _has_parted(self, content: str) -> bool:
        return self._connection.execute("SELECT 1 FROM parted WHERE content = ?", (content,)).fetchone() is not None

    def hard_positions(self) -> dict[str, dict[str, object]]:
        with self._read() as execute:
            rows = execute("SELECT name, body FROM positions WHERE name LIKE 'hard/%'")
            return {name.removeprefix("hard/"): json.loads(body) for name, body in rows}

    # --- labels

    def label(
        self, labels: Iterable[tuple[str, str]], position: Mapping[str, object] | None = None
    ) -> tuple[int, int, tuple[str, ...]]:
        """Labels by id, as JSON. Taken, there already, and ids that are not here yet. Raises Refused, and takes none."""
        fits = self.fits()
        checked = [(name, fits(name, text)) for name, text in labels]
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
                made = self._give(content, label)
                taken, already = taken + made, already + (not made)
            if position is not None:
                execute("INSERT OR REPLACE INTO positions VALUES ('labels', ?)", (json.dumps(position),))
            self._bound()
            self._bound_bytes()
        self._unlink()
        return taken, already, tuple(unknown[:MAX_UNKNOWN])

    def fits(self) -> Callable[[str, str], str]:
        """What checks a label for an id, and gives it as it is stored. It raises Refused: no label, or none of this dataset."""
        layout, name = self.layout(), str(self.position("dataset").get("format", ""))
        format = format_named(name) if name and layout.fields else None

        def checked(example: str, text: str) -> str:
            label = checked_example_label(example, text)
            try:
                if format is not None:
                    format.check_label(label, layout)
            except Misfit as misfit:
                raise Refused(f"the label of {example} does not fit the dataset: {misfit}") from misfit
            return label

        return checked

    def _give(self, content: str, label: str) -> int:
        """A label that a person gave; 0: it is the one that is there. One that was corrected is new: no model knows it."""
        made = self._connection.execute(
            "UPDATE examples SET label = ?, known = 0, frozen = NULL WHERE content = ? AND label IS NOT ?",
            (label, content, label),
        ).rowcount
        self._connection.execute("UPDATE examples SET given = 1 WHERE content = ?", (content,))
        return made

    def unlabelled(self, limit: int, inputs: bool, after: str) -> tuple[tuple[UnlabelledExample, ...], int]:
        """The oldest that wait for a label, as many as fit an answer, and how many wait behind them; `after`: an id.

        Raises NotFound: there is no such example (any more).
        """
        with self._read() as execute:
            start = self._place_of(after) if after else 0
            rows = execute(
                "SELECT seq, id, time, score, predicted, input, family FROM examples WHERE label IS NULL AND seq > ?"
                " ORDER BY seq LIMIT ?",
                (start, max(0, min(limit, MAX_ANSWER))),
            )
            found: list[UnlabelledExample] = []
            size = 0
            for place, name, when, score, predicted, content, family in rows:
                array = _as_npy(content, family) if inputs else b""
                size += len(array) + len(predicted.encode()) + len(name) + 64
                if size > MAX_ANSWER_BYTES and found:
                    break
                found.append(UnlabelledExample(name, when, score, predicted, array))
                start = place
            rest = "SELECT count(*) FROM examples WHERE label IS NULL AND seq > ?"
            return tuple(found), int(execute(rest, (start,)).fetchone()[0])

    def _place_of(self, name: str) -> int:
        found = self._connection.execute(
            "SELECT seq FROM examples WHERE content = ?", (self._content(name),)
        ).fetchone()
        if found is None:
            raise NotFound("example", name, "it may have been dropped: list from the start")
        return int(found[0])

    def canary(self, limit: int) -> bytes:
        """Inputs that are held out, of one shape, as one array in the npy format; empty if there are none, or no arrays."""
        with self._read() as execute:
            rows = execute(
                "SELECT input, family FROM examples WHERE split = ? ORDER BY origin, content LIMIT ?", (EVAL, 4 * limit)
            ).fetchall()
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
            content = self._content(name)
            given = execute("SELECT given FROM examples WHERE content = ?", (content,)).fetchone()
            if content is not None and given == (0,):
                self._give(content, found[0])
            execute("DELETE FROM pending WHERE id = ?", (name,))

    # --- counts and snapshots

    def dropped(self) -> Dropped:
        with self._read():
            found = {name: int(self._meta(f"dropped {name}") or 0) for name in ("known", "held_out")}
            unlabelled, refused = (int(self._meta(name) or 0) for name in ("dropped", "refused"))
        return Dropped(unlabelled, refused, **found, over_bytes=self._over_bytes)

    def tally(self) -> Tally:
        with self._read():
            text = self._meta("tally")
        if not text:
            return Tally()
        run, *counts = json.loads(text)
        of_run, earlier = ((*each, 0)[:3] for each in counts)  # an earlier version counted two things
        return Tally(run, of_run, earlier)

    def keep_tally(self, tally: Tally) -> None:
        with self._transaction() as execute:
            body = json.dumps([tally.run, tally.of_run, tally.earlier])
            execute("INSERT OR REPLACE INTO meta VALUES ('tally', ?)", (body,))

    def counts(self) -> ExampleCounts:
        with self._read() as execute:
            rows = execute(
                "SELECT split, sum(1), sum(known = 0 AND frozen IS NULL) FROM examples WHERE label IS NOT NULL"
                " GROUP BY split"
            )
            by_split = {split: (count, new) for split, count, new in rows}
            train, new = by_split.get(TRAIN, (0, 0))
            [(waiting,)] = execute("SELECT count(*) FROM examples WHERE label IS NULL")
            hard, dropped, refused = (int(self._meta(name) or 0) for name in ("hard", "dropped", "refused"))
        return ExampleCounts(
            train=train,
            held_out=by_split.get(EVAL, (0, 0))[0],
            new=new,
            unlabelled=waiting,
            hard=hard,
            dropped=dropped + refused,
        )

    def freeze(self, number: int, format: str = "") -> tuple[str, Layout]:
        """Decide, once, what is in the snapshot of a round, and in which format: that of the dataset, unless another is given.

        Raises DatasetProblem: nothing to train on, or to evaluate with.
        """
        with self._read() as execute:
            found = execute("SELECT format, layout FROM snapshots WHERE round = ?", (number,)).fetchone()
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

    def thaw(self, number: int) -> None:
        """No snapshot can be made of what was frozen: the round may be given another."""
        with self._transaction() as execute:
            for table in ("members", "snapshots"):
                execute(f"DELETE FROM {table} WHERE round = ?", (number,))  # noqa: S608
            execute("UPDATE examples SET frozen = NULL WHERE frozen = ?", (number,))

    def snapshot_written(self, number: int) -> None:
        """It lies on the disk and needs this book no more."""
        self._reached("written", number)

    def learned(self, number: int) -> None:
        """A model has learned from the snapshot of this round, whatever becomes of that model."""
        self._reached("learned", number)

    def _reached(self, name: str, number: int) -> None:
        with self._read():
            before = int(self._meta(name) or 0)
        if before < number:
            with self._transaction() as execute:
                execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, str(number)))
                self._bound_bytes()
            self._unlink()

    def mark_known(self, number: int) -> int:
        """The model of a round serves: it knows the round's examples, with the labels that they had; returns for how many
        that is new."""
        with self._transaction() as execute:
            marked = execute(
                "UPDATE examples SET known = 1 WHERE known = 0 AND (content, label) IN"
                " (SELECT content, label FROM members WHERE round = ? AND part = 'new')",
                (number,),
            ).rowcount
            self._bound_bytes()
        self._unlink()
        return marked

    def keep_snapshots(self, numbers: Collection[int]) -> None:
        """Forget what was in all others."""
        kept = json.dumps(sorted(numbers))
        with self._transaction() as execute:
            for table in ("members", "snapshots"):
                execute(
                    f"DELETE FROM {table} WHERE round NOT IN (SELECT value FROM json_each(?))",  # noqa: S608
                    (kept,),
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
    def _read(self) -> Iterator[_Execute]:
        """Raises StoreError."""
        try:
            yield self._connection.execute
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be read: {error}") from error

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
    the format leaves them out. Through a connection of its own, so that nothing waits for it. Raises StoreError."""
    family = _FAMILIES[format]
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute(
                "SELECT e.content, m.label, e.input, e.family FROM members m JOIN examples e ON e.content = m.content"
                " WHERE m.round = ? AND m.part = ? ORDER BY m.content",
                (number, part),
            )
            for content, label, payload, found in rows:
                yield Record(content, label, payload if found in {family, "npy"} else b"", hard=found != family)
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        [(answer,)] = connection.execute("PRAGMA quick_check(1)")
        if answer != "ok":
            raise sqlite3.DatabaseError(str(answer))
        connection.executescript(_SCHEMA)
        _add_what_is_new(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _add_what_is_new(connection: sqlite3.Connection) -> None:
    """To a book that an earlier version has made."""
    columns = [row[1] for row in connection.execute("PRAGMA table_info(examples)")]
    if "bytes" not in columns:
        connection.execute("ALTER TABLE examples ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0")
        connection.execute("UPDATE examples SET bytes = length(input)")
    connection.execute("CREATE INDEX IF NOT EXISTS sized ON examples (split, bytes) WHERE label IS NOT NULL")


def _bytes_of(row: Row) -> int:
    try:
        return len(row.payload) + (row.file.stat().st_size if row.file is not None else 0)
    except OSError:
        return len(row.payload)


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
