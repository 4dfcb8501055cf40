"""Jobs of a node: what is wrong with a dataset is told, counts last, models are taken over beside everything else."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from edgeai import metrics
from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.controller import jobs as module
from edgeai.controller.cache import BlobCache
from edgeai.controller.datasets import local_path
from edgeai.controller.jobs import Jobs, Limits, Node
from edgeai.controller.places import ProcessPlaces
from edgeai.errors import NotFound
from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    DatasetWanted,
    JobObserved,
    JobWanted,
    ModelFile,
    ModelVersionRef,
    Role,
    Serving,
    StageWork,
)
from edgeai.launcher.slots import ResultFile, SlotDir
from edgeai.lifecycle.stage import Job, Served, Snapshot, Stage, StageState
from edgeai.lifecycle.worker import Slot, WorkerPhase
from edgeai.store.edge import EdgeStore
from edgeai.store.files import digest_bytes
from edgeai.store.transfers import Receiver

ROLES = (Role.TRAIN, Role.EVAL, Role.DEPLOY)
UID, TASK = "0a1b2c3d" * 4, "digits-0a1b2c3d"
FIRST = b"first model"
WORKER = {"scriptDir": "./job", "scriptBootFile": "main.py", "frameworkType": "numpy"}


def model_of(content: bytes) -> ModelFile:
    return ModelFile(f"{digest_bytes(content)}.file", BlobRef(digest_bytes(content), len(content)), "file")


def wanted() -> JobWanted:
    spec = {
        "nodeName": "edge1",
        "initialModel": {"name": "digits"},
        "outputModel": {"name": "digits"},
        "dataset": {"name": "labelled", "trainFraction": 0.5},
        "train": {"workerSpec": WORKER, "trigger": {"checkPeriodSeconds": 1}},
        "eval": {"workerSpec": WORKER},
        "deploy": {"workerSpec": WORKER},
    }
    workers = tuple(Assignment(TASK, "digits", UID, 1, role.value, role, "main.py") for role in ROLES)
    return JobWanted(
        TASK, "digits", UID, 1, json.dumps(spec), workers, ModelVersionRef(1, model_of(FIRST).blob, "file")
    )


class Library:
    """The object store, as the cloud's node has it."""

    async def get(self, digest: str, path: Path) -> None:
        if digest != digest_bytes(FIRST):
            raise NotFound("blob", digest)
        path.write_bytes(FIRST)


@dataclass
class World:
    folder: Path
    jobs: Jobs
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def data(self) -> Path:
        return self.folder / "labelled.csv"

    @property
    def models(self) -> Path:
        return self.folder / "jobs" / TASK / "models"

    def slot(self, worker: str) -> SlotDir:
        return SlotDir(self.folder / "slots" / TASK / worker)

    def told(self) -> JobObserved:
        [found] = self.jobs.observe()
        return found

    async def until(self, true: Callable[[], Any]) -> None:
        async with asyncio.timeout(15):
            while not true():
                await asyncio.sleep(0.01)

    def write(self, *numbers: int, header: str = "a,y") -> None:
        self.data.write_text(header + "\n" + "".join(f"{number},{number % 2}\n" for number in numbers))


@asynccontextmanager
async def running(folder: Path, limits: Limits | None = None, state: Job | None = None) -> AsyncIterator[World]:
    """`state`: what the job is said to have been in before."""
    store = await EdgeStore.open(folder / "controller.db")
    async with MemoryBus(MemoryBroker()) as bus:
        cache = BlobCache(folder / "blobs", "edge1", bus, Receiver(folder / "parts"), Library())  # type: ignore[arg-type]

        async def dataset(name: str) -> tuple[DatasetWanted, Path]:
            found = DatasetWanted(name, str(folder / "labelled.csv"), "csv")
            return found, local_path(found.url, [folder])

        async def nothing(*_: Any) -> None:
            return

        node = Node(
            name="edge1",
            state_dir=folder,
            places=ProcessPlaces("edge1", "mqtt://127.0.0.1:1", folder / "none.json", {}),
            changed=nothing,
            workers_gone=nothing,
            slot=lambda level, worker: SlotDir(folder / "slots" / level / worker),
            dataset=dataset,
            labels=Path,
            tell=nothing,
            feeders=lambda _job: (),
            limits=limits or Limits(),
        )
        found = World(folder, Jobs(node, store, cache))
        await found.jobs.load()
        if state is not None:
            found.jobs._reactor._states = {TASK: state}
        found.jobs.take([wanted()])
        task = asyncio.create_task(found.jobs.run())
        try:
            await found.until(lambda: found.jobs.holds(TASK) and found.jobs.observe())
            yield found
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await found.jobs.close()
            await store.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COLLECT_S", 0.02)
    monkeypatch.setattr(module, "TALLY_S", 0.0)


