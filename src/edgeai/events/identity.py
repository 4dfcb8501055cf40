"""Identifiers of events: 16 bytes, ordered by time (UUID version 7, RFC 9562). Time and randomness come in as arguments."""

from __future__ import annotations


def time_ordered_id(milliseconds: int, random: bytes) -> bytes:
    """48 bits of milliseconds since 1970, then 10 bytes of `random` with version and variant set."""
    tail = bytearray(random[:10].ljust(10, b"\0"))
    tail[0] = (tail[0] & 0x0F) | 0x70
    tail[2] = (tail[2] & 0x3F) | 0x80
    return milliseconds.to_bytes(6, "big") + bytes(tail)
