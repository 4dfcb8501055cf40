"""Script bundles and frameworks: what a worker needs before it can start.

A bundle is a tar of regular files, packed by `edgeai apply` and known by its digest; it is unpacked without links, devices or
paths that lead outside.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import shutil
import sys
import tarfile
from pathlib import Path, PurePosixPath

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion

from edgeai.launcher.base import MAX_DEPTH
from edgeai.launcher.disk import walk
from edgeai.store.bundles import MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES
from edgeai.store.files import PIECE_BYTES

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
    """Replace `folder` by the content of a bundle. Blocking. Raises PreparationProblem; OSError if it cannot be written."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True, mode=0o700)
    try:
        # Without compression: a few kilobytes would become any number of gigabytes.
        with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:") as archive:
            for member in _checked(archive):
                _write(archive, member, fresh)
        require_boot_file(fresh, boot_file)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise PreparationProblem(f"the script bundle cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def tree_stamp(folder: Path) -> str:
    """Of a folder and all that is in it: changes when anything of it does. Empty: it is not there. Blocks."""
    try:
        top = folder.lstat()
        found = [(thing.depth, thing.name, thing.status) for thing in walk(folder)]
    except OSError:
        return ""
    if any(depth >= MAX_DEPTH for depth, _, _ in found):
        return ""  # there may be more that was not seen
    lines = sorted(
        (depth, name, each.st_dev, each.st_ino, each.st_mode, each.st_size, each.st_mtime_ns, each.st_ctime_ns)
        for depth, name, each in [(-1, "", top), *found]
    )
    return hashlib.sha256(repr(lines).encode("utf-8", "surrogateescape")).hexdigest()


def difference(bundle: bytes, folder: Path, *, sealed: bool) -> str:
    """What of an unpacked bundle is not as it was packed, in a few words; empty if all is. Blocks.

    `sealed`: nothing else may lie there. Raises PreparationProblem.
    """
    expected = {folder}
    try:
        with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:") as archive:
            for member in _checked(archive):
                path = folder / member.name
                above = [each for each in path.parents if each.is_relative_to(folder)]
                expected.update(above, [path])
                if any(each.is_symlink() or not each.is_dir() for each in above) or not _is_packed(
                    archive, member, path
                ):
                    return f"{member.name} has changed"
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise PreparationProblem(f"the script bundle cannot be read: {error}") from error
    more = [path for path in folder.rglob("*") if path not in expected] if sealed else []
    return f"{more[0].relative_to(folder)} was added" if more else ""


def _is_packed(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bool:
    if path.is_symlink() or member.isdir():
        return path.is_dir() and not path.is_symlink()
    content = archive.extractfile(member)
    if content is None or not path.is_file() or path.stat().st_size != member.size:
        return False
    with content, path.open("rb") as file:
        while piece := content.read(PIECE_BYTES):
            if file.read(PIECE_BYTES) != piece:
                return False
    return True


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Owner, mode and times of a bundle mean nothing here. (`extractall` has its filters from Python 3.11.4 on only.)"""
    target = folder / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    if content is None:
        raise PreparationProblem(f"the script bundle holds {member.name[:80]!r}, which is neither file nor folder")
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)


def _checked(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    size_bytes = 0
    for member in archive:
        path = PurePosixPath(member.name)
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise PreparationProblem(f"the script bundle holds {member.name[:80]!r}, which is neither file nor folder")
        if path.is_absolute() or ".." in path.parts:
            raise PreparationProblem(f"the script bundle holds {member.name[:80]!r}, which leads out of its folder")
        members.append(member)
        size_bytes += member.size
        if size_bytes > MAX_BUNDLE_BYTES or len(members) > MAX_BUNDLE_FILES:
            limit = f"{MAX_BUNDLE_BYTES // 2**20} MiB or {MAX_BUNDLE_FILES} files"
            raise PreparationProblem(f"the script bundle holds more than {limit}")
    return members


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
        require_version(framework, version, wanted, f"on {node}")
        return
    package = _DISTRIBUTIONS.get(framework, (framework,))[0]
    raise PreparationProblem(
        f"framework {framework} is not installed on {node}: run `{Path(sys.executable).name} -m pip install {package}` there"
    )


def require_version(framework: str, version: str, wanted: str, where: str) -> None:
    """Raises PreparationProblem unless the version is acceptable."""
    if not _is_in(version, wanted):
        raise PreparationProblem(
            f"{framework} {version} {where} is not {wanted}: install another version or change frameworkVersion"
        )


def _is_in(version: str, wanted: str) -> bool:
    if not wanted:
        return True
    try:
        return SpecifierSet(wanted, prereleases=True).contains(version)
    except (InvalidSpecifier, InvalidVersion) as error:
        raise PreparationProblem(f"{wanted} cannot be compared with version {version}: {error}") from error
