"""What every request passes: security headers, the Host check, who asks; and, where something changes, Origin and CSRF.

`Guard` is around the whole application, static files included. `admit` is called by every endpoint with the role it needs;
an endpoint that forgets it has no identity to work with. Knows no route.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from secrets import compare_digest
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeai import metrics
from edgeai.portal.access import Identity, Role
from edgeai.portal.context import Portal
from edgeai.portal.problems import Problem, answer
from edgeai.portal.settings import PortalSettings

log = structlog.get_logger()

COOKIE = "edgeai-session"
CSRF_HEADER, CSRF_FIELD = "X-CSRF-Token", "csrf_token"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Not no-referrer: with that, browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI middleware; sets `request.state.identity` (None: nobody) and `request.state.address`."""

    def __init__(self, app: ASGIApp, portal: Portal) -> None:
        self._app, self._portal = app, portal
        self._headers = dict(SECURITY_HEADERS)
        if portal.settings.tls:
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                static = scope["path"].startswith("/static/")
                headers.setdefault("Cache-Control", "no-cache" if static else "no-store")
                metrics.request_answered(scope["method"], message["status"])
            await send(message)

        request = Request(scope)
        if problem := host_problem(request.headers, self._portal.settings):
            await answer(problem)(scope, receive, guarded)
            return
        request.state.address = scope["client"][0] if scope.get("client") else "unknown"
        request.state.identity = self._identity(request)
        await self._answered(scope, receive, guarded)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What no endpoint has turned into a problem becomes one here, if nothing has been sent yet."""
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            log.exception("request_failed", path=scope["path"][:200])
            if begun:
                raise
            problem = Problem(500, "the portal met something unexpected; its log says what")
            await answer(problem)(scope, receive, send)

    def _identity(self, request: Request) -> Identity | None:
        """A bearer token stands over a cookie: a program that sends both means the token."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme:
            return self._portal.access.bearer(token.strip()) if scheme.lower() == "bearer" else None
        cookie = request.cookies.get(cookie_name(request))
        return self._portal.access.session(cookie) if cookie else None


def cookie_name(request: Request) -> str:
    """Browsers share cookies between the ports of a host: the port is in the name, so that two portals do not disturb."""
    return f"{COOKIE}-{_netloc_port(request.headers.get('host', '')) or 'default'}"


def host_problem(headers: Headers, settings: PortalSettings) -> Problem | None:
    """A foreign Host is how a page elsewhere reaches a portal on loopback (DNS rebinding)."""
    hosts = headers.getlist("host")
    try:
        parts = urlsplit(f"//{hosts[0]}" if len(hosts) == 1 else "")
        name, _ = parts.hostname, parts.port  # what cannot be a port is refused as well
    except ValueError:
        name = None
    if name is None or name.lower().rstrip(".") not in settings.host_names:
        return Problem(
            400, "the portal is not served under this host name; an operator can add it to the allowed hosts"
        )
    return None


def admit(portal: Portal, request: Request, role: Role) -> Identity:
    """Who asks, if they may. Raises Problem 401, 403 or 429."""
    identity: Identity | None = request.state.identity
    unsafe = request.method not in SAFE
    if unsafe:
        check_origin(request, portal.settings)
    if identity is None:
        raise _nobody(portal, request)
    if (
        unsafe
        and identity.cookie
        and not compare_digest(request.headers.get(CSRF_HEADER, "").encode(), identity.csrf_token.encode())
    ):
        raise Problem(403, f"the request lacks this session's {CSRF_HEADER}: load the page again")
    require(identity, role)
    return identity


def require(identity: Identity, role: Role) -> None:
    """Raises Problem 403."""
    if identity.role < role:
        raise Problem(403, f"{identity.name} is {identity.role.word}; this needs {role.word}")


def check_origin(request: Request, settings: PortalSettings) -> None:
    """What a browser says of the page that sent this must be this portal. Raises Problem 403."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    site = request.headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none"):
        raise Problem(403, "the request comes from another site")
    if origin is None:
        return
    try:
        parts = urlsplit(origin)
        same = (parts.hostname, parts.port) == (urlsplit(f"//{host}").hostname, _netloc_port(host))
    except ValueError:
        same = False
    # Bound to loopback, a proxy on this machine may add TLS in front.
    schemes = {request.url.scheme, "https"} if settings.loopback else {request.url.scheme}
    if not same or parts.scheme not in schemes:
        raise Problem(403, "the request comes from another origin")


def check_attempts(portal: Portal, request: Request) -> None:
    """Raises Problem 429 when this address has failed too often.

    Only for a secret that is wrong: a right one comes in whatever another program of the same address has tried.
    """
    wait_s = portal.attempts.wait_s(request.state.address)
    if wait_s > 0:
        seconds = str(int(wait_s) + 1)
        raise Problem(429, f"too many failed logins: try again in {seconds} s", headers={"Retry-After": seconds})


def _nobody(portal: Portal, request: Request) -> Problem:
    if "authorization" in request.headers:
        check_attempts(portal, request)
        portal.attempts.failed(request.state.address)
        return Problem(401, "this token is not known here", headers={"WWW-Authenticate": "Bearer"})
    return Problem(HTTPStatus.UNAUTHORIZED, "log in first", headers={"WWW-Authenticate": "Bearer"})


def _netloc_port(host: str) -> int | None:
    try:
        return urlsplit(f"//{host}").port
    except ValueError:
        return None
