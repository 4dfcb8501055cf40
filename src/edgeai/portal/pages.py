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
    part        an open window reads its page again (header X-Part): only what changes, for everybody of this role

Numbers are written by the filters of `formats`. Errors are `problem.html` with `problem` (status, title, detail) instead of
`data`; the login is `login.html` with `sentence` and `next`, the page behind a one-time link `enter.html`. Everything that
changes something goes through the REST API, except login and logout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from markupsafe import escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from edgeai.portal.access import Identity, Role
from edgeai.portal.contents import PAGES, Page
from edgeai.portal.context import Portal
from edgeai.portal.endpoints import Deed, answered, audited, on_http_exception
from edgeai.portal.guard import CSRF_FIELD, admit, check_attempts, check_origin, cookie_name
from edgeai.portal.openapi import installed_version
from edgeai.portal.operations import read_body
from edgeai.portal.problems import Problem, document
from edgeai.portal.rendering import Shared, Templates

HERE = Path(__file__).parent
FORM = "application/x-www-form-urlencoded"
FORM_BYTES = 4096
NOWHERE = "there is no such page: it may have another name here, or the address is incomplete"
PART_HEADER, SEEN_HEADER = "X-Part", "X-Seen"
"""A window that reads its page again wants only what changes; and it has heard of this change."""


class Pages:
    """Renders them. One per portal."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._templates = Templates()
        self.shared = Shared(lambda: portal.live.feed.sequence)

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
                return await (self._part if PART_HEADER in request.headers else self._whole)(page, request, identity)

            return await self._or_problem(request, work)

        return show

    async def _whole(self, page: Page, request: Request, identity: Identity) -> Response:
        sequence = self._portal.live.feed.sequence
        data = await page.data(self._portal, request)
        return self._rendered(page.name, request, identity, **_names(page, request, sequence, data))

    async def _part(self, page: Page, request: Request, identity: Identity) -> Response:
        """What an open window needs to be current: the same for all of a role, but for the token in front of it."""
        live = self._portal.live

        async def make() -> str:
            sequence = live.feed.sequence
            data = await page.data(self._portal, request)
            nobody = Identity("", identity.role)
            return self._text(page.name, request, nobody, part=True, **_names(page, request, sequence, data))

        seen = request.headers.get(SEEN_HEADER, "")
        known = int(seen) if seen.isdecimal() and len(seen) < 20 else live.feed.sequence
        text = await self.shared.text((request.url.path, request.url.query, identity.role), known, make)
        return HTMLResponse(f'<meta name="csrf-token" content="{escape(identity.csrf_token)}">\n{text}')

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

    async def nowhere(self, request: Request, error: Exception) -> Response:
        """What the router says, as a page for a person and as a problem for a program."""
        answer = await on_http_exception(request, error)
        if request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
            return answer
        shown = document(Problem(answer.status_code, NOWHERE))
        identity = request.state.identity
        page = self._rendered("problem", request, identity, page="problem", title=shown["title"], problem=shown)
        page.status_code = answer.status_code
        return page

    def _rendered(self, template: str, request: Request, identity: Identity | None, **names: Any) -> Response:
        return HTMLResponse(self._text(template, request, identity, **names))

    def _text(self, template: str, request: Request, identity: Identity | None, **names: Any) -> str:
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
        return self._templates.get_template(f"{template}.html").render(shown)

    # --- login

    async def _show_login(self, request: Request) -> Response:
        if "link" in request.query_params and request.method == "GET":  # HEAD uses nothing up
            return await self._use_link(request)
        return self._login_page(request, "", _local(request.query_params.get("next", "/")))

    async def _use_link(self, request: Request) -> Response:
        async def work() -> Response:
            identity = self._portal.access.use_link(request.query_params["link"])
            if identity is None:
                check_attempts(self._portal, request)
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
            identity = self._portal.access.bearer(fields.get("token", "").strip())
            if identity is None:
                check_attempts(self._portal, request)
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


def _names(page: Page, request: Request, sequence: int, data: dict[str, Any]) -> dict[str, Any]:
    """Of a page, for its template. `sequence`: what is shown is at least as new."""
    title = f"{request.path_params['name']} - {page.title}" if "name" in request.path_params else page.title
    return {"page": page.name, "title": title, "data": data, "sequence": sequence}


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
