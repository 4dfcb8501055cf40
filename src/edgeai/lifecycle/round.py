"""The rounds of a federated task, as the aggregation worker runs them.

    WAITING -> OPEN -> CLOSING -> OPEN ...
               OPEN -> RETRYING -> OPEN                     (not enough updates: the same round, the next attempt)
               OPEN -> FINISHING -> ENDED
    WAITING, CLOSING, RETRYING -> PAUSED -> OPEN            (a round is closed before a pause begins)

`TRANSITIONS` is this drawing for programs.

Round 0 exists only for a model without a version: the first worker by name is asked for its initial weights. Rounds 1 to N
train; each also asks for an evaluation of the model it starts from when that model's round is to be validated. Round N + 1
only validates. The machine decides who is asked, which update counts, when a round closes and what happens next; arrays,
files and messages are its shell's (worker.aggregation).

A worker that leaves a round without an update abstains: it has answered, and has no part in the mean. So does one that only
evaluates. An update counts once per (task uid, round, worker). Late, repeated and foreign offers get a verdict with a reason.
Between two attempts of a round there is no verdict on its offers: they are repeated, and fit the next attempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from edgeai.events.catalogue import (
    MAX_EXAMPLES,
    Abstention,
    BlobRef,
    Evaluation,
    Membership,
    Offer,
    Outcome,
    Report,
    RoundClosed,
    RoundMissed,
    RoundPlan,
    RoundRecord,
    RoundStarted,
    RoundValidated,
    TrainingCompleted,
    UpdateRefused,
    Verdict,
    WorkerJoined,
)
from edgeai.learning.aggregation import weighted_metrics
from edgeai.lifecycle.base import CancelTimer, Command, Emit, Machine, SetTimer, Step, TimerFired

JOIN_GRACE_S = 60.0
"""How long round 1 waits for the remaining workers once `min node number` have joined."""
MAX_RETRY_S = 60.0
TARGET_METRIC = "accuracy"
MAX_METRICS, MAX_METRIC_NAME = 200, 200
_DEADLINE, _JOIN, _RETRY = "deadline", "join", "retry"


class JobPhase(StrEnum):
    WAITING = "waiting"
    OPEN = "open"
    CLOSING = "closing"
    RETRYING = "retrying"
    PAUSED = "paused"
    FINISHING = "finishing"
    ENDED = "ended"


_BETWEEN_ATTEMPTS = frozenset({JobPhase.RETRYING, JobPhase.PAUSED})
TRANSITIONS: dict[JobPhase, frozenset[JobPhase]] = {
    JobPhase.WAITING: frozenset({JobPhase.OPEN, JobPhase.PAUSED}),
    JobPhase.OPEN: frozenset({JobPhase.CLOSING, JobPhase.RETRYING, JobPhase.FINISHING}),
    JobPhase.CLOSING: frozenset({JobPhase.OPEN, JobPhase.PAUSED}),
    JobPhase.RETRYING: frozenset({JobPhase.OPEN, JobPhase.PAUSED}),
    JobPhase.PAUSED: frozenset({JobPhase.OPEN}),
    JobPhase.FINISHING: frozenset({JobPhase.ENDED}),
    JobPhase.ENDED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Counted:
    """An update that was verified and counts."""

    digest: str
    size_bytes: int
    num_examples: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    """The state of all rounds of one task. Dictionaries are keyed by worker name and never changed in place."""

    task: str
    task_uid: str
    plan: RoundPlan
    phase: JobPhase = JobPhase.WAITING
    number: int = 0
    attempt: int = 1
    base: BlobRef | None = None
    joined: tuple[str, ...] = ()
    available: tuple[str, ...] | None = None
    failed: dict[str, str] = field(default_factory=dict)
    paused: bool = False
    grace: bool = False
    """enough have joined, and the rest is waited for a little longer"""
    asked: tuple[str, ...] = ()
    collecting: dict[str, Offer] = field(default_factory=dict)
    updates: dict[str, Counted] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    abstained: tuple[str, ...] = ()
    evaluations: dict[str, Evaluation | None] = field(default_factory=dict)
    previous: dict[str, str] = field(default_factory=dict)
    """worker -> digest of the update that counted in the round before"""
    validated: bool = False
    """the evaluation of the base has been recorded"""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def train(self) -> bool:
        return self.number <= self.plan.rounds

    @property
    def validate(self) -> bool:
        before = self.number - 1
        if before < 1 or self.validated:
            return False
        return not self.train or before % self.plan.rounds_between_validations == 0

    @property
    def quorum(self) -> int:
        return 1 if self.number == 0 else self.plan.min_node_number


# --- events


@dataclass(frozen=True, slots=True)
class Began:
    """The aggregation worker runs, perhaps again: the plan as it is now; the base model, or None: it is asked for."""

    base: BlobRef | None
    plan: RoundPlan


@dataclass(frozen=True, slots=True)
class Joined:
    worker: str


@dataclass(frozen=True, slots=True)
class Offered:
    worker: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Reported:
    worker: str
    report: Report


@dataclass(frozen=True, slots=True)
class Abstained:
    worker: str
    abstention: Abstention


@dataclass(frozen=True, slots=True)
class UpdateVerified:
    """The blob is here, whole, and fits the base model."""

    worker: str
    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    worker: str
    number: int
    digest: str
    reason: str


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The outcome of a round is fixed."""

    record: RoundRecord


