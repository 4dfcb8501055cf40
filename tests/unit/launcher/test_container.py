"""What an engine is told about a worker and what its answers mean, without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeai.launcher.base import LOG_PART_BYTES, ContainerSpec, ExitReason, ExitRecord, LaunchSpec, Mount
from edgeai.launcher.container import (
    FIRST_INSTANT,
    SLOT,
    Frame,
    Image,
    User,
    container_name,
    creation,
    ending,
    frames,
    image_of,
    last_line,
    log_part,
    refusal,
    since,
    stats_of,
    tail,
)

IMAGE = Image("worker:1", "sha256:abc", {})
USER = User(10001, 10001)


def told(spec: LaunchSpec, container: ContainerSpec, image: Image = IMAGE) -> dict:
    return creation(spec, container, image, user=USER, labels={"edgeai.node": "edge1"})


def spec(**more) -> LaunchSpec:
    return LaunchSpec("task/work0", Path("/slots/work0"), ["python", "-u", "main.py"], **more)


def test_a_container_is_named_after_its_node_and_worker():
    assert container_name("edge1", "digits-1a2b/work0", Path("/s")).startswith("edgeai-edge1-digits-1a2b-work0-")


def test_two_slots_never_share_a_name():
    names = {container_name(node, "w", Path(slot)) for node in ("edge1", "edge2") for slot in ("/a", "/b")}

    assert len(names) == 4


def test_a_name_that_an_engine_would_refuse_is_made_fit():
    assert container_name("edge1", "T_äsk/" + "x" * 200, Path("/s")).isascii()
    assert len(container_name("edge1", "x" * 200, Path("/s"))) < 100


def test_what_was_checked_is_what_runs():
    assert told(spec(), ContainerSpec("worker:latest"))["Image"] == "sha256:abc"


def test_a_program_runs_in_its_slot_unless_told_otherwise():
    assert told(spec(), ContainerSpec("i"))["WorkingDir"] == SLOT
    assert told(spec(cwd=Path("/edgeai/script")), ContainerSpec("i"))["WorkingDir"] == "/edgeai/script"


def test_our_labels_stand_over_those_of_the_spec():
    body = told(spec(), ContainerSpec("i", labels={"edgeai.node": "other", "edgeai.task": "digits"}))

    assert body["Labels"] == {"edgeai.node": "edge1", "edgeai.task": "digits"}


def test_memory_is_limited_without_swap():
    host = told(spec(), ContainerSpec("i", memory_bytes=1000))["HostConfig"]

    assert host["Memory"] == host["MemorySwap"] == 1000


def test_gpus_become_a_device_request():
    assert told(spec(), ContainerSpec("i", gpus=2))["HostConfig"]["DeviceRequests"][0]["Count"] == 2
    assert told(spec(), ContainerSpec("i"))["HostConfig"]["DeviceRequests"] == []


def test_mounts_are_read_only_unless_told_otherwise(tmp_path):
    [slot, data] = told(spec(), ContainerSpec("i", mounts=[Mount(tmp_path, "/edgeai/data")]))["HostConfig"]["Mounts"]

    assert (slot["Target"], slot["ReadOnly"]) == (SLOT, False)
    assert (data["Target"], data["ReadOnly"]) == ("/edgeai/data", True)


def test_volumes_of_an_image_become_memory():
    image = image_of("i", {"Id": "sha256:abc", "Config": {"Labels": None, "Volumes": {"/data": {}}}})

    assert "size=" in told(spec(), ContainerSpec("i"), image)["HostConfig"]["Tmpfs"]["/data"]


@pytest.mark.parametrize("target", ["relative", "/edgeai/../etc", "/edgeai/data/"])
def test_a_mount_point_is_an_absolute_path(target, tmp_path):
    assert "is not an absolute path" in refusal(spec(), ContainerSpec("i", mounts=[Mount(tmp_path, target)]))


def test_a_sound_request_is_not_refused(tmp_path):
    assert refusal(spec(), ContainerSpec("i", network="training", mounts=[Mount(tmp_path, "/edgeai/data")])) == ""


@pytest.mark.parametrize(
    ("state", "record"),
    [
        ({"ExitCode": 0}, ExitRecord(ExitReason.EXITED, 0, last_line="bye")),
        ({"ExitCode": 3}, ExitRecord(ExitReason.EXITED, 3, last_line="bye")),
        ({"ExitCode": 128}, ExitRecord(ExitReason.EXITED, 128, last_line="bye")),
        ({"ExitCode": 143}, ExitRecord(ExitReason.KILLED, signal="SIGTERM", last_line="bye")),
        ({"ExitCode": 137}, ExitRecord(ExitReason.KILLED, signal="SIGKILL", last_line="bye")),
        ({"ExitCode": 255}, ExitRecord(ExitReason.EXITED, 255, last_line="bye")),
        ({"ExitCode": 137, "OOMKilled": True}, ExitRecord(ExitReason.OOM, signal="SIGKILL", last_line="bye")),
        ({"ExitCode": 1, "OOMKilled": True}, ExitRecord(ExitReason.OOM, signal="SIGKILL", last_line="bye")),
        ({"ExitCode": 0, "OOMKilled": True}, ExitRecord(ExitReason.EXITED, 0, last_line="bye")),
    ],
    ids=["done", "failed", "no-signal", "terminated", "killed", "255", "oom", "child-oom-told-on", "child-oom"],
)
def test_how_a_container_ended(state, record):
    assert ending(state, "bye", same_boot=True) == record


def test_of_what_ran_out_of_memory_the_limit_is_kept():
    state = {"ExitCode": 137, "OOMKilled": True}
    assert ending(state, "", same_boot=True, memory_bytes=128 * 1024**2).limit == 128 * 1024**2


def test_a_container_that_ended_with_its_machine_is_lost():
    assert ending({"ExitCode": 255}, "", same_boot=False).reason is ExitReason.LOST


def test_a_frame_is_an_instant_and_a_text():
    found = frames(["2026-01-02T03:04:05.000000006Z one two\n", "2026-01-02T03:04:05.1Z \n", "no stamp\n", ""])

    assert found == [Frame(1767323045000000006, b"one two\n"), Frame(1767323045100000000, b"\n")]


def test_an_offset_is_told_with_all_its_digits():
    assert since(1767323045000000006) == "1767323045.000000006"


def test_a_log_part_says_where_the_next_one_begins():
    part = log_part([Frame(10, b"a\n"), Frame(20, b"b\n")], 5, ended=True)

    assert (part.text, part.offset, part.next_offset, part.ended) == (b"a\nb\n", 5, 21, True)


def test_an_empty_log_part_leaves_the_offset_where_it_is():
    assert log_part([], FIRST_INSTANT, ended=False).next_offset == FIRST_INSTANT


def test_a_log_part_that_is_full_has_not_ended():
    lines = [Frame(instant, b"x" * (LOG_PART_BYTES // 2)) for instant in (1, 2, 3)]

    part = log_part(lines, 0, ended=True)

    assert (len(part.text), part.next_offset, part.ended) == (LOG_PART_BYTES, 3, False)


def test_pieces_of_one_line_stay_together():
    part = log_part([Frame(1, b"a" * (LOG_PART_BYTES - 1)), Frame(2, b"b"), Frame(2, b"c")], 0, ended=True)

    assert (part.text[-1:], part.next_offset) == (b"a", 2)


def test_a_line_longer_than_a_part_is_cut():
    part = log_part([Frame(1, b"a" * LOG_PART_BYTES), Frame(1, b"b"), Frame(2, b"c")], 0, ended=True)

    assert (len(part.text), part.next_offset) == (LOG_PART_BYTES, 2)


@pytest.mark.parametrize(
    ("size", "text"), [(0, []), (1, [b"\n"]), (2, [b"b\n"]), (3, [b"\n", b"b\n"]), (9, [b"a\n", b"b\n"])]
)
def test_the_tail_holds_the_last_bytes(size, text):
    assert [frame.text for frame in tail([Frame(1, b"a\n"), Frame(2, b"b\n")], size)] == text


def test_the_last_line_is_the_last_that_is_not_blank():
    assert last_line([Frame(1, b"first\n"), Frame(2, b"the l"), Frame(2, b"ast\n"), Frame(3, b" \n")]) == "the last"


@pytest.mark.parametrize("name", ["inactive_file", "total_inactive_file"])
def test_memory_that_the_kernel_can_take_back_is_not_counted(name):
    answer = {
        "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
        "memory_stats": {"usage": 100, "limit": 1000, "stats": {name: 40}},
        "pids_stats": {"current": 3},
    }
    stats = stats_of(answer)

    assert stats is not None
    assert (stats.cpu_s, stats.memory_bytes, stats.memory_limit_bytes, stats.pids) == (2.5, 60, 1000, 3)


def test_a_container_that_has_ended_has_no_stats():
    assert stats_of({"memory_stats": {}, "cpu_stats": {}}) is None
