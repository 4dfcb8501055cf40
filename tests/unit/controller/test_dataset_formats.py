"""Formats of datasets: every row is read once, with its label, and written into a file of the same format again."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeai.controller.formats import START, DatasetProblem, Layout, Position, Record, Row, Written, format_named
from edgeai.controller.formats.base import (
    Misfit,
    checked_label,
    fitted,
    id_of_array,
    id_of_values,
    write_npy,
)

LABELS = [0, 1, 2, 1]
PIXELS = np.arange(8, dtype=np.float32).reshape(4, 2) / 8


def npz(folder: Path) -> Path:
    np.savez(folder / "d.npz", x=PIXELS, y=np.array(LABELS), x_test=np.zeros((9, 2)))
    return folder / "d.npz"


def csv(folder: Path) -> Path:
    lines = [f"{a},{b},{label}" for (a, b), label in zip(PIXELS, LABELS, strict=True)]
    (folder / "d.csv").write_text("\n".join(["a,b,class", *lines, ""]))
    return folder / "d.csv"


def jsonl(folder: Path) -> Path:
    rows = [{"x": row.tolist(), "label": label} for row, label in zip(PIXELS, LABELS, strict=True)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "d.jsonl"


def parquet(folder: Path) -> Path:
    when = [datetime.datetime(2026, 1, day, tzinfo=datetime.UTC) for day in (1, 2, 3, 4)]
    table = pa.table({"a": PIXELS[:, 0], "when": pa.array(when, pa.timestamp("ms", "UTC")), "y": LABELS})
    pq.write_table(table, folder / "d.parquet")
    return folder / "d.parquet"


def txt_list(folder: Path) -> Path:
    (folder / "images").mkdir()
    for number in range(4):
        (folder / "images" / f"{number}.png").write_bytes(b"image %d" % number)
    (folder / "list.txt").write_text("".join(f"images/{n}.png {label}\n" for n, label in enumerate(LABELS)))
    return folder / "list.txt"


def image_folder(folder: Path) -> Path:
    for number, label in enumerate(LABELS):
        (folder / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        (folder / "images" / str(label) / f"{number}.png").write_bytes(b"image %d" % number)
    return folder / "images"


MAKERS = {
    "npz": npz,
    "csv": csv,
    "jsonl": jsonl,
    "parquet": parquet,
    "txt list": txt_list,
    "image folder": image_folder,
}
each_format = pytest.mark.parametrize("name", MAKERS)


def rows_of(name: str, path: Path, start: Position = START, *, settled: bool = True, label: str = "") -> list[Row]:
    format = format_named(name)
    return list(format.rows(path, format.layout(path, label), start, settled=settled))


def written(name: str, path: Path, target: Path, *more: Record) -> Written:
    """Its rows, written into a file of the format that `name` is written as."""
    format = format_named(name)
    files = target.parent / "store"
    files.mkdir(exist_ok=True)
    rows = rows_of(name, path)
    for row in rows:
        if row.file is not None:
            (files / f"{row.id}{row.payload.decode()}").write_bytes(row.file.read_bytes())
    records = [*(Record(row.id, row.label or "", row.payload) for row in rows), *more]
    return format.write(target, format.layout(path), lambda: iter(records), files)


def hard(array: np.ndarray, label: str) -> Record:
    return Record(id_of_array(array), label, write_npy(array), hard=True)


# --- what all of them do


@each_format
def test_the_samples_are_counted(tmp_path, name):
    assert format_named(name).inspect(MAKERS[name](tmp_path)).samples == 4


@each_format
def test_rows_have_their_labels(tmp_path, name):
    labels = [json.loads(row.label or "null") for row in rows_of(name, MAKERS[name](tmp_path))]
    assert sorted(map(str, labels)) == sorted(map(str, LABELS))


@each_format
def test_rows_have_ids_of_their_own(tmp_path, name):
    assert len({row.id for row in rows_of(name, MAKERS[name](tmp_path))}) == 4


@each_format
def test_what_is_written_is_what_was_read(tmp_path, name):
    path, format = MAKERS[name](tmp_path), format_named(name)
    target = tmp_path / "out" / f"new{format.ending}"
    target.parent.mkdir()
    assert written(name, path, target) == Written(4)
    again = {(row.id, row.label) for row in rows_of(format.written, target)}
    assert again == {(row.id, row.label) for row in rows_of(name, path)}


@each_format
def test_the_same_rows_make_the_same_bytes(tmp_path, name):
    path, format = MAKERS[name](tmp_path), format_named(name)
    made = []
    for folder in ("one", "two"):
        target = tmp_path / folder / f"new{format.ending}"
        target.parent.mkdir()
        written(name, path, target)
        made.append(target.read_bytes())
    assert made[0] == made[1]


@each_format
def test_no_rows_make_a_file_without_rows(tmp_path, name):
    path, format = MAKERS[name](tmp_path), format_named(name)
    target = tmp_path / f"none{format.ending}"
    assert format.write(target, format.layout(path), lambda: iter(()), tmp_path) == Written(0)
    assert target.exists()


@each_format
def test_no_rows_make_a_file_where_no_dataset_says_how(tmp_path, name):
    format = format_named(name)
    assert format.write(tmp_path / "none", Layout(), lambda: iter(()), tmp_path) == Written(0)


@pytest.mark.parametrize("name", ["npz", "csv", "jsonl", "parquet"])
def test_a_hard_example_goes_into_a_file_where_no_dataset_says_how(tmp_path, name):
    format = format_named(name)
    target = tmp_path / f"hard{format.ending}"
    record = hard(np.array([0.5, 0.25], np.float32), "7")
    assert format.write(target, Layout(), lambda: iter([record]), tmp_path) == Written(1)
    [row] = rows_of(name, target)
    assert (row.id, json.loads(row.label or "")) in {(record.id, 7), (record.id, "7")}


@pytest.mark.parametrize("name", ["csv", "jsonl", "npz"])
def test_an_input_has_the_same_id_in_the_dataset_and_as_a_hard_example(tmp_path, name):
    ids = {row.id for row in rows_of(name, MAKERS[name](tmp_path))}
    assert ids == {id_of_array(row) for row in PIXELS}


@pytest.mark.parametrize("name", ["csv", "jsonl", "npz"])
def test_a_hard_example_is_written_as_a_row(tmp_path, name):
    path, format = MAKERS[name](tmp_path), format_named(name)
    record = hard(np.array([[0.5, 0.125]], np.float32), "2")
    target = tmp_path / f"new{format.ending}"
    assert written(name, path, target, record) == Written(5)
    assert rows_of(name, target)[-1].id == record.id


@pytest.mark.parametrize("name", ["csv", "npz", "parquet"])
def test_an_example_that_does_not_fit_is_left_out_with_the_reason(tmp_path, name):
    path, format = MAKERS[name](tmp_path), format_named(name)
    found = written(name, path, tmp_path / f"new{format.ending}", hard(np.zeros(5, np.float32), "2"))
    assert found.samples == 4
    assert list(found.left_out.values()) == [1]


@pytest.mark.parametrize(
    ("name", "label"), [("csv", "0.5"), ("parquet", 0.5), ("npz", [0.5, 0.625]), ("jsonl", [0.5, 0.625])]
)
def test_another_field_may_be_the_label(tmp_path, name, label):
    path = MAKERS[name](tmp_path)
    field = format_named(name).layout(path).fields[0].name
    assert json.loads(rows_of(name, path, label=field)[2].label or "") == label


@pytest.mark.parametrize("name", ["csv", "npz", "jsonl", "parquet"])
def test_a_label_field_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(DatasetProblem, match=r"has no field colour .* set labelField to one of them"):
        format_named(name).layout(MAKERS[name](tmp_path), "colour")


# --- formats that are appended to


MORE = {"csv": "0.5,0.5,3\n", "jsonl": '{"x": [0.5, 0.5], "label": 3}\n', "txt list": "images/9.png 3\n"}
appended_to = pytest.mark.parametrize("name", MORE)


@appended_to
def test_reading_goes_on_where_it_ended(tmp_path, name):
    path = MAKERS[name](tmp_path)
    last = rows_of(name, path)[-1].position
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "9.png").write_bytes(b"another")
    with path.open("a") as file:
        file.write(MORE[name])
    assert [row.label for row in rows_of(name, path, last)] == ["3" if name == "jsonl" else '"3"']


@appended_to
def test_every_row_can_be_gone_on_from(tmp_path, name):
    path = MAKERS[name](tmp_path)
    rows = rows_of(name, path)
    for number, row in enumerate(rows):
        assert [each.id for each in rows_of(name, path, row.position)] == [each.id for each in rows[number + 1 :]]


@appended_to
def test_a_line_that_is_being_written_waits(tmp_path, name):
    path = MAKERS[name](tmp_path)
    last = rows_of(name, path)[-1].position
    with path.open("a") as file:
        file.write(MORE[name][:-2])
    assert rows_of(name, path, last, settled=False) == []


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_a_last_line_without_an_end_is_a_row_when_nobody_writes(tmp_path, name):
    path = MAKERS[name](tmp_path)
    last = rows_of(name, path)[-1].position
    with path.open("a") as file:
        file.write(MORE[name][:-1])
    [row] = rows_of(name, path, last)
    assert row.position == last, "it is read again if it goes on"


def test_a_csv_cell_may_have_line_ends(tmp_path):
    (tmp_path / "d.csv").write_text('text,y\n"a\nb",1\nc,2\n')
    rows = rows_of("csv", tmp_path / "d.csv")
    assert [json.loads(row.payload)["text"] for row in rows] == ["a\nb", "c"]
    assert rows_of("csv", tmp_path / "d.csv", rows[0].position) == rows[1:]


def test_a_csv_cell_that_is_being_written_waits(tmp_path):
    (tmp_path / "d.csv").write_text('text,y\na,1\n"b\n')
    assert len(rows_of("csv", tmp_path / "d.csv")) == 1


def test_the_mark_that_some_editors_put_first_is_no_part_of_a_name(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbflabel,a\n1,2\n")
    assert format_named("csv").layout(tmp_path / "d.csv").label == "label"


def test_a_row_without_a_label_waits_for_one(tmp_path):
    (tmp_path / "d.csv").write_text("a,y\n1,\n2,x\n")
    (tmp_path / "d.jsonl").write_text('{"a": 1, "y": null}\n{"a": 2, "y": "x"}\n{"a": 3}\n')
    assert [row.label for row in rows_of("csv", tmp_path / "d.csv")] == [None, '"x"']
    assert [row.label for row in rows_of("jsonl", tmp_path / "d.jsonl")] == [None, '"x"', None]


@pytest.mark.parametrize(
    "line",
    ["nonsense", "[1]", "1", '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[" * 5000],
    ids=["text", "a list", "a number", "not a number", "infinite", "half a character", "deep"],
)
def test_a_line_that_is_no_json_object_is_refused_by_number(tmp_path, line):
    (tmp_path / "d.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(DatasetProblem, match="line 2 is not a JSON object"):
        format_named("jsonl").inspect(tmp_path / "d.jsonl")


def test_the_schema_of_jsonl_is_told(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"a": 1, "b": null, "c": "x"}\n{"a": "2", "b": [1], "d": true}\n')
    schema = format_named("jsonl").inspect(tmp_path / "d.jsonl").schema
    assert schema == {"a": "mixed", "b": "list", "c": "text", "d": "bool"}


# --- npz


def test_arrays_in_another_order_are_read_by_row(tmp_path):
    pixels = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    np.savez(tmp_path / "d.npz", x=pixels, y=np.arange(3))
    assert [row.id for row in rows_of("npz", tmp_path / "d.npz")] == [id_of_array(row) for row in pixels]


def test_field_names_dtypes_and_shapes_of_npz_are_kept(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", images=np.zeros((2, 3, 3), np.uint8), names=np.array(["a", "bcd"]))
    written("npz", tmp_path / "d.npz", tmp_path / "new.npz", hard(np.ones((3, 3)), '"longer than before"'))
    with np.load(tmp_path / "new.npz", allow_pickle=False) as found:
        assert (found["images"].dtype, found["images"].shape) == (np.uint8, (3, 3, 3))
        assert found["names"].tolist()[-1] == "longer than before"


@pytest.mark.parametrize(("inputs", "labels"), [(400, 300), (300, 400)])
def test_labels_that_do_not_fit_the_inputs_of_an_npz_file_are_refused_by_name(tmp_path, inputs, labels):
    np.savez(tmp_path / "d.npz", x=np.zeros((inputs, 2)), y=np.zeros(labels), names=np.zeros(10))
    with pytest.raises(DatasetProblem, match=f"y has {labels} rows, x has {inputs}"):
        format_named("npz").layout(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("npz", "3", '"cat"'),
        ("npz", "3", "3.5"),
        ("npz", "3", "[1, 2]"),
        ("parquet", "3", '"cat"'),
        ("txt list", '"cat"', '"a\\nb"'),
    ],
)
def test_a_label_that_a_file_cannot_hold_is_told(tmp_path, name, good, bad):
    path, format = MAKERS[name](tmp_path), format_named(name)
    layout = format.layout(path)
    format.check_label(good, layout)
    with pytest.raises(Misfit):
        format.check_label(bad, layout)


def test_an_npz_file_without_labels_has_rows_that_wait(tmp_path):
    np.savez(tmp_path / "d.npz", x=PIXELS)
    assert [row.label for row in rows_of("npz", tmp_path / "d.npz")] == [None] * 4


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [
        (np.zeros(3), np.float64, (2,)),
        (np.array([0.5]), np.uint8, (1,)),
        (np.array([300]), np.uint8, (1,)),
        (np.array([2**40]), np.int32, (1,)),
        (np.array(["a"]), np.float32, (1,)),
    ],
    ids=["shape", "fraction", "too large", "too large for its size", "text"],
)
def test_an_array_that_would_change_does_not_fit(given, dtype, shape):
    with pytest.raises(Misfit):
        fitted(given, np.dtype(dtype), shape, "x")


@pytest.mark.parametrize(
    ("given", "dtype"),
    [(np.array([[1.0, 2.0]]), np.uint8), (np.array([0.1, 0.2]), np.float32), (np.array([1, 2]), np.float64)],
    ids=["whole numbers", "rounding", "integers"],
)
def test_an_array_that_keeps_its_values_fits(given, dtype):
    found = fitted(given, np.dtype(dtype), (2,), "x")
    assert (found.dtype, found.shape) == (dtype, (2,))
    assert np.allclose(found, given.ravel())


# --- inputs that are files


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("/etc/passwd 1", "leads out of the folder"),
        ("../secret 1", "leads out of the folder"),
        ("link 1", "is a link out of the folder"),
        ("none.png 1", "does not exist"),
        ("pipe 1", "is not a regular file"),
        ("images 1", "is not a regular file"),
    ],
)
def test_a_list_leads_to_files_of_its_folder_only(tmp_path, line, why):
    folder = tmp_path / "data"
    folder.mkdir()
    path = txt_list(folder)
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    path.write_text(f"images/1.png 1\n{line}\n")
    with pytest.raises(DatasetProblem, match=f"line 2: .*{why}"):
        format_named("txt list").inspect(path)


def test_a_path_with_spaces_is_followed_by_a_tab(tmp_path):
    (tmp_path / "a b.png").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("a b.png\tsmall dog\n")
    assert [row.label for row in rows_of("txt list", tmp_path / "list.txt")] == ['"small dog"']


def test_a_link_in_an_image_folder_is_left_alone(tmp_path):
    folder = image_folder(tmp_path)
    (tmp_path / "secret").write_text("x")
    (folder / "0" / "link.png").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(folder / "0")
    assert format_named("image folder").inspect(folder).samples == 4


def test_the_digest_of_an_image_folder_changes_with_what_is_in_a_file(tmp_path):
    folder, format = image_folder(tmp_path), format_named("image folder")
    before = format.inspect(folder).digest
    (folder / "0" / "0.png").write_bytes(b"image 9")
    assert before != format.inspect(folder).digest


def test_a_file_that_is_known_is_not_read_again(tmp_path):
    format, path = format_named("txt list"), txt_list(tmp_path)
    known = {row.key for row in rows_of("txt list", path)}
    assert {row.id for row in format.rows(path, format.layout(path), known=known)} == {""}


def test_hard_examples_stand_beside_a_list_as_arrays(tmp_path):
    record = hard(np.ones((2, 2), np.float32), '"cat"')
    written("txt list", txt_list(tmp_path), tmp_path / "new.txt", record)
    named, _, label = (tmp_path / "new.txt").read_text().splitlines()[-1].partition(" ")
    assert label == "cat"
    assert np.load(tmp_path / named).tolist() == [[1, 1], [1, 1]]


# --- parquet


def test_without_pyarrow_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetProblem, match=r"pip install 'edgeai\[parquet\]'"):
        format_named("parquet").inspect(path)


def test_the_types_of_parquet_columns_are_kept(tmp_path):
    path = parquet(tmp_path)
    written("parquet", path, tmp_path / "new.parquet")
    assert pq.read_table(tmp_path / "new.parquet").to_pylist() == pq.read_table(path).to_pylist()


def test_a_column_that_cannot_travel_is_named(tmp_path):
    pq.write_table(pa.table({"a": [{"b": 1}], "y": [1]}), tmp_path / "d.parquet")
    with pytest.raises(DatasetProblem, match="column a is struct"):
        format_named("parquet").layout(tmp_path / "d.parquet")


def test_what_is_no_parquet_file_is_refused(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"nonsense")
    with pytest.raises(DatasetProblem, match="is not a parquet file"):
        format_named("parquet").inspect(tmp_path / "d.parquet")


# --- ids and labels


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=5))
def test_the_same_numbers_have_one_id_whatever_holds_them(values):
    ids: Iterator[str] = (
        id_of_array(np.array(values, kind)) for kind in (np.int16, np.int64, np.float32, np.float64, ">f8")
    )
    named = {f"c{number}": str(value) for number, value in enumerate(values)}
    assert {*ids, id_of_array(np.array([values])), id_of_values({"x": values}), id_of_values(named)} == {
        id_of_array(np.array(values))
    }


@pytest.mark.parametrize("text", ["0.1", "-273.15", "0.003921569", "1e-7", "3.4e38", "1e-30", "255", "0.3"])
def test_a_number_has_one_id_as_text_and_as_a_short_float(text):
    short = np.array([[1.5, np.float32(text)]], "float32")
    assert id_of_array(short) == id_of_values({"a": "1.5", "b": text}) == id_of_array(short.astype(float))


@given(arrays(np.float32, 50, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_short_floats_are_known_by_their_shortest_text(values):
    values = values[(values != np.rint(values)) | (np.abs(values) >= 2**53) | (np.abs(values) < 2**24)]
    assert id_of_array(values) == id_of_array(np.array([float(str(value)) for value in values]))


def test_a_zero_has_no_sign():
    assert id_of_array(np.array([-0.0, 1.0])) == id_of_array(np.array([0, 1]))


def test_whole_numbers_that_a_short_float_cannot_tell_apart_are_told_apart():
    assert id_of_array(np.array([123456790.0])) != id_of_array(np.array([123456792.0]))


def test_large_integers_are_told_apart():
    assert id_of_array(np.array([2**60])) != id_of_array(np.array([2**60 + 1]))


def test_other_shapes_are_other_inputs():
    assert id_of_array(np.zeros((2, 3))) != id_of_array(np.zeros((3, 2)))


@pytest.mark.parametrize("text", ["", "cat", "NaN", "[" * 100_000, '"\\ud800"', '"' + "x" * 70_000 + '"'])
def test_a_label_that_is_no_json_value_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        checked_label(text)
