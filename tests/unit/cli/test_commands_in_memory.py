"""Every command on a cloud in memory: what it writes where, and how it ends."""

import json
from pathlib import Path

import cli_documents as documents
import pytest

from edgeai.errors import BusUnavailable
from edgeai.events.address import Address, task_level
from edgeai.events.catalogue import RoundMissed, RoundStarted
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.store.files import digest_bytes

DATASET = """
apiVersion: edgeai.io/v1alpha1
kind: Dataset
metadata: {name: dataset0}
spec: {nodeName: edge1, url: /data/digits.npz, format: npz}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "dataset.yaml"
    path.write_text(DATASET)
    return path


def stored(console, document: dict) -> None:
    """Put a document into the store, which is a plain dictionary under its asynchronous methods."""
    step = console.put(document)
    with pytest.raises(StopIteration):
        step.send(None)


# --- the command itself


def test_help_and_nothing_show_the_commands(console):
    assert "apply" in console("--help").out
    assert "apply" in console().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["gett", "tasks"],
        ["get"],
        ["get", "tasks", "--nonsense"],
        ["get", "tasks", "-o", "xml"],
        ["get", "task", "a.b"],
        ["get", "task/a", "b"],
        ["describe", "task"],
        ["apply"],
        ["delete"],
        ["delete", "task", "a", "-f", "x.yaml"],
        ["wait", "task", "a", "--for", "luck"],
        ["wait", "task", "a", "--timeout", "soon"],
        ["publish", "progress", "--node", "edge1", "--data", "{"],
        ["publish", "progress", "--node", "edge1", "--data", "[]"],
        ["demo", "--edges", "0"],
        ["demo", "--launcher", "podman"],
        ["schema", "json", "Model"],
        ["node", "add", "Edge 1"],
        ["model"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2_and_one_line(console, arguments):
    said = console(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith(("edgeai: ", "Usage: "))


def test_a_value_that_is_none_of_the_choices_is_told_in_our_words(console):
    said = console("demo", "--launcher", "podman")
    assert said.err.startswith("edgeai: Invalid value for '--launcher': 'podman' is not one of 'process', 'docker'")


def test_an_unknown_kind_is_not_found_and_the_known_ones_are_named(console):
    said = console("get", "pods")
    assert (said.code, said.err) == (
        3,
        "edgeai: kind pods does not exist; there is task, job, service, node, model, dataset\n",
    )


def test_a_misspelt_kind_is_guessed(console):
    assert console("get", "taks").err.endswith("; did you mean task?\n")


def test_without_a_context_the_line_says_what_to_start(console, monkeypatch):
    from edgeai.client import connect

    monkeypatch.setattr("edgeai.cli.connection.connect", connect)
    said = console("get", "tasks")
    assert said.code == 3
    assert "edgeai up" in said.err


def test_a_cloud_that_does_not_answer_ends_with_5(console):
    console.resources.reachable = False
    said = console("get", "tasks")
    assert said.code == 5
    assert said.err.count("\n") == 1


def test_a_cloud_that_goes_away_while_it_is_watched_ends_with_5(console, monkeypatch):
    async def gone(*_: object) -> None:
        raise ExceptionGroup("several", [BusUnavailable("nats://x")])

    monkeypatch.setattr("edgeai.cli.inspecting.get", gone)
    assert console("get", "tasks").code == 5


# --- apply and delete


def test_apply_says_what_became_of_every_resource(console, manifest):
    assert console("apply", "-f", str(manifest)).out == "dataset/dataset0 created (generation 1)\n"
    assert console("apply", "-f", str(manifest)).out == "dataset/dataset0 unchanged (generation 1)\n"
    manifest.write_text(DATASET.replace("digits.npz", "other.npz"))
    assert console("apply", "-f", str(manifest)).out == "dataset/dataset0 configured (generation 2)\n"


def test_apply_takes_folders_and_several_files(console, manifest, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.json").write_text(json.dumps(documents.dataset("b")))
    (tmp_path / "other" / "a.yml").write_text(DATASET.replace("dataset0", "a"))
    (tmp_path / "other" / "notes.txt").write_text("not a manifest")
    said = console("apply", "-f", str(manifest), "-f", str(tmp_path / "other"))
    assert [line.split()[0] for line in said.out.splitlines()] == ["dataset/dataset0", "dataset/a", "dataset/b"]


def test_apply_reads_standard_input(console, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(DATASET))
    assert console("apply", "-f", "-").out == "dataset/dataset0 created (generation 1)\n"


def test_a_wrong_field_is_said_with_file_line_and_field_and_nothing_is_written(console, manifest, tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(DATASET.replace("format: npz", "format: npz, colour: red"))
    said = console("apply", "-f", str(manifest), "-f", str(wrong))
    assert said.code == 4
    assert said.err.startswith(f"edgeai: {wrong}:5: spec.colour: ")
    assert console("get", "datasets", "-o", "name").out == ""


def test_a_folder_without_manifests_is_refused(console, tmp_path):
    said = console("apply", "-f", str(tmp_path))
    assert (said.code, said.err) == (4, f"edgeai: {tmp_path}: holds no .json, .yaml, .yml file\n")


def test_a_script_folder_that_is_missing_is_said_with_file_and_resource(console, tmp_path):
    path = tmp_path / "task.json"
    path.write_text(json.dumps(documents.task()).replace("/srv/train", "./train"))
    said = console("apply", "-f", str(path))
    assert said.code == 4
    assert said.err.startswith(
        f"edgeai: {path}: spec.trainingWorkers[0].workerSpec.trainScriptDir: FederatedTask digits: "
    )


def test_a_task_that_nobody_looks_at_is_mentioned(console, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeai.cli.applying.ACCEPT_S", 0.01)
    path = tmp_path / "task.json"
    path.write_text(json.dumps(documents.task()))
    said = console("apply", "-f", str(path))
    assert said.code == 0
    assert "no coordinator has looked at it yet" in said.err


def test_a_finished_task_is_not_changed(console, tmp_path):
    stored(console, documents.task(phase="Succeeded"))
    path = tmp_path / "task.json"
    path.write_text(json.dumps(documents.task()).replace('"value": 10', '"value": 20'))
    said = console("apply", "-f", str(path))
    assert said.code == 4
    assert "delete it first (`edgeai delete task digits`)" in said.err


def test_apply_wait_ends_with_1_and_the_reason_when_the_task_has_failed(console, tmp_path):
    failed = documents.task(phase="Failed", conditions=[documents.condition("Failed", "True", "X", "no data left")])
    stored(console, failed)
    path = tmp_path / "task.json"
    path.write_text(json.dumps(documents.task()))
    said = console("apply", "-f", str(path), "--wait")
    assert said.code == 1
    assert said.err.splitlines()[-1] == "edgeai: task digits has failed: no data left"


def test_apply_wait_writes_what_came_out(console, tmp_path):
    done = documents.task(
        phase="Succeeded",
        rounds=[documents.closed_round(1, 0.75)],
        metrics={"accuracy": 0.75},
        model={"name": "cnn", "version": 3, "digest": documents.DIGEST},
    )
    stored(console, done)
    path = tmp_path / "task.json"
    path.write_text(json.dumps(documents.task()))
    said = console("apply", "-f", str(path), "--wait")
    assert said.code == 0
    assert f"digest          {documents.DIGEST}" in said.out.splitlines()


def test_applying_an_ended_task_unchanged_says_how_to_run_it_anew(console, tmp_path):
    stored(console, documents.task(phase="Failed"))
    path = tmp_path / "task.json"
    path.write_text(json.dumps(documents.task()))
    said = console("apply", "-f", str(path))
    assert said.code == 0
    assert "task digits has ended (Failed): to run it anew, delete it first (`edgeai delete task digits`)" in said.err


def test_a_parameter_that_was_probably_misspelled_is_mentioned_and_accepted(console, tmp_path):
    document = documents.task(phase="Running")
    document["spec"]["aggregationWorker"]["workerSpec"]["parameters"] = [{"key": "ruonds", "value": 3}]
    stored(console, document)
    path = tmp_path / "task.json"
    path.write_text(json.dumps(document))
    said = console("apply", "-f", str(path))
    assert said.code == 0
    expected = "edgeai: task digits: parameter ruonds is passed to the workers as it is; did you mean rounds?\n"
    assert said.err == expected


def test_apply_wait_gives_up_with_124_and_says_once_what_is_missing(console, tmp_path):
    stored(
        console, documents.task(conditions=[documents.condition("Accepted", "False", "X", "node edge1 never joined")])
    )
    path = tmp_path / "task.json"
    path.write_text(json.dumps(documents.task()))
    said = console("apply", "-f", str(path), "--wait", "--timeout", "0.05")
    assert said.code == 124
    assert said.err.splitlines()[-1].endswith("within 0.05 s (phase Pending)")
    assert said.err.count("node edge1 never joined") == 1


def test_delete_names_what_it_deleted(console, manifest):
    console("apply", "-f", str(manifest))
    assert console("delete", "dataset/dataset0").out == "dataset/dataset0 deleted\n"
    said = console("delete", "dataset", "dataset0")
    assert (said.code, said.err) == (3, "edgeai: dataset dataset0 does not exist\n")


def test_a_task_is_only_marked_for_deletion(console):
    stored(console, documents.task())
    assert console("delete", "task", "digits").out == "federatedtask/digits deleting\n"
    assert "deletionTimestamp" in console("get", "task", "digits", "-o", "json").out


def test_deleting_a_manifest_goes_on_when_something_is_gone_already(console, manifest, tmp_path):
    console("apply", "-f", str(manifest))
    absent = tmp_path / "absent.yaml"
    absent.write_text(DATASET.replace("dataset0", "absent"))
    said = console("delete", "-f", str(absent), "-f", str(manifest))
    assert (said.code, said.err) == (0, "edgeai: dataset absent is gone already\n")
    assert said.out == "dataset/dataset0 deleted\n"


@pytest.mark.parametrize(
    ("document", "name"),
    [(documents.dataset(), "dataset dataset0"), (documents.model(), "model cnn")],
    ids=["dataset", "model"],
)
def test_what_a_task_at_work_refers_to_is_not_deleted(console, document, name):
    stored(console, document)
    stored(console, documents.task(phase="Running"))
    said = console("delete", *name.split())
    assert said.code == 4
    assert said.err.startswith(f"edgeai: {name} is in use by task digits (Running): ")


@pytest.mark.parametrize("phase", ["Pending", "Succeeded", "Failed"])
def test_what_no_task_works_with_any_more_is_deleted(console, phase):
    stored(console, documents.dataset())
    stored(console, documents.task(phase=phase))
    assert console("delete", "dataset", "dataset0").code == 0


def test_what_a_vanishing_task_refers_to_is_deleted(console):
    stored(console, documents.dataset())
    stored(console, documents.task(phase="Running"))
    console("delete", "task", "digits")
    assert console("delete", "dataset", "dataset0").code == 0


def test_waiting_for_a_deletion_gives_up_with_124(console):
    stored(console, documents.task())
    assert console("delete", "task", "digits", "--wait", "--timeout", "0.05").code == 124


# --- get, describe, watch, wait, pause


def test_get_shows_one_resource_or_all(console):
    stored(console, documents.task("a"))
    stored(console, documents.task("b"))
    assert console("get", "tasks", "-o", "name").out == "federatedtask/a\nfederatedtask/b\n"
    assert console("get", "task/b", "-o", "name").out == "federatedtask/b\n"


def test_an_empty_list_is_a_notice_and_no_error(console):
    said = console("get", "models")
    assert (said.code, said.out, said.err) == (0, "", "edgeai: there is no model\n")


def test_an_empty_list_is_a_document_for_programs(console):
    assert json.loads(console("get", "models", "-o", "json").out)["items"] == []


def test_describe_shows_the_history_of_a_task(console):
    stored(console, documents.task())
    fact = RoundMissed(documents.UID, 3, 1, "only one update")
    address = Address("cloud", fact.direction, fact.event_class, fact.kind, task_level("digits", documents.UID))
    console.facts.record(address, encode(Envelope(Header("cloud/x", 1, 1), fact, bytes(16), 1.0)))
    assert 'reason="only one update"' in console("describe", "task", "digits").out


def test_watching_a_name_that_is_not_there_ends_with_3(console):
    assert console("watch", "task", "digits").code == 3


def test_wait_says_what_came_true(console):
    stored(console, documents.task(phase="Running"))
    said = console("wait", "task/digits", "--for=phase=Running")
    assert (said.code, said.out) == (0, "federatedtask/digits phase is Running\n")


def test_wait_gives_up_with_124(console):
    stored(console, documents.task(phase="Running"))
    assert console("wait", "task/digits", "--timeout", "0.05").code == 124


def test_wait_ends_with_1_when_it_cannot_come_true_any_more(console):
    stored(console, documents.task(phase="Failed"))
    assert console("wait", "task/digits").code == 1


def test_a_task_is_paused_and_resumed(console):
    stored(console, documents.task(phase="Running"))
    assert console("pause", "digits").out == "federatedtask/digits paused (generation 2)\n"
    assert console("resume", "task/digits").out == "federatedtask/digits resumed (generation 3)\n"


def test_an_ended_task_is_not_paused(console):
    stored(console, documents.task(phase="Succeeded"))
    assert console("pause", "digits").code == 4


# --- what workers use


def test_describe_says_unknown_where_the_coordinator_does_not_answer(console, monkeypatch):
    monkeypatch.setattr("edgeai.cli.inspecting._USAGE_S", 0.01)
    stored(console, documents.task(phase="Running", workers=[documents.worker("work0", "edge1", "Running")]))
    said = console("describe", "task", "digits")
    assert (said.code, said.err.count("\n")) == (0, 1)
    assert "what the workers of task digits use is unknown: the coordinator did not answer" in said.err
    assert "work0   edge1   training   Running   0          unknown   unknown   unknown   never" in said.out


def test_describe_in_json_is_the_document_with_what_each_worker_uses(console, monkeypatch):
    monkeypatch.setattr("edgeai.cli.inspecting._USAGE_S", 0.01)
    stored(console, documents.task(phase="Running", workers=[documents.worker("work0", "edge1", "Running")]))
    document = json.loads(console("describe", "task", "digits", "--json").out)
    [worker] = document["status"]["workers"]
    assert (document["kind"], worker["usage"]["known"], worker["usage"]["age_s"]) == ("FederatedTask", False, None)


def test_describe_in_json_of_anything_else_is_its_document(console):
    stored(console, documents.node())
    assert json.loads(console("describe", "node", "edge1", "--json").out)["kind"] == "EdgeNode"


def made_from(console, digest: str, samples: int) -> None:
    """A model with one version that work0 made from dataset0, as it was."""
    found = documents.model(versions=1)
    source = {"worker": "work0", "node": "edge1", "dataset": "dataset0", "digest": digest, "samples": samples}
    lineage = {"kind": "FederatedTask", "generation": 2, "sources": [{**source, "rounds": 10}], "counted": 1}
    found["status"]["versions"][0]["lineage"] = lineage
    stored(console, found)


def test_describe_shows_what_a_version_was_made_from_though_its_task_is_gone(console):
    made_from(console, documents.DIGEST, 40)
    said = console("describe", "model", "cnn").out
    assert f"version 1: federatedtask digits, generation 2, round 10, uid {documents.UID}" in said
    assert f"work0   edge1   dataset0   {documents.DIGEST}   40 examples   counted in 10 rounds" in said


def test_describe_says_of_older_versions_that_nothing_was_recorded(console):
    stored(console, documents.model(versions=1))
    assert (
        "version 1: task digits, round 10, workers and datasets not recorded" in console("describe", "model", "cnn").out
    )


def test_describe_shows_what_a_dataset_has_held_and_what_was_made_from_it(console):
    counts = [{"at": documents.CREATED, "samples": 40, "digest": documents.DIGEST, "sizeBytes": 2048}]
    stored(console, documents.dataset(history=counts))
    made_from(console, documents.DIGEST, 40)
    said = console("describe", "dataset", "dataset0").out
    assert f"{documents.CREATED}   40        2.0 KiB   {documents.DIGEST}" in said
    assert (
        f"{documents.DIGEST[:12]}   {documents.CREATED}   40      -      digits, work0, 10 rounds   cnn version 1"
        in said
    )


def test_describe_of_a_dataset_in_json_carries_its_snapshots(console):
    stored(console, documents.dataset())
    made_from(console, documents.DIGEST, 40)
    [use] = json.loads(console("describe", "dataset", "dataset0", "--json").out)["snapshots"]
    assert (use["model"], use["version"], use["digest"]) == ("cnn", 1, documents.DIGEST)


def test_top_ends_with_124_where_the_coordinator_does_not_answer(console, monkeypatch):
    monkeypatch.setattr("edgeai.cli.top._ANSWER_S", 0.01)
    said = console("top", "--once")
    assert (said.code, said.err) == (124, "edgeai: the coordinator did not answer within 0.01 s\n")


def test_top_of_a_task_that_is_not_there_ends_with_3(console):
    assert console("top", "nothing", "--once").code == 3


# --- logs, events, publish


def test_the_log_of_a_worker_that_the_task_does_not_have_is_not_found(console):
    stored(console, documents.task())
    said = console("logs", "digits", "nobody")
    assert said.code == 3
    assert "aggregation, work0, work1" in said.err


def recorded(console, *numbers: int) -> None:
    for number in numbers:
        fact = RoundMissed(documents.UID, number, 1, "late")
        address = Address("cloud", fact.direction, fact.event_class, fact.kind, task_level("digits", documents.UID))
        console.facts.record(address, encode(Envelope(Header("cloud/x", 1, number), fact, bytes(16), float(number))))


def test_events_are_documents_for_programs(console):
    stored(console, documents.task())
    recorded(console, 1, 2)
    lines = [json.loads(line) for line in console("events", "digits", "-o", "json").out.splitlines()]
    assert [line["body"]["number"] for line in lines] == [1, 2]
    assert lines[0]["time"] == "1970-01-01T00:00:01.000Z"


def test_a_fact_that_was_sent_again_is_shown_once(console):
    stored(console, documents.task())
    recorded(console, 1, 2, 1, 2, 3)
    lines = [json.loads(line) for line in console("events", "digits", "-o", "json").out.splitlines()]
    assert [line["body"]["number"] for line in lines] == [1, 2, 3]


def test_only_the_last_events_are_shown_on_request(console):
    stored(console, documents.task())
    recorded(console, 1, 2, 3)
    lines = [json.loads(line) for line in console("events", "digits", "--tail", "2", "-o", "json").out.splitlines()]
    assert [line["body"]["number"] for line in lines] == [2, 3]


def test_a_round_that_only_validates_is_called_so(console):
    stored(console, documents.task())
    fact = RoundStarted(documents.UID, 11, 1, ("work0", "work1"), train=False)
    address = Address("cloud", fact.direction, fact.event_class, fact.kind, task_level("digits", documents.UID))
    console.facts.record(address, encode(Envelope(Header("cloud/x", 1, 1), fact, bytes(16), 1.0)))
    assert console("events", "digits").out.splitlines()[1].endswith("validation asked=work0,work1")


def test_the_events_of_a_deleted_task_are_still_there(console):
    recorded(console, 1)
    said = console("events", "digits")
    assert said.code == 0
    assert "round-missed" in said.out


def test_events_of_a_task_that_never_was_are_not_found(console):
    recorded(console, 1)
    said = console("events", "other")
    assert (said.code, said.out) == (3, "")


def test_publish_says_where_the_event_went_and_fills_in_the_uid(console):
    stored(console, documents.task())
    data = '{"number": 1, "attempt": 1, "reason": "by hand"}'
    said = console("publish", "round-missed", "--node", "edge1", "--task", "digits", "--data", data)
    assert said.out == f"edgeai.1.edge1.up.fact.round-missed.{task_level('digits', documents.UID)}.-\n"


def test_publish_refuses_fields_that_do_not_fit(console):
    said = console("publish", "progress", "--node", "edge1", "--data", '{"number": "one"}')
    assert said.code == 4
    assert "docs/events.md" in said.err


def test_publish_does_not_know_every_kind(console):
    assert console("publish", "good-news", "--node", "edge1").code == 3


# --- models


def test_a_model_without_a_version_cannot_be_pulled_and_says_so(console):
    stored(console, {"apiVersion": "edgeai.io/v1alpha1", "kind": "Model", "metadata": {"name": "cnn"}, "spec": {}})
    said = console("model", "pull", "cnn")
    expected = "edgeai: model cnn has no version yet; no task and no job has made one\n"
    assert (said.code, said.err) == (3, expected)


def test_a_model_is_pulled_whole_and_its_path_is_the_only_output(console, tmp_path):
    content = tmp_path / "content"
    content.write_bytes(b"arrays")
    document = documents.model(versions=1)
    document["status"]["versions"][0]["digest"] = digest_bytes(b"arrays")
    stored(console, document)
    console.blobs._blobs[digest_bytes(b"arrays")] = b"arrays"
    said = console("model", "pull", "cnn", "-o", str(tmp_path))
    assert said.out == f"{tmp_path}/cnn-v1.safetensors\n"
    assert (tmp_path / "cnn-v1.safetensors").read_bytes() == b"arrays"


@pytest.mark.parametrize(
    "arguments",
    [["cnn", "--version", "9"], ["other"], ["cnn", "-o", "/nowhere/at/all.safetensors"]],
    ids=["version", "model", "folder"],
)
def test_what_cannot_be_pulled_is_not_found(console, arguments):
    stored(console, documents.model())
    assert console("model", "pull", *arguments).code == 3


def test_a_rollback_is_a_new_version_with_an_old_digest(console):
    stored(console, documents.model(versions=3))
    said = console("model", "rollback", "cnn", "--version", "1")
    assert said.out == f"model/cnn version 4 (digest {1:064x})\n"
    versions = json.loads(console("get", "model", "cnn", "-o", "json").out)["status"]["versions"]
    assert [version["digest"] for version in versions] == [f"{number:064x}" for number in (1, 2, 3, 1)]


def test_a_rollback_goes_to_the_version_before_unless_told(console):
    stored(console, documents.model(versions=2))
    assert console("model", "rollback", "cnn").out == f"model/cnn version 3 (digest {1:064x})\n"


def test_there_is_nothing_before_the_first_version(console):
    stored(console, documents.model(versions=1))
    assert console("model", "rollback", "cnn").code == 4


# --- about the installation


def test_the_schema_of_one_kind_is_a_crd(console):
    said = console("schema", "crd", "task")
    assert "name: federatedtasks.edgeai.io" in said.out


def test_the_json_schema_is_json(console):
    assert "oneOf" in json.loads(console("schema", "json").out)


def test_doctor_lists_the_crash_points(console):
    assert "reactor.before_commit" in console("doctor", "--crash-points").out.splitlines()


def test_both_ways_to_ask_for_the_version_agree(console):
    assert console("version").out == console("--version").out
