"""The receiving end of transfers: which ranges of which blobs are asked for, and when again.

One `Transfers` is all downloads of one receiver. They share a credit: bytes that were asked for and have not arrived
never exceed it, so what can be under way to this receiver is bounded. A few downloads are open at once, the others wait
in line.

    WAITING -> OPENING -> PULLING -> VERIFYING -> finished (removed)
       ^                     |           `-> once more from nothing, then failed (removed)
       `---------------------'  silent while others wait: it gives up its place and goes to the end of the line

Chunks may come late, twice, in any order, from anyone. A chunk is taken when its download still lacks it, asked for or
not; everything else is counted and answered by no command. A silent source is asked again, with growing patience, for
as long as the download is wanted: whoever wants it cancels.

The machine knows no files, clocks or buses; `store/transfers.py` performs its commands and says how much time has
passed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from edgeai.errors import MalformedEvent
from edgeai.events.chunks import CHUNK_BYTES, Bitmap, chunk_count
from edgeai.lifecycle.base import Command, Step

_SLOW_LINK = 4.0
"""Where chunks do arrive, but rarely, patience may grow to this many times its ordinary limit."""
_BATCHES = 4
"""A download asks for more when this part of its share of the credit is free, not after every chunk."""


class Phase(StrEnum):
    WAITING = "Waiting"
    OPENING = "Opening"
    PULLING = "Pulling"
    VERIFYING = "Verifying"


class Failure(StrEnum):
    ABSENT = "absent"
    DAMAGED = "damaged"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Limits:
    """`credit_bytes` outstanding over all downloads, `open_limit` of them open; first and last patience in seconds."""

    credit_bytes: int = 16 * 1024 * 1024
    open_limit: int = 4
    retry_s: float = 2.0
    retry_limit_s: float = 15.0

    def __post_init__(self) -> None:
        if self.credit_bytes < CHUNK_BYTES or self.open_limit < 1:
            raise ValueError(f"a receiver needs credit for one chunk ({CHUNK_BYTES} bytes) and one open download")


@dataclass(frozen=True, slots=True)
class Counts:
    """What arrived. `misshapen`: of a wanted blob, but not one of its chunks."""

    received_bytes: int = 0
    duplicates: int = 0
    foreign: int = 0
    misshapen: int = 0


@dataclass(frozen=True, slots=True)
class Download:
    """One blob: the chunks that it has (`held` None: not known yet) and those that it asked for and still waits for.

    `window_bytes` is how much it may have outstanding, `silent_s` how long nothing has arrived, `unanswered_s` how long
    since it last asked or something arrived, `patience_s` when it will ask again.
    """

    digest: str
    size_bytes: int
    window_bytes: int
    patience_s: float
    asked: Bitmap
    held: Bitmap | None = None
    phase: Phase = Phase.WAITING
    silent_s: float = 0.0
    unanswered_s: float = 0.0
    starts: int = 1


@dataclass(frozen=True, slots=True)
class Transfers:
    """All downloads of one receiver, those that are served first in front. `line`: digests that wait for a place."""

    limits: Limits = field(default_factory=Limits)
    downloads: dict[str, Download] = field(default_factory=dict)
    line: tuple[str, ...] = ()
    counts: Counts = field(default_factory=Counts)


# --- events


@dataclass(frozen=True, slots=True)
class Wanted:
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody waits for it any more."""

    digest: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The partial file is there, with these chunks in it."""

    digest: str
    held: Bitmap


@dataclass(frozen=True, slots=True)
class Arrived:
    """A chunk as it came from the bus, whoever sent it. `size_bytes` is that of the blob it claims to be of."""

    digest: str
    size_bytes: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed since the last tick."""

    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Reconnected:
    """What was asked for is taken as lost."""


@dataclass(frozen=True, slots=True)
class SourceAbsent:
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    digest: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """All chunks are there, and together they are not the blob; the partial file holds nothing any more."""

    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Broken:
    """This side cannot go on: disk full, file gone."""

    digest: str
    reason: str


TransferEvent = (
    Wanted | Cancelled | Opened | Arrived | Ticked | Reconnected | SourceAbsent | Verified | Damaged | Broken
)


# --- commands


