"""Accuracy over all and per label, and loss, whatever form labels and predictions have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeai.errors import Refused
from edgeai.learning.metrics import LEAST_PROBABILITY, label_metrics

SURE = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]


def test_accuracy_is_the_share_of_right_answers_over_all_and_per_label():
    found = label_metrics([0, 1, 1, 1], [0, 1, 1, 0])
    assert found == {"accuracy": 0.75, "accuracy/0": 1.0, "accuracy/1": pytest.approx(2 / 3)}


def test_a_row_of_scores_answers_with_its_largest():
    assert label_metrics([0, 1, 1], SURE)["accuracy"] == pytest.approx(2 / 3)


def test_the_loss_is_the_mean_surprise_at_the_labels():
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3
    assert label_metrics([0, 1, 1], SURE)["loss"] == pytest.approx(expected)


def test_a_label_that_was_held_impossible_costs_a_finite_loss():
    assert label_metrics([1], [[1.0, 0.0]])["loss"] == pytest.approx(-math.log(LEAST_PROBABILITY))


def test_scores_that_are_no_probabilities_have_no_loss():
    assert label_metrics([0, 1], [[3.0, -1.0], [0.5, 7.0]]) == {"accuracy": 1, "accuracy/0": 1, "accuracy/1": 1}


def test_labels_alone_have_no_loss():
    assert "loss" not in label_metrics([0, 1], [0, 1])


def test_classes_name_the_columns():
    found = label_metrics(["cat", "dog", "dog"], SURE, classes=["cat", "dog"])
    assert (found["accuracy/cat"], found["accuracy/dog"]) == (1.0, 0.5)


def test_a_label_without_a_column_is_always_wrong():
    assert label_metrics([0, 7], [[0.9, 0.1], [0.1, 0.9]])["accuracy/7"] == 0.0


def test_only_labels_that_occur_have_an_accuracy():
    assert "accuracy/2" not in label_metrics([0, 1], [[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])


def test_one_hot_labels_are_the_same_as_labels():
    assert label_metrics([[1, 0], [0, 1], [0, 1]], SURE) == label_metrics([0, 1, 1], SURE)


def test_a_column_of_labels_is_the_same_as_labels():
    assert label_metrics([[0], [1], [1]], SURE) == label_metrics([0, 1, 1], SURE)


def test_a_single_column_is_the_probability_of_the_second_of_two_classes():
    assert label_metrics([0, 1, 1], [[0.1], [0.8], [0.4]]) == pytest.approx(label_metrics([0, 1, 1], SURE))


def test_a_row_that_is_not_finite_is_a_wrong_answer_with_the_worst_loss():
    found = label_metrics([0, 1], [[np.nan, 1.0], [0.0, 1.0]])
    assert (found["accuracy"], found["loss"]) == (0.5, pytest.approx(-math.log(LEAST_PROBABILITY) / 2))


def test_every_metric_is_finite_if_all_answers_are_nan():
    found = label_metrics([0, 1], np.full((2, 3), np.nan))
    assert all(math.isfinite(value) for value in found.values())


def test_a_whole_number_is_named_as_one_whatever_its_type():
    assert label_metrics(np.array([3.0], np.float32), np.array([3.0], np.float32)).keys() == {"accuracy", "accuracy/3"}


def test_half_precision_is_as_good_as_any():
    rows = np.array(SURE, np.float16)
    assert label_metrics([0, 1, 1], rows) == pytest.approx(label_metrics([0, 1, 1], SURE), abs=1e-3)


@pytest.mark.parametrize(
    ("labels", "predictions", "classes", "what"),
    [
        ([], [], None, "no examples to measure on"),
        ([0, 1], [0], None, "2 labels and 1 predictions"),
        ([0, 1], [[1, 0]], None, "2 labels and 1 predictions"),
        ([0], [[1, 0]], ["a"], "classes"),
        (["a"], [[1, 0]], ["a"], "1 classes and 2 scores"),
        (["a"], [0], None, "labels are names and predictions numbers"),
        (["a"], [[1, 0]], None, "labels are names and predictions numbers"),
        ([0], [[[1]]], None, "no scores of classes"),
        ([[0, 1, 2]], [[1, 0]], None, "neither one label per example nor one-hot"),
        ([0, 1], [[1, 0], [1]], None, "not an array"),
        (0, 0, None, "not an array of numbers or names"),
        ([None], [0], None, "not an array of numbers or names"),
    ],
)
def test_what_does_not_fit_together_is_refused(labels, predictions, classes, what):
    with pytest.raises(Refused, match=what):
        label_metrics(labels, predictions, classes=classes)
