"""The rounds of a task: who is asked, which update counts, when a round closes, what happens next, and what never does."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from round_world import BASE, TASK, UID, World, digest, plan

from edgeai.events.catalogue import (
    Abstention,
    BlobRef,
    Evaluation,
    Membership,
    Offer,
    Outcome,
    Report,
    RoundClosed,
    RoundMissed,
    RoundRecord,
    RoundStarted,
    RoundValidated,
    TrainingCompleted,
    UpdateRefused,
    WorkerJoined,
)
from edgeai.events.envelope import body_of, value_of
from edgeai.lifecycle.base import CancelTimer, Command, Emit, SetTimer, TimerFired
from edgeai.lifecycle.round import (
    JOIN_GRACE_S,
    TRANSITIONS,
    Abstained,
    Aggregate,
    Aggregated,
    Announce,
    Began,
    Collect,
    Finish,
    Job,
    JobPhase,
    Joined,
    MembershipChanged,
    ModelStored,
    Offered,
    Reported,
    Tell,
    UpdateRejected,
    UpdateVerified,
    machine,
    resume,
    step,
)

OPEN, CLOSING, RETRYING, PAUSED, ENDED = (
    JobPhase.OPEN,
    JobPhase.CLOSING,
    JobPhase.RETRYING,
    JobPhase.PAUSED,
    JobPhase.ENDED,
)
DEADLINE, RETRY, JOIN = TimerFired("deadline"), TimerFired("retry"), TimerFired("join")
PLAN = plan("a", "b", "c")


def after(*events, given_plan=PLAN, base=BASE) -> tuple[Job, tuple[Command, ...]]:
    """The state after `events` on a task that has begun, and the commands of the last one."""
    job, commands = step(Job(TASK, UID, given_plan), Began(base, given_plan))
    for event in events:
        job, commands = step(job, event)
    return job, commands


def on(job: Job, *events) -> tuple[Job, tuple[Command, ...]]:
    commands: tuple[Command, ...] = ()
    for event in events:
        job, commands = step(job, event)
    return job, commands


def joined(*workers: str) -> list[Joined]:
    return [Joined(worker) for worker in workers]


ALL = joined("a", "b", "c")


def offered(worker: str, number: int = 1, base: str = BASE.digest, variant: str = "", **changes) -> Offered:
    blob = BlobRef(digest(worker, number, variant), 10)
    return Offered(worker, replace(Offer(UID, number, base, blob, 10), **changes))


def verified(worker: str, number: int = 1, variant: str = "") -> UpdateVerified:
    return UpdateVerified(worker, number, digest(worker, number, variant))


def rejected(worker: str, number: int = 1, reason: str = "not finite") -> UpdateRejected:
    return UpdateRejected(worker, number, digest(worker, number, ""), reason)


def sent(*workers: str, number: int = 1, base: str = BASE.digest) -> list:
    return [event for worker in workers for event in (offered(worker, number, base), verified(worker, number))]


def reported(worker: str, number: int, base: str, accuracy: float | None = 0.9, examples: int = 10) -> Reported:
    found = None if accuracy is None else Evaluation({"accuracy": accuracy}, examples)
    return Reported(worker, Report(UID, number, base, found))


def abstained(worker: str, number: int = 1, base: str = BASE.digest, **changes) -> Abstained:
    return Abstained(worker, replace(Abstention(UID, number, base), **changes))


def record(number: int, *workers: str, base: str = BASE.digest) -> RoundRecord:
    accepted = dict.fromkeys(workers or ("a", "b", "c"), 10)
    return RoundRecord(number, 1, accepted, {}, base, digest("model", number), 10, {"loss": 1.0}, 0, 0, 1.0)


def membership(*available: str, failed: dict[str, str] | None = None, paused: bool = False) -> MembershipChanged:
    return MembershipChanged(Membership(UID, available, failed or {}, paused))


def facts(commands: tuple[Command, ...]) -> list:
    return [command.fact for command in commands if isinstance(command, Emit)]


def verdicts(commands: tuple[Command, ...]) -> list[tuple[str, str, Outcome]]:
    found = [command for command in commands if isinstance(command, Tell)]
    return [(tell.worker, tell.verdict.of, tell.verdict.outcome) for tell in found]


def reason_of(commands: tuple[Command, ...]) -> str:
    [tell] = [command for command in commands if isinstance(command, Tell)]
    return tell.verdict.reason


# --- the beginning


def test_round_1_opens_when_everybody_has_joined():
    job, commands = after(*ALL)
    assert (job.phase, job.number, job.asked) == (OPEN, 1, ("a", "b", "c"))
    assert RoundStarted(UID, 1, 1, ("a", "b", "c")) in facts(commands)
    assert SetTimer("deadline", 60.0) in commands
    assert Announce() in commands


def test_a_worker_that_joins_is_told_once():
    _, commands = after(Joined("a"))
    assert facts(commands) == [WorkerJoined(UID, "a")]
    assert after(Joined("a"), Joined("a"))[1] == ()


def test_a_worker_that_is_not_of_the_task_does_not_join():
    job, commands = after(Joined("x"))
    assert (job.joined, commands) == ((), ())


def test_the_rest_is_waited_for_a_little_longer_when_enough_have_joined():
    job, commands = after(*joined("a", "b"))
    assert job.phase is JobPhase.WAITING
    assert SetTimer("join", min(JOIN_GRACE_S, 60.0)) in commands


def test_the_grace_is_not_prolonged_by_news_of_the_others():
    _, commands = after(*joined("a", "b"), membership("a", "b"))
    assert not any(isinstance(command, SetTimer) for command in commands)


def test_round_1_opens_with_those_who_are_here_when_the_grace_is_over():
    job, _ = after(*joined("a", "b"), JOIN)
    assert (job.phase, job.asked) == (OPEN, ("a", "b"))


def test_the_end_of_the_grace_is_nothing_when_too_few_are_left():
    job, _ = after(*joined("a", "b"), membership("a"), JOIN)
    assert job.phase is JobPhase.WAITING
    assert after(*joined("a", "b"), membership("a"), JOIN, membership("a", "b"))[1] == (SetTimer("join", 60.0),)


def test_a_failed_worker_is_not_waited_for_at_the_beginning():
    job, _ = after(*joined("a", "b"), membership("a", "b", failed={"c": "no TensorFlow"}))
    assert (job.phase, job.asked) == (OPEN, ("a", "b"))


def test_a_model_without_a_version_begins_with_the_first_worker_by_name():
    job, _ = after(*joined("c", "b", "a"), base=None)
    assert (job.number, job.asked, job.quorum, job.base) == (0, ("a",), 1, None)


def test_initial_weights_become_the_base_of_round_1():
    job, commands = after(*ALL, *sent("a", number=0, base=""), base=None)
    assert commands[-1] == Aggregate(0)
    job, _ = on(job, Aggregated(record(0, "a", base="")))
    assert (job.phase, job.number, job.asked, job.base) == (OPEN, 1, ("a", "b", "c"), BlobRef(digest("model", 0), 10))


def test_initial_weights_are_asked_from_the_next_worker_when_the_first_has_failed():
    job, _ = after(*ALL, membership("b", "c", failed={"a": "gone"}), RETRY, base=None)
    assert (job.phase, job.number, job.asked) == (OPEN, 0, ("b",))


# --- updates


def test_an_offer_is_collected():
    offer = offered("a")
    assert after(*ALL, offer)[1] == (Collect("a", offer.offer),)


def test_the_bytes_of_a_small_update_are_not_kept_in_the_state():
    offer = offered("a", blob=BlobRef(digest("a", 1, ""), 10, b"0123456789"))
    job, commands = after(*ALL, offer)
    assert job.collecting["a"].blob.inline is None
    assert commands == (Collect("a", offer.offer),)


def test_a_verified_update_counts():
    job, commands = after(*ALL, *sent("a"))
    assert verdicts(commands) == [("a", "offer", Outcome.COUNTED)]
    assert list(job.updates) == ["a"]


def test_an_offer_that_is_being_collected_is_not_collected_twice():
    assert after(*ALL, offered("a"), offered("a"))[1] == ()


def test_a_repeated_offer_of_a_counted_update_is_a_duplicate():
    _, commands = after(*ALL, *sent("a"), offered("a"))
    assert verdicts(commands) == [("a", "offer", Outcome.DUPLICATE)]
    assert reason_of(commands) == ""


def test_another_update_of_a_worker_that_counts_already_is_a_duplicate_with_a_reason():
    _, commands = after(*ALL, *sent("a"), offered("a", variant="second"))
    assert verdicts(commands) == [("a", "offer", Outcome.DUPLICATE)]
    assert "another update of this round counts" in reason_of(commands)


def test_the_newest_offer_of_a_worker_is_the_one_that_is_collected():
    job, _ = after(*ALL, offered("a"), offered("a", variant="second"), verified("a"))
    assert job.updates == {}
    job, commands = on(job, verified("a", variant="second"))
    assert verdicts(commands) == [("a", "offer", Outcome.COUNTED)]


def test_the_repeated_offer_of_the_round_before_is_a_duplicate():
    """The verdict was lost, the round has closed meanwhile."""
    _, commands = after(*ALL, *sent("a", "b", "c"), Aggregated(record(1)), offered("a"))
    assert verdicts(commands) == [("a", "offer", Outcome.DUPLICATE)]


def test_a_late_update_is_stale():
    _, commands = after(*ALL, *sent("a", "b"), DEADLINE, Aggregated(record(1, "a", "b")), offered("c"))
    assert verdicts(commands) == [("c", "offer", Outcome.STALE)]
    assert reason_of(commands) == "round 1 is closed"


@pytest.mark.parametrize("number", [0, 2, 99, -1])
def test_an_update_of_another_round_is_stale(number):
    _, commands = after(*ALL, offered("a", number))
    assert verdicts(commands) == [("a", "offer", Outcome.STALE)]


def test_an_update_that_arrives_while_the_round_is_being_closed_is_stale():
    _, commands = after(*ALL, *sent("a", "b"), DEADLINE, offered("c"))
    assert verdicts(commands) == [("c", "offer", Outcome.STALE)]


def test_another_tasks_update_is_refused():
    _, commands = after(*ALL, offered("a", task_uid="f" * 32))
    assert verdicts(commands) == [("a", "offer", Outcome.REFUSED)]
    assert reason_of(commands) == "this is another task's update"


def test_an_update_that_was_not_asked_for_is_refused():
    _, commands = after(*joined("a", "b"), JOIN, offered("c"))
    assert verdicts(commands) == [("c", "offer", Outcome.REFUSED)]
    assert reason_of(commands) == "c was not asked in round 1"


def test_an_update_of_another_base_is_refused_by_name():
    _, commands = after(*ALL, offered("a", base=digest("other")))
    assert verdicts(commands) == [("a", "offer", Outcome.REFUSED)]
    assert facts(commands) == [UpdateRefused(UID, 1, "a", "the update was trained on another model than the round's")]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_examples": 0},
        {"num_examples": -5},
        {"num_examples": 10**13},
        {"metrics": {str(number): 1.0 for number in range(201)}},
        {"metrics": {"m" * 201: 1.0}},
    ],
    ids=["none", "negative", "too many", "many metrics", "long name"],
)
def test_an_implausible_update_is_refused_before_it_is_collected(changes):
    _, commands = after(*ALL, offered("a", **changes))
    assert verdicts(commands) == [("a", "offer", Outcome.REFUSED)]
    assert not any(isinstance(command, Collect) for command in commands)


def test_a_bad_update_is_refused_by_name_and_the_round_goes_on():
    job, commands = after(*ALL, offered("a"), rejected("a"))
    assert job.phase is OPEN
    assert verdicts(commands) == [("a", "offer", Outcome.REFUSED)]
    assert facts(commands) == [UpdateRefused(UID, 1, "a", "not finite")]


def test_a_refused_worker_is_told_so_again():
    _, commands = after(*ALL, offered("a"), rejected("a"), offered("a"))
    assert (verdicts(commands), reason_of(commands)) == ([("a", "offer", Outcome.REFUSED)], "not finite")


def test_a_refused_worker_does_not_count_with_what_it_offered_before():
    job, _ = after(*ALL, offered("a"), offered("a", base=digest("other"), variant="second"), verified("a"))
    assert (list(job.updates), list(job.refused)) == ([], ["a"])


@pytest.mark.parametrize("event", [verified("a", 7), rejected("a", 7), verified("x"), verified("a", variant="other")])
def test_an_answer_about_an_update_that_is_not_being_collected_is_nothing(event):
    before, _ = after(*ALL, offered("a"))
    assert on(before, event) == (before, ())


# --- the end of a round


def test_a_round_closes_when_the_last_asked_worker_answers():
    job, commands = after(*ALL, *sent("a", "b", "c"))
    assert job.phase is CLOSING
    assert commands[-3:] == (CancelTimer("deadline"), Announce(), Aggregate(1))


def test_a_round_closes_without_a_worker_that_failed():
    job, _ = after(*ALL, *sent("a", "b"), membership("a", "b", failed={"c": "killed"}))
    assert job.phase is CLOSING


def test_a_round_waits_for_a_silent_worker_until_the_deadline():
    job, _ = after(*ALL, *sent("a", "b"), membership("a", "b"))
    assert job.phase is OPEN
    assert on(job, DEADLINE)[0].phase is CLOSING


def test_a_silent_worker_is_not_asked_in_the_next_round():
    job, _ = after(*ALL, *sent("a", "b"), membership("a", "b"), DEADLINE, Aggregated(record(1, "a", "b")))
    assert job.asked == ("a", "b")


def test_a_round_never_closes_with_fewer_updates_than_the_quorum():
    job, commands = after(*ALL, *sent("a"), DEADLINE)
    assert job.phase is RETRYING
    [missed] = facts(commands)
    assert isinstance(missed, RoundMissed)
    assert missed.reason == "1 of at least 2 updates arrived in round 1; no update from b, c"


def test_a_round_that_was_missed_is_tried_again_with_the_same_base_and_the_updates_it_has():
    job, _ = after(*ALL, *sent("a"), DEADLINE, RETRY)
    assert (job.phase, job.number, job.attempt, job.base, list(job.updates)) == (OPEN, 1, 2, BASE, ["a"])


def test_an_update_that_was_kept_counts_in_the_next_attempt():
    job, _ = after(*ALL, *sent("a"), DEADLINE, RETRY, *sent("b", "c"))
    assert (job.phase, sorted(job.updates)) == (CLOSING, ["a", "b", "c"])


def test_an_update_that_arrives_between_two_attempts_gets_no_verdict_yet_and_counts_in_the_next():
    job, commands = after(*ALL, *sent("a"), DEADLINE, offered("b"))
    assert commands == ()
    assert list(on(job, RETRY, *sent("b", "c"))[0].updates) == ["a", "b", "c"]


def test_a_worker_that_was_refused_is_asked_again_in_the_next_attempt():
    job, _ = after(*ALL, *sent("a"), offered("b"), rejected("b"), offered("c"), rejected("c"))
    assert job.phase is RETRYING
    job, _ = on(job, RETRY, *sent("b"))
    assert (job.refused, sorted(job.updates)) == ({}, ["a", "b"])


def test_the_reason_of_a_missed_round_names_who_was_refused():
    _, commands = after(*ALL, *sent("a"), offered("b"), rejected("b"), DEADLINE)
    assert facts(commands)[0].reason == "1 of at least 2 updates arrived in round 1; no update from c; b: not finite"


def test_the_time_between_attempts_grows_to_a_minute():
    job, _ = after(*ALL)
    delays = []
    for _ in range(9):
        job, commands = on(job, DEADLINE)
        delays += [command.after_s for command in commands if isinstance(command, SetTimer)]
        job, _ = on(job, RETRY)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_round_with_too_few_to_ask_stays_open_for_those_who_come_back():
    job, _ = after(*ALL, *sent("a"), membership("a"), DEADLINE, RETRY)
    assert (job.phase, job.asked) == (OPEN, ("a",))
    job, commands = on(job, membership("a", "b", "c"))
    assert (job.phase, job.asked) == (OPEN, ("a", "b", "c"))
    assert Announce() in commands


def test_a_round_in_which_nobody_can_be_asked_stays_open_for_those_who_come_back():
    job, _ = after(*ALL, membership(), DEADLINE, RETRY)
    assert (job.phase, job.asked) == (OPEN, ())
    assert on(job, membership())[0] == job
    assert on(job, membership("b", "c"))[0].asked == ("b", "c")


def test_a_round_does_not_wait_for_a_worker_that_abstains():
    job, commands = after(*ALL, *sent("a", "b"), abstained("c"))
    assert (job.phase, commands[-1]) == (JobPhase.CLOSING, Aggregate(1))
    assert verdicts(commands) == [("c", "abstention", Outcome.COUNTED)]


def test_who_abstains_has_no_update():
    assert set(after(*ALL, abstained("c"), *sent("a", "b"))[0].updates) == {"a", "b"}


def test_an_abstention_does_not_count_towards_the_least_number_of_updates():
    job, _ = after(*ALL, abstained("b"), abstained("c"), *sent("a"))
    assert job.phase is OPEN
    _, commands = on(job, DEADLINE)
    [missed] = facts(commands)
    assert missed.reason == "1 of at least 2 updates arrived in round 1; b, c left the round without one"


def test_who_abstained_is_asked_again_in_the_next_attempt():
    job, _ = after(*ALL, abstained("b"), abstained("c"), DEADLINE, RETRY)
    assert (job.phase, job.asked, job.abstained) == (OPEN, ("a", "b", "c"), ())


def test_a_worker_that_joins_takes_the_place_of_one_that_abstains():
    job, _ = after(*joined("a", "b"), JOIN, abstained("b"), Joined("c"))
    assert job.asked == ("a", "b", "c")


def test_initial_weights_are_asked_from_the_next_worker_when_the_first_abstains():
    job, commands = after(*ALL, abstained("a", 0, ""), base=None)
    assert (job.number, job.asked) == (0, ("a", "b"))
    assert Announce() in commands


def test_an_update_after_an_abstention_counts():
    job, _ = after(*ALL, *sent("b", "c")[:2], abstained("a"), *sent("a", "c"))
    assert set(job.updates) == {"a", "b", "c"}


def test_what_an_abstention_says_of_the_evaluation_is_as_good_as_a_report():
    job, _ = second(abstained("a", 2, MODEL_1, report=Evaluation({"accuracy": 0.5}, 10)))
    assert job.evaluations == {"a": Evaluation({"accuracy": 0.5}, 10)}


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (lambda: abstained("a", 2), Outcome.STALE),
        (lambda: abstained("x"), Outcome.REFUSED),
        (lambda: abstained("a", base="0" * 64), Outcome.REFUSED),
        (lambda: abstained("a", task_uid="f" * 32), Outcome.REFUSED),
        (lambda: abstained("b"), Outcome.DUPLICATE),
        (lambda: abstained("c"), Outcome.DUPLICATE),
    ],
    ids=["another round", "not asked", "another base", "another task", "repeated", "after an update"],
)
def test_every_abstention_gets_its_verdict(event, outcome):
    _, commands = after(*ALL, abstained("b"), offered("c"), event())
    assert [found for _, _, found in verdicts(commands)] == [outcome]


def test_a_worker_that_joins_while_enough_are_asked_waits_for_the_next_round():
    job, _ = after(*joined("a", "b"), JOIN, Joined("c"))
    assert job.asked == ("a", "b")
    assert on(job, *sent("a", "b"), Aggregated(record(1, "a", "b")))[0].asked == ("a", "b", "c")


def test_the_outcome_of_a_round_is_the_base_of_the_next():
    job, commands = after(*ALL, *sent("a", "b", "c"), Aggregated(record(1)))
    assert (job.phase, job.number, job.base) == (OPEN, 2, BlobRef(digest("model", 1), 10))
    assert facts(commands)[0] == RoundClosed(UID, record(1))


def test_an_outcome_that_is_known_already_is_nothing():
    before, _ = after(*ALL, *sent("a", "b", "c"), Aggregated(record(1)))
    assert on(before, Aggregated(record(1))) == (before, ())


# --- validation


def second(*events, **plan_changes) -> tuple[Job, tuple[Command, ...]]:
    """Round 1 is closed; then `events`."""
    job, _ = after(*ALL, *sent("a", "b", "c"), Aggregated(record(1)), given_plan=plan("a", "b", "c", **plan_changes))
    return on(job, *events)


MODEL_1, MODEL_3 = digest("model", 1), digest("model", 3)


def test_round_1_does_not_validate():
    assert not after(*ALL)[0].validate


@pytest.mark.parametrize(("every", "validated"), [(1, [2, 3, 4]), (2, [3, 4]), (3, [4]), (5, [4])])
def test_the_model_of_every_nth_round_is_validated_and_the_last_one(every, validated):
    job, found = after(*ALL, given_plan=plan("a", "b", "c", every=every))[0], []
    for number in (1, 2, 3):
        base = job.base.digest
        job, _ = on(job, *sent("a", "b", "c", number=number, base=base), Aggregated(record(number)))
        found += [number + 1] if job.validate else []
    assert found == validated


def test_reports_are_the_metrics_of_the_model_that_the_round_began_with():
    job, _ = second(*(reported(worker, 2, MODEL_1, value) for worker, value in (("a", 0.5), ("b", 1.0))))
    _, commands = on(job, *sent("a", "b", "c", number=2, base=MODEL_1), Aggregated(record(2)))
    assert facts(commands)[0] == RoundValidated(UID, 1, {"accuracy": 0.75}, 20)


def test_what_an_offer_says_of_the_evaluation_is_as_good_as_a_report():
    offer = offered("a", 2, MODEL_1, report=Evaluation({"accuracy": 0.5}, 10))
    assert second(offer)[0].evaluations == {"a": Evaluation({"accuracy": 0.5}, 10)}


def test_an_offer_that_says_nothing_of_the_evaluation_leaves_room_for_a_report():
    job, commands = second(offered("a", 2, MODEL_1), reported("a", 2, MODEL_1))
    assert verdicts(commands) == [("a", "report", Outcome.COUNTED)]
    assert job.evaluations == {"a": Evaluation({"accuracy": 0.9}, 10)}


def test_a_repeated_report_is_a_duplicate():
    _, commands = second(reported("a", 2, MODEL_1), reported("a", 2, MODEL_1, 0.1))
    assert verdicts(commands) == [("a", "report", Outcome.DUPLICATE)]


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (reported("a", 1, BASE.digest), Outcome.STALE),
        (reported("a", 3, MODEL_1), Outcome.STALE),
        (reported("x", 2, MODEL_1), Outcome.REFUSED),
        (reported("a", 2, BASE.digest), Outcome.REFUSED),
        (Reported("a", Report("f" * 32, 2, MODEL_1, None)), Outcome.REFUSED),
        (reported("a", 2, MODEL_1, examples=0), Outcome.REFUSED),
        (reported("a", 2, MODEL_1, examples=-1), Outcome.REFUSED),
        (reported("a", 2, MODEL_1, None), Outcome.COUNTED),
    ],
    ids=["late", "early", "not asked", "another base", "another task", "of nothing", "negative", "declined"],
)
def test_every_report_gets_its_verdict(event, outcome):
    _, commands = second(event)
    assert [found for _, _, found in verdicts(commands)] == [outcome]


def test_an_implausible_evaluation_does_not_enter_the_mean():
    reports = [reported("a", 2, MODEL_1, 0.5), reported("b", 2, MODEL_1, 0.9, examples=-9)]
    job, _ = second(*reports, *sent("a", "b", "c", number=2, base=MODEL_1))
    assert facts(on(job, Aggregated(record(2)))[1])[0] == RoundValidated(UID, 1, {"accuracy": 0.5}, 10)


def test_a_report_in_a_round_that_does_not_validate_is_stale():
    _, commands = after(*ALL, reported("a", 1, BASE.digest))
    assert verdicts(commands) == [("a", "report", Outcome.STALE)]


def test_the_target_ends_the_task_when_everybody_has_evaluated():
    job, commands = second(*(reported(worker, 2, MODEL_1, 0.98) for worker in "abc"), target=0.97)
    assert job.phase is JobPhase.FINISHING
    assert commands[-1] == Finish(BlobRef(MODEL_1, 10))
    assert RoundValidated(UID, 1, {"accuracy": pytest.approx(0.98)}, 30) in facts(commands)


def test_the_target_does_not_count_before_everybody_has_evaluated():
    job, _ = second(reported("a", 2, MODEL_1, 0.98), reported("b", 2, MODEL_1, 0.98), target=0.97)
    assert job.phase is OPEN


def test_a_worker_that_declined_or_failed_is_not_waited_for_at_the_target():
    reports = [reported("a", 2, MODEL_1, 0.98), reported("b", 2, MODEL_1, None)]
    job, _ = second(*reports, membership("a", "b", failed={"c": "killed"}), target=0.97)
    assert job.phase is JobPhase.FINISHING


def test_below_the_target_training_goes_on():
    job, _ = second(*(reported(worker, 2, MODEL_1, 0.5) for worker in "abc"), target=0.97)
    assert job.phase is OPEN


def last(*events) -> tuple[Job, tuple[Command, ...]]:
    """All rounds are closed, the last model is being validated; then `events`."""
    job, _ = after(*ALL)
    for number in (1, 2, 3):
        job, _ = on(job, *sent("a", "b", "c", number=number, base=job.base.digest), Aggregated(record(number)))
    return on(job, *events)


def test_the_last_round_only_validates():
    job, _ = last()
    assert (job.number, job.train, job.validate) == (4, False, True)


def test_an_update_in_the_last_round_is_stale():
    _, commands = last(offered("a", 4, MODEL_3))
    assert verdicts(commands) == [("a", "offer", Outcome.STALE)]


def test_the_last_round_ends_when_all_have_reported():
    job, commands = last(*(reported(worker, 4, MODEL_3) for worker in "abc"))
    assert job.phase is JobPhase.FINISHING
    assert commands[-1] == Finish(BlobRef(MODEL_3, 10))


def test_the_last_round_ends_at_its_deadline_with_what_is_there():
    job, commands = last(reported("a", 4, MODEL_3), DEADLINE)
    assert job.phase is JobPhase.FINISHING
    assert facts(commands) == [RoundValidated(UID, 3, {"accuracy": 0.9}, 10)]


def test_the_last_round_ends_without_metrics_when_nobody_evaluates():
    job, commands = last(*(reported(worker, 4, MODEL_3, None) for worker in "abc"))
    assert (job.phase, facts(commands)) == (JobPhase.FINISHING, [])


def test_the_task_has_ended_when_the_model_is_stored():
    job, commands = last(*(reported(worker, 4, MODEL_3) for worker in "abc"), ModelStored())
    assert job.phase is ENDED
    assert facts(commands) == [TrainingCompleted(UID, MODEL_3, 10, 3, {"accuracy": pytest.approx(0.9)})]


# --- paused


def test_a_pause_lets_the_open_round_finish():
    job, _ = after(*ALL, membership("a", "b", "c", paused=True), *sent("a", "b", "c"))
    assert job.phase is CLOSING
    job, _ = on(job, Aggregated(record(1)))
    assert (job.phase, job.number) == (PAUSED, 2)


def test_the_next_round_opens_when_the_pause_is_over():
    job, _ = after(*ALL, membership("a", "b", "c", paused=True), *sent("a", "b", "c"), Aggregated(record(1)))
    job, commands = on(job, membership("a", "b", "c"))
    assert (job.phase, job.number) == (OPEN, 2)
    assert Announce() in commands


def test_a_task_that_is_paused_from_the_beginning_opens_no_round():
    job, _ = after(membership("a", "b", "c", paused=True), *ALL)
    assert job.phase is PAUSED
    assert on(job, membership("a", "b", "c"))[0].number == 1


# --- after a restart


@pytest.mark.parametrize(
    ("job", "commands"),
    [
        (after()[0], ()),
        (after(*ALL)[0], (Announce(),)),
        (after(*ALL, offered("a"))[0], (Announce(), Collect("a", offered("a").offer))),
        (after(*ALL, *sent("a", "b", "c"))[0], (Announce(), Aggregate(1))),
        (after(*ALL, DEADLINE)[0], (Announce(),)),
        (last(DEADLINE)[0], (Announce(), Finish(BlobRef(MODEL_3, 10)))),
        (last(DEADLINE, ModelStored())[0], (Announce(),)),
    ],
    ids=["waiting", "open", "collecting", "closing", "retrying", "finishing", "ended"],
)
def test_what_a_state_waits_for_is_asked_for_again(job, commands):
    assert resume(job) == commands


def test_the_machine_begins_with_an_empty_task():
    made = machine(TASK, UID, PLAN)
    assert made.initial(TASK) == Job(TASK, UID, PLAN)
    assert made.state is Job


# --- laws

NAMES = st.sampled_from(["a", "b", "c", "x"])
NUMBERS = st.integers(0, 5)
BASES = st.sampled_from(["", BASE.digest, *(digest("model", number) for number in range(4))])
EVALUATIONS = st.none() | st.builds(
    lambda accuracy, examples: Evaluation({"accuracy": accuracy}, examples),
    st.sampled_from([0.1, 0.99]),
    st.sampled_from([0, 10]),
)
UIDS = st.sampled_from([UID, UID, UID, "f" * 32])
EVENTS = st.one_of(
    st.builds(Joined, NAMES),
    st.builds(offered, NAMES, NUMBERS, BASES, st.sampled_from(["", "second"]), task_uid=UIDS, report=EVALUATIONS),
    st.builds(
        lambda name, uid, number, base, found: Reported(name, Report(uid, number, base, found)),
        NAMES,
        UIDS,
        NUMBERS,
        BASES,
        EVALUATIONS,
    ),
    st.builds(abstained, NAMES, NUMBERS, BASES, task_uid=UIDS, report=EVALUATIONS),
    st.builds(verified, NAMES, NUMBERS, st.sampled_from(["", "second"])),
    st.builds(rejected, NAMES, NUMBERS),
    st.builds(lambda number: Aggregated(record(number)), NUMBERS),
    st.builds(
        lambda available, failed, paused: membership(*sorted(available), failed=failed, paused=paused),
        st.sets(st.sampled_from("abc")),
        st.dictionaries(st.sampled_from("abc"), st.just("failed"), max_size=2),
        st.booleans(),
    ),
    st.just(ModelStored()),
    st.sampled_from([DEADLINE, RETRY, JOIN]),
    st.builds(Began, st.sampled_from([None, BASE]), st.just(PLAN)),
)


@st.composite
def histories(draw) -> list:
    """Histories that get somewhere: random events between those of a task that makes progress."""
    progress = [*ALL]
    for number, base in ((1, BASE.digest), (2, digest("model", 1)), (3, digest("model", 2))):
        progress += [*sent("a", "b", "c", number=number, base=base), Aggregated(record(number))]
    progress += [*(reported(worker, 4, MODEL_3) for worker in "abc"), ModelStored()]
    found = []
    for event in progress[: draw(st.integers(0, len(progress)))]:
        found += draw(st.lists(EVENTS, max_size=2))
        if draw(st.integers(0, 9)):
            found.append(event)
    return found + draw(st.lists(EVENTS, max_size=10))


targets = st.sampled_from([None, 0.97])


@settings(deadline=None)
@given(histories(), targets, st.sampled_from([BASE, None]))
def test_an_event_delivered_twice_changes_nothing(history, target, base):
    job, _ = after(given_plan=replace(PLAN, target_accuracy=target), base=base)
    for event in history:
        job, _ = step(job, event)
        again, commands = step(job, event)
        assert again == job, event
        assert not facts(commands), event


@settings(deadline=None)
@given(histories(), targets, st.sampled_from([BASE, None]))
def test_the_drawing_of_the_phases_is_true(history, target, base):
    job, _ = after(given_plan=replace(PLAN, target_accuracy=target), base=base)
    for event in history:
        before, (job, _) = job, step(job, event)
        # One event may end a round and begin the next.
        assert job.phase is before.phase or job.phase in TRANSITIONS[before.phase], event


@settings(deadline=None)
@given(histories(), targets, st.sampled_from([BASE, None]))
def test_a_round_has_one_outcome_and_an_update_counts_once(history, target, base):
    job, _ = after(given_plan=replace(PLAN, target_accuracy=target), base=base)
    closed, counted = [], []
    for event in history:
        before, (job, commands) = job, step(job, event)
        closed += [fact.record.number for fact in facts(commands) if isinstance(fact, RoundClosed)]
        counted += [
            (job.number, worker)
            for worker, of, found in verdicts(commands)
            if of == "offer" and found is Outcome.COUNTED
        ]
        assert job.number >= before.number
        if any(isinstance(command, Aggregate) for command in commands):
            assert len(job.updates) >= job.quorum
    assert len(closed) == len(set(closed))
    assert len(counted) == len(set(counted))


@settings(deadline=None)
@given(histories(), targets, st.sampled_from([BASE, None]))
def test_every_offer_and_report_gets_a_verdict_or_is_being_looked_at(history, target, base):
    job, _ = after(given_plan=replace(PLAN, target_accuracy=target), base=base)
    for event in history:
        before, (job, commands) = job, step(job, event)
        if not isinstance(event, Offered | Reported):
            continue
        told = [command.worker for command in commands if isinstance(command, Tell)]
        number = event.offer.number if isinstance(event, Offered) else event.report.number
        between_attempts = before.phase in {RETRYING, PAUSED} and number == before.number
        collected = {offer.blob.digest for offer in job.collecting.values()}
        looked_at = isinstance(event, Offered) and event.offer.blob.digest in collected
        assert told == [event.worker] or (not told and (between_attempts or looked_at)), event


@settings(deadline=None)
@given(histories(), targets)
def test_a_state_survives_its_store_and_is_never_changed_in_place(history, target):
    job, _ = after(given_plan=replace(PLAN, target_accuracy=target))
    for event in history:
        stored = msgpack.packb(body_of(job))
        following, _ = step(job, event)
        assert msgpack.packb(body_of(job)) == stored
        job = following
    assert value_of(Job, msgpack.unpackb(msgpack.packb(body_of(job)))) == job


seeds = st.integers(0, 2**32)
plans = st.sampled_from(
    [
        plan("a", "b", "c"),
        plan("a", "b", quorum=1, every=2),
        plan("a", quorum=1, number=1),
        plan("a", "b", "c", target=0.65),
    ]
)


def end_of(world: World) -> tuple[object, ...]:
    metrics = [fact for fact in world.facts if isinstance(fact, RoundValidated)]
    outcomes = {number: (found.accepted, found.model_digest) for number, found in world.outcomes.items()}
    return world.job.base, world.job.metrics, outcomes, metrics, set(world.finished)


@settings(deadline=None, max_examples=60)
@given(seeds, plans, st.sampled_from([BASE, None]), st.integers(1, 6))
def test_crashes_anywhere_lead_to_the_same_end(seed, given_plan, base, crashes):
    calm = World(seed, given_plan, base, lost=0.0, repeated=0.0).run()
    assert end_of(World(seed, given_plan, base).run(crashes)) == end_of(calm)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(0, 4))
def test_a_bad_worker_and_crashes_cost_nobody_anything(seed, crashes):
    world = World(seed, PLAN, bad=frozenset({"b"})).run(crashes)
    assert [sorted(found.accepted) for found in world.outcomes.values()] == [["a", "c"]] * 3
    assert world.closed() == [1, 2, 3]


@settings(deadline=None, max_examples=30)
@given(seeds, plans, st.integers(0, 6))
def test_no_worker_is_told_twice_that_its_update_counts(seed, given_plan, crashes):
    world = World(seed, given_plan).run(crashes)
    assert len(world.counted) == len(set(world.counted))
