"""What the page of a joint inference service shows beside what every task has: edges with their counters, replicas, models.

Made from the stored document alone. Counters are sums since the service began, as the edges last told them. Pure.
"""

from __future__ import annotations

from typing import Any

from edgeai.resources.joint import InferenceCounts, ReplicaCount

Document = dict[str, Any]


def service_page(resource: Document) -> Document:
    """edges (a row each: counts, share sent, models), counts, share, replicas, cloud (name, model, serving), policy, models."""
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
        "models": models_of(spec),
    }


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


def models_of(spec: Document) -> list[str]:
    """Names of the Models that its workers serve."""
    workers = [*(spec.get("edgeWorkers") or ()), spec.get("cloudWorker") or {}]
    return sorted({str(worker["model"].get("name", "")) for worker in workers if worker.get("model")})


def line_of(status: Document) -> str:
    """`120 inferences, 12 % sent, 2 of 3 replicas`; empty for what is no service."""
    replicas, counts = status.get("replicas"), status.get("counts") or {}
    if not isinstance(replicas, dict):
        return ""
    share = share_sent(counts)
    sent = "" if share is None else f", {share:.0%} sent"
    found = f"{counts.get('inferences', 0)} inferences{sent}"
    return f"{found}, {replicas.get('ready', 0)} of {replicas.get('wanted', 0)} replicas"


__all__ = ["line_of", "models_of", "service_page", "share_sent"]
