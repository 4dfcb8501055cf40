"""Ctrl-C, SIGTERM and a closed terminal, for commands that must clean up whatever happens.

`until_signalled` runs the work of a command and cancels it at a signal; `finish` protects what must be done to its end. The
daemons have their own way (`daemons.py`): they leave things running.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The work was cancelled by a signal, and has cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = 128 + number


def taken_signals() -> list[signal.Signals]:
    """Those to act on: `nohup` and shells have a hang-up ignored where it is not meant for this program."""
    return [number for number in SIGNALS if number is signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]


async def until_signalled(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`. Every signal cancels it, so the second one cuts short what the first has begun.

    Raises:
        Interrupted: a signal came; whatever `work` does when it is cancelled has been done.
    """
    loop, received = asyncio.get_running_loop(), list[int]()
    task = asyncio.ensure_future(work)

    def receive(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in taken_signals():
        loop.add_signal_handler(number, receive, number)
    # The handlers stay until the loop is closed: a third Ctrl-C must not break into its last steps.
    try:
        return await task
    except BaseException as error:
        if received:
            raise Interrupted(received[0]) from error
        raise


async def finish(work: Awaitable[_T]) -> _T:
    """The result of `work`, which is not cancelled; a cancellation meanwhile is passed on when it is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(asyncio.wait({task}))
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
