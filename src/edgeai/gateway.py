"""HTTP on an edge: `POST /v1/infer/<service>` for applications that speak neither MQTT nor Python.

It turns a request into an event on the edge's own broker (`asking`) and the answer back; it decides nothing, keeps nothing, and
knows neither models nor scripts. On loopback only, for the programs of this machine: whoever opens it to others puts a proxy
with a login in front. docs/joint-inference.md has the table of what it takes and gives.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from edgeai.asking import DEFAULT_DEADLINE_S, Edge, EdgeAnswer
from edgeai.errors import AddressError, BusError, DeadlineMissed, EdgeaiError, MalformedEvent, Overloaded, Refused
from edgeai.events.values import MAX_VALUE_BYTES, pack, unpack
from edgeai.store.files import write_whole
from edgeai.web import Server, bound

log = structlog.get_logger()

HOST = "127.0.0.1"
MAX_OPEN = 256
"""Requests that may wait for their answers; more are refused at once."""
MAX_BODY_BYTES = 4 * MAX_VALUE_BYTES
"""JSON takes more room than what it says."""
MAX_DEADLINE_S = 600.0
_GRACE_S = 2
_PASSED_BY_S, _PASSED_BY_BYTES = 5.0, 1024**3
"""How much of a request that is too large is taken in for nothing."""
_ADDRESS = "gateway.json"
_NPY, _MSGPACK, _JSON, _TEXT = "application/x-npy", "application/msgpack", "application/json", "text/plain"

Services = Callable[[], Collection[str]]
"""Names of the services that have a worker on this node."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`port` 0: that of the last time if it is free, else any."""

    state_dir: Path
    port: int = 0


