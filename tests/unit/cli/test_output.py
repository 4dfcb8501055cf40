"""Tables, names and documents, from values and a time that stands still."""

import json
import re
from datetime import UTC, datetime, timedelta

import cli_documents as documents
import pytest
import yaml

from edgeai.cli.description import description
from edgeai.cli.history import details
from edgeai.cli.options import Output
from edgeai.cli.output import age, aligned, fitted, resources_text, size, versions_text
from edgeai.client import HistoryLine
from edgeai.events.catalogue import BlobRef, ModelDeployed, ModelFile, RoundMissed
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.kinds import KINDS, from_document
from edgeai.resources.manifest import load_manifests
from edgeai.resources.model import Model

NOW = datetime(2030, 1, 31, 12, 5, tzinfo=UTC)


def text(*found: dict, form: Output = Output.TABLE, one: bool = False, width: int | None = None) -> str:
    resources = [from_document(document) for document in found]
    return resources_text(resources, type(resources[0]), form, one=one, now=NOW, width=width)


@pytest.mark.parametrize(
    ("passed", "shown"),
    [
        (timedelta(seconds=0), "0s"),
        (timedelta(seconds=119), "119s"),
        (timedelta(minutes=2), "2m"),
        (timedelta(hours=47), "47h"),
        (timedelta(days=2), "2d"),
        (timedelta(seconds=-30), "0s"),
    ],
    ids=str,
)
def test_an_age_is_one_number_and_a_unit(passed, shown):
    assert age((NOW - passed).strftime("%Y-%m-%dT%H:%M:%SZ"), NOW) == shown


def test_an_instant_that_is_not_set_has_no_age():
    assert age(None, NOW) == "-"


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (2048, "2.0 KiB"), (5 * 1024**2, "5.0 MiB"), (2**40, "1024.0 GiB")]
)
def test_sizes_are_for_people(count, shown):
    assert size(count) == shown


def test_columns_are_aligned_and_lines_have_no_blanks_at_their_end():
    assert aligned([["NAME", "A"], ["n", ""]]) == ["NAME   A", "n"]


def test_a_table_of_tasks_shows_phase_round_workers_and_accuracy():
    running = documents.task(
        phase="Running",
        round=3,
        metrics={"accuracy": 0.91},
        workers=[documents.worker("work0", "edge1", "Running"), documents.worker("work1", "edge2", "Backoff")],
    )
    assert text(running).splitlines() == [
        "NAME     PHASE     ROUND   WORKERS   ACCURACY   AGE",
        "digits   Running   3/10    1/2       0.9100     5m",
    ]


def test_workers_of_an_ended_task_are_those_that_took_part():
    """Not those that run: none does, and that is no failure."""
    done = [documents.worker(f"work{number}", f"edge{number + 1}", "Done") for number in range(2)]
    row = text(documents.task(phase="Succeeded", round=10, workers=done, joined=["work0", "work1"])).splitlines()[1]
    assert row.split()[3] == "2/2"


def test_the_wide_table_says_why_a_task_does_not_go_on():
    waiting = documents.task(conditions=[documents.condition("Accepted", "False", "ReferencesMissing", "no dataset0")])
    assert text(waiting, form=Output.WIDE).splitlines()[1].endswith("cnn     edge1,edge2   no dataset0")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_a_table(kind):
    examples = {
        "FederatedTask": documents.task(),
        "IncrementalLearningJob": documents.job(),
        "JointInferenceService": documents.service(),
        "Model": documents.model(),
        "Dataset": documents.dataset(),
        "EdgeNode": documents.node(),
    }
    header, row = text(examples[kind], form=Output.WIDE).splitlines()
    assert header.startswith("NAME")
    assert row.split()[0] == examples[kind]["metadata"]["name"]


def test_a_model_without_versions_has_a_row():
    assert text(documents.model(versions=0)).splitlines()[1].split() == ["cnn", "-", "-", "-", "5m"]


def test_names_can_be_given_back_to_other_commands():
    assert text(documents.task("a"), documents.task("b"), form=Output.NAME) == "federatedtask/a\nfederatedtask/b"


def test_json_of_one_resource_is_its_document():
    assert json.loads(text(documents.model(), form=Output.JSON, one=True))["metadata"]["name"] == "cnn"


def test_json_of_many_is_a_list():
    listed = json.loads(text(documents.model("a"), documents.model("b"), form=Output.JSON))
    assert listed["kind"] == "ModelList"
    assert [item["metadata"]["name"] for item in listed["items"]] == ["a", "b"]


def test_yaml_of_many_can_be_applied_again():
    again = load_manifests(text(documents.task("a"), documents.task("b"), form=Output.YAML), "x.yaml")
    assert [resource.name for resource in again] == ["a", "b"]


def test_yaml_of_one_is_one_document():
    assert yaml.safe_load(text(documents.dataset(), form=Output.YAML, one=True))["kind"] == "Dataset"


