"""A version of a model as a download: fetched whole and checked from the object store, then streamed from a nameless file."""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from edgeai.errors import NotFound
from edgeai.portal.context import Portal
from edgeai.resources.model import Model, ModelVersion

PIECE_BYTES = 256 * 1024
MEDIA_TYPE = "application/octet-stream"


def version_of(model: Model, number: int) -> ModelVersion:
    """Raises NotFound, saying which there are."""
    for version in model.status.versions:
        if version.version == number:
            return version
    there = ", ".join(str(version.version) for version in model.status.versions[-20:]) or "none yet"
    raise NotFound("version", f"{number} of model {model.name}", f"there is {there}")


async def download(portal: Portal, model: Model, version: ModelVersion) -> Response:
    """Raises Problem 503 for too many at once; NotFound, DamagedFile, BusUnavailable."""
    portal.downloads.enter()
    try:
        file = await _fetched(portal, version.digest)
    except BaseException:
        portal.downloads.leave()
        raise
    size = os.fstat(file.fileno()).st_size
    digest = base64.b64encode(bytes.fromhex(version.digest)).decode()
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f'attachment; filename="{model.name}-{version.version}{version.file_suffix}"',
        "ETag": f'"{version.digest}"',
        "Repr-Digest": f"sha-256=:{digest}:",
    }
    return _Download(_pieces(file), portal, file, headers)


async def _fetched(portal: Portal, digest: str) -> BinaryIO:
    """The blob in a file that vanishes with its last reader, also when the portal is killed meanwhile."""
    folder = portal.settings.state_dir / "downloads"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        path = Path(inner) / "model"
        await portal.live.cloud.blobs.get(digest, path)
        return path.open("rb")


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
        yield piece


class _Download(StreamingResponse):
    """Gives file and place back however it ends."""

    def __init__(self, pieces: AsyncIterator[bytes], portal: Portal, file: BinaryIO, headers: dict[str, str]) -> None:
        super().__init__(pieces, headers=headers, media_type=MEDIA_TYPE)
        self._portal, self._file = portal, file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] == "HEAD":
                await Response(headers=dict(self.headers))(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)
        finally:
            self._file.close()
            self._portal.downloads.leave()
