"""The array contract: what is written is read again, also by and from the safetensors library; nothing else is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeai.errors import MalformedEvent, UpdateError
from edgeai.events import arrays as contract

DTYPES = [
    "float16",
    "float32",
    "float64",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
]
one_array = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
lists = st.lists(one_array, max_size=6)


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(left, right, strict=True)
    )


def blob(document: object, data: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@given(lists)
def test_decode_gives_back_what_was_encoded(arrays):
    assert same(contract.decode(contract.encode(arrays)), arrays)


@given(lists)
def test_the_header_leads_to_its_table(arrays):
    table = contract.table_of(arrays)

    assert contract.parse_header(contract.header(table), table.total_size) == table


@given(lists)
def test_a_table_tells_where_each_array_lies(arrays):
    whole = contract.encode(arrays)
    table = contract.table_of(arrays)

    assert table.total_size == len(whole)
    for array, info in zip(arrays, table.entries, strict=True):
        assert whole[info.offset : info.offset + info.size_bytes] == array.tobytes()


@given(lists)
def test_the_safetensors_library_reads_what_we_write(arrays):
    loaded = safetensors.numpy.load(contract.encode(arrays))

    assert same([loaded[f"{index:04d}"] for index in range(len(arrays))], arrays)


@given(st.dictionaries(st.text("abc/.:-é", min_size=1, max_size=8), one_array, max_size=6))
def test_we_read_what_the_safetensors_library_writes(named):
    whole = safetensors.numpy.save(named)
    table = contract.parse_header(whole, len(whole))

    assert {info.name for info in table.entries} == set(named)
    assert same(contract.decode(whole), [named[info.name] for info in table.entries])


def test_files_of_others_are_read_in_the_order_their_metadata_says():
    named = {"w": np.float32([1, 2]), "b": np.float64([3]), "a": np.int8([4])}

    assert same(contract.decode(safetensors.numpy.save(named, {"order": "w,b,a"})), list(named.values()))


def test_arrays_are_named_by_their_place():
    table = contract.table_of([np.zeros(1)] * 10_001)

    assert [table.entries[index].name for index in (0, 1, 9_999, 10_000)] == ["0000", "0001", "9999", "10000"]


def test_equal_arrays_give_equal_blobs():
    assert contract.encode([np.arange(3), np.bool_([True])]) == contract.encode([np.arange(3), np.bool_([True])])


def test_big_endian_arrays_are_converted():
    [decoded] = contract.decode(contract.encode([np.array([1.5, -2.0], ">f4")]))

    assert decoded.dtype == np.dtype("<f4")
    assert decoded.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "array",
    [np.arange(12).reshape(3, 4).T, np.arange(12)[::-2], np.asfortranarray(np.arange(6.0).reshape(2, 3))],
    ids=["transposed", "backwards", "fortran"],
)
def test_arrays_that_are_not_contiguous_travel_as_well(array):
    [decoded] = contract.decode(contract.encode([array]))

    np.testing.assert_array_equal(decoded, array)


def test_decoded_arrays_share_the_memory_of_the_blob():
    whole = contract.encode([np.arange(3)])

    assert np.shares_memory(contract.decode(whole)[0], np.frombuffer(whole, np.uint8))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("shape", [(3,), (0, 2)])
def test_decoded_arrays_are_read_only(kind, shape):
    [decoded] = contract.decode(kind(contract.encode([np.zeros(shape)])))

    assert not decoded.flags.writeable


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.zeros(1, complex), np.zeros(1, np.longdouble)])
def test_a_dtype_that_does_not_travel_is_named(array):
    with pytest.raises(UpdateError, match=f"array 1 has dtype {array.dtype.name}"):
        contract.table_of([np.zeros(1), array])


def test_too_many_arrays_are_refused():
    with pytest.raises(UpdateError, match="100001 arrays"):
        contract.table_of([np.zeros(0)] * 100_001)


def test_a_table_that_would_be_too_large_to_read_is_refused():
    with pytest.raises(UpdateError, match="90000 arrays need a table"):
        contract.table_of([np.zeros(0)] * 90_000)


REFUSED = {
    "empty": b"",
    "short-length": b"\x02\0\0",
    "length-beyond-the-end": (100).to_bytes(8, "little") + b"{}",
    "length-beyond-the-limit": (2**62).to_bytes(8, "little") + b"{}",
    "no-header": bytes(8),
    "not-json": blob(b"{nonsense"),
    "not-an-object": blob([]),
    "leading-space": blob(b" {}"),
    "utf-16": blob('{"a":1}'.encode("utf-16")),
    "not-utf8": blob(b'{"\xff":1}'),
    "deep": blob(b'{"a":' + b"[" * 100_000),
    "many-objects": blob(b'{"a":[' + b"{}," * 200_000 + b"0]}"),
    "many-lists": blob(b'{"a":[' + b"[]," * 300_000 + b"0]}"),
    "trailing-json": blob(b"{}{}"),
    "name-twice": blob(b'{"a":1,"a":1}'),
    "name-not-printable": blob({"a\ud800": entry()}, bytes(8)),
    "nan": blob(b'{"a":NaN}'),
    "huge-number": blob(b'{"a":' + b"9" * 10_000 + b"}"),
    "entry-not-an-object": blob({"a": 1}),
    "entry-without-dtype": blob({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "entry-with-more": blob({"a": entry(more=1)}, bytes(8)),
    "unknown-dtype": blob({"a": entry("F99")}, bytes(8)),
    "bfloat16": blob({"a": entry("BF16", [4])}, bytes(8)),
    "dtype-not-a-text": blob({"a": entry(7)}, bytes(8)),
    "shape-not-a-list": blob({"a": entry(shape=2)}, bytes(8)),
    "shape-of-floats": blob({"a": entry(shape=[2.0])}, bytes(8)),
    "shape-of-bools": blob({"a": entry(shape=[True, 2])}, bytes(8)),
    "negative-shape": blob({"a": entry(shape=[-1, -2])}, bytes(8)),
    "33-dimensions": blob({"a": entry(shape=[1] * 32 + [2])}, bytes(8)),
    "huge-shape": blob({"a": entry(shape=[2**40] * 32)}, bytes(8)),
    "huge-empty-shape": blob({"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}),
    "too-few-bytes": blob({"a": entry(offsets=[0, 4])}, bytes(4)),
    "negative-offsets": blob({"a": entry(offsets=[-8, 0])}, bytes(8)),
    "reversed-offsets": blob({"a": entry(offsets=[8, 0])}, bytes(8)),
    "three-offsets": blob({"a": entry(offsets=[0, 8, 8])}, bytes(8)),
    "bool-offsets": blob({"a": entry("U8", [1], [False, True])}, bytes(1)),
    "gap-before": blob({"a": entry(offsets=[4, 12])}, bytes(12)),
    "gap-between": blob({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)),
    "overlap": blob({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
    "same-place": blob({"a": entry(), "b": entry()}, bytes(8)),
    "trailing-bytes": blob({"a": entry()}, bytes(9)),
    "missing-bytes": blob({"a": entry()}, bytes(7)),
    "metadata-not-a-map": blob({"__metadata__": []}),
    "metadata-not-texts": blob({"__metadata__": {"order": 1}}),
    "order-names-a-stranger": blob({"__metadata__": {"order": "b"}, "a": entry()}, bytes(8)),
    "order-names-one-twice": blob({"__metadata__": {"order": "a,a"}, "a": entry()}, bytes(8)),
    "order-forgets-one": blob({"__metadata__": {"order": ""}, "a": entry()}, bytes(8)),
}


@pytest.mark.parametrize("whole", REFUSED.values(), ids=REFUSED)
def test_what_is_not_a_blob_of_arrays_is_refused_in_one_line(whole):
    with pytest.raises(MalformedEvent) as raised:
        contract.decode(whole)

    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def read(prefix: bytes, total_size: int) -> None:
    """Read a table and, if it is accepted, make its arrays; no error but MalformedEvent may come out."""
    try:
        table = contract.parse_header(prefix, total_size)
    except MalformedEvent:
        return
    assert sum(info.size_bytes for info in table.entries) + table.header_bytes == total_size
    if total_size < 10_000:
        content = memoryview(bytes(total_size))
        assert all(contract.view_of(content, info).size == math.prod(info.shape) for info in table.entries)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "U8", "a,b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
nearly_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BOOL", "I64", "X"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | json_values,
    }
)
nearly_documents = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=4), nearly_entries | json_values, max_size=3
)


@given(nearly_documents, st.integers(0, 100))
def test_any_json_is_read_or_refused(document, size):
    prefix = blob(document)
    read(prefix, len(prefix) + size)


@given(st.binary(max_size=200), st.integers(-1, 300))
def test_any_bytes_are_read_or_refused(prefix, total_size):
    read(prefix, total_size)
    read(blob(prefix), total_size)


@given(lists, st.data())
def test_a_damaged_header_is_read_or_refused(arrays, data):
    whole = bytearray(contract.encode(arrays))
    place = data.draw(st.integers(0, contract.table_of(arrays).header_bytes - 1))
    whole[place] = data.draw(st.integers(0, 255))

    read(bytes(whole), len(whole))
