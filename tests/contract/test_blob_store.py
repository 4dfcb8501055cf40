"""What every blob store promises (`edgeai.store.base`), on memory and on a real nats-server."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from pathlib import Path

import pytest

from edgeai.bus.nats import NatsBus
from edgeai.errors import BusUnavailable, DamagedFile, NotFound, StoreError
from edgeai.store.base import BlobStore
from edgeai.store.files import digest_bytes, digest_of
from edgeai.store.nats import NatsBlobStore

pytest_plugins = ["store_fixtures"]

MIB = 1024 * 1024


def a_file(folder: Path, data: bytes) -> tuple[str, Path]:
    path = folder / "source"
    path.write_bytes(data)
    return digest_bytes(data), path


@pytest.mark.parametrize("size", [0, 1, 512 * 1024, 512 * 1024 + 1, 5 * MIB], ids=lambda size: f"{size}-bytes")
async def test_a_blob_comes_back_as_it_was(blobs: BlobStore, tmp_path: Path, size: int) -> None:
    digest, source = a_file(tmp_path, bytes(index % 251 for index in range(1000)) * (size // 1000 + 1))
    source.write_bytes(source.read_bytes()[:size])
    digest = digest_of(source)
    await blobs.put(digest, source)
    await blobs.get(digest, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


async def test_a_missing_blob_is_not_found(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await blobs.get("0" * 64, tmp_path / "target")
    assert not list(tmp_path.glob("*target*"))


async def test_a_blob_is_there_after_put_and_gone_after_delete(blobs: BlobStore, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"data")
    there = [await blobs.has(digest)]
    await blobs.put(digest, source)
    there.append(await blobs.has(digest))
    await blobs.delete(digest)
    there.append(await blobs.has(digest))
    assert there == [False, True, False]


async def test_a_deleted_blob_can_be_stored_again(blobs: BlobStore, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"data")
    await blobs.put(digest, source)
    await blobs.delete(digest)
    await blobs.put(digest, source)
    await blobs.get(digest, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"data"


async def test_deleting_what_is_not_there_does_nothing(blobs: BlobStore) -> None:
    await blobs.delete("0" * 64)
    await blobs.delete(">")


async def test_a_file_with_another_digest_is_refused_and_not_stored(blobs: BlobStore, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"x" * 3 * MIB)
    source.write_bytes(b"y" + source.read_bytes()[1:])
    with pytest.raises(DamagedFile):
        await blobs.put(digest, source)
    assert not await blobs.has(digest)


async def test_a_digest_that_is_none_is_refused(blobs: BlobStore, tmp_path: Path) -> None:
    _, source = a_file(tmp_path, b"data")
    with pytest.raises(DamagedFile):
        await blobs.put("../../etc", source)


async def test_a_missing_file_is_not_found(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await blobs.put("0" * 64, tmp_path / "missing")


async def test_storing_twice_changes_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"data")
    await blobs.put(digest, source)
    source.unlink()
    await blobs.put(digest, source)
    await blobs.get(digest, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"data"


async def test_two_who_store_the_same_blob_do_not_harm_it(blobs: BlobStore, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"x" * 3 * MIB)
    await asyncio.gather(blobs.put(digest, source), blobs.put(digest, source))
    await blobs.get(digest, tmp_path / "target")
    assert digest_of(tmp_path / "target") == digest


async def test_a_target_that_cannot_be_written_is_a_store_error(blobs: BlobStore, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"data")
    await blobs.put(digest, source)
    with pytest.raises(StoreError):
        await blobs.get(digest, tmp_path / "no-such-folder" / "target")


# --- what only a real server can do to us


@pytest.fixture
async def own_store(own_bus: NatsBus) -> NatsBlobStore:
    store = NatsBlobStore(own_bus, max_bytes=256 * MIB)
    await store.ensure()
    return store


async def test_twenty_megabytes_pass_in_bounded_memory(own_store: NatsBlobStore, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, bytes(range(256)) * (20 * MIB // 256))
    tracemalloc.start()
    try:
        await own_store.put(digest, source)
        await own_store.get(digest, tmp_path / "target")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert digest_of(tmp_path / "target") == digest
    assert peak_bytes < 14 * MIB


async def test_the_event_loop_is_not_held_by_a_large_blob(own_store: NatsBlobStore, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, bytes(range(256)) * (20 * MIB // 256))
    longest_s = 0.0

    async def measure() -> None:
        nonlocal longest_s
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest_s = max(longest_s, time.monotonic() - before)

    measuring = asyncio.create_task(measure())
    await own_store.put(digest, source)
    await own_store.get(digest, tmp_path / "target")
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
    assert longest_s < 0.25


async def test_a_blob_survives_a_killed_server(own_server, own_bus, own_store, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"x" * 2 * MIB)
    await own_store.put(digest, source)
    await own_server.restart(own_bus)
    await own_store.ensure()
    await own_store.get(digest, tmp_path / "target")
    assert digest_of(tmp_path / "target") == digest


async def test_a_blob_with_a_missing_chunk_is_damaged(own_bus, own_store, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"x" * 2 * MIB)
    await own_store.put(digest, source)
    await own_bus.connection.jetstream().delete_msg("OBJ_edgeai-blobs", 2)
    with pytest.raises(DamagedFile):
        await own_store.get(digest, tmp_path / "target")
    assert not list(tmp_path.glob("*target*"))


async def test_a_blob_with_a_changed_chunk_is_damaged(own_bus, own_store, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"x" * 1000)
    await own_store.put(digest, source)
    jetstream = own_bus.connection.jetstream()
    place = (await jetstream.get_msg("OBJ_edgeai-blobs", 1)).subject
    await jetstream.purge_stream("OBJ_edgeai-blobs", subject=place)
    await jetstream.publish(place, b"y" * 1000)
    with pytest.raises(DamagedFile):
        await own_store.get(digest, tmp_path / "target")
    assert not list(tmp_path.glob("*target*"))


async def test_deleting_frees_the_space(own_bus, own_store, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"x" * 2 * MIB)
    await own_store.put(digest, source)
    await own_store.delete(digest)
    assert (await own_bus.connection.jetstream().stream_info("OBJ_edgeai-blobs")).state.messages == 0


async def test_a_blob_that_does_not_fit_leaves_nothing_behind(own_bus, tmp_path: Path) -> None:
    store = NatsBlobStore(own_bus, "small", max_bytes=MIB)
    await store.ensure()
    digest, source = a_file(tmp_path, b"x" * 3 * MIB)
    with pytest.raises(StoreError, match="full"):
        await store.put(digest, source)
    assert (await own_bus.connection.jetstream().stream_info("OBJ_small")).state.messages == 0


async def test_every_call_says_at_once_that_the_server_is_down(own_server, own_bus, own_store, tmp_path: Path) -> None:
    digest, source = a_file(tmp_path, b"data")
    await own_server.crash(own_bus)
    for call in (
        own_store.put(digest, source),
        own_store.get(digest, tmp_path / "target"),
        own_store.has(digest),
        own_store.delete(digest),
    ):
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(call, 1)
