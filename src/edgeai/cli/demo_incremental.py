"""`edgeai demo --feature incremental`: a model that has seen the digits 0 to 4 meets 5 to 9, on one edge.

The edge begins with a model that knows 0 to 4 and the labelled digits that it was trained on, as in
`config/examples/incremental-digits.yaml`. The images that the inference worker is asked hold 5 to 9 as well: the model finds
them hard, somebody labels them (here this program, which knows the answers; it is given nothing but ids, as `edgeai label` is),
and rounds follow until all ten are known. What is shown meanwhile is in `stages`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgeai.cli.stages import StagesView
from edgeai.client import Cloud
from edgeai.errors import EdgeaiError, Refused, WaitTimeout
from edgeai.resources.base import Metadata, Resource
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.dataset import Dataset, DatasetFormat, DatasetSpec
from edgeai.resources.federated import Reference, TaskPhase
from edgeai.resources.incremental import (
    DeployStage,
    EvalStage,
    HardExampleMining,
    IncrementalLearningJob,
    IncrementalLearningJobSpec,
    JobDataset,
    StageRecord,
    StageWorkerSpec,
    TrainStage,
    TrainTrigger,
    TriggerCondition,
)
from edgeai.resources.mining import MiningAlgorithm
from edgeai.resources.model import Model, ModelFormat, ModelSpec, ModelVersion
from edgeai.resources.parameters import Parameter
from edgeai.settings import shipped

JOB, MODEL, EDGE = "incremental-digits", "digits", "edge1"
OLD, NEW = range(5), range(5, 10)
WANTED_ACCURACY, ALLOWED_LOSS = 0.90, 0.05
LIMIT_S = 110.0
LABEL_S = 0.5
MAX_ASKED = 1000
_KNOWN = 450
"""Images of 0 to 4 that the initial model was trained on: the first of them in an order drawn with _SEED."""
_SEED = 7
_TRAINING: dict[str, dict[str, Any]] = {
    "numpy": {"learning rate": 0.2, "batch size": 16, "epochs": 30},
    "tensorflow": {"learning rate": 0.1, "batch size": 16, "epochs": 60},
}
_FORMATS = {"numpy": ModelFormat.NPZ, "tensorflow": ModelFormat.KERAS}


class IncrementalDemo:
    """One run of it. `folder` is where the edge's data lies; it has to be an allowed root of the edge."""

    def __init__(self, cloud: Cloud, folder: Path, *, framework: str, quiet: bool) -> None:
        self._cloud, self._folder, self._framework = cloud, folder, framework
        self._view = StagesView(quiet=quiet)
        self._answers: dict[str, int] = {}

    async def run(self, document: dict[str, Any], output: Path) -> None:
        """Fills `document`; returns when the digits are known and the model is in `output`. Raises EdgeaiError."""
        resources = await asyncio.to_thread(self._prepare)
        await self._cloud.apply(resources, base=shipped("config/examples"))
        labelling = asyncio.create_task(self._label_for_ever())
        try:
            async with asyncio.timeout(LIMIT_S), self._view.shown():
                await self._follow(document)
        except TimeoutError as error:
            raise WaitTimeout(
                f"job {JOB} did not come to an accuracy of {WANTED_ACCURACY} over all digits, "
                f"with at most {ALLOWED_LOSS} less on the old ones, within {LIMIT_S:g} s"
            ) from error
        finally:
            labelling.cancel()
            await asyncio.gather(labelling, return_exceptions=True)
        await self._fetch(document, output)
        self._sum_up(document)

    # --- data

    def _prepare(self) -> list[Resource]:
        """Files of the edge, and what to apply. Blocks."""
        with np.load(shipped("config/examples/digits.npz"), allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
        # The streams of RandomState are promised to stay the same in every release of NumPy.
        known = np.random.RandomState(_SEED).permutation(np.flatnonzero(np.isin(y, list(OLD))))[:_KNOWN]
        stream = np.random.RandomState(_SEED).permutation(np.setdiff1d(np.arange(len(y)), known))
        self._answers = {f"stream-{row}": int(label) for row, label in enumerate(y[stream])}
        self._folder.mkdir(parents=True, exist_ok=True)
        labelled, asked = self._folder / "labelled.npz", self._folder / "stream.npz"
        np.savez(labelled, x=x[known], y=y[known])
        np.savez(asked, x=x[stream])
        form = _FORMATS[self._framework]
        return [
            _dataset("digits-labelled", labelled),
            _dataset("digits-stream", asked),
            Model(metadata=Metadata(name=MODEL), spec=ModelSpec(url=f"digits-0-to-4.{form.value}", format=form)),
            IncrementalLearningJob(metadata=Metadata(name=JOB), spec=_spec(self._framework)),
        ]

    # --- labels

    async def _label_for_ever(self) -> None:
        """What a person does: look at the examples that wait, say what they are."""
        while True:
            with suppress(EdgeaiError):  # the job is not on its node yet
                job = await self._cloud.get("IncrementalLearningJob", JOB)
                assert isinstance(job, IncrementalLearningJob)
                waiting = (await self._cloud.examples(job, MAX_ASKED)).examples
                known = {each.id: json.dumps(self._answers[each.id]) for each in waiting if each.id in self._answers}
                if known:
                    await self._cloud.give_labels(job, known)
            await asyncio.sleep(LABEL_S)

    # --- what happens

    async def _follow(self, document: dict[str, Any]) -> None:
        """Show the stages until the last round is good enough. Raises Refused: the job has failed, or is gone."""
        async with self._cloud.watch("IncrementalLearningJob") as changes:
            async for change in changes:
                if change is None or change[1] != JOB:
                    continue
                job = change[2]
                if not isinstance(job, IncrementalLearningJob):
                    raise Refused(f"job {JOB} was deleted")
                document["phase"] = job.status.phase.value
                if job.status.phase is TaskPhase.FAILED:
                    failed = find_condition(job.status.conditions, ConditionType.FAILED)
                    raise Refused(f"job {JOB} has failed: {failed.message if failed else job.status.reason}")
                self._view.show(job)
                await self._add_rows(document["rounds"], job)
                self._view.rows(document["rounds"])
                if _is_enough(document["rounds"]):
                    return
        raise Refused("the watch ended")

    async def _add_rows(self, rows: list[dict[str, Any]], job: IncrementalLearningJob) -> None:
        """Those of the rounds that are over since the last time; waits for the numbers of their versions."""
        for number in sorted({record.round for record in job.status.history} - {row["round"] for row in rows}):
            stages = {record.stage: record for record in job.status.history if record.round == number}
            evaluated, deploy = stages.get("Eval"), stages.get("Deploy")
            if evaluated is None or evaluated.state != "Completed":
                continue
            if not rows:
                start = StageRecord(round=0, stage="", state="", samples=_KNOWN)
                rows.append(_row(start, evaluated.serving, 1))
            if deploy is None or deploy.state not in {"Completed", "Failed"}:
                continue
            if deploy.state == "Completed" and not deploy.reason:
                version = (await self._version(job, number)).version
                rows.append(_row(evaluated, evaluated.metrics, version))
            else:
                rows.append(_row(evaluated, evaluated.serving, rows[-1]["version"], kept=deploy.reason))

    async def _version(self, job: IncrementalLearningJob, number: int) -> ModelVersion:
        """That which a round has made, as soon as the cloud has it."""

        def made(model: Resource | None) -> list[ModelVersion]:
            versions = model.status.versions if isinstance(model, Model) else ()
            return [each for each in versions if (each.task_uid, each.round) == (job.metadata.uid, number)]

        return made(await self._cloud.wait("Model", MODEL, lambda model: bool(made(model)), LIMIT_S))[-1]

    # --- what came out

    async def _fetch(self, document: dict[str, Any], output: Path) -> None:
        """Write the model that serves, and say where."""
        model = await self._cloud.get("Model", MODEL)
        assert isinstance(model, Model)
        number = document["rounds"][-1]["version"]
        version = next(each for each in model.status.versions if each.version == number)
        path = output / f"{MODEL}-v{number}{version.file_suffix}"
        await self._cloud.blobs.get(version.digest, path)
        document["model"] = {"name": MODEL, "version": number, "digest": version.digest, "path": str(path)}

    def _sum_up(self, document: dict[str, Any]) -> None:
        before, now = document["rounds"][0]["accuracy"]["old"], document["rounds"][-1]["accuracy"]
        document["accuracy"] = {**now, "old_before": before}
        model = document["model"]
        for line in (
            "",
            f"accuracy        {now['all']:.3f} of all ten digits, on held-out examples",
            f"0 to 4          {now['old']:.3f}, and {before:.3f} before 5 to 9 were learned",
            f"model           {model['name']} version {model['version']}",
            f"digest          {model['digest']}",
            f"path            {model['path']}",
        ):
            self._view.say(line)


def _dataset(name: str, path: Path) -> Dataset:
    spec = DatasetSpec(node_name=EDGE, url=str(path), format=DatasetFormat.NPZ)
    return Dataset(metadata=Metadata(name=name), spec=spec)


def _spec(framework: str) -> IncrementalLearningJobSpec:
    return IncrementalLearningJobSpec(
        node_name=EDGE,
        initial_model=Reference(name=MODEL),
        output_model=Reference(name=MODEL),
        dataset=JobDataset(name="digits-labelled", train_fraction=0.75),
        hard_example_mining=HardExampleMining(
            algorithm=MiningAlgorithm.MARGIN, parameters=(Parameter(key="threshold", value=0.9),)
        ),
        train=TrainStage(
            worker_spec=_worker(framework, _TRAINING[framework]),
            trigger=TrainTrigger(
                condition=TriggerCondition(metric="num_of_samples", operator=">=", threshold=200.0),
                check_period_seconds=1,
            ),
        ),
        eval=EvalStage(worker_spec=_worker(framework, {})),
        deploy=DeployStage(
            worker_spec=_worker(framework, {"requests per second": 100}), dataset=Reference(name="digits-stream")
        ),
    )


def _worker(framework: str, parameters: Mapping[str, Any]) -> StageWorkerSpec:
    return StageWorkerSpec(
        script_dir=f"../../workers/incremental-{framework}",
        script_boot_file="main.py",
        framework_type=framework,
        parameters=tuple(Parameter(key=key, value=value) for key, value in parameters.items()),
    )


def _row(record: StageRecord, metrics: Mapping[str, float], version: int, *, kept: str | None = None) -> dict[str, Any]:
    """A line of the table and of `rounds` of the document. `kept`: why the new model does not serve."""
    digits = {"old": OLD, "new": NEW, "all": (*OLD, *NEW)}
    return {
        "round": record.round,
        "samples": record.samples,
        "accuracy": {name: _mean(metrics, which) for name, which in digits.items()},
        "deployed": kept is None,
        "reason": kept or "",
        "model": MODEL,
        "version": version,
    }


def _mean(metrics: Mapping[str, float], digits: Iterable[int]) -> float:
    """Accuracy over these digits, each counting the same; one that is not among the held-out examples counts as unknown."""
    return float(np.mean([metrics.get(f"accuracy/{digit}", 0.0) for digit in digits]))


def _is_enough(rows: list[dict[str, Any]]) -> bool:
    """All digits are known, and the old ones not forgotten. The first row is the start: it is never the last."""
    if len(rows) < 2 or not rows[-1]["deployed"]:
        return False
    before, now = rows[0]["accuracy"]["old"], rows[-1]["accuracy"]
    return bool(now["all"] >= WANTED_ACCURACY and before - now["old"] <= ALLOWED_LOSS)