# --- datasets


async def test_trouble_with_a_dataset_is_told_until_it_is_good_again(tmp_path: Path):
    async with running(tmp_path) as world:
        await world.until(lambda: world.told().trouble)
        told = world.told()
        assert told.trouble_reason == "DatasetUnusable"
        assert told.trouble.startswith(
            f"dataset labelled on edge1: {world.data} does not exist on this node; put it there"
        )
        world.write(*range(20))
        await world.until(lambda: not world.told().trouble)
        assert world.told().trouble_reason == ""

        whole = world.data.read_bytes()
        world.write(1, 2, 3)
        await world.until(lambda: world.told().trouble_reason == "DatasetShrunk")
        assert f"it had {len(whole)} bytes" in world.told().trouble
        world.data.write_bytes(whole)
        await world.until(lambda: not world.told().trouble)

        world.write(1, 2, header="b,y")
        await world.until(lambda: "has the columns b, y" in world.told().trouble)
        world.data.write_bytes(b"a,y\n\xff\xfe,1\n")
        await world.until(lambda: "UTF-8" in world.told().trouble)
        world.data.write_bytes(whole)
        await world.until(lambda: not world.told().trouble)


async def test_a_dataset_that_has_gone_stops_no_round_of_a_job_that_has_its_rows(tmp_path: Path):
    async with running(tmp_path) as world:
        world.write(*range(40))
        await world.until(lambda: world.told().counts.train)
        world.data.unlink()
        await world.until(lambda: world.told().trouble)
        assert world.told().trouble.endswith("; the job goes on with the rows that it has taken")
        looked = world.jobs._known[TASK].looked
        await world.until(lambda: world.jobs._known[TASK].looked > looked)
        world.jobs.take([replace(wanted(), triggers=1)])
        await world.until(lambda: world.told().state == "Starting")


async def test_a_row_that_is_not_good_stops_no_round_and_those_before_it_are_taken(tmp_path: Path):
    async with running(tmp_path) as world:
        world.write(*range(40))
        await world.until(lambda: world.told().counts.train)
        with world.data.open("a") as file:
            file.write("40,0\n41,0,0,0\n42,0\n")
        await world.until(lambda: "line 43 has 4 columns" in world.told().trouble)
        counts = world.told().counts
        assert counts.train + counts.held_out == 41
        world.jobs.take([replace(wanted(), triggers=1)])
        await world.until(lambda: world.told().state == "Starting")


async def test_trouble_that_is_over_at_the_next_look_is_not_told(tmp_path: Path):
    async with running(tmp_path) as world:
        world.write(*range(20))
        await world.until(lambda: world.told().counts.train)
        await world.jobs._note_trouble(TASK, "", "")
        await world.jobs._note_trouble(TASK, "DatasetUnusable", "it is half written")
        assert world.told().trouble == ""


# --- rounds


def waiting(*, served: int = 0, **more: Any) -> Job:
    """A job that waits, whose serving model was made in a round."""
    return Job(wanted=wanted(), serving=Served(model_of(FIRST), 1, served), known=(1, digest_bytes(FIRST)), **more)


