"""Who holds a link while a client library answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from edgeai.bus.routing import Link


async def held(link: Link, inside: asyncio.Event, answer: asyncio.Future[None]) -> None:
    """Waits for an answer as client libraries do on Python 3.11: one that comes along with a cancellation wins."""
    async with link.hold():
        inside.set()
        try:
            await asyncio.shield(answer)
        except asyncio.CancelledError:
            if not answer.done():
                raise
    await asyncio.Event().wait()


async def test_a_cancellation_that_comes_along_with_the_answer_is_not_lost() -> None:
    link = Link("nats://nowhere")
    link.up()
    inside, answer = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(held(link, inside, answer))
    await inside.wait()
    task.cancel()
    answer.set_result(None)
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_connection_that_breaks_while_a_link_is_held_cancels_no_task_for_good() -> None:
    link = Link("nats://nowhere")
    link.up()
    inside, answer = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(held(link, inside, answer))
    await inside.wait()
    link.down("gone")
    with pytest.raises(Exception, match="gone"):
        await task
    assert task.cancelling() == 0


async def test_a_cancellation_is_not_lost_either_if_the_answer_is_an_error() -> None:
    link = Link("nats://nowhere")
    link.up()
    inside, answer = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def refused() -> None:
        with suppress(ValueError):
            async with link.hold():
                inside.set()
                try:
                    await asyncio.shield(answer)
                except asyncio.CancelledError:
                    raise ValueError from None
        await asyncio.Event().wait()

    task = asyncio.create_task(refused())
    await inside.wait()
    task.cancel()
    async with asyncio.timeout(10):
        with pytest.raises(asyncio.CancelledError):
            await task
