"""An incremental learning job on its edge: round after round of Train, Eval and Deploy.

    Train Waiting -> Ready -> Starting -> Running -> Completed      trigger, snapshot, worker placed, worker runs, model made
    Eval                      Starting -> Running -> Completed      new and serving model on the same held-out examples
    Deploy Waiting ---------> Starting -> Running -> Completed      better: staged in the inference worker, checked, swapped
    then Train Waiting of the next round; also where the new model is not better, or was refused
    Train, Eval -> Failed -> the same stage again                   after a back-off, MAX_ATTEMPTS times in a row; then the job
                                                                    says why and waits for a hand (`edgeai trigger`) or a change
                                                                    (by hand, with labels that came since: in the next round)

`TRANSITIONS` is this drawing for programs; Completed is told and is no state that a job rests in. A paused job
begins no round, deploys nothing and tries nothing again; a model that is being trained is evaluated.

What serves may change at any time: by a version of the output model that somebody makes, which is served as it is, or because
the serving model is refused and the one before it takes over. A new model that is then being evaluated or deployed was compared
with another one, so it is evaluated again. Versions that the cloud makes of the job's own models only get their number here.

The machine runs beside the slots of its workers (`lifecycle.worker`): `workers_of` says which workers follow from a state, the
controller runs them and tells what becomes of them. It needs no WAN. It sees counts, metrics and digests, never examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from pydantic import ValidationError

from edgeai.events.catalogue import (
    Assignment,
    ExampleCounts,
    JobObserved,
    JobWanted,
    ModelDeployed,
    ModelFile,
    ModelVersionRef,
    Role,
    StageChanged,
    StageWork,
)
from edgeai.learning.triggers import described, holds, in_window, with_deltas
from edgeai.lifecycle.base import CancelTimer, Command, Emit, Forget, Machine, SetTimer, Step, TimerFired
from edgeai.lifecycle.draft import shortened
from edgeai.resources.incremental import IncrementalLearningJobSpec, TriggerCondition
from edgeai.resources.mining import MiningAlgorithm
from edgeai.resources.refusals import dotted, refusals

MAX_ATTEMPTS = 4
FIRST_BACKOFF_S = 2.0
DEPLOY_S = 600.0
"""How long an inference worker may take to serve a model or to refuse it."""
MAX_REFUSED = 16
MAX_CAUSE = 350
"""Characters of what a worker said, so that what follows it is not cut off where reasons are shortened."""
GAVE_UP, NOT_DEPLOYED = f"failed {MAX_ATTEMPTS} times", "the new model is not deployed"
"""How the reason begins of a stage that waits for a hand, and of a round whose model was not good enough."""
_RETRY, _DEPLOY = "retry", "deploy"
AT_LEAST_AS_GOOD = TriggerCondition(metric="accuracy_delta", operator=">=", threshold=0.0)
"""When a model is deployed whose job has no condition."""


class Stage(StrEnum):
    TRAIN = "Train"
    EVAL = "Eval"
    DEPLOY = "Deploy"


class StageState(StrEnum):
    WAITING = "Waiting"
    READY = "Ready"
    STARTING = "Starting"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"


ROLES: dict[Stage, Role] = {Stage.TRAIN: Role.TRAIN, Stage.EVAL: Role.EVAL, Stage.DEPLOY: Role.DEPLOY}
_PLACED = frozenset({StageState.STARTING, StageState.RUNNING})

Place = tuple[Stage, StageState]


def _places(text: str) -> frozenset[Place]:
    words = text.split()
    return frozenset((Stage(stage), StageState(state)) for stage, state in zip(words[::2], words[1::2], strict=True))


TRANSITIONS: dict[Place, frozenset[Place]] = {
    (Stage.TRAIN, StageState.WAITING): _places("Train Ready"),
    (Stage.TRAIN, StageState.READY): _places("Train Starting Train Failed Train Waiting"),
    (Stage.TRAIN, StageState.STARTING): _places("Train Running Train Failed Eval Starting Train Waiting"),
    (Stage.TRAIN, StageState.RUNNING): _places("Train Failed Eval Starting Train Waiting"),
    (Stage.TRAIN, StageState.FAILED): _places("Train Ready Train Starting"),
    (Stage.EVAL, StageState.STARTING): _places("Eval Running Eval Failed Deploy Waiting Deploy Starting Train Waiting"),
    (Stage.EVAL, StageState.RUNNING): _places("Eval Starting Eval Failed Deploy Waiting Deploy Starting Train Waiting"),
    (Stage.EVAL, StageState.FAILED): _places("Eval Starting Train Waiting Train Ready"),
    (Stage.DEPLOY, StageState.WAITING): _places("Deploy Starting Eval Starting Train Waiting"),
    (Stage.DEPLOY, StageState.STARTING): _places("Deploy Running Eval Starting Train Waiting"),
    (Stage.DEPLOY, StageState.RUNNING): _places("Eval Starting Train Waiting"),
}
"""Where a job may go from where it rests; the stage may also stay as it is."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A frozen part of the job's examples: `digest` names its folder; `new` are those that the serving model does not know.

    `left_out` says how many labelled examples did not fit into it, and why; empty: none.
    """

    digest: str
    train: int
    held_out: int
    new: int
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that was trained and does not serve yet. `metrics`: the train worker's, then those of its evaluation."""

    model: ModelFile
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """A model that serves or has served. `version` 0: the cloud has not numbered it."""

    model: ModelFile
    version: int = 0
    round: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job. One whose `serving` is None has not begun: its spec cannot be read.

    Attributes:
        next: wanted again while the job is being removed.
        attempt: of the stage; names its run. `failures`: in a row, `cause`: of the last one. `held`: failed, and no timer will
            try again.
        asked: rounds that somebody asked for by hand and that were begun.
        metrics: of the serving model, by its last evaluation.
        previous: what served before, and takes over if the serving model is refused.
        known: version and digest of the output model as last looked at.
        owed: models that served and whose number the cloud has not told yet; it may still want their blobs.
        refused: why the inference worker would not serve a model, by digest, in this round.
        last_runs: by role, the run that is placed or was the last.
        serves: names the run of the inference worker; `given_up`: why that has ended for good.
    """

    wanted: JobWanted | None = None
    next: JobWanted | None = None
    removing: bool = False
    stage: Stage = Stage.TRAIN
    state: StageState = StageState.WAITING
    round: int = 1
    attempt: int = 0
    failures: int = 0
    cause: str = ""
    held: bool = False
    reason: str = ""
    counts: ExampleCounts = field(default_factory=ExampleCounts)
    minute: int = -1
    asked: int = 0
    snapshot: Snapshot | None = None
    candidate: Candidate | None = None
    serving: Served | None = None
    previous: Served | None = None
    known: tuple[int, str] = (0, "")
    owed: tuple[ModelFile, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    last_runs: Mapping[str, StageWork] = field(default_factory=dict)
    serves: int = 0
    given_up: str = ""


# --- events


@dataclass(frozen=True, slots=True)
class Wanted:
    """The desired document has this job."""

    job: JobWanted


@dataclass(frozen=True, slots=True)
class Unwanted:
    pass


@dataclass(frozen=True, slots=True)
class Removed:
    """Nothing of the job is left on disk, and none of its workers."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The controller looks at the triggers: what there is, and the minute of the day (0 to 1439)."""

    counts: ExampleCounts
    minute: int


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    round: int
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class SnapshotFailed:
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """The worker of a run is up."""

    run: str


