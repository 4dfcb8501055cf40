"""What `edgeai infer` asks, and what it says when it cannot."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest

from edgeai.cli.asking import ask, hinted, inputs_from
from edgeai.errors import BusUnavailable, Refused


def test_a_list_is_an_array_also_in_a_map() -> None:
    [found] = inputs_from(None, None, '{"image": [[1.5]], "age": 7}', rows=False)
    assert (found["image"].dtype, found["image"].tolist(), found["age"]) == (np.float32, [[1.5]], 7)


@pytest.mark.parametrize("document", ["[[1], [2, 3]]", '["a"]', '{"image": [[1], [2, 3]]}'])
def test_a_list_that_is_no_array_of_numbers_is_refused_by_name(document: str) -> None:
    with pytest.raises(Refused, match="--json is a list that is no array of numbers"):
        inputs_from(None, None, document, rows=False)


def test_an_array_is_made_of_the_type_that_is_asked_for() -> None:
    [found] = inputs_from(None, None, "[[1, 2]]", rows=False, dtype="uint8")
    assert (found.dtype.name, found.tolist()) == ("uint8", [[1, 2]])


@pytest.mark.parametrize(
    ("document", "dtype", "said"),
    [
        ("[300]", "uint8", "cannot hold values from 300 to 300"),
        ("[1]", "U9", "--dtype U9 is none of bool"),
        ("3", "uint8", "--dtype is for an array"),
    ],
)
def test_a_type_that_does_not_fit_is_refused_by_name(document: str, dtype: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        inputs_from(None, None, document, rows=False, dtype=dtype)


# --- what is said when it does not work


@pytest.fixture
def login(tmp_path: Path) -> Path:
    """Of an edge whose broker is stopped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{free.getsockname()[1]}"
    path = tmp_path / "edge1.app.json"
    path.write_text(json.dumps({"url": url, "username": "app", "password": "x"}))
    return path


async def test_a_stopped_edge_is_named_with_its_address_and_what_to_do(
    login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeai.asking.CONNECT_S", 0.2)
    with pytest.raises(BusUnavailable, match=r"no broker answers at mqtt://127.*edgeai edge --node edge1"):
        await ask("edge1", login, "digits", [1], deadline_s=None, model="", as_json=False)


def test_a_refused_shape_of_several_inputs_says_how_to_ask_about_each() -> None:
    refused = Refused("an input has the shape (8, 8), not (10, 8, 8)")
    assert "--rows" in str(hinted(refused, np.zeros((10, 8, 8))))


@pytest.mark.parametrize("value", ["text", np.float32(1)])
def test_what_has_no_rows_is_not_told_of_them(value: object) -> None:
    assert "--rows" not in str(hinted(Refused("the shape is wrong"), value))
