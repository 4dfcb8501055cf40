"""Whether a request of an edge worker goes to the cloud, and what comes of it: an answer in time, or the reason why not.

The decision is pure (`learning.offloading`), the way there is `joint_line`. What follows from a reason is the business of
`joint_edge`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog

from edgeai.bus.base import Bus
from edgeai.events.catalogue import InferenceAnswered, InferenceAsked
from edgeai.events.values import unpack
from edgeai.learning.hard_examples import Hardness
from edgeai.learning.offloading import Budget, Held, Offloading, Sent
from edgeai.resources.joint import Policy
from edgeai.worker.environment import WorkerEnvironment
from edgeai.worker.inference import Answer
from edgeai.worker.joint_applications import Request
from edgeai.worker.joint_counts import Counts
from edgeai.worker.joint_line import CloudLine, NoAnswer, OnLate
from edgeai.worker.models import LocalModel

log = structlog.get_logger()

ENVELOPE_BYTES = 512
"""What a request costs on the wire beside its input and its id, at most."""


@dataclass(frozen=True, slots=True)
class Fallback:
    """Why the cloud has not answered. `kind` as in `InferenceAnswered`, or budget; `late`: its answer may still come."""

    kind: str
    reason: str
    late: bool = False


class _Permit:
    """A request's part of the budget, until it is sent or not."""

    def __init__(self, offloading: Offloading, sent: Sent, counts: Counts) -> None:
        self._offloading, self._sent, self._counts = offloading, sent, counts
        self._counted = False
        self._now_s = asyncio.get_running_loop().time

    def sending(self) -> str:
        over = self._offloading.sending(self._sent, self._now_s())
        if not over:
            self._counts.add("sent")
            self._counted = True
        return over

    def gone(self) -> None:
        self._offloading.gone(self._sent, self._now_s())

    def give_back(self) -> None:
        self._offloading.give_back(self._sent)
        if self._counted:
            self._counts.add("sent", -1)


class Cloud:
    """The cloud as one edge worker sees it."""

    def __init__(self, environment: WorkerEnvironment, bus: Bus, policy: Policy, counts: Counts) -> None:
        self._bus, self._policy, self._counts = bus, policy, counts
        self._line = CloudLine(environment, bus, counts)
        self.run, self.prune = self._line.run, self._line.prune
        self._offloading = Offloading(
            Budget(policy.max_offload_fraction, policy.max_offload_per_second, policy.max_offload_bytes_per_second)
        )

    def not_asked(self) -> None:
        """One more inference, which the edge answers by itself: it counts for the share of those that may be sent."""
        self._offloading.counted()

    def breaker(self, now_s: float) -> str:
        return self._offloading.state(now_s).value

    async def ask(self, request: Request, until_s: float, hardness: Hardness) -> Answer | Fallback:
        """The cloud's answer before `until_s`, by the loop's clock, or why there is none. `hardness`: what the mining says."""
        # Here, not when the request came: of many that are under way at once no credit is to be lost (`offloading.BURST`).
        self._offloading.counted()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if until_s <= now_s:
            return Fallback("late", "no time is left for the cloud")
        if not self._bus.connected:
            return Fallback("late", "the broker of this node does not answer")
        if not self._line.has_room(len(request.content)):
            return Fallback("overloaded", "too many requests wait for the cloud")
        permit = self._offloading.ask(len(request.content) + len(request.id.encode()) + ENVELOPE_BYTES, now_s)
        if isinstance(permit, Held):
            self._counts.add("breaker_open" if permit.by_breaker else "over_budget")
            return Fallback("late" if permit.by_breaker else "budget", permit.reason)
        asked = InferenceAsked(request.content, 0.0, request.id)
        to_send = _Permit(self._offloading, permit, self._counts)
        try:
            trace = request.traced.trace if request.traced is not None else ""
            answer = await self._line.ask(asked, to_send, until_s, self._told_late(request, hardness), trace=trace)
            opened = _of_cloud(request, answer, hardness)
        except NoAnswer as error:
            if error.bad is None:
                self._offloading.unsent(permit)
            else:
                self._offloading.told(permit, not error.bad, loop.time())
            if error.kind == "budget":
                self._counts.add("over_budget")
            return Fallback(error.kind, error.reason, error.expected)
        except Exception as error:  # noqa: BLE001 - what the cloud has sent is none
            self._offloading.told(permit, False, loop.time())
            return Fallback("failed", f"the cloud: {error}")
        self._offloading.told(permit, True, loop.time())
        self._counts.add("answered")
        return opened

    def _told_late(self, request: Request, hardness: Hardness) -> OnLate | None:
        tell = request.on_late
        if tell is None or not self._policy.corrections or self._policy.on_cloud_failure != "useEdgeAnswer":
            return None

        def told(answer: InferenceAnswered | None) -> None:
            try:
                tell(_of_cloud(request, answer, hardness) if answer is not None and not answer.error else None)
            except Exception as error:  # noqa: BLE001 - of an answer that is none
                log.warning("correction_dropped", reason=str(error))

        return told


def _of_cloud(request: Request, answer: InferenceAnswered, hardness: Hardness) -> Answer:
    """Raises MalformedEvent."""
    model = LocalModel(Path(), "", answer.digest, answer.version, answer.model)
    seconds = asyncio.get_running_loop().time() - request.began_s
    prediction = unpack(answer.content)
    return Answer(prediction, hardness.hard, hardness.score, model, seconds, request.id, "cloud")
