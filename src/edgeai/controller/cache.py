"""The node's cache of blobs: each crosses the bridge once, whatever number of workers needs it.

Blobs lie under their digest, whole or absent, and are linked into the slot directories that need them. On the cloud node the
cache is filled from the object store; on an edge it is pulled over the bus, from the cloud node's library or, for a round's
model, from the task's aggregation worker.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from pathlib import Path

from edgeai.bus.base import Bus
from edgeai.controller.threads import to_its_end
from edgeai.errors import DamagedFile
from edgeai.events.address import Address, Direction, EventClass
from edgeai.events.catalogue import BlobRef, Fetch
from edgeai.events.envelope import Envelope, Header, encode
from edgeai.store.base import BlobStore
from edgeai.store.files import copy_whole, digest_of, write_whole
from edgeai.store.identity import new_id
from edgeai.store.transfers import Receiver


class BlobCache:
    """Blobs of one node, in `folder`. `library` is the object store where it can be reached directly (the cloud node)."""

    def __init__(self, folder: Path, node: str, bus: Bus, receiver: Receiver, library: BlobStore | None) -> None:
        self._folder, self._node, self._bus, self._receiver, self._library = folder, node, bus, receiver, library
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, digest: str) -> Path:
        return self._folder / digest

    async def bring(self, blob: BlobRef, task: str = "") -> Path:
        """The blob's file, fetched if need be; waits as long as its source is away.

        `task` is the level of the task whose aggregation worker holds it; empty: the library.

        Raises:
            NotFound: the source does not have it.
            DamagedFile: it does not match its digest, twice.
        """
        path = self.path(blob.digest)
        if path.exists():
            if await asyncio.to_thread(digest_of, path) == blob.digest:
                return path
            path.replace(path.with_suffix(f".damaged-{time.time_ns()}"))
        if blob.inline is not None:
            await to_its_end(write_whole, path, blob.inline)
            if await asyncio.to_thread(digest_of, path) != blob.digest:
                path.unlink()
                raise DamagedFile(path, "the inline bytes do not match their digest")
            return path
        if self._library is not None and not task:
            await self._library.get(blob.digest, path)
            return path
        where = Address(self._node, Direction.UP, EventClass.TRANSFER, Fetch.kind, task)

        async def ask(ranges: tuple[tuple[int, int], ...]) -> None:
            event = Fetch(blob.digest, ranges)
            await self._bus.publish(where, encode(Envelope(Header(self._node), event, new_id(), time.time(), task)))

        await self._receiver.fetch(blob.digest, blob.size_bytes, ask, path)
        return path

    async def link(self, digest: str, target: Path) -> None:
        """Make the cached blob appear at `target`: a hard link, or a copy across file systems."""
        await to_its_end(_link, self.path(digest), target)

    def forget(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def tidy(self, needed: Collection[str], unused_s: float) -> None:
        """Remove blobs that are not needed and were not used for `unused_s` seconds. Blocking."""
        for path in self._folder.iterdir():
            if path.name not in needed and time.time() - path.stat().st_atime > unused_s:
                path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        copy_whole(source, target)