@dataclass(frozen=True, slots=True)
class ModelStored:
    """The finished model is in the object store."""


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    membership: Membership


# --- commands


@dataclass(frozen=True, slots=True)
class Announce(Command):
    """Send the round as it stands to every node of the task."""


@dataclass(frozen=True, slots=True)
class Collect(Command):
    """Pull and check the blob of an offer; answers UpdateVerified or UpdateRejected."""

    worker: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Tell(Command):
    worker: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Aggregate(Command):
    """Compute the round's model from the counted updates and fix its outcome; answers Aggregated."""

    number: int


@dataclass(frozen=True, slots=True)
class Finish(Command):
    """Put the model into the object store; answers ModelStored."""

    base: BlobRef


JobEvent = (
    Began
    | Joined
    | Offered
    | Reported
    | Abstained
    | UpdateVerified
    | UpdateRejected
    | Aggregated
    | ModelStored
    | MembershipChanged
    | TimerFired
)


def step(job: Job, event: JobEvent) -> Step[Job]:
    """Advance the rounds. Never raises on late, repeated or foreign events."""
    match event:
        case Began(base=base, plan=plan):
            state, commands = _maybe_begin(replace(job, plan=plan, base=job.base or base))
            return state, (commands if commands else (Announce(),))
        case Joined(worker=worker) if worker in _members(job) and worker not in job.joined:
            joined = replace(job, joined=tuple(sorted({*job.joined, worker})))
            told = Emit(WorkerJoined(job.task_uid, worker), job.task, worker)
            begin = _maybe_begin if job.phase is JobPhase.WAITING else _maybe_widen
            state, commands = begin(joined)
            return state, (told, *commands)
        case MembershipChanged(membership=membership):
            return _membership(job, membership)
        case Offered(worker=worker, offer=offer):
            return _offered(job, worker, offer)
        case Reported(worker=worker, report=report):
            return _reported(job, worker, report)
        case Abstained(worker=worker, abstention=abstention):
            return _abstained(job, worker, abstention)
        case UpdateVerified(worker=worker, number=number, digest=digest):
            return _verified(job, worker, number, digest)
        case UpdateRejected(worker=worker, number=number, digest=digest, reason=reason):
            return _rejected(job, worker, number, digest, reason)
        case Aggregated(record=record) if job.phase is JobPhase.CLOSING and record.number == job.number:
            return _aggregated(job, record)
        case ModelStored() if job.phase is JobPhase.FINISHING and job.base is not None:
            done = TrainingCompleted(
                job.task_uid, job.base.digest, job.base.size_bytes, max(job.number - 1, 0), job.metrics
            )
            return replace(job, phase=JobPhase.ENDED), (Emit(done, job.task), Announce())
        case TimerFired(name="deadline") if job.phase is JobPhase.OPEN:
            return _close(job)
        case TimerFired(name="join") if job.phase is JobPhase.WAITING:
            return _open(job) if _enough(job) else (replace(job, grace=False), ())
        case TimerFired(name="retry") if job.phase is JobPhase.RETRYING:
            return _open(job)
    return job, ()


