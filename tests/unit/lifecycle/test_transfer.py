"""The receiver of blobs asks for what is missing, within its credit, until it has everything or is told to stop."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeai.events.chunks import CHUNK_BYTES, Bitmap
from edgeai.lifecycle.base import Command
from edgeai.lifecycle.transfer import (
    Arrived,
    Ask,
    Broken,
    Cancelled,
    Damaged,
    Failed,
    Failure,
    Finished,
    Limits,
    Open,
    Opened,
    Phase,
    Reconnected,
    SourceAbsent,
    Ticked,
    TransferEvent,
    Transfers,
    Verified,
    Verify,
    Wanted,
    Write,
    outstanding_bytes,
    prefix_bytes,
    step,
)

A, B, C = "a" * 64, "b" * 64, "c" * 64
MANY = 200 * CHUNK_BYTES


def after(*events: TransferEvent, limits: Limits | None = None) -> tuple[Transfers, tuple[Command, ...]]:
    """The state after `events`, and the commands of the last one."""
    state, commands = Transfers(limits or Limits()), ()
    for event in events:
        state, commands = step(state, event)
    return state, commands


def chunk(digest: str, size_bytes: int, number: int) -> Arrived:
    offset = number * CHUNK_BYTES
    return Arrived(digest, size_bytes, offset, min(CHUNK_BYTES, size_bytes - offset))


def chunks_in(command: Ask) -> list[int]:
    return [
        number
        for offset, length in command.ranges
        for number in range(offset // CHUNK_BYTES, -(-(offset + length) // CHUNK_BYTES))
    ]


def test_a_wanted_blob_is_opened_before_it_is_asked_for():
    assert after(Wanted(A, 10))[1] == (Open(A, 10),)


def test_a_small_blob_is_asked_for_in_one_range():
    size = 2 * CHUNK_BYTES + 7
    assert after(Wanted(A, size), Opened(A, Bitmap(size)))[1] == (Ask(A, ((0, size),)),)


def test_only_what_is_missing_is_asked_for():
    _, commands = after(Wanted(A, 5 * CHUNK_BYTES), Opened(A, Bitmap(5 * CHUNK_BYTES, 0b01010)))
    assert commands == (Ask(A, ((0, CHUNK_BYTES), (2 * CHUNK_BYTES, CHUNK_BYTES), (4 * CHUNK_BYTES, CHUNK_BYTES))),)


def test_a_large_blob_is_asked_for_up_to_the_credit():
    state, commands = after(Wanted(A, MANY), Opened(A, Bitmap(MANY)), limits=Limits(credit_bytes=4 * CHUNK_BYTES))
    assert commands == (Ask(A, ((0, 4 * CHUNK_BYTES),)),)
    assert outstanding_bytes(state) == 4 * CHUNK_BYTES


def test_an_arriving_chunk_is_written_and_makes_room_for_the_next():
    _, commands = after(
        Wanted(A, MANY), Opened(A, Bitmap(MANY)), chunk(A, MANY, 0), limits=Limits(credit_bytes=4 * CHUNK_BYTES)
    )
    assert commands == (Write(A, 0), Ask(A, ((4 * CHUNK_BYTES, CHUNK_BYTES),)))


def test_open_downloads_share_the_credit():
    state, _ = after(Wanted(A, MANY), Wanted(B, MANY), Opened(B, Bitmap(MANY)), Opened(A, Bitmap(MANY)))
    assert state.downloads[A].asked.mask.bit_count() == state.downloads[B].asked.mask.bit_count() == 16


def test_the_last_chunk_leads_to_verification():
    size = CHUNK_BYTES + 1
    _, commands = after(Wanted(A, size), Opened(A, Bitmap(size)), chunk(A, size, 1), chunk(A, size, 0))
    assert commands == (Write(A, 0), Verify(A))


@pytest.mark.parametrize(("size", "held"), [(0, 0), (2 * CHUNK_BYTES, 0b11)], ids=["empty", "all held"])
def test_a_blob_with_nothing_missing_is_verified_at_once(size, held):
    assert after(Wanted(A, size), Opened(A, Bitmap(size, held)))[1] == (Verify(A),)


def test_a_verified_blob_is_finished_and_forgotten():
    state, commands = after(Wanted(A, 5), Opened(A, Bitmap(5)), chunk(A, 5, 0), Verified(A))
    assert commands == (Finished(A),)
    assert not state.downloads


def test_a_fifth_download_waits_for_a_place():
    digests = [letter * 64 for letter in "01234"]
    state, commands = after(*(Wanted(digest, MANY) for digest in digests))
    assert commands == ()
    assert step(state, Cancelled(digests[1]))[1] == (Open(digests[4], MANY),)


@pytest.mark.parametrize(
    ("event", "count"),
    [
        (Arrived(C, 10, 0, 10), "foreign"),
        (Arrived(A, MANY, CHUNK_BYTES, CHUNK_BYTES), "duplicates"),
        (Arrived(A, MANY + 1, 0, CHUNK_BYTES), "misshapen"),
        (Arrived(A, MANY, 1, CHUNK_BYTES), "misshapen"),
        (Arrived(A, MANY, 0, CHUNK_BYTES - 1), "misshapen"),
        (Arrived(A, MANY, -CHUNK_BYTES, CHUNK_BYTES), "misshapen"),
        (Arrived(A, MANY, MANY, CHUNK_BYTES), "misshapen"),
        (Arrived(A, MANY, 0, 0), "misshapen"),
    ],
    ids=["foreign", "duplicate", "other size", "misaligned", "short", "before", "behind", "empty"],
)
def test_a_chunk_that_does_not_fit_is_counted_and_ignored(event, count):
    before, _ = after(Wanted(A, MANY), Opened(A, Bitmap(MANY, 0b10)))
    state, commands = step(before, event)
    assert commands == ()
    assert getattr(state.counts, count) == 1
    assert state.downloads[A].held == Bitmap(MANY, 0b10)


def test_a_chunk_that_was_not_asked_for_is_taken_if_it_is_missing():
    _, commands = after(
        Wanted(A, MANY), Opened(A, Bitmap(MANY)), chunk(A, MANY, 150), limits=Limits(credit_bytes=4 * CHUNK_BYTES)
    )
    assert commands == (Write(A, 150 * CHUNK_BYTES),)


def test_silence_leads_to_the_same_request_again_with_growing_patience():
    state, _ = after(Wanted(A, 10), Opened(A, Bitmap(10)))
    asked_after, elapsed = [], 0.0
    while len(asked_after) < 5:
        state, commands = step(state, Ticked(0.5))
        elapsed += 0.5
        if commands == (Ask(A, ((0, 10),)),):
            asked_after.append(elapsed)
    assert asked_after == [2, 6, 14, 29, 44]


def test_on_a_slow_link_patience_follows_what_was_seen():
    size = 3 * CHUNK_BYTES
    _, commands = after(
        Wanted(A, size), Opened(A, Bitmap(size)), Ticked(1.9), Ticked(18), chunk(A, size, 0), Ticked(30)
    )
    assert commands == ()


def test_patience_returns_when_chunks_come_quickly():
    size = 3 * CHUNK_BYTES
    _, commands = after(
        Wanted(A, size), Opened(A, Bitmap(size)), Ticked(20), chunk(A, size, 0), chunk(A, size, 1), Ticked(2)
    )
    assert commands == (Ask(A, ((2 * CHUNK_BYTES, CHUNK_BYTES),)),)


def test_a_silent_download_gives_its_place_to_those_in_line():
    limits = Limits(open_limit=1)
    state, commands = after(Wanted(A, 10), Opened(A, Bitmap(10)), Wanted(B, 10), Ticked(2), limits=limits)
    assert commands == (Open(B, 10),)
    assert state.line == (A,)


def test_a_download_without_a_place_still_takes_what_arrives():
    limits = Limits(open_limit=1)
    state, commands = after(
        Wanted(A, 10), Opened(A, Bitmap(10)), Wanted(B, 10), Ticked(2), chunk(A, 10, 0), limits=limits
    )
    assert commands == (Write(A, 0), Verify(A))
    assert state.line == ()


def test_a_silent_download_gets_its_place_back():
    limits = Limits(open_limit=1)
    _, commands = after(
        Wanted(A, 10), Opened(A, Bitmap(10)), Wanted(B, 10), Ticked(2), Opened(B, Bitmap(10)), Ticked(2), limits=limits
    )
    assert commands == (Ask(A, ((0, 10),)),)


def test_a_reconnect_asks_for_everything_that_is_missing():
    size = 3 * CHUNK_BYTES
    _, commands = after(Wanted(A, size), Opened(A, Bitmap(size)), chunk(A, size, 1), Reconnected())
    assert commands == (Ask(A, ((0, CHUNK_BYTES), (2 * CHUNK_BYTES, CHUNK_BYTES))),)


def test_an_absent_source_ends_the_download_with_its_reason():
    state, commands = after(Wanted(A, 10), Opened(A, Bitmap(10)), SourceAbsent(A, "the round is closed"))
    assert commands == (Failed(A, Failure.ABSENT, "the round is closed"),)
    assert not state.downloads


def test_an_absence_that_comes_after_the_last_chunk_changes_nothing():
    state, commands = after(Wanted(A, 10), Opened(A, Bitmap(10)), chunk(A, 10, 0), SourceAbsent(A, "too late"))
    assert commands == ()
    assert state.downloads[A].phase is Phase.VERIFYING


def test_a_damaged_blob_is_pulled_once_more_from_nothing():
    state, commands = after(Wanted(A, 10), Opened(A, Bitmap(10)), chunk(A, 10, 0), Damaged(A, "its digest is other"))
    assert commands == (Open(A, 10),)
    assert step(state, Opened(A, Bitmap(10)))[1] == (Ask(A, ((0, 10),)),)


def test_a_blob_that_is_damaged_twice_fails():
    once = (Opened(A, Bitmap(10)), chunk(A, 10, 0), Damaged(A, "its digest is other"))
    _, commands = after(Wanted(A, 10), *once, *once)
    assert commands == (Failed(A, Failure.DAMAGED, "its digest is other"),)


def test_what_breaks_here_ends_only_its_own_download():
    state, commands = after(Wanted(A, 10), Wanted(B, 10), Broken(A, "disk full"))
    assert commands == (Failed(A, Failure.BROKEN, "disk full"),)
    assert list(state.downloads) == [B]


def test_a_cancelled_download_returns_its_credit():
    state, _ = after(Wanted(A, MANY), Opened(A, Bitmap(MANY)), Cancelled(A))
    assert outstanding_bytes(state) == 0


def test_events_about_unknown_downloads_change_nothing():
    for event in (Cancelled(C), Opened(C, Bitmap(1)), SourceAbsent(C, ""), Verified(C), Damaged(C, ""), Broken(C, "")):
        assert step(Transfers(), event) == (Transfers(), ())


def test_a_receiver_without_credit_for_a_chunk_is_refused():
    with pytest.raises(ValueError, match="credit for one chunk"):
        Limits(credit_bytes=CHUNK_BYTES - 1)


@pytest.mark.parametrize(
    ("held", "expected"), [(0, 0), (0b1, CHUNK_BYTES), (0b101, CHUNK_BYTES), (0b111, 2 * CHUNK_BYTES + 1)]
)
def test_the_prefix_ends_at_the_first_gap(held, expected):
    assert prefix_bytes(Bitmap(2 * CHUNK_BYTES + 1, held)) == expected


# --- laws


@dataclass
class Network:
    """Plays sources, a lossy network and the shell. Every command is performed; chunks wait in `flying`."""

    limits: Limits
    state: Transfers = field(init=False)
    sizes: dict[str, int] = field(default_factory=dict)
    flying: list[Arrived] = field(default_factory=list)
    written: dict[str, set[int]] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    tell: list[TransferEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = Transfers(self.limits)

    def apply(self, event: TransferEvent) -> None:
        self.state, commands = step(self.state, event)
        assert outstanding_bytes(self.state) <= self.limits.credit_bytes
        opened = [item for item in self.state.downloads.values() if item.phase in (Phase.OPENING, Phase.PULLING)]
        assert len(opened) <= self.limits.open_limit
        for command in commands:
            self.perform(command)

    def perform(self, command: Command) -> None:
        match command:
            case Open(digest=digest):
                self.written[digest] = set()
                self.tell.append(Opened(digest, Bitmap(self.sizes[digest])))
            case Ask(digest=digest):
                size = self.sizes[digest]
                self.flying += [chunk(digest, size, number) for number in chunks_in(command)]
            case Write(digest=digest, offset=offset):
                assert offset not in self.written[digest]
                self.written[digest].add(offset)
            case Verify(digest=digest):
                assert len(self.written[digest]) == -(-self.sizes[digest] // CHUNK_BYTES)
                self.tell.append(Verified(digest))
            case Finished(digest=digest):
                self.finished.append(digest)

    def settle(self) -> None:
        while self.tell:
            self.apply(self.tell.pop(0))

    def drain(self) -> None:
        """From now on nothing is lost."""
        for _ in range(1000):
            self.settle()
            while self.flying:
                self.apply(self.flying.pop(0))
                self.settle()
            if not self.state.downloads:
                return
            self.apply(Ticked(self.limits.retry_limit_s * 4))
        raise AssertionError(f"never complete: {self.state}")


actions = st.lists(
    st.tuples(
        st.sampled_from(["deliver", "deliver", "deliver", "lose", "double", "tick", "reconnect", "settle"]),
        st.integers(0, 10_000),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12 * CHUNK_BYTES), min_size=1, max_size=7),
    credit=st.integers(1, 10),
    places=st.integers(1, 4),
    history=actions,
)
def test_any_loss_order_and_doubling_ends_complete_within_the_credit(sizes, credit, places, history):
    network = Network(Limits(credit * CHUNK_BYTES + 13, places))
    network.sizes = {f"{number:064x}": size for number, size in enumerate(sizes)}
    for digest, size in network.sizes.items():
        network.apply(Wanted(digest, size))
    for action, draw in history:
        match action:
            case "settle":
                network.settle()
            case "tick":
                network.apply(Ticked(draw / 1000))
            case "reconnect":
                network.apply(Reconnected())
            case _ if network.flying:
                arrived = network.flying[draw % len(network.flying)]
                if action != "double":
                    network.flying.remove(arrived)
                if action != "lose":
                    network.apply(arrived)
    network.drain()
    assert sorted(network.finished) == sorted(network.sizes)
    assert outstanding_bytes(network.state) == 0
    assert network.state.counts.received_bytes == sum(sizes)


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(8)), length=st.integers(1, CHUNK_BYTES))
def test_the_order_of_chunks_does_not_matter(order, length):
    size = 7 * CHUNK_BYTES + length
    state, _ = after(Wanted(A, size), Opened(A, Bitmap(size)))
    for number in order:
        state, commands = step(state, chunk(A, size, number))
    assert commands[-1] == Verify(A)


@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(st.integers(0, 9), max_size=20))
def test_a_chunk_given_twice_changes_no_download(numbers):
    size = 10 * CHUNK_BYTES
    once = twice = after(Wanted(A, size), Opened(A, Bitmap(size)))[0]
    for number in numbers:
        once, _ = step(once, chunk(A, size, number))
        twice, _ = step(step(twice, chunk(A, size, number))[0], chunk(A, size, number))
    assert once.downloads == twice.downloads
