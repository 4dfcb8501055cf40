"""Metrics of a classifier on labelled examples, under the names that triggers look for. Pure.

    accuracy            share of the examples whose most likely class is their label
    accuracy/<label>    the same over the examples of one label (its recall); only of labels that occur
    loss                mean of -ln p(label), if the predictions are probabilities

A script may report any other metrics: these are the usual ones, computed in the same way for every model (`learning.triggers`
knows `<metric>/<label>` and makes `<metric>_delta` of two models).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeai.errors import Refused
from edgeai.learning.triggers import metric_key

LEAST_PROBABILITY = 1e-7
"""One of 0 would make the loss infinite."""
_SUM_TOLERANCE = 0.02


def label_metrics(
    labels: ArrayLike, predictions: ArrayLike, *, classes: Sequence[Any] | None = None
) -> dict[str, float]:
    """Accuracy, over all examples and per label, and loss.

    Args:
        labels: of each example: a vector of numbers or names, or rows of a one-hot matrix.
        predictions: one label per example, or a row with a score per class; a single column is the probability of the second
            of two classes. A row that is not finite is a wrong answer.
        classes: the label of each column; without it 0, 1, 2, ...

    Raises:
        Refused: no examples, or numbers of examples or classes that do not fit together.
    """
    predicted = _array(predictions, "predictions")
    scores = _columns(predicted) if predicted.ndim > 1 else None
    names = np.asarray(range(scores.shape[1]) if classes is None else list(classes)) if scores is not None else None
    truth = _labels(_array(labels, "labels"), names)
    if not len(truth):
        raise Refused("there are no examples to measure on")
    if len(truth) != len(predicted):
        raise Refused(f"{len(truth)} labels and {len(predicted)} predictions")
    _check_same_kind(truth, predicted if names is None else names)
    if scores is None or names is None:
        return _accuracies(truth, predicted == truth)
    if len(names) != scores.shape[1]:
        raise Refused(f"{len(names)} classes and {scores.shape[1]} scores for each example")
    finite = np.asarray(np.isfinite(scores).all(axis=1))
    safe = np.where(finite[:, None], scores, 0.0)
    metrics = _accuracies(truth, finite & np.equal(names[safe.argmax(axis=1)], truth))
    if _are_probabilities(safe[finite]):
        metrics["loss"] = _loss(truth, safe, names)
    return metrics


def _check_same_kind(truth: NDArray[Any], others: NDArray[Any]) -> None:
    if (truth.dtype.kind in "US") != (others.dtype.kind in "US"):
        raise Refused("labels are names and predictions numbers, or the other way round: classes= names the columns")


def _accuracies(truth: NDArray[Any], right: Any) -> dict[str, float]:
    hits = np.broadcast_to(np.asarray(right, bool), truth.shape)
    found = {"accuracy": float(hits.mean())}
    for label in np.unique(truth):
        found[metric_key("accuracy", _text(label))] = float(hits[np.equal(truth, label)].mean())
    return found


def _loss(truth: NDArray[Any], p: NDArray[np.float64], names: NDArray[Any]) -> float:
    of_label = np.where(names[None, :] == truth[:, None], p, 0.0).sum(axis=1)
    return float(-np.log(np.clip(of_label, LEAST_PROBABILITY, 1.0)).mean())


def _columns(predicted: NDArray[Any]) -> NDArray[np.float64]:
    if predicted.ndim != 2 or predicted.dtype.kind not in "fiub" or not predicted.shape[1]:
        raise Refused(f"predictions of shape {predicted.shape} and type {predicted.dtype} are no scores of classes")
    scores = predicted.astype(np.float64)
    return np.hstack([1 - scores, scores]) if scores.shape[1] == 1 else scores


def _labels(labels: NDArray[Any], names: NDArray[Any] | None) -> NDArray[Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim == 2 and names is not None and labels.shape[1] == len(names):
        hot: NDArray[Any] = names[labels.argmax(axis=1)]
        return hot
    if labels.ndim != 1:
        raise Refused(f"labels of shape {labels.shape} are neither one label per example nor one-hot rows")
    return labels


def _are_probabilities(rows: NDArray[np.float64]) -> bool:
    inside = rows.size == 0 or (rows.min() >= -1e-3 and rows.max() <= 1 + 1e-3)
    return bool(inside and (np.abs(rows.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


def _array(values: ArrayLike, what: str) -> NDArray[Any]:
    try:
        found = np.asarray(values)
    except ValueError as error:
        raise Refused(f"the {what} are not an array: {error}") from error
    if found.ndim == 0 or found.dtype.kind == "O":
        raise Refused(f"the {what} are not an array of numbers or names")
    return found


def _text(label: Any) -> str:
    """As people write it: 3 for 3.0."""
    value = label.item()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
