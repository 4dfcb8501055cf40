"""The bus at the edge: MQTT 3.1.1 (common ground of mosquitto and nats-server). The only door to aiomqtt and paho.

Nothing about certainty lives here: sessions are clean, a broken connection fails what was under way: BusUnavailable.

Overlapping filters. The contract says that a subscriber gets each delivery once. Where two filters of one connection
match, mosquitto delivers once, nats-server once per filter, and MQTT 3.1.1 has nothing to tell the copies apart. So no
two filters of a connection ever overlap: of two patterns where one contains the other only the wider is subscribed; two
that overlap in part are replaced by the narrowest pattern that contains both; `Router` picks from what arrives. (That
pattern may need more rights than its parts; then the broker refuses it and `subscribe` says so.) While a filter is
being replaced by a wider one both exist for a moment and nats-server may repeat a delivery.

Retained hints. A broker sends them once per SUBSCRIBE, so every `subscribe()` sends one, even for a filter that exists;
inboxes that have seen an address do not get its hint again (`routing.Inbox.wants`).
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import astuple
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiomqtt
import structlog
from paho.mqtt.client import MQTTMessage
from paho.mqtt.reasoncodes import ReasonCode

from edgeai.bus.base import Delivery
from edgeai.bus.routing import INBOX_LIMIT_BYTES, Inbox, Link, Router, Seldom, back_off_s
from edgeai.errors import AddressError, BusError, BusUnavailable, PayloadTooLarge
from edgeai.events.address import Address, EventClass, Pattern

log = structlog.get_logger()

# The brokers are configured with 8 MiB per packet; the rest is room for the topic and for what a bridge adds.
MQTT_LIMIT_BYTES = 8 * 1024 * 1024 - 64 * 1024
KEEPALIVE_S = 15
ANSWER_S = 5.0  # CONNACK, SUBACK
STEADY_S = 5.0  # a connection that lived this long was a good one: back-off starts anew
_CONCURRENT_PUBLISHES = 256
_ACKNOWLEDGED = frozenset({EventClass.STATE, EventClass.FACT})


class MqttBus:
    """A client of an MQTT broker; see `edgeai.bus.base.Bus`. `url` is mqtt://host:port or mqtt+unix:///path."""

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        username: str | None = None,
        password: str | None = None,
        will: tuple[Address, bytes] | None = None,
        limit_bytes: int = MQTT_LIMIT_BYTES,
        inbox_limit_bytes: int = INBOX_LIMIT_BYTES,
        stamp: Callable[[bytes], bytes] = lambda payload: payload,
    ) -> None:
        """`stamp` is applied to every payload that is not empty."""
        self._stamp = stamp
        self._url = url
        self._endpoint = _endpoint(url)
        self._client_id = client_id
        self._username, self._password = username, password
        self._will = will and _will(*will)
        self._limit_bytes = limit_bytes
        self._router = Router(url, inbox_limit_bytes)
        self._link = Link(url)
        self._publishing = asyncio.Semaphore(_CONCURRENT_PUBLISHES)
        self._subscribing = asyncio.Lock()
        self._client: aiomqtt.Client | None = None
        self._filters: list[Pattern] = []
        self._refused: frozenset[str] = frozenset()
        self._seldom = Seldom()
        self._runner: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return self._url

    @property
    def limit_bytes(self) -> int:
        return self._limit_bytes

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def connections(self) -> int:
        return self._link.connections

    @property
    def dropped(self) -> int:
        """Deliveries that reached nobody: malformed address, or an inbox was full."""
        return self._router.dropped

    @property
    def refused(self) -> frozenset[str]:
        """Filters that the broker refused when this connection was made."""
        return self._refused

    async def __aenter__(self) -> Self:
        self._link.open()
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait({self._runner})
        self._router.close_all()
        await self._link.close()

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        await self._link.wait(timeout_s)

    async def publish(self, address: Address, payload: bytes) -> None:
        payload = self._stamp(payload) if payload else payload
        if len(payload) > self._limit_bytes:
            raise PayloadTooLarge(len(payload), self._limit_bytes)
        qos, retain = _service(address)
        async with self._link.hold(), self._publishing:
            if (client := self._client) is None:
                raise BusUnavailable(self._url, self._link.cause)
            try:
                await client.publish(address.topic(), payload, qos, retain, timeout=float("inf"))
            except aiomqtt.MqttError as error:
                raise BusUnavailable(self._url, str(error)) from error

    @asynccontextmanager
    async def subscribe(self, *patterns: Pattern, group: str = "") -> AsyncIterator[Inbox]:
        if group:
            raise BusError(
                f"{self._url} speaks MQTT 3.1.1, which has no groups of subscribers: subscribe without {group!r}"
            )
        inbox = self._router.open(patterns)
        try:
            await self._ask_for(patterns)
            yield inbox
        finally:
            self._router.close(inbox)
            await self._let_go()

    def on_connect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._link.on_connect(callback)

    async def _run(self) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await self._session()
            except (aiomqtt.MqttError, OSError) as error:
                self._note_broken(str(error.__cause__ or error))
            except Exception as error:  # whatever a client library raises, a bus reconnects for ever
                log.exception("mqtt_client_failed", url=self._url)
                self._link.down(repr(error))
            attempt = 0 if loop.time() - started > STEADY_S else attempt + 1
            await asyncio.sleep(back_off_s(attempt))

    def _note_broken(self, cause: str) -> None:
        if self._link.connected or self._seldom.due():
            log.warning("mqtt_connection_lost", url=self._url, cause=cause)
        self._link.down(cause)

    async def _session(self) -> None:
        """One connection, from CONNECT until it breaks; leaves by raising."""
        client = self._new_client()
        try:
            await _enter(client)
            try:
                await self._take_up(client)
                self._link.up()
                log.info("mqtt_connected", url=self._url, client_id=self._client_id)
                async for _ in client.messages:  # yields nothing (see _on_message), raises in the end
                    pass
            except asyncio.CancelledError:
                self._link.down("closed")
                await _leave(client)
                raise
        finally:
            self._client = None
            client._client._sock_close()  # if it is open still: aiomqtt leaves it so in some ways to fail

    def _new_client(self) -> aiomqtt.Client:
        host, port, transport = self._endpoint
        client = aiomqtt.Client(
            host,
            port,
            transport=transport,
            username=self._username,
            password=self._password,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=True,
            keepalive=KEEPALIVE_S,
            timeout=ANSWER_S,
            will=self._will,
            max_inflight_messages=0,  # no limit: paho would let QoS 0 overtake what it holds back
            # Else a small packet waits until the one before is acknowledged, which may take 40 ms.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)] if transport == "tcp" else [],
        )
        client.pending_calls_threshold = _CONCURRENT_PUBLISHES
        client._client.on_message = self._on_message
        _write_at_once(client)
        return client

    def _on_message(self, client: object, userdata: object, message: MQTTMessage) -> None:
        """Called by paho, in place of aiomqtt's queue, so that nothing waits there.

        nats-server lets topics through that are not UTF-8, from NATS clients. They are counted; raising here would make
        paho read the same packet for ever.
        """
        try:
            address = Address.from_topic(message.topic)
        except AddressError as error:
            self._router.count_malformed(error)
        except UnicodeDecodeError as error:
            self._router.count_malformed(AddressError(repr(error.object), "not UTF-8"))
        else:
            self._router.route(Delivery(address, bytes(message.payload), message.retain))

    async def _take_up(self, client: aiomqtt.Client) -> None:
        """Subscribe for all inboxes on a new connection. A refused filter is an error in the log, not the end."""
        async with self._subscribing:
            self._router.forget_hints()
            wanted = disjoint(self._router.patterns)
            refused = await _subscribe(client, wanted)
            self._filters = [filter_ for filter_ in wanted if filter_ not in refused]
            self._refused = frozenset(filter_.topic() for filter_ in refused)
            self._client = client
        for topic in sorted(self._refused):
            log.error("subscription_refused", url=self._url, filter=topic)

    async def _ask_for(self, patterns: Sequence[Pattern]) -> None:
        async with self._subscribing:
            if (client := self._client) is None:
                return
            filters = disjoint([*self._filters, *patterns])
            asked = [filter_ for filter_ in filters if any(contains(filter_, pattern) for pattern in patterns)]
            try:
                async with self._link.hold():
                    refused = await _subscribe(client, asked)
            except BusUnavailable:
                return  # made on connect, as promised
            except aiomqtt.MqttError:
                _hang_up(client)  # no answer: connect anew, which subscribes
                return
            if refused:
                raise BusError(f"{self._url} refuses the subscription {', '.join(f.topic() for f in refused)}")
            replaced, self._filters = [f for f in self._filters if f not in filters], filters
            await self._unsubscribe(client, replaced)

    async def _let_go(self) -> None:
        """Unsubscribe what no inbox needs any more. A filter wider than needed stays until the next connection."""
        async with self._subscribing:
            if (client := self._client) is None:
                return
            left = self._router.patterns
            unused = [f for f in self._filters if not any(contains(f, pattern) for pattern in left)]
            self._filters = [f for f in self._filters if f not in unused]
            await self._unsubscribe(client, unused)

    async def _unsubscribe(self, client: aiomqtt.Client, filters: list[Pattern]) -> None:
        if filters:
            with suppress(BusUnavailable, aiomqtt.MqttError):
                async with self._link.hold():
                    await client.unsubscribe([filter_.topic() for filter_ in filters])


