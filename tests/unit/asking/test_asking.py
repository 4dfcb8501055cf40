"""An application asks an edge: every question ends by its deadline, with the answer that is its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from edgeai import asking
from edgeai.asking import Edge, EdgeAnswer
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.errors import DeadlineMissed, EdgeaiError, ModelError, Overloaded, Refused
from edgeai.events.address import Address, Direction, EventClass, Pattern
from edgeai.events.catalogue import InferenceAnswered, InferenceAsked
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.events.values import pack, unpack
from edgeai.resources.joint import MAX_INPUT_BYTES
from edgeai.store.identity import new_id

Answering = Callable[[InferenceAsked], InferenceAnswered | None]


def doubled(asked: InferenceAsked) -> InferenceAnswered:
    return InferenceAnswered(pack(unpack(asked.content) * 2), "edge", model="digits-small", version=3, id=asked.id)


@asynccontextmanager
async def answered_by(answering: Answering) -> AsyncIterator[tuple[Edge, Callable[..., Awaitable[None]]]]:
    """An edge whose worker answers so, and what sends a further event with the correlation of the last question."""
    broker, last = MemoryBroker(), [b""]
    async with MemoryBus(broker) as mine, MemoryBus(broker) as theirs, Edge("edge1", mine) as edge:
        to = Address("edge1", Direction.LOCAL, EventClass.REQUEST, InferenceAnswered.kind, "digits", edge.application)

        async def say(answer: InferenceAnswered) -> None:
            envelope = Envelope(Header("edge1/digits", correlation=last[0]), answer, new_id(), time.time())
            await theirs.publish(to, encode(envelope))

        async def work() -> None:
            pattern = Pattern("edge1", Direction.LOCAL, EventClass.REQUEST, InferenceAsked.kind, "digits")
            async with theirs.subscribe(pattern) as deliveries:
                listening.set()
                async for delivery in deliveries:
                    envelope = decode(delivery.payload)
                    last[0] = envelope.header.correlation
                    assert isinstance(envelope.event, InferenceAsked)
                    answer = answering(envelope.event)
                    if answer is not None:
                        await say(answer)

        listening = asyncio.Event()
        working = asyncio.create_task(work())
        await listening.wait()
        try:
            yield edge, say
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def test_an_answer_says_who_answered_and_with_what() -> None:
    async with answered_by(doubled) as (edge, _):
        answer = await edge.infer("digits", np.arange(3.0), id="first")
    assert answer.prediction.tolist() == [0.0, 2.0, 4.0]
    assert (answer.by, answer.model, answer.version, answer.id) == ("edge", "digits-small", 3, "first")


async def test_answers_reach_those_who_asked_for_them() -> None:
    async with answered_by(doubled) as (edge, _):
        answers = await asyncio.gather(*(edge.infer("digits", np.float32(number)) for number in range(50)))
    assert [float(answer.prediction) for answer in answers] == [2.0 * number for number in range(50)]


async def test_silence_ends_at_the_deadline_and_says_whose() -> None:
    async with answered_by(lambda _: None) as (edge, _):
        with pytest.raises(DeadlineMissed, match=r"digits on edge1 gave no answer in 0.05 s"):
            await edge.infer("digits", 1.0, deadline_s=0.05)


async def test_who_names_no_deadline_asks_for_the_services_own() -> None:
    heard: list[float] = []

    def answering(asked: InferenceAsked) -> InferenceAnswered:
        heard.append(asked.deadline_s)
        return doubled(asked)

    async with answered_by(answering) as (edge, _):
        await edge.infer("digits", 1.0)
        await edge.infer("digits", 1.0, deadline_s=0)
    assert heard == [0.0, 0.0]


async def test_silence_has_an_end_where_no_deadline_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SILENCE_S", 0.05)
    async with answered_by(lambda _: None) as (edge, _):
        with pytest.raises(DeadlineMissed, match=r"gave no answer in 0.05 s"):
            await edge.infer("digits", 1.0)


@pytest.mark.parametrize("deadline_s", [float("inf"), float("nan"), -1.0, 600.5, "1"])
async def test_what_is_no_deadline_is_refused_before_it_is_sent(deadline_s: float) -> None:
    async with answered_by(doubled) as (edge, _):
        with pytest.raises(Refused, match=r"a deadline is a number of seconds above 0 and up to 600, not"):
            await edge.infer("digits", 1.0, deadline_s=deadline_s)


async def test_an_answer_that_is_no_value_is_the_services_failure() -> None:
    async with answered_by(lambda _: InferenceAnswered(b"\xc1", "edge")) as (edge, _):
        with pytest.raises(ModelError, match="digits on edge1 answers what is no value"):
            await edge.infer("digits", 1.0)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("refused", Refused), ("overloaded", Overloaded), ("late", DeadlineMissed), ("failed", ModelError)],
)
async def test_an_error_keeps_its_kind_and_its_sentence(kind: str, error: type[EdgeaiError]) -> None:
    answer = InferenceAnswered(error="what and why", error_kind=kind)
    async with answered_by(lambda _: answer) as (edge, _):
        with pytest.raises(error, match="what and why"):
            await edge.infer("digits", 1.0)


async def test_what_is_too_large_is_refused_before_it_is_sent() -> None:
    async with answered_by(doubled) as (edge, _):
        with pytest.raises(Refused, match=f"too large: digits takes at most {MAX_INPUT_BYTES}"):
            await edge.infer("digits", np.zeros(MAX_INPUT_BYTES, np.uint8))


async def test_a_correction_comes_after_the_edges_own_answer() -> None:
    told: asyncio.Future[EdgeAnswer] = asyncio.get_running_loop().create_future()
    async with answered_by(doubled) as (edge, say):
        first = await edge.infer("digits", 1.0, on_correction=told.set_result)
        await say(InferenceAnswered(pack(5.0), "cloud", correction=True))
        async with asyncio.timeout(5):
            second = await told
    assert (first.by, first.prediction, second.by, second.prediction) == ("edge", 2.0, "cloud", 5.0)


async def test_an_application_that_fails_at_a_correction_still_hears_answers() -> None:
    called = asyncio.Event()

    def failing(_: EdgeAnswer) -> None:
        called.set()
        raise KeyError("a mistake of the application")

    async with answered_by(doubled) as (edge, say):
        await edge.infer("digits", 1.0, on_correction=failing)
        await say(InferenceAnswered(pack(5.0), "cloud", correction=True))
        async with asyncio.timeout(5):
            await called.wait()
        assert (await edge.infer("digits", 2.0, deadline_s=5.0)).prediction == 4.0


async def test_a_correction_that_nobody_asked_for_is_dropped() -> None:
    async with answered_by(doubled) as (edge, say):
        await edge.infer("digits", 1.0)
        await say(InferenceAnswered(pack(5.0), "cloud", correction=True))
        assert (await edge.infer("digits", 2.0)).prediction == 4.0
