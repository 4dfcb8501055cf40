"""Where a portal is served, as it says itself in `<state-dir>/portal.json`: to its next start and to others on its machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edgeai.errors import NotFound
from edgeai.store.files import write_whole

_FILE = "portal.json"


@dataclass(frozen=True, slots=True)
class Place:
    """`process` is the pid of the portal that wrote it; it may have ended since."""

    url: str
    port: int
    process: int


def write_place(state_dir: Path, place: Place) -> None:
    fields = {"url": place.url, "port": place.port, "pid": place.process}
    write_whole(state_dir / _FILE, json.dumps(fields).encode())


def read_place(state_dir: Path) -> Place:
    """Raises NotFound."""
    try:
        fields = json.loads((state_dir / _FILE).read_bytes())
        return Place(str(fields["url"]), int(fields["port"]), int(fields["pid"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound("portal", str(state_dir), "it has not been started yet") from error
