"""The bus through a Unix socket, for workers without network: mosquitto's own, and the relay in front of any broker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeai.bus import Bus
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.bus.relay import Relay
from edgeai.events.address import Address, Direction, EventClass, Pattern

SOON_S = 20


def bus(url: str) -> Bus:
    if url.startswith("nats"):
        return NatsBus(url, name="client")
    return MqttBus(url, client_id=f"client-{os.getpid()}")


def relay_to(url: str, path: Path) -> Relay:
    host, _, port = url.rpartition("//")[2].partition(":")
    return Relay(path, host, int(port))


async def echo(one: Bus, node: str) -> bytes:
    """What comes back of a payload that is published and subscribed over this bus."""
    here = Address(node, Direction.UP, EventClass.SIGNAL, "heartbeat")
    await until(lambda: one.connected)
    async with asyncio.timeout(SOON_S):
        async with one.subscribe(Pattern(node)) as deliveries:
            await one.publish(here, b"x" * 100_000)
            return (await anext(deliveries)).payload


@pytest.mark.parametrize("broker", ["nats_url", "nats_mqtt_url", "mosquitto_url"])
async def test_a_relay_carries_any_broker(broker: str, request, tmp_path: Path, node: str):
    url, path = request.getfixturevalue(broker), tmp_path / "broker"
    scheme = url.partition("://")[0]
    async with relay_to(url, path), bus(f"{scheme}+unix://{path}") as one:
        assert await echo(one, node) == b"x" * 100_000


@pytest.mark.parametrize("broker", ["nats_url", "nats_mqtt_url"])
async def test_a_client_comes_back_when_the_relay_does(broker: str, request, tmp_path: Path, node: str):
    url, path = request.getfixturevalue(broker), tmp_path / "broker"
    async with bus(f"{url.partition('://')[0]}+unix://{path}") as one:
        for _ in range(2):
            async with relay_to(url, path):
                assert await echo(one, node)
            await until(lambda: not one.connected)


async def test_a_relay_in_front_of_a_broker_that_is_away_closes_the_connection(tmp_path: Path):
    async with Relay(tmp_path / "broker", "127.0.0.1", 1):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "broker")
        async with asyncio.timeout(SOON_S):
            assert await reader.read() == b""
        writer.close()


async def test_a_relay_takes_over_the_socket_of_one_that_was_killed(mosquitto_url: str, tmp_path: Path, node: str):
    (tmp_path / "broker").touch()
    async with relay_to(mosquitto_url, tmp_path / "broker"), bus(f"mqtt+unix://{tmp_path}/broker") as one:
        assert await echo(one, node)


async def test_a_path_that_is_too_long_for_a_socket_is_served_all_the_same(mosquitto_url: str, tmp_path: Path):
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    async with relay_to(mosquitto_url, folder / "broker"):
        assert (folder / "broker").is_socket()
    assert list(folder.iterdir()) == []


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not true():
            await asyncio.sleep(0.01)
