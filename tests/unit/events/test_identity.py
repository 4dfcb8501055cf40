"""Identifiers of events: ordered by time, of the form of RFC 9562."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from edgeai.events.identity import time_ordered_id

instants = st.integers(0, 2**48 - 1)
randoms = st.binary(min_size=10, max_size=10)


@given(instants, randoms)
def test_an_identifier_is_a_uuid_of_version_7(milliseconds, random):
    found = uuid.UUID(bytes=time_ordered_id(milliseconds, random))
    assert (found.version, found.variant) == (7, uuid.RFC_4122)


@given(instants, instants, randoms, randoms)
def test_an_earlier_instant_sorts_first(one, other, random, other_random):
    if one < other:
        assert time_ordered_id(one, random) < time_ordered_id(other, other_random)


@given(instants, randoms, randoms)
def test_74_bits_are_random(milliseconds, random, other):
    """All but the six that say version and variant."""

    def kept(drawn: bytes) -> bytes:
        return bytes([drawn[0] & 0x0F, drawn[1], drawn[2] & 0x3F, *drawn[3:]])

    same = time_ordered_id(milliseconds, random) == time_ordered_id(milliseconds, other)
    assert same == (kept(random) == kept(other))


def test_too_little_randomness_is_filled_up():
    assert len(time_ordered_id(0, b"")) == 16
