"""The envelope: what is encoded comes back; what is not an event is refused by name, whatever it is, at a bounded price."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from event_strategies import ANY_EVENT, EVENTS, TEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeai.errors import MalformedEvent, PayloadTooLarge
from edgeai.events.catalogue import BlobRef, Desired, Heartbeat, LogAnswered, Observed, Offer, RoundPlan
from edgeai.events.envelope import (
    MAX_CHUNK_BYTES,
    MAX_CONTAINERS,
    MAX_COUNTER,
    MAX_DEPTH,
    MAX_EVENT_BYTES,
    Chunk,
    Envelope,
    Header,
    body_of,
    decode,
    decode_chunk,
    decode_header,
    encode,
    encode_chunk,
    field_names,
    value_of,
)

SOURCES = st.text(st.characters(max_codepoint=127), max_size=160)
HEADERS = st.builds(
    Header,
    SOURCES,
    incarnation=st.integers(0, MAX_COUNTER),
    sequence=st.integers(0, MAX_COUNTER),
    correlation=st.just(b"") | st.binary(min_size=16, max_size=16).filter(any),
    tombstone=st.booleans(),
)
ENVELOPES = st.builds(
    Envelope,
    HEADERS,
    ANY_EVENT,
    id=st.just(b"") | st.binary(min_size=16, max_size=16),
    time=st.floats(0, 1e11),
    subject=TEXT,
    trace=TEXT,
)
SAMPLE = Envelope(Header("edge1", 5, 7), Heartbeat(1.5, 3), b"i" * 16, 1.0)


def with_body(body: Any, kind: str = "heartbeat", **fields: Any) -> bytes:
    """A valid header in front of a map that anybody may have written."""
    return header() + msgpack.packb({"id": b"", "kind": kind, "time": 0.0, "body": body} | fields)


def header(source: str = "edge1") -> bytes:
    payload = encode(replace(SAMPLE, header=Header(source, 5, 7)))
    return payload[: int.from_bytes(payload[4:6], "big")]


# --- what goes in comes out


@pytest.mark.parametrize("kind", EVENTS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_event_comes_back_as_it_was(kind, data):
    envelope = replace(SAMPLE, event=data.draw(EVENTS[kind]))
    assert decode(encode(envelope)) == envelope


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ENVELOPES)
def test_an_envelope_comes_back_with_its_header(envelope):
    payload = encode(envelope)
    assert decode(payload) == envelope
    assert decode_header(payload) == envelope.header


@given(HEADERS, st.binary(min_size=1, max_size=2000), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_chunk_comes_back_with_its_header(found, data, offset, rest):
    chunk = Chunk("ab" * 32, offset + len(data) + rest, offset, memoryview(data))
    assert decode_chunk(encode_chunk(found, chunk)) == (found, chunk)


def test_the_data_of_a_chunk_is_not_copied_when_it_is_read():
    payload = encode_chunk(Header("edge1"), Chunk("ab" * 32, 4, 0, memoryview(b"data")))
    assert decode_chunk(payload)[1].data.obj is payload


def test_a_value_goes_into_a_store_and_back():
    plan = RoundPlan("FedAvg", 3, 2, 1, 60.0, None, (), "m", BlobRef("a" * 64, 5))
    assert value_of(RoundPlan, msgpack.unpackb(msgpack.packb(body_of(plan)))) == plan


def test_field_names_are_for_documentation():
    assert field_names(Heartbeat)[:2] == ["uptime_s", "outbox"]


# --- newer senders


def test_unknown_fields_of_a_newer_sender_are_ignored():
    payload = with_body({"uptime_s": 1.0, "outbox": 2, "mood": "good"}, newer="x")
    assert decode(payload).event == Heartbeat(1.0, 2)


def test_fields_that_a_sender_does_not_know_yet_have_their_default():
    assert decode(with_body({"uptime_s": 1.0})).event == Heartbeat(1.0, 0)


def test_a_longer_header_of_a_newer_sender_is_skipped():
    payload = bytearray(encode(SAMPLE))
    length = int.from_bytes(payload[4:6], "big")
    payload[4:6] = (length + 32).to_bytes(2, "big")
    assert decode(bytes(payload[:length] + b"d" * 32 + payload[length:])) == SAMPLE


def test_another_version_is_refused_by_name():
    payload = bytearray(encode(SAMPLE))
    payload[2] = 2
    with pytest.raises(MalformedEvent, match="version 2 is unknown here; this program speaks 1"):
        decode_header(bytes(payload))


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(MalformedEvent, match="unknown kind 'rumour'"):
        decode(with_body({}, kind="rumour"))


@pytest.mark.parametrize(
    "kind", [None, 5, b"heartbeat", ["heartbeat"], {"a": 1}, "x" * 60_000], ids=lambda kind: str(kind)[:20]
)
def test_a_kind_that_is_none_is_refused(kind):
    with pytest.raises(MalformedEvent, match="unknown kind") as caught:
        decode(with_body({}, kind=kind))
    assert len(str(caught.value)) < 200


# --- what is not an event


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(payload):
    for read in (decode_header, decode, decode_chunk):
        with pytest.raises(MalformedEvent):
            read(payload)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_an_arbitrary_body_is_refused_and_its_header_read(body):
    payload = header() + body
    assert decode_header(payload) == SAMPLE.header
    with pytest.raises(MalformedEvent):
        decode(payload)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ENVELOPES, st.data())
def test_a_truncated_event_is_refused(envelope, data):
    payload = encode(envelope)
    with pytest.raises(MalformedEvent):
        decode(payload[: data.draw(st.integers(0, len(payload) - 1))])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ENVELOPES, st.data())
def test_a_flipped_bit_is_refused_or_changes_a_value(envelope, data):
    payload = bytearray(encode(envelope))
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    try:
        encode(decode(bytes(payload)))
    except MalformedEvent:
        return


@given(st.binary(max_size=100), st.data())
def test_a_flipped_bit_in_a_chunk_is_refused_or_changes_a_value(data, drawn):
    payload = bytearray(encode_chunk(Header("edge1"), Chunk("ab" * 32, 200, 3, memoryview(data or b"x"))))
    bit = drawn.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    try:
        decode_chunk(bytes(payload))
    except MalformedEvent:
        return


def test_bytes_after_the_event_are_refused():
    with pytest.raises(MalformedEvent, match="extra data"):
        decode(encode(SAMPLE) + b"\xc0")


@pytest.mark.parametrize(
    "body", [b"\xc0", b"\x05", b"\x90", b"\xa1a", b"\xc4\x00"], ids=["nil", "int", "list", "text", "bytes"]
)
def test_a_body_that_is_no_map_is_refused(body):
    with pytest.raises(MalformedEvent, match="not a map"):
        decode(header() + body)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"id": "text"}, "id"),
        ({"id": b"short"}, "id"),
        ({"id": b"i" * 17}, "id"),
        ({"time": "now"}, "time"),
        ({"time": None}, "time"),
        ({"subject": 5}, "subject"),
        ({"trace": b"x"}, "trace"),
    ],
    ids=str,
)
def test_an_attribute_of_the_wrong_type_is_refused(fields, what):
    with pytest.raises(MalformedEvent, match="wrong type"):
        decode(with_body({"uptime_s": 1.0}, **fields))


@pytest.mark.parametrize("body", [None, 5, "text", [], [1.0, 2], {}, {"uptime_s": "long"}, {"uptime_s": None}], ids=str)
def test_a_body_that_is_not_what_its_kind_says_is_refused_with_its_kind(body):
    with pytest.raises(MalformedEvent, match=r"^heartbeat: "):
        decode(with_body(body))


def test_the_field_that_does_not_fit_is_named_and_shortened():
    body = {"desired_generation": 0, "workers": [], "datasets": [], "info": {"n" * 60_000: 5}}
    with pytest.raises(MalformedEvent, match="observed: info") as caught:
        decode(with_body(body, kind="observed"))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
@pytest.mark.parametrize("place", [8, 16], ids=["incarnation", "sequence"])
def test_a_counter_that_no_store_can_hold_is_refused(place, number):
    payload = bytearray(encode(SAMPLE))
    payload[place : place + 8] = number.to_bytes(8, "big")
    with pytest.raises(MalformedEvent, match="beyond what a store can hold"):
        decode_header(bytes(payload))


@pytest.mark.parametrize("length", [0, 39, 44, 65_535])
def test_a_header_with_a_wrong_length_is_refused(length):
    payload = bytearray(encode(SAMPLE))
    payload[4:6] = length.to_bytes(2, "big")
    with pytest.raises(MalformedEvent, match="the header is longer than the payload"):
        decode_header(bytes(payload))


def test_a_source_that_is_not_ascii_is_refused():
    payload = bytearray(encode(SAMPLE))
    payload[40] = 0xFF
    with pytest.raises(MalformedEvent, match="not ASCII"):
        decode_header(bytes(payload))


def test_a_chunk_is_no_event_and_an_event_no_chunk():
    chunk = encode_chunk(Header("edge1"), Chunk("ab" * 32, 4, 0, memoryview(b"data")))
    with pytest.raises(MalformedEvent, match="a chunk where an event was expected"):
        decode(chunk)
    with pytest.raises(MalformedEvent, match="not a chunk"):
        decode_chunk(encode(SAMPLE))


@pytest.mark.parametrize(
    ("size_bytes", "offset", "length"),
    [(4, 0, 0), (4, 1, 4), (3, 0, 4), (4, 2**64 - 1, 4), (2 * MAX_CHUNK_BYTES, 0, MAX_CHUNK_BYTES + 1)],
)
def test_a_chunk_that_does_not_lie_in_its_blob_is_refused(size_bytes, offset, length):
    payload = encode_chunk(Header("edge1"), Chunk("ab" * 32, size_bytes, offset, memoryview(bytes(length))))
    with pytest.raises(MalformedEvent, match="outside its blob"):
        decode_chunk(payload)


# --- limits


def test_an_event_beyond_the_limit_is_not_sent():
    with pytest.raises(PayloadTooLarge):
        encode(replace(SAMPLE, event=LogAnswered(0, 0, bytes(MAX_EVENT_BYTES), False)))


def test_an_event_at_the_limit_arrives():
    offer = Offer("0" * 32, 1, "", BlobRef("a" * 64, 5, bytes(512 * 1024)), 1)
    assert decode(encode(replace(SAMPLE, event=offer))).event == offer


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


BOMBS = {
    "a megabyte of nested lists": b"\x91" * (1024 * 1024 - 100),
    "a megabyte of nested maps": b"\x81\xa1a" * (340 * 1024),
    "a list of four billion": b"\xdd\xff\xff\xff\xff",
    "a map of four billion": b"\xdf\xff\xff\xff\xff",
    "text of four billion": b"\xdb\xff\xff\xff\xff",
    "bytes of four billion": b"\xc6\xff\xff\xff\xff",
    "an extension of four billion": b"\xc9\xff\xff\xff\xff\x05",
    "an empty extension": b"\x81\xa4kind\xc7\x00\x05",
    "a small extension": b"\x81\xa4kind\xd4\x05\x00",
    "an instant": b"\x81\xa4kind\xd6\xff\x00\x00\x00\x00",
    "a number as key": b"\x81\x05\xc0",
    "bytes as key": b"\x81\xc4\x01a\xc0",
    "a list as key": b"\x81\x91\xc0\xc0",
    "nil as key": b"\x81\xc0\xc0",
    "a byte that is never used": b"\xc1",
    "text that is not UTF-8": b"\x81\xa4kind\xa1\xff",
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_a_hostile_body_is_refused_and_its_header_read(body):
    payload = header() + body
    assert decode_header(payload) == SAMPLE.header
    with pytest.raises(MalformedEvent):
        decode(payload)


def test_keys_deep_inside_are_text_as_well():
    assignment = {"task": "t", "task_name": "t", "task_uid": "0", "generation": 1, "worker": "w", "role": "training"}
    body = {"assignments": [assignment | {"parameters": {"list": [{b"bytes": 1}]}}]}
    with pytest.raises(MalformedEvent, match="not text"):
        decode(with_body(body, kind="desired"))


@pytest.mark.parametrize(("depth", "fits"), [(MAX_DEPTH - 5, True), (MAX_DEPTH + 1, False), (900, False)])
def test_what_was_decoded_is_not_too_deep_to_be_encoded(depth, fits):
    value: Any = 1
    for _ in range(depth):
        value = [value]
    assignment = {"task": "t", "task_name": "t", "task_uid": "0", "generation": 1, "worker": "w", "role": "training"}
    packed = msgpack.packb({"id": b"", "kind": "desired", "time": 0.0, "body": {"assignments": [assignment]}})
    packed = packed.replace(b"\x86\xa4task", b"\x87\xaaparameters\x81\xa1p" + nested(depth) + b"\xa4task")
    if fits:
        envelope = decode(header() + packed)
        assert isinstance(envelope.event, Desired)
        assert decode(encode(envelope)) == envelope
    else:
        with pytest.raises(MalformedEvent, match="deep"):
            decode(header() + packed)


def test_the_number_of_maps_and_lists_is_limited():
    rows = [[[] for _ in range(4000)] for _ in range(MAX_CONTAINERS // 4000 + 1)]
    with pytest.raises(MalformedEvent, match="maps and lists"):
        decode(with_body({}, extra=rows))


@pytest.mark.parametrize(
    "body",
    [{"info": {str(number): "" for number in range(3000)}}, {"workers": [None] * 5000}, {"info": {"a": "x" * 70_000}}],
)
def test_long_maps_lists_and_texts_are_refused(body):
    with pytest.raises(MalformedEvent, match="within the limits"):
        decode(with_body(body, kind="observed"))


def test_ten_thousand_wrong_elements_are_one_refusal():
    with pytest.raises(MalformedEvent, match="observed: workers"):
        decode(with_body({"workers": [5] * 4000}, kind=Observed.kind))


MEASURE = """
import msgpack, resource, sys
from edgeai.errors import MalformedEvent
from edgeai.events.catalogue import Heartbeat
from edgeai.events.envelope import Envelope, Header, decode, encode

