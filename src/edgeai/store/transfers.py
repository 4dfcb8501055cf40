"""Both ends of a transfer: a receiver that pulls blobs into files, and a sender that answers with chunks of its files.

`Receiver` performs what `lifecycle/transfer.py` decides: it keeps `<digest>.part` and `<digest>.bitmap` (which chunks
are in it) in its folder, so that a transfer goes on where it stopped, hashes what is there without a gap while the rest
still travels, and moves the file to its place when the digest is right. A bitmap is a claim, not a proof: after a power
cut it may name chunks that never reached the disk; the digest finds that out, and the transfer starts over.

Neither end knows addresses, events or who is entitled to what: the owner's bus loop hands every decoded chunk to
`arrived`, publishes the request in `ask`, and looks up the file before it calls `answer`.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from edgeai.bus.base import Bus
from edgeai.errors import BusUnavailable, DamagedFile, EdgeaiError, MalformedEvent, NotFound, Refused, StoreError
from edgeai.events.address import Address
from edgeai.events.chunks import BLOB_LIMIT_BYTES, Bitmap, Range, chunks_of
from edgeai.events.envelope import Chunk, Header, encode_chunk
from edgeai.lifecycle import transfer
from edgeai.lifecycle.base import Command
from edgeai.store.files import copy_whole, is_digest

log = structlog.get_logger()

Ranges = tuple[tuple[int, int], ...]
"""Offsets and lengths in bytes."""
Ask = Callable[[Ranges], Awaitable[None]]

ANSWER_BYTES: Final = 16 * 1024 * 1024
"""At most this much of one request is answered: a receiver has no more credit to give."""
_ANSWER_PIECES = 64
_ANSWERS_AT_ONCE = 4
_ANSWERS_WAITING = 256
_HASH_AHEAD_BYTES = 4 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_SAVE_BYTES = 16 * 1024 * 1024
_SAVE_S = 2.0
_ASKS_AT_ONCE = 4
_TICKS_PER_RETRY = 4
_PART, _BITMAP, _FRESH_BITMAP = _SUFFIXES = (".part", ".bitmap", ".bitmap-new")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """One call of `fetch`. `since_bytes`: what the download had received when it began to wait."""

    ask: Ask
    target: Path
    since_bytes: int


@dataclass(slots=True, eq=False)
class _Download:
    """The files of one download and those who wait for it. `done` is where it is in the end: as `served` asked."""

    digest: str
    size_bytes: int
    part: Path
    bitmap: Path
    done: asyncio.Future[Path]
    began_s: float
    saved_s: float
    waiters: list[_Waiter] = field(default_factory=list)
    served: _Waiter | None = None
    received_bytes: int = 0
    unsaved_bytes: int = 0
    saving: bool = False
    placed: bool = False
    asks: set[asyncio.Task[None]] = field(default_factory=set)
    hashing: asyncio.Task[None] | None = None
    hashed_bytes: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)


class Receiver:
    """Pulls blobs by digest. One per folder and process; `folder` and targets are best on one filesystem."""

    def __init__(
        self,
        folder: Path,
        *,
        credit_bytes: int = 16 * 1024 * 1024,
        open_limit: int = 4,
        retry_s: float = 2.0,
        retry_limit_s: float = 15.0,
    ) -> None:
        self._folder = folder
        self._tick_s = retry_s / _TICKS_PER_RETRY
        self._state = transfer.Transfers(transfer.Limits(credit_bytes, open_limit, retry_s, retry_limit_s))
        self._downloads: dict[str, _Download] = {}
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None

    @property
    def counts(self) -> transfer.Counts:
        """Bytes received; chunks that came twice, that nobody wants, or that do not fit their blob."""
        return self._state.counts

    @property
    def outstanding_bytes(self) -> int:
        return transfer.outstanding_bytes(self._state)

    async def fetch(self, digest: str, size_bytes: int, ask: Ask, target: Path) -> int:
        """Have the blob in `target`, checked and durable; return the payload bytes received for it meanwhile.

        Calls for one digest share one download; the bytes are counted for one of them. `ask` is called with the ranges
        that are wanted, again and again until they arrive: this call has no deadline of its own. Cancelled, it leaves
        what has arrived in the folder for the next time.

        Raises:
            NotFound: the source does not have it (`absent` was called).
            DamagedFile: what was sent does not have this digest, twice in a row.
            StoreError: this side cannot keep it (no space, no folder).
            Refused: not a digest, or another size than a download of the same digest that is under way.
        """
        if not is_digest(digest) or not 0 <= size_bytes <= BLOB_LIMIT_BYTES:
            raise Refused(f"{digest[:80]!r} with {size_bytes} bytes is not a blob")
        while True:
            download = self._download(digest, size_bytes)
            waiter = _Waiter(ask, target, download.received_bytes)
            download.waiters.append(waiter)
            if len(download.waiters) == 1:
                self._apply(transfer.Wanted(digest, size_bytes))
            try:
                placed = await asyncio.shield(download.done)
            finally:
                self._leave(download, waiter)
            if placed == target or await _copied(placed, target, digest):
                return download.received_bytes - waiter.since_bytes if download.served is waiter else 0

    def arrived(self, chunk: Chunk) -> None:
        """Take a chunk from the bus: written at once if a download lacks it, else counted."""
        event = transfer.Arrived(chunk.digest, chunk.size_bytes, chunk.offset, len(chunk.data))
        self._state, commands = transfer.step(self._state, event)
        if not commands:
            return
        download = self._downloads[chunk.digest]
        try:
            _write_at(download.part, chunk.offset, chunk.data)
        except OSError as error:
            self._perform(commands)  # they may concern other downloads
            self._apply(transfer.Broken(chunk.digest, _explained(download.part, error)))
            return
        download.received_bytes += len(chunk.data)
        download.unsaved_bytes += len(chunk.data)
        self._perform(commands)
        self._hash_ahead(download)

    def absent(self, digest: str, reason: str) -> None:
        """The source says that it does not have the blob."""
        self._apply(transfer.SourceAbsent(digest, reason))

    def nudge(self) -> None:
        """Ask for everything that is missing now: what was asked for before a reconnect is taken as lost."""
        self._apply(transfer.Reconnected())

    def sweep(self, keep: Collection[str] = ()) -> int:
        """Remove what broken-off transfers left, except digests in `keep`; return how many files went. Blocks."""
        left = [path for suffix in _SUFFIXES for path in self._folder.glob(f"*{suffix}")]
        removed = [path for path in left if path.stem not in keep and path.stem not in self._downloads]
        for path in removed:
            path.unlink(missing_ok=True)
        return len(removed)

    # --- downloads and those who wait for them

    def _download(self, digest: str, size_bytes: int) -> _Download:
        download = self._downloads.get(digest)
        if download is None:
            loop = asyncio.get_running_loop()
            part, bitmap = self._folder / (digest + _PART), self._folder / (digest + _BITMAP)
            download = _Download(digest, size_bytes, part, bitmap, loop.create_future(), loop.time(), loop.time())
            self._downloads[digest] = download
            if self._ticker is None:
                self._ticker = self._start(self._tick())
        elif download.size_bytes != size_bytes:
            raise Refused(f"blob {digest[:12]} is under way with {download.size_bytes} bytes, not {size_bytes}")
        return download

    def _leave(self, download: _Download, waiter: _Waiter) -> None:
        download.waiters.remove(waiter)
        if download.waiters or download.done.done():
            return
        self._save(download, self._held(download))
        self._forget(download)
        download.done.cancel()
        self._apply(transfer.Cancelled(download.digest))

    def _forget(self, download: _Download) -> None:
        if self._downloads.get(download.digest) is download:
            del self._downloads[download.digest]
        for task in download.asks:
            task.cancel()
        if not self._downloads and self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def _fail(self, download: _Download, error: BaseException) -> None:
        if not download.done.done():
            self._save(download, self._held(download))
            self._forget(download)
            download.done.set_exception(error)
            self._apply(transfer.Cancelled(download.digest))

    def _current(self, download: _Download) -> bool:
        return self._downloads.get(download.digest) is download

    def _held(self, download: _Download) -> Bitmap:
        """The chunks that are in the partial file, as far as it is known here."""
        known = self._state.downloads.get(download.digest) if self._current(download) else None
        return known.held if known is not None and known.held is not None else Bitmap(download.size_bytes)

    # --- what the machine decides

    def _apply(self, event: transfer.TransferEvent) -> None:
        self._state, commands = transfer.step(self._state, event)
        self._perform(commands)

    def _perform(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            match command:
                case transfer.Open(digest=digest):
                    self._start(self._open(self._downloads[digest]), self._downloads[digest])
                case transfer.Ask(digest=digest, ranges=ranges):
                    self._ask(self._downloads[digest], ranges)
                case transfer.Verify(digest=digest):
                    self._start(self._verify(self._downloads[digest]), self._downloads[digest])
                case transfer.Finished(digest=digest):
                    self._finish(self._downloads[digest])
                case transfer.Failed(digest=digest, failure=failure, reason=reason):
                    download = self._downloads[digest]
                    self._fail(download, _failure(download, failure, reason))

    def _start(self, work: Coroutine[Any, Any, None], download: _Download | None = None) -> asyncio.Task[None]:
        """Run `work`; an error that it does not expect ends the download rather than being lost."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled() or (error := task.exception()) is None:
                return
            for affected in (download,) if download is not None else tuple(self._downloads.values()):
                self._fail(affected, error)

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task

    async def _open(self, download: _Download) -> None:
        digest = download.digest
        try:
            # One at a time: a download that was cancelled meanwhile must not empty the file of its successor.
            async with self._opening:
                if not self._current(download):
                    return
                held = await asyncio.to_thread(_prepare, download.part, download.bitmap, download.size_bytes)
        except OSError as error:
            if self._current(download):
                self._apply(transfer.Broken(digest, _explained(download.part, error)))
            return
        if self._current(download):
            download.hashed_bytes, download.sha256 = 0, hashlib.sha256()
            self._apply(transfer.Opened(digest, held))
            self._hash_ahead(download)

    def _ask(self, download: _Download, ranges: Ranges) -> None:
        if len(download.asks) >= _ASKS_AT_ONCE:
            return  # the bus is stuck: the timer will ask again
        task = self._start(self._ask_one(download, ranges), download)
        download.asks.add(task)
        task.add_done_callback(download.asks.discard)

    async def _ask_one(self, download: _Download, ranges: Ranges) -> None:
        if download.waiters:
            with suppress(BusUnavailable):
                await download.waiters[0].ask(ranges)

    async def _verify(self, download: _Download) -> None:
        """Look at the digest, then put the file in its place. Names change on the loop, so no cancel comes between."""
        digest = download.digest
        try:
            if download.hashing is not None:
                await asyncio.wait([download.hashing])
            await asyncio.to_thread(_hash_up_to, download, download.size_bytes)
            found = download.sha256.hexdigest()
            if not self._current(download):
                return
            if found != digest:
                download.bitmap.unlink(missing_ok=True)
                download.part.unlink(missing_ok=True)
                log.warning("transfer_damaged", digest=digest[:12], found=found[:12], size_bytes=download.size_bytes)
                self._apply(transfer.Damaged(digest, f"its digest is {found[:12]}, not {digest[:12]}"))
                return
            await asyncio.to_thread(_make_durable, download.part)
            if self._current(download):
                await self._place(download)
        except (OSError, EdgeaiError) as error:
            if self._current(download):
                self._apply(transfer.Broken(digest, _explained(download.part, error)))

    async def _place(self, download: _Download) -> None:
        download.served = download.waiters[0]
        target = download.served.target
        try:
            download.part.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            await asyncio.to_thread(copy_whole, download.part, target)
            if not self._current(download):
                return
            download.part.unlink(missing_ok=True)
        download.placed = True
        download.bitmap.unlink(missing_ok=True)
        await asyncio.to_thread(_make_durable, target.parent)
        if self._current(download):
            download.part = target
            self._apply(transfer.Verified(download.digest))

    def _finish(self, download: _Download) -> None:
        self._forget(download)
        download.done.set_result(download.part)
        log.info(
            "transfer_finished",
            digest=download.digest[:12],
            size_bytes=download.size_bytes,
            received_bytes=download.received_bytes,
            duration_s=round(asyncio.get_running_loop().time() - download.began_s, 3),
        )

    # --- meanwhile

    def _hash_ahead(self, download: _Download) -> None:
        """Hash what is there without a gap, in a thread and from the page cache: chunks are not kept for it."""
        if download.hashing is None and self._ahead(download) >= _HASH_AHEAD_BYTES:
            download.hashing = self._start(self._hash(download), download)

    async def _hash(self, download: _Download) -> None:
        try:
            while (ahead := self._ahead(download)) >= _HASH_AHEAD_BYTES:
                await asyncio.to_thread(_hash_up_to, download, download.hashed_bytes + ahead)
        except OSError as error:
            if self._current(download):
                self._apply(transfer.Broken(download.digest, _explained(download.part, error)))
        finally:
            download.hashing = None

    def _ahead(self, download: _Download) -> int:
        return transfer.prefix_bytes(self._held(download)) - download.hashed_bytes

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        last_s = loop.time()
        while True:
            await asyncio.sleep(self._tick_s)
            now_s = loop.time()
            self._apply(transfer.Ticked(now_s - last_s))
            last_s = now_s
            for download in tuple(self._downloads.values()):
                if _save_due(download, now_s):
                    download.saving, download.saved_s, download.unsaved_bytes = True, now_s, 0
                    self._start(self._save_durably(download), download)

    async def _save_durably(self, download: _Download) -> None:
        """First the chunks, then the claim that they are there."""
        held = self._held(download)
        try:
            await asyncio.to_thread(_make_durable, download.part)
            if held | self._held(download) == self._held(download):  # it has not started over
                self._save(download, held)
        except OSError as error:
            log.warning("transfer_bitmap_not_saved", digest=download.digest[:12], error=str(error))
        finally:
            download.saving = False

    def _save(self, download: _Download, held: Bitmap) -> None:
        if held.mask and not download.placed:
            with suppress(OSError):
                _write_bitmap(download.bitmap, held)


