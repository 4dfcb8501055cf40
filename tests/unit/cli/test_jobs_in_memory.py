"""Commands on incremental learning jobs, on a cloud in memory; a node that answers is played by the test."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import cli_documents as documents
import pytest
import typer

from edgeai.bus.memory import MemoryBroker, MemoryBus
from edgeai.cli import labelling
from edgeai.client import MAX_LABELS, Cloud
from edgeai.errors import NotFound, Refused, WaitTimeout
from edgeai.events.address import Address, Direction, EventClass, Pattern, task_level
from edgeai.events.catalogue import (
    Event,
    ExamplesAnswered,
    ExamplesRequested,
    LabelsGiven,
    LabelsTaken,
    UnlabelledExample,
)
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.resources.kinds import from_document
from edgeai.store.bundles import MAX_BUNDLE_BYTES
from edgeai.store.memory import MemoryBlobStore, MemoryFactStream, MemoryResourceStore

EXAMPLES = Path(__file__).parents[3] / "config" / "examples"
LEVEL = task_level("drift", documents.UID)
SERVING = {"digest": documents.DIGEST, "version": 3, "round": 2}


def stored(console, document: dict[str, Any]) -> None:
    with pytest.raises(StopIteration):
        console.put(document).send(None)


# --- apply


def test_the_example_is_applied_with_its_scripts_and_its_model(console):
    said = console("apply", "-f", str(EXAMPLES / "incremental-digits.yaml"))
    assert said.code == 0
    assert said.out.splitlines()[-1] == "incrementallearningjob/incremental-digits created (generation 1)"
    job = json.loads(console("get", "job", "incremental-digits", "-o", "json").out)
    notes = job["metadata"]["annotations"]
    assert set(notes) == {f"script.edgeai.io/{stage}" for stage in ("train", "eval", "deploy")}
    assert {int(note.partition(":")[2]) < MAX_BUNDLE_BYTES for note in notes.values()} == {True}
    assert {asyncio.run(console.blobs.has(note.partition(":")[0])) for note in notes.values()} == {True}


def test_the_example_applied_again_is_unchanged(console):
    console("apply", "-f", str(EXAMPLES / "incremental-digits.yaml"))
    said = console("apply", "-f", str(EXAMPLES / "incremental-digits.yaml"))
    assert {line.split()[1] for line in said.out.splitlines()} == {"unchanged"}


def test_a_script_folder_that_is_missing_is_said_with_file_and_field(console, tmp_path):
    document = documents.job()
    document["spec"]["eval"]["workerSpec"]["scriptDir"] = "./nothing"
    (tmp_path / "job.json").write_text(json.dumps(document))
    said = console("apply", "-f", str(tmp_path / "job.json"))
    assert said.code == 4
    assert said.err.startswith(
        f"edgeai: {tmp_path}/job.json: spec.eval.workerSpec.scriptDir: IncrementalLearningJob drift: "
    )


def test_a_job_does_not_move_to_another_node(console, tmp_path):
    stored(console, documents.job(phase="Running"))
    (tmp_path / "job.json").write_text(json.dumps(documents.job()).replace('"edge1"', '"edge2"'))
    said = console("apply", "-f", str(tmp_path / "job.json"))
    assert said.code == 4
    assert "job drift runs on edge1, where its examples are" in said.err


def test_a_job_that_has_failed_is_applied_anew(console, tmp_path):
    stored(console, documents.job(phase="Failed"))
    (tmp_path / "job.json").write_text(json.dumps(documents.job()).replace("/srv/job", "/srv/other"))
    assert "configured (generation 2)" in console("apply", "-f", str(tmp_path / "job.json")).out


def test_a_manifest_that_is_applied_again_does_not_forget_who_asked_for_rounds(console, tmp_path):
    stored(console, documents.job())
    console("trigger", "drift")
    (tmp_path / "job.json").write_text(json.dumps(documents.job()))
    assert (
        console("apply", "-f", str(tmp_path / "job.json")).out
        == "incrementallearningjob/drift unchanged (generation 2)\n"
    )


def test_apply_wait_returns_when_the_job_serves(console, tmp_path):
    stored(console, documents.job(phase="Running", conditions=[documents.condition("Ready", "True")]))
    (tmp_path / "job.json").write_text(json.dumps(documents.job()))
    said = console("apply", "-f", str(tmp_path / "job.json"), "--wait")
    assert (said.code, said.out.splitlines()[-1]) == (0, "incrementallearningjob/drift serves")


def with_triggers(begins: str, deploys: str) -> dict[str, Any]:
    document = documents.job()
    for stage, metric in (("train", begins), ("deploy", deploys)):
        condition = {"any": [{"metric": metric, "operator": ">=", "threshold": 1}]}
        document["spec"][stage]["trigger"] = {"condition": condition}
    return document


@pytest.mark.parametrize(
    ("begins", "deploys", "said"),
    [
        (
            "num_of_sample",
            "accuracy_delta",
            "edgeai: job drift: num_of_sample is not a metric that a job has by itself; did you mean num_of_samples?"
            " It fires only if an evaluation reports it\n",
        ),
        (
            "num_of_samples",
            "acuracy_delta",
            "edgeai: job drift: metric acuracy_delta: did you mean accuracy_delta? It fires only if an evaluation reports it\n",
        ),
        ("accuracy", "top5_accuracy_delta", ""),
    ],
    ids=["train", "deploy", "metrics of an evaluation"],
)
def test_a_metric_that_looks_misspelt_is_noticed(console, tmp_path, begins, deploys, said):
    stored(console, documents.job(phase="Running", conditions=[documents.condition("Ready", "True")]))
    (tmp_path / "job.json").write_text(json.dumps(with_triggers(begins, deploys)))
    assert console("apply", "-f", str(tmp_path / "job.json"), "--wait").err == said


NO_DATASET = "dataset labeled does not exist: apply a Dataset of that name"


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"conditions": [documents.condition("Accepted", "False", "X", NO_DATASET)]}, f": {NO_DATASET}"),
        ({"conditions": [documents.condition("Ready", "False", "X", "exited with code 1")]}, ": exited with code 1"),
        ({"reason": "edge1 is not heard of since noon"}, ": edge1 is not heard of since noon"),
        ({}, ""),
    ],
    ids=["a reference is missing", "it does not serve", "its node is silent", "nothing is known"],
)
def test_apply_wait_that_takes_too_long_says_what_the_job_waits_for(console, tmp_path, status, why):
    stored(console, documents.job(**status))
    (tmp_path / "job.json").write_text(json.dumps(documents.job()))
    said = console("apply", "-f", str(tmp_path / "job.json"), "--wait", "--timeout", "0.05")
    assert (said.code, said.err) == (124, f"edgeai: job drift: not within 0.05 s{why}\n")


def test_a_wait_that_takes_too_long_says_what_the_job_waits_for(console):
    stored(console, documents.job(conditions=[documents.condition("Accepted", "False", "X", NO_DATASET)]))
    said = console("wait", "job", "drift", "--for", "condition=Ready", "--timeout", "0.05")
    assert said.err == f"edgeai: job drift: not within 0.05 s: {NO_DATASET}\n"


def test_a_deletion_that_takes_too_long_says_which_node_is_not_heard_of(console):
    workers = [documents.worker("deploy", "edge1", "Unknown", role="deploy", reason="edge1 is not heard of")]
    stored(console, documents.job(workers=workers, conditions=[documents.condition("Degraded", "True", "X", "y")]))
    said = console("delete", "job", "drift", "--wait", "--timeout", "0.05")
    assert said.err == "edgeai: job drift: not within 0.05 s: edge1 is not heard of\n"


# --- get, describe, wait, pause, delete


def test_a_table_of_jobs_shows_stage_and_examples(console):
    stored(
        console,
        documents.job(
            phase="Running",
            round=3,
            stage="Train",
            state="Waiting",
            counts={"new": 12, "unlabelled": 7},
            metrics={"accuracy": 0.91},
        ),
    )
    header, row = console("get", "jobs").out.splitlines()
    assert header.split() == ["NAME", "PHASE", "ROUND", "STAGE", "STATE", "NEW", "UNLABELLED", "ACCURACY", "AGE"]
    assert row.split()[:8] == ["drift", "Running", "3", "Train", "Waiting", "12", "7", "0.9100"]


def test_describe_shows_stages_workers_and_what_serves(console):
    history = [
        documents.stage_row(2, "Train", "Completed", samples=80),
        documents.stage_row(
            2, "Deploy", "Failed", reason="NaN", metrics={"accuracy": 0.5}, serving={"accuracy": 0.8}, samples=80
        ),
    ]
    workers = [documents.worker("deploy", "edge1", "Backoff", role="deploy", reason="killed")]
    stored(console, documents.job(phase="Running", serving=SERVING, history=history, workers=workers))
    shown = console("describe", "job", "drift").out
    assert "cnn v3" in shown
    assert "killed" in shown
    row = next(line.split() for line in shown.splitlines() if " Deploy " in line)
    assert row == ["2", "Deploy", "Failed", "80", "0.5000", "0.8000", documents.CREATED, "NaN"]


def test_describe_shows_how_many_hard_examples_were_lost(console):
    stored(console, documents.job(counts={"requests": 500, "hard": 40, "dropped": 7}))
    shown = [line.split() for line in console("describe", "job", "drift").out.splitlines()]
    assert ["Hard", "ones", "lost:", "7"] in shown


def test_a_model_that_has_no_number_yet_is_that_of_its_round(console):
    stored(console, documents.job(serving={"digest": documents.DIGEST, "round": 4}))
    assert "cnn of round 4" in console("describe", "job/drift").out


def test_a_job_that_serves_its_initial_model_is_not_said_to_serve_the_one_that_it_makes(console):
    document = documents.job(serving={"name": "first", "digest": documents.DIGEST, "version": 6})
    stored(console, document)
    assert "first v6" in console("describe", "job/drift").out


def test_a_serving_model_of_which_nothing_is_known_is_named_by_its_digest(console):
    stored(console, documents.job(serving={"digest": documents.DIGEST}))
    assert f"a model without a number ({documents.DIGEST[:12]})" in console("get", "jobs", "-o", "wide").out


def test_a_job_has_no_end_to_wait_for(console):
    stored(console, documents.job(phase="Running"))
    said = console("wait", "job", "drift")
    assert said.code == 1
    assert "goes on until it is deleted: wait for condition=Ready or phase=Running" in said.err


def test_waiting_for_a_job_that_has_failed_ends_with_1_and_the_reason(console):
    stored(console, documents.job(phase="Failed", conditions=[documents.condition("Failed", "True", "X", "no numpy")]))
    said = console("wait", "job", "drift", "--for", "phase=Running")
    assert (said.code, said.err) == (1, "edgeai: job drift has failed: no numpy\n")


def test_a_job_is_paused_and_resumed_by_its_name_alone(console):
    stored(console, documents.job(phase="Running"))
    assert console("pause", "drift").out == "incrementallearningjob/drift paused (generation 2)\n"
    assert console("resume", "job/drift").out == "incrementallearningjob/drift resumed (generation 3)\n"


def test_a_name_that_a_task_and_a_job_have_must_be_said_with_its_kind(console):
    stored(console, documents.task("drift", phase="Running"))
    stored(console, documents.job(phase="Running"))
    said = console("pause", "drift")
    assert (said.code, said.err) == (4, "edgeai: there is a task and a job called drift: say task/drift or job/drift\n")
    assert console("pause", "task/drift").code == 0


def test_a_job_is_only_marked_for_deletion(console):
    stored(console, documents.job())
    assert console("delete", "job", "drift").out == "incrementallearningjob/drift deleting\n"
    assert "deletionTimestamp" in console("get", "job", "drift", "-o", "json").out


@pytest.mark.parametrize("phase", ["Preparing", "Running", "Paused", "Failed"])
@pytest.mark.parametrize("what", [documents.dataset(), documents.model()], ids=["dataset", "model"])
def test_what_a_job_learns_from_is_not_deleted(console, phase, what):
    stored(console, what)
    stored(console, documents.job(phase=phase))
    said = console("delete", what["kind"].lower(), what["metadata"]["name"])
    assert said.code == 4
    assert f"is in use by job drift ({phase}): delete the job first" in said.err


def test_the_workers_of_a_job_are_named_when_another_is_asked_for(console):
    stored(console, documents.job())
    said = console("logs", "drift", "nobody")
    assert (said.code, "job drift has train, eval, deploy" in said.err) == (3, True)


# --- models


def test_a_model_is_pulled_with_the_suffix_of_its_format(console, tmp_path):
    content = tmp_path / "blob"
    content.write_bytes(b"model")
    from edgeai.store.files import digest_bytes

    digest = digest_bytes(b"model")
    asyncio.run(console.blobs.put(digest, content))
    document = documents.model(versions=1)
    document["status"]["versions"][0] |= {"digest": digest, "format": "file", "suffix": ".tflite"}
    stored(console, document)
    said = console("model", "pull", "cnn", "-o", str(tmp_path))
    assert said.out == f"{tmp_path}/cnn-v1.tflite\n"


def test_the_list_of_versions_says_their_format(console):
    document = documents.model(versions=1)
    document["status"]["versions"][0]["format"] = "keras"
    stored(console, document)
    assert "keras" in console("model", "list").out


# --- trigger


def test_rounds_that_are_asked_for_are_counted(console):
    stored(console, documents.job())
    assert console("trigger", "drift").out == "incrementallearningjob/drift triggered (1 time so far)\n"
    assert console("trigger", "job/drift").out == "incrementallearningjob/drift triggered (2 times so far)\n"
    notes = json.loads(console("get", "job", "drift", "-o", "json").out)["metadata"]["annotations"]
    assert notes == {"trigger.edgeai.io/count": "2"}


def test_a_round_of_a_job_that_is_not_there_is_not_found(console):
    said = console("trigger", "drift")
    assert (said.code, said.err) == (3, "edgeai: job drift does not exist\n")


def test_a_federated_task_is_not_triggered(console):
    assert console("trigger", "task/drift").code == 2


# --- labels as they are written


@pytest.mark.parametrize(
    ("pair", "label"),
    [
        ("a=3", "3"),
        ("a=cat", '"cat"'),
        ('a="3"', '"3"'),
        ("a=x=y", '"x=y"'),
        ("a=NaN", '"NaN"'),
        ("a=[1, 2]", "[1, 2]"),
    ],
)
def test_a_label_is_json_or_else_text(pair, label):
    assert labelling.labels_from([pair], None) == {"a": label}


@pytest.mark.parametrize("pair", ["a", "=3", "a="])
def test_what_is_no_label_is_a_wrong_command(pair):
    with pytest.raises(typer.BadParameter, match="is not ID=LABEL"):
        labelling.labels_from([pair], None)


def test_labels_come_from_lines_of_json(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"id": "a", "label": 3}\n\n{"id": "b", "label": "cat", "note": "x"}\n')
    assert labelling.labels_from([], tmp_path / "l.jsonl") == {"a": "3", "b": '"cat"'}


def test_rows_of_a_table_without_a_label_are_left_for_another_time(tmp_path):
    (tmp_path / "l.csv").write_text("id,label,file\na,3,a.npy\nb,,b.npy\n")
    assert labelling.labels_from([], tmp_path / "l.csv") == {"a": "3"}


def test_every_line_that_cannot_be_used_is_said_and_nothing_is_given(tmp_path, capsys):
    (tmp_path / "l.jsonl").write_text(
        '{"id": "a", "label": 3}\nx\n{"id": 5, "label": 3}\n{"id": "a", "label": 4}\n{"id": "b"}\n'
    )
    with pytest.raises(Refused, match="4 lines cannot be used; no label was given"):
        labelling.labels_from([], tmp_path / "l.jsonl")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("l.jsonl:")[2].partition(":")[0] for line in said] == ["2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("l.csv", "name,label\na,3\n"), ("l.csv", "id,label\n,3\n"), ("l.jsonl", "\n"), ("l.csv", "id,label\n")],
)
def test_a_file_without_usable_labels_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(Refused):
        labelling.labels_from([], tmp_path / name)


def test_a_file_that_is_not_there_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        labelling.labels_from([], tmp_path / "l.csv")


@pytest.mark.parametrize(
    "arguments",
    [[], ["a=3", "--list"], ["a=3", "--file", "x.csv"], ["a=3", "--export", "x"], ["--file", "x.txt"]],
    ids=" ".join,
)
def test_a_wrong_use_of_label_ends_with_2(console, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("")
    assert console("label", "drift", *arguments).code == 2


# --- with a node that answers


class Answering:
    """Plays edge1: answers what is asked about the job, and remembers it."""

    def __init__(self, answer: Callable[[Event], Event]) -> None:
        self.asked: list[Event] = []
        self._answer = answer

    async def run(self, bus: MemoryBus, ready: asyncio.Event) -> None:
        async with bus.subscribe(Pattern("edge1", Direction.DOWN, EventClass.REQUEST)) as deliveries:
            ready.set()
            async for delivery in deliveries:
                envelope = decode(delivery.payload)
                self.asked.append(envelope.event)
                answer = self._answer(envelope.event)
                to = Address("edge1", Direction.UP, EventClass.REQUEST, answer.kind, delivery.address.task)
                header = Header("edge1", correlation=envelope.header.correlation)
                await bus.publish(to, encode(Envelope(header, answer, bytes(16), 1.0)))


@asynccontextmanager
async def cloud_with(answer: Callable[[Event], Event]) -> AsyncIterator[tuple[Cloud, Answering]]:
    broker, node, ready = MemoryBroker(), Answering(answer), asyncio.Event()
    async with MemoryBus(broker, "edge1") as edge, MemoryBus(broker, "operator") as bus:
        resources = MemoryResourceStore()
        job = from_document(documents.job())
        await resources.create(job.kind, job.name, job.to_document())
        task = asyncio.create_task(node.run(edge, ready))
        await ready.wait()
        try:
            yield Cloud(bus, resources, MemoryBlobStore(), MemoryFactStream()), node
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def taken(event: Event) -> Event:
    assert isinstance(event, LabelsGiven)
    return LabelsTaken(len(event.labels))


async def test_labels_are_given_in_parts_that_fit_a_request(capsys):
    labels = {f"x{number}": "1" for number in range(MAX_LABELS + 5)}
    async with cloud_with(taken) as (cloud, node):
        await labelling.give(cloud, "drift", labels)
    assert [len(event.labels) for event in node.asked] == [MAX_LABELS, 5]
    assert capsys.readouterr().out == "incrementallearningjob/drift 1005 examples labelled\n"


async def test_labels_of_examples_that_are_not_there_are_named(capsys):
    def answer(_: Event) -> Event:
        return LabelsTaken(1, 1, ("b",))

    async with cloud_with(answer) as (cloud, _node):
        with pytest.raises(NotFound, match=r"; 1 label waits for its example$"):
            await labelling.give(cloud, "drift", {"a": "1", "b": "2", "c": "3"})
    said = capsys.readouterr()
    assert said.out == "incrementallearningjob/drift 1 example labelled, 1 had that label already\n"
    assert said.err == "edgeai: job drift has no example b yet\n"


async def test_labels_that_came_before_their_examples_are_said_to_wait():
    async with cloud_with(lambda _: LabelsTaken(2, 0, ("e1",))) as (cloud, _node):
        with pytest.raises(NotFound, match=r"; 14 labels wait for their examples$"):
            await labelling.give(cloud, "drift", {f"e{number}": "1" for number in range(16)})


async def test_a_node_that_does_not_take_labels_says_why():
    async with cloud_with(lambda _: LabelsTaken(0, error="disk full")) as (cloud, _node):
        with pytest.raises(Refused, match="job drift: disk full"):
            await labelling.give(cloud, "drift", {"a": "1"})


async def test_a_node_that_is_silent_is_waited_for_and_named(monkeypatch):
    monkeypatch.setattr("edgeai.client.REQUEST_S", 0.01)
    async with cloud_with(lambda _: ExamplesAnswered((), 0)) as (cloud, _node):
        with pytest.raises(WaitTimeout, match="edge1 did not answer"):
            await labelling.give(cloud, "drift", {"a": "1"})


WAITING = (
    UnlabelledExample("s-1", time.time() - 30 * 86400 - 3600, 0.75, "[0.2,\n 0.8]", b"\x93NUMPY"),
    UnlabelledExample("../../etc", 1e300, 0.5, "", b"\x93NUMPY"),
)


async def test_examples_that_wait_are_listed_with_how_many_there_are(capsys):
    async with cloud_with(lambda _: ExamplesAnswered(WAITING, 7)) as (cloud, node):
        await labelling.list_waiting(cloud, "drift", 100, None)
    said = capsys.readouterr()
    assert said.out.splitlines()[1].split() == ["s-1", "30d", "0.7500", "[0.2,", "0.8]"]
    assert said.err == "edgeai: these are 2 of 7\n"
    assert node.asked == [ExamplesRequested(100, False)]


def paged(count: int, fits: int) -> Callable[[Event], Event]:
    """A node where so many wait, and so many fit an answer."""
    everything = tuple(UnlabelledExample(f"s {number}", 0.0, 0.5) for number in range(count))

    def answer(event: Event) -> Event:
        assert isinstance(event, ExamplesRequested)
        start = [each.id for each in everything].index(event.after) + 1 if event.after else 0
        found = everything[start : start + min(event.limit, fits)]
        return ExamplesAnswered(found, count, rest=count - start - len(found))

    return answer


async def test_a_list_says_how_many_come_behind_it_and_how_to_see_them(capsys):
    async with cloud_with(paged(7, 100)) as (cloud, _node):
        await labelling.list_waiting(cloud, "drift", 3, None, "s 0")
    said = capsys.readouterr()
    assert [line.split()[1] for line in said.out.splitlines()[1:]] == ["1", "2", "3"]
    assert said.err == "edgeai: these are 3 of 7, and 3 come behind them: --after 's 3'\n"


async def test_a_list_that_does_not_fit_one_answer_is_asked_for_in_several(capsys):
    async with cloud_with(paged(7, 2)) as (cloud, node):
        await labelling.list_waiting(cloud, "drift", 5, None)
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert node.asked == [ExamplesRequested(5), ExamplesRequested(3, after="s 1"), ExamplesRequested(1, after="s 3")]


async def test_behind_the_last_example_there_is_none(capsys):
    async with cloud_with(paged(2, 2)) as (cloud, _node):
        await labelling.list_waiting(cloud, "drift", 5, None, "s 1")
    assert capsys.readouterr().err == "edgeai: no further example of job drift waits for a label\n"


async def test_exported_examples_are_labelled_in_their_sheet(tmp_path, capsys):
    async with cloud_with(lambda event: ExamplesAnswered(WAITING, 2)) as (cloud, node):
        await labelling.list_waiting(cloud, "drift", 100, tmp_path / "out")
    assert node.asked == [ExamplesRequested(100, True)]
    sheet = tmp_path / "out" / "labels.csv"
    assert capsys.readouterr().out == f"{sheet}\n"
    assert (tmp_path / "out" / "s-1.npy").read_bytes() == b"\x93NUMPY"
    sheet.write_text(sheet.read_text().replace("s-1,,", "s-1,8,"))
    assert labelling.labels_from([], sheet) == {"s-1": "8"}


async def test_an_id_never_leads_out_of_the_folder(tmp_path):
    async with cloud_with(lambda _: ExamplesAnswered(WAITING, 2)) as (cloud, _node):
        await labelling.list_waiting(cloud, "drift", 100, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


async def test_a_sheet_that_may_hold_labels_is_not_overwritten(tmp_path):
    (tmp_path / "labels.csv").write_text("id,label\na,3\n")
    async with cloud_with(lambda _: ExamplesAnswered(WAITING, 2)) as (cloud, node):
        with pytest.raises(Refused, match="is there already"):
            await labelling.list_waiting(cloud, "drift", 100, tmp_path)
    assert node.asked == []


async def test_no_example_that_waits_is_a_notice(capsys):
    async with cloud_with(lambda _: ExamplesAnswered((), 0)) as (cloud, _node):
        await labelling.list_waiting(cloud, "drift", 100, None)
    assert capsys.readouterr().err == "edgeai: no example of job drift waits for a label\n"
