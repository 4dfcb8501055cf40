"""Whole scripts that join a task, over real brokers: in this process, and as processes that are killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

import edgeai
from edgeai import logs
from edgeai.bus.mqtt import MqttBus
from edgeai.bus.nats import NatsBus
from edgeai.errors import LaunchError, UpdateError
from edgeai.events.catalogue import BlobRef, Evaluation, HeldAtEdge, Offer, Outcome, Report
from edgeai.launcher import ExitReason, ExitRecord, LaunchSpec, ProcessLauncher
from edgeai.launcher.slots import SessionFile, SlotDir
from edgeai.store.arrays import ArrayFile
from edgeai.worker.task import TERMINATED
from scripted_aggregation import (
    PATIENCE_S,
    Scripted,
    decoded,
    environment_of,
    model_ref,
    scripted,
    slot_of,
    until,
    weights,
)

EDGE_BROKERS = ["mosquitto_url", "nats_mqtt_url"]
BIG = 500_000  # 6 MB

TRAIN_ONE_UP = """
    import asyncio
    import edgeai

    async def main():
        async with edgeai.join() as task:
            async for round in task.rounds():
                print("training", round.number)
                await round.submit([array + 1 for array in round.weights], num_examples=5)

    asyncio.run(main())
"""
TRAIN_ONE_UP_SYNC = """
    import edgeai

    with edgeai.join_sync() as task:
        for round in task.rounds():
            print("training", round.number)
            round.submit([array + 1 for array in round.weights], num_examples=5)
"""
TRAIN_FOR_EVER = """
    import asyncio, threading
    import edgeai

    async def main():
        async with edgeai.join() as task:
            async for round in task.rounds():
                print("training", round.number)
                await asyncio.to_thread(threading.Event().wait)

    asyncio.run(main())
"""
TRAIN_FOR_EVER_SYNC = """
    import time
    import edgeai

    with edgeai.join_sync() as task:
        try:
            for round in task.rounds():
                print("training", round.number)
                time.sleep(1000)
        finally:
            print("tidied up")
"""


@pytest.fixture(autouse=True)
def _logging_of_this_process_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loggers remember the first configuration they see, and would take it to the tests that follow."""
    monkeypatch.setattr(logs, "configure", lambda: None)


@dataclass
class Edge:
    """A slot on a real broker, with a scripted aggregation side."""

    slot: SlotDir
    side: Scripted
    environ: dict[str, str]

    async def run(self, script: str, **more: str) -> ExitRecord:
        """Run a script as a controller does and wait for its end."""
        launcher = ProcessLauncher()
        running = await self.start(script, **more)
        async with asyncio.timeout(PATIENCE_S):
            return await launcher.wait(running)

    async def start(self, script: str, **more: str) -> Any:
        boot = self.slot.script / "main.py"
        boot.write_text(textwrap.dedent(script))
        environ = {**self.environ, "PYTHONPATH": str(Path(edgeai.__file__).parents[1]), **more}
        return await ProcessLauncher().start(
            LaunchSpec("w", self.slot.path, ("python", "-u", str(boot)), environ, self.slot.script)
        )

    def log(self) -> str:
        return self.slot.log.read_text() if self.slot.log.exists() else ""


@asynccontextmanager
async def edge_at(url: str, node: str, folder: Path) -> AsyncIterator[Edge]:
    slot = slot_of(folder / "slot", node, epochs=2)
    async with scripted(MqttBus(url, client_id=f"{node}-cloud"), slot, folder / "cloud") as side:
        yield Edge(slot, side, environment_of(slot, url))
    launcher = ProcessLauncher()
    if (running := await launcher.adopt("w", slot.path)) is not None:
        await launcher.stop(running, 0.0)


@pytest.fixture
async def edge(mosquitto_url: str, node: str, tmp_path: Path) -> AsyncIterator[Edge]:
    async with edge_at(mosquitto_url, node, tmp_path) as found:
        yield found


