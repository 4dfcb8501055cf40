"""Dataset: examples on one node. Only that node's controller and workers read them; here it is a path and a format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from edgeai.resources.base import Count, Digest, Part, Resource
from edgeai.resources.conditions import Conditions
from edgeai.resources.names import Name
from edgeai.resources.refusals import quoted

_FORMATS_TO_COME = ("jsonl", "txt list", "image folder", "parquet")


class DatasetFormat(StrEnum):
    CSV = "csv"
    NPZ = "npz"


def local_path(url: str) -> str:
    """The path that a url (absolute path or `file://`) names. Raises ValueError saying what is wrong with another."""
    if not url.isprintable():
        raise ValueError("a url has no control characters")
    scheme, separator, _ = url.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"{quoted(scheme + '://')} is not supported yet: use an absolute path on the node or file://")
    path = _path_of_file_url(url) if separator else url
    if not PurePosixPath(path).is_absolute():
        raise ValueError(f"{quoted(url)} is a relative path: use an absolute path on the node")
    if ".." in PurePosixPath(path).parts:
        raise ValueError("a path must not contain ..")
    return path


def _path_of_file_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError(f"{quoted(url)} is not a url") from error
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise ValueError(f"{quoted(url)} must be file:// and an absolute path on the node, without a host")
    path = unquote(parts.path)
    if not path.isprintable():
        raise ValueError("a url has no control characters")
    return path


def _checked_url(url: str) -> str:
    local_path(url)
    return url


def _not_yet(value: Any) -> Any:
    if value in _FORMATS_TO_COME:
        raise ValueError(f"'{value}' is not supported yet; there is 'csv' or 'npz'")
    return value


class DatasetSpec(Part):
    """With a `digest` (sha256), only a file that has it is given to workers."""

    node_name: Name
    url: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_checked_url)]
    format: Annotated[DatasetFormat, BeforeValidator(_not_yet)]
    digest: Digest | None = None

    @property
    def path(self) -> str:
        """The absolute path on the node."""
        return local_path(self.url)


class Column(Part):
    """One array of an npz file or column of a csv file; `shape` without the number of examples."""

    name: str
    dtype: str
    shape: tuple[Count, ...] = ()


class DatasetStatus(Part):
    conditions: Conditions = ()
    observed_generation: Count = 0
    sample_count: Count | None = None
    size_bytes: Count | None = None
    digest: Digest | None = None
    columns: tuple[Column, ...] = Field(default=(), alias="schema")


class Dataset(Resource):
    kind: Literal["Dataset"] = "Dataset"
    spec: DatasetSpec
    status: DatasetStatus = DatasetStatus()
