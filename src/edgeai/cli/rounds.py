"""The rounds of a task as they happen: progress bars on a terminal, then one row per round."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from edgeai.client import Cloud
from edgeai.errors import BusUnavailable
from edgeai.resources.federated import FederatedTask, TaskPhase

_OVER = frozenset({TaskPhase.SUCCEEDED, TaskPhase.FAILED})


class RoundsView:
    """Shows on standard error what a task does; `finish` writes the summary to standard output. `quiet`: nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._notes = Console(stderr=True, quiet=quiet)
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            console=self._notes,
            transient=True,
            disable=quiet or not self._notes.is_terminal,
        )
        self._rows: dict[str, Any] = {}
        self._phase = ""
        self._round = 0

    def note(self, text: str) -> None:
        self._notes.print(text, style="dim", highlight=False)

    async def follow(self, cloud: Cloud, name: str) -> FederatedTask:
        """Show the task until it has ended; returns it."""
        with self._bars:
            async with cloud.progress() as signals:
                bars = asyncio.create_task(self._show_signals(signals))
                try:
                    async with cloud.watch("FederatedTask") as changes:
                        async for change in changes:
                            if change is None or change[1] != name or not isinstance(change[2], FederatedTask):
                                continue
                            self._show(change[2])
                            if change[2].status.phase in _OVER:
                                return change[2]
                finally:
                    bars.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await bars
        raise BusUnavailable(cloud.bus.url, "the watch ended")

    def finish(self, document: dict[str, Any]) -> None:
        """The table of rounds, and what came out, to standard output."""
        if self._quiet:
            return
        out = Console(highlight=False)
        table = Table("round", "updates", "accuracy", "bytes up", "bytes down", "seconds", box=None, pad_edge=False)
        for column in table.columns:
            column.justify = "right"
        for row in document["rounds"]:
            accuracy = row["metrics"].get("accuracy")
            table.add_row(
                str(row["round"]),
                str(row["updates"]),
                "-" if accuracy is None else f"{accuracy:.4f}",
                f"{row['bytes_up']:,}",
                f"{row['bytes_down']:,}",
                f"{row['seconds']:.2f}",
            )
        out.print(table)
        model = document["model"]
        if model is not None:
            accuracy = document["metrics"].get("accuracy")
            out.print(f"\nheld-out accuracy  {accuracy:.4f}" if accuracy is not None else "")
            out.print(f"model              {model['name']} version {model['version']}")
            out.print(f"digest             {model['digest']}")
            out.print(f"path               {model['path']}", soft_wrap=True)

    async def _show_signals(self, signals: Any) -> None:
        async for address, progress in signals:
            if progress.step == "collecting":
                self._bar(f"round {progress.number}", f"{progress.done} of {progress.total} updates", progress.total, progress.done)
            else:
                done = 1 if progress.step == "submitted" else 0
                self._bar(f"  {address.worker} on {address.node}", progress.step, 1, done)

    def _bar(self, description: str, what: str, total: int, done: int) -> None:
        key = "round" if description.startswith("round") else description
        if key not in self._rows:
            self._rows[key] = self._bars.add_task(description, total=total, what=what)
        self._bars.update(self._rows[key], description=description, total=total, completed=done, what=what)

    def _show(self, task: FederatedTask) -> None:
        status = task.status
        if status.phase.value != self._phase:
            self._phase = status.phase.value
            self.note(f"{task.metadata.name}: {self._phase}")
        for condition in status.conditions:
            if condition.type == "Degraded" and condition.status == "True" and condition.message:
                self.note(f"  {condition.message}")
        for row in status.rounds:
            if row.round > self._round and (row.round < status.round or row.metrics or status.phase in _OVER):
                self._round = row.round
                self.note(f"  round {row.round}: {row.updates} updates in {row.seconds:.2f} s")
