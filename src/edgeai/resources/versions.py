"""What becomes of the versions of a model: which one serves in which job or service. Derived from them, and stored nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.model import Model

Server = IncrementalLearningJob | JointInferenceService


class VersionState(StrEnum):
    STAGED = "staged"
    """the newest version, which a job is to serve and does not serve yet"""
    SERVING = "serving"
    RETIRED = "retired"


def version_states(model: Model, servers: Iterable[Server]) -> dict[int, tuple[VersionState, tuple[str, ...]]]:
    """By number: the state, and the names of the jobs and services that it is of. Empty for a model that none is known to use.

    What a job that is not heard of serves is unknown, so it has no say. Of versions with the same content the newest counts.
    """
    versions = model.status.versions
    numbers = {version.digest: version.version for version in versions}
    serving: dict[int, set[str]] = {}
    staged: dict[int, set[str]] = {}
    used = False
    for server in servers if versions else ():
        for digest in _served(server, model.name):
            used = True
            if digest in numbers:
                serving.setdefault(numbers[digest], set()).add(server.name)
            if (
                isinstance(server, IncrementalLearningJob)
                and server.spec.output_model.name == model.name
                and versions[-1].digest != digest
            ):
                staged.setdefault(versions[-1].version, set()).add(server.name)
    if not used:
        return {}
    states = {version.version: (VersionState.RETIRED, ()) for version in versions}
    named = [(VersionState.STAGED, staged), (VersionState.SERVING, serving)]
    return states | {number: (state, tuple(sorted(names))) for state, by in named for number, names in by.items()}


def _served(server: Server, model: str) -> Iterator[str]:
    """Digests of what it serves, as far as that is of this model."""
    if isinstance(server, IncrementalLearningJob):
        if server.status.serving and model in {server.spec.output_model.name, server.spec.initial_model.name}:
            yield server.status.serving.digest
        return
    status = server.status
    for found in (status.cloud_serving, *(edge.serving for edge in status.edges)):
        if found is not None and found.name == model:
            yield found.digest
