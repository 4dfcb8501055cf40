"""Where an installation finds what it needs: the files that travel with the code, and the context of the command line.

What an operator may read and edit (`brokers/`, `config/`, `workers/`) lies at the root of the repository and inside the
wheel as `edgeai/_shipped/`. This module knows both places and nothing about what is in the files.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeai.errors import DamagedFile, NotFound

_PACKAGE = Path(__file__).resolve().parent


def shipped(path: str) -> Path:
    """The file or folder `path` (such as "brokers/mosquitto.conf") of this installation or source checkout.

    Raises:
        NotFound: the installation lacks it.
    """
    for root in (_PACKAGE / "_shipped", _PACKAGE.parents[1]):
        if (root / path).exists():
            return root / path
    raise NotFound("shipped file", path, "the installation is incomplete: install edgeai again")


def data_folder() -> Path:
    """Where daemons keep their state unless they are told otherwise: `edgeai` in the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "edgeai"


# --- the context: which cloud the command line talks to


@dataclass(frozen=True, slots=True)
class Context:
    """The cloud that `edgeai up` or an operator has named. `credentials_file` is JSON with username and password."""

    url: str
    credentials_file: str
    state_dir: str = ""


def context_path() -> Path:
    """EDGEAI_CONTEXT, or `edgeai/context.json` in the user's configuration folder."""
    named = os.environ.get("EDGEAI_CONTEXT")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "edgeai" / "context.json"


def read_context(path: Path | None = None) -> Context:
    """Raises NotFound or DamagedFile, saying what to do."""
    path = path or context_path()
    try:
        return Context(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        hint = "start `edgeai up`, or name a cloud with EDGEAI_CONTEXT"
        raise NotFound("context", str(path), hint) from error
    except (ValueError, TypeError) as error:
        raise DamagedFile(path, f"not a context; remove it and start `edgeai up` ({error})") from error


def write_context(context: Context, path: Path | None = None) -> Path:
    path = path or context_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(context), indent=1) + "\n")
    temporary.chmod(0o600)
    temporary.replace(path)
    return path


def remove_context(context: Context, path: Path | None = None) -> None:
    """Remove the context unless somebody has written another one meanwhile."""
    path = path or context_path()
    try:
        if read_context(path) == context:
            path.unlink(missing_ok=True)
    except (NotFound, DamagedFile, OSError):
        return