def _write_at_once(client: aiomqtt.Client) -> None:
    """Have packets written as they are made; the event loop writes what the socket does not take.

    aiomqtt leaves all to the loop: for each a wake-up through a pipe, two changes of what is selected and one more turn.
    """
    paho, thread = client._client, threading.get_ident()
    later = paho.on_socket_register_write
    assert later is not None

    def write(_: object, userdata: object, sock: Any) -> None:
        # Not while paho connects, which it does in another thread, nor from a callback, where it would wait for itself.
        if threading.get_ident() == thread and not paho._in_callback_mutex.locked():
            try:
                paho.loop_write()
            except Exception as error:  # noqa: BLE001 - as aiomqtt does: the connection is of no use any more
                if not client._disconnected.done():
                    client._disconnected.set_exception(error)
            if paho.socket() is not sock or not paho.want_write():
                return
        later(paho, userdata, sock)

    paho.on_socket_register_write = write


async def _enter(client: aiomqtt.Client) -> None:
    """Connect. aiomqtt does it in a thread that nothing can stop: when cancelled, wait for it and hang up."""
    entering = asyncio.create_task(client.__aenter__())
    try:
        await asyncio.shield(entering)
    except asyncio.CancelledError:
        await asyncio.wait({entering})
        if not entering.cancelled() and entering.exception() is None:
            await _leave(client)
        raise


