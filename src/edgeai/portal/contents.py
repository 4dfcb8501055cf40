"""What each page is about: the table of pages, and the dictionary `data` that a page's template gets.

Made from `views`, so a page and the REST API say the same. What is only for pages is added here: which edges and tasks come
first on the overview, numbers beside the filters of a list, a task's workers in one row each, what made a model's versions.
Nothing here is larger than what one page shows.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

from edgeai.errors import NotFound
from edgeai.events.address import CLOUD
from edgeai.portal import views
from edgeai.portal.access import Role
from edgeai.portal.api import manifest_of, plural
from edgeai.portal.context import Portal
from edgeai.portal.live import FINAL, TASK_KINDS, Entry, Live
from edgeai.portal.manifests import Manifests
from edgeai.portal.origins import compared, counts_plot, snapshots, states
from edgeai.portal.references import models_on
from edgeai.portal.services import changes, service_page
from edgeai.portal.stages import job_page
from edgeai.portal.timeline import ROUNDS_LIMIT

Data = Callable[[Portal, Request], Awaitable[dict[str, Any]]]
AUDIT_LINES = 200
COMPARE_TEXT, FOLLOWED = 200, 20
BOARD_EDGES, BOARD_TASKS, FOUND = 240, 12, 20
PAGE_ITEMS, PAGE_ROUNDS, PAGE_WORKERS, OPEN_ROUNDS = 100, 20, 100, 10
_WORST_FIRST = {"gone": 0, "silent": 1, "unknown": 2, "ready": 3}
_BUSY_FIRST = {"Failed": 0, "Running": 1, "Preparing": 2, "Deleting": 3, "Paused": 4, "Pending": 5, "Unknown": 6}
_WORKERS_FIRST = {"Failed": 0, "Unknown": 1, "Running": 2}
_JOB, _SERVICE = "IncrementalLearningJob", "JointInferenceService"
_MANIFESTS = Manifests()
SEARCHED = (*TASK_KINDS, "EdgeNode", "Model", "Dataset")


@dataclass(frozen=True, slots=True)
class Page:
    """`data` makes what the template gets under that name."""

    path: str
    name: str
    title: str
    data: Data
    role: Role = Role.VIEWER


# --- the whole


async def _overview(portal: Portal, _request: Request) -> dict[str, Any]:
    """overview (as /api/v1/overview), board (the edges, worst first), tasks (those that are busy or in need, first)."""
    live = portal.live
    live.require_synced()
    tasks = [entry for kind in TASK_KINDS for entry in live.sorted(kind)]
    tasks.sort(key=lambda entry: (not entry.needs, _BUSY_FIRST.get(views.state_of(live, entry), 9)))
    return {
        "overview": views.overview(live),
        "board": _board(live),
        "tasks": {"items": [views.summary(live, entry) for entry in tasks[:BOARD_TASKS]], "total": len(tasks)},
    }


def _board(live: Live) -> dict[str, Any]:
    """A tile for each node, and how many edges (the cloud's own node is none) there are of every state."""
    nodes = [(views.state_of(live, entry), entry.name) for entry in live.sorted("EdgeNode")]
    states = _counted(state for state, name in nodes if name != CLOUD)
    nodes.sort(key=lambda node: (_WORST_FIRST[node[0]], len(node[1]), node[1]))
    tiles = [
        {"name": name, "state": state, "live": live.node_life(name).document()} for state, name in nodes[:BOARD_EDGES]
    ]
    return {"tiles": tiles, "total": len(nodes), "states": states, "edges": sum(states.values())}


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


async def _search(portal: Portal, request: Request) -> dict[str, Any]:
    """search, found: by kind the first that have it in their name."""
    search = _text(request, "search")
    wanted = views.Wanted(search=search, limit=FOUND)
    return {"search": search, "found": {kind: views.page(portal.live, kind, wanted) for kind in SEARCHED}}


# --- lists


def _list(*kinds: str) -> Data:
    async def data(portal: Portal, request: Request) -> dict[str, Any]:
        """items (summaries by name), search, state, states (how many of each), total, next (address of the next page)."""
        live, search, state, after = portal.live, *(_text(request, name) for name in ("search", "state", "after"))
        wanted = views.Wanted(search=search, state=state, after=after, limit=PAGE_ITEMS)
        lists = [views.page(live, kind, wanted) for kind in kinds]
        items = sorted((item for found in lists for item in found["items"]), key=lambda item: item["name"])
        shown = [item for item in items if item["name"] <= items[:PAGE_ITEMS][-1]["name"]]
        more = len(shown) < len(items) or any("continue" in found["metadata"] for found in lists)
        entries = [entry for kind in kinds for entry in live.sorted(kind) if search in entry.name]
        states = _counted(word for entry in entries if (word := views.state_of(live, entry)))
        found = {"items": shown, "search": search, "state": state, "after": after, "states": states}
        kept = {"search": search, "state": state, "after": shown[-1]["name"]} if more else {}
        return found | {"total": len(entries), "next": _address(request, kept)}

    return data


def _address(request: Request, query: dict[str, str]) -> str:
    asked = urlencode({name: text for name, text in query.items() if text})
    return f"{request.url.path}?{asked}" if asked else ""


def _text(request: Request, name: str) -> str:
    return request.query_params.get(name, "").strip()[:50]


# --- one resource


async def _about(live: Live, entry: Entry) -> dict[str, Any]:
    resource = views.resource(live, entry)
    return {
        "kind": entry.kind,
        "plural": plural(entry.kind),
        "summary": views.summary(live, entry, resource),
        "resource": resource,
        "manifest": await _MANIFESTS.text(entry, resource["metadata"], manifest_of),
    }


async def _edge(portal: Portal, request: Request) -> dict[str, Any]:
    """As of every resource, and: datasets (summaries), models (names) that tasks train or serve on it."""
    live = portal.live
    entry = live.entry("EdgeNode", request.path_params["name"])
    hanging = live.on_node(entry.name)
    tasks = [item.document()["spec"] for item in hanging if item.kind in TASK_KINDS]
    models = {name for spec in tasks for name in models_on(entry.name, spec)}
    datasets = [views.summary(live, item) for item in hanging if item.kind == "Dataset"]
    return await _about(live, entry) | {"datasets": datasets, "models": sorted(models)}


def _model_of(spec: dict[str, Any]) -> str:
    found = (spec.get("aggregationWorker") or {}).get("model") or spec.get("outputModel") or {}
    return str(found.get("name", ""))


async def _task(portal: Portal, request: Request) -> dict[str, Any]:
    """As of every resource, and: timeline (newest rounds), workers (a row each), both totals, all, job, service.

    `validating` are the numbers of rounds that only evaluate the last model; a task that is `over` takes no change any more.

    A round has also `states`: how many workers are in which. `open` are the rounds that the reader has unfolded: only of those,
    and of open ones, it is written who did what.
    """
    kinds = {plural(kind): kind for kind in TASK_KINDS}
    kind = kinds.get(request.path_params["kind"])
    if kind is None:
        raise NotFound("kind of task", request.path_params["kind"][:60], f"there is {', '.join(sorted(kinds))}")
    live, everything = portal.live, request.query_params.get("all") == "1"
    entry = live.entry(kind, request.path_params["name"])
    about = await _about(live, entry)
    history = live.timeline(entry)
    timeline = {"history_loaded": live.history_loaded, **history.document(ROUNDS_LIMIT if everything else PAGE_ROUNDS)}
    job = job_page(about["resource"]) if kind == _JOB else None
    if job is not None:
        timeline = {**timeline, "plots": job.pop("plots")}
    workers = _workers(about["resource"], timeline)
    for line in timeline["rounds"]:
        line["states"] = Counter(row["state"] for row in line["workers"])
    return about | {
        "timeline": timeline,
        "rounds_total": len(history.rounds),
        "rounds_trained": sum(number > 0 and found.closed_at is not None for number, found in history.rounds.items()),
        "validating": _validating(timeline["rounds"], about["summary"]["rounds"], entry.phase),
        "workers": workers if everything else workers[:PAGE_WORKERS],
        "workers_total": len(workers),
        "all": everything,
        "open": [int(part) for part in _text(request, "open").split(",") if part.isdecimal()][:OPEN_ROUNDS],
        "model": _model_of(about["resource"].get("spec") or {}),
        "job": job,
        "service": service_page(about["resource"]) | {"changes": changes(timeline)} if kind == _SERVICE else None,
        "final": entry.phase in FINAL,
        "over": kind not in (_JOB, _SERVICE) and entry.phase in FINAL,
        "paused": bool((about["resource"].get("spec") or {}).get("paused")),
    }


def _validating(rounds: list[dict[str, Any]], wanted: Any, phase: str) -> list[int]:
    """What was asked after the last round that counts: by its number, or because the task succeeded without its outcome."""
    found = [line["round"] for line in rounds if isinstance(wanted, int) and line["round"] > wanted]
    if not found and rounds and phase == "Succeeded" and rounds[-1]["state"] == "ended":
        found = [rounds[-1]["round"]]
    return found


def _workers(resource: dict[str, Any], timeline: dict[str, Any]) -> list[dict[str, Any]]:
    """What the status and the history say of each worker, in one row; those in need first."""
    lines = {line["worker"]: line for line in timeline["workers"]}
    rows = [
        {**lines.pop(str(row.get("name")), {}), **row, "name": row.get("name")}
        for row in resource["status"].get("workers") or ()
    ]
    rows += [{**line, "name": line["worker"], "state": _ended(line)} for line in lines.values()]
    return sorted(rows, key=lambda row: (_WORKERS_FIRST.get(str(row.get("state")), 3), str(row.get("name"))))


def _ended(line: dict[str, Any]) -> str:
    """Of a worker that the status does not name any more."""
    return "Unknown" if line["ok"] is None else "Ended" if line["ok"] else "Failed"


async def _model(portal: Portal, request: Request) -> dict[str, Any]:
    """As of every resource, and: versions (newest first), metrics (names), compared (`origins`), open.

    A version has also `plural` (of the kind of the task that made it, if that is still there), `state` and `by` (`origins`).
    """
    live = portal.live
    about = await _about(live, live.entry("Model", request.path_params["name"]))
    tasks = {entry.uid: entry.kind for kind in TASK_KINDS for entry in live.entries[kind].values()}
    told = {item["version"]: item for item in states(live, about["summary"]["name"], _stored(about["resource"]))}
    versions = [
        {
            "state": "",
            "by": [],
            "metrics": {},
            **told.get(version["version"], {}),
            **version,
            "plural": plural(tasks[uid]) if (uid := version.get("taskUid", "")) in tasks else "",
        }
        for version in reversed(about["resource"]["status"].get("versions") or [])
    ]
    chosen = _numbers(",".join(request.query_params.getlist("compare"))[:COMPARE_TEXT])
    return about | {
        "versions": versions,
        "metrics": sorted({name for item in versions for name in item["metrics"]}),
        "compared": compared(versions, chosen),
        "chosen": chosen,
        "open": _numbers(_text(request, "open")),
    }


def _stored(resource: dict[str, Any]) -> dict[str, Any]:
    """Without what `views.resource` adds."""
    return {name: value for name, value in resource.items() if name != "live"}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.isascii() and part.isdecimal()]


