"""Resources as tables, names, JSON and YAML. Pure: takes values and the time, returns text."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from edgeai.cli.doubt import UNKNOWN, Doubt, Heard
from edgeai.cli.naming import label_of
from edgeai.cli.options import Output
from edgeai.resources.base import API_VERSION, Resource
from edgeai.resources.conditions import Conditions, ConditionType, find_condition, trouble_in
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask, TaskPhase
from edgeai.resources.incremental import IncrementalLearningJob, ServingModel
from edgeai.resources.joint import InferenceCounts, JointInferenceService
from edgeai.resources.manifest import dump_manifests
from edgeai.resources.model import Model
from edgeai.resources.node import EdgeNode
from edgeai.resources.versions import Server, VersionState, version_states

GAP = "   "
_LEAST_NAME, _LEAST_FOLDED = 8, 20
_SURE = frozenset({"-", "False"})
"""What a cell of the moment says that needs no sign of anybody."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a kind's table; `wide` ones only with `-o wide`. `moment`: it says what is so now."""

    title: str
    cell: Callable[[Any, datetime], str]
    wide: bool = False
    moment: bool = False


def age(since: str | None, now: datetime) -> str:
    """How long ago an instant of a document was: 42s, 5m, 3h, 2d; `-` for none."""
    if not since:
        return "-"
    try:
        passed_s = max(0, int((now - datetime.fromisoformat(since)).total_seconds()))
    except ValueError:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if passed_s >= 2 * size:
            return f"{passed_s // size}{unit}"
    return f"{passed_s}s"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def size(count: int) -> str:
    """Bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


# --- the tables


def _condition(conditions: Conditions, type: ConditionType) -> tuple[str, str]:
    """Status and message."""
    found = find_condition(conditions, type)
    return (found.status, found.message) if found else ("-", "")


def _round(task: FederatedTask, _: datetime) -> str:
    return f"{task.status.round}/{task.spec.rules().rounds}"


def _workers(task: FederatedTask, _: datetime) -> str:
    if task.status.phase in {TaskPhase.SUCCEEDED, TaskPhase.FAILED}:  # none runs any more: who took part
        return f"{len(task.status.joined)}/{len(task.spec.training_workers)}"
    training = [worker for worker in task.status.workers if worker.role == "training"]
    running = sum(worker.state == "Running" for worker in training)
    return f"{running}/{len(task.spec.training_workers)}"


def _accuracy(task: FederatedTask | IncrementalLearningJob, _: datetime) -> str:
    return number(task.status.metrics.get("accuracy"))


def _made(task: FederatedTask, _: datetime) -> str:
    name, model = task.spec.aggregation_worker.model.name, task.status.model
    return f"{name} v{model.version}" if model else name


def serving(job: IncrementalLearningJob) -> str:
    """The model that answers: its version, or where it comes from while it has none."""
    found = job.status.serving
    if found is None:
        return "-"
    name = found.name or job.spec.output_model.name
    if found.version:
        return f"{name} v{found.version}"
    return f"{name} of round {found.round}" if found.round else f"a model without a number ({found.digest[:12]})"


def _why(job: IncrementalLearningJob, _: datetime) -> str:
    return trouble(job) or job.status.reason


def share_sent(counts: InferenceCounts) -> str:
    """Of all inferences, those that were sent to the cloud."""
    return f"{counts.sent / counts.inferences:.1%}" if counts.inferences else "-"


def version_served(model: ServingModel | None) -> str:
    if model is None:
        return "-"
    return f"v{model.version}" if model.version else model.digest[:12]


def _edges_serving(service: JointInferenceService, _: datetime) -> str:
    running = {row.name for row in service.status.workers if row.role == "edge" and row.state == "Running"}
    return f"{len(running)}/{len(service.spec.edge_workers)}"


def _replicas_ready(service: JointInferenceService, _: datetime) -> str:
    replicas = service.status.replicas
    return f"{replicas.ready}/{replicas.wanted}"


def trouble(task: FederatedTask | IncrementalLearningJob | JointInferenceService) -> str:
    """The one sentence that says why a task does not go on, or goes on badly; empty if all is well."""
    return trouble_in(task.status.conditions)


def _newest(model: Model) -> Any:
    return model.status.versions[-1] if model.status.versions else None


_NAME = Column("NAME", lambda item, _: item.name)
_AGE = Column("AGE", lambda item, now: age(item.metadata.creation_timestamp, now))

COLUMNS: dict[type[Resource], tuple[Column, ...]] = {
    FederatedTask: (
        _NAME,
        Column("PHASE", lambda task, _: task.status.phase.value, moment=True),
        Column("ROUND", _round),
        Column("WORKERS", _workers, moment=True),
        Column("ACCURACY", _accuracy),
        _AGE,
        Column("MODEL", _made, wide=True),
        Column("NODES", lambda task, _: ",".join(w.node_name for w in task.spec.training_workers), wide=True),
        Column("REASON", lambda task, _: trouble(task), wide=True),
    ),
    IncrementalLearningJob: (
        _NAME,
        Column("PHASE", lambda job, _: job.status.phase.value, moment=True),
        Column("ROUND", lambda job, _: str(job.status.round)),
        Column("STAGE", lambda job, _: job.status.stage or "-", moment=True),
        Column("STATE", lambda job, _: job.status.state or "-", moment=True),
        Column("NEW", lambda job, _: str(job.status.counts.new)),
        Column("UNLABELLED", lambda job, _: str(job.status.counts.unlabelled)),
        Column("ACCURACY", _accuracy),
        _AGE,
        Column("SERVING", lambda job, _: serving(job), wide=True, moment=True),
        Column("NODE", lambda job, _: job.spec.node_name, wide=True),
        Column("REASON", _why, wide=True),
    ),
    JointInferenceService: (
        _NAME,
        Column("PHASE", lambda service, _: service.status.phase.value, moment=True),
        Column("EDGES", _edges_serving, moment=True),
        Column("REPLICAS", _replicas_ready, moment=True),
        Column("INFERENCES", lambda service, _: str(service.status.counts.inferences)),
        Column("SENT", lambda service, _: share_sent(service.status.counts)),
        Column("FELL BACK", lambda service, _: str(service.status.counts.fell_back)),
        _AGE,
        Column("CLOUD MODEL", lambda service, _: version_served(service.status.cloud_serving), wide=True, moment=True),
        Column("NODES", lambda service, _: ",".join(w.node_name for w in service.spec.edge_workers), wide=True),
        Column("REASON", lambda service, _: trouble(service), wide=True),
    ),
    Dataset: (
        _NAME,
        Column("NODE", lambda item, _: item.spec.node_name),
        Column("FORMAT", lambda item, _: item.spec.format.value),
        Column("READY", lambda item, _: _condition(item.status.conditions, ConditionType.READY)[0], moment=True),
        Column("SAMPLES", lambda item, _: str(item.status.sample_count or "-")),
        _AGE,
        Column("URL", lambda item, _: item.spec.url, wide=True),
        Column("DIGEST", lambda item, _: (item.status.digest or "-")[:12], wide=True),
        Column("REASON", lambda item, _: _condition(item.status.conditions, ConditionType.READY)[1], wide=True),
    ),
    Model: (
        _NAME,
        Column("VERSION", lambda item, _: str(_newest(item).version) if _newest(item) else "-"),
        Column("ACCURACY", lambda item, _: number(_newest(item).metrics.get("accuracy")) if _newest(item) else "-"),
        Column("TASK", lambda item, _: (_newest(item).task if _newest(item) else "") or "-"),
        _AGE,
        Column("SIZE", lambda item, _: size(_newest(item).size_bytes) if _newest(item) else "-", wide=True),
        Column("DIGEST", lambda item, _: _newest(item).digest if _newest(item) else "-", wide=True),
    ),
    EdgeNode: (
        _NAME,
        Column("READY", lambda item, _: _condition(item.status.conditions, ConditionType.READY)[0], moment=True),
        Column("BROKER", lambda item, _: item.status.versions.get("broker", "-")),
        Column("LAUNCHER", lambda item, _: item.status.versions.get("launcher", "-")),
        _AGE,
        Column("PYTHON", lambda item, _: item.status.versions.get("python", "-"), wide=True),
        Column("MACHINE", lambda item, _: item.status.versions.get("machine", "-"), wide=True),
        Column("REASON", lambda item, _: _condition(item.status.conditions, ConditionType.READY)[1], wide=True),
    ),
}


def columns_of(kind: type[Resource], *, wide: bool = False) -> list[Column]:
    return [column for column in COLUMNS[kind] if wide or not column.wide]


def cells(resource: Resource, now: datetime, *, wide: bool = False, doubt: Doubt | None = None) -> list[str]:
    """A line of its table. `doubt`: why what it says of the moment is not known; the first such column has the age."""
    columns = columns_of(type(resource), wide=wide)
    shown = [column.cell(resource, now) for column in columns]
    if doubt is None:
        return shown
    word = doubt.word
    doubted = False
    for place, column in enumerate(columns):
        if column.moment and shown[place] not in _SURE:
            shown[place], word, doubted = word, UNKNOWN, True
        elif column.title == "REASON" and doubted:
            shown[place] = doubt.reason
    return shown


def aligned(rows: Sequence[Sequence[str]], least: Sequence[int] = ()) -> list[str]:
    """Lines with columns of equal width, at least the given ones; the last is not padded."""
    if not rows:
        return []
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    widths = [max(width, least[place] if place < len(least) else 0) for place, width in enumerate(widths)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return [GAP.join(row).rstrip() for row in padded]


def terminal_width() -> int | None:
    """Of standard output; None if that is no terminal: whoever reads a file or a pipe gets whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(rows: Sequence[Sequence[str]], width: int | None, names: Sequence[int], *, fold: bool = False) -> list[str]:
    """As `aligned`, in at most `width` characters if that can be: the columns `names` are shortened, the widest first.

    `fold`: the last column goes on in the next line, between words.
    """
    if width is None or not rows:
        return aligned(rows)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    if fold:
        widths[-1] = min(widths[-1], _LEAST_FOLDED)
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    for _ in range(excess):
        widest = max(names, key=lambda place: widths[place], default=0)
        if widest not in names or widths[widest] <= _LEAST_NAME:
            break
        widths[widest] -= 1
    cut = [[shorten(cell, widths[place]) if place in names else cell for place, cell in enumerate(row)] for row in rows]
    if not fold:
        return aligned(cut)
    left = max(width - sum(widths[:-1]) - len(GAP) * (len(widths) - 1), _LEAST_FOLDED)
    folded = []
    for row in cut:
        first, *others = wrapped(row[-1], left) or [""]
        folded += [[*row[:-1], first], *([*[""] * (len(row) - 1), other] for other in others)]
    return aligned(folded)


