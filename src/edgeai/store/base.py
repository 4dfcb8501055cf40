"""What every store promises, whatever remembers.

`ResourceStore` holds documents by kind and name, with compare-and-set on a revision; `BlobStore` holds files by digest. Both
pass `tests/contract/`: `memory` (tests) and `nats` (JetStream KV and object store); a Kubernetes API store is meant to stand
beside them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """One document as read. `revision` grows with every write to the store and names this version of the document."""

    kind: str
    name: str
    document: dict[str, Any]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """A document was written, or, with `document` None, deleted. `revision` as in Stored."""

    kind: str
    name: str
    document: dict[str, Any] | None
    revision: int


class ResourceStore(Protocol):
    """Documents of plain JSON types (and bytes) by kind and name. Every write is durable before the call returns."""

    async def get(self, kind: str, name: str) -> Stored:
        """Raises NotFound; BusUnavailable when the store cannot be reached (so do all other calls)."""

    async def list(self, kind: str) -> list[Stored]:
        """All documents of a kind, by name."""

    async def create(self, kind: str, name: str, document: Document) -> Stored:
        """Raises Conflict when it exists already: of several creators exactly one succeeds."""

    async def replace(self, stored: Stored, document: Document) -> Stored:
        """Write a new version. Raises Conflict unless `stored.revision` is still the current one."""

    async def delete(self, stored: Stored) -> None:
        """Raises Conflict unless `stored.revision` is still the current one."""

    def watch(self, *kinds: str) -> AbstractAsyncContextManager[AsyncIterator[Change | None]]:
        """The documents of these kinds as they are, then None once, then every change in order, until left.

        Survives reconnects: after one, current documents are delivered again and deletions that were missed are
        delivered as deletions. Entering raises BusUnavailable if the store cannot be reached.
        """


class BlobStore(Protocol):
    """Files by digest (sha256, 64 hexadecimal digits), whole or absent."""

    async def put(self, digest: str, path: Path) -> None:
        """Store the file; does nothing if the digest is stored already. Raises DamagedFile if `path` has another digest."""

    async def get(self, digest: str, path: Path) -> None:
        """Write the blob to `path`, whole or not at all. Raises NotFound, DamagedFile."""

    async def has(self, digest: str) -> bool: ...

    async def delete(self, digest: str) -> None:
        """Idempotent."""
