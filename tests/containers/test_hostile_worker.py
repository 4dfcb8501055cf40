"""A hostile worker in a whole system, beside an honest one on the same edge: it gains nothing, and the other does not notice.

One world for each broker and one life of the hostile script (scripts/hostile), which tries everything it can think of while the
honest task trains. The tests then look at what is left of that: what the script says it has got, what witnesses at the edge's
broker and in the cloud have met, what was counted, and what became of the honest task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from living_world import Worker, World, digest_of

from edgeai.bus.base import Delivery
from edgeai.bus.credentials import read_credentials_file
from edgeai.bus.mqtt import MqttBus
from edgeai.cli.playground import Playground
from edgeai.errors import MalformedEvent
from edgeai.events.address import CLOUD, Address, Direction, EventClass, Pattern, task_level
from edgeai.events.catalogue import Event, Progress, Verdict
from edgeai.events.envelope import decode, decode_header
from edgeai.resources.federated import FederatedTask, TaskPhase, WorkerStatus

SCRIPTS = Path(__file__).parent / "scripts"
sys.path.append(str(SCRIPTS / "hostile"))

from forgeries import (  # noqa: E402 - the script's own list
    FORGED_ROUND,
    WHOEVER,
    honest,
    in_anothers_name,
    not_its_to_say,
    raw,
    readable,
    readable_by_design,
)

pytestmark = [
    pytest.mark.containers,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

ROUNDS = 60
NEIGHBOUR = (Worker("work1", "edge1", "dataset0"),)
FILES = [
    "read another's token",
    "read another's slot",
    "read another's slot beside its own",
    "read another's models",
    "read the logins of its node",
    "read its controller's database",
    "read the broker's passwords",
    "read secrets of others",
    "write a model",
    "change its script",
    "change its login",
    "change its dataset",
    "replace the broker's socket",
    "put a socket beside the broker's",
    "reach the cloud's broker",
    "reach its broker's port",
    "find other logins in its own file",
]
LAST = "its own update"
"""What the script says after everything else, on the same connection."""
FRAMES = ["a giant message", "noise", "a length without end", "a will before the login"]


@dataclass
class Witness:
    """Everything that arrives somewhere: names of forgeries, and events with their addresses."""

    names: set[str] = field(default_factory=set)
    events: list[tuple[Address, Event]] = field(default_factory=list)

    def meet(self, delivery: Delivery) -> None:
        with contextlib.suppress(MalformedEvent):
            self.names.add(decode_header(delivery.payload).source.replace("-", " "))
            envelope = decode(delivery.payload)
            self.names.add(envelope.subject)
            self.events.append((delivery.address, envelope.event))

    async def listen(self, bus: Any, *patterns: Pattern) -> None:
        async with bus.subscribe(*patterns) as deliveries:
            async for delivery in deliveries:
                self.meet(delivery)


@dataclass
class Aftermath:
    """What is left of it."""

    undisturbed: FederatedTask
    honest: FederatedTask
    after_the_probes: FederatedTask
    """the honest task, as it stood when the script had tried everything"""
    probes: dict[tuple[str, str], dict[str, Any]]
    edge: Witness
    cloud: Witness
    refused: int
    logs: dict[str, str]

    def probe(self, kind: str, name: str) -> dict[str, Any]:
        return self.probes[kind, name]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["mosquitto", "nats"])
async def aftermath(
    request: pytest.FixtureRequest, engine: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Aftermath]:
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DOCKER_HOST", engine)
        environment.setenv("EDGEAI_CONTEXT", str(folder / "context.json"))
        playground = Playground(folder / "w", 1, request.param, launcher="docker")
        async with playground.running() as cloud:
            found = await _live_through(World(playground, cloud, folder))
    yield found


async def _live_through(world: World) -> Aftermath:
    undisturbed = await world.train("undisturbed", NEIGHBOUR, rounds=ROUNDS, pause=0)
    await world.delete("undisturbed")
    edge, cloud = Witness(), Witness()
    async with _logged_in(world, "controller") as controller, _logged_in(world, "bridge") as bridge:
        listening = [
            asyncio.create_task(cloud.listen(world.cloud.bus, Pattern())),
            asyncio.create_task(edge.listen(controller, Pattern("edge1", Direction.DOWN))),
            asyncio.create_task(edge.listen(controller, Pattern("edge1", Direction.LOCAL))),
            asyncio.create_task(edge.listen(bridge, Pattern("edge1", Direction.UP))),
        ]
        try:
            neighbour = await world.apply("honest", NEIGHBOUR, rounds=ROUNDS, pause=0.5)
            await world.in_round("honest", 2)
            hostile = await world.apply("hostile", [_hostile(world, neighbour)], rounds=1)
            await world.until("hostile", lambda task: any(row.state == "Running" for row in _rows(task, "work9")))
            await _until(lambda: "DONE" in _log(world, hostile, "work9"), lambda: _log(world, hostile, "work9"))
            now = await world.cloud.get("FederatedTask", "honest")
            assert isinstance(now, FederatedTask)
            await _until(lambda: LAST in cloud.names, lambda: f"the cloud has heard {sorted(cloud.names)}")
            refused = await _refused(world, neighbour)
            logs = {
                "controller": (world.folder("edge1") / "daemon.log").read_text(),
                "bridge": (world.folder("edge1") / "bridge.log").read_text(),
                "neighbour": _log(world, neighbour, "work1"),
            }
            probes = _probes(_log(world, hostile, "work9"))
            ended = await world.ended("honest", 120)
        finally:
            for each in listening:
                each.cancel()
            await asyncio.gather(*listening, return_exceptions=True)
    return Aftermath(undisturbed, ended, now, probes, edge, cloud, refused, logs)


# --- the neighbour


async def test_the_honest_task_makes_the_same_model(aftermath: Aftermath):
    assert digest_of(aftermath.honest) == digest_of(aftermath.undisturbed)


async def test_the_honest_task_trained_while_the_other_tried(aftermath: Aftermath):
    assert aftermath.after_the_probes.status.phase is TaskPhase.RUNNING


async def test_no_update_of_the_honest_worker_was_refused(aftermath: Aftermath):
    assert {row.round: dict(row.refused) for row in aftermath.honest.status.rounds if row.refused} == {}


async def test_the_honest_worker_was_not_started_again(aftermath: Aftermath):
    assert [(row.name, row.restarts) for row in aftermath.after_the_probes.status.workers if row.restarts] == []


# --- what it says


@pytest.mark.parametrize("name", not_its_to_say(WHOEVER, WHOEVER))
async def test_nobody_ever_meets(aftermath: Aftermath, name: str):
    assert aftermath.probe("said", name)["acknowledged"] is True  # the broker tells nobody what it drops
    assert name not in aftermath.edge.names | aftermath.cloud.names
    assert name.replace("'", "") not in aftermath.edge.names


@pytest.mark.parametrize("name", raw(WHOEVER, WHOEVER))
async def test_nothing_comes_of(aftermath: Aftermath, name: str):
    assert ("said", name) in aftermath.probes
    assert "Traceback" not in aftermath.logs["controller"] + aftermath.logs["bridge"]


async def test_what_it_says_in_its_own_name_is_heard(aftermath: Aftermath):
    """Without this the tests above would show nothing."""
    assert "its own update" in aftermath.cloud.names
    assert Progress(FORGED_ROUND, "validating") in _said_of(aftermath.cloud, Progress, "work9")
    assert [each for each in _said_of(aftermath.edge, Verdict, "work9") if each.number == FORGED_ROUND]


@pytest.mark.parametrize("token", ["no token", "its own token", "a made-up token"])
@pytest.mark.parametrize("kind", ["an update", "an early update", "a report", "a list", "a part of an update"])
async def test_an_aggregation_worker_hears_nothing_in_anothers_name(aftermath: Aftermath, kind: str, token: str):
    number = FORGED_ROUND + ["no token", "its own token", "a made-up token"].index(token)
    assert aftermath.probe("said", f"{kind} with {token}")["acknowledged"] is True
    assert [each for each in _said_of(aftermath.edge, Verdict, "work1") if each.number == number] == []


async def test_an_aggregation_worker_counts_what_has_no_token(aftermath: Aftermath):
    without = [name for name in in_anothers_name(WHOEVER, WHOEVER, b"") if name.endswith("no token")]
    assert aftermath.refused >= len([name for name in without if not name.startswith("progress")])


@pytest.mark.parametrize("token", ["no token", "its own token", "a made-up token"])
async def test_a_controller_passes_on_no_progress_in_anothers_name(aftermath: Aftermath, token: str):
    number = FORGED_ROUND + ["no token", "its own token", "a made-up token"].index(token)
    assert aftermath.probe("said", f"progress with {token}")["acknowledged"] is True
    assert [each for each in _said_of(aftermath.cloud, Progress, "work1") if each.number == number] == []


async def test_a_controller_refuses_by_name_what_has_no_token(aftermath: Aftermath):
    lines = [line for line in aftermath.logs["controller"].splitlines() if "event_refused" in line]
    assert [line for line in lines if "the token of the current run of work1" in line]


# --- what it hears


@pytest.mark.parametrize("name", readable(WHOEVER, WHOEVER))
async def test_it_does_not_hear(aftermath: Aftermath, name: str):
    assert aftermath.probe("read", name)["heard"] == []


async def test_it_hears_of_its_neighbour_what_the_shared_login_is_for(aftermath: Aftermath):
    """A limit, as docs/containers.md tells it: rounds with small models, verdicts and pulls, nothing else."""
    level = task_level(aftermath.honest.metadata.name, aftermath.honest.metadata.uid)
    heard = aftermath.probe("by design", "what workers of a node share")["heard"]
    other = readable_by_design(type(WHOEVER)("edge1", level, "", "work1"))
    assert other["rounds"] in heard
    assert set(heard) <= set(other.values())


# --- whom it pretends to be


@pytest.mark.parametrize("user", ["controller", "bridge", "coordinator"])
async def test_its_password_opens_no_other_login(aftermath: Aftermath, user: str):
    assert aftermath.probe("login", user)["let_in"] is False


@pytest.mark.parametrize("client", ["controller", "bridge", "neighbour"])
async def test_it_ends_no_connection_by_taking_a_client_id(aftermath: Aftermath, client: str):
    taken = [probe for (kind, _), probe in aftermath.probes.items() if kind == "name"]
    assert [probe["let_in"] for probe in taken] == [True] * 3
    # A daemon may have several connections: none of them was made twice.
    made = re.findall(r"mqtt_connected.*client_id=(\S+)", aftermath.logs[client])
    assert made
    assert sorted(set(made)) == sorted(made)


# --- what it throws at the broker, and what it finds on disk


@pytest.mark.parametrize("name", FRAMES)
async def test_the_broker_hangs_up_on(aftermath: Aftermath, name: str):
    assert aftermath.probe("raw", name)["acknowledged"] is False


@pytest.mark.parametrize("name", FILES)
async def test_it_cannot(aftermath: Aftermath, name: str):
    assert aftermath.probe("file", name)["gained"] == ""


async def test_every_probe_has_a_test(aftermath: Aftermath):
    said = {
        *not_its_to_say(WHOEVER, WHOEVER),
        *in_anothers_name(WHOEVER, WHOEVER, b""),
        *honest(WHOEVER, b""),
        *raw(WHOEVER, WHOEVER),
    }
    assert {name for kind, name in aftermath.probes if kind == "said"} == said
    assert {name for kind, name in aftermath.probes if kind == "file"} == set(FILES)
    assert {name for kind, name in aftermath.probes if kind == "raw"} == set(FRAMES)


# --- what they need


def _hostile(world: World, neighbour: FederatedTask) -> Worker:
    """The worker, told more than it could know."""
    level = task_level(neighbour.metadata.name, neighbour.metadata.uid)
    told = {
        "other level": level,
        "other uid": neighbour.metadata.uid,
        "other worker": "work1",
        "state folder": str(world.folder("edge1")),
        "cloud port": urlsplit(world.playground.context().url).port,
        "edge port": urlsplit(world.playground.broker_urls()["edge1"]).port,
    }
    return Worker("work9", "edge1", "dataset0", "../containers/scripts/hostile", parameters=told)


def _rows(task: FederatedTask, worker: str) -> list[WorkerStatus]:
    return [row for row in task.status.workers if row.name == worker]


@contextlib.asynccontextmanager
async def _logged_in(world: World, username: str) -> AsyncIterator[MqttBus]:
    login = read_credentials_file(world.folder("edge1") / f"credentials/edge1.{username}.json")
    async with MqttBus(
        login.url, client_id=f"witness-{username}", username=login.username, password=login.password
    ) as bus:
        await bus.wait_connected(10)
        yield bus


def _log(world: World, task: FederatedTask, worker: str) -> str:
    record = json.loads((world.slot(task, worker) / ".container/container.json").read_text())
    done = subprocess.run(["docker", "logs", record["id"]], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr


def _probes(log: str) -> dict[tuple[str, str], dict[str, Any]]:
    lines = [json.loads(line.removeprefix("PROBE ")) for line in log.splitlines() if line.startswith("PROBE ")]
    return {(line["kind"], line["name"]): line for line in lines}


async def _refused(world: World, task: FederatedTask) -> int:
    """What the task's aggregation worker has counted."""
    level = task_level(task.metadata.name, task.metadata.uid)
    where = Address(CLOUD, Direction.DOWN, EventClass.REQUEST, "status", level, "aggregation")
    answer = await world.cloud.bus.connection.request(where.subject(), b"", timeout=10)
    return int(json.loads(answer.data)["refused"])


def _said_of(witness: Witness, kind: type[Event], worker: str) -> list[Any]:
    return [event for address, event in witness.events if isinstance(event, kind) and address.worker == worker]


async def _until(true: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError, ValueError):
                    if await asyncio.to_thread(true):
                        return
                await asyncio.sleep(0.2)
    except TimeoutError:
        pytest.fail(otherwise())
