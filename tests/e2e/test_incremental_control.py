"""What a person does with a job, through the command line: pause, label, trigger, go back to an old model, delete."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio
from learning_world import KNOWN, LearningWorld, eventually, labels_of, row
from living_world import World

from benchmarks import serving
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import TaskPhase
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.settings import write_context

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

EDGES = 1
FIRST, SECOND = range(KNOWN, KNOWN + 20), range(KNOWN + 20, KNOWN + 40)


class Terminal(LearningWorld):
    """A world, and a terminal beside it."""

    async def said(self, *arguments: str) -> str:
        """Standard output of a command that must succeed."""
        context = await asyncio.to_thread(
            write_context, self.world.playground.context(), self.world.playground.state_dir / "context.json"
        )
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "edgeai", *arguments],
            env={**os.environ, "EDGEAI_CONTEXT": str(context)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def terminal(world: World) -> Terminal:
    return Terminal(world)


async def test_a_paused_job_serves_and_collects_and_begins_its_round_when_it_is_resumed(terminal: Terminal):
    name = "paused"
    await terminal.start(name, FIRST)
    await terminal.ready(name, FIRST)
    await terminal.said("pause", name)
    await terminal.until(name, lambda job: job.status.phase is TaskPhase.PAUSED)
    await terminal.said("trigger", name)
    terminal.ask(name, SECOND)
    await terminal.answered(name, SECOND)
    await terminal.label(name, SECOND)
    job = await terminal.counted(name, 40)
    assert (job.status.round, job.status.stage, job.status.state) == (1, "Train", "Waiting")
    await terminal.said("resume", name)
    outcome = await terminal.ended(name, 1)
    assert outcome.samples == job.status.counts.train
    await terminal.delete(name)


async def test_labels_and_a_round_are_given_by_command(terminal: Terminal, tmp_path: Path):
    name = "by-command"
    await terminal.start(name, FIRST)
    await terminal.answered(name, FIRST)
    await terminal.until(name, lambda job: job.status.counts.unlabelled == len(FIRST))
    listed = await terminal.said("label", name, "--list")
    labels = labels_of(FIRST)
    assert {line.split()[0] for line in listed.splitlines()[1:]} == labels.keys()
    by_hand = dict(list(labels.items())[:3])
    await terminal.said("label", name, *(f"{key}={value}" for key, value in by_hand.items()))
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"id": key, "label": int(value)}) + "\n" for key, value in labels.items()))
    assert "17 examples labelled, 3 had that label already" in await terminal.said("label", name, "--file", str(file))
    await terminal.counted(name, len(FIRST))
    await terminal.said("trigger", name)
    await terminal.ended(name, 1)
    await terminal.delete(name)


async def test_a_model_that_is_rolled_back_serves_again_at_the_edge(terminal: Terminal):
    name = "rolled-back"
    made = await terminal.learned(name, FIRST)
    job = await terminal.job(name)
    [first, second] = (await terminal.model(name)).status.versions
    assert second.digest == made.digest
    await terminal.said("model", "rollback", name)

    def serves() -> bool:
        served = terminal.serving(job)
        return served is not None and (served.model.blob.digest, served.version) == (first.digest, 3)

    await eventually(serves, lambda: f"the edge serves {terminal.serving(job)}")
    terminal.ask(name, SECOND)
    assert await terminal.answered(name, SECOND) == first.digest
    found = await terminal.until(name, lambda job: job.status.serving is not None and job.status.serving.version == 3)
    assert row(found, 1, "Deploy").state == "Completed"
    await terminal.delete(name)


async def test_trouble_with_the_dataset_is_in_the_status_until_the_file_is_good_again(terminal: Terminal):
    name = "troubled"
    await terminal.start(name, FIRST)
    await terminal.counted(name, 0)
    file = terminal.data / f"{name}-labelled.npz"
    away = file.rename(file.with_suffix(".away"))

    def is_degraded(job: IncrementalLearningJob, value: str, reason: str) -> bool:
        found = find_condition(job.status.conditions, ConditionType.DEGRADED)
        return found is not None and (found.status, found.reason) == (value, reason)

    job = await terminal.until(name, lambda job: is_degraded(job, "True", "DatasetUnusable"))
    degraded = find_condition(job.status.conditions, ConditionType.DEGRADED)
    assert degraded is not None
    assert f"{file} does not exist on this node; put it there" in degraded.message
    away.rename(file)
    await terminal.until(name, lambda job: is_degraded(job, "False", "Fine"))
    await terminal.delete(name)


async def test_ten_versions_come_down_under_200_requests_a_second_and_none_fails_or_is_dropped(
    terminal: Terminal, tmp_path: Path
):
    plan = serving.Plan("numpy", "auto", rate=200, swaps=10, settle_s=0.0, quiet_s=0.2)
    found = await serving.served(terminal.world.playground, terminal.world.cloud, plan, tmp_path)
    assert (found.failed, found.dropped, found.versions) == (0, 0, 11)
    await terminal.delete(serving.NAME)


@pytest.mark.parametrize("worker", ["deploy", "train"])
async def test_a_job_that_is_deleted_leaves_no_process_and_no_file_of_it(terminal: Terminal, worker: str):
    name = f"deleted-at-{worker}"
    await terminal.start(name, FIRST, pause=30.0)
    await terminal.ready(name, FIRST)
    job = await terminal.job(name)
    if worker == "train":
        await terminal.said("trigger", name)
    await terminal.at_work(job, worker)
    await terminal.said("delete", "job", name, "--wait")
    left = [str(path) for path in terminal.world.playground.state_dir.rglob(f"*{terminal.level(job)}*")]
    assert left == []
    level = terminal.level(job)
    assert [each.cmdline() for each in terminal.world.processes() if level in " ".join(each.cmdline())] == []
