"""Every error is in one tree, on one page, and is one line for a person."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from edgeai import errors
from edgeai.errors import (
    AddressError,
    AggregationError,
    BinaryMissing,
    BusUnavailable,
    Conflict,
    DamagedFile,
    EdgeaiError,
    EngineUnavailable,
    LaunchError,
    MalformedEvent,
    ManifestError,
    NotFound,
    PayloadTooLarge,
    PortTaken,
    Refused,
    StoreError,
    UpdateError,
    WaitTimeout,
)

ALL = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, Exception)]


def test_every_error_is_in_the_tree():
    assert all(issubclass(found, EdgeaiError) for found in ALL)


def test_the_drawing_at_the_top_is_the_tree():
    """Each line is indented under its parent."""
    drawn: dict[str, str] = {}
    parents = ["EdgeaiError"]
    for line in inspect.getdoc(errors).splitlines():
        if found := re.match(r"([│ ]*)[├└]── (\w+)", line):
            depth = len(found.group(1)) // 4
            drawn[found.group(2)] = parents[depth]
            parents[depth + 1 :] = [found.group(2)]
    assert drawn == {found.__name__: found.__base__.__name__ for found in ALL if found is not EdgeaiError}


def test_every_error_says_what_it_is():
    for found in ALL:
        assert found.__doc__ or found.__name__ in inspect.getdoc(errors), found


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ManifestError("unknown field", file="t.yaml", line=7, field="spec.x"), "t.yaml:7: spec.x: unknown field"),
        (ManifestError("is empty", file="t.yaml"), "t.yaml: is empty"),
        (ManifestError("is empty"), "is empty"),
        (NotFound("model", "cnn"), "model cnn does not exist"),
        (NotFound("model", "cnn", "apply it"), "model cnn does not exist; apply it"),
        (Conflict("model", "cnn"), "model cnn was changed by somebody else meanwhile"),
        (BusUnavailable("nats://x"), "no broker answers at nats://x"),
        (BusUnavailable("nats://x", "refused"), "no broker answers at nats://x (refused)"),
        (PayloadTooLarge(9, 5), "9 bytes do not fit the broker limit of 5"),
        (AddressError("a/b", "too short"), "'a/b': too short"),
        (DamagedFile(Path("/x"), "cut"), "/x is damaged: cut"),
        (
            EngineUnavailable("unix:///x"),
            "no Docker engine answers at unix:///x; start it, set DOCKER_HOST, or use the process launcher"
            " (--launcher process)",
        ),
        (BinaryMissing("mosquitto", "install it"), "mosquitto is not installed; install it"),
        (
            PortTaken(1883, "mosquitto", "--port"),
            "mosquitto: port 1883 is taken by another program; stop it or choose another port (--port)",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_writes_its_sentence(error, sentence):
    assert str(error) == sentence


def test_errors_carry_their_facts():
    error = ManifestError("unknown field", file="t.yaml", line=7, field="spec.x")
    assert (error.what, error.file, error.line, error.field) == ("unknown field", "t.yaml", 7, "spec.x")
    assert (NotFound("model", "cnn").kind, NotFound("model", "cnn").name) == ("model", "cnn")
    assert (PayloadTooLarge(9, 5).size_bytes, PayloadTooLarge(9, 5).limit_bytes) == (9, 5)
    assert DamagedFile("/x", "cut").path == Path("/x")
    assert BusUnavailable("nats://x").url == "nats://x"
    assert PortTaken(1883, "x").port == 1883
    assert BinaryMissing("x", "y").binary == "x"


@pytest.mark.parametrize("text", ["a\nb", "x" * 10_000, "\x1b[31m"], ids=["lines", "long", "escapes"])
def test_a_hostile_address_is_quoted_in_a_short_line(text):
    assert len(str(AddressError(text, "no"))) < 500
    assert str(AddressError(text, "no")).isprintable()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EdgeaiError, 1),
        (NotFound, 3),
        (ManifestError, 4),
        (Refused, 4),
        (Conflict, 4),
        (BusUnavailable, 5),
        (PayloadTooLarge, 1),
        (WaitTimeout, 124),
        (MalformedEvent, 1),
        (StoreError, 1),
        (LaunchError, 1),
        (UpdateError, 1),
        (AggregationError, 1),
    ],
)
def test_the_command_line_ends_with_the_code_of_the_contract(error, code):
    assert error.exit_code == code
