"""May this request be sent to the cloud? A budget, and a breaker that notices when nobody answers there. Pure.

*Budget.* Of an edge's inferences at most a share is sent: requests sent never exceed fraction * inferences, at any moment.
Credit that is not used is kept up to BURST requests, so no burst follows a long quiet time. Requests and bytes per second are
sliding windows of max(1 s, 1 / rate): in none of them, wherever it begins, is there more than the rate allows. What counts is
the moment of sending, so a permit is asked for again then: what waited meanwhile may have to stay. What was never sent is given
back. An input that alone is more than the rate allows is never sent.

*Breaker.* Closed, all may pass. It opens when CONSECUTIVE requests in a row, or BAD_SHARE of the last LAST, were not answered
in time or found nobody who could. Open, none may pass, for OPEN_FIRST_S, then twice as long each time, at most OPEN_LAST_S.
Half-open, one may: the probe. Answered, it closes; not answered, it opens again; if nothing is said of it for PROBE_S, another
one may try.

Whoever asks brings the time, in seconds that never go back. What the policy is, is in `resources.joint`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import StrEnum

BURST = 16
"""Requests, whose credit is kept."""
CONSECUTIVE, LAST, BAD_SHARE = 5, 20, 0.5
OPEN_FIRST_S, OPEN_LAST_S, PROBE_S = 0.5, 2.0, 2.0


class Window:
    """At most rate * window in any window of max(1 s, 1 / rate)."""

    def __init__(self, rate: float) -> None:
        self.seconds = max(1.0, 1.0 / rate)
        self.limit = max(1, math.floor(rate * self.seconds))
        self._taken: OrderedDict[int, tuple[float, int]] = OrderedDict()
        self._sum = 0

    def fits(self, amount: int, now_s: float) -> bool:
        while self._taken:
            number, (at_s, _) = next(iter(self._taken.items()))
            if now_s - at_s < self.seconds:
                break
            self.drop(number)
        return self._sum + amount <= self.limit

    def add(self, number: int, amount: int, now_s: float) -> None:
        """Under this number; again: it counts from now on."""
        self.drop(number)
        self._taken[number] = (now_s, amount)
        self._sum += amount

    def drop(self, number: int) -> None:
        self._sum -= self._taken.pop(number, (0.0, 0))[1]


class Budget:
    """What may be sent. `counted` once for each inference, before `take` is asked for it."""

    def __init__(self, fraction: float, per_second: float | None = None, bytes_per_second: float | None = None) -> None:
        # In whole numbers, so that no rounding ever adds up to a request too many.
        self._gain, self._price = fraction.as_integer_ratio()
        self._credit = 0
        self._fraction, self._rates = fraction, (per_second, bytes_per_second)
        self._requests = Window(per_second) if per_second is not None else None
        self._bytes = Window(bytes_per_second) if bytes_per_second is not None else None
        self.number = 0
        """of the last permit"""

    def counted(self) -> None:
        self._credit = min(self._credit + self._gain, BURST * self._price)

    def take(self, size_bytes: int, now_s: float) -> str:
        """Empty: it may be sent, and is taken from the budget. Else the limit that it would exceed."""
        if self._credit < self._price:
            return f"{self._fraction:g} of the inferences"
        if over := self._over_rate(size_bytes, now_s):
            return over
        self._credit -= self._price
        self.number += 1
        self.stamp(self.number, size_bytes, now_s)
        return ""

    def take_again(self, number: int, size_bytes: int, now_s: float) -> str:
        """As `take`, for what was taken and is sent only now. If it may not be sent, it is given back."""
        self._drop(number)
        if over := self._over_rate(size_bytes, now_s):
            self.give_back(number)
            return over
        self.stamp(number, size_bytes, now_s)
        return ""

    def stamp(self, number: int, size_bytes: int, now_s: float) -> None:
        """It counts for the windows of this moment, whether it fits or not: it is on its way."""
        if self._requests is not None:
            self._requests.add(number, 1, now_s)
        if self._bytes is not None:
            self._bytes.add(number, size_bytes, now_s)

    def give_back(self, number: int) -> None:
        """It was never sent."""
        self._credit = min(self._credit + self._price, BURST * self._price)
        self._drop(number)

    def _over_rate(self, size_bytes: int, now_s: float) -> str:
        if self._requests is not None and not self._requests.fits(1, now_s):
            return f"{self._rates[0]:g} requests per second"
        if self._bytes is not None and not self._bytes.fits(size_bytes, now_s):
            return f"{self._rates[1]:g} bytes per second"
        return ""

    def _drop(self, number: int) -> None:
        for window in (self._requests, self._bytes):
            if window is not None:
                window.drop(number)


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Every request that was sent has a ticket, with which its outcome is told: what was sent before a change says nothing."""

    def __init__(self) -> None:
        self._open_s = 0.0
        """how long it is open this time; 0: closed"""
        self._opened_at_s = self._probed_at_s = 0.0
        self._probing = False
        self._ticket = 0
        self._bad_in_a_row = 0
        self._last: deque[bool] = deque(maxlen=LAST)

    def state(self, now_s: float) -> BreakerState:
        if not self._open_s:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s - self._opened_at_s < self._open_s else BreakerState.HALF_OPEN

    def allows(self, now_s: float) -> bool:
        match self.state(now_s):
            case BreakerState.CLOSED:
                return True
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return not self._probing or now_s - self._probed_at_s >= PROBE_S

    def sent(self, now_s: float) -> int:
        """A request that was allowed is sent; returns its ticket."""
        if self._open_s:
            self._ticket += 1
            self._probing, self._probed_at_s = True, now_s
        return self._ticket

    def told(self, ticket: int, good: bool, now_s: float) -> None:
        """The outcome: answered in time, or not."""
        if ticket != self._ticket:
            return
        if self._open_s:
            self._settle_probe(good, now_s)
            return
        self._bad_in_a_row = 0 if good else self._bad_in_a_row + 1
        self._last.append(good)
        many = len(self._last) == LAST and self._last.count(False) >= BAD_SHARE * LAST
        if self._bad_in_a_row >= CONSECUTIVE or many:
            self._open(OPEN_FIRST_S, now_s)

    def unsent(self, ticket: int) -> None:
        """It was never sent, for a reason that says nothing of the cloud: another one may try."""
        if ticket == self._ticket:
            self._probing = False

    def _settle_probe(self, good: bool, now_s: float) -> None:
        if not self._probing:
            return
        if not good:
            self._open(min(2 * self._open_s, OPEN_LAST_S), now_s)
            return
        self._open_s, self._probing = 0.0, False
        self._ticket += 1

    def _open(self, seconds: float, now_s: float) -> None:
        self._open_s, self._opened_at_s, self._probing = seconds, now_s, False
        self._ticket += 1
        self._bad_in_a_row = 0
        self._last.clear()


