"""A job's examples: each is here once, has its use for ever, and a snapshot is the same however often it is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edgeai.controller import hard_records
from edgeai.controller.example_book import EVAL, TRAIN, Tally, split_of
from edgeai.controller.examples import Examples, Labelled
from edgeai.controller.formats import DatasetProblem
from edgeai.controller.formats.base import id_of_array, write_npy
from edgeai.controller.hard_records import HardExample, read_hard_log
from edgeai.controller.traces import Change
from edgeai.errors import NotFound, Refused, StoreError
from edgeai.store.records_log import append, frame


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[Examples]:
    examples = await Examples.open(folder / "job" / "examples.db", **options)
    try:
        yield examples
    finally:
        await examples.close()


@pytest.fixture
async def examples(tmp_path: Path) -> AsyncIterator[Examples]:
    async with opened(tmp_path) as found:
        yield found


def csv(path: Path, *numbers: int, label: Callable[[int], object] = lambda number: number % 3) -> Path:
    path.write_text("".join(["a,b,y\n", *(f"{number},0,{label(number)}\n" for number in numbers)]))
    return path


def grow(path: Path, *numbers: int) -> None:
    with path.open("a") as file:
        file.write("".join(f"{number},0,{number % 3}\n" for number in numbers))


def digits(path: Path, count: int, first: int = 0) -> Path:
    numbers = np.arange(first, first + count)
    np.savez(path, x=np.stack([numbers, numbers * 2], axis=1).astype(np.float32), y=numbers % 10)
    return path


def hard(number: int, name: str = "") -> HardExample:
    array = np.array([number + 0.5, number], np.float32)
    return HardExample(name or f"h{number}", float(number), write_npy(array), f'{{"class": {number % 3}}}', 0.25)


def record(example: HardExample) -> dict[str, Any]:
    return {
        "id": example.id,
        "time": example.time,
        "input": example.input,
        "predicted": example.predicted,
        "score": example.score,
    }


def parts(folder: Path) -> dict[str, list[str]]:
    """The lines of each part of a csv snapshot."""
    return {name: (folder / f"{name}.csv").read_text().splitlines()[1:] for name in ("old", "new", "eval")}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


async def total(examples: Examples) -> int:
    counts = await examples.counts()
    return counts.train + counts.held_out


# --- rows of the dataset


async def test_the_rows_of_a_dataset_are_taken_once(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    first, second = await examples.take_rows(path, "csv"), await examples.take_rows(path, "csv")
    assert (first.added, second.added, await total(examples)) == (20, 0, 20)


async def test_only_what_was_appended_is_read(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    await examples.take_rows(path, "csv")
    grow(path, 20, 21)
    taken = await examples.take_rows(path, "csv")
    assert (taken.change, taken.added, taken.duplicates) == (Change.APPENDED, 2, 0)


async def test_the_same_row_twice_is_one_example(examples, tmp_path):
    taken = await examples.take_rows(csv(tmp_path / "d.csv", 1, 2, 1, 1), "csv")
    assert (taken.added, taken.duplicates) == (2, 2)


async def test_reading_goes_on_after_a_restart(tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    async with opened(tmp_path) as examples:
        await examples.take_rows(path, "csv")
    grow(path, 20)
    async with opened(tmp_path) as examples:
        taken = await examples.take_rows(path, "csv")
    assert (taken.change, taken.added, taken.duplicates) == (Change.APPENDED, 1, 0)


async def test_rows_that_vanish_by_a_rewrite_stay(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    await examples.take_rows(path, "csv")
    csv(path, 5, 30)
    with capture_logs() as logs:
        taken = await examples.take_rows(path, "csv")
    assert (taken.change, taken.added, taken.duplicates, await total(examples)) == (Change.SHRUNK, 1, 1, 21)
    assert [line["change"] for line in logs if line["event"] == "dataset_changed"] == ["shrunk"]


async def test_a_rotated_file_is_read_from_its_beginning(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    await examples.take_rows(path, "csv")
    csv(tmp_path / "next.csv", *range(100, 130)).replace(path)
    taken = await examples.take_rows(path, "csv")
    assert (taken.change, taken.added) == (Change.ROTATED, 30)


async def test_a_dataset_that_has_vanished_takes_nothing_away(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    await examples.take_rows(path, "csv")
    path.unlink()
    assert (await examples.take_rows(path, "csv")).change is Change.VANISHED
    assert await total(examples) == 20


async def test_a_corrected_label_is_taken(examples, tmp_path):
    path = csv(tmp_path / "d.csv", 1, 2)
    await examples.take_rows(path, "csv")
    csv(path, 1, 2, label=lambda number: 9)
    assert (await examples.take_rows(path, "csv")).relabelled == 2


async def test_a_label_that_a_person_gave_stands_over_that_of_the_dataset(examples, tmp_path):
    path = csv(tmp_path / "d.csv", 1)
    await examples.take_rows(path, "csv")
    assert (await examples.label({id_of_array(np.array([1, 0])): "7"}))[0] == 1
    csv(path, 1, label=lambda number: 9)
    assert (await examples.take_rows(path, "csv")).relabelled == 0


async def test_an_npz_file_that_grows_gives_its_new_rows(examples, tmp_path):
    path = digits(tmp_path / "d.npz", 30)
    await examples.take_rows(path, "npz")
    digits(path, 40)
    taken = await examples.take_rows(path, "npz")
    assert (taken.added, taken.duplicates) == (10, 30)


async def test_a_file_that_is_half_written_gives_nothing(examples, tmp_path):
    path = digits(tmp_path / "d.npz", 30)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DatasetProblem, match="is not an npz file"):
        await examples.take_rows(path, "npz")
    assert await total(examples) == 0


async def test_a_line_that_is_being_written_is_taken_when_it_is_whole(examples, tmp_path):
    path = csv(tmp_path / "d.csv", 1)
    with path.open("a") as file:
        file.write("2,0,")
        file.flush()
        assert (await examples.take_rows(path, "csv", settled=False)).added == 1
        file.write("1\n")
    assert (await examples.take_rows(path, "csv", settled=False)).added == 1


async def test_a_last_line_without_an_end_is_taken_when_nobody_has_written_for_a_while(examples, tmp_path):
    path = csv(tmp_path / "d.csv", 1)
    path.write_text(path.read_text() + "2,0,1")
    assert (await examples.take_rows(path, "csv")).added == 1
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert (await examples.take_rows(path, "csv")).added == 1


async def test_good_rows_in_front_of_a_bad_one_are_taken_and_those_behind_it_when_it_is_put_right(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    with path.open("a") as file:
        file.write("20,0,1,too many\n21,0,1\n")
    for _ in range(2):
        with pytest.raises(DatasetProblem, match="line 22 has 4 columns"):
            await examples.take_rows(path, "csv", settled=True)
        assert await total(examples) == 20
    assert not await examples.begun()
    path.write_text(path.read_text().replace("20,0,1,too many\n", ""))
    taken = await examples.take_rows(path, "csv", settled=True)
    assert (await total(examples), taken.longest_bytes, await examples.begun()) == (21, 0, True)


async def test_images_are_kept_when_the_dataset_loses_them(examples, tmp_path):
    for number in range(40):
        (tmp_path / "images" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / str(number % 2) / f"{number}.png").write_bytes(b"image %d" % number)
    await examples.take_rows(tmp_path / "images", "image folder")
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"overwritten")
    snapshot = await examples.snapshot(1, tmp_path / "s" / "1")
    listed = [line.split()[0] for line in (tmp_path / "s" / "1" / "eval.txt").read_text().splitlines()]
    assert len(listed) == snapshot.held_out
    assert all((tmp_path / "s" / "1" / name).read_bytes().startswith(b"image ") for name in listed)


async def test_an_image_that_was_seen_is_not_read_again(examples, tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "list.txt").write_text("a.png 1\n")
    await examples.take_rows(tmp_path / "list.txt", "txt list")
    (tmp_path / "list.txt").write_text("a.png 1\na.png 1\n")
    assert (await examples.take_rows(tmp_path / "list.txt", "txt list")).duplicates == 1


# --- what an example is used for


@given(st.text(), st.floats(0.01, 0.99))
def test_the_use_of_an_example_follows_from_what_it_is(content, fraction):
    assert split_of(content, fraction) == split_of(content, fraction)
    assert split_of(content, 0.0) == EVAL
    assert split_of(content, 1.0) == TRAIN


def test_about_the_fraction_asked_for_is_trained_on():
    shares = [split_of(str(number), 0.8) == TRAIN for number in range(5000)]
    assert 0.78 < sum(shares) / len(shares) < 0.82


async def test_the_use_of_an_example_stays_when_another_fraction_is_asked_for(tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    async with opened(tmp_path, train_fraction=0.9) as examples:
        await examples.take_rows(path, "csv")
        before = await examples.counts()
    async with opened(tmp_path, train_fraction=0.1) as examples:
        csv(path, *range(50, 60))
        csv(path, *range(50))
        await examples.take_rows(path, "csv")
        assert await examples.counts() == before


async def test_what_the_dataset_holds_at_first_is_old_and_what_comes_later_is_new(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    await examples.take_rows(path, "csv")
    assert (await examples.counts()).new == 0
    grow(path, *range(50, 100))
    await examples.take_rows(path, "csv")
    assert (await examples.counts()).new == (await examples.counts()).train - len(train_of(range(50)))


def train_of(numbers: range) -> list[int]:
    return [number for number in numbers if split_of(id_of_array(np.array([number, 0])), 0.8) == TRAIN]


async def test_what_the_dataset_holds_at_first_may_be_new(tmp_path):
    async with opened(tmp_path, initial_known=False) as examples:
        await examples.take_rows(csv(tmp_path / "d.csv", *range(50)), "csv")
        counts = await examples.counts()
        assert counts.new == counts.train > 0


async def test_another_input_under_the_same_id_is_kept_under_one_of_its_own(examples):
    with capture_logs() as logs:
        await examples.add_hard([hard(1, "a"), hard(2, "a"), hard(3, "a"), hard(2, "a"), hard(1, "a")])
    names = [each.id for each in (await examples.unlabelled(10))[0]]
    assert names == ["a", f"a-{content_of(2)[:8]}", f"a-{content_of(3)[:8]}"]
    [told] = [line for line in logs if line["event"] == "example_id_used_again"]
    assert (told["id"], told["kept_as"]) == ("a", names[1])


async def test_one_input_under_many_ids_is_one_example(examples):
    await examples.add_hard([hard(1, "a"), hard(1, "b"), hard(2, "c")])
    assert (await examples.counts()).unlabelled == 2
    assert await examples.label({"b": "1"}) == (1, 0, ())
    assert [each.id for each in (await examples.unlabelled(10))[0]] == ["c"]


async def test_a_hard_example_that_the_dataset_has_labelled_needs_no_label(examples, tmp_path):
    await examples.take_rows(digits(tmp_path / "d.npz", 5), "npz")
    await examples.add_hard([HardExample("a", 0.0, write_npy(np.array([3, 6], np.float32)))])
    assert (await examples.counts()).unlabelled == 0


# --- hard examples and labels


async def test_a_hard_example_is_added_once(examples):
    assert await examples.add_hard([hard(1), hard(2)]) == 2
    assert await examples.add_hard([hard(2), hard(3)]) == 1
    assert [each.id for each in (await examples.unlabelled(10))[0]] == ["h1", "h2", "h3"]


async def test_the_oldest_unlabelled_examples_give_way(tmp_path):
    async with opened(tmp_path, max_unlabelled=3) as examples:
        await examples.add_hard([hard(1), hard(2)])
        await examples.label({"h1": "0"})
        await examples.add_hard([hard(number) for number in range(3, 7)])
        assert [each.id for each in (await examples.unlabelled(10))[0]] == ["h4", "h5", "h6"]
        counts = await examples.counts()
        assert counts.train + counts.held_out == 1
        assert (await examples.dropped()).unlabelled == 2


async def test_examples_that_wait_are_shown_page_by_page(examples):
    await examples.add_hard([hard(number) for number in range(5)])
    first, rest = await examples.unlabelled(2)
    assert ([each.id for each in first], rest) == (["h0", "h1"], 3)
    await examples.label({"h1": "0", "h2": "0"})
    second, rest = await examples.unlabelled(2, after="h1")
    assert ([each.id for each in second], rest) == (["h3", "h4"], 0)


async def test_a_page_behind_an_example_that_was_dropped_is_refused(tmp_path):
    async with opened(tmp_path, max_unlabelled=1) as examples:
        await examples.add_hard([hard(1), hard(2)])
        with pytest.raises(NotFound, match="h1"):
            await examples.unlabelled(2, after="h1")


# --- limits


SIZE = len(write_npy(np.array([1.5, 1], np.float32)))


async def learned(examples: Examples, folder: Path, round: int, numbers: range) -> None:
    """Hard examples, labelled, frozen and learned from."""
    await examples.add_hard([hard(number) for number in numbers])
    await examples.label({f"h{number}": "1" for number in numbers})
    await examples.snapshot(round, folder / str(round), "jsonl")
    await examples.mark_known(round)


async def test_the_oldest_examples_that_models_know_leave_first(tmp_path):
    async with opened(tmp_path, train_fraction=0.5, max_bytes=40 * SIZE) as examples:
        await learned(examples, tmp_path, 1, range(40))
        await learned(examples, tmp_path, 2, range(40, 80))
        counts, dropped = await examples.counts(), await examples.dropped()
    assert counts.train + counts.held_out <= 40
    assert dropped.known + dropped.held_out == 80 - counts.train - counts.held_out
    assert dropped.over_bytes == 0
    with closing(sqlite3.connect(tmp_path / "job" / "examples.db")) as book:
        [(oldest,)] = book.execute("SELECT min(seq) FROM examples")
    assert oldest > 30


async def test_new_examples_stay_until_a_round_has_learned_from_them(tmp_path):
    async with opened(tmp_path, train_fraction=0.5, max_bytes=10 * SIZE) as examples:
        await examples.add_hard([hard(number) for number in range(60)])
        await examples.label({f"h{number}": "1" for number in range(60)})
        counts, dropped = await examples.counts(), await examples.dropped()
        assert counts.new == sum(1 for number in range(60) if split_of(content_of(number), 0.5) == TRAIN)
        assert dropped.known == 0
        assert dropped.over_bytes > 0


def content_of(number: int) -> str:
    return id_of_array(np.array([number + 0.5, number], np.float32))


async def test_what_only_undeployed_models_have_learned_from_leaves_too_behind_the_rest(tmp_path):
    async with opened(tmp_path, train_fraction=0.5, max_bytes=20 * SIZE) as examples:
        await examples.add_hard([hard(number) for number in range(60)])
        await examples.label({f"h{number}": "1" for number in range(60)})
        await examples.snapshot(1, tmp_path / "1", "jsonl")
        assert (await examples.dropped()).known == 0
        await examples.learned(1)
        assert (await examples.dropped()).known > 0
        assert (await examples.dropped()).over_bytes == 0


async def test_held_out_examples_stay_within_their_share(tmp_path):
    async with opened(tmp_path, train_fraction=0.5, max_bytes=1000 * SIZE) as examples:
        await learned(examples, tmp_path, 1, range(60))
        before = await examples.counts()
    share = (before.held_out + 1) * SIZE
    async with opened(tmp_path, train_fraction=0.5, max_bytes=2 * share) as examples:
        await learned(examples, tmp_path, 2, range(60, 70))
        assert (await examples.dropped()).held_out > 0
        assert (await examples.counts()).held_out > before.held_out, "they fit their share"


async def test_what_has_left_does_not_come_back(tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    async with opened(tmp_path, max_bytes=200) as examples:
        await examples.take_rows(path, "csv")
        gone = (await examples.dropped()).known
        assert gone > 0
        csv(path, *range(49, -1, -1))
        taken = await examples.take_rows(path, "csv")
        assert (taken.added, taken.duplicates) == (0, 50)


async def test_nothing_leaves_while_a_snapshot_is_being_written(tmp_path):
    async with opened(tmp_path, max_bytes=10**6) as examples:
        await examples.take_rows(csv(tmp_path / "d.csv", *range(50)), "csv")
        await examples._run(examples._book.freeze, 1)
    async with opened(tmp_path, max_bytes=200) as examples:
        await examples.add_hard([hard(1)])
        await examples.label({"h1": "1"})
        assert (await examples.dropped()).known == 0
        snapshot = await examples.snapshot(1, tmp_path / "1")
        assert snapshot.train + snapshot.held_out == 50
        assert (await examples.dropped()).known > 0


async def test_files_of_examples_that_have_left_are_removed(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 100)
    (tmp_path / "d.txt").write_text("".join(f"{number}.bin {number % 2}\n" for number in range(20)))
    async with opened(tmp_path, max_bytes=1000) as examples:
        await examples.take_rows(tmp_path / "d.txt", "txt list", settled=True)
        assert len(list(examples.files.iterdir())) == await total(examples) < 20


async def test_a_book_of_an_earlier_version_knows_how_large_its_examples_are(tmp_path):
    async with opened(tmp_path) as examples:
        await examples.take_rows(csv(tmp_path / "d.csv", *range(50)), "csv")
    with closing(sqlite3.connect(tmp_path / "job" / "examples.db")) as book:
        book.executescript("DROP INDEX sized; ALTER TABLE examples DROP COLUMN bytes")
    async with opened(tmp_path, max_bytes=200) as examples:
        await examples.add_hard([hard(1)])
        await examples.label({"h1": "1"})
        assert (await examples.dropped()).known > 0


# --- what inference workers count


def test_the_counts_of_a_run_are_taken_as_they_stand_and_added_to_those_of_earlier_runs():
    tally = Tally().counted("a", 5, 1).counted("a", 9, 2).counted("b", 3, 1)
    assert (tally.requests, tally.hard) == (12, 3)


def test_a_count_that_comes_again_or_late_adds_nothing():
    tally = Tally().counted("a", 9, 2).counted("a", 9, 2).counted("a", 5, 1)
    assert (tally.requests, tally.hard) == (9, 2)


async def test_counts_go_on_after_a_restart(tmp_path):
    async with opened(tmp_path) as examples:
        await examples.keep_tally(Tally("a", (9, 2, 1), (100, 10, 5)))
    async with opened(tmp_path) as examples:
        found = (await examples.tally()).counted("a", 12, 3, 2)
    assert (found.requests, found.hard, found.dropped) == (112, 13, 7)


async def test_counts_of_an_earlier_version_are_taken_on(tmp_path):
    async with opened(tmp_path) as examples:
        await examples.keep_tally(Tally("a", (9, 2), (100, 10)))  # type: ignore[arg-type]
        assert await examples.tally() == Tally("a", (9, 2, 0), (100, 10, 0))


async def test_hard_examples_that_gave_way_or_were_none_are_counted_as_dropped(tmp_path):
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "1.log").write_bytes(
        frame(record(hard(1))) + frame({"id": 5}) + frame(record(hard(2))) + frame(record(hard(3)))
    )
    async with opened(tmp_path, max_unlabelled=1) as examples:
        await examples.collect_hard(tmp_path / "hard")
        assert (await examples.counts()).dropped == 3
        found = await examples.dropped()
        assert (found.refused, found.unlabelled) == (1, 2)


async def test_a_book_that_cannot_be_read_is_an_error_of_the_store(examples, tmp_path):
    await examples.take_rows(csv(tmp_path / "d.csv", *range(50)), "csv")
    await examples.snapshot(1, tmp_path / "1")
    examples._book._connection.execute("DROP TABLE examples")
    examples._book._connection.execute("DROP TABLE positions")
    for reading in (examples.counts, examples.collect_hard, examples.canary, examples.unlabelled):
        values = {examples.collect_hard: (tmp_path,), examples.canary: (5,), examples.unlabelled: (5,)}.get(reading, ())
        with pytest.raises(StoreError, match=r"examples\.db cannot be read: no such table"):
            await reading(*values)
    with pytest.raises(StoreError, match="cannot be read"):
        await examples.snapshot(1, tmp_path / "2")


# --- datasets that are in no good state


async def test_a_file_that_was_cut_short_is_so_until_it_is_as_long_again(tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    whole = path.read_bytes()
    async with opened(tmp_path) as examples:
        await examples.take_rows(path, "csv")
        path.write_bytes(whole[:40])
        assert (await examples.take_rows(path, "csv", settled=True)).longest_bytes == len(whole)
    async with opened(tmp_path) as examples:
        assert (await examples.take_rows(path, "csv", settled=True)).longest_bytes == len(whole)
        path.write_bytes(whole)
        assert (await examples.take_rows(path, "csv", settled=True)).longest_bytes == 0


async def test_a_file_that_was_rotated_may_be_shorter(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    await examples.take_rows(path, "csv")
    csv(tmp_path / "next.csv", 30).replace(path)
    assert (await examples.take_rows(path, "csv")).longest_bytes == 0


async def test_other_columns_are_not_taken(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(20))
    await examples.take_rows(path, "csv")
    path.write_text("a,c,y\n1,2,3\n")
    with pytest.raises(
        DatasetProblem, match="has the columns a, c, y, and the job has taken rows with a, b, y: put those"
    ):
        await examples.take_rows(path, "csv")
    assert await total(examples) == 20


async def test_arrays_of_another_shape_are_not_taken(examples, tmp_path):
    path = digits(tmp_path / "d.npz", 20)
    await examples.take_rows(path, "npz")
    np.savez(path, x=np.zeros((5, 3), np.float32), y=np.zeros(5))
    with pytest.raises(DatasetProblem, match=r"has the columns x \[3\], y"):
        await examples.take_rows(path, "npz")


async def test_a_file_that_may_not_be_read_is_not_called_changed(examples, tmp_path, monkeypatch):
    path = csv(tmp_path / "d.csv", *range(20))

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("edgeai.controller.examples.os.open", refused)
    with pytest.raises(DatasetProblem, match=r"d\.csv cannot be read: Permission denied"):
        await examples.take_rows(path, "csv")


# --- labels


async def test_labels_are_taken_once(examples):
    await examples.add_hard([hard(1), hard(2)])
    assert await examples.label({"h1": "3", "x": "4"}) == (1, 0, ("x",))
    assert await examples.label({"h1": "3", "h2": '"cat"'}) == (1, 1, ())


async def test_another_label_corrects_the_first(examples):
    await examples.add_hard([hard(1)])
    await examples.label({"h1": "3"})
    assert await examples.label({"h1": "4"}) == (1, 0, ())


async def test_a_label_waits_for_its_example(examples):
    await examples.label({"h1": "3"})
    await examples.add_hard([hard(1)])
    assert await total(examples) == 1


@pytest.mark.parametrize("label", ["", "cat", "null", "NaN", "[" * 100_000])
async def test_a_label_that_is_no_json_value_is_refused_and_none_is_taken(examples, label):
    await examples.add_hard([hard(1), hard(2)])
    with pytest.raises(Refused, match="h2"):
        await examples.label({"h1": "3", "h2": label})
    assert (await examples.counts()).unlabelled == 2


async def test_examples_are_shown_with_their_inputs(examples):
    await examples.add_hard([hard(1)])
    [shown], _ = await examples.unlabelled(10, inputs=True)
    assert (shown.id, shown.score, shown.predicted, shown.input) == ("h1", 0.25, hard(1).predicted, hard(1).input)
    assert (await examples.unlabelled(10))[0][0].input == b""


async def test_not_more_is_shown_than_an_event_holds(examples):
    large = np.zeros(50_000, np.float32)
    await examples.add_hard([HardExample(f"h{n}", 0.0, write_npy(large + n)) for n in range(10)])
    shown, _ = await examples.unlabelled(10, inputs=True)
    assert 1 <= len(shown) < 10
    assert sum(len(each.input) for each in shown) <= 700_000


async def test_labels_are_read_from_a_file_as_it_grows(examples, tmp_path):
    path = tmp_path / "labels.jsonl"
    await examples.add_hard([hard(1), hard(2), hard(3)])
    assert await examples.follow_labels(path) == Labelled()
    path.write_text('{"id": "h1", "label": 3}\n{"id": "h2", "la')
    assert (await examples.follow_labels(path)).taken == 1
    path.write_text('{"id": "h1", "label": 3}\n{"id": "h2", "label": "x"}\n{"id": "later", "label": 1}\n')
    found = await examples.follow_labels(path)
    assert (found.taken, found.already, found.waiting) == (1, 0, 1)
    assert await examples.follow_labels(path) == Labelled()


async def test_a_line_that_is_no_label_is_named_and_the_rest_is_taken(examples, tmp_path):
    await examples.add_hard([hard(1), hard(2)])
    lines = ['{"id": "h1", "label": 3}', "nonsense", '{"id": "h2"}', '{"id": "h2", "label": 4}', ""]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))
    found = await examples.follow_labels(tmp_path / "labels.jsonl")
    assert (found.taken, found.refused) == (2, 2)
    assert found.problem.startswith("line 2: ")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"id": "h1", "label": "\xff"}', "it is not UTF-8"),
        (b'"' + b"x" * 5_000_000 + b'"', "1048576 characters or more"),
    ],
    ids=["not UTF-8", "too long"],
)
async def test_a_line_of_labels_that_is_no_text_is_told_and_left_behind(examples, tmp_path, line, why):
    path = tmp_path / "labels.jsonl"
    await examples.add_hard([hard(1), hard(2)])
    path.write_bytes(b'{"id": "h1", "label": 3}\n' + line + b'\n{"id": "h2", "label": 4}\n')
    with capture_logs() as logs:
        found = await examples.follow_labels(path)
        again = await examples.follow_labels(path)
    assert (found.taken, found.refused, again) == (2, 1, Labelled())
    [told] = [each for each in logs if each["event"] == "labels_refused"]
    assert told["reason"].startswith(f"{path}, line 2: ")
    assert why in told["reason"]


async def test_a_long_line_of_labels_that_is_being_written_waits(examples, tmp_path):
    await examples.add_hard([hard(1)])
    (tmp_path / "labels.jsonl").write_bytes(b'{"id": "h1", "label": 3}\n' + b"x" * 5_000_000)
    assert (await examples.follow_labels(tmp_path / "labels.jsonl")).taken == 1
    assert await examples.follow_labels(tmp_path / "labels.jsonl") == Labelled()


async def test_a_labels_file_that_cannot_be_read_is_told(examples, tmp_path):
    (tmp_path / "labels.jsonl").mkdir()
    with pytest.raises(DatasetProblem, match=r"labels\.jsonl cannot be read: Is a directory"):
        await examples.follow_labels(tmp_path / "labels.jsonl")


async def test_a_label_that_does_not_fit_the_dataset_is_refused_by_name(examples, tmp_path):
    await examples.take_rows(digits(tmp_path / "d.npz", 30), "npz")
    await examples.add_hard([hard(1), hard(2)])
    with pytest.raises(Refused, match="the label of h2 does not fit the dataset: a label is text, not int64"):
        await examples.label({"h1": "3", "h2": '"cat"'})
    (tmp_path / "labels.jsonl").write_text('{"id": "h1", "label": "cat"}\n{"id": "h2", "label": 4}\n')
    found = await examples.follow_labels(tmp_path / "labels.jsonl")
    assert (found.taken, found.refused) == (1, 1)


async def test_a_corrected_label_makes_an_example_new_until_a_model_that_knows_it_serves(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    await examples.take_rows(path, "csv")
    [first, second] = [id_of_array(np.array([number, 0])) for number in train_of(range(50))[:2]]
    await examples.label({first: "7"})
    assert (await examples.counts()).new == 1
    assert (await examples.snapshot(1, tmp_path / "s" / "1")).new == 1
    await examples.label({first: "8", second: "9"})
    assert (await examples.counts()).new == 2
    assert await examples.mark_known(1) == 0, "what the model has learned is not so any more"
    assert (await examples.snapshot(2, tmp_path / "s" / "2")).new == 2
    assert await examples.mark_known(2) == 2


async def test_a_labels_file_that_is_rewritten_is_read_again(examples, tmp_path):
    await examples.add_hard([hard(1), hard(2)])
    (tmp_path / "labels.jsonl").write_text('{"id": "h1", "label": 3}\n')
    await examples.follow_labels(tmp_path / "labels.jsonl")
    (tmp_path / "labels.jsonl").write_text('{"id": "h2", "label": 3}\n{"id": "h1", "label": 3}\n')
    found = await examples.follow_labels(tmp_path / "labels.jsonl")
    assert (found.taken, found.already) == (1, 1)


# --- the log of an inference worker


def logged(path: Path, *examples: HardExample, **more: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for example in examples:
        append(descriptor, record(example) | more)
    os.close(descriptor)


async def waiting(examples: Examples) -> list[str]:
    """Ids of the examples without a label."""
    return [each.id for each in (await examples.unlabelled(10))[0]]


def label_of(examples: Examples, name: str) -> str:
    with closing(sqlite3.connect(examples.path)) as book:
        [(label,)] = book.execute("SELECT label FROM examples WHERE id = ?", (name,)).fetchall()
        return str(label)


async def test_hard_examples_are_collected_and_what_is_read_and_full_is_removed(examples, tmp_path):
    logged(tmp_path / "hard" / "9.log", hard(1), hard(2))
    logged(tmp_path / "hard" / "10.log", hard(3))
    assert await examples.collect_hard(tmp_path / "hard") == 3
    assert [path.name for path in (tmp_path / "hard").iterdir()] == ["10.log"]
    logged(tmp_path / "hard" / "10.log", hard(4))
    assert await examples.collect_hard(tmp_path / "hard") == 1


async def test_a_log_that_begins_anew_under_the_same_name_is_read(examples, tmp_path):
    logged(tmp_path / "hard" / "1.log", hard(1), hard(2))
    await examples.collect_hard(tmp_path / "hard")
    (tmp_path / "hard" / "1.log").rename(tmp_path / "kept")
    logged(tmp_path / "hard" / "1.log", hard(3), hard(4), hard(5))
    assert await examples.collect_hard(tmp_path / "hard") == 3


async def test_logs_of_several_workers_are_told_apart(examples, tmp_path):
    logged(tmp_path / "one" / "1.log", hard(1))
    logged(tmp_path / "two" / "1.log", hard(2), hard(3))
    assert await examples.collect_hard(tmp_path / "one") == 1
    assert await examples.collect_hard(tmp_path / "two", "digits-0123abcd/little") == 2
    logged(tmp_path / "one" / "1.log", hard(4))
    logged(tmp_path / "two" / "1.log", hard(5))
    assert await examples.collect_hard(tmp_path / "one") == 1
    assert await examples.collect_hard(tmp_path / "two", "digits-0123abcd/little") == 1


async def test_a_hard_example_that_comes_with_a_label_needs_none(examples):
    await examples.add_hard([replace(hard(1), label="7"), hard(2)])
    assert await waiting(examples) == ["h2"]


async def test_a_label_that_a_person_gave_before_stays(examples):
    await examples.label({"h1": "3"})
    await examples.add_hard([replace(hard(1), label="7")])
    assert label_of(examples, "h1") == "3"


async def test_a_label_that_a_person_gives_later_counts(examples):
    await examples.add_hard([replace(hard(1), label="7")])
    await examples.label({"h1": "3"})
    assert label_of(examples, "h1") == "3"


@pytest.mark.parametrize("label", [None, b"7", float("nan"), "x" * 100_000], ids=["none", "bytes", "nan", "long"])
async def test_what_is_no_label_of_a_log_costs_the_example_nothing(examples, tmp_path, label):
    logged(tmp_path / "hard" / "1.log", hard(1), label=label)
    await examples.collect_hard(tmp_path / "hard")
    assert await waiting(examples) == ["h1"]


async def test_a_log_that_is_not_there_gives_nothing(examples, tmp_path):
    assert await examples.collect_hard(tmp_path / "hard") == 0


async def test_a_folder_that_is_a_link_is_not_followed(examples, tmp_path):
    logged(tmp_path / "elsewhere" / "1.log", hard(1))
    logged(tmp_path / "elsewhere" / "2.log", hard(2))
    (tmp_path / "hard").symlink_to(tmp_path / "elsewhere")
    assert await examples.collect_hard(tmp_path / "hard") == 0
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


async def test_what_is_no_log_is_named_once_and_the_others_are_read(examples, tmp_path):
    logged(tmp_path / "hard" / "2.log", hard(1))
    (tmp_path / "hard" / "1.log").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "hard" / "3.log")
    with capture_logs() as logs:
        await examples.collect_hard(tmp_path / "hard")
        await examples.collect_hard(tmp_path / "hard")
    assert sorted(line["event"] for line in logs) == ["hard_examples_not_read"] * 2
    assert (await examples.counts()).unlabelled == 1


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": "a\nb"},
        {"id": "x" * 300},
        {"id": 5},
        {"time": float("nan")},
        {"time": "now"},
        {"score": 10**400},
        {"input": b""},
        {"input": b"nonsense"},
        {"input": write_npy(np.zeros(3))[:-1]},
        {"input": write_npy(np.zeros(0))},
        {"input": "text"},
        {"predicted": "not json"},
        {"predicted": "1" * 100_000},
        {"predicted": "[" * 60_000},
    ],
    ids=lambda change: f"{next(iter(change))} {str(next(iter(change.values())))[:12]!r}",
)
def test_a_record_that_is_no_hard_example_is_refused(tmp_path, change):
    (tmp_path / "1.log").write_bytes(b"".join(_framed({**record(hard(1)), **change})) + frame(record(hard(2))))
    found = read_hard_log(tmp_path)
    assert ([each.id for each in found.examples], found.refused) == (["h2"], 1)


def _framed(content: dict[str, Any]) -> list[bytes]:
    try:
        return [frame(content)]
    except OverflowError:  # msgpack has no such number
        return [frame({**content, "score": "1e400"})]


def test_an_array_of_objects_is_never_unpickled(tmp_path):
    import io

    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "1.log").write_bytes(frame({**record(hard(1)), "input": file.getvalue()}))
    assert read_hard_log(tmp_path).refused == 1


def test_a_folder_full_of_names_is_not_looked_through_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(hard_records, "MAX_FILES", 2)
    for number in range(1, 100):
        (tmp_path / f"{number}.log").touch()
    assert len(read_hard_log(tmp_path).done) <= 20


# --- snapshots


async def test_a_snapshot_has_what_is_old_what_is_new_and_what_is_held_out(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    await examples.take_rows(path, "csv")
    grow(path, *range(50, 80))
    await examples.take_rows(path, "csv")
    snapshot = await examples.snapshot(1, tmp_path / "s" / "1")
    found = parts(tmp_path / "s" / "1")
    numbers = {name: {int(line.split(",")[0]) for line in lines} for name, lines in found.items()}
    assert numbers["old"] == set(train_of(range(50)))
    assert numbers["new"] == set(train_of(range(50, 80)))
    assert numbers["old"] | numbers["new"] | numbers["eval"] == set(range(80))
    assert (snapshot.train, snapshot.new, snapshot.held_out) == (
        len(numbers["old"]) + len(numbers["new"]),
        len(numbers["new"]),
        len(numbers["eval"]),
    )


async def test_what_was_trained_on_is_old_in_the_next_snapshot(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    await examples.take_rows(path, "csv")
    grow(path, *range(50, 80))
    await examples.take_rows(path, "csv")
    first = await examples.snapshot(1, tmp_path / "s" / "1")
    assert await examples.mark_known(1) == first.new
    assert (await examples.snapshot(2, tmp_path / "s" / "2")).new == 0


async def test_what_nothing_was_trained_on_is_new_again_and_starts_no_round(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    await examples.take_rows(path, "csv")
    grow(path, *range(50, 80))
    await examples.take_rows(path, "csv")
    first = await examples.snapshot(1, tmp_path / "s" / "1")
    assert (await examples.counts()).new == 0
    assert (await examples.snapshot(2, tmp_path / "s" / "2")).new == first.new > 0


async def test_the_same_round_gives_the_same_snapshot_whatever_came_since(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    await examples.take_rows(path, "csv")
    first = await examples.snapshot(1, tmp_path / "s" / "1")
    content = bytes_of(tmp_path / "s" / "1")
    csv(path, *range(100, 150))
    await examples.take_rows(path, "csv")
    await examples.label({id_of_array(np.array([1, 0])): "9"})
    assert await examples.snapshot(1, tmp_path / "s" / "1") == first
    assert await examples.snapshot(1, tmp_path / "t" / "1") == first
    assert bytes_of(tmp_path / "s" / "1") == bytes_of(tmp_path / "t" / "1") == content


async def test_a_damaged_snapshot_is_written_again_as_it_was(examples, tmp_path):
    await examples.take_rows(csv(tmp_path / "d.csv", *range(50)), "csv")
    first = await examples.snapshot(1, tmp_path / "s" / "1")
    content = bytes_of(tmp_path / "s" / "1")
    (tmp_path / "s" / "1" / "old.csv").chmod(0o600)
    (tmp_path / "s" / "1" / "old.csv").write_text("a,b,y\n")
    assert await examples.snapshot(1, tmp_path / "s" / "1") == first
    assert bytes_of(tmp_path / "s" / "1") == content


async def test_the_order_in_which_examples_come_changes_no_byte(tmp_path):
    made = []
    for name, numbers in (("a", range(40)), ("b", reversed(range(40)))):
        async with opened(tmp_path / name) as examples:
            await examples.take_rows(csv(tmp_path / f"{name}.csv", *numbers), "csv")
            await examples.snapshot(1, tmp_path / name / "1")
            made.append(bytes_of(tmp_path / name / "1"))
    assert made[0] == made[1]


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9], ids=["nothing to train on", "nothing held out"])
async def test_a_snapshot_needs_examples_for_both_uses(tmp_path, fraction):
    async with opened(tmp_path, train_fraction=fraction) as examples:
        await examples.take_rows(csv(tmp_path / "d.csv", *range(20)), "csv")
        with pytest.raises(DatasetProblem, match="there is no labelled example"):
            await examples.snapshot(1, tmp_path / "s" / "1")
        assert not (tmp_path / "s").exists()


async def test_a_snapshot_of_npz_holds_labelled_hard_examples_too(examples, tmp_path):
    await examples.take_rows(digits(tmp_path / "d.npz", 60), "npz")
    await examples.add_hard([hard(number) for number in range(100, 140)])
    await examples.label({f"h{number}": str(number % 10) for number in range(100, 130)})
    snapshot = await examples.snapshot(1, tmp_path / "s" / "1")
    with np.load(tmp_path / "s" / "1" / "new.npz") as found:
        assert (found["x"].dtype, found["y"].dtype) == (np.float32, np.int64)
        assert all(int(x[1]) % 10 == y for x, y in zip(found["x"], found["y"], strict=True))
    assert snapshot.train + snapshot.held_out == 90


async def test_examples_that_do_not_fit_are_left_out_and_told(examples, tmp_path):
    await examples.take_rows(digits(tmp_path / "d.npz", 60), "npz")
    await examples.add_hard([HardExample("odd", 0.0, write_npy(np.zeros(7, np.float32)))])
    await examples.label({"odd": "1"})
    snapshot = await examples.snapshot(1, tmp_path / "s" / "1")
    left_out = json.loads((tmp_path / "s" / "1" / "snapshot.json").read_text())["left_out"]
    assert left_out == {"x has shape [7], not [2]": 1}
    assert snapshot.left_out == "1 left out (x has shape [7], not [2])"


async def test_a_round_that_nothing_could_be_frozen_for_is_frozen_anew(tmp_path):
    async with opened(tmp_path, train_fraction=0.5) as examples:
        odd = [HardExample(f"odd{n}", 0.0, write_npy(np.full(7, n, np.float32))) for n in range(20)]
        await examples.take_rows(digits(tmp_path / "one.npz", 1), "npz")
        await examples.add_hard(odd)
        await examples.label({each.id: "1" for each in odd})
        new = (await examples.counts()).new
        with pytest.raises(DatasetProblem, match="left out"):
            await examples.snapshot(1, tmp_path / "s" / "1")
        assert (await examples.counts()).new == new > 0
        await examples.take_rows(digits(tmp_path / "one.npz", 40), "npz")
        assert (await examples.snapshot(1, tmp_path / "s" / "1")).train > 5


async def test_a_job_without_a_dataset_file_learns_from_hard_examples(examples, tmp_path):
    await examples.add_hard([hard(number) for number in range(60)])
    await examples.label({f"h{number}": str(number % 3) for number in range(60)})
    snapshot = await examples.snapshot(1, tmp_path / "s" / "1")
    assert snapshot.train + snapshot.held_out == 60


async def test_files_of_a_snapshot_can_only_be_read(examples, tmp_path):
    await examples.take_rows(csv(tmp_path / "d.csv", *range(50)), "csv")
    await examples.snapshot(1, tmp_path / "s" / "1")
    assert {path.stat().st_mode & 0o222 for path in (tmp_path / "s" / "1").iterdir()} == {0}


async def test_held_out_inputs_are_given_as_canaries(examples, tmp_path):
    assert await examples.canary(5) == b""
    await examples.take_rows(digits(tmp_path / "d.npz", 60), "npz")
    (tmp_path / "canary.npy").write_bytes(await examples.canary(5))
    found = np.load(tmp_path / "canary.npy")
    assert (found.shape, found.dtype) == ((5, 2), np.float32)
    assert {split_of(id_of_array(row), 0.8) for row in found} == {EVAL}


async def test_old_snapshots_are_removed_and_those_in_use_stay(examples, tmp_path):
    await examples.take_rows(csv(tmp_path / "d.csv", *range(50)), "csv")
    for number in range(1, 7):
        await examples.snapshot(number, tmp_path / "s" / str(number))
    (tmp_path / "s" / ".7.part").mkdir()
    assert await examples.tidy(tmp_path / "s", 2, {3}) == [1, 2, 4]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["3", "5", "6"]


async def test_what_was_in_a_snapshot_that_is_not_there_is_forgotten(examples, tmp_path):
    await examples.take_rows(csv(tmp_path / "d.csv", *range(50)), "csv")
    for number in range(1, 4):
        await examples.snapshot(number, tmp_path / "s" / str(number))
    for number in (1, 3):
        (tmp_path / "s" / str(number)).rename(tmp_path / f"gone {number}")
    await examples.tidy(tmp_path / "s", 3, {3})
    with closing(sqlite3.connect(tmp_path / "job" / "examples.db")) as book:
        assert book.execute("SELECT DISTINCT round FROM members ORDER BY round").fetchall() == [(2,), (3,)]


# --- faults


async def test_a_dataset_that_is_rewritten_while_a_snapshot_is_taken_does_not_change_it(examples, tmp_path):
    path = csv(tmp_path / "d.csv", *range(2000))
    await examples.take_rows(path, "csv")
    taking = asyncio.create_task(examples.snapshot(1, tmp_path / "s" / "1"))
    await asyncio.sleep(0)
    csv(path, *range(5000, 5010))
    snapshot = await taking
    assert snapshot.train + snapshot.held_out == 2000
    assert sum(len(lines) for lines in parts(tmp_path / "s" / "1").values()) == 2000


@pytest.mark.parametrize("change", ["truncate", "rewrite", "replace"])
async def test_a_dataset_that_changes_while_it_is_read_is_named_and_read_again(examples, tmp_path, monkeypatch, change):
    path = csv(tmp_path / "d.csv", *range(2000))
    take, calls = examples._book.take, 0

    def disturb(*values: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            match change:
                case "truncate":
                    csv(path, *range(3))
                case "rewrite":
                    csv(path, *range(10_000, 13_000))
                case _:
                    csv(tmp_path / "other", *range(10_000, 13_000)).replace(path)
        return take(*values, **options)

    monkeypatch.setattr(examples._book, "take", disturb)
    with pytest.raises(DatasetProblem, match="was changed while it was read"):
        await examples.take_rows(path, "csv")
    expected = set(range(500)) | set(range(3) if change == "truncate" else range(10_000, 13_000))
    await examples.take_rows(path, "csv")
    assert await total(examples) == len(expected)


CRASHING = """
import asyncio, sys
from pathlib import Path
from edgeai.controller.examples import Examples

