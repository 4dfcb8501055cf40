"""Schemas of the kinds, generated from the models: CustomResourceDefinitions for Kubernetes, JSON Schema for editors.

Kubernetes wants a *structural* schema: every node has a type, nothing is a reference, `null` is `nullable`, and a field
that may hold anything says so. What only Python can check (names of workers being unique, known keys having their type)
is not in the schemas; `apply` checks it.

Source: Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions", section "Specifying a
structural schema".
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from edgeai.errors import NotFound
from edgeai.resources.base import API_VERSION
from edgeai.resources.kinds import KINDS

Schema = dict[str, Any]

GROUP, VERSION = API_VERSION.split("/")
# What OpenAPI v3 schemas in Kubernetes know by the same name and meaning as JSON Schema.
_KEPT = (
    "default",
    "description",
    "enum",
    "format",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
)
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_ANYTHING = {_PRESERVE: True}
_CLUSTER_WIDE = ("EdgeNode",)
RECURSION = 2
"""How often a definition may stand inside itself. It doubles with `all` and `any`, and a definition has 1.5 MB in etcd."""


def crd(kind: str) -> Schema:
    """The CustomResourceDefinition (apiextensions.k8s.io/v1) of a kind. Raises NotFound."""
    if kind not in KINDS:
        raise NotFound("kind", kind, "there is " + ", ".join(sorted(KINDS)))
    plural = kind.lower() + "s"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "scope": "Cluster" if kind in _CLUSTER_WIDE else "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": _openapi(kind)},
                }
            ],
        },
    }


def json_schema() -> Schema:
    """One JSON Schema (2020-12) for a manifest's document of any kind."""
    references, definitions = models_json_schema(
        [(model, "validation") for model in KINDS.values()], title="edgeai manifest", by_alias=True
    )
    for kind in KINDS:
        definitions["$defs"][kind]["required"] = ["apiVersion", "kind", *definitions["$defs"][kind]["required"]]
    kinds = [references[model, "validation"] for model in KINDS.values()]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **definitions, "oneOf": kinds}


def _openapi(kind: str) -> Schema:
    schema = KINDS[kind].model_json_schema(by_alias=True)
    structural = _structural(schema, schema.get("$defs", {}))
    name = structural["properties"]["metadata"]["properties"]["name"]
    # The API server owns these three and allows little to be said about them.
    structural["properties"]["apiVersion"] = {"type": "string"}
    structural["properties"]["kind"] = {"type": "string"}
    structural["properties"]["metadata"] = {"type": "object", "properties": {"name": name}}
    return structural


def _structural(schema: Schema, definitions: Schema, above: tuple[str, ...] = ()) -> Schema:
    """One node and all below it, in the form of Kubernetes. `above`: the definitions that it stands in."""
    schema, above = _resolved(schema, definitions, above)
    node = {key: schema[key] for key in _KEPT if key in schema and schema[key] is not None}
    for key in ("type", "nullable"):
        if key in schema:
            node[key] = schema[key]
    if "const" in schema:
        node["enum"] = [schema["const"]]
    if "pattern" in schema:
        node["pattern"] = schema["pattern"]
    if "properties" in schema:
        node["properties"] = {
            name: _structural(field, definitions, above) for name, field in schema["properties"].items()
        }
        if schema.get("required"):
            node["required"] = schema["required"]
    elif isinstance(schema.get("additionalProperties"), dict):
        node["additionalProperties"] = _structural(schema["additionalProperties"], definitions, above)
    if "items" in schema:
        node["items"] = _structural(schema["items"], definitions, above)
    if "type" not in node or _PRESERVE in schema:
        node[_PRESERVE] = True
    if node.get("type") == "integer":
        node["format"] = "int64"
    return node


def _resolved(schema: Schema, definitions: Schema, above: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
    """References replaced by what they name, and `null` by nullable; what stands beside them (a default) stays."""
    while "$ref" in schema or "anyOf" in schema:
        if "anyOf" in schema:
            schema = _without_null(schema)
            continue
        name = schema["$ref"].rpartition("/")[2]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        if above.count(name) > RECURSION:
            return {"type": "object", **_ANYTHING, **beside}, above
        schema, above = {**definitions[name], **beside}, (*above, name)
    return schema, above


def _without_null(schema: Schema) -> Schema:
    """`anyOf: [X, null]` as X that is nullable."""
    [choice] = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**choice, **rest, "nullable": True}
