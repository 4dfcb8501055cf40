"""What a train or eval worker of an incremental learning job does between its slot directory and its script.

It needs no bus: what it works on was put into the slot before it started, and its report is a file there, which the controller
takes up when the program has ended (`launcher.slots.ResultFile`). One run reports once; a run that was killed before is done
again. Which round, trigger or model follows is decided elsewhere (`lifecycle.stage`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from edgeai.crashpoints import crash_point
from edgeai.errors import DamagedFile, ModelError, NotFound, UpdateError
from edgeai.events.catalogue import Role
from edgeai.launcher.slots import ResultFile, SessionFile
from edgeai.resources.model import is_pickle
from edgeai.store.arrays import write_arrays
from edgeai.store.files import copy_whole
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.metrics import checked_metrics
from edgeai.worker.models import LocalModel, are_arrays, format_of, require_content

NewModel = str | Path | Sequence[npt.ArrayLike]


class StageRun:
    """One run of the train or eval stage."""

    def __init__(self, environment: WorkerEnvironment) -> None:
        """Reads the slot directory. Raises DamagedFile if its slot.json is missing, damaged, or asks for nothing."""
        self.environment = environment
        self.slot_file = environment.slot.read_slot()
        assignment = self.slot_file.assignment
        if assignment.work is None:
            raise DamagedFile(environment.slot.path / "slot.json", f"a {assignment.role} worker without work")
        self._work, self.role = assignment.work, assignment.role
        self.models = tuple(LocalModel.of(environment.slot, given) for given in self._work.models)
        self.log = structlog.get_logger().bind(
            task=environment.task, worker=environment.worker, round=self._work.round, run=self._work.run
        )
        self._metrics: dict[str, dict[str, float]] = {}
        self._reported = False

    @property
    def round(self) -> int:
        return self._work.round

    async def begin(self) -> None:
        await asyncio.to_thread(self.environment.slot.write_session, SessionFile())
        self.log.info("task_joined", node=self.environment.node, models=[model.digest[:12] for model in self.models])

    async def report(self, metrics: Mapping[str, float], model: NewModel | LocalModel | None, format: str = "") -> None:
        """Returns when the report, and the model with it, are safe in the slot directory."""
        found = checked_metrics(metrics, self.log)
        if self.role is Role.TRAIN:
            await asyncio.to_thread(self._report_new, found, model, format)
        else:
            await asyncio.to_thread(self._report_evaluated, found, model)
        crash_point("worker.stage_reported")
        self.log.info("stage_reported", metrics={name: round(value, 4) for name, value in found.items()})

    # --- train

    def _report_new(self, metrics: dict[str, float], model: NewModel | LocalModel | None, format_: str) -> None:
        if self._reported:
            raise UpdateError(f"round {self.round} was reported already")
        if model is None or isinstance(model, LocalModel):
            raise UpdateError("a train worker reports its new model: model= the path of a file, or a list of arrays")
        name = self._stored(model)
        known = format_ or ("safetensors" if are_arrays(model) else format_of(Path(name)))
        slot = self.environment.slot
        try:
            require_content(slot.output / name, known)
        except ModelError as error:
            raise UpdateError(f"{error}: save it as what its name says, or under another name") from error
        slot.write_result(ResultFile(self._work.run, name, known, {"": metrics}))
        slot.write_session(SessionFile(submitted=1))
        self._reported = True

    def _stored(self, model: NewModel) -> str:
        """The model as a file of its own in `output/`; its path relative to that. Raises UpdateError, NotFound, StoreError."""
        output = self.environment.slot.output
        output.mkdir(exist_ok=True)
        if are_arrays(model):
            arrays = [np.asarray(array) for array in model]  # type: ignore[union-attr]
            if not arrays:
                raise UpdateError("the model holds no arrays")
            write_arrays(output / "model.safetensors", arrays)
            return "model.safetensors"
        if not isinstance(model, str | os.PathLike):
            raise UpdateError(f"the model is {type(model).__name__}, not the path of a file or a list of arrays")
        path = Path(model).absolute()
        if is_pickle(path.name) or is_pickle(path.resolve().name):
            raise UpdateError(
                f"{path} is a pickle, which runs code when it is loaded: save the model in another format"
            )
        if path.is_dir():
            raise UpdateError(f"{path} is a folder: a model is one file")
        if not path.exists():
            raise NotFound("file", str(path))
        real = path.resolve()
        if path.is_symlink() or not real.is_relative_to(output.resolve()):
            copy_whole(real, output / path.name)
            return path.name
        with real.open("rb") as file:
            os.fsync(file.fileno())
        return str(real.relative_to(output.resolve()))

    # --- eval

    def _report_evaluated(self, metrics: dict[str, float], model: NewModel | LocalModel | None) -> None:
        if not isinstance(model, LocalModel) or model not in self.models:
            raise UpdateError("an eval worker says which of task.models the metrics are of: model=model")
        if model.digest in self._metrics:
            raise UpdateError(f"model {model.digest[:12]} was reported already")
        self._metrics[model.digest] = metrics
        slot = self.environment.slot
        slot.write_result(ResultFile(self._work.run, metrics=self._metrics))
        if self._metrics.keys() == {model.digest for model in self.models}:
            slot.write_session(SessionFile(submitted=1))
            self._reported = True

    def leave(self) -> None:
        """The script has ended without an error: nothing is waited for, but what is missing is said."""
        if self._reported:
            return
        missing = [model.digest[:12] for model in self.models if model.digest not in self._metrics]
        what = "the new model" if self.role is Role.TRAIN else f"the metrics of {', '.join(missing)}"
        self.log.error("stage_not_reported", reason=f"the script has ended and did not report {what}")
