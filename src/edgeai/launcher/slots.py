"""The slot directory: what a controller and one of its workers share on disk.

slot.json        what the worker is to do (written by the controller, no secrets)
script/          the script bundle, unpacked
models/          models by digest, put there by the controller, read-only for the worker
updates/         finished updates of a training worker, until their round is closed
output/          files the script wants to keep
state.db         what a built-in role remembers
session.json     how far the worker's session with its task came (written by the lib)
worker.log, run.json, exit.json    written by the launcher
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from edgeai.errors import DamagedFile
from edgeai.events.catalogue import Assignment
from edgeai.store.files import write_whole


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


_SLOT, _SESSION = TypeAdapter(SlotFile), TypeAdapter(SessionFile)


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

    def model(self, digest: str) -> Path:
        return self.path / "models" / f"{digest}.safetensors"

    def create(self) -> None:
        for folder in (self.path, self.script, self.updates, self.output, self.path / "models", self.parts):
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

    def write_session(self, session: SessionFile) -> None:
        write_whole(self.path / "session.json", _SESSION.dump_json(session))

    def read_session(self) -> SessionFile | None:
        """None: the worker never joined."""
        try:
            return _SESSION.validate_json((self.path / "session.json").read_bytes())
        except (OSError, ValidationError, json.JSONDecodeError):
            return None
