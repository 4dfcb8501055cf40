"""What tests of whole tasks in containers share: a playground whose workers are containers, and what its tasks say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from living_world import HERE, Worker, World, manifests

from edgeai.cli.playground import Playground
from edgeai.resources.federated import FederatedTask


@asynccontextmanager
async def caged(engine: str, folder: Path, edges: int = 2) -> AsyncIterator[World]:
    """A playground below `folder`; fails if it leaves a container behind."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DOCKER_HOST", engine)
        environment.setenv("EDGEAI_CONTEXT", str(folder / "context.json"))
        playground = Playground(folder / "world", edges, launcher="docker")
        async with playground.running() as cloud:
            yield World(playground, cloud, folder)
    left = [path.read_text() for path in folder.glob("world/*/slots/*/*/.container/container.json")]
    assert left == [], "containers were left behind"


async def apply(
    world: World, name: str, workers: Sequence[Worker], *, rounds: int, pause: float = 0.2, **fields: object
) -> FederatedTask:
    """Apply a task whose last worker has these fields in its spec besides."""
    model, task = manifests(name, workers, rounds=rounds, pause=pause)
    *first, last = task.spec.training_workers
    last = last.model_copy(update={"worker_spec": last.worker_spec.model_copy(update=fields)})
    spec = task.spec.model_copy(update={"training_workers": (*first, last)})
    applied = await world.cloud.apply([model, task.model_copy(update={"spec": spec})], base=HERE)
    assert isinstance(applied[-1].resource, FederatedTask)
    return applied[-1].resource


async def reason(world: World, name: str, worker: str, text: str) -> FederatedTask:
    """The task as soon as the row of this worker says so."""
    return await world.until(
        name, lambda task: any(row.name == worker and text in row.reason for row in task.status.workers)
    )


def container(world: World, task: FederatedTask, worker: str) -> str:
    """The id of a worker's container. Raises OSError, ValueError: there is none yet."""
    return str(json.loads((world.slot(task, worker) / ".container/container.json").read_text())["id"])
