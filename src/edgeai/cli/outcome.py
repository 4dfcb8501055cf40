"""How every command ends: an exit code, and for what was to be expected one line on standard error, never a traceback.

0 ok, 1 failed, 2 usage, 3 not found, 4 refused or conflict, 5 backend unreachable, 124 wait timed out; 130 after Ctrl-C.
Errors carry their code (`errors.py`). When the reader of standard output has gone away, as in `edgeai events | head`, there is
no word, and the code is 1.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from asyncio import CancelledError
from collections.abc import Callable

import typer

from edgeai.errors import EdgeaiError, ManifestError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
# Base of typer's errors in what was typed. Where the class is defined differs between releases, its place here does not.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command to its end."""
    try:
        result = command()
        sys.stdout.flush()
    except BaseException as error:
        code = _code_of(error)
        if code is None:
            raise
        return code
    return result if isinstance(result, int) else 0


def _code_of(error: BaseException) -> int | None:
    """None: nobody expected this."""
    match error:
        case _UsageError():
            _say_usage(error)
            return USAGE
        case EdgeaiError():
            _tell(error)
            return error.exit_code
        case BaseExceptionGroup() if found := _expected(error):
            _tell(found)
            return found.exit_code
        case KeyboardInterrupt() | CancelledError() | typer.Abort():
            return INTERRUPTED
        case OSError(errno=errno.EPIPE | errno.EIO):
            _stop_writing()
            return FAILED
        case OSError():
            say(f"{error.filename or 'this machine'}: {error.strerror or error}")
            return FAILED
    return None


def _tell(error: EdgeaiError) -> None:
    """One line; what else is wrong with a manifest below it, a line each."""
    say(str(error))
    others = error.others if isinstance(error, ManifestError) else ()
    shown = [str(other) for other in others[: ManifestError.SHOWN - 1]]
    if more := len(others) - len(shown):
        shown.append(f"(and {more} more)")
    with contextlib.suppress(OSError):
        for text in shown:
            print(f"  {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """One line on standard error."""
    try:
        print(f"edgeai: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)
    except OSError:
        return


def _say_usage(error: Exception) -> None:
    message: str = error.format_message() if hasattr(error, "format_message") else str(error)
    if message.startswith("Usage:"):  # the help of a group of commands, of which none was given
        print(message, file=sys.stderr)
        return
    # How pydantic begins what a check of ours, or of typer, says.
    message = " ".join(message.split()).replace(": Value error, ", ": ", 1)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "edgeai"
    say(f"{message.removeprefix('Invalid value: ').rstrip('.')}; see `{command} --help`")


def _expected(group: BaseExceptionGroup[BaseException]) -> EdgeaiError | None:
    """The first error, if all of them are ours."""
    ours, others = group.split(EdgeaiError)
    if ours is None or others is not None:
        return None
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, EdgeaiError) else None


def _stop_writing() -> None:
    """What Python would still flush at its end goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
