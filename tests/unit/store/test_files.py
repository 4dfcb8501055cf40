"""Files are whole or absent, and never believed without their digest."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeai.errors import DamagedFile, NotFound, StoreError
from edgeai.store.files import (
    WholeFile,
    copy_whole,
    digest_bytes,
    digest_of,
    free_space_bytes,
    is_digest,
    read_checked,
    write_whole,
)


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"data")
    assert read_checked(tmp_path / "file", digest_bytes(b"data")) == b"data"


def test_writing_replaces_the_old_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old and long")
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_only_its_owner_reads_a_written_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"data")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_the_mode_of_a_written_file_can_be_chosen(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"data", mode=0o400)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o400


def test_writing_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_not_committed_leaves_the_old_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old")
    with WholeFile(tmp_path / "file") as target:
        target.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old")
    script = (
        "import os, signal, sys; from pathlib import Path; from edgeai.store.files import WholeFile\n"
        "target = WholeFile(Path(sys.argv[1])); target.write(b'new'); target._file.flush()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], env=environment, check=False, timeout=60)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_that_is_missing_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        write_whole(tmp_path / "missing" / "file", b"data")


def test_a_full_disk_is_a_store_error_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_whole(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="No space"):
        write_whole(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_changed_file_is_damaged(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"data")
    with pytest.raises(DamagedFile):
        read_checked(tmp_path / "file", digest_bytes(b"dat"))


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_checked(tmp_path / "file", digest_bytes(b""))
    with pytest.raises(NotFound):
        digest_of(tmp_path / "file")


def test_a_folder_in_place_of_a_file_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        digest_of(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 3 * 1024 * 1024 + 7])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = b"x" * size
    (tmp_path / "file").write_bytes(data)
    assert digest_of(tmp_path / "file") == digest_bytes(data) == hashlib.sha256(data).hexdigest()


def test_a_copy_is_whole_and_its_digest_is_known(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    (tmp_path / "source").write_bytes(data)
    assert copy_whole(tmp_path / "source", tmp_path / "target") == digest_bytes(data)
    assert (tmp_path / "target").read_bytes() == data


def test_a_copy_of_nothing_leaves_no_target(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        copy_whole(tmp_path / "missing", tmp_path / "target")
    assert os.listdir(tmp_path) == []


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert free_space_bytes(tmp_path / "not" / "yet" / "there") > 0


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 63 + "\n"])
def test_a_digest_is_64_small_hexadecimal_digits(text: str) -> None:
    assert is_digest("0" * 64)
    assert not is_digest(text)
