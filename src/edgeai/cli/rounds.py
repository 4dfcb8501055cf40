"""The rounds of a task as they happen: bars and rows on a terminal, plain lines elsewhere; what came out, at the end.

A round's row is final one round late: the model that it made is evaluated together with the next round. Until then it is part
of the moving picture. Progress is a signal, so bars may miss a step; rows and phases come from the resource and do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edgeai.cli.naming import counted
from edgeai.client import Cloud
from edgeai.errors import BusUnavailable, NotFound
from edgeai.events.address import Address, task_level
from edgeai.events.catalogue import Progress
from edgeai.resources.conditions import ConditionType, find_condition
from edgeai.resources.federated import FederatedTask, RoundRecord, TaskPhase, WorkerStatus

OVER = frozenset({TaskPhase.SUCCEEDED, TaskPhase.FAILED})
_KIND = "FederatedTask"
_FRAMES_PER_S = 8
_BAR_WIDTH = 32
_COLUMNS = (("round", 5), ("updates", 7), ("accuracy", 8), ("bytes up", 12), ("bytes down", 12), ("seconds", 8))
_HEAD = "  ".join(f"{name:>{width}}" for name, width in _COLUMNS)


def row_line(row: Mapping[str, Any], *, settled: bool = True) -> str:
    """One line of the table of rounds. Not `settled`: its accuracy may still come."""
    accuracy = row["metrics"].get("accuracy") if settled else None
    mark = "~" if row.get("metrics_source") == "local" else ""
    cells = (
        str(row["round"]),
        str(row["updates"]),
        ("-" if settled else "...") if accuracy is None else f"{mark}{accuracy:.4f}",
        f"{row['bytes_up']:,}",
        f"{row['bytes_down']:,}",
        f"{row['seconds']:.2f}",
    )
    return "  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def rounds_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_HEAD, *(row_line(row) for row in rows)]


def round_row(record: RoundRecord) -> dict[str, Any]:
    """A round as `demo --json` gives it."""
    fields = ("round", "updates", "metrics", "metrics_source", "bytes_up", "bytes_down", "seconds")
    return {name: getattr(record, name) for name in fields}


def outcome_of(task: FederatedTask) -> dict[str, Any]:
    """The document of `demo --json` without the model's path; with `error` when the task has failed."""
    status = task.status
    model = status.model
    document: dict[str, Any] = {
        "task": task.name,
        "phase": status.phase.value,
        "rounds": [round_row(row) for row in status.rounds],
        "metrics": status.metrics,
        "left_out": left_out(task),
        "model": {"name": model.name, "version": model.version, "digest": model.digest} if model else None,
    }
    failed = find_condition(status.conditions, ConditionType.FAILED)
    if status.phase is TaskPhase.FAILED:
        document["error"] = f"task {task.name} has failed: {failed.message if failed else 'without a reason'}"
    return document


def left_out(task: FederatedTask) -> list[str]:
    """Sentences about the training workers of which a round was closed without an update."""
    found = []
    rows = [row for row in task.status.rounds if row.round > 0]
    states = {worker.name: worker for worker in task.status.workers}
    for each in task.spec.training_workers:
        without = [row for row in rows if each.name not in row.accepted]
        refused = [row for row in without if each.name in row.refused]
        state, said = states.get(each.name), []
        if state is not None and state.state in {"Failed", "Unknown"}:
            said.append(f"{'has failed' if state.state == 'Failed' else 'is lost'}: {state.reason}")
        if refused:
            last = refused[-1]
            reason = last.refused[each.name]
            said.append(f"{counted(len(refused), 'update')} refused, the last in round {last.round}: {reason}")
        if missed := len(without) - len(refused):
            said.append(f"no update in {missed} of {counted(len(rows), 'round')}")
        if without or (state is not None and state.state == "Failed"):
            found.append(f"{each.name} on {each.node_name}: {'; '.join(said)}")
    return found