@dataclass(frozen=True, slots=True)
class Trained:
    """A train worker has reported; the model is in the node's cache."""

    run: str
    model: ModelFile
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An eval worker has reported: metrics by digest of the model."""

    run: str
    metrics: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The worker of a run (`StageWork.run`, also the inference worker's) was given up, or left nothing usable."""

    run: str
    reason: str


@dataclass(frozen=True, slots=True)
class Staged:
    """A model that is being deployed stands where the inference worker finds it."""

    digest: str


@dataclass(frozen=True, slots=True)
class NowServes:
    """The inference worker answers with this model. May be told as often as it is heard."""

    digest: str


@dataclass(frozen=True, slots=True)
class ModelRefused:
    """The inference worker would not serve a model, or has gone back from it. May be told as often as it is heard."""

    digest: str
    reason: str


# --- commands


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Command):
    """Freeze the labelled examples; answers SnapshotTaken or SnapshotFailed. The same round gives the same snapshot."""

    round: int


@dataclass(frozen=True, slots=True)
class Serve(Command):
    """Put a model where the inference worker finds it; answers Staged. What becomes of it: NowServes or ModelRefused.

    Comes again with another number for the model that serves already.
    """

    served: Served


@dataclass(frozen=True, slots=True)
class Remove(Command):
    """Remove examples, snapshots and models of the job once its workers are gone; answers Removed."""


