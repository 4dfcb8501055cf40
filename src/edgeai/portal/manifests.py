"""Manifests as applied, for pages: written once, and again when somebody applies another.

A page is read again with every round, its manifest changes with every apply. Writing YAML is slow and needs a thread. Knows
neither pages nor resources; `api.manifest_of` says what a manifest is.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from edgeai.portal.live import Entry

LIMIT_CHARACTERS = 4_000_000


class Manifests:
    """The ones that were shown last."""

    def __init__(self, limit: int = LIMIT_CHARACTERS) -> None:
        self._limit, self._size = limit, 0
        self._texts: OrderedDict[str, str] = OrderedDict()

    async def text(self, entry: Entry, metadata: Mapping[str, Any], make: Callable[[Entry], str]) -> str:
        """`metadata` is the entry's own: a generation has one spec; labels and annotations may change without it."""
        told = [metadata.get(name) for name in ("uid", "generation", "labels", "annotations")]
        key = json.dumps([entry.kind, entry.name, *told])
        if key not in self._texts:
            self._keep(key, await asyncio.to_thread(make, entry))
        self._texts.move_to_end(key)
        return self._texts[key]

    def _keep(self, key: str, text: str) -> None:
        """The newest in any case."""
        self._size += len(text) - len(self._texts.pop(key, ""))
        self._texts[key] = text
        while self._size > self._limit and len(self._texts) > 1:
            self._size -= len(self._texts.popitem(last=False)[1])