async def test_what_a_model_has_learned_is_old_when_that_model_serves(tmp_path: Path):
    async with running(tmp_path, state=waiting(round=2)) as world:
        world.write(*range(20))
        await world.until(lambda: world.told().counts.train)
        world.write(*range(60))
        await world.until(lambda: world.told().counts.new)
        examples = await world.jobs.examples_of(TASK)
        first = await examples.snapshot(1, world.folder / "jobs" / TASK / "snapshots" / "1")
        await examples.learned(1)
        assert (await world.jobs._snapshot(TASK, 2)).snapshot.new == first.new > 0
        world.jobs._reactor._states[TASK] = waiting(round=3, served=1)
        assert (await world.jobs._snapshot(TASK, 3)).snapshot.new == 0


async def test_three_snapshots_are_kept(tmp_path: Path):
    async with running(tmp_path) as world:
        world.write(*range(20))
        await world.until(lambda: world.told().counts.train)
        for number in range(1, 6):
            await world.jobs._snapshot(TASK, number)
            left = sorted(path.name for path in (world.folder / "jobs" / TASK / "snapshots").iterdir())
            assert left == [str(each) for each in range(max(1, number - 2), number + 1)]


async def test_a_round_that_was_asked_for_during_another_begins_right_after_it(tmp_path: Path):
    state = replace(waiting(round=2), wanted=replace(wanted(), triggers=1))
    async with running(tmp_path) as world:
        world.write(*range(20))
        await world.until(lambda: world.told().counts.train)
        world.jobs._known[TASK].looked = time.monotonic() + 1000  # no look at the trigger is due
        world.jobs._reactor._states[TASK] = replace(state, counts=world.told().counts)
        await world.until(lambda: world.told().state == "Starting")
        assert world.told().round == 2


async def test_trouble_that_nobody_has_thought_of_ends_neither_the_daemon_nor_the_other_looks(
    tmp_path: Path, monkeypatch
):
    async with running(tmp_path) as world:
        calls = 0

        async def broken(*_: Any) -> None:
            nonlocal calls
            calls += 1
            raise RuntimeError("not foreseen")

        with capture_logs() as logs, monkeypatch.context() as patch:
            patch.setattr(world.jobs, "_look_at", broken)
            await world.until(lambda: calls > 2)
        assert [line["event"] for line in logs if line["log_level"] == "error"] == ["examples_not_collected"]
        world.write(*range(20))
        await world.until(lambda: world.told().counts.train)


# --- counts


