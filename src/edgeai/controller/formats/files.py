"""txt list and image folder: rows whose input is a file. What is in the files is the business of the user's script.

A line of a txt list is `path label`: the path, relative to the list's folder and inside it, up to the first tab or, if there is
none, the first space; the rest is the label. An image folder has one folder per label. Both are written as a txt list with the
files beside it. A file is read once, to make its id; after that it is known by name and stat.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Generator, Iterator
from pathlib import Path

from edgeai.controller.formats.base import (
    START,
    DatasetProblem,
    Field,
    Found,
    Known,
    Layout,
    Misfit,
    Position,
    Records,
    Row,
    Written,
    as_json,
    label_text,
    left_out,
    read_npy,
)
from edgeai.controller.formats.text import Lines
from edgeai.errors import NotFound, StoreError
from edgeai.store.files import copy_whole, digest_of

_ENDING = re.compile(r"\.[A-Za-z0-9]{1,10}")
_LAYOUT = Layout((Field("path", "text"), Field("label", "text")), "label")
FILES = "files"
"""Beside a txt list that was written: the folder of its files."""


class _Files:
    """What both have in common."""

    written = "txt list"
    ending = ".txt"
    fixed_columns = False

    def layout(self, path: Path, label: str = "") -> Layout:
        if label not in {"", "label"}:
            raise DatasetProblem(f"{path}: the label is in its place, and has no field {label}; leave labelField out")
        return _LAYOUT

    def check_label(self, label: str, layout: Layout) -> None:
        text = label_text(label)
        if text.splitlines() != [text] or text != text.strip():
            raise Misfit("a label has line ends or spaces around it")

    def write(self, path: Path, layout: Layout, records: Records, files: Path) -> Written:
        misfits: dict[str, int] = {}
        samples = 0
        beside = path.parent / FILES
        beside.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            for record in records():
                name = f"{record.id}.npy" if record.hard else f"{record.id}{record.payload.decode()}"
                try:
                    if record.hard:
                        _write_array(beside / name, record.payload)
                    else:
                        _link(files / name, beside / name)
                    self.check_label(record.label, layout)
                except Misfit as misfit:
                    left_out(misfits, misfit)
                    continue
                file.write(f"{FILES}/{name} {label_text(record.label)}\n")
                samples += 1
        return Written(samples, misfits)


class TxtList(_Files):
    name = "txt list"
    appends = True

    def inspect(self, path: Path) -> Found:
        samples = 0
        for named, _, line, whole in self._lines(path, Position()):
            try:
                inside(path.parent, named)
            except DatasetProblem as problem:
                if not whole:
                    break
                raise DatasetProblem(f"{path}: line {line.line}: {problem}") from problem
            samples += 1
        if not samples:
            raise DatasetProblem(f"{path} lists no files")
        return Found(samples, {"path": "text", "label": "text"})

    def rows(
        self,
        path: Path,
        layout: Layout,
        start: Position = START,
        *,
        settled: bool = True,
        known: Known = frozenset(),
    ) -> Generator[Row, None, None]:
        for named, label, position, whole in self._lines(path, start):
            if not whole and not settled:
                return
            try:
                file = inside(path.parent, named)
            except DatasetProblem as problem:
                if not whole:
                    return
                raise DatasetProblem(f"{path}: line {position.line}: {problem}") from problem
            yield _row(file, named, label or None, position, known)

    def _lines(self, path: Path, start: Position) -> Iterator[tuple[str, str, Position, bool]]:
        """Path and label of each line, where to go on, and whether it has its end."""
        with path.open("rb") as file:
            lines = Lines(file, path, start, "text")
            before = start
            for line in lines:
                named, _, label = line.strip().partition("\t") if "\t" in line.strip() else line.strip().partition(" ")
                if named:
                    yield named.strip(), label.strip(), lines.position if lines.whole else before, lines.whole
                before = lines.position


class ImageFolder(_Files):
    name = "image folder"
    appends = False

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}
        """of files that were read, by name and stat"""

    def inspect(self, path: Path) -> Found:
        """Its digest is that of the names and digests of its files."""
        sha256, samples = hashlib.sha256(), 0
        digests: dict[str, str] = {}
        for file, label in self._listed(path):
            named = str(file.relative_to(path))
            key = _key(file, str(file), label)
            digests[key] = self._digests.get(key) or _digest(file)
            sha256.update(f"{named}\0{digests[key]}\n".encode("utf-8", "surrogateescape"))
            samples += 1
        if not samples:
            raise DatasetProblem(
                f"{path} has no files in folders; put those of each label into a folder named as the label"
            )
        others = {key: value for key, value in self._digests.items() if not key.startswith(f"{path}{os.sep}")}
        self._digests = {**others, **digests}
        return Found(samples, {"path": "text", "label": "text"}, {}, sha256.hexdigest())

    def rows(
        self,
        path: Path,
        layout: Layout,
        start: Position = START,
        *,
        settled: bool = True,
        known: Known = frozenset(),
    ) -> Generator[Row, None, None]:
        for file, label in self._listed(path):
            yield _row(file, str(file.relative_to(path)), label, Position(), known)

    def _listed(self, path: Path) -> Iterator[tuple[Path, str]]:
        """Files and their labels, in the order of their names. Names that start with a dot are left alone."""
        if not path.is_dir():
            raise DatasetProblem(f"{path} is not a folder")
        for label in sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith(".")):
            if (path / label).is_symlink() or not (path / label).is_dir():
                continue
            for folder, folders, names in os.walk(path / label):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    file = Path(folder, name)
                    if name.startswith(".") or not stat.S_ISREG(_looked_at(file).st_mode):
                        continue
                    yield file, label


def inside(folder: Path, named: str) -> Path:
    """The file that a list names. Raises DatasetProblem: it leads out of the list's folder, is missing, or no regular file."""
    given = Path(named)
    if given.is_absolute() or ".." in given.parts:
        raise DatasetProblem(f"{named[:200]} leads out of the folder of the list; paths are relative to it")
    try:
        real = (folder / given).resolve()
        if not real.is_relative_to(folder.resolve()):
            raise DatasetProblem(f"{named[:200]} is a link out of the folder of the list")
        if not stat.S_ISREG(real.stat().st_mode):
            raise DatasetProblem(f"{named[:200]} is not a regular file")
    except FileNotFoundError as error:
        hint = "; put a tab between a path with spaces and its label" if " " not in named else ""
        raise DatasetProblem(f"{named[:200]} does not exist{hint}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise DatasetProblem(f"{named[:200]} cannot be read: {error}") from error
    return real


def _looked_at(file: Path) -> os.stat_result:
    try:
        return file.lstat()
    except OSError as error:
        raise DatasetProblem(f"{file} has gone while the folder was read") from error


def _row(file: Path, named: str, label: str | None, position: Position, known: Known) -> Row:
    key = _key(file, named, label or "")
    ending = file.suffix.lower() if _ENDING.fullmatch(file.suffix) else ""
    text = as_json(label) if label else None
    return Row("" if key in known else _digest(file), text, ending.encode(), position, file, key)


def _key(file: Path, named: str, label: str) -> str:
    found = _looked_at(file)
    return f"{named}\0{label}\0{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _digest(file: Path) -> str:
    try:
        return digest_of(file)
    except NotFound as error:
        raise DatasetProblem(f"{file} has gone while it was read") from error
    except StoreError as error:
        raise DatasetProblem(str(error)) from error


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise Misfit("its file has gone") from error
    except OSError:  # another file system, or too many links
        copy_whole(source, target, 0o444)


def _write_array(target: Path, payload: bytes) -> None:
    try:
        read_npy(payload)
    except (ValueError, EOFError) as error:
        raise Misfit("the input is no array") from error
    if not target.exists():
        target.write_bytes(payload)
