"""What is written about the API is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from memory_portal import RunningPortal

from edgeai.portal import openapi
from edgeai.portal.api import OPERATIONS
from edgeai.portal.reference import markdown
from edgeai.resources.kinds import KINDS

DOCS = Path(__file__).parents[3] / "docs"


def references(node: object) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    return set().union(*(references(item) for item in node)) if isinstance(node, list) else set()


def test_the_page_about_the_api_is_made_from_the_code() -> None:
    assert (DOCS / "api.md").read_text() == markdown()


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = openapi.document(OPERATIONS)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) - known == set()


def test_every_parameter_of_a_path_is_described() -> None:
    for operation in OPERATIONS:
        described = {parameter.name for parameter in operation.parameters if parameter.place == "path"}
        assert set(re.findall(r"{(\w+)}", operation.path)) == described, operation.name


def test_every_kind_has_its_operations() -> None:
    paths = {operation.path for operation in OPERATIONS}
    assert {f"/api/v1/{kind.lower()}s/{{name}}" for kind in KINDS} <= paths


def test_names_of_operations_are_unique() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)


async def test_every_operation_has_a_route(running: RunningPortal) -> None:
    routes = {(method, route.path) for route in running.app.routes for method in getattr(route, "methods", None) or ()}
    assert {(operation.method, operation.path) for operation in OPERATIONS} <= routes