def test_versions_are_listed_from_the_oldest_to_the_newest():
    lines = versions_text([Model.from_document(documents.model(versions=3))]).splitlines()
    assert [line.split()[1] for line in lines] == ["VERSION", "1", "2", "3"]


def test_versions_say_which_job_serves_them():
    model = Model.from_document(documents.model(versions=3))
    serving = {"digest": f"{2:064x}", "version": 2, "round": 1}
    jobs = [IncrementalLearningJob.from_document(documents.job("drift", serving=serving))]
    lines = aligned_cells(versions_text([model], jobs))
    assert [line[2] for line in lines] == ["STATE", "retired", "serving (drift)", "staged (drift)"]


def test_versions_of_a_model_that_no_job_uses_have_no_state():
    lines = aligned_cells(versions_text([Model.from_document(documents.model(versions=1))]))
    assert [line[2] for line in lines] == ["STATE", "-"]


def test_what_a_job_serves_that_is_not_heard_of_is_not_guessed():
    model = Model.from_document(documents.model(versions=1))
    jobs = [IncrementalLearningJob.from_document(documents.job("drift"))]
    assert [line[2] for line in aligned_cells(versions_text([model], jobs))] == ["STATE", "-"]


def aligned_cells(table: str) -> list[list[str]]:
    return [re.split(r"  +", line) for line in table.splitlines()]


def described(*events: HistoryLine, **status: object) -> str:
    return description(FederatedTask.from_document(documents.task(**status)), events, NOW)


def test_a_description_has_conditions_with_reason_and_age():
    page = described(conditions=[documents.condition("Degraded", "True", "RoundMissed", "too few updates")])
    assert "Degraded   True     5m    RoundMissed   too few updates" in page


def test_a_description_has_workers_with_state_and_reason():
    page = described(workers=[documents.worker("work0", "edge1", "Failed", restarts=4, reason="exited with code 1")])
    assert "work0   edge1   training   Failed   4          -     -        -      -       exited with code 1" in page


