"""Joint inference services on the coordinator, with a bus and stores in memory: from `apply` over their load to their end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from coordinator_world import World, until, world
from inference_world import LEVEL, MODELS, SECOND, busy, infers, says, service, worker
from job_world import dataset, job, model

from edgeai.errors import NotFound
from edgeai.events.catalogue import Desired, Heartbeat, NodeGone, Observed, Role, WorkerEnded
from edgeai.events.envelope import decode_header
from edgeai.lifecycle import scaling
from edgeai.resources.joint import JointInferenceService


@pytest.fixture
async def made(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("edgeai.coordinator.service._SCALE_S", 0.01)
    async with world() as found:
        yield found


async def status(made: World) -> Any:
    document = (await made.resources.get("JointInferenceService", "digits")).document
    return JointInferenceService.from_document(document).status


async def becomes(made: World, **wanted: Any) -> None:
    async def is_so() -> bool:
        found = await status(made)
        return all(getattr(found, name) == value for name, value in wanted.items())

    await until(is_so)


def replicas(made: World) -> list[str]:
    desired = made.desired("cloud")
    return [assignment.worker for assignment in desired.assignments] if desired else []


def newest(made: World, node: str) -> int:
    """The generation of what a node was last told to run."""
    payloads = [item.payload for item in made.seen if (item.address.node, item.address.kind) == (node, Desired.kind)]
    return decode_header(payloads[-1]).sequence


async def running(made: World, **changes: Any) -> None:
    await made.apply(*MODELS.values(), service(**changes))
    for node in ("edge0", "edge1"):
        await made.send(node, Heartbeat(1.0))
    await until(
        lambda: all(made.desired(node) and made.desired(node).assignments for node in ("edge0", "edge1", "cloud"))
    )
    await says(made, "edge0", 1, "little0", inferences=10, sent=2)
    await says(made, "edge1", 1, "little1", inferences=5)
    await made.send("cloud", Observed(0, (worker("big-0"),), inference=(infers("big-0", SECOND),)), 1)
    await becomes(made, phase="Running")


async def test_a_service_goes_to_its_nodes_with_its_models_and_runs(made):
    async with made.coordinator():
        await running(made)
        await until(lambda: _counted(made, 15))
        found = await status(made)
    assert [each.model.version for node in ("edge0", "cloud") for each in made.desired(node).serving] == [1, 2]
    assert {row.name: (row.node, row.role, row.state) for row in found.workers} == {
        "little0": ("edge0", "edge", "Running"),
        "little1": ("edge1", "edge", "Running"),
        "big-0": ("cloud", "cloud", "Running"),
    }
    assert (found.counts.sent, found.replicas.ready, found.cloud_serving.version) == (2, 1, 2)
    assert found.edges[0].serving.version == 1


async def _counted(made: World, inferences: int) -> bool:
    found = await status(made)
    return found.counts.inferences == inferences and found.replicas.ready == 1


async def test_a_node_does_not_count_for_a_worker_of_another(made):
    async with made.coordinator():
        await running(made)
        await until(lambda: _counted(made, 15))
        rows = (infers("little0", inferences=10_000), infers("little1", inferences=6))
        await made.send("edge1", Observed(0, (worker("little1"),), inference=rows), 2)
        await until(lambda: _counted(made, 16))


async def test_replicas_follow_the_load(made, monkeypatch):
    monkeypatch.setattr(scaling, "UP_AFTER_S", 0.0)
    monkeypatch.setattr(scaling, "DOWN_AFTER_S", 0.0)
    async with made.coordinator():
        await running(made)
        before = made.desired("cloud").assignments
        await busy(made, "big-0", waiting=100, share=1.0)
        await until(lambda: replicas(made) == ["big-0", "big-1"])
        assert made.desired("cloud").assignments[:1] == before
        found = (await status(made)).replicas
        assert (found.wanted, found.reason) == (
            2,
            "2 of 4: 100 requests waited, replicas were busy 100% of the time; 4 is the most",
        )

        for name in ("big-0", "big-1"):
            await busy(made, name, waiting=0, share=0.0)
        await until(lambda: replicas(made) == ["big-0"])


async def test_an_edge_has_no_say_in_how_busy_the_cloud_is(made, monkeypatch):
    monkeypatch.setattr(scaling, "UP_AFTER_S", 0.0)
    async with made.coordinator():
        await running(made)
        await busy(made, "big-0", waiting=100, share=1.0, node="edge0")
        await busy(made, "big-0", waiting=3, share=0.5)

        async def heard() -> bool:
            return (await status(made)).replicas.waiting == 3

        await until(heard)
        assert replicas(made) == ["big-0"]


async def test_a_coordinator_that_was_restarted_keeps_the_number_of_replicas(made, monkeypatch):
    monkeypatch.setattr(scaling, "UP_AFTER_S", 0.0)
    async with made.coordinator():
        await running(made)
        await busy(made, "big-0", waiting=100, share=1.0)
        await until(lambda: replicas(made) == ["big-0", "big-1"])
    sent = len(made.events(Desired))
    async with made.coordinator():
        await made.send("edge0", Heartbeat(1.0))
        await until(lambda: len(made.events(Desired)) > sent)
        assert replicas(made) == ["big-0", "big-1"]
        assert (await status(made)).replicas.wanted == 2


async def test_a_replica_that_is_not_wanted_any_more_is_gone_from_the_status_when_it_is_gone(made, monkeypatch):
    """What was last known of a worker stands only for one that is wanted: nobody says that the other has gone."""
    monkeypatch.setattr(scaling, "UP_AFTER_S", 0.0)
    monkeypatch.setattr(scaling, "DOWN_AFTER_S", 0.0)
    async with made.coordinator():
        await running(made)
        await busy(made, "big-0", waiting=100, share=1.0)
        await until(lambda: replicas(made) == ["big-0", "big-1"])
        both = (worker("big-0"), worker("big-1"))
        await made.send("cloud", Observed(0, both, inference=(infers("big-0", SECOND), infers("big-1", SECOND))), 2)
        await until(lambda: _names(made, "big-1"))
        for name in ("big-0", "big-1"):
            await busy(made, name, waiting=0, share=0.0)
        await until(lambda: replicas(made) == ["big-0"])
        await made.send("cloud", Observed(0, (worker("big-0"),), inference=(infers("big-0", SECOND),)), 3)
        await until(lambda: _names(made, "big-0"))


async def _names(made: World, last: str) -> bool:
    return (await status(made)).workers[-1].name == last


async def test_the_end_of_a_worker_is_history_and_receipted(made):
    async with made.coordinator() as coordinator:
        await running(made)
        made.fact(
            WorkerEnded(service().metadata.uid, Role.EDGE, False, "exit 1"), "edge0", worker="little0", task=LEVEL
        )
        await until(lambda: 1 in made.receipts("edge0"))
        assert coordinator.refused["edge0"] == 0


async def test_a_service_says_which_edge_is_lost_and_goes_on(made):
    async with made.coordinator():
        await running(made)
        await made.send("edge1", NodeGone())

        async def degraded() -> bool:
            conditions = {each.type: each for each in (await status(made)).conditions}
            return (
                "Degraded" in conditions and conditions["Degraded"].message == "little1 on edge1: edge1 is not heard of"
            )

        await until(degraded)
        assert (await status(made)).phase == "Running"


async def test_a_service_waits_for_the_job_that_it_feeds(made):
    async with made.coordinator():
        await made.apply(*MODELS.values(), service(edge={"feeds": {"job": "drift"}}))
        for node in ("edge0", "edge1"):
            await made.send(node, Heartbeat(1.0))

        async def waits() -> bool:
            found = (await status(made)).conditions
            return bool(found) and found[0].message.startswith("job drift that worker little0 feeds does not exist")

        await until(waits)
        await made.apply(dataset(), model(1), job(uid="f" * 32))
        await becomes(made, phase="Preparing")


async def test_a_deleted_service_is_gone_when_its_nodes_have_nothing_of_it(made):
    async with made.coordinator():
        await running(made)
        stored = await made.resources.get("JointInferenceService", "digits")
        metadata = {**stored.document["metadata"], "deletionTimestamp": "2030-01-31T12:00:00Z"}
        await made.resources.replace(stored, {**stored.document, "metadata": metadata})
        nodes = ("edge0", "edge1", "cloud")
        await until(lambda: not any(made.desired(node).assignments or made.desired(node).serving for node in nodes))
        for node in nodes:
            await made.send(node, Observed(newest(made, node)), 9)

        async def gone() -> bool:
            try:
                await status(made)
            except NotFound:
                return True
            return False

        await until(gone)
