"""A look at a dataset that has grown reads what is new, and says what reading all of it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgeai.controller import scanning
from edgeai.controller.formats import DatasetProblem, Found, format_named
from edgeai.controller.formats.text import Lines
from edgeai.controller.scanning import Scans
from edgeai.store.files import digest_of

FORMATS = ("csv", "jsonl")
each_format = pytest.mark.parametrize("format", FORMATS)


def rows(format: str, *numbers: int) -> str:
    row = "{0},{1}\n" if format == "csv" else '{{"a": {0}, "y": {1}}}\n'
    return "".join(row.format(number, number % 3) for number in numbers)


def made(folder: Path, format: str, *numbers: int) -> Path:
    path = folder / f"d.{format}"
    path.write_text(("a,y\n" if format == "csv" else "") + rows(format, *numbers))
    return path


def grow(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def look(scans: Scans, path: Path) -> tuple[Found, str]:
    return scans.look("d", format_named(path.suffix[1:]), path)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes at which rows and digests began to be read."""
    found: list[int] = []
    lines, digest_on = Lines.__init__, scanning._digest_on

    def noted_lines(self: Lines, *arguments: object, **named: object) -> None:
        lines(self, *arguments, **named)  # type: ignore[arg-type]
        found.append(self.position.offset)

    def noted_digest(path: Path, start: int, sha256: object) -> int:
        found.append(start)
        return digest_on(path, start, sha256)

    monkeypatch.setattr(Lines, "__init__", noted_lines)
    monkeypatch.setattr(scanning, "_digest_on", noted_digest)
    return found


@each_format
def test_only_what_was_appended_is_read(tmp_path: Path, begun: list[int], format: str):
    scans, path = Scans(), made(tmp_path, format, *range(50))
    look(scans, path)
    size = path.stat().st_size
    begun.clear()
    grow(path, rows(format, 50, 51))
    found, _ = look(scans, path)
    header = [0] if format == "csv" else []
    assert (found.samples, begun) == (52, [*header, size, size])


CHANGES: dict[str, Callable[[Path, str], object]] = {
    "grown": lambda path, format: grow(path, rows(format, 60)),
    "the same": lambda path, format: None,
    "shrunk": lambda path, format: made(path.parent, format, 1, 2),
    "rewritten and longer": lambda path, format: made(path.parent, format, *range(100, 300)),
    "replaced": lambda path, format: made(path.parent, format, *range(9)).replace(path),
    "half a row more": lambda path, format: grow(path, rows(format, 60)[:-1]),
}


@each_format
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_said_is_what_the_file_holds(tmp_path: Path, format: str, change: Callable[[Path, str], object]):
    scans, path = Scans(), made(tmp_path, format, *range(50))
    look(scans, path)
    change(path, format)
    found, digest = look(scans, path)
    assert (found, digest) == (format_named(format).inspect(path), digest_of(path))


@each_format
def test_a_row_that_was_half_there_is_one_row_when_it_is_whole(tmp_path: Path, format: str):
    scans, path = Scans(), made(tmp_path, format, *range(5))
    whole = rows(format, 5)
    grow(path, whole[:-1])
    assert look(scans, path)[0].samples == 6
    grow(path, whole[-1:] + rows(format, 6))
    found, digest = look(scans, path)
    assert (found, digest) == (format_named(format).inspect(path), digest_of(path))
    assert found.samples == 7


@each_format
def test_a_bad_row_is_named_by_its_line_and_again_at_the_next_look(tmp_path: Path, format: str):
    scans, path = Scans(), made(tmp_path, format, *range(5))
    look(scans, path)
    grow(path, "1,2,3\n")
    for _ in range(2):
        with pytest.raises(DatasetProblem, match=f"line {7 if format == 'csv' else 6}"):
            look(scans, path)


def test_a_column_that_comes_later_is_in_the_schema(tmp_path: Path):
    scans, path = Scans(), made(tmp_path, "jsonl", 1)
    look(scans, path)
    grow(path, '{"b": "x"}\n')
    assert look(scans, path)[0].schema == {"a": "number", "y": "number", "b": "text"}


def test_a_dataset_of_another_file_is_read_from_its_start(tmp_path: Path):
    scans, path = Scans(), made(tmp_path, "csv", *range(5))
    look(scans, path)
    (tmp_path / "other").mkdir()
    assert look(scans, made(tmp_path / "other", "csv", 1))[0].samples == 1


def test_one_that_is_wanted_no_more_is_forgotten(tmp_path: Path):
    scans, path = Scans(), made(tmp_path, "csv", *range(5))
    look(scans, path)
    scans.keep(["other"])
    assert scans._read == {}