@dataclass(frozen=True, slots=True)
class Sent:
    """It may be sent, and counts as sent."""

    ticket: int
    number: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """It may not. `by_breaker`: the cloud does not answer; else the budget is used up."""

    by_breaker: bool
    reason: str


class Offloading:
    """Budget and breaker of one edge worker."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._breaker = budget, Breaker()

    def counted(self) -> None:
        self._budget.counted()

    def state(self, now_s: float) -> BreakerState:
        return self._breaker.state(now_s)

    def ask(self, size_bytes: int, now_s: float) -> Sent | Held:
        if not self._breaker.allows(now_s):
            return Held(True, "the cloud does not answer")
        if over := self._budget.take(size_bytes, now_s):
            return Held(False, f"over the budget of {over}")
        return Sent(self._breaker.sent(now_s), self._budget.number, size_bytes)

    def sending(self, sent: Sent, now_s: float) -> str:
        """At the moment of sending. Empty: go on. Else the reason why not; the permit is given back."""
        over = self._budget.take_again(sent.number, sent.size_bytes, now_s)
        return f"over the budget of {over}" if over else ""

    def gone(self, sent: Sent, now_s: float) -> None:
        """It has gone out somewhere between `sending` and now."""
        self._budget.stamp(sent.number, sent.size_bytes, now_s)

    def give_back(self, sent: Sent) -> None:
        """It was not sent, and will not be."""
        self._budget.give_back(sent.number)

    def unsent(self, sent: Sent) -> None:
        """Nothing was learned of the cloud."""
        self._breaker.unsent(sent.ticket)

    def told(self, sent: Sent, good: bool, now_s: float) -> None:
        self._breaker.told(sent.ticket, good, now_s)
