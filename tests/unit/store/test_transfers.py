"""Blobs arrive whole, checked, once, and go on where they stopped; a sender sends what is asked and no more."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgeai.errors import BusUnavailable, DamagedFile, NotFound, Refused, StoreError
from edgeai.events.address import Address, Direction, EventClass
from edgeai.events.chunks import CHUNK_BYTES
from edgeai.events.envelope import Chunk, decode_chunk
from edgeai.store.transfers import ANSWER_BYTES, Ranges, Receiver, Sender

TO = Address("edge1", Direction.UP, EventClass.TRANSFER, "chunk", "task-01234567", "work0")
OTHER = Address("edge2", Direction.UP, EventClass.TRANSFER, "chunk", "task-01234567", "work1")
DEADLINE_S = 20


def blob(size_bytes: int, seed: int = 1) -> tuple[str, bytes]:
    data = random.Random(seed).randbytes(size_bytes)
    return hashlib.sha256(data).hexdigest(), data


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Source:
    """Answers what is asked at once; `limit_bytes` is where it falls silent."""

    def __init__(self, receiver: Receiver, digest: str, data: bytes, limit_bytes: int = 10**12) -> None:
        self.receiver, self.digest, self.data = receiver, digest, data
        self.left = limit_bytes
        self.asked: list[Ranges] = []

    async def ask(self, ranges: Ranges) -> None:
        self.asked.append(ranges)
        for offset, length in ranges:
            for start in range(offset, offset + length, CHUNK_BYTES):
                self.send(start)

    def send(self, offset: int) -> None:
        part = memoryview(self.data)[offset : offset + CHUNK_BYTES]
        if self.left >= len(part):
            self.left -= len(part)
            self.receiver.arrived(Chunk(self.digest, len(self.data), offset, part))

    @property
    def asked_bytes(self) -> int:
        return sum(length for ranges in self.asked for _, length in ranges)


class Wire:
    """A bus that hands chunks to a receiver, and loses a part of them."""

    url = "memory://wire"
    limit_bytes = 1024 * 1024
    connected = True

    def __init__(self, receiver: Receiver | None = None, loss: float = 0.0) -> None:
        self.receiver, self.loss = receiver, loss
        self.random = random.Random(7)
        self.sent: list[tuple[Address, int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def publish(self, address: Address, payload: bytes) -> None:
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if not self.connected:
            raise BusUnavailable(self.url)
        _, chunk = decode_chunk(payload)
        self.sent.append((address, chunk.offset, len(chunk.data)))
        if self.receiver is not None and self.random.random() >= self.loss:
            self.receiver.arrived(chunk)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "incoming"


@pytest.fixture
def receiver(folder: Path) -> Receiver:
    return Receiver(folder, retry_s=0.02)


@pytest.fixture
def patient(folder: Path) -> Receiver:
    """One that asks for nothing again because it is late."""
    return Receiver(folder, retry_s=DEADLINE_S)


async def fetched(download: Awaitable[int]) -> int:
    async with asyncio.timeout(DEADLINE_S):
        return await download


# --- the receiver


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5, 40 * CHUNK_BYTES + 1])
async def test_a_blob_arrives_at_its_target(receiver, folder, tmp_path, size):
    digest, data = blob(size)
    received = await fetched(receiver.fetch(digest, size, Source(receiver, digest, data).ask, tmp_path / "model"))
    assert (tmp_path / "model").read_bytes() == data
    assert received == size
    assert list(folder.iterdir()) == []
    assert receiver.outstanding_bytes == 0


async def test_a_fifth_of_all_chunks_lost_delays_and_changes_nothing(receiver, tmp_path):
    digest, data = blob(60 * CHUNK_BYTES + 77)
    (tmp_path / "source").write_bytes(data)
    wire = Wire(receiver, loss=0.2)
    sender = Sender(wire, "edge1")

    async def ask(ranges: Ranges) -> None:
        await sender.answer(digest, ranges, tmp_path / "source", len(data), TO)

    received = await fetched(receiver.fetch(digest, len(data), ask, tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == data
    assert received == len(data)
    assert len(wire.sent) > 61


async def test_a_cancelled_transfer_goes_on_where_it_stopped(receiver, folder, tmp_path):
    digest, data = blob(20 * CHUNK_BYTES)
    half = Source(receiver, digest, data, limit_bytes=9 * CHUNK_BYTES)
    download = asyncio.create_task(receiver.fetch(digest, len(data), half.ask, tmp_path / "model"))
    await until(lambda: half.left == 0)
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download
    assert receiver.outstanding_bytes == 0

    again = Receiver(folder)
    rest = Source(again, digest, data)
    received = await fetched(again.fetch(digest, len(data), rest.ask, tmp_path / "model"))
    assert (tmp_path / "model").read_bytes() == data
    assert received == rest.asked_bytes == 11 * CHUNK_BYTES


async def test_what_was_saved_meanwhile_survives_a_kill(receiver, folder, tmp_path):
    digest, data = blob(40 * CHUNK_BYTES)
    half = Source(receiver, digest, data, limit_bytes=33 * CHUNK_BYTES)
    download = asyncio.create_task(receiver.fetch(digest, len(data), half.ask, tmp_path / "killed"))
    await until((folder / f"{digest}.bitmap").exists)

    again = Receiver(folder)  # as after a kill: the other one was not asked to save anything
    rest = Source(again, digest, data)
    await fetched(again.fetch(digest, len(data), rest.ask, tmp_path / "model"))
    assert (tmp_path / "model").read_bytes() == data
    assert rest.asked_bytes < len(data) // 2
    download.cancel()
    with suppress(asyncio.CancelledError, StoreError):
        await download


@pytest.mark.parametrize("content", [b"", b"\xff" * 100], ids=["empty", "too long"])
async def test_a_torn_bitmap_counts_as_nothing_held(receiver, folder, tmp_path, content):
    digest, data = blob(20 * CHUNK_BYTES)
    folder.mkdir()
    (folder / f"{digest}.part").write_bytes(bytes(len(data)))
    (folder / f"{digest}.bitmap").write_bytes(content)
    received = await fetched(receiver.fetch(digest, len(data), Source(receiver, digest, data).ask, tmp_path / "model"))
    assert received == len(data)


async def test_a_bitmap_that_claims_too_much_costs_a_second_pull(receiver, folder, tmp_path):
    digest, data = blob(8 * CHUNK_BYTES)
    folder.mkdir()
    (folder / f"{digest}.part").write_bytes(bytes(len(data)))
    (folder / f"{digest}.bitmap").write_bytes(b"\x0f")
    received = await fetched(receiver.fetch(digest, len(data), Source(receiver, digest, data).ask, tmp_path / "model"))
    assert (tmp_path / "model").read_bytes() == data
    assert received == 12 * CHUNK_BYTES


async def test_a_blob_that_is_damaged_twice_is_refused_and_leaves_nothing(patient, folder, tmp_path):
    digest, data = blob(3 * CHUNK_BYTES)
    source = Source(patient, digest, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedFile):
        await fetched(patient.fetch(digest, len(data), source.ask, tmp_path / "model"))
    assert source.asked_bytes == 2 * len(data)
    assert not (tmp_path / "model").exists()
    assert list(folder.iterdir()) == []


async def test_an_absent_blob_is_not_found_with_the_reason_of_the_source(receiver, tmp_path):
    digest, _ = blob(1)

    async def ask(ranges: Ranges) -> None:
        receiver.absent(digest, "the round is closed")

    with pytest.raises(NotFound, match="the round is closed"):
        await fetched(receiver.fetch(digest, 1, ask, tmp_path / "model"))


async def test_two_who_want_the_same_blob_share_one_download(patient, tmp_path):
    digest, data = blob(5 * CHUNK_BYTES)
    source = Source(patient, digest, data)
    received = await fetched(
        asyncio.gather(
            patient.fetch(digest, len(data), source.ask, tmp_path / "one"),
            patient.fetch(digest, len(data), source.ask, tmp_path / "two"),
        )
    )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == data
    assert sum(received) == source.asked_bytes == len(data)


async def test_who_shares_a_download_goes_on_when_the_first_leaves(receiver, tmp_path):
    digest, data = blob(5 * CHUNK_BYTES)
    silent, source = Source(receiver, digest, data, limit_bytes=0), Source(receiver, digest, data)
    first = asyncio.create_task(receiver.fetch(digest, len(data), silent.ask, tmp_path / "one"))
    second = asyncio.create_task(receiver.fetch(digest, len(data), source.ask, tmp_path / "two"))
    await until(lambda: bool(silent.asked))
    first.cancel()
    await fetched(second)
    assert (tmp_path / "two").read_bytes() == data
    assert not (tmp_path / "one").exists()


async def test_without_a_broker_it_asks_again(receiver, tmp_path):
    digest, data = blob(10)
    source = Source(receiver, digest, data)
    refusals = iter(range(2))

    async def ask(ranges: Ranges) -> None:
        if next(refusals, None) is not None:
            raise BusUnavailable("mqtt://nowhere")
        await source.ask(ranges)

    assert await fetched(receiver.fetch(digest, 10, ask, tmp_path / "model")) == 10


async def test_an_unexpected_error_of_ask_ends_the_fetch(receiver, tmp_path):
    async def ask(ranges: Ranges) -> None:
        raise LookupError("no such address")

    with pytest.raises(LookupError, match="no such address"):
        await fetched(receiver.fetch(blob(10)[0], 10, ask, tmp_path / "model"))


async def test_a_nudge_asks_again_at_once(folder, tmp_path):
    receiver = Receiver(folder, retry_s=3600)
    digest, data = blob(3 * CHUNK_BYTES)
    source = Source(receiver, digest, data, limit_bytes=CHUNK_BYTES)
    download = asyncio.create_task(receiver.fetch(digest, len(data), source.ask, tmp_path / "model"))
    await until(lambda: source.left == 0)
    source.left = len(data)
    receiver.nudge()
    await fetched(download)
    assert source.asked == [((0, 3 * CHUNK_BYTES),), ((CHUNK_BYTES, 2 * CHUNK_BYTES),)]


@pytest.mark.parametrize(
    ("digest", "size"), [("../../etc/passwd", 10), ("A" * 64, 10), ("a" * 64, -1), ("a" * 64, 2**63)]
)
async def test_what_cannot_be_a_blob_is_refused(receiver, tmp_path, digest, size):
    with pytest.raises(Refused):
        await receiver.fetch(digest, size, Source(receiver, digest, b"").ask, tmp_path / "model")


async def test_another_size_for_a_digest_under_way_is_refused(receiver, tmp_path):
    digest, data = blob(10)
    silent = Source(receiver, digest, data, limit_bytes=0)
    first = asyncio.create_task(receiver.fetch(digest, 10, silent.ask, tmp_path / "one"))
    await until(lambda: bool(silent.asked))
    with pytest.raises(Refused):
        await receiver.fetch(digest, 11, silent.ask, tmp_path / "two")
    first.cancel()


async def test_a_target_that_cannot_be_written_is_a_store_error(receiver, tmp_path):
    digest, data = blob(10)
    with pytest.raises(StoreError):
        await fetched(receiver.fetch(digest, 10, Source(receiver, digest, data).ask, tmp_path / "missing" / "model"))


async def test_a_partial_file_that_vanishes_is_a_store_error(receiver, folder, tmp_path):
    digest, data = blob(10)
    source = Source(receiver, digest, data)

    async def ask(ranges: Ranges) -> None:
        (folder / f"{digest}.part").unlink()
        await source.ask(ranges)

    with pytest.raises(StoreError):
        await fetched(receiver.fetch(digest, 10, ask, tmp_path / "model"))


async def test_chunks_that_nobody_wants_are_counted(receiver):
    receiver.arrived(Chunk("f" * 64, 10, 0, memoryview(bytes(10))))
    assert receiver.counts.foreign == 1


async def test_many_downloads_keep_within_the_credit(folder, tmp_path):
    receiver = Receiver(folder, credit_bytes=4 * CHUNK_BYTES, open_limit=2, retry_s=0.02)
    highest = 0

    async def pull(number: int) -> None:
        digest, data = blob(6 * CHUNK_BYTES, seed=number)
        source = Source(receiver, digest, data)

        async def ask(ranges: Ranges) -> None:
            nonlocal highest
            highest = max(highest, receiver.outstanding_bytes)
            await source.ask(ranges)

        await receiver.fetch(digest, len(data), ask, tmp_path / str(number))

    await fetched(asyncio.gather(*(pull(number) for number in range(6))))
    assert 0 < highest <= 4 * CHUNK_BYTES


async def test_a_sweep_removes_what_broken_off_transfers_left(receiver, folder):
    folder.mkdir()
    for name in ("a.part", "a.bitmap", "b.part", "b.bitmap", "b.bitmap-new"):
        (folder / name).touch()
    assert receiver.sweep(keep={"a"}) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["a.bitmap", "a.part"]


# --- the sender


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "stored"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 40 * CHUNK_BYTES + 3)
    return path


SIZE = 40 * CHUNK_BYTES + 3
DIGEST = "d" * 64


async def test_ranges_are_answered_in_chunks_and_clipped_to_the_end(stored):
    wire = Wire()
    await Sender(wire, "edge1").answer(
        DIGEST, ((0, CHUNK_BYTES + 1), (40 * CHUNK_BYTES, CHUNK_BYTES)), stored, SIZE, TO
    )
    assert wire.sent == [(TO, 0, CHUNK_BYTES), (TO, CHUNK_BYTES, 1), (TO, 40 * CHUNK_BYTES, 3)]


async def test_one_request_gets_no_more_than_a_receiver_may_have_outstanding(stored):
    wire = Wire()
    await Sender(wire, "edge1").answer(DIGEST, ((0, SIZE),), stored, SIZE, TO)
    assert sum(length for _, _, length in wire.sent) == ANSWER_BYTES


@pytest.mark.parametrize("bad", [(-1, 10), (SIZE, 1), (0, 0), (10, -5)])
async def test_a_range_outside_the_blob_is_refused(stored, bad):
    wire = Wire()
    with pytest.raises(Refused):
        await Sender(wire, "edge1").answer(DIGEST, ((0, 10), bad), stored, SIZE, TO)
    assert wire.sent == []


async def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        await Sender(Wire(), "edge1").answer(DIGEST, ((0, 10),), tmp_path / "gone", 10, TO)


async def test_a_file_of_another_size_is_damaged(stored):
    with pytest.raises(DamagedFile):
        await Sender(Wire(), "edge1").answer(DIGEST, ((0, 10),), stored, SIZE + 1, TO)


async def test_an_answer_ends_quietly_when_the_broker_is_gone(stored):
    wire = Wire()
    wire.connected = False
    sender = Sender(wire, "edge1")
    await sender.answer(DIGEST, ((0, 10),), stored, SIZE, TO)
    wire.connected = True
    await sender.answer(DIGEST, ((0, 10),), stored, SIZE, TO)
    assert wire.sent == [(TO, 0, 10)]


async def test_what_is_on_its_way_is_not_sent_twice(stored):
    wire = Wire()
    wire.gate.clear()
    sender = Sender(wire, "edge1")
    first = asyncio.create_task(sender.answer(DIGEST, ((0, 2 * CHUNK_BYTES),), stored, SIZE, TO))
    await until(lambda: wire.waiting == 1)
    again = asyncio.create_task(sender.answer(DIGEST, ((0, 3 * CHUNK_BYTES),), stored, SIZE, TO))
    other = asyncio.create_task(sender.answer(DIGEST, ((0, CHUNK_BYTES),), stored, SIZE, OTHER))
    await until(lambda: wire.waiting == 3)
    wire.gate.set()
    await asyncio.gather(first, again, other)
    assert sorted(offset for to, offset, _ in wire.sent if to == TO) == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert (OTHER, 0, CHUNK_BYTES) in wire.sent


async def test_four_answers_run_at_once_and_a_flood_of_requests_is_dropped(stored):
    wire = Wire()
    wire.gate.clear()
    sender = Sender(wire, "edge1")
    requests = [
        asyncio.create_task(sender.answer(f"{number:064x}", ((0, 1),), stored, SIZE, TO)) for number in range(300)
    ]
    await until(lambda: wire.waiting == 4)
    assert sender.dropped == 300 - 260
    wire.gate.set()
    await asyncio.gather(*requests)
    assert len(wire.sent) == 260
