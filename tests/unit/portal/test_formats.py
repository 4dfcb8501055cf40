"""How pages write numbers."""

from __future__ import annotations

import pytest

from edgeai.portal import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (5.9, "5 s"),
        (59.9, "59 s"),
        (75, "1 min 15 s"),
        (3600, "1 h"),
        (3660, "1 h 1 min"),
        (360_000, "4 d 4 h"),
    ],
)
def test_an_age_has_at_most_two_parts(value: float, text: str) -> None:
    assert formats.age(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.004, "0.00 s"), (0.42, "0.42 s"), (3.14, "3.1 s"), (9.96, "10 s"), (61, "1 min 1 s")]
)
def test_a_duration_is_the_more_exact_the_shorter_it_is(value: float, text: str) -> None:
    assert formats.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (999.6, "1.0 kB"), (12_345_678, "12 MB"), (10**18, "1000 PB")]
)
def test_bytes_are_written_in_the_unit_that_fits(value: float, text: str) -> None:
    assert formats.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.987654, "0.9877"),
        (1, "1"),
        (12345.6, "12\u202f346"),
        (float("nan"), formats.NOTHING),
        (None, formats.NOTHING),
        ("x", formats.NOTHING),
        (True, formats.NOTHING),
    ],
)
def test_a_metric_has_four_digits_and_nothing_is_made_up(value: object, text: str) -> None:
    assert formats.number(value) == text


@pytest.mark.parametrize(
    "write", [formats.size, formats.seconds, formats.age, formats.count, formats.rate, formats.short]
)
def test_what_nobody_knows_is_a_dash(write: object) -> None:
    assert write(None) == formats.NOTHING  # type: ignore[operator]


def test_moments_of_people_and_of_resources_are_written_alike() -> None:
    assert formats.clock(1_700_000_000.0) == formats.clock("2023-11-14T22:13:20Z") == "2023-11-14 22:13:20 UTC"
