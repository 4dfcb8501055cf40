"""The rounds of a task on a terminal and elsewhere."""

import io

import cli_documents as documents
from rich.console import Console

from edgeai.cli.rounds import RoundsView, outcome_of, summary
from edgeai.events.catalogue import Progress
from edgeai.resources.federated import FederatedTask

WORKERS = [documents.worker("work0", "edge1", "Running"), documents.worker("work1", "edge2", "Running")]


def task(phase: str = "Running", **status: object) -> FederatedTask:
    return FederatedTask.from_document(documents.task(phase=phase, **status))


class Terminal:
    """A view and what it has written: `notes` to standard error, `out` to standard output."""

    def __init__(self, *, is_terminal: bool, width: int = 80, height: int = 25) -> None:
        self._notes, self._out = io.StringIO(), io.StringIO()
        size = {"width": width, "height": height, "color_system": None}
        self.console = Console(file=self._notes, force_terminal=is_terminal, **size)
        out = Console(file=self._out, force_terminal=is_terminal, highlight=False, **size)
        self.view = RoundsView(console=self.console, out=out)

    @property
    def notes(self) -> list[str]:
        return self._notes.getvalue().splitlines()

    @property
    def out(self) -> list[str]:
        return self._out.getvalue().splitlines()

    def picture(self) -> list[str]:
        with self.console.capture() as capture:
            self.console.print(self.view.picture())
        return [line.rstrip() for line in capture.get().splitlines()]


def test_a_row_is_written_when_the_next_round_has_closed():
    terminal = Terminal(is_terminal=True)
    terminal.view.show(task(round=2, rounds=[documents.closed_round(1)]))
    assert not any("58,680" in line for line in terminal.notes)
    terminal.view.show(task(round=3, rounds=[documents.closed_round(1, 0.5), documents.closed_round(2)]))
    assert terminal.notes[-2:] == [
        "round  updates  accuracy      bytes up    bytes down   seconds",
        "    1        2    0.5000        58,680     1,234,567      0.50",
    ]


def test_the_last_row_is_written_before_the_phase_that_ends_the_task():
    terminal = Terminal(is_terminal=True)
    terminal.view.show(task("Succeeded", rounds=[documents.closed_round(1, 0.5)]))
    assert terminal.notes[-1] == "digits: Succeeded"
    assert terminal.notes[-2].split()[:3] == ["1", "2", "0.5000"]


def test_a_round_that_was_never_validated_has_no_accuracy():
    terminal = Terminal(is_terminal=True)
    terminal.view.show(task("Succeeded", rounds=[documents.closed_round(1)]))
    assert terminal.notes[-2].split()[2] == "-"


def test_elsewhere_lines_say_what_happens_once():
    terminal = Terminal(is_terminal=False)
    for _ in range(2):
        terminal.view.show(task(round=2, rounds=[documents.closed_round(1)]))
    terminal.view.show(task("Succeeded", rounds=[documents.closed_round(1, 0.5)]))
    assert terminal.notes == [
        "digits: Running",
        "  round 1: 2 updates in 0.50 s",
        "  round 1: accuracy 0.5000",
        "digits: Succeeded",
    ]


def test_what_stands_in_the_way_is_said_once():
    terminal = Terminal(is_terminal=False)
    waiting = task("Pending", conditions=[documents.condition("Accepted", "False", "X", "no dataset0")])
    terminal.view.show(waiting)
    terminal.view.show(waiting)
    assert terminal.notes == ["digits: Pending", "  no dataset0"]


def test_the_picture_shows_what_every_worker_does():
    terminal = Terminal(is_terminal=True)
    terminal.view.show(task(round=3, workers=WORKERS))
    terminal.view.heard("work0", Progress(3, "submitted"))
    terminal.view.heard("aggregation", Progress(3, "collecting", 1, 2))
    head, updates, first, second = terminal.picture()
    assert head.startswith("digits  running  round 3 of 10  0:0")
    assert updates.split()[0] == "updates"
    assert updates.endswith("1 of 2")
    assert first.split()[:3] == ["work0", "on", "edge1"]
    assert first.endswith("submitted")
    assert second.endswith("waiting")


