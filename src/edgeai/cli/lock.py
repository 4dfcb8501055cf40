"""One program per state directory: a lock that the system lets go of however its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeai.errors import Refused


@contextmanager
def locked(state_dir: Path, what: str) -> Iterator[None]:
    """Hold `<state-dir>/<what>.lock`, which names this process.

    Raises:
        Refused: another process holds it, or the folder cannot be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (state_dir / f"{what}.lock").open("a+")
    except OSError as error:
        raise Refused(
            f"{state_dir} cannot be used as state directory: {error.strerror}; choose another --state-dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise Refused(
                f"`edgeai {what}` runs on {state_dir} already (process {holder}); stop it, or choose another --state-dir"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def holder_of(state_dir: Path, what: str) -> int | None:
    """The process that holds a lock; None if nobody does, or this user may not look."""
    try:
        with (state_dir / f"{what}.lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (OSError, ValueError):  # not there; or its holder has not written itself down yet
        return None
    return None
