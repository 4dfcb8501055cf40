"""An incremental learning job on its edge: round after round, whatever fails, repeats, comes late or changes meanwhile."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    ExampleCounts,
    JobWanted,
    ModelDeployed,
    ModelFile,
    ModelVersionRef,
    Role,
    StageChanged,
    StageWork,
)
from edgeai.events.envelope import body_of, value_of
from edgeai.learning.triggers import JOB_METRICS
from edgeai.lifecycle.base import CancelTimer, Command, Emit, Forget, SetTimer, TimerFired
from edgeai.lifecycle.draft import MAX_REASON
from edgeai.lifecycle.stage import (
    DEPLOY_S,
    FIRST_BACKOFF_S,
    MACHINE,
    MAX_ATTEMPTS,
    MAX_REFUSED,
    TRANSITIONS,
    Checked,
    Evaluated,
    Job,
    JobEvent,
    ModelRefused,
    NowServes,
    Remove,
    Removed,
    RunFailed,
    Serve,
    Served,
    Snapshot,
    SnapshotFailed,
    SnapshotTaken,
    Stage,
    Staged,
    StageState,
    TakeSnapshot,
    Trained,
    Unwanted,
    Wanted,
    WorkerStarted,
    _metrics_of,
    models_in_use,
    observe,
    resume,
    run_of,
    serving_run_of,
    step,
    to_serve,
    workers_of,
)

UID, TASK = "0a1b2c3d" * 4, "digits-0a1b2c3d"
RETRY, DEADLINE = TimerFired("retry"), TimerFired("deploy")
WORKER = {"scriptDir": "./job", "scriptBootFile": "main.py", "frameworkType": "numpy"}
AT_200 = {"metric": "num_of_samples", "operator": ">=", "threshold": 200}
GAIN = {"metric": "accuracy_delta", "operator": ">", "threshold": 0.01}
NIGHT = {"start": "02:00", "end": "06:00"}


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")[:64]


def blob(name: str) -> BlobRef:
    return BlobRef(digest(name), 1000)


def model(name: str) -> ModelFile:
    return ModelFile(f"{digest(name)}.safetensors", blob(name))


FIRST, NEW, OTHER = model("first"), model("new"), model("other")
SNAPSHOT = Snapshot(digest("snapshot"), train=160, held_out=40, new=160)


def spec(*, condition: Any = AT_200, window: Any = None, deploy: Any = GAIN, **more: Any) -> str:
    train = {"workerSpec": WORKER, "trigger": {"condition": condition, "window": window}}
    return json.dumps(
        {
            "nodeName": "edge1",
            "initialModel": {"name": "digits"},
            "outputModel": {"name": "digits"},
            "dataset": {"name": "stream"},
            "hardExampleMining": {"algorithm": "Margin", "parameters": [{"key": "threshold", "value": 0.3}]},
            "train": train,
            "eval": {"workerSpec": WORKER},
            "deploy": {"workerSpec": WORKER, "trigger": {"condition": deploy}},
            **more,
        }
    )


def version(number: int, of: ModelFile, **more: Any) -> ModelVersionRef:
    return ModelVersionRef(number, of.blob, **more)


def wanted(generation: int = 1, *, model: ModelVersionRef | None = None, triggers: int = 0, **change: Any) -> JobWanted:
    roles = (Role.TRAIN, Role.EVAL, Role.DEPLOY)
    workers = tuple(Assignment(TASK, "digits", UID, generation, role.value, role, "main.py") for role in roles)
    text = change.get("text") or spec(**change)
    return JobWanted(TASK, "digits", UID, generation, text, workers, model or version(1, FIRST), triggers)


def checked(new: int = 0, minute: int = 180, **more: Any) -> Checked:
    return Checked(ExampleCounts(train=new, held_out=new // 4, new=new, **more), minute)


def evaluated(
    new: float | None = 0.9, serving: float | None = 0.5, run: str = "eval-1.0", **by_model: Any
) -> Evaluated:
    metrics: dict[str, Any] = {}
    for mine, accuracy in ((NEW, new), (FIRST, serving)):
        if accuracy is not None:
            metrics[mine.blob.digest] = {"accuracy": accuracy}
    return Evaluated(run, {**metrics, **by_model})


WAITING: list[JobEvent] = [Wanted(wanted())]
READY = [*WAITING, checked(200)]
TRAIN_STARTING = [*READY, SnapshotTaken(1, SNAPSHOT)]
TRAIN_RUNNING = [*TRAIN_STARTING, WorkerStarted("train-1.0")]
TRAIN_FAILED = [*TRAIN_RUNNING, RunFailed("train-1.0", "exited with code 1")]
EVAL_STARTING = [*TRAIN_RUNNING, Trained("train-1.0", NEW, {"loss": 0.2})]
EVAL_RUNNING = [*EVAL_STARTING, WorkerStarted("eval-1.0")]
EVAL_FAILED = [*EVAL_RUNNING, RunFailed("eval-1.0", "exited with code 1")]
PAUSED: list[JobEvent] = [Wanted(wanted(2, paused=True))]
DEPLOY_WAITING = [*EVAL_RUNNING, *PAUSED, evaluated()]
DEPLOY_STARTING = [*EVAL_RUNNING, evaluated()]
DEPLOY_RUNNING = [*DEPLOY_STARTING, Staged(NEW.blob.digest)]
DEPLOYED = [*DEPLOY_RUNNING, NowServes(NEW.blob.digest)]
REMOVING = [*TRAIN_RUNNING, Unwanted()]
REACHED: dict[tuple[Stage, StageState], list[JobEvent]] = {
    (Stage.TRAIN, StageState.WAITING): WAITING,
    (Stage.TRAIN, StageState.READY): READY,
    (Stage.TRAIN, StageState.STARTING): TRAIN_STARTING,
    (Stage.TRAIN, StageState.RUNNING): TRAIN_RUNNING,
    (Stage.TRAIN, StageState.FAILED): TRAIN_FAILED,
    (Stage.EVAL, StageState.STARTING): EVAL_STARTING,
    (Stage.EVAL, StageState.RUNNING): EVAL_RUNNING,
    (Stage.EVAL, StageState.FAILED): EVAL_FAILED,
    (Stage.DEPLOY, StageState.WAITING): DEPLOY_WAITING,
    (Stage.DEPLOY, StageState.STARTING): DEPLOY_STARTING,
    (Stage.DEPLOY, StageState.RUNNING): DEPLOY_RUNNING,
}
every_place = pytest.mark.parametrize("place", REACHED, ids="-".join)


def after(*events: JobEvent) -> tuple[Job, tuple[Command, ...]]:
    """The job after `events`, and the commands of the last one."""
    job, commands = Job(), ()
    for event in events:
        job, commands = step(job, event)
    return job, commands


def place_of(job: Job) -> tuple[Stage, StageState]:
    return job.stage, job.state


def stages(commands: tuple[Command, ...]) -> list[str]:
    facts = [command.fact for command in commands if isinstance(command, Emit)]
    return [f"{fact.stage} {fact.state}" for fact in facts if isinstance(fact, StageChanged)]


def of_kind(commands: tuple[Command, ...], kind: type) -> list[Any]:
    facts = [command.fact for command in commands if isinstance(command, Emit)]
    return [each for each in (*commands, *facts) if isinstance(each, kind)]


def placed(job: Job) -> dict[str, StageWork | None]:
    """The workers that run, with their work."""
    return {each.worker: each.work for each in workers_of(job) if not each.finished}


def failing(times: int) -> list[JobEvent]:
    """A training that fails again and again, with the back-offs between."""
    events: list[JobEvent] = list(TRAIN_STARTING)
    for attempt in range(times):
        events += [RunFailed(f"train-1.{attempt}", "exited with code 1"), RETRY]
    return events[:-1]


# --- the way of a round


@every_place
def test_every_place_of_the_table_is_reached(place):
    assert place_of(after(*REACHED[place])[0]) == place


def test_the_table_names_every_place_that_is_reached_and_no_other():
    assert TRANSITIONS.keys() == REACHED.keys()
    assert {place for places in TRANSITIONS.values() for place in places} <= TRANSITIONS.keys()


def test_a_job_that_comes_serves_its_model_and_waits():
    job, commands = after(Wanted(wanted()))
    assert place_of(job) == (Stage.TRAIN, StageState.WAITING)
    assert of_kind(commands, Serve) == [Serve(Served(FIRST, 1))]
    assert stages(commands) == ["Train Waiting"]


def test_a_trigger_that_fires_asks_for_a_snapshot_and_says_why():
    job, commands = after(*READY)
    assert of_kind(commands, TakeSnapshot) == [TakeSnapshot(1)]
    assert job.reason == "num_of_samples >= 200"


def test_a_trigger_that_does_not_fire_changes_nothing_but_the_counts():
    job, commands = after(*WAITING, checked(199))
    assert (place_of(job), commands, job.counts.new) == ((Stage.TRAIN, StageState.WAITING), (), 199)


def test_a_snapshot_is_trained_on_from_the_serving_model():
    job, commands = after(*TRAIN_STARTING)
    assert placed(job)["train"] == StageWork(1, "train-1.0", SNAPSHOT.digest, (FIRST,))
    assert stages(commands) == ["Train Starting"]


def test_what_a_snapshot_leaves_out_is_the_reason_of_its_stage_until_it_ends():
    lacking = replace(SNAPSHOT, left_out="3 left out (a label is text, not uint8)")
    reasons = []
    job, _ = after(*READY)
    for event in (SnapshotTaken(1, lacking), WorkerStarted("train-1.0"), Trained("train-1.0", NEW, {})):
        job, commands = step(job, event)
        reasons += [(fact.stage, fact.state, fact.reason) for fact in of_kind(commands, StageChanged)]
    assert reasons == [
        ("Train", "Starting", lacking.left_out),
        ("Train", "Running", lacking.left_out),
        ("Train", "Completed", lacking.left_out),
        ("Eval", "Starting", ""),
    ]


def test_a_new_model_is_evaluated_against_the_serving_one_on_the_same_snapshot():
    job, commands = after(*EVAL_STARTING)
    assert placed(job)["eval"] == StageWork(1, "eval-1.0", SNAPSHOT.digest, (NEW, FIRST))
    assert stages(commands) == ["Train Completed", "Eval Starting"]


def test_a_better_model_is_deployed_within_a_deadline():
    job, commands = after(*DEPLOY_STARTING)
    assert of_kind(commands, Serve) == [Serve(Served(NEW, 0, 1))]
    assert of_kind(commands, SetTimer) == [SetTimer("deploy", DEPLOY_S)]
    assert stages(commands) == ["Eval Completed", "Deploy Starting"]
    assert to_serve(job) == Served(NEW, 0, 1)


def test_what_an_evaluation_found_is_told_of_both_models():
    _, commands = after(*DEPLOY_STARTING)
    told = of_kind(commands, StageChanged)[0]
    assert (told.metrics, told.serving, told.samples) == ({"accuracy": 0.9}, {"accuracy": 0.5}, 160)


def test_a_model_that_serves_ends_the_round():
    job, commands = after(*DEPLOYED)
    assert (place_of(job), job.round) == ((Stage.TRAIN, StageState.WAITING), 2)
    assert (job.serving, job.previous) == (Served(NEW, 0, 1), Served(FIRST, 1))
    assert stages(commands) == ["Deploy Completed"]
    assert of_kind(commands, CancelTimer) == [CancelTimer("retry"), CancelTimer("deploy")]


def test_a_deployment_is_told_with_its_lineage():
    _, commands = after(*DEPLOYED)
    assert of_kind(commands, ModelDeployed) == [
        ModelDeployed(UID, 1, NEW, SNAPSHOT.digest, 160, {"accuracy": 0.9}, SNAPSHOT.held_out, 1)
    ]


def test_the_next_round_begins_from_the_new_model():
    job, _ = after(*DEPLOYED, checked(300), SnapshotTaken(2, SNAPSHOT))
    assert placed(job)["train"] == StageWork(2, "train-2.0", SNAPSHOT.digest, (NEW,))


def test_an_inference_worker_may_be_faster_than_the_news_that_its_model_is_staged():
    job, _ = after(*DEPLOY_STARTING, NowServes(NEW.blob.digest))
    assert job.serving == Served(NEW, 0, 1)


# --- triggers


def test_examples_of_a_snapshot_trigger_no_round_after_it():
    job, _ = after(*DEPLOYED, Wanted(wanted(model=version(2, NEW, own=True))))
    assert place_of(job) == (Stage.TRAIN, StageState.WAITING)


@pytest.mark.parametrize(("minute", "state"), [(119, "Waiting"), (120, "Ready"), (359, "Ready"), (360, "Waiting")])
def test_a_round_begins_only_inside_the_window(minute, state):
    job, _ = after(Wanted(wanted(window=NIGHT)), checked(200, minute))
    assert job.state == state


def test_a_condition_without_new_examples_begins_no_round():
    always = {"metric": "hard_example_rate", "operator": ">=", "threshold": 0}
    job, _ = after(Wanted(wanted(condition=always)), checked(0))
    assert job.state is StageState.WAITING


def test_metrics_of_the_serving_model_trigger_a_round():
    low = {"metric": "accuracy", "operator": "<", "threshold": 0.95}
    first = [replace(event, job=wanted(condition=low)) if isinstance(event, Wanted) else event for event in DEPLOYED]
    before, _ = after(Wanted(wanted(condition=low)), checked(5))
    assert before.state is StageState.WAITING
    by_hand = [Wanted(wanted(condition=low, triggers=1)), *first[2:]]
    job, _ = after(*by_hand, checked(5))
    assert (place_of(job), job.reason) == ((Stage.TRAIN, StageState.READY), "accuracy < 0.95")


def test_a_round_by_hand_needs_no_condition_and_no_window():
    job, commands = after(Wanted(wanted(condition=None, window=NIGHT)), Wanted(wanted(window=NIGHT, triggers=1)))
    assert (place_of(job), job.reason) == ((Stage.TRAIN, StageState.READY), "asked for by hand")
    assert of_kind(commands, TakeSnapshot) == [TakeSnapshot(1)]


def test_a_round_asked_for_before_the_job_came_is_owed():
    assert after(Wanted(wanted(triggers=1)))[0].state is StageState.READY


def test_a_round_asked_for_while_one_runs_comes_after_it():
    job, _ = after(*EVAL_RUNNING, Wanted(wanted(triggers=1)), evaluated(), NowServes(NEW.blob.digest))
    assert (place_of(job), job.round) == ((Stage.TRAIN, StageState.WAITING), 2)
    assert step(job, checked(0))[0].state is StageState.READY


def test_asking_several_times_makes_one_round():
    job, _ = after(Wanted(wanted(triggers=5)), SnapshotTaken(1, SNAPSHOT))
    job, _ = step(job, Trained("train-1.0", FIRST, {}))
    assert step(job, checked(0))[0].state is StageState.WAITING


@pytest.mark.parametrize(("train", "held_out", "what"), [(0, 5, "to train on"), (5, 0, "to evaluate on")])
def test_a_snapshot_without_examples_ends_the_round_with_the_reason(train, held_out, what):
    job, commands = after(*READY, SnapshotTaken(1, Snapshot(digest("empty"), train, held_out, 0)))
    assert (place_of(job), job.round) == ((Stage.TRAIN, StageState.WAITING), 2)
    assert what in job.reason
    assert stages(commands) == ["Train Failed"]


# --- which model is deployed


@pytest.mark.parametrize(
    ("condition", "new", "serving", "deployed"),
    [
        (GAIN, 0.52, 0.5, True),
        (GAIN, 0.51, 0.5, False),
        (GAIN, 0.4, 0.5, False),
        (None, 0.5, 0.5, True),
        (None, 0.49, 0.5, False),
    ],
)
def test_the_deploy_trigger_decides_whether_a_model_is_good_enough(condition, new, serving, deployed):
    begun = [Wanted(wanted(deploy=condition)), *EVAL_RUNNING[1:]]
    job, _ = after(*begun, evaluated(new, serving))
    assert (job.stage is Stage.DEPLOY) is deployed


def test_a_model_that_is_not_better_is_not_served_and_the_job_says_why():
    job, commands = after(*EVAL_RUNNING, evaluated(0.4, 0.5))
    assert (place_of(job), job.round, job.serving) == ((Stage.TRAIN, StageState.WAITING), 2, Served(FIRST, 1))
    assert "not accuracy_delta > 0.01 (accuracy 0.4, accuracy_delta -0.1)" in job.reason
    assert of_kind(commands, Serve) == []
    assert stages(commands) == ["Eval Completed", "Deploy Completed"]


def test_a_model_of_unknown_accuracy_is_not_deployed():
    begun = [Wanted(wanted(deploy=None)), *EVAL_RUNNING[1:]]
    job, _ = after(*begun, Evaluated("eval-1.0", {NEW.blob.digest: {"f1": 1.0}, FIRST.blob.digest: {"f1": 0.1}}))
    assert (job.stage, job.round) == (Stage.TRAIN, 2)


def test_a_model_whose_metrics_are_not_finite_is_not_deployed():
    job, commands = after(*EVAL_RUNNING, evaluated(math.nan, 0.5))
    assert job.serving == Served(FIRST, 1)
    assert all(math.isfinite(value) for told in of_kind(commands, StageChanged) for value in told.metrics.values())


def test_metrics_that_only_look_like_differences_are_kept():
    by_model = {
        each.blob.digest: {"accuracy": accuracy, "my_delta": 1.0} for each, accuracy in ((NEW, 0.9), (FIRST, 0.5))
    }
    job, _ = after(*EVAL_RUNNING, Evaluated("eval-1.0", by_model), NowServes(NEW.blob.digest))
    assert job.metrics == {"accuracy": 0.9, "my_delta": 1.0}


def test_a_training_that_gives_the_serving_model_again_ends_the_round():
    job, _ = after(*TRAIN_RUNNING, Trained("train-1.0", FIRST, {}))
    assert (place_of(job), job.reason) == ((Stage.TRAIN, StageState.WAITING), "the new model is the one that serves")


@pytest.mark.parametrize(("new", "serving", "missing"), [(None, 0.5, "new"), (0.9, None, "serving")])
def test_an_evaluation_of_one_model_alone_has_failed(new, serving, missing):
    job, _ = after(*EVAL_RUNNING, evaluated(new, serving))
    assert place_of(job) == (Stage.EVAL, StageState.FAILED)
    assert job.cause == f"the eval worker reported no metrics of the {missing} model"


# --- refused models


@pytest.mark.parametrize("events", [DEPLOY_STARTING, DEPLOY_RUNNING], ids=["starting", "running"])
def test_a_refused_model_gives_way_to_the_serving_one(events):
    job, commands = after(*events, ModelRefused(NEW.blob.digest, "it raises on load"))
    assert (place_of(job), job.round, job.serving) == ((Stage.TRAIN, StageState.WAITING), 2, Served(FIRST, 1))
    assert of_kind(commands, Serve) == [Serve(Served(FIRST, 1))]
    assert stages(commands) == ["Deploy Failed"]
    assert job.reason == "the new model was refused: it raises on load"


def test_a_model_that_was_refused_before_its_deployment_is_not_deployed():
    job, commands = after(*EVAL_RUNNING, ModelRefused(NEW.blob.digest, "NaN"), evaluated())
    assert (job.serving, of_kind(commands, Serve)) == (Served(FIRST, 1), [])
    assert job.reason == "the new model was refused: NaN"


def test_a_model_that_serves_too_late_does_not_serve():
    job, _ = after(*DEPLOY_RUNNING, ModelRefused(NEW.blob.digest, "NaN"), NowServes(NEW.blob.digest))
    assert job.serving == Served(FIRST, 1)


def test_a_deployment_that_nobody_answers_is_given_up():
    job, commands = after(*DEPLOY_RUNNING, DEADLINE)
    assert (job.round, of_kind(commands, Serve)) == (2, [Serve(Served(FIRST, 1))])
    assert "neither served nor refused it within 600 s" in job.reason


def test_a_serving_model_that_fails_gives_way_to_the_one_before_it():
    job, commands = after(*DEPLOYED, ModelRefused(NEW.blob.digest, "predict raised"))
    assert (job.serving, job.previous) == (Served(FIRST, 1), None)
    assert of_kind(commands, Serve) == [Serve(Served(FIRST, 1))]
    assert job.reason == "rolled back: predict raised"


def test_a_rollback_is_told_in_the_round_that_made_the_model():
    _, commands = after(*DEPLOYED, ModelRefused(NEW.blob.digest, "predict raised"))
    [told] = of_kind(commands, StageChanged)
    assert (told.round, told.stage, told.state) == (1, "Deploy", "Failed")
    assert of_kind(commands, ModelDeployed) == [ModelDeployed(UID, 0, FIRST, "", 0)]


def test_a_rollback_is_not_undone_when_the_cloud_numbers_the_model_that_failed():
    refused = [*DEPLOYED, ModelRefused(NEW.blob.digest, "predict raised")]
    job, commands = after(*refused, Wanted(wanted(model=version(2, NEW, own=True))))
    assert (job.serving, commands) == (Served(FIRST, 1), ())


def test_without_one_before_it_a_refused_model_stays_and_the_job_says_so():
    job, commands = after(*WAITING, ModelRefused(FIRST.blob.digest, "no file"))
    assert (job.serving, commands) == (Served(FIRST, 1), ())
    assert "there is none before it: no file" in job.reason


def test_a_model_is_not_rolled_back_to_one_that_was_refused_as_well():
    events = [*DEPLOYED, ModelRefused(FIRST.blob.digest, "gone"), ModelRefused(NEW.blob.digest, "NaN")]
    assert after(*events)[0].serving == Served(NEW, 0, 1)


def test_a_refusal_that_is_told_again_changes_nothing():
    job, _ = after(*DEPLOYED, ModelRefused(NEW.blob.digest, "NaN"))
    assert step(job, ModelRefused(NEW.blob.digest, "NaN")) == (job, ())


def test_refusals_are_remembered_up_to_a_limit():
    refusals = [ModelRefused(digest(str(number)), "no") for number in range(2 * MAX_REFUSED)]
    assert len(after(*WAITING, *refusals)[0].refused) == MAX_REFUSED


# --- the inference worker


@every_place
def test_the_inference_worker_is_placed_as_long_as_the_job_is_wanted(place):
    work = placed(after(*REACHED[place])[0])["deploy"]
    assert work == StageWork(run="serve-0", mining="Margin", mining_parameters={"threshold": 0.3})


def test_a_model_that_brings_the_inference_worker_down_is_refused_and_the_worker_brought_back():
    job, commands = after(*DEPLOY_RUNNING, RunFailed("serve-0", "killed by signal 11"))
    assert (job.round, of_kind(commands, Serve)) == (2, [Serve(Served(FIRST, 1))])
    assert placed(job)["deploy"].run == "serve-1"
    assert job.reason.endswith("the inference worker was given up: killed by signal 11")


def test_a_serving_model_that_brings_the_inference_worker_down_gives_way_to_the_one_before_it():
    job, commands = after(*DEPLOYED, RunFailed("serve-0", "killed by signal 11"))
    assert (job.serving, job.previous) == (Served(FIRST, 1), None)
    assert of_kind(commands, Serve) == [Serve(Served(FIRST, 1))]
    assert placed(job)["deploy"].run == "serve-1"
    assert job.reason == "rolled back: the inference worker was given up: killed by signal 11"


def test_a_model_that_brought_the_inference_worker_down_is_not_served_again_in_this_round():
    job, _ = after(*DEPLOYED, RunFailed("serve-0", "x"), Wanted(wanted(model=version(5, NEW))))
    assert (job.serving, "version 5 is not served" in job.reason) == (Served(FIRST, 1), True)


def test_a_worker_that_goes_down_with_the_model_before_as_well_is_given_up():
    job, commands = after(*DEPLOYED, RunFailed("serve-0", "x"), RunFailed("serve-1", "exited with code 1"))
    assert (job.serving, of_kind(commands, Serve)) == (Served(FIRST, 1), [])
    assert "`edgeai trigger digits` or a change of the job starts it again" in job.reason


def test_a_worker_that_hangs_in_a_deployment_is_started_anew_without_that_model():
    job, _ = after(*DEPLOY_RUNNING, DEADLINE)
    assert (placed(job)["deploy"].run, to_serve(job)) == ("serve-1", Served(FIRST, 1))


def test_an_inference_worker_that_is_given_up_is_brought_back_by_hand():
    job, _ = after(*WAITING, RunFailed("serve-0", "exited with code 1"))
    assert (
        placed(job)["deploy"].run,
        "`edgeai trigger digits` or a change of the job starts it again" in job.reason,
    ) == ("serve-0", True)
    assert placed(step(job, Wanted(wanted(triggers=1)))[0])["deploy"].run == "serve-1"


def test_a_worker_that_serves_again_is_not_brought_back():
    job, _ = after(*WAITING, RunFailed("serve-0", "x"), NowServes(FIRST.blob.digest), Wanted(wanted(triggers=1)))
    assert serving_run_of(job) == "serve-0"


# --- failures


@pytest.mark.parametrize(("events", "stage"), [(TRAIN_FAILED, "Train"), (EVAL_FAILED, "Eval")])
def test_a_failed_stage_is_tried_again_after_a_pause(events, stage):
    job, commands = after(*events)
    assert of_kind(commands, SetTimer) == [SetTimer("retry", FIRST_BACKOFF_S)]
    assert set(placed(job)) == {"deploy"}
    job, commands = step(job, RETRY)
    assert stages(commands) == [f"{stage} Starting"]
    assert placed(job)[stage.lower()].run == f"{stage.lower()}-1.1"


def test_the_metrics_that_a_job_has_by_itself_are_those_that_are_known_as_such():
    assert tuple(_metrics_of(ExampleCounts())) == JOB_METRICS


def test_a_failed_stage_says_when_it_is_tried_again():
    assert after(*failing(2))[0].reason == "exited with code 1; tried again in 4 s"


def test_a_stage_that_is_tried_again_says_why_and_not_when():
    job, _ = after(*failing(2), RETRY)
    assert job.reason == "tried again after: exited with code 1"


def test_what_a_worker_said_at_length_leaves_room_for_what_to_do():
    job, _ = after(*TRAIN_STARTING, RunFailed("train-1.0", "x" * 5000))
    assert (len(job.reason) < MAX_REASON, job.reason.endswith(" ...; tried again in 2 s")) == (True, True)


@pytest.mark.parametrize("state", ["Starting", "Running", "Failed"])
def test_an_evaluation_that_is_not_over_tells_no_metrics_of_the_train_worker(state):
    told, job = [], Job()
    for event in (
        *TRAIN_STARTING,
        Trained("train-1.0", NEW, {"loss": 0.5}),
        WorkerStarted("eval-1.0"),
        RunFailed("eval-1.0", "x"),
    ):
        job, commands = step(job, event)
        told += [each.fact for each in commands if isinstance(each, Emit)]
    assert [(each.metrics, each.serving) for each in told if (each.stage, each.state) == ("Eval", state)] == [({}, {})]


def test_pauses_double():
    pauses = [of_kind(after(*failing(times))[1], SetTimer)[0].after_s for times in range(1, MAX_ATTEMPTS)]
    assert pauses == [FIRST_BACKOFF_S * 2**times for times in range(MAX_ATTEMPTS - 1)]


def test_after_too_many_failures_the_job_says_why_and_waits():
    job, commands = after(*failing(MAX_ATTEMPTS))
    assert place_of(job) == (Stage.TRAIN, StageState.FAILED)
    assert job.reason == (
        "failed 4 times, last: exited with code 1; `edgeai trigger digits` or a change of the job tries again"
    )
    assert of_kind(commands, SetTimer) == []


@pytest.mark.parametrize("event", [RETRY, checked(500), Wanted(wanted()), Wanted(wanted(model=version(9, OTHER)))])
def test_a_job_that_gave_up_does_not_go_on_by_itself(event):
    job, _ = after(*failing(MAX_ATTEMPTS), event)
    assert place_of(job) == (Stage.TRAIN, StageState.FAILED)


def test_a_hand_takes_a_new_snapshot_where_labels_have_come_since():
    job, commands = after(*failing(MAX_ATTEMPTS), checked(7, -1), Wanted(wanted(triggers=1)))
    assert (place_of(job), job.round, job.snapshot) == ((Stage.TRAIN, StageState.READY), 2, None)
    assert of_kind(commands, TakeSnapshot) == [TakeSnapshot(2)]
    assert job.reason == "asked for by hand, after: exited with code 1"


def test_a_hand_brings_a_round_whose_evaluation_was_given_up_to_its_new_labels():
    failed = list(EVAL_STARTING)
    for attempt in range(MAX_ATTEMPTS):
        failed += [RunFailed(f"eval-1.{attempt}", "exited with code 1"), RETRY]
    job, _ = after(*failed[:-1], checked(7, -1), Wanted(wanted(triggers=1)))
    assert (place_of(job), job.round, job.candidate) == ((Stage.TRAIN, StageState.READY), 2, None)


@pytest.mark.parametrize("change", [wanted(triggers=1), wanted(2)], ids=["hand", "change"])
def test_a_job_that_gave_up_goes_on_with_the_same_snapshot(change):
    job, _ = after(*failing(MAX_ATTEMPTS), Wanted(change))
    assert placed(job)["train"] == StageWork(1, "train-1.4", SNAPSHOT.digest, (FIRST,))


def test_a_job_that_goes_on_may_fail_as_often_again():
    job, _ = after(*failing(MAX_ATTEMPTS), Wanted(wanted(triggers=1)), RunFailed("train-1.4", "again"))
    assert (job.failures, job.held) == (1, False)


def test_a_hand_that_made_a_job_go_on_is_not_owed_another_round():
    job, _ = after(*failing(MAX_ATTEMPTS), Wanted(wanted(triggers=1)), Trained("train-1.4", FIRST, {}), checked(0))
    assert place_of(job) == (Stage.TRAIN, StageState.WAITING)


def test_a_snapshot_that_failed_is_taken_again():
    job, commands = after(*READY, SnapshotFailed(1, "the file was truncated"), RETRY)
    assert (place_of(job), of_kind(commands, TakeSnapshot)) == ((Stage.TRAIN, StageState.READY), [TakeSnapshot(1)])


def test_a_success_forgives_the_failures_before_it():
    job, _ = after(*TRAIN_FAILED, RETRY, Trained("train-1.1", NEW, {}), RunFailed("eval-1.0", "x"))
    assert job.failures == 1


# --- late, foreign and repeated


@every_place
@pytest.mark.parametrize(
    "event",
    [
        SnapshotTaken(7, SNAPSHOT),
        SnapshotFailed(7, "late"),
        WorkerStarted("train-9.0"),
        Trained("train-9.0", OTHER, {}),
        Evaluated("eval-9.0", {}),
        RunFailed("train-9.0", "late"),
        RunFailed("serve-9", "late"),
        Staged(OTHER.blob.digest),
        NowServes(OTHER.blob.digest),
        Removed(),
        TimerFired("another"),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_is_late_or_foreign_changes_nothing(place, event):
    job, _ = after(*REACHED[place])
    assert step(job, event) == (job, ())


def test_the_end_of_a_training_worker_does_not_fail_the_evaluation():
    job, _ = after(*EVAL_RUNNING)
    assert step(job, RunFailed("train-1.0", "killed")) == (job, ())


def test_a_result_that_comes_after_its_failure_does_not_count():
    job, _ = after(*TRAIN_FAILED)
    assert step(job, Trained("train-1.0", NEW, {})) == (job, ())


def test_an_older_generation_is_ignored():
    job, _ = after(Wanted(wanted(3)))
    assert step(job, Wanted(wanted(2, triggers=1))) == (job, ())


@every_place
def test_what_is_wanted_may_be_told_again(place):
    events = REACHED[place]
    job, _ = after(*events)
    last = [event for event in events if isinstance(event, Wanted)][-1]
    assert step(job, last) == (job, ())


# --- pause


def test_a_paused_job_begins_no_round():
    job, _ = after(Wanted(wanted(paused=True)), checked(500), Wanted(wanted(paused=True, triggers=1)))
    assert place_of(job) == (Stage.TRAIN, StageState.WAITING)


def test_a_round_asked_for_during_a_pause_begins_after_it():
    job, _ = after(Wanted(wanted(paused=True)), Wanted(wanted(paused=True, triggers=1)), Wanted(wanted(2, triggers=1)))
    assert place_of(job) == (Stage.TRAIN, StageState.READY)


def test_a_paused_job_lets_its_worker_finish_and_deploys_nothing():
    job, commands = after(*DEPLOY_WAITING)
    assert (job.reason, of_kind(commands, Serve)) == ("the job is paused", [])


def test_a_job_goes_on_after_a_pause_with_what_waited():
    job, _ = after(*DEPLOY_WAITING, Wanted(wanted(3)))
    assert place_of(job) == (Stage.DEPLOY, StageState.STARTING)


def test_a_back_off_that_ends_during_a_pause_waits_for_its_end():
    job, commands = after(*TRAIN_FAILED, *PAUSED, RETRY)
    assert (place_of(job), commands) == ((Stage.TRAIN, StageState.FAILED), ())
    assert step(job, Wanted(wanted(3)))[0].state is StageState.STARTING


# --- other versions


def test_the_number_of_the_serving_model_is_taken_over_and_told_to_its_worker():
    job, commands = after(*DEPLOYED, Wanted(wanted(model=version(2, NEW, own=True))))
    assert (job.serving, commands) == (Served(NEW, 2, 1), (Serve(Served(NEW, 2, 1)),))


def test_a_number_that_comes_while_another_model_is_deployed_moves_nothing():
    begun = [*DEPLOYED, checked(300), SnapshotTaken(2, SNAPSHOT), Trained("train-2.0", OTHER, {})]
    by_model = {OTHER.blob.digest: {"accuracy": 0.99}, NEW.blob.digest: {"accuracy": 0.9}}
    job, commands = after(*begun, Evaluated("eval-2.0", by_model), Wanted(wanted(model=version(2, NEW, own=True))))
    assert (to_serve(job), commands) == (Served(OTHER, 0, 2), ())


def test_the_number_of_a_model_that_the_job_made_before_does_not_bring_it_back():
    begun = [*DEPLOYED, checked(300), SnapshotTaken(2, SNAPSHOT), Trained("train-2.0", OTHER, {})]
    by_model = {OTHER.blob.digest: {"accuracy": 0.99}, NEW.blob.digest: {"accuracy": 0.9}}
    deployed = [*begun, Evaluated("eval-2.0", by_model), NowServes(OTHER.blob.digest)]
    job, commands = after(*deployed, Wanted(wanted(model=version(2, NEW, own=True))))
    assert (job.serving, commands) == (Served(OTHER, 0, 2), ())


def test_a_version_that_somebody_makes_is_served():
    job, commands = after(*DEPLOYED, Wanted(wanted(model=version(3, FIRST))))
    assert (job.serving, commands) == (Served(FIRST, 3), (Serve(Served(FIRST, 3)),))
    assert job.previous == Served(NEW, 0, 1)


def test_versions_of_another_model_may_count_from_one_again():
    job, _ = after(Wanted(wanted(model=version(7, FIRST))), Wanted(wanted(model=version(1, OTHER))))
    assert job.serving == Served(OTHER, 1)


def test_a_version_that_was_refused_in_this_round_is_not_served():
    job, commands = after(*WAITING, ModelRefused(OTHER.blob.digest, "NaN"), Wanted(wanted(model=version(2, OTHER))))
    assert (job.serving, commands) == (Served(FIRST, 1), ())
    assert job.reason == "version 2 is not served: NaN"


def test_what_was_refused_in_a_round_before_may_be_tried_again():
    refused = [*DEPLOY_RUNNING, ModelRefused(NEW.blob.digest, "NaN")]
    job, _ = after(*refused, Wanted(wanted(model=version(2, NEW))))
    assert job.serving == Served(NEW, 2)


def test_a_version_that_somebody_makes_and_that_fails_gives_way_again():
    job, _ = after(*WAITING, Wanted(wanted(model=version(2, OTHER))), ModelRefused(OTHER.blob.digest, "NaN"))
    assert job.serving == Served(FIRST, 1)


@pytest.mark.parametrize("events", [EVAL_STARTING, EVAL_RUNNING, DEPLOY_STARTING, DEPLOY_RUNNING])
def test_a_new_model_is_compared_again_when_another_one_serves(events):
    job, commands = after(*events, Wanted(wanted(model=version(2, OTHER))))
    assert placed(job)["eval"].models == (NEW, OTHER)
    assert Serve(Served(OTHER, 2)) in commands
    assert to_serve(job) == Served(OTHER, 2)


def test_a_comparison_with_a_model_that_serves_no_more_does_not_count():
    job, _ = after(*EVAL_RUNNING, Wanted(wanted(model=version(2, OTHER))))
    assert step(job, evaluated()) == (job, ())


def test_a_training_goes_on_when_another_model_serves():
    before, _ = after(*TRAIN_RUNNING)
    job, _ = step(before, Wanted(wanted(model=version(2, OTHER))))
    assert placed(job)["train"] == placed(before)["train"]


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (ModelVersionRef(1, blob("a")), ".safetensors"),
        (ModelVersionRef(1, blob("a"), "keras"), ".keras"),
        (ModelVersionRef(1, blob("a"), "file", ".tflite"), ".tflite"),
    ],
)
def test_a_model_file_keeps_the_end_of_its_name(found, name):
    job, _ = after(Wanted(wanted(model=found)))
    assert job.serving.model == ModelFile(f"{digest('a')}{name}", found.blob, found.format)


# --- what stays on the node


def test_models_that_serve_served_or_are_to_serve_are_in_use():
    names = {each.blob.digest for each in (FIRST, NEW)}
    assert models_in_use(after(*DEPLOY_RUNNING)[0]) == names
    assert models_in_use(after(*DEPLOYED)[0]) == names


def test_models_of_a_run_are_in_use_until_it_ends():
    job, _ = after(*TRAIN_RUNNING, *[Wanted(wanted(model=version(n, model(str(n))))) for n in (2, 3)])
    assert FIRST.blob.digest in models_in_use(job)


def deployments(count: int) -> list[JobEvent]:
    events: list[JobEvent] = [Wanted(wanted(keep={"maxVersions": 3}))]
    serving = FIRST
    for number in range(1, count + 1):
        new = model(f"model-{number}")
        by_model = {new.blob.digest: {"accuracy": 0.9}, serving.blob.digest: {"accuracy": 0.1}}
        events += [
            checked(200),
            SnapshotTaken(number, SNAPSHOT),
            Trained(f"train-{number}.0", new, {}),
            Evaluated(f"eval-{number}.0", by_model),
            NowServes(new.blob.digest),
        ]
        serving = new
    return events


def test_a_model_that_served_is_kept_until_the_cloud_has_numbered_it():
    job, _ = after(*deployments(3))
    assert digest("model-1") in models_in_use(job)
    number = version(2, model("model-2"), own=True)
    job, _ = step(job, Wanted(wanted(model=number, keep={"maxVersions": 3})))
    assert models_in_use(job) == {digest("model-2"), digest("model-3")}


def test_without_the_cloud_only_the_newest_models_are_kept():
    assert len(after(*deployments(8))[0].owed) == 3


# --- removal


def test_a_job_that_is_not_wanted_any_more_is_removed_and_forgotten():
    job, commands = after(*REMOVING)
    assert (of_kind(commands, Remove), workers_of(job)) == ([Remove()], ())
    assert step(job, Removed()) == (job, (Forget(),))


def test_a_removal_is_begun_once():
    job, _ = after(*REMOVING)
    assert step(job, Unwanted()) == (job, ())


def test_a_job_that_is_wanted_again_while_it_is_removed_begins_anew():
    job, commands = after(*REMOVING, Wanted(wanted(2)), Removed())
    assert (place_of(job), job.wanted, job.removing) == ((Stage.TRAIN, StageState.WAITING), wanted(2), False)
    assert of_kind(commands, Serve) == [Serve(Served(FIRST, 1))]


def test_a_job_that_nobody_knows_is_forgotten():
    assert after(Unwanted()) == (Job(), (Forget(),))


# --- a spec of another version


def test_a_job_that_cannot_be_read_does_not_begin_and_says_why():
    job, commands = after(Wanted(wanted(text='{"nodeName": 7}')), checked(500))
    assert (commands, workers_of(job)) == ((), ())
    assert "cannot read what is wanted: nodeName: must be text" in observe(job).reason


def test_a_job_that_could_not_be_read_begins_when_it_can():
    job, _ = after(Wanted(wanted(text="{}")), Wanted(wanted(2)))
    assert (job.serving, job.reason) == (Served(FIRST, 1), "")


def test_a_running_job_goes_on_with_the_last_spec_that_could_be_read():
    job, _ = after(*WAITING, Wanted(wanted(2, text="{}")), checked(200))
    assert (place_of(job), observe(job).generation) == ((Stage.TRAIN, StageState.READY), 1)


def test_serving_goes_on_if_the_spec_cannot_be_read_after_an_update_of_the_node():
    job, _ = after(*WAITING)
    job = replace(job, wanted=wanted(text="{}"))
    assert placed(job) == {"deploy": StageWork(run="serve-0", mining="EdgeOnly")}
    assert step(job, checked(500)) == (job, ())


# --- restart and report


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], (Forget(),)),
        (WAITING, (Serve(Served(FIRST, 1)),)),
        (READY, (TakeSnapshot(1), Serve(Served(FIRST, 1)))),
        (TRAIN_RUNNING, (Serve(Served(FIRST, 1)),)),
        (TRAIN_FAILED, (SetTimer("retry", FIRST_BACKOFF_S), Serve(Served(FIRST, 1)))),
        (failing(MAX_ATTEMPTS), (Serve(Served(FIRST, 1)),)),
        (DEPLOY_WAITING, (Serve(Served(FIRST, 1)),)),
        (DEPLOY_RUNNING, (SetTimer("deploy", DEPLOY_S), Serve(Served(NEW, 0, 1)))),
        (REMOVING, (Remove(),)),
    ],
)
def test_a_restart_repeats_what_is_waited_for(events, expected):
    assert resume(after(*events)[0]) == expected


@every_place
def test_a_state_survives_its_store(place):
    job, _ = after(*REACHED[place])
    assert value_of(Job, msgpack.unpackb(msgpack.packb(body_of(job)), strict_map_key=False)) == job


@every_place
def test_the_coordinator_is_told_where_the_job_is(place):
    told = observe(after(*REACHED[place])[0])
    assert (told.task_uid, told.stage, told.state, told.round) == (UID, *place, 1)
    assert told.serving == FIRST.blob.digest


def test_of_a_job_that_nobody_knows_nothing_is_told():
    assert observe(Job()) is None


def test_a_worker_that_has_finished_stays_with_its_last_run():
    job, _ = after(*EVAL_RUNNING)
    [train] = [each for each in workers_of(job) if each.role is Role.TRAIN]
    assert (train.finished, train.work.run) == (True, "train-1.0")


# --- any history

MODELS = [FIRST, NEW, OTHER]
names = st.sampled_from(
    [f"{stage}-{number}.{attempt}" for stage in ("train", "eval") for number in (1, 2) for attempt in (0, 1)]
)
metric_values = st.sampled_from([0.1, 0.5, 0.9, math.nan])
models = st.sampled_from(MODELS)
digests = models.map(lambda each: each.blob.digest)
wishes = st.builds(
    lambda generation, number, of, own, triggers, more: Wanted(
        wanted(generation, model=version(number, of, own=own), triggers=triggers, **more)
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    models,
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([{}, {"paused": True}, {"deploy": None}, {"text": "{}"}, {"window": NIGHT}]),
)
foreign = st.one_of(
    wishes,
    st.builds(Unwanted),
    st.builds(Removed),
    st.builds(checked, st.sampled_from([0, 200]), st.sampled_from([0, 180])),
    st.builds(SnapshotTaken, st.integers(1, 3), st.just(SNAPSHOT)),
    st.builds(SnapshotFailed, st.integers(1, 3), st.just("why")),
    st.builds(WorkerStarted, names),
    st.builds(Trained, names, models, st.just({"loss": 1.0})),
    st.builds(Evaluated, names, st.dictionaries(digests, st.fixed_dictionaries({"accuracy": metric_values}))),
    st.builds(RunFailed, names | st.sampled_from(["serve-0", "serve-1"]), st.just("why")),
    st.builds(Staged, digests),
    st.builds(NowServes, digests),
    st.builds(ModelRefused, digests, st.just("why")),
    st.sampled_from([RETRY, DEADLINE]),
)


@st.composite
def fitting(draw: st.DrawFn, job: Job) -> JobEvent:
    """An event that the job waits for, so that histories get far."""
    run = run_of(job)
    candidate = job.candidate.model.blob.digest if job.candidate else NEW.blob.digest
    serving = job.serving.model.blob.digest if job.serving else FIRST.blob.digest
    told = {candidate: {"accuracy": draw(metric_values)}, serving: {"accuracy": draw(metric_values)}}
    return draw(
        st.sampled_from(
            [
                Wanted(wanted(triggers=job.asked + 1)),
                checked(200),
                SnapshotTaken(job.round, SNAPSHOT),
                SnapshotFailed(job.round, "why"),
                WorkerStarted(run),
                Trained(run, draw(models), {}),
                Evaluated(run, told),
                RunFailed(run, "why"),
                RunFailed(serving_run_of(job), "why"),
                Staged(candidate),
                NowServes(candidate),
                ModelRefused(candidate, "why"),
                ModelRefused(serving, "why"),
                RETRY,
            ]
        )
    )


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_whatever_happens_a_job_keeps_its_laws(data):
    job = Job()
    refused: set[tuple[int, str]] = set()
    for number in range(data.draw(st.integers(1, 40))):
        event = Wanted(wanted()) if number == 0 else data.draw(st.one_of(fitting(job), fitting(job), foreign))
        before = job
        job, commands = step(job, event)
        goes = all(each.serving is not None and not each.removing for each in (before, job))
        if goes:
            # where it goes
            steps = {place_of(before), *TRANSITIONS[place_of(before)]}
            assert place_of(job) in steps
            assert job.round >= before.round
            # what serves
            if isinstance(event, ModelRefused):
                refused.add((before.round, event.digest))
            if isinstance(event, Wanted) and event.job.generation > before.wanted.generation:
                refused.clear()
            if job.serving.model != before.serving.model:
                assert (before.round, job.serving.model.blob.digest) not in refused
                assert job.serving.model.blob.digest in models_in_use(job)
        else:
            refused.clear()
        # who works
        running = placed(job)
        assert len({"train", "eval"} & running.keys()) <= 1
        assert ("deploy" in running) is (job.serving is not None and not job.removing)
        assert all(each.blob.digest in models_in_use(job) for work in running.values() for each in work.models)
        # a restart, and the store
        assert all(isinstance(command, Command) for command in (*commands, *resume(job)))
        if job.state is StageState.READY and job.serving is not None and not job.removing:
            assert TakeSnapshot(job.round) in resume(job)
        assert value_of(Job, body_of(job)) == job
        # nobody waits for nothing
        for command in commands:
            if isinstance(command, Emit) and isinstance(command.fact, StageChanged):
                values = (*command.fact.metrics.values(), *command.fact.serving.values())
                assert all(math.isfinite(value) for value in values)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_an_event_given_twice_changes_nothing_more(data):
    job = Job()
    for number in range(data.draw(st.integers(1, 25))):
        event = Wanted(wanted()) if number == 0 else data.draw(st.one_of(fitting(job), foreign))
        job, _ = step(job, event)
        again, commands = step(job, event)
        if isinstance(event, ModelRefused | Checked | Removed):
            continue  # of the model that serves now; of a waiting job; of one that was wanted again
        assert again == job, event
        assert not of_kind(commands, StageChanged)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_no_two_runs_have_the_same_name(data):
    job, works = Job(), {}
    for number in range(data.draw(st.integers(1, 40))):
        event = Wanted(wanted()) if number == 0 else data.draw(fitting(job))
        job, _ = step(job, event)
        for worker, work in placed(job).items():
            assert works.setdefault((worker, work.run), work) == work


def test_the_machine_begins_with_nothing():
    assert MACHINE.initial(TASK) == Job()