payload = encode(Envelope(Header("edge1"), Heartbeat(1.0)))
decode(payload)
head = payload[: int.from_bytes(payload[4:6], "big")]
full = 4095
rows = [b"\\xdc\\x0f\\xff" + b"\\x81\\xa0\\xc0" * full] * 80
hostile = {
    "eight megabytes": b"\\x91" * (8 << 20),
    "long lists in each other": b"\\xdc\\x10\\x00" * 100_000,
    "small maps": b"\\xdc\\x00\\x50" + b"".join(rows),
    "empty lists": b"\\xdc\\x00\\xf0" + (b"\\xdc\\x0f\\xff" + b"\\x90" * full) * 240,
    "numbers": b"\\xdc\\x00\\x50" + (b"\\xdc\\x0f\\xff" + b"\\xcd\\x7f\\x00" * full) * 80,
    "wrong elements": msgpack.packb({"id": b"", "kind": "observed", "time": 0.0, "body": {"workers": [{}] * 4000}}),
}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, body in hostile.items():
    try:
        decode(head + body)
    except MalformedEvent:
        continue
    sys.exit(f"{name} was not refused")
unit = 1 if sys.platform == "darwin" else 1024
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit)
"""


def test_hostile_payloads_cost_less_than_64_megabytes():
    """In a process of its own: what is measured is its peak."""
    found = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 64 * 1024 * 1024
