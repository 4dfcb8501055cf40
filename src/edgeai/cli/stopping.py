"""`edgeai stop`: ends everything that runs on a state directory: daemons first, then what they leave for their next start.

Daemons are known by their locks, the rest as in `takedown`. Nothing is deleted: the next start goes on from there.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from edgeai.cli.lock import holder_of
from edgeai.cli.outcome import say
from edgeai.cli.takedown import take_down
from edgeai.errors import LaunchError, NotFound, Refused
from edgeai.logs import configure

_DAEMONS = ("up", "cloud", "edge", "controller")
"""Outermost first: `up` ends its daemons itself."""
_PATIENCE_S = 60.0
_POLL_S = 0.1


def stop_all(state_dir: Path) -> None:
    """End it and print what was ended.

    Raises:
        NotFound: there is no such folder. Refused: another user's daemon runs there. LaunchError: a daemon does not end.
    """
    configure("error")
    if not state_dir.is_dir():
        raise NotFound("state directory", str(state_dir), "name the folder that the daemon was given")
    folders = [state_dir, *sorted(path for path in state_dir.iterdir() if path.is_dir())]
    stopped = asyncio.run(_stop_all(state_dir, folders))
    for name in stopped:
        print(f"{name} stopped")
    if not stopped:
        say(f"nothing runs on {state_dir}")


async def _stop_all(state_dir: Path, folders: Sequence[Path]) -> list[str]:
    stopped = []
    for what in _DAEMONS:
        for folder in folders:
            process = holder_of(folder, what)
            if process is not None:
                await _end(folder, what, process)
                stopped.append(f"{what} (process {process})")
    return [*stopped, *await take_down(state_dir)]


async def _end(folder: Path, what: str, process: int) -> None:
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise Refused(
            f"`edgeai {what}` on {folder} (process {process}) belongs to another user: stop it as that"
        ) from error
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while holder_of(folder, what) == process:  # noqa: ASYNC110 - nobody here could set an event
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise LaunchError(
            f"`edgeai {what}` on {folder} (process {process}) does not end; kill it, then repeat this"
        ) from error
