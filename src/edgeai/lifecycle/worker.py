"""One slot of a node: the life of one worker as its controller sees it.

    PREPARING -> STARTING -> RUNNING -> DONE
                 STARTING, RUNNING -> BACKOFF -> STARTING
    PREPARING, STARTING, RUNNING -> FAILED               (given up; the reason says what to do)
    any -> STOPPING -> removed                           (no longer wanted)
           STOPPING -> PREPARING                         (what is wanted has changed)
           STOPPING -> DONE                              (the task is finished: log and outputs stay)

`TRANSITIONS` is this drawing for programs; NEW is a slot of which nothing is known yet. A change of the generation alone, as
when a task is paused, leaves a worker alone; one that was given up is tried again. A train or eval worker that ends with an
error is given up at once: its stage tries again, with a new run (`lifecycle.stage`).

The machine knows nothing of processes, files or buses: the controller performs its commands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from edgeai.events.catalogue import (
    SERVICE_ROLES,
    Assignment,
    Role,
    WorkerEnded,
    WorkerFailed,
    WorkerObserved,
    WorkerStarted,
)
from edgeai.lifecycle.base import CancelTimer, Command, Emit, Forget, Machine, SetTimer, Step, TimerFired

MAX_RESTARTS = 4
"""Of a worker that is given up then. One of a service is not: it is tried again for ever, every LAST_BACKOFF_S at least."""
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.5, 30.0
STABLE_S = 120.0
"""A worker that ran this long has its restarts forgiven."""
_BACKOFF, _STABLE, _RETRY = "backoff", "stable", "retry"
_TRIED_BY_STAGE = frozenset({Role.TRAIN, Role.EVAL})
"""Whose errors are counted, and tried again, by the stage that they work for."""


class WorkerPhase(StrEnum):
    NEW = "New"
    PREPARING = "Preparing"
    STARTING = "Starting"
    RUNNING = "Running"
    BACKOFF = "Backoff"
    STOPPING = "Stopping"
    DONE = "Done"
    FAILED = "Failed"


TRANSITIONS: dict[WorkerPhase, frozenset[WorkerPhase]] = {
    WorkerPhase.NEW: frozenset({WorkerPhase.PREPARING, WorkerPhase.DONE}),
    WorkerPhase.PREPARING: frozenset({WorkerPhase.STARTING, WorkerPhase.FAILED, WorkerPhase.STOPPING}),
    WorkerPhase.STARTING: frozenset(
        {WorkerPhase.RUNNING, WorkerPhase.BACKOFF, WorkerPhase.FAILED, WorkerPhase.STOPPING}
    ),
    WorkerPhase.RUNNING: frozenset({WorkerPhase.DONE, WorkerPhase.BACKOFF, WorkerPhase.FAILED, WorkerPhase.STOPPING}),
    WorkerPhase.BACKOFF: frozenset({WorkerPhase.STARTING, WorkerPhase.STOPPING}),
    WorkerPhase.STOPPING: frozenset({WorkerPhase.PREPARING, WorkerPhase.DONE}),
    WorkerPhase.DONE: frozenset({WorkerPhase.STOPPING}),
    WorkerPhase.FAILED: frozenset({WorkerPhase.STOPPING}),
}


@dataclass(frozen=True, slots=True)
class Slot:
    """`next`: what the slot becomes when it has stopped; None: it is removed. `last_end`: why it was last restarted.

    `dataset` and `samples`: digest and number of examples of what a training worker was prepared with.
    """

    phase: WorkerPhase = WorkerPhase.NEW
    assignment: Assignment | None = None
    next: Assignment | None = None
    restarts: int = 0
    reason: str = ""
    pid: int = 0
    token: str = ""
    last_end: str = ""
    dataset: str = ""
    samples: int = 0


# --- events


@dataclass(frozen=True, slots=True)
class Wanted:
    """The desired document has this slot."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Unwanted:
    """The desired document no longer has this slot."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Digest and number of examples of the dataset, as far as there is one that must not change."""

    dataset: str = ""
    samples: int = 0


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    """`retry_s`: it may work later (something does not arrive yet); None: somebody has to change something."""

    reason: str
    retry_s: float | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """`token` is the digest of the token of this run."""

    pid: int
    token: str = ""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """`retry_s`: nothing is wrong with the worker (what starts it is away): try again then, and do not count it."""

    reason: str
    retry_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The program ended. `complete`: its work was finished and settled. `by_itself`: no hand from outside has ended it."""

    complete: bool
    reason: str
    by_itself: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nothing of the program runs any more."""


