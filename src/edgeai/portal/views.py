"""What readers get to see: plain JSON documents made from the read model, the same for REST, streams and pages.

The rule of this module: what is not known is shown as unknown with its age, never as the last good value. A resource carries
`live` (`known`, `age_s`, `reason`); where it is not known, its phase, its workers' states and its Ready condition say Unknown,
and numbers of the moment are null.
Pure: reads the model, asks nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeai.events.address import CLOUD
from edgeai.lifecycle import health
from edgeai.lifecycle.usage import MAY_RUN
from edgeai.portal.feed import Key
from edgeai.portal.inferring import History
from edgeai.portal.labels import EVERYTHING, Selector
from edgeai.portal.live import COORDINATOR, FINAL, OVERVIEW, TASK_KINDS, TIMELINE, Entry, Life, Live
from edgeai.portal.references import VERSION_COUNT
from edgeai.portal.services import curves, line_of
from edgeai.portal.stages import stage_of

UNKNOWN = "Unknown"
STREAMED_ROUNDS, STREAMED_ROWS = 20, 400
_ATTENTION_LIMIT = 100
Document = dict[str, Any]


# --- resources as they are stored, made truthful


def resource(live: Live, entry: Entry) -> Document:
    """The stored document with `metadata.resourceVersion` and `live`."""
    return _truthful(live, entry, entry.document())


def _truthful(live: Live, entry: Entry, document: Document) -> Document:
    life = live.life(entry)
    document["metadata"] = {**document.get("metadata", {}), "resourceVersion": str(entry.revision)}
    status = dict(document.get("status") or {})
    if entry.kind in TASK_KINDS:
        status = _task_status(live, entry, status, life)
    elif not life.known:
        status["conditions"] = _unknown_ready(status.get("conditions") or [], life)
    document["status"] = status
    document["live"] = life.document()
    return document


def _task_status(live: Live, entry: Entry, status: Document, life: Life) -> Document:
    status["workers"] = [_worker(live, entry, row, life) for row in status.get("workers") or ()]
    if entry.kind == "JointInferenceService":
        status |= _serving(live, entry, status, life)
    if not life.known:
        status["phase"] = UNKNOWN
        status["conditions"] = _unknown_ready(status.get("conditions") or [], life)
    return status


def _worker(live: Live, entry: Entry, row: Document, task: Life) -> Document:
    """`usage` null: it uses nothing."""
    name, node = str(row.get("name", "")), str(row.get("node", ""))
    if not (life := _life_at(live, entry, node, task)).known:
        row = {**row, "state": UNKNOWN, "reason": life.reason}
    return {**row, "usage": live.usage(entry, name, node) if row.get("state") in MAY_RUN else None}


def _life_at(live: Live, entry: Entry, node: str, task: Life) -> Life:
    """Of what a task does on a node: known when the task is, and, while the task runs, when the node is."""
    return live.node_life(node) if task.known and entry.phase not in FINAL else task


def _serving(live: Live, entry: Entry, status: Document, task: Life) -> Document:
    """Of a service, what its edges and replicas do now. Counters are sums, and stay what was last told."""
    found: Document = {"edges": [_edge(live, entry, row, task) for row in status.get("edges") or ()]}
    if not _life_at(live, entry, CLOUD, task).known:
        replicas = status.get("replicas") or {}
        wanted = replicas.get("wanted") if task.known else None
        found |= {"replicas": {**replicas, "wanted": wanted, "ready": None, "waiting": None}, "cloudServing": None}
    return found


def _edge(live: Live, entry: Entry, row: Document, task: Life) -> Document:
    life = _life_at(live, entry, str(row.get("node", "")), task)
    return row if life.known else {**row, "serving": None, "cloud": UNKNOWN, "reason": life.reason}


def _unknown_ready(conditions: list[Document], life: Life) -> list[Document]:
    return [
        {**item, "status": UNKNOWN, "reason": "NotHeardOf", "message": life.reason}
        if item.get("type") in ("Ready", "Progressing") and item.get("status") != "False"
        else item
        for item in conditions
    ]


# --- lists


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which part of a list: the next `limit` after a name, of those that fit. `full`: as stored instead of one line each.

    `state`: only those that are shown with this word (`state_of`).
    """

    limit: int = 100
    after: str = ""
    selector: Selector = EVERYTHING
    search: str = ""
    state: str = ""
    full: bool = False


def page(live: Live, kind: str, wanted: Wanted) -> Document:
    """`items` and `metadata`: the sequence number to follow changes from, how many fit, and `continue` if there are more."""
    fitting = [
        entry
        for entry in live.sorted(kind)
        if wanted.search in entry.name
        and wanted.selector.matches(entry.labels)
        and (not wanted.state or state_of(live, entry) == wanted.state)
    ]
    rest = [entry for entry in fitting if entry.name > wanted.after]
    render = resource if wanted.full else summary
    metadata: Document = {"sequence": live.feed.sequence, "total": len(fitting), "live": live.cloud_life().document()}
    if len(rest) > wanted.limit:
        metadata["continue"] = rest[wanted.limit - 1].name.encode("latin-1").hex()
    return {"items": [render(live, entry) for entry in rest[: wanted.limit]], "metadata": metadata}


