"""Values on the wire: what goes in comes out, and nothing that comes from anybody gets further than here."""

from __future__ import annotations

import struct

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeai.errors import EdgeaiError, MalformedEvent, PayloadTooLarge
from edgeai.events.values import DTYPES, MAX_DEPTH, MAX_LIST, MAX_VALUE_BYTES, pack, unpack

ARRAYS = st.sampled_from(DTYPES).flatmap(lambda name: arrays.arrays(name, arrays.array_shapes(min_dims=1, max_side=4)))
PLAIN = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(
    PLAIN | ARRAYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def same(one, other) -> bool:
    match one:
        case np.ndarray():
            return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        case dict():
            return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
        case list():
            return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(VALUES)
def test_what_is_packed_comes_out_the_same(value):
    assert same(value, unpack(pack(value)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(content):
    try:
        value = unpack(content)
    except MalformedEvent:
        return
    pack(value)


@given(VALUES, st.data())
def test_a_damaged_value_is_a_value_or_refused(value, data):
    content = bytearray(pack(value))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    try:
        unpack(bytes(content))
    except MalformedEvent:
        return


def test_an_array_that_is_alone_is_a_view_and_read_only():
    content = pack(np.arange(100, dtype="float32"))
    found = unpack(content)
    assert np.shares_memory(found, np.frombuffer(content, "uint8"))
    assert found.flags.aligned
    assert not found.flags.writeable


def test_arrays_in_other_orders_are_made_plain():
    array = np.arange(12, dtype=">i4").reshape(3, 4).T
    found = unpack(pack(array))
    assert found.dtype == np.dtype("int32")
    assert found.tolist() == array.tolist()


def test_a_scalar_of_numpy_keeps_its_type():
    assert [type(unpack(pack(each))) for each in (np.float32(1), np.float64(1), np.int8(1), np.bool_(True))] == [
        np.float32,
        np.float64,
        np.int8,
        np.bool_,
    ]


def test_texts_in_an_array_and_tuples_come_back_as_lists():
    assert unpack(pack((np.array(["cat", "dog"]), np.str_("x")))) == [["cat", "dog"], "x"]


def test_an_empty_array_keeps_its_shape():
    assert unpack(pack(np.empty((0, 3), "float32"))).shape == (0, 3)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (np.array([object()]), "type object"),
        (np.zeros(1, "complex64"), "complex64"),
        (object(), "a object does not travel"),
        ({1: 2}, "not text"),
        (2**64, "does not travel"),
        ([0] * (MAX_LIST + 1), "more than 4096"),
        ("\ud800", "does not travel"),
    ],
    ids=["objects", "complex", "another type", "key", "large number", "long list", "broken text"],
)
def test_what_does_not_travel_is_said(value, what):
    with pytest.raises(MalformedEvent, match=what):
        pack(value)


def test_a_value_that_is_too_large_is_refused_before_it_is_copied():
    with pytest.raises(PayloadTooLarge):
        pack({"x": np.broadcast_to(np.float32(0), (25_000_000,))})
    with pytest.raises(PayloadTooLarge):
        pack("x" * (MAX_VALUE_BYTES + 1))


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


def test_depth_is_limited_on_both_sides():
    assert unpack(pack(nested(MAX_DEPTH - 1))) == nested(MAX_DEPTH - 1)
    with pytest.raises(MalformedEvent):
        pack(nested(MAX_DEPTH))
    with pytest.raises(MalformedEvent):
        unpack(msgpack.packb(nested(MAX_DEPTH)))


def extension(head: bytes, data: bytes = b"", code: int = 1) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, head + data))


@pytest.mark.parametrize(
    "content",
    [
        extension(b"\x0a\x01" + struct.pack("<Q", 5), bytes(16)),
        extension(b"\x0a\x02" + struct.pack("<QQ", 2**63, 2**63)),
        extension(b"\x0a\x02" + struct.pack("<QQ", 0, 2**63)),
        extension(b"\xff\x00"),
        extension(b"\x0a\xff"),
        extension(b"\x0a"),
        extension(b"", code=7),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"",
        b"\xc0\xc0",
        b"\x81\x01\x02",
        bytes(MAX_VALUE_BYTES + 1),
    ],
    ids=lambda content: content[:12].hex(),
)
def test_what_is_no_value_is_refused(content):
    with pytest.raises(EdgeaiError):
        unpack(content)
