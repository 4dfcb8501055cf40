"""The rounds of an incremental learning job as a table on standard output; its stages on standard error.

On a terminal the stage under way is one moving line below the table; elsewhere each stage is a line. Rows come from
`demo_incremental`, which knows which accuracy is that of old and of new classes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from edgeai.resources.incremental import IncrementalLearningJob, StageRecord

_COLUMNS = (("stage", 8), ("examples", 8), ("old", 6), ("new", 6), ("all", 6), ("model", 20))
_FRAMES_PER_S = 4


def head_line() -> str:
    return _aligned([name for name, _ in _COLUMNS])


def row_line(row: Mapping[str, Any]) -> str:
    """One line of the table: accuracies are those of the model that serves when the round is over."""
    accuracies = (f"{row['accuracy'][name]:.3f}" for name in ("old", "new", "all"))
    model = f"{row['model']} v{row['version']}" + ("" if row["deployed"] else " (kept)")
    stage = f"round {row['round']}" if row["round"] else "start"
    return _aligned([stage, str(row["samples"]), *accuracies, model])


def stage_line(record: StageRecord) -> str:
    reason = f" ({record.reason})" if record.reason else ""
    return f"round {record.round}: {record.stage} {record.state}{reason}"


def _aligned(cells: list[str]) -> str:
    """Numbers to the right, the model to the left."""
    *numbers, last = zip(cells, _COLUMNS, strict=True)
    return "  ".join([*(f"{cell:>{width}}" for cell, (_, width) in numbers), last[0]])


class StagesView:
    """Shows a job while it goes on. `quiet`: nothing."""

    def __init__(self, *, quiet: bool, console: Console | None = None, out: Console | None = None) -> None:
        self._notes = console or Console(stderr=True, quiet=quiet, highlight=False)
        self._out = out or Console(quiet=quiet, highlight=False)
        self._live: Live | None = None
        self._told: set[str] = set()
        self._rows = 0
        self._began = time.monotonic()
        self._job: IncrementalLearningJob | None = None

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Keep the moving line moving."""
        if self._notes.quiet or not self._notes.is_terminal:
            yield
            return
        # No thread of its own: what it draws changes in this one.
        live = Live(
            get_renderable=self.picture,
            console=self._notes,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
        )
        drawing = None
        try:
            with contextlib.suppress(OSError):  # the terminal was closed: what is to be done is done all the same
                live.start()
            self._live, drawing = live, asyncio.create_task(self._draw_for_ever(live))
            yield
        finally:
            self._live = None
            if drawing is not None:
                drawing.cancel()
                await asyncio.gather(drawing, return_exceptions=True)
            with contextlib.suppress(OSError):
                live.stop()

    async def _draw_for_ever(self, live: Live) -> None:
        while True:
            with contextlib.suppress(OSError):
                live.refresh()
            await asyncio.sleep(1 / _FRAMES_PER_S)

    def picture(self) -> RenderableType:
        """The stage under way, and what the job has gathered."""
        passed_s = int(time.monotonic() - self._began)
        clock = f"{passed_s // 60}:{passed_s % 60:02}"
        job = self._job
        if job is None or not job.status.stage:
            return Text(f"waiting for the model to serve  {clock}", style="cyan", no_wrap=True, overflow="ellipsis")
        status, counts = job.status, job.status.counts
        line = f"round {status.round}: {status.stage} {status.state}  {clock}  "
        line += f"{counts.requests} requests, {counts.hard} hard, {counts.unlabelled} unlabelled, {counts.new} new"
        return Text(line, style="cyan", no_wrap=True, overflow="ellipsis")

    def show(self, job: IncrementalLearningJob) -> None:
        """Take in a new version of the job; off a terminal, tell the stages that are new in it."""
        self._job = job
        for line in map(stage_line, job.status.history):
            if line not in self._told and not self._notes.is_terminal:
                self.note(line)
            self._told.add(line)

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Write those that are not yet in the table."""
        for row in rows[self._rows :]:
            if self._rows == 0:
                self.say(head_line(), style="bold")
            self.say(row_line(row))
            self._rows += 1

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._notes.print(Text(text, style="dim"), soft_wrap=True)

    def say(self, text: str, *, style: str = "") -> None:
        """One line of what came out, above the moving line."""
        above = self._live is not None and self._out.is_terminal
        with contextlib.suppress(OSError):
            (self._notes if above else self._out).print(Text(text, style=style), soft_wrap=True)
