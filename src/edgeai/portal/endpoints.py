"""From an operation to a route: let in, check, do, audit, answer; every error becomes a problem with one sentence."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeai.errors import EdgeaiError
from edgeai.portal.access import Identity
from edgeai.portal.audit import Line
from edgeai.portal.context import Portal
from edgeai.portal.guard import admit
from edgeai.portal.operations import Call, Operation, arguments
from edgeai.portal.problems import Problem, answer, one_line, problem_of
from edgeai.resources.base import instant

log = structlog.get_logger()

Endpoint = Callable[[Request], Awaitable[Response]]
_SENTENCES = {404: "there is nothing at this address", 405: "this address does not take this method"}


def routes(portal: Portal, operations: Sequence[Operation]) -> list[Route]:
    """One per path, so that a wrong method is told all the right ones."""
    found: dict[str, dict[str, Endpoint]] = {}
    for operation in operations:
        found.setdefault(operation.path, {})[operation.method] = _endpoint(portal, operation)
    return [Route(path, _by_method(endpoints), methods=list(endpoints)) for path, endpoints in found.items()]


def _by_method(endpoints: Mapping[str, Endpoint]) -> Endpoint:
    async def handle(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return handle


def _endpoint(portal: Portal, operation: Operation) -> Endpoint:
    async def handle(request: Request) -> Response:
        async def work() -> Response:
            identity = admit(portal, request, operation.role)
            return await operation.handler(Call(portal, request, identity, arguments(operation, request)))

        response, problem = await answered(work)
        if operation.action:
            await audited(portal, request, Deed(operation.action, request.url.path), response, problem)
        return response

    return handle


async def answered(work: Callable[[], Awaitable[Response]]) -> tuple[Response, Problem | None]:
    """The response of `work`, or that of what it raises."""
    try:
        return await work(), None
    except EdgeaiError as error:
        problem = problem_of(error)
    except Exception:
        log.exception("request_failed")
        problem = Problem(500, "the portal met something unexpected; its log says what")
    return answer(problem), problem


@dataclass(frozen=True, slots=True)
class Deed:
    """What was tried. `who` None: whom the request's own session or token names."""

    action: str
    target: str
    who: Identity | None = None


async def audited(
    portal: Portal, request: Request, deed: Deed, response: Response, problem: Problem | None = None
) -> None:
    """One line of the audit log, unless nobody in particular was turned away: that would let anybody fill the disk."""
    who = deed.who or request.state.identity
    if (
        who is None
        and (response.status_code == 429 or "authorization" not in request.headers)
        and deed.action != "login"
    ):
        return
    line = Line(
        time=instant(datetime.now(UTC)),
        who=who.name if who else "",
        role=who.role.word if who else "",
        address=request.state.address,
        action=deed.action,
        target=deed.target[:300],
        result=response.status_code,
        detail=one_line(problem.detail) if problem else "",
    )
    await portal.audit.write(line)


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """What the router says (no such path, wrong method), as a problem."""
    assert isinstance(error, HTTPException)
    sentence = _SENTENCES.get(error.status_code, "the request cannot be answered")
    return answer(Problem(error.status_code, sentence, headers=dict(error.headers or {})))
