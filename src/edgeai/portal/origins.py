"""Where versions come from and what became of datasets, as the portal shows it: pages and API alike.

Reads the entries that hang on a dataset or a model, and nothing else; the rules are in `resources.lineage`,
`resources.snapshots` and `resources.versions`. Entries that another version of the system wrote and that cannot be read are
passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from edgeai.errors import ManifestError
from edgeai.portal.live import Entry, Live
from edgeai.resources.base import Resource
from edgeai.resources.federated import FederatedTask
from edgeai.resources.incremental import IncrementalLearningJob
from edgeai.resources.joint import JointInferenceService
from edgeai.resources.kinds import from_document
from edgeai.resources.model import Model
from edgeai.resources.snapshots import MAX_SNAPSHOTS, uses_of
from edgeai.resources.versions import version_states

Document = dict[str, Any]
COMPARED = 6
"""Versions side by side."""
_SERVERS = ("IncrementalLearningJob", "JointInferenceService")


async def snapshots(live: Live, dataset: str) -> Document:
    """items (the newest of `uses_of`), total."""
    return await asyncio.to_thread(_snapshots, live.from_dataset(dataset), dataset)


def _snapshots(entries: Sequence[Entry], dataset: str) -> Document:
    found = _read_documents(_narrowed(entry.kind, entry.document(), dataset) for entry in entries)
    models = [each for each in found if isinstance(each, Model)]
    trainers = [each for each in found if isinstance(each, FederatedTask | IncrementalLearningJob)]
    uses = uses_of(dataset, models, trainers)
    items = [use.model_dump(mode="json", by_alias=True) for use in uses[:MAX_SNAPSHOTS]]
    return {"items": items, "total": len(uses)}


def _narrowed(kind: str, document: Document, dataset: str) -> Document:
    """Without what says nothing of this dataset: models and tasks may be large."""
    status = document.get("status") or {}
    if kind == "Model":
        versions = (_from(version, dataset) for version in status.get("versions") or ())
        status = {**status, "versions": [version for version in versions if version is not None]}
    elif kind == "FederatedTask":
        sources = [each for each in status.get("sources") or () if each.get("dataset") == dataset]
        status = {**status, "sources": sources, "rounds": [], "workers": []}
    return {**document, "status": status}


def _from(version: Document, dataset: str) -> Document | None:
    lineage = version.get("lineage") or {}
    sources = [each for each in lineage.get("sources") or () if each.get("dataset") == dataset]
    return {**version, "lineage": {**lineage, "sources": sources}} if sources else None


def states(live: Live, model: str, document: Document) -> list[Document]:
    """version, state, by (kind and name of jobs and services): empty for a model that none is known to use."""
    servers = [
        each
        for kind in _SERVERS
        for each in _read(entry for entry in live.entries[kind].values() if model in entry.models)
        if isinstance(each, IncrementalLearningJob | JointInferenceService)
    ]
    found = next((each for each in _read_documents([document]) if isinstance(each, Model)), None)
    if found is None:
        return []
    kinds = {server.name: server.kind for server in servers}
    return [
        {"version": number, "state": state.value, "by": [{"kind": kinds[name], "name": name} for name in names]}
        for number, (state, names) in sorted(version_states(found, servers).items())
    ]


def _read(entries: Iterable[Entry]) -> Iterator[Resource]:
    yield from _read_documents(entry.document() for entry in entries)


def _read_documents(documents: Iterable[Document]) -> list[Resource]:
    found = []
    for document in documents:
        try:
            found.append(from_document(document))
        except ManifestError:
            continue
    return found


def compared(versions: Sequence[Document], chosen: Sequence[int]) -> Document | None:
    """versions (the chosen ones, the oldest first), rows (metric, values, differences to the first); None: fewer than two."""
    shown = sorted((each for each in versions if each["version"] in chosen), key=lambda each: each["version"])[
        :COMPARED
    ]
    if len(shown) < 2:
        return None
    names = sorted({name for each in shown for name in each["metrics"]})
    return {"versions": shown, "rows": [_row(name, [each["metrics"].get(name) for each in shown]) for name in names]}


def _row(name: str, values: list[float | None]) -> Document:
    first = values[0]
    differences = [None if first is None or value is None else value - first for value in values]
    return {"name": name, "values": values, "differences": differences}


def counts_plot(history: Sequence[Document]) -> Document:
    """What the page draws: time in seconds since 1970, and the number of examples from then on."""
    times = [datetime.fromisoformat(entry["at"]).timestamp() for entry in history]
    return {"time": times, "samples": [entry["samples"] for entry in history]}
