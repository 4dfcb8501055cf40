"""The complete example of docs/incremental.md, as printed, from an empty folder: its files, and its commands in their order."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeai.cli.playground import Playground
from edgeai.client import Cloud
from edgeai.resources.base import Resource
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.model import Model
from edgeai.settings import write_context

PAGE = Path(__file__).parents[2] / "docs" / "incremental.md"
PRINTED = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LIMIT_S = 240


def commands_of_the_second_terminal() -> list[str]:
    example = PAGE.read_text().split("## A complete example")[1].split("\n## ")[0]
    _first_terminal, *others = COMMANDS.findall(example)
    return [line for block in others for line in block.splitlines()]


def many_examples_wait(job: Resource | None) -> bool:
    return isinstance(job, IncrementalLearningJob) and job.status.counts.unlabelled >= 400


def version_2_is_there(model: Resource | None) -> bool:
    return isinstance(model, Model) and len(model.status.versions) == 2


def the_second_round_is_over(job: Resource | None) -> bool:
    return isinstance(job, IncrementalLearningJob) and job.status.round == 3


def the_first_model_serves_again(job: Resource | None) -> bool:
    serving = job.status.serving if isinstance(job, IncrementalLearningJob) else None
    return serving is not None and serving.round == 0 and serving.version > 1


JOB, MODEL = "IncrementalLearningJob", "Model"
SLEPT_FOR: list[tuple[str, Callable[[Resource | None], bool]]] = [
    (JOB, many_examples_wait),
    (MODEL, version_2_is_there),
    (JOB, the_second_round_is_over),
    (JOB, the_first_model_serves_again),
]
"""What a reader has after each `sleep` of the page."""


@pytest.fixture
def reader(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has installed edgeai; the files of the page are in `digits`."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, argv in (("edgeai", f"{sys.executable} -m edgeai"), ("python3", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {argv} "$@"\n')
        (programs / name).chmod(0o755)
    for name, content in PRINTED.findall(PAGE.read_text()):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "EDGEAI_CONTEXT": str(tmp_path / "context.json"),
    }


async def follow_the_page(cloud: Cloud, folder: Path, reader: dict[str, str]) -> str:
    """Type every command; returns all that was answered. A command that fails fails the test."""
    answered = ""
    sleeps = iter(SLEPT_FOR)
    for command in commands_of_the_second_terminal():
        if command.startswith("sleep "):
            kind, until = next(sleeps)
            await cloud.wait(kind, "digits", until, LIMIT_S)
            continue
        done = await asyncio.to_thread(
            subprocess.run,
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=reader,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        answered += f"$ {command}\n{done.stdout}"
    return answered


@pytest.mark.timeout(300)
async def test_the_example_of_the_page_of_incremental_learning_runs_as_printed(tmp_path, reader):
    folder = tmp_path / "digits"
    playground = Playground(folder / "world", edges=1)
    async with playground.running() as cloud:
        write_context(playground.context(), tmp_path / "context.json")
        answered = await follow_the_page(cloud, folder, reader)
        model = await cloud.get("Model", "digits")

    assert isinstance(model, Model)
    first, second, *_, newest = model.status.versions
    assert second.metrics["accuracy"] >= 0.85, answered
    assert newest.digest == first.digest, answered
