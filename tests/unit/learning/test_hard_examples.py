"""What each algorithm calls hard, its score, and what none of them can be brought to: a failure on strange values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.errors import Refused
from edgeai.learning.hard_examples import EASIEST, HARDEST, Hardness, hardest, miner, normalised_entropy, verdict
from edgeai.resources.mining import MINING_KEYS, MiningAlgorithm, check
from edgeai.resources.refusals import FieldRefused

SURE, UNSURE, EVEN = [0.98, 0.01, 0.01], [0.5, 0.45, 0.05], [1 / 3, 1 / 3, 1 / 3]
OF_PROBABILITIES = ["Threshold", "CrossEntropy", "Margin", "Entropy", "LeastConfidence"]
OF_BOXES = ["Threshold", "IBT"]
on_probabilities = pytest.mark.parametrize("algorithm", OF_PROBABILITIES)


def box(score: float) -> list[float]:
    return [0, 0, 10, 10, score, 1]


def score(algorithm: str, prediction, **parameters) -> Hardness:
    return miner(algorithm, parameters).score(prediction)


# --- definitions


@pytest.mark.parametrize(
    ("algorithm", "prediction", "expected"),
    [
        ("Threshold", [0.7, 0.2, 0.1], 0.3),
        ("LeastConfidence", [0.7, 0.2, 0.1], 0.3),
        ("Margin", [0.7, 0.2, 0.1], 0.5),
        ("Entropy", [0.5, 0.5, 0.0, 0.0], 0.5),
        ("CrossEntropy", [0.5, 0.5, 0.0, 0.0], 0.5),
        ("Threshold", [box(0.9), box(0.5)], 0.3),
        ("IBT", [box(0.9), box(0.5), box(0.4), box(0.3)], 0.5),
    ],
)
def test_a_score_is_as_defined(algorithm, prediction, expected):
    assert score(algorithm, prediction).score == pytest.approx(expected)


@pytest.mark.parametrize(
    ("algorithm", "parameters", "prediction", "hard"),
    [
        ("Threshold", {"threshold": 0.6}, [0.5, 0.3, 0.2], True),
        ("Threshold", {"threshold": 0.5}, [0.5, 0.3, 0.2], False),
        ("CrossEntropy", {"threshold": 0.6}, [0.5, 0.5, 0.0, 0.0], True),
        ("CrossEntropy", {"threshold": 0.5}, [0.5, 0.5, 0.0, 0.0], False),
        ("Margin", {"threshold": 0.3}, [0.5, 0.25, 0.25], True),
        ("Margin", {"threshold": 0.25}, [0.5, 0.25, 0.25], False),
        ("Entropy", {"threshold": 0.4}, [0.5, 0.5, 0.0, 0.0], True),
        ("Entropy", {"threshold": 0.5}, [0.5, 0.5, 0.0, 0.0], False),
        ("LeastConfidence", {"threshold": 0.4}, [0.5, 0.3, 0.2], True),
        ("LeastConfidence", {"threshold": 0.5}, [0.5, 0.3, 0.2], False),
        ("Threshold", {"threshold": 0.5}, [box(0.25), box(0.5)], True),
        ("Threshold", {"threshold": 0.5}, [box(0.5), box(0.5)], False),
        ("IBT", {"threshold_img": 0.4, "threshold_box": 0.5}, [box(0.25), box(0.75)], True),
        ("IBT", {"threshold_img": 0.5, "threshold_box": 0.5}, [box(0.25), box(0.75)], False),
        ("IBT", {"threshold_img": 0.0, "threshold_box": 0.5}, [box(0.5), box(0.75)], False),
    ],
)
def test_a_limit_itself_is_not_hard_and_what_is_beyond_it_is(algorithm, parameters, prediction, hard):
    assert score(algorithm, prediction, **parameters).hard is hard


@on_probabilities
def test_the_less_sure_an_answer_the_harder(algorithm):
    found = [score(algorithm, prediction).score for prediction in (SURE, UNSURE, EVEN)]
    assert found == sorted(found)
    assert found[0] < found[1]


@pytest.mark.parametrize("algorithm", ["CrossEntropy", "Entropy", "Margin"])
def test_not_knowing_at_all_has_the_highest_score(algorithm):
    assert score(algorithm, EVEN).score == pytest.approx(1)


def test_edge_only_finds_nothing_hard():
    assert score("EdgeOnly", "anything") == EASIEST


def test_cloud_only_finds_everything_hard():
    assert score("CloudOnly", "anything") == HARDEST


# --- strange values


@on_probabilities
def test_probabilities_of_zero_are_safe(algorithm):
    assert score(algorithm, [1.0, 0.0, 0.0]) == Hardness(False, 0.0)


@on_probabilities
@pytest.mark.parametrize("form", [lambda p: p, lambda p: [p], lambda p: [[p]]], ids=["number", "one", "batch"])
def test_one_class_is_one_of_two(algorithm, form):
    assert score(algorithm, form(0.3)).score == pytest.approx(score(algorithm, [0.3, 0.7]).score)


@on_probabilities
@pytest.mark.parametrize("certain", [0.0, 1.0])
def test_one_class_that_is_certain_is_easy(algorithm, certain):
    assert score(algorithm, [certain]) == Hardness(False, 0.0)


@on_probabilities
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_answer_that_is_not_finite_is_the_hardest(algorithm, bad):
    assert score(algorithm, [0.5, bad]) == HARDEST


@pytest.mark.parametrize("algorithm", OF_BOXES)
def test_a_box_whose_score_is_not_finite_makes_its_image_the_hardest(algorithm):
    assert score(algorithm, [box(0.9), box(math.nan)]) == HARDEST


@pytest.mark.parametrize("algorithm", OF_BOXES)
@pytest.mark.parametrize("none", [[], np.empty((0, 6)), {"boxes": []}], ids=["list", "array", "map"])
def test_without_boxes_nothing_is_hard(algorithm, none):
    assert score(algorithm, none) == EASIEST


@on_probabilities
def test_logits_are_refused_with_a_hint(algorithm):
    with pytest.raises(Refused, match="softmax to true"):
        score(algorithm, [4.0, -2.0, 0.5])


@on_probabilities
def test_scores_that_sum_up_to_something_else_are_refused(algorithm):
    with pytest.raises(Refused, match=r"sum up to 1\.8"):
        score(algorithm, [0.9, 0.9])


@on_probabilities
def test_logits_are_put_through_a_softmax_if_asked(algorithm):
    logits = np.array([4.0, -2.0, 0.5])
    p = np.exp(logits) / np.exp(logits).sum()
    assert score(algorithm, logits, softmax=True).score == pytest.approx(score(algorithm, p).score)


@on_probabilities
def test_huge_logits_do_not_overflow(algorithm):
    assert score(algorithm, [1e300, 0.0], softmax=True) == Hardness(False, 0.0)


@on_probabilities
def test_one_logit_is_put_through_a_sigmoid(algorithm):
    assert score(algorithm, [0.0], softmax=True).score == pytest.approx(score(algorithm, [0.5]).score)


@on_probabilities
@pytest.mark.parametrize(
    "prediction",
    [None, "text", {"probabilities": []}, [["a", "b"]], [[0.5, 0.5], [0.5, 0.5]], {"logits": [1]}, [[0.5], [0.5, 0.5]]],
    ids=str,
)
def test_what_is_no_prediction_is_refused(algorithm, prediction):
    with pytest.raises(Refused):
        score(algorithm, prediction)


@pytest.mark.parametrize("prediction", [[0.5, 0.5], [[0, 0, 1, 1]], [box(1.5)], [box(-1)], {"probabilities": [1]}])
def test_what_is_no_boxes_is_refused(prediction):
    with pytest.raises(Refused):
        score("IBT", prediction)


@on_probabilities
def test_one_example_may_come_as_a_batch_of_one(algorithm):
    wide = [0.5, 0.3, 0.1, 0.05, 0.05, 0.0]
    assert score(algorithm, [wide]) == score(algorithm, wide)


@on_probabilities
def test_a_map_names_its_probabilities(algorithm):
    assert score(algorithm, {"probabilities": UNSURE, "label": 3}) == score(algorithm, UNSURE)


@on_probabilities
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_precision_of_the_model_does_not_matter(algorithm, dtype):
    p = np.full(1000, 0.001)
    assert score(algorithm, p.astype(dtype)).score == pytest.approx(score(algorithm, p).score, abs=1e-3)


probabilities = (
    st.lists(st.floats(0, 1), min_size=2, max_size=12)
    .filter(lambda values: sum(values) > 1e-3)
    .map(lambda values: np.array(values) / sum(values))
)


@given(probabilities, st.sampled_from(OF_PROBABILITIES), st.randoms(use_true_random=False))
def test_a_score_lies_between_0_and_1_and_does_not_depend_on_the_order_of_classes(p, algorithm, random):
    mine = score(algorithm, p)
    assert 0 <= mine.score <= 1
    shuffled = list(p)
    random.shuffle(shuffled)
    assert score(algorithm, shuffled).score == pytest.approx(mine.score, abs=1e-9)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6), st.sampled_from(list(MiningAlgorithm)))
def test_any_list_of_numbers_is_scored_or_refused(values, algorithm):
    mine = miner(algorithm, {"entry point": "a:b"} if algorithm is MiningAlgorithm.CUSTOM else {})
    try:
        found = mine.score(values)
    except Refused:
        return
    assert 0 <= found.score <= 1


def test_the_entropy_is_normalised_by_the_number_of_classes():
    assert [normalised_entropy(np.full(n, 1 / n)) for n in (2, 5, 100)] == pytest.approx([1, 1, 1])


# --- Random


def test_random_takes_about_its_rate():
    mine = miner("Random", {"rate": 0.25, "seed": 1})
    assert sum(mine.score(None, f"id-{number}").hard for number in range(4000)) == pytest.approx(1000, abs=100)


def test_random_decides_by_the_id_alone():
    one, other = (miner("Random", {"rate": 0.5, "seed": 3}) for _ in range(2))
    assert [one.score(SURE, str(n)) for n in range(50)] == [other.score(EVEN, str(n)) for n in range(50)]


def test_random_decides_otherwise_with_another_seed():
    ids = [str(number) for number in range(50)]
    assert miner("Random", {"seed": 1}).scores([0] * 50, ids) != miner("Random", {"seed": 2}).scores([0] * 50, ids)


def test_random_without_an_id_decides_by_the_prediction():
    mine = miner("Random", {"rate": 0.5})
    assert mine.score(SURE) == mine.score(SURE) != mine.score(EVEN)


@pytest.mark.parametrize(("rate", "hard"), [(0, False), (1, True)])
def test_a_rate_of_0_takes_none_and_of_1_all(rate, hard):
    mine = miner("Random", {"rate": rate})
    assert {mine.score(None, str(number)).hard for number in range(200)} == {hard}


def test_random_takes_those_with_the_highest_scores():
    found = miner("Random", {"rate": 0.3}).scores([0] * 100, [str(number) for number in range(100)])
    assert min(each.score for each in found if each.hard) > max(each.score for each in found if not each.hard)


# --- batches and budgets


@on_probabilities
def test_a_batch_is_scored_one_by_one(algorithm):
    mine = miner(algorithm, {})
    assert mine.scores(np.array([SURE, UNSURE, EVEN])) == [mine.score(p) for p in (SURE, UNSURE, EVEN)]


def test_a_batch_of_images_may_have_different_numbers_of_boxes():
    images = [[], [box(0.9)], [box(0.1), box(0.9)]]
    assert [each.score for each in miner("IBT", {}).scores(images)] == [0, 0, 0.5]


def test_a_batch_may_be_a_map_of_arrays():
    mine = miner("Margin", {})
    batch = {"probabilities": np.array([SURE, EVEN]), "label": [0, 1]}
    assert mine.scores(batch) == [mine.score(SURE), mine.score(EVEN)]


def test_a_batch_has_as_many_ids_as_predictions():
    with pytest.raises(Refused, match="2 predictions and 1 ids"):
        miner("Random", {}).scores([1, 2], ["a"])


def test_the_hardest_come_first_and_of_equal_ones_the_earlier():
    found = [Hardness(False, value) for value in (0.1, 0.7, 0.9, 0.7)]
    assert hardest(found, 3) == [2, 1, 3]


@pytest.mark.parametrize(("count", "places"), [(0, []), (-1, []), (9, [0])])
def test_a_budget_may_be_nothing_or_more_than_there_is(count, places):
    assert hardest([EASIEST], count) == places


# --- the user's own


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (True, HARDEST),
        (False, EASIEST),
        (np.True_, HARDEST),
        ((True, 0.25), Hardness(True, 0.25)),
        ([False, np.float32(0.5)], Hardness(False, 0.5)),
        (Hardness(True, 0.1), Hardness(True, 0.1)),
    ],
)
def test_a_function_of_the_user_says_hard_or_hard_and_a_score(answer, expected):
    assert verdict(answer) == expected


@pytest.mark.parametrize("answer", [None, 0.7, "hard", (True,), (True, math.nan), (True, "x"), (1, 0.5)])
def test_another_answer_of_a_users_function_is_refused(answer):
    with pytest.raises(Refused, match="a mining function answers with"):
        verdict(answer)


def test_the_function_of_custom_is_not_called_here():
    with pytest.raises(Refused, match="where the script is"):
        score("Custom", SURE, **{"entry point": "mine:hard"})


# --- parameters


def test_defaults_are_filled_in():
    assert check(MiningAlgorithm.MARGIN, {}) == {"threshold": 0.2, "softmax": False}


@pytest.mark.parametrize(
    ("algorithm", "name", "key"),
    [("CrossEntropy", "threshold_cross_entropy", "threshold"), ("IBT", "threshold", "threshold_box")],
)
def test_a_parameter_is_also_known_by_another_name(algorithm, name, key):
    assert check(MiningAlgorithm(algorithm), {name: 0.25})[key] == 0.25


@pytest.mark.parametrize(
    ("algorithm", "parameters", "what"),
    [
        ("Margin", {"threshold": 1.5}, "Margin: 'threshold' is a number from 0 to 1, not 1.5"),
        ("Margin", {"threshold": -0.1}, "a number from 0 to 1, not -0.1"),
        ("Margin", {"threshold": "0.5"}, "a number from 0 to 1, not '0.5'"),
        ("Margin", {"threshold": True}, "a number from 0 to 1, not true"),
        ("Margin", {"threshold": None}, "a number from 0 to 1, not null"),
        ("Margin", {"threshold": math.nan}, "a number from 0 to 1"),
        ("Margin", {"softmax": 1}, "'softmax' is true or false, not 1"),
        ("Margin", {"thresold": 0.5}, "'thresold' is not a parameter of Margin; did you mean 'threshold'"),
        ("Margin", {"limit": 0.5}, "'limit' is not a parameter of Margin; it has threshold, softmax"),
        ("EdgeOnly", {"threshold": 0.5}, "is not a parameter of EdgeOnly; it has none"),
        ("Random", {"seed": -1}, "'seed' is a whole number, not negative, not -1"),
        ("Random", {"seed": 1.5}, "'seed' is a whole number"),
        ("Random", {"seed": 2**63}, "'seed' is a whole number"),
        ("Random", {"rate": 2}, "'rate' is a number from 0 to 1, not 2"),
        ("IBT", {"threshold": 0.1, "threshold_box": 0.2}, "means the same as another one"),
        ("Custom", {}, "Custom needs the parameter 'entry point'"),
        ("Custom", {"entry point": "module"}, "'entry point' is `module:function`"),
        ("Custom", {"entry point": "../a:b"}, "'entry point' is `module:function`"),
        ("Custom", {"entry point": 7}, "'entry point' is `module:function`"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_range(algorithm, parameters, what):
    with pytest.raises(FieldRefused) as refusal:
        check(MiningAlgorithm(algorithm), parameters)
    assert what in str(refusal.value)


def test_the_other_parameters_of_custom_are_its_own():
    assert check(MiningAlgorithm.CUSTOM, {"entry point": "a.b:c", "mine": [1]})["mine"] == [1]


@pytest.mark.parametrize(
    ("algorithm", "parameters", "what"),
    [
        ("Nothing", {}, "no algorithm of hard-example mining; there is Threshold"),
        ("IBT", {"a": 1}, "mining: 'a' is not"),
    ],
)
def test_a_miner_is_refused_in_a_sentence(algorithm, parameters, what):
    with pytest.raises(Refused, match=what):
        miner(algorithm, parameters)


def test_every_algorithm_has_its_parameters():
    assert set(MINING_KEYS) == set(MiningAlgorithm)
