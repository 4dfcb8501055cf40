"""The stores on JetStream: resources in a key-value bucket, blobs in an object store, facts in a stream.

The second door to nats-py; the connection itself belongs to `bus.nats` and is only borrowed. Buckets are laid out as
every NATS client lays them out, so the `nats` command can look into them. What nats-py offers on top is used where it
holds: its watchers, ordered consumers and object readers wait for ever, or miss what happened, when a server restarts,
and it signals a missing bucket like a missing key. `_Reader` takes their place: one consumer, read by pull requests
with heartbeats, that ends with BusUnavailable as soon as anything may have been missed. Whoever wants to survive that
opens a new one and compares with what it has seen.

No error of nats-py leaves this module. After BusUnavailable a write may or may not have happened: read again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError

from edgeai.bus.cancelling import cancellation_kept
from edgeai.errors import AddressError, BusUnavailable, Conflict, DamagedFile, NotFound, PayloadTooLarge, StoreError
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.store.base import Change, Document, Stored
from edgeai.store.files import DigestedFile, WholeFile, is_digest
from edgeai.store.history import BATCH_RECORDS, FACTS, FactRecord
from edgeai.store.layout import checked_kind, checked_kinds, key_of, pack, parse_key, unpack

RESOURCES_BUCKET, BLOBS_BUCKET, FACTS_STREAM = "edgeai-resources", "edgeai-blobs", "edgeai-facts"
MIB = 1024 * 1024
CHUNK_BYTES = 512 * 1024

_TIMEOUT_S = 5.0
_RETRY_S = 0.5
_HEARTBEAT_S = 5.0
_SILENCE_S = 2.5 * _HEARTBEAT_S
_PULL_EXPIRES_S = 30.0
_PULL_BYTES = 16 * MIB  # what one pull request may bring at most: bounds the memory of a reader; above any payload
_CHUNKS_IN_FLIGHT = 8
_SMALLEST_BYTES = 32 * MIB  # a store below this is of no use
_MARKER_TTL_S = 24 * 3600  # of what is left of a deleted document

# Error codes of the JetStream API (nats-server, server/errors.json).
_NO_MESSAGE, _STREAM_NAME_IN_USE = 10037, 10058
_WRONG_LAST_SEQUENCE = (10071, 10164)
_FULL = (10023, 10047, 10077)

log = structlog.get_logger()
_T = TypeVar("_T")


class Connected(Protocol):
    """What the stores need of `bus.nats.NatsBus`."""

    @property
    def url(self) -> str: ...
    @property
    def connected(self) -> bool: ...
    @property
    def connection(self) -> Client: ...
    def on_connect(self, callback: Callable[[], Awaitable[None]]) -> None: ...


class _Link:
    """The borrowed connection: a JetStream context, errors in our words, and news of every reconnect to the readers."""

    def __init__(self, bus: Connected) -> None:
        self._bus = bus
        self._context: tuple[Client, JetStreamContext] | None = None
        self._listeners: set[asyncio.Queue[Msg | None]] = set()
        bus.on_connect(self._connected)

    @property
    def url(self) -> str:
        return self._bus.url

    def client(self) -> Client:
        """Raises BusUnavailable at once while there is no connection: nats-py would queue and wait."""
        if not self._bus.connected:
            raise BusUnavailable(self.url, "not connected")
        return self._bus.connection

    def jetstream(self) -> JetStreamContext:
        connection = self.client()
        if self._context is None or self._context[0] is not connection:
            self._context = (connection, connection.jetstream(timeout=_TIMEOUT_S))
        return self._context[1]

    async def subscribe(self, inbox: asyncio.Queue[Msg | None]) -> tuple[str, Callable[[], Awaitable[None]]]:
        """Fill `inbox` with all that arrives at a new subject, with None at a reconnect. Returns subject and end."""

        async def arrived(message: Msg) -> None:
            inbox.put_nowait(message)

        connection = self.client()
        with self.translated():
            subject = connection.new_inbox()
            subscription = await connection.subscribe(subject, cb=arrived)
        self._listeners.add(inbox)

        async def end() -> None:
            self._listeners.discard(inbox)
            await subscription.unsubscribe()

        return subject, end

    async def ensure(self, config: api.StreamConfig, timeout_s: float) -> None:
        """Create the stream or bring it up to date. A server answers before its JetStream does: retried for a while."""
        cause = BusUnavailable(self.url, "no answer in time")
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._create(config)
                    except BusUnavailable as error:
                        cause = error
                        await asyncio.sleep(_RETRY_S / 5)
        except TimeoutError:
            raise cause from None

    async def retried(self, opened: Callable[[], Awaitable[_T]]) -> _T:
        """What `opened` returns as soon as the store can be reached."""
        while True:
            try:
                return await opened()
            except BusUnavailable:
                await asyncio.sleep(_RETRY_S)

    @contextmanager
    def translated(self, size_bytes: int = 0) -> Iterator[None]:
        """Turn what nats-py raises into our errors. `size_bytes`: of what is being published."""
        with cancellation_kept():
            try:
                yield
            except nats.errors.MaxPayloadError as error:
                raise PayloadTooLarge(size_bytes, self._bus.connection.max_payload) from error
            except APIError as error:
                if error.err_code in _FULL:
                    raise StoreError(f"the store at {self.url} is full: {error.description}") from error
                if error.code is None or error.code in (404, 500, 503):
                    raise BusUnavailable(self.url, error.description or "JetStream does not answer") from error
                raise StoreError(f"the store at {self.url} refuses: {error.description}") from error
            except (nats.errors.Error, TimeoutError, OSError) as error:
                raise BusUnavailable(self.url, str(error) or type(error).__name__) from error

    async def _create(self, config: api.StreamConfig) -> None:
        """JetStream reserves `max_bytes`: where the disk is small, the store is made smaller instead of not at all."""
        jetstream = self.jetstream()
        with self.translated():
            try:
                known = (await jetstream.stream_info(str(config.name))).config
            except NotFoundError:
                return await self._add(jetstream, config)
            try:
                await jetstream.update_stream(config)
            except APIError as error:
                if error.err_code not in _FULL:
                    raise
                await jetstream.update_stream(config.evolve(max_bytes=known.max_bytes))

    async def _add(self, jetstream: JetStreamContext, config: api.StreamConfig) -> None:
        wanted = size = config.max_bytes or 0
        while True:
            try:
                await jetstream.add_stream(config.evolve(max_bytes=size))
                break
            except APIError as error:
                if error.err_code == _STREAM_NAME_IN_USE:  # somebody was faster
                    return
                if error.err_code not in _FULL or size < 2 * _SMALLEST_BYTES:
                    raise
                size //= 2
        if size < wanted:
            # What fits may be all there is: half of it is left for the stores that are made after this one.
            size = max(size // 2, _SMALLEST_BYTES)
            await jetstream.update_stream(config.evolve(max_bytes=size))
            log.warning("store_limited", stream=config.name, max_bytes=size, reason="disk space of the server")

    async def _connected(self) -> None:
        for inbox in self._listeners:
            inbox.put_nowait(None)


class _Reader:
    """One consumer of a stream, read by pull requests. Ends with BusUnavailable when something may have been missed.

    A pull request is always open, so that a bucket's changes reach a busy reader before they are overwritten; what
    waits here is bounded by `size` messages and _PULL_BYTES. An ephemeral consumer counts its messages from 1, so a gap
    shows; a durable one may be shared.
    """

    def __init__(self, link: _Link, info: api.ConsumerInfo, size: int) -> None:
        self._link, self._info, self._size = link, info, size
        self._missing = 0  # what the open pull request has still to bring
        self._inbox: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._subject = ""
        self._end: Callable[[], Awaitable[None]] | None = None
        self._ephemeral = info.config.durable_name is None
        self._sequence = 0

    @staticmethod
    async def open(link: _Link, stream: str, config: api.ConsumerConfig, size: int) -> _Reader:
        jetstream = link.jetstream()
        with link.translated():
            reader = _Reader(link, await jetstream.add_consumer(stream, config), size)
        reader._subject, reader._end = await link.subscribe(reader._inbox)
        await reader._pull()
        return reader

    async def batches(self) -> AsyncIterator[list[Msg]]:
        """What arrives, in order; an empty list once, as soon as everything that was stored has been delivered."""
        caught_up = self._info.num_pending == 0
        if caught_up:
            yield []
        while True:
            messages, idle, ended = self._sorted(await self._arrivals())
            self._missing = 0 if ended else self._missing - len(messages)
            if self._missing <= 0:
                await self._pull()
            if messages:
                yield messages
            # The count of pending messages is the server's estimate; that it is idle is certain.
            if not caught_up and (idle or (messages and messages[-1].metadata.num_pending == 0)):
                caught_up = True
                yield []

    async def close(self) -> None:
        """Give everything back. What cannot be reached any more goes by itself: ephemeral consumers end unused."""
        with suppress(BusUnavailable, StoreError), self._link.translated():
            async with asyncio.timeout(1):
                if self._end is not None:
                    await self._end()
                if self._ephemeral:
                    await self._link.jetstream().delete_consumer(self._info.stream_name, self._info.name)

    async def _pull(self) -> None:
        self._missing = self._size
        request = {
            "batch": self._size,
            "max_bytes": _PULL_BYTES,
            "expires": int(_PULL_EXPIRES_S * 1e9),
            "idle_heartbeat": int(_HEARTBEAT_S * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._info.stream_name}.{self._info.name}"
        client = self._link.client()
        with self._link.translated():
            await client.publish(subject, json.dumps(request).encode(), reply=self._subject)

    async def _arrivals(self) -> list[Msg]:
        """At least one message, and what else is there already."""
        arrived: list[Msg] = []
        try:
            async with asyncio.timeout(_SILENCE_S):
                item = await self._inbox.get()
        except TimeoutError as error:
            raise BusUnavailable(self._link.url, "the consumer is silent") from error
        while True:
            if item is None:
                raise BusUnavailable(self._link.url, "the connection was lost meanwhile")
            arrived.append(item)
            if self._inbox.empty():
                return arrived
            item = self._inbox.get_nowait()

    def _sorted(self, arrived: Sequence[Msg]) -> tuple[list[Msg], bool, bool]:
        """The messages of the stream among them; whether the server is idle; whether the pull request has ended."""
        messages, idle, ended = [], False, False
        for message in arrived:
            if message.subject != self._subject:  # only the server itself writes to the inbox
                self._check_sequence(message)
                messages.append(message)
                continue
            headers = message.headers or {}
            match headers.get("Status"), headers.get("Description", "").lower():
                case "100", _:
                    idle = True
                case "404" | "408", _:
                    idle = ended = True
                case "409", what if "maxbytes" in what or "batch completed" in what:
                    ended = True
                case status, what:
                    raise BusUnavailable(self._link.url, f"the consumer is gone: {status} {what}")
        return messages, idle, ended

    def _check_sequence(self, message: Msg) -> None:
        self._sequence += 1
        if self._ephemeral and message.metadata.sequence.consumer != self._sequence:
            raise BusUnavailable(self._link.url, "a message got lost")


def _ephemeral(*subjects: str, after_sequence: int | None = None) -> api.ConsumerConfig:
    """A consumer of the last message of every subject and what follows, or of everything after a sequence."""
    last = after_sequence is None
    return api.ConsumerConfig(
        deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT if last else api.DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=None if after_sequence is None else after_sequence + 1,
        ack_policy=api.AckPolicy.NONE,
        filter_subjects=list(subjects),
        inactive_threshold=60,
        mem_storage=True,
        num_replicas=1,
    )


class NatsResourceStore:
    """Documents in a JetStream key-value bucket with one value per key."""

    def __init__(self, bus: Connected, bucket: str = RESOURCES_BUCKET, *, max_bytes: int = 256 * MIB) -> None:
        self._link = _Link(bus)
        self._stream, self._prefix = f"KV_{bucket}", f"$KV.{bucket}."
        self._max_bytes = max_bytes

    async def ensure(self, timeout_s: float = 10) -> None:
        """Create the bucket if it is not there. Raises BusUnavailable if that does not succeed in time."""
        config = api.StreamConfig(
            name=self._stream,
            subjects=[f"{self._prefix}>"],
            storage=api.StorageType.FILE,
            max_bytes=self._max_bytes,
            max_msgs_per_subject=1,
            discard=api.DiscardPolicy.NEW,
            allow_rollup_hdrs=True,
            allow_msg_ttl=True,
            deny_delete=True,
            # Direct reads are answered by any replica: one that lags would break read-after-write.
            allow_direct=False,
        )
        await self._link.ensure(config, timeout_s)

    async def get(self, kind: str, name: str) -> Stored:
        key = key_of(kind, name)
        last = await self._last(key)
        if last is None or _is_gone(last.headers):
            raise NotFound(kind, name)
        return Stored(kind, name, unpack(key, last.data or b""), last.seq or 0)

    async def list(self, kind: str) -> list[Stored]:
        found: dict[str, Stored] = {}
        reader = await self._open(checked_kind(kind))
        try:
            async for batch in reader.batches():
                if not batch:
                    break
                # A key that is written while the list is read comes twice: the later one counts.
                for change in filter(None, map(self._change, batch)):
                    if change.document is None:
                        found.pop(change.name, None)
                    else:
                        found[change.name] = Stored(kind, change.name, change.document, change.revision)
        finally:
            await reader.close()
        return [found[name] for name in sorted(found)]

    async def create(self, kind: str, name: str, document: Document) -> Stored:
        key = key_of(kind, name)
        data = pack(document)
        try:
            return await self._write(key, data, 0)
        except Conflict:
            # What is left of a deleted document counts as its last version.
            last = await self._last(key)
        if last is not None and not _is_gone(last.headers):
            raise Conflict(kind, name, "exists already")
        return await self._write(key, data, (last and last.seq) or 0)

    async def replace(self, stored: Stored, document: Document) -> Stored:
        return await self._write(key_of(stored.kind, stored.name), pack(document), stored.revision)

    async def delete(self, stored: Stored) -> None:
        headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", "Nats-TTL": str(_MARKER_TTL_S)}
        await self._publish(key_of(stored.kind, stored.name), b"", stored.revision, headers)

    @asynccontextmanager
    async def watch(self, *kinds: str) -> AsyncIterator[AsyncIterator[Change | None]]:
        watch = _Watch(self, checked_kinds(kinds))
        await watch.open()
        try:
            yield watch.changes()
        finally:
            await watch.close()

    async def _open(self, *kinds: str) -> _Reader:
        config = _ephemeral(*(f"{self._prefix}{kind}.>" for kind in kinds))
        return await _Reader.open(self._link, self._stream, config, BATCH_RECORDS)

    async def _last(self, key: str) -> api.RawStreamMsg | None:
        """The last message of a key, be it a document or the mark of its deletion."""
        jetstream = self._link.jetstream()
        with self._link.translated():
            try:
                return await jetstream.get_last_msg(self._stream, self._prefix + key)
            except NotFoundError as error:
                if error.err_code != _NO_MESSAGE:  # the bucket itself is missing
                    raise
        return None

    async def _write(self, key: str, data: bytes, last_revision: int) -> Stored:
        revision = await self._publish(key, data, last_revision, {})
        return Stored(*parse_key(key), unpack(key, data), revision)

    async def _publish(self, key: str, data: bytes, last_revision: int, headers: Mapping[str, str]) -> int:
        expected = {"Nats-Expected-Last-Subject-Sequence": str(last_revision)}
        jetstream = self._link.jetstream()
        with self._link.translated(len(data)):
            try:
                written = await jetstream.publish(self._prefix + key, data, headers={**headers, **expected})
            except APIError as error:
                if error.err_code in _WRONG_LAST_SEQUENCE:
                    raise Conflict(*parse_key(key)) from error
                raise
        return written.seq

    def _change(self, message: Msg) -> Change | None:
        """None for a damaged document, which must not hide the others, and is not gone either."""
        key = message.subject.removeprefix(self._prefix)
        try:
            document = None if _is_gone(message.headers) else unpack(key, message.data)
        except StoreError as error:
            log.error("document_skipped", key=key, size_bytes=len(message.data), reason=str(error))
            return None
        return Change(*parse_key(key), document, message.metadata.sequence.stream)


class _Watch:
    """Changes of some kinds across any number of readers: each new one starts with what is there, and only news pass.

    `_known` holds the revision of every document that the watcher has been told of and not been told is gone.
    """

    def __init__(self, store: NatsResourceStore, kinds: tuple[str, ...]) -> None:
        self._store, self._kinds = store, kinds
        self._known: dict[tuple[str, str], int] = {}
        self._reader: _Reader | None = None

    async def open(self) -> None:
        self._reader = await self._store._open(*self._kinds)

    async def close(self) -> None:
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    async def changes(self) -> AsyncIterator[Change | None]:
        announced = False
        while self._reader is not None:
            try:
                async for change in self._of_one_reader(self._reader):
                    if change is not None:
                        yield change
                    elif not announced:
                        announced = True
                        yield None
            except BusUnavailable as error:
                log.warning("watch_interrupted", kinds=self._kinds, reason=str(error))
                await self.close()
                await self._store._link.retried(self.open)
                log.info("watch_resumed", kinds=self._kinds)

    async def _of_one_reader(self, reader: _Reader) -> AsyncIterator[Change | None]:
        """What differs from what is known; None when everything that is there has been seen."""
        there: set[tuple[str, str]] | None = set()
        revision = 0
        async for batch in reader.batches():
            for message in batch:
                revision = message.metadata.sequence.stream
                if there is not None:
                    there.add(parse_key(message.subject.removeprefix(self._store._prefix)))
                change = self._store._change(message)
                if change and self._is_news(change):
                    yield change
            if not batch and there is not None:
                # Gone without a mark: its mark has expired meanwhile, or the server has lost its store.
                for kind, name in sorted(self._known.keys() - there):
                    del self._known[kind, name]
                    yield Change(kind, name, None, revision)
                there = None
                yield None

    def _is_news(self, change: Change) -> bool:
        key = (change.kind, change.name)
        if change.document is None:
            return self._known.pop(key, None) is not None
        if self._known.get(key) == change.revision:
            return False
        self._known[key] = change.revision
        return True


@dataclass(frozen=True, slots=True)
class _Blob:
    """What the object store says of a blob. `chunks` is a count, `place` the subject below which they lie."""

    place: str
    size_bytes: int
    chunks: int


class NatsBlobStore:
    """Blobs in a JetStream object store, the digest being the name.

    The chunks lie below the digest, so that `delete` also finds what an interrupted `put` left behind.
    """

    def __init__(self, bus: Connected, bucket: str = BLOBS_BUCKET, *, max_bytes: int = 4096 * MIB) -> None:
        self._link = _Link(bus)
        self._bucket, self._stream = bucket, f"OBJ_{bucket}"
        self._max_bytes = max_bytes

    async def ensure(self, timeout_s: float = 10) -> None:
        """Create the bucket if it is not there. Raises BusUnavailable if that does not succeed in time."""
        config = api.StreamConfig(
            name=self._stream,
            subjects=[f"$O.{self._bucket}.C.>", f"$O.{self._bucket}.M.>"],
            storage=api.StorageType.FILE,
            max_bytes=self._max_bytes,
            discard=api.DiscardPolicy.NEW,
            allow_rollup_hdrs=True,
            allow_direct=False,
        )
        await self._link.ensure(config, timeout_s)

    async def put(self, digest: str, path: Path) -> None:
        if not is_digest(digest):
            raise DamagedFile(path, f"{digest[:80]!r} is not a digest")
        if await self.has(digest):
            return
        jetstream = self._link.jetstream()
        nuid = f"{digest}.{secrets.token_hex(8)}"
        try:
            blob = await self._send(digest, f"$O.{self._bucket}.C.{nuid}", path)
            meta = self._meta(digest, nuid, blob)
            with self._link.translated():
                await jetstream.publish(self._meta_subject(digest), meta, headers={"Nats-Rollup": "sub"})
        except BaseException:
            with suppress(BusUnavailable, StoreError):
                await self._purge(f"$O.{self._bucket}.C.{nuid}")
            raise

    async def get(self, digest: str, path: Path) -> None:
        blob = await self._find(digest)
        if blob is None:
            raise NotFound("blob", digest[:80])
        target = await asyncio.to_thread(WholeFile, path)
        try:
            if blob.chunks:
                await self._receive(blob, target)
            if (target.digest, target.size_bytes) != (digest, blob.size_bytes):
                raise DamagedFile(path, f"the stored blob {digest[:12]} arrived as {target.digest[:12]}")
            await asyncio.to_thread(target.commit)
        finally:
            await asyncio.to_thread(target.discard)

    async def has(self, digest: str) -> bool:
        return await self._find(digest) is not None

    async def delete(self, digest: str) -> None:
        if is_digest(digest):
            # The entry goes first: a blob is never found without its chunks.
            await self._purge(self._meta_subject(digest))
            await self._purge(f"$O.{self._bucket}.C.{digest}.>")

    async def _send(self, digest: str, place: str, path: Path) -> _Blob:
        """Publish the chunks, a few at a time, and check what was read."""
        source = await asyncio.to_thread(DigestedFile, path)
        chunks = 0
        try:
            async with _Window(self._link, place) as window:
                while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
                    await window.publish(chunk)
                    chunks += 1
                await window.settle()
        finally:
            await asyncio.to_thread(source.close)
        if source.digest != digest:
            raise DamagedFile(path, f"its digest is {source.digest[:12]}, not {digest[:12]}")
        return _Blob(place, source.size_bytes, chunks)

    async def _receive(self, blob: _Blob, target: WholeFile) -> None:
        config = _ephemeral(blob.place, after_sequence=0)
        reader = await _Reader.open(self._link, self._stream, config, _CHUNKS_IN_FLIGHT)
        try:
            missing = blob.chunks
            async for batch in reader.batches():
                for message in batch:
                    await asyncio.to_thread(target.write, message.data)
                missing -= len(batch)
                if missing <= 0 or not batch:
                    break
        finally:
            await reader.close()

    async def _find(self, digest: str) -> _Blob | None:
        jetstream = self._link.jetstream()
        with self._link.translated():
            try:
                entry = await jetstream.get_last_msg(self._stream, self._meta_subject(digest))
            except NotFoundError as error:
                if error.err_code != _NO_MESSAGE:  # the bucket itself is missing
                    raise
                return None
        try:
            meta = json.loads(entry.data or b"")
            blob = _Blob(f"$O.{self._bucket}.C.{meta['nuid']}", int(meta["size"]), int(meta["chunks"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"the entry of blob {digest[:12]} is damaged") from error
        return None if meta.get("deleted") else blob

    async def _purge(self, subject: str) -> None:
        jetstream = self._link.jetstream()
        with self._link.translated():
            await jetstream.purge_stream(self._stream, subject=subject)

    def _meta_subject(self, digest: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(digest.encode()).decode()}"

    def _meta(self, digest: str, nuid: str, blob: _Blob) -> bytes:
        meta: dict[str, Any] = {
            "name": digest,
            "bucket": self._bucket,
            "nuid": nuid,
            "size": blob.size_bytes,
            "chunks": blob.chunks,
            "mtime": datetime.now(UTC).isoformat(),
            "digest": "SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(digest)).decode(),
            "options": {"max_chunk_size": CHUNK_BYTES},
        }
        return json.dumps(meta).encode()


class _Window:
    """Publishes to a stream with _CHUNKS_IN_FLIGHT unacknowledged messages at most.

    nats-py's `publish_async` would do, but loses every refusal of the server: the sender waits until it times out.
    """

    def __init__(self, link: _Link, subject: str) -> None:
        self._link, self._subject = link, subject
        self._answers: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._waiting = 0

    async def __aenter__(self) -> _Window:
        self._inbox, self._end = await self._link.subscribe(self._answers)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After a failure what is on its way is waited for, so that it can be removed once it is stored."""
        with suppress(BusUnavailable), self._link.translated():
            async with asyncio.timeout(1):
                while self._waiting:
                    with suppress(StoreError):
                        await self._take_answer()
                await self._end()

    async def publish(self, data: bytes) -> None:
        if self._waiting >= _CHUNKS_IN_FLIGHT:
            await self._take_answer()
        client = self._link.client()
        with self._link.translated(len(data)):
            await client.publish(self._subject, data, reply=self._inbox)
        self._waiting += 1

    async def settle(self) -> None:
        """Return when everything is stored."""
        while self._waiting:
            await self._take_answer()

    async def _take_answer(self) -> None:
        with self._link.translated():
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await self._answers.get()
            self._waiting -= 1
            if answer is None or not answer.data:
                raise BusUnavailable(self._link.url, "the connection or the bucket was lost meanwhile")
            if error := json.loads(answer.data).get("error"):
                raise APIError(**error)