async def _dataset(portal: Portal, request: Request) -> dict[str, Any]:
    """As of every resource, and: history (newest first), plot, snapshots (`origins`), there (uids of
    tasks), using (what is to be followed of those that use it).
    """
    live, name = portal.live, request.path_params["name"]
    about = await _about(live, live.entry("Dataset", name))
    history = about["resource"]["status"].get("history") or []
    there = {entry.uid for kind in TASK_KINDS for entry in live.entries[kind].values()}
    using = [f"{entry.kind}:{entry.name}" for entry in live.from_dataset(name) if entry.kind != "Model"]
    return about | {
        "history": history[::-1],
        "plot": counts_plot(history),
        "snapshots": await snapshots(live, name),
        "there": there,
        "using": using[:FOLLOWED],
    }


# --- the rest


async def _nothing(_portal: Portal, _request: Request) -> dict[str, Any]:
    return {}


async def _tokens(portal: Portal, _request: Request) -> dict[str, Any]:
    """tokens: those there are, by name, without their secrets."""
    grants = await asyncio.to_thread(portal.access.tokens)
    return {"tokens": [{"name": each.name, "role": each.role, "created": each.created} for each in grants]}


async def _audit(portal: Portal, _request: Request) -> dict[str, Any]:
    """lines: the newest of the audit log."""
    return {"lines": await portal.audit.newest(AUDIT_LINES)}


PAGES = (
    Page("/", "overview", "Overview", _overview),
    Page("/search", "search", "Search", _search),
    Page("/tasks", "tasks", "Tasks", _list(*TASK_KINDS)),
    Page("/tasks/{kind}/{name}", "task", "Task", _task),
    Page("/edges", "edges", "Edges", _list("EdgeNode")),
    Page("/edges/{name}", "edge", "Edge", _edge),
    Page("/models", "models", "Models", _list("Model")),
    Page("/models/{name}", "model", "Model", _model),
    Page("/datasets", "datasets", "Datasets", _list("Dataset")),
    Page("/datasets/{name}", "dataset", "Dataset", _dataset),
    Page("/apply", "apply", "Apply", _nothing, Role.OPERATOR),
    Page("/tokens", "tokens", "Tokens", _tokens, Role.ADMIN),
    Page("/audit", "audit", "Audit log", _audit, Role.ADMIN),
)
