"""A worker's session against a scripted aggregation side, over a bus in memory."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.errors import BusError, UpdateError
from edgeai.events.catalogue import (
    Abstention,
    BlobRef,
    Evaluation,
    HeldAtEdge,
    Offer,
    Outcome,
    Progress,
    Report,
)
from edgeai.launcher.slots import SessionFile, SlotDir
from edgeai.store.arrays import ArrayFile
from edgeai.worker import session as sessions
from edgeai.worker.round import Round
from edgeai.worker.session import Session
from edgeai.worker.task import Task
from scripted_aggregation import Scripted, decoded, model_ref, scripted, slot_of, until, weights, worker_environment

BIG = 200_000  # 2.4 MB: neither model nor update rides inside its event


@dataclass
class World:
    broker: MemoryBroker
    slot: SlotDir
    side: Scripted

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[Task]:
        """What `edgeai.join()` does, with a bus in memory. Leaving is left to the test: see `leaving`."""
        bus = MemoryBus(self.broker)
        session = Session(worker_environment(self.slot), bus)
        async with bus, session.listening():
            await session.note()
            yield Task(session)

    def noted(self) -> SessionFile | None:
        return self.slot.read_session()


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(sessions, "RESEND_S", 0.05)
    monkeypatch.setattr(sessions, "MODEL_LOOK_S", 0.05)
    broker, slot = MemoryBroker(), slot_of(tmp_path / "slot", "edge1", epochs=2)
    async with scripted(MemoryBus(broker), slot, tmp_path / "cloud") as side:
        yield World(broker, slot, side)


@asynccontextmanager
async def going_on(rounds: AsyncIterator[Round]) -> AsyncIterator[None]:
    """The script has left its round and waits for the next."""
    waiting = asyncio.ensure_future(anext(rounds, None))
    yield
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def first(task: Task) -> Round:
    async with asyncio.timeout(20):
        return await anext(task.rounds())


async def submitted(world: World, task: Task, value: float = 1.0, **more: object) -> tuple[Round, Offer]:
    """Round 1 with its update handed in, and the first offer of it."""
    await world.side.open(1, weights(), **more)
    round_ = await first(task)
    await round_.submit(weights(value), num_examples=5)
    return round_, await world.side.next(Offer)


# --- what a round is


async def test_a_round_says_what_is_asked(world):
    await world.side.open(3, weights(0.5), train=True, validate=True, deadline_s=60.0)
    async with world.joined() as task:
        round_ = await first(task)
    assert (round_.number, round_.train, round_.validate, round_.parameters["epochs"]) == (3, True, True, 2)


async def test_the_weights_of_a_round_are_the_models_arrays_in_order(world):
    await world.side.open(1, weights(0.5))
    async with world.joined() as task:
        round_ = await first(task)
    assert [(array.dtype.name, array.tolist()) for array in round_.weights] == [
        (array.dtype.name, array.tolist()) for array in weights(0.5)
    ]


async def test_a_round_without_a_model_has_no_weights(world):
    await world.side.open(0, None)
    async with world.joined() as task:
        assert (await first(task)).weights == []


async def test_time_runs_from_the_arrival_of_a_round_not_from_when_the_script_takes_it(world, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(Session, "now", lambda self: clock[0])
    async with world.joined() as task:
        await world.side.open(1, weights(), deadline_s=60.0)
        await until(lambda: task._part._state is not None)
        clock[0] += 45
        assert (await first(task)).deadline_s == 15.0


async def test_a_round_of_others_is_not_yielded(world):
    async with world.joined() as task:
        rounds = task.rounds()
        waiting = asyncio.ensure_future(anext(rounds))
        await world.side.open(1, weights(), asked=("work1",))
        await world.side.open(2, weights())
        assert (await waiting).number == 2


async def test_rounds_end_with_the_task(world):
    async with world.joined() as task:
        await world.side.end()
        assert [round_ async for round_ in task.rounds()] == []


async def test_a_worker_says_which_round_it_trains(world):
    await world.side.open(1, weights())
    async with world.joined() as task:
        await first(task)
        assert await world.side.next(Progress) == Progress(1, "training")


# --- big models


async def test_a_big_model_is_a_read_only_map_of_the_file_in_the_slot(world):
    ref = await world.side.place_model(weights(2.0, size=BIG))
    await world.side.open(1, ref)
    async with world.joined() as task:
        first_array = (await first(task)).weights[0]
    owner = first_array
    while owner.base is not None and not isinstance(owner, np.memmap):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    assert not first_array.flags.writeable


async def test_a_round_waits_for_its_big_model(world):
    blob = model_ref(weights(2.0, size=BIG))
    await world.side.open(1, BlobRef(blob.digest, blob.size_bytes))
    async with world.joined() as task:
        waiting = asyncio.ensure_future(first(task))
        await until(lambda: task._part._state is not None)
        assert not waiting.done()
        await world.side.place_model(weights(2.0, size=BIG))
        assert (await waiting).weights[0][0, 0] == 2.0


async def test_a_model_is_found_without_word_from_the_controller(world, tmp_path):
    blob = model_ref(weights(2.0, size=BIG))
    await world.side.open(1, BlobRef(blob.digest, blob.size_bytes))
    async with world.joined() as task:
        waiting = asyncio.ensure_future(first(task))
        await until(lambda: task._part._state is not None)
        part = world.slot.model("part")
        part.write_bytes(blob.inline)
        part.replace(world.slot.model(blob.digest))
        assert (await waiting).number == 1


async def test_a_round_that_is_overtaken_while_its_model_travels_is_skipped(world):
    blob = model_ref(weights(2.0, size=BIG))
    await world.side.open(1, BlobRef(blob.digest, blob.size_bytes))
    async with world.joined() as task:
        waiting = asyncio.ensure_future(first(task))
        await until(lambda: task._part._state is not None)
        await world.side.open(2, weights())
        assert (await waiting).number == 2


async def test_a_model_that_is_not_what_its_digest_says_is_refused_and_the_session_goes_on(world):
    ref = model_ref(weights())
    with capture_logs() as logs:
        await world.side.open(1, BlobRef("0" * 64, ref.size_bytes, ref.inline))
        async with world.joined() as task:
            waiting = asyncio.ensure_future(first(task))
            await until(lambda: any(line["event"] == "event_refused" for line in logs))
            await world.side.open(2, weights())
            assert (await waiting).number == 2


# --- updates


async def test_an_update_is_offered_with_what_belongs_to_it(world):
    state = await world.side.open(1, weights())
    async with world.joined() as task:
        round_ = await first(task)
        await round_.submit(weights(7.0), num_examples=5, metrics={"loss": 0.5})
        offer = await world.side.next(Offer)
    assert (offer.number, offer.base_digest, offer.num_examples, offer.metrics) == (
        1,
        state.model.digest,
        5,
        {"loss": 0.5},
    )
    assert decoded(offer)[0].tolist() == weights(7.0)[0].tolist()


async def test_a_big_update_is_pulled(world):
    ref = await world.side.place_model(weights(2.0, size=BIG))
    await world.side.open(1, ref)
    async with world.joined() as task:
        await (await first(task)).submit(weights(3.0, size=BIG), num_examples=1)
        offer = await world.side.next(Offer)
        assert offer.blob.inline is None
        pulled = ArrayFile.open(await world.side.pull(offer), offer.blob.digest)
    assert float(pulled[1].min()) == 3.0


async def test_values_that_are_not_finite_are_left_to_the_aggregation_worker(world):
    async with world.joined() as task:
        _, offer = await submitted(world, task, float("nan"))
    assert np.isnan(decoded(offer)[0]).all()


async def test_an_update_is_offered_until_there_is_a_verdict(world):
    async with world.joined() as task:
        _, offer = await submitted(world, task)
        again = await world.side.next(Offer)
        await world.side.tell(again, Outcome.COUNTED)
        await until(lambda: world.noted() == SessionFile(False, 1, 0))
    assert again == offer


async def test_an_update_is_noted_as_unsettled_until_its_verdict(world):
    async with world.joined() as task:
        await submitted(world, task)
        assert world.noted() == SessionFile(ended=False, submitted=1, unsettled=1)


@pytest.mark.parametrize(
    ("outcome", "reason", "seen"),
    [
        (Outcome.COUNTED, "", Outcome.COUNTED),
        (Outcome.DUPLICATE, "", Outcome.COUNTED),
        (Outcome.DUPLICATE, "another update of this round counts", Outcome.STALE),
        (Outcome.REFUSED, "array 0 has values that are not finite", Outcome.REFUSED),
    ],
)
async def test_a_script_sees_what_became_of_its_update(world, outcome, reason, seen):
    async with world.joined() as task:
        round_, offer = await submitted(world, task)
        await world.side.tell(offer, outcome, reason)
        verdict = await round_.verdict()
    assert (verdict.outcome, verdict.reason) == (seen, reason)


async def test_an_update_of_a_closed_round_is_stale(world):
    async with world.joined() as task:
        round_, offer = await submitted(world, task)
        await world.side.close(1)
        await world.side.tell(offer, Outcome.STALE, "round 1 is closed")
        assert (await round_.verdict()).outcome is Outcome.STALE


async def test_a_verdict_on_another_update_settles_nothing(world):
    async with world.joined() as task:
        _, offer = await submitted(world, task)
        await world.side.tell(offer, Outcome.REFUSED, digest="f" * 64)
        await world.side.tell(offer, Outcome.REFUSED, task_uid="f" * 32)
        await world.side.next(Offer)
        assert world.noted().unsettled == 1


async def test_updates_are_removed_when_their_round_is_long_closed(world):
    async with world.joined() as task:
        await submitted(world, task)
        await world.side.open(3, weights(2.0))
        await until(lambda: not list(world.slot.updates.iterdir()))
        await until(lambda: world.noted().unsettled == 0)


async def test_an_update_of_the_round_before_is_kept(world):
    async with world.joined() as task:
        _, offer = await submitted(world, task)
        await world.side.tell(offer, Outcome.COUNTED)
        await world.side.open(2, weights(2.0))
        await until(lambda: task._part._state.number == 2)
        assert (world.slot.updates / "1.safetensors").exists()


# --- another attempt


async def test_a_refused_update_is_asked_for_again_with_the_next_attempt(world):
    async with world.joined() as task:
        rounds = task.rounds()
        await world.side.open(1, weights())
        round_ = await anext(rounds)
        await round_.submit(weights(float("nan")), num_examples=5)
        await world.side.tell(await world.side.next(Offer), Outcome.REFUSED, "not finite")
        await round_.verdict()
        waiting = asyncio.ensure_future(anext(rounds))
        await world.side.open(1, weights(), attempt=2)
        await (await waiting).submit(weights(1.0), num_examples=5)
        world.side.forget()
        assert decoded(await world.side.next(Offer))[0][0, 0] == 1.0


async def test_an_update_that_was_late_is_offered_to_the_next_attempt_and_not_trained_again(world):
    async with world.joined() as task:
        rounds = task.rounds()
        await world.side.open(1, weights())
        round_ = await anext(rounds)
        await round_.submit(weights(1.0), num_examples=5)
        offer = await world.side.next(Offer)
        await world.side.close(1)
        await world.side.tell(offer, Outcome.STALE, "round 1 is closed")
        await round_.verdict()
        await until(lambda: world.noted().unsettled == 0)
        world.side.forget()
        waiting = asyncio.ensure_future(anext(rounds))
        await world.side.open(1, weights(), attempt=2)
        again = await world.side.next(Offer)
        await world.side.open(2, weights(5.0))
        assert (again.blob.digest, (await waiting).number) == (offer.blob.digest, 2)


async def test_a_verdict_on_an_attempt_that_is_over_does_not_settle_the_next(world):
    async with world.joined() as task:
        _, offer = await submitted(world, task)
        await world.side.open(1, weights(), attempt=2)
        await until(lambda: task._part._state.attempt == 2)
        await world.side.tell(offer, Outcome.STALE, "round 1 is closed")
        await world.side.next(Offer)
        await world.side.next(Offer)
        assert world.noted().unsettled == 1


async def test_an_aggregation_worker_that_lost_everything_is_offered_a_counted_update_again(world):
    async with world.joined() as task:
        round_, offer = await submitted(world, task)
        await world.side.tell(offer, Outcome.COUNTED)
        await round_.verdict()
        await until(lambda: world.noted().unsettled == 0)
        world.side.forget()
        world.side.lose_everything()
        await world.side.open(1, weights())
        assert (await world.side.next(Offer)).blob.digest == offer.blob.digest


async def test_a_round_that_comes_again_after_the_store_was_lost_is_yielded_again(world):
    async with world.joined() as task:
        rounds = task.rounds()
        await world.side.open(5, weights(5.0))
        assert (await anext(rounds)).number == 5
        waiting = asyncio.ensure_future(anext(rounds))
        world.side.lose_everything()
        await world.side.open(1, weights())
        assert (await waiting).number == 1


# --- a new session in the same slot


async def test_a_restarted_worker_offers_the_finished_update_and_does_not_train_again(world):
    async with world.joined() as task:
        _, offer = await submitted(world, task)
    world.side.forget()
    async with world.joined() as task:
        waiting = asyncio.ensure_future(first(task))
        again = await world.side.next(Offer)
        await world.side.open(2, weights(2.0))
        assert (again.blob.digest, (await waiting).number) == (offer.blob.digest, 2)


async def test_a_round_that_was_not_submitted_is_trained_again_after_a_restart(world):
    await world.side.open(1, weights())
    async with world.joined() as task:
        await first(task)
    async with world.joined() as task:
        assert (await first(task)).number == 1


async def test_the_evaluation_of_a_round_survives_a_restart_with_its_update(world):
    await world.side.open(2, weights(), validate=True)
    async with world.joined() as task:
        round_ = await first(task)
        await round_.report({"accuracy": 0.5}, num_examples=4)
        await round_.submit(weights(1.0), num_examples=5)
    world.side.forget()
    async with world.joined():
        assert (await world.side.next(Offer)).report == Evaluation({"accuracy": 0.5}, 4)


async def test_a_restarted_worker_remembers_that_it_submitted(world):
    async with world.joined() as task:
        await submitted(world, task)
        await world.side.open(3, weights(3.0))
        await until(lambda: world.noted().unsettled == 0)
    async with world.joined():
        assert world.noted().submitted == 1


# --- validation


async def test_a_report_is_sent_until_it_is_settled(world):
    await world.side.open(2, weights(), validate=True)
    async with world.joined() as task:
        await (await first(task)).report({"accuracy": 0.5}, num_examples=4)
        report = await world.side.next(Report)
        assert await world.side.next(Report) == report
        await world.side.settle_report(2)
        await until(lambda: not task._part._unsettled_reports())
    assert report.evaluation == Evaluation({"accuracy": 0.5}, 4)


async def test_a_script_that_looks_at_nothing_declines_a_round_that_only_validates(world):
    await world.side.open(4, weights(), train=False, validate=True)
    async with world.joined() as task:
        rounds = task.rounds()
        await (await anext(rounds)).submit(weights(1.0), num_examples=5)
        async with going_on(rounds):
            report = await world.side.next(Report)
    assert (report.number, report.evaluation) == (4, None)


async def test_a_submit_in_a_round_that_only_validates_is_dropped_with_a_notice(world):
    await world.side.open(4, weights(), train=False, validate=True)
    with capture_logs() as logs:
        async with world.joined() as task:
            round_ = await first(task)
            await round_.submit(weights(1.0), num_examples=5)
            verdict = await round_.verdict()
    assert (verdict.outcome, verdict.reason) == (Outcome.STALE, "the round only validates")
    assert [line["round"] for line in logs if line["event"] == "update_dropped"] == [4]
    assert not list(world.slot.updates.iterdir())


async def test_an_offer_waits_for_a_report_that_comes_after_the_submit(world):
    await world.side.open(2, weights(), validate=True)
    async with world.joined() as task:
        round_ = await first(task)
        await round_.submit(weights(1.0), num_examples=5)
        await round_.report({"accuracy": 0.5}, num_examples=4)
        assert (await world.side.next(Offer)).report == Evaluation({"accuracy": 0.5}, 4)


async def test_an_offer_without_a_report_goes_out_when_the_script_leaves_the_round(world):
    await world.side.open(2, weights(), validate=True)
    async with world.joined() as task:
        rounds = task.rounds()
        await (await anext(rounds)).submit(weights(1.0), num_examples=5)
        async with going_on(rounds):
            assert (await world.side.next(Offer)).report is None


async def test_waiting_for_the_verdict_sends_the_offer_without_a_report(world):
    await world.side.open(2, weights(), validate=True)
    async with world.joined() as task:
        round_ = await first(task)
        await round_.submit(weights(1.0), num_examples=5)
        waiting = asyncio.create_task(round_.verdict())
        await world.side.tell(await world.side.next(Offer), Outcome.COUNTED)
        assert (await waiting).outcome is Outcome.COUNTED


# --- abstaining


async def test_a_script_that_goes_on_without_a_submit_abstains_until_that_is_settled(world):
    await world.side.open(1, weights())
    async with world.joined() as task:
        rounds = task.rounds()
        await anext(rounds)
        async with going_on(rounds):
            abstention = await world.side.next(Abstention)
            assert await world.side.next(Abstention) == abstention
            await world.side.settle_abstention(1)
            await until(lambda: not task._part._abstentions)
    assert (abstention.number, abstention.base_digest) == (1, model_ref(weights()).digest)


async def test_an_abstention_says_what_was_reported(world):
    await world.side.open(2, weights(), validate=True)
    async with world.joined() as task:
        rounds = task.rounds()
        await (await anext(rounds)).report({"accuracy": 0.5}, num_examples=4)
        async with going_on(rounds):
            assert (await world.side.next(Abstention)).report == Evaluation({"accuracy": 0.5}, 4)


async def test_who_leaves_the_task_in_a_round_does_not_abstain_as_it_may_be_started_again(world):
    await world.side.open(1, weights())
    async with world.joined() as task:
        await first(task)
        await task._part.leave()
        assert not task._part._abstentions


async def test_a_round_that_only_validates_knows_no_abstention(world):
    await world.side.open(4, weights(), train=False, validate=True)
    async with world.joined() as task:
        rounds = task.rounds()
        await (await anext(rounds)).report({"accuracy": 0.5}, num_examples=4)
        async with going_on(rounds):
            await world.side.next(Report)
            assert not task._part._abstentions


# --- leaving


async def test_leaving_waits_for_the_verdict(world):
    async with world.joined() as task:
        _, offer = await submitted(world, task)
        leaving = asyncio.create_task(task._part.leave())
        await world.side.next(Offer)
        assert not leaving.done()
        await world.side.tell(offer, Outcome.COUNTED)
        await leaving


async def test_leaving_in_the_middle_of_a_round_declines_what_was_asked(world):
    await world.side.open(2, weights(), validate=True)
    async with world.joined() as task:
        await first(task)
        leaving = asyncio.create_task(task._part.leave())
        assert (await world.side.next(Report)).evaluation is None
        await world.side.settle_report(2)
        await leaving


async def test_the_end_of_the_task_settles_everything(world):
    async with world.joined() as task:
        round_, _ = await submitted(world, task)
        await world.side.end()
        await task._part.leave()
        assert (await round_.verdict()).reason == "the task has ended"
        await until(lambda: world.noted().ended)
        assert world.noted() == SessionFile(ended=True, submitted=1, unsettled=0)


# --- the bus


async def test_a_worker_makes_itself_known_when_it_joins(world):
    async with world.joined():
        await world.side.next(HeldAtEdge)


async def test_a_worker_makes_itself_known_again_when_it_hears_what_it_knows_already(world):
    """The owner of the round sends it again after a restart: whoever joined meanwhile is unknown to it."""
    await world.side.open(1, weights(), asked=())
    async with world.joined() as task:
        await until(lambda: task._part._state is not None)
        await until(lambda: any(isinstance(event, HeldAtEdge) and event.documents for event in world.side.heard))
        known = len([event for event in world.side.heard if isinstance(event, HeldAtEdge)])
        await world.side._documents.resend_all()
        await until(lambda: len([event for event in world.side.heard if isinstance(event, HeldAtEdge)]) > known)


async def test_without_a_broker_a_worker_says_so_once_and_joins_later(world, monkeypatch):
    monkeypatch.setattr(sessions, "BROKER_PATIENCE_S", 0.01)
    world.broker.stop()
    with capture_logs() as logs:
        async with world.joined() as task:
            waiting = asyncio.create_task(first(task))
            await until(lambda: any(line["event"] == "broker_awaited" for line in logs))
            world.broker.start()
            await world.side.open(1, weights())
            assert (await waiting).number == 1
    assert [line["event"] for line in logs if line["event"] in {"broker_awaited", "task_joined"}] == [
        "broker_awaited",
        "task_joined",
    ]


async def test_an_update_that_was_submitted_without_a_broker_is_offered_when_it_is_back(world):
    async with world.joined() as task:
        await world.side.open(1, weights())
        round_ = await first(task)
        world.broker.stop(forget=True)
        await round_.submit(weights(1.0), num_examples=5)
        world.broker.start()
        assert (await world.side.next(Offer)).number == 1


async def test_what_breaks_the_session_reaches_the_script(world, monkeypatch):
    def refuse(self, *patterns):
        raise BusError("the broker refuses the subscription")

    monkeypatch.setattr(MemoryBus, "subscribe", refuse)
    async with world.joined() as task:
        with pytest.raises(BusError, match="refuses the subscription"):
            await first(task)


async def test_a_second_submit_is_an_error_at_once(world):
    async with world.joined() as task:
        round_, _ = await submitted(world, task)
        with pytest.raises(UpdateError, match="round 1 was submitted already"):
            await round_.submit(weights(1.0), num_examples=5)


async def test_what_does_not_travel_is_an_error_at_once_and_may_be_put_right(world):
    await world.side.open(0, None)
    async with world.joined() as task:
        round_ = await first(task)
        with pytest.raises(UpdateError, match="array 0 has dtype complex128"):
            await round_.submit([np.zeros(2, "complex128")], num_examples=5)
        await round_.submit(weights(1.0), num_examples=5)
        assert (await world.side.next(Offer)).number == 0


# --- laws

NUISANCES = ["restart", "outage", "repeated", "stale too early", "foreign verdict", "lost store"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(NUISANCES), max_size=6))
def test_whatever_happens_meanwhile_a_round_is_trained_once_and_offered_as_one(history):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "RESEND_S", 0.01)
        asyncio.run(play(history, Path(folder)))


async def play(history: list[str], folder: Path) -> None:
    broker, slot, trained = MemoryBroker(), slot_of(folder / "slot", "edge1"), []
    async with scripted(MemoryBus(broker), slot, folder / "cloud") as side:
        world = World(broker, slot, side)
        running = asyncio.create_task(run_script(world, trained))
        await side.open(1, weights(1.0))
        offer = await side.offer_of(1)
        for nuisance in history:
            match nuisance:
                case "restart":
                    await stopped(running)
                    running = asyncio.create_task(run_script(world, trained))
                case "outage":
                    broker.stop(forget=True)
                    broker.start()
                case "repeated":
                    await side.open(1, weights(1.0), deadline_s=7.0)
                case "stale too early":
                    await side.tell(offer, Outcome.STALE, "round 1 is closed")
                case "foreign verdict":
                    await side.tell(offer, Outcome.REFUSED, digest="0" * 64)
                case "lost store":
                    side.lose_everything()
                    await side.open(1, weights(1.0))
            side.forget()
            assert (await side.offer_of(1)).blob.digest == offer.blob.digest
        await side.tell(offer, Outcome.COUNTED)
        await side.open(2, weights(2.0))
        await side.offer_of(2)
        await stopped(running)
    assert trained == [1, 2]


async def run_script(world: World, trained: list[int]) -> None:
    async with world.joined() as task:
        async for round_ in task.rounds():
            trained.append(round_.number)
            await round_.submit([array + 1 for array in round_.weights], num_examples=5)


async def stopped(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
