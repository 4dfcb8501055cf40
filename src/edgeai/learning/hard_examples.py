"""Which examples are hard: those that the model answers without being sure, so that a label for them teaches most. Pure.

A miner is made from an algorithm and its parameters (`resources.mining` says which there are) and looks at what the model
predicted, never at the input. It answers with a verdict and a score; scores of one miner lie between 0 (easy) and 1 (hard) and
order examples, so that the k hardest can be taken where a budget of labels counts more than a limit.

    algorithm        looks at        hard if                                          score
    Threshold        probabilities   max p < threshold                                1 - max p
                     boxes           mean of their scores < threshold                 1 - mean
    CrossEntropy     probabilities   1 - H(p) / ln n < threshold                      H(p) / ln n
    IBT              boxes           share of boxes under threshold_box               that share
                                     > threshold_img
    Margin           probabilities   p[1st] - p[2nd] < threshold                      1 - (p[1st] - p[2nd])
    Entropy          probabilities   H(p) / ln n > threshold                          H(p) / ln n
    LeastConfidence  probabilities   1 - max p > threshold                            1 - max p
    Random           the id          draw < rate                                      1 - draw
    EdgeOnly         nothing         never                                            0
    CloudOnly        nothing         always                                           1

with H(p) = -sum p ln p, 0 ln 0 = 0, over n classes. All thresholds lie in 0 to 1.

* Probabilities are those of the classes for one example and sum up to 1; a single number is the probability of one of two
  classes. Scores that are none (logits) are refused, or put through a softmax (a single one: a sigmoid) with `softmax: true`.
* Boxes are rows of (x0, y0, x1, y1, score, ...); without any nothing is hard.
* A prediction may be an array, a list, or a map with `probabilities` or `boxes`.
* A value that is not finite is an answer that nobody can use: hard, with score 1.

The function of `Custom` is found and called by whoever holds the script (the lib); `verdict` reads its answer.

Sources: Settles, "Active Learning Literature Survey", University of Wisconsin-Madison, Computer Sciences TR 1648, 2009, section
3.1 (least confidence, margin, entropy). Threshold, CrossEntropy and IBT ("image-box-thresholds") are the criteria that users of
KubeEdge Sedna know by these names: the average score of boxes; how far the entropy of the class probabilities stays under that
of not knowing; the share of boxes with a low score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeai.errors import Refused
from edgeai.resources.mining import MiningAlgorithm, check
from edgeai.resources.refusals import FieldRefused

Probabilities = NDArray[np.float64]

_SUM_TOLERANCE = 0.02
"""How far a sum of probabilities may be from 1: half precision and quantised outputs round."""
_RANGE_TOLERANCE = 1e-3
_SCORE_COLUMN = 4
_DRAW_BYTES = 8


@dataclass(frozen=True, slots=True)
class Hardness:
    """`score`: 0 (easy) to 1 (hard); comparable between examples of the same miner."""

    hard: bool
    score: float


EASIEST, HARDEST = Hardness(False, 0.0), Hardness(True, 1.0)


@dataclass(frozen=True, slots=True)
class Miner:
    """Tells hard examples from others. Make one with `miner`."""

    algorithm: MiningAlgorithm
    values: Mapping[str, Any] = field(default_factory=dict)

    def score(self, prediction: Any, example_id: str | None = None) -> Hardness:
        """Of one example. `example_id` is what Random draws by; without it, by the bytes of the prediction.

        Raises Refused: the prediction is not what the algorithm looks at.
        """
        match self.algorithm:
            case MiningAlgorithm.EDGE_ONLY:
                return EASIEST
            case MiningAlgorithm.CLOUD_ONLY:
                return HARDEST
            case MiningAlgorithm.RANDOM:
                return self._drawn(prediction, example_id)
            case MiningAlgorithm.IBT:
                return self._low_boxes(_boxes(prediction))
            case MiningAlgorithm.THRESHOLD if _are_boxes(prediction):
                return self._mean_score(_boxes(prediction))
            case MiningAlgorithm.CUSTOM:
                raise Refused("Custom is a function of the script: it is called where the script is")
        p = _probabilities(prediction, bool(self.values["softmax"]))
        return HARDEST if p is None else self._judged(p)

    def scores(self, predictions: Sequence[Any], example_ids: Sequence[str] = ()) -> list[Hardness]:
        """Of a batch: an array with the examples along its first axis, a list, or a map of these. Raises Refused."""
        each = _rows(predictions)
        if example_ids and len(example_ids) != len(each):
            raise Refused(f"{len(each)} predictions and {len(example_ids)} ids")
        ids: Sequence[str | None] = example_ids or [None] * len(each)
        return [self.score(one, example_id) for one, example_id in zip(each, ids, strict=True)]

    def _judged(self, p: Probabilities) -> Hardness:
        threshold = float(self.values["threshold"])
        match self.algorithm:
            case MiningAlgorithm.MARGIN:
                second, first = np.partition(p, -2)[-2:]
                margin = float(first - second)
                return Hardness(margin < threshold, _share(1 - margin))
            case MiningAlgorithm.ENTROPY:
                entropy = normalised_entropy(p)
                return Hardness(entropy > threshold, entropy)
            case MiningAlgorithm.CROSS_ENTROPY:
                entropy = normalised_entropy(p)
                return Hardness(1 - entropy < threshold, entropy)
            case MiningAlgorithm.LEAST_CONFIDENCE:
                doubt = _share(1 - float(p.max()))
                return Hardness(doubt > threshold, doubt)
        best = float(p.max())
        return Hardness(best < threshold, _share(1 - best))

    def _mean_score(self, scores: NDArray[np.float64] | None) -> Hardness:
        if scores is None:
            return HARDEST
        if not scores.size:
            return EASIEST
        mean = float(scores.mean())
        return Hardness(mean < self.values["threshold"], _share(1 - mean))

    def _low_boxes(self, scores: NDArray[np.float64] | None) -> Hardness:
        if scores is None:
            return HARDEST
        if not scores.size:
            return EASIEST
        low = float(np.mean(scores < self.values["threshold_box"]))
        return Hardness(low > self.values["threshold_img"], low)

    def _drawn(self, prediction: Any, example_id: str | None) -> Hardness:
        of = example_id.encode() if example_id is not None else _bytes_of(prediction)
        key = int(self.values["seed"]).to_bytes(_DRAW_BYTES, "big")
        number = int.from_bytes(hashlib.blake2b(of, digest_size=_DRAW_BYTES, key=key).digest(), "big")
        draw = (number >> 11) / 2**53  # what a float holds exactly: never 1
        return Hardness(draw < self.values["rate"], 1 - draw)


def miner(algorithm: MiningAlgorithm | str, parameters: Mapping[str, Any]) -> Miner:
    """Raises Refused: an algorithm that there is not, or a parameter that does not fit it."""
    try:
        known = MiningAlgorithm(algorithm)
    except ValueError as error:
        there = ", ".join(each.value for each in MiningAlgorithm)
        raise Refused(f"{algorithm!r} is no algorithm of hard-example mining; there is {there}") from error
    try:
        return Miner(known, check(known, parameters))
    except FieldRefused as error:
        raise Refused(f"hard-example mining: {error}") from error


def hardest(found: Sequence[Hardness], count: int) -> list[int]:
    """The places of the `count` hardest, the hardest first; of equal ones those that came first."""
    order = sorted(range(len(found)), key=lambda place: -found[place].score)
    return order[: max(count, 0)]


def verdict(answer: Any) -> Hardness:
    """What the function of `Custom` says: hard or not, or that and a score, or a Hardness. Raises Refused."""
    match answer:
        case Hardness():
            return answer
        case bool() | np.bool_():
            return HARDEST if answer else EASIEST
        case (bool() | np.bool_() as hard, score) if _is_score(score):
            return Hardness(bool(hard), float(score))
    raise Refused(f"a mining function answers with hard (true or false), or (hard, score), not {type(answer).__name__}")


def normalised_entropy(p: Probabilities) -> float:
    """H(p) / ln n: 0 when one class is certain, 1 when all of the n >= 2 are equally likely."""
    positive = p[p > 0]
    return _share(float(-np.sum(positive * np.log(positive))) / float(np.log(p.size)))


# --- reading predictions


def _probabilities(prediction: Any, softmax: bool) -> Probabilities | None:
    """Of the classes, summing up to exactly 1, at least two of them; None: not finite. Raises Refused."""
    scores = _array(_inside(prediction, "probabilities"), "probabilities")
    if scores.ndim > 1 and scores.size == scores.shape[-1]:
        scores = scores.reshape(-1)  # one example as a batch of one
    if scores.ndim > 1:
        raise Refused(f"a prediction of shape {scores.shape} is not the probabilities of one example")
    if not scores.size:
        raise Refused("a prediction without classes")
    if not np.isfinite(scores).all():
        return None
    if softmax:
        return _softmaxed(scores)
    _check_normalised(scores)
    p = np.clip(scores, 0, 1)
    if p.size == 1:
        return np.array([p.item(), 1 - p.item()])
    whole: Probabilities = p / p.sum()
    return whole


def _check_normalised(scores: Probabilities) -> None:
    hint = "give probabilities, or set the parameter softmax to true if these are logits"
    low, high = float(scores.min()), float(scores.max())
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        raise Refused(f"scores from {low:.4g} to {high:.4g} are not probabilities: {hint}")
    total = float(scores.sum())
    if scores.size > 1 and abs(total - 1) > _SUM_TOLERANCE:
        raise Refused(f"scores that sum up to {total:.4g} are not the probabilities of classes: {hint}")


def _softmaxed(logits: Probabilities) -> Probabilities:
    if logits.size == 1:
        logits = np.array([logits.item(), 0.0])  # a sigmoid is the softmax against 0
    # The largest is subtracted first, so that nothing overflows.
    powers: Probabilities = np.exp(logits - logits.max())
    p: Probabilities = powers / powers.sum()
    return p


def _boxes(prediction: Any) -> NDArray[np.float64] | None:
    """The scores of the boxes; None: some are not finite. Raises Refused."""
    boxes = _array(_inside(prediction, "boxes"), "boxes")
    if not boxes.size:
        return np.empty(0)
    if boxes.ndim != 2 or boxes.shape[1] <= _SCORE_COLUMN:
        raise Refused(f"a prediction of shape {boxes.shape} is not boxes: rows of x0, y0, x1, y1, score, ...")
    scores = boxes[:, _SCORE_COLUMN]
    if not np.isfinite(scores).all():
        return None
    if scores.min() < -_RANGE_TOLERANCE or scores.max() > 1 + _RANGE_TOLERANCE:
        raise Refused(f"scores of boxes lie between 0 and 1, not {scores.min():.4g} and {scores.max():.4g}")
    within: NDArray[np.float64] = np.clip(scores, 0, 1)
    return within


def _are_boxes(prediction: Any) -> bool:
    """Whether a prediction is boxes rather than probabilities, for the algorithm that takes both."""
    if isinstance(prediction, Mapping):
        return "boxes" in prediction
    found = _array(prediction, "probabilities or boxes")
    if not found.size:
        return True
    if found.ndim != 2 or found.shape[1] <= _SCORE_COLUMN:
        return False
    one = found.shape[0] == 1 and found.min() >= 0 and abs(float(found.sum()) - 1) <= _SUM_TOLERANCE
    return not one


def _inside(prediction: Any, name: str) -> Any:
    if not isinstance(prediction, Mapping):
        return prediction
    if name not in prediction:
        there = ", ".join(map(str, prediction)) or "nothing"
        raise Refused(f"a prediction that is a map needs {name!r}; there is {there}")
    return prediction[name]


def _array(value: Any, what: str) -> NDArray[np.float64]:
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "fiub":
            raise TypeError(f"values of type {found.dtype}")
        return found.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise Refused(f"a prediction of {type(value).__name__} is not {what}: {error}") from error


def _rows(predictions: Any) -> list[Any]:
    if isinstance(predictions, Mapping):
        columns = {name: list(values) for name, values in predictions.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return list(predictions)


def _bytes_of(prediction: Any) -> bytes:
    try:
        found = np.asarray(prediction)
        return found.tobytes() if found.dtype.kind in "fiub" else repr(prediction).encode()
    except ValueError:
        return repr(prediction).encode()


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))


def _share(value: float) -> float:
    """Rounding must not carry a score over its bounds."""
    return min(max(value, 0.0), 1.0)
