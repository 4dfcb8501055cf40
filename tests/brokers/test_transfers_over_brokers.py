"""A blob crosses real brokers, whole, also when the broker is killed on the way."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeai.bus.base import Bus
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import Pull
from edgeai.events.envelope import Envelope, Header, decode, decode_chunk, encode
from edgeai.store.transfers import Ranges, Receiver, Sender

SIZE = 20_000_000
DEADLINE_S = 60


def mqtt(url: str, name: str) -> Bus:
    return MqttBus(url, client_id=name)


def nats(url: str, name: str) -> Bus:
    return NatsBus(url, name=name)


@dataclass
class Holder:
    """The end that has the blob: answers every pull that arrives."""

    bus: Bus
    node: str
    path: Path
    answers: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self) -> None:
        sender = Sender(self.bus, self.node)
        to = Address(self.node, Direction.UP, EventClass.TRANSFER, "chunk")
        async with self.bus.subscribe(Pattern(node=self.node, kind="pull")) as pulls:
            async for delivery in pulls:
                pull = decode(delivery.payload).event
                assert isinstance(pull, Pull)
                answer = asyncio.create_task(sender.answer(pull.digest, pull.ranges, self.path, SIZE, to))
                self.answers.add(answer)
                answer.add_done_callback(self.answers.discard)


@dataclass
class Wanting:
    """The end that wants the blob. `chunks` counts what came; with `gate` closed it asks only until the first came."""

    bus: Bus
    node: str
    receiver: Receiver
    digest: str
    chunks: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        async def nudge() -> None:
            self.receiver.nudge()

        async with self.bus.subscribe(Pattern(node=self.node, kind="chunk")) as chunks:
            self.bus.on_connect(nudge)
            async for delivery in chunks:
                self.receiver.arrived(decode_chunk(delivery.payload)[1])
                self.chunks += 1

    async def ask(self, ranges: Ranges) -> None:
        if self.chunks:
            await self.gate.wait()
        pull = Pull(digest=self.digest, ranges=ranges)
        await self.bus.publish(
            Address(self.node, Direction.DOWN, EventClass.TRANSFER, "pull"), encode(Envelope(Header("cloud"), pull))
        )

    async def fetch(self, target: Path) -> int:
        async with asyncio.timeout(DEADLINE_S):
            return await self.receiver.fetch(self.digest, SIZE, self.ask, target)


@asynccontextmanager
async def two_ends(
    connect: Callable[[str, str], Bus], url: str, node: str, folder: Path
) -> AsyncIterator[tuple[Holder, Wanting]]:
    data = random.Random(3).randbytes(SIZE)
    (folder / "source").write_bytes(data)
    receiver = Receiver(folder / "incoming", credit_bytes=4 * 1024 * 1024, retry_s=0.2)
    async with connect(url, f"{node}-a") as here, connect(url, f"{node}-b") as there:
        await here.wait_connected(DEADLINE_S)
        await there.wait_connected(DEADLINE_S)
        holder = Holder(here, node, folder / "source")
        wanting = Wanting(there, node, receiver, hashlib.sha256(data).hexdigest())
        loops = [asyncio.create_task(holder.serve()), asyncio.create_task(wanting.listen())]
        yield holder, wanting
        for task in (*loops, *holder.answers):
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


@pytest.mark.parametrize(("connect", "broker"), [(mqtt, "mosquitto_url"), (nats, "nats_url")], ids=["mqtt", "nats"])
async def test_a_blob_of_20_mb_arrives_whole(connect, broker, request, node, tmp_path):
    async with two_ends(connect, request.getfixturevalue(broker), node, tmp_path) as (_, wanting):
        wanting.gate.set()
        received = await wanting.fetch(tmp_path / "target")
        assert received == SIZE
        assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()


@pytest.mark.parametrize(("connect", "kind"), [(mqtt, "mosquitto"), (nats, "nats_core")], ids=["mqtt", "nats"])
async def test_a_killed_broker_delays_a_blob_and_changes_nothing(connect, kind, new_broker, node, tmp_path):
    broker: Any = await asyncio.to_thread(new_broker, kind)
    async with two_ends(connect, broker.url, node, tmp_path) as (_, wanting):
        download = asyncio.create_task(wanting.fetch(tmp_path / "target"))
        async with asyncio.timeout(DEADLINE_S):
            while not wanting.chunks:
                await asyncio.sleep(0.001)
        await asyncio.to_thread(broker.stop, kill=True)
        await asyncio.to_thread(broker.start)
        wanting.gate.set()
        assert await download == SIZE
        assert (tmp_path / "target").read_bytes() == (tmp_path / "source").read_bytes()
