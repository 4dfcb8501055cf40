"""One slot of a node: prepared, started, watched, restarted up to a limit, stopped and removed, whatever repeats."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeai.events.catalogue import Assignment, Role, WorkerEnded, WorkerFailed, WorkerStarted
from edgeai.events.envelope import body_of, value_of
from edgeai.lifecycle.base import CancelTimer, Command, Emit, Forget, SetTimer, TimerFired
from edgeai.lifecycle.worker import (
    FIRST_BACKOFF_S,
    LAST_BACKOFF_S,
    MACHINE,
    MAX_RESTARTS,
    STABLE_S,
    TRANSITIONS,
    Ended,
    Prepare,
    Prepared,
    PrepareFailed,
    Remove,
    Removed,
    Slot,
    SlotEvent,
    Start,
    Started,
    StartFailed,
    Stop,
    Stopped,
    Unwanted,
    Wanted,
    Watch,
    WorkerPhase,
    observe,
    resume,
    step,
)

UID = "0a1b2c3d" * 4
BACKOFF, RETRY, STABLE = TimerFired("backoff"), TimerFired("retry"), TimerFired("stable")


def assignment(generation: int = 1, **changes) -> Assignment:
    mine = Assignment("digits-0a1b2c3d", "digits", UID, generation, "work0", Role.TRAINING, boot_file="main.py")
    return replace(mine, **changes)


MINE = assignment()
CHANGED = assignment(2, boot_file="other.py")
RUNNING = [Wanted(MINE), Prepared(), Started(7)]
ENDS = [Ended(False, "exited with code 1"), BACKOFF, Started(8)]
REACHED: dict[WorkerPhase, list[SlotEvent]] = {
    WorkerPhase.PREPARING: [Wanted(MINE)],
    WorkerPhase.STARTING: [Wanted(MINE), Prepared()],
    WorkerPhase.RUNNING: RUNNING,
    WorkerPhase.BACKOFF: [*RUNNING, Ended(False, "exited with code 1")],
    WorkerPhase.DONE: [*RUNNING, Ended(True, "finished")],
    WorkerPhase.FAILED: [Wanted(MINE), PrepareFailed("no TensorFlow")],
    WorkerPhase.STOPPING: [*RUNNING, Unwanted()],
}
every_phase = pytest.mark.parametrize("phase", REACHED)


def after(*events: SlotEvent) -> tuple[Slot, tuple[Command, ...]]:
    """The slot after `events`, and the commands of the last one."""
    slot, commands = Slot(), ()
    for event in events:
        slot, commands = step(slot, event)
    return slot, commands


def facts(commands: tuple[Command, ...]) -> list:
    return [command.fact for command in commands if isinstance(command, Emit)]


# --- the way of a worker


def test_a_wanted_slot_is_prepared():
    slot, commands = after(Wanted(MINE))
    assert (slot.phase, commands) == (WorkerPhase.PREPARING, (Prepare(MINE),))


def test_what_is_prepared_is_started():
    slot, commands = after(Wanted(MINE), Prepared("d" * 64, 40))
    assert (slot.phase, commands) == (WorkerPhase.STARTING, (Start(MINE, 0),))


def test_what_a_worker_was_prepared_with_is_told_of_it():
    slot, _ = after(Wanted(MINE), Prepared("d" * 64, 40), Started(7))
    told = observe(slot)
    assert told is not None
    assert (told.dataset, told.samples) == ("d" * 64, 40)


def test_a_started_worker_is_watched_and_told_of():
    slot, commands = after(*RUNNING)
    assert (slot.phase, slot.pid) == (WorkerPhase.RUNNING, 7)
    assert commands == (
        Emit(WorkerStarted(UID, Role.TRAINING, 7), MINE.task, "work0"),
        SetTimer("stable", STABLE_S),
        Watch(MINE),
    )


def test_a_worker_whose_work_is_settled_is_done():
    slot, commands = after(*RUNNING, Ended(True, "finished"))
    assert (slot.phase, slot.pid) == (WorkerPhase.DONE, 0)
    assert facts(commands) == [WorkerEnded(UID, Role.TRAINING, True, "finished")]


def test_what_may_work_later_is_tried_again():
    slot, commands = after(Wanted(MINE), PrepareFailed("not here yet", 5.0))
    assert (slot.phase, slot.reason, commands) == (WorkerPhase.PREPARING, "not here yet", (SetTimer("retry", 5.0),))
    assert step(slot, RETRY) == (slot, (Prepare(MINE),))


def test_what_somebody_has_to_change_is_given_up():
    slot, commands = after(Wanted(MINE), PrepareFailed("framework tensorflow is not installed"))
    assert slot.phase is WorkerPhase.FAILED
    assert facts(commands) == [WorkerFailed(UID, Role.TRAINING, "framework tensorflow is not installed")]


# --- restarts


def test_a_worker_that_ends_early_is_restarted_later():
    slot, commands = after(*RUNNING, Ended(False, "exited with code 1"))
    assert (slot.phase, slot.reason) == (WorkerPhase.BACKOFF, "exited with code 1")
    assert facts(commands) == [WorkerEnded(UID, Role.TRAINING, False, "exited with code 1")]
    assert SetTimer("backoff", FIRST_BACKOFF_S) in commands
    slot, commands = step(slot, BACKOFF)
    assert (slot.phase, slot.restarts, commands) == (WorkerPhase.STARTING, 1, (Start(MINE, 1),))


def test_a_program_that_cannot_be_started_is_tried_again():
    slot, commands = after(Wanted(MINE), Prepared(), StartFailed("no such file"))
    assert slot.phase is WorkerPhase.BACKOFF
    assert SetTimer("backoff", FIRST_BACKOFF_S) in commands


def test_a_start_that_has_to_wait_is_repeated_and_not_counted():
    slot, commands = after(Wanted(MINE), Prepared(), StartFailed("no engine answers", 2.0))
    assert (slot.phase, slot.reason, commands) == (
        WorkerPhase.STARTING,
        "no engine answers",
        (SetTimer("retry", 2.0),),
    )
    assert step(slot, RETRY) == (slot, (Start(MINE, 0),))


def test_the_token_of_a_run_is_told_as_long_as_it_runs():
    running, _ = after(Wanted(MINE), Prepared(), Started(7, "ab" * 32))
    ended, _ = step(running, Ended(False, "exited with code 1"))
    assert [observe(slot).token for slot in (running, ended)] == ["ab" * 32, ""]


def test_the_time_between_restarts_doubles_until_the_worker_is_given_up():
    slot, delays, commands = after(*RUNNING)[0], [], ()
    for _ in range(MAX_RESTARTS + 1):
        slot, commands = step(slot, Ended(False, "exited with code 1"))
        delays += [command.after_s for command in commands if isinstance(command, SetTimer)]
        if slot.phase is WorkerPhase.BACKOFF:
            slot, _ = step(step(slot, BACKOFF)[0], Started(8))
    assert delays == [FIRST_BACKOFF_S * 2**number for number in range(MAX_RESTARTS)]
    assert slot.phase is WorkerPhase.FAILED
    assert slot.reason == f"exited with code 1 (given up after {MAX_RESTARTS} restarts)"
    assert isinstance(facts(commands)[-1], WorkerFailed)


def test_a_worker_of_a_service_is_started_again_for_ever_ever_more_seldom():
    mine, delays = assignment(role=Role.EDGE), []
    slot, _ = after(Wanted(mine), Prepared(), Started(7))
    for _ in range(12):
        slot, commands = step(slot, Ended(True, "finished"))
        delays += [command.after_s for command in commands if isinstance(command, SetTimer)]
        slot, _ = step(step(slot, BACKOFF)[0], Started(8))
    assert delays == [min(FIRST_BACKOFF_S * 2**number, LAST_BACKOFF_S) for number in range(12)]
    assert slot.phase is WorkerPhase.RUNNING


@pytest.mark.parametrize("role", [Role.TRAIN, Role.EVAL])
def test_an_error_of_a_worker_whose_stage_tries_again_is_counted_there_alone(role):
    slot, commands = after(
        Wanted(assignment(role=role)), Prepared(), Started(7), Ended(False, "exited with code 1", True)
    )
    assert (slot.phase, slot.reason) == (WorkerPhase.FAILED, "exited with code 1")
    assert facts(commands) == [
        WorkerEnded(UID, role, False, "exited with code 1"),
        WorkerFailed(UID, role, "exited with code 1"),
    ]


@pytest.mark.parametrize("role", [Role.TRAIN, Role.EVAL])
def test_a_start_that_failed_is_tried_again_by_the_stage_alone(role):
    slot, _ = after(Wanted(assignment(role=role)), Prepared(), StartFailed("no such program"))
    assert (slot.phase, slot.reason) == (WorkerPhase.FAILED, "no such program")


@pytest.mark.parametrize("role", [Role.TRAIN, Role.EVAL])
def test_a_worker_of_a_stage_that_was_killed_is_restarted_in_its_slot(role):
    slot, _ = after(Wanted(assignment(role=role)), Prepared(), Started(7), Ended(False, "was killed by SIGKILL"))
    assert (slot.phase, slot.reason) == (WorkerPhase.BACKOFF, "was killed by SIGKILL")


def test_a_worker_of_a_stage_that_is_killed_again_and_again_is_not_called_given_up():
    slot, _ = after(Wanted(assignment(role=Role.TRAIN)), Prepared(), Started(7))
    for _ in range(MAX_RESTARTS + 1):
        slot, _ = step(slot, Ended(False, "was killed by SIGKILL"))
        if slot.phase is WorkerPhase.BACKOFF:
            slot, _ = step(step(slot, BACKOFF)[0], Started(8))
    assert (slot.phase, slot.reason) == (WorkerPhase.FAILED, "was killed by SIGKILL")


@pytest.mark.parametrize("role", [Role.TRAINING, Role.AGGREGATION, Role.DEPLOY])
def test_an_error_of_a_worker_that_no_stage_tries_again_is_restarted_in_its_slot(role):
    slot, _ = after(Wanted(assignment(role=role)), Prepared(), Started(7), Ended(False, "exited with code 1", True))
    assert slot.phase is WorkerPhase.BACKOFF


def test_a_worker_that_ran_for_a_while_has_its_restarts_forgiven():
    slot, _ = after(*RUNNING, *ENDS, *ENDS, STABLE)
    assert slot.restarts == 0


def test_a_worker_that_runs_again_tells_why_it_was_restarted():
    slot, _ = after(*RUNNING, *ENDS)
    assert (observe(slot).state, observe(slot).reason) == ("Running", "restarted after: exited with code 1")


def test_what_is_told_twice_of_a_start_changes_nothing_of_why():
    slot, _ = after(*RUNNING, *ENDS, Started(8))
    assert observe(slot).reason == "restarted after: exited with code 1"


def test_why_a_worker_was_restarted_is_forgotten_with_its_restarts():
    assert observe(after(*RUNNING, *ENDS, STABLE)[0]).reason == ""


def test_a_worker_that_was_given_up_is_left_alone():
    failed, _ = after(*REACHED[WorkerPhase.FAILED])
    for event in (Prepared(), Started(1), Ended(False, "x"), BACKOFF, RETRY, STABLE, StartFailed("x"), Wanted(MINE)):
        assert step(failed, event) == (failed, ())


def test_an_end_that_is_told_late_is_not_the_end_of_the_program_that_starts():
    """A program is watched from the moment on at which it runs: what is told before is of the one before."""
    starting, _ = after(Wanted(MINE), Prepared())
    assert step(starting, Ended(False, "of the one before")) == (starting, ())


# --- no longer wanted, or wanted otherwise


@every_phase
def test_a_slot_that_is_no_longer_wanted_is_stopped_removed_and_forgotten(phase):
    slot, commands = after(*REACHED[phase], Unwanted())
    assert slot.phase is WorkerPhase.STOPPING
    assert phase is WorkerPhase.STOPPING or commands[-1] == Stop(MINE)
    slot, commands = step(slot, Stopped())
    assert commands == (Remove(MINE),)
    assert step(slot, Removed())[1] == (Forget(),)


def test_stopping_cancels_what_would_start_the_worker_again():
    _, commands = after(*RUNNING, Ended(False, "x"), Unwanted())
    assert [command for command in commands if isinstance(command, CancelTimer)] == [
        CancelTimer("backoff"),
        CancelTimer("stable"),
        CancelTimer("retry"),
    ]


def test_a_slot_of_which_nothing_is_known_is_forgotten():
    assert after(Unwanted()) == (Slot(), (Forget(),))


@pytest.mark.parametrize("phase", [phase for phase in REACHED if phase is not WorkerPhase.STOPPING])
def test_a_newer_generation_replaces_what_is_there(phase):
    slot, commands = after(*REACHED[phase], Wanted(CHANGED))
    assert (slot.phase, slot.next, commands[-1]) == (WorkerPhase.STOPPING, CHANGED, Stop(MINE))
    slot, commands = step(slot, Stopped())
    assert (slot.phase, slot.assignment, slot.restarts) == (WorkerPhase.PREPARING, CHANGED, 0)
    assert commands == (Prepare(CHANGED),)


@every_phase
def test_an_older_generation_is_ignored(phase):
    slot, _ = after(*REACHED[phase])
    assert step(slot, Wanted(assignment(0, boot_file="old.py"))) == (slot, ())


def test_an_older_generation_does_not_replace_what_comes_next():
    slot, _ = after(*RUNNING, Wanted(assignment(3, boot_file="third.py")))
    assert step(slot, Wanted(CHANGED)) == (slot, ())


@pytest.mark.parametrize(
    "phase", [phase for phase in REACHED if phase not in {WorkerPhase.STOPPING, WorkerPhase.FAILED}]
)
def test_a_generation_that_changes_nothing_leaves_the_worker_alone(phase):
    """As when a task is paused."""
    slot, _ = after(*REACHED[phase])
    assert step(slot, Wanted(assignment(2))) == (replace(slot, assignment=assignment(2)), ())


def test_a_worker_that_was_given_up_is_tried_again_with_a_new_generation():
    slot, _ = after(*REACHED[WorkerPhase.FAILED], Wanted(assignment(2)), Stopped())
    assert slot.phase is WorkerPhase.PREPARING


def test_a_slot_that_is_wanted_again_while_it_stops_starts_again():
    slot, commands = after(*RUNNING, Unwanted(), Wanted(MINE), Stopped())
    assert (slot.phase, commands) == (WorkerPhase.PREPARING, (Prepare(MINE),))


def test_a_slot_that_is_wanted_again_while_it_is_removed_starts_again():
    slot, commands = after(*RUNNING, Unwanted(), Stopped(), Wanted(MINE), Removed())
    assert (slot.phase, commands) == (WorkerPhase.PREPARING, (Prepare(MINE),))


# --- finished

FINISHED = assignment(2, finished=True)


@pytest.mark.parametrize(
    "phase", [WorkerPhase.PREPARING, WorkerPhase.STARTING, WorkerPhase.RUNNING, WorkerPhase.BACKOFF]
)
def test_the_worker_of_a_finished_task_is_stopped_and_its_outputs_stay(phase):
    slot, commands = after(*REACHED[phase], Wanted(FINISHED))
    assert commands[-1] == Stop(MINE)
    assert step(slot, Stopped()) == (Slot(WorkerPhase.DONE, FINISHED), ())


@pytest.mark.parametrize("phase", [WorkerPhase.DONE, WorkerPhase.FAILED])
def test_what_has_ended_already_stays_as_it_is_when_the_task_is_finished(phase):
    slot, _ = after(*REACHED[phase])
    assert step(slot, Wanted(FINISHED)) == (replace(slot, assignment=FINISHED), ())


@pytest.mark.parametrize("start", [[], [*RUNNING, Unwanted(), Stopped()]], ids=["new", "being removed"])
def test_a_finished_slot_never_starts_a_program(start):
    slot, commands = after(*start, Wanted(FINISHED), Removed())
    assert (slot.phase, commands) == (WorkerPhase.DONE, ())


def test_a_finished_slot_is_removed_when_the_task_is():
    slot, _ = after(*RUNNING, Wanted(FINISHED), Stopped(), Unwanted(), Stopped())
    assert step(slot, Removed())[1] == (Forget(),)


# --- after a restart of the controller


@pytest.mark.parametrize(
    ("phase", "commands"),
    [
        (WorkerPhase.PREPARING, (Prepare(MINE),)),
        (WorkerPhase.STARTING, (Start(MINE, 0),)),
        (WorkerPhase.RUNNING, (Watch(MINE),)),
        (WorkerPhase.STOPPING, (Stop(MINE),)),
        (WorkerPhase.BACKOFF, ()),
        (WorkerPhase.DONE, ()),
        (WorkerPhase.FAILED, ()),
    ],
)
def test_what_a_slot_waits_for_is_asked_for_again(phase, commands):
    assert resume(after(*REACHED[phase])[0]) == commands


def test_a_slot_without_assignment_is_forgotten_at_a_restart():
    assert resume(Slot()) == (Forget(),)


def test_a_worker_that_was_adopted_is_not_told_of_twice():
    _, commands = after(*RUNNING, Started(7))
    assert (facts(commands), commands) == ([], (Watch(MINE),))


# --- what the coordinator is told


def test_a_slot_is_observed_as_it_is():
    found = observe(after(*RUNNING, Ended(False, "exited with code 1"))[0])
    assert found is not None
    assert (found.state, found.reason, found.restarts, found.generation) == ("Backoff", "exited with code 1", 0, 1)


def test_a_slot_without_assignment_is_not_observed():
    assert observe(Slot()) is None


# --- laws

ASSIGNMENTS = st.builds(
    assignment, st.integers(1, 3), boot_file=st.sampled_from(["main.py", "other.py"]), finished=st.booleans()
)
EVENTS: st.SearchStrategy[SlotEvent] = st.one_of(
    st.builds(Wanted, ASSIGNMENTS),
    st.builds(PrepareFailed, st.just("why"), st.sampled_from([None, 5.0])),
    st.builds(Ended, st.booleans(), st.just("why"), st.booleans()),
    st.builds(Started, st.integers(1, 2)),
    st.sampled_from([Unwanted(), Prepared(), StartFailed("why"), Stopped(), Removed(), BACKOFF, RETRY, STABLE]),
)
HISTORIES = st.lists(EVENTS, max_size=40)


@given(HISTORIES)
def test_an_event_delivered_twice_changes_nothing(history):
    slot = Slot()
    for event in history:
        slot, commands = step(slot, event)
        if Forget() in commands:
            slot = Slot()
            continue
        again, commands = step(slot, event)
        assert again == slot, event
        assert not facts(commands), event


@given(HISTORIES)
def test_the_drawing_of_the_phases_is_true(history):
    slot = Slot()
    for event in history:
        before, (slot, commands) = slot, step(slot, event)
        assert slot.phase is before.phase or slot.phase in TRANSITIONS[before.phase], event
        slot = Slot() if Forget() in commands else slot


@given(HISTORIES)
def test_a_program_is_started_only_when_the_one_before_has_ended(history):
    """The shell answers each command once, in order; whatever else is said in between."""
    slot, running = Slot(), False
    for event in history:
        before = slot
        slot, commands = step(slot, event)
        if isinstance(event, Started) and before.phase is WorkerPhase.STARTING:
            running = True
        if isinstance(event, Stopped) or (isinstance(event, Ended) and before.phase is WorkerPhase.RUNNING):
            running = False
        if any(isinstance(command, Start) for command in commands):
            assert not running
        slot = Slot() if Forget() in commands else slot


@given(HISTORIES)
def test_restarts_never_exceed_their_limit(history):
    slot = Slot()
    for event in history:
        slot, commands = step(slot, event)
        assert slot.restarts <= MAX_RESTARTS
        slot = Slot() if Forget() in commands else slot


@settings(deadline=None)
@given(HISTORIES)
def test_a_slot_survives_its_store(history):
    slot = Slot()
    for event in history:
        slot, _ = MACHINE.step(slot, event)
    assert value_of(Slot, msgpack.unpackb(msgpack.packb(body_of(slot)))) == slot


ANSWERS = {
    Prepare: [Prepared()],
    Start: [Started(9)],
    Watch: [Ended(True, "finished")],
    Stop: [Stopped()],
    Remove: [Removed()],
}


@given(HISTORIES, st.integers(0, 12))
def test_a_restart_at_any_moment_ends_where_the_slot_would_have_ended(history, moment):
    """What was under way is lost with the controller, and asked for again."""
    slot = Slot()
    for event in history:
        slot, commands = step(slot, event)
        slot = Slot() if Forget() in commands else slot

    def settled(slot: Slot, crash_at: int) -> Slot:
        waiting = list(resume(slot)) + [SetTimer("backoff", 1)] * (slot.phase is WorkerPhase.BACKOFF)
        for turn in range(100):
            if turn == crash_at:
                waiting = list(resume(slot)) + [command for command in waiting if isinstance(command, SetTimer)]
            if not waiting:
                return slot
            command = waiting.pop(0)
            answers = [TimerFired(command.name)] if isinstance(command, SetTimer) else ANSWERS.get(type(command), [])
            for answer in answers:
                slot, commands = step(slot, answer)
                waiting += commands
                if Forget() in commands:
                    return Slot()
        raise AssertionError(slot)

    assert settled(slot, moment) == settled(slot, -1)