@dataclass(frozen=True, slots=True)
class Open(Command):
    """Prepare the partial file; answers Opened or Broken."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Ask(Command):
    """Ask the source for ranges (offset, length); a lost request is asked again by itself."""

    digest: str
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Write(Command):
    """Keep the chunk at hand. Comes before everything that follows from it."""

    digest: str
    offset: int


@dataclass(frozen=True, slots=True)
class Verify(Command):
    """Compare with the digest; answers Verified, Damaged or Broken."""

    digest: str


@dataclass(frozen=True, slots=True)
class Finished(Command):
    digest: str


@dataclass(frozen=True, slots=True)
class Failed(Command):
    digest: str
    failure: Failure
    reason: str


# --- the machine


def step(state: Transfers, event: TransferEvent) -> Step[Transfers]:
    """Advance all downloads. Never raises on late, repeated or foreign events."""
    match event:
        case Arrived():
            state, commands = _arrived(state, event)
            if not commands:
                return state, ()
        case Ticked(elapsed_s=elapsed_s):
            state, commands = _ticked(state, elapsed_s), ()
        case Reconnected():
            state, commands = _reconnected(state), ()
        case Wanted(digest=digest, size_bytes=size_bytes):
            state, commands = _wanted(state, digest, size_bytes), ()
        case Cancelled() | Opened() | SourceAbsent() | Verified() | Damaged() | Broken():
            download = state.downloads.get(event.digest)
            if download is None:
                return state, ()
            state, commands = _about(state, download, event)
    state, opens = _admit(state)
    state, asks = _ask(state)
    return state, commands + opens + asks


def outstanding_bytes(state: Transfers) -> int:
    """Asked for and not arrived, over all downloads."""
    return sum(download.asked.held_bytes for download in state.downloads.values())


def prefix_bytes(held: Bitmap) -> int:
    """Length of the part of a blob that is there from its beginning without a gap."""
    gap = held.missing(CHUNK_BYTES)
    return gap[0].offset if gap else held.size_bytes


def _about(
    state: Transfers, download: Download, event: Cancelled | Opened | SourceAbsent | Verified | Damaged | Broken
) -> Step[Transfers]:
    digest = download.digest
    match event:
        case Opened(held=held) if download.phase is Phase.OPENING:
            return _complete_or(state, replace(download, phase=Phase.PULLING, held=held))
        case Verified() if download.phase is Phase.VERIFYING:
            return _without(state, digest), (Finished(digest),)
        case Damaged() if download.phase is Phase.VERIFYING and download.starts == 1:
            anew = replace(download, phase=Phase.WAITING, held=None, starts=2)
            return replace(_with(state, anew), line=(digest, *state.line)), ()
        case Damaged(reason=reason) if download.phase is Phase.VERIFYING:
            return _without(state, digest), (Failed(digest, Failure.DAMAGED, reason),)
        case SourceAbsent(reason=reason) if download.phase is not Phase.VERIFYING:
            return _without(state, digest), (Failed(digest, Failure.ABSENT, reason),)
        case Broken(reason=reason):
            return _without(state, digest), (Failed(digest, Failure.BROKEN, reason),)
        case Cancelled():
            return _without(state, digest), ()
        case _:
            return state, ()


def _wanted(state: Transfers, digest: str, size_bytes: int) -> Transfers:
    if digest in state.downloads:
        return state
    download = Download(digest, size_bytes, state.limits.credit_bytes, state.limits.retry_s, Bitmap(size_bytes))
    return replace(_with(state, download), line=(*state.line, digest))


def _arrived(state: Transfers, event: Arrived) -> Step[Transfers]:
    counts, download = state.counts, state.downloads.get(event.digest)
    if download is None or download.held is None:
        return replace(state, counts=replace(counts, foreign=counts.foreign + 1)), ()
    try:
        held = _with_chunk(download.held, event)
    except MalformedEvent:
        return replace(state, counts=replace(counts, misshapen=counts.misshapen + 1)), ()
    if held == download.held:
        alive = replace(download, unanswered_s=0.0)
        return replace(_with(state, alive), counts=replace(counts, duplicates=counts.duplicates + 1)), ()
    counts = replace(counts, received_bytes=counts.received_bytes + event.length)
    state, commands = _complete_or(replace(state, counts=counts), _grown(state.limits, download, held, event.length))
    return state, (Write(event.digest, event.offset), *commands)


def _with_chunk(held: Bitmap, event: Arrived) -> Bitmap:
    """Raises MalformedEvent if what arrived is not a chunk of this blob."""
    if event.size_bytes != held.size_bytes:
        raise MalformedEvent(f"a chunk of a blob of {event.size_bytes} bytes where {held.size_bytes} are expected")
    return held.with_chunk(event.offset, event.length)


def _grown(limits: Limits, download: Download, held: Bitmap, length: int) -> Download:
    """A chunk has come: the window opens, and patience follows how long it took."""
    return replace(
        download,
        held=held,
        asked=Bitmap(download.size_bytes, download.asked.mask & ~held.mask),
        window_bytes=min(download.window_bytes + length, limits.credit_bytes),
        patience_s=min(max(limits.retry_s, 2 * download.silent_s), limits.retry_limit_s * _SLOW_LINK),
        silent_s=0.0,
        unanswered_s=0.0,
    )


def _complete_or(state: Transfers, download: Download) -> Step[Transfers]:
    """Go on to verification when nothing is missing."""
    if download.held is None or not download.held.complete:
        return _with(state, download), ()
    line = tuple(digest for digest in state.line if digest != download.digest)
    verifying = replace(_unasked(download), phase=Phase.VERIFYING)
    return replace(_with(state, verifying), line=line), (Verify(download.digest),)


def _ticked(state: Transfers, elapsed_s: float) -> Transfers:
    for download in tuple(state.downloads.values()):
        if not download.asked.mask:
            continue
        waited = replace(
            download, silent_s=download.silent_s + elapsed_s, unanswered_s=download.unanswered_s + elapsed_s
        )
        patient = waited.unanswered_s < waited.patience_s
        state = _with(state, waited) if patient else _given_up(state, waited)
    return state


def _given_up(state: Transfers, download: Download) -> Transfers:
    """What was asked for is taken as lost. Others come first now: its place in the order is the last."""
    limits = state.limits
    lost = replace(
        _unasked(download),
        patience_s=max(download.patience_s, min(2 * download.patience_s, limits.retry_limit_s)),
        window_bytes=max(download.window_bytes // 2, CHUNK_BYTES),
        phase=Phase.WAITING if state.line else download.phase,
    )
    line = (*state.line, download.digest) if state.line else ()
    return replace(_with(_dropped(state, download.digest), lost), line=line)


def _unasked(download: Download) -> Download:
    return replace(download, asked=Bitmap(download.size_bytes), unanswered_s=0.0)


def _reconnected(state: Transfers) -> Transfers:
    limits = state.limits
    for download in state.downloads.values():
        fresh = replace(
            _unasked(download),
            silent_s=0.0,
            patience_s=limits.retry_s,
            window_bytes=limits.credit_bytes,
        )
        state = _with(state, fresh)
    return state


def _admit(state: Transfers) -> Step[Transfers]:
    """Give free places to those in line."""
    commands: list[Command] = []
    free = state.limits.open_limit - len(_opened(state))
    for digest in state.line[: max(free, 0)]:
        download = state.downloads[digest]
        if download.held is None:
            commands.append(Open(digest, download.size_bytes))
        phase = Phase.PULLING if download.held is not None else Phase.OPENING
        state = replace(_with(state, replace(download, phase=phase)), line=state.line[1:])
    return state, tuple(commands)


def _ask(state: Transfers) -> Step[Transfers]:
    """Spend what is free of the credit, each download up to its share."""
    opened = _opened(state)
    if not opened:
        return state, ()
    share = max(state.limits.credit_bytes // len(opened), CHUNK_BYTES)
    free = state.limits.credit_bytes - sum(download.asked.held_bytes for download in opened)
    commands: list[Command] = []
    for download in opened:
        room = _room(download, share, free)
        if download.held is None or not room:
            continue
        before = download.held | download.asked
        ranges = tuple((part.offset, part.length) for part in before.missing(room))
        if ranges:
            free -= sum(length for _, length in ranges)
            asked = Bitmap(download.size_bytes, download.asked.mask | _mask(ranges))
            state = _with(state, replace(download, asked=asked))
            commands.append(Ask(download.digest, ranges))
    return state, tuple(commands)


def _room(download: Download, share: int, free: int) -> int:
    """How many bytes to ask for now; none as long as it would be few of many."""
    outstanding = download.asked.held_bytes
    limit = min(download.window_bytes, share)
    room = min(limit - outstanding, free)
    return room if room >= CHUNK_BYTES and (not outstanding or room * _BATCHES >= limit) else 0


def _mask(ranges: tuple[tuple[int, int], ...]) -> int:
    """The chunks of ranges, as bits."""
    mask = 0
    for offset, length in ranges:
        mask |= ((1 << chunk_count(length)) - 1) << (offset // CHUNK_BYTES)
    return mask


def _opened(state: Transfers) -> list[Download]:
    """Those that have a place. No other download has anything outstanding."""
    return [item for item in state.downloads.values() if item.phase is Phase.PULLING or item.phase is Phase.OPENING]


def _with(state: Transfers, download: Download) -> Transfers:
    return replace(state, downloads={**state.downloads, download.digest: download})


def _dropped(state: Transfers, digest: str) -> Transfers:
    return replace(state, downloads={key: item for key, item in state.downloads.items() if key != digest})


def _without(state: Transfers, digest: str) -> Transfers:
    return replace(_dropped(state, digest), line=tuple(item for item in state.line if item != digest))
