"""Whose cloud the command line talks to: the context is taken by one `up` at a time, and a missing one leads on.

The file itself is `settings`; who runs is known from the locks in the state directories. Every cloud also leaves a context
in its own folder, which EDGEAI_CONTEXT may name.
"""

from __future__ import annotations

from pathlib import Path

from edgeai.cli.lock import holder_of
from edgeai.errors import DamagedFile, NotFound
from edgeai.events.address import CLOUD
from edgeai.settings import Context, data_folder, read_context, write_context

_FILE = "context.json"


def own_context_file(state_dir: Path) -> Path:
    """The context of the playground in `state_dir`, whatever the others do."""
    return state_dir / CLOUD / _FILE


def take_context(context: Context) -> str:
    """Write the context, unless it names a cloud that still runs: then say whose (else the answer is empty)."""
    try:
        found = read_context()
    except (NotFound, DamagedFile):
        found = context
    taken_by = "" if found.state_dir == context.state_dir else _running(found.state_dir)
    if not taken_by:
        write_context(context)
    return taken_by


def led_on(error: NotFound) -> NotFound:
    """The same error; of a missing context, with that of a cloud that runs in the default folders, if there is one."""
    running = _running_here() if error.kind == "context" else None
    if running is None:
        return error
    hint = f"a cloud runs on this machine: give this command EDGEAI_CONTEXT={running}"
    return NotFound(error.kind, error.name, hint)


def _running(state_dir: str) -> str:
    for what in ("up", "cloud"):
        if state_dir and (process := holder_of(Path(state_dir), what)) is not None:
            return f"the cloud of `edgeai {what}` in {state_dir} (process {process})"
    return ""


def _running_here() -> Path | None:
    playground, cloud = data_folder() / "playground", data_folder() / CLOUD
    for folder, what, file in ((playground, "up", own_context_file(playground)), (cloud, "cloud", cloud / _FILE)):
        if holder_of(folder, what) is not None and file.is_file():
            return file
    return None
