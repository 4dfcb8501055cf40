"""What training and aggregation workers record of a round, and what their messages carry."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from collector import Notebook
from edgeai import tracing
from edgeai.events.catalogue import (
    Assignment,
    BlobRef,
    Offer,
    Outcome,
    Role,
    RoundClosed,
    RoundPlan,
    RoundRecord,
    TrainingCompleted,
    Verdict,
    WorkerJoined,
)
from edgeai.launcher.slots import SlotDir
from edgeai.lifecycle.round import Job, JobPhase
from edgeai.tracing import Context, round_span, span_of, task_span, train_span
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.spans import RoundSpans, TrainingSpans, trace_of, traced

UID, LEVEL, DIGEST = "0123abcd" * 4, "digits-0123abcd", "ab" * 32
OFFER = Offer(UID, 3, "", BlobRef(DIGEST, 10), 5, {}, None)
RECORD = RoundRecord(3, 1, {"work1": 5}, {}, "", DIGEST, 10, {}, 1, 2, 0.5, {})
FROM_ELSEWHERE = Context(UID, "1" * 16)
JOB = Job(LEVEL, UID, RoundPlan("FedAvg", 5, 1, 1, 60.0, None, (), "digits", None), phase=JobPhase.OPEN, number=3)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    found = Notebook()
    monkeypatch.setattr(tracing, "_exporter", found)
    return found


def environment(folder: Path, worker: str) -> WorkerEnvironment:
    slot = SlotDir(folder)
    slot.create()
    return WorkerEnvironment(LEVEL, worker, "edge1", "", "", slot)


@pytest.fixture
def training(tmp_path: Path) -> TrainingSpans:
    assignment = Assignment(LEVEL, "digits", UID, 1, "work1", Role.TRAINING)
    return TrainingSpans(environment(tmp_path, "work1"), assignment)


@pytest.fixture
def rounds(tmp_path: Path) -> RoundSpans:
    assignment = Assignment(LEVEL, "digits", UID, 1, "aggregation", Role.AGGREGATION)
    return RoundSpans(environment(tmp_path, "aggregation"), assignment, tmp_path)


# --- training


def test_what_is_trained_lies_below_what_the_round_said(notebook: Notebook, training: TrainingSpans):
    training.asked(3, str(FROM_ELSEWHERE))
    training.trained(3, DIGEST, 10, 5, 0.5)
    training.trained(2, DIGEST, 10, 5, 0.5)
    assert [span.parent for span in notebook.spans] == [FROM_ELSEWHERE, round_span(UID, 2)]


def test_an_offer_carries_the_span_that_made_it(notebook: Notebook, training: TrainingSpans):
    training.trained(3, DIGEST, 10, 5, 0.5)
    assert training.trace_of_offer(3, DIGEST) == str(notebook.spans[0].here)


def test_without_an_exporter_an_offer_carries_what_the_round_said(training: TrainingSpans):
    training.asked(3, str(FROM_ELSEWHERE))
    assert training.trace_of_offer(3, DIGEST) == training.trace_of_report(3) == str(FROM_ELSEWHERE)


# --- aggregation


@pytest.mark.parametrize(
    ("trace", "parent"), [(str(FROM_ELSEWHERE), FROM_ELSEWHERE), ("", train_span(UID, 3, "work1", DIGEST))]
)
def test_an_update_is_collected_below_the_span_of_its_offer(
    notebook: Notebook, rounds: RoundSpans, trace: str, parent: Context
):
    rounds.offered("work1", OFFER, trace)
    rounds.judged("work1", Verdict(UID, 3, "offer", Outcome.COUNTED, DIGEST))
    [span] = notebook.spans
    assert (span.name, span.parent, span.about["outcome"]) == ("collect update", parent, "counted")


def test_an_offer_that_is_repeated_is_one_span(notebook: Notebook, rounds: RoundSpans):
    for outcome in (Outcome.STALE, Outcome.COUNTED, Outcome.DUPLICATE, Outcome.COUNTED):
        rounds.offered("work1", OFFER, "")
        rounds.judged("work1", Verdict(UID, 3, "offer", outcome, DIGEST))
    assert notebook.names() == ["collect update"]


def test_a_refusal_has_its_reason(notebook: Notebook, rounds: RoundSpans):
    rounds.offered("work1", OFFER, "")
    rounds.judged("work1", Verdict(UID, 3, "offer", Outcome.REFUSED, DIGEST, "not finite"))
    assert [span.error for span in notebook.spans] == ["not finite"]


def test_a_round_ends_with_its_outcome_whatever_its_attempts(notebook: Notebook, rounds: RoundSpans):
    for phase in (JobPhase.WAITING, JobPhase.OPEN, JobPhase.RETRYING, JobPhase.OPEN, JobPhase.CLOSING):
        rounds.look(replace(JOB, phase=phase))
    rounds.aggregated(RECORD, 0.0)
    rounds.look(replace(JOB, number=4))
    assert notebook.names() == ["aggregate", "round"]
    [span] = notebook.named("round")
    assert (span.here, span.parent) == (round_span(UID, 3), task_span(UID))
    assert span.about["updates"] == 1


def test_the_last_round_ends_when_the_task_is_finished(notebook: Notebook, rounds: RoundSpans):
    for phase in (JobPhase.OPEN, JobPhase.FINISHING, JobPhase.ENDED):
        rounds.look(replace(JOB, phase=phase))
    assert notebook.names() == ["round"]


def test_a_round_that_a_restart_interrupts_began_when_its_model_was_written(
    notebook: Notebook, rounds: RoundSpans, tmp_path: Path
):
    model = tmp_path / f"{DIGEST}.safetensors"
    model.write_bytes(b"")
    os.utime(model, (1000.0, 1000.0))
    rounds.look(replace(JOB, base=BlobRef(DIGEST, 0)))
    rounds.look(replace(JOB, phase=JobPhase.FINISHING))
    assert [span.began_s for span in notebook.spans] == [1000.0]


@pytest.mark.parametrize(
    ("fact", "here"),
    [
        (RoundClosed(UID, RECORD), round_span(UID, 3)),
        (TrainingCompleted(UID, DIGEST, 10, 3, {}), round_span(UID, 4)),
        (WorkerJoined(UID, "work1"), task_span(UID)),
    ],
)
def test_facts_carry_the_round_that_they_are_about(notebook: Notebook, fact, here):
    assert trace_of(fact) == str(here)


# --- single requests


@pytest.mark.parametrize("trace", ["", "nonsense", f"00-{UID}-{'1' * 16}-00"])
def test_a_request_is_traced_only_if_its_caller_is(trace):
    assert traced(trace, b"1" * 16) is None


def test_two_requests_of_a_caller_are_two_spans():
    first, second = (traced(str(FROM_ELSEWHERE), correlation * 16) for correlation in (b"1", b"2"))
    assert first is not None
    assert second is not None
    assert first.here != second.here
    assert first.caller == second.caller == FROM_ELSEWHERE


def test_the_parts_of_a_path_are_apart():
    assert span_of(UID, "round", 1, 2) != span_of(UID, "round", 12)