def test_on_a_narrow_terminal_what_workers_use_has_a_table_of_its_own():
    reason = "restarted after: needed more memory than its limit of 128 MiB (resources.memory) and was ended"
    workers = [documents.worker("work0-with-a-rather-long-name", "edge-in-the-building", "Running", reason=reason)]
    task = FederatedTask.from_document(documents.task(workers=workers))
    page = description(task, (), NOW, width=80)
    table = page.partition("Workers:\n")[2].partition("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert " ".join(line[-20:].strip() for line in table[1:]).split()[-3:] == ["and", "was", "ended"]
    assert "\n\nUsage:\n  NAME" in page


@pytest.mark.parametrize("width", [None, 60])
def test_a_table_that_fits_is_left_as_it_is(width):
    rows = [["NAME", "REASON"], ["work0", "killed"]]
    assert fitted(rows, width, names=(0,), fold=True) == aligned(rows)


def test_a_last_column_goes_on_in_the_next_line_between_words():
    assert fitted([["work0", "was killed by somebody else"]], 30, names=(0,), fold=True) == [
        "work0   was killed by somebody",
        "        else",
    ]


def test_a_wide_table_is_shortened_on_a_terminal_and_never_wrapped():
    job = documents.job("a-job-with-a-rather-long-name", phase="Running", reason="waits for somebody to label examples")
    assert [len(line) <= 80 for line in text(job, form=Output.WIDE, width=80).splitlines()] == [True, True]


def test_a_wide_table_is_whole_where_there_is_no_terminal():
    job = documents.job("a-job-with-a-rather-long-name", phase="Running", reason="waits for somebody to label examples")
    row = text(job, form=Output.WIDE).splitlines()[1]
    assert row.startswith("a-job-with-a-rather-long-name")
    assert row.endswith("waits for somebody to label examples")


# --- a job

KEPT = "the new model is not deployed: not accuracy_delta > 0.01 (accuracy 0.93, accuracy_delta 0.002)"
LONG = "exited with code 1: ValueError: operands could not be broadcast together with shapes (64,10) (65,9); tried again in 4 s"
STAGES = [
    documents.stage_row(1, "Deploy", "Completed", samples=250, metrics={"accuracy": 0.93}, serving={"accuracy": 0.5}),
    documents.stage_row(2, "Deploy", "Completed", samples=300, metrics={"accuracy": 0.93}, reason=KEPT),
    documents.stage_row(3, "Train", "Failed", samples=350, reason=LONG),
]


def described_job(width: int | None = None, *, spec: dict | None = None, **status: object) -> str:
    document = documents.job(**status)
    document["spec"] |= spec or {}
    return description(from_document(document), (), NOW, width=width)


def stages_of(page: str) -> list[str]:
    return page.partition("Stages:\n")[2].partition("\n\n")[0].splitlines()


def test_a_round_that_kept_the_old_model_is_told_apart_from_one_that_deployed_a_new_one():
    rows = stages_of(described_job(history=STAGES))[1:]
    assert ["Kept old" in row for row in rows] == [False, True, False]
    assert "Completed" in rows[0]


def test_a_model_that_served_and_was_lost_was_not_kept_back():
    lost = documents.stage_row(1, "Deploy", "Completed", reason="the model of round 1 never becomes a version: gone")
    assert "Kept old" not in described_job(history=[lost])


def test_no_two_columns_of_the_stages_are_called_alike():
    titles = stages_of(described_job(history=STAGES))[0].split()
    assert titles == ["ROUND", "STAGE", "STATE", "SAMPLES", "ACCURACY", "SERVED", "AT", "REASON"]


def test_reasons_of_stages_are_whole_where_there_is_no_terminal():
    rows = stages_of(described_job(history=STAGES))[2:]
    assert [row.endswith(why) for row, why in zip(rows, (KEPT, LONG), strict=True)] == [True, True]


def test_a_page_of_a_job_fits_80_columns_and_loses_no_word_of_a_reason():
    conditions = [documents.condition("Degraded", "True", "StageFailed", f"Train of round 3: {LONG}")]
    workers = [documents.worker("train", "edge1", "Failed", role="train", reason=LONG)]
    page = described_job(80, history=STAGES, reason=LONG, conditions=conditions, workers=workers)
    assert max(map(len, page.splitlines())) <= 80
    words = " ".join(page.split())
    assert f"Reason: {LONG}" in words
    assert LONG in " ".join(" ".join(stages_of(page)).split())


def condition(metric: str, threshold: float) -> dict:
    return {"metric": metric, "operator": ">=", "threshold": threshold}


def test_a_description_says_what_a_job_waits_for():
    trigger = {
        "condition": {"any": [condition("num_of_samples", 200), condition("accuracy", 0.5), condition("f1", 0.1)]},
        "window": {"start": "22:00", "end": "05:00"},
    }
    worker = {"scriptDir": "/srv/job", "scriptBootFile": "main.py", "frameworkType": "numpy"}
    train = {"workerSpec": worker, "trigger": trigger}
    deploy = {"workerSpec": worker, "trigger": {"condition": condition("accuracy_delta", 0.01)}}
    page = described_job(spec={"train": train, "deploy": deploy}, counts={"new": 12}, metrics={"accuracy": 0.25})
    lines = dict(line.split(":", 1) for line in page.partition("\n\nExamples")[0].splitlines() if ":" in line)
    assert lines["Trigger"].strip() == "num_of_samples >= 200 (now 12) or accuracy >= 0.5 (now 0.25) or f1 >= 0.1"
    assert lines["Window"].strip() == "22:00 to 05:00, by the clock of edge1"
    assert lines["Deploys if"].strip() == "accuracy_delta >= 0.01"


def test_a_job_without_conditions_says_what_holds_instead():
    words = " ".join(described_job().split())
    assert "Trigger: only by `edgeai trigger drift` Deploys if: accuracy_delta >= 0 " in words


def test_what_an_event_says_has_a_line_of_its_own_on_a_narrow_terminal():
    event = RoundMissed(documents.UID, 3, 1, "only one update came in time, and two are needed")
    line = HistoryLine(1, NOW.timestamp(), "cloud", "digits-4bdfd21a", "", event)
    page = description(FederatedTask.from_document(documents.task()), (line,), NOW, width=80)
    assert page.splitlines()[-2:] == [
        "  12:05:00.000   cloud   -   round-missed",
        '          number=3 attempt=1 reason="only one update came in time, and two ar...',
    ]


def test_what_an_event_does_not_have_is_not_shown():
    fact = ModelDeployed(
        documents.UID, 1, ModelFile("m.npz", BlobRef(documents.DIGEST, 20), "npz"), documents.DIGEST, 80
    )
    assert "None" not in details(fact)


def test_a_description_has_the_rounds_and_who_was_refused():
    page = described(rounds=[documents.closed_round(1, 0.5, refused={"work1": "not finite"})], round=2)
    assert "    1        2    0.5000        58,680     1,234,567      0.50" in page
    assert "round 1, work1: not finite" in page


def test_a_description_ends_with_the_last_events():
    event = RoundMissed(documents.UID, 3, 1, "only one update")
    page = described(HistoryLine(1, NOW.timestamp(), "cloud", "digits-4bdfd21a", "", event))
    assert (
        page.splitlines()[-1]
        == '  12:05:00.000   cloud   -   round-missed   number=3 attempt=1 reason="only one update"'
    )


@pytest.mark.parametrize(
    "document", [documents.model(), documents.model(versions=0), documents.dataset(), documents.node()]
)
def test_every_kind_can_be_described(document):
    assert description(from_document(document), [], NOW).startswith("Name:")
