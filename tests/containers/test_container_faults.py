"""What goes wrong with containers ends in a status that a person understands, and the task goes on where it can."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import caged_world
import pytest
import pytest_asyncio
from caged_world import container, reason
from living_world import Worker, World, digest_of, kill, updates_of

from edgeai.bus.credentials import read_credentials_file
from edgeai.bus.mqtt import MqttBus
from edgeai.cli.playground import Playground
from edgeai.events.address import Address, Direction, EventClass, Pattern, task_level
from edgeai.events.catalogue import BlobRef, Event, Offer, Usage
from edgeai.events.envelope import Envelope, Header, decode, encode, stamped
from edgeai.events.tokens import TOKEN_BYTES
from edgeai.launcher.container import container_name
from edgeai.resources.federated import FederatedTask, TaskPhase, WorkerStatus
from edgeai.resources.needs import Variable, WorkerResources

pytestmark = [
    pytest.mark.containers,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]

ROUNDS = 4
REPOSITORY = Path(__file__).parents[2]
STEADY = (Worker("work1", "edge1", "dataset0"), Worker("work2", "edge2", "dataset1"))


def script(name: str) -> str:
    return f"../containers/scripts/{name}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(cage: World) -> FederatedTask:
    return await cage.train("undisturbed", STEADY, rounds=ROUNDS)


def row_of(task: FederatedTask, worker: str) -> WorkerStatus:
    return next(row for row in task.status.workers if row.name == worker)


async def test_an_undisturbed_task_counts_every_update(undisturbed: FederatedTask):
    assert updates_of(undisturbed) == [2] * ROUNDS


@pytest.mark.parametrize("victim", ["work2", "aggregation"])
async def test_a_container_that_is_killed_changes_nothing(cage: World, docker, undisturbed: FederatedTask, victim: str):
    name = f"killed-{victim}"
    middle = asyncio.create_task(cage.training(name, "work2", 2))
    task = await cage.apply(name, STEADY, rounds=ROUNDS)
    await middle

    docker("kill", container(cage, task, victim))
    task = await cage.ended(name)

    assert digest_of(task) == digest_of(undisturbed)


async def test_a_controller_that_is_killed_finds_its_container_again(cage: World, docker, undisturbed: FederatedTask):
    middle = asyncio.create_task(cage.training("adopted", "work1", 2))
    task = await cage.apply("adopted", STEADY, rounds=ROUNDS, pause=2)
    await middle
    daemon, started = cage.daemon("edge1"), "{{.Id}} {{.State.StartedAt}}"
    before = docker("inspect", "--format", started, container(cage, task, "work1"))

    kill(daemon)
    await until(lambda: cage.daemon("edge1") != daemon)
    await cage.until("adopted", lambda task: task.status.round > 3 or task.status.phase is TaskPhase.SUCCEEDED)
    after = docker("inspect", "--format", started, container(cage, task, "work1"))
    task = await cage.ended("adopted")

    assert after == before
    assert digest_of(task) == digest_of(undisturbed)


# What is wrong with the second worker of a task, and what its row says of it. In the end the first trains without it.
NO_DIGEST = f"python:3.11-slim-bookworm@sha256:{'0' * 64}"
BAD = {
    "greedy": (
        {"train_script_dir": script("greedy"), "resources": WorkerResources(memory="128Mi")},
        "needed more memory than its limit",
    ),
    "no-image": ({"image": "edgeai-test/none:1"}, "image edgeai-test/none:1 is not on edge2 and cannot be pulled"),
    "no-digest": ({"image": NO_DIGEST}, "(what is here as python:3.11-slim-bookworm is sha256:"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(cage: World) -> AsyncIterator[dict[str, asyncio.Task[FederatedTask]]]:
    """All of them at the same time: a worker is given up only after several starts."""

    async def lived(name: str, change: dict[str, object], says: str) -> FederatedTask:
        told = asyncio.create_task(reason(cage, name, "work2", says))
        await caged_world.apply(cage, name, STEADY, rounds=2, **change)
        await told
        return await cage.ended(name)

    tasks = {name: asyncio.create_task(lived(name, *case)) for name, case in BAD.items()}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.parametrize("name", BAD)
async def test_what_is_wrong_with_a_worker_is_named_and_the_others_train(
    outcomes: dict[str, asyncio.Task[FederatedTask]], name: str
):
    assert updates_of(await outcomes[name]) == [1, 1]


async def test_a_worker_that_ends_without_a_result_is_told_what_it_owes(cage: World):
    idle = replace(STEADY[1], folder=script("idle"))
    await cage.apply("idle", (STEADY[0], idle), rounds=2)

    await reason(cage, "idle", "work2", "exited with code 0 without a finished update")


async def test_a_log_without_end_keeps_within_its_limit_and_can_be_read(cage: World, docker):
    chatty = replace(STEADY[0], folder=script("chatty"))
    middle = asyncio.create_task(cage.training("chatty", "work1", 3))
    task = await cage.apply("chatty", (chatty,), rounds=4, pause=2)
    await middle

    path = Path(docker("inspect", "--format", "{{.LogPath}}", container(cage, task, "work1")))
    size_bytes = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    task = await cage.ended("chatty")

    assert size_bytes < 32 * 1024**2
    assert updates_of(task) == [1] * 4


async def test_a_foreign_container_with_our_name_is_named_and_when_it_goes_the_worker_starts(
    cage: World, docker, apply
):
    # The image comes late, so that there is time to put something in the way.
    task = await apply("conflict", STEADY, image="edgeai-test/late:1", rounds=2)
    await reason_or_wait(cage, "conflict")
    slot = cage.slot(task, "work2")
    name = container_name("edge2", f"{slot.parent.name}/work2", slot)
    docker("create", "--name", name, "python:3.11-slim-bookworm", "true")
    docker("tag", image_of("numpy"), "edgeai-test/late:1")
    try:
        await reason(cage, "conflict", "work2", f"a container {name} is there that this slot did not start")
    finally:
        docker("rm", "--force", name)
    task = await cage.until("conflict", lambda task: row_of(task, "work2").state in {"Running", "Done"})
    await cage.delete("conflict")
    docker("rmi", "edgeai-test/late:1")

    assert row_of(task, "work2").reason.startswith("restarted after: could not be started: a container")


async def test_variables_and_limits_of_the_manifest_reach_the_container(cage: World, docker, apply):
    task = await apply(
        "given",
        STEADY,
        rounds=4,
        pause=2,
        resources=WorkerResources(cpu="500m", memory="300Mi"),
        env=(Variable(name="COLOUR", value="blue"),),
    )
    await cage.in_round("given", 1)

    inspected = docker(
        "inspect",
        "--format",
        "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.NetworkMode}} {{.Config.Env}}",
        container(cage, task, "work2"),
    )
    await cage.delete("given")

    assert inspected.startswith(f"500000000 {300 * 1024**2} none ")
    assert "COLOUR=blue" in inspected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": "bridge"}, "network bridge is not allowed on edge2"),
        ({"resources": WorkerResources(gpus=1)}, "edge2 has no GPU"),
    ],
    ids=["network", "gpu"],
)
async def test_what_a_node_does_not_give_is_refused_with_the_reason(cage: World, apply, change, says: str):
    name = f"refused-{next(iter(change))}"
    await apply(name, STEADY, rounds=2, **change)

    await reason(cage, name, "work2", says)


async def test_what_another_says_in_a_workers_name_does_not_count(cage: World, docker, undisturbed: FederatedTask):
    middle = asyncio.create_task(cage.training("forged", "work1", 2))
    task = await cage.apply("forged", STEADY, rounds=ROUNDS, pause=2)
    await middle
    aggregation = container(cage, task, "aggregation")
    forged = Offer(task.metadata.uid, 2, "", BlobRef("0" * 64, 1, b"x"), 1)

    for token in (b"", bytes(TOKEN_BYTES)):
        await say_as(cage, task, "work2", forged, token)
    await until(lambda: "does not carry the token of the current run of work2" in docker("logs", aggregation))
    task = await cage.ended("forged")

    assert digest_of(task) == digest_of(undisturbed)
    assert all(row.refused == {} for row in task.status.rounds)


async def test_what_a_container_uses_is_told(cage: World):
    async with asyncio.timeout(60), heard(cage, Usage.kind) as usages:
        await cage.apply("used", STEADY, rounds=50)
        usage = await anext(usages)
    await cage.delete("used")

    assert 0 < usage.memory_bytes < usage.memory_limit_bytes
    assert usage.pids > 0


async def test_a_task_that_is_deleted_leaves_no_container(cage: World, docker):
    task = await cage.apply("deleted", STEADY, rounds=50)
    await cage.in_round("deleted", 1)
    made = [container(cage, task, worker) for worker in ("work1", "work2", "aggregation")]

    await cage.delete("deleted")

    left = docker("ps", "--all", "--quiet", "--no-trunc").split()
    assert [one for one in made if one in left] == []
    assert not cage.slot(task, "work1").exists()


@pytest.mark.slow
async def test_an_engine_that_is_restarted_in_a_round_delays_the_task(
    cage: World, engine: str, undisturbed: FederatedTask
):
    if not engine.endswith("/engine/docker.sock"):
        pytest.skip("this engine was not started by .ci/engine: it is left alone")
    middle = asyncio.create_task(cage.training("restarted", "work2", 2))
    await cage.apply("restarted", STEADY, rounds=ROUNDS, pause=1)
    await middle

    await asyncio.to_thread(subprocess.run, [REPOSITORY / ".ci/engine", "restart"], check=True, capture_output=True)
    task = await cage.ended("restarted", 120)

    assert digest_of(task) == digest_of(undisturbed)


# --- what they need


async def say_as(world: World, task: FederatedTask, worker: str, event: Event, token: bytes) -> None:
    """Publish an event under the name of a worker of edge2, with the login that all its workers have."""
    login = read_credentials_file(world.folder("edge2") / "credentials/edge2.worker.json")
    level = task_level(task.metadata.name, task.metadata.uid)
    payload = encode(Envelope(Header(f"edge2/{level}/{worker}"), event, bytes(16)))
    to = Address("edge2", event.direction, event.event_class, event.kind, level, worker)
    async with MqttBus(login.url, client_id="forger", username=login.username, password=login.password) as bus:
        await bus.wait_connected(10)
        await bus.publish(to, stamped(payload, token) if token else payload)


@contextlib.asynccontextmanager
async def heard(world: World, kind: str):
    """The signals of this kind from every node."""
    pattern = Pattern(None, Direction.UP, EventClass.SIGNAL, kind, None, None)

    async def events(deliveries):
        async for delivery in deliveries:
            yield decode(delivery.payload).event

    async with world.cloud.bus.subscribe(pattern) as deliveries:
        yield events(deliveries)


def image_of(name: str) -> str:
    from edgeai.launcher.images import IMAGES

    return next(image.tag for image in IMAGES if name in image.frameworks)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError, ValueError):
                if true():
                    return
            await asyncio.sleep(0.05)


async def reason_or_wait(world: World, name: str) -> None:
    """Return when the coordinator has placed the task."""
    await world.until(name, lambda task: bool(task.status.workers))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cage(engine: str, tmp_path_factory: pytest.TempPathFactory):
    """A playground whose workers are containers."""
    folder = tmp_path_factory.mktemp("cage")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DOCKER_HOST", engine)
        environment.setenv("EDGEAI_CONTEXT", str(folder / "context.json"))
        playground = Playground(folder / "world", 2, launcher="docker")
        async with playground.running() as cloud:
            yield World(playground, cloud, folder)
    ids = [path.read_text() for path in folder.glob("world/*/slots/*/*/.container/container.json")]
    assert ids == [], "containers were left behind"


@pytest.fixture
def apply(cage: World) -> Callable[..., Awaitable[FederatedTask]]:
    """Applies a task whose second worker has these fields in its spec besides."""
    from living_world import HERE, manifests

    async def changed(name: str, workers, *, rounds: int, pause: float = 0.2, **fields: object) -> FederatedTask:
        model, task = manifests(name, workers, rounds=rounds, pause=pause)
        first, second = task.spec.training_workers
        second = second.model_copy(update={"worker_spec": second.worker_spec.model_copy(update=fields)})
        spec = task.spec.model_copy(update={"training_workers": (first, second)})
        applied = await cage.cloud.apply([model, task.model_copy(update={"spec": spec})], base=HERE)
        assert isinstance(applied[-1].resource, FederatedTask)
        return applied[-1].resource

    return changed