JobEvent = (
    Wanted
    | Unwanted
    | Removed
    | Checked
    | SnapshotTaken
    | SnapshotFailed
    | WorkerStarted
    | Trained
    | Evaluated
    | RunFailed
    | Staged
    | NowServes
    | ModelRefused
    | TimerFired
)


def step(job: Job, event: JobEvent) -> Step[Job]:
    """Advance one job. Never raises on late, repeated or foreign events."""
    match event:
        case Wanted(job=wanted):
            return _wanted(job, wanted)
        case Unwanted():
            return _unwanted(job)
        case Removed() if job.removing:
            return (job, (Forget(),)) if job.next is None else _wanted(Job(), job.next)
        case _ if not _goes(job):
            return job, ()
        case Checked(counts=counts, minute=minute):
            return _look(replace(job, counts=counts, minute=minute))
        case SnapshotTaken(round=number, snapshot=snapshot) if _awaits_snapshot(job, number):
            return _frozen(job, snapshot)
        case SnapshotFailed(round=number, reason=reason) if _awaits_snapshot(job, number):
            return _failed(job, reason)
        case WorkerStarted(run=run) if job.state is StageState.STARTING and run == run_of(job):
            return _enter(job, job.stage, StageState.RUNNING)
        case Trained(run=run, model=model, metrics=metrics) if _runs(job, Stage.TRAIN, run):
            return _trained(job, Candidate(model, _finite(metrics)))
        case Evaluated(run=run, metrics=by_model) if _runs(job, Stage.EVAL, run):
            return _evaluated(job, by_model)
        case RunFailed(run=run, reason=reason) if _runs(job, job.stage, run):
            return _failed(job, reason)
        case RunFailed(run=run, reason=reason) if run == serving_run_of(job):
            return _inference_given_up(job, reason)
        case Staged(digest=digest) if job.state is StageState.STARTING and digest == _deploying(job):
            return _enter(job, Stage.DEPLOY, StageState.RUNNING)
        case NowServes(digest=digest):
            return _now_serves(job, digest)
        case ModelRefused(digest=digest, reason=reason):
            return _refused(job, digest, reason)
        case TimerFired(name="retry") if job.state is StageState.FAILED and not job.held:
            return (replace(job, held=True), ()) if _paused(job) else _again(job)
        case TimerFired(name="deploy") if digest := _deploying(job):
            return _deployment_hangs(job, digest)
    return job, ()


def resume(job: Job) -> tuple[Command, ...]:
    """What a job waits for after a restart of its controller; workers are brought again by their own slots."""
    if job.wanted is None:
        return (Forget(),)
    if job.removing:
        return (Remove(),)
    commands: list[Command] = []
    if job.state is StageState.READY:
        commands.append(TakeSnapshot(job.round))
    if job.state is StageState.FAILED and not job.held:
        commands.append(_backoff(job))
    if _deploying(job):
        commands.append(SetTimer(_DEPLOY, DEPLOY_S))
    if (served := to_serve(job)) is not None:
        commands.append(Serve(served))
    return tuple(commands)


# --- what follows from a state


@lru_cache(maxsize=64)
def _read(document: str) -> IncrementalLearningJobSpec | str:
    """A spec, or why this node cannot read it."""
    try:
        return IncrementalLearningJobSpec.model_validate_json(document, by_alias=True, by_name=False)
    except ValidationError as error:
        path, what = refusals(error)[0]
        return f"this version of edgeai cannot read what is wanted: {dotted(path)}: {what}"


