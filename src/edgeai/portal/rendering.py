"""Templates to text, and the work that many open windows share.

A window reads its page again whenever something on it has changed. What it then needs is the part of the page that is the
same for everybody of its role; so that is made once for each change, however many windows show it, and is never older than half
a second. What is in it, the templates say (`layout.html`); what it is about, `contents`. Knows no resource.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from edgeai.portal.formats import FILTERS

TEMPLATES = Path(__file__).parent / "templates"
SHARED_S, SHARED_LIMIT = 0.5, 256
_METHODS = frozenset(dir(dict))


class Templates(Environment):
    """With the filters of `formats`; everything from outside is escaped."""

    def __init__(self) -> None:
        super().__init__(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=select_autoescape(default=True),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.filters.update(FILTERS)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Nearly all are keys of dictionaries: looked up first, not after a failure to find an attribute."""
        if type(obj) is dict and attribute not in _METHODS:
            found = obj.get(attribute, self)
            return self.undefined(obj=obj, name=attribute) if found is self else found
        return super().getattr(obj, attribute)


@dataclass(frozen=True, slots=True)
class _Made:
    at: float
    sequence: int
    text: asyncio.Future[str]


class Shared:
    """What was made a moment ago, or is being made, for whoever asks for the same."""

    def __init__(self, sequence: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._sequence, self.clock = sequence, clock
        self._made: dict[Hashable, _Made] = {}
        self.count = 0
        """How often something was made."""

    def __len__(self) -> int:
        return len(self._made)

    async def text(self, key: Hashable, seen: int, make: Callable[[], Awaitable[str]]) -> str:
        """Not older than the change `seen`. Raises what `make` raises."""
        found = self._made.get(key)
        if found is None or found.sequence < seen or self.clock() - found.at >= SHARED_S:
            self._forget()
            found = _Made(self.clock(), self._sequence(), asyncio.ensure_future(make()))
            self._made[key] = found
            self.count += 1
        return await asyncio.shield(found.text)

    def _forget(self) -> None:
        """What is too old for anybody; all of it, should there be too much."""
        oldest = self.clock() - SHARED_S
        self._made = {key: made for key, made in self._made.items() if made.at > oldest}
        if len(self._made) >= SHARED_LIMIT:
            self._made.clear()
