"""What workers use, as lines and documents: unknown is written as unknown."""

from __future__ import annotations

import json

import cli_documents as documents
import pytest

from edgeai.cli.usage import cells, task_document, top_json, top_lines, worker_cells
from edgeai.events.catalogue import Usage, UsageAnswered, UsageRow
from edgeai.resources.federated import FederatedTask

BUSY = Usage(cpu_s=12.0, memory_bytes=3 * 1024**2, memory_limit_bytes=1024**3, pids=7, cpus=0.934)


@pytest.mark.parametrize(
    ("usage", "age_s", "shown"),
    [
        (BUSY, 4.2, ("0.93", "3.0 MiB / 1.0 GiB", "7", "4s ago")),
        (Usage(1.0, 1024, 0, 1), 0.0, ("-", "1.0 KiB", "1", "0s ago")),
        (None, 40.0, ("unknown", "unknown", "unknown", "40s ago")),
        (None, None, ("unknown", "unknown", "unknown", "never")),
    ],
    ids=["known", "first-and-without-limit", "old", "never"],
)
def test_cells(usage: Usage | None, age_s: float | None, shown: tuple[str, ...]):
    assert cells(usage, age_s) == shown


def task(*workers: dict[str, object]) -> FederatedTask:
    return FederatedTask.from_document(documents.task(workers=list(workers)))


def test_a_worker_that_does_not_run_uses_nothing():
    [worker] = task(documents.worker("work0", "edge1", "Done")).status.workers
    assert worker_cells(worker, [UsageRow("edge1", "digits", "work0", BUSY, 1.0)]) == ("-", "-", "-", "-")


def test_a_worker_that_runs_and_is_not_in_the_answer_is_unknown():
    [worker] = task(documents.worker("work0", "edge1", "Running")).status.workers
    assert worker_cells(worker, [UsageRow("edge2", "digits", "work0", BUSY, 1.0)])[0] == "unknown"


def test_the_document_of_a_task_has_the_usage_of_every_worker():
    found = task(documents.worker("work0", "edge1", "Running"), documents.worker("work1", "edge2", "Failed"))
    document = task_document(found, [UsageRow("edge1", "digits", "work0", BUSY, 1.0)])
    first, second = document["status"]["workers"]
    assert (first["usage"]["cpus"], first["usage"]["pids"], second["usage"]) == (0.934, 7, None)


def test_the_table_has_a_row_for_each_worker():
    lines = top_lines(UsageAnswered((UsageRow("edge1", "digits", "work0", BUSY, 1.0),), 2))
    assert lines[0].split() == ["NODE", "TASK", "WORKER", "CPU", "MEMORY", "PIDS", "HEARD"]
    assert lines[1].split()[:4] == ["edge1", "digits", "work0", "0.93"]
    assert lines[2] == "and 2 more: name a task to see its workers"


def test_long_names_are_shortened_to_fit_the_terminal():
    long = UsageRow("edge-in-the-old-building", "digits-of-the-whole-fleet", "work0", BUSY, 1.0)
    lines = top_lines(UsageAnswered((long,)), 80)
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("edge-in-t...   digits-of-...   work0 ")
    assert lines[1].endswith("1s ago")


def test_an_empty_table_says_so():
    assert top_lines(UsageAnswered(())) == ["no worker runs"]


def test_a_document_has_a_line_of_its_own():
    text = top_json(UsageAnswered((UsageRow("edge1", "digits", "work0"),)))
    assert "\n" not in text
    [row] = json.loads(text)["workers"]
    assert (row["worker"], row["known"], row["age_s"], row["cpus"]) == ("work0", False, None, None)