def spec_of(wanted: JobWanted) -> IncrementalLearningJobSpec:
    """The spec as the user wrote it. Raises ValueError: it is of another version of the system."""
    found = _read(wanted.spec)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _unreadable(wanted: JobWanted) -> str:
    found = _read(wanted.spec)
    return found if isinstance(found, str) else ""


def run_of(job: Job) -> str:
    """The name of the run that the job's stage is in: stage, round and attempt. No two runs of a job have the same."""
    return f"{job.stage.value.lower()}-{job.round}.{job.attempt}"


def serving_run_of(job: Job) -> str:
    """The name of the inference worker's run, which stays the same over all rounds unless it has to be brought back."""
    return f"serve-{job.serves}"


def to_serve(job: Job) -> Served | None:
    """The model that the inference worker is to have: the new one while it is being deployed, else the serving one."""
    if job.candidate is not None and _deploying(job):
        return Served(job.candidate.model, 0, job.round)
    return job.serving


def is_news(job: Job, digest: str) -> bool:
    """Whether a model that the inference worker says it serves is not the one that the job knows it serves."""
    return job.serving is not None and job.serving.model.blob.digest != digest


def workers_of(job: Job) -> tuple[Assignment, ...]:
    """The workers that follow from a job: the inference worker always, the others while their stage runs.

    Afterwards their last run stays as finished, so that its log can be read.
    """
    if job.wanted is None or job.serving is None or job.removing:
        return ()
    found = []
    for assignment in job.wanted.workers:
        if assignment.role is Role.DEPLOY:
            found.append(replace(assignment, work=_serving_work(job)))
        elif (run := job.last_runs.get(assignment.role.value)) is not None:
            placed = ROLES[job.stage] is assignment.role and job.state in _PLACED
            found.append(replace(assignment, work=run, finished=not placed))
    return tuple(found)


def observe(job: Job) -> JobObserved | None:
    """The job as the coordinator is told of it."""
    wanted = job.wanted
    if wanted is None:
        return None
    return JobObserved(
        task=wanted.task,
        task_uid=wanted.task_uid,
        generation=wanted.generation,
        stage=job.stage.value,
        state=job.state.value,
        round=job.round,
        reason=job.reason,
        counts=job.counts,
        serving=job.serving.model.blob.digest if job.serving else "",
        metrics=dict(job.metrics),
    )


def models_in_use(job: Job) -> frozenset[str]:
    """Digests of the models that must stay on the node."""
    models = [served.model for served in (job.serving, job.previous) if served is not None]
    models += [job.candidate.model] if job.candidate is not None else []
    models += job.owed
    if job.state in _PLACED and (run := job.last_runs.get(ROLES[job.stage].value)) is not None:
        models += run.models
    return frozenset(model.blob.digest for model in models)


def _serving_work(job: Job) -> StageWork:
    assert job.wanted is not None
    if _unreadable(job.wanted):
        return StageWork(run=serving_run_of(job), mining=MiningAlgorithm.EDGE_ONLY.value)  # serving goes on
    mining = spec_of(job.wanted).hard_example_mining
    return StageWork(run=serving_run_of(job), mining=mining.algorithm.value, mining_parameters=mining.values())


def _run_work(job: Job) -> StageWork:
    """What the worker of the stage is to do, fixed when its run begins: the same run must stay the same work."""
    assert job.snapshot is not None
    assert job.serving is not None
    new = (job.candidate.model,) if job.candidate is not None and job.stage is Stage.EVAL else ()
    return StageWork(job.round, run_of(job), job.snapshot.digest, (*new, job.serving.model))


# --- wanted, changed, not wanted


