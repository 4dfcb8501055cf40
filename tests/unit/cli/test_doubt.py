"""What is not known now is shown as Unknown with the age of the last sign, never as it was stored last."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import cli_documents as documents
import pytest

from edgeai.cli.doubt import Heard
from edgeai.events.catalogue import HealthAnswered, Heartbeat, NodeHealth
from edgeai.resources.kinds import from_document

NOW = datetime(2030, 1, 31, 12, 10, tzinfo=UTC)
BEAT = Heartbeat(100.0, 0, 0.002)
WORKERS = [documents.worker("work0", "edge1", "Running"), documents.worker("work1", "edge2", "Running")]
SILENT = HealthAnswered(
    (NodeHealth("edge1", heartbeat=BEAT, heartbeat_age_s=1.0), NodeHealth("edge2", heartbeat_age_s=120.0))
)


def put(console: Any, *found: dict[str, Any]) -> None:
    for document in found:
        asyncio.run(console.put(document))


def seen(document: dict[str, Any], ago_s: float) -> dict[str, Any]:
    document["status"]["lastSeen"] = (datetime.now(UTC) - timedelta(seconds=ago_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return document


def busy_service() -> dict[str, Any]:
    return documents.service(
        phase="Running",
        conditions=[documents.condition("Ready", "True")],
        workers=[documents.worker("little1", "edge1", "Running", "edge")],
        edges=[{"worker": "little1", "node": "edge1", "cloud": "closed", "counts": {"inferences": 5}}],
        replicas={"wanted": 2, "ready": 2, "waiting": 3},
    )


RUNNING = {
    "tasks": documents.task(phase="Running", workers=WORKERS),
    "jobs": documents.job(phase="Running", stage="Train", state="Running"),
    "services": busy_service(),
    "datasets": documents.dataset(conditions=[documents.condition("Ready", "True")]),
    "nodes": documents.node(),
}


# --- while the coordinator is silent


@pytest.mark.parametrize("what", list(RUNNING))
def test_a_table_shows_nothing_of_the_moment_while_the_coordinator_is_silent(console, what):
    console.health = None
    put(console, RUNNING[what])
    said = console("get", what)
    assert (said.code, "Unknown" in said.out) == (0, True)
    assert [word for word in ("Running", "True", "2/2", "1/2") if word in said.out] == []


@pytest.mark.parametrize("what", list(RUNNING))
def test_a_page_shows_nothing_of_the_moment_while_the_coordinator_is_silent(console, what):
    console.health = None
    put(console, RUNNING[what])
    said = console("describe", what, RUNNING[what]["metadata"]["name"])
    assert (said.code, "Unknown" in said.out) == (0, True)
    assert [word for word in ("Running", "True", "closed", "2 of 1", "3 requests") if word in said.out] == []


@pytest.mark.parametrize("command", [("get", "tasks"), ("describe", "task", "digits"), ("get", "tasks", "-o", "json")])
def test_one_line_says_who_is_silent_since_when_and_what_to_do(console, command):
    console.health = None
    put(console, RUNNING["tasks"], seen(documents.node(), 600.0))
    said = console(*command).err
    assert said.count("\n") == 1
    assert said.startswith("edgeai: the coordinator did not answer within 2 s, its last sign is 10 min old: ")
    assert said.endswith("; see whether `edgeai cloud` runs, and its log\n")


def test_the_age_of_the_last_sign_stands_beside_the_node(console):
    console.health = None
    put(console, seen(documents.node(), 600.0))
    assert "Unknown (10 min)" in console("get", "nodes").out


def test_documents_stay_as_they_are_stored(console):
    console.health = None
    put(console, RUNNING["tasks"])
    status = json.loads(console("get", "task", "digits", "-o", "json").out)["status"]
    assert (status["phase"], status["workers"][0]["state"]) == ("Running", "Running")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_task_that_has_ended_stays_as_it_is_and_nobody_is_asked(console, phase):
    console.health = None
    put(console, documents.task(phase=phase))
    said = console("get", "tasks")
    assert (phase in said.out, said.err, console.asked) == (True, "", 0)


@pytest.mark.parametrize("arguments", [("models",), ("tasks", "-o", "name")])
def test_nobody_is_asked_where_nothing_of_the_moment_is_shown(console, arguments):
    put(console, RUNNING["tasks"], documents.model())
    console("get", *arguments)
    assert console.asked == 0


def test_a_watch_says_once_that_what_it_shows_is_old(console, monkeypatch):
    console.health = None
    put(console, RUNNING["tasks"], documents.task("other", phase="Running"))
    shown = _first_of_watch(console)
    assert shown.err.count("states are those that were stored last") == 1


def test_a_wait_that_came_true_by_what_is_stored_says_so(console):
    console.health = None
    put(console, RUNNING["tasks"])
    said = console("wait", "task/digits", "--for=phase=Running")
    assert (said.code, said.err.count("states are those that were stored last")) == (0, 1)


def test_a_wait_for_the_end_asks_nobody(console):
    console.health = None
    put(console, documents.task(phase="Succeeded", conditions=[documents.condition("Succeeded", "True")]))
    assert (console("wait", "task/digits").err, console.asked) == ("", 0)


def _first_of_watch(console: Any) -> Any:
    """What a watch has said when it has shown what is there."""
    answer = console.answer

    async def answered_then_ended(node: str = "", *, timeout_s: float = 1.0) -> HealthAnswered:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(0.05, task.cancel)
        return await answer(node, timeout_s=timeout_s)

    console.answer = answered_then_ended
    return console("watch", "tasks")


# --- while the coordinator lives and a node is silent


def test_a_silent_node_is_unknown_with_its_age_though_it_is_stored_as_ready(console):
    console.health = SILENT
    put(console, documents.node("edge1"), documents.node("edge2"))
    said = console("get", "nodes")
    assert [line.split()[1:4] for line in said.out.splitlines()[1:]] == [
        ["True", "mosquitto", "process"],
        ["Unknown", "(2", "min)"],
    ]
    assert said.err == ""


def test_workers_on_a_silent_node_are_unknown_and_the_others_known(console):
    console.health = SILENT
    put(console, RUNNING["tasks"])
    page = console("describe", "task", "digits").out
    rows = {cells[0]: cells for line in page.splitlines() if (cells := line.split()) and cells[0].startswith("work")}
    assert (rows["work0"][3], rows["work1"][3]) == ("Running", "Unknown")
    assert "edge2 has not been heard of for 2 min" in page


def test_a_table_counts_no_worker_of_a_silent_node_as_running(console):
    console.health = SILENT
    put(console, RUNNING["tasks"])
    assert console("get", "tasks").out.splitlines()[1].split()[1:4] == ["Running", "0/10", "1/2"]


def test_a_dataset_is_unknown_while_its_node_is_silent(console):
    console.health = HealthAnswered((NodeHealth("edge1", gone=True, heartbeat_age_s=5.0),))
    put(console, RUNNING["datasets"])
    said = console("get", "datasets", "-o", "wide").out
    assert "Unknown (5 s)" in said
    assert "the broker of edge1 has lost its controller" in said


def test_what_is_known_to_be_wrong_stays_so(console):
    console.health = None
    put(console, documents.dataset(conditions=[documents.condition("Ready", "False", "Missing", "no such file")]))
    said = console("get", "datasets", "-o", "wide").out
    assert "False" in said
    assert "no such file" in said


@pytest.mark.parametrize(("last_seen", "known"), [("2030-01-31T12:09:55Z", True), ("2030-01-31T12:09:00Z", False)])
def test_right_after_a_start_of_the_coordinator_the_sign_that_is_stored_counts(last_seen, known):
    node = from_document(documents.node() | {"status": {"lastSeen": last_seen}})
    assert (Heard(HealthAnswered((NodeHealth("edge1"),)), NOW).doubt(node) is None) is known
