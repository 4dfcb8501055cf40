"""What every daemon counts, as one table, and the small functions that count it.

A daemon calls the functions; who asks for `/metrics` gets them in Prometheus' text format, from the portal where it runs in
the same process, from `serve` elsewhere. Labels have few values each: no worker, digest or sentence becomes one, and of tasks
only the jobs and services of a node, whose numbers go when they do. Knows no service and no bus; `docs/api.md` holds
the same table, made from this module.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from edgeai.errors import PortTaken, Refused

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

CONTENT_TYPE = CONTENT_TYPE_LATEST
LOOP_INTERVAL_S = 0.25
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Refusal(StrEnum):
    """Why a message was not taken. A closed list: the sentence is in the log."""

    MALFORMED = "malformed"
    FOREIGN = "foreign"
    STALE = "stale"
    TOO_LARGE = "too_large"
    OVERFLOW = "overflow"
    DAMAGED = "damaged"
    OTHER = "other"


class Flow(StrEnum):
    """Which way bytes of a transfer went, seen from this process."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True, slots=True)
class Described:
    """One line of the table."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


TABLE: list[Described] = []


def _described(kind: str, name: str, text: str, labels: tuple[str, ...]) -> dict[str, Any]:
    shown = f"edgeai_{name}_total" if kind == "counter" else f"edgeai_{name}"
    TABLE.append(Described(shown, kind, labels, text))
    return {"name": f"edgeai_{name}", "documentation": text, "labelnames": labels, "registry": REGISTRY}


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(**_described("counter", name, text, labels))


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(**_described("gauge", name, text, labels))


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(**_described("histogram", name, text, labels), buckets=buckets)


_LOOP_LAG = _histogram("loop_lag_seconds", "How late the event loop woke a timer.", _LAGS)
_OUTBOX = _gauge("outbox_facts", "Facts without a receipt in the outbox of a source on this node.", "source")
_TRANSFERRED = _counter("transfer_bytes", "Bytes of blobs, by direction seen from this process.", "flow")
_RECONNECTS = _counter("bus_reconnects", "Connections to a broker after the first one.", "bus")
_CONNECTED = _gauge("bus_connected", "1 while the broker has accepted this process.", "bus")
_REFUSED = _counter("messages_refused", "Messages that were not taken, by reason.", "reason")
_DROPPED = _counter("messages_dropped", "Deliveries that found no room or no reader.", "bus")
_ROUNDS = _counter("rounds", "Rounds of federated tasks, by outcome: closed or missed.", "outcome")
_ROUND_SECONDS = _histogram("round_seconds", "From asking the workers to the fixed outcome of a round.", _SECONDS)
_UPDATES = _counter("updates", "Updates of training workers, by outcome.", "outcome")
_WORKERS = _gauge("workers", "Workers on this node, by state.", "state")
_STARTS = _counter("worker_starts", "Programs of workers that were started, by role.", "role")
_SERVED = _counter("serving_requests", "Requests to a job's inference worker, by outcome.", "job", "outcome")
_HARD = _counter(
    "serving_hard_examples", "Hard examples, by outcome: found, or not_kept by the worker.", "job", "outcome"
)
_HARD_RATE = _gauge("serving_hard_rate", "Share of hard ones among the last requests.", "job")
_LATENCY = _gauge("serving_latency_seconds", "Of the last requests: the quantiles 0.5 and 0.99.", "job", "quantile")
_VERSION = _gauge("serving_model_version", "Version of the model that answers; 0: it has none yet.", "job")
_COUNTED: dict[str, tuple[Counter, str]] = {
    "answered": (_SERVED, "answered"),
    "failed": (_SERVED, "failed"),
    "hard": (_HARD, "found"),
    "not_kept": (_HARD, "not_kept"),
}
_LEVELS: dict[str, tuple[Any, ...]] = {
    "hard_rate": (_HARD_RATE,),
    "p50_s": (_LATENCY, "0.5"),
    "p99_s": (_LATENCY, "0.99"),
    "version": (_VERSION,),
}
_INFERENCES = _counter(
    "inferences",
    "Of a worker of a joint inference service, by its counts (docs/joint-inference.md).",
    "service",
    "count",
)
_INFERENCE_SECONDS = _gauge(
    "inference_seconds",
    "Of an edge worker's last answers, by who answered: quantiles 0.5 and 0.99.",
    "service",
    "by",
    "quantile",
)
_BREAKER = _gauge(
    "inference_breaker_open", "1 while the edge worker does not ask the cloud, 0.5 while it tries.", "service"
)
_WAITING = _gauge("inference_waiting", "Requests that wait at this node's worker of a service.", "service")
_NODES = _gauge("nodes", "Nodes that the coordinator knows, by state: ready or unknown.", "state")
_TASKS = _gauge("tasks", "Tasks that the coordinator knows, by phase.", "phase")
_REQUESTS = _counter(
    "portal_requests", "Requests to the portal, by method and class of the status.", "method", "status"
)
_STREAMS = _gauge("portal_streams", "Open streams of server-sent events.")
_SEQUENCE = _gauge("portal_changes", "Changes that the portal's read model has seen since it started.")
_AUDIT = _counter("portal_audit_failures", "Lines of the audit log that could not be written.")


# --- every daemon


def loop_lag(seconds: float) -> None:
    _LOOP_LAG.observe(max(0.0, seconds))


async def watch_loop_lag(interval_s: float = LOOP_INTERVAL_S, clock: Callable[[], float] = time.monotonic) -> None:
    """Measure for ever how late the loop is; one task per process."""
    while True:
        before = clock()
        await asyncio.sleep(interval_s)
        loop_lag(clock() - before - interval_s)


def outbox_depth(source: str, facts: int) -> None:
    """`source` is a node or the name of a role on it (`edge1`, `aggregation`), never a task."""
    _OUTBOX.labels(source).set(facts)


def transferred(flow: Flow, size_bytes: int) -> None:
    _TRANSFERRED.labels(flow.value).inc(size_bytes)


def connected(bus: str, up: bool, *, again: bool = False) -> None:
    """A bus (`mqtt` or `nats`) gained or lost its broker; `again`: it had been connected before."""
    _CONNECTED.labels(bus).set(1 if up else 0)
    if up and again:
        _RECONNECTS.labels(bus).inc()


def message_refused(reason: Refusal) -> None:
    _REFUSED.labels(reason.value).inc()


def messages_dropped(bus: str, count: int = 1) -> None:
    _DROPPED.labels(bus).inc(count)


def workers(states: Mapping[str, int]) -> None:
    """How many workers of this node are in which state; states that are not named have none."""
    _WORKERS.clear()
    for state, count in states.items():
        _WORKERS.labels(state).set(count)


def worker_started(role: str) -> None:
    _STARTS.labels(role).inc()


# --- the coordinator, the aggregation worker


def round_closed(seconds: float) -> None:
    _ROUNDS.labels("closed").inc()
    _ROUND_SECONDS.observe(seconds)


def round_missed() -> None:
    _ROUNDS.labels("missed").inc()


def update_judged(outcome: str) -> None:
    """`outcome` is a verdict's: counted, duplicate, stale or refused."""
    _UPDATES.labels(outcome).inc()


