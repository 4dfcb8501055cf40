"""What a stored document refers to, read from it once when it arrives: datasets that it was made from or uses, and models.

Tolerant: a document that another version of the system wrote refers to what can be found in it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from edgeai.events.address import CLOUD

Document = dict[str, Any]
VERSION_COUNT = "versionCount"
"""How many versions there are, where a brief document has only the newest."""


def datasets_of(kind: str, spec: Document, status: Document) -> tuple[str, ...]:
    """Names, each once: of a model, those that its versions were made from."""
    return _each_once(_datasets(kind, spec, status))


def _datasets(kind: str, spec: Document, status: Document) -> Iterator[Any]:
    if kind == "Model":
        for version in status.get("versions") or ():
            yield from (source.get("dataset") for source in (version.get("lineage") or {}).get("sources") or ())
    elif kind == "FederatedTask":
        yield from (source.get("dataset") for source in status.get("sources") or ())
    elif kind == "IncrementalLearningJob":
        yield (spec.get("dataset") or {}).get("name")


def models_of(spec: Document) -> tuple[str, ...]:
    """Names, each once: of what may serve a version of them."""
    parts = [spec.get("initialModel"), spec.get("outputModel"), (spec.get("cloudWorker") or {}).get("model")]
    parts += [worker.get("model") for worker in spec.get("edgeWorkers") or ()]
    return _each_once((part or {}).get("name") for part in parts)


def models_on(node: str, spec: Document) -> tuple[str, ...]:
    """Names, each once: of a task that hangs on a node, what is trained or served there."""
    parts = [spec.get("initialModel"), spec.get("outputModel"), (spec.get("aggregationWorker") or {}).get("model")]
    parts += [worker.get("model") for worker in spec.get("edgeWorkers") or () if worker.get("nodeName") == node]
    if node == CLOUD:
        parts.append((spec.get("cloudWorker") or {}).get("model"))
    return _each_once((part or {}).get("name") for part in parts)


def brief_of(kind: str, document: Document) -> Document | None:
    """What a line of a list needs of a document that has a long past; None: all of it."""
    status = document.get("status") or {}
    if kind == "Model" and len(versions := status.get("versions") or ()) > 1:
        return {**document, "status": {**status, "versions": versions[-1:], VERSION_COUNT: len(versions)}}
    if kind == "Dataset" and status.get("history"):
        return {**document, "status": {name: value for name, value in status.items() if name != "history"}}
    return None


def _each_once(names: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if isinstance(name, str) and name}))