def resume(job: Job) -> tuple[Command, ...]:
    """What the rounds wait for, repeated after a restart of the aggregation worker."""
    match job.phase:
        case JobPhase.OPEN:
            return (Announce(), *(Collect(worker, offer) for worker, offer in sorted(job.collecting.items())))
        case JobPhase.CLOSING:
            return (Announce(), Aggregate(job.number))
        case JobPhase.FINISHING if job.base is not None:
            return (Announce(), Finish(job.base))
        case JobPhase.RETRYING | JobPhase.PAUSED | JobPhase.ENDED:
            return (Announce(),)
        case _:
            return ()


def _members(job: Job) -> tuple[str, ...]:
    return tuple(sorted(member.worker for member in job.plan.members))


def _present(job: Job) -> tuple[str, ...]:
    """Who can be asked now: joined, not failed, not silent."""
    return tuple(
        worker
        for worker in job.joined
        if worker not in job.failed and (job.available is None or worker in job.available)
    )


def _enough(job: Job) -> bool:
    return len(_present(job)) >= job.plan.min_node_number


def _maybe_begin(job: Job) -> Step[Job]:
    """Open the first round when everybody who can come is here; start the grace when enough are."""
    if job.phase is not JobPhase.WAITING:
        return job, ()
    if not _enough(job):
        return job, ()
    if len(_present(job)) == len([worker for worker in _members(job) if worker not in job.failed]):
        return _open(job)
    if job.grace:
        return job, ()
    return replace(job, grace=True), (SetTimer(_JOIN, min(JOIN_GRACE_S, job.plan.round_deadline_s)),)


def _open(job: Job) -> Step[Job]:
    """Ask everybody who is present and has not answered this round yet."""
    if job.paused:
        return replace(job, phase=JobPhase.PAUSED, grace=False), (CancelTimer(_JOIN),)
    number = job.number if job.base is None else max(job.number, 1)
    job = replace(job, number=number)
    present = _present(job)
    asked = tuple(sorted({*present, *job.updates})) if number else present[:1]
    opened = replace(job, phase=JobPhase.OPEN, grace=False, asked=asked, collecting={}, refused={}, abstained=())
    started = RoundStarted(job.task_uid, number, job.attempt, asked, job.train)
    return opened, (
        CancelTimer(_JOIN),
        SetTimer(_DEADLINE, job.plan.round_deadline_s),
        Emit(started, job.task),
        Announce(),
    )


def _membership(job: Job, membership: Membership) -> Step[Job]:
    changed = replace(job, available=membership.available, failed=dict(membership.failed), paused=membership.paused)
    if changed.phase is JobPhase.PAUSED and not changed.paused:
        return _open(changed)
    if changed.phase is JobPhase.WAITING:
        return _maybe_begin(changed)
    return _maybe_widen(changed)


def _maybe_widen(job: Job) -> Step[Job]:
    """Ask those who came back as well, when those asked so far are too few."""
    newcomers = [worker for worker in _present(job) if worker not in job.asked]
    training = len(job.asked) - len(job.abstained)
    if job.phase is not JobPhase.OPEN or not newcomers or training >= job.quorum:
        return _maybe_close(job)
    count = len(newcomers) if job.number else 1
    widened = replace(job, asked=tuple(sorted({*job.asked, *newcomers[:count]})))
    started = RoundStarted(job.task_uid, job.number, job.attempt, widened.asked, job.train)
    return widened, (Emit(started, job.task), Announce())


