"""`edgeai demo`: one federated training, start to end, in a temporary playground."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeai.cli.daemons.options import LauncherChoice
from edgeai.cli.demo_incremental import EDGE, JOB, IncrementalDemo
from edgeai.cli.demo_joint import SERVICE, JointDemo
from edgeai.cli.images import require_images
from edgeai.cli.naming import counted
from edgeai.cli.playground import BrokerChoice, Playground
from edgeai.cli.rounds import RoundsView, outcome_of
from edgeai.cli.signals import Interrupted, until_signalled
from edgeai.cli.takedown import TEMPORARY_PREFIX, remove_folder, take_down
from edgeai.client import Cloud
from edgeai.errors import EdgeaiError, NotFound, Refused
from edgeai.launcher.children import ProcessId
from edgeai.launcher.images import AGGREGATION, image_for
from edgeai.logs import configure
from edgeai.resources.base import Metadata, Resource
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
_OWNER = "owner"
_GOOD = frozenset({TaskPhase.SUCCEEDED.value, TaskPhase.RUNNING.value})
"""A job goes on for ever: it is ended by the end of the demo."""
Feature = Literal["federated", "incremental", "joint-inference"]
_NAMES: dict[Feature, dict[str, Any]] = {
    "federated": {"task": _TASK, "rounds": [], "model": None},
    "incremental": {"job": JOB, "rounds": [], "model": None},
    "joint-inference": {"service": SERVICE},
}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`output` is where the model is written; `as_json`: exactly one document on standard output, also on failure."""

    edges: int = 3
    rounds: int = 10
    framework: str = "tensorflow"
    broker: BrokerChoice = "auto"
    output: Path = Path()
    as_json: bool = False
    launcher: LauncherChoice = "process"
    feature: Feature = "federated"


def run_demo(options: DemoOptions) -> int:
    """Run it; returns the exit code, 0 only if the task has succeeded."""
    configure(os.environ.get("EDGEAI_LOG") or "error")
    document: dict[str, Any] = {**copy.deepcopy(_NAMES[options.feature]), "phase": TaskPhase.PENDING.value}
    code = 1
    folders: list[Path] = []
    try:
        asyncio.run(until_signalled(_run(document, options, folders)))
        code = 0 if document["phase"] in _GOOD else 1
    except Interrupted as error:
        document["error"], code = str(error), error.exit_code
    except EdgeaiError as error:
        document["error"], code = str(error), 1 if options.as_json else error.exit_code
    except Exception as error:
        document["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        for folder in folders:
            # Only now have all threads ended, also those that an interrupt found writing into it.
            remove_folder(folder)
        if options.as_json:
            print(json.dumps(document), flush=True)
    if "error" in document and not options.as_json:
        print(f"edgeai: {document['error']}", file=sys.stderr)
    return code


async def _run(document: dict[str, Any], options: DemoOptions, folders: list[Path]) -> None:
    """`folders`: what is to be removed when everything has ended."""
    _require(options)
    if options.launcher == "docker":
        shared = (AGGREGATION,) if options.feature == "federated" else ()
        small = (image_for("numpy"),) if options.feature == "joint-inference" else ()
        await require_images(*dict.fromkeys((*shared, *small, image_for(options.framework))))
    await _sweep()
    state_dir = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
    folders.append(state_dir)
    view = RoundsView(quiet=options.as_json)
    (state_dir / _OWNER).write_text(str(ProcessId.of(os.getpid())))
    view.note(f"starting 1 cloud and {counted(options.edges, 'edge')}")
    playground = Playground(state_dir, options.edges, options.broker, temporary=True, launcher=options.launcher)
    async with playground.running() as cloud:
        if options.feature == "incremental":
            data = playground.folder(EDGE) / "data"
            demo = IncrementalDemo(cloud, data, framework=options.framework, quiet=options.as_json)
            await demo.run(document, options.output.absolute())
            return
        if options.feature == "joint-inference":
            await JointDemo(cloud, state_dir, framework=options.framework, quiet=options.as_json).run(document)
            return
        await cloud.apply(_resources(options), base=shipped("config/examples"))
        try:
            task = await view.follow(cloud, _TASK)
        finally:
            document |= outcome_of(view.task) if view.task else {}
        if task.status.model is not None:
            document["model"]["path"] = str(await _fetch(cloud, task, options.output.absolute()))
        view.finish(document)


async def _fetch(cloud: Cloud, task: FederatedTask, output: Path) -> Path:
    model = task.status.model
    assert model is not None
    path = output / f"{model.name}-v{model.version}.safetensors"
    await cloud.blobs.get(model.digest, path)
    return path


def _require(options: DemoOptions) -> None:
    if options.framework not in _PARAMETERS:
        raise Refused(f"framework {options.framework} has no example; use {' or '.join(_PARAMETERS)}")
    if options.launcher == "process" and importlib.util.find_spec(options.framework) is None:
        raise Refused(
            f"{options.framework} is not installed; pip install 'edgeai[{options.framework}]', "
            "or run `edgeai demo --framework numpy`"
        )
    if not options.output.is_dir():
        raise NotFound("folder", str(options.output), "create it, or give another --output")


async def _sweep() -> None:
    """Stop and remove what demos have left that were killed together with their daemons."""
    for folder in await asyncio.to_thread(_abandoned):
        await take_down(folder)
        await asyncio.to_thread(remove_folder, folder)


def _abandoned() -> list[Path]:
    found = []
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        try:
            owner = ProcessId.parse((folder / _OWNER).read_text())
        except (OSError, ValueError):  # another user's, or it is being made or removed right now
            continue
        if not owner.runs():
            found.append(folder)
    return found


def _resources(options: DemoOptions) -> list[Resource]:
    """The task of config/examples, for any number of edges."""
    parameters = {
        **_PARAMETERS[options.framework],
        "rounds": options.rounds,
        "min node number": max(1, options.edges - 1),
        "rounds between validations": 1,
    }
    workers = tuple(
        TrainingWorker(
            name=f"work{number}",
            node_name=f"edge{number + 1}",
            worker_spec=TrainingSpec(
                dataset=Reference(name=f"dataset{number}"),
                train_script_dir=f"../../workers/federated-{options.framework}",
                train_script_boot_file="main.py",
                framework_type=options.framework,
            ),
        )
        for number in range(options.edges)
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
