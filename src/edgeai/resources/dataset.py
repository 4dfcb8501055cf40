"""Dataset: examples on one node, or in a store that the node fetches them from.

Only that node's controller and workers read them; here it is a place, a format, and the name of the label.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, model_validator

from edgeai.resources.base import Count, Digest, Part, Resource
from edgeai.resources.conditions import Conditions
from edgeai.resources.counts import DatasetCount
from edgeai.resources.names import Name
from edgeai.resources.needs import SecretFile
from edgeai.resources.refusals import FieldRefused, quoted

REMOTE_SCHEMES = ("s3", "http", "https", "gs", "az", "abfs", "abfss", "hdfs")
"""Stores that a node fetches a dataset from."""
_REMOTE = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._@:]*(/[^/]+)+")


class DatasetFormat(StrEnum):
    """`txt list`: lines `path label`, paths relative to the list; `image folder`: one folder per label."""

    CSV = "csv"
    NPZ = "npz"
    JSONL = "jsonl"
    TXT_LIST = "txt list"
    IMAGE_FOLDER = "image folder"
    PARQUET = "parquet"


_SINGLE_FILES = frozenset({DatasetFormat.CSV, DatasetFormat.NPZ, DatasetFormat.JSONL, DatasetFormat.PARQUET})
"""What can be fetched: the others refer to files beside them."""


def local_path(url: str) -> str:
    """The path that a url (absolute path or `file://`) names. Raises ValueError saying what is wrong with another."""
    if not url.isprintable():
        raise ValueError("a url has no control characters")
    scheme, separator, _ = url.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"{quoted(scheme + '://')} is not supported: use an absolute path on the node or file://")
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


def checked_url(url: str) -> str:
    local_path(url)
    return url


def is_remote(url: str) -> bool:
    return url.partition("://")[0] in REMOTE_SCHEMES and "://" in url


def _checked_place(url: str) -> str:
    """A place on the node, or in a store that the node fetches from."""
    if not is_remote(url):
        return checked_url(url)
    if not url.isprintable():
        raise ValueError("a url has no control characters")
    scheme, _, rest = url.partition("://")
    where, odd = ("a host", r"[?#]|::") if scheme.startswith("http") else ("a bucket", "::")
    if re.search(odd, url) or not _REMOTE.fullmatch(rest) or ".." in rest.split("/"):
        raise ValueError(f"{quoted(url)} must be {scheme}:// and {where} and the path of a file in it")
    if re.match(r"[^/]*:[^/]*@", rest):
        raise ValueError("a url has no password: name a file of the node's secrets folder as `secret`")
    return url


class DatasetSpec(Part):
    """With a `digest` (sha256), only a file that has it is given to workers. `label_field` is the field of a row that is its
    label; without: `y`, `label`, or the last one. `secret` is a file of the node's secrets folder, for a store that asks."""

    node_name: Name
    url: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_checked_place)]
    format: DatasetFormat
    label_field: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    digest: Digest | None = None
    secret: SecretFile | None = None

    @model_validator(mode="after")
    def _can_be_fetched(self) -> DatasetSpec:
        if is_remote(self.url) and self.format not in _SINGLE_FILES:
            raise FieldRefused(f"a dataset of format {self.format.value} has to lie on the node, not in a store", "url")
        if self.secret is not None and not is_remote(self.url):
            raise FieldRefused("a secret is for a dataset in a store: remove it, or give a url of a store", "secret")
        return self

    @property
    def path(self) -> str:
        """The absolute path on the node. Raises ValueError if it lies in a store."""
        return local_path(self.url)


class Column(Part):
    """One array of an npz file or column of a csv file; `shape` without the number of examples."""

    name: str
    dtype: str
    shape: tuple[Count, ...] = ()


class DatasetStatus(Part):
    """`history`: what it has held over time, the newest last; `counts` says which entries stay."""

    conditions: Conditions = ()
    observed_generation: Count = 0
    sample_count: Count | None = None
    size_bytes: Count | None = None
    digest: Digest | None = None
    columns: tuple[Column, ...] = Field(default=(), alias="schema")
    history: tuple[DatasetCount, ...] = ()


class Dataset(Resource):
    kind: Literal["Dataset"] = "Dataset"
    spec: DatasetSpec
    status: DatasetStatus = DatasetStatus()
