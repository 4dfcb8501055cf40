"""What `apply` packs: script folders and model files, the same bytes for the same content, known by digest."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeai.errors import EdgeaiError, ManifestError, UpdateError
from edgeai.events.arrays import Array
from edgeai.store.arrays import ArrayFile, write_arrays
from edgeai.store.files import copy_whole

MAX_BUNDLE_BYTES = 64 * 1024 * 1024
MAX_BUNDLE_FILES = 10_000
_LEFT_OUT = frozenset({"__pycache__", ".git", ".venv", ".ipynb_checkpoints"})


@dataclass(frozen=True, slots=True)
class ScriptFields:
    """Where in a resource the folder and the boot file of a worker's script stand, for what is wrong with them."""

    folder: str
    boot_file: str

    @staticmethod
    def of_training(place: int) -> ScriptFields:
        spec = f"spec.trainingWorkers[{place}].workerSpec"
        return ScriptFields(f"{spec}.trainScriptDir", f"{spec}.trainScriptBootFile")

    @staticmethod
    def of_stage(stage: str) -> ScriptFields:
        spec = f"spec.{stage}.workerSpec"
        return ScriptFields(f"{spec}.scriptDir", f"{spec}.scriptBootFile")

    @staticmethod
    def of_serving(place: int | None) -> ScriptFields:
        """Of the edge worker at this place of a service; None: of its cloud worker."""
        return ScriptFields.of_stage("cloudWorker" if place is None else f"edgeWorkers[{place}]")


def pack_scripts(folder: Path, boot_file: str, fields: ScriptFields) -> bytes:
    """A tar of the regular files below `folder`, sorted, without links, owners and times.

    Raises:
        ManifestError: no such folder, the boot file is not among its files, a file that cannot be packed, or more than
            MAX_BUNDLE_FILES or MAX_BUNDLE_BYTES.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder} is not a folder", field=fields.folder)
    packed, total, names = io.BytesIO(), 0, set()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in _packable(folder):
            names.add(name := path.relative_to(folder).as_posix())
            try:
                total += path.stat().st_size
                if total <= MAX_BUNDLE_BYTES and len(names) <= MAX_BUNDLE_FILES:
                    _add(archive, name, path)
                    continue
            except (OSError, ValueError) as error:
                raise ManifestError(f"{path} cannot be packed: {error}", field=fields.folder) from error
            limit = f"{MAX_BUNDLE_BYTES // 2**20} MiB or {MAX_BUNDLE_FILES} files"
            raise ManifestError(f"{folder} holds more than {limit}", field=fields.folder)
    if Path(boot_file).as_posix() not in names:
        raise ManifestError(f"{boot_file} is not in {folder}", field=fields.boot_file)
    return packed.getvalue()


def _packable(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        left_out = _LEFT_OUT.intersection(path.relative_to(folder).parts)
        if not left_out and not path.is_symlink() and path.is_file():
            yield path


def _add(archive: tarfile.TarFile, name: str, path: Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, 0o644
    with path.open("rb") as file:
        archive.addfile(entry, file)


def pack_model(path: Path, kind: str, target: Path) -> tuple[str, int]:
    """Write a model file to `target` in the format in which it travels; returns digest and size.

    Arrays travel as safetensors: npz keeps the order of its file, safetensors the order of its metadata. Every other format
    is stored as the file it is, and nobody here opens it.

    Raises:
        ManifestError: missing, damaged, with arrays that do not travel, or a pickle.
    """
    read = {"safetensors": _safetensors, "npz": _npz}.get(kind)
    if read is None:
        return _as_it_is(path, kind, target)
    try:
        arrays = read(path)
    except FileNotFoundError as error:
        raise ManifestError(f"{path} does not exist", field="spec.url") from error
    except (EdgeaiError, ValueError, OSError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ManifestError(f"{path} is not a {kind} model: {error}", field="spec.url") from error
    try:
        return write_arrays(target, arrays)
    except UpdateError as error:
        raise ManifestError(f"{path}: {error}", field="spec.url") from error


def _as_it_is(path: Path, kind: str, target: Path) -> tuple[str, int]:
    if not path.is_file():
        what = "is a folder: a model is one file" if path.is_dir() else "does not exist"
        raise ManifestError(f"{path} {what}", field="spec.url")
    try:
        if _is_pickle(path):
            what = "is a pickle, which runs code when it is loaded: save the model in another format"
            raise ManifestError(f"{path} {what}", field="spec.url")
        if kind == "keras" and not zipfile.is_zipfile(path):
            raise ManifestError(f"{path} is not a keras model: it is no zip archive", field="spec.url")
        return copy_whole(path, target), target.stat().st_size
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}", field="spec.url") from error


def _is_pickle(path: Path) -> bool:
    """By its first bytes and its last one, as protocols 2 to 5 write them."""
    with path.open("rb") as file:
        begins = file.read(2)
        if len(begins) < 2 or begins[0] != 0x80 or not 2 <= begins[1] <= 5:
            return False
        file.seek(-1, io.SEEK_END)
        return file.read(1) == b"."


def _safetensors(path: Path) -> list[Array]:
    if not path.exists():
        raise FileNotFoundError(path)
    return list(ArrayFile.open(path))


def _npz(path: Path) -> list[Array]:
    with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
        return [np.asarray(arrays[name]) for name in arrays.files]
