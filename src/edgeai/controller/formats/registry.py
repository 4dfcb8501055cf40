"""The formats by the name that a Dataset resource calls them."""

from __future__ import annotations

from edgeai.controller.formats.base import DatasetProblem, Format
from edgeai.controller.formats.files import ImageFolder, TxtList
from edgeai.controller.formats.npz import Npz
from edgeai.controller.formats.parquet import Parquet
from edgeai.controller.formats.text import Csv, Jsonl

FORMATS: dict[str, Format] = {each.name: each for each in (Npz(), Csv(), Jsonl(), TxtList(), ImageFolder(), Parquet())}


def format_named(name: str) -> Format:
    """Raises DatasetProblem."""
    if name not in FORMATS:
        raise DatasetProblem(f"format {name} is not supported; use {', '.join(FORMATS)}")
    return FORMATS[name]
