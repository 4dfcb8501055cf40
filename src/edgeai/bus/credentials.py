"""Who may log in to the embedded brokers: random passwords in private files, one per user.

A credentials file is JSON {"url", "username", "password"}, mode 0600, whole or absent. It is what a process is handed
instead of a secret in its environment. What each user may do is written in the brokers' configuration (`brokers/`), and
`embedded.py` renders these passwords into it. This module knows no broker and opens no connection.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from edgeai.errors import DamagedFile, NotFound
from edgeai.events.address import checked_name


@dataclass(frozen=True, slots=True)
class Credential:
    """One login to one broker. The password is left out of its repr, and so of logs and tracebacks."""

    url: str
    username: str
    password: str = field(repr=False)


def read_credentials_file(path: Path) -> Credential:
    """Raises NotFound, or DamagedFile if it is not a credentials file."""
    try:
        fields = json.loads(path.read_bytes())
        values = [fields[key] for key in ("url", "username", "password")]
    except FileNotFoundError as error:
        raise NotFound("credentials file", str(path)) from error
    except (ValueError, KeyError, TypeError):
        # The cause would show the content: leave it out.
        raise DamagedFile(path, "not a credentials file") from None
    if not all(isinstance(value, str) for value in values):
        raise DamagedFile(path, "not a credentials file")
    return Credential(*values)


def write_credentials_file(path: Path, url: str, username: str, password: str) -> None:
    """Replace `path`, whole or not at all, readable by its owner only."""
    write_private(path, _encoded(Credential(url, username, password)))


def client_id_of(name: str, secret: bytes) -> str:
    """A client id for MQTT that is the same whenever `secret` is, and that nobody else can know.

    Whoever connects with the id of another client ends that client's connection, whatever login either has.
    """
    return f"{name}-{hashlib.sha256(b'client id of ' + name.encode() + secret).hexdigest()[:16]}"


class Credentials:
    """The credentials files of one state directory: `<state-dir>/credentials/<broker>.<username>.json`.

    `broker` is the node whose broker it is (`cloud`, or an edge's name). A password is made once and stays the same.
    """

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir / "credentials"

    def path(self, broker: str, username: str) -> Path:
        return self._dir / f"{checked_name(broker)}.{username}.json"

    def usernames(self, broker: str) -> list[str]:
        """The users that were ever issued for this broker, by name."""
        return sorted(path.name.split(".")[1] for path in self._dir.glob(f"{checked_name(broker)}.*.json"))

    def issue(self, broker: str, username: str, url: str) -> Credential:
        """The user's credential, made if it is new, its file brought up to date if the broker's url has changed."""
        path = self.path(broker, username)
        if not path.exists():
            _create_private(path, _encoded(Credential(url, username, secrets.token_urlsafe(24))))
        stored = read_credentials_file(path)
        if stored.url != url:
            write_credentials_file(path, url, username, stored.password)
        return Credential(url, username, stored.password)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file of the state directory, whole or not at all, at mode 0600 (new folders: 0700)."""
    temporary = _written_beside(path, content)
    temporary.replace(path)
    _sync_folder(path.parent)


def _create_private(path: Path, content: bytes) -> None:
    """As write_private, but of several creators the first wins and the others change nothing."""
    temporary = _written_beside(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    _sync_folder(path.parent)


def _written_beside(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encoded(credential: Credential) -> bytes:
    fields = {"url": credential.url, "username": credential.username, "password": credential.password}
    return json.dumps(fields, indent=1).encode() + b"\n"
