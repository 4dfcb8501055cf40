"""Traces: one task as a tree of spans, from `apply` to the workers and back, for any collector of OpenTelemetry.

A task's uid is 32 hexadecimal digits, which is what W3C calls a trace id: the trace of a task *is* its uid. The id of a span
is derived from the uid and a path (`span_of`). So whoever knows a task knows its trace, nothing has to be stored, and a span
that is recorded again after a crash is the same one. Spans are recorded when they end, by whoever knows both times; children
may name their parent before. The context travels as `trace` in envelopes (`Context` as text).

Recording costs nothing until `start` finds the standard variables of OpenTelemetry. Then a thread of its own imports the SDK,
makes the spans and sends them: no caller ever waits for a collector, and what does not fit the queue is dropped. This is the
only door to opentelemetry. It knows of a task its uid and where others refer to its spans; what is recorded, and when, is
in the `spans` of coordinator, controller and worker, and in the client.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

log = structlog.get_logger()

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SECRETS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
"""May hold a password: not for workers, which run scripts of others."""
INSTALL = "install edgeai with the extra `tracing`"
FLUSH_S = 2.0
_QUEUE, _TOGETHER, _PAUSE_S = 4096, 512, 0.2
_MAX_TRACEPARENT = 512
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_UID = re.compile(r"[0-9a-f]{32}", re.ASCII)

Attributes = Mapping[str, str | int | float | bool]
NOTHING: Attributes = {}


@dataclass(frozen=True, slots=True)
class Context:
    """A span as others refer to it. As text: W3C's traceparent."""

    trace_id: str
    span_id: str
    sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse(traceparent: str) -> Context | None:
    """None: it is none, or not a valid one. Never raises."""
    if len(traceparent) > _MAX_TRACEPARENT or (found := _TRACEPARENT.fullmatch(traceparent)) is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Context(trace_id, span_id, bool(int(flags, 16) & 1))


def span_of(uid: str, *path: object) -> Context:
    """The span at a path of a task's trace; without a path the root: `apply`."""
    return Context(uid, _span_id(f"{uid}/{'/'.join(map(str, path))}"))


def task_span(uid: str) -> Context:
    return span_of(uid, "task")


def start_span(uid: str, worker: str, token: str) -> Context:
    """One run of a worker. `token`: the digest of the run's token (`events.tokens`), which both sides know."""
    return span_of(uid, "start", worker, token[:16])


def round_span(uid: str, number: int) -> Context:
    return span_of(uid, "round", number)


def train_span(uid: str, number: int, worker: str, digest: str) -> Context:
    """`digest` of the update: one that was refused may be followed by another."""
    return span_of(uid, "round", number, "train", worker, digest[:16])


def stage_span(uid: str, number: int, stage: str) -> Context:
    """Of a job; `stage` is train, eval or deploy."""
    return span_of(uid, "round", number, stage)


def parent_of(trace: str, uid: str, *path: object) -> Context:
    """What came in as `trace`, if it belongs to this task; else the span at the path."""
    found = parse(trace)
    return found if found is not None and found.trace_id == uid and found.sampled else span_of(uid, *path)


def child_of(parent: Context, *path: object) -> Context:
    """A span below one that somebody else has made."""
    return Context(parent.trace_id, _span_id(f"{parent}/{'/'.join(map(str, path))}"), parent.sampled)


def passed_on(here: Context, parent: Context) -> str:
    """What a message carries that is sent from within a span: where nothing is recorded, the span around it."""
    return str(here if _exporter is not None else parent)


def _span_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- recording


@dataclass(frozen=True, slots=True)
class Part:
    """Who records: a service, or if empty whatever the process was started as (`start`), and the node that it is on."""

    service: str = ""
    node: str = ""

    def record(
        self,
        name: str,
        here: Context,
        parent: Context | None,
        began_s: float,
        about: Attributes = NOTHING,
        *,
        ended_s: float | None = None,
        error: str = "",
    ) -> None:
        """A span that has ended (now, if not given). Times are seconds since 1970; `error` is why it failed, in one line.

        What it is `about` become attributes called `edgeai.<name>`; empty text is left out.
        """
        if (exporter := _exporter) is None or not here.sampled or not _UID.fullmatch(here.trace_id):
            return
        ended_s = time.time() if ended_s is None else ended_s
        exporter.put(_Span(self, name, here, parent, min(began_s, ended_s), ended_s, error, about))