class NatsFactStream:
    """Facts in a JetStream stream that captures them as they are published.

    It drops its oldest facts when it is full, without a word to their sources. That loses none: a source keeps a fact
    in its outbox until the coordinator's receipt, and the coordinator, which consumes at once, compares incarnation and
    sequence with its cursor: after a gap it receipts nothing beyond, and the source sends again.
    """

    def __init__(
        self, bus: Connected, stream: str = FACTS_STREAM, *, max_bytes: int = 256 * MIB, max_age_s: float = 7 * 86400
    ) -> None:
        self._link = _Link(bus)
        self._stream = stream
        self._max_bytes, self._max_age_s = max_bytes, max_age_s
        self.dropped = 0

    async def ensure(self, timeout_s: float = 10) -> None:
        config = api.StreamConfig(
            name=self._stream,
            subjects=[FACTS.subject()],
            storage=api.StorageType.FILE,
            max_bytes=self._max_bytes,
            max_age=self._max_age_s,
            discard=api.DiscardPolicy.OLD,
            allow_direct=False,
            # Facts are receipted by the coordinator. An acknowledgement of the server would go to whatever reply subject
            # an edge writes on its fact, another edge's among them.
            no_ack=True,
        )
        await self._link.ensure(config, timeout_s)

    @asynccontextmanager
    async def consume(self, durable: str) -> AsyncIterator[AsyncIterator[list[FactRecord]]]:
        consumption = _Consumption(self, durable)
        await consumption.open()
        try:
            yield consumption.batches()
        finally:
            await consumption.close()

    async def ack(self, batch: Sequence[FactRecord]) -> None:
        receipts = [record.receipt for record in batch if record.receipt]
        if not receipts:
            return
        client = self._link.client()
        with self._link.translated():
            for receipt in receipts[:-1]:
                await client.publish(receipt, b"+ACK")
            # Order is kept on a connection: when the last one is confirmed, all have arrived.
            try:
                await client.request(receipts[-1], b"+ACK", timeout=_TIMEOUT_S)
            except (nats.errors.TimeoutError, nats.errors.NoRespondersError) as error:
                # A server that was killed may have forgotten what it had delivered, or the whole consumer. It confirms
                # nothing of that, however often it is asked, and delivers it again.
                log.warning("facts_not_acknowledged", stream=self._stream, facts=len(receipts), reason=str(error))

    async def backlog(self, durable: str) -> int:
        jetstream = self._link.jetstream()
        with self._link.translated():
            found = await jetstream.consumer_info(self._stream, durable)
        return (found.num_pending or 0) + (found.num_ack_pending or 0)

    async def used(self) -> tuple[int, int]:
        jetstream = self._link.jetstream()
        with self._link.translated():
            found = await jetstream.account_info()
        return found.storage, max(found.limits.max_storage, 0)

    async def read(
        self, task: str | None = None, after_sequence: int = 0, follow: bool = False
    ) -> AsyncIterator[FactRecord]:
        subject = Pattern(direction=Direction.UP, event_class=EventClass.FACT, task=task).subject()

        async def opened() -> _Reader:
            nonlocal after_sequence
            if after_sequence > await self._last_sequence():
                after_sequence = 0  # the server has lost its store: what is there now began anew
            config = _ephemeral(subject, after_sequence=after_sequence)
            return await _Reader.open(self._link, self._stream, config, BATCH_RECORDS)

        reader = await opened()
        try:
            while True:
                try:
                    async for batch in reader.batches():
                        if not batch and not follow:
                            return
                        for message in batch:
                            after_sequence = message.metadata.sequence.stream
                            if record := self._record(message):
                                yield record
                except BusUnavailable:
                    if not follow:
                        raise
                await reader.close()
                reader = await self._link.retried(opened)
        finally:
            await reader.close()

    async def _last_sequence(self) -> int:
        jetstream = self._link.jetstream()
        with self._link.translated():
            return int((await jetstream.stream_info(self._stream)).state.last_seq)

    def _record(self, message: Msg, receipt: str = "") -> FactRecord | None:
        """None for what should never have been published; the rest goes on."""
        sequence = message.metadata.sequence.stream
        try:
            return FactRecord(sequence, Address.from_subject(message.subject), message.data, receipt)
        except AddressError as error:
            self.dropped += 1
            log.warning("fact_dropped", sequence=sequence, subject=message.subject[:80], reason=str(error))
            return None


