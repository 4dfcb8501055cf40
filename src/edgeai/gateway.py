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
from itertools import chain
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

from edgeai.asking import MAX_DEADLINE_S, Edge, EdgeAnswer
from edgeai.errors import (
    AddressError,
    BusError,
    DeadlineMissed,
    EdgeaiError,
    MalformedEvent,
    ModelError,
    Overloaded,
    PayloadTooLarge,
    Refused,
)
from edgeai.events.values import DTYPES, MAX_VALUE_BYTES, pack, unpack
from edgeai.store.files import write_whole
from edgeai.web import Server, bound

log = structlog.get_logger()

HOST = "127.0.0.1"
MAX_OPEN = 256
"""Requests that may wait for their answers; more are refused at once."""
MAX_BODY_BYTES = 4 * MAX_VALUE_BYTES
"""JSON takes more room than what it says."""
MAX_BODIES, MAX_BODIES_BYTES = 512, 64 * 1024**2
"""Bodies on their way in or being decoded at a time, and how many bytes they may have together."""
BODY_S = 10.0
"""How long a body may take to arrive, where its deadline is not nearer."""
_DECODED_AT_ONCE_BYTES, _DECODING = 64 * 1024, 2
"""Larger bodies are decoded in a thread, so many at a time: JSON takes much more memory than it has bytes."""
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
    listener = bound(HOST, _ports(settings), f"gateway of {edge.node}", "--http-port")
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
        self._bodies = _Bodies()

    async def healthz(self, _request: Request) -> Response:
        return Response("ok\n", media_type=_TEXT)

    async def list(self, _request: Request) -> Response:
        return JSONResponse({"node": self._edge.node, "services": sorted(self._services())})

    async def infer(self, request: Request) -> Response:
        try:
            return await self._answer(request)
        except _Refusal as error:
            return _refusal(error.status, error.kind, str(error))
        except ClientDisconnect:
            return Response(status_code=499)
        except EdgeaiError as error:
            status, kind = _status(error)
            return _refusal(status, kind, str(error))

    async def _answer(self, request: Request) -> Response:
        """Raises _Refusal, ClientDisconnect, EdgeaiError."""
        service, headers = request.path_params["service"], request.headers
        if "origin" in headers:
            raise _Refusal(403, "requests of web pages are refused: ask from a program of this machine")
        if service not in self._services():
            known = ", ".join(sorted(self._services())) or "none"
            raise _Refusal(404, f"service {service} has no worker on {self._edge.node}; there is {known}")
        deadline_s = _seconds(headers.get("edgeai-deadline", ""))
        self._check_room()
        value = await self._bodies.taken(request, min(deadline_s or BODY_S, BODY_S))
        self._check_room()
        self._open += 1
        try:
            answer = await self._edge.infer(
                service,
                value,
                deadline_s=deadline_s,
                id=headers.get("edgeai-id", ""),
                model=headers.get("edgeai-model", ""),
                traceparent=headers.get("traceparent", ""),
            )
            return _told(answer, headers.get("accept", ""))
        finally:
            self._open -= 1

    def _check_room(self) -> None:
        if self._open >= MAX_OPEN:
            raise Overloaded(f"{MAX_OPEN} requests wait for their answers already; try again later")


class _Refusal(Exception):
    def __init__(self, status: int, sentence: str, kind: str = "refused") -> None:
        super().__init__(sentence)
        self.status, self.kind = status, kind