@dataclass(frozen=True, slots=True)
class _Span:
    part: Part
    name: str
    here: Context
    parent: Context | None
    began_s: float
    ended_s: float
    error: str
    about: Attributes


def recording() -> bool:
    return _exporter is not None


def start(service: str, environment: Mapping[str, str] = os.environ, tell: Callable[[str], None] | None = None) -> None:
    """From now on this process records, if its environment names a collector. The first call counts.

    `tell` hears why nothing will be recorded although it was asked for; without, it is logged.
    """
    global _exporter, _told  # noqa: PLW0603 - one per process, as its log is
    if _exporter is not None or _told or not is_wanted(environment):
        return
    if not _is_installed():
        _told = True
        named = next(name for name in ENDPOINTS if environment.get(name))
        reason = f"{named} is set, but what sends traces is not installed: {INSTALL}"
        if tell is not None:
            tell(reason)
        else:
            log.warning("traces_not_recorded", reason=reason)
        return
    _exporter = _Exporter(service)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables name a collector and do not switch traces off."""
    off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    none = environment.get("OTEL_TRACES_EXPORTER", "").lower() == "none"
    return any(environment.get(name) for name in ENDPOINTS) and not off and not none


def flush(timeout_s: float = FLUSH_S) -> bool:
    """Send what was recorded; returns in time whatever the collector does. False: not all of it is sent."""
    return _exporter is None or _exporter.flush(timeout_s)


def stop() -> None:
    """Record no more; what was not sent yet is lost."""
    global _exporter, _told
    if _exporter is not None:
        _exporter.stop()
    _exporter, _told = None, False


def for_workers(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of OpenTelemetry that a worker needs, without those that may hold a password."""
    return {name: value for name, value in environment.items() if name.startswith("OTEL_") and name not in SECRETS}


def _is_installed() -> bool:
    try:
        wanted = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
        return all(importlib.util.find_spec(name) is not None for name in wanted)
    except ImportError:
        return False


# --- the thread that sends