async def _leave(client: aiomqtt.Client) -> None:
    """Disconnect with a farewell, so that the broker does not publish the will."""
    with suppress(aiomqtt.MqttError):
        await client.__aexit__(None, None, None)


def _hang_up(client: aiomqtt.Client) -> None:
    """End the connection as the network would: it is seen as broken, and made anew."""
    sock: Any = client._client.socket()
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


async def _subscribe(client: aiomqtt.Client, filters: list[Pattern]) -> list[Pattern]:
    """Returns those that the broker refused."""
    if not filters:
        return []
    codes = await client.subscribe([(filter_.topic(), 1) for filter_ in filters])
    return [filter_ for filter_, code in zip(filters, codes, strict=True) if _refuses(code)]


def _refuses(code: object) -> bool:
    return code.is_failure if isinstance(code, ReasonCode) else code == 0x80


def _service(address: Address) -> tuple[int, bool]:
    """Quality of service and retain flag, by class."""
    return int(address.event_class in _ACKNOWLEDGED), address.event_class is EventClass.STATE


def _will(address: Address, payload: bytes) -> aiomqtt.Will:
    qos, retain = _service(address)
    return aiomqtt.Will(address.topic(), payload, qos, retain)


def _endpoint(url: str) -> tuple[str, int, Literal["tcp", "unix"]]:
    parts = urlsplit(url)
    if parts.scheme == "mqtt" and parts.hostname:
        return parts.hostname, parts.port or 1883, "tcp"
    if parts.scheme == "mqtt+unix" and parts.path:
        return parts.path, 1883, "unix"
    raise BusError(f"{url} is not an MQTT address; write mqtt://host:port or mqtt+unix:///path")


def contains(wide: Pattern, narrow: Pattern) -> bool:
    """True if `wide` matches every address that `narrow` matches."""
    return all(mine is None or mine == theirs for mine, theirs in zip(astuple(wide), astuple(narrow), strict=True))


def overlap(one: Pattern, other: Pattern) -> bool:
    """True if some address matches both."""
    return all(a is None or b is None or a == b for a, b in zip(astuple(one), astuple(other), strict=True))


def join(one: Pattern, other: Pattern) -> Pattern:
    """The narrowest pattern that contains both."""
    return Pattern(*(a if a == b else None for a, b in zip(astuple(one), astuple(other), strict=True)))


def disjoint(patterns: Iterable[Pattern]) -> list[Pattern]:
    """Filters that together match all that `patterns` match (and possibly more), no two of which overlap."""
    filters: list[Pattern] = []
    for pattern in patterns:
        new = pattern
        while crossing := next((f for f in filters if overlap(f, new)), None):
            filters.remove(crossing)
            new = join(crossing, new)
        filters.append(new)
    return filters