async def main():
    folder = Path(sys.argv[1])
    examples = await Examples.open(folder / "job" / "examples.db")
    await examples.take_rows(folder / "d.csv", "csv")
    await examples.collect_hard(folder / "hard")
    await examples.label({f"h{number}": "1" for number in range(20)})
    found = await examples.snapshot(1, folder / "s" / "1")
    await examples.close()
    print(found.digest)

asyncio.run(main())
"""


def run(folder: Path, crash_at: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGEAI_TEST": "1", "EDGEAI_CRASH_AT": crash_at}
    command = [sys.executable, "-c", CRASHING, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def world(folder: Path) -> Path:
    folder.mkdir()
    csv(folder / "d.csv", *range(1200))
    logged(folder / "hard" / "1.log", *(hard(number) for number in range(20)))
    logged(folder / "hard" / "2.log", hard(20))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    ended = run(world(tmp_path_factory.mktemp("undisturbed") / "world"))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    "point",
    [
        "examples.rows_taken:1",
        "examples.rows_taken:2",
        "examples.rows_taken:4",
        "examples.hard_taken:1",
        "examples.hard_taken:2",
        "examples.snapshot_fixed",
        "examples.snapshot_written",
    ],
)
def test_a_process_that_is_killed_goes_on_and_comes_to_the_same(tmp_path, undisturbed, point):
    folder = world(tmp_path / "world")
    assert run(folder, point).returncode == -signal.SIGKILL
    assert not (folder / "s" / "1").exists()
    again = run(folder)
    assert (again.returncode, again.stdout) == (0, undisturbed), again.stderr


async def test_a_damaged_file_is_set_aside_and_the_rows_come_again(tmp_path):
    path = csv(tmp_path / "d.csv", *range(50))
    async with opened(tmp_path) as examples:
        await examples.take_rows(path, "csv")
        before = await examples.counts()
    book = tmp_path / "job" / "examples.db"
    book.write_bytes(b"nonsense" * 2000)
    with capture_logs() as logs:
        async with opened(tmp_path) as examples:
            await examples.take_rows(path, "csv")
            assert await examples.counts() == before
    assert [line["event"] for line in logs] == ["examples_damaged"]
    assert list(book.parent.glob("examples.db.damaged-*"))


# --- the law


steps = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.integers(0, 60), st.integers(1, 12)),
        st.tuples(st.just("rewrite"), st.integers(0, 60), st.integers(1, 12)),
        st.tuples(st.just("hard"), st.integers(0, 60), st.integers(1, 8)),
        st.tuples(st.just("label"), st.integers(0, 60), st.integers(1, 8)),
        st.tuples(st.just("round"), st.booleans(), st.just(0)),
        st.tuples(st.just("restart"), st.floats(0.2, 0.8), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_no_example_is_ever_held_out_in_one_round_and_trained_on_in_another(tmp_path_factory, history):
    asyncio.run(_lives(tmp_path_factory.mktemp("law"), history))


async def _lives(folder: Path, history: list[tuple[str, Any, int]]) -> None:
    path = csv(folder / "d.csv", *range(6))
    trained: set[str] = set()
    held_out: set[str] = set()
    examples, number = await Examples.open(folder / "job" / "examples.db", train_fraction=0.5), 0
    for step, first, count in history:
        match step:
            case "grow":
                grow(path, *range(first, first + count))
            case "rewrite":
                csv(path, *range(first, first + count))
            case "hard":
                arrays = [np.array([n, 0.0], np.float32) for n in range(first, first + count)]
                await examples.add_hard([HardExample(f"{first}-{n}", 0.0, write_npy(a)) for n, a in enumerate(arrays)])
            case "label":
                await examples.label({f"{first}-{n}": str(n) for n in range(count)})
            case "restart":
                await examples.close()
                examples = await Examples.open(folder / "job" / "examples.db", train_fraction=first)
            case "round":
                number += 1
                found = await _round(examples, folder / "s" / str(number), number)
                inputs = {name: [line.rpartition(",")[0] for line in lines] for name, lines in found.items()}
                inputs = {
                    name: [",".join(str(float(cell)) for cell in line.split(",")) for line in lines]
                    for name, lines in inputs.items()
                }
                everything = [line for lines in inputs.values() for line in lines]
                assert len(everything) == len(set(everything)), "an example is twice in one snapshot"
                trained |= {*inputs.get("old", ()), *inputs.get("new", ())}
                held_out |= {*inputs.get("eval", ())}
                assert not trained & held_out
                if first:
                    await examples.mark_known(number)
        await examples.take_rows(path, "csv")
    await examples.close()


async def _round(examples: Examples, folder: Path, number: int) -> dict[str, list[str]]:
    try:
        await examples.snapshot(number, folder, "csv")
    except DatasetProblem:
        return {}
    return parts(folder)
