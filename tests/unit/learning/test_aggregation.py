"""Federated averaging as mathematics: laws, then the cases that are decided by us."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeai.errors import AggregationError
from edgeai.learning import aggregation
from edgeai.learning.aggregation import Update, check_arrays, weighted_mean, weighted_mean_of, weighted_metrics

DTYPES = ["float16", "float32", "float64", "bool", "int8", "uint8", "int32", "int64", "uint64"]
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
weights = st.integers(1, 10**6)


def values(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    elements = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else None
    return hnp.arrays(np.dtype(dtype), shape, elements=elements)


@st.composite
def rounds(draw: st.DrawFn, dtypes: list[str] = DTYPES) -> list[Update]:
    """Updates of a round: the same arrays for all, any finite values."""
    layout = draw(st.lists(st.tuples(st.sampled_from(dtypes), shapes), min_size=1, max_size=3))
    names = [f"w{number}" for number in range(draw(st.integers(1, 4)))]
    return [Update(name, draw(weights), [draw(values(*each)) for each in layout]) for name in names]


def assert_same(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    assert [(a.dtype, a.shape, a.tobytes()) for a in left] == [(b.dtype, b.shape, b.tobytes()) for b in right]


def of(*arrays: object, examples: tuple[int, ...] | None = None) -> list[Update]:
    """One update per array, of one array each."""
    counts = examples or (1,) * len(arrays)
    return [Update(f"w{n}", count, [np.asarray(a)]) for n, (a, count) in enumerate(zip(arrays, counts, strict=True))]


@given(rounds(), st.lists(weights, min_size=1, max_size=5))
def test_the_mean_of_equal_updates_is_that_update(updates, counts):
    equal = [Update(f"w{n}", count, updates[0].arrays) for n, count in enumerate(counts)]

    assert_same(weighted_mean(equal), list(updates[0].arrays))


@given(rounds())
def test_a_mean_lies_between_the_smallest_and_the_largest(updates):
    for index, mean in enumerate(weighted_mean(updates)):
        stack = np.stack([update.arrays[index] for update in updates])
        assert (stack.min(axis=0, initial=None) <= mean).all() if mean.size else True
        assert (mean <= stack.max(axis=0, initial=None)).all() if mean.size else True


@given(rounds(), st.integers(1, 10**6))
def test_a_mean_does_not_change_when_all_weights_are_scaled(updates, factor):
    scaled = [Update(update.worker, update.num_examples * factor, update.arrays) for update in updates]

    assert_same(weighted_mean(scaled), weighted_mean(updates))


@given(rounds())
def test_blocks_give_the_same_bits_as_the_whole(updates):
    whole = weighted_mean(updates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "BLOCK_ELEMENTS", 3)
        assert_same(weighted_mean(updates), whole)


@given(rounds())
def test_arrays_one_at_a_time_give_the_same_bits(updates):
    readers = [update.arrays.__getitem__ for update in updates]
    counts = [update.num_examples for update in updates]

    assert_same([weighted_mean_of(readers, counts, n) for n in range(len(updates[0].arrays))], weighted_mean(updates))


@given(rounds())
def test_dtype_and_shape_stay_as_they_were(updates):
    means = weighted_mean(updates)

    assert [(a.dtype, a.shape) for a in means] == [(a.dtype, a.shape) for a in updates[0].arrays]


@given(hnp.arrays(np.float64, (3, 5), elements=st.floats(-1e6, 1e6)), st.lists(weights, min_size=3, max_size=3))
def test_a_mean_is_the_sum_of_the_definition(rows, counts):
    [mean] = weighted_mean(of(*rows, examples=tuple(counts)))

    for column, value in zip(rows.T, mean, strict=True):
        exact = sum(Fraction(float(x)) * n for x, n in zip(column, counts, strict=True)) / sum(counts)
        assert math.isclose(value, float(exact), rel_tol=1e-12, abs_tol=1e-9)


@given(rounds())
def test_the_updates_themselves_are_not_changed(updates):
    before = [[array.copy() for array in update.arrays] for update in updates]
    weighted_mean(updates)

    for update, arrays in zip(updates, before, strict=True):
        assert_same(list(update.arrays), arrays)


def test_updates_weigh_as_much_as_their_examples():
    [mean] = weighted_mean(of([0.0, 4.0], [4.0, 0.0], examples=(3, 1)))

    assert mean.tolist() == [1.0, 3.0]


def test_float32_sums_run_in_float64():
    [mean] = weighted_mean(of(np.float32([2**24]), np.float32([1]), np.float32([1])))

    assert mean[0] == np.float32((2**24 + 2) / 3)


def test_integers_are_rounded_to_the_nearest():
    [mean] = weighted_mean(of([1, -1, 5, 0], [2, -2, 5, 0], [2, -2, 6, 1]))

    assert mean.tolist() == [2, -2, 5, 0]


def test_the_largest_integers_do_not_overflow():
    top = np.iinfo(np.int64).max

    [mean] = weighted_mean(of(np.int64([top, top]), np.int64([top, top - 1])))

    assert mean.tolist() == [top, top]


def test_the_largest_floats_do_not_overflow():
    top = np.finfo(np.float64).max

    [mean] = weighted_mean(of(*[[top]] * 3))

    assert mean.tolist() == [top]


@pytest.mark.parametrize(
    ("examples", "result"), [((1, 2, 4), True), ((1, 2, 3), False), ((3, 3, 5), False), ((10, 20, 31), True)]
)
def test_bools_follow_the_majority_of_examples_and_a_tie_is_false(examples, result):
    [mean] = weighted_mean(of([False], [False], [True], examples=examples))

    assert mean.tolist() == [result]


@pytest.mark.parametrize(
    "array", [np.arange(12.0).reshape(3, 4).T, np.arange(20)[::-2]], ids=["transposed", "backwards"]
)
def test_arrays_that_are_not_contiguous_are_averaged_as_well(array):
    [mean] = weighted_mean(of(array, np.zeros_like(array), examples=(1, 0)))

    np.testing.assert_array_equal(mean, array)


def test_an_update_without_examples_does_not_count():
    [mean] = weighted_mean(of([1.0], [math.nan], examples=(1, 0)))

    assert mean.tolist() == [1.0]


@pytest.mark.parametrize(
    ("updates", "says"),
    [
        ([], "no update"),
        (of([1.0], [2.0], examples=(0, 0)), "no examples in total"),
        (of([1.0], [2.0], examples=(2, -1)), "not negative"),
        (of([1.0], [2.0, 3.0]), r"array 0 of an update has shape \(2,\), expected \(1,\)"),
        (of(np.float32([1]), np.float64([1])), "dtype float64, expected float32"),
        (of(["a"]), "cannot be averaged"),
        ([Update("a", 1, [np.zeros(1)]), Update("b", 1, [])], r"numbers of arrays: {'a': 1, 'b': 0}"),
    ],
    ids=["none", "no-examples", "negative", "shapes", "dtypes", "texts", "counts"],
)
def test_updates_that_cannot_be_aggregated_are_refused(updates, says):
    with pytest.raises(AggregationError, match=says):
        weighted_mean(updates)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0])
def test_a_weight_that_is_no_count_is_refused(weight):
    with pytest.raises(AggregationError, match="finite"):
        weighted_mean_of([lambda _: np.zeros(1)], [weight], 0)


def test_weights_and_updates_must_be_as_many():
    with pytest.raises(AggregationError, match="1 updates and 2 weights"):
        weighted_mean_of([lambda _: np.zeros(1)], [1, 2], 0)


def test_memory_does_not_grow_with_the_number_of_updates():
    array = np.ones(8 * aggregation.BLOCK_ELEMENTS, np.float32)
    block_bytes = aggregation.BLOCK_ELEMENTS * 8
    tracemalloc.start()
    try:
        weighted_mean_of([lambda _: array] * 50, [1] * 50, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < array.nbytes + 6 * block_bytes


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ([np.zeros((2, 3)), np.zeros(1, np.int32)], None),
        ([np.zeros((2, 3))], "1 arrays, expected 2"),
        ([np.zeros((3, 2)), np.zeros(1, np.int32)], "array 0 has shape (3, 2), expected (2, 3)"),
        ([np.zeros((2, 3)), np.zeros(1, np.int64)], "array 1 has dtype int64, expected int32"),
        ([np.full((2, 3), np.nan), np.zeros(1, np.int32)], "array 0 has values that are not finite"),
        ([np.full((2, 3), -np.inf), np.zeros(1, np.int32)], "array 0 has values that are not finite"),
    ],
    ids=["good", "count", "shape", "dtype", "nan", "inf"],
)
def test_arrays_are_checked_against_the_model(arrays, reason):
    assert check_arrays([np.zeros((2, 3)), np.zeros(1, np.int32)], arrays) == reason


def test_without_a_model_only_the_values_are_checked():
    assert check_arrays(None, [np.zeros(2), np.zeros((1, 1), np.uint8)]) is None
    assert check_arrays(None, [np.float16([1, np.inf])]) == "array 0 has values that are not finite"


def test_what_cannot_be_averaged_is_refused_by_the_check():
    assert check_arrays(None, [np.array(["a"])]) == "array 0 has dtype <U1, which cannot be averaged"


def test_bytes_that_only_claim_to_be_bool_are_refused():
    assert check_arrays(None, [np.frombuffer(b"\x00\x01\x02", bool)]) == "array 0 has values that are not bool"


@pytest.mark.parametrize("place", [0, 2, 3, 9])
def test_a_bad_value_is_found_in_any_block(place, monkeypatch):
    monkeypatch.setattr(aggregation, "BLOCK_ELEMENTS", 3)
    array = np.zeros((2, 5))
    array.reshape(-1)[place] = np.nan

    assert check_arrays(None, [array.T]) == "array 0 has values that are not finite"


def test_metrics_are_weighted_by_examples():
    assert weighted_metrics([({"accuracy": 0.5}, 30), ({"accuracy": 1.0}, 10)]) == {"accuracy": 0.625}


def test_a_metric_is_the_mean_over_those_that_report_it():
    assert weighted_metrics([({"loss": 2.0}, 1), ({"accuracy": 1.0}, 1)]) == {"accuracy": 1.0, "loss": 2.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_left_out(value):
    assert weighted_metrics([({"loss": value}, 5), ({"loss": 2.0}, 1)]) == {"loss": 2.0}


def test_a_metric_without_examples_is_left_out():
    assert weighted_metrics([({"loss": 1.0}, 0)]) == {}


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), weights), min_size=1, max_size=6), st.randoms())
def test_metrics_do_not_depend_on_the_order(reports, random):
    shuffled = random.sample(reports, len(reports))

    def mean(values: list[tuple[float, int]]) -> dict[str, float]:
        return weighted_metrics([({"loss": value}, examples) for value, examples in values])

    assert mean(reports) == mean(shuffled)
