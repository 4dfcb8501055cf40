"""`edgeai top`: what the workers use, again and again, until Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from edgeai.cli.outcome import say
from edgeai.cli.output import terminal_width
from edgeai.cli.usage import top_json, top_lines
from edgeai.client import Cloud, Task
from edgeai.errors import WaitTimeout
from edgeai.events.catalogue import UsageAnswered

LOOK_S, _ANSWER_S = 2.0, 3.0


async def top(cloud: Cloud, named: tuple[str | None, str] | None, *, once: bool, as_json: bool) -> None:
    """Of one task (kind, if that is known, and name), or of all. On a terminal the table stays in place.

    Raises:
        NotFound: no such task. WaitTimeout: `once`, and the coordinator does not answer.
    """
    task = await cloud.task(named[1], named[0]) if named else None
    form = top_json if as_json else _table
    if once:
        print(form(await cloud.usage(task, timeout_s=_ANSWER_S)))
    elif as_json or not sys.stdout.isatty():
        await _follow(cloud, task, lambda answer: print(form(answer), flush=True), say)
    else:
        await _on_terminal(cloud, task)


async def _on_terminal(cloud: Cloud, task: Task | None) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as screen:

        def show(text: str) -> None:
            screen.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

        await _follow(cloud, task, lambda answer: show(_table(answer)), show)


async def _follow(
    cloud: Cloud, task: Task | None, show: Callable[[UsageAnswered], None], complain: Callable[[str], None]
) -> None:
    while True:
        try:
            show(await cloud.usage(task, timeout_s=_ANSWER_S))
        except WaitTimeout as error:
            complain(f"{error}: what the workers use is unknown")
        await asyncio.sleep(LOOK_S)


def _table(answer: UsageAnswered) -> str:
    return "\n".join(top_lines(answer, terminal_width()))
