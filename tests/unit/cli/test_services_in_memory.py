"""Joint inference services on the command line: applied, looked at, waited for and deleted, on a cloud in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cli_documents as documents
import pytest

from edgeai.cli.description import description
from edgeai.cli.goals import Goal
from edgeai.cli.output import utc_now
from edgeai.client import scripts_of
from edgeai.errors import TaskFailed
from edgeai.resources.kinds import from_document

EXAMPLES = Path(__file__).parents[3] / "config" / "examples"
SMALL, BIG = "5" * 64, "b" * 64
COUNTS = {"inferences": 200, "hard": 70, "sent": 50, "answered": 45, "late": 3, "fellBack": 6, "overBudget": 11}
MORE = {"breakerOpen": 2, "failed": 1, "refused": 4, "shed": 9, "bytesSent": 2048}
REPLICAS = {"wanted": 2, "ready": 1, "waiting": 7, "at": documents.CREATED, "reason": "7 requests wait"}


def stored(console, document: dict[str, Any]) -> None:
    with pytest.raises(StopIteration):
        console.put(document).send(None)


def busy() -> dict[str, Any]:
    """A service with one edge that serves, and one that is silent."""
    serving = {"name": "small", "digest": SMALL, "version": 3}
    edges = [
        {
            "worker": "little1",
            "node": "edge1",
            "serving": serving,
            "counts": COUNTS | MORE,
            "models": {SMALL: 200},
            "cloud": "closed",
        },
        {"worker": "little2", "node": "edge2", "counts": {"inferences": 10}},
    ]
    workers = [
        documents.worker("little1", "edge1", "Running", "edge"),
        documents.worker("little2", "edge2", "Unknown", "edge", reason="edge2 is not heard of"),
        documents.worker("big-0", "cloud", "Running", "cloud"),
        documents.worker("big-1", "cloud", "Starting", "cloud"),
    ]
    return documents.service(
        phase="Running",
        conditions=[
            documents.condition("Degraded", "True", "EdgesInTrouble", "little2 on edge2: edge2 is not heard of")
        ],
        counts={**COUNTS, **MORE, "inferences": 210},
        edges=edges,
        workers=workers,
        replicas=REPLICAS,
        cloudServing={"digest": BIG, "version": 2},
    )


# --- apply


def test_scripts_are_packed_once_for_each_edge_and_once_for_all_replicas(console, tmp_path: Path):
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "main.py").write_text("print(1)\n")
    document = documents.service()
    for worker in (*document["spec"]["edgeWorkers"], document["spec"]["cloudWorker"]):
        worker["workerSpec"]["scriptDir"] = "joint"
    (tmp_path / "service.json").write_text(json.dumps(document))
    said = console("apply", "-f", str(tmp_path / "service.json"))
    assert said.out == "jointinferenceservice/digits created (generation 1)\n"
    notes = json.loads(console("get", "service", "digits", "-o", "json").out)["metadata"]["annotations"]
    assert set(notes) == {f"script.edgeai.io/{name}" for name in ("little1", "little2", "big")}


def test_the_example_is_applied_with_its_scripts_and_its_models(console):
    said = console("apply", "-f", str(EXAMPLES / "joint-digits.yaml"))
    assert said.code == 0
    assert said.out.splitlines() == [
        "model/digits-small created (generation 1)",
        "model/digits-big created (generation 1)",
        "jointinferenceservice/joint-digits created (generation 1)",
    ]
    notes = json.loads(console("get", "service", "joint-digits", "-o", "json").out)["metadata"]["annotations"]
    assert set(notes) == {"script.edgeai.io/little", "script.edgeai.io/big"}


def test_where_a_script_stands_in_the_manifest_is_known():
    fields = [script.fields.folder for script in scripts_of(from_document(documents.service()))]
    assert fields == [
        f"spec.{place}.workerSpec.scriptDir" for place in ("edgeWorkers[0]", "edgeWorkers[1]", "cloudWorker")
    ]


# --- looking at it


def test_the_table_says_how_many_edges_and_replicas_serve_and_how_much_is_sent(console):
    stored(console, busy())
    header, row = console("get", "services").out.splitlines()
    assert header.split() == ["NAME", "PHASE", "EDGES", "REPLICAS", "INFERENCES", "SENT", "FELL", "BACK", "AGE"]
    assert row.split()[:7] == ["digits", "Running", "1/2", "1/2", "210", "23.8%", "6"]


def test_the_wide_table_says_why_it_is_degraded(console):
    stored(console, busy())
    row = console("get", "service", "digits", "-o", "wide").out.splitlines()[1]
    assert row.endswith("v2            edge1,edge2   little2 on edge2: edge2 is not heard of")


@pytest.mark.parametrize("kind", ["service", "services", "jis", "JointInferenceService", "jointinferenceservices"])
def test_the_kind_has_short_names(console, kind):
    stored(console, busy())
    assert console("get", kind, "digits", "-o", "name").out == "jointinferenceservice/digits\n"


def described(document: dict[str, Any]) -> str:
    return description(from_document(document), [], utc_now())


def test_the_description_has_counters_of_every_edge_and_of_all():
    lines = described(busy()).splitlines()
    begin = lines.index("Inferences:")
    found = {line[:13].strip(): line[13:].split() for line in lines[begin + 1 : begin + 17]}
    assert found["WORKER"] == ["little1", "little2", "all"]
    assert found["SERVING"] == ["v3", "-"]
    assert found["BREAKER"] == ["closed", "-"]
    assert found["INFERENCES"] == ["200", "10", "210"]
    assert found["SHARE"][:2] == ["25.0%", "0.0%"]
    assert [found[name][:2] for name in ("ANSWERED", "LATE", "FELL BACK", "OVER BUDGET")] == [
        *(["45", "0"], ["3", "0"], ["6", "0"], ["11", "0"])
    ]
    assert found["BYTES UP"][:4] == ["2.0", "KiB", "0", "B"]


@pytest.mark.parametrize(
    "sentence",
    [
        "Edges:      little1 on edge1 (small, Margin), little2 on edge2 (small, Margin)",
        "Cloud:      big (cnn)",
        "Deadline:   0.5 s, then useEdgeAnswer",
        "Sent:       at most 30% of the inferences",
        "Wanted:    2 of 1 to 4",
        f"Why:       7 requests wait ({documents.CREATED})",
        "Ready:     1, serving v2",
        "Waiting:   7 requests",
        f"little1   small v3   {SMALL[:12]}   200",
        "big-1     cloud   cloud   Starting",
    ],
)
def test_the_description_says(sentence):
    assert sentence in described(busy())


def test_a_new_service_can_be_described(console):
    stored(console, documents.service())
    said = console("describe", "service", "digits")
    assert (said.code, "Phase:      Pending" in said.out) == (0, True)


# --- by its name alone


def test_a_name_that_several_kinds_have_must_be_said_with_its_kind(console):
    stored(console, documents.job("digits"))
    stored(console, documents.service())
    said = console("logs", "digits")
    sentence = "there is a job and a service called digits: say job/digits or service/digits"
    assert (said.code, said.err) == (4, f"edgeai: {sentence}\n")


def test_its_workers_are_named_when_another_is_asked_for(console):
    stored(console, busy())
    said = console("logs", "service/digits", "nobody")
    assert (said.code, "service digits has little1, little2, big-0, big-1" in said.err) == (3, True)


def test_it_cannot_be_paused(console):
    stored(console, busy())
    said = console("pause", "digits")
    assert (said.code, said.err) == (
        4,
        "edgeai: service digits cannot be paused or resumed: it answers until it is deleted\n",
    )


# --- its end, and what it needs


def test_it_is_only_marked_for_deletion(console):
    stored(console, busy())
    assert console("delete", "service", "digits").out == "jointinferenceservice/digits deleting\n"
    assert "deletionTimestamp" in console("get", "service", "digits", "-o", "json").out


@pytest.mark.parametrize("model", ["small", "cnn"])
def test_a_model_that_it_serves_is_not_deleted(console, model):
    stored(console, documents.model(model))
    stored(console, busy())
    said = console("delete", "model", model)
    assert said.code == 4
    assert f"model {model} is in use by service digits (Running): delete the service first" in said.err


def test_a_model_of_a_service_that_has_not_begun_is_deleted(console):
    stored(console, documents.model())
    stored(console, documents.service(phase="Pending"))
    assert console("delete", "model", "cnn").code == 0


@pytest.mark.parametrize(
    ("goal", "status", "sentence"),
    [
        ("condition=Succeeded", {"phase": "Running"}, "service digits goes on until it is deleted: wait for condition"),
        (
            "condition=Ready",
            {"phase": "Failed", "conditions": [documents.condition("Failed", "True", "X", "no numpy")]},
            "service digits has failed: no numpy",
        ),
    ],
    ids=["never ends", "failed"],
)
def test_what_cannot_come_true_is_not_waited_for(goal, status, sentence):
    reached = Goal.parse(goal).predicate("JointInferenceService", "digits")
    with pytest.raises(TaskFailed, match=sentence):
        reached(from_document(documents.service(**status)))


def test_the_definition_for_kubernetes_is_printed(console):
    said = console("schema", "crd", "service")
    assert (said.code, "jointinferenceservices.edgeai.io" in said.out) == (0, True)


def test_on_a_narrow_terminal_the_counters_are_in_two_tables():
    document = busy()
    document["status"]["edges"] *= 3
    lines = description(from_document(document), [], utc_now(), width=120).splitlines()
    begin = lines.index("Not sent, not answered:")
    assert lines[begin + 1].split() == [
        "WORKER",
        "OVER",
        "BUDGET",
        "NOT",
        "ASKED",
        "SHED",
        "REFUSED",
        "FAILED",
        "BYTES",
        "UP",
    ]
    assert all(len(line) <= 120 for line in lines)
