"""What the page of a joint inference service shows beside what every task has: edges with their counters, replicas, models,
what would be sent to the cloud by other thresholds, and what changed.

Made from the document that readers get (`views.resource`: what is not known is null) and the timeline alone. Counters are sums
since the service began, as the edges last told them. Pure. How counters went over time is in `inferring`.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from edgeai.learning.offload_curve import Point
from edgeai.lifecycle.curves import OffloadCurve, curves_of, sentences
from edgeai.portal.references import models_of
from edgeai.resources.joint import EdgeServing, EdgeWorker, InferenceCounts, Policy, ReplicaCount

Document = dict[str, Any]
_WORKERS, _EDGES = TypeAdapter(tuple[EdgeWorker, ...]), TypeAdapter(tuple[EdgeServing, ...])
_WHAT = {
    "model": "serves another model",
    "model-refused": "refused a model",
    "breaker-opened": "stopped asking the cloud",
    "breaker-closed": "asks the cloud again",
    "replicas": "another number of replicas",
}


def service_page(resource: Document) -> Document:
    """edges (a row each: counts, share sent, models), counts, share, replicas, cloud (name, model, serving), policy, models,
    curves."""
    spec, status = resource.get("spec") or {}, resource.get("status") or {}
    cloud = spec.get("cloudWorker") or {}
    counts = _counts(status)
    replicas = ReplicaCount().model_dump(by_alias=True) | (status.get("replicas") or {})
    return {
        "edges": [_edge(row) for row in status.get("edges") or ()],
        "counts": counts,
        "share": share_sent(counts),
        "replicas": (cloud.get("replicas") or {}) | replicas,
        "cloud": {"name": cloud.get("name", ""), "serving": status.get("cloudServing")},
        "policy": spec.get("policy") or {},
        "models": list(models_of(spec)),
        "curves": curves(resource),
    }


def curves(resource: Document) -> list[Document]:
    """What other thresholds would send and the cloud would change, the curve with most inferences first."""
    spec, status = resource.get("spec") or {}, resource.get("status") or {}
    scored = [edge for edge in status.get("edges") or () if edge.get("scores")]
    if not scored:
        return []
    names = {edge.get("worker") for edge in scored}
    try:
        workers = _WORKERS.validate_python(tuple(w for w in spec.get("edgeWorkers") or () if w.get("name") in names))
        edges, policy = _EDGES.validate_python(tuple(scored)), Policy.model_validate(spec.get("policy") or {})
    except ValidationError:  # of another version of the system
        return []
    return [_curve(found) for found in curves_of(workers, edges, policy.max_offload_fraction)]


def _curve(found: OffloadCurve) -> Document:
    return {
        "workers": list(found.workers),
        "edge": found.edge,
        "cloud": found.cloud,
        "mining": found.mining,
        "axis": f"{found.axis.what} {'below' if found.axis.below else 'above'}" if found.axis is not None else "",
        "inferences": found.histogram.total,
        "answers": found.answers,
        "changed": found.changed,
        "apart": found.histogram.apart,
        "threshold": found.threshold,
        "budget": found.budget,
        "says": list(sentences(found)),
        "points": [_point(threshold, point) for threshold, point in found.points],
    }


def _point(threshold: float, point: Point) -> Document:
    changed = None if point.changed is None else round(point.changed, 4)
    return {"threshold": threshold, "sent": round(point.sent, 4), "changed": changed, "answers": point.answers}


def changes(timeline: Document) -> list[Document]:
    """What changed, newest first, in words."""
    return [{**row, "said": _said(row)} for row in reversed(timeline.get("changes") or ())]


def _said(row: Document) -> str:
    words = _WHAT.get(row["what"], str(row["what"]))
    match row["what"]:
        case "model":
            before = f"{_model(row['version_before'], row['before'])} before" if row["before"] else ""
            words = f"serves {_model(row['version'], row['after'])}{f', {before}' if before else ''}"
        case "model-refused":
            words = (
                f"refused {_model(row['version'], row['after'])}, serves {_model(row['version_before'], row['before'])}"
            )
        case "replicas":
            words = f"{row['after']} replicas are wanted, {row['before']} before"
    return f"{words}, {row['times']} times" if row["times"] > 1 else words


def _model(version: int, digest: str) -> str:
    return f"version {version}" if version else f"model {digest[:12]}" if digest else "none"


def _edge(row: Document) -> Document:
    counts = _counts(row)
    return {**row, "counts": counts, "share": share_sent(counts), "models": row.get("models") or {}}


def _counts(document: Document) -> Document:
    """All of them: what is not said is zero."""
    return InferenceCounts().model_dump(by_alias=True) | (document.get("counts") or {})


def share_sent(counts: Document) -> float | None:
    """Of all inferences, those that were sent to the cloud; None: there was none yet."""
    inferences = int(counts.get("inferences", 0))
    return int(counts.get("sent", 0)) / inferences if inferences else None


def line_of(status: Document) -> str:
    """`120 inferences, 12 % sent, 2 of 3 replicas`; empty for what is no service."""
    replicas, counts = status.get("replicas"), status.get("counts") or {}
    if not isinstance(replicas, dict):
        return ""
    share = share_sent(counts)
    sent = "" if share is None else f", {share:.0%} sent"
    found = f"{counts.get('inferences', 0)} inferences{sent}"
    ready = replicas.get("ready", 0)
    return f"{found}, {'unknown' if ready is None else ready} of {replicas.get('wanted', 0)} replicas"


__all__ = ["changes", "curves", "line_of", "service_page", "share_sent"]
