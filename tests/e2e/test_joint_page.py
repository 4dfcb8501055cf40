"""The complete example of docs/joint-inference.md, as printed, from an empty folder: its files, and its commands in order."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from joint_system import serves
from learning_world import eventually

from edgeai.cli.playground import Playground
from edgeai.client import Cloud
from edgeai.resources.base import Resource
from edgeai.resources.joint import JointInferenceService
from edgeai.settings import write_context

PAGE = Path(__file__).parents[2] / "docs" / "joint-inference.md"
PRINTED = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
COMMANDS = re.compile(r"```sh\n(.*?)```", re.DOTALL)
SERVICE = "JointInferenceService"
LIMIT_S = 240


def commands() -> tuple[list[str], list[str]]:
    """Those of the second terminal, and of the third."""
    example = PAGE.read_text().split("## A complete example")[1].split("\n## ")[0]
    _first, second, *others = COMMANDS.findall(example)
    return second.splitlines(), [line for block in others for line in block.splitlines()]


def the_cloud_worker_is_ready(service: Resource | None) -> bool:
    return isinstance(service, JointInferenceService) and serves(service)


def version_2_serves(service: Resource | None) -> bool:
    if not isinstance(service, JointInferenceService):
        return False
    return [edge.serving.version for edge in service.status.edges if edge.serving is not None] == [2]


SLEPT_FOR: list[Callable[[Resource | None], bool]] = [the_cloud_worker_is_ready, version_2_serves]
"""What a reader has after each `sleep` of the page."""


@pytest.fixture
def reader(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has installed edgeai; the files of the page are in `router`."""
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


@asynccontextmanager
async def second_terminal(folder: Path, reader: dict[str, str]) -> AsyncIterator[None]:
    """Its one command goes on until it is stopped."""
    [command], _ = commands()
    with subprocess.Popen(["/bin/sh", "-c", f"exec {command}"], cwd=folder, env=reader) as running:
        try:
            await eventually((folder / "standin.url").exists, lambda: f"{command} does not begin")
            yield
        finally:
            running.kill()


async def follow_the_page(cloud: Cloud, folder: Path, reader: dict[str, str]) -> list[str]:
    """Type every command of the third terminal; returns what each has answered. A command that fails fails the test."""
    answered = []
    sleeps = iter(SLEPT_FOR)
    for command in commands()[1]:
        if command.startswith("sleep "):
            await cloud.wait(SERVICE, "router", next(sleeps), LIMIT_S)
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
        answered.append(f"$ {command}\n{done.stdout}")
    return answered


@pytest.mark.timeout(240)
async def test_the_example_of_the_page_of_joint_inference_runs_as_printed(tmp_path: Path, reader: dict[str, str]):
    folder = tmp_path / "router"
    playground = Playground(folder / "world", edges=1)
    async with second_terminal(folder, reader), playground.running() as cloud:
        write_context(playground.context(), tmp_path / "context.json")
        answered = await follow_the_page(cloud, folder, reader)

    known, hard, learned = [each for each in answered if each.startswith("$ edgeai infer")]
    assert "'billing'" in known, known
    assert " edge " in known, known
    assert "'technical'" in hard, hard
    assert " cloud " in hard, hard
    assert "'technical'" in learned, learned
    assert " edge " in learned, learned
    assert [each.splitlines()[1] for each in answered if each.startswith("$ python3 app")] == [
        "delivery says the edge"
    ] * 3
