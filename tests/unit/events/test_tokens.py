"""The token of a run: it travels in the header of events and chunks, and is worth nothing under another name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeai.errors import MalformedEvent
from edgeai.events.catalogue import Heartbeat
from edgeai.events.envelope import Chunk, Envelope, Header, decode, decode_chunk, encode, encode_chunk, stamped
from edgeai.events.tokens import TOKEN_BYTES, is_token, token_digest

TOKEN = bytes(range(TOKEN_BYTES))
HEADER = Header("edge1/digits-0a1b2c3d/work0", 5, 6, b"c" * 16, tombstone=True)
UID = "0a1b2c3d" * 4


def test_a_stamped_event_is_the_same_event_with_a_token():
    envelope = Envelope(HEADER, Heartbeat(1.5), bytes(16))
    assert decode(stamped(encode(envelope), TOKEN)) == replace(envelope, header=replace(HEADER, token=TOKEN))


def test_a_stamped_chunk_is_the_same_chunk_with_a_token():
    chunk = Chunk("ab" * 32, 100, 10, memoryview(b"data"))
    header, found = decode_chunk(stamped(encode_chunk(HEADER, chunk), TOKEN))
    assert (header.token, bytes(found.data), found.offset) == (TOKEN, b"data", 10)


def test_a_token_that_is_announced_and_not_there_is_malformed():
    payload = bytearray(encode(Envelope(HEADER, Heartbeat(1.5))))
    payload[3] |= 16
    with pytest.raises(MalformedEvent, match="no room for the token"):
        decode(bytes(payload))


def test_a_token_stands_behind_a_body_digest_and_a_signature():
    payload = encode(Envelope(HEADER, Heartbeat(1.5)))
    start = int.from_bytes(payload[4:6], "big")
    length = start + 96
    head = payload[:3] + bytes((payload[3] | 12,)) + length.to_bytes(2, "big") + payload[6:start]
    assert decode(stamped(head + bytes(96) + payload[start:], TOKEN)).header.token == TOKEN


def test_a_token_is_not_shown_with_its_header():
    assert "token" not in repr(replace(HEADER, token=TOKEN))


@pytest.mark.parametrize(
    ("uid", "worker", "token"),
    [("f" * 32, "work0", TOKEN), (UID, "work1", TOKEN), (UID, "work0", bytes(TOKEN_BYTES)), (UID, "work0", b"")],
    ids=["another-task", "another-worker", "another-token", "none"],
)
def test_only_the_token_itself_speaks_for_its_worker(uid, worker, token):
    digest = token_digest(UID, "work0", TOKEN)
    assert is_token(digest, UID, "work0", TOKEN)
    assert not is_token(digest, uid, worker, token)


def test_without_a_known_digest_nobody_speaks_for_a_worker():
    assert not is_token("", UID, "work0", TOKEN)
