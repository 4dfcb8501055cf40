"""What an engine is given to build an image: the folder of its Dockerfile, this very edgeai, and what the wheelhouse holds.

    wheelhouse/*.whl           wheels that every image needs
    wheelhouse/<name>/*.whl    wheels of one image
    wheelhouse/<name>/*.deb    Debian packages of one image

How it is built is in `building.py`.
"""

from __future__ import annotations

import importlib.metadata
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from edgeai.errors import LaunchError, NotFound
from edgeai.launcher.images import WorkerImage, own_version
from edgeai.settings import shipped

_OF_USERS = frozenset({"wheelhouse", "debs"})
"""Folders that people make beside what is shipped, as the Dockerfiles say."""


def wheels_for(image: WorkerImage, wheelhouse: Path | None) -> list[Path]:
    """All but edgeai itself, which is always the one that runs. Raises NotFound."""
    if wheelhouse is None:
        return []
    found = {wheel.name: wheel for folder in (wheelhouse / image.folder, wheelhouse) for wheel in folder.glob("*.whl")}
    if not found:
        raise NotFound("wheel", f"in {wheelhouse}", "fill it with `pip wheel --wheel-dir` (docs/containers.md)")
    return sorted(wheel for wheel in found.values() if not wheel.name.startswith("edgeai-"))


def framework_in(image: WorkerImage, wheels: Sequence[Path]) -> tuple[str, str] | None:
    """Package and version of the framework in a wheelhouse."""
    versions: dict[str, str] = {}
    for wheel in wheels:
        try:
            name, version, *_ = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:
            continue
        versions[name] = str(version)
    return next(((name, versions[name]) for name in image.distributions if name in versions), None)


@contextmanager
def packed(image: WorkerImage, wheels: Sequence[Path], wheelhouse: Path | None = None) -> Iterator[Path]:
    """What the engine gets to see of this machine: the image's folder, the wheels, the Debian packages. Raises LaunchError."""
    with tempfile.TemporaryDirectory(prefix="edgeai-build-") as place:
        packages = sorted((wheelhouse / image.folder).glob("*.deb")) if wheelhouse else []
        try:
            path = _pack(Path(place), image, wheels, packages)
        except OSError as error:
            why = f"{image.tag} cannot be packed in {place}: {error.strerror or error}; TMPDIR names another folder"
            raise LaunchError(why) from error
        yield path


def _pack(place: Path, image: WorkerImage, wheels: Sequence[Path], packages: Sequence[Path]) -> Path:
    path, own = place / "context.tar", own_wheel(place)
    with tarfile.open(path, "w") as tar:
        for file in sorted(image.context.iterdir()):
            if file.is_file():
                tar.add(file, file.name)
        for wheel in (*wheels, own):
            tar.add(wheel, f"wheelhouse/{wheel.name}")
        for package in packages:
            tar.add(package, f"debs/{package.name}")
    return path


def own_wheel(folder: Path) -> Path:
    """This package, as it runs here, as a wheel: what speaks to a controller is then of the same version. Blocks."""
    package, version = Path(__file__).resolve().parents[1], own_version()
    info, path = f"edgeai-{version}.dist-info", folder / f"edgeai-{version}-py3-none-any.whl"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in _requirements())
    described = {
        "METADATA": f"Metadata-Version: 2.1\nName: edgeai\nVersion: {version}\n{needs}",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: edgeai\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": "[console_scripts]\nedgeai = edgeai.cli:main\n",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, file in _package_files(package):
            wheel.write(file, f"edgeai/{name}")
        for name, text in described.items():
            wheel.writestr(f"{info}/{name}", text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*wheel.namelist(), f"{info}/RECORD")))
    return path


def _package_files(package: Path) -> Iterator[tuple[str, Path]]:
    """Every file with its name below `edgeai/`, those that a source checkout keeps beside the package included."""
    roots = {"": package}
    if not (package / "_shipped").exists():
        roots |= {f"_shipped/{name}/": shipped(name) for name in ("brokers", "config", "workers")}
    for prefix, root in roots.items():
        for file in sorted(root.rglob("*")):
            within = file.relative_to(root)
            if file.is_file() and file.suffix != ".pyc" and not _OF_USERS.intersection(within.parts):
                yield f"{prefix}{within.as_posix()}", file


def _requirements() -> list[str]:
    try:
        found = importlib.metadata.requires("edgeai") or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads(shipped("pyproject.toml").read_text(encoding="utf-8"))["project"]
        found = project["dependencies"]
    return [requirement for requirement in found if "extra ==" not in requirement]
