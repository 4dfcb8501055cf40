"""What becomes of the versions of a model: which one serves in which job. Derived from models and jobs, and stored nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.model import Model


class VersionState(StrEnum):
    STAGED = "staged"
    """the newest version, which a job is to serve and does not serve yet"""
    SERVING = "serving"
    RETIRED = "retired"


def version_states(
    model: Model, jobs: Iterable[IncrementalLearningJob]
) -> dict[int, tuple[VersionState, tuple[str, ...]]]:
    """By number: the state, and the names of the jobs that it is of. Empty for a model that no job is known to use.

    What a job that is not heard of serves is unknown, so it has no say. Of versions with the same content the newest counts.
    """
    versions = model.status.versions
    numbers = {version.digest: version.version for version in versions}
    serving: dict[int, list[str]] = {}
    staged: dict[int, list[str]] = {}
    used = False
    for job in sorted(jobs, key=lambda each: each.metadata.name):
        name, output = job.metadata.name, job.spec.output_model.name
        if model.name not in {output, job.spec.initial_model.name} or not versions:
            continue
        found = job.status.serving
        if found is None:
            continue
        used = True
        if found.digest in numbers:
            serving.setdefault(numbers[found.digest], []).append(name)
        if model.name == output and versions[-1].digest != found.digest:
            staged.setdefault(versions[-1].version, []).append(name)
    if not used:
        return {}
    states = {version.version: (VersionState.RETIRED, ()) for version in versions}
    named = [(VersionState.STAGED, staged), (VersionState.SERVING, serving)]
    return states | {number: (state, tuple(names)) for state, by in named for number, names in by.items()}
