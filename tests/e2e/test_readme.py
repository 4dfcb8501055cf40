"""The README's first task and first script, as printed, in a new folder."""

import re
from pathlib import Path

import pytest

from edgeai.cli.playground import Playground
from edgeai.resources.federated import FederatedTask, TaskPhase

README = Path(__file__).parents[2] / "README.md"
PRINTED = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


@pytest.mark.timeout(180)
async def test_the_first_task_of_the_readme_trains_as_printed(tmp_path):
    for name, content in PRINTED.findall(README.read_text()):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    async with Playground(tmp_path / "world", edges=3).running() as cloud:
        await cloud.apply(tmp_path / "first" / "task.yaml")
        task = await cloud.wait(
            "FederatedTask",
            "first-task",
            lambda found: found is not None and found.status.phase in {TaskPhase.SUCCEEDED, TaskPhase.FAILED},
            timeout_s=90,
        )

    assert isinstance(task, FederatedTask)
    assert task.status.phase is TaskPhase.SUCCEEDED, task.status.conditions
    assert len(task.status.rounds) == 10
    assert task.status.metrics["accuracy"] > 0.85