def _offered(job: Job, worker: str, offer: Offer) -> Step[Job]:
    digest = offer.blob.digest
    counted = job.updates.get(worker)
    if offer.task_uid != job.task_uid:
        return job, (_tell(worker, offer, Outcome.REFUSED, "this is another task's update"),)
    if counted is not None and offer.number == job.number:
        same = counted.digest == digest
        return job, (_tell(worker, offer, Outcome.DUPLICATE, "" if same else "another update of this round counts"),)
    if offer.number == job.number - 1 and job.previous.get(worker) == digest:
        return job, (_tell(worker, offer, Outcome.DUPLICATE, ""),)
    if offer.number == job.number and job.phase in _BETWEEN_ATTEMPTS:
        return job, ()
    if offer.number != job.number or job.phase is not JobPhase.OPEN or not job.train:
        return job, (_tell(worker, offer, Outcome.STALE, f"round {offer.number} is closed"),)
    if worker not in job.asked:
        return job, (_tell(worker, offer, Outcome.REFUSED, f"{worker} was not asked in round {offer.number}"),)
    if worker in job.refused:
        return job, (_tell(worker, offer, Outcome.REFUSED, job.refused[worker]),)
    if offer.base_digest != (job.base.digest if job.base else ""):
        return _refuse(job, worker, offer, "the update was trained on another model than the round's")
    if (problem := _implausible(offer.metrics, offer.num_examples)) is not None:
        return _refuse(job, worker, offer, problem)
    under_way = job.collecting.get(worker)
    if under_way is not None and under_way.blob.digest == digest:
        return job, ()
    job = _heard(job, worker, offer.report)
    if worker in job.abstained:
        job = replace(job, abstained=tuple(name for name in job.abstained if name != worker))
    kept = replace(offer, blob=replace(offer.blob, inline=None))
    return replace(job, collecting={**job.collecting, worker: kept}), (Collect(worker, offer),)


def _reported(job: Job, worker: str, report: Report) -> Step[Job]:
    def tell(outcome: Outcome, reason: str = "") -> Tell:
        return Tell(worker, Verdict(report.task_uid, report.number, "report", outcome, reason=reason))

    if report.task_uid != job.task_uid:
        return job, (tell(Outcome.REFUSED, "this is another task's report"),)
    if report.number == job.number and job.phase in _BETWEEN_ATTEMPTS:
        return job, ()
    if report.number != job.number or job.phase is not JobPhase.OPEN or not job.validate:
        return job, (tell(Outcome.STALE, f"round {report.number} no longer asks"),)
    if worker not in job.asked:
        return job, (tell(Outcome.REFUSED, f"{worker} was not asked in round {report.number}"),)
    if report.base_digest != (job.base.digest if job.base else ""):
        return job, (tell(Outcome.REFUSED, "another model than the round's was evaluated"),)
    if worker in job.evaluations:
        return job, (tell(Outcome.DUPLICATE),)
    if report.evaluation is not None and _is_wrong(report.evaluation):
        # It counts as declined: nobody waits for another one.
        state, commands = _maybe_close(replace(job, evaluations={**job.evaluations, worker: None}))
        return state, (tell(Outcome.REFUSED, "not a plausible evaluation"), *commands)
    heard = replace(job, evaluations={**job.evaluations, worker: report.evaluation})
    state, commands = _maybe_close(heard)
    return state, (tell(Outcome.COUNTED), *commands)


