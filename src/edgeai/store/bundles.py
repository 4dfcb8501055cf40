"""What `apply` packs: script folders and model files, the same bytes for the same content, known by digest."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

from edgeai.errors import DamagedFile, ManifestError
from edgeai.store.arrays import ArrayFile, write_arrays

MAX_BUNDLE_BYTES = 64 * 1024 * 1024
_LEFT_OUT = frozenset({"__pycache__", ".git", ".venv", ".ipynb_checkpoints"})


def pack_scripts(folder: Path, boot_file: str, field: str) -> bytes:
    """A tar of the regular files below `folder`, sorted, without owners and times.

    Raises:
        ManifestError: no such folder, the boot file is not in it, or more than MAX_BUNDLE_BYTES.
    """
    if not folder.is_dir():
        raise ManifestError(f"{folder} is not a folder", field=f"{field}.trainScriptDir")
    if not (folder / boot_file).is_file():
        raise ManifestError(f"{boot_file} is not in {folder}", field=f"{field}.trainScriptBootFile")
    packed, total = io.BytesIO(), 0
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder)
            if _LEFT_OUT.intersection(inner.parts) or path.is_symlink() or not path.is_file():
                continue
            total += path.stat().st_size
            if total > MAX_BUNDLE_BYTES:
                limit = MAX_BUNDLE_BYTES // 2**20
                raise ManifestError(f"{folder} holds more than {limit} MiB", field=f"{field}.trainScriptDir")
            entry = tarfile.TarInfo(inner.as_posix())
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return packed.getvalue()


def pack_model(path: Path, kind: str, target: Path) -> tuple[str, int]:
    """Write the arrays of a model file to `target` in the format in which models travel; returns digest and size.

    npz keeps the order of its file, safetensors the order of its metadata.

    Raises:
        ManifestError: missing, of a format that is not supported yet, or damaged.
    """
    try:
        if kind == "safetensors":
            return write_arrays(target, list(ArrayFile.open(path)))
        if kind == "npz":
            with np.load(path, allow_pickle=False) as arrays:
                return write_arrays(target, [arrays[name] for name in arrays.files])
    except (DamagedFile, ValueError, OSError) as error:
        raise ManifestError(f"{path} is not a {kind} model: {error}", field="spec.url") from error
    raise ManifestError(f"format {kind} is not supported yet: save the arrays as safetensors or npz", field="spec.format")