def _save_due(download: _Download, now_s: float) -> bool:
    if download.saving or download.placed or not download.unsaved_bytes:
        return False
    return download.unsaved_bytes >= _SAVE_BYTES or now_s - download.saved_s >= _SAVE_S


def _failure(download: _Download, failure: transfer.Failure, reason: str) -> EdgeaiError:
    match failure:
        case transfer.Failure.ABSENT:
            return NotFound("blob", download.digest, reason)
        case transfer.Failure.DAMAGED:
            return DamagedFile(download.part, reason)
        case transfer.Failure.BROKEN:
            return StoreError(reason)


async def _copied(placed: Path, target: Path, digest: str) -> bool:
    """A second place for a blob that has just been put elsewhere; False if it is no longer there."""
    with suppress(NotFound):
        return await asyncio.to_thread(copy_whole, placed, target) == digest
    return False


# --- partial files; these functions block


def _prepare(part: Path, bitmap: Path, size_bytes: int) -> Bitmap:
    """Make the partial file as large as the blob, with its space reserved; return which chunks are in it."""
    part.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if part.stat().st_size == size_bytes:
            return _read_bitmap(bitmap, size_bytes)
    bitmap.unlink(missing_ok=True)
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _reserve(handle, size_bytes)
    except OSError:
        os.close(handle)
        part.unlink(missing_ok=True)
        raise
    os.close(handle)
    return Bitmap(size_bytes)


