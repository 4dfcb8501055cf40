"""What every daemon counts, as one table, and the small functions that count it.

A daemon calls the functions; who asks for `/metrics` gets them in Prometheus' text format, from the portal where it runs in
the same process, from `serve` elsewhere. What is counted anyway where it happens (connections, transfers, a bridge's lanes)
is *followed*: it is read when somebody asks, so it costs nothing on the way, and workers need not load this module.

Labels have few values each: no worker, digest or sentence becomes one; nodes do, and of tasks only the jobs and services of a
node, whose numbers go when they do. Knows no service and no bus. `docs/api.md` holds the same table, made from this module;
`config/monitoring/` uses the names.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from itertools import product
from typing import Any, Protocol
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from edgeai.errors import PortTaken, Refused

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

CONTENT_TYPE = CONTENT_TYPE_LATEST
HOST = "127.0.0.1"
LOOP_INTERVAL_S = 0.25
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class Refusal(StrEnum):
    """Why a message was not taken. A closed list: the sentence is in the log."""

    MALFORMED = "malformed"
    """no event, or one that cannot be true"""
    FOREIGN = "foreign"
    """in the name of somebody else"""
    TOO_LARGE = "too_large"


class End(StrEnum):
    """How a worker's program ended."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class Connection(Protocol):
    """What is followed of a bus."""

    @property
    def connected(self) -> bool: ...

    @property
    def connections(self) -> int:
        """So often a broker has accepted it."""

    @property
    def dropped(self) -> int: ...


class Forwarding(Protocol):
    """What one direction of a bridge has counted."""

    @property
    def forwarded(self) -> int: ...

    @property
    def forwarded_bytes(self) -> int: ...

    @property
    def dropped_away(self) -> int: ...

    @property
    def dropped_refused(self) -> int: ...


