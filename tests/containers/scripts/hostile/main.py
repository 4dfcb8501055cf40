"""A worker that wants more than its part. It says on one line each what it has gained, and stays until it is ended."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as paho
from forgeries import Task, honest, in_anothers_name, not_its_to_say, raw, readable, readable_by_design

from edgeai.bus.credentials import read_credentials_file
from edgeai.worker.environment import WorkerEnvironment

LISTEN_S = 6.0
me = WorkerEnvironment.read()
assignment = me.slot.read_slot().assignment
told = assignment.parameters
mine = Task(me.node, me.task, assignment.task_uid, me.worker)
other = Task(me.node, told["other level"], told["other uid"], told["other worker"])
login = read_credentials_file(Path(me.credentials_file))
broker = me.bus_url.removeprefix("mqtt+unix://")
token = me.slot.read_token()


def say(kind: str, name: str, **found: object) -> None:
    print("PROBE " + json.dumps({"kind": kind, "name": name, **found}), flush=True)


class Client:
    """A plain MQTT client with the login of this node's workers."""

    def __init__(self, client_id: str, username: str = login.username) -> None:
        self.heard: set[str] = set()
        self.granted: dict[int, int] = {}
        self.connected, self.answered, self.lost = threading.Event(), threading.Event(), threading.Event()
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id,
            protocol=paho.MQTTv311,
            transport="unix",
            reconnect_on_failure=False,
        )
        self._client.username_pw_set(username, login.password)
        self._client.on_connect = lambda _c, _u, _f, code, _p: None if code.is_failure else self.connected.set()
        self._client.on_message = lambda _c, _u, message: self.heard.add(message.topic)
        self._client.on_disconnect = lambda *_: self.lost.set()
        self._client.on_subscribe = lambda *_: self.answered.set()
        self._client.connect(broker, 1883)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Whether the broker has acknowledged it; it may have dropped it all the same."""
        if not self.connected.wait(10):
            raise ConnectionError("the broker did not let me in")
        try:
            self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(5)
        except (ValueError, RuntimeError):
            return False
        return not self.lost.is_set()

    def subscribe(self, topic: str) -> None:
        self.answered.clear()
        self._client.subscribe(topic, qos=1)
        self.answered.wait(5)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


# --- over the broker


def listen() -> None:
    """One connection for each hope: a broker that ends one of them for it ends no other."""
    clients: dict[str, Client] = {}
    for name, topics in readable(mine, other).items():
        for number, topic in enumerate(topics):
            clients[f"{name}/{number}"] = client = Client(f"ear-{name.replace(' ', '-')}-{number}")
            client.connected.wait(10)
            client.subscribe(topic)
    by_design = Client("ear-by-design")
    by_design.connected.wait(10)
    for topic in readable_by_design(other).values():
        by_design.subscribe(topic)
    time.sleep(LISTEN_S)  # rounds of the task beside this one go by
    allowed = set(readable_by_design(other).values()) | set(readable_by_design(mine).values())
    for name in readable(mine, other):
        heard = set().union(*(client.heard for key, client in clients.items() if key.rpartition("/")[0] == name))
        say("read", name, heard=sorted(heard - allowed))
    say("by design", "what workers of a node share", heard=sorted(by_design.heard))
    for client in (*clients.values(), by_design):
        client.close()


def speak() -> None:
    """All on one connection; the last, which is allowed, says that everything before it has been dealt with."""
    client = Client("mouth")
    forged = {**not_its_to_say(mine, other), **in_anothers_name(mine, other, token)}
    for name, forgery in {**forged, **honest(mine, token)}.items():
        say("said", name, acknowledged=client.publish(forgery.topic, forgery.sealed, retain=forgery.retain))
    client.close()
    for name, forgery in raw(mine, other).items():
        client = Client(f"raw-{name.replace(' ', '-')}")
        say("said", name, acknowledged=client.publish(forgery.topic, forgery.payload, retain=forgery.retain))
        client.close()


def take_names() -> None:
    """Whoever connects under the client id of another ends that client's connection."""
    for name in (f"{me.node}-controller", f"{me.node}-bridge", f"{me.node}-{other.level}-{other.worker}"):
        client = Client(name)
        say("name", name, let_in=client.connected.wait(10))
        client.close()


