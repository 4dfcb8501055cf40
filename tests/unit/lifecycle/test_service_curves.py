"""The offload curves of a service say on what they rest, what is sent now, and what would spend the budget."""

from __future__ import annotations

from typing import Any

from edgeai.learning.offload_curve import BINS
from edgeai.lifecycle.curves import OffloadCurve, curves_of, sentences
from edgeai.resources.joint import EdgeServing, EdgeWorker, ScoreCounts

EDGE, CLOUD = "aa" * 32, "bb" * 32
MARGIN = {"algorithm": "Margin", "parameters": [{"key": "threshold", "value": 0.2}]}
AS_MARGIN = "Margin softmax=False threshold=0.2"


def worker(name: str, mining: dict[str, Any]) -> EdgeWorker:
    spec = {"scriptDir": "/srv", "scriptBootFile": "main.py", "frameworkType": "numpy"}
    return EdgeWorker.model_validate(
        {"name": name, "nodeName": f"on-{name}", "workerSpec": spec, "hardExampleMining": mining}
    )


def serving(name: str, mining: str = AS_MARGIN, edge: str = EDGE, **counts: Any) -> EdgeServing:
    """`counts`: by column, a map of bin to count."""
    columns = {
        column: tuple(counts.get(column, {}).get(place, 0) for place in range(BINS))
        for column in ("inferences", "answered", "changed")
    }
    scores = ScoreCounts(edge=edge, cloud=CLOUD, mining=mining, hard=counts.get("hard", 0), **columns)
    return EdgeServing(worker=name, node=f"on-{name}", scores=scores)


def one(mining: dict[str, Any], told: EdgeServing, budget: float = 0.25) -> OffloadCurve:
    [found] = curves_of([worker(told.worker, mining)], [told], budget)
    return found


def test_a_curve_says_what_it_rests_on_what_is_sent_now_and_what_spends_the_budget() -> None:
    told = serving("w", inferences={19: 100, 14: 100, 0: 200}, answered={19: 80}, changed={19: 20}, hard=100)
    assert sentences(one(MARGIN, told, 0.375)) == (
        "400 inferences since these models and this mining serve together; "
        "of 80 compared answers, the cloud changed 20 (25 %).",
        "Now a margin below 0.20 is hard: 25 % of the inferences.",
        "A margin below 0.28 would send 37.5 %, the whole budget.",
    )


def test_points_are_by_rising_threshold_of_the_mining() -> None:
    thresholds = [threshold for threshold, _ in one(MARGIN, serving("w", inferences={19: 1})).points]
    assert (thresholds, len(thresholds)) == (sorted(thresholds), BINS + 1)


def test_edges_with_the_same_models_and_mining_share_a_curve() -> None:
    workers = [worker("a", MARGIN), worker("b", MARGIN), worker("c", MARGIN)]
    edges = [
        serving("a", inferences={19: 1}),
        serving("b", inferences={19: 2}),
        serving("c", edge="cc" * 32, inferences={19: 9}),
    ]
    found = curves_of(workers, edges, 1.0)
    assert [(curve.workers, curve.histogram.total) for curve in found] == [(("c",), 9), (("a", "b"), 3)]


def test_a_miner_without_a_threshold_has_no_curve_and_says_so() -> None:
    found = one({"algorithm": "CloudOnly"}, serving("w", "CloudOnly", inferences={19: 9}, answered={19: 9}))
    assert (found.points, found.answers) == ((), 9)
    assert sentences(found)[1].startswith("CloudOnly has no threshold")


def test_a_miner_of_the_script_that_says_yes_or_no_has_no_curve_and_says_so() -> None:
    mining = {"algorithm": "Custom", "parameters": [{"key": "entry point", "value": "mine:hard"}]}
    found = one(mining, serving("w", "Custom entry point=mine:hard", inferences={0: 9, 19: 1}))
    assert found.points == ()
    assert "without a score" in sentences(found)[1]


def test_the_threshold_of_another_mining_is_not_said_to_be_in_use() -> None:
    found = one(MARGIN, serving("w", "Margin softmax=False threshold=0.9", inferences={19: 200}))
    assert found.threshold is None
    assert not any("Now" in told for told in sentences(found))


def test_few_inferences_are_said_to_be_few() -> None:
    assert "few" in sentences(one(MARGIN, serving("w", inferences={19: 3})))[-1]


def test_an_edge_that_has_counted_nothing_has_no_curve() -> None:
    assert curves_of([worker("w", MARGIN)], [EdgeServing(worker="w", node="on-w")], 1.0) == ()
