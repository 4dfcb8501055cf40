"""What `apply` packs: script folders and model files, the same bytes for the same content, known by digest."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeai.errors import EdgeaiError, ManifestError, UpdateError
from edgeai.events.arrays import Array
from edgeai.store.arrays import ArrayFile, write_arrays

MAX_BUNDLE_BYTES = 64 * 1024 * 1024
MAX_BUNDLE_FILES = 10_000
_LEFT_OUT = frozenset({"__pycache__", ".git", ".venv", ".ipynb_checkpoints"})


def pack_scripts(folder: Path, boot_file: str, field: str) -> bytes:
    """A tar of the regular files below `folder`, sorted, without links, owners and times.

    Raises:
        ManifestError: no such folder, the boot file is not among its files, a file that cannot be packed, or more than
            MAX_BUNDLE_FILES or MAX_BUNDLE_BYTES.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder} is not a folder", field=f"{field}.trainScriptDir")
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
                raise ManifestError(f"{path} cannot be packed: {error}", field=f"{field}.trainScriptDir") from error
            limit = f"{MAX_BUNDLE_BYTES // 2**20} MiB or {MAX_BUNDLE_FILES} files"
            raise ManifestError(f"{folder} holds more than {limit}", field=f"{field}.trainScriptDir")
    if Path(boot_file).as_posix() not in names:
        raise ManifestError(f"{boot_file} is not in {folder}", field=f"{field}.trainScriptBootFile")
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
    """Write the arrays of a model file to `target` in the format in which models travel; returns digest and size.

    npz keeps the order of its file, safetensors the order of its metadata.

    Raises:
        ManifestError: missing, of a format that is not supported yet, damaged, or with arrays that do not travel.
    """
    read = {"safetensors": _safetensors, "npz": _npz}.get(kind)
    if read is None:
        raise ManifestError(
            f"format {kind} is not supported yet: save the arrays as safetensors or npz", field="spec.format"
        )
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


def _safetensors(path: Path) -> list[Array]:
    if not path.exists():
        raise FileNotFoundError(path)
    return list(ArrayFile.open(path))


def _npz(path: Path) -> list[Array]:
    with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
        return [np.asarray(arrays[name]) for name in arrays.files]
