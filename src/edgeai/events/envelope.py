"""The envelope around every event: a fixed binary header, then a msgpack map or raw chunk bytes.

    offset  size  field
    0       2     magic  b"eA"
    2       1     version of the header (1); another major version is refused by name
    3       1     flags: 1 the body is a chunk, 2 tombstone, 4 a body digest follows, 8 a signature follows, 16 a token follows
    4       2     length of the whole header: readers skip what they do not know
    6       1     length of the source
    7       1     0
    8       8     incarnation of the source's store
    16      8     sequence (facts) or generation (state documents); 0 otherwise
    24      16    correlation of requests; zeros otherwise
    40      n     source: ASCII, `node` or `node/task/worker`
    ...           what flags announce, in this order: sha256 of the body (32), signature (64), token of a worker's run (32)

So even a fact whose body cannot be decoded is counted, set aside by name and receipted. The map has CloudEvents names: id
(16 bytes, time-ordered), kind, subject, time (seconds since 1970, for people), trace (W3C traceparent of the span that it
belongs to, or empty), body. A chunk's body is the blob's digest (32 bytes), its total size and the offset (8 bytes each), then
the bytes of the blob as they are.

Everything is checked before or while decoding: size, counts, depth, types. So one megabyte from anybody costs some tens of
megabytes for a moment, and what was decoded can be encoded again. Pure: identifiers and times come in as arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, TypeVar

import msgpack
from pydantic import TypeAdapter, ValidationError

from edgeai.errors import MalformedEvent, PayloadTooLarge
from edgeai.events.catalogue import CATALOGUE, Event
from edgeai.events.tokens import TOKEN_BYTES

_HEADER = struct.Struct(">2sBBHBBQQ16s")
_CHUNK = struct.Struct(">32sQQ")
_MAGIC, _VERSION = b"eA", 1
_FLAG_CHUNK, _FLAG_TOMBSTONE = 1, 2
_FLAG_BODY_DIGEST, _FLAG_SIGNATURE, _FLAG_TOKEN = 4, 8, 16
_ROOM = ((_FLAG_BODY_DIGEST, 32), (_FLAG_SIGNATURE, 64))
"""What may stand before the token."""
_NO_CORRELATION = bytes(16)
T = TypeVar("T")

MAX_EVENT_BYTES = 1024 * 1024
"""Largest envelope that is not a chunk."""
MAX_CHUNK_BYTES = 1024 * 1024
MAX_CONTAINERS = 20_000
"""Maps and lists in one event: an empty one is a byte on the wire and 64 in memory."""
MAX_DEPTH = 40
"""Maps and lists inside each other, the map of the envelope included; a manifest has at most 32."""
MAX_COUNTER = 2**63 - 1
"""Largest incarnation, sequence and generation: what databases hold."""
# A list takes its memory when its length is read, before its items are, and msgpack lets 1,024 of them nest.
_LIMITS = {
    "max_str_len": 65_536,
    "max_bin_len": MAX_EVENT_BYTES,
    "max_array_len": 4_096,
    "max_map_len": 2_048,
    "max_ext_len": 0,
}
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Header:
    """The part of an envelope that can be read without decoding the body."""

    source: str
    incarnation: int = 0
    sequence: int = 0
    correlation: bytes = b""
    tombstone: bool = False
    token: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event with where it comes from. `id` is 16 bytes, `time` seconds since 1970."""

    header: Header
    event: Event
    id: bytes = b""
    time: float = 0.0
    subject: str = ""
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a blob: `data` starts at `offset` of `size_bytes`."""

    digest: str
    size_bytes: int
    offset: int
    data: memoryview


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Built on first use: building takes a millisecond, using it microseconds."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def encode(envelope: Envelope) -> bytes:
    """Bytes of an envelope.

    Raises:
        PayloadTooLarge: more than MAX_EVENT_BYTES.
    """
    event = envelope.event
    packed: bytes = msgpack.packb(
        {
            "id": envelope.id,
            "kind": event.kind,
            "subject": envelope.subject,
            "time": envelope.time,
            "trace": envelope.trace,
            "body": _adapter(type(event)).dump_python(event),
        }
    )
    head = _header(envelope.header, 0)
    if len(head) + len(packed) > MAX_EVENT_BYTES:
        raise PayloadTooLarge(len(head) + len(packed), MAX_EVENT_BYTES)
    return head + packed


def decode_header(payload: bytes) -> Header:
    """The header alone. Raises MalformedEvent."""
    return _parse(payload)[0]


def decode(payload: bytes) -> Envelope:
    """The whole envelope; unknown fields of a newer sender are ignored.

    Raises:
        MalformedEvent: not an envelope, too large, an unknown kind, or a body that is not what its kind says.
    """
    header, flags, start = _parse(payload)
    if flags & _FLAG_CHUNK:
        raise MalformedEvent("a chunk where an event was expected")
    if len(payload) - len(header.token) > MAX_EVENT_BYTES:
        raise MalformedEvent(f"{len(payload)} bytes; an event has at most {MAX_EVENT_BYTES}")
    content = _unpack(memoryview(payload)[start:])
    kind = content.get("kind")
    event_type = CATALOGUE.get(kind) if isinstance(kind, str) else None
    if event_type is None:
        raise MalformedEvent(f"unknown kind {str(kind)[:60]!r}")
    try:
        event = _adapter(event_type).validate_python(content.get("body"))
    except ValidationError as error:
        raise MalformedEvent(f"{kind}: {_first(error)}") from error
    text = {name: content.get(name, "") for name in ("subject", "trace")}
    identifier, time = content.get("id", b""), content.get("time", 0.0)
    right_id = isinstance(identifier, bytes) and len(identifier) in {0, _ID_BYTES}
    if not (right_id and isinstance(time, int | float) and all(isinstance(v, str) for v in text.values())):
        raise MalformedEvent(f"{kind}: id, time, subject or trace has the wrong type")
    return Envelope(header, event, identifier, float(time), text["subject"], text["trace"])


def encode_chunk(header: Header, chunk: Chunk) -> bytes:
    """Bytes of a chunk envelope: one copy of the data."""
    return b"".join(
        (
            _header(header, _FLAG_CHUNK),
            _CHUNK.pack(bytes.fromhex(chunk.digest), chunk.size_bytes, chunk.offset),
            chunk.data,
        )
    )


def decode_chunk(payload: bytes) -> tuple[Header, Chunk]:
    """Header and chunk; `data` is a view into `payload`. Raises MalformedEvent."""
    header, flags, start = _parse(payload)
    if not flags & _FLAG_CHUNK or len(payload) < start + _CHUNK.size:
        raise MalformedEvent("not a chunk")
    digest, size_bytes, offset = _CHUNK.unpack_from(payload, start)
    data = memoryview(payload)[start + _CHUNK.size :]
    if not data or len(data) > MAX_CHUNK_BYTES or offset + len(data) > size_bytes:
        raise MalformedEvent("the chunk lies outside its blob, is empty or too large")
    return header, Chunk(digest.hex(), size_bytes, offset, data)


def stamped(payload: bytes, token: bytes) -> bytes:
    """An encoded event or chunk that has no token yet, with one: a copy."""
    _, flags, start = _parse(payload)
    length = start + len(token)
    head = payload[:3] + bytes((flags | _FLAG_TOKEN,)) + length.to_bytes(2, "big") + payload[6:start]
    return b"".join((head, token, memoryview(payload)[start:]))


def body_of(value: Any) -> dict[str, Any]:
    """A dataclass of the catalogue (an event or a value inside one) as plain types, for stores."""
    return dict(_adapter(type(value)).dump_python(value))


def value_of(kind: type[T], document: Any) -> T:
    """The inverse of `body_of`. Raises MalformedEvent."""
    try:
        return _adapter(kind).validate_python(document)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise MalformedEvent(f"{kind.__name__}: {_first(error)}") from error


def field_names(event: type[Event]) -> list[str]:
    """The names of an event's fields, for documentation."""
    return [item.name for item in fields(event)]  # type: ignore[arg-type]


