"""A model as a file that a worker's script can load. What is in it is the script's business; arrays can be loaded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeai.errors import NotFound, Refused
from edgeai.events.catalogue import ModelFile
from edgeai.launcher.slots import SlotDir
from edgeai.store.arrays import ArrayFile

FORMATS = {".safetensors": "safetensors", ".npz": "npz", ".keras": "keras", ".onnx": "onnx"}
"""By the end of a file's name; every other file has the format `file`."""


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A version of a model on this node.

    Attributes:
        path: the file, to be read only.
        format: safetensors, npz, keras, onnx, or file: one that only the script knows.
        digest: sha256 of the file.
        version: its number; 0 while the cloud has not given it one.
        name: that of its Model resource, in a joint inference service.
    """

    path: Path
    format: str
    digest: str
    version: int = 0
    name: str = ""

    @staticmethod
    def of(slot: SlotDir, given: ModelFile, version: int = 0, name: str = "") -> LocalModel:
        return LocalModel(slot.models / Path(given.name).name, given.format, given.blob.digest, version, name)

    def load(self) -> list[npt.NDArray[Any]]:
        """The arrays of a safetensors or npz file, in the order in which they were saved. Read-only views of the former.

        Raises:
            Refused: another format, which the script loads from `path`.
            NotFound, DamagedFile: the file is not there, or not what its format says.
        """
        match self.format:
            case "safetensors":
                return list(ArrayFile.open(self.path))
            case "npz":
                return _npz(self.path)
        raise Refused(f"a model of format {self.format} is no list of arrays: load it from {self.path}")


def _npz(path: Path) -> list[npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [archive[name] for name in archive.files]
    except FileNotFoundError as error:
        raise NotFound("file", str(path)) from error


def format_of(path: Path) -> str:
    return FORMATS.get(path.suffix, "file")


def are_arrays(model: Any) -> bool:
    """Whether this is a list of arrays, not the path of a file."""
    return isinstance(model, Sequence) and not isinstance(model, str | bytes)
