"""What all resources are made of: strict, frozen parts with camelCase fields, and the object with metadata around them.

Knows nothing of any kind. Fields are snake_case in Python and camelCase in documents; unknown fields are refused.
Numbers and flags are taken as they are: text is never turned into a number, nor a number into a flag. `refusals` turns
what pydantic says into sentences; the kinds are in `federated`, `dataset`, `model` and `node`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from edgeai.errors import ManifestError
from edgeai.resources.names import Name
from edgeai.resources.refusals import dotted, refusals

API_VERSION: Literal["edgeai.io/v1alpha1"] = "edgeai.io/v1alpha1"
INTEGER_LIMIT = 2**63 - 1  # what msgpack, JSON readers and Kubernetes (int64) all carry

# What `apply` notes of the blobs that it has stored: `<sha256>:<size in bytes>`.
SCRIPT_ANNOTATION = "script.edgeai.io/"  # with the name of the worker
SOURCE_ANNOTATION = "source.edgeai.io/digest"
# How often somebody has asked by hand for a round of an incremental learning job.
TRIGGER_ANNOTATION = "trigger.edgeai.io/count"

Count = Annotated[int, Field(strict=True, ge=0, le=INTEGER_LIMIT)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Metrics = dict[str, Number]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # sha256
DigestOrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Instant = Annotated[
    str,
    Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$", json_schema_extra={"format": "date-time"}),
]


def instant(moment: datetime) -> str:
    """An aware moment as documents carry it: UTC, whole seconds, `2030-01-31T12:00:00Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Part(BaseModel):
    """A piece of a resource. Immutable: change it with `model_copy(update=...)`."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Metadata(Part):
    """Who this is. Users write name, labels and annotations; the rest is set by the system (and ignored by `apply`).

    `resource_version` is never stored: the REST API hands it out, and refuses to overwrite another version than the one it
    is given back.
    """

    name: Name
    uid: str = ""
    generation: Count = 0
    resource_version: str | None = None
    creation_timestamp: Instant | None = None
    deletion_timestamp: Instant | None = None
    annotations: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)


class Resource(Part):
    """Anything that can be applied. Each kind adds `kind`, `spec` and `status`."""

    api_version: Literal["edgeai.io/v1alpha1"] = API_VERSION
    kind: str
    metadata: Metadata

    @property
    def name(self) -> str:
        return self.metadata.name

    def to_document(self) -> dict[str, Any]:
        """Plain JSON types, camelCase; fields that are None are left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """The opposite of `to_document`. Raises ManifestError naming the first field that does not fit."""
        try:
            return cls.model_validate(dict(document), by_alias=True, by_name=False)
        except ValidationError as error:
            path, what = refusals(error)[0]
            raise ManifestError(what, field=dotted(path)) from error
