"""What an operation of the REST API is: one value from which its route, its checks and its documentation follow.

`api` writes the table, `endpoints` turns it into routes, `openapi` into a document. As there is only one description, what the
document says of parameters, roles and answers is what happens. Knows nothing of what an operation does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from edgeai.portal.access import Identity, Role
from edgeai.portal.context import Portal
from edgeai.portal.problems import Problem

Schema = Mapping[str, Any]
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")


class Place(StrEnum):
    PATH = "path"
    QUERY = "query"
    HEADER = "header"


@dataclass(frozen=True, slots=True)
class Parameter:
    """`schema` is JSON Schema of type string, integer or boolean; `default` None: it may be left out."""

    name: str
    place: Place
    schema: Schema
    text: str
    default: Any = None

    def value(self, given: str) -> Any:
        """What was given, as its type. Raises ValueError with the end of a sentence about it."""
        match self.schema["type"]:
            case "integer":
                return self._integer(given)
            case "boolean":
                if given not in ("true", "false"):
                    raise ValueError("must be true or false")
                return given == "true"
        return self._string(given)

    def _integer(self, given: str) -> int:
        if not _INTEGER.fullmatch(given):
            raise ValueError("must be a whole number")
        value = int(given)
        low, high = self.schema.get("minimum"), self.schema.get("maximum")
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(
                f"must be from {low if low is not None else 'any'} to {high if high is not None else 'any'}"
            )
        return value

    def _string(self, given: str) -> str:
        pattern, limit = self.schema.get("pattern"), self.schema.get("maxLength", 10_000)
        if len(given) > limit or len(given) < self.schema.get("minLength", 0):
            raise ValueError(f"must have {self.schema.get('minLength', 0)} to {limit} characters")
        if pattern is not None and not re.search(pattern.replace("$", r"\Z"), given):
            raise ValueError("does not have the right form")
        choices = self.schema.get("enum")
        if choices is not None and given not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return given


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was let in, with its checked arguments."""

    portal: Portal
    request: Request
    identity: Identity
    arguments: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer. `schema` by media type; empty: no body."""

    text: str
    content: Mapping[str, Schema] = field(default_factory=dict)
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """`action` is what the audit log calls it; empty: it changes nothing. `refusals` are statuses beside those of everybody."""

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    answer: Answer
    role: Role = Role.VIEWER
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Schema] = field(default_factory=dict)
    action: str = ""
    refusals: tuple[int, ...] = ()
    tag: str = "resources"

    def statuses(self) -> list[int]:
        """Every refusal there can be."""
        found = {400, 401, 429, 500, 503, *self.refusals}
        if self.role > Role.VIEWER or self.action:
            found.add(403)
        if any(parameter.place is Place.PATH for parameter in self.parameters):
            found.add(404)
        if self.body:
            found |= {413, 415, 422}
        return sorted(found)


def arguments(operation: Operation, request: Request) -> dict[str, Any]:
    """The parameters of a request, all of them checked, defaults filled in.

    Raises:
        Problem: 404 for what cannot be in a path, 400 for anything else.
    """
    given = _given(operation, request)
    found: dict[str, Any] = {}
    for parameter in operation.parameters:
        text = given.get((parameter.place, parameter.name.lower()))
        if text is None:
            found[parameter.name] = parameter.default
            continue
        try:
            found[parameter.name] = parameter.value(text)
        except ValueError as error:
            if parameter.place is Place.PATH:
                raise Problem(404, f"there is no such {parameter.name}: it {error}") from error
            raise Problem(400, f"{parameter.place.value} parameter {parameter.name} {error}") from error
    return found


def _given(operation: Operation, request: Request) -> dict[tuple[Place, str], str]:
    query = {parameter.name for parameter in operation.parameters if parameter.place is Place.QUERY}
    found: dict[tuple[Place, str], str] = {(Place.PATH, name): text for name, text in request.path_params.items()}
    for name, text in request.query_params.multi_items():
        if name not in query:
            raise Problem(400, f"there is no query parameter {name[:60]!a} here")
        if (Place.QUERY, name.lower()) in found:
            raise Problem(400, f"query parameter {name} is given twice")
        found[Place.QUERY, name.lower()] = text
    for parameter in operation.parameters:
        header = request.headers.get(parameter.name) if parameter.place is Place.HEADER else None
        if header is not None:
            found[Place.HEADER, parameter.name.lower()] = header
    return found


async def read_body(request: Request, limit: int, media_types: Mapping[str, Schema]) -> tuple[str, str]:
    """Media type and text of a body. Raises Problem 415, 413 or 400."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in media_types:
        raise Problem(415, f"send {' or '.join(media_types)}, not {media_type[:60] or 'a body without Content-Type'}")
    size = request.headers.get("content-length", "0")
    if size.isdigit() and int(size) > limit:
        raise _too_large(limit)
    content = bytearray()
    try:
        async for piece in request.stream():
            content += piece
            if len(content) > limit:
                raise _too_large(limit)
    except ClientDisconnect as error:
        raise Problem(400, "the request ended before its body") from error
    try:
        return media_type, content.decode()
    except UnicodeDecodeError as error:
        raise Problem(400, "the body is not UTF-8 text") from error


def _too_large(limit: int) -> Problem:
    # The rest of the body is not read: the connection cannot be used again.
    return Problem(413, f"the body is larger than {limit // 1024} KB", headers={"Connection": "close"})
