"""Finished updates in the slot directory: whole or absent, whatever was killed in between."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from edgeai.errors import StoreError, UpdateError
from edgeai.events.catalogue import Evaluation
from edgeai.store.arrays import ArrayFile
from edgeai.store.files import digest_of
from edgeai.worker import updates
from edgeai.worker.updates import KeptUpdate, UpdateFolder

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2], np.int64)]


@pytest.fixture
def folder(tmp_path: Path) -> UpdateFolder:
    return UpdateFolder(tmp_path)


def written(folder: UpdateFolder, number: int = 1, base_digest: str = "b" * 64, arrays=ARRAYS) -> KeptUpdate:
    return folder.write(arrays, number=number, base_digest=base_digest, num_examples=7, metrics={"loss": 0.5})


def names(folder: UpdateFolder) -> list[str]:
    return sorted(path.name for path in folder.blob(0).parent.iterdir())


def test_an_update_comes_back_as_it_was(folder):
    found = folder.write(
        ARRAYS,
        number=3,
        base_digest="b" * 64,
        num_examples=7,
        metrics={"loss": 0.5},
        evaluation=Evaluation({"a": 1.0}, 9),
    )
    assert folder.load() == {3: found}
    assert (found.digest, found.size_bytes) == (digest_of(folder.blob(3)), folder.blob(3).stat().st_size)
    assert (found.outcome, found.reason, found.evaluation) == ("", "", Evaluation({"a": 1.0}, 9))
    assert [array.tolist() for array in ArrayFile.open(folder.blob(3))] == [array.tolist() for array in ARRAYS]


def test_updates_of_several_rounds_are_kept(folder):
    assert [written(folder, number).number for number in (1, 2)] == list(folder.load())


def test_a_settled_update_comes_back_settled(folder):
    settled = folder.settle(written(folder), "refused", "not finite")
    assert (settled.outcome, settled.reason) == ("refused", "not finite")
    assert folder.load() == {1: settled}


def test_a_dropped_update_is_gone(folder):
    written(folder)
    folder.drop(1)
    folder.drop(1)
    assert (folder.load(), names(folder)) == ({}, [])


def test_an_update_that_was_trained_again_replaces_the_one_before(folder):
    before = written(folder)
    after = written(folder, base_digest="c" * 64, arrays=[ARRAYS[0] + 1])
    assert after.digest != before.digest
    assert folder.load() == {1: after}


def test_arrays_that_do_not_travel_leave_nothing(folder):
    with pytest.raises(UpdateError):
        written(folder, arrays=[np.array(["text"])])
    assert names(folder) == []


def test_a_place_that_cannot_be_written_is_an_error_in_one_line(tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        written(UpdateFolder(tmp_path / "missing"))


# --- what a crash may leave


class Killed(Exception):
    pass


def killed(*_arguments: object) -> None:
    raise Killed


@pytest.mark.parametrize("function", ["write_arrays", "write_whole"])
def test_an_update_that_was_not_finished_is_absent(folder, monkeypatch, function):
    monkeypatch.setattr(updates, function, killed)
    with pytest.raises(Killed):
        written(folder)
    assert (folder.load(), names(folder)) == ({}, [])


@pytest.mark.parametrize("function", ["write_arrays", "write_whole"])
def test_an_update_that_was_being_replaced_is_never_mixed_with_the_one_before(folder, monkeypatch, function):
    written(folder)
    with monkeypatch.context() as patch:
        patch.setattr(updates, function, killed)
        with pytest.raises(Killed):
            written(folder, base_digest="c" * 64, arrays=[ARRAYS[0] + 1])
    assert folder.load() == {}


def test_an_update_is_safe_when_it_is_told_to_be(folder, monkeypatch):
    monkeypatch.setattr(updates, "crash_point", killed)
    with pytest.raises(Killed):
        written(folder)
    assert list(folder.load()) == [1]


def without_arrays(folder: UpdateFolder) -> None:
    folder.blob(1).unlink()


def with_fewer_bytes(folder: UpdateFolder) -> None:
    os.truncate(folder.blob(1), 10)


def with_an_empty_description(folder: UpdateFolder) -> None:
    folder.blob(1).with_suffix(".json").write_bytes(b"")


def with_a_damaged_description(folder: UpdateFolder) -> None:
    folder.blob(1).with_suffix(".json").write_bytes(b'{"number": 1, "digest": 5}')


def with_the_description_of_another(folder: UpdateFolder) -> None:
    folder.blob(1).with_suffix(".json").rename(folder.blob(2).with_suffix(".json"))


@pytest.mark.parametrize(
    "damage",
    [
        without_arrays,
        with_fewer_bytes,
        with_an_empty_description,
        with_a_damaged_description,
        with_the_description_of_another,
    ],
    ids=lambda damage: damage.__name__,
)
def test_half_an_update_is_none_and_is_removed(folder, damage):
    written(folder)
    whole = written(folder, number=5)
    damage(folder)
    assert folder.load() == {5: whole}
    assert names(folder) == ["5.json", "5.safetensors"]


def test_parts_of_files_are_removed(folder):
    (folder.blob(0).parent / ".1.safetensors.0a1b2c3d.part").write_bytes(b"x")
    assert (folder.load(), names(folder)) == ({}, [])


def test_a_folder_that_does_not_exist_holds_nothing(tmp_path):
    assert UpdateFolder(tmp_path / "missing").load() == {}
