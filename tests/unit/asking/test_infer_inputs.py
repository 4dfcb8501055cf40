"""What `edgeai infer --json` asks."""

from __future__ import annotations

import numpy as np
import pytest

from edgeai.cli.asking import inputs_from
from edgeai.errors import Refused


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
