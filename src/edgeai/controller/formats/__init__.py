"""Formats of datasets: what is in a file, its rows, and files of chosen rows."""

from edgeai.controller.formats.base import (
    MAX_LINE,
    START,
    DatasetBusy,
    DatasetProblem,
    Field,
    Format,
    Found,
    Layout,
    Misfit,
    Position,
    Record,
    Row,
    Written,
)
from edgeai.controller.formats.registry import FORMATS, format_named

__all__ = [
    "FORMATS",
    "MAX_LINE",
    "START",
    "DatasetBusy",
    "DatasetProblem",
    "Field",
    "Format",
    "Found",
    "Layout",
    "Misfit",
    "Position",
    "Record",
    "Row",
    "Written",
    "format_named",
]