def _seconds(text: str) -> float | None:
    """None: the service's own."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise _Refusal(400, f"Edgeai-Deadline is a number of seconds up to {MAX_DEADLINE_S:g}, not {text[:40]!r}")
    return seconds


class _Bodies:
    """What is on its way in: whoever sends slowly, or nothing, takes no place of a question that waits for its answer."""

    def __init__(self) -> None:
        self._count = self._size_bytes = 0
        self._decoding = asyncio.Semaphore(_DECODING)

    async def taken(self, request: Request, limit_s: float) -> Any:
        """The input of a request. Raises _Refusal, Overloaded, ClientDisconnect."""
        if self._count >= MAX_BODIES:
            raise Overloaded(f"{MAX_BODIES} requests are on their way in already; try again later")
        found = bytearray()
        self._count += 1
        try:
            await self._read(request, found, limit_s)
            kind = request.headers.get("content-type", "").partition(";")[0].strip()
            if len(found) <= _DECODED_AT_ONCE_BYTES:
                return _value(kind, bytes(found))
            async with self._decoding:
                return await asyncio.to_thread(_value, kind, bytes(found))
        finally:
            self._count -= 1
            self._size_bytes -= len(found)

    async def _read(self, request: Request, found: bytearray, limit_s: float) -> None:
        """Not one part more than is allowed."""
        told = request.headers.get("content-length", "")
        _check_size(int(told) if told.isascii() and told.isdigit() else 0)
        try:
            async with asyncio.timeout(limit_s):
                async for part in request.stream():
                    found += part
                    self._size_bytes += len(part)
                    _check_size(len(found))
                    if self._size_bytes > MAX_BODIES_BYTES:
                        raise Overloaded(f"{MAX_BODIES_BYTES} bytes are on their way in already; try again later")
        except TimeoutError as error:
            raise _Refusal(408, f"the input has not arrived within {limit_s:g} s: send it at once", "late") from error


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_BODY_BYTES:
        raise _Refusal(413, f"an input of {size_bytes} bytes is too large: at most {MAX_BODY_BYTES}")


def _value(kind: str, body: bytes) -> Any:
    """The input. Raises _Refusal."""
    try:
        match kind:
            case "application/x-npy" | "application/octet-stream":
                return _of_npy(body)
            case "application/msgpack" | "application/x-msgpack":
                return unpack(body)
            case "text/plain":
                return body.decode()
            case "application/json":
                return _of_json(json.loads(body, parse_constant=_not_finite))
    except (ValueError, TypeError, EOFError, OverflowError, RecursionError, MemoryError, MalformedEvent) as error:
        raise _Refusal(400, f"the body is no {kind}: {str(error)[:200] or type(error).__name__}") from error
    known = ", ".join((_NPY, _MSGPACK, _JSON, _TEXT))
    raise _Refusal(415, f"Content-Type is one of {known}, not {kind[:80] or 'missing'}")


def _of_npy(body: bytes) -> Any:
    """What `numpy.save` writes, and nothing else that `numpy.load` takes: no more memory than the body has."""
    file = io.BytesIO(body)
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"version {version} of the format; 1.0 and 2.0 are taken")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, by_column, dtype = read(file)
    except Exception as error:  # a header is Python source: whatever Python's own parsers raise
        raise ValueError(f"its header cannot be read: {type(error).__name__}") from error
    if dtype.name not in DTYPES or dtype != dtype.newbyteorder("<"):
        raise ValueError(f"values of type {str(dtype)[:40]}; taken are {', '.join(DTYPES)}, little-endian")
    begin = file.tell()
    if math.prod(shape) * dtype.itemsize != len(body) - begin:
        raise ValueError(f"an array of shape {list(shape)[:8]} does not have {len(body) - begin} bytes")
    return np.ndarray(shape, dtype, body, begin, order="F" if by_column else "C")


def _not_finite(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _of_json(document: Any) -> Any:
    """`{"input": ..., "dtype": "float32"}`; a list, also one in a map, becomes an array, everything else stays as it is."""
    if not isinstance(document, dict) or "input" not in document or document.keys() - {"input", "dtype"}:
        raise _Refusal(400, 'JSON is {"input": ..., "dtype": "float32"}; dtype is for lists of numbers')
    value, dtype = document["input"], document.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise _Refusal(400, f"dtype is one of {', '.join(DTYPES)}, not {str(dtype)[:40]!r}")
    match value:
        case dict():
            return {name: _array(each, dtype) if isinstance(each, list) else each for name, each in value.items()}
        case list():
            return _array(value, dtype)
        case bool() | int() | float() if dtype is not None:
            return np.asarray(value, dtype)
    return value


def _array(values: list[Any], dtype: str | None) -> Any:
    """NumPy is given plain numbers only: of texts it would make room for the longest one at every place."""
    level: list[Any] = values
    shape = [len(values)]
    while {*map(type, level)} == {list}:
        lengths = {*map(len, level)}
        if len(lengths) > 1:
            raise _Refusal(
                400, f"input is a list that is no array: it has rows of {min(lengths)} and of {max(lengths)}"
            )
        shape += lengths
        level = list(chain.from_iterable(level))
    found = np.asarray(level, dtype) if {*map(type, level)} <= {bool, int, float} else None
    if found is None or found.dtype.name not in DTYPES:
        raise _Refusal(400, "input is a list that is no array of numbers")
    return found.reshape(shape)


def _told(answer: EdgeAnswer, accept: str) -> Response:
    """Raises ModelError: it has no form that can be sent."""
    document = asdict(answer)
    try:
        if accept.startswith(_MSGPACK):
            return Response(pack(document), media_type=_MSGPACK)
        return JSONResponse(_as_json(document))
    except PayloadTooLarge as error:
        what = f"the answer has {error.size_bytes} bytes: too large for msgpack, which takes {error.limit_bytes}"
        raise ModelError(f"{what}; ask for JSON, or let predict return less") from error
    except (MalformedEvent, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise ModelError(f"the answer cannot be sent: {str(error)[:200] or type(error).__name__}") from error


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
    match status:
        case 413:
            return _TooLarge(document, status, {"Connection": "close"})
        case 408:  # the rest of the request may still come
            return JSONResponse(document, status, {"Connection": "close"})
    return JSONResponse(document, status)


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
    """Raises ValueError: JSON has no form for what is not finite."""
    match value:
        case np.ndarray() | np.generic() | float():
            if not np.isfinite(value).all():
                raise ValueError("it has values that are not finite, which JSON has no form for; msgpack has one")
            return np.asarray(value).tolist()
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
