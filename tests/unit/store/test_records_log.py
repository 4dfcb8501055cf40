"""A log of records: what was appended is read, once, whatever the writer died of and whatever else is in the file."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.errors import StoreError
from edgeai.store import records_log
from edgeai.store.records_log import Read, append, frame, read

RECORDS = [{"id": f"r{number}", "input": bytes([number]) * 50} for number in range(20)]


def written(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def everything(path: Path, *, ended: bool = True) -> list[dict[str, object]]:
    found, offset = [], 0
    while (piece := read(path, offset, ended=ended)).next_offset > offset:
        found += piece.records
        offset = piece.next_offset
    return found


def test_what_is_appended_is_read_in_order(tmp_path):
    descriptor = opened(tmp_path / "log")
    for record in RECORDS:
        append(descriptor, record)
    os.close(descriptor)
    assert everything(tmp_path / "log") == RECORDS


def test_reading_goes_on_where_it_ended(tmp_path):
    descriptor = opened(tmp_path / "log")
    append(descriptor, RECORDS[0])
    first = read(tmp_path / "log")
    append(descriptor, RECORDS[1])
    second = read(tmp_path / "log", first.next_offset)
    os.close(descriptor)
    assert (first.records, second.records) == ((RECORDS[0],), (RECORDS[1],))


@given(st.integers(1, len(frame(RECORDS[1])) - 1))
def test_a_torn_tail_is_left_alone_while_somebody_may_write(cut):
    data = frame(RECORDS[0]) + frame(RECORDS[1])[:-cut]
    assert records_log._parsed(data, 0, last=False) == Read((RECORDS[0],), len(frame(RECORDS[0])))


@given(st.integers(1, len(frame(RECORDS[1])) - 1))
def test_a_torn_tail_is_passed_over_when_nobody_writes_any_more(cut):
    data = frame(RECORDS[0]) + frame(RECORDS[1])[:-cut]
    assert records_log._parsed(data, 0, last=True) == Read((RECORDS[0],), len(data))


@given(st.integers(0, len(frame(RECORDS[1])) * 8 - 1))
def test_one_flipped_bit_costs_one_record(bit):
    damaged = bytearray(frame(RECORDS[1]))
    damaged[bit // 8] ^= 1 << bit % 8
    data = frame(RECORDS[0]) + damaged + frame(RECORDS[2]) + frame(RECORDS[3])
    found = records_log._parsed(bytes(data), 0, last=True)
    assert (found.records, found.next_offset, found.damaged) == ((RECORDS[0], *RECORDS[2:4]), len(data), 1)


@given(st.binary(max_size=300), st.booleans())
def test_nonsense_makes_no_record_and_no_error(data, last):
    found = records_log._parsed(data, 0, last=last)
    assert found.records == ()
    assert found.next_offset <= len(data)


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_records_are_found_between_nonsense(pieces):
    data = b"".join(piece.replace(b"eaR\x01", b"") + frame(RECORDS[0]) for piece in pieces)
    assert records_log._parsed(data, 0, last=True).records == (RECORDS[0],) * len(pieces)


def test_a_file_of_beginnings_alone_takes_no_time(tmp_path):
    """Each could ask for a checksum over megabytes."""
    beginning = b"eaR\x01" + (8 * 2**20).to_bytes(4, "little")
    path = written(tmp_path / "log", beginning * 2_000_000)
    assert everything(path) == []


@pytest.mark.parametrize(
    "body",
    [
        msgpack.packb([1, 2]),
        msgpack.packb({1: "a number for a name"}),
        msgpack.packb({"a": [1, 2]}),
        msgpack.packb({"a": {"b": 1}}),
        msgpack.packb({str(number): 0 for number in range(65)}),
        msgpack.packb(msgpack.ExtType(5, b"x")),
        b"\xc1",
        b"",
        msgpack.packb({"a": 1}) + b"more",
    ],
    ids=[
        "a list",
        "no name",
        "a list inside",
        "a map inside",
        "many",
        "an extension",
        "no msgpack",
        "nothing",
        "trailing",
    ],
)
def test_what_is_no_flat_map_is_left_out_and_counted(tmp_path, body):
    import zlib

    framed = b"eaR\x01" + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body
    found = read(written(tmp_path / "log", framed, frame(RECORDS[0])), ended=True)
    assert (found.records, found.damaged) == ((RECORDS[0],), 1)


def test_a_record_that_is_too_big_is_refused_and_leaves_the_file_as_it_was(tmp_path):
    descriptor = opened(tmp_path / "log")
    append(descriptor, RECORDS[0])
    with pytest.raises(StoreError, match="too big"):
        append(descriptor, {"input": bytes(records_log.MAX_RECORD_BYTES)})
    os.close(descriptor)
    assert everything(tmp_path / "log") == [RECORDS[0]]


def test_the_longest_record_is_read(tmp_path):
    longest = {"input": bytes(records_log.MAX_RECORD_BYTES - 20)}
    assert everything(written(tmp_path / "log", frame(RECORDS[0]), frame(longest), frame(RECORDS[1]))) == [
        RECORDS[0],
        longest,
        RECORDS[1],
    ]


def test_a_link_is_not_followed(tmp_path):
    written(tmp_path / "secret", frame(RECORDS[0]))
    (tmp_path / "log").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreError):
        read(tmp_path / "log")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(StoreError, match="not a regular file"):
        read(tmp_path / "log")


WRITER = """
import os, sys
from edgeai.store.records_log import append

descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    append(descriptor, {"id": str(number), "input": bytes(200_000)})
    os.write(1, b"%d\\n" % number)
    number += 1
"""


def test_a_writer_that_is_killed_loses_nothing_that_it_was_told_is_written(tmp_path):
    path = tmp_path / "log"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    count = random.Random(5).randrange(30, 60)
    for _ in range(count):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    told = count + len(writer.stdout.read().splitlines())
    writer.wait()
    writer.stdout.close()
    names = [record["id"] for record in everything(path)]
    assert names == [str(number) for number in range(len(names))]
    assert len(names) in {told, told + 1}