def _reserve(handle: int, size_bytes: int) -> None:
    os.truncate(handle, size_bytes)
    if size_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size_bytes)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:  # not every filesystem can
                raise


def _write_at(part: Path, offset: int, data: memoryview) -> None:
    """Opened for each chunk, so that a download that waits or was cancelled holds no descriptor."""
    handle = os.open(part, os.O_WRONLY | os.O_CLOEXEC)
    try:
        while data:
            written = os.pwrite(handle, data, offset)
            data, offset = data[written:], offset + written
    finally:
        os.close(handle)


def _hash_up_to(download: _Download, end: int) -> None:
    """Go on hashing the partial file up to byte `end`."""
    buffer = memoryview(bytearray(min(_READ_BYTES, max(end - download.hashed_bytes, 0))))
    with download.part.open("rb", buffering=0) as source:
        source.seek(download.hashed_bytes)
        while (left := end - download.hashed_bytes) > 0:
            count = source.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise OSError(errno.EIO, "the file has become shorter")
            download.sha256.update(buffer[:count])
            download.hashed_bytes += count


def _make_durable(path: Path) -> None:
    """A file's content, or a folder's names."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_bitmap(bitmap: Path, held: Bitmap) -> None:
    """Whole or not at all under `kill -9`. Not made durable: what a power cut leaves is judged by the digest."""
    fresh = bitmap.with_suffix(_FRESH_BITMAP)
    fresh.write_bytes(held.to_bytes())
    fresh.replace(bitmap)


def _read_bitmap(bitmap: Path, size_bytes: int) -> Bitmap:
    """Anything that is not a bitmap of this blob counts as nothing held."""
    try:
        return Bitmap.from_bytes(size_bytes, bitmap.read_bytes())
    except (FileNotFoundError, MalformedEvent):
        return Bitmap(size_bytes)


def _explained(path: Path, error: Exception) -> str:
    return f"{path} cannot be written: {error.strerror or error}" if isinstance(error, OSError) else str(error)


# --- the sending end

_Piece = tuple[Address, str, Range]


class Sender:
    """Answers requests for ranges of files with chunks. `source` names this end in their headers."""

    def __init__(self, bus: Bus, source: str) -> None:
        self._bus = bus
        self._header = Header(source)
        self._places = asyncio.Semaphore(_ANSWERS_AT_ONCE)
        self._answers = 0
        self._under_way: set[_Piece] = set()
        self.sent_bytes = 0
        self.dropped = 0
        """Requests that were not answered because too many wait already; their receivers ask again."""

    async def answer(self, asked_digest: str, ranges: Ranges, path: Path, size_bytes: int, to: Address) -> None:
        """Send the ranges of the blob in `path`, clipped to its end and to ANSWER_BYTES, chunk by chunk.

        What is already on its way to this address, or about to be, is not sent twice. Without a broker it ends quietly:
        the receiver asks again.

        Raises:
            Refused: a range that is empty, negative or beyond the blob.
            NotFound: there is no file.
            DamagedFile: the file does not have this size.
        """
        wanted = ((to, asked_digest, piece) for piece in _pieces(ranges, size_bytes))
        pieces = dict.fromkeys(piece for piece in wanted if piece not in self._under_way)
        if not pieces:
            return
        if self._answers >= _ANSWERS_AT_ONCE + _ANSWERS_WAITING:
            self.dropped += 1
            return
        self._answers += 1
        self._under_way.update(pieces)
        try:
            async with self._places:
                await self._send(tuple(pieces), path, size_bytes)
        except BusUnavailable:
            log.debug("transfer_answer_broken_off", digest=asked_digest[:12])
        finally:
            self._under_way.difference_update(pieces)
            self._answers -= 1

    async def _send(self, pieces: tuple[_Piece, ...], path: Path, size_bytes: int) -> None:
        for piece in pieces:
            to, digest, part = piece
            data = await asyncio.to_thread(_read_at, path, part, size_bytes)
            payload = encode_chunk(self._header, Chunk(digest, size_bytes, part.offset, memoryview(data)))
            await self._bus.publish(to, payload)
            self._under_way.discard(piece)
            self.sent_bytes += part.length


def _pieces(ranges: Ranges, size_bytes: int) -> Iterator[Range]:
    """The chunks that answer `ranges`, in their order, up to the limits of one answer. Raises Refused."""
    left, pieces = ANSWER_BYTES, _ANSWER_PIECES
    for offset, length in ranges:
        if not 0 <= offset < size_bytes or length < 1:
            raise Refused(f"{length} bytes at {offset} are not a range of a blob of {size_bytes} bytes")
        for piece in chunks_of(Range(offset, min(length, size_bytes - offset))):
            if piece.length > left or not pieces:
                return
            yield piece
            left, pieces = left - piece.length, pieces - 1


def _read_at(path: Path, part: Range, size_bytes: int) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound("file", str(path)) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        if os.fstat(handle).st_size != size_bytes:
            raise DamagedFile(path, f"it does not have {size_bytes} bytes")
        data = os.pread(handle, part.length, part.offset)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    finally:
        os.close(handle)
    if len(data) != part.length:
        raise DamagedFile(path, f"it has no {part.length} bytes at {part.offset}")
    return data