def summary(document: Mapping[str, Any], *, rows: bool = True) -> list[str]:
    """The lines that say what came out."""
    lines = [*rounds_table(document["rounds"]), ""] if rows and document["rounds"] else []
    if any(row.get("metrics_source") == "local" and "accuracy" in row["metrics"] for row in document["rounds"]):
        lines += ["~ the mean of what the workers measured on their own models; nobody evaluated the global one", ""]
    accuracy, model = document.get("metrics", {}).get("accuracy"), document["model"]
    if accuracy is not None:
        lines.append(f"accuracy        {accuracy:.4f} on held-out examples")
    if model is not None:
        lines.append(f"model           {model['name']} version {model['version']}")
        lines.append(f"digest          {model['digest']}")
    if model is not None and "path" in model:
        lines.append(f"path            {model['path']}")
    lines += [f"left out        {sentence}" for sentence in document.get("left_out", ())]
    return lines


@dataclass(frozen=True, slots=True)
class _Step:
    """What a worker was last heard to do."""

    number: int
    step: str
    done: int
    total: int


class RoundsView:
    """Shows on standard error what a task does; `finish` writes what came out to standard output. `quiet`: nothing."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None, out: Console | None = None) -> None:
        self._notes = console or Console(stderr=True, quiet=quiet, highlight=False)
        self._out = out or Console(quiet=quiet, highlight=False)
        self._live: Live | None = None
        self._steps: dict[str, _Step] = {}
        self._phase = ""
        self._closed = self._settled = 0
        self._told: set[str] = set()
        self._began = time.monotonic()
        self.task: FederatedTask | None = None

    def note(self, text: str) -> None:
        """One line for a person."""
        with contextlib.suppress(OSError):  # the terminal was closed: what is to be done is done all the same
            self._notes.print(Text(text, style="dim"), soft_wrap=True)

    async def follow(self, cloud: Cloud, name: str) -> FederatedTask:
        """Show the task until it has ended; returns it.

        Raises:
            NotFound: it is deleted.
        """
        async with cloud.progress() as signals, cloud.watch(_KIND) as changes:
            with self._picture():
                beside = [asyncio.create_task(self._take_signals(signals)), asyncio.create_task(self._draw_for_ever())]
                try:
                    return await self._until_over(changes, name)
                finally:
                    for task in beside:
                        task.cancel()
                    await asyncio.gather(*beside, return_exceptions=True)
        raise BusUnavailable(cloud.bus.url, "the watch ended")

    def finish(self, document: Mapping[str, Any]) -> None:
        """What came out, to standard output; the rows again unless they stand right above."""
        above = self._notes.is_terminal and self._out.is_terminal
        if above and document["rounds"]:
            self._out.print()
        for line in summary(document, rows=not above):
            self._out.print(Text(line), soft_wrap=True)

    async def _until_over(self, changes: AsyncIterator[Any], name: str) -> FederatedTask:
        async for change in changes:
            if change is None:
                if self.task is None:
                    raise NotFound("task", name)
                continue
            _, changed, task = change
            if changed != name:
                continue
            if not isinstance(task, FederatedTask):
                raise NotFound("task", name, "it was deleted meanwhile")
            self.show(task)
            if task.status.phase in OVER:
                return task
        raise BusUnavailable("the cloud", "the watch ended")

    async def _take_signals(self, signals: AsyncIterator[tuple[Address, Progress]]) -> None:
        async for address, progress in signals:
            metadata = self.task.metadata if self.task else None
            if metadata and address.task == task_level(metadata.name, metadata.uid):
                self.heard(address.worker, progress)

    # --- what is known

    def heard(self, worker: str, progress: Progress) -> None:
        self._steps[worker] = _Step(progress.number, progress.step, progress.done, progress.total)

    def show(self, task: FederatedTask) -> None:
        """Take in a new version of the task and write down what is new in it."""
        self.task, status = task, task.status
        if status.phase not in OVER:
            self._tell_phase(task)
        for kind in (ConditionType.DEGRADED, ConditionType.ACCEPTED):
            self._tell_condition(task, kind)
        for row in status.rounds:
            if row.round > self._closed:
                self._closed = row.round
                self._tell_closed(row)
            if row.round > self._settled and (row.round < status.rounds[-1].round or status.phase in OVER):
                self._settled = row.round
                self._tell_settled(row)
        if status.phase in OVER:
            self._tell_phase(task)

    def _tell_phase(self, task: FederatedTask) -> None:
        if task.status.phase.value != self._phase:
            self._phase = task.status.phase.value
            self.note(f"{task.name}: {self._phase}")

    def _tell_condition(self, task: FederatedTask, kind: ConditionType) -> None:
        condition = find_condition(task.status.conditions, kind)
        bad = "False" if kind is ConditionType.ACCEPTED else "True"
        if condition is None or condition.status != bad or condition.message in self._told:
            return
        self._told.add(condition.message)
        self.note(f"  {condition.message}")

    def has_told(self, message: str) -> bool:
        """It is the message of a condition that stands above already."""
        return message in self._told and not self._notes.quiet

    def _tell_closed(self, row: RoundRecord) -> None:
        if not self._notes.is_terminal:
            self.note(f"  round {row.round}: {counted(row.updates, 'update')} in {row.seconds:.2f} s")

    def _tell_settled(self, row: RoundRecord) -> None:
        accuracy = row.metrics.get("accuracy")
        if self._notes.is_terminal:
            with contextlib.suppress(OSError):
                if row.round == 1:
                    self._notes.print(Text(_HEAD, style="bold"), soft_wrap=True)
                self._notes.print(Text(row_line(round_row(row))), soft_wrap=True)
        elif accuracy is not None:
            self.note(f"  round {row.round}: accuracy {accuracy:.4f}")

    # --- the moving picture

    @contextlib.contextmanager
    def _picture(self) -> Iterator[None]:
        if self._notes.quiet or not self._notes.is_terminal:
            yield
            return
        # No thread of its own: what it draws changes in this one.
        self._live = Live(
            get_renderable=self.picture,
            console=self._notes,
            auto_refresh=False,
            transient=True,
            redirect_stdout=self._out.is_terminal,
        )
        try:
            self._live.start()
            yield
        finally:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None

    async def _draw_for_ever(self) -> None:
        while self._live is not None:
            with contextlib.suppress(OSError):
                self._live.refresh()
            await asyncio.sleep(1 / _FRAMES_PER_S)

    def picture(self) -> RenderableType:
        """Rounds that are closed and not settled, the round under way, and what every worker does."""
        task = self.task
        if task is None:
            return Text("waiting for the task", style="dim")
        rules, status = task.spec.rules(), task.status
        parts: list[RenderableType] = []
        waiting = [row for row in status.rounds if row.round > self._settled]
        if waiting and self._settled == 0:
            parts.append(Text(_HEAD, style="bold"))
        parts += [Text(row_line(round_row(row), settled=False)) for row in waiting]
        elapsed_s = int(time.monotonic() - self._began)
        head = f"{task.name}  {status.phase.value.lower()}"
        if status.round:
            head += f"  round {status.round} of {rules.rounds}"
        parts.append(Text(f"{head}  {elapsed_s // 60}:{elapsed_s % 60:02}", style="bold cyan"))
        parts.append(self._bars(task))
        return Group(*parts)

    def _bars(self, task: FederatedTask) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(width=_BAR_WIDTH, no_wrap=True)
        grid.add_column(no_wrap=True, style="dim")
        current = task.status.round
        grid.add_row("  updates", *self._collecting(task, current))
        workers = [worker for worker in task.status.workers if worker.role == "training"]
        shown = workers[: max(1, self._notes.height - 8)]
        for worker in shown:
            grid.add_row(f"  {worker.name} on {worker.node}", *self._working(worker, current))
        if len(shown) < len(workers):
            grid.add_row(f"  and {len(workers) - len(shown)} more", "", "")
        return grid

    def _collecting(self, task: FederatedTask, current: int) -> tuple[RenderableType, str]:
        asked: Sequence[Any] = task.spec.training_workers
        step = self._steps.get(task.spec.aggregation_worker.name)
        done, total = (step.done, step.total) if step and step.number >= current > 0 else (0, len(asked))
        return ProgressBar(total=max(total, 1), completed=done, width=_BAR_WIDTH), f"{done} of {total}"

    def _working(self, worker: WorkerStatus, current: int) -> tuple[RenderableType, str]:
        step = self._steps.get(worker.name)
        if worker.state != "Running" or step is None or step.number < current:
            idle = "waiting" if current else "starting"
            what = worker.state.lower() if worker.state != "Running" else idle
            reason = f": {worker.reason}" if worker.reason else ""
            return ProgressBar(total=1, completed=0, width=_BAR_WIDTH), what + reason
        if step.step == "submitted":
            return ProgressBar(total=1, completed=1, width=_BAR_WIDTH), "submitted"
        return ProgressBar(total=None, width=_BAR_WIDTH), step.step
