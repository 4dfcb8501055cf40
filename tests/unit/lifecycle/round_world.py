"""Shell and training workers of one federated task, played without arrays, files and clocks.

`World` performs what the rounds' machine asks for, in an order that a seed draws, and forgets what is under way when it
crashes. What the real shell keeps on disk (collected updates, fixed outcomes, the committed state) it keeps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from random import Random

import msgpack

from edgeai.events.catalogue import (
    BlobRef,
    Evaluation,
    Member,
    Offer,
    Outcome,
    Report,
    RoundClosed,
    RoundPlan,
    RoundRecord,
    Verdict,
)
from edgeai.events.envelope import body_of, value_of
from edgeai.lifecycle import round as rounds
from edgeai.lifecycle.base import CancelTimer, Command, Emit, SetTimer, TimerFired
from edgeai.lifecycle.round import Job, JobPhase

TASK, UID = "digits-0a1b2c3d", "0a1b2c3d" * 4


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


BASE = BlobRef(digest("base"), 10)


def plan(*workers: str, quorum: int = 2, number: int = 3, every: int = 1, target: float | None = None) -> RoundPlan:
    members = tuple(Member(worker, f"node-{worker}") for worker in workers or ("a", "b", "c"))
    return RoundPlan("FedAvg", number, quorum, every, 60.0, target, members, "digits")


@dataclass
class Worker:
    """Trains what it is asked for, keeps the update, and sends it until there is a verdict."""

    name: str
    update: Offer | None = None
    report: Report | None = None
    seen: tuple[int, int] = (-1, 0)

    def look(self, job: Job) -> None:
        """Read the round document as it is announced now."""
        if job.phase is not JobPhase.OPEN or self.name not in job.asked or (job.number, job.attempt) <= self.seen:
            return
        self.seen = (job.number, job.attempt)
        base = job.base.digest if job.base else ""
        if self.update is not None and (self.update.number, self.update.base_digest) == (job.number, base):
            return
        found = Evaluation({"accuracy": 0.5 + 0.1 * job.number}, 10) if job.validate else None
        self.report = Report(UID, job.number, base, found) if job.validate else None
        if job.train:
            blob = BlobRef(digest(self.name, job.number, base), 10)
            self.update = Offer(UID, job.number, base, blob, 10, {"loss": 1.0}, found)

    def hear(self, verdict: Verdict) -> None:
        if verdict.of == "report" and self.report is not None and self.report.number == verdict.number:
            self.report = None
        if verdict.of == "offer" and self.update is not None and self.update.blob.digest == verdict.digest:
            self.update = None


@dataclass
class World:
    """`lost` and `repeated`: shares of messages of the workers that are lost, or delivered twice."""

    seed: int
    plan: RoundPlan
    base: BlobRef | None = BASE
    bad: frozenset[str] = frozenset()
    lost: float = 0.1
    repeated: float = 0.2
    job: Job = field(init=False)
    effects: list[Command] = field(default_factory=list)
    timers: dict[str, float] = field(default_factory=dict)
    outcomes: dict[int, RoundRecord] = field(default_factory=dict)
    facts: list[object] = field(default_factory=list)
    counted: list[tuple[int, str]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.workers = {member.worker: Worker(member.worker) for member in self.plan.members}
        self.job = Job(TASK, UID, self.plan)
        self.step(rounds.Began(self.base, self.plan))

    def step(self, event: rounds.JobEvent) -> None:
        self.job, commands = rounds.step(self.job, event)
        for command in commands:
            match command:
                case Emit(fact=fact):
                    self.facts.append(fact)
                case SetTimer(name=name, after_s=after_s):
                    self.timers[name] = after_s
                case CancelTimer(name=name):
                    self.timers.pop(name, None)
                case _:
                    self.effects.append(command)

    def crash(self) -> None:
        """The aggregation worker is killed and started again: what was committed is all there is."""
        self.effects.clear()
        self.job = value_of(Job, msgpack.unpackb(msgpack.packb(body_of(self.job))))
        self.effects += rounds.resume(self.job)
        self.step(rounds.Began(self.base, self.plan))

    def run(self, crashes: int = 0, most: int = 4000) -> World:
        """Until the task has ended; crash that many times on the way, at moments that the seed draws."""
        moments = {self.random.randrange(60) for _ in range(crashes)}
        for moment in range(most):
            if self.job.phase is JobPhase.ENDED:
                return self
            if moment in moments:
                self.crash()
            self.random.choice([self.perform, self.speak, self.speak, self.speak])()
        raise AssertionError(f"no end: {self.job}")

    def perform(self) -> None:
        if not self.effects:
            # Nothing is under way: time passes. Everybody answers, so it is never over for the grace and the deadline.
            if self.timers.pop("retry", None) is not None:
                self.step(TimerFired("retry"))
            return
        command = self.effects.pop(self.random.randrange(len(self.effects)))
        match command:
            case rounds.Announce():
                for worker in self.workers.values():
                    worker.look(self.job)
            case rounds.Tell(worker=worker, verdict=verdict):
                if verdict.of == "offer" and verdict.outcome is Outcome.COUNTED:
                    self.counted.append((verdict.number, worker))
                if self.random.random() >= self.lost:
                    self.workers[worker].hear(verdict)
            case rounds.Collect(worker=worker, offer=offer) if worker in self.bad:
                self.step(rounds.UpdateRejected(worker, offer.number, offer.blob.digest, "not finite"))
            case rounds.Collect(worker=worker, offer=offer):
                self.step(rounds.UpdateVerified(worker, offer.number, offer.blob.digest))
            case rounds.Aggregate(number=number):
                self.aggregate(number)
            case rounds.Finish(base=base):
                self.finished.append(base.digest)
                self.step(rounds.ModelStored())
            case _:
                raise AssertionError(f"unknown command {command}")

    def aggregate(self, number: int) -> None:
        if self.job.phase is not JobPhase.CLOSING or self.job.number != number:
            return
        assert len(self.job.updates) >= self.job.quorum
        accepted = {worker: self.job.updates[worker].num_examples for worker in sorted(self.job.updates)}
        model = digest(number, [self.job.updates[worker].digest for worker in accepted])
        base = self.job.base.digest if self.job.base else ""
        record = RoundRecord(number, self.job.attempt, accepted, {}, base, model, 10, {"loss": 1.0}, 0, 0, 1.0)
        self.step(rounds.Aggregated(self.outcomes.setdefault(number, record)))

    def speak(self) -> None:
        """One worker says everything that it has to say."""
        worker = self.random.choice(list(self.workers.values()))
        self.step(rounds.Joined(worker.name))
        worker.look(self.job)  # on a reader's list the owner sends what differs
        for answer in (worker.report, worker.update):
            if answer is None or self.random.random() < self.lost:
                continue
            event = rounds.Reported if isinstance(answer, Report) else rounds.Offered
            for _ in range(2 if self.random.random() < self.repeated else 1):
                self.step(event(worker.name, answer))

    def closed(self) -> list[int]:
        return [fact.record.number for fact in self.facts if isinstance(fact, RoundClosed)]