@asynccontextmanager
async def serving(edge: Edge, services: Services, settings: GatewaySettings) -> AsyncIterator[str]:
    """Serve while the context is entered; yields the address. Raises PortTaken."""
    listener = bound(HOST, _ports(settings), f"gateway of {edge.node}")
    port = int(listener.getsockname()[1])
    write_whole(settings.state_dir / _ADDRESS, json.dumps({"url": f"http://{HOST}:{port}", "port": port}).encode())
    config = uvicorn.Config(
        create_app(edge, services),
        lifespan="off",
        ws="none",
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=4 * MAX_OPEN,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = Server(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        waiting = asyncio.create_task(server.up.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        log.info("gateway_started", url=f"http://{HOST}:{port}")
        yield f"http://{HOST}:{port}"
    finally:
        server.should_exit = True
        await asyncio.wait({running}, timeout=2 * _GRACE_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        listener.close()


def gateway_url(state_dir: Path) -> str:
    """Where the gateway of this state directory was served last; empty: never."""
    return str(_last(state_dir).get("url", ""))


def create_app(edge: Edge, services: Services) -> Starlette:
    gateway = _Gateway(edge, services)
    return Starlette(
        routes=[
            Route("/healthz", gateway.healthz),
            Route("/v1/services", gateway.list),
            Route("/v1/infer/{service}", gateway.infer, methods=["POST"]),
        ],
        # Against pages of other hosts whose name leads here.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost", "[::1]", "testserver"])],
    )


class _Gateway:
    def __init__(self, edge: Edge, services: Services) -> None:
        self._edge, self._services, self._open = edge, services, 0

    async def healthz(self, _request: Request) -> Response:
        return Response("ok\n", media_type=_TEXT)

    async def list(self, _request: Request) -> Response:
        return JSONResponse({"node": self._edge.node, "services": sorted(self._services())})

    async def infer(self, request: Request) -> Response:
        if self._open >= MAX_OPEN:
            return _refusal(503, "overloaded", f"{MAX_OPEN} requests wait for their answers already; try again later")
        self._open += 1
        try:
            answer = await self._answer(request)
        except _Refusal as error:
            return _refusal(error.status, "refused", str(error))
        except ClientDisconnect:
            return Response(status_code=499)
        except EdgeaiError as error:
            status, kind = _status(error)
            return _refusal(status, kind, str(error))
        finally:
            self._open -= 1
        if request.headers.get("accept", "").startswith(_MSGPACK):
            return Response(pack(asdict(answer)), media_type=_MSGPACK)
        return JSONResponse(_as_json(asdict(answer)))

    async def _answer(self, request: Request) -> EdgeAnswer:
        service, headers = request.path_params["service"], request.headers
        if "origin" in headers:
            raise _Refusal(403, "requests of web pages are refused: ask from a program of this machine")
        if service not in self._services():
            known = ", ".join(sorted(self._services())) or "none"
            raise _Refusal(404, f"service {service} has no worker on {self._edge.node}; there is {known}")
        deadline_s = _seconds(headers.get("edgeai-deadline", ""))
        value = _value(headers.get("content-type", "").partition(";")[0].strip(), await _body(request))
        return await self._edge.infer(
            service,
            value,
            deadline_s=deadline_s,
            id=headers.get("edgeai-id", ""),
            model=headers.get("edgeai-model", ""),
        )


class _Refusal(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def _seconds(text: str) -> float:
    if not text:
        return DEFAULT_DEADLINE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise _Refusal(400, f"Edgeai-Deadline is a number of seconds up to {MAX_DEADLINE_S:g}, not {text[:40]!r}")
    return seconds


async def _body(request: Request) -> bytes:
    """Not one byte more than is allowed."""
    told = request.headers.get("content-length", "")
    size, found = int(told) if told.isascii() and told.isdigit() else 0, bytearray()
    if size <= MAX_BODY_BYTES:
        async for part in request.stream():
            found += part
            size = max(size, len(found))
            if size > MAX_BODY_BYTES:
                break
    if size > MAX_BODY_BYTES:
        raise _Refusal(413, f"an input of {size} bytes is too large: at most {MAX_BODY_BYTES}")
    return bytes(found)


def _value(kind: str, body: bytes) -> Any:
    """The input. Raises _Refusal."""
    try:
        match kind:
            case "application/x-npy" | "application/octet-stream":
                return np.load(io.BytesIO(body), allow_pickle=False)
            case "application/msgpack" | "application/x-msgpack":
                return unpack(body)
            case "text/plain":
                return body.decode()
            case "application/json":
                return _of_json(json.loads(body))
    except _Refusal:
        raise
    except (ValueError, TypeError, EOFError, RecursionError, MalformedEvent) as error:
        raise _Refusal(400, f"the body is no {kind}: {error}") from error
    known = ", ".join((_NPY, _MSGPACK, _JSON, _TEXT))
    raise _Refusal(415, f"Content-Type is one of {known}, not {kind[:80] or 'missing'}")


def _of_json(document: Any) -> Any:
    """`{"input": ..., "dtype": "float32"}`; a list becomes an array, everything else stays as it is."""
    if not isinstance(document, dict) or "input" not in document or document.keys() - {"input", "dtype"}:
        raise _Refusal(400, 'JSON is {"input": ..., "dtype": "float32"}; dtype is for lists of numbers')
    value, dtype = document["input"], document.get("dtype")
    if dtype is None and not isinstance(value, list):
        return value
    array = np.asarray(value, dtype)
    if array.dtype.kind not in "biuf":
        raise _Refusal(400, "input is a list that is no array of numbers")
    return array


def _status(error: EdgeaiError) -> tuple[int, str]:
    match error:
        case Overloaded() | BusError():
            return 503, "overloaded" if isinstance(error, Overloaded) else "unavailable"
        case DeadlineMissed():
            return 504, "late"
        case Refused() | AddressError() | MalformedEvent():
            return 400, "refused"
        case _:
            return 502, "failed"


def _refusal(status: int, kind: str, sentence: str) -> Response:
    document = {"error": sentence, "kind": kind}
    return _TooLarge(document, status, {"Connection": "close"}) if status == 413 else JSONResponse(document, status)


class _TooLarge(JSONResponse):
    """Says so at once, then lets the rest of the request pass by: most clients read nothing before they have sent all, and a
    connection that is closed before that takes the answer with it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        left = _PASSED_BY_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(_PASSED_BY_S):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _as_json(value: Any) -> Any:
    match value:
        case np.ndarray() | np.generic():
            return value.tolist()
        case dict():
            return {str(key): _as_json(each) for key, each in value.items()}
        case list() | tuple():
            return [_as_json(each) for each in value]
        case bytes():
            return value.hex()
    return value


def _ports(settings: GatewaySettings) -> list[int]:
    last = _last(settings.state_dir).get("port", 0)
    return [settings.port] if settings.port else [*([last] if isinstance(last, int) and last else ()), 0]


def _last(state_dir: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((state_dir / _ADDRESS).read_bytes()))
    except (OSError, ValueError):
        return {}