def test_progress_of_an_earlier_round_is_not_shown():
    terminal = Terminal(is_terminal=True)
    terminal.view.show(task(round=3, workers=WORKERS))
    terminal.view.heard("work0", Progress(2, "submitted"))
    assert terminal.picture()[2].endswith("waiting")


def test_the_picture_says_why_a_worker_does_not_run():
    terminal = Terminal(is_terminal=True)
    broken = documents.worker("work0", "edge1", "Backoff", reason="exited with code 1")
    terminal.view.show(task(round=1, workers=[broken]))
    assert "backoff: exited" in terminal.picture()[2]


def test_rounds_that_are_not_settled_are_part_of_the_picture():
    terminal = Terminal(is_terminal=True)
    terminal.view.show(task(round=2, rounds=[documents.closed_round(1)], workers=WORKERS))
    assert terminal.picture()[1].split()[:3] == ["1", "2", "..."]


def test_the_picture_of_many_workers_fits_the_terminal():
    terminal = Terminal(is_terminal=True, height=20)
    many = [documents.worker(f"work{number}", "edge1", "Running") for number in range(100)]
    terminal.view.show(task(round=1, workers=many))
    assert len(terminal.picture()) < 20
    assert terminal.picture()[-1].split() == ["and", "88", "more"]


def finished() -> dict:
    done = task(
        "Succeeded",
        rounds=[documents.closed_round(1, 0.5)],
        metrics={"accuracy": 0.5},
        model={"name": "cnn", "version": 1, "digest": documents.DIGEST},
    )
    document = outcome_of(done)
    document["model"]["path"] = "/" + "long/" * 30 + "cnn-v1.safetensors"
    return document


def test_digest_and_path_stay_on_their_line_on_a_narrow_terminal():
    terminal = Terminal(is_terminal=True, width=40)
    terminal.view.finish(finished())
    assert f"digest          {documents.DIGEST}" in terminal.out
    assert f"path            {finished()['model']['path']}" in terminal.out


def test_the_line_of_the_digest_fits_80_columns():
    [line] = [line for line in summary(finished()) if documents.DIGEST in line]
    assert len(line) <= 80


def test_the_table_is_written_to_a_file_even_when_the_rows_were_shown():
    terminal = Terminal(is_terminal=False)
    terminal.view.finish(finished())
    assert terminal.out[0].split() == ["round", "updates", "accuracy", "bytes", "up", "bytes", "down", "seconds"]


def test_a_quiet_view_writes_nothing(capsys):
    view = RoundsView(quiet=True)
    view.note("hello")
    view.show(task(round=1))
    view.finish(finished())
    assert capsys.readouterr() == ("", "")


def test_one_update_is_no_updates():
    terminal = Terminal(is_terminal=False)
    terminal.view.show(task(round=2, rounds=[documents.closed_round(1, updates=1)]))
    assert terminal.notes[-1] == "  round 1: 1 update in 0.50 s"


def test_who_was_left_out_is_named_with_the_reason():
    rows = [
        documents.closed_round(1, accepted=["work0", "work1"]),
        documents.closed_round(2, accepted=["work0"], refused={"work1": "not finite"}),
        documents.closed_round(3, accepted=["work0"], refused={"work1": "too large"}),
        documents.closed_round(4, accepted=["work0"]),
    ]
    workers = [
        documents.worker("work0", "edge1", "Done"),
        documents.worker("work1", "edge2", "Failed", reason="exited with code 1"),
    ]
    document = outcome_of(task("Succeeded", rounds=rows, workers=workers))
    assert document["left_out"] == [
        "work1 on edge2: has failed: exited with code 1; 2 updates refused, the last in round 3: too large; "
        "no update in 1 of 4 rounds"
    ]
    assert summary(document)[-1] == f"left out        {document['left_out'][0]}"


def test_nobody_is_left_out_whose_updates_all_counted():
    rows = [documents.closed_round(1, accepted=["work0", "work1"])]
    assert outcome_of(task("Succeeded", rounds=rows))["left_out"] == []


def test_the_outcome_of_a_failed_task_has_its_reason():
    failed = task("Failed", conditions=[documents.condition("Failed", "True", "X", "no data left")])
    assert outcome_of(failed)["error"] == "task digits has failed: no data left"
