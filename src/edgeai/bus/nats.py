"""The bus in the cloud: core NATS. Owns the connection; `store/nats.py` (KV, objects) and services take it from here.

nats-py is bent in five places, each noted where it happens: it loses the order between subscriptions, it hands pending
publishes to the next connection, it swallows a cancellation that meets a flush, some errors of the server make it give up
for good, after which this module starts a new client, and it knows no Unix sockets (`nats+unix://`).

NATS keeps nothing: there are no retained hints here, a late reader gets state from the KV store or from its owner.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from edgeai.bus.base import Delivery
from edgeai.bus.routing import BACK_OFF_FIRST_S, INBOX_LIMIT_BYTES, Inbox, Link, Router, Seldom, back_off_s
from edgeai.errors import AddressError, BusError, BusUnavailable, PayloadTooLarge
from edgeai.events.address import Address, Pattern

log = structlog.get_logger()

NATS_LIMIT_BYTES = 8 * 1024 * 1024
CONNECT_S, ANSWER_S, CLOSE_S = 5, 5, 5
PING_INTERVAL_S = 10
GIVEN_UP_S = 20.0  # not connected and no attempt for so long: nats-py has stopped trying
_PENDING_BYTES = 2 * 1024 * 1024  # what may wait for the socket before publish waits
_UNIX = "nats+unix://"
_REFUSED = re.compile(r'permissions violation for subscription to "([^"]+)"')


class NatsBus:
    """A client of a NATS server; see `edgeai.bus.base.Bus`. `url` is nats://host:port or nats+unix:///path."""

    def __init__(
        self,
        url: str,
        *,
        username: str | None = None,
        password: str | None = None,
        name: str,
        inbox_limit_bytes: int = INBOX_LIMIT_BYTES,
        stamp: Callable[[bytes], bytes] = lambda payload: payload,
    ) -> None:
        """`stamp` is applied to every payload that is not empty."""
        self._stamp = stamp
        self._socket = url.removeprefix(_UNIX) if url.startswith(_UNIX) else ""
        self._server = "nats://localhost" if self._socket else url
        self._url = url if self._socket else _without_login(url)
        self._username, self._password = username, password
        self._name = name
        self._router = Router(self._url, inbox_limit_bytes)
        self._link = Link(self._url)
        self._client: _Client | None = None
        self._bound: dict[Inbox, list[Subscription]] = {}
        self._refused: set[str] = set()
        self._slow = 0
        self._seldom, self._seldom_slow = Seldom(), Seldom()
        self._attempt = 0
        self._last_sign_s = 0.0
        self._closed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return self._url

    @property
    def limit_bytes(self) -> int:
        """What the server announced, at most 8 MiB; before the first connection 8 MiB."""
        announced = (
            self._client.max_payload if self._client is not None and self._client.client_id is not None else None
        )
        return min(announced or NATS_LIMIT_BYTES, NATS_LIMIT_BYTES)

    @property
    def connected(self) -> bool:
        return self._link.connected and self._client is not None and self._client.is_connected

    @property
    def connection(self) -> Client:
        """The connection itself, for the store and for services. Ask every time: after an outage it may be a new one.

        Raises:
            BusUnavailable: the bus was not entered.
        """
        if self._client is None:
            raise BusUnavailable(self._url, "not started")
        return self._client

    @property
    def connections(self) -> int:
        return self._link.connections

    @property
    def dropped(self) -> int:
        """Deliveries that reached nobody: malformed address, an inbox was full, or nats-py met a slow consumer."""
        return self._router.dropped + self._slow

    @property
    def refused(self) -> frozenset[str]:
        """Subjects that the server did not let us subscribe."""
        return frozenset(self._refused)

    async def __aenter__(self) -> Self:
        self._client = _Client(self._socket)
        self._link.open()
        self._runner = asyncio.create_task(self._run(self._client))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            while not self._runner.done():  # nats-py may swallow a cancellation
                self._runner.cancel()
                await asyncio.wait({self._runner}, timeout=2 * CLOSE_S)
        self._router.close_all()
        await self._link.close()

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        await self._link.wait(timeout_s)

    async def publish(self, address: Address, payload: bytes) -> None:
        payload = self._stamp(payload) if payload else payload
        if len(payload) > self.limit_bytes:
            raise PayloadTooLarge(len(payload), self.limit_bytes)
        client = self._client
        if client is None or not client.is_connected:  # nats-py would keep it for the next connection
            raise BusUnavailable(self._url, self._link.cause)
        async with self._link.hold():
            try:
                await client.publish(address.subject(), payload)
            except nats.errors.Error as error:
                raise BusUnavailable(self._url, str(error)) from error

    @asynccontextmanager
    async def subscribe(self, *patterns: Pattern, group: str = "") -> AsyncIterator[Inbox]:
        inbox = self._router.open(patterns, group)
        try:
            await self._ask_for(inbox)
            yield inbox
        finally:
            self._router.close(inbox)
            await self._let_go(inbox)

    def on_connect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._link.on_connect(callback)

    async def _run(self, client: _Client) -> None:
        attempt = 0
        while True:
            try:
                await self._connect(client)
                attempt = 0
                await self._until_given_up(client)
            except Exception as error:  # noqa: BLE001 - whatever nats-py raises, a bus reconnects for ever
                log.warning("nats_client_failed", url=self._url, error=repr(error))
            finally:
                self._link.down(self._link.cause or "closed")
                await _close(client)
            await asyncio.sleep(back_off_s(attempt))
            attempt += 1
            client = self._client = _Client(self._socket)

    async def _connect(self, client: _Client) -> None:
        """Returns when connected; nats-py tries for ever by itself."""
        self._bound.clear()
        self._closed.clear()
        self._attempt, self._last_sign_s = 0, _now()
        await client.connect(
            self._server,
            user=self._username,
            password=self._password,
            name=self._name,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=BACK_OFF_FIRST_S,  # type: ignore[arg-type]  # seconds; grows in _on_error
            connect_timeout=CONNECT_S,
            ping_interval=PING_INTERVAL_S,
            pending_size=_PENDING_BYTES,
        )
        with suppress(nats.errors.Error):  # it broke again: _on_reconnected will do this
            await self._take_up(client)

    async def _until_given_up(self, client: _Client) -> None:
        while not self._closed.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(GIVEN_UP_S / 4):
                    await self._closed.wait()
            if not client.is_connected and _now() - self._last_sign_s > GIVEN_UP_S:
                return

    async def _take_up(self, client: _Client) -> None:
        """Subscribe for the inboxes that were opened while there was no connection, then tell everybody."""
        self._refused.clear()
        while unbound := [inbox for inbox in self._router.inboxes if inbox not in self._bound]:
            for inbox in unbound:
                await self._bind(client, inbox)
            await _confirm(client)
        for subject in sorted(self._refused):
            log.error("subscription_refused", url=self._url, subject=subject)
        self._attempt = 0
        client.options["reconnect_time_wait"] = BACK_OFF_FIRST_S
        self._link.up()
        log.info("nats_connected", url=self._url, name=self._name)

    async def _bind(self, client: _Client, inbox: Inbox) -> None:
        """One NATS subscription per pattern; one that is in place already is repeated by nats-py after a reconnect."""
        subscriptions = self._bound[inbox] = []
        for index, pattern in enumerate(inbox.patterns):
            subscription = await client.subscribe(pattern.subject(), queue=inbox.group)
            subscriptions.append(subscription)
            client.routes[subscription._id] = _Route(inbox, inbox.patterns[:index], self._router)

    async def _ask_for(self, inbox: Inbox) -> None:
        if not self.connected or self._client is None:
            return
        with suppress(BusUnavailable, nats.errors.Error):  # made on connect, as promised
            async with self._link.hold():
                await self._bind(self._client, inbox)
                await _confirm(self._client)
        if refused := self._refused.intersection(pattern.subject() for pattern in inbox.patterns):
            raise BusError(f"{self._url} refuses the subscription {', '.join(sorted(refused))}")

    async def _let_go(self, inbox: Inbox) -> None:
        for subscription in self._bound.pop(inbox, ()):
            if self._client is not None:
                self._client.routes.pop(subscription._id, None)
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def _on_error(self, error: Exception) -> None:
        self._last_sign_s = _now()
        if isinstance(error, nats.errors.SlowConsumerError):
            self._slow += 1
            if self._seldom_slow.due():
                log.warning("nats_consumer_slow", url=self._url, subject=error.subject, dropped=self._slow)
        elif "permissions violation" in str(error):
            self._refused.update(_REFUSED.findall(str(error)))
            log.error("nats_permission_refused", url=self._url, error=str(error))
        else:
            self._note_attempt(error)

    def _note_attempt(self, error: Exception) -> None:
        self._attempt += 1
        if self._client is not None:
            self._client.options["reconnect_time_wait"] = back_off_s(self._attempt)
        if not self._link.connected:
            self._link.cause = str(error) or type(error).__name__
        if self._seldom.due():
            log.warning("nats_connection_failed", url=self._url, cause=str(error) or repr(error))

    async def _on_disconnected(self) -> None:
        self._last_sign_s = _now()
        self._link.down(self._link.cause or "connection lost")

    async def _on_reconnected(self) -> None:
        if self._client is not None:
            await self._take_up(self._client)

    async def _on_closed(self) -> None:
        self._closed.set()


