"""What the demo of incremental learning shows: the table of rounds, and stages where there is no terminal."""

from __future__ import annotations

import io
from typing import Any

import cli_documents as documents
import pytest
from rich.console import Console

from edgeai.cli.stages import StagesView, head_line, row_line
from edgeai.resources.incremental import IncrementalLearningJob


def row(number: int, *, deployed: bool = True, version: int = 1) -> dict[str, Any]:
    accuracy = {"old": 1.0, "new": 0.25, "all": 0.625}
    fields = {"samples": 450, "reason": "", "model": "digits", "version": version}
    return {"round": number, "accuracy": accuracy, "deployed": deployed, **fields}


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80, highlight=False)


def written(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.fixture
def consoles() -> tuple[Console, Console]:
    """For notes, and for what came out."""
    return plain(), plain()


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (row(0), "start          450   1.000   0.250   0.625  digits v1"),
        (row(2, version=3), "round 2        450   1.000   0.250   0.625  digits v3"),
        (row(2, deployed=False, version=2), "round 2        450   1.000   0.250   0.625  digits v2 (kept)"),
    ],
    ids=["the start", "a model that was deployed", "a model that was not"],
)
def test_a_row_says_what_serves_after_a_round(shown: dict[str, Any], line: str):
    assert row_line(shown).split() == line.split()


@pytest.mark.parametrize("shown", [row(0), row(12, deployed=False, version=12)])
def test_a_row_fits_80_columns(shown: dict[str, Any]):
    assert max(len(row_line(shown)), len(head_line())) <= 80


def test_the_table_grows_by_the_rows_that_are_new(consoles: tuple[Console, Console]):
    notes, out = consoles
    view = StagesView(quiet=False, console=notes, out=out)
    view.rows([row(0)])
    view.rows([row(0), row(1, version=2)])
    assert written(out) == [head_line(), row_line(row(0)), row_line(row(1, version=2))]


def test_without_a_terminal_every_stage_is_told_once(consoles: tuple[Console, Console]):
    notes, out = consoles
    view = StagesView(quiet=False, console=notes, out=out)
    stages = [documents.stage_row(1, "Train", "Completed", reason="by hand"), documents.stage_row(1, "Eval", "Running")]
    for history in (stages[:1], stages):
        view.show(IncrementalLearningJob.from_document(documents.job(history=history)))
    assert written(notes) == ["round 1: Train Completed (by hand)", "round 1: Eval Running"]
