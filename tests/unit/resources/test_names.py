from __future__ import annotations

import pytest

from edgeai.resources.names import NAME_RULE, checked_name


@pytest.mark.parametrize("name", ["a", "0", "edge-1", "a" * 50, "a--b"])
def test_a_valid_name_is_returned_as_it_is(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-",
        "a-",
        "-a",
        "A",
        "a_b",
        "a.b",
        "a b",
        "a/b",
        "a+",
        "#",
        "$x",
        ">",
        "*",
        "a\n",
        "é",
        "\u0661",
        "a" * 51,
        "a" * 1024,
    ],
)
def test_an_invalid_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 50 characters") as refusal:
        checked_name(name)
    assert str(refusal.value) == NAME_RULE
