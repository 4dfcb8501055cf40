"""Model: a file of a known format, and the versions of it that were made, each known by digest.

Arrays (safetensors, npz) travel as safetensors; every other format is stored as the file it is, and only a user's script
opens it. Pickle is no format.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from edgeai.resources.base import Count, Digest, DigestOrNone, Instant, Metrics, Part, Resource
from edgeai.resources.conditions import Conditions
from edgeai.resources.lineage import Lineage, copied
from edgeai.resources.refusals import FieldRefused, quoted


class ModelFormat(StrEnum):
    SAFETENSORS = "safetensors"
    NPZ = "npz"
    KERAS = "keras"
    ONNX = "onnx"
    FILE = "file"
    """whatever the user's script loads"""

    @property
    def stored(self) -> ModelFormat:
        """The format of a version that was made from a file of this one."""
        return ModelFormat.SAFETENSORS if self is ModelFormat.NPZ else self


_SUFFIX = re.compile(r"\.[A-Za-z0-9_]{1,20}")
_PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"})


def _checked_url(url: str) -> str:
    if not url.isprintable():
        raise ValueError("a url has no control characters")
    scheme, separator, _ = url.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"{quoted(scheme + '://')} is not supported yet: use a path, or file:// and an absolute path")
    if separator and not url.startswith("file:///"):
        raise ValueError(f"{quoted(url)} must be file:// and an absolute path, without a host")
    return url


def file_suffix(name: str) -> str:
    """The end of the name of a file, if it is a usual one: `.keras`; else nothing."""
    suffix = PurePosixPath(name).suffix
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def is_pickle(name: str) -> bool:
    """Whether a file says by the end of its name that it is one."""
    return file_suffix(name).lower() in _PICKLES


class Keep(Part):
    """How many versions stay, besides those that something runs on: the newest ones."""

    max_versions: Annotated[int, Field(strict=True, ge=1, le=1000)] = 100


class ModelSpec(Part):
    """Where the first version comes from. Without url, the first training worker is asked for its initial weights."""

    url: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_checked_url)] | None = None
    format: ModelFormat | None = None
    keep: Keep = Keep()

    @model_validator(mode="after")
    def _a_file_has_a_format(self) -> ModelSpec:
        if self.url is not None and self.format is None:
            raise FieldRefused(
                "a model with a url needs a format: 'safetensors', 'npz', 'keras', 'onnx' or 'file'", "url"
            )
        if self.url is not None and is_pickle(self.url):
            raise FieldRefused("a pickle runs code when it is loaded: save the model in another format", "url")
        return self

    @property
    def suffix(self) -> str:
        """The end of the name of the file, as versions keep it."""
        return file_suffix(self.url or "")


class ModelVersion(Part):
    """Immutable. `task`, `task_uid`, `round` and `updates` say what made it; they are empty for an imported file.

    Of a version that an incremental learning job made: `snapshot` is the digest of the examples it was trained on, `samples`
    their number, `edge` the node. `suffix` is the end of the name that scripts may know the file by. `lineage` is what the
    coordinator wrote down of its making; a version that is older than that has none.
    """

    version: Annotated[int, Field(strict=True, ge=1)]
    digest: Digest
    size_bytes: Count
    format: ModelFormat = ModelFormat.SAFETENSORS
    suffix: Annotated[str, Field(pattern=r"^(\.[A-Za-z0-9_]{1,20})?$")] = ""
    task: str = ""
    task_uid: str = ""
    round: Count = 0
    updates: Count = 0
    snapshot: DigestOrNone = ""
    samples: Count = 0
    edge: str = ""
    created_at: Instant
    metrics: Metrics = Field(default_factory=dict)
    lineage: Lineage | None = None

    @property
    def file_suffix(self) -> str:
        """What its file is called by: `.keras`."""
        return self.suffix or ("" if self.format is ModelFormat.FILE else f".{self.format.value}")

    def again(self, version: int, now: str) -> ModelVersion:
        """A copy of it under a new number: somebody went back to it."""
        update = {"version": version, "created_at": now, "lineage": copied(self.lineage, self.version)}
        return self.model_copy(update=update)


class ModelStatus(Part):
    """`versions` from the oldest to the newest."""

    conditions: Conditions = ()
    observed_generation: Count = 0
    versions: tuple[ModelVersion, ...] = ()


class Model(Resource):
    kind: Literal["Model"] = "Model"
    spec: ModelSpec = ModelSpec()
    status: ModelStatus = ModelStatus()
