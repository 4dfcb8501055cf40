"""What `wait --for` understands, and when it gives up."""

import cli_documents as documents
import pytest
import typer

from edgeai.cli.goals import Goal
from edgeai.errors import NotFound, TaskFailed
from edgeai.resources.kinds import from_document


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("condition=Succeeded", Goal("condition", "Succeeded")),
        ("condition=ready=false", Goal("condition", "Ready", "False")),
        ("phase=running", Goal("phase", "Running")),
        ("delete", Goal("delete")),
    ],
)
def test_goals_are_read(text, goal):
    assert Goal.parse(text) == goal


@pytest.mark.parametrize(
    "text", ["", "Succeeded", "condition=", "condition=Nice", "condition=Ready=maybe", "phase=", "delete=now"]
)
def test_what_is_no_goal_is_a_usage_error(text):
    with pytest.raises(typer.BadParameter):
        Goal.parse(text)


def reached(goal: str, document: dict | None) -> bool:
    return Goal.parse(goal).predicate("FederatedTask", "digits")(from_document(document) if document else None)


def test_a_condition_is_met_by_its_status():
    ready = documents.task(phase="Running", conditions=[documents.condition("Ready", "True")])
    assert reached("condition=Ready", ready)
    assert not reached("condition=Ready=False", ready)


def test_a_phase_is_met():
    assert reached("phase=Running", documents.task(phase="Running"))


def test_deletion_is_met_when_the_resource_is_gone():
    assert reached("delete", None)


def test_a_resource_that_is_not_there_is_not_waited_for():
    with pytest.raises(NotFound):
        reached("phase=Running", None)


def test_success_is_not_waited_for_after_a_failure_and_the_reason_is_said():
    failed = documents.task(
        phase="Failed", conditions=[documents.condition("Failed", "True", "X", "work0 has no data")]
    )
    with pytest.raises(TaskFailed, match="work0 has no data"):
        reached("condition=Succeeded", failed)


def test_a_phase_of_the_past_is_not_waited_for():
    with pytest.raises(TaskFailed, match="has ended"):
        reached("phase=Running", documents.task(phase="Succeeded"))


def test_workers_of_a_succeeded_task_may_still_be_waited_for():
    ending = documents.task(phase="Succeeded", conditions=[documents.condition("Progressing", "True")])
    assert not reached("condition=Progressing=False", ending)