def _abstained(job: Job, worker: str, abstention: Abstention) -> Step[Job]:
    def tell(outcome: Outcome, reason: str = "") -> Tell:
        verdict = Verdict(abstention.task_uid, abstention.number, abstention.kind, outcome, reason=reason)
        return Tell(worker, verdict)

    if abstention.task_uid != job.task_uid:
        return job, (tell(Outcome.REFUSED, "this is another task's round"),)
    if abstention.number == job.number and job.phase in _BETWEEN_ATTEMPTS:
        return job, ()
    if abstention.number != job.number or job.phase is not JobPhase.OPEN or not job.train:
        return job, (tell(Outcome.STALE, f"round {abstention.number} is closed"),)
    if worker not in job.asked:
        return job, (tell(Outcome.REFUSED, f"{worker} was not asked in round {abstention.number}"),)
    if abstention.base_digest != (job.base.digest if job.base else ""):
        return job, (tell(Outcome.REFUSED, "another model than the round's was looked at"),)
    if worker in job.abstained or worker in job.collecting or _answered(job, worker):
        return job, (tell(Outcome.DUPLICATE),)
    heard = _heard(job, worker, abstention.report)
    state, commands = _maybe_widen(replace(heard, abstained=tuple(sorted({*job.abstained, worker}))))
    return state, (tell(Outcome.COUNTED), *commands)


def _heard(job: Job, worker: str, report: Evaluation | None) -> Job:
    """With the evaluation that came along with an offer or an abstention, unless there is one."""
    if not job.validate or worker in job.evaluations or report is None or _is_wrong(report):
        return job
    return replace(job, evaluations={**job.evaluations, worker: report})


def _verified(job: Job, worker: str, number: int, digest: str) -> Step[Job]:
    offer = job.collecting.get(worker)
    if job.phase is not JobPhase.OPEN or number != job.number or offer is None or offer.blob.digest != digest:
        return job, ()
    left = {name: other for name, other in job.collecting.items() if name != worker}
    counted = Counted(digest, offer.blob.size_bytes, offer.num_examples, offer.metrics)
    state, commands = _maybe_close(replace(job, collecting=left, updates={**job.updates, worker: counted}))
    return state, (_tell(worker, offer, Outcome.COUNTED, ""), *commands)


def _rejected(job: Job, worker: str, number: int, digest: str, reason: str) -> Step[Job]:
    offer = job.collecting.get(worker)
    if job.phase is not JobPhase.OPEN or number != job.number or offer is None or offer.blob.digest != digest:
        return job, ()
    return _refuse(job, worker, offer, reason)


def _refuse(job: Job, worker: str, offer: Offer, reason: str) -> Step[Job]:
    left = {name: other for name, other in job.collecting.items() if name != worker}
    state, commands = _maybe_close(replace(job, collecting=left, refused={**job.refused, worker: reason}))
    fact = UpdateRefused(job.task_uid, offer.number, worker, reason)
    return state, (_tell(worker, offer, Outcome.REFUSED, reason), Emit(fact, job.task, worker), *commands)


def _maybe_close(job: Job) -> Step[Job]:
    """Close when all who were asked have answered, or when the target is reached before they have.

    When nobody was asked, or all have done their part and their updates are too few, it stays open for those who come back.
    """
    if job.phase is not JobPhase.OPEN or not job.asked:
        return job, ()
    if job.validate and _target_reached(job):
        return _finish(_with_evaluations(job))
    waiting = [worker for worker in job.asked if not _answered(job, worker)]
    missed = job.train and len(job.updates) < job.quorum
    if waiting or (missed and all(worker in job.updates or worker in job.abstained for worker in job.asked)):
        return job, ()
    return _close(job)


def _answered(job: Job, worker: str) -> bool:
    if worker in job.failed or worker in job.refused:
        return True
    if job.train:
        return worker in job.updates or worker in job.abstained
    return worker in job.evaluations


def _target_reached(job: Job) -> bool:
    """The target counts only when everybody who can answer has evaluated."""
    target = job.plan.target_accuracy
    if target is None or any(worker not in job.evaluations and worker not in job.failed for worker in job.asked):
        return False
    return _evaluated(job).get(TARGET_METRIC, -1.0) >= target


