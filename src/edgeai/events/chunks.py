"""How a blob is cut for the bus, and which pieces of it are there.

A blob travels in chunks of `CHUNK_BYTES`, each known by its offset; the last may be shorter. A receiver asks for ranges
of whole chunks and marks what arrived in a `Bitmap`, which it keeps beside the partial file. Offsets and lengths come
from other machines: what is not a chunk of the blob is refused with MalformedEvent. Files and timers are elsewhere
(`lifecycle.transfer`, `store`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgeai.errors import MalformedEvent

CHUNK_BYTES = 512 * 1024
"""Fits NATS' default `max_payload` of 1 MiB with room for every header."""
BLOB_LIMIT_BYTES = 2**40


@dataclass(frozen=True, slots=True)
class Range:
    """`length` bytes of a blob from `offset`."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def chunk_count(size_bytes: int) -> int:
    """Of a blob of this size. Raises MalformedEvent for a size no blob can have."""
    if not 0 <= size_bytes <= BLOB_LIMIT_BYTES:
        raise MalformedEvent(f"a blob of {size_bytes} bytes is not possible")
    return -(-size_bytes // CHUNK_BYTES)


def checked_range(size_bytes: int, offset: int, length: int) -> Range:
    """A range of whole chunks of a blob. Raises MalformedEvent if it begins or ends elsewhere."""
    end = offset + length
    inside = 0 <= offset < end <= size_bytes <= BLOB_LIMIT_BYTES
    if not inside or offset % CHUNK_BYTES or (end % CHUNK_BYTES and end != size_bytes):
        raise MalformedEvent(f"{length} bytes at {offset} are not chunks of a blob of {size_bytes} bytes")
    return Range(offset, length)


def chunks_of(asked: Range) -> Iterator[Range]:
    """The chunks of a range, in order."""
    for offset in range(asked.offset, asked.end, CHUNK_BYTES):
        yield Range(offset, min(CHUNK_BYTES, asked.end - offset))


@dataclass(frozen=True, slots=True)
class Bitmap:
    """Which chunks of a blob are held: bit n of `mask` is chunk n. A value: every change is a new one."""

    size_bytes: int
    mask: int = 0

    def __post_init__(self) -> None:
        if self.mask >> chunk_count(self.size_bytes):
            raise MalformedEvent(f"{self.mask.bit_length()} chunks are more than a blob of {self.size_bytes} bytes has")

    @property
    def complete(self) -> bool:
        return self.mask == self._full

    @property
    def held_bytes(self) -> int:
        held = self.mask.bit_count() * CHUNK_BYTES
        last_is_held = bool(self.mask >> (chunk_count(self.size_bytes) - 1) & 1) if self.size_bytes else False
        return held - (-self.size_bytes % CHUNK_BYTES if last_is_held else 0)

    def holds(self, offset: int, length: int) -> bool:
        """Is this chunk there already? Raises MalformedEvent if it is not one."""
        return bool(self.mask & self._bit(offset, length))

    def with_chunk(self, offset: int, length: int) -> Bitmap:
        """Raises MalformedEvent unless this is exactly one chunk. A chunk that is held already changes nothing."""
        return Bitmap(self.size_bytes, self.mask | self._bit(offset, length))

    def __or__(self, other: Bitmap) -> Bitmap:
        """What either holds: `(held | asked).missing(credit)` is what to ask for next."""
        if other.size_bytes != self.size_bytes:
            raise ValueError("bitmaps of blobs of different sizes")
        return Bitmap(self.size_bytes, self.mask | other.mask)

    def missing(self, limit_bytes: int | None = None) -> list[Range]:
        """The first ranges not held, neighbouring chunks as one; whole chunks only, together at most `limit_bytes`."""
        left = self.size_bytes if limit_bytes is None else max(0, limit_bytes)
        ranges, gaps = [], self._full & ~self.mask
        while gaps and left > 0:
            first = _lowest(gaps)
            run = _lowest(~(gaps >> first))
            gaps ^= ((1 << run) - 1) << first
            wanted = self._range(first, run)
            if wanted.length > left:
                wanted, gaps = self._range(first, left // CHUNK_BYTES), 0
            left -= wanted.length
            if wanted.length:
                ranges.append(wanted)
        return ranges

    def to_bytes(self) -> bytes:
        return self.mask.to_bytes(-(-chunk_count(self.size_bytes) // 8), "little")

    @staticmethod
    def from_bytes(size_bytes: int, data: bytes) -> Bitmap:
        """What `to_bytes` gave for a blob of this size. Raises MalformedEvent."""
        if len(data) != -(-chunk_count(size_bytes) // 8):
            raise MalformedEvent(f"{len(data)} bytes are no bitmap of a blob of {size_bytes} bytes")
        return Bitmap(size_bytes, int.from_bytes(data, "little"))

    @property
    def _full(self) -> int:
        return (1 << chunk_count(self.size_bytes)) - 1

    def _bit(self, offset: int, length: int) -> int:
        chunk = checked_range(self.size_bytes, offset, length)
        if chunk.length > CHUNK_BYTES:
            raise MalformedEvent(f"{length} bytes at {offset} are more than one chunk")
        return 1 << (offset // CHUNK_BYTES)

    def _range(self, first: int, count: int) -> Range:
        offset = first * CHUNK_BYTES
        return Range(offset, min(count * CHUNK_BYTES, self.size_bytes - offset))


def _lowest(bits: int) -> int:
    """The position of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1
