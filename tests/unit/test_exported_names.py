"""The public names, and that handing one out loads no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgeai

NAMES = ["connect", "connect_edge", "errors", "join", "join_sync", "keras", "label_metrics"]


def test_these_names_are_public():
    assert edgeai.__all__ == NAMES
    assert set(NAMES) <= set(dir(edgeai))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "keras"])
def test_a_public_name_can_be_imported(name):
    assert getattr(edgeai, name) is not None


def test_what_is_not_public_is_not_there():
    with pytest.raises(AttributeError, match="module 'edgeai' has no attribute 'utils'"):
        edgeai.utils  # noqa: B018


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"tensorflow", "keras", "torch", "nats", "aiomqtt", "aiodocker", "starlette", "typer"}


def test_importing_the_package_loads_nothing():
    assert {name for name in loaded("import edgeai") if name.startswith("edgeai.")} == set()


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "events.catalogue",
        "events.envelope",
        "lifecycle.round",
        "lifecycle.task",
        "learning.aggregation",
        "reactor",
    ],
)
def test_the_core_loads_no_client_and_no_framework(module):
    assert loaded(f"import edgeai.{module}") & HEAVY == set()


def test_joining_a_task_loads_no_framework():
    assert (
        loaded("from edgeai import join, join_sync") & {"tensorflow", "keras", "torch", "starlette", "typer"} == set()
    )
