"""Files of arrays: whole or absent, mapped, in submitted order."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import safetensors.numpy

from edgeai.errors import DamagedFile, NotFound, StoreError, UpdateError
from edgeai.events.arrays import encode, table_of
from edgeai.learning import weighted_mean_of
from edgeai.store.arrays import ArrayFile, ArrayWriter, write_arrays

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array([True]),
    np.array(7.5),
    np.zeros((0, 4)),
]


def assert_same(left, right) -> None:
    assert [(a.dtype, a.shape, a.tobytes()) for a in left] == [(b.dtype, b.shape, b.tobytes()) for b in right]


def test_a_file_gives_back_what_was_written(tmp_path):
    write_arrays(tmp_path / "a", ARRAYS)

    assert_same(list(ArrayFile.open(tmp_path / "a")), ARRAYS)


def test_a_file_holds_exactly_the_blob_that_would_travel(tmp_path):
    write_arrays(tmp_path / "a", ARRAYS)

    assert (tmp_path / "a").read_bytes() == encode(ARRAYS)


def test_digest_and_size_are_those_of_the_file(tmp_path):
    written = write_arrays(tmp_path / "a", ARRAYS)

    content = (tmp_path / "a").read_bytes()
    assert written == (hashlib.sha256(content).hexdigest(), len(content))


def test_a_file_of_the_safetensors_library_opens(tmp_path):
    safetensors.numpy.save_file({"w": ARRAYS[0], "b": ARRAYS[1]}, tmp_path / "a", {"order": "w,b"})

    assert_same(list(ArrayFile.open(tmp_path / "a")), ARRAYS[:2])


def test_arrays_are_read_by_number_and_by_slice(tmp_path):
    write_arrays(tmp_path / "a", ARRAYS)
    file = ArrayFile.open(tmp_path / "a")

    assert len(file) == 4
    assert_same([file[-2]], [ARRAYS[2]])
    assert_same(file[1:3], ARRAYS[1:3])


def test_arrays_of_a_file_are_read_only(tmp_path):
    write_arrays(tmp_path / "a", ARRAYS)

    assert not any(array.flags.writeable for array in ArrayFile.open(tmp_path / "a"))


def test_arrays_stay_readable_when_the_file_is_replaced(tmp_path):
    write_arrays(tmp_path / "a", ARRAYS)
    file = ArrayFile.open(tmp_path / "a")

    write_arrays(tmp_path / "a", [np.ones(1000)])

    assert_same(list(file), ARRAYS)


def test_files_are_averaged_as_they_are(tmp_path):
    for name, value in (("a", 1.0), ("b", 4.0)):
        write_arrays(tmp_path / name, [np.array([True]), np.full(3, value)])
    readers = [ArrayFile.open(tmp_path / name).__getitem__ for name in ("a", "b")]

    assert weighted_mean_of(readers, [2, 1], 1).tolist() == [2.0, 2.0, 2.0]


def test_a_file_with_the_expected_digest_opens(tmp_path):
    digest, _ = write_arrays(tmp_path / "a", ARRAYS)

    assert len(ArrayFile.open(tmp_path / "a", digest)) == 4


def test_one_flipped_bit_is_noticed_by_the_digest(tmp_path):
    digest, size = write_arrays(tmp_path / "a", ARRAYS)
    content = bytearray((tmp_path / "a").read_bytes())
    content[size - 1] ^= 1
    (tmp_path / "a").write_bytes(content)

    with pytest.raises(DamagedFile, match="digest"):
        ArrayFile.open(tmp_path / "a", digest)


@pytest.mark.parametrize("content", [b"", b"\x01", encode(ARRAYS)[:-1], encode(ARRAYS) + b"x", b"PK\x03\x04" * 9])
def test_what_is_not_a_file_of_arrays_is_damaged(tmp_path, content):
    (tmp_path / "a").write_bytes(content)

    with pytest.raises(DamagedFile, match="a is damaged"):
        ArrayFile.open(tmp_path / "a")


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        ArrayFile.open(tmp_path / "a")


def test_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(StoreError, match="cannot be read"):
        ArrayFile.open(tmp_path)


def test_a_file_that_is_not_finished_does_not_appear(tmp_path):
    with ArrayWriter(tmp_path / "a", table_of(ARRAYS)) as writer:
        writer.write(ARRAYS[0])
        assert not (tmp_path / "a").exists()

    assert list(tmp_path.iterdir()) == []


def test_a_file_with_arrays_missing_is_not_finished(tmp_path):
    with ArrayWriter(tmp_path / "a", table_of(ARRAYS)) as writer:
        writer.write(ARRAYS[0])
        with pytest.raises(UpdateError, match="1 of 4"):
            writer.finish()


@pytest.mark.parametrize("array", [np.zeros((3, 2), np.float32), np.zeros((2, 3))], ids=["shape", "dtype"])
def test_an_array_that_is_not_the_next_of_the_table_is_refused(tmp_path, array):
    with ArrayWriter(tmp_path / "a", table_of(ARRAYS)) as writer, pytest.raises(UpdateError, match="array 0 is"):
        writer.write(array)


def test_an_array_too_many_is_refused(tmp_path):
    with ArrayWriter(tmp_path / "a", table_of([])) as writer, pytest.raises(UpdateError, match="expected none"):
        writer.write(ARRAYS[0])


def test_a_dtype_that_does_not_travel_leaves_no_file(tmp_path):
    with pytest.raises(UpdateError, match="dtype object"):
        write_arrays(tmp_path / "a", [np.array([None])])

    assert list(tmp_path.iterdir()) == []
