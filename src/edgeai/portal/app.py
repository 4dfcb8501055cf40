"""The portal as an application, and as a service in a loop that is running already.

`create_app` wires the parts; its lifespan runs the read model. `serve` puts uvicorn around it: binds before anything else, says
where it is, ends open streams when it is cancelled, and leaves signals to whoever owns the loop. `one_time_link` is what
`edgeai up` prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from edgeai import metrics
from edgeai.client import Cloud
from edgeai.errors import NotFound, Refused
from edgeai.portal.access import Access, Attempts, Role
from edgeai.portal.api import OPERATIONS
from edgeai.portal.audit import AuditLog
from edgeai.portal.context import Portal
from edgeai.portal.endpoints import answered, routes
from edgeai.portal.guard import Guard, admit
from edgeai.portal.live import CloudSource, Live, of_one
from edgeai.portal.pages import Pages
from edgeai.portal.place import Place, read_place, write_place
from edgeai.portal.settings import PortalSettings
from edgeai.portal.streams import Rendered
from edgeai.web import Server, bound

log = structlog.get_logger()

GRACE_S = 5
KEEP_ALIVE_S = 60
"""An idle connection: longer than programs are idle between two requests, which then meet a connection that just ends."""
CONNECTIONS_LIMIT = 1000


def create_app(cloud: Cloud | CloudSource, settings: PortalSettings) -> Starlette:
    """The portal over a connected cloud, or over what connects to one (such as `lambda: connect(url, ...)`).

    Raises:
        Refused: it would be served in a way that is not safe.
    """
    settings.check()
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    live = Live(of_one(cloud) if isinstance(cloud, Cloud) else cloud)
    attempts = Attempts(settings.login_attempts, settings.login_window_s)
    portal = Portal(settings, live, Access(settings.state_dir), AuditLog(settings.state_dir), attempts)

    @contextlib.asynccontextmanager
    async def running(_app: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(live.run())
        try:
            yield
        finally:
            live.feed.close()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    pages = Pages(portal)
    app = Starlette(
        routes=[*routes(portal, OPERATIONS), *_health(portal), *pages.routes()],
        middleware=[Middleware(Guard, portal=portal)],
        exception_handlers={HTTPException: pages.nowhere},
        lifespan=running,
    )
    app.state.portal, app.state.rendered, app.state.shared = portal, Rendered(live), pages.shared
    return app


def _health(portal: Portal) -> list[BaseRoute]:
    async def alive(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        reasons = portal.problems()
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def show_metrics(request: Request) -> Response:
        async def work() -> Response:
            admit(portal, request, Role.VIEWER)
            return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)

        return (await answered(work))[0]

    return [Route("/healthz", alive), Route("/readyz", ready), Route("/metrics", show_metrics)]


async def serve(
    cloud: Cloud | CloudSource, settings: PortalSettings, *, started: Callable[[str], None] | None = None
) -> None:
    """Serve until cancelled; open streams end, other requests have five seconds. `started` is given the url.

    Raises:
        Refused: not safe as it is. PortTaken.
    """
    app = create_app(cloud, settings)
    _check_certificate(settings)
    listener = _bound(settings)
    port = int(listener.getsockname()[1])
    server = Server(_config(app, settings))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.wait({serving, waiting := asyncio.create_task(server.up.wait())}, return_when="FIRST_COMPLETED")
        waiting.cancel()
        if serving.done():
            serving.result()
        url = settings.url(port)
        write_place(settings.state_dir, Place(url, port, os.getpid()))
        log.info("portal_started", url=url)
        if started is not None:
            started(url)
        await asyncio.shield(serving)
    finally:
        app.state.portal.live.feed.close()
        server.should_exit = True
        await asyncio.wait({serving}, timeout=2 * GRACE_S)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()
        log.info("portal_stopped")


def portal_url(state_dir: Path) -> str:
    """Where the portal of this state directory was served last. Raises NotFound."""
    return read_place(state_dir).url


def one_time_link(state_dir: Path, url: str | None = None, *, role: Role = Role.ADMIN) -> str:
    """An address that logs in once, within ten minutes; from any process that may write to the state directory."""
    return f"{url or portal_url(state_dir)}/login?link={Access(state_dir).issue_link(role=role)}"


def _bound(settings: PortalSettings) -> socket.socket:
    """Port 0 takes the port of the last time if it is free, so that open pages find the portal again."""
    wanted = [settings.port]
    if settings.port == 0:
        with contextlib.suppress(NotFound):
            wanted.insert(0, read_place(settings.state_dir).port)
    return bound(settings.host, wanted, "portal", "--port")


def _check_certificate(settings: PortalSettings) -> None:
    """Before anything is bound. Raises Refused."""
    if settings.tls_certificate is None:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise Refused(f"{settings.tls_certificate} and {settings.tls_key} are no certificate and its key") from error


def _config(app: Starlette, settings: PortalSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        http="h11",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_LIMIT,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


__all__ = ["PortalSettings", "create_app", "one_time_link", "portal_url", "serve"]
