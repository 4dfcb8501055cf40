"""The sequence of changes: coalesced, bounded, and honest about what it no longer knows."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.portal.feed import Changed, Feed, Key, TooOld

A, B = Key("Model", "a"), Key("Model", "b")


def everything(_key: Key) -> bool:
    return True


def test_changes_of_one_key_are_one_change() -> None:
    feed = Feed(100)
    for key in (A, B, A, A):
        feed.touch(key)
    assert feed.since(100, everything) == [Changed(102, B, False), Changed(104, A, False)]


def test_what_is_gone_is_told_as_gone() -> None:
    feed = Feed(0)
    feed.touch(A)
    feed.drop(A)
    assert feed.since(1, everything) == [Changed(2, A, True)]


def test_what_comes_back_is_no_longer_gone() -> None:
    feed = Feed(0)
    feed.touch(A)
    feed.drop(A)
    feed.touch(A)
    assert feed.since(0, everything) == [Changed(3, A, False)]


def test_dropping_what_was_never_there_is_no_change() -> None:
    feed = Feed(0)
    feed.drop(A)
    assert feed.sequence == 0


@pytest.mark.parametrize("place", [99, 102])
def test_a_place_before_the_start_or_in_the_future_is_too_old(place: int) -> None:
    feed = Feed(100)
    feed.touch(A)
    with pytest.raises(TooOld):
        feed.since(place, everything)


def test_a_reader_that_missed_more_than_is_remembered_is_told() -> None:
    feed = Feed(0, gone_limit=1)
    for key in (A, B):
        feed.touch(key)
    for key in (A, B):
        feed.drop(key)
    with pytest.raises(TooOld):
        feed.since(2, everything)
    assert [change.key for change in feed.since(3, everything)] == [B]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())), st.integers(0, 30))
def test_a_reader_at_any_place_ends_with_what_is_there(history: list[tuple[str, bool]], place: int) -> None:
    """Whatever happened: who follows from any place knows in the end the same keys as who looks anew."""
    feed, there = Feed(0), set()
    known_at: list[set[Key]] = [set()]
    for name, gone in history:
        key = Key("Model", name)
        before = feed.sequence
        (feed.drop if gone else feed.touch)(key)
        there = there - {key} if gone else there | {key}
        known_at += [set(there)] * (feed.sequence - before)
    place = min(place, feed.sequence)
    known = set(known_at[place])
    for change in feed.since(place, everything):
        known = known - {change.key} if change.gone else known | {change.key}
    assert known == there


async def test_a_waiting_reader_wakes_at_the_next_change() -> None:
    feed = Feed(0)
    waiting = asyncio.create_task(feed.beyond(0))
    await asyncio.sleep(0)
    feed.touch(A)
    await asyncio.wait_for(waiting, 5)


async def test_a_closed_feed_lets_its_readers_go() -> None:
    feed = Feed(0)
    waiting = asyncio.create_task(feed.beyond(0))
    await asyncio.sleep(0)
    feed.close()
    await asyncio.wait_for(waiting, 5)
