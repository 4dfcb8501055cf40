"""Script bundles and frameworks: what a worker needs before it can start.

A bundle is a tar of regular files, packed by `edgeai apply` and known by its digest; it is unpacked without links, devices or
paths that lead outside.
"""

from __future__ import annotations

import importlib.metadata
import io
import shutil
import sys
import tarfile
from pathlib import Path

from packaging.specifiers import SpecifierSet

MAX_BUNDLE_BYTES = 64 * 1024 * 1024
_DISTRIBUTIONS = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-macos"),
    "keras": ("keras",),
    "pytorch": ("torch",),
    "sklearn": ("scikit-learn",),
    "numpy": ("numpy",),
}


class PreparationProblem(Exception):
    """Why a worker cannot be prepared, in one line."""


def unpack(bundle: bytes, folder: Path, boot_file: str) -> None:
    """Replace `folder` by the content of a bundle. Blocking. Raises PreparationProblem."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True, mode=0o700)
    try:
        with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
            members = archive.getmembers()
            if not all(member.isreg() or member.isdir() for member in members):
                raise PreparationProblem("the script bundle holds something that is neither file nor folder")
            archive.extractall(fresh, members=members, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise PreparationProblem(f"the script bundle cannot be unpacked: {error}") from error
    require_boot_file(fresh, boot_file)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def require_boot_file(folder: Path, boot_file: str) -> None:
    """Raises PreparationProblem unless the boot file is a file inside `folder`."""
    path = (folder / boot_file).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise PreparationProblem(f"trainScriptBootFile {boot_file} is not in trainScriptDir; add it or change the name")


def require_framework(framework: str, wanted: str, node: str) -> None:
    """Raises PreparationProblem unless this interpreter has the framework in an acceptable version."""
    if not framework:
        return
    for distribution in _DISTRIBUTIONS.get(framework, (framework,)):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        if wanted and version not in SpecifierSet(wanted, prereleases=True):
            raise PreparationProblem(
                f"{framework} {version} on {node} is not {wanted}: install another version or change frameworkVersion"
            )
        return
    package = _DISTRIBUTIONS.get(framework, (framework,))[0]
    raise PreparationProblem(
        f"framework {framework} is not installed on {node}: run `{Path(sys.executable).name} -m pip install {package}` there"
    )
