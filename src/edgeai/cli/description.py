"""`edgeai describe`: everything about one resource that helps a person. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from edgeai.cli.doubt import UNKNOWN, Doubt, Heard
from edgeai.cli.health import node_blocks
from edgeai.cli.history import line_cells, without_task
from edgeai.cli.origins import LAST_COUNTS, LAST_USES, LAST_VERSIONS, counts_lines, lineage_lines, uses_lines
from edgeai.cli.output import (
    age,
    aligned,
    fitted,
    number,
    serving,
    share_sent,
    shorten,
    size,
    version_served,
    versions_text,
    wrapped,
)
from edgeai.cli.rounds import round_row, rounds_table
from edgeai.cli.usage import TITLES, worker_cells
from edgeai.client import HistoryLine, Task
from edgeai.events.catalogue import UsageRow
from edgeai.learning.triggers import described
from edgeai.lifecycle.curves import curves_of, sentences
from edgeai.lifecycle.stage import AT_LEAST_AS_GOOD, NOT_DEPLOYED
from edgeai.resources.base import Metadata, Resource
from edgeai.resources.conditions import Conditions
from edgeai.resources.dataset import Dataset
from edgeai.resources.federated import FederatedTask, WorkerStatus
from edgeai.resources.incremental import IncrementalLearningJob, StageRecord
from edgeai.resources.joint import EdgeWorker, InferenceCounts, JointInferenceService
from edgeai.resources.model import Model
from edgeai.resources.node import EdgeNode
from edgeai.resources.snapshots import DatasetUse
from edgeai.resources.versions import Server

LAST_EVENTS = 12
_ROUNDS, _STAGES = 20, 30
_FEW, _FIRST = 3, 10
"""Columns of inferences that stay together."""
_INDENT, _FURTHER = "  ", " " * 8
KEPT_OLD = "Kept old"
"""State of a stage Deploy that was over because the new model was not good enough."""


def description(
    resource: Resource,
    events: Sequence[HistoryLine],
    now: datetime,
    usage: Sequence[UsageRow] = (),
    width: int | None = None,
    *,
    servers: Sequence[Server] = (),
    uses: Sequence[DatasetUse] = (),
    heard: Heard | None = None,
) -> str:
    """The whole page. `usage`: of a task's workers. `width`: of the terminal, if it is one. `servers`: of what may serve a
    model. `uses`: what was made from a dataset. `heard`: what the coordinator knows of the moment; without it
    all is taken as known, save how a node does.
    """
    doubt = heard.doubt(resource) if heard else None
    resource = heard.truthful(resource) if heard else resource
    left = None if width is None else width - len(_INDENT)
    blocks = [_head(resource.kind, resource.metadata, now)]
    match resource:
        case FederatedTask():
            blocks += _task(resource, usage, width, doubt)
        case IncrementalLearningJob():
            blocks += _job(resource, usage, now, width, doubt)
        case JointInferenceService():
            blocks += _service(resource, usage, width, doubt)
        case Dataset():
            blocks += _dataset(resource, uses, width)
        case Model():
            blocks += _model(resource, servers, width)
        case EdgeNode():
            blocks += _node(resource, now)
            blocks += [
                _block(title, lines) for title, lines in node_blocks(resource.name, heard.answer if heard else None)
            ]
    status: Any = getattr(resource, "status", None)
    blocks.append(_conditions(status.conditions, now, left))
    if events:
        blocks.append(_block("Last events", _events(events[-LAST_EVENTS:], left)))
    return "\n\n".join(block for block in blocks if block)


def _head(kind: str, metadata: Metadata, now: datetime) -> str:
    pairs = [
        ("Name", metadata.name),
        ("Kind", kind),
        ("Generation", str(metadata.generation)),
        ("Created", f"{metadata.creation_timestamp or '-'} ({age(metadata.creation_timestamp, now)} ago)"),
    ]
    if metadata.deletion_timestamp:
        pairs.append(("Deleting since", metadata.deletion_timestamp))
    pairs += [("Label", f"{key}={value}") for key, value in sorted(metadata.labels.items())]
    return _pairs(pairs)


def _now(value: str, doubt: Doubt | None) -> str:
    """Of the moment: unknown if that is in doubt."""
    return UNKNOWN if doubt else value


def _phase(task: Task, doubt: Doubt | None) -> tuple[str, str]:
    return "Phase", doubt.sentence if doubt else task.status.phase.value


def _task(task: FederatedTask, usage: Sequence[UsageRow], width: int | None, doubt: Doubt | None) -> list[str]:
    spec, status, rules = task.spec, task.status, task.spec.rules()
    pairs = [
        _phase(task, doubt),
        ("Round", f"{status.round} of {rules.rounds}"),
        ("Accuracy", number(status.metrics.get("accuracy"))),
        ("Algorithm", spec.aggregation_worker.worker_spec.aggregation_algorithm.value),
        ("Model", spec.aggregation_worker.model.name),
        ("Made", f"version {status.model.version}, digest {status.model.digest}" if status.model else "-"),
        ("Quorum", f"{rules.min_node_number} of {len(spec.training_workers)} training workers"),
    ]
    given = [[key, str(value)] for key, value in sorted(spec.parameters().items()) if value is not None]
    left = None if width is None else width - len(_INDENT)
    parameters = fitted(given, left, names=(0,), fold=True)
    blocks = [_pairs(pairs, width), _block("Parameters", parameters), *_workers(status.workers, usage, width)]
    if status.rounds:
        title = "Rounds" if len(status.rounds) <= _ROUNDS else f"Rounds (the last {_ROUNDS} of {len(status.rounds)})"
        last = status.rounds[-_ROUNDS:]
        blocks.append(_block(title, rounds_table([round_row(row) for row in last])))
        refused = [f"round {row.round}, {who}: {why}" for row in last for who, why in sorted(row.refused.items())]
        lines = [line for each in refused for line in wrapped(each, left)]
        blocks.append(_block("Refused updates", lines) if refused else "")
    return blocks


def _workers(workers: Sequence[WorkerStatus], usage: Sequence[UsageRow], width: int | None) -> list[str]:
    """In one table, or, on a terminal that is too narrow for it, what they use in a second one."""
    if not workers:
        return []
    lives = [["NAME", "NODE", "ROLE", "STATE", "RESTARTS"]]
    lives += [[w.name, w.node, w.role, w.state, str(w.restarts)] for w in workers]
    uses = [TITLES, *(worker_cells(w, usage) for w in workers)]
    reasons = ["REASON", *(w.reason for w in workers)]
    whole = aligned([[*life, *used, reason] for life, used, reason in zip(lives, uses, reasons, strict=True)])
    left = None if width is None else width - len(_INDENT)
    if left is None or max(map(len, whole)) <= left:
        return [_block("Workers", whole)]
    rows = [[*life, reason] for life, reason in zip(lives, reasons, strict=True)]
    used_rows = [[*life[:2], *used] for life, used in zip(lives, uses, strict=True)]
    return [
        _block("Workers", fitted(rows, left, names=(0, 1), fold=True)),
        _block("Usage", fitted(used_rows, left, names=(0, 1))),
    ]


def _job(
    job: IncrementalLearningJob, usage: Sequence[UsageRow], now: datetime, width: int | None, doubt: Doubt | None
) -> list[str]:
    spec, status, counts = job.spec, job.status, job.status.counts
    left = None if width is None else width - len(_INDENT)
    mining = spec.hard_example_mining
    given = ", ".join(f"{key} {value}" for key, value in sorted(mining.values().items()))
    pairs = [
        _phase(job, doubt),
        ("Node", spec.node_name),
        ("Round", str(status.round)),
        ("Stage", _now(f"{status.stage} {status.state}", doubt) if status.stage else "-"),
        ("Reason", _now(status.reason, doubt) if status.reason else "-"),
        ("Serving", _now(serving(job), doubt)),
        ("Digest", _now(status.serving.digest, doubt) if status.serving else "-"),
        ("Accuracy", number(status.metrics.get("accuracy"))),
        ("Models", f"from {spec.initial_model.name}, into {spec.output_model.name}"),
        ("Dataset", f"{spec.dataset.name}, {spec.dataset.train_fraction:g} of it to train on"),
        ("Mining", f"{mining.algorithm.value} ({given})" if given else mining.algorithm.value),
        *_triggers(job),
    ]
    if status.arriving:
        rounds = ", ".join(str(model.round) for model in status.arriving)
        pairs.append(("On their way", f"models of round {rounds}"))
    examples = [
        ("To train on", str(counts.train)),
        ("Held out", str(counts.held_out)),
        ("New", str(counts.new)),
        ("Unlabelled", str(counts.unlabelled)),
        ("Requests", f"{counts.requests}, {counts.hard} of them hard"),
        ("Hard ones lost", str(counts.dropped)),
        *(("Dropped", each) for each in status.dropped),
    ]
    shown = _block("Examples", _pairs(examples, left).splitlines())
    blocks = [_pairs(pairs, width), shown, *_workers(status.workers, usage, width)]
    if status.history:
        last = status.history[-_STAGES:]
        title = "Stages" if len(last) == len(status.history) else f"Stages (the last {_STAGES})"
        blocks.append(_block(title, _stages(last, now, left)))
    return blocks


def _triggers(job: IncrementalLearningJob) -> list[tuple[str, str]]:
    """What the job waits for."""
    spec, counts = job.spec, job.status.counts
    trigger = spec.train.trigger
    known = {**job.status.metrics, "num_of_samples": counts.new, "num_of_unlabelled": counts.unlabelled}
    begins = described(trigger.condition, known) if trigger.condition else f"only by `edgeai trigger {job.name}`"
    pairs = [("Trigger", begins)]
    if trigger.window is not None:
        pairs.append(("Window", f"{trigger.window.start} to {trigger.window.end}, by the clock of {spec.node_name}"))
    return [*pairs, ("Deploys if", described(spec.deploy.trigger.condition or AT_LEAST_AS_GOOD))]


def _stages(rows: Sequence[StageRecord], now: datetime, width: int | None) -> list[str]:
    """A table; on a terminal that is too narrow for it, reasons stand in lines of their own."""
    cells = [["ROUND", "STAGE", "STATE", "SAMPLES", "ACCURACY", "SERVED", "AT" if width is None else "AGE"]]
    cells += [_stage_row(row, row.at if width is None else age(row.at, now)) for row in rows]
    whole = aligned(
        [[*row, reason] for row, reason in zip(cells, ["REASON", *(row.reason for row in rows)], strict=True)]
    )
    if width is None or max(map(len, whole)) <= width:
        return whole
    title, *lines = aligned(cells)
    return [title, *_under(lines, [wrapped(row.reason, width, _FURTHER) for row in rows])]


def _events(events: Sequence[HistoryLine], width: int | None) -> list[str]:
    """On a terminal that is too narrow, what an event says stands in a line of its own, as far as that goes."""
    rows = [without_task(line_cells(line)) for line in events]
    whole = aligned(rows)
    if width is None or max(map(len, whole)) <= width:
        return whole
    said = [[shorten(f"{_FURTHER}{row[-1]}", width)] if row[-1] else [] for row in rows]
    return _under(aligned([row[:-1] for row in rows]), said)


def _under(lines: Iterable[str], others: Iterable[list[str]]) -> list[str]:
    return [each for line, under in zip(lines, others, strict=True) for each in (line, *under)]


def _stage_row(row: StageRecord, when: str) -> list[str]:
    """Accuracy of the new model, and of the one that served until then."""
    accuracies = (number(metrics.get("accuracy")) for metrics in (row.metrics, row.serving))
    state = KEPT_OLD if row.state == "Completed" and row.reason.startswith(NOT_DEPLOYED) else row.state
    return [str(row.round), row.stage, state, str(row.samples or "-"), *accuracies, when]


def _service(
    service: JointInferenceService, usage: Sequence[UsageRow], width: int | None, doubt: Doubt | None
) -> list[str]:
    spec, status = service.spec, service.status
    cloud, policy, replicas = spec.cloud_worker, spec.policy, status.replicas
    limits = [
        f"at most {policy.max_offload_fraction:.0%} of the inferences",
        *([f"{policy.max_offload_per_second:g} a second"] if policy.max_offload_per_second is not None else []),
        *(
            [f"{size(int(policy.max_offload_bytes_per_second))} a second"]
            if policy.max_offload_bytes_per_second is not None
            else []
        ),
    ]
    pairs = [
        _phase(service, doubt),
        ("Edges", ", ".join(_edge_of(worker) for worker in spec.edge_workers)),
        ("Cloud", f"{cloud.name} ({cloud.model.name if cloud.model else 'no model'})"),
        ("Deadline", f"{policy.deadline_seconds:g} s, then {policy.on_cloud_failure}"),
        ("Sent", "; ".join(limits)),
    ]
    wanted = [
        ("Wanted", f"{_now(str(replicas.wanted), doubt)} of {cloud.replicas.min} to {cloud.replicas.max}"),
        ("Why", f"{replicas.reason or '-'}{f' ({replicas.at})' if replicas.at else ''}"),
        ("Ready", _now(f"{replicas.ready}, serving {version_served(status.cloud_serving)}", doubt)),
        ("Waiting", _now(f"{replicas.waiting} requests", doubt)),
    ]
    return [
        _pairs(pairs),
        *(_inferences(service, width) if status.edges else ()),
        _block("Models", aligned(rows)) if len(rows := _model_rows(service)) > 1 else "",
        _block("Offloading", curves) if (curves := _curves(service)) else "",
        _block("Replicas", _pairs(wanted).splitlines()),
        *_workers(status.workers, usage, width),
    ]


def _edge_of(worker: EdgeWorker) -> str:
    mining = worker.hard_example_mining.algorithm.value
    return f"{worker.name} on {worker.node_name} ({worker.model.name if worker.model else 'no model'}, {mining})"


def _curves(service: JointInferenceService) -> list[str]:
    """What other thresholds would send to the cloud, in words."""
    spec = service.spec
    found = curves_of(spec.edge_workers, service.status.edges, spec.policy.max_offload_fraction)
    return [f"{', '.join(each.workers)}: {told}" for each in found for told in sentences(each)]


def _inferences(service: JointInferenceService, width: int | None) -> list[str]:
    """A column for each of a few edges; of many a row, in one table or, on a narrow terminal, in two."""
    rows = _inference_rows(service)
    if len(rows) <= _FEW + 2:
        return [_block("Inferences", aligned(list(zip(*rows, strict=True))))]
    whole = aligned(rows)
    if width is None or max(map(len, whole)) <= width - len(_INDENT):
        return [_block("Inferences", whole)]
    first, second = ([row[:_FIRST] for row in rows], [[row[0], *row[_FIRST:]] for row in rows])
    return [_block("Inferences", aligned(first)), _block("Not sent, not answered", aligned(second))]


def _inference_rows(service: JointInferenceService) -> list[list[str]]:
    """One for each edge, and a last one for all of them."""
    titles = ["WORKER", "SERVING", "BREAKER", "INFERENCES", "HARD", "SENT", "SHARE", "ANSWERED", "LATE", "FELL BACK"]
    titles += ["OVER BUDGET", "NOT ASKED", "SHED", "REFUSED", "FAILED", "BYTES UP"]
    rows = [
        [
            edge.worker,
            UNKNOWN if edge.cloud == UNKNOWN else version_served(edge.serving),
            edge.cloud or "-",
            *_count_cells(edge.counts),
        ]
        for edge in service.status.edges
    ]
    total = [["all", "", "", *_count_cells(service.status.counts)]] if len(rows) > 1 else []
    return [titles, *rows, *total]


def _count_cells(counts: InferenceCounts) -> list[str]:
    before = [str(counts.inferences), str(counts.hard), str(counts.sent), share_sent(counts)]
    rest = (counts.answered, counts.late, counts.fell_back, counts.over_budget, counts.breaker_open)
    return [*before, *map(str, (*rest, counts.shed, counts.refused, counts.failed)), size(counts.bytes_sent)]


def _model_rows(service: JointInferenceService) -> list[list[str]]:
    """Which model was asked first; one that nobody serves any more has no name here."""
    cloud = service.status.cloud_serving
    rows = []
    for edge in service.status.edges:
        names = {
            model.digest: f"{model.name} {version_served(model)}".strip() for model in (cloud, edge.serving) if model
        }
        rows += [
            [edge.worker, names.get(digest, "-"), digest[:12], str(count)] for digest, count in edge.models.items()
        ]
    return [["WORKER", "MODEL", "DIGEST", "INFERENCES"], *rows]


def _dataset(dataset: Dataset, uses: Sequence[DatasetUse], width: int | None) -> list[str]:
    spec, status = dataset.spec, dataset.status
    pairs = [
        ("Node", spec.node_name),
        ("Url", spec.url),
        ("Format", spec.format.value),
        ("Samples", str(status.sample_count if status.sample_count is not None else "-")),
        ("Digest", status.digest or "-"),
    ]
    if status.size_bytes is not None:
        pairs.append(("Size", size(status.size_bytes)))
    rows = [["COLUMN", "TYPE", "SHAPE"]]
    rows += [[column.name, column.dtype, " x ".join(map(str, column.shape)) or "-"] for column in status.columns]
    left = None if width is None else width - len(_INDENT)
    history, last = status.history, [shorten(line, left) for line in counts_lines(status.history)]
    made = [shorten(line, left) for line in uses_lines(uses)]
    return [
        _pairs(pairs, width),
        _block("Schema", fitted(rows, left, names=(0,))) if status.columns else "",
        _block(_title("History", len(history), LAST_COUNTS), last) if history else "",
        _block(_title("Snapshots", len(uses), LAST_USES), made) if uses else "",
    ]


def _title(title: str, there: int, shown: int) -> str:
    return title if there <= shown else f"{title} (the last {shown} of {there})"


def _model(model: Model, servers: Sequence[Server], width: int | None) -> list[str]:
    spec = model.spec
    kept = f"the newest {spec.keep.max_versions} versions"
    pairs = [("Url", spec.url or "-"), ("Format", spec.format.value if spec.format else "-"), ("Keeps", kept)]
    left = None if width is None else width - len(_INDENT)
    there = (
        [shorten(line, left) for line in versions_text([model], servers).splitlines()] if model.status.versions else []
    )
    versions = model.status.versions
    lineage = [
        line for each in lineage_lines(model) for line in wrapped(each, left, each[: len(each) - len(each.lstrip())])
    ]
    return [
        _pairs(pairs, width),
        _block("Versions", there or ["none yet"]),
        _block(_title("Lineage", len(versions), LAST_VERSIONS), lineage) if versions else "",
    ]


def _node(node: EdgeNode, now: datetime) -> list[str]:
    status = node.status
    seen = f"{status.last_seen} ({age(status.last_seen, now)} ago)" if status.last_seen else "-"
    pairs = [("Last seen", seen), ("Address", status.address or "-")]
    return [_pairs([*pairs, *((key.capitalize(), value) for key, value in sorted(status.versions.items()))])]


def _conditions(conditions: Conditions, now: datetime, width: int | None) -> str:
    rows = [["TYPE", "STATUS", "AGE", "REASON", "MESSAGE"]]
    rows += [[c.type.value, c.status, age(c.last_transition_time, now), c.reason, c.message] for c in conditions]
    return _block("Conditions", fitted(rows, width, names=(3,), fold=True)) if conditions else ""


def _pairs(pairs: Iterable[tuple[str, str]], width: int | None = None) -> str:
    return "\n".join(fitted([[f"{key}:", value] for key, value in pairs], width, names=(), fold=True))


def _block(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"{title}:", *(f"{_INDENT}{line}" for line in lines)])
