"""Edge AI without a cluster. Public names are handed out lazily: importing one module loads no other."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeai import errors
    from edgeai.asking import connect_edge
    from edgeai.client import connect
    from edgeai.learning.metrics import label_metrics
    from edgeai.worker import keras
    from edgeai.worker.sync import join_sync
    from edgeai.worker.task import join

__all__ = ["connect", "connect_edge", "errors", "join", "join_sync", "keras", "label_metrics"]

_MODULES = {"errors": "edgeai.errors", "keras": "edgeai.worker.keras"}
_HOMES = {
    "connect": "edgeai.client",
    "connect_edge": "edgeai.asking",
    "join": "edgeai.worker.task",
    "join_sync": "edgeai.worker.sync",
    "label_metrics": "edgeai.learning.metrics",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgeai' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
