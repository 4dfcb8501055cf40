"""No edge reads or writes what is another's, and no program more than its part: asked of the real brokers.

A broker acknowledges a forbidden MQTT 3.1.1 publish and drops it. So each test publishes a *marker* that is allowed,
behind what is forbidden, on the same connection: when the marker has arrived, whatever else was going to arrive has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import nats
import pytest

from edgeai.bus.credentials import Credential
from edgeai.bus.embedded import Broker, EdgeBroker, Mosquitto, NatsCloud, NatsEdge
from edgeai.errors import BinaryMissing
from edgeai.launcher.children import Children, ChildSpec

MARKER = b"marker"


@contextlib.asynccontextmanager
async def running(broker: Broker) -> AsyncIterator[None]:
    """Skips where the program is missing, but not in CI."""
    try:
        argv = broker.argv
    except BinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    state_dir = broker.folder.parents[1]
    children = Children(state_dir)
    try:
        await children.start(ChildSpec("broker", broker.node, argv, state_dir / "log", before_start=broker.prepare))
        await broker.ready()
        yield
    finally:
        await children.stop_all(grace_s=10)


# --- the cloud


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[NatsCloud]:
    broker = NatsCloud(tmp_path, ["edge1", "edge2"])
    async with running(broker):
        yield broker


@dataclass
class CloudClient:
    """A client that keeps what the server refused."""

    client: nats.NATS
    refused: list[str]

    async def settle(self) -> None:
        """Return when the server has seen everything: the first flush of nats-py overtakes what is still buffered."""
        await self.client.flush(5)
        await self.client.flush(5)

    async def may_subscribe(self, subject: str) -> bool:
        self.refused.clear()
        subscription = await self.client.subscribe(subject)
        await self.settle()
        allowed = not self.refused
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
        return allowed

    async def may_publish(self, subject: str) -> bool:
        self.refused.clear()
        await self.client.publish(subject, b"x")
        await self.settle()
        return not self.refused


@contextlib.asynccontextmanager
async def cloud_client(credential: Credential) -> AsyncIterator[CloudClient]:
    refused: list[str] = []

    async def keep(error: Exception) -> None:
        refused.append(str(error))

    client = await nats.connect(
        credential.url, user=credential.username, password=credential.password, allow_reconnect=False, error_cb=keep
    )
    try:
        yield CloudClient(client, refused)
    finally:
        await client.close()


FORBIDDEN_TO_READ = [
    ">",
    "*.>",
    "edgeai.>",
    "edgeai.1.>",
    "edgeai.1.*.down.>",
    "edgeai.1.*.down.*.*.*.*",
    "edgeai.1.edge2.down.state.desired.-.-",
    "edgeai.1.edge2.up.>",
    "edgeai.1.edge1.up.>",
    "edgeai.1.edge1.local.>",
    "edgeai.1.cloud.>",
    "$JS.>",
    "$JS.API.>",
    "$JS.EVENT.>",
    "$KV.>",
    "$O.>",
    "$SRV.>",
    "$SYS.>",
    "_INBOX.>",
]
FORBIDDEN_TO_WRITE = [
    "edgeai.1.edge2.up.signal.heartbeat.-.-",
    "edgeai.1.edge2.up.signal.bridging.-.-",
    "edgeai.1.edge1.local.signal.echo.-.-",
    "edgeai.1.cloud.up.signal.heartbeat.-.coordinator",
    "edgeai.1.edge2.up.fact.update.-.-",
    "edgeai.1.edge2.down.state.desired.-.-",
    "edgeai.1.edge1.down.state.desired.-.-",
    "edgeai.1.edge1.local.fact.update.-.-",
    "edgeai.1.cloud.up.fact.update.-.-",
    "edgeai.1.cloud.down.state.desired.-.-",
    "edgeai.2.edge1.up.fact.update.-.-",
    "$JS.API.INFO",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.DELETE.KV_tasks",
    "$JS.ACK.x",
    "$KV.tasks.x",
    "$O.blobs.C.x",
    "$SRV.PING",
    "_INBOX.other.x",
    "$SYS.REQ.SERVER.PING",
]


@pytest.mark.parametrize(
    "subject", ["edgeai.1.edge1.down.>", "edgeai.1.edge1.down.*.*.*.*", "edgeai.1.edge1.down.state.*.*.*"]
)
async def test_a_bridge_reads_what_comes_down_to_its_edge(cloud: NatsCloud, subject: str):
    async with cloud_client(cloud.edge_credential("edge1")) as edge:
        assert await edge.may_subscribe(subject)


async def test_a_bridge_reads_nothing_else(cloud: NatsCloud):
    async with cloud_client(cloud.edge_credential("edge1")) as edge:
        assert [subject for subject in FORBIDDEN_TO_READ if await edge.may_subscribe(subject)] == []


async def test_what_is_sent_to_one_edge_reaches_no_other(cloud: NatsCloud):
    async with (
        cloud_client(cloud.edge_credential("edge1")) as edge,
        cloud_client(cloud.credential("coordinator")) as coordinator,
    ):
        seen: asyncio.Queue[bytes] = asyncio.Queue()

        async def keep(message: nats.aio.msg.Msg) -> None:
            await seen.put(message.data)

        for subject in ("edgeai.1.edge1.down.>", *FORBIDDEN_TO_READ):
            await edge.client.subscribe(subject, cb=keep)
        await edge.settle()
        await coordinator.client.publish("edgeai.1.edge2.down.state.desired.-.-", b"for edge2")
        await coordinator.client.publish("edgeai.1.edge1.down.state.desired.-.-", MARKER)
        assert await asyncio.wait_for(seen.get(), 5) == MARKER


async def test_a_bridge_writes_what_goes_up_from_its_edge(cloud: NatsCloud):
    async with cloud_client(cloud.edge_credential("edge1")) as edge:
        assert await edge.may_publish("edgeai.1.edge1.up.fact.update.-.-")


async def test_a_bridge_says_how_it_does_itself(cloud: NatsCloud):
    async with cloud_client(cloud.edge_credential("edge1")) as edge:
        assert await edge.may_publish("edgeai.1.edge1.up.signal.bridging.-.-")


async def test_a_bridge_writes_nothing_else(cloud: NatsCloud):
    async with cloud_client(cloud.edge_credential("edge1")) as edge:
        assert [subject for subject in FORBIDDEN_TO_WRITE if await edge.may_publish(subject)] == []


async def test_a_forbidden_publish_of_a_bridge_reaches_nobody(cloud: NatsCloud):
    async with (
        cloud_client(cloud.edge_credential("edge1")) as edge,
        cloud_client(cloud.credential("coordinator")) as coordinator,
    ):
        everything = await coordinator.client.subscribe("edgeai.>")
        await coordinator.settle()
        for subject in (s for s in FORBIDDEN_TO_WRITE if s.startswith("edgeai")):
            await edge.client.publish(subject, b"forged")
        await edge.client.publish("edgeai.1.edge1.up.fact.update.-.-", MARKER)
        assert (await everything.next_msg(5)).data == MARKER


async def test_the_operator_keeps_documents_and_files_and_speaks_to_every_node(cloud: NatsCloud, tmp_path: Path):
    async with cloud_client(cloud.credential("operator")) as operator:
        stream = operator.client.jetstream()
        tasks = await stream.create_key_value(bucket="tasks", history=2)
        revision = await tasks.create("task", b"1")
        await tasks.update("task", b"2", last=revision)
        watcher = await tasks.watchall()
        entry = await watcher.updates(5)
        blobs = await stream.create_object_store("blobs")
        await blobs.put("script", bytes(300_000))
        await blobs.get("script")
        await blobs.delete("script")
        await stream.add_stream(name="FACTS", subjects=["edgeai.1.*.up.fact.>"])
        await stream.pull_subscribe("edgeai.1.*.up.fact.>", stream="FACTS", durable="reader")
        await watcher.stop()
        assert entry
        assert entry.value == b"2"
        assert await operator.may_publish("edgeai.1.edge1.down.request.logs.-.-")
        assert await operator.may_subscribe("edgeai.1.>")
        assert not await operator.may_subscribe(">")
        assert not await operator.may_publish("elsewhere")


async def test_a_cloud_worker_speaks_down_and_reads_up(cloud: NatsCloud):
    async with cloud_client(cloud.credential("worker")) as worker:
        for subject in (
            "edgeai.1.edge1.down.state.round.task.-",
            "edgeai.1.edge1.down.transfer.range.task.-",
            "edgeai.1.edge1.down.signal.verdict.task.-",
            "edgeai.1.cloud.up.fact.round.task.-",
        ):
            assert await worker.may_publish(subject), subject
        for subject in (
            "edgeai.1.*.up.transfer.*.*.*",
            "edgeai.1.*.up.signal.>",
            "edgeai.1.cloud.down.*.*.*.*",
            "$SRV.PING",
            "_INBOX.x.*",
        ):
            assert await worker.may_subscribe(subject), subject


async def test_a_cloud_worker_neither_speaks_for_an_edge_nor_commands_one(cloud: NatsCloud):
    async with cloud_client(cloud.credential("worker")) as worker:
        for subject in (
            "edgeai.1.edge1.up.fact.update.task.-",
            "edgeai.1.edge1.down.request.logs.-.-",
            "edgeai.1.edge1.down.state.desired.-.-",
            "edgeai.1.cloud.down.state.desired.-.-",
            "edgeai.1.edge1.local.signal.progress.-.-",
            "edgeai.1.cloud.up.signal.heartbeat.-.-",
            "edgeai.1.cloud.up.signal.heartbeat.-.coordinator",
            "edgeai.1.cloud.local.signal.echo.-.coordinator",
            "$JS.API.STREAM.DELETE.KV_tasks",
        ):
            assert not await worker.may_publish(subject), subject
        for subject in (">", "edgeai.1.>", "edgeai.1.*.up.>", "edgeai.1.*.down.>", "edgeai.1.edge1.down.>"):
            assert not await worker.may_subscribe(subject), subject


def on_nats(topic: str) -> str:
    return topic.replace("/edge1/", "/cloud/").replace("/", ".")


async def test_a_training_worker_in_the_cloud_says_and_hears_what_one_at_an_edge_does(cloud: NatsCloud):
    async with cloud_client(cloud.credential("trainer")) as trainer:
        for subject in (
            *map(on_nats, sorted(BY_WORKERS)),
            "edgeai.1.edge1.down.request.infer-batch-answer.task.worker",
        ):
            assert await trainer.may_publish(subject), subject
        for subject in (*map(on_nats, sorted(FOR_WORKERS)), "edgeai.1.*.up.request.infer-batch.task.*"):
            assert await trainer.may_subscribe(subject), subject


async def test_a_training_worker_in_the_cloud_says_and_hears_nothing_else(cloud: NatsCloud):
    others = {on_nats(topic) for topic in EVERY} | {"edgeai.1.cloud.up.signal.held.-.-", "$JS.API.CONSUMER.CREATE.x"}
    async with cloud_client(cloud.credential("trainer")) as trainer:
        answers = {on_nats(address("down/request/infer-batch-answer"))}
        forbidden = [*FORBIDDEN_TO_WRITE, *others - {on_nats(topic) for topic in BY_WORKERS} - answers]
        assert [subject for subject in forbidden if await trainer.may_publish(subject)] == []
        asked = {on_nats(address("up/request/infer-batch"))}
        forbidden = [*FORBIDDEN_TO_READ, *others - {on_nats(topic) for topic in FOR_WORKERS} - asked]
        assert [subject for subject in forbidden if await trainer.may_subscribe(subject)] == []


async def test_no_worker_may_say_what_its_controller_holds(edge: EdgeBroker):
    own = "edgeai/1/edge1/up/signal/held/-/-"
    async with mqtt_as(edge, "worker") as worker, mqtt_as(edge, "bridge") as bridge:
        await bridge.subscribe("edgeai/1/edge1/up/+/+/+/+", qos=1)
        await worker.publish(own, b"forged", qos=1)
        await worker.publish(address("up/signal/held"), MARKER, qos=1)
        message = await asyncio.wait_for(anext(aiter(bridge.messages)), 5)
    assert message.payload == MARKER


async def test_a_cloud_worker_uses_buckets_that_exist(cloud: NatsCloud):
    async with cloud_client(cloud.credential("coordinator")) as coordinator:
        await coordinator.client.jetstream().create_key_value(bucket="rounds")
        await coordinator.client.jetstream().create_object_store("blobs")
    async with cloud_client(cloud.credential("worker")) as worker:
        rounds = await worker.client.jetstream().key_value("rounds")
        await rounds.create("task.1", b"outcome")
        blobs = await worker.client.jetstream().object_store("blobs")
        await blobs.put("model", bytes(300_000))
        assert (await rounds.get("task.1")).value == b"outcome"
        assert (await blobs.get_info("model")).size == 300_000


async def test_a_cloud_worker_answers_as_a_service(cloud: NatsCloud):
    from nats.micro import add_service

    async def answer(request: nats.micro.Request) -> None:
        await request.respond(b"answer")

    async with (
        cloud_client(cloud.credential("worker")) as worker,
        cloud_client(cloud.credential("coordinator")) as coordinator,
    ):
        async with await add_service(worker.client, name="aggregation", version="1.0.0") as service:
            await service.add_endpoint(name="ask", subject="edgeai.1.cloud.down.request.ask.-.-", handler=answer)
            await worker.settle()
            asked = await coordinator.client.request("edgeai.1.cloud.down.request.ask.-.-", b"", timeout=5)
            found = await coordinator.client.request("$SRV.PING.aggregation", b"", timeout=5)
        assert asked.data == b"answer"
        assert b"aggregation" in found.data


# --- edge brokers


@pytest.fixture(params=[pytest.param(Mosquitto, id="mosquitto"), pytest.param(NatsEdge, id="nats")])
async def edge(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EdgeBroker]:
    broker: EdgeBroker = request.param(tmp_path, "edge1")
    async with running(broker):
        yield broker


def mqtt_as(edge: EdgeBroker, username: str, **options: object) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1",
        edge.port,
        username=username,
        password=edge.credential(username).password,
        protocol=aiomqtt.ProtocolVersion.V311,
        timeout=5,
        **options,  # type: ignore[arg-type]
    )


async def granted(client: aiomqtt.Client, topic: str) -> bool:
    """Whether the broker took the subscription. mosquitto takes any, and delivers only what may be read."""
    [code] = await client.subscribe(topic, qos=1)
    return not getattr(code, "is_failure", code == 128)


def address(rest: str, node: str = "edge1") -> str:
    """`rest` is direction and class, with or without a kind."""
    kind = "" if rest.count("/") == 2 else "/kind"
    return f"edgeai/1/{node}/{rest}{kind}/task/worker"


CLASSES = ("state", "fact", "transfer", "signal", "request")
# All that a worker has to say and to hear, by kind: it may not say what others say, nor hear what is for others.
BY_WORKERS = {
    address(rest)
    for rest in (
        "up/transfer/offer",
        "up/transfer/report",
        "up/transfer/chunk",
        "up/signal/held",
        "local/signal/progress",
        "local/signal/inferring",
    )
}
FOR_WORKERS = {
    address(rest) for rest in ("down/state/round", "down/transfer/verdict", "down/transfer/pull", "local/state/model")
}
# Of joint inference: an edge worker is asked on its node and asks the cloud; a cloud worker answers every edge.
BY_EDGE_WORKERS = {address(rest) for rest in ("up/request/infer-batch", "local/request/infer-answer")}
FOR_EDGE_WORKERS = {address(rest) for rest in ("down/request/infer-batch-answer", "local/request/infer")}
BY_APPLICATIONS, FOR_APPLICATIONS = {address("local/request/infer")}, {address("local/request/infer-answer")}
EVERY = [
    *(address(f"{direction}/{cls}") for direction in ("up", "down", "local") for cls in CLASSES),
    *(address(rest) for rest in ("up/signal/heartbeat", "up/signal/bridging", "local/signal/echo")),
    *(address(rest) for rest in ("up/signal/gone", "up/transfer/fetch", "down/state/desired", "down/transfer/chunk")),
    *sorted(BY_WORKERS | FOR_WORKERS | BY_EDGE_WORKERS | FOR_EDGE_WORKERS),
]
FOREIGN = [address(f"{way}/state", node) for way in ("up", "down", "local") for node in ("edge2", "cloud")]


def going(*directions: str) -> set[str]:
    return {topic for topic in EVERY if topic.split("/")[3] in directions}


MAY_WRITE = {
    "controller": going("up", "local"),
    "bridge": going("down"),
    "worker": BY_WORKERS | BY_EDGE_WORKERS,
    "app": BY_APPLICATIONS,
}
MAY_READ = {
    "controller": going("down", "local"),
    "bridge": going("up"),
    "worker": FOR_WORKERS | FOR_EDGE_WORKERS,
    "app": FOR_APPLICATIONS,
}
# What each says last, so that every reader hears from everyone whom it may hear.
LAST_WORDS = {
    "controller": {address("up/fact"), address("local/state/model")},
    "bridge": {address("down/state/round")},
    "worker": {address("up/signal/held"), address("local/signal/progress"), address("local/request/infer-answer")},
    "app": BY_APPLICATIONS,
}
# The forms in which our buses subscribe, besides single topics.
PATTERNS = {
    "controller": ["down/+/+/+/+", "down/state/+/+/+", "local/+/+/+/+", "local/signal/+/+/worker"],
    "bridge": ["up/+/+/+/+", "up/fact/+/+/+"],
    "worker": [
        "down/state/round/task/-",
        "down/transfer/verdict/task/worker",
        "down/transfer/pull/task/worker",
        "local/state/model/task/-",
        "local/request/infer/task/+",
        "down/request/infer-batch-answer/task/worker",
    ],
    "app": ["local/request/infer-answer/+/worker"],
}
ROLES = pytest.mark.parametrize("role", ["controller", "bridge", "worker", "app"])
READER_OF = {"up": "bridge", "down": "controller", "local": "controller"}


@ROLES
async def test_a_role_may_subscribe_in_the_forms_it_needs(edge: EdgeBroker, role: str):
    async with mqtt_as(edge, role) as client:
        assert [form for form in PATTERNS[role] if not await granted(client, f"edgeai/1/edge1/{form}")] == []


@ROLES
async def test_a_role_receives_what_it_may_read_and_nothing_else(edge: EdgeBroker, role: str):
    async with contextlib.AsyncExitStack() as stack:
        reader = await stack.enter_async_context(mqtt_as(edge, role))
        for topic in ("#", "+/#", "edgeai/#", "edgeai/1/+/+/+/+/+/+", *(f"edgeai/1/edge1/{p}" for p in PATTERNS[role])):
            await granted(reader, topic)
        for topic in (*EVERY, *FOREIGN):
            await granted(reader, topic)
        for name, last_words in LAST_WORDS.items():
            writer = await stack.enter_async_context(mqtt_as(edge, name))
            for topic in EVERY:
                await writer.publish(topic, b"x", qos=1)
            for topic in last_words:
                await writer.publish(topic, MARKER, qos=1)
        # What one writer sent arrives in its order; wait for the last marker of each writer that is heard.
        expected = set().union(*LAST_WORDS.values()) & MAY_READ[role]
        seen, marked = set(), set()
        async with asyncio.timeout(10):
            async for message in reader.messages:
                seen.add(message.topic.value)
                if message.payload == MARKER:
                    marked.add(message.topic.value)
                if marked == expected:
                    break
    assert seen == MAY_READ[role]


@ROLES
async def test_what_a_role_may_not_write_reaches_nobody(edge: EdgeBroker, role: str):
    seen: set[str] = set()
    markers = {READER_OF[topic.split("/")[3]]: topic for topic in sorted(MAY_WRITE[role])}

    async def collect(reader: aiomqtt.Client, marker: str | None) -> None:
        async for message in reader.messages:
            if message.payload == MARKER and message.topic.value == marker:
                return
            seen.add(message.topic.value)

    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as collecting:
        for name in set(READER_OF.values()):
            reader = await stack.enter_async_context(mqtt_as(edge, name))
            for topic in MAY_READ[name]:
                assert await granted(reader, topic)
            if name in markers:
                collecting.create_task(collect(reader, markers[name]))
        writer = await stack.enter_async_context(mqtt_as(edge, role))
        for topic in (*EVERY, *FOREIGN):
            await writer.publish(topic, b"x", qos=1)
        for topic in markers.values():
            await writer.publish(topic, MARKER, qos=1)
    assert seen == MAY_WRITE[role]


async def test_an_edge_broker_keeps_nothing_for_another_node(edge: EdgeBroker):
    """A forbidden retained message must not be found later either."""
    async with (
        mqtt_as(edge, "worker") as worker,
        mqtt_as(edge, "bridge") as bridge,
        mqtt_as(edge, "controller") as reader,
    ):
        await worker.publish(address("down/state"), b"forged", qos=1, retain=True)
        await bridge.publish(address("down/request"), MARKER, qos=1, retain=True)
        await reader.subscribe("edgeai/1/edge1/down/+/+/+/+", qos=1)
        message = await asyncio.wait_for(anext(aiter(reader.messages)), 5)
    assert message.payload == MARKER


async def test_the_will_of_a_worker_is_heard_by_the_bridge(edge: EdgeBroker):
    will = aiomqtt.Will(address("up/signal/held"), b"gone")
    async with mqtt_as(edge, "bridge") as bridge:
        await bridge.subscribe("edgeai/1/edge1/up/+/+/+/+")
        worker = mqtt_as(edge, "worker", will=will)
        await worker.__aenter__()
        sock = worker._client.socket()
        assert sock is not None
        sock.shutdown(2)
        message = await asyncio.wait_for(anext(aiter(bridge.messages)), 10)
        with contextlib.suppress(aiomqtt.MqttError):
            await worker.__aexit__(None, None, None)
    assert message.payload == b"gone"
