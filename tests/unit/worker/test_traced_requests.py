"""A request of a joint inference service is in its caller's trace if the caller brought one, and in none otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from collector import Collector, Span, collecting
from edgeai import tracing
from edgeai.asking import Edge
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.events.address import Direction, EventClass, Pattern
from edgeai.events.catalogue import InferencesForwarded, Role
from edgeai.events.envelope import decode
from joint_world import SERVICE, UID, serving, slot_of, spec_of
from joint_world import until as until_true

X = np.array([1.0, 2.0], "float32")
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        tracing.start("edgeai-test", {"OTEL_EXPORTER_OTLP_ENDPOINT": found.url})
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found
        tracing.stop()


@asynccontextmanager
async def service(folder: Path, broker: MemoryBroker) -> AsyncIterator[Edge]:
    """Edge and cloud worker of a service that sends everything to the cloud, and an application."""
    spec = spec_of()
    async with AsyncExitStack() as stack:
        for role, worker, node, value in ((Role.CLOUD, "big-0", "cloud", 3.0), (Role.EDGE, "little", "edge1", 2.0)):
            slot = slot_of(folder / worker, spec, role, node=node, worker=worker)
            await stack.enter_async_context(serving(slot, MemoryBus(broker), value))
        bus = await stack.enter_async_context(MemoryBus(broker))
        edge = await stack.enter_async_context(Edge("edge1", bus, "shop"))
        yield edge


async def asked(edge: Edge, traceparent: str = "") -> None:
    """Asks until the workers listen; every answer is one of the cloud."""
    answer = await edge.infer(SERVICE, X, deadline_s=5, traceparent=traceparent)
    assert answer.by == "cloud"


async def asked_and_told(edge: Edge, collector: Collector, traceparent: str) -> list[Span]:
    await asked(edge, traceparent)
    await until_true(lambda: len(collector.of(TRACE)) >= 2)
    return collector.of(TRACE)


async def test_the_cloud_answers_below_the_edge_and_the_edge_below_its_caller(tmp_path: Path, collector: Collector):
    async with service(tmp_path, MemoryBroker()) as edge:
        spans = {span.node: span for span in await asked_and_told(edge, collector, SAMPLED)}
    assert (spans["edge1"].name, spans["cloud"].name) == ("infer", "infer")
    assert spans["edge1"].parent == CALLER
    assert spans["cloud"].parent == spans["edge1"].id
    assert spans["edge1"].about["by"] == "cloud"


@pytest.mark.parametrize("traceparent", ["", NOT_SAMPLED, "00-nonsense"])
async def test_a_request_that_nobody_wants_traced_is_in_no_trace(
    tmp_path: Path, collector: Collector, traceparent: str
):
    async with service(tmp_path, MemoryBroker()) as edge:
        await asked(edge, traceparent)
        assert tracing.flush(10)
    assert [span.name for span in collector.spans if span.trace != UID] == []


@pytest.mark.parametrize(("traceparent", "carried"), [(SAMPLED, SAMPLED), (NOT_SAMPLED, ""), ("", "")])
async def test_without_an_exporter_the_callers_trace_reaches_the_cloud(tmp_path: Path, traceparent: str, carried: str):
    broker = MemoryBroker()
    pattern = Pattern(None, Direction.UP, EventClass.REQUEST, InferencesForwarded.kind, None, None)
    async with MemoryBus(broker) as bus, bus.subscribe(pattern) as deliveries, service(tmp_path, broker) as edge:
        await asked(edge, traceparent)
        event = decode((await anext(aiter(deliveries))).payload).event
    assert isinstance(event, InferencesForwarded)
    assert [each.trace for each in event.requests] == [carried]