def _evaluated(job: Job) -> dict[str, float]:
    given = [found for _, found in sorted(job.evaluations.items()) if found is not None]
    return weighted_metrics([(found.metrics, found.num_examples) for found in given])


def _with_evaluations(job: Job) -> tuple[Job, tuple[Command, ...]]:
    """Record the evaluation of the base once."""
    metrics = _evaluated(job) if job.validate else {}
    if not metrics:
        return job, ()
    examples = sum(found.num_examples for found in job.evaluations.values() if found is not None)
    fact = RoundValidated(job.task_uid, job.number - 1, metrics, examples)
    return replace(job, validated=True, metrics=metrics), (Emit(fact, job.task),)


def _finish(validated: tuple[Job, tuple[Command, ...]]) -> Step[Job]:
    job, commands = validated
    assert job.base is not None
    ended = replace(job, phase=JobPhase.FINISHING, collecting={})
    return ended, (*commands, CancelTimer(_DEADLINE), Announce(), Finish(job.base))


def _close(job: Job) -> Step[Job]:
    """All answered, or the deadline passed: aggregate, finish, or try again."""
    if not job.train:
        return _finish(_with_evaluations(job))
    if len(job.updates) >= job.quorum:
        return replace(job, phase=JobPhase.CLOSING, collecting={}), (
            CancelTimer(_DEADLINE),
            Announce(),
            Aggregate(job.number),
        )
    heard = {*job.updates, *job.refused, *job.abstained}
    missing = [worker for worker in job.asked if worker not in heard]
    parts = [f"{len(job.updates)} of at least {job.quorum} updates arrived in round {job.number}"]
    parts += [f"no update from {', '.join(missing)}"] if missing else []
    parts += [f"{', '.join(job.abstained)} left the round without one"] if job.abstained else []
    parts += [f"{worker}: {why}" for worker, why in sorted({**job.failed, **job.refused}.items())]
    fact = RoundMissed(job.task_uid, job.number, job.attempt, "; ".join(parts))
    again = replace(job, phase=JobPhase.RETRYING, attempt=job.attempt + 1, collecting={})
    delay = min(2.0 ** min(job.attempt - 1, 10), MAX_RETRY_S)
    return again, (CancelTimer(_DEADLINE), Emit(fact, job.task), Announce(), SetTimer(_RETRY, delay))


def _aggregated(job: Job, record: RoundRecord) -> Step[Job]:
    job, validated = _with_evaluations(job)
    following = replace(
        job,
        number=job.number + 1,
        attempt=1,
        base=BlobRef(record.model_digest, record.model_size_bytes),
        previous={worker: counted.digest for worker, counted in job.updates.items()},
        updates={},
        refused={},
        evaluations={},
        validated=False,
    )
    state, commands = _open(following)
    return state, (*validated, Emit(RoundClosed(job.task_uid, record), job.task), *commands)


def _implausible(metrics: Mapping[str, float], num_examples: int) -> str | None:
    if not 1 <= num_examples <= MAX_EXAMPLES:
        return f"{num_examples} is not a plausible number of examples"
    if len(metrics) > MAX_METRICS or any(len(name) > MAX_METRIC_NAME for name in metrics):
        return f"more than {MAX_METRICS} metrics, or a name of more than {MAX_METRIC_NAME} characters"
    return None


def _is_wrong(evaluation: Evaluation) -> bool:
    return _implausible(evaluation.metrics, evaluation.num_examples) is not None


def _tell(worker: str, offer: Offer, outcome: Outcome, reason: str) -> Tell:
    return Tell(worker, Verdict(offer.task_uid, offer.number, "offer", outcome, offer.blob.digest, reason))


def machine(task: str, task_uid: str, plan: RoundPlan) -> Machine[Job]:
    """The machine of one task's rounds; the key of its only state is the task's level."""
    return Machine(Job, lambda _key: Job(task, task_uid, plan), step, resume)