def _wanted(job: Job, wanted: JobWanted) -> Step[Job]:
    if job.removing:
        return replace(job, next=wanted), ()
    before = job.wanted
    if before is not None and wanted.generation < before.generation:
        return job, ()
    if reason := _unreadable(wanted):
        # One that runs goes on with the last spec that could be read; the generation that is observed says so.
        return replace(job, wanted=before if job.serving else wanted, reason=reason), ()
    if before is None or job.serving is None:
        return _begun(replace(job, wanted=wanted, reason=""))
    if before == wanted:
        return job, ()
    job, commands = _with_version(replace(job, wanted=wanted), wanted.model)
    job, more = _woken(job, changed=wanted.generation > before.generation)
    return job, (*commands, *more)


def _unwanted(job: Job) -> Step[Job]:
    if job.wanted is None:
        return job, (Forget(),)
    if job.removing:
        return replace(job, next=None), ()
    return replace(job, removing=True), (CancelTimer(_RETRY), CancelTimer(_DEPLOY), Remove())


def _begun(job: Job) -> Step[Job]:
    assert job.wanted is not None
    found = job.wanted.model
    job = replace(job, serving=_served(found), known=(found.version, found.blob.digest))
    assert job.serving is not None
    told, serve = _told(job), Serve(job.serving)
    job, commands = _look(job)
    return job, (told, serve, *commands)


def _served(found: ModelVersionRef) -> Served:
    name = f"{found.blob.digest}{found.suffix or f'.{found.format}'}"
    return Served(ModelFile(name, found.blob, found.format), found.version)


def _with_version(job: Job, found: ModelVersionRef) -> Step[Job]:
    """Another version of the model: the number of one of the job's own, or one that somebody wants to be served instead."""
    serving, digest = job.serving, found.blob.digest
    assert serving is not None
    if job.known == (found.version, digest):
        return job, ()
    job = replace(job, known=(found.version, digest))
    owed = [model.blob.digest for model in job.owed]
    if found.own and digest in owed:
        job = replace(job, owed=job.owed[owed.index(digest) + 1 :])  # the cloud numbers them in their order
    if digest == serving.model.blob.digest:
        job = replace(job, serving=replace(serving, version=found.version))
        now = to_serve(job)
        return job, (Serve(now),) if now is not None and now == job.serving else ()
    if found.own:
        return job, ()
    if digest in job.refused:
        return replace(job, reason=f"version {found.version} is not served: {job.refused[digest]}"), ()
    return _serve_instead(job, _served(found), f"version {found.version} serves now")


def _woken(job: Job, *, changed: bool) -> Step[Job]:
    """Go on with what waited for a hand, for a change or for the end of a pause."""
    assert job.wanted is not None
    asked = job.wanted.triggers
    by_hand = asked > job.asked
    if changed:
        job = replace(job, refused={})
    if by_hand and job.given_up:
        job = replace(job, serves=job.serves + 1, given_up="")
    if not job.held:
        return _look(job)
    gave_up = job.failures >= MAX_ATTEMPTS
    if _paused(job) or (gave_up and not changed and not by_hand):
        return job, ()
    if gave_up:
        job = replace(job, failures=0, asked=asked)
    return _anew(job) if gave_up and by_hand and job.counts.new else _again(job)


# --- Train


def _look(job: Job) -> Step[Job]:
    """Whether the trigger of a waiting stage fires."""
    assert job.wanted is not None
    if job.state is not StageState.WAITING or _paused(job):
        return job, ()
    if job.stage is Stage.DEPLOY:
        return _deploy(job)
    trigger = spec_of(job.wanted).train.trigger
    by_hand = job.wanted.triggers > job.asked
    known = {**job.metrics, **_metrics_of(job.counts)}
    fires = trigger.condition is not None and holds(trigger.condition, known) and in_window(trigger.window, job.minute)
    if not by_hand and not (fires and job.minute >= 0 and job.counts.new > 0):
        return job, ()
    why = "asked for by hand" if by_hand or trigger.condition is None else described(trigger.condition)
    job = replace(job, asked=job.wanted.triggers)
    return _enter(job, Stage.TRAIN, StageState.READY, why, TakeSnapshot(job.round))


def _metrics_of(counts: ExampleCounts) -> dict[str, float]:
    return {
        "num_of_samples": counts.new,
        "num_of_unlabelled": counts.unlabelled,
        "hard_example_rate": counts.hard_rate,
    }


