"""A registry of images on a loopback port, with one small image in it: enough of the protocol for a pull."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def small_image() -> tuple[bytes, dict[str, bytes]]:
    """A manifest, and its blobs by digest."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        entry = tarfile.TarInfo("hello")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"world"))
    layer = gzip.compress(content.getvalue(), mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(content.getvalue())]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": digest(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "size": len(layer),
                "digest": digest(layer),
            }
        ],
    }
    return json.dumps(manifest).encode(), {digest(config): config, digest(layer): layer}


@contextmanager
def registry() -> Iterator[str]:
    """Serve the image as `<address>/probe`, under any tag and under its digest."""
    manifest, blobs = small_image()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            *_, kind, name = self.path.split("/")
            found = {"manifests": manifest if name in {"1", digest(manifest)} else None, "blobs": blobs.get(name)}
            body = b"{}" if self.path == "/v2/" else found.get(kind)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", MANIFEST if kind == "manifests" else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


MANIFEST_DIGEST = digest(small_image()[0])
