"""What answers have in common, and which are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from edgeai.worker.answers import (
    as_json,
    fits,
    form_of,
    is_finite,
    joined,
    plain,
    shown,
    with_batch_axis,
    without_batch_axis,
)

ANSWERS = st.recursive(
    st.one_of(array_shapes(max_dims=3, max_side=3).map(np.zeros), st.floats(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=6,
)


@given(ANSWERS)
def test_an_answer_has_its_own_form(answer):
    assert fits(form_of(answer), form_of(answer))


@given(ANSWERS, ANSWERS)
def test_what_two_answers_have_in_common_fits_both(one, other):
    common = joined(form_of(one), form_of(other))
    assert fits(common, form_of(one))
    assert fits(common, form_of(other))


@pytest.mark.parametrize(
    ("known", "seen"),
    [
        (np.zeros(10), np.zeros(9)),
        (np.zeros(10), np.zeros((10, 1))),
        (np.zeros(10), np.zeros(10, int)),
        ({"boxes": np.zeros(4)}, {"scores": np.zeros(4)}),
        ((np.zeros(1), np.zeros(2)), (np.zeros(1),)),
        ([{"a": 1.0}], [{"b": 1.0}]),
        ("cat", 7),
    ],
    ids=["length", "axes", "kind of numbers", "names", "count", "elements", "type"],
)
def test_another_form_is_known(known, seen):
    assert not fits(form_of(known), form_of(seen))


def test_single_and_double_precision_are_the_same_form():
    assert form_of(np.zeros(2, "float32")) == form_of(np.zeros(2))


def test_an_empty_list_says_nothing_of_its_elements():
    assert fits(form_of([]), form_of([{"box": np.zeros(4)}]))


@pytest.mark.parametrize(
    "answer",
    [np.array([1, np.nan]), float("inf"), {"a": [1.0, float("nan")]}, (np.float32("-inf"), 1)],
    ids=["array", "number", "inside", "scalar"],
)
def test_what_is_not_finite_is_found_anywhere(answer):
    assert not is_finite(answer)


@pytest.mark.parametrize("answer", [np.array([1, 2]), "text", None, {"a": np.array(["b"])}, True])
def test_what_is_no_float_is_finite(answer):
    assert is_finite(answer)


def test_every_input_of_several_gets_a_batch_axis():
    found = with_batch_axis({"image": np.zeros((8, 8)), "size": 3})
    assert {name: value.shape for name, value in found.items()} == {"image": (1, 8, 8), "size": (1,)}


def test_every_answer_of_several_loses_its_batch_axis():
    found = without_batch_axis({"boxes": np.zeros((1, 5, 4)), "labels": (np.zeros((1, 5)),)})
    assert (found["boxes"].shape, found["labels"][0].shape) == ((5, 4), (5,))


def test_arrays_of_a_framework_become_arrays():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.ones(2)

    assert isinstance(plain({"scores": Tensor()})["scores"], np.ndarray)


def test_a_form_is_shown_in_one_line():
    form = joined(form_of({"boxes": np.zeros((2, 4))}), form_of({"boxes": np.zeros((3, 4))}))
    assert shown(form) == "{boxes: f[?, 4]}"


def test_an_answer_is_written_as_json():
    assert as_json({"scores": np.array([0.5, 1.0]), "best": np.int64(1)}) == '{"scores": [0.5, 1.0], "best": 1}'


@pytest.mark.parametrize("answer", [object(), np.zeros(100_000), {1j}])
def test_what_is_too_long_or_no_json_is_left_out(answer):
    assert as_json(answer) == ""
