"""What the coordinator records of tasks, by what it sees of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from coordinator_world import UID, task

from collector import Notebook
from edgeai import tracing
from edgeai.coordinator.spans import TaskSpans, trained
from edgeai.events.catalogue import TrainingCompleted
from edgeai.resources.base import instant
from edgeai.resources.federated import FederatedTask, FinishedModel
from edgeai.tracing import round_span, span_of, task_span


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    found = Notebook()
    monkeypatch.setattr(tracing, "_exporter", found)
    return found


def seen(phase: str, ended_ago_s: float = 0.0, reason: str = "", **status: Any) -> FederatedTask:
    ended = instant(datetime.now(UTC) - timedelta(seconds=ended_ago_s))
    conditions = []
    if phase in {"Succeeded", "Failed"}:
        conditions = [{"type": phase, "status": "True", "message": reason, "lastTransitionTime": ended}]
    return task(status={"phase": phase, "conditions": conditions, **status})


def test_a_task_is_recorded_when_it_ends_and_its_preparation_when_it_runs(notebook: Notebook):
    spans = TaskSpans()
    for phase in ("Pending", "Preparing", "Running", "Paused", "Running"):
        spans.look([seen(phase)])
    assert notebook.names() == ["prepare"]
    spans.look([seen("Succeeded")])
    spans.look([seen("Succeeded")])
    assert notebook.names() == ["prepare", "task"]
    [whole] = notebook.named("task")
    assert (whole.here, whole.parent, whole.error) == (task_span(UID), span_of(UID), "")
    assert whole.about["phase"] == "Succeeded"


def test_a_task_that_failed_says_why(notebook: Notebook):
    spans = TaskSpans()
    spans.look([seen("Preparing")])
    spans.look([seen("Failed", reason="no worker is left")])
    assert {span.name: span.error for span in notebook.spans} == dict.fromkeys(("prepare", "task"), "no worker is left")


def test_a_task_that_is_deleted_while_it_runs_has_an_end(notebook: Notebook):
    spans = TaskSpans()
    spans.look([seen("Running")])
    spans.look([seen("Deleting")])
    spans.look([])
    assert notebook.names() == ["prepare", "task"]


def test_a_restart_forgets_no_beginning_and_repeats_no_preparation(notebook: Notebook):
    spans = TaskSpans()
    running = seen("Running")
    created = running.metadata.model_copy(update={"creation_timestamp": "2030-01-31T12:00:00Z"})
    spans.load([running.model_copy(update={"metadata": created})])
    spans.look([seen("Succeeded")])
    [whole] = notebook.spans
    assert whole.name == "task"
    assert whole.part.service == "edgeai-coordinator"


def test_a_task_that_ended_just_before_a_restart_is_recorded_again_as_the_same_span(notebook: Notebook):
    TaskSpans().load([seen("Succeeded", ended_ago_s=2)])
    [whole] = notebook.spans
    assert whole.here == task_span(UID)


@pytest.mark.parametrize("before", [seen("Succeeded", ended_ago_s=60), seen("Running"), seen("Deleting")])
def test_other_tasks_are_not_recorded_at_a_restart(notebook: Notebook, before: FederatedTask):
    spans = TaskSpans()
    spans.load([before])
    spans.look([before])
    assert notebook.spans == []


def test_a_new_version_belongs_to_the_span_that_its_message_names(notebook: Notebook):
    completed = TrainingCompleted(UID, "ab" * 32, 100, 3, {})
    model = FinishedModel(name="digits", version=2, digest="ab" * 32)
    trained(seen("Running"), completed, model, str(round_span(UID, 7)), time.time())
    trained(seen("Running"), completed, model, "", time.time())
    assert [span.parent for span in notebook.spans] == [round_span(UID, 7), round_span(UID, 4)]
