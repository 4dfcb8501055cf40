"""What a person is told when an image cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeai.launcher.building import explain, step_of
from edgeai.launcher.images import AGGREGATION, BASE, TENSORFLOW

STEP = "python3 -m venv /opt/edgeai && /opt/edgeai/bin/pip install numpy"
PIP = f"The command '/bin/sh -c {STEP}' returned a non-zero code: 1"
NO_WHEEL = "ERROR: No matching distribution found for tensorflow-cpu==2.21.0"
RETRY = "WARNING: Retrying (Retry(total=4)) after connection broken by 'SSLError(...)': /simple/aiomqtt/"
REMOVED = "Removing intermediate container 0123456789ab"


def told(error: str, *said: str, image=AGGREGATION, wheelhouse: Path | None = None) -> str:
    return explain(error, said, image, wheelhouse, BASE)


def test_a_wheel_that_is_missing_is_told_with_the_command_that_gets_it():
    found = told(PIP, "Step 8/18 : RUN x", NO_WHEEL, REMOVED, image=TENSORFLOW, wheelhouse=Path("wheels"))

    assert "the wheelhouse has no tensorflow-cpu==2.21.0 for the Python of python:3.11-slim-bookworm" in found
    assert "`pip wheel --wheel-dir wheels/federated-tensorflow 'tensorflow-cpu==2.21.0'`" in found


def test_a_step_without_network_is_told_of_the_wheelhouse():
    assert "--wheelhouse FOLDER" in told(
        PIP, RETRY, "ERROR: No matching distribution found for aiomqtt<3,>=2.5", REMOVED
    )


def test_packages_of_debian_that_cannot_be_fetched_are_no_network_either():
    assert "--wheelhouse FOLDER" in told("code 100", "W: Temporary failure resolving 'deb.debian.org'")


def test_a_package_that_no_index_has_is_named():
    assert told(PIP, NO_WHEEL) == "there is no tensorflow-cpu==2.21.0 for the Python of python:3.11-slim-bookworm"


def test_a_base_image_that_is_missing_is_told_with_what_to_do():
    found = told("pull access denied", "Step 1/18 : ARG BASE=x", "Step 2/18 : FROM ${BASE} AS build")

    assert (
        found
        == f"{BASE} is not here and cannot be pulled (pull access denied); load it, or name another one with --base"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("write /opt/x: no space left on device", ""),
        (PIP, "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"),
    ],
    ids=["the engine", "pip"],
)
def test_a_full_disk_is_called_so(error, said):
    assert told(error, said).startswith("the disk of the Docker engine is full")


def test_anything_else_is_told_shortly_with_the_last_word_of_the_step():
    found = told(PIP, "Step 8/18 : RUN x", " ---> Running in 0123".strip(), "ERROR: Invalid requirement", REMOVED)

    assert found == f"`{STEP[:60]}` returned code 1: ERROR: Invalid requirement"


@pytest.mark.parametrize(
    ("line", "step"), [("Step 3/14 : RUN x", (3, 14)), (" ---> abc", None), ("Step by step", None), ("", None)]
)
def test_steps_are_read_from_what_the_engine_says(line, step):
    assert step_of(line) == step
