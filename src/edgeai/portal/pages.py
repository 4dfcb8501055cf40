"""The pages: addresses, login, and what every template gets. Templates and static files know nothing but this.

A page is rendered from `templates/<page>.html` with autoescaping and these names:

    page        name of the page (`contents.PAGES`): overview, search, tasks, task, edges, edge, ...
    title       what the window is called
    path        address of the page
    user        name, role (viewer, operator, admin), can_operate, can_administer
    csrf_token  to send with everything that changes something: header X-CSRF-Token, in forms the field csrf_token
    sequence    number to follow changes from: /api/v1/live?since=<sequence>&topics=...
    live        whether the cloud is known right now: known, age_s, reason
    coordinator the same of the coordinator
    version     of edgeai
    data        what the page is about (see `contents`), in the dictionaries that the REST API gives

Numbers are written by the filters of `formats`. Errors are `problem.html` with `problem` (status, title, detail) instead of
`data`; the login is `login.html` with `sentence` and `next`, the page behind a one-time link `enter.html`. Everything that
changes something goes through the REST API, except login and logout.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from jinja2 import Environment, FileSystemLoader, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from edgeai.portal.access import Identity, Role
from edgeai.portal.contents import PAGES, Page
from edgeai.portal.context import Portal
from edgeai.portal.endpoints import Deed, answered, audited
from edgeai.portal.formats import FILTERS
from edgeai.portal.guard import CSRF_FIELD, admit, check_attempts, check_origin, cookie_name
from edgeai.portal.openapi import installed_version
from edgeai.portal.operations import read_body
from edgeai.portal.problems import Problem, document

HERE = Path(__file__).parent
FORM = "application/x-www-form-urlencoded"
FORM_BYTES = 4096
SEEN_HEADER = "X-Seen"
"""Number of the last change that a page has heard of."""
SHARED_S, SHARED_LIMIT = 0.5, 64


class Pages:
    """Renders them. One per portal."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=select_autoescape(default=True),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)
        self._shared: dict[tuple[str, str], tuple[float, int, dict[str, Any]]] = {}

    def routes(self) -> list[BaseRoute]:
        pages = [Route(page.path, self._endpoint(page), name=page.name) for page in PAGES]
        return [
            *pages,
            Route("/login", self._show_login, name="login"),
            Route("/login", self._log_in, methods=["POST"], name="log_in"),
            Route("/logout", self._log_out, methods=["POST"], name="logout"),
            Mount("/static", StaticFiles(directory=HERE / "static", check_dir=False), name="static"),
        ]

    # --- pages

    def _endpoint(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request) -> Response:
            if request.state.identity is None:
                wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
                return RedirectResponse(f"/login?next={quote(wanted, safe='')}", 303)

            async def work() -> Response:
                identity = admit(self._portal, request, page.role)
                sequence, data = await self._data(page, request)
                title = f"{request.path_params['name']} - {page.title}" if "name" in request.path_params else page.title
                return self._rendered(
                    page.name, request, identity, page=page.name, title=title, data=data, sequence=sequence
                )

            return await self._or_problem(request, work)

        return show

    async def _data(self, page: Page, request: Request) -> tuple[int, dict[str, Any]]:
        """What the page is about, and the number of the change that it is at least as new as.

        Many open pages of the same address read it again at the same change: the first of them makes it, the others share it.
        """
        key = (request.url.path, request.url.query)
        seen = request.headers.get(SEEN_HEADER, "")
        made, sequence, data = self._shared.get(key, (0.0, -1, {}))
        if seen.isdecimal() and sequence >= int(seen) and time.monotonic() - made < SHARED_S:
            return sequence, data
        made, sequence = time.monotonic(), self._portal.live.feed.sequence
        data = await page.data(self._portal, request)
        if page.role is Role.VIEWER:
            if len(self._shared) >= SHARED_LIMIT:
                self._shared.clear()
            self._shared[key] = made, sequence, data
        return sequence, data

    async def _or_problem(self, request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
        response, problem = await answered(work)
        if problem is None:
            return response

        async def explain() -> Response:
            shown = document(problem)
            found = self._rendered(
                "problem", request, request.state.identity, page="problem", title=shown["title"], problem=shown
            )
            found.status_code = problem.status
            return found

        return (await answered(explain))[0]

    def _rendered(self, template: str, request: Request, identity: Identity | None, **names: Any) -> Response:
        live = self._portal.live
        shown = {
            "path": request.url.path,
            "user": None if identity is None else _user(identity),
            "csrf_token": "" if identity is None else identity.csrf_token,
            "sequence": live.feed.sequence,
            "live": live.cloud_life().document(),
            "coordinator": live.coordinator_life().document(),
            "version": installed_version(),
            **names,
        }
        return HTMLResponse(self._templates.get_template(f"{template}.html").render(shown))

    # --- login

    async def _show_login(self, request: Request) -> Response:
        if "link" in request.query_params:
            return await self._use_link(request)
        return self._login_page(request, "", _local(request.query_params.get("next", "/")))

    async def _use_link(self, request: Request) -> Response:
        async def work() -> Response:
            check_attempts(self._portal, request)
            identity = self._portal.access.use_link(request.query_params["link"])
            if identity is None:
                self._portal.attempts.failed(request.state.address)
                raise Problem(401, "this link has been used or has expired: make a new one, or log in with a token")
            # Not a redirect: a browser that came from elsewhere would not send a SameSite=Strict cookie with it.
            return await self._entered(
                request, identity, self._rendered("enter", request, None, page="enter", title="Welcome", next="/")
            )

        return await self._judged(request, "link", work)

    async def _log_in(self, request: Request) -> Response:
        going_to = "/"

        async def work() -> Response:
            nonlocal going_to
            check_origin(request, self._portal.settings)
            fields = await _form(request)
            going_to = _local(fields.get("next", "/"))
            check_attempts(self._portal, request)
            identity = self._portal.access.bearer(fields.get("token", "").strip())
            if identity is None:
                self._portal.attempts.failed(request.state.address)
                raise Problem(401, "this token is not known here")
            return await self._entered(request, identity, RedirectResponse(going_to, 303))

        return await self._judged(request, "token", work, lambda: going_to)

    async def _judged(
        self,
        request: Request,
        how: str,
        work: Callable[[], Awaitable[Response]],
        going_to: Callable[[], str] = lambda: "/",
    ) -> Response:
        """Do it, audit it, and show the login page with a sentence if it failed."""
        response, problem = await answered(work)
        identity: Identity | None = getattr(request.state, "entered", None)
        if problem is None or problem.status != 429:
            await audited(self._portal, request, Deed("login", f"by {how}", identity), response, problem)
        if problem is None:
            return response
        shown = self._login_page(request, problem.detail, going_to(), problem.status)
        shown.headers.update(problem.headers)
        return shown

    async def _entered(self, request: Request, identity: Identity, response: Response) -> Response:
        settings = self._portal.settings
        session = await asyncio.to_thread(self._portal.access.open_session, identity, settings.session_s)
        request.state.entered = session
        response.set_cookie(
            cookie_name(request),
            session.cookie,
            max_age=int(settings.session_s),
            path="/",
            secure=settings.tls,
            httponly=True,
            samesite="strict",
        )
        return response

    async def _log_out(self, request: Request) -> Response:
        async def work() -> Response:
            identity: Identity | None = request.state.identity
            check_origin(request, self._portal.settings)
            response = RedirectResponse("/login", 303)
            if identity is None or not identity.cookie:
                return response
            fields = await _form(request)
            if fields.get(CSRF_FIELD) != identity.csrf_token:
                raise Problem(403, "the form lacks this session's token: load the page again")
            self._portal.access.end_session(identity.cookie)
            response.delete_cookie(
                cookie_name(request), path="/", secure=self._portal.settings.tls, httponly=True, samesite="strict"
            )
            await audited(self._portal, request, Deed("logout", "", identity), response)
            return response

        return await self._or_problem(request, work)

    def _login_page(self, request: Request, sentence: str, going_to: str, status: int = 200) -> Response:
        found = self._rendered("login", request, None, page="login", title="Log in", sentence=sentence, next=going_to)
        found.status_code = status
        return found


def _user(identity: Identity) -> dict[str, Any]:
    return {
        "name": identity.name,
        "role": identity.role.word,
        "can_operate": identity.role >= Role.OPERATOR,
        "can_administer": identity.role >= Role.ADMIN,
    }


def _local(address: str) -> str:
    """An address on this portal, never one elsewhere."""
    safe = address.startswith("/") and not address.startswith("//") and "\\" not in address and address.isprintable()
    return address if safe and len(address) < 2000 else "/"


async def _form(request: Request) -> dict[str, str]:
    _, text = await read_body(request, FORM_BYTES, {FORM: {}})
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=10)
    except ValueError as error:
        raise Problem(400, "the form cannot be read") from error
    return {name: values[0] for name, values in fields.items()}