def _frozen(job: Job, snapshot: Snapshot) -> Step[Job]:
    # What is frozen is not new any more; the next count may come after this round's end.
    job = replace(job, snapshot=snapshot, attempt=0, failures=0, counts=replace(job.counts, new=0))
    if snapshot.train < 1 or snapshot.held_out < 1:
        lacking = "to train on" if snapshot.train < 1 else "to evaluate on"
        return _next_round(job, f"there is no labelled example {lacking}", StageState.FAILED)
    return _enter(job, Stage.TRAIN, StageState.STARTING)


def _trained(job: Job, candidate: Candidate) -> Step[Job]:
    job, told = _enter(replace(job, candidate=candidate), Stage.TRAIN, StageState.COMPLETED)
    job, more = _evaluate(replace(job, attempt=0, failures=0))
    return job, (*told, *more)


# --- Eval


def _evaluate(job: Job, reason: str = "") -> Step[Job]:
    assert job.candidate is not None
    assert job.serving is not None
    if job.candidate.model.blob.digest == job.serving.model.blob.digest:
        return _next_round(job, "the new model is the one that serves")
    return _enter(job, Stage.EVAL, StageState.STARTING, reason)


def _evaluated(job: Job, by_model: Mapping[str, Mapping[str, float]]) -> Step[Job]:
    assert job.candidate is not None
    assert job.serving is not None
    new = by_model.get(job.candidate.model.blob.digest)
    serving = by_model.get(job.serving.model.blob.digest)
    if new is None or serving is None:
        missing = "new" if new is None else "serving"
        return _failed(job, f"the eval worker reported no metrics of the {missing} model")
    job = replace(job, candidate=replace(job.candidate, metrics=_finite(new)), metrics=_finite(serving))
    job, told = _enter(replace(job, attempt=0, failures=0), Stage.EVAL, StageState.COMPLETED)
    if _paused(job):
        job, more = _enter(job, Stage.DEPLOY, StageState.WAITING, "the job is paused")
    else:
        job, more = _deploy(replace(job, stage=Stage.DEPLOY, state=StageState.WAITING))
    return job, (*told, *more)


# --- Deploy


def _deploy(job: Job) -> Step[Job]:
    """The new model serves if its trigger says so; else the round is over."""
    assert job.wanted is not None
    assert job.candidate is not None
    if why := job.refused.get(job.candidate.model.blob.digest):
        return _next_round(job, f"the new model was refused: {why}", StageState.FAILED)
    condition = spec_of(job.wanted).deploy.trigger.condition or AT_LEAST_AS_GOOD
    metrics = with_deltas(job.candidate.metrics, job.metrics)
    if not holds(condition, metrics):
        return _next_round(job, f"{NOT_DEPLOYED}: not {described(condition)} ({_shown(metrics)})")
    served = Served(job.candidate.model, 0, job.round)
    return _enter(job, Stage.DEPLOY, StageState.STARTING, "", SetTimer(_DEPLOY, DEPLOY_S), Serve(served))


def _shown(metrics: Mapping[str, float]) -> str:
    whole = {name: value for name, value in metrics.items() if "/" not in name}
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(whole.items())[:6]) or "no metrics"


def _now_serves(job: Job, digest: str) -> Step[Job]:
    if job.given_up:
        job = replace(job, given_up="")
    if digest != _deploying(job):
        return job, ()
    assert job.candidate is not None
    assert job.snapshot is not None
    assert job.wanted is not None
    new, snapshot = job.candidate, job.snapshot
    deployed = replace(job, serving=Served(new.model, 0, job.round), previous=job.serving)
    fact = ModelDeployed(
        job.wanted.task_uid,
        job.round,
        new.model,
        snapshot.digest,
        snapshot.train,
        dict(new.metrics),
        snapshot.held_out,
        job.wanted.generation,
    )
    following, commands = _next_round(_owing(deployed, new.model), "")
    following = replace(following, metrics=new.metrics)  # the end of the round was told with those of the model before
    return following, (*commands, Emit(fact, job.wanted.task, ROLES[Stage.DEPLOY].value))


