"""A dataset is looked at again when something happened to it, told by file events or by polling."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from edgeai.controller import datasets, remote
from edgeai.controller.datasets import DatasetProblem, inspect, note_of, place_of, verify
from edgeai.controller.remote import Stores
from edgeai.controller.traces import Change, compare, stamp_or_none, trace_of
from edgeai.controller.watching import Pace, Watcher, noted
from edgeai.events.catalogue import DatasetObserved, DatasetWanted

DEADLINE_S = 15
EVENTS = Pace(quiet_s=0.02, longest_s=1, poll_s=600)
"""Nothing but an event can be the reason of a look."""
POLLING = Pace(quiet_s=0.02, longest_s=1, poll_without_events_s=0.05, events=False)
each_way = pytest.mark.parametrize("pace", [EVENTS, POLLING], ids=["events", "polling"])


class World:
    """A watcher, and what it has told."""

    def __init__(self, root: Path, pace: Pace) -> None:
        self.root = root
        self.told: list[tuple[str, Change]] = []
        self.observed: dict[str, DatasetObserved] = {}
        self._news = asyncio.Condition()
        self.watcher = Watcher(lambda wanted: place_of(wanted, [root]), self._look, pace)

    async def _look(self, wanted: DatasetWanted, change: Change) -> None:
        found, _ = await asyncio.to_thread(inspect, wanted, [self.root])
        self.observed[wanted.name] = noted(self.observed.get(wanted.name), found, change, wanted.format)
        self.told.append((wanted.name, change))
        async with self._news:
            self._news.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S), self._news:
            await self._news.wait_for(true)

    async def seen(self, change: Change, name: str = "d") -> DatasetObserved:
        await self.until(lambda: (name, change) in self.told)
        return self.observed[name]

    async def samples(self, count: int, name: str = "d") -> DatasetObserved:
        await self.until(lambda: name in self.observed and self.observed[name].samples == count)
        return self.observed[name]


@asynccontextmanager
async def watching(root: Path, pace: Pace, *wanted: DatasetWanted) -> AsyncIterator[World]:
    world = World(root, pace)
    world.watcher.follow(wanted)
    running = asyncio.create_task(world.watcher.run())
    try:
        yield world
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


def csv(path: Path, *numbers: int) -> Path:
    path.write_text("".join(["a,y\n", *(f"{number},1\n" for number in numbers)]))
    return path


def wanted(path: Path, format: str = "csv", name: str = "d") -> DatasetWanted:
    return DatasetWanted(name, str(path), format)


@each_way
async def test_a_dataset_is_told_of_at_first(tmp_path, pace):
    async with watching(tmp_path, pace, wanted(csv(tmp_path / "d.csv", 1, 2))) as world:
        observed = await world.seen(Change.APPEARED)
        assert (observed.ready, observed.samples, observed.schema) == (True, 2, {"a": "text", "y": "text"})


@each_way
async def test_an_append_is_told_with_the_new_count_and_digest(tmp_path, pace):
    path = csv(tmp_path / "d.csv", 1, 2)
    async with watching(tmp_path, pace, wanted(path)) as world:
        before = await world.samples(2)
        with path.open("a") as file:
            file.write("3,1\n")
        after = await world.samples(3)
        assert ("d", Change.APPENDED) in world.told
        assert (after.reason, after.digest != before.digest) == ("", True)


@each_way
async def test_a_rewrite_is_named(tmp_path, pace):
    path = csv(tmp_path / "d.csv", 1, 2)
    async with watching(tmp_path, pace, wanted(path)) as world:
        await world.samples(2)
        csv(path, 7, 8, 9)
        observed = await world.samples(3)
        assert observed.reason == "the file was rewritten: it had 2 samples, now it has 3"


@each_way
async def test_a_file_that_shrank_is_named(tmp_path, pace):
    path = csv(tmp_path / "d.csv", *range(10))
    async with watching(tmp_path, pace, wanted(path)) as world:
        await world.samples(10)
        os.truncate(path, len("a,y\n0,1\n"))
        observed = await world.samples(1)
        assert (observed.ready, observed.reason) == (True, "the file was shrunk: it had 10 samples, now it has 1")


@each_way
async def test_a_rotated_file_is_named(tmp_path, pace):
    path = csv(tmp_path / "d.csv", *range(10))
    async with watching(tmp_path, pace, wanted(path)) as world:
        await world.samples(10)
        csv(tmp_path / "next", *range(100, 120)).replace(path)
        observed = await world.samples(20)
        assert observed.reason == "the file was rotated: it had 10 samples, now it has 20"


@each_way
async def test_a_file_that_has_vanished_is_told_once_and_its_return_as_well(tmp_path, pace):
    path = csv(tmp_path / "d.csv", 1, 2)
    async with watching(tmp_path, pace, wanted(path)) as world:
        await world.samples(2)
        path.rename(tmp_path / "away")
        observed = await world.seen(Change.VANISHED)
        assert (observed.ready, "does not exist" in observed.reason) == (False, True)
        world.told.clear()
        csv(path, 1, 2, 3)
        await world.samples(3)
        assert ("d", Change.VANISHED) not in world.told


@each_way
async def test_a_file_in_an_image_folder_is_noticed(tmp_path, pace):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.png").write_bytes(b"1")
    async with watching(tmp_path, pace, wanted(tmp_path / "images", "image folder")) as world:
        await world.samples(1)
        (tmp_path / "images" / "cat" / "2.png").write_bytes(b"2")
        assert (await world.samples(2)).reason == ""


async def test_a_file_is_told_of_when_it_is_quiet(tmp_path):
    """Each write would be a reading of the whole file."""
    path = csv(tmp_path / "d.csv", 1)
    async with watching(tmp_path, Pace(quiet_s=0.2, longest_s=30, poll_s=600), wanted(path)) as world:
        await world.samples(1)
        world.told.clear()
        for number in range(30):
            with path.open("a") as file:
                file.write(f"{number},1\n")
            await asyncio.sleep(0.01)
        await world.samples(31)
        assert len(world.told) <= 2


async def test_one_that_is_not_wanted_any_more_is_left_alone(tmp_path):
    one, two = csv(tmp_path / "one.csv", 1), csv(tmp_path / "two.csv", 1)
    async with watching(tmp_path, POLLING, wanted(one, name="one"), wanted(two, name="two")) as world:
        await world.samples(1, "one")
        await world.samples(1, "two")
        world.watcher.follow([wanted(two, name="two")])
        await world.until(lambda: True)
        csv(one, 1, 2)
        csv(two, 1, 2)
        await world.samples(2, "two")
        assert world.observed["one"].samples == 1


async def test_one_that_is_wanted_otherwise_is_looked_at_anew(tmp_path):
    path = csv(tmp_path / "d.csv", 1)
    async with watching(tmp_path, POLLING, wanted(path)) as world:
        await world.samples(1)
        world.watcher.follow([DatasetWanted("d", str(path), "csv", label_field="colour")])
        await world.until(lambda: not world.observed["d"].ready)
        assert "has no field colour" in world.observed["d"].reason


async def test_a_look_that_fails_is_not_the_last(tmp_path):
    path, calls = csv(tmp_path / "d.csv", 1), asyncio.Queue[Change]()

    async def look(_: DatasetWanted, change: Change) -> None:
        calls.put_nowait(change)
        raise RuntimeError("broken")

    watcher = Watcher(lambda dataset: place_of(dataset, [tmp_path]), look, POLLING)
    watcher.follow([wanted(path)])
    running = asyncio.create_task(watcher.run())
    async with asyncio.timeout(DEADLINE_S):
        assert await calls.get() is Change.APPEARED
        csv(path, 1, 2)
        assert await calls.get() in {Change.APPENDED, Change.REWRITTEN, Change.SHRUNK}
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_where_there_are_no_events_it_is_polled(tmp_path, monkeypatch):
    import watchfiles

    def none(*_: object, **__: object) -> None:
        raise OSError("no watches left")

    monkeypatch.setattr(watchfiles, "awatch", none)
    path = csv(tmp_path / "d.csv", 1)
    pace = Pace(quiet_s=0.02, longest_s=1, poll_s=0.05, poll_without_events_s=0.05)
    async with watching(tmp_path, pace, wanted(path)) as world:
        await world.samples(1)
        csv(path, 1, 2)
        await world.samples(2)


# --- what is told


def seen(samples: int, digest: str, reason: str = "", *, ready: bool = True) -> DatasetObserved:
    return DatasetObserved("d", ready, reason, samples, digest * 64)


@pytest.mark.parametrize(
    ("before", "found", "change", "format", "reason"),
    [
        (None, seen(5, "a"), Change.APPEARED, "csv", ""),
        (seen(5, "a"), seen(6, "b"), Change.APPENDED, "csv", ""),
        (seen(5, "a"), seen(6, "b"), Change.REWRITTEN, "npz", ""),
        (seen(5, "a"), seen(4, "b"), Change.REWRITTEN, "npz", "the file was rewritten: it had 5 samples, now it has 4"),
        (seen(5, "a"), seen(6, "b"), Change.ROTATED, "csv", "the file was rotated: it had 5 samples, now it has 6"),
        (seen(5, "a"), seen(4, "b"), None, "csv", "the file was changed: it had 5 samples, now it has 4"),
        (seen(5, "a", "earlier"), seen(5, "a"), None, "csv", "earlier"),
        (seen(5, "a"), seen(0, "", "broken", ready=False), Change.REWRITTEN, "csv", "broken"),
        (seen(0, "", "broken", ready=False), seen(5, "a"), Change.REWRITTEN, "csv", ""),
    ],
    ids=[
        "first",
        "more",
        "npz with more",
        "npz with less",
        "rotated",
        "seen by chance",
        "the same",
        "broken",
        "mended",
    ],
)
def test_what_was_lost_is_said(before, found, change, format, reason):
    assert noted(before, found, change, format).reason == reason


# --- traces


def test_a_file_that_was_not_touched_is_the_same(tmp_path):
    path = csv(tmp_path / "d.csv", *range(10))
    assert compare(trace_of(path), path, appends=True) is Change.SAME


def test_a_file_that_was_written_as_it_was_is_the_same(tmp_path):
    path = csv(tmp_path / "d.csv", *range(10))
    before = trace_of(path)
    path.write_bytes(path.read_bytes())
    assert compare(before, path, appends=True) is Change.SAME


@pytest.mark.parametrize("size", [10, 400_000], ids=["short", "long"])
def test_an_append_is_told_from_a_rewrite(tmp_path, size):
    path = csv(tmp_path / "d.csv", *range(size))
    before = trace_of(path)
    with path.open("a") as file:
        file.write("1,1\n")
    assert compare(before, path, appends=True) is Change.APPENDED
    csv(path, *range(1, size + 2))
    assert compare(before, path, appends=True) is Change.REWRITTEN


def test_a_longer_copy_under_the_same_name_is_an_append(tmp_path):
    """Editors write a new file and rename it."""
    path = csv(tmp_path / "d.csv", 1, 2)
    before = trace_of(path)
    csv(tmp_path / "copy", 1, 2, 3).replace(path)
    assert compare(before, path, appends=True) is Change.APPENDED


def test_one_changed_bit_in_a_long_file_is_noticed(tmp_path):
    path = csv(tmp_path / "d.csv", *range(400_000))
    before = trace_of(path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 + 1000)
        file.write(b"9")
    assert compare(before, path, appends=True) is Change.REWRITTEN


def test_the_stamp_of_a_folder_changes_with_a_file_deep_inside(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"1")
    before = stamp_or_none(tmp_path)
    (tmp_path / "a" / "b" / "c").write_bytes(b"22")
    assert before is not None
    assert stamp_or_none(tmp_path) != before


# --- datasets in a store


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(datasets, "is_remote", lambda url: url.startswith("memory://"))
    monkeypatch.setattr(remote, "LOOK_S", 0.0)
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()


REMOTE = DatasetWanted("d", "memory://bucket/d.csv", "csv")


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path / "fetched", tmp_path / "secrets")


def test_a_dataset_in_a_store_is_fetched_and_described(stores, store):
    store.pipe("/bucket/d.csv", b"a,y\n1,2\n")
    assert verify(REMOTE, [], stores).samples == 1
    assert place_of(REMOTE, [], stores, bring=False).read_bytes() == b"a,y\n1,2\n"


def test_another_version_is_fetched_again_and_the_same_is_not(stores, store, monkeypatch):
    copies, copy = [], remote._copy
    monkeypatch.setattr(remote, "_copy", lambda *values: (copies.append(1), copy(*values)))
    store.pipe("/bucket/d.csv", b"a,y\n1,2\n")
    place_of(REMOTE, [], stores)
    place_of(REMOTE, [], stores)
    assert len(copies) == 1
    store.pipe("/bucket/d.csv", b"a,y\n1,2\n3,4\n")
    assert verify(REMOTE, [], stores).samples == 2
    assert len(copies) == 2


def test_what_is_not_in_the_store_is_said(stores, store):
    assert verify(REMOTE, [], stores).reason == "memory://bucket/d.csv does not exist; put it there or change the url"


def test_what_was_not_fetched_yet_is_waited_for_by_nobody(stores, store):
    with pytest.raises(DatasetProblem, match="has not been fetched yet"):
        place_of(REMOTE, [], stores, bring=False)


def test_a_file_that_was_fetched_stays_whole_and_is_used_when_the_store_breaks_off(stores, store, monkeypatch):
    store.pipe("/bucket/d.csv", b"a,y\n1,2\n")
    path = place_of(REMOTE, [], stores)
    store.pipe("/bucket/d.csv", b"a,y\n1,2\n3,4\n")
    monkeypatch.setattr(type(store), "info", lambda self, path, **_: {"size": 99, "created": "now", "type": "file"})
    assert verify(REMOTE, [], stores).samples == 1
    assert "12 bytes instead of 99; the copy of" in note_of(REMOTE, stores)
    assert path.read_bytes() == b"a,y\n1,2\n"


def test_a_file_that_is_replaced_while_it_is_fetched_is_not_taken(stores, store, monkeypatch):
    store.pipe("/bucket/d.csv", b"a,y\n1,2\n")
    answers = iter(["before", "after"])
    monkeypatch.setattr(type(store), "info", lambda self, path, **_: {"size": 8, "ETag": next(answers), "type": "file"})
    assert verify(REMOTE, [], stores).reason.endswith("it changed meanwhile")


def test_a_store_that_would_tell_no_change_is_refused(stores, store, monkeypatch):
    monkeypatch.setattr(type(store), "info", lambda self, path, **_: {"size": None, "type": "file"})
    assert "tells neither an ETag nor a time nor a size" in verify(REMOTE, [], stores).reason


def test_where_nobody_answers_a_store_is_asked_for_one_file_only(stores, store, monkeypatch):
    asked: list[str] = []

    def info(self, path, **_):
        asked.append(path)
        raise TimeoutError("nobody answers")

    monkeypatch.setattr(type(store), "info", info)
    monkeypatch.setattr(remote, "LOOK_S", 30.0)
    reasons = [verify(replace(REMOTE, url=f"memory://silent/{name}.csv"), [], stores).reason for name in "abc"]
    assert len(asked) == 1
    assert all(reason.endswith("was not fetched: TimeoutError: nobody answers") for reason in reasons)


def test_without_fsspec_it_is_said_what_to_install(stores, store, monkeypatch):
    monkeypatch.setattr(datasets, "is_remote", lambda url: True)
    monkeypatch.setitem(sys.modules, "fsspec", None)
    said = verify(replace(REMOTE, url="s3://bucket/d.csv"), [], stores).reason
    assert said.endswith("needs a library that is not on this node; install it with: pip install 'edgeai[s3]'")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "secret shop.json is not in the secrets folder of this node; put it there"),
        ("AKIA,very-secret", "secret shop.json has to be JSON"),
        ('["very-secret"]', "secret shop.json has to be JSON"),
    ],
)
def test_a_secret_that_cannot_be_used_is_named_and_not_shown(stores, store, content, what):
    stores.secrets.mkdir()
    if content is not None:
        (stores.secrets / "shop.json").write_text(content)
    reason = verify(replace(REMOTE, secret="shop.json"), [], stores).reason
    assert what in reason
    assert "very-secret" not in reason


def test_a_link_out_of_the_secrets_folder_is_no_secret(stores, store, tmp_path):
    stores.secrets.mkdir()
    (tmp_path / "outside.json").write_text("{}")
    (stores.secrets / "shop.json").symlink_to(tmp_path / "outside.json")
    assert "is not in the secrets folder" in verify(replace(REMOTE, secret="shop.json"), [], stores).reason


def test_without_a_secrets_folder_a_secret_is_refused(tmp_path, store):
    found = verify(replace(REMOTE, secret="shop.json"), [], Stores(tmp_path / "fetched"))
    assert "this node has no secrets_dir; set it" in found.reason


def test_what_was_fetched_with_a_secret_is_not_given_to_who_names_none(stores, store):
    stores.secrets.mkdir()
    (stores.secrets / "shop.json").write_text("{}")
    store.pipe("/bucket/d.csv", b"a,y\n1,2\n")
    place_of(replace(REMOTE, secret="shop.json"), [], stores)
    with pytest.raises(DatasetProblem, match="has not been fetched yet"):
        place_of(REMOTE, [], stores, bring=False)


def test_a_secret_that_a_store_repeats_is_not_told(stores, store, monkeypatch):
    stores.secrets.mkdir()
    (stores.secrets / "shop.json").write_text('{"secret": "very-secret"}')

    def info(self, path, **_):
        raise PermissionError("very-secret is wrong")

    monkeypatch.setattr(type(store), "info", info)
    said = verify(replace(REMOTE, secret="shop.json"), [], stores).reason
    assert "the store refuses the secret shop.json (*** is wrong); give it the right to read" in said


async def test_it_is_told_when_a_store_falls_silent_and_when_it_answers_again(tmp_path):
    path, notes, told = csv(tmp_path / "d.csv", 1), [""], asyncio.Queue[str]()

    async def look(_: DatasetWanted, change: Change) -> None:
        await told.put(f"{change.value} {notes[-1]}".strip())

    watcher = Watcher(lambda _: path, look, POLLING, note=lambda _: notes[-1])
    watcher.follow([wanted(path)])
    running = asyncio.create_task(watcher.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            assert await told.get() == "appeared"
            notes.append("it is silent")
            assert await told.get() == "same it is silent"
            notes.append("")
            assert await told.get() == "same"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
