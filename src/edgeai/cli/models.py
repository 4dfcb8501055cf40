"""`model list`, `pull` and `rollback`."""

from __future__ import annotations

from pathlib import Path

from edgeai.cli.naming import label
from edgeai.cli.outcome import say
from edgeai.cli.output import versions_text
from edgeai.client import Cloud
from edgeai.errors import NotFound, Refused
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.model import Model, ModelVersion
from edgeai.resources.versions import Server

KIND = "Model"
SERVER_KINDS = ("IncrementalLearningJob", "JointInferenceService")


async def list_versions(cloud: Cloud, name: str | None) -> None:
    """Raises NotFound for a name that does not exist."""
    found = [await _model(cloud, name)] if name else [m for m in await cloud.list(KIND) if isinstance(m, Model)]
    if any(model.status.versions for model in found):
        print(versions_text(found, await servers_there(cloud)))
    else:
        say(f"model {name} has no version yet" if name else "there is no version of any model yet")


async def servers_there(cloud: Cloud) -> list[Server]:
    """What may serve a model."""
    found = [each for kind in SERVER_KINDS for each in await cloud.list(kind)]
    return [each for each in found if isinstance(each, IncrementalLearningJob | JointInferenceService)]


async def pull(cloud: Cloud, name: str, version: int | None, output: Path | None) -> None:
    """Write a version (default: the newest) to a file, whole or not at all, and print its path.

    Raises:
        NotFound: no such model, version or folder.
    """
    model = await _model(cloud, name)
    wanted = _version(model, version)
    path = (output or Path()).absolute()
    if path.is_dir():
        path /= f"{name}-v{wanted.version}{wanted.file_suffix}"
    if not path.parent.is_dir():
        raise NotFound("folder", str(path.parent), "create it, or give another --output")
    await cloud.blobs.get(wanted.digest, path)
    print(path)


async def rollback(cloud: Cloud, name: str, version: int | None) -> None:
    """Raises NotFound, or Refused when there is nothing to go back to."""
    versions = (await _model(cloud, name)).status.versions
    if version is None and len(versions) < 2:
        raise Refused(f"model {name} has no earlier version to go back to")
    made = await cloud.rollback(name, versions[-2].version if version is None else version)
    print(f"{label(KIND, name)} version {made.version} (digest {made.digest})")


async def _model(cloud: Cloud, name: str) -> Model:
    model = await cloud.get(KIND, name)
    assert isinstance(model, Model)
    return model


def _version(model: Model, number: int | None) -> ModelVersion:
    versions = model.status.versions
    if not versions:
        raise NotFound(KIND, model.name, "no task and no job has made one", what="has no version yet")
    if number is None:
        return versions[-1]
    for version in versions:
        if version.version == number:
            return version
    there = ", ".join(str(version.version) for version in versions)
    raise NotFound("version", f"{number} of model {model.name}", f"there is {there}")