def log_in(username: str) -> None:
    client = Client(f"as-{username}", username)
    say("login", username, let_in=client.connected.wait(1))
    client.close()


def giant() -> None:
    """More than the broker takes. Under an address that is allowed."""
    topic = f"edgeai/1/{me.node}/up/transfer/offer/{mine.level}/{mine.worker}"
    client = Client("giant")
    say("raw", "a giant message", acknowledged=client.publish(topic, bytes(16 << 20)))
    client.close()


def frames(name: str, *pieces: bytes) -> None:
    """Bytes that are no MQTT; the broker hangs up."""
    answer = b"?"
    with socket.socket(socket.AF_UNIX) as raw_socket:
        raw_socket.settimeout(20)
        raw_socket.connect(broker)
        try:
            for piece in pieces:
                raw_socket.sendall(piece)
            raw_socket.shutdown(socket.SHUT_WR)
            answer = raw_socket.recv(100)
        except OSError as error:
            answer = b"" if not isinstance(error, TimeoutError) else b"?"
    say("raw", name, acknowledged=answer not in (b"",))


# --- over the file system


def attempt(name: str, action: Callable[[], object]) -> None:
    try:
        found = action()
    except OSError as error:
        say("file", name, gained="", refused=type(error).__name__)
    else:
        say("file", name, gained=str(found)[:200])


def files() -> None:
    state, slot = Path(told["state folder"]), Path("/edgeai/slot")
    neighbour = state / "slots" / other.level / other.worker
    attempt("read another's token", (neighbour / "token").read_bytes)
    attempt("read another's slot", lambda: os.listdir(neighbour))
    attempt(
        "read another's slot beside its own", lambda: os.listdir(f"/edgeai/slot/../../{other.level}/{other.worker}")
    )
    attempt("read another's models", lambda: os.listdir(neighbour / ".container/models"))
    attempt("read the logins of its node", lambda: os.listdir(state / "credentials"))
    attempt("read its controller's database", (state / "controller.db").read_bytes)
    attempt("read the broker's passwords", lambda: os.listdir(state / "brokers"))
    attempt("read secrets of others", lambda: os.listdir("/edgeai/secrets"))
    attempt("write a model", lambda: (slot / "models/forged.arrays").write_bytes(b"x"))
    attempt("change its script", lambda: Path("/edgeai/script/main.py").write_text("x"))
    attempt("change its login", lambda: Path("/edgeai/credentials.json").write_text("{}"))
    attempt("change its dataset", lambda: next(Path("/edgeai/data").iterdir()).write_bytes(b"x"))
    attempt("replace the broker's socket", lambda: os.unlink(broker))
    attempt("put a socket beside the broker's", lambda: socket.socket(socket.AF_UNIX).bind("/edgeai/bus/forged"))
    attempt("reach the cloud's broker", lambda: socket.create_connection(("127.0.0.1", told["cloud port"]), 2))
    attempt("reach its broker's port", lambda: socket.create_connection(("127.0.0.1", told["edge port"]), 2))
    say(
        "file",
        "find other logins in its own file",
        gained=""
        if set(json.loads(Path(me.credentials_file).read_text())) == {"url", "username", "password"}
        and login.username == "worker"
        else "more",
    )


take_names()
for user in ("controller", "bridge", "coordinator"):
    log_in(user)
speak()
giant()
frames("noise", random.Random(1).randbytes(100_000))
frames("a length without end", b"\x10\xff\xff\xff\xff\xff")
frames("a will before the login", b"\x30\x10\x00\x04abcdhello world!")
files()
listen()
print("DONE", flush=True)
signal.pause()
