"""A cancellation that a client library has lost is raised again.

Until Python 3.12 `asyncio.wait_for`, which nats-py and aiomqtt use, returns the result when that comes together with a
cancellation. A task that goes on then is never cancelled again, and its daemon does not end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cancellation_kept() -> Iterator[None]:
    """Raises CancelledError at the end if this task was cancelled meanwhile, whatever the body returned or raised."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
