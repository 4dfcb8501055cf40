"""A SQLite file that is damaged: how it is known, and how it is kept for whoever wants to look at it.

What follows from the loss is for the file's owner to say (`edge`, the controller's example book).
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Not: locked, full, not allowed. These may pass, and the file is as good as it was."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def set_aside(path: Path) -> Path:
    """Rename a damaged file and what belongs to it, so that another can be made in its place; returns where it is now."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    path.rename(aside)
    for ending in ("-wal", "-shm"):
        leftover = path.with_name(path.name + ending)
        if leftover.exists():
            leftover.rename(aside.with_name(aside.name + ending))
    return aside