class _Consumption:
    """The batches of one durable consumer across any number of readers."""

    def __init__(self, facts: NatsFactStream, durable: str) -> None:
        self._facts, self._durable = facts, durable
        self._reader: _Reader | None = None

    async def open(self) -> None:
        link, stream = self._facts._link, self._facts._stream
        config = api.ConsumerConfig(
            name=self._durable,
            durable_name=self._durable,
            deliver_policy=api.DeliverPolicy.ALL,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=60,
            max_ack_pending=5 * BATCH_RECORDS,
        )
        jetstream = link.jetstream()
        with link.translated():
            await jetstream.add_consumer(stream, config)
            # What was delivered and not acknowledged comes now, in order, instead of after `ack_wait` among the rest.
            await jetstream.reset_consumer(stream, self._durable)
        self._reader = await _Reader.open(link, stream, config, BATCH_RECORDS)

    async def close(self) -> None:
        if self._reader is not None:
            await self._reader.close()
            self._reader = None

    async def batches(self) -> AsyncIterator[list[FactRecord]]:
        while self._reader is not None:
            try:
                async for messages in self._reader.batches():
                    if records := await self._records(messages):
                        yield records
            except BusUnavailable as error:
                log.warning("facts_interrupted", durable=self._durable, reason=str(error))
                await self.close()
                await self._facts._link.retried(self.open)
                log.info("facts_resumed", durable=self._durable)

    async def _records(self, messages: Sequence[Msg]) -> list[FactRecord]:
        records = []
        for message in messages:
            if record := self._facts._record(message, message.reply):
                records.append(record)
            else:
                await self._discard(message)
        return records

    async def _discard(self, message: Msg) -> None:
        client = self._facts._link.client()
        with self._facts._link.translated():
            await client.publish(message.reply, b"+TERM")


def _is_gone(headers: Mapping[str, str] | None) -> bool:
    """Whether a message of a bucket is the mark of a deletion, ours or the server's own."""
    return headers is not None and (headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers)
