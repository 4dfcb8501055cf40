"""Refusals as answers: application/problem+json (RFC 9457) with one sentence for a person, never a stack trace.

Every error of `errors.py` has its status here. Knows nothing of routes; `api` and `pages` raise, `endpoints` answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from edgeai import errors
from edgeai.errors import EdgeaiError

MEDIA_TYPE = "application/problem+json"
_LONGEST = 1000

TITLES = {
    400: "Bad request",
    401: "Login needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    415: "Unsupported media type",
    422: "Not acceptable as it is",
    429: "Too many attempts",
    500: "Internal error",
    503: "Unavailable",
    504: "No answer in time",
}


class Problem(EdgeaiError):
    """A refusal of a request. `errors` points at lines and fields of what was posted."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, tuple(errors), dict(headers or {})


def problem_of(error: EdgeaiError) -> Problem:
    """The answer to an error of this package."""
    match error:
        case Problem():
            return error
        case errors.ManifestError():
            return Problem(422, str(error), errors=_places(error))
        case errors.NotFound():
            return Problem(404, str(error))
        case errors.Refused():  # Conflict is one
            return Problem(409, str(error))
        case errors.PayloadTooLarge():
            return Problem(413, str(error))
        case errors.WaitTimeout():
            return Problem(504, str(error))
        case errors.DamagedFile():  # its own sentence names a file of this machine
            return Problem(500, "what is stored is damaged: it does not have its digest")
        case errors.BusError():
            return Problem(503, str(error), headers={"Retry-After": "2"})
        case errors.AddressError() | errors.MalformedEvent():
            return Problem(400, str(error))
    return Problem(500, str(error))


def _places(error: errors.ManifestError) -> list[dict[str, Any]]:
    """One for everything that is wrong; how many more there are, beyond what is shown."""
    faults = (error, *error.others)
    found = [
        {key: value for key, value in place.items() if value not in (None, "")}
        for fault in faults[: error.SHOWN]
        for place in ({"line": fault.line, "field": fault.field, "detail": fault.what},)
    ]
    more = len(faults) - len(found)
    return [*found, {"detail": f"(and {more} more)"}] if more else found


def document(problem: Problem) -> dict[str, Any]:
    """The body of an answer."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(problem.status, "Refused"),
        "status": problem.status,
        "detail": one_line(problem.detail),
    }
    if problem.errors:
        body["errors"] = [dict(item) for item in problem.errors]
    return body


def answer(problem: Problem) -> JSONResponse:
    return JSONResponse(document(problem), problem.status, problem.headers, MEDIA_TYPE)


def one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST else flat[: _LONGEST - 3] + "..."
