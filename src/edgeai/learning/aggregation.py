"""Federated averaging: many updates become one model.

Works one array at a time and in blocks of it, so that memory does not grow with the number of updates when these are
maps of files. Who is asked and when a round closes is decided elsewhere (`lifecycle.round`); what was accepted is given
here in the order of worker names, and everything is computed in the order given: sums of floats depend on it.

By kind of array:
    float     the mean, summed in float64, in the dtype of the first update
    integer   the mean rounded to the nearest integer, halves to the even one (counters, such as steps of an optimizer)
    bool      the majority by examples; False when there is none

Every element of a mean lies between the smallest and the largest given; so the mean of equal updates is that update,
bit by bit, in every dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeai.errors import AggregationError

Array = NDArray[Any]
Arrays = list[Array]
Reader = Callable[[int], Array]
"""Gives array number i of one update, best as a map of its file (`ArrayFile.__getitem__`)."""

BLOCK_ELEMENTS = 256 * 1024
"""2 MiB of float64: a few of them stay in the cache of the processor, which makes blocks fast as well as small."""


class Shaped(Protocol):
    """What an array must look like: an array itself, or an entry of an array table."""

    @property
    def dtype(self) -> Any: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Update:
    """What one worker sends for one round. `arrays` may be lazy (`store.arrays.ArrayFile`)."""

    worker: str
    num_examples: int
    arrays: Sequence[Array]
    metrics: Mapping[str, float] = field(default_factory=dict)


def check_arrays(reference: Sequence[Shaped] | None, arrays: Sequence[Array]) -> str | None:
    """Why these arrays cannot be aggregated, in a few words; None if they can.

    With a reference (the global model, or the entries of its table), count, dtypes and shapes must be equal to it. All
    floats must be finite. Reads every value once, in blocks.
    """
    if reference is not None and len(arrays) != len(reference):
        return f"{len(arrays)} arrays, expected {len(reference)}"
    for index, array in enumerate(arrays):
        expected = None if reference is None else reference[index]
        if reason := _mismatch(array, expected) or _bad_values(array):
            return f"array {index} {reason}"
    return None


def weighted_mean(updates: Sequence[Update]) -> Arrays:
    """Average updates, each weighted by its number of examples (FedAvg).

    Every update holds the same arrays: same order, same shapes, same dtypes, which are also those of the result. Sums
    run in float64, in the order given; callers give the order of worker names, so that the result does not depend on
    arrival.

    Raises:
        AggregationError: no update, no examples in total, or arrays that differ in number, shape or dtype.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1.
    """
    if not updates:
        raise AggregationError("no update to aggregate")
    counts = {update.worker: len(update.arrays) for update in updates}
    if len(set(counts.values())) > 1:
        raise AggregationError(f"updates hold different numbers of arrays: {counts}")
    readers = [update.arrays.__getitem__ for update in updates]
    weights = [update.num_examples for update in updates]
    return [weighted_mean_of(readers, weights, index) for index in range(len(updates[0].arrays))]


def weighted_mean_of(readers: Sequence[Reader], weights: Sequence[float], index: int) -> Array:
    """The weighted mean of array `index` over all updates, as `weighted_mean`.

    Memory: the result, and a few blocks whatever the number of updates. The weights need not sum up to anything; an
    update of weight 0 is not looked at.

    Raises:
        AggregationError: no update; weights negative, not finite or all 0; arrays that differ in shape or dtype.
    """
    total = _total(readers, weights)
    weighted = [(reader(index), weight) for reader, weight in zip(readers, weights, strict=True) if weight > 0]
    first = weighted[0][0]
    for array, _ in weighted:
        if reason := _mismatch(array, first):
            raise AggregationError(f"array {index} of an update {reason}")
    result = np.empty(first.shape, first.dtype)
    target = result.reshape(-1)
    for start in range(0, target.size, BLOCK_ELEMENTS):
        block = slice(start, min(start + BLOCK_ELEMENTS, target.size))
        parts = ((_part(array, block), weight) for array, weight in weighted)
        target[block] = _majority(parts) if first.dtype.kind == "b" else _mean(parts, total)
    return result


def weighted_metrics(reports: Sequence[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """The mean of each metric over those that report it, weighted by their examples; keys sorted.

    A value that is not finite is left out, and so is a key that nobody with an example reports.
    """
    means = {}
    for key in sorted({key for metrics, _ in reports for key in metrics}):
        known = [(metrics[key], examples) for metrics, examples in reports if math.isfinite(metrics.get(key, math.nan))]
        if total := sum(examples for _, examples in known):
            means[key] = math.fsum(value * (examples / total) for value, examples in known)
    return means


def _mismatch(array: Shaped, expected: Shaped | None) -> str | None:
    if expected is not None and tuple(array.shape) != tuple(expected.shape):
        return f"has shape {tuple(array.shape)}, expected {tuple(expected.shape)}"
    if expected is not None and np.dtype(array.dtype) != np.dtype(expected.dtype):
        return f"has dtype {np.dtype(array.dtype)}, expected {np.dtype(expected.dtype)}"
    if np.dtype(array.dtype).kind not in "fiub":
        return f"has dtype {np.dtype(array.dtype)}, which cannot be averaged"
    return None


def _bad_values(array: Array) -> str | None:
    for start in range(0, array.size, BLOCK_ELEMENTS):
        part = _part(array, slice(start, start + BLOCK_ELEMENTS))
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            return "has values that are not finite"
        if part.dtype.kind == "b" and part.view(np.uint8).max() > 1:  # bytes of a blob may claim to be bool
            return "has values that are not bool"
    return None


def _part(array: Array, block: slice) -> Array:
    """Some elements in C order; a view if the array is contiguous."""
    part: Array = array.reshape(-1)[block] if array.flags.c_contiguous else array.flat[block]
    return part


def _total(readers: Sequence[Reader], weights: Sequence[float]) -> float:
    if len(readers) != len(weights):
        raise AggregationError(f"{len(readers)} updates and {len(weights)} weights")
    if any(not 0 <= weight < math.inf for weight in weights):
        raise AggregationError(f"numbers of examples must be finite and not negative: {list(weights)}")
    total = sum(weights)
    if total == 0:
        raise AggregationError("the updates have no examples in total" if weights else "no update to aggregate")
    return total


def _mean(parts: Iterator[tuple[Array, float]], total: float) -> Array:
    first, weight = next(parts)
    low, high = first.copy(), first.copy()
    # Rounding may carry a sum over the bounds by its last bit, and a float64 beside 2**63 is no int64 any more: hence
    # the bounds, and silence about what they put right.
    with np.errstate(over="ignore", invalid="ignore"):
        summed = np.multiply(first, weight / total, dtype=np.float64)
        for part, weight in parts:
            summed += np.multiply(part, weight / total, dtype=np.float64)
            np.minimum(low, part, out=low)
            np.maximum(high, part, out=high)
        if first.dtype.kind != "f":
            np.rint(summed, out=summed)
        mean = summed.astype(first.dtype)
    np.copyto(mean, low, where=summed <= low)
    np.copyto(mean, high, where=summed >= high)
    return mean


def _majority(parts: Iterator[tuple[Array, float]]) -> Array:
    first, weight = next(parts)
    # Whole weights, not their shares: sums of these are exact, and so is a tie.
    balance = np.where(first, float(weight), -float(weight))
    for part, weight in parts:
        balance += np.where(part, float(weight), -float(weight))
    return balance > 0.0