def serving(job: str, more: Mapping[str, int], levels: Mapping[str, float]) -> None:
    """What a job's inference worker says: `more` since it was heard last, of `answered`, `failed`, `hard` and `not_kept`; and
    the `levels` of `hard_rate`, `p50_s`, `p99_s` and `version`."""
    for name, (metric, *labels) in _COUNTED.items():
        metric.labels(job, *labels).inc(max(0, more.get(name, 0)))
    for name, (gauge, *labels) in _LEVELS.items():
        gauge.labels(job, *labels).set(levels.get(name, 0.0))


def serves_no_more(job: str) -> None:
    """The job is gone from this node."""
    for metric, *labels in (*_COUNTED.values(), *_LEVELS.values()):
        with suppress(KeyError):  # it has never been heard
            metric.remove(job, *labels)


def inferences(service: str, more: Mapping[str, int]) -> None:
    """What a worker of a joint inference service has counted since it was heard last."""
    for name, count in more.items():
        if count > 0:
            _INFERENCES.labels(service, name).inc(count)


def inference_levels(service: str, seconds: Mapping[tuple[str, str], float], breaker: str, waiting: int) -> None:
    """`seconds`: by who answered, and quantile."""
    for (by, quantile), value in seconds.items():
        _INFERENCE_SECONDS.labels(service, by, quantile).set(value)
    _BREAKER.labels(service).set({"open": 1.0, "half-open": 0.5}.get(breaker, 0.0))
    _WAITING.labels(service).set(waiting)


def infers_no_more(service: str, counts: Iterable[str]) -> None:
    """The service has no worker on this node any more."""
    for name in counts:
        with suppress(KeyError):  # it has never been heard
            _INFERENCES.remove(service, name)
    for by in ("edge", "cloud"):
        for quantile in ("0.5", "0.99"):
            with suppress(KeyError):
                _INFERENCE_SECONDS.remove(service, by, quantile)
    for gauge in (_BREAKER, _WAITING):
        with suppress(KeyError):
            gauge.remove(service)


def nodes(ready: int, unknown: int) -> None:
    _NODES.labels("ready").set(ready)
    _NODES.labels("unknown").set(unknown)


def tasks(phases: Mapping[str, int]) -> None:
    _TASKS.clear()
    for phase, count in phases.items():
        _TASKS.labels(phase).set(count)


# --- the portal


def request_answered(method: str, status: int) -> None:
    known = method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} else "other"
    _REQUESTS.labels(known, f"{status // 100}xx").inc()


def stream_opened() -> None:
    _STREAMS.inc()


def stream_closed() -> None:
    _STREAMS.dec()


def changes_seen(count: int) -> None:
    _SEQUENCE.set(count)


def audit_failed() -> None:
    _AUDIT.inc()


# --- giving it out


def render() -> bytes:
    """All of it in Prometheus' text format (CONTENT_TYPE)."""
    return generate_latest(REGISTRY)


def serve(port: int, host: str = "127.0.0.1") -> tuple[int, Callable[[], None]]:
    """Answer `/metrics` from a thread of its own; returns the port (0: a free one was taken) and what ends it.

    Loopback only: numbers leave a machine through a scraper on it, or through the portal with TLS and a token.

    Raises:
        Refused: `host` is not loopback. PortTaken.
    """
    if not ip_address(host).is_loopback:
        raise Refused(f"metrics are served on loopback only, not on {host}")
    try:
        server, thread = start_http_server(port, addr=host, registry=REGISTRY)
    except OSError as error:
        raise PortTaken(port, "metrics") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return int(server.server_address[1]), close