class Lane(Protocol):
    """What is followed of one direction of a bridge."""

    @property
    def counters(self) -> Forwarding: ...

    @property
    def waiting(self) -> int: ...

    @property
    def dropped_full(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Described:
    """One line of the table."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


TABLE: list[Described] = []
Values = Mapping[Any, float]
"""By the values of the labels, a tuple of str."""


class _Followed(Collector):
    """A metric whose values are read, all at once, when somebody asks."""

    def __init__(
        self,
        family: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        text: str,
        labels: tuple[str, ...],
        read: Callable[[], Values],
    ) -> None:
        self._family, self._of, self._labels, self._read = family, (f"edgeai_{name}", text), labels, read

    def collect(self) -> Iterator[Metric]:
        family = self._family(*self._of, labels=self._labels)
        for values, number in sorted(self._read().items()):
            family.add_metric(values, number)
        yield family

    def describe(self) -> Iterator[Metric]:
        yield self._family(*self._of, labels=self._labels)


class _Levels:
    """Gauges that are set all at once: what is not named any more is gone, and nobody sees a half of them."""

    def __init__(self) -> None:
        self._values: Values = {}

    def set(self, values: Values) -> None:
        self._values = values

    def __call__(self) -> Values:
        return self._values


def _note(kind: str, name: str, text: str, labels: tuple[str, ...]) -> None:
    TABLE.append(Described(f"edgeai_{name}_total" if kind == "counter" else f"edgeai_{name}", kind, labels, text))


def _described(kind: str, name: str, text: str, labels: tuple[str, ...]) -> dict[str, Any]:
    _note(kind, name, text, labels)
    return {"name": f"edgeai_{name}", "documentation": text, "labelnames": labels, "registry": REGISTRY}


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(**_described("counter", name, text, labels))


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(**_described("gauge", name, text, labels))


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(**_described("histogram", name, text, labels), buckets=buckets)


def _followed_counter(read: Callable[[], Values], name: str, text: str, *labels: str) -> None:
    _note("counter", name, text, labels)
    REGISTRY.register(_Followed(CounterMetricFamily, name, text, labels, read))


def _followed_gauge(read: Callable[[], Values], name: str, text: str, *labels: str) -> None:
    _note("gauge", name, text, labels)
    REGISTRY.register(_Followed(GaugeMetricFamily, name, text, labels, read))


def _levels(name: str, text: str, *labels: str) -> _Levels:
    levels = _Levels()
    _followed_gauge(levels, name, text, *labels)
    return levels


_buses: dict[str, Connection] = {}
_transfers: dict[str, Callable[[], tuple[int, int]]] = {}
_lanes: dict[str, Lane] = {}


def _of_buses(number: Callable[[Connection], float]) -> Callable[[], Values]:
    return lambda: {(name,): number(bus) for name, bus in tuple(_buses.items())}


def _of_lanes(number: Callable[[Lane], float]) -> Callable[[], Values]:
    return lambda: {(name,): number(lane) for name, lane in tuple(_lanes.items())}


def _bytes_moved() -> Values:
    moved = [read() for read in tuple(_transfers.values())]
    return {("in",): sum(taken for taken, _ in moved), ("out",): sum(given for _, given in moved)}


def _bridge_dropped() -> Values:
    lanes = tuple(_lanes.items())
    away = {(name, "away"): lane.counters.dropped_away for name, lane in lanes}
    refused = {(name, "refused"): lane.counters.dropped_refused for name, lane in lanes}
    return away | refused | {(name, "full"): lane.dropped_full for name, lane in lanes}


_LOOP_LAG = _histogram("loop_lag_seconds", "How late the event loop woke a timer.", _LAGS)
_OUTBOX = _gauge("outbox_facts", "Facts without a receipt in the outbox of a source on this node.", "source")
_followed_gauge(
    _of_buses(lambda bus: bus.connected),
    "bus_connected",
    "1 while the broker has accepted this process, by what uses the connection.",
    "bus",
)
_followed_counter(
    _of_buses(lambda bus: max(bus.connections - 1, 0)),
    "bus_reconnects",
    "Connections to a broker after the first one.",
    "bus",
)
_followed_counter(
    _of_buses(lambda bus: bus.dropped), "messages_dropped", "Deliveries that found no room or no reader.", "bus"
)
_REFUSED = _counter("messages_refused", "Messages that were not taken, by reason.", "reason")
_followed_counter(
    _bytes_moved,
    "transfer_bytes",
    "Bytes of scripts and models that this node's controller has taken in, or given out.",
    "flow",
)
_followed_counter(
    _of_lanes(lambda lane: lane.counters.forwarded),
    "bridge_forwarded",
    "Messages that a bridge has passed on, by lane.",
    "lane",
)
_followed_counter(
    _of_lanes(lambda lane: lane.counters.forwarded_bytes),
    "bridge_bytes",
    "Bytes of the messages that it has passed on.",
    "lane",
)
_followed_counter(
    _bridge_dropped,
    "bridge_dropped",
    "Messages that a bridge has not passed on: the other side was away or refused it, or too many waited (full).",
    *("lane", "reason"),
)
_followed_gauge(
    _of_lanes(lambda lane: lane.waiting),
    "bridge_waiting",
    "Messages that a bridge has taken and not yet given.",
    "lane",
)
_ROUNDS = _counter("rounds", "Rounds of federated tasks, by outcome: closed, or missed and tried again.", "outcome")
_ROUND_SECONDS = _histogram("round_seconds", "From asking the workers to the fixed outcome of a round.", _SECONDS)
_ROUND_BYTES = _counter("round_bytes", "Bytes of the models (down) and updates (up) of closed rounds.", "flow")
_UPDATES = _counter("updates", "Updates of training workers, by outcome: counted or refused.", "outcome")
_STAGES = _counter("stages", "Stages of incremental learning jobs that ended, by outcome.", "stage", "outcome")
_DEPLOYED = _counter("models_deployed", "Models that incremental learning jobs have taken into use.")
_WORKERS = _levels("workers", "Workers on this node, by state.", "state")
_STARTS = _counter("worker_starts", "Programs of workers that were started, by role.", "role")
_ENDS = _counter(
    "worker_ends",
    "Programs of workers that ended, by role and outcome: finished, failed or stopped.",
    "role",
    "outcome",
)
_SERVED = _counter("serving_requests", "Requests to a job's inference worker, by outcome.", "job", "outcome")
_HARD = _counter(
    "serving_hard_examples", "Hard examples, by outcome: found, or not_kept by the worker.", "job", "outcome"
)
_HARD_RATE = _gauge("serving_hard_rate", "Share of hard ones among the last requests.", "job")
_LATENCY = _gauge("serving_latency_seconds", "Of the last requests: the quantiles 0.5 and 0.99.", "job", "quantile")
_VERSION = _gauge("serving_model_version", "Version of the model that answers; 0: it has none yet.", "job")
for _outcomes, _metric in (
    (("closed", "missed"), _ROUNDS),
    (("counted", "refused"), _UPDATES),
    (("up", "down"), _ROUND_BYTES),
    (Refusal, _REFUSED),
):
    for _outcome in _outcomes:
        _metric.labels(_outcome)  # from 0 on: the first one would not be seen as a rise
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
    "Of the last answers, by who answered: quantiles 0.5 and 0.99; of several edge workers the slowest.",
    "service",
    "by",
    "quantile",
)
_BREAKER = _gauge(
    "inference_breaker_open", "1 while an edge worker does not ask the cloud, 0.5 while it tries.", "service"
)
_WAITING = _gauge("inference_waiting", "Requests that wait at this node's workers of a service.", "service")
_NODES = _levels("node_ready", "1 while the coordinator hears of a node, 0 while it is silent or gone.", "node")
_TASKS = _levels("tasks", "Tasks that the coordinator knows, by kind and phase.", "kind", "phase")
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


def follow_bus(name: str, bus: Connection) -> None:
    """`name`: who uses it, as a label: coordinator, controller, portal ..."""
    _buses[name] = bus


def follow_transfers(node: str, moved: Callable[[], tuple[int, int]]) -> None:
    """`moved`: bytes taken in and given out so far. Those of all nodes of this process are one sum."""
    _transfers[node] = moved


def message_refused(reason: Refusal) -> None:
    _REFUSED.labels(reason.value).inc()


# --- the controller, the bridge


def workers(states: Iterable[str]) -> None:
    """The state of each worker of this node."""
    _WORKERS.set({(state,): count for state, count in Tally(states).items()})


def worker_started(role: str) -> None:
    _STARTS.labels(role).inc()
    for how in End:
        _ENDS.labels(role, how.value)


def worker_ended(role: str, how: End) -> None:
    _ENDS.labels(role, how.value).inc()


def follow_bridge(lanes: Mapping[str, Lane]) -> None:
    """`up` and `down`."""
    _lanes.update(lanes)


# --- the coordinator, from the facts that it takes


def round_closed(seconds: float, counted: int, bytes_up: int, bytes_down: int) -> None:
    """`counted`: updates."""
    _ROUNDS.labels("closed").inc()
    _ROUND_SECONDS.observe(seconds)
    _UPDATES.labels("counted").inc(counted)
    _ROUND_BYTES.labels("up").inc(bytes_up)
    _ROUND_BYTES.labels("down").inc(bytes_down)


def round_missed() -> None:
    _ROUNDS.labels("missed").inc()


def update_refused() -> None:
    _UPDATES.labels("refused").inc()


def stages_may_end(stages: Iterable[str], outcomes: Iterable[str]) -> None:
    """Their counts begin with 0."""
    for stage, outcome in product(stages, outcomes):
        _STAGES.labels(stage, outcome)


def stage_ended(stage: str, outcome: str) -> None:
    _STAGES.labels(stage, outcome).inc()


def model_deployed() -> None:
    _DEPLOYED.inc()


def nodes(ready: Iterable[str], silent: Iterable[str]) -> None:
    _NODES.set({(name,): 1.0 for name in ready} | {(name,): 0.0 for name in silent})


def tasks(phases: Iterable[tuple[str, str]]) -> None:
    """Kind and phase of each task."""
    _TASKS.set(dict(Tally(phases)))


# --- a node's jobs and services


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
        _INFERENCES.labels(service, name).inc(max(0, count))


def inference_levels(service: str, seconds: Mapping[tuple[str, str], float], breaker: str, waiting: int) -> None:
    """Of all its workers on this node. `seconds`: by who answered, and quantile."""
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

_served: list[int] = []


def render() -> bytes:
    """All of it in Prometheus' text format (CONTENT_TYPE)."""
    return generate_latest(REGISTRY)


def serve(*ports: int, host: str = HOST) -> tuple[int, Callable[[], None]]:
    """Answer `/metrics` from a thread of its own, on the first of `ports` that is free (0: any); returns it and what ends it.

    Loopback only: numbers leave a machine through a scraper on it, or through the portal with TLS and a token.

    Raises:
        Refused: `host` is not loopback. PortTaken.
    """
    if not ip_address(host).is_loopback:
        raise Refused(f"metrics are served on loopback only, not on {host}")
    server, thread = _begin(host, ports)
    port = int(server.server_address[1])
    _served.append(port)

    def close() -> None:
        _served.remove(port)
        server.shutdown()
        server.server_close()
        thread.join()

    return port, close


def served_at() -> str:
    """Where this process serves its numbers; empty: nowhere."""
    return url_of(_served[-1]) if _served else ""


def url_of(port: int) -> str:
    return f"http://{HOST}:{port}/metrics"


def _begin(host: str, ports: Iterable[int]) -> tuple[Any, threading.Thread]:
    *others, last = ports
    for port in others:
        with suppress(OSError):
            return _answering(host, port)
    try:
        return _answering(host, last)
    except OSError as error:
        raise PortTaken(last, "metrics", "--metrics-port") from error


class _Quiet(WSGIRequestHandler):
    """Says nothing of single requests."""

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingWSGIServer):
    pass


class _Server6(_Server):
    address_family = socket.AF_INET6


def _answering(host: str, port: int) -> tuple[Any, threading.Thread]:
    """Raises OSError."""
    server = make_server(host, port, _for_loopback, _Server6 if ":" in host else _Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread


_app: WSGIApplication = make_wsgi_app(REGISTRY)


def _for_loopback(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """A foreign Host is how a page elsewhere reaches a port on loopback (DNS rebinding)."""
    if _is_loopback(environ.get("HTTP_HOST", "")):
        return _app(environ, start_response)
    start_response("400 Bad Request", [("Content-Type", "text/plain; charset=utf-8")])
    return [b"numbers are served to this machine only: ask 127.0.0.1 or localhost\n"]


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name.rstrip(".") == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
