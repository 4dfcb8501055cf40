"""`edgeai demo`: one federated training, start to end, in a temporary playground."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgeai.cli.playground import Playground
from edgeai.cli.rounds import RoundsView
from edgeai.client import Cloud
from edgeai.errors import EdgeaiError, NotFound, Refused
from edgeai.logs import configure
from edgeai.resources.base import Metadata
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import (
    AggregationAlgorithm,
    AggregationSpec,
    AggregationWorker,
    FederatedTask,
    FederatedTaskSpec,
    Reference,
    TaskPhase,
    TrainingSpec,
    TrainingWorker,
)
from edgeai.resources.model import Model
from edgeai.resources.parameters import Parameter
from edgeai.settings import shipped

_TASK, _MODEL = "federated-digits", "digits-cnn"
_PARAMETERS: dict[str, dict[str, Any]] = {
    "tensorflow": {"batch size": 32, "learning rate": 0.1, "epochs": 3},
    "numpy": {"batch size": 16, "learning rate": 0.2, "epochs": 2},
}


def run_demo(*, edges: int, rounds: int, framework: str, broker: str, output: Path, as_json: bool) -> int:
    """Run it; returns the exit code. With `as_json` exactly one document is written to standard output."""
    configure("error")
    document: dict[str, Any] = {"task": _TASK, "phase": TaskPhase.PENDING.value, "rounds": [], "model": None}
    try:
        asyncio.run(_run(document, edges, rounds, framework, broker, output.absolute(), as_json))
        code = 0 if document["phase"] == TaskPhase.SUCCEEDED.value else 1
    except EdgeaiError as error:
        document["error"], code = str(error), error.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        document["error"], code = "interrupted", 130
    if as_json:
        print(json.dumps(document))
        return 1 if code not in {0, 130} else code
    if "error" in document:
        print(f"edgeai: {document['error']}", file=sys.stderr)
    return code


async def _run(
    document: dict[str, Any], edges: int, rounds: int, framework: str, broker: str, output: Path, as_json: bool
) -> None:
    _require(framework, output)
    current = asyncio.current_task()
    assert current is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current.cancel)
    state_dir = Path(tempfile.mkdtemp(prefix="edgeai-demo-"))
    try:
        view = RoundsView(quiet=as_json)
        view.note(f"starting 1 cloud and {edges} edges")
        async with Playground(state_dir, edges, broker).running() as cloud:
            await cloud.apply(_resources(edges, rounds, framework), base=shipped("config/examples"))
            task = await view.follow(cloud, _TASK)
            await _describe(document, cloud, task, output)
            view.finish(document)
    finally:
        await asyncio.to_thread(shutil.rmtree, state_dir, True)


def _require(framework: str, output: Path) -> None:
    if framework not in _PARAMETERS:
        raise Refused(f"framework {framework} has no example; use {' or '.join(_PARAMETERS)}")
    if not output.is_dir():
        raise NotFound("folder", str(output), "create it, or give another --output")


def _resources(edges: int, rounds: int, framework: str) -> list[Any]:
    """The task of config/examples, for any number of edges."""
    parameters = {
        **_PARAMETERS[framework],
        "rounds": rounds,
        "min node number": max(1, edges - 1),
        "rounds between validations": 1,
    }
    workers = tuple(
        TrainingWorker(
            name=f"work{number}",
            node_name=f"edge{number + 1}",
            worker_spec=TrainingSpec(
                dataset=Reference(name=f"dataset{number}"),
                train_script_dir=f"../../workers/federated-{framework}",
                train_script_boot_file="main.py",
                framework_type=framework,
            ),
        )
        for number in range(edges)
    )
    spec = FederatedTaskSpec(
        aggregation_worker=AggregationWorker(
            name="aggregation-worker",
            model=Reference(name=_MODEL),
            worker_spec=AggregationSpec(
                aggregation_algorithm=AggregationAlgorithm.FED_AVG,
                parameters=tuple(Parameter(key=key, value=value) for key, value in parameters.items()),
            ),
        ),
        training_workers=workers,
    )
    return [Model(metadata=Metadata(name=_MODEL)), FederatedTask(metadata=Metadata(name=_TASK), spec=spec)]


async def _describe(document: dict[str, Any], cloud: Cloud, task: FederatedTask, output: Path) -> None:
    """Fill the document from the task's status; fetch the model."""
    status = task.status
    document["phase"] = status.phase.value
    document["rounds"] = [
        {
            "round": row.round,
            "updates": row.updates,
            "metrics": row.metrics,
            "bytes_up": row.bytes_up,
            "bytes_down": row.bytes_down,
            "seconds": row.seconds,
        }
        for row in status.rounds
    ]
    document["metrics"] = status.metrics
    if status.model is not None:
        path = output / f"{status.model.name}-v{status.model.version}.safetensors"
        await cloud.blobs.get(status.model.digest, path)
        document["model"] = {
            "name": status.model.name,
            "version": status.model.version,
            "digest": status.model.digest,
            "path": str(path),
        }
    failed = find_condition(status.conditions, ConditionType.FAILED)
    if status.phase is TaskPhase.FAILED and failed is not None:
        document["error"] = failed.message