@dataclass(frozen=True, slots=True)
class Removed:
    """The slot directory is gone."""


# --- commands


@dataclass(frozen=True, slots=True)
class Prepare(Command):
    """Bring script and dataset; answers Prepared or PrepareFailed."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Start(Command):
    """Start the program, or adopt it if it runs; answers Started or StartFailed, later Ended."""

    assignment: Assignment
    attempt: int


@dataclass(frozen=True, slots=True)
class Watch(Command):
    """Wait for the end of a program that was started; answers Ended."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Stop(Command):
    """Stop the program, if any; answers Stopped."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Remove(Command):
    """Remove the slot directory; answers Removed."""

    assignment: Assignment


SlotEvent = (
    Wanted | Unwanted | Prepared | PrepareFailed | Started | StartFailed | Ended | Stopped | Removed | TimerFired
)


def step(slot: Slot, event: SlotEvent) -> Step[Slot]:
    """Advance one slot. Never raises on late or repeated events."""
    phase, assignment = slot.phase, slot.assignment
    match event:
        case Wanted(assignment=wanted):
            return _wanted(slot, wanted)
        case Unwanted() if assignment is None:
            return slot, (Forget(),)
        case Unwanted() if phase is not WorkerPhase.STOPPING:
            return _stop(slot, None)
        case Unwanted() if phase is WorkerPhase.STOPPING:
            return replace(slot, next=None), ()
        case Stopped() if phase is WorkerPhase.STOPPING and assignment is not None:
            if slot.next is None:
                return slot, (Remove(assignment),)
            return _become(slot.next)
        case Removed() if phase is WorkerPhase.STOPPING:
            return (slot, (Forget(),)) if slot.next is None else _become(slot.next)
        case Prepared(dataset=dataset, samples=samples) if phase is WorkerPhase.PREPARING and assignment is not None:
            return _start(replace(slot, dataset=dataset, samples=samples), assignment)
        case PrepareFailed(reason=reason, retry_s=retry_s) if phase is WorkerPhase.PREPARING:
            if retry_s is not None:
                return replace(slot, reason=reason), (SetTimer(_RETRY, retry_s),)
            return _give_up(slot, reason)
        case TimerFired(name="retry") if phase is WorkerPhase.PREPARING and assignment is not None:
            return slot, (Prepare(assignment),)
        case Started(pid=pid, token=token) if (
            phase in {WorkerPhase.STARTING, WorkerPhase.RUNNING} and assignment is not None
        ):
            running = replace(slot, phase=WorkerPhase.RUNNING, pid=pid, token=token, reason="")
            watch: tuple[Command, ...] = (Watch(assignment),)
            if phase is WorkerPhase.RUNNING and slot.pid == pid:
                return running, watch
            fact = WorkerStarted(assignment.task_uid, assignment.role, pid)
            return running, (Emit(fact, assignment.task, assignment.worker), SetTimer(_STABLE, STABLE_S), *watch)
        case StartFailed(reason=reason, retry_s=retry_s) if phase is WorkerPhase.STARTING:
            if retry_s is not None:
                return replace(slot, reason=reason), (SetTimer(_RETRY, retry_s),)
            return _give_up(slot, reason) if _is_tried_by_stage(slot) else _backoff(slot, reason)
        case TimerFired(name="retry") if phase is WorkerPhase.STARTING and assignment is not None:
            return slot, (Start(assignment, slot.restarts),)
        case Ended() if phase is WorkerPhase.RUNNING:
            return _ended(slot, event)
        case TimerFired(name="backoff") if phase is WorkerPhase.BACKOFF and assignment is not None:
            return _start(replace(slot, restarts=slot.restarts + 1), assignment)
        case TimerFired(name="stable") if phase is WorkerPhase.RUNNING:
            return replace(slot, restarts=0, last_end=""), ()
    return slot, ()


def resume(slot: Slot) -> tuple[Command, ...]:
    """What a slot waits for; repeated after a restart of the controller (timers are restored by the reactor)."""
    assignment = slot.assignment
    if assignment is None:
        return (Forget(),)
    match slot.phase:
        case WorkerPhase.PREPARING:
            return (Prepare(assignment),)
        case WorkerPhase.STARTING:
            return (Start(assignment, slot.restarts),)
        case WorkerPhase.RUNNING:
            return (Watch(assignment),)
        case WorkerPhase.STOPPING:
            return (Stop(assignment),)
        case _:
            return ()


def observe(slot: Slot) -> WorkerObserved | None:
    """The slot as the coordinator is told of it."""
    mine = slot.assignment
    if mine is None:
        return None
    return WorkerObserved(
        task=mine.task,
        task_uid=mine.task_uid,
        worker=mine.worker,
        role=mine.role,
        generation=mine.generation,
        state=slot.phase.value,
        reason=_reason(slot),
        restarts=slot.restarts,
        pid=slot.pid,
        token=slot.token if slot.phase is WorkerPhase.RUNNING else "",
        dataset=slot.dataset,
        samples=slot.samples,
    )


def _reason(slot: Slot) -> str:
    """Also of a worker that runs again, until its restarts are forgiven."""
    if slot.phase is WorkerPhase.RUNNING and slot.restarts and slot.last_end:
        return f"restarted after: {slot.last_end}"
    return slot.reason


def _wanted(slot: Slot, wanted: Assignment) -> Step[Slot]:
    mine = slot.assignment
    if mine is None:
        return _become(wanted)
    known = max(mine.generation, slot.next.generation if slot.next else 0)
    if wanted.generation < known:
        return slot, ()
    if slot.phase is WorkerPhase.STOPPING:
        return replace(slot, next=wanted), ()
    if wanted == mine:
        return slot, ()
    if replace(wanted, generation=mine.generation) == mine and slot.phase is not WorkerPhase.FAILED:
        return replace(slot, assignment=wanted), ()
    if wanted.finished and slot.phase in {WorkerPhase.DONE, WorkerPhase.FAILED}:
        return replace(slot, assignment=wanted), ()
    return _stop(slot, wanted)


def _become(assignment: Assignment) -> Step[Slot]:
    """What a slot does when nothing of another program is left in it."""
    if assignment.finished:
        return Slot(WorkerPhase.DONE, assignment), ()
    return Slot(WorkerPhase.PREPARING, assignment), (Prepare(assignment),)


def _start(slot: Slot, assignment: Assignment) -> Step[Slot]:
    return replace(slot, phase=WorkerPhase.STARTING, pid=0), (Start(assignment, slot.restarts),)


def _stop(slot: Slot, following: Assignment | None) -> Step[Slot]:
    assert slot.assignment is not None
    timers = (CancelTimer(_BACKOFF), CancelTimer(_STABLE), CancelTimer(_RETRY))
    stopping = replace(slot, phase=WorkerPhase.STOPPING, next=following, reason="")
    return stopping, (*timers, Stop(slot.assignment))


def _is_tried_by_stage(slot: Slot) -> bool:
    return slot.assignment is not None and slot.assignment.role in _TRIED_BY_STAGE


def _ended(slot: Slot, end: Ended) -> Step[Slot]:
    assignment, complete, reason = slot.assignment, end.complete, end.reason
    assert assignment is not None
    told = Emit(WorkerEnded(assignment.task_uid, assignment.role, complete, reason), assignment.task, assignment.worker)
    if complete and assignment.role not in SERVICE_ROLES:
        done = replace(slot, phase=WorkerPhase.DONE, reason="", pid=0)
        return done, (told, CancelTimer(_STABLE))
    given_up = end.by_itself and _is_tried_by_stage(slot)
    state, commands = _give_up(slot, reason) if given_up else _backoff(slot, reason)
    return state, (told, CancelTimer(_STABLE), *commands)


def _backoff(slot: Slot, reason: str) -> Step[Slot]:
    lasting = slot.assignment is not None and slot.assignment.role in SERVICE_ROLES
    if slot.restarts >= MAX_RESTARTS and not lasting:
        often = "" if _is_tried_by_stage(slot) else f" (given up after {slot.restarts} restarts)"
        return _give_up(slot, f"{reason}{often}")
    delay = min(FIRST_BACKOFF_S * 2 ** min(slot.restarts, 10), LAST_BACKOFF_S)
    waiting = replace(slot, phase=WorkerPhase.BACKOFF, reason=reason, last_end=reason, pid=0)
    return waiting, (SetTimer(_BACKOFF, delay),)


def _give_up(slot: Slot, reason: str) -> Step[Slot]:
    assignment = slot.assignment
    assert assignment is not None
    fact = WorkerFailed(assignment.task_uid, assignment.role, reason)
    failed = replace(slot, phase=WorkerPhase.FAILED, reason=reason, pid=0)
    return failed, (Emit(fact, assignment.task, assignment.worker),)


MACHINE = Machine(Slot, lambda _key: Slot(), step, resume)
