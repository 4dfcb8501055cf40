"""The fault proxy, between a client and a server that sends everything back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import pytest_asyncio

from edgeai.testing import FaultProxy

PATIENCE_S = 10


class Echo:
    """Sends everything back; remembers how its connections ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        how = "closed"
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            how = "reset"
        self.ended.put_nowait(how)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest_asyncio.fixture
async def echo() -> AsyncIterator[tuple[Echo, int]]:
    served = Echo()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    yield served, server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


@pytest_asyncio.fixture
async def proxy(echo: tuple[Echo, int]) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", echo[1]) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, text: str) -> None:
        self.writer.write(text.encode() + b"\n")
        await self.writer.drain()

    async def hear(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            return (await self.reader.readline()).decode().rstrip("\n")

    async def ask(self, text: str) -> str:
        await self.say(text)
        return await self.hear()


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def stays_silent(client: Client) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.reader.read(1)
            return False
    return True


async def test_a_proxy_that_was_told_nothing_forwards_both_ways(proxy):
    async with connected(proxy) as client:
        assert await client.ask("hello") == "hello"
    assert (proxy.up.forwarded_bytes, proxy.down.forwarded_bytes) == (6, 6)


async def test_the_end_of_a_connection_is_passed_on(proxy, echo):
    async with connected(proxy) as client:
        await client.ask("hello")
        client.writer.write_eof()
        assert await client.hear() == ""
    async with asyncio.timeout(PATIENCE_S):
        assert await echo[0].ended.get() == "closed"


async def test_a_large_message_arrives_whole(proxy):
    text = "x" * 1_000_000
    async with connected(proxy) as client:
        saying = asyncio.create_task(client.say(text))
        async with asyncio.timeout(PATIENCE_S):
            assert await client.reader.readexactly(len(text) + 1) == text.encode() + b"\n"
        await saying


async def test_a_delay_holds_bytes_back_for_as_long_as_it_says(proxy):
    proxy.up.delay_s = 0.2
    async with connected(proxy) as client:
        began = asyncio.get_running_loop().time()
        await client.ask("hello")
        assert asyncio.get_running_loop().time() - began >= 0.2


async def test_a_rate_is_kept(proxy):
    proxy.down.bytes_per_s = 1000
    async with connected(proxy) as client:
        began = asyncio.get_running_loop().time()
        assert await client.ask("x" * 199) == "x" * 199
        assert asyncio.get_running_loop().time() - began >= 0.19


async def test_a_cut_lets_nothing_pass_and_a_mend_brings_what_waited(proxy):
    async with connected(proxy) as client:
        await client.ask("before")
        proxy.cut()
        await client.say("meanwhile")
        assert await stays_silent(client)
        proxy.mend()
        assert await client.hear() == "meanwhile"


async def test_a_connection_made_during_a_cut_is_served_after_it(proxy):
    proxy.cut()
    async with connected(proxy) as client:
        await client.say("early")
        assert await stays_silent(client)
        proxy.mend()
        assert await client.hear() == "early"


async def test_cutting_one_line_leaves_the_other(proxy):
    async with connected(proxy) as client:
        await client.ask("before")
        proxy.cut(proxy.down)
        await client.say("meanwhile")
        async with asyncio.timeout(PATIENCE_S):
            while proxy.up.forwarded_bytes < len("before\nmeanwhile\n"):
                await asyncio.sleep(0.01)
        assert await stays_silent(client)


async def test_a_reset_is_seen_on_both_sides_and_new_connections_are_served(proxy, echo):
    async with connected(proxy) as client:
        await client.ask("hello")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.hear()
    async with asyncio.timeout(PATIENCE_S):
        assert await echo[0].ended.get() == "reset"
    async with connected(proxy) as client:
        assert await client.ask("again") == "again"


async def test_a_proxy_that_refuses_ends_every_new_connection_until_it_is_mended(proxy):
    proxy.refuse()
    async with connected(proxy) as client:
        with pytest.raises(ConnectionResetError):
            await client.ask("hello")
    proxy.mend()
    async with connected(proxy) as client:
        assert await client.ask("hello") == "hello"


async def test_a_half_open_connection_has_ended_for_the_target_only(proxy, echo):
    async with connected(proxy) as client:
        await client.ask("hello")
        proxy.half_open()
        async with asyncio.timeout(PATIENCE_S):
            assert await echo[0].ended.get() == "reset"
        await client.say("anybody?")
        assert await stays_silent(client)


async def test_a_target_that_is_not_there_ends_the_connection(proxy, echo):
    async with FaultProxy("127.0.0.1", 1) as nowhere, connected(nowhere) as client:
        with pytest.raises(ConnectionResetError):
            await client.ask("hello")
    assert proxy.connections == 0