class _Client(Client):
    """nats-py, with our deliveries taken out as they are read from the wire.

    It would queue them by subscription and wake a task for each, which loses the order between subscriptions.
    """

    def __init__(self, socket: str = "") -> None:
        super().__init__()
        self.routes: dict[int, _Route] = {}
        if socket:
            self._transport = _UnixTransport(socket)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        if (route := self.routes.get(sid)) is None:
            return super()._build_message(sid, subject, reply, data, headers)
        route(subject, data)
        return None  # nothing left to do for nats-py


class _UnixTransport(TcpTransport):
    """The same streams, over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._path = path

    def __bool__(self) -> bool:
        return True  # nats-py would take another one as long as it is not connected

    async def connect(self, uri: object, buffer_size: int, connect_timeout: int) -> None:
        async with asyncio.timeout(connect_timeout):
            reader, writer = await asyncio.open_unix_connection(self._path, limit=buffer_size)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer


class _Route:
    """From one NATS subscription to its inbox.

    The server sends a copy per subscription. Of an inbox's patterns the first that matches counts: the copies of the
    `earlier` ones have delivered it already.
    """

    __slots__ = ("_earlier", "_inbox", "_router")

    def __init__(self, inbox: Inbox, earlier: tuple[Pattern, ...], router: Router) -> None:
        self._inbox, self._earlier, self._router = inbox, earlier, router

    def __call__(self, subject: bytes, data: bytes) -> None:
        try:
            address = Address.from_subject(subject.decode("ascii", "backslashreplace"))
        except AddressError as error:
            self._router.count_malformed(error)
            return
        if not any(pattern.matches(address) for pattern in self._earlier):
            self._router.put(self._inbox, Delivery(address, data))


async def _confirm(client: Client) -> None:
    """Return when the server has seen our subscriptions.

    The ping of nats-py's flush overtakes what waits for the socket; the second cannot, the flusher has had its turn.
    """
    await client.flush(ANSWER_S)
    await client.flush(ANSWER_S)


async def _close(client: Client) -> None:
    with suppress(Exception):
        async with asyncio.timeout(CLOSE_S):
            await client.close()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _without_login(url: str) -> str:
    """The url as it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
