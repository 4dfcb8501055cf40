from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edgeai.errors import NotFound
from edgeai.resources.kinds import KINDS
from edgeai.resources.schema import crd, json_schema

# Fields of Kubernetes' JSONSchemaProps that a structural schema may use, without junctors (allOf, anyOf, oneOf, not).
ALLOWED = {
    "additionalProperties", "default", "description", "enum", "format", "items", "maxItems", "maxLength", "maximum",
    "minItems", "minLength", "minimum", "nullable", "pattern", "properties", "required", "type",
    "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip
TYPES = {"array", "boolean", "integer", "number", "object", "string"}


def openapi(kind: str) -> dict[str, Any]:
    [version] = crd(kind)["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from nodes(schema[name], f"{path}.{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_has_a_type_or_says_that_it_may_hold_anything(kind: str) -> None:
    for path, node in nodes(openapi(kind)):
        assert node.get("type") in TYPES or node.get("x-kubernetes-preserve-unknown-fields") is True, path


@pytest.mark.parametrize("kind", KINDS)
def test_only_words_of_a_structural_schema_are_used(kind: str) -> None:
    for path, node in nodes(openapi(kind)):
        assert node.keys() <= ALLOWED, path


@pytest.mark.parametrize("kind", KINDS)
def test_properties_and_additional_properties_exclude_each_other(kind: str) -> None:
    for path, node in nodes(openapi(kind)):
        assert not {"properties", "additionalProperties"} <= node.keys(), path


@pytest.mark.parametrize("kind", KINDS)
def test_no_default_is_null_and_every_array_has_items(kind: str) -> None:
    for path, node in nodes(openapi(kind)):
        assert "default" not in node or node["default"] is not None, path
        assert node.get("type") != "array" or "items" in node, path


@pytest.mark.parametrize("kind", KINDS)
def test_required_fields_exist(kind: str) -> None:
    for path, node in nodes(openapi(kind)):
        assert set(node.get("required", ())) <= node.get("properties", {}).keys(), path


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_restricts_only_the_name(kind: str) -> None:
    assert openapi(kind)["properties"]["metadata"]["properties"].keys() == {"name"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_is_named_by_plural_and_group(kind: str) -> None:
    definition = crd(kind)
    assert definition["metadata"]["name"] == f"{definition['spec']['names']['plural']}.{definition['spec']['group']}"


def test_the_fields_of_a_task_have_the_names_of_the_yaml_form() -> None:
    spec = openapi("FederatedTask")["properties"]["spec"]["properties"]
    assert spec.keys() == {"aggregationWorker", "trainingWorkers", "paused"}
    value = spec["aggregationWorker"]["properties"]["workerSpec"]["properties"]["parameters"]["items"]["properties"][
        "value"
    ]
    assert value["x-kubernetes-preserve-unknown-fields"] is True


def test_a_definition_of_an_unknown_kind_does_not_exist() -> None:
    with pytest.raises(NotFound, match="kind Pod does not exist"):
        crd("Pod")


def test_the_json_schema_offers_every_kind_and_asks_for_kind_and_version() -> None:
    schema = json_schema()
    assert [choice["$ref"].rpartition("/")[2] for choice in schema["oneOf"]] == list(KINDS)
    for kind in KINDS:
        definition = schema["$defs"][kind]
        assert {"apiVersion", "kind", "metadata"} <= set(definition["required"])
        assert definition["properties"]["kind"]["const"] == kind
        assert definition["additionalProperties"] is False
