"""What is mounted into a container is what was verified, also when it is started again: repaired, or refused by name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_asyncio
from caged_world import caged, container, reason
from living_world import API, Worker, World, digest_of, kill, updates_of

from edgeai.resources.federated import FederatedTask
from edgeai.resources.kinds import from_document

pytestmark = [
    pytest.mark.containers,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
]

ROUNDS = 3
FLOATS = 100_000  # too many to travel inside of a round's document: workers read the model from a file
STEADY = (Worker("work1", "edge1", "dataset0"), Worker("work2", "edge2", "dataset1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cage(engine: str, tmp_path_factory: pytest.TempPathFactory):
    async with caged(engine, tmp_path_factory.mktemp("verified")) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(cage: World) -> FederatedTask:
    return await cage.train("undisturbed", STEADY, rounds=ROUNDS, floats=FLOATS)


async def own_dataset(world: World, name: str, **spec: str) -> Path:
    """A dataset of a test's own on edge2, which it may spoil."""
    data = world.folder("edge2") / "data"
    path = data / f"{name}.npz"
    shutil.copyfile(data / "digits.npz", path)
    document = {
        "apiVersion": API,
        "kind": "Dataset",
        "metadata": {"name": name},
        "spec": {"nodeName": "edge2", "url": str(path), "format": "npz", **spec},
    }
    await world.cloud.apply([from_document(document)])
    return path


async def in_the_middle(world: World, name: str, workers: tuple[Worker, ...]) -> FederatedTask:
    """A task whose second worker is training in its second round."""
    middle = asyncio.create_task(world.training(name, "work2", 2))
    task = await world.apply(name, workers, rounds=ROUNDS, floats=FLOATS, pause=3)
    await middle
    return task


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError, ValueError):
                if true():
                    return
            await asyncio.sleep(0.05)


def hidden(world: World, task: FederatedTask) -> Path:
    """Where the controller keeps what the second worker is shown."""
    return world.slot(task, "work2") / ".container"


async def test_a_dataset_with_another_digest_than_asked_for_is_named_and_the_others_train(cage: World):
    await own_dataset(cage, "wrong", digest="0" * 64)
    await cage.apply("wrong", (STEADY[0], Worker("work2", "edge2", "wrong")), rounds=2)

    await reason(cage, "wrong", "work2", f"not {'0' * 64}, which spec.digest of the dataset asks for")
    task = await cage.ended("wrong")

    assert updates_of(task) == [1, 1]


@pytest.mark.parametrize("controller", ["that stays", "that is killed"])
async def test_a_dataset_that_changes_before_a_restart_is_named_and_the_others_train(
    cage: World, docker, controller: str
):
    name = f"changed-{controller.removeprefix('that ').replace(' ', '-')}"
    path = await own_dataset(cage, name)
    task = await in_the_middle(cage, name, (STEADY[0], Worker("work2", "edge2", name)))

    if controller == "that is killed":
        daemon = cage.daemon("edge2")
        kill(daemon)
        await until(lambda: cage.daemon("edge2") != daemon)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    docker("kill", container(cage, task, "work2"))

    await reason(cage, name, "work2", f"dataset {name} on edge2 has changed since it was verified")
    task = await cage.ended(name)

    assert updates_of(task)[-1] == 1


async def test_a_script_that_is_tampered_with_before_a_restart_never_runs(cage: World, docker, undisturbed):
    task = await in_the_middle(cage, "tampered", STEADY)
    script = hidden(cage, task) / "script"
    good = (script / "main.py").read_text()

    (script / "main.py").write_text("print('evil'); raise SystemExit(1)")
    (script / "numpy.py").write_text("print('evil'); raise SystemExit(1)")
    docker("kill", container(cage, task, "work2"))
    task = await cage.ended("tampered")

    assert digest_of(task) == digest_of(undisturbed)
    assert (script / "main.py").read_text() == good
    assert not (script / "numpy.py").exists()
    assert "evil" not in docker("logs", container(cage, task, "work2"))


async def test_a_model_that_is_damaged_before_a_restart_is_brought_again(cage: World, docker, undisturbed):
    task = await in_the_middle(cage, "damaged", STEADY)
    [model] = (hidden(cage, task) / "models").glob("*.safetensors")

    with model.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))
    docker("kill", container(cage, task, "work2"))
    task = await cage.ended("damaged")

    assert digest_of(task) == digest_of(undisturbed)