def _refused(job: Job, digest: str, reason: str) -> Step[Job]:
    """A new model is never served against the inference worker's word; a serving one gives way to the one before it."""
    assert job.serving is not None
    serving = job.serving
    if digest not in job.refused:
        kept = list(job.refused.items())[-MAX_REFUSED + 1 :]
        job = replace(job, refused={**dict(kept), digest: reason})
    if digest == _deploying(job):
        job, commands = _next_round(job, f"the new model was refused: {reason}", StageState.FAILED)
        return job, (*commands, Serve(serving))
    if digest != serving.model.blob.digest:
        return job, ()
    if job.previous is None or not _can_roll_back(job):
        return replace(job, reason=f"the serving model is refused, and there is none before it: {reason}"), ()
    return _roll_back(job, job.previous, f"rolled back: {reason}")


def _can_roll_back(job: Job) -> bool:
    return job.previous is not None and job.previous.model.blob.digest not in job.refused


def _roll_back(job: Job, to: Served, reason: str) -> Step[Job]:
    assert job.wanted is not None
    assert job.serving is not None
    failed = job.serving.round or job.round
    told = _told(replace(job, stage=Stage.DEPLOY, state=StageState.FAILED, round=failed, reason=reason, candidate=None))
    fact = ModelDeployed(job.wanted.task_uid, 0, to.model, "", 0)
    following, commands = _serve_instead(job, to, reason)
    following = replace(following, previous=None)
    return following, (told, Emit(fact, job.wanted.task, ROLES[Stage.DEPLOY].value), *commands)


def _serve_instead(job: Job, served: Served, reason: str) -> Step[Job]:
    """Another model serves. A new one that was being compared with the one before is compared again."""
    job = replace(job, serving=served, previous=job.serving, metrics={}, reason=reason)
    compared = job.stage is Stage.DEPLOY or (job.stage is Stage.EVAL and job.state in _PLACED)
    if not compared:
        return job, (Serve(served),)
    job, commands = _evaluate(replace(job, attempt=job.attempt + 1), reason)
    return job, (CancelTimer(_DEPLOY), *commands, Serve(served))


def _deployment_hangs(job: Job, digest: str) -> Step[Job]:
    """What hangs in a thread cannot be ended there: the worker starts anew, without that model."""
    why = f"the inference worker neither served nor refused it within {DEPLOY_S:g} s, and was restarted"
    return _refused(replace(job, serves=job.serves + 1), digest, why)


def _inference_given_up(job: Job, reason: str) -> Step[Job]:
    """Its slot starts it no more. The newest model may be what ends it: it gets another chance without that one, if it can."""
    assert job.serving is not None
    why = f"the inference worker was given up: {reason}"
    digest = _deploying(job) or (job.serving.model.blob.digest if _can_roll_back(job) else "")
    if digest:
        return _refused(replace(job, serves=job.serves + 1), digest, why)
    return replace(job, given_up=reason, reason=f"{shortened(why, MAX_CAUSE)}; {_by_a_hand(job)} starts it again"), ()


# --- all stages


def _enter(job: Job, stage: Stage, state: StageState, reason: str = "", *commands: Command) -> Step[Job]:
    if stage is Stage.TRAIN and state is not StageState.FAILED and job.snapshot is not None:
        reason = reason or job.snapshot.left_out
    job = replace(job, stage=stage, state=state, reason=reason, held=False)
    if state is StageState.STARTING and stage is not Stage.DEPLOY:
        job = replace(job, last_runs={**job.last_runs, ROLES[stage].value: _run_work(job)})
    return job, (_told(job), *commands)


def _next_round(job: Job, reason: str, state: StageState = StageState.COMPLETED) -> Step[Job]:
    """Wait for the next trigger; `reason` says what became of this round, `state` how its last stage ended."""
    told = _told(replace(job, state=state, reason=reason))
    following = replace(
        job,
        stage=Stage.TRAIN,
        state=StageState.WAITING,
        round=job.round + 1,
        attempt=0,
        failures=0,
        held=False,
        reason=reason,
        snapshot=None,
        candidate=None,
        refused={},
    )
    return following, (told, CancelTimer(_RETRY), CancelTimer(_DEPLOY))


