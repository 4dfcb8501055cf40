"""What the OpenAPI document says is what a served portal does: schemathesis looks for a request that shows otherwise.

Streams never end, so they are left out here; they have tests of their own. A manifest that fits the schema may still be refused
for what a schema cannot say (names of workers that are the same, a folder that would have to be packed): 422 is no lie then.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.client import Cloud
from edgeai.portal.access import Access, Role
from edgeai.portal.api import OPERATIONS, SSE
from edgeai.portal.app import PortalSettings, serve
from edgeai.resources.kinds import from_document
from edgeai.store.memory import MemoryBlobStore, MemoryFactStream, MemoryResourceStore

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

API = "edgeai.io/v1alpha1"
EXAMPLES = 12
FINITE = [operation for operation in OPERATIONS if SSE not in operation.answer.content]


def documents() -> list[dict[str, Any]]:
    """Something to find behind the names that are tried."""
    worker = {
        "dataset": {"name": "d"},
        "trainScriptDir": "/x",
        "trainScriptBootFile": "main.py",
        "frameworkType": "numpy",
    }
    spec = {
        "aggregationWorker": {"name": "a", "model": {"name": "0"}, "workerSpec": {"aggregationAlgorithm": "FedAvg"}},
        "trainingWorkers": [{"name": "w", "nodeName": "0", "workerSpec": worker}],
    }
    dataset = {"nodeName": "0", "url": "/x.npz", "format": "npz"}
    named = {"metadata": {"name": "0"}, "apiVersion": API}
    return [
        {**named, "kind": "EdgeNode"},
        {**named, "kind": "Model"},
        {**named, "kind": "Dataset", "spec": dataset},
        {**named, "kind": "FederatedTask", "spec": spec},
    ]


async def _serve(settings: PortalSettings, up: threading.Event, found: dict[str, Any]) -> None:
    bus = MemoryBus(MemoryBroker(), "portal")
    cloud = Cloud(bus, MemoryResourceStore(), MemoryBlobStore(), MemoryFactStream())

    @asynccontextmanager
    async def source() -> Any:
        async with bus:
            yield cloud

    def started(url: str) -> None:
        found["url"] = url
        up.set()

    for document in documents():
        await cloud.put(from_document(document))
    found["loop"], found["task"] = asyncio.get_running_loop(), asyncio.current_task()
    await serve(source, settings, started=started)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The url of a portal in a thread with a loop of its own, and a token of an administrator."""
    state_dir = tmp_path_factory.mktemp("portal")
    up, found = threading.Event(), {}

    def run() -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(_serve(PortalSettings(state_dir, login_attempts=100_000), up, found))

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(20)
    yield found["url"], Access(state_dir).create_token("tester", Role.ADMIN)
    found["loop"].call_soon_threadsafe(found["task"].cancel)
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def schema(served: tuple[str, str]) -> Any:
    url, token = served
    found = schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json", headers={"Authorization": f"Bearer {token}"})
    accepted = found.config.checks.positive_data_acceptance.expected_statuses
    found.config.checks.positive_data_acceptance.expected_statuses = [*accepted, "422"]
    return found


@pytest.mark.parametrize("operation", FINITE, ids=lambda operation: operation.name)
def test_an_operation_does_what_the_document_says(schema: Any, served: tuple[str, str], operation: Any) -> None:
    described = schema[operation.path][operation.method]
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    cases = hypothesis.strategies.one_of(*(described.as_strategy(generation_mode=mode) for mode in modes))

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases)
    def holds(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {served[1]}"})

    holds()
