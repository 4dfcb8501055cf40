"""What of a worker of a joint inference service becomes a fact of its history: another model, one that it refused, its breaker.

A worker says every second what is so; here is decided what of that is new. Pure: moments are given, what is to be remembered
across a restart is `Known`, and the caller commits it together with the facts. Swaps and refusals are told one by one, at most
MAX_FACTS a minute; breakers at most once a minute for each kind, with how often meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from edgeai.events.catalogue import InferenceObserved, ServiceChanged, ServingWanted

MINUTE_S, MAX_FACTS, MAX_SERVED, MAX_REFUSED = 60.0, 20, 16, 16
OPENED, CLOSED = "breaker-opened", "breaker-closed"
_WHY = {OPENED: "the cloud does not answer: edges answer alone", CLOSED: "the cloud answers again"}


@dataclass(frozen=True, slots=True)
class Known:
    """Of one worker. `served`: versions by digest of the models that have served, the newest last; 0: it had no number."""

    digest: str = ""
    served: dict[str, int] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    cut: bool = False
    """the breaker is open, or half-open"""


class Pace:
    """How often facts of one worker may be told. Readings of the clock come in as arguments, and never go back."""

    def __init__(self) -> None:
        self._told_s: deque[float] = deque(maxlen=MAX_FACTS)
        self._breaker_s: dict[str, float] = {}
        self._meanwhile: dict[str, int] = {}

    def allows(self, now_s: float) -> bool:
        return len(self._told_s) < MAX_FACTS or now_s - self._told_s[0] >= MINUTE_S

    def told(self, now_s: float) -> None:
        self._told_s.append(now_s)

    def count(self, kind: str) -> None:
        self._meanwhile[kind] = self._meanwhile.get(kind, 0) + 1

    def due(self, now_s: float) -> Iterator[tuple[str, int]]:
        """Kinds of which something is to be told now, and how often it happened."""
        for kind in (OPENED, CLOSED):
            if self._meanwhile.get(kind) and now_s - self._breaker_s.get(kind, -MINUTE_S) >= MINUTE_S:
                self._breaker_s[kind] = now_s
                yield kind, self._meanwhile.pop(kind)


def news(
    known: Known, told: InferenceObserved, wanted: ServingWanted | None, pace: Pace, now_s: float
) -> tuple[Known, tuple[ServiceChanged, ...]]:
    """What is known now, and the facts that say what is new. `wanted`: what the worker is to serve, if its node knows."""
    facts: list[ServiceChanged] = []

    def tell(step: Callable[[Known], tuple[Known, ServiceChanged]]) -> None:
        nonlocal known
        if pace.allows(now_s):  # else it is still new the next time
            known, fact = step(known)
            facts.append(fact)
            pace.told(now_s)

    if told.digest and told.digest != known.digest:
        tell(lambda before: _swapped(before, told, wanted))
    known = replace(known, refused=tuple(digest for digest in known.refused if digest in told.refused_models))
    for digest in told.refused_models:
        if digest not in known.refused:
            tell(lambda before, digest=digest: _refused(before, told, wanted, digest))  # type: ignore[misc]
    cut = told.breaker in {"open", "half-open"}
    if cut != known.cut:
        pace.count(OPENED if cut else CLOSED)
        known = replace(known, cut=cut)
    facts += [ServiceChanged(told.task_uid, kind, reason=_WHY[kind], times=times) for kind, times in pace.due(now_s)]
    return known, tuple(facts)


def _swapped(known: Known, told: InferenceObserved, wanted: ServingWanted | None) -> tuple[Known, ServiceChanged]:
    version = _version(known, told.digest, wanted)
    if failed := told.refused_models.get(known.digest, ""):
        reason = f"the model before it failed: {failed}"
    elif not known.digest:
        reason = "its first model"
    elif told.digest in known.served:
        reason = "rollback: it has served before"
    else:
        reason = "a new version"
    fact = ServiceChanged(
        task_uid=told.task_uid,
        what="model",
        before=known.digest,
        after=told.digest,
        reason=reason,
        version_before=known.served.get(known.digest, 0),
        version=version,
    )
    others = {digest: number for digest, number in known.served.items() if digest != told.digest}
    served = dict([*others.items(), (told.digest, version)][-MAX_SERVED:])
    # That it is refused says the swap already.
    refused = (*known.refused, known.digest) if failed else known.refused
    return replace(known, digest=told.digest, served=served, refused=refused[-MAX_REFUSED:]), fact


def _refused(
    known: Known, told: InferenceObserved, wanted: ServingWanted | None, digest: str
) -> tuple[Known, ServiceChanged]:
    fact = ServiceChanged(
        task_uid=told.task_uid,
        what="model-refused",
        before=known.digest,
        after=digest,
        reason=told.refused_models[digest],
        version_before=known.served.get(known.digest, 0),
        version=_version(known, digest, wanted),
    )
    return replace(known, refused=(*known.refused, digest)[-MAX_REFUSED:]), fact


def _version(known: Known, digest: str, wanted: ServingWanted | None) -> int:
    if wanted is not None and wanted.model.blob.digest == digest:
        return wanted.model.version
    return known.served.get(digest, 0)


__all__ = ["CLOSED", "OPENED", "Known", "Pace", "news"]
