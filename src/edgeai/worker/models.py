"""A model as a file that a worker's script can load. What is in it is the script's business; arrays can be loaded here."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeai.errors import ModelError, NotFound, Refused
from edgeai.events.catalogue import ModelFile
from edgeai.launcher.slots import SlotDir
from edgeai.store.arrays import ArrayFile

FORMATS = {".safetensors": "safetensors", ".npz": "npz", ".keras": "keras", ".onnx": "onnx"}
"""By the end of a file's name; every other file has the format `file`."""
_NO_ARCHIVE = (OSError, EOFError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What reading an npz file raises, whatever is wrong with it."""
_ZIP = b"PK\x03\x04"
_CONTENT = {
    "safetensors": "a safetensors file",
    "npz": "an npz file of arrays",
    "keras": "a .keras file, which is a zip archive",
}
"""Formats that are known by their first bytes."""


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

    def named(self) -> dict[str, str | int]:
        """For a line of the log: the version only if it has one."""
        name: dict[str, str | int] = {"model": self.digest[:12]}
        return name | {"version": self.version} if self.version else name

    def load(self) -> list[npt.NDArray[Any]]:
        """The arrays of a safetensors or npz file, in the order in which they were saved. Read-only views of the former.

        Raises:
            Refused: another format, which the script loads from `path`.
            NotFound, DamagedFile, ModelError: the file is not there, or not what its format says.
        """
        match self.format:
            case "safetensors":
                return list(ArrayFile.open(self.path))
            case "npz":
                return _npz(self.path)
        raise Refused(f"a model of format {self.format} is no list of arrays: load it from {self.path}")


def _npz(path: Path) -> list[npt.NDArray[Any]]:
    # NumPy takes whatever is no archive for a pickle, and says how it could be loaded as one.
    require_content(path, "npz")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = [archive[name] for name in archive.files]
    except FileNotFoundError as error:
        raise NotFound("file", str(path)) from error
    except _NO_ARCHIVE as error:
        raise ModelError(f"{_short(path)} is not an npz file of arrays") from error
    if not all(isinstance(each, np.ndarray) for each in found):
        raise ModelError(f"{_short(path)} is not an npz file of arrays")
    return found


def require_content(path: Path, format: str) -> None:
    """Look at the first bytes. Raises ModelError: a file of this format does not begin so. NotFound: there is none."""
    if format not in _CONTENT:
        return
    try:
        with path.open("rb") as file:
            begin, size = file.read(9), os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise NotFound("file", str(path)) from error
    right = _is_safetensors(begin, size) if format == "safetensors" else begin.startswith(_ZIP)
    if not right:
        raise ModelError(f"{_short(path)} is not {_CONTENT[format]}")


def _short(path: Path) -> str:
    """Models lie in a slot under their digest."""
    return path.name if len(path.stem) < 64 else f"{path.stem[:12]}{path.suffix}"


def _is_safetensors(begin: bytes, size: int) -> bool:
    """The length of a header, which is JSON."""
    return len(begin) == 9 and begin[8:] == b"{" and int.from_bytes(begin[:8], "little") <= size - 8


def format_of(path: Path) -> str:
    return FORMATS.get(path.suffix, "file")


def are_arrays(model: Any) -> bool:
    """Whether this is a list of arrays, not the path of a file."""
    return isinstance(model, Sequence) and not isinstance(model, str | bytes)
