"""What a user types to name a resource (`task NAME`, `task/NAME`), and how resources are named back."""

from __future__ import annotations

import typer

from edgeai.client import TASK_KINDS, kind_named
from edgeai.errors import noun
from edgeai.resources.base import Resource
from edgeai.resources.names import checked_name

TASK, JOB, SERVICE = "FederatedTask", "IncrementalLearningJob", "JointInferenceService"


def resource_named(what: str, name: str | None = None) -> tuple[str, str | None]:
    """Kind and name; None: all of the kind.

    Raises:
        NotFound: no such kind. typer.BadParameter: named twice, or not a name.
    """
    kind, slash, inner = what.partition("/")
    if slash and name is not None:
        raise typer.BadParameter(f"{what} has a name already: leave {name} out")
    return kind_named(kind), _checked(inner if slash else name)


def one_resource(what: str, name: str | None = None) -> tuple[str, str]:
    """As resource_named, with a name."""
    kind, found = resource_named(what, name)
    if found is None:
        raise typer.BadParameter(f"which {kind}? Give its name as well")
    return kind, found


def task_named(text: str) -> tuple[str | None, str]:
    """Of `task/NAME`, `job/NAME` or `service/NAME` kind and name; of `NAME` only that: one of any kind may be meant."""
    if "/" not in text:
        return None, one_resource(TASK, text)[1]
    kind, name = one_resource(text)
    if kind not in TASK_KINDS:
        raise typer.BadParameter(f"{text} is no task, job or service")
    return kind, name


def job_named(text: str) -> str:
    """`NAME` or `job/NAME`."""
    kind, name = task_named(text)
    if kind not in {None, JOB}:
        raise typer.BadParameter(f"{text} is no job")
    return name


def counted(count: int, noun: str) -> str:
    """`1 edge`, `2 edges`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def called(kind: str, name: str) -> str:
    """How a sentence names a resource; `label` is for lists and programs."""
    return f"{noun(kind)} {name}"


def label(kind: str, name: str) -> str:
    return f"{kind.lower()}/{name}"


def label_of(resource: Resource) -> str:
    return label(resource.kind, resource.name)


def _checked(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return checked_name(name)
    except ValueError as error:
        raise typer.BadParameter(f"{name!r}: {error}") from error
