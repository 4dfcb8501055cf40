"""`edgeai up`: the playground, kept running until Ctrl-C or SIGTERM; other commands find it by the context it writes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from edgeai.cli.lock import locked
from edgeai.cli.playground import BrokerChoice, Playground
from edgeai.cli.signals import Interrupted, until_signalled
from edgeai.events.address import CLOUD
from edgeai.logs import configure
from edgeai.settings import Context, data_folder, remove_context, write_context


def run_up(*, edges: int, broker: BrokerChoice, state_dir: Path | None) -> int:
    """Run it; returns the exit code: 0 if it was ready before it was stopped.

    Raises:
        Refused: another `up` runs on this state directory. LaunchError: a part did not come up.
    """
    configure(os.environ.get("EDGEAI_LOG") or "error")
    folder = (state_dir or data_folder() / "playground").absolute()
    ready: list[Context] = []
    with locked(folder, "up"):
        try:
            asyncio.run(until_signalled(_run(Playground(folder, edges, broker), ready)))
        except Interrupted as interrupted:
            return 0 if ready else interrupted.exit_code
    return 0


async def _run(playground: Playground, ready: list[Context]) -> None:
    _note(f"starting 1 cloud and {playground.edges} edges in {playground.state_dir}")
    try:
        async with playground.running():
            context = playground.context()
            written = write_context(context)
            ready.append(context)
            try:
                print(ready_line(playground, context), flush=True)
                _note(f"other commands find it by {written}; Ctrl-C stops it")
                await asyncio.Event().wait()
            finally:
                remove_context(context)
                _note("stopping")
    finally:
        _note("stopped")


def ready_line(playground: Playground, context: Context) -> str:
    """One line for people and programs: `ready`, then key=value."""
    brokers = {CLOUD: context.url, **playground.broker_urls()}
    return " ".join(["ready", f"state_dir={context.state_dir}", *(f"{node}={url}" for node, url in brokers.items())])


def _note(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return  # the terminal was closed; what is to be stopped is stopped all the same
