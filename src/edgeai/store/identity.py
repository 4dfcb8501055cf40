"""New identifiers, from the clock and the system's randomness."""

from __future__ import annotations

import os
import time
import uuid

from edgeai.events.identity import time_ordered_id


def new_id() -> bytes:
    """Id of an event: 16 bytes, ordered by time."""
    return time_ordered_id(time.time_ns() // 1_000_000, os.urandom(10))


def new_uid() -> str:
    """Uid of a resource: 32 hexadecimal digits, random, never used again."""
    return uuid.uuid4().hex