# --- one line of a board or list


def summary(live: Live, entry: Entry, found: Document | None = None) -> Document:
    """What a list shows of a resource: small, and the same keys for every resource of a kind. `found`: its `resource`."""
    document = found or _truthful(live, entry, entry.brief_document())
    metadata, status = document["metadata"], document["status"]
    common = {
        "kind": entry.kind,
        "name": entry.name,
        "uid": entry.uid,
        "generation": metadata.get("generation", 0),
        "resource_version": metadata["resourceVersion"],
        "created": metadata.get("creationTimestamp"),
        "labels": entry.labels,
        "live": document["live"],
        "conditions": status.get("conditions") or [],
    }
    if entry.kind in TASK_KINDS:
        return common | _task(live, entry, document)
    return common | _SUMMARIES.get(entry.kind, _nothing)(live, entry, document)


def _task(live: Live, entry: Entry, document: Document) -> Document:
    spec, status = document["spec"], document["status"]
    workers = status.get("workers") or []
    parameters = ((spec.get("aggregationWorker") or {}).get("workerSpec") or {}).get("parameters") or []
    wanted = next((item.get("value") for item in parameters if item.get("key") == "rounds"), None)
    timeline = live.timelines.get(entry.level)
    collecting = next(
        (line for line in (timeline.workers.values() if timeline else ()) if line.step == "collecting"), None
    )
    return {
        "phase": status.get("phase", UNKNOWN),
        "observed_generation": status.get("observedGeneration", 0),
        "paused": bool(spec.get("paused", False)),
        "deleting": bool(document["metadata"].get("deletionTimestamp")),
        "round": status.get("round", 0),
        "stage": (stage_of(status) or line_of(status)) if live.life(entry).known else "",
        "rounds": wanted,
        "metrics": status.get("metrics") or {},
        "model": status.get("model"),
        "nodes": list(entry.nodes),
        "workers": dict(sorted(Counter(str(row.get("state", UNKNOWN)) for row in workers).items())),
        "collecting": None
        if collecting is None
        else {"round": collecting.step_round, "done": collecting.done, "total": collecting.total},
        "needs": _needs(live, entry),
    }


def _node(live: Live, entry: Entry, document: Document) -> Document:
    sign, life = live.signs.get(entry.name), live.node_life(entry.name)
    status = document["status"]
    hanging = live.on_node(entry.name)
    return {
        "state": _node_state(live, entry.name),
        "last_seen": status.get("lastSeen"),
        "heard_age_s": life.document()["age_s"],
        "address": status.get("address", ""),
        "versions": status.get("versions") or {},
        "uptime_s": round(sign.uptime_s, 1) if sign and life.known else None,
        "outbox": sign.outbox if sign and life.known else None,
        "clock_skew_s": sign.skew_s if sign and life.known else None,
        "health": health.health_document(live.health(entry.name)),
        "datasets": [item.name for item in hanging if item.kind == "Dataset"],
        "workers": [row for item in hanging if item.kind in TASK_KINDS for row in _workers_on(live, item, entry.name)],
        "needs": _node_needs(live, entry.name),
    }


def state_of(live: Live, entry: Entry) -> str:
    """The word that a list shows a resource with: a node's state or a task's phase; empty for what has none."""
    if entry.kind == "EdgeNode":
        return _node_state(live, entry.name)
    return _phase(live, entry) if entry.kind in TASK_KINDS else ""


def _node_state(live: Live, name: str) -> str:
    """ready: heard of; silent: no longer; gone: its broker says so; unknown: the portal cannot know."""
    if live.node_life(name).known:
        return "ready"
    sign = live.signs.get(name)
    if sign is None or not live.connected:
        return "unknown"
    return "gone" if sign.gone else "silent"


def _workers_on(live: Live, task: Entry, node: str) -> list[Document]:
    life, final = live.life(task), task.phase in FINAL
    rows = [_worker(live, task, row, life) for row in task.workers if row.get("node") == node]
    shown = ("name", "role", "state", "reason", "restarts", "usage")
    return [
        {
            "task_kind": task.kind,
            "task": task.name,
            **{name: row.get(name) for name in shown},
            "waiting": live.waiting(task, str(row.get("name")), node),
        }
        for row in rows
        if not final or row.get("state") == "Running"
    ]


def _dataset(_live: Live, entry: Entry, document: Document) -> Document:
    spec, status = document["spec"], document["status"]
    return {
        "node": spec.get("nodeName", ""),
        "url": spec.get("url", ""),
        "format": spec.get("format", ""),
        "samples": status.get("sampleCount"),
        "size_bytes": status.get("sizeBytes"),
        "digest": status.get("digest"),
        "schema": status.get("schema") or [],
        "needs": entry.needs,
    }


