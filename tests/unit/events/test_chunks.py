"""Chunks and the bitmap of those that are held."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.errors import MalformedEvent
from edgeai.events.chunks import BLOB_LIMIT_BYTES, CHUNK_BYTES, Bitmap, Range, checked_range, chunk_count, chunks_of

sizes = st.integers(0, 20 * CHUNK_BYTES) | st.integers(0, 20).map(lambda count: count * CHUNK_BYTES)
limits = st.none() | st.integers(-1, 30 * CHUNK_BYTES)


def all_chunks(size: int) -> list[Range]:
    return list(chunks_of(Range(0, size)))


@st.composite
def bitmaps(draw: st.DrawFn) -> Bitmap:
    size = draw(sizes)
    return Bitmap(size, draw(st.integers(0, (1 << chunk_count(size)) - 1)))


@given(sizes)
def test_the_chunks_of_a_blob_are_the_blob(size):
    chunks = all_chunks(size)

    assert len(chunks) == chunk_count(size)
    assert sum(chunk.length for chunk in chunks) == size
    assert all(0 < chunk.length <= CHUNK_BYTES for chunk in chunks)


@given(bitmaps())
def test_what_is_missing_and_what_is_held_is_the_blob(bitmap):
    missing = [chunk for wanted in bitmap.missing() for chunk in chunks_of(wanted)]
    held = [chunk for chunk in all_chunks(bitmap.size_bytes) if bitmap.holds(chunk.offset, chunk.length)]

    assert sorted(missing + held, key=lambda chunk: chunk.offset) == all_chunks(bitmap.size_bytes)
    assert bitmap.held_bytes == sum(chunk.length for chunk in held)


@given(bitmaps(), limits)
def test_missing_ranges_keep_to_the_limit_and_the_order(bitmap, limit):
    asked = [chunk for wanted in bitmap.missing(limit) for chunk in chunks_of(wanted)]
    missing = [chunk for wanted in bitmap.missing() for chunk in chunks_of(wanted)]

    assert asked == missing[: len(asked)]
    if limit is not None and len(asked) < len(missing):
        assert sum(chunk.length for chunk in asked) <= max(limit, 0)
        assert sum(chunk.length for chunk in missing[: len(asked) + 1]) > limit


@given(bitmaps())
def test_missing_ranges_do_not_touch(bitmap):
    ranges = bitmap.missing()

    assert all(left.end < right.offset for left, right in pairwise(ranges))


@given(bitmaps())
def test_every_missing_range_is_one_that_a_sender_accepts(bitmap):
    for wanted in bitmap.missing():
        assert checked_range(bitmap.size_bytes, wanted.offset, wanted.length) == wanted


@given(bitmaps(), st.randoms())
def test_the_missing_chunks_complete_a_blob_in_any_order(bitmap, random):
    chunks = [chunk for wanted in bitmap.missing() for chunk in chunks_of(wanted)]
    random.shuffle(chunks)
    for chunk in chunks:
        assert not bitmap.complete
        bitmap = bitmap.with_chunk(chunk.offset, chunk.length)

    assert bitmap.complete
    assert bitmap.missing() == []


@given(bitmaps())
def test_a_chunk_that_is_held_already_changes_nothing(bitmap):
    for chunk in all_chunks(bitmap.size_bytes):
        once = bitmap.with_chunk(chunk.offset, chunk.length)
        assert once.with_chunk(chunk.offset, chunk.length) == once


@given(bitmaps())
def test_a_bitmap_is_read_again_from_its_bytes(bitmap):
    assert Bitmap.from_bytes(bitmap.size_bytes, bitmap.to_bytes()) == bitmap


@given(bitmaps(), st.data())
def test_what_is_held_or_asked_for_is_not_asked_for_again(held, data):
    asked = Bitmap(held.size_bytes, data.draw(st.integers(0, (1 << chunk_count(held.size_bytes)) - 1)))

    assert (held | asked).mask == held.mask | asked.mask


def test_bitmaps_of_different_blobs_do_not_mix():
    with pytest.raises(ValueError, match="different sizes"):
        Bitmap(1) | Bitmap(2)


def test_an_empty_blob_is_complete():
    assert Bitmap(0).complete


SIZE = 2 * CHUNK_BYTES + 100


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (1, CHUNK_BYTES),
        (0, 1),
        (0, CHUNK_BYTES - 1),
        (0, CHUNK_BYTES + 1),
        (0, 0),
        (0, -CHUNK_BYTES),
        (-CHUNK_BYTES, CHUNK_BYTES),
        (2 * CHUNK_BYTES, CHUNK_BYTES),
        (2 * CHUNK_BYTES, 99),
        (3 * CHUNK_BYTES, 100),
        (2**70 * CHUNK_BYTES, CHUNK_BYTES),
    ],
)
def test_what_is_not_a_chunk_of_the_blob_is_refused(offset, length):
    with pytest.raises(MalformedEvent):
        Bitmap(SIZE).with_chunk(offset, length)
    with pytest.raises(MalformedEvent):
        checked_range(SIZE, offset, length)


@pytest.mark.parametrize(("offset", "length"), [(0, 2 * CHUNK_BYTES), (CHUNK_BYTES, CHUNK_BYTES + 100), (0, SIZE)])
def test_several_chunks_are_a_range_and_no_chunk(offset, length):
    assert checked_range(SIZE, offset, length) == Range(offset, length)
    with pytest.raises(MalformedEvent, match="more than one chunk"):
        Bitmap(SIZE).with_chunk(offset, length)


@pytest.mark.parametrize("size", [-1, BLOB_LIMIT_BYTES + 1, 2**80])
def test_a_size_no_blob_can_have_is_refused(size):
    with pytest.raises(MalformedEvent):
        Bitmap(size)


@pytest.mark.parametrize("data", [b"", b"\x08", b"\xff", b"\x01\x00"], ids=["short", "beyond-the-end", "all", "long"])
def test_bytes_that_are_no_bitmap_of_the_blob_are_refused(data):
    with pytest.raises(MalformedEvent):
        Bitmap.from_bytes(SIZE, data)


def test_a_negative_mask_is_refused():
    with pytest.raises(MalformedEvent):
        Bitmap(SIZE, -1)
