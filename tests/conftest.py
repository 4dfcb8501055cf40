"""Brokers for the tests: real ones on free ports, below a temporary directory, ended by pid.

`nats_url`, `mosquitto_url` and `nats_mqtt_url` are shared by all tests of a session: use names of your own (`node`).
`new_broker` starts one that a test may stop and start again.
"""

from __future__ import annotations

import asyncio
import getpass
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

READY_S = 15
NATS_CONF = """
server_name: test_{port}
listen: 127.0.0.1:{port}
max_payload: 8MB
max_pending: 256MB
jetstream {{ store_dir: "{folder}/jetstream", max_file_store: 1GB }}
"""
NATS_MQTT_CONF = """
server_name: test_{port}
listen: 127.0.0.1:{second_port}
max_payload: 8MB
max_pending: 256MB
jetstream {{ store_dir: "{folder}/jetstream", max_file_store: 1GB }}
mqtt {{ listen: 127.0.0.1:{port} }}
"""
NATS_LIMITED_CONF = """
authorization {{
  users: [
    {{ user: limited, password: secret, permissions: {{
       publish: ["edgeai.1.own.>", "$MQTT.>"], subscribe: ["edgeai.1.own.>", "$MQTT.>"] }} }}
  ]
}}
"""
MOSQUITTO_CONF = """
listener {port} 127.0.0.1
listener 0 {folder}/mqtt.socket
allow_anonymous true
max_packet_size 8388608
user {user}
"""


@dataclass
class Broker:
    """One broker process. `start` and `stop` may be called again and again; the port stays the same."""

    kind: str
    folder: Path
    port: int = 0
    second_port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"{'nats' if self.kind.startswith('nats_core') else 'mqtt'}://127.0.0.1:{self.port}"

    def start(self) -> Broker:
        if not self.port:
            self.port, self.second_port = free_port(), free_port()
        config = self.folder / "broker.conf"
        config.write_text(
            CONFIGS[self.kind].format(
                port=self.port, second_port=self.second_port, folder=self.folder, user=getpass.getuser()
            )
        )
        with (self.folder / "broker.log").open("ab") as log:
            self.process = subprocess.Popen([*program(self.kind), "-c", str(config)], stdout=log, stderr=log)
        self._wait_until_accepting()
        return self

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            if kill:
                self.process.kill()
            else:
                self.process.terminate()
            self.process.wait(READY_S)
            self.process = None

    def _wait_until_accepting(self) -> None:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    pytest.fail(f"{self.kind} does not accept connections:\n{(self.folder / 'broker.log').read_text()}")
                time.sleep(0.02)
            else:
                return


def pytest_configure(config: pytest.Config) -> None:
    """No loop to begin with: pytest-asyncio 1.5 would make one for a plain test that comes first, and never close it."""
    asyncio.set_event_loop(None)
    # A shell starts what runs in its background with SIGINT ignored, and programs hand that on: tests send it to theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)


CONFIGS = {
    "mosquitto": MOSQUITTO_CONF,
    "nats_core": NATS_CONF,
    "nats_core_limited": NATS_CONF + NATS_LIMITED_CONF,
    "nats_mqtt": NATS_MQTT_CONF,
    "nats_mqtt_limited": NATS_MQTT_CONF + NATS_LIMITED_CONF,
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def program(kind: str) -> list[str]:
    """The broker's program; a missing one skips the test, in CI it fails it."""
    name = "mosquitto" if kind == "mosquitto" else "nats-server"
    beside_python = Path(sys.executable).parent / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found:
        return [found]
    if os.environ.get("CI"):
        pytest.fail(f"{name} is not installed")
    pytest.skip(f"{name} is not installed")


@pytest.fixture(autouse=True)
def _logs_of_each_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test sets up for its logs ends with it: a logger that is cached is never captured again."""
    configure = structlog.configure
    monkeypatch.setattr(
        structlog, "configure", lambda **options: configure(**{**options, "cache_logger_on_first_use": False})
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def start_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Broker]]:
    brokers: list[Broker] = []

    def start(kind: str) -> Broker:
        broker = Broker(kind, tmp_path_factory.mktemp(kind))
        brokers.append(broker)
        return broker.start()

    yield start
    for broker in brokers:
        broker.stop()


@pytest.fixture
def new_broker(start_broker: Callable[[str], Broker]) -> Iterator[Callable[[str], Broker]]:
    """Starts a broker of the named kind for one test only."""
    brokers: list[Broker] = []

    def start(kind: str) -> Broker:
        brokers.append(start_broker(kind))
        return brokers[-1]

    yield start
    for broker in brokers:
        broker.stop()


@pytest.fixture(scope="session")
def nats_url(start_broker: Callable[[str], Broker]) -> str:
    return start_broker("nats_core").url


@pytest.fixture(scope="session")
def mosquitto_url(start_broker: Callable[[str], Broker]) -> str:
    return start_broker("mosquitto").url


@pytest.fixture(scope="session")
def nats_mqtt_url(start_broker: Callable[[str], Broker]) -> str:
    return start_broker("nats_mqtt").url


@pytest.fixture
def node() -> str:
    """A node name that no other test uses."""
    return f"n-{uuid.uuid4().hex[:12]}"


BASE_IMAGE = "python:3.11-slim-bookworm"


class EngineConnection(http.client.HTTPConnection):
    """HTTP over the socket of a Docker engine."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def engine_answer(url: str, path: str) -> int:
    """The HTTP status of a GET; 0 if nothing answers."""
    connection = EngineConnection(url.removeprefix("unix://"))
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@pytest.fixture(scope="session")
def engine() -> str:
    """The URL of a Docker engine that has the base image; without one the test skips, in CI it fails."""
    cache = Path(os.environ.get("EDGEAI_CACHE") or Path.home() / ".cache/edgeai")
    urls = [os.environ.get("DOCKER_HOST", ""), "unix:///var/run/docker.sock", f"unix://{cache}/engine/docker.sock"]
    found = [url for url in urls if url.startswith("unix://") and engine_answer(url, "/_ping") == 200]
    if not found:
        missing = "no Docker engine answers (`.ci/engine start` makes one ready)"
    elif engine_answer(found[0], f"/images/{BASE_IMAGE}/json") != 200:
        missing = f"the engine at {found[0]} lacks {BASE_IMAGE} (pull it, or run `.ci/engine start`)"
    else:
        return found[0]
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
