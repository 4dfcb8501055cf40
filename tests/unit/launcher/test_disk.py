"""How much a slot takes is what it takes, whatever is in it; and nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeai.launcher.base import MAX_DEPTH, ExitReason
from edgeai.launcher.disk import Allowed, Excess, excess, in_words, remove_tree, walk

MIB = 1024 * 1024


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "slot").mkdir()
    yield tmp_path / "slot"
    remove_tree(tmp_path / "slot")  # pytest's own way ends at the depth of Python's stack


def over(slot: Path, size_bytes: int = 0, entries: int = 0, **more: object) -> Excess | None:
    return excess(slot, ".container", Allowed(size_bytes, entries), **more)  # type: ignore[arg-type]


def nest(folder: Path, depth: int) -> None:
    """Folders in folders, deeper than any path may be long."""
    handle = os.open(folder, os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("a" * 50, dir_fd=handle)
        inner = os.open("a" * 50, os.O_DIRECTORY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)


def test_a_slot_within_its_limits_has_no_excess(slot):
    (slot / "output").mkdir()
    (slot / "output/model").write_bytes(b"x" * MIB)
    assert over(slot, 2 * MIB, 2) is None


def test_more_bytes_than_allowed_are_told_with_the_limit(slot):
    for number in range(3):
        (slot / str(number)).write_bytes(b"x" * MIB)
    assert over(slot, 2 * MIB) == Excess(ExitReason.DISK, 2 * MIB)


def test_more_entries_than_allowed_are_told_with_the_limit(slot):
    for number in range(5):
        (slot / str(number)).touch()
    (slot / "link").symlink_to("/nowhere")
    assert over(slot, entries=6) is None
    assert over(slot, entries=5) == Excess(ExitReason.FILES, 5)


def test_what_is_counted_is_what_lies_on_disk_not_what_a_file_pretends_to_hold(slot):
    with (slot / "sparse").open("wb") as file:
        file.truncate(1024 * MIB)
    assert over(slot, MIB) is None


def test_a_file_with_two_names_counts_once(slot):
    (slot / "one").write_bytes(b"x" * MIB)
    (slot / "two").hardlink_to(slot / "one")
    assert over(slot, MIB + MIB // 2) is None


def test_what_is_the_launchers_does_not_count(slot):
    (slot / ".container").mkdir()
    (slot / ".container/script").write_bytes(b"x" * MIB)
    assert over(slot, MIB // 2) is None


def test_a_link_is_not_followed(slot, tmp_path):
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/big").write_bytes(b"x" * MIB)
    (slot / "link").symlink_to(tmp_path / "beside")
    assert over(slot, MIB // 2) is None


def test_a_slot_that_is_gone_takes_nothing(tmp_path):
    assert over(tmp_path / "none", 1, 1) is None


def test_folders_without_end_are_too_much_and_only_some_are_looked_at(slot):
    nest(slot, 2000)
    assert over(slot, entries=10_000) == Excess(ExitReason.FILES, 10_000)
    assert max(thing.depth for thing in walk(slot)) == MAX_DEPTH


def test_no_folder_stays_open(slot):
    nest(slot, 100)
    before = len(os.listdir("/proc/self/fd"))
    over(slot, entries=10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_was_deleted_counts_as_long_as_a_process_holds_it(slot):
    cgroup = Path("/proc/self/cgroup").read_text().strip()
    with (slot / "hidden").open("wb") as file:
        file.write(b"x" * MIB)
        file.flush()
        (slot / "hidden").unlink()
        held = over(slot, MIB // 2, pid=os.getpid(), container=cgroup)
    assert held == Excess(ExitReason.DISK, MIB // 2)
    assert over(slot, MIB // 2, pid=os.getpid(), container=cgroup) is None


def test_a_process_that_is_not_in_the_container_is_not_looked_at(slot):
    with (slot / "hidden").open("wb") as file:
        file.write(b"x" * MIB)
        file.flush()
        (slot / "hidden").unlink()
        assert over(slot, MIB // 2, pid=os.getpid(), container="another") is None


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [(2 * 1024**3, "2 GiB"), (1536 * MIB, "1.5 GiB"), (16 * MIB, "16 MiB"), (1024**4, "1 TiB"), (10**8, "95.37 MiB")],
)
def test_a_limit_is_written_as_people_do(size_bytes, words):
    assert in_words(size_bytes) == words


def test_a_slot_is_removed_however_deep_it_is(slot):
    nest(slot, 3000)
    remove_tree(slot)
    assert not slot.exists()


def test_a_slot_is_removed_whatever_rights_its_folders_have(slot):
    (slot / "a/b").mkdir(parents=True)
    (slot / "a/b/file").touch()
    (slot / "a/b").chmod(0)
    (slot / "a").chmod(0o500)
    remove_tree(slot)
    assert not slot.exists()


def test_what_a_link_leads_to_is_not_removed(slot, tmp_path):
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/precious").touch()
    (slot / "folder").symlink_to(tmp_path / "beside")
    (slot / "file").symlink_to(tmp_path / "beside/precious")
    remove_tree(slot)
    assert not slot.exists()
    assert (tmp_path / "beside/precious").exists()


def test_many_files_and_folders_are_removed(slot):
    for number in range(1500):
        (slot / f"file{number}").touch()
        (slot / f"folder{number}").mkdir()
    remove_tree(slot)
    assert not slot.exists()


def test_removing_what_is_not_there_is_no_mistake(tmp_path):
    remove_tree(tmp_path / "none")
