"""A collector of OpenTelemetry for tests: takes OTLP over HTTP and keeps the spans, decoded with the protocol's own types."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """What a test looks at. `parent` is empty at a root; attributes are without their prefix `edgeai.`."""

    trace: str
    id: str
    parent: str
    name: str
    service: str
    node: str
    began_s: float
    ended_s: float
    error: str
    about: dict[str, Any] = field(hash=False)


class Collector:
    """`spans`: all that came, in order. `answer`: the status that it gives. `silent`: it takes requests and says nothing."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self.answer, self.silent = 200, threading.Event()
        self._came = threading.Condition()
        self.url = ""

    def of(self, uid: str) -> list[Span]:
        with self._came:
            return [span for span in self.spans if span.trace == uid]

    def until(self, uid: str, enough: Callable[[list[Span]], bool], timeout_s: float = 20) -> list[Span]:
        """The spans of a trace as soon as there are enough. Blocks."""
        with self._came:
            done = self._came.wait_for(lambda: enough(self.of_now(uid)), timeout_s)
            found = self.of_now(uid)
        assert done, "\n".join(f"{span.service} {span.name} {span.about}" for span in found)
        return found

    def of_now(self, uid: str) -> list[Span]:
        return [span for span in self.spans if span.trace == uid]

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        request = ExportTraceServiceRequest.FromString(body)
        found = []
        for each in request.resource_spans:
            of_resource = _attributes(each.resource.attributes)
            for scope in each.scope_spans:
                found += [_span(span, of_resource) for span in scope.spans]
        with self._came:
            self.spans += found
            self.headers.append(headers)
            self._came.notify_all()


def _span(span: Any, of_resource: dict[str, Any]) -> Span:
    return Span(
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        service=of_resource["service.name"],
        node=of_resource.get("edgeai.node", ""),
        began_s=span.start_time_unix_nano / 1e9,
        ended_s=span.end_time_unix_nano / 1e9,
        error=span.status.message if span.status.code == 2 else "",
        about={name.removeprefix("edgeai."): value for name, value in _attributes(span.attributes).items()},
    )


def _attributes(found: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in found}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            if collector.silent.is_set():
                while collector.silent.is_set():
                    time.sleep(0.05)
                return
            if collector.answer == 200:
                collector.take(body, dict(self.headers))
            self.send_response(collector.answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        collector.silent.clear()
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Notebook:
    """Stands in for what sends: keeps what this process records, as it was said."""

    spans: list[Any] = field(default_factory=list)

    def put(self, span: Any) -> None:
        self.spans.append(span)

    def flush(self, timeout_s: float) -> bool:
        return True

    def stop(self) -> None:
        self.spans.clear()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def names(self) -> list[str]:
        return [span.name for span in self.spans]