async def test_requests_and_hard_examples_are_counted_on_when_daemon_and_worker_are_restarted(tmp_path: Path):
    for run, requests, expected in (("a", 100, 100), ("a", 150, 150), ("b", 7, 157), ("b", 9, 159)):
        async with running(tmp_path) as world:
            world.write(*range(20))
            world.jobs.hear(TASK, Serving(digest_bytes(FIRST), requests, 0, requests // 10), run)
            await world.until(lambda total=expected: world.told().counts.requests == total)
    assert world.told().counts.hard == 15


async def test_a_run_that_ended_between_two_looks_is_counted(tmp_path: Path):
    async with running(tmp_path) as world:
        world.write(*range(20))
        for run, requests in (("a", 10), ("a", 20), ("b", 5)):
            world.jobs.hear(TASK, Serving(digest_bytes(FIRST), requests), run)
        await world.until(lambda: world.told().counts.requests == 25)


async def test_what_an_inference_worker_does_is_measured_and_is_gone_with_the_job(tmp_path: Path):
    def found(name: str, **labels: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(f"edgeai_serving_{name}", {"job": "digits", **labels})

    metrics.serves_no_more("digits")  # of other tests
    async with running(tmp_path) as world:
        digest = digest_bytes(FIRST)
        for run, requests, failed, hard in (("a", 100, 1, 10), ("a", 150, 2, 12), ("b", 5, 0, 1)):
            world.jobs.hear(TASK, Serving(digest, requests, failed, hard, 0.25, 0.001, 0.002), run)
        assert found("requests_total", outcome="answered") == (150 - 2) - (100 - 1) + 5
        assert found("requests_total", outcome="failed") == 1
        assert found("hard_examples_total", outcome="found") == 3
        assert (found("hard_rate"), found("model_version")) == (0.25, 1.0)
        assert found("latency_seconds", quantile="0.99") == 0.002
        world.jobs.take([])
        await world.until(lambda: not world.jobs.holds(TASK))
    assert found("requests_total", outcome="answered") is None


# --- what was dropped


async def test_hard_examples_that_the_inference_worker_has_not_kept_are_told(tmp_path: Path):
    async with running(tmp_path) as world:
        world.write(*range(20))
        world.jobs.hear(TASK, Serving(digest_bytes(FIRST), 100, hard=10, dropped=7), "a")
        await world.until(lambda: world.told().dropped and world.told().counts.dropped)
        assert world.told().counts.dropped == 7
        assert world.told().dropped[0].startswith("7 hard examples that the inference worker could not keep")


async def test_what_leaves_to_keep_within_the_limits_is_told_with_the_reason(tmp_path: Path):
    async with running(tmp_path, Limits(example_bytes=500)) as world:
        world.write(*range(200))
        await world.until(lambda: len(world.told().dropped) == 2)
        for sentence in world.told().dropped:
            assert "the labelled examples were more than 0.000476837 MiB (job_examples_mib of edge1)" in sentence


# --- models


def training() -> Job:
    """A job whose train worker runs."""
    job = Job(
        wanted=wanted(),
        stage=Stage.TRAIN,
        state=StageState.RUNNING,
        snapshot=Snapshot("5" * 64, 10, 10, 10),
        serving=Served(model_of(FIRST)),
        known=(1, digest_bytes(FIRST)),
    )
    return replace(job, last_runs={"train": StageWork(1, "train-1.0", "5" * 64, (model_of(FIRST),))})


def done(world: World, content: bytes) -> Slot:
    slot = world.slot("train")
    slot.create()
    (slot.output / "new.bin").write_bytes(content)
    slot.write_result(ResultFile("train-1.0", "new.bin", "file", {"": {"loss": 0.1}}))
    assignment = Assignment(TASK, "digits", UID, 1, "train", Role.TRAIN, "main.py", work=StageWork(1, "train-1.0"))
    return Slot(WorkerPhase.DONE, assignment)


async def test_a_large_model_is_taken_over_while_everything_else_goes_on(tmp_path: Path, monkeypatch):
    copying, go_on, copy = threading.Event(), threading.Event(), module.copy_whole

    def slow(source: Path, target: Path, *more: Any) -> str:
        copying.set()
        assert go_on.wait(10)
        return copy(source, target, *more)

    async with running(tmp_path, state=training()) as world:
        slot = done(world, b"new model")
        await world.until(world.models.exists)
        monkeypatch.setattr(module, "copy_whole", slow)
        async with asyncio.timeout(5):
            await world.jobs.slots_changed([slot])
            await world.jobs.slots_changed([slot])  # told again: it is taken over once
        await asyncio.to_thread(copying.wait, 5)
        assert world.told().stage == "Train"
        go_on.set()
        await world.until(lambda: world.told().stage == "Eval")
        assert (world.models / f"{digest_bytes(b'new model')}.bin").read_bytes() == b"new model"


async def test_a_takeover_that_was_broken_off_is_begun_again_and_leaves_nothing_behind(tmp_path: Path):
    left = tmp_path / "jobs" / TASK / "models" / ".taken.0011.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a mo")
    async with running(tmp_path, state=training()) as world:
        await world.jobs.slots_changed([done(world, b"new model")])
        await world.until(lambda: world.told().stage == "Eval")
        assert not [path.name for path in world.models.iterdir() if path.name.startswith((".", "taken"))]


async def test_a_model_that_is_being_taken_over_is_not_cleaned_away(tmp_path: Path):
    async with running(tmp_path, state=training()) as world:
        done(world, b"new model")
        taken = await asyncio.to_thread(world.jobs._take_model, TASK, world.slot("train"), "new.bin", "file")
        await asyncio.to_thread(world.jobs._clean_models, TASK, world.models)
        assert (world.models / taken.name).exists()


async def test_a_model_that_comes_while_others_are_cleaned_away_stays(tmp_path: Path, monkeypatch):
    cleaning, go_on, used = threading.Event(), threading.Event(), module.stages.models_in_use

    def slow(job: Job) -> frozenset[str]:
        if threading.current_thread() is not threading.main_thread():  # the loop looks at it, too
            cleaning.set()
            assert go_on.wait(10)
        return used(job)

    async with running(tmp_path, state=training()) as world:
        done(world, b"new model")
        await world.until((world.slot("deploy").models / "serving.json").exists)
        monkeypatch.setattr(module.stages, "models_in_use", slow)
        clean = asyncio.create_task(asyncio.to_thread(world.jobs._clean_models, TASK, world.models))
        await asyncio.to_thread(cleaning.wait, 5)
        take = asyncio.create_task(
            asyncio.to_thread(world.jobs._take_model, TASK, world.slot("train"), "new.bin", "file")
        )
        await world.until(lambda: (world.models / module.TAKEN).exists() or take.done())
        go_on.set()
        await clean
        assert (world.models / (await take).name).exists()


async def test_a_folder_whose_name_is_as_long_as_a_digest_is_no_model(tmp_path: Path):
    async with running(tmp_path, state=training()) as world:
        await world.until((world.slot("deploy").models / "serving.json").exists)
        (world.slot("deploy").models / ("a" * 64)).mkdir()
        await asyncio.to_thread(world.jobs._clean_models, TASK, world.slot("deploy").models)
        assert (world.slot("deploy").models / ("a" * 64)).is_dir()


async def test_a_model_is_given_only_whole(tmp_path: Path):
    digest = digest_bytes(b"new model")
    async with running(tmp_path) as world:
        world.models.mkdir(parents=True, exist_ok=True)
        (world.models / f"{digest}.bin").write_bytes(b"bit rot")
        assert await world.jobs.model_file(TASK, digest) is None
        (world.models / f"{digest}.bin").write_bytes(b"new model")
        assert await world.jobs.model_file(TASK, digest) == world.models / f"{digest}.bin"


async def test_a_model_that_was_lost_is_given_from_the_worker_that_serves_it(tmp_path: Path):
    digest = digest_bytes(b"new model")
    async with running(tmp_path) as world:
        await world.until((world.slot("deploy").models / "serving.json").exists)
        (world.slot("deploy").models / f"{digest}.bin").write_bytes(b"new model")
        assert await world.jobs.model_file(TASK, digest) == world.slot("deploy").models / f"{digest}.bin"


async def test_a_damaged_model_is_not_handed_to_a_worker(tmp_path: Path):
    async with running(tmp_path) as world:
        await world.until((world.slot("deploy").models / "serving.json").exists)
        [stored] = world.models.glob(f"{digest_bytes(FIRST)}*")
        os.truncate(stored, 3)
        folder = tmp_path / "given"
        folder.mkdir()
        await world.jobs._link(TASK, model_of(FIRST), folder)
        assert (folder / model_of(FIRST).name).read_bytes() == FIRST


async def test_more_models_than_the_node_keeps_do_not_wait_for_the_cloud(tmp_path: Path):
    owed = tuple(model_of(bytes([number])) for number in range(4))
    async with running(tmp_path, Limits(models=2), replace(training(), owed=owed)) as world:
        world.write(*range(20))
        world.models.mkdir(parents=True, exist_ok=True)
        for number, model in enumerate(owed):
            (world.models / model.name).write_bytes(bytes([number]))
        await asyncio.to_thread(world.jobs._clean_models, TASK, world.models)
        assert [(world.models / model.name).exists() for model in owed] == [False, False, True, True]
        await world.until(lambda: world.told().dropped)
        assert world.told().dropped == ("2 models on their way to the cloud: more than 2 waited (job_models of edge1)",)