def _failed(job: Job, reason: str) -> Step[Job]:
    """Try the stage again after a pause; after too many failures say why and wait."""
    job = replace(job, failures=job.failures + 1, cause=shortened(reason, MAX_CAUSE))
    if job.failures < MAX_ATTEMPTS:
        wait = _backoff(job)
        return _enter(job, job.stage, StageState.FAILED, f"{job.cause}; tried again in {wait.after_s:g} s", wait)
    why = f"{GAVE_UP}, last: {job.cause}; {_by_a_hand(job)} tries again"
    job, commands = _enter(job, job.stage, StageState.FAILED, why)
    return replace(job, held=True), commands


def _by_a_hand(job: Job) -> str:
    assert job.wanted is not None
    return f"`edgeai trigger {job.wanted.task_name}` or a change of the job"


def _backoff(job: Job) -> SetTimer:
    return SetTimer(_RETRY, FIRST_BACKOFF_S * 2.0 ** (job.failures - 1))


def _again(job: Job) -> Step[Job]:
    job = replace(job, attempt=job.attempt + 1, held=False)
    why = f"tried again after: {job.cause}"
    if job.stage is Stage.EVAL:
        return _evaluate(job, why)
    if job.snapshot is None:
        return _enter(job, Stage.TRAIN, StageState.READY, why, TakeSnapshot(job.round))
    return _enter(job, Stage.TRAIN, StageState.STARTING, why)


def _anew(job: Job) -> Step[Job]:
    """There are labels that the round which was given up has not seen, and they may put it right: the next round begins."""
    following = replace(job, round=job.round + 1, attempt=0, snapshot=None, candidate=None, refused={})
    why = f"asked for by hand, after: {job.cause}"
    return _enter(following, Stage.TRAIN, StageState.READY, why, TakeSnapshot(following.round))


def _told(job: Job) -> Emit:
    assert job.wanted is not None
    # Until an evaluation is over, what is known of the new model is what the train worker said of it.
    measured = job.candidate if job.stage is not Stage.EVAL or job.state is StageState.COMPLETED else None
    fact = StageChanged(
        job.wanted.task_uid,
        job.round,
        job.stage.value,
        job.state.value,
        job.reason,
        job.snapshot.train if job.snapshot else 0,
        dict(measured.metrics) if measured else {},
        dict(job.metrics) if measured else {},
        job.snapshot.digest if job.snapshot else "",
        job.snapshot.held_out if job.snapshot else 0,
    )
    return Emit(fact, job.wanted.task, ROLES[job.stage].value)


def _owing(job: Job, model: ModelFile) -> Job:
    """Keep a model until the cloud has numbered it, or until there are too many of them."""
    assert job.wanted is not None
    return replace(job, owed=(*job.owed, model)[-spec_of(job.wanted).keep.max_versions :])


def _goes(job: Job) -> bool:
    """Whether it has begun, is to stay, and can be read (it was written by this version of the system, or one like it)."""
    return job.wanted is not None and job.serving is not None and not job.removing and not _unreadable(job.wanted)


def _paused(job: Job) -> bool:
    return job.wanted is not None and spec_of(job.wanted).paused


def _awaits_snapshot(job: Job, number: int) -> bool:
    return job.state is StageState.READY and job.round == number


def _runs(job: Job, stage: Stage, run: str) -> bool:
    return job.stage is stage and job.state in _PLACED and run == run_of(job)


def _deploying(job: Job) -> str:
    """The digest of the model that is on its way into the inference worker; empty if there is none."""
    under_way = job.stage is Stage.DEPLOY and job.state in _PLACED
    return job.candidate.model.blob.digest if under_way and job.candidate is not None else ""


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without those that no document can hold and no trigger fires on."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


MACHINE: Machine[Job] = Machine(Job, lambda _key: Job(), step, resume)