def _model(_live: Live, _entry: Entry, document: Document) -> Document:
    """The newest version without its lineage: that is on its own page."""
    status = document["status"]
    versions = status.get("versions") or []
    newest = {name: value for name, value in versions[-1].items() if name != "lineage"} if versions else None
    return {"versions": status.get(VERSION_COUNT, len(versions)), "newest": newest, "needs": ""}


def _nothing(_live: Live, _entry: Entry, _document: Document) -> Document:
    return {"needs": ""}


_SUMMARIES: dict[str, Callable[[Live, Entry, Document], Document]] = {
    "Dataset": _dataset,
    "EdgeNode": _node,
    "Model": _model,
}


def _needs(live: Live, entry: Entry) -> str:
    """What a person should read about a resource; empty if nothing."""
    return _node_needs(live, entry.name) if entry.kind == "EdgeNode" else entry.needs


def _node_needs(live: Live, name: str) -> str:
    """The gravest of what is wrong with it; who looks after the cloud's node looks after its coordinator and broker as well."""
    life = live.node_life(name)
    found = health.needs(live.health(name))
    if name == CLOUD:
        found += health.needs(live.health(COORDINATOR))
        if live.bus_trip[1]:
            found += (f"the broker of {CLOUD} takes messages of the portal and brings none back: see its log",)
    return found[0] if found else "" if life.known else life.reason


# --- whole pages


def overview(live: Live) -> Document:
    """Counts, what needs a person, throughput."""
    tasks = [entry for kind in TASK_KINDS for entry in live.entries[kind].values()]
    nodes = list(live.entries["EdgeNode"].values())
    watched = (*tasks, *nodes, *live.entries["Dataset"].values())
    needing = [(entry, sentence) for entry in watched if (sentence := _needs(live, entry))]
    return {
        "as_of": live.now(),
        "sequence": live.feed.sequence,
        "live": live.cloud_life().document(),
        "coordinator": live.coordinator_life().document(),
        "history_loaded": live.history_loaded,
        "nodes": dict(sorted(Counter(_node_state(live, entry.name) for entry in nodes).items())),
        "tasks": dict(sorted(Counter(_phase(live, entry) for entry in tasks).items())),
        "datasets": len(live.entries["Dataset"]),
        "models": len(live.entries["Model"]),
        "throughput": {
            "facts_per_s": live.rate("facts"),
            "signals_per_s": live.rate("signals"),
            "rounds_per_s": live.rate("rounds"),
            "bytes_per_s": live.rate("bytes"),
        },
        "cloud": _cloud(live),
        "attention": [
            {"kind": entry.kind, "name": entry.name, "sentence": sentence, "live": live.life(entry).document()}
            for entry, sentence in needing[:_ATTENTION_LIMIT]
        ],
        "attention_total": len(needing),
    }


def _cloud(live: Live) -> Document:
    """The cloud's broker as the portal sees it, its coordinator, and what runs there."""
    trip_s, silent = live.bus_trip if live.connected else (None, False)
    node = live.entries["EdgeNode"].get(CLOUD)
    status = node.document().get("status") or {} if node else {}
    return {
        "bus": {"answers": not silent if silent or trip_s is not None else None, "round_trip_s": trip_s},
        "coordinator": health.coordinator_document(live.health(COORDINATOR)),
        "versions": status.get("versions") or {},
    }


def _phase(live: Live, entry: Entry) -> str:
    return (entry.phase or "Pending") if live.life(entry).known else UNKNOWN


def timeline(live: Live, entry: Entry) -> Document:
    """The whole timeline of a task, with the task's own line."""
    return _timeline_head(live, entry) | live.timeline(entry).document()


def inference(live: Live, entry: Entry) -> Document:
    """Of a joint inference service: its counters over the last hour, and its offload curves."""
    history = live.inferring.of(entry.level) or History(live.now())
    return {"history": history.document(), "curves": curves(entry.document())}


def newest_rounds(live: Live, entry: Entry) -> Document:
    """What a stream sends of a timeline: the same keys without `plots`, newest rounds only."""
    return _timeline_head(live, entry) | live.timeline(entry).newest(STREAMED_ROUNDS, STREAMED_ROWS)


def _timeline_head(live: Live, entry: Entry) -> Document:
    return {"task": summary(live, entry), "history_loaded": live.history_loaded}


def changed(live: Live, key: Key, *, full: bool) -> Document | None:
    """What a stream sends for a key: None if it is gone meanwhile."""
    if key.topic == OVERVIEW:
        return overview(live)
    if key.topic == TIMELINE:
        kind, _, name = key.name.partition("/")
        entry = live.entries[kind].get(name)
        return newest_rounds(live, entry) if entry else None
    entry = live.entries[key.topic].get(key.name)
    if entry is None:
        return None
    return resource(live, entry) if full else summary(live, entry)


__all__ = [
    "UNKNOWN",
    "changed",
    "inference",
    "newest_rounds",
    "overview",
    "resource",
    "state_of",
    "summary",
    "timeline",
]