class _Exporter:
    """Spans wait in a bounded queue. The thread begins with the first one: most processes never record any."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._queue: queue.Queue[_Span | threading.Event] = queue.Queue(_QUEUE)
        self._thread: threading.Thread | None = None
        self._beginning = threading.Lock()

    def put(self, span: _Span) -> None:
        if self._thread is None:
            self._begin()
        try:
            self._queue.put_nowait(span)
        except queue.Full:
            return  # the collector is away, which `_Sender` has said

    def flush(self, timeout_s: float) -> bool:
        if self._thread is None:
            return True
        done = threading.Event()
        try:
            self._queue.put_nowait(done)
        except queue.Full:
            return False
        return done.wait(timeout_s)

    def stop(self) -> None:
        atexit.unregister(self.flush)
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def _begin(self) -> None:
        with self._beginning:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgeai-traces", daemon=True)
                self._thread.start()
                atexit.register(self.flush, FLUSH_S)

    def _run(self) -> None:
        try:
            sender = _Sender(self._service)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with its variables, no work depends on it
            log.warning("traces_not_recorded", reason=f"{type(error).__name__}: {error}")
            sender = None
        while True:
            taken = [self._queue.get()]
            if isinstance(taken[0], _Span):
                self._gather(taken)
            if sender is not None and (spans := [each for each in taken if isinstance(each, _Span)]):
                sender.send(spans)
            for each in taken:
                if isinstance(each, threading.Event):
                    each.set()

    def _gather(self, taken: list[_Span | threading.Event]) -> None:
        """What comes within a moment; somebody who waits ends it."""
        until_s = time.monotonic() + _PAUSE_S
        while len(taken) < _TOGETHER and (left_s := until_s - time.monotonic()) > 0:
            try:
                taken.append(self._queue.get(timeout=left_s))
            except queue.Empty:
                return
            if isinstance(taken[-1], threading.Event):
                return


@dataclass(slots=True)
class _Ids:
    """Gives the SDK the ids of the span that is being made."""

    here: Context = field(default_factory=lambda: Context("0" * 31 + "1", "0" * 15 + "1"))

    def generate_span_id(self) -> int:
        return int(self.here.span_id, 16)

    def generate_trace_id(self) -> int:
        return int(self.here.trace_id, 16)

    def is_trace_id_random(self) -> bool:
        return True


class _LastWords(logging.Handler):
    """What the exporter said last, which is told once and not for every attempt."""

    said = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.said = record.getMessage()


class _Sender:
    """The SDK. Only the exporter's thread uses it. Raises whatever wrong variables make the SDK raise."""

    def __init__(self, service: str) -> None:
        # All of it at once: at the end of a process some of it can no longer be imported.
        import opentelemetry.sdk.trace as sdk
        from opentelemetry import trace as api
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        self._api: Any = api
        self._sdk: Any = sdk
        self._resource: Any = Resource
        self._service, self._ids, self._ended = service, _Ids(), list[Any]()
        self._providers: dict[Part, Any] = {}
        self._words, self._is_away = _LastWords(), False
        for name in ("opentelemetry.exporter.otlp", "opentelemetry.exporter.http"):
            logger = logging.getLogger(name)
            logger.addHandler(self._words)
            logger.propagate = False
        self._exporter: Any = OTLPSpanExporter()

    def send(self, spans: list[_Span]) -> None:
        try:
            for span in spans:
                self._make(span)
            sent = self._exporter.export(self._ended).name == "SUCCESS"
            reason = self._words.said
        except Exception as error:  # noqa: BLE001 - a collector may answer anything
            sent, reason = False, f"{type(error).__name__}: {error}"
        self._ended.clear()
        if sent == self._is_away:
            self._is_away = not sent
            if sent:
                log.info("traces_sent_again")
            else:
                log.warning("traces_not_sent", reason=reason.splitlines()[0][:300] if reason else "no answer")

    def _make(self, span: _Span) -> None:
        api, context = self._api, None
        self._ids.here = span.here
        if (parent := span.parent) is not None:
            flags = api.TraceFlags(api.TraceFlags.SAMPLED)
            of_parent = api.SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags)
            context = api.set_span_in_context(api.NonRecordingSpan(of_parent))
        attributes = {f"edgeai.{name}": value for name, value in span.about.items() if value != ""}
        tracer = self._provider(span.part).get_tracer("edgeai")
        made = tracer.start_span(span.name, context, attributes=attributes, start_time=_nanoseconds(span.began_s))
        if span.error:
            made.set_status(api.Status(api.StatusCode.ERROR, span.error.splitlines()[0][:500]))
        made.end(_nanoseconds(span.ended_s))

    def _provider(self, part: Part) -> Any:
        if part not in self._providers:
            described = {"service.name": part.service or self._service, "service.version": _version()}
            described |= {"edgeai.node": part.node} if part.node else {}
            resource = self._resource.create(described)
            provider = self._sdk.TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=self._ids)
            provider.add_span_processor(_Collecting(self._ended))
            self._providers[part] = provider
        return self._providers[part]


@dataclass(frozen=True, slots=True)
class _Collecting:
    """A span processor of the SDK: keeps what has ended, to be sent together."""

    ended: list[Any]

    def on_start(self, span: Any, parent_context: Any = None) -> None: ...

    def _on_ending(self, span: Any) -> None: ...

    def on_end(self, span: Any) -> None:
        if span.context.trace_flags.sampled:
            self.ended.append(span)

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("edgeai")
    except PackageNotFoundError:
        return ""


_exporter: _Exporter | None = None
_told = False
