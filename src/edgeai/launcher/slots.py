"""The slot directory: what a controller and one of its workers share on disk.

slot.json        what the worker is to do (written by the controller, no secrets)
script/          the script bundle, unpacked
models/          models by digest, put there by the controller, read-only for the worker
updates/         finished updates of a training worker, until their round is closed
output/          files the script wants to keep
token            of this run, for the worker alone (events.tokens)
state.db         what a built-in role remembers
hard/            hard examples that an inference worker has found, until the controller has taken them over
inferences.json  what a worker of a joint inference service has counted (written by the lib)
serving.json     the model that an inference worker serves (written by the lib); `models/serving.json`: what it is to serve
examples.json    how far an inference worker has read a file that grows (written by the lib)
result.json      what a worker of an incremental learning job has reported (written by the lib)
session.json     how far the worker's session with its task came (written by the lib)
worker.log, run.json, exit.json    written by the launcher
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgeai.errors import DamagedFile
from edgeai.events.catalogue import Assignment, ModelFile
from edgeai.events.tokens import TOKEN_BYTES
from edgeai.store.files import write_whole

MAX_SESSION_BYTES = 64 * 1024
_TOKEN = "token"  # noqa: S105 - the name of its file


@dataclass(frozen=True, slots=True)
class SlotFile:
    """Content of slot.json. `dataset_path` is empty when the worker has no dataset."""

    node: str
    assignment: Assignment
    dataset_path: str = ""


@dataclass(frozen=True, slots=True)
class SessionFile:
    """Content of session.json. `ended`: the worker saw the end of its task."""

    ended: bool = False
    submitted: int = 0
    unsettled: int = 0

    @property
    def complete(self) -> bool:
        """Nothing of this worker's duty is left."""
        return self.unsettled == 0 and (self.ended or self.submitted > 0)


@dataclass(frozen=True, slots=True)
class ResultFile:
    """Content of result.json, the report of one run. A train worker names its new model: a file in `output/`, relative to it.

    `metrics`: by digest of the model that an eval worker was given; a train worker's under the empty name.
    """

    run: str
    model: str = ""
    format: str = ""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServingFile:
    """Content of serving.json in the models folder: what an inference worker is to serve. `canary`: a file beside it."""

    model: ModelFile
    version: int = 0
    canary: str = ""


_SLOT, _SESSION = TypeAdapter(SlotFile), TypeAdapter(SessionFile)
_RESULT, _SERVING = TypeAdapter(ResultFile), TypeAdapter(ServingFile)
MAX_RESULT_BYTES = 1024 * 1024
TRIAL_FILE = "trial.json"
"""An inference worker's note of the model that it is trying (`worker.trial`)."""


@dataclass(frozen=True, slots=True)
class SlotDir:
    """The paths of one slot and its two small files."""

    path: Path

    @property
    def script(self) -> Path:
        return self.path / "script"

    @property
    def updates(self) -> Path:
        return self.path / "updates"

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def state(self) -> Path:
        return self.path / "state.db"

    @property
    def parts(self) -> Path:
        return self.path / "parts"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def hard(self) -> Path:
        return self.path / "hard"

    def model(self, digest: str) -> Path:
        return self.models / model_name(digest)

    def create(self) -> None:
        for folder in (self.path, self.script, self.updates, self.output, self.models, self.parts):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def write_slot(self, slot: SlotFile) -> None:
        write_whole(self.path / "slot.json", _SLOT.dump_json(slot, indent=1))

    def read_slot(self) -> SlotFile:
        """Raises DamagedFile."""
        file = self.path / "slot.json"
        try:
            return _SLOT.validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise DamagedFile(file, str(error).splitlines()[0]) from error

    def renew_token(self) -> None:
        """Before a run: the token of the last one is worth nothing any more. Raises StoreError."""
        write_whole(self.path / _TOKEN, secrets.token_bytes(TOKEN_BYTES), 0o400)

    def read_token(self) -> bytes:
        """Empty if there is none, or it is damaged."""
        try:
            token = read_untrusted(self.path / _TOKEN, TOKEN_BYTES)
        except OSError:
            return b""
        return token if len(token) == TOKEN_BYTES else b""

    def write_session(self, session: SessionFile) -> None:
        write_whole(self.path / "session.json", _SESSION.dump_json(session))

    def read_session(self) -> SessionFile | None:
        """None: the worker never joined, or what is there is none of ours."""
        try:
            return _SESSION.validate_json(read_untrusted(self.path / "session.json", MAX_SESSION_BYTES))
        except (OSError, ValidationError):
            return None

    def write_result(self, result: ResultFile) -> None:
        write_whole(self.path / "result.json", _RESULT.dump_json(result))

    def read_result(self) -> ResultFile | None:
        """None: nothing was reported, or what is there is none of ours."""
        try:
            return _RESULT.validate_json(read_untrusted(self.path / "result.json", MAX_RESULT_BYTES))
        except (OSError, ValidationError):
            return None

    def forget_run(self) -> None:
        """Before another run in this slot: what the last one has reported, said and made."""
        for name in ("result.json", "session.json", "serving.json", TRIAL_FILE):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.output, ignore_errors=True)


def write_serving(models: Path, serving: ServingFile) -> None:
    write_whole(models / "serving.json", _SERVING.dump_json(serving), 0o644)


def read_serving(models: Path) -> ServingFile | None:
    """None: the controller has not said yet."""
    try:
        return _SERVING.validate_json((models / "serving.json").read_bytes())
    except (OSError, ValidationError):
        return None


def model_name(digest: str) -> str:
    """Of the file that holds a model."""
    return f"{digest}.safetensors"


def read_untrusted(path: Path, limit_bytes: int) -> bytes:
    """The content of a file that a worker wrote, and may have made anything of: a link, a pipe that nobody writes to, huge.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit_bytes:
            raise OSError(f"{path} is not a file of at most {limit_bytes} bytes")
        return file.read(limit_bytes)
