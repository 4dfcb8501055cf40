"""What every resource store promises (`edgeai.store.base`), on memory and on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from edgeai.bus.nats import NatsBus
from edgeai.errors import AddressError, BusUnavailable, Conflict, NotFound, PayloadTooLarge, StoreError
from edgeai.store.base import Change, ResourceStore
from edgeai.store.nats import NatsResourceStore

pytest_plugins = ["store_fixtures"]


async def until_current(changes: AsyncIterator[Change | None]) -> list[Change]:
    """What a watch delivers before its None."""
    current = []
    async with asyncio.timeout(10):
        async for change in changes:
            if change is None:
                return current
            current.append(change)
    raise AssertionError("the watch ended")


async def following(changes: AsyncIterator[Change | None], count: int) -> list[Change | None]:
    async with asyncio.timeout(30):
        return [await anext(changes) for _ in range(count)]


def seen(changes: list[Change | None]) -> list[tuple[str, object]]:
    return [(change.name, change.document and change.document["v"]) for change in changes if change is not None]


async def test_a_created_document_is_read_back_with_its_revision(resources: ResourceStore) -> None:
    document = {"text": "ä", "list": [1, 2.5, None, True], "map": {"a": {}}, "bytes": b"\x00\xff"}
    created = await resources.create("Task", "one", document)
    assert created.document == document
    assert await resources.get("Task", "one") == created


async def test_a_missing_document_is_not_found(resources: ResourceStore) -> None:
    with pytest.raises(NotFound):
        await resources.get("Task", "one")


async def test_the_stored_document_is_a_copy(resources: ResourceStore) -> None:
    document = {"list": [1]}
    created = await resources.create("Task", "one", document)
    document["list"].append(2)
    created.document["list"].append(3)
    assert (await resources.get("Task", "one")).document == {"list": [1]}


async def test_a_second_creation_is_a_conflict(resources: ResourceStore) -> None:
    await resources.create("Task", "one", {"v": 1})
    with pytest.raises(Conflict):
        await resources.create("Task", "one", {"v": 2})


async def test_of_twenty_creators_exactly_one_succeeds(resources: ResourceStore) -> None:
    answers = await asyncio.gather(
        *(resources.create("Round", "uid.1", {"v": number}) for number in range(20)), return_exceptions=True
    )
    winners = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(winners) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 19
    assert await resources.get("Round", "uid.1") == winners[0]


async def test_a_replacement_has_a_higher_revision(resources: ResourceStore) -> None:
    created = await resources.create("Task", "one", {"v": 1})
    replaced = await resources.replace(created, {"v": 2})
    assert replaced.revision > created.revision
    assert await resources.get("Task", "one") == replaced


async def test_an_outdated_replacement_is_a_conflict(resources: ResourceStore) -> None:
    created = await resources.create("Task", "one", {"v": 1})
    await resources.replace(created, {"v": 2})
    with pytest.raises(Conflict):
        await resources.replace(created, {"v": 3})


async def test_an_outdated_deletion_is_a_conflict(resources: ResourceStore) -> None:
    created = await resources.create("Task", "one", {"v": 1})
    await resources.replace(created, {"v": 2})
    with pytest.raises(Conflict):
        await resources.delete(created)


async def test_a_deleted_document_is_not_found(resources: ResourceStore) -> None:
    await resources.delete(await resources.create("Task", "one", {"v": 1}))
    with pytest.raises(NotFound):
        await resources.get("Task", "one")


async def test_a_deleted_document_cannot_be_replaced(resources: ResourceStore) -> None:
    created = await resources.create("Task", "one", {"v": 1})
    await resources.delete(created)
    with pytest.raises(Conflict):
        await resources.replace(created, {"v": 2})


async def test_a_deleted_name_can_be_created_again(resources: ResourceStore) -> None:
    created = await resources.create("Task", "one", {"v": 1})
    await resources.delete(created)
    again = await resources.create("Task", "one", {"v": 2})
    assert again.revision > created.revision
    assert (await resources.get("Task", "one")).document == {"v": 2}


async def test_a_list_holds_one_kind_by_name(resources: ResourceStore) -> None:
    for name in ("b.2", "a", "b.1", "gone"):
        await resources.create("Round", name, {"v": name})
    await resources.create("Rounds", "c", {"v": 0})
    await resources.delete(await resources.get("Round", "gone"))
    assert [stored.name for stored in await resources.list("Round")] == ["a", "b.1", "b.2"]
    assert (await resources.list("Round"))[1] == await resources.get("Round", "b.1")


async def test_a_list_of_nothing_is_empty(resources: ResourceStore) -> None:
    assert await resources.list("Task") == []


async def test_a_long_list_is_complete(resources: ResourceStore) -> None:
    names = [f"n{number:03}" for number in range(450)]
    for start in range(0, len(names), 50):
        await asyncio.gather(*(resources.create("Task", name, {"v": name}) for name in names[start : start + 50]))
    assert [stored.name for stored in await resources.list("Task")] == names


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a*", ">", "a/b", "ä", "x" * 201])
async def test_an_impossible_name_is_refused(resources: ResourceStore, name: str) -> None:
    with pytest.raises(AddressError):
        await resources.create("Task", name, {})


async def test_an_oversized_document_is_refused(resources: ResourceStore) -> None:
    with pytest.raises(PayloadTooLarge):
        await resources.create("Task", "one", {"v": b"x" * 1_000_001})


async def test_a_watch_begins_with_the_current_documents(resources: ResourceStore) -> None:
    first = await resources.create("Task", "b", {"v": 1})
    await resources.create("Task", "a", {"v": 2})
    await resources.create("Other", "c", {"v": 3})
    await resources.replace(first, {"v": 4})
    async with resources.watch("Task") as changes:
        assert seen(await until_current(changes)) == [("a", 2), ("b", 4)]


async def test_a_watch_of_nothing_is_current_at_once(resources: ResourceStore) -> None:
    await resources.delete(await resources.create("Task", "gone", {"v": 1}))
    async with resources.watch("Task") as changes:
        assert await until_current(changes) == []


async def test_a_watch_delivers_changes_in_order(resources: ResourceStore) -> None:
    async with resources.watch("Task", "Round") as changes:
        await until_current(changes)
        # Each is read before the next is written: a reader that is behind sees the latest version only.
        created = await resources.create("Task", "a", {"v": 1})
        await resources.create("Other", "x", {"v": 0})
        await resources.create("Round", "a.1", {"v": 2})
        delivered = await following(changes, 2)
        replaced = await resources.replace(created, {"v": 3})
        delivered += await following(changes, 1)
        await resources.delete(replaced)
        delivered += await following(changes, 1)
        await resources.create("Task", "a", {"v": 4})
        delivered += await following(changes, 1)
    assert seen(delivered) == [("a", 1), ("a.1", 2), ("a", 3), ("a", None), ("a", 4)]
    revisions = [change.revision for change in delivered if change]
    assert revisions == sorted(set(revisions))


async def test_a_watch_reports_the_revision_that_a_replacement_needs(resources: ResourceStore) -> None:
    await resources.create("Task", "a", {"v": 1})
    async with resources.watch("Task") as changes:
        [change] = await until_current(changes)
    assert change.revision == (await resources.get("Task", "a")).revision


async def test_two_watches_see_the_same(resources: ResourceStore) -> None:
    async with resources.watch("Task") as left, resources.watch("Task") as right:
        await until_current(left)
        await until_current(right)
        await resources.create("Task", "a", {"v": 1})
        assert await following(left, 1) == await following(right, 1)


# --- what only a real server can do to us


@pytest.fixture
async def own_store(own_bus: NatsBus) -> NatsResourceStore:
    store = NatsResourceStore(own_bus)
    await store.ensure()
    return store


async def test_a_watch_misses_nothing_while_the_server_restarts(own_server, own_bus, own_store) -> None:
    kept = await own_store.create("Task", "kept", {"v": 1})
    gone = await own_store.create("Task", "gone", {"v": 1})
    changed = await own_store.create("Task", "changed", {"v": 1})
    async with own_store.watch("Task") as changes:
        await until_current(changes)
        await own_server.crash(own_bus)
        own_server.start()
        # The watch is not read meanwhile: what is written now, it must find out by itself.
        async with NatsBus(own_server.url, name="other") as other_bus:
            await other_bus.wait_connected(10)
            other = NatsResourceStore(other_bus)
            await other.ensure()
            await other.delete(gone)
            await other.replace(changed, {"v": 2})
            await other.create("Task", "new", {"v": 1})
            assert seen(await following(changes, 3)) == [("gone", None), ("changed", 2), ("new", 1)]
            # Nothing of that comes twice: the next is the next.
            await other.replace(kept, {"v": 2})
            assert seen(await following(changes, 1)) == [("kept", 2)]


async def test_a_watch_tells_what_a_server_without_its_store_has_forgotten(own_server, own_bus, own_store) -> None:
    await own_store.create("Task", "a", {"v": 1})
    async with own_store.watch("Task") as changes:
        await until_current(changes)
        await own_server.crash(own_bus)
        own_server.lose_store()
        own_server.start()
        await own_bus.wait_connected(20)
        await own_store.ensure()
        assert seen(await following(changes, 1)) == [("a", None)]


async def test_documents_survive_a_killed_server(own_server, own_bus, own_store) -> None:
    created = await own_store.create("Task", "a", {"v": 1})
    await own_server.restart(own_bus)
    await own_store.ensure()
    assert await own_store.get("Task", "a") == created


async def test_a_call_that_meets_the_crash_says_so_within_seconds(own_server, own_store) -> None:
    own_server.kill()
    with pytest.raises(BusUnavailable):
        await asyncio.wait_for(own_store.get("Task", "a"), 8)


async def test_every_call_says_at_once_that_the_server_is_down(own_server, own_bus, own_store) -> None:
    created = await own_store.create("Task", "a", {"v": 1})
    await own_server.crash(own_bus)
    for call in (
        own_store.get("Task", "a"),
        own_store.list("Task"),
        own_store.create("Task", "b", {}),
        own_store.replace(created, {}),
        own_store.delete(created),
        own_store.watch("Task").__aenter__(),
        own_store.ensure(timeout_s=0.3),
    ):
        with pytest.raises(BusUnavailable):
            await asyncio.wait_for(call, 1)


async def test_a_missing_bucket_is_no_missing_document(own_bus: NatsBus) -> None:
    with pytest.raises(BusUnavailable):
        await NatsResourceStore(own_bus, "never-made").get("Task", "a")


async def test_a_damaged_document_does_not_hide_the_others(own_bus, own_store) -> None:
    await own_bus.connection.jetstream().publish("$KV.edgeai-resources.Task.bad", b"\xc1")
    await own_store.create("Task", "good", {"v": 1})
    assert [stored.name for stored in await own_store.list("Task")] == ["good"]
    async with own_store.watch("Task") as changes:
        assert seen(await until_current(changes)) == [("good", 1)]
    with pytest.raises(StoreError):
        await own_store.get("Task", "bad")


async def test_a_full_store_refuses_and_says_so(own_bus: NatsBus) -> None:
    store = NatsResourceStore(own_bus, "small", max_bytes=2000)
    await store.ensure()
    with pytest.raises(StoreError, match="full"):
        await store.create("Task", "a", {"v": b"x" * 3000})


async def test_a_bucket_can_be_ensured_again_with_another_size(own_bus: NatsBus) -> None:
    await NatsResourceStore(own_bus, max_bytes=64 * 1024 * 1024).ensure()
    await NatsResourceStore(own_bus, max_bytes=96 * 1024 * 1024).ensure()


async def test_a_store_too_big_for_the_disk_is_made_smaller(own_bus: NatsBus) -> None:
    store = NatsResourceStore(own_bus, max_bytes=8 * 1024**3)
    await store.ensure()
    await store.create("Task", "a", {})


async def test_a_watch_leaves_nothing_on_the_server(own_bus, own_store) -> None:
    async with own_store.watch("Task") as changes:
        await until_current(changes)
    assert await own_bus.connection.jetstream().consumers_info("KV_edgeai-resources") == []


async def test_a_watch_that_is_left_ends(resources: ResourceStore) -> None:
    async with resources.watch("Task") as changes:
        await until_current(changes)
        reading = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
