"""Model: named arrays, and every version of them that was ever made, each known by digest."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from edgeai.resources.base import Count, Digest, Instant, Metrics, Part, Resource
from edgeai.resources.conditions import Conditions
from edgeai.resources.refusals import FieldRefused, quoted


class ModelFormat(StrEnum):
    SAFETENSORS = "safetensors"
    NPZ = "npz"
    KERAS = "keras"


def _checked_url(url: str) -> str:
    if not url.isprintable():
        raise ValueError("a url has no control characters")
    scheme, separator, _ = url.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"{quoted(scheme + '://')} is not supported yet: use a path, or file:// and an absolute path")
    if separator and not url.startswith("file:///"):
        raise ValueError(f"{quoted(url)} must be file:// and an absolute path, without a host")
    return url


class ModelSpec(Part):
    """Where the first version comes from. Without url, the first training worker is asked for its initial weights."""

    url: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_checked_url)] | None = None
    format: ModelFormat | None = None

    @model_validator(mode="after")
    def _a_file_has_a_format(self) -> ModelSpec:
        if self.url is not None and self.format is None:
            raise FieldRefused("a model with a url needs a format: 'safetensors', 'npz' or 'keras'", "url")
        return self


class ModelVersion(Part):
    """Immutable. `task`, `task_uid`, `round` and `updates` say what made it; they are empty for an imported file."""

    version: Annotated[int, Field(strict=True, ge=1)]
    digest: Digest
    size_bytes: Count
    task: str = ""
    task_uid: str = ""
    round: Count = 0
    updates: Count = 0
    created_at: Instant
    metrics: Metrics = Field(default_factory=dict)


class ModelStatus(Part):
    """`versions` from the oldest to the newest."""

    conditions: Conditions = ()
    observed_generation: Count = 0
    versions: tuple[ModelVersion, ...] = ()


class Model(Resource):
    kind: Literal["Model"] = "Model"
    spec: ModelSpec = ModelSpec()
    status: ModelStatus = ModelStatus()