def _header(header: Header, flags: int) -> bytes:
    source = header.source.encode("ascii")
    length = _HEADER.size + len(source)
    flags |= _FLAG_TOMBSTONE if header.tombstone else 0
    correlation = header.correlation or _NO_CORRELATION
    return (
        _HEADER.pack(_MAGIC, _VERSION, flags, length, len(source), 0, header.incarnation, header.sequence, correlation)
        + source
    )


def _unpack(body: memoryview) -> dict[str, Any]:
    count = _counted()
    try:
        content = msgpack.unpackb(
            body, strict_map_key=True, object_hook=count, list_hook=count, ext_hook=_no_extension, **_LIMITS
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedEvent(
            f"the body is not msgpack within the limits: {str(error)[:80] or type(error).__name__}"
        ) from error
    if not isinstance(content, dict):
        raise MalformedEvent("the body is not a map")
    _check_depth(content)
    return content


def _counted() -> Callable[[Any], Any]:
    """A hook for every map and list that is complete."""
    left = MAX_CONTAINERS

    def count(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} maps and lists")
        if isinstance(container, dict) and not all(isinstance(key, str) for key in container):
            raise ValueError("a key that is not text")
        return container

    return count


def _no_extension(code: int, _data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(MAX_DEPTH):
        within = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in within if isinstance(item, dict | list)]
        if not level:
            return
    raise MalformedEvent(f"maps and lists more than {MAX_DEPTH} deep")


def _parse(payload: bytes) -> tuple[Header, int, int]:
    if len(payload) < _HEADER.size:
        raise MalformedEvent("shorter than a header")
    magic, version, flags, length, source_length, _, incarnation, sequence, correlation = _HEADER.unpack_from(payload)
    if magic != _MAGIC:
        raise MalformedEvent("not an edgeai event")
    if version != _VERSION:
        raise MalformedEvent(f"envelope version {version} is unknown here; this program speaks {_VERSION}")
    if length < _HEADER.size + source_length or length > len(payload):
        raise MalformedEvent("the header is longer than the payload")
    if max(incarnation, sequence) > MAX_COUNTER:
        raise MalformedEvent("an incarnation or sequence beyond what a store can hold")
    source = bytes(payload[_HEADER.size : _HEADER.size + source_length])
    if not source.isascii():
        raise MalformedEvent("the source is not ASCII")
    known = b"" if correlation == _NO_CORRELATION else correlation
    token = _token(payload, flags, _HEADER.size + source_length, length) if flags & _FLAG_TOKEN else b""
    return (
        Header(source.decode(), incarnation, sequence, known, bool(flags & _FLAG_TOMBSTONE), token),
        flags,
        length,
    )


def _token(payload: bytes, flags: int, offset: int, end: int) -> bytes:
    offset += sum(size for flag, size in _ROOM if flags & flag)
    if offset + TOKEN_BYTES > end:
        raise MalformedEvent("the header has no room for the token that it announces")
    return bytes(payload[offset : offset + TOKEN_BYTES])


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])[:120]}: {first['msg'][:120]}"
    return type(error).__name__
