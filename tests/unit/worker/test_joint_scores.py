"""Scores are counted for the models and the mining that serve together; another one of them begins anew."""

from __future__ import annotations

import numpy as np
import pytest
from worker_clock import Clock

from edgeai.events.catalogue import Scores
from edgeai.worker.joint_counts import Counts
from edgeai.worker.joint_scores import REPLACED_S, ScoreSums, differs

ONE, TWO, BIG, BIGGER = ("aa" * 32, "bb" * 32, "cc" * 32, "dd" * 32)
MARGIN = "Margin softmax=False threshold=0.2"


@pytest.fixture
def sums(clock: Clock) -> ScoreSums:
    return ScoreSums(MARGIN, Scores(), clock)


def of(scores: Scores) -> tuple[int, int, int, int]:
    return sum(scores.inferences), sum(scores.answered), sum(scores.changed), scores.hard


def test_an_answer_counts_in_the_bin_of_its_inference(sums: ScoreSums):
    sums.answered(sums.judged(ONE, 0.97, True, ONE), BIG, True)
    sums.judged(ONE, 0.1, False, ONE)
    found = sums.noted()
    assert (found.inferences[19], found.inferences[2], found.answered[19], found.changed[19]) == (1, 1, 1, 1)
    assert (found.edge, found.cloud, found.mining, found.hard) == (ONE, BIG, MARGIN, 1)


def test_an_answer_that_cannot_be_compared_is_set_apart(sums: ScoreSums):
    sums.answered(sums.judged(ONE, 0.97, True, ONE), BIG, None)
    assert (of(sums.noted()), sums.noted().apart) == ((1, 0, 0, 1), 1)


def test_another_model_of_the_edge_begins_anew(sums: ScoreSums):
    before = sums.judged(ONE, 0.97, True, ONE)
    sums.judged(TWO, 0.5, False, TWO)
    sums.answered(before, BIG, True)
    assert (of(sums.noted()), sums.noted().edge) == ((1, 0, 0, 0), TWO)


def test_what_the_model_before_still_answers_does_not_bring_its_sums_back(sums: ScoreSums):
    sums.judged(TWO, 0.5, False, TWO)
    assert sums.judged(ONE, 0.5, False, TWO) is None
    assert of(sums.noted()) == (1, 0, 0, 0)


def test_another_model_of_the_cloud_begins_anew_with_what_it_has_answered(sums: ScoreSums):
    for cloud in (BIG, BIGGER):
        sums.answered(sums.judged(ONE, 0.97, True, ONE), cloud, False)
    assert (of(sums.noted()), sums.noted().cloud) == ((1, 1, 0, 1), BIGGER)


def test_a_replica_that_is_not_swapped_yet_does_not_begin_anew(sums: ScoreSums):
    for cloud in (BIG, BIGGER, BIG, BIGGER):
        sums.answered(sums.judged(ONE, 0.97, True, ONE), cloud, False)
    assert of(sums.noted()) == (3, 2, 0, 3)


def test_a_model_of_the_cloud_that_comes_back_begins_anew(sums: ScoreSums, clock: Clock):
    for cloud in (BIG, BIGGER):
        sums.answered(sums.judged(ONE, 0.97, True, ONE), cloud, False)
    clock.now_s += REPLACED_S
    sums.answered(sums.judged(ONE, 0.97, True, ONE), BIG, False)
    assert (of(sums.noted()), sums.noted().cloud) == ((1, 1, 0, 1), BIG)


def test_sums_go_on_after_a_restart_with_the_same_mining_only(tmp_path):
    counts = Counts(tmp_path, MARGIN)
    counts.scores.answered(counts.scores.judged(ONE, 0.97, True, ONE), BIG, True)
    counts.save()
    again = Counts(tmp_path, MARGIN).scores
    again.judged(ONE, 0.1, False, ONE)
    assert of(again.noted()) == (2, 1, 1, 1)
    assert Counts(tmp_path, "Entropy softmax=False threshold=0.5").scores.noted() == Scores()


@pytest.mark.parametrize(
    ("edge", "cloud", "found"),
    [
        (np.array([0.1, 0.9]), np.array([0.4, 0.6]), False),
        (np.array([0.1, 0.9]), np.array([0.6, 0.4]), True),
        ("cat", "dog", True),
        ({"label": "cat", "probabilities": np.array([0.9, 0.1])}, {"label": "cat"}, False),
        ({"label": "cat"}, {"name": "cat"}, None),
        (1.25, 1.26, None),
        (3, 4.0, True),
        (np.zeros((2, 2)), np.zeros((2, 2)), None),
    ],
)
def test_answers_differ_by_what_they_say_of_the_input(edge, cloud, found):
    assert differs(edge, cloud) is found
