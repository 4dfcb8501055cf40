"""A worker in a container that dies at a crash point is started again, goes on, and the result is the same."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from living_world import Worker, World, digest_of, updates_of

from edgeai.cli.playground import Playground
from edgeai.resources.federated import FederatedTask

pytestmark = [pytest.mark.containers, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

ROUNDS = 3
WORKERS = (Worker("work1", "edge1", "dataset0"), Worker("work2", "edge2", "dataset1"))

# The passing at which each dies, and the worker that is started again for it.
CASES = (
    pytest.param("worker.update_written", "work2", 2, id="trained-before-submit"),
    pytest.param("worker.offered", "work1", 2, id="after-submit"),
    pytest.param("aggregation.collected", "aggregation", 2, id="updates-received"),
    pytest.param("reactor.after_commit", "aggregation", 9, id="receipt-stored"),
    pytest.param("aggregation.outcome_fixed", "aggregation", 2, id="result-fixed"),
    pytest.param("aggregation.model_stored", "aggregation", 1, id="model-stored"),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cage(engine: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """A playground under test whose workers are containers."""
    folder, crash_folder = tmp_path_factory.mktemp("cage"), tmp_path_factory.mktemp("crash")
    crash_folder.chmod(0o777)  # workers are another user, and take away what ends them
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DOCKER_HOST", engine)
        environment.setenv("EDGEAI_CONTEXT", str(folder / "context.json"))
        environment.setenv("EDGEAI_TEST", "1")
        environment.setenv("EDGEAI_CRASH_FOLDER", str(crash_folder))
        playground = Playground(folder / "world", 2, launcher="docker")
        async with playground.running() as cloud:
            yield World(playground, cloud, crash_folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(cage: World) -> FederatedTask:
    return await cage.train("undisturbed", WORKERS, rounds=ROUNDS)


@pytest.mark.parametrize(("point", "who", "count"), CASES)
async def test_dying_there_in_a_container_leaves_the_result_the_same(
    cage: World, undisturbed: FederatedTask, point: str, who: str, count: int
):
    armed = cage.arm(f"{point}@{who}", count)
    name = f"{point}-{count}".replace(".", "-").replace("_", "-")
    task = await cage.train(name, WORKERS, rounds=ROUNDS)
    restarts = {row.name: row.restarts for row in task.status.workers}
    await cage.delete(name)

    assert not armed.exists(), "nobody passed this point so often"
    assert restarts[who] == 1
    assert digest_of(task) == digest_of(undisturbed)
    assert updates_of(task) == [2] * ROUNDS
