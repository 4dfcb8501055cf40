"""`apply` and `delete`: manifests in, one line per resource out, and what a user should know at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeai.cli.goals import Goal
from edgeai.cli.naming import called, label, label_of
from edgeai.cli.outcome import say
from edgeai.cli.output import trouble
from edgeai.cli.rounds import OVER, RoundsView, outcome_of
from edgeai.client import TASK_KINDS, Action, Applied, Cloud, Manifest, Task
from edgeai.errors import NotFound, TaskFailed, WaitTimeout
from edgeai.learning.triggers import DELTA, JOB_METRICS, misspelt
from edgeai.resources.base import Resource
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import FederatedTask, TaskPhase
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.manifest import MAX_BYTES
from edgeai.resources.parameters import meant_key
from edgeai.resources.refusals import shown

ACCEPT_S = 3.0
"""How long the coordinator may take to look at a new task before `apply` goes on without its word."""
STDIN = "-"


def read_manifests_of(sources: Sequence[str]) -> list[Manifest]:
    """Everything is read and checked before anything is written. Raises ManifestError."""
    found: list[Manifest] = []
    for source in sources:
        if source == STDIN:
            found.append(Manifest.parse(sys.stdin.read(MAX_BYTES + 1), "<stdin>", Path.cwd()))
        else:
            found += Manifest.read(Path(source))
    return found


async def apply(cloud: Cloud, manifests: Sequence[Manifest], *, wait: bool, timeout_s: float | None) -> None:
    """Apply, tell, and with `wait` follow the tasks to their end, and jobs and services until they serve.

    Raises:
        TaskFailed: one has failed. WaitTimeout: one has not ended in time.
    """
    for notice in _doubts(manifests):
        say(notice)
    applied = await cloud.apply(*manifests)
    for each in applied:
        generation = each.resource.metadata.generation
        print(f"{label_of(each.resource)} {each.action.value} (generation {generation})", flush=True)
    tasks: list[Any] = [each for each in applied if isinstance(each.resource, FederatedTask)]
    for each in tasks:
        if each.action is Action.UNCHANGED and each.resource.status.phase in OVER:
            phase = each.resource.status.phase.value
            name = each.resource.name
            say(
                f"task {name} has ended ({phase}): to run it anew, delete it first (`edgeai delete task {name}`), then "
                "apply again"
            )
    if wait:
        await _follow_all(cloud, [each.resource.name for each in tasks], timeout_s)
        await _until_serving(cloud, [each.resource for each in applied], timeout_s)
    else:
        changed = [each for each in applied if each.action is not Action.UNCHANGED and each.resource.kind in TASK_KINDS]
        await asyncio.gather(*(_tell_missing(cloud, each) for each in changed))


def _doubts(manifests: Sequence[Manifest]) -> list[str]:
    """What is accepted, and was probably not meant."""
    found = []
    for resource in (resource for manifest in manifests for resource in manifest.resources):
        if isinstance(resource, IncrementalLearningJob):
            found += _doubts_of_job(resource)
        if not isinstance(resource, FederatedTask):
            continue
        spec = resource.spec
        lists = [spec.aggregation_worker.worker_spec, *(worker.worker_spec for worker in spec.training_workers)]
        for key in dict.fromkeys(parameter.key for each in lists for parameter in each.parameters):
            if meant := meant_key(key):
                found.append(
                    f"task {resource.name}: parameter {shown(key)} is passed to the workers as it is; "
                    f"did you mean {meant}?"
                )
    return found


def _doubts_of_job(job: IncrementalLearningJob) -> list[str]:
    """Metrics that no trigger will ever see if they are what they look like: a slip of the pen."""
    begins, deploys = job.spec.train.trigger.condition, job.spec.deploy.trigger.condition
    own = misspelt(begins, JOB_METRICS) if begins is not None else {}
    reported = misspelt(deploys, (f"accuracy{DELTA}",), 0.9) if deploys is not None else {}
    fires = "It fires only if an evaluation reports it"
    return [
        *(
            f"job {job.name}: {shown(name)} is not a metric that a job has by itself; did you mean {meant}? {fires}"
            for name, meant in own.items()
        ),
        *(f"job {job.name}: metric {shown(name)}: did you mean {meant}? {fires}" for name, meant in reported.items()),
    ]


async def _tell_missing(cloud: Cloud, applied: Applied) -> None:
    """One line if the task cannot begin yet, since nobody else would say so now."""
    kind, name, generation = applied.resource.kind, applied.resource.name, applied.resource.metadata.generation

    def looked_at(resource: Resource | None) -> bool:
        return not isinstance(resource, Task) or (
            resource.status.observed_generation >= generation
            and find_condition(resource.status.conditions, ConditionType.ACCEPTED) is not None
        )

    try:
        task = await cloud.wait(kind, name, looked_at, ACCEPT_S)
    except WaitTimeout:
        say(f"{called(kind, name)} is stored, but no coordinator has looked at it yet; see `edgeai get nodes`")
        return
    if isinstance(task, Task) and _is_waiting(task):
        say(f"{called(kind, name)} waits: {trouble(task)}")


async def _follow_all(cloud: Cloud, names: Sequence[str], timeout_s: float | None) -> None:
    for name in names:
        view = RoundsView()
        try:
            async with asyncio.timeout(timeout_s):
                task = await view.follow(cloud, name)
        except TimeoutError as error:
            raise WaitTimeout(_unfinished(name, view, timeout_s or 0.0)) from error
        if task.status.phase is not TaskPhase.SUCCEEDED:
            raise TaskFailed(str(outcome_of(task)["error"]))
        view.finish(outcome_of(task))


def _unfinished(name: str, view: RoundsView, timeout_s: float) -> str:
    task = view.task
    phase = task.status.phase.value if task else "unknown"
    reason = trouble(task) if task and not view.has_told(trouble(task)) else ""
    return f"{called('FederatedTask', name)} has not ended within {timeout_s:g} s (phase {phase})" + (
        f": {reason}" if reason else ""
    )


async def _until_serving(cloud: Cloud, applied: Sequence[Resource], timeout_s: float | None) -> None:
    """Raises TaskFailed, WaitTimeout."""
    goal = Goal("condition", ConditionType.READY)
    for job in [each for each in applied if isinstance(each, IncrementalLearningJob | JointInferenceService)]:
        await cloud.wait(job.kind, job.name, goal.predicate(job.kind, job.name), timeout_s)
        print(f"{label_of(job)} serves", flush=True)


def _is_waiting(task: Task) -> bool:
    accepted = find_condition(task.status.conditions, ConditionType.ACCEPTED)
    return task.status.phase is TaskPhase.PENDING and accepted is not None and accepted.status == "False"


async def delete(
    cloud: Cloud, named: Sequence[tuple[str, str]], *, wait: bool, timeout_s: float | None, must_exist: bool
) -> None:
    """Delete resources, tasks, jobs and services first. What is gone already is mentioned, unless it `must_exist`.

    Raises:
        NotFound: it was not there. Refused: a task at work needs it. WaitTimeout: one is not gone in time.
    """
    gone: list[tuple[str, str]] = []
    for kind, name in sorted(named, key=lambda each: each[0] not in TASK_KINDS):
        try:
            await cloud.delete(kind, name)
        except NotFound:
            if must_exist:
                raise
            say(f"{called(kind, name)} is gone already")
            continue
        gone.append((kind, name))
        if not wait:
            # A task is gone when its workers are.
            print(f"{label(kind, name)} {'deleting' if kind in TASK_KINDS else 'deleted'}", flush=True)
    if wait:
        for kind, name in gone:
            await cloud.wait(kind, name, lambda resource: resource is None, timeout_s)
            print(f"{label(kind, name)} deleted", flush=True)
