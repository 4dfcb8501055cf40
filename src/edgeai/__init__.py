"""Edge AI without a cluster. Public names are handed out lazily: importing one module loads no other."""

from importlib import import_module
from typing import Any

_HOMES = {
    "join": "edgeai.worker.session",
    "join_sync": "edgeai.worker.sync",
    "connect": "edgeai.client",
    "keras": "edgeai.worker",
    "errors": "edgeai",
}

__all__ = ["connect", "errors", "join", "join_sync", "keras"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeai' has no attribute {name!r}")
    if name in {"keras", "errors"}:
        return import_module(f"{_HOMES[name]}.{name}")
    return getattr(import_module(_HOMES[name]), name)
