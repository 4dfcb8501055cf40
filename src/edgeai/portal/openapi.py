"""The OpenAPI document, made from the table of operations and the models of the resources.

Resources are described by their pydantic models, with what `views` adds: `live`, and Unknown where something is not known.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic.json_schema import models_json_schema

from edgeai.portal.operations import Operation, Parameter, Place
from edgeai.portal.problems import MEDIA_TYPE, TITLES
from edgeai.portal.schemas import COMPONENTS, maybe, ref
from edgeai.portal.views import UNKNOWN
from edgeai.resources.kinds import KINDS

Schema = dict[str, Any]
_TEMPLATE = "#/components/schemas/{model}"
_INPUT = "Input"


def document(operations: Sequence[Operation]) -> Schema:
    paths: dict[str, Schema] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgeai",
            "version": installed_version(),
            "description": "See and steer all of Edge AI in one place: resources, tasks, edges, models, history.",
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "schemas": {**_resources(), **COMPONENTS},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "edgeai-session-<port>",
                    "description": "Of a login in a browser; what changes something also needs the header X-CSRF-Token.",
                },
            },
        },
    }


def _operation(operation: Operation) -> Schema:
    answer = operation.answer
    success: Schema = {"description": answer.text}
    if answer.content:
        success["content"] = {name: {"schema": schema} for name, schema in answer.content.items()}
    if answer.headers:
        success["headers"] = {
            name: {"description": text, "required": True, "schema": {"type": "string"}}
            for name, text in answer.headers.items()
        }
    described: Schema = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "description": f"Role: {operation.role.word}.",
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {
            str(answer.status): success,
            **{str(status): _refusal(status) for status in operation.statuses()},
        },
    }
    if operation.body:
        content = {name: {"schema": schema} for name, schema in operation.body.items()}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _parameter(parameter: Parameter) -> Schema:
    schema = dict(parameter.schema)
    if parameter.default is not None:
        schema["default"] = parameter.default
    return {
        "name": parameter.name,
        "in": parameter.place.value,
        "required": parameter.place is Place.PATH,
        "description": parameter.text,
        "schema": schema,
    }


def _refusal(status: int) -> Schema:
    return {"description": TITLES[status], "content": {MEDIA_TYPE: {"schema": ref("Problem")}}}


def _resources() -> dict[str, Schema]:
    """Every kind twice: as it is posted (<Kind>Input), and as it is given out (<Kind>)."""
    models = [(model, "validation") for model in KINDS.values()]
    _, found = models_json_schema(models, by_alias=True, ref_template=_TEMPLATE)  # type: ignore[arg-type]
    parts: dict[str, Schema] = copy.deepcopy(found["$defs"])
    shown = {name: copy.deepcopy(part) for name, part in parts.items()}
    posted = copy.deepcopy(parts["Metadata"])
    for field in ("creationTimestamp", "deletionTimestamp"):
        # Not used when posted: it has to look like a date, but no calendar is asked.
        for choice in posted["properties"][field]["anyOf"]:
            choice.pop("format", None)
    for kind in KINDS:
        parts[kind]["properties"]["metadata"] = ref("MetadataInput")
        parts[kind]["required"] = ["apiVersion", "kind", *parts[kind]["required"]]
        # A posted status is not used.
        parts[kind]["properties"].pop("status", None)
        shown[kind]["properties"]["live"] = ref("Live")
        shown[kind]["required"] = ["apiVersion", "kind", "metadata", "status", "live"]
    if "TaskPhase" in shown:
        shown["TaskPhase"]["enum"] = [*shown["TaskPhase"]["enum"], UNKNOWN]
    for name in ("wanted", "ready", "waiting"):  # null: not known, see `views`
        shown["ReplicaCount"]["properties"][name] = maybe({"type": "integer", "minimum": 0})
    shown["EdgeServing"]["properties"]["reason"] = {"type": "string"}
    shown["WorkerStatus"]["properties"]["usage"] = {"type": ["object", "null"]}
    inputs = {f"{kind}{_INPUT}": parts[kind] for kind in KINDS}
    return {
        **shown,
        **inputs,
        "MetadataInput": posted,
        "Manifest": {"oneOf": [ref(f"{kind}{_INPUT}") for kind in sorted(KINDS)]},
    }


@cache
def installed_version() -> str:
    try:
        return version("edgeai")
    except PackageNotFoundError:
        return "0"