def shorten(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else f"{text[: width - 3]}..."


def wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """In lines of at most `width` characters, if no word is longer."""
    if width is None:
        return [f"{indent}{text}"]
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


# --- whole answers


def resources_text(
    found: Sequence[Resource],
    kind: type[Resource],
    form: Output,
    *,
    one: bool,
    now: datetime,
    width: int | None = None,
    beside: Sequence[Sequence[str]] = (),
    heard: Heard | None = None,
) -> str:
    """What `get` prints. `one`: a single resource was asked for by name. `width`: of the terminal, if it is one.

    `beside`: further cells of each line of a table, that of the titles first; they go before the last column.
    `heard`: what the coordinator knows of the moment, for tables; documents are shown as they are stored.
    """
    match form:
        case Output.NAME:
            return "\n".join(label_of(resource) for resource in found)
        case Output.JSON:
            documents = [resource.to_document() for resource in found]
            kind_name = f"{kind.model_fields['kind'].default}List"
            listed = {"apiVersion": API_VERSION, "kind": kind_name, "items": documents}
            return json.dumps(documents[0] if one else listed, indent=2, ensure_ascii=False)
        case Output.YAML:
            return dump_manifests(resource.to_document() for resource in found).rstrip("\n")
    wide = form is Output.WIDE
    titles = [column.title for column in columns_of(kind, wide=wide)]
    rows = [titles, *(_row(resource, now, wide, heard) for resource in found)]
    if beside:
        rows = [[*row[:-1], *more, row[-1]] for row, more in zip(rows, beside, strict=True)]
    return "\n".join(shorten(line, width) for line in fitted(rows, width, names=range(len(rows[0]))))


def _row(resource: Resource, now: datetime, wide: bool, heard: Heard | None) -> list[str]:
    if heard is None:
        return cells(resource, now, wide=wide)
    return cells(heard.truthful(resource), now, wide=wide, doubt=heard.doubt(resource))


def versions_text(models: Sequence[Model], servers: Sequence[Server] = ()) -> str:
    """What `model list` prints: every version, the newest last, and which of them jobs and services serve."""
    rows = [["MODEL", "VERSION", "STATE", "ACCURACY", "SIZE", "FORMAT", "TASK", "ROUND", "CREATED", "DIGEST"]]
    rows += [
        [
            model.name,
            str(version.version),
            _state_of(states.get(version.version)),
            number(version.metrics.get("accuracy")),
            size(version.size_bytes),
            version.format.value,
            version.task or "-",
            str(version.round or "-"),
            version.created_at,
            version.digest,
        ]
        for model in models
        for states in (version_states(model, servers),)
        for version in model.status.versions
    ]
    return "\n".join(aligned(rows))


def _state_of(found: tuple[VersionState, tuple[str, ...]] | None) -> str:
    if found is None:
        return "-"
    state, names = found
    return f"{state} ({', '.join(names)})" if names else state.value


def utc_now() -> datetime:
    return datetime.now(UTC)
