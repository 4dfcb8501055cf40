"""`edgeai up`: the playground, kept running until Ctrl-C or SIGTERM; other commands find it by the context it writes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from edgeai.cli.contexts import own_context_file, take_context
from edgeai.cli.daemons.options import LauncherChoice
from edgeai.cli.lock import locked
from edgeai.cli.naming import counted
from edgeai.cli.playground import BrokerChoice, Playground
from edgeai.cli.portal import serving
from edgeai.cli.signals import Interrupted, until_signalled
from edgeai.events.address import CLOUD
from edgeai.logs import configure
from edgeai.portal.app import one_time_link
from edgeai.portal.settings import PortalSettings
from edgeai.settings import Context, context_path, data_folder, remove_context


def run_up(*, edges: int, broker: BrokerChoice, state_dir: Path | None, launcher: LauncherChoice = "process") -> int:
    """Run it; returns the exit code: 0 if it was ready before it was stopped.

    Raises:
        Refused: another `up` runs on this state directory. LaunchError: a part did not come up.
    """
    configure(os.environ.get("EDGEAI_LOG") or "error")
    folder = (state_dir or data_folder() / "playground").absolute()
    ready: list[Context] = []
    with locked(folder, "up"):
        try:
            asyncio.run(until_signalled(_run(Playground(folder, edges, broker, note=_note, launcher=launcher), ready)))
        except Interrupted as interrupted:
            return 0 if ready else interrupted.exit_code
    return 0


async def _run(playground: Playground, ready: list[Context]) -> None:
    _note(f"starting 1 cloud and {counted(playground.edges, 'edge')} in {playground.state_dir}")
    try:
        async with playground.running():
            context = playground.context()
            taken_by = take_context(context)
            portal = PortalSettings(playground.state_dir / "portal")
            try:
                async with serving(context, portal) as url:
                    ready.append(context)
                    print(ready_line(playground, context, url), flush=True)
                    _note(how_to_find_it(context, taken_by))
                    _note(
                        f"see it in a browser (works once, within ten minutes): {one_time_link(portal.state_dir, url)}"
                    )
                    await asyncio.Event().wait()
            finally:
                remove_context(context)  # if it is this one's
    finally:
        _note("stopped")


def ready_line(playground: Playground, context: Context, portal: str) -> str:
    """One line for people and programs: `ready`, then key=value."""
    brokers = {CLOUD: context.url, **playground.broker_urls()}
    return " ".join(
        [
            "ready",
            f"state_dir={context.state_dir}",
            *(f"{node}={url}" for node, url in brokers.items()),
            f"portal={portal}",
        ]
    )


def how_to_find_it(context: Context, taken_by: str) -> str:
    """`taken_by`: whose cloud other commands find without being told."""
    if not taken_by:
        return f"other commands find it by {context_path()}; Ctrl-C stops it"
    return (
        f"other commands find {taken_by}, which still runs; for this one give them "
        f"EDGEAI_CONTEXT={own_context_file(Path(context.state_dir))}; Ctrl-C stops it"
    )


def _note(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        return  # the terminal was closed; what is to be stopped is stopped all the same
