"""Our images: which there are, and which one fits a worker that names none. How they are built is in `building.py`."""

from __future__ import annotations

import importlib.metadata
import tomllib
from dataclasses import dataclass
from pathlib import Path

from edgeai.errors import Refused
from edgeai.settings import shipped

BASE = "python:3.11-slim-bookworm"
"""What our Dockerfiles start from."""
FRAMEWORK, FRAMEWORK_VERSION = "edgeai.framework", "edgeai.framework-version"  # labels of an image


@dataclass(frozen=True, slots=True)
class WorkerImage:
    """`folder` is what people call it, below `workers/` unless `place` says where its Dockerfile is.

    `distributions` are the packages that carry the framework; the first one in the wheelhouse gives the version.
    """

    folder: str
    name: str
    frameworks: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    place: str = ""

    @property
    def tag(self) -> str:
        return f"{self.name}:{own_version().replace('+', '-')}"  # a tag knows no +

    @property
    def context(self) -> Path:
        """The folder of its Dockerfile."""
        return shipped(self.place or f"workers/{self.folder}")


AGGREGATION = WorkerImage("aggregation", "edgeai/worker-aggregation")
EVALUATION = WorkerImage("evaluation", "edgeai/worker-evaluation")
NUMPY = WorkerImage("federated-numpy", "edgeai/worker-numpy", ("", "numpy", "scikit-learn", "sklearn"), ("numpy",))
TENSORFLOW = WorkerImage(
    "federated-tensorflow", "edgeai/worker-tensorflow", ("tensorflow", "keras"), ("tensorflow-cpu", "tensorflow")
)
IMAGES = (AGGREGATION, NUMPY, EVALUATION, TENSORFLOW)
"""Those of workers."""
DAEMON = WorkerImage("daemon", "edgeai/daemon", place="brokers")
"""Coordinator, controllers, bridge and their brokers: what `brokers/compose.yaml` runs."""


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
