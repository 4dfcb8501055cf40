"""What a controller records: starts of workers and stages of jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from collector import Notebook
from edgeai import tracing
from edgeai.controller.spans import StageSpans, StartSpans
from edgeai.events.catalogue import Assignment, BlobRef, JobWanted, ModelVersionRef, Role
from edgeai.lifecycle.stage import Job, Stage, StageState
from edgeai.tracing import span_of, stage_span, start_span, task_span

UID, LEVEL = "0123abcd" * 4, "digits-0123abcd"
ASSIGNMENT = Assignment(LEVEL, "digits", UID, 1, "work1", Role.TRAINING)
KEY, TOKEN = f"{LEVEL}/work1", "ab" * 32
JOB = Job(JobWanted(LEVEL, "digits", UID, 1, "{}", (), ModelVersionRef(1, BlobRef("cd" * 32, 1), "npz", "", True)))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    found = Notebook()
    monkeypatch.setattr(tracing, "_exporter", found)
    return found


# --- starts


def test_a_start_is_known_by_the_token_of_its_run(notebook: Notebook):
    spans = StartSpans("edge1")
    spans.preparing(KEY)
    spans.started(KEY, ASSIGNMENT, TOKEN, 10.0)
    [span] = notebook.spans
    assert (span.here, span.parent, span.part.node) == (start_span(UID, "work1", TOKEN), task_span(UID), "edge1")


def test_every_run_is_a_span_of_its_own(notebook: Notebook):
    spans = StartSpans("edge1")
    spans.started(KEY, ASSIGNMENT, TOKEN, 10.0)
    spans.started(KEY, ASSIGNMENT, "cd" * 32, 20.0)
    assert len({span.here for span in notebook.spans}) == 2


def test_a_failure_that_is_repeated_is_recorded_once_for_every_reason(notebook: Notebook):
    spans = StartSpans("edge1")
    for reason in ("no script", "no script", "no dataset", "no script"):
        spans.preparing(KEY)
        spans.failed(KEY, ASSIGNMENT, reason)
    assert [span.error for span in notebook.spans] == ["no script", "no dataset"]
    assert len({span.here for span in notebook.spans}) == 2


# --- stages


def look(spans: StageSpans, *places: tuple[Stage, StageState] | tuple[Stage, StageState, dict[str, object]]) -> None:
    for stage, state, *more in places:
        spans.look(LEVEL, replace(JOB, stage=stage, state=state, **(more[0] if more else {})))  # type: ignore[arg-type]


def test_the_stages_of_a_round_are_recorded_as_they_end(notebook: Notebook):
    look(
        StageSpans("edge1"),
        (Stage.TRAIN, StageState.WAITING),
        (Stage.TRAIN, StageState.READY),
        (Stage.TRAIN, StageState.STARTING),
        (Stage.TRAIN, StageState.RUNNING),
        (Stage.EVAL, StageState.STARTING),
        (Stage.EVAL, StageState.RUNNING),
        (Stage.DEPLOY, StageState.STARTING),
        (Stage.TRAIN, StageState.WAITING, {"round": 2}),
    )
    assert notebook.names() == ["stage train", "stage eval", "stage deploy"]
    assert [span.here for span in notebook.spans] == [stage_span(UID, 1, name) for name in ("train", "eval", "deploy")]
    assert {span.error for span in notebook.spans} == {""}


def test_a_stage_that_fails_says_why_and_is_tried_again_as_another_span(notebook: Notebook):
    look(
        StageSpans("edge1"),
        (Stage.TRAIN, StageState.RUNNING),
        (Stage.TRAIN, StageState.FAILED, {"cause": "exited with code 1"}),
        (Stage.TRAIN, StageState.RUNNING, {"attempt": 1}),
        (Stage.EVAL, StageState.RUNNING, {"attempt": 0}),
    )
    first, second = notebook.spans
    assert (first.here, first.error) == (stage_span(UID, 1, "train"), "exited with code 1")
    assert (second.here, second.error) == (span_of(UID, "round", 1, "train", 1), "")


def test_a_job_that_goes_leaves_no_stage_open(notebook: Notebook):
    spans = StageSpans("edge1")
    look(spans, (Stage.TRAIN, StageState.RUNNING))
    spans.look(LEVEL, None)
    look(spans, (Stage.TRAIN, StageState.WAITING))
    assert notebook.spans == []


def test_nothing_is_remembered_where_nobody_wants_traces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracing, "_exporter", None)
    spans = StageSpans("edge1")
    look(spans, (Stage.TRAIN, StageState.RUNNING))
    assert spans._open == {}
