"""Our worker images: which one fits a worker that names none, and how they are built.

Each has a folder in `workers/` whose Dockerfile builds on a normal machine with `docker build`. Here the same is done through
the engine's API, with progress, with the edgeai that runs, and with a wheelhouse where the build step has no network:

    wheelhouse/*.whl             wheels that every image needs
    wheelhouse/<folder>/*.whl    wheels of one image

Must not know how an engine is reached (`docker.py`).
"""

from __future__ import annotations

import importlib.metadata
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from edgeai.errors import LaunchError, NotFound, Refused
from edgeai.launcher import docker
from edgeai.launcher.docker import ImageProgress
from edgeai.settings import shipped

_NOISE = "Removing intermediate container"  # the engine's last words, whatever went wrong
FRAMEWORK, FRAMEWORK_VERSION = "edgeai.framework", "edgeai.framework-version"  # labels of an image


@dataclass(frozen=True, slots=True)
class WorkerImage:
    """`distributions` are the packages that carry the framework; the first one in the wheelhouse gives the version."""

    folder: str
    name: str
    frameworks: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        return f"{self.name}:{own_version()}"


AGGREGATION = WorkerImage("aggregation", "edgeai/worker-aggregation")
EVALUATION = WorkerImage("evaluation", "edgeai/worker-evaluation")
NUMPY = WorkerImage("federated-numpy", "edgeai/worker-numpy", ("", "numpy", "scikit-learn", "sklearn"), ("numpy",))
TENSORFLOW = WorkerImage(
    "federated-tensorflow", "edgeai/worker-tensorflow", ("tensorflow", "keras"), ("tensorflow-cpu", "tensorflow")
)
IMAGES = (AGGREGATION, NUMPY, EVALUATION, TENSORFLOW)


def image_for(framework: str) -> WorkerImage:
    """The image for a training worker that names none. Raises Refused."""
    for image in IMAGES:
        if framework in image.frameworks:
            return image
    known = ", ".join(name for image in IMAGES for name in image.frameworks if name)
    raise Refused(f"there is no image for frameworkType {framework}: name an image in the manifest, or use {known}")


def own_version() -> str:
    """The version of this package, of a source checkout too."""
    try:
        return importlib.metadata.version("edgeai")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads(shipped("pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])


async def build(
    images: Sequence[WorkerImage] = IMAGES,
    *,
    url: str = "",
    wheelhouse: Path | None = None,
    base: str = "",
    progress: Callable[[ImageProgress], None] = lambda _: None,
) -> list[str]:
    """Build images, one after the other, and return their tags. `base` stands in for the stock Python image.

    Raises:
        LaunchError: an image cannot be built; says at which step.
    """
    tags = []
    for image in images:
        folder, wheels = shipped(f"workers/{image.folder}"), _wheels(image, wheelhouse)
        arguments = {"BASE": base} if base else {}
        arguments |= {"OFFLINE": "1"} if wheelhouse else {}
        if found := _framework(image, wheels):
            arguments |= {"FRAMEWORK_VERSION": found[1]}
            arguments |= {"TENSORFLOW": found[0]} if image is TENSORFLOW else {}
        with _context(folder, wheels) as context:
            await _build(image.tag, url, context, arguments, progress)
        tags.append(image.tag)
    return tags


async def _build(
    tag: str, url: str, context: Path, arguments: dict[str, str], progress: Callable[[ImageProgress], None]
) -> None:
    said, step, steps = "", 0, 0
    try:
        async with aclosing(docker.build(docker.engine_url(url), tag, context, arguments)) as lines:
            async for line in lines:
                step, steps = _step(line) or (step, steps)
                progress(ImageProgress(tag, line, step, steps))
                said = said if line.startswith(_NOISE) else line
    except LaunchError as error:
        raise LaunchError(
            f"image {tag} cannot be built: {error}" + (f" (after: {said[-300:]})" if said else "")
        ) from error


def _step(line: str) -> tuple[int, int] | None:
    """From `Step 3/14 : RUN ...`."""
    number, slash, total = line.removeprefix("Step ").partition(" ")[0].partition("/")
    return (int(number), int(total)) if slash and number.isdigit() and total.isdigit() else None


def _wheels(image: WorkerImage, wheelhouse: Path | None) -> list[Path]:
    if wheelhouse is None:
        return []
    found = {wheel.name: wheel for folder in (wheelhouse / image.folder, wheelhouse) for wheel in folder.glob("*.whl")}
    if not found:
        raise NotFound("wheel", f"in {wheelhouse}", "fill it with `pip wheel --wheel-dir`")
    return sorted(found.values())


def _framework(image: WorkerImage, wheels: Sequence[Path]) -> tuple[str, str] | None:
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
def _context(folder: Path, wheels: Sequence[Path]) -> Iterator[Path]:
    """What the engine gets to see of this machine: the folder, and the wheels."""
    with tempfile.TemporaryDirectory(prefix="edgeai-build-") as place:
        path = Path(place) / "context.tar"
        with tarfile.open(path, "w") as tar:
            for file in sorted(folder.iterdir()):
                if file.is_file():
                    tar.add(file, file.name)
            for wheel in wheels:
                tar.add(wheel, f"wheelhouse/{wheel.name}")
            if not any(wheel.name.startswith("edgeai-") for wheel in wheels):
                own = own_wheel(Path(place))
                tar.add(own, f"wheelhouse/{own.name}")
        yield path


def own_wheel(folder: Path) -> Path:
    """This package, as it runs here, as a wheel: what speaks to a controller is then of the same version. Blocks."""
    package, version = Path(__file__).resolve().parents[1], own_version()
    info, path = f"edgeai-{version}.dist-info", folder / f"edgeai-{version}-py3-none-any.whl"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in _requirements())
    described = {
        "METADATA": f"Metadata-Version: 2.1\nName: edgeai\nVersion: {version}\n{needs}",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: edgeai\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files = [file for file in sorted(package.rglob("*")) if file.is_file() and file.suffix != ".pyc"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in files:
            wheel.write(file, f"edgeai/{file.relative_to(package).as_posix()}")
        for name, text in described.items():
            wheel.writestr(f"{info}/{name}", text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*wheel.namelist(), f"{info}/RECORD")))
    return path


def _requirements() -> list[str]:
    try:
        found = importlib.metadata.requires("edgeai") or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads(shipped("pyproject.toml").read_text(encoding="utf-8"))["project"]
        found = project["dependencies"]
    return [requirement for requirement in found if "extra ==" not in requirement]