@pytest.fixture
def as_worker(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the worker of the slot."""
    for name, value in edge.environ.items():
        monkeypatch.setenv(name, value)


# --- in this process


@pytest.mark.parametrize("broker", EDGE_BROKERS)
async def test_a_task_from_the_first_round_to_its_end(broker, request, node, tmp_path, monkeypatch):
    async with edge_at(request.getfixturevalue(broker), node, tmp_path) as edge:
        for name, value in edge.environ.items():
            monkeypatch.setenv(name, value)
        seen = []

        async def script() -> None:
            async with edgeai.join() as task:
                async for round_ in task.rounds():
                    seen.append(round_.number)
                    await round_.submit([array + 1 for array in round_.weights], num_examples=5)

        running = asyncio.create_task(script())
        model = weights(0.0)
        for number in (1, 2, 3):
            await edge.side.open(number, model)
            offer = await edge.side.offer_of(number)
            model = decoded(offer)
            await edge.side.tell(offer, Outcome.COUNTED)
        await edge.side.end()
        async with asyncio.timeout(PATIENCE_S):
            await running
        assert (seen, float(model[0][0, 0])) == ([1, 2, 3], 3.0)


@pytest.mark.parametrize("broker", EDGE_BROKERS)
async def test_a_big_model_comes_from_the_slot_and_a_big_update_is_pulled(broker, request, node, tmp_path, monkeypatch):
    async with edge_at(request.getfixturevalue(broker), node, tmp_path) as edge:
        for name, value in edge.environ.items():
            monkeypatch.setenv(name, value)
        blob = model_ref(weights(1.0, size=BIG))
        await edge.side.open(1, BlobRef(blob.digest, blob.size_bytes))
        async with edgeai.join() as task:
            waiting = asyncio.ensure_future(anext(task.rounds()))
            await edge.side.place_model(weights(1.0, size=BIG))
            round_ = await waiting
            await round_.submit([array + 1 for array in round_.weights], num_examples=5)
            offer = await edge.side.next(Offer)
            pulled = ArrayFile.open(await edge.side.pull(offer), offer.blob.digest)
            await edge.side.tell(offer, Outcome.COUNTED)
        assert float(pulled[1].max()) == 2.0


async def test_a_worker_that_joins_before_there_is_a_broker_waits_for_it(new_broker, node, tmp_path, monkeypatch):
    broker: Any = await asyncio.to_thread(new_broker, "mosquitto")
    slot = slot_of(tmp_path / "slot", node)
    for name, value in environment_of(slot, broker.url).items():
        monkeypatch.setenv(name, value)
    await asyncio.to_thread(broker.stop)
    async with edgeai.join() as task:
        waiting = asyncio.ensure_future(anext(task.rounds()))
        await asyncio.to_thread(broker.start)
        async with scripted(MqttBus(broker.url, client_id="cloud"), slot, tmp_path / "cloud") as side:
            await side.open(1, weights())
            async with asyncio.timeout(PATIENCE_S):
                assert (await waiting).number == 1


async def test_a_worker_of_the_cloud_joins_over_nats(nats_url, node, tmp_path, monkeypatch):
    slot = slot_of(tmp_path / "slot", node)
    for name, value in environment_of(slot, nats_url).items():
        monkeypatch.setenv(name, value)
    async with scripted(NatsBus(nats_url, name="cloud"), slot, tmp_path / "cloud") as side, edgeai.join() as task:
        await side.next(HeldAtEdge)
        await side.open(1, weights())
        async with asyncio.timeout(PATIENCE_S):
            assert (await anext(task.rounds())).number == 1


@pytest.mark.usefixtures("as_worker")
async def test_an_error_in_the_script_passes_without_waiting_for_a_verdict(edge):
    async def script() -> None:
        async with edgeai.join() as task:
            round_ = await anext(task.rounds())
            await round_.submit(weights(1.0), num_examples=5)
            raise ZeroDivisionError

    await edge.side.open(1, weights())
    with pytest.raises(ZeroDivisionError):
        await script()
    assert edge.slot.read_session() == SessionFile(ended=False, submitted=1, unsettled=1)


@pytest.mark.usefixtures("as_worker")
async def test_a_script_that_ends_by_sys_exit_with_0_waits_for_its_verdict(edge):
    async def script() -> None:
        async with edgeai.join() as task:
            await (await anext(task.rounds())).submit(weights(1.0), num_examples=5)
            sys.exit(0)

    async def settle() -> None:
        await edge.side.tell(await edge.side.next(Offer), Outcome.COUNTED)

    await edge.side.open(1, weights())
    settling = asyncio.create_task(settle())
    with pytest.raises(SystemExit):
        await script()
    await settling
    assert edge.slot.read_session() == SessionFile(ended=False, submitted=1, unsettled=0)


async def test_a_program_that_no_controller_started_is_told_so(monkeypatch):
    for name in [name for name in os.environ if name.startswith("EDGEAI_")]:
        monkeypatch.delenv(name)
    with pytest.raises(LaunchError, match="started by an edgeai controller"):
        async with edgeai.join():
            pass


@pytest.mark.usefixtures("as_worker")
@pytest.mark.parametrize(("by_script", "calls"), [(False, 1), (True, 0)])
async def test_logging_is_set_up_unless_the_script_has_done_so(by_script, calls, monkeypatch):
    called = []
    monkeypatch.setattr(logs, "configure", lambda: called.append("configure"))
    monkeypatch.setattr(structlog, "is_configured", lambda: by_script)
    async with edgeai.join():
        assert len(called) == calls


# --- without await


@pytest.mark.usefixtures("as_worker")
async def test_a_synchronous_script_reports_submits_and_reads_its_verdict(edge):
    def script() -> list[object]:
        seen: list[object] = []
        with edgeai.join_sync() as task:
            for round_ in task.rounds():
                round_.report({"accuracy": 0.5}, num_examples=4)
                round_.submit([array + 1 for array in round_.weights], num_examples=5)
                seen += [round_.number, round_.validate, 0 < round_.deadline_s <= 300, round_.verdict().outcome]
        return seen

    await edge.side.open(1, weights(), validate=True)
    running = asyncio.create_task(asyncio.to_thread(script))
    report, offer = await edge.side.next(Report), await edge.side.next(Offer)
    await edge.side.tell(offer, Outcome.COUNTED)
    await until(lambda: edge.slot.read_session() == SessionFile(False, 1, 0))
    await edge.side.end()
    async with asyncio.timeout(PATIENCE_S):
        assert await running == [1, True, True, Outcome.COUNTED]
    assert report.evaluation == offer.report == Evaluation({"accuracy": 0.5}, 4)


@pytest.mark.usefixtures("as_worker")
async def test_the_bus_stays_alive_while_a_synchronous_script_trains(edge):
    """The worker answers for round 1 while the script is busy with round 2."""
    busy, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def script() -> None:
        with edgeai.join_sync() as task:
            for round_ in task.rounds():
                if round_.number == 2:
                    loop.call_soon_threadsafe(busy.set)
                    assert go_on.wait(PATIENCE_S)
                round_.submit(weights(float(round_.number), size=BIG), num_examples=5)

    await edge.side.open(1, await edge.side.place_model(weights(0.0, size=BIG)))
    running = asyncio.create_task(asyncio.to_thread(script))
    offer = await edge.side.next(Offer)
    await edge.side.open(2, await edge.side.place_model(weights(0.5, size=BIG)))
    await busy.wait()
    assert ArrayFile.open(await edge.side.pull(offer))[0][0, 0] == 1.0
    await edge.side.end()
    go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        await running


@pytest.mark.usefixtures("as_worker")
async def test_an_error_of_submit_reaches_a_synchronous_script(edge):
    def script() -> None:
        with edgeai.join_sync() as task:
            for round_ in task.rounds():
                round_.submit([np.zeros(3)], num_examples=5)

    await edge.side.open(1, weights())
    with pytest.raises(UpdateError, match="the update holds 1 arrays, the round's model 2"):
        await asyncio.to_thread(script)


@pytest.mark.usefixtures("as_worker")
async def test_a_synchronous_script_that_leaves_the_loop_early_declines_and_waits_for_its_verdict(edge):
    def script() -> None:
        with edgeai.join_sync() as task:
            for round_ in task.rounds():
                round_.submit(weights(1.0), num_examples=5)
                break

    await edge.side.open(1, weights(), validate=True)
    running = asyncio.create_task(asyncio.to_thread(script))
    assert (await edge.side.next(Report)).evaluation is None
    await edge.side.settle_report(1)
    await edge.side.tell(await edge.side.next(Offer), Outcome.COUNTED)
    async with asyncio.timeout(PATIENCE_S):
        await running


# --- as a process


@pytest.mark.parametrize("script", [TRAIN_ONE_UP, TRAIN_ONE_UP_SYNC], ids=["async", "sync"])
async def test_a_worker_killed_after_training_offers_that_update_and_does_not_train_again(edge, script):
    await edge.side.open(1, weights(0.5))
    killed = await edge.run(script, EDGEAI_TEST="1", EDGEAI_CRASH_AT="worker.update_written")
    assert (killed.reason, killed.signal) == (ExitReason.KILLED, "SIGKILL")
    digest = digest_in(edge.slot)

    running = await edge.start(script)
    offer = await edge.side.next(Offer)
    assert offer.blob.digest == digest
    await edge.side.tell(offer, Outcome.COUNTED)
    await edge.side.end()
    assert (await ProcessLauncher().wait(running)).code == 0
    assert edge.log().count("training 1") == 1
    assert edge.slot.read_session() == SessionFile(ended=True, submitted=1, unsettled=0)


def digest_in(slot: SlotDir) -> str:
    found: str = json.loads((slot.updates / "1.json").read_bytes())["digest"]
    return found


async def test_a_worker_killed_before_it_submitted_trains_the_round_again(edge):
    await edge.side.open(1, weights(0.5))
    running = await edge.start(TRAIN_FOR_EVER)
    await until(lambda: "training 1" in edge.log())
    os.kill(running.pid, signal.SIGKILL)
    await ProcessLauncher().wait(running)

    running = await edge.start(TRAIN_ONE_UP)
    await edge.side.tell(await edge.side.next(Offer), Outcome.COUNTED)
    await edge.side.end()
    assert (await ProcessLauncher().wait(running)).code == 0
    assert edge.log().count("training 1") == 2


@pytest.mark.parametrize("script", [TRAIN_ONE_UP, TRAIN_ONE_UP_SYNC], ids=["async", "sync"])
async def test_sigterm_ends_a_worker_that_waits(edge, script):
    running = await edge.start(script)
    await until(lambda: "task_joined" in edge.log())
    record = await ProcessLauncher().stop(running, PATIENCE_S)
    assert (record.reason, record.code) == (ExitReason.EXITED, TERMINATED)
    assert "Traceback" not in edge.log()


@pytest.mark.parametrize("script", [TRAIN_FOR_EVER, TRAIN_FOR_EVER_SYNC], ids=["async", "sync"])
async def test_sigterm_ends_a_worker_that_trains(edge, script):
    await edge.side.open(1, weights())
    running = await edge.start(script)
    await until(lambda: "training 1" in edge.log())
    record = await ProcessLauncher().stop(running, PATIENCE_S)
    assert (record.reason, record.code) == (ExitReason.EXITED, TERMINATED)


async def test_sigterm_lets_a_script_tidy_up(edge):
    await edge.side.open(1, weights())
    running = await edge.start(TRAIN_FOR_EVER_SYNC)
    await until(lambda: "training 1" in edge.log())
    await ProcessLauncher().stop(running, PATIENCE_S)
    assert edge.log().splitlines()[-1] == "tidied up"


async def test_what_a_script_says_and_how_it_fails_is_in_the_log(edge):
    await edge.side.open(1, weights())
    record = await edge.run("""
        import asyncio
        import edgeai

        async def main():
            async with edgeai.join() as task:
                print("printed")
                task.log.info("logged", examples=5)
                async for round in task.rounds():
                    raise RuntimeError(f"no examples for round {round.number}")

        asyncio.run(main())
    """)
    assert (record.code, record.last_line) == (1, "RuntimeError: no examples for round 1")
    assert all(text in edge.log() for text in ("printed", "logged", "examples=5", "Traceback"))


async def test_ctrl_c_ends_a_synchronous_script_as_any_other(edge):
    running = await edge.start(TRAIN_ONE_UP_SYNC)
    await until(lambda: "task_joined" in edge.log())
    os.kill(running.pid, signal.SIGINT)
    record = await ProcessLauncher().wait(running)
    assert (record.reason, record.signal, record.code) in [
        (ExitReason.KILLED, "SIGINT", None),
        (ExitReason.EXITED, None, 1),
    ]
    assert record.last_line == "KeyboardInterrupt"
