"""`edgeai describe` of models and datasets: where versions come from, what a dataset has held, what was made from it.

Pure: values in, lines out. The rules are in `resources.lineage`, `resources.counts` and `resources.snapshots`.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeai.cli.output import aligned, size
from edgeai.resources.counts import DatasetCount
from edgeai.resources.lineage import Source
from edgeai.resources.model import Model, ModelVersion
from edgeai.resources.snapshots import DatasetUse

NOT_RECORDED = "not recorded"
LAST_COUNTS, LAST_USES, LAST_VERSIONS, FEW_SOURCES = 20, 20, 10, 10


def lineage_lines(model: Model) -> list[str]:
    """Of the newest versions, the newest last: what made each, and under it the workers that counted."""
    return [line for version in model.status.versions[-LAST_VERSIONS:] for line in _version(version)]


def _version(version: ModelVersion) -> list[str]:
    lineage = version.lineage
    copied = f"copy of version {lineage.copy_of}, " if lineage and lineage.copy_of else ""
    if not version.task:
        file = lineage.file if lineage and lineage.file else f"file {NOT_RECORDED}"
        return [f"version {version.version}: {copied}imported, {file}"]
    head = f"version {version.version}: {copied}{lineage.kind.lower() if lineage else 'task'} {version.task}"
    if lineage is None or not lineage.kind:
        return [f"{head}, round {version.round}, workers and datasets {NOT_RECORDED}"]
    head += f", generation {lineage.generation}, round {version.round}, uid {version.task_uid}"
    if lineage.base_model:
        head += f", from {lineage.base_model} version {lineage.base_version}"
    if version.snapshot:
        counts = f"{version.samples} to train on, {lineage.held_out or NOT_RECORDED} to evaluate on"
        snapshot = (
            f"  snapshot {version.snapshot} of {lineage.sources[0].dataset} on {lineage.sources[0].node}: {counts}"
        )
        return [head, snapshot] if lineage.sources else [head]
    left = lineage.counted - min(lineage.counted, FEW_SOURCES, len(lineage.sources))
    rows = [f"  {line}" for line in aligned([_source(each) for each in lineage.sources[:FEW_SOURCES]])]
    return [head, *rows, *([f"  and {left} more workers"] if left else [])]


def _source(source: Source) -> list[str]:
    samples = f"{source.samples} examples" if source.digest else "-"
    counted = f"counted in {source.rounds} rounds"
    return [source.worker, source.node, source.dataset, source.digest or NOT_RECORDED, samples, counted]


def counts_lines(history: Sequence[DatasetCount]) -> list[str]:
    rows = [["SINCE", "SAMPLES", "SIZE", "DIGEST"]]
    for entry in history[-LAST_COUNTS:]:
        bytes_there = size(entry.size_bytes) if entry.size_bytes else "-"
        rows.append([entry.at, str(entry.samples), bytes_there, entry.digest or "-"])
    return aligned(rows)


def uses_lines(uses: Sequence[DatasetUse]) -> list[str]:
    """The newest first."""
    rows = [["DIGEST", "WHEN", "TRAIN", "EVAL", "USED BY", "MADE"]]
    for use in uses[:LAST_USES]:
        how = f"round {use.round}" if use.frozen else f"{use.worker}, {use.rounds} rounds"
        made = f"{use.model} version {use.version}" if use.version else "-"
        counts = [str(use.samples or "-"), str(use.held_out or "-")]
        rows.append([use.digest[:12] or NOT_RECORDED, use.at or "in use now", *counts, f"{use.task}, {how}", made])
    return aligned(rows)
