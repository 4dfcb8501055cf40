"""The hard examples that an inference worker has left in its slot directory (`worker.hard_log`), read for a job's examples.

What stands there was written by a user's program: the folder may be a link, a file a pipe, a record anything. It is read
through a descriptor of the folder, in bounded pieces, and what is no hard example is counted and left out. Blocks.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeai.controller.formats.base import checked_label, read_npy
from edgeai.errors import StoreError
from edgeai.store import records_log

MAX_FILES = 1000
MAX_ID, MAX_PREDICTED = 200, 64 * 1024
_SEGMENT = re.compile(r"([1-9][0-9]{0,17})\.log")


@dataclass(frozen=True, slots=True)
class HardExample:
    """`input` is an array in the npy format, `predicted` what the model said, as JSON; `time` is for people.

    `label`: what a better model has said of it, as JSON; empty: nobody has.
    """

    id: str
    time: float
    input: bytes
    predicted: str = ""
    score: float = 0.0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a segment was read. `inode` tells it from a later file of the same name."""

    inode: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class HardRead:
    """`reached` by name, to be given to the next call. `refused`: records that are no hard examples. `done`: segments that
    are read and that nobody appends to any more. `problems` by name: what is no segment."""

    examples: tuple[HardExample, ...] = ()
    reached: Mapping[str, Reached] = field(default_factory=dict)
    refused: int = 0
    done: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    more: bool = False
    """another call will find more"""


def read_hard_log(folder: Path, reached: Mapping[str, Reached] | None = None) -> HardRead:
    """What was appended since `reached`, one piece of one segment at a time, the oldest first."""
    reached = dict(reached or {})
    with _opened(folder) as descriptor:
        if descriptor is None:
            return HardRead()
        names = _segments(descriptor)
        now = {name: found for name, found in reached.items() if name in names}
        done: list[str] = []
        problems: dict[str, str] = {}
        for name in names:
            ended = name != names[-1]
            try:
                inode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_ino
                before = now.get(name, Reached())
                offset = before.offset if before.inode == inode else 0
                found = records_log.read(name, offset, ended=ended, folder=descriptor)
            except (StoreError, OSError) as error:
                problems[name] = str(error)
                continue
            now[name] = Reached(inode, found.next_offset)
            if found.next_offset > offset:
                examples = [_example(record) for record in found.records]
                good = tuple(each for each in examples if each is not None)
                refused = found.damaged + len(examples) - len(good)
                return HardRead(good, now, refused, tuple(done), problems, more=True)
            if ended:
                done.append(name)
        return HardRead((), now, 0, tuple(done), problems)


def remove_segments(folder: Path, names: tuple[str, ...]) -> None:
    """Remove segments that are read and committed."""
    with _opened(folder) as descriptor:
        for name in names if descriptor is not None else ():
            with suppress(OSError):
                os.unlink(name, dir_fd=descriptor)


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _segments(descriptor: int) -> list[str]:
    """Names of the first segments by number. The folder is looked through no further than a worker has any need of."""
    numbers = []
    with os.scandir(descriptor) as entries:
        for count, entry in enumerate(entries):
            if count >= 10 * MAX_FILES:
                break
            if found := _SEGMENT.fullmatch(entry.name):
                numbers.append(int(found[1]))
    return [f"{number}.log" for number in sorted(numbers)]


def _example(record: Mapping[str, Any]) -> HardExample | None:
    """None: it is no hard example."""
    name, time, content = record.get("id"), record.get("time"), record.get("input")
    predicted, score = record.get("predicted", ""), record.get("score", 0.0)
    if not isinstance(name, str) or not is_example_id(name) or not isinstance(content, bytes):
        return None
    if not _is_number(time) or not _is_number(score) or not isinstance(predicted, str):
        return None
    try:
        if not read_npy(content).size:
            return None
        if predicted:
            json.loads(predicted[: MAX_PREDICTED + 1])
            predicted.encode()
    except (ValueError, EOFError, RecursionError, MemoryError):
        return None
    assert isinstance(time, int | float)
    return HardExample(name, float(time), content, predicted, float(score), _label(record.get("label")))


def _label(value: object) -> str:
    """Empty: it is none, which costs the example nothing but its label."""
    if not isinstance(value, bool | int | float | str):
        return ""
    try:
        return checked_label(json.dumps(value, allow_nan=False))
    except ValueError:
        return ""


def is_example_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID and text.isprintable()


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
