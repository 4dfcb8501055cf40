"""Of what workers of services say every second, only what is new becomes a fact, and never too often."""

from __future__ import annotations

from typing import Any

from edgeai.events.catalogue import BlobRef, InferenceObserved, ModelVersionRef, ServiceChanged, ServingWanted
from edgeai.lifecycle.swaps import MAX_FACTS, MINUTE_S, Known, Pace, news

UID, ONE, TWO = "01" * 16, "aa" * 32, "bb" * 32


class Worker:
    """Says what is so, and collects the facts."""

    def __init__(self) -> None:
        self.known, self.pace, self.now_s = Known(), Pace(), 1000.0
        self.facts: list[ServiceChanged] = []

    def says(self, digest: str, version: int = 0, after_s: float = 1.0, **more: Any) -> list[ServiceChanged]:
        """`version`: that is wanted, of this model."""
        self.now_s += after_s
        told = InferenceObserved("digits-01234567", UID, "little", digest, **more)
        model = ModelVersionRef(version, BlobRef(digest, 1), "npz") if version else None
        wanted = ServingWanted("digits-01234567", UID, "little", "small", model) if model is not None else None
        self.known, facts = news(self.known, told, wanted, self.pace, self.now_s)
        self.facts += facts
        return list(facts)


def test_a_new_version_is_a_fact_with_both_models() -> None:
    worker = Worker()
    worker.says(ONE, 1)
    assert worker.says(TWO, 2) == [ServiceChanged(UID, "model", ONE, TWO, "a new version", version_before=1, version=2)]


def test_the_same_model_again_is_no_fact() -> None:
    worker = Worker()
    worker.says(ONE, 1)
    assert worker.says(ONE, 1) == []


def test_a_worker_that_begins_again_and_serves_nothing_yet_has_swapped_nothing() -> None:
    worker = Worker()
    worker.says(ONE, 1)
    assert worker.says("") == []
    assert worker.says(ONE, 1) == []


def test_a_model_that_has_served_before_is_a_rollback() -> None:
    worker = Worker()
    worker.says(ONE, 1)
    worker.says(TWO, 2)
    [fact] = worker.says(ONE, 3)
    assert (fact.version_before, fact.version, fact.reason) == (2, 3, "rollback: it has served before")


def test_a_refused_model_is_a_fact_with_the_reason_and_told_once() -> None:
    worker = Worker()
    worker.says(ONE, 1)
    [fact] = worker.says(ONE, refused_models={TWO: "it does not load"})
    assert (fact.what, fact.before, fact.after, fact.reason) == ("model-refused", ONE, TWO, "it does not load")
    assert worker.says(ONE, refused_models={TWO: "it does not load"}) == []


def test_a_model_that_failed_while_it_served_is_one_fact() -> None:
    worker = Worker()
    worker.says(ONE, 1)
    worker.says(TWO, 2)
    [fact] = worker.says(ONE, refused_models={TWO: "it raises"})
    assert (fact.what, fact.version, fact.reason) == ("model", 1, "the model before it failed: it raises")


def test_a_breaker_that_opens_is_told_and_half_open_is_not_another_thing() -> None:
    worker = Worker()
    assert [fact.what for fact in worker.says("", breaker="open")] == ["breaker-opened"]
    assert worker.says("", breaker="half-open") == []
    assert [fact.what for fact in worker.says("", breaker="closed")] == ["breaker-closed"]


def test_a_breaker_that_flaps_is_told_once_a_minute_with_how_often() -> None:
    worker = Worker()
    for _ in range(5):
        worker.says("", breaker="open")
        worker.says("", breaker="closed")
    assert [(fact.what, fact.times) for fact in worker.facts] == [("breaker-opened", 1), ("breaker-closed", 1)]
    worker.says("", after_s=MINUTE_S, breaker="closed")
    assert [(fact.what, fact.times) for fact in worker.facts[2:]] == [("breaker-opened", 4), ("breaker-closed", 4)]


def test_a_worker_that_swaps_without_end_does_not_fill_the_history() -> None:
    worker = Worker()
    for _ in range(MAX_FACTS):
        worker.says(ONE, after_s=0.1)
        worker.says(TWO, after_s=0.1)
    assert len(worker.facts) == MAX_FACTS


def test_what_was_too_much_is_told_later() -> None:
    worker = Worker()
    for _ in range(MAX_FACTS // 2):
        worker.says(ONE, after_s=0.1)
        worker.says(TWO, after_s=0.1)
    worker.says(ONE, after_s=0.1)
    [fact] = worker.says(ONE, after_s=MINUTE_S)
    assert (fact.before, fact.after) == (TWO, ONE)
