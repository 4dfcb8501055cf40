"""One round as a script sees it: what does not fit is an UpdateError at once, with a sentence a person can act on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import structlog
from structlog.testing import capture_logs

from edgeai.errors import StoreError, UpdateError
from edgeai.events.catalogue import BlobRef, Outcome, RoundPhase, RoundState, Verdict
from edgeai.worker.metrics import METRIC_NAME_LIMIT, METRICS_LIMIT
from edgeai.worker.round import Round

UID, DIGEST = "0a1b2c3d" * 4, "d" * 64
WEIGHTS = [np.zeros((2, 3), np.float32), np.zeros(4, np.int64)]


@dataclass
class Session:
    """What a round needs of its session, with a clock that moves when told."""

    now_s: float = 100.0
    full: bool = False
    submitted: list[tuple[int, list[np.ndarray], int, dict[str, float]]] = field(default_factory=list)
    reported: list[tuple[int, dict[str, float], int]] = field(default_factory=list)
    log: Any = field(default_factory=structlog.get_logger)

    def now(self) -> float:
        return self.now_s

    async def submit(
        self, round_: Round, arrays: list[np.ndarray], num_examples: int, metrics: dict[str, float]
    ) -> None:
        if self.full:
            raise StoreError("no space left on device")
        self.submitted.append((round_.number, arrays, num_examples, metrics))

    async def report(self, round_: Round, metrics: dict[str, float], num_examples: int) -> None:
        self.reported.append((round_.number, metrics, num_examples))

    async def verdict(self, number: int) -> Verdict:
        return Verdict(UID, number, "offer", Outcome.COUNTED, DIGEST)


@pytest.fixture
def session() -> Session:
    return Session()


def opened(session: Session, weights: list[np.ndarray] | None = None, **changes: Any) -> Round:
    values = {"number": 2, "train": True, "validate": True, "deadline_s": 60.0, "model": BlobRef(DIGEST, 10)} | changes
    state = RoundState(task_uid=UID, attempt=1, phase=RoundPhase.OPEN, asked=("work0",), **values)
    return Round(session, state, WEIGHTS if weights is None else weights, {"batch size": 16})


def test_a_round_says_what_is_asked(session):
    found = opened(session, train=False)
    assert (found.number, found.train, found.validate, found.base_digest) == (2, False, True, DIGEST)
    assert (found.weights, found.parameters) == (WEIGHTS, {"batch size": 16})


def test_initial_weights_have_no_base(session):
    assert opened(session, [], number=0, model=None).base_digest == ""


def test_the_deadline_runs_down_to_nothing(session):
    found = opened(session)
    session.now_s += 45
    assert found.deadline_s == 15.0
    session.now_s += 100
    assert found.deadline_s == 0.0


def test_the_deadline_counts_from_when_the_round_reached_the_worker(session):
    state = opened(session)._state
    assert Round(session, state, WEIGHTS, {}, opened_s=session.now_s - 50).deadline_s == 10.0


# --- submit


async def test_an_update_is_handed_to_the_session(session):
    await opened(session).submit([array + 1 for array in WEIGHTS], num_examples=7, metrics={"loss": np.float32(0.5)})
    [(number, arrays, num_examples, metrics)] = session.submitted
    assert (number, num_examples, metrics) == (2, 7, {"loss": 0.5})
    assert [array.tolist() for array in arrays] == [(array + 1).tolist() for array in WEIGHTS]


async def test_initial_weights_may_have_any_shape(session):
    await opened(session, [], number=0, model=None).submit([np.zeros((5, 5)), [1, 2]], num_examples=1)
    assert [array.shape for array in session.submitted[0][1]] == [(5, 5), (2,)]


async def test_a_second_submit_is_refused(session):
    found = opened(session)
    await found.submit(WEIGHTS, num_examples=1)
    with pytest.raises(UpdateError, match="round 2 was submitted already"):
        await found.submit(WEIGHTS, num_examples=1)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ([], "the update holds no arrays"),
        (WEIGHTS[:1], "the update holds 1 arrays, the round's model 2"),
        ([*WEIGHTS, WEIGHTS[0]], "the update holds 3 arrays, the round's model 2"),
        ([WEIGHTS[0].T, WEIGHTS[1]], r"array 0 is float32\[3, 2\], the round's model has float32\[2, 3\]"),
        (
            [WEIGHTS[0].astype(np.float64), WEIGHTS[1]],
            r"array 0 is float64\[2, 3\], the round's model has float32\[2, 3\]",
        ),
        ([WEIGHTS[1], WEIGHTS[0]], r"array 0 is int64\[4\]"),
        ([np.array(["a"]), WEIGHTS[1]], "array 0 has dtype str"),
        ([np.array([object()]), WEIGHTS[1]], "array 0 has dtype object"),
        ([[[1], [1, 2]], WEIGHTS[1]], "array 0 is not an array"),
    ],
    ids=["none", "too few", "too many", "shape", "dtype", "order", "text", "objects", "ragged"],
)
async def test_arrays_that_do_not_fit_are_refused_at_once(session, arrays, sentence):
    found = opened(session)
    with pytest.raises(UpdateError, match=sentence):
        await found.submit(arrays, num_examples=1)
    assert (session.submitted, found.submitted) == ([], False)


async def test_what_was_refused_may_be_submitted_in_a_better_form(session):
    found = opened(session)
    with pytest.raises(UpdateError):
        await found.submit(WEIGHTS[:1], num_examples=1)
    await found.submit(WEIGHTS, num_examples=1)
    assert len(session.submitted) == 1


async def test_an_update_that_could_not_be_written_may_be_submitted_again(session):
    session.full, found = True, opened(session)
    with pytest.raises(StoreError):
        await found.submit(WEIGHTS, num_examples=1)
    session.full = False
    await found.submit(WEIGHTS, num_examples=1)
    assert len(session.submitted) == 1


@pytest.mark.parametrize("count", [0, -1, 1.0, "7", None, 10**13])
async def test_a_number_of_examples_is_a_whole_number_of_at_least_1(session, count):
    with pytest.raises(UpdateError, match="num_examples must be a whole number of at least 1"):
        await opened(session).submit(WEIGHTS, num_examples=count)
    with pytest.raises(UpdateError, match="num_examples must be a whole number of at least 1"):
        await opened(session).report({}, num_examples=count)


async def test_a_number_of_examples_may_come_from_numpy(session):
    await opened(session).submit(WEIGHTS, num_examples=np.int64(7))
    assert session.submitted[0][2] == 7


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"loss": "low"}, "metric 'loss' is not a number: low"),
        ({"loss": None}, "metric 'loss' is not a number"),
        ({"loss": np.zeros(2)}, "metric 'loss' is not a number"),
        ({5: 1.0}, "is no name of a metric"),
        ({"": 1.0}, "is no name of a metric"),
        ({"m" * (METRIC_NAME_LIMIT + 1): 1.0}, "is no name of a metric"),
        ({str(number): 1.0 for number in range(METRICS_LIMIT + 1)}, "201 metrics are more than the 200"),
    ],
    ids=["text", "nothing", "array", "number", "empty", "long", "many"],
)
async def test_metrics_are_numbers_with_names(session, metrics, sentence):
    with pytest.raises(UpdateError, match=sentence):
        await opened(session).submit(WEIGHTS, num_examples=1, metrics=metrics)
    with pytest.raises(UpdateError, match=sentence):
        await opened(session).report(metrics, num_examples=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
async def test_a_metric_that_is_not_finite_is_left_out_with_a_notice(session, value):
    """Training that diverged must not end the worker: its weights are looked at by the aggregation worker."""
    with capture_logs() as logs:
        await opened(session).submit(WEIGHTS, num_examples=1, metrics={"loss": value, "accuracy": 0.5})
    assert session.submitted[0][3] == {"accuracy": 0.5}
    assert [(entry["event"], entry["metrics"]) for entry in logs] == [("metrics_left_out", ["loss"])]


async def test_a_submit_in_a_round_that_only_validates_is_dropped_with_a_notice(session):
    found = opened(session, train=False)
    with capture_logs() as logs:
        await found.submit(WEIGHTS, num_examples=1)
    assert session.submitted == []
    assert [(entry["event"], entry["round"]) for entry in logs] == [("update_dropped", 2)]


# --- report


async def test_a_report_is_handed_to_the_session(session):
    await opened(session).report({"accuracy": 0.5}, num_examples=7)
    assert session.reported == [(2, {"accuracy": 0.5}, 7)]


async def test_a_second_report_is_refused(session):
    found = opened(session)
    await found.report({"accuracy": 0.5}, num_examples=7)
    with pytest.raises(UpdateError, match="round 2 was reported already"):
        await found.report({"accuracy": 0.5}, num_examples=7)


async def test_a_report_that_nobody_asked_for_is_ignored(session):
    await opened(session, validate=False).report({"accuracy": 0.5}, num_examples=7)
    assert session.reported == []


# --- verdict


async def test_the_verdict_is_that_of_the_session(session):
    found = opened(session)
    await found.submit(WEIGHTS, num_examples=1)
    assert (await found.verdict()).outcome is Outcome.COUNTED


async def test_there_is_no_verdict_before_a_submit(session):
    with pytest.raises(UpdateError, match="nothing was submitted for round 2"):
        await opened(session).verdict()


async def test_what_was_dropped_is_stale(session):
    found = opened(session, train=False)
    await found.submit(WEIGHTS, num_examples=1)
    verdict = await found.verdict()
    assert (verdict.outcome, verdict.reason) == (Outcome.STALE, "the round only validates")
