"""`edgeai trigger` and `edgeai label`: what a person gives an incremental learning job.

A label is a JSON value; text that is no JSON is text. Everything is read and checked before anything is sent.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import typer

from edgeai.cli.naming import JOB, counted, label
from edgeai.cli.outcome import say
from edgeai.cli.output import age, aligned, utc_now
from edgeai.client import Cloud
from edgeai.errors import NotFound, Refused
from edgeai.events.catalogue import UnlabelledExample
from edgeai.resources.base import instant
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.store.files import digest_bytes

MAX_FILE_BYTES = 256 * 1024**2
SHEET = "labels.csv"
"""What a folder of exported examples is labelled in."""
_SHOWN = 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9._]{0,99}")


async def trigger(cloud: Cloud, name: str) -> None:
    """Raises NotFound, Refused."""
    job = await _job(cloud, name)
    count = await cloud.trigger(name)
    print(f"{label(JOB, name)} triggered ({counted(count, 'time')} so far)")
    if job.spec.paused:
        say(f"job {name} is paused: it begins when it is resumed")


async def give(cloud: Cloud, name: str, labels: Mapping[str, str]) -> None:
    """Send labels and say what became of them.

    Raises:
        NotFound: no such job, or no example of these ids. Refused, WaitTimeout.
    """
    taken = await cloud.give_labels(await _job(cloud, name), labels)
    already = f", {taken.already} had that label already" if taken.already else ""
    print(f"{label(JOB, name)} {counted(taken.taken, 'example')} labelled{already}")
    if taken.unknown:
        for each in taken.unknown[:_SHOWN]:
            say(f"job {name} has no example {each} yet")
        count = max(len(labels) - taken.taken - taken.already, len(taken.unknown))
        waits = "1 label waits for its example" if count == 1 else f"{count} labels wait for their examples"
        raise NotFound("example", f"{taken.unknown[0]}", waits)


async def list_waiting(cloud: Cloud, name: str, limit: int, folder: Path | None, after: str = "") -> None:
    """Print the examples that wait, those behind `after` (an id); with a folder, write them there.

    Raises:
        NotFound. Refused: the folder has a sheet already, or there is no example `after` any more. WaitTimeout.
    """
    job = await _job(cloud, name)
    if folder is not None and (folder / SHEET).exists():
        raise Refused(f"{folder / SHEET} is there already: label what is in it, or give another folder")
    found, waiting, rest = await _waiting(cloud, job, limit, after, inputs=folder is not None)
    if not found:
        say(f"no{' further' if after else ''} example of job {name} waits for a label")
        return
    if folder is not None:
        _export(found, folder)
        print(folder / SHEET)
    else:
        print(_table(found))
    if rest:
        say(f"these are {len(found)} of {waiting}, and {rest} come behind them: --after {shlex.quote(found[-1].id)}")
    elif waiting > len(found):
        say(f"these are {len(found)} of {waiting}")


async def _waiting(
    cloud: Cloud, job: IncrementalLearningJob, limit: int, after: str, *, inputs: bool
) -> tuple[list[UnlabelledExample], int, int]:
    """As many as `limit`, in as many answers as that takes; how many wait, and how many of them behind these."""
    found: list[UnlabelledExample] = []
    while True:
        answer = await cloud.examples(job, limit - len(found), inputs=inputs, after=found[-1].id if found else after)
        found += answer.examples
        if not answer.examples or not answer.rest or len(found) >= limit:
            return found, answer.waiting, answer.rest


def labels_from(pairs: Sequence[str], file: Path | None) -> dict[str, str]:
    """Labels by id, as JSON.

    Raises:
        typer.BadParameter: what was typed is no ID=LABEL. NotFound: no such file. Refused: something in it is not right.
    """
    if file is None:
        return dict(_pair(text) for text in pairs)
    found: dict[str, str] = {}
    problems = []
    for line, (name, value) in _lines(file):
        if isinstance(value, _Problem):
            problems.append(f"{file}:{line}: {value.what}")
        elif name in found and found[name] != value:
            problems.append(f"{file}:{line}: {name} has another label further up")
        else:
            found[name] = value
    for problem in problems[:_SHOWN]:
        say(problem)
    if problems:
        raise Refused(f"{file}: {counted(len(problems), 'line')} cannot be used; no label was given")
    if not found:
        raise Refused(f"{file}: there is no label in it")
    return found


class _Problem(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


_Line = tuple[int, tuple[str, "str | _Problem"]]


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise typer.BadParameter(f"{text!r} is not ID=LABEL")
    return name, _as_json(value)


def _as_json(text: str) -> str:
    try:
        value = json.loads(text, parse_constant=_refused_constant)
    except (ValueError, RecursionError):
        value = text
    return json.dumps(value, ensure_ascii=False)


def _refused_constant(name: str) -> None:
    raise ValueError(name)


def _lines(file: Path) -> Iterator[_Line]:
    if not file.is_file():
        raise NotFound("file", str(file))
    if file.suffix not in {".jsonl", ".csv"}:
        raise typer.BadParameter(f"{file} is neither .jsonl nor .csv")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise Refused(f"{file} is larger than {MAX_FILE_BYTES // 1024**2} MiB: split it")
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            yield from _jsonl(text) if file.suffix == ".jsonl" else _csv(text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{file} cannot be read: {error}") from error


def _jsonl(text: Iterable[str]) -> Iterator[_Line]:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield number, _of_json(line)


def _of_json(line: str) -> tuple[str, str | _Problem]:
    try:
        found = json.loads(line, parse_constant=_refused_constant)
    except (ValueError, RecursionError) as error:
        return "", _Problem(f"not JSON: {error}")
    name = found.get("id") if isinstance(found, dict) else None
    if not isinstance(name, str) or not name or found.get("label") is None:
        return "", _Problem('not a map with id (text) and label, such as {"id": "a1", "label": 3}')
    return name, json.dumps(found["label"], ensure_ascii=False)


def _csv(text: Iterable[str]) -> Iterator[_Line]:
    """Rows without a label are left for another time."""
    rows = csv.DictReader(text)
    if not {"id", "label"} <= set(rows.fieldnames or ()):
        yield 1, ("", _Problem("the first line has to name the columns id and label"))
        return
    for row in rows:
        name, value = (row["id"] or "").strip(), (row["label"] or "").strip()
        if value and not name:
            yield rows.line_num, ("", _Problem("a label without an id"))
        elif value:
            yield rows.line_num, (name, _as_json(value))


# --- examples that wait


def _table(examples: Sequence[UnlabelledExample]) -> str:
    rows = [["ID", "AGE", "SCORE", "PREDICTED"]]
    for each in examples:
        rows.append([each.id, age(_instant(each), utc_now()), f"{each.score:.4f}", _one_line(each.predicted)])
    return "\n".join(aligned(rows))


def _instant(example: UnlabelledExample) -> str | None:
    try:
        return instant(datetime.fromtimestamp(example.time, UTC))
    except (ValueError, OSError, OverflowError):
        return None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _export(examples: Sequence[UnlabelledExample], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SHEET).open("x", encoding="utf-8", newline="") as sheet:
        rows = csv.writer(sheet)
        rows.writerow(["id", "label", "file", "score", "predicted"])
        for each in examples:
            name = _file_name(each.id) if each.input else ""
            if name:
                (folder / name).write_bytes(each.input)
            rows.writerow([each.id, "", name, f"{each.score:.6g}", each.predicted])


def _file_name(example: str) -> str:
    """Its id where that is a usual name; an id may hold anything."""
    return f"{example if _FILE_NAME.fullmatch(example) else digest_bytes(example.encode(errors='replace'))[:24]}.npy"


async def _job(cloud: Cloud, name: str) -> IncrementalLearningJob:
    job = await cloud.get(JOB, name)
    assert isinstance(job, IncrementalLearningJob)
    return job
