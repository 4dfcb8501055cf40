"""Every error that edgeai raises, on one page.

EdgeaiError
├── ManifestError          a file or field the user wrote is not acceptable: says file, line, field
├── NotFound               the resource, node, worker or blob does not exist
├── Refused                understood and declined: policy, conflict of generations, wrong state
│   └── Conflict           somebody else changed it first: read again and retry
├── WaitTimeout            the condition did not come true in time
├── TaskFailed             a task that was waited for has ended otherwise: what was waited for cannot come true any more
├── BusError
│   ├── BusUnavailable     no broker answers: retry later
│   └── PayloadTooLarge    the broker would refuse this event: never retry as it is
├── MalformedEvent         what arrived is not a valid event: their mistake, never retry
│   └── AddressError       a topic, subject or name that does not fit the scheme
├── StoreError
│   └── DamagedFile        digest or format of a stored file is wrong: set aside, fetch again
├── LaunchError            a worker or broker could not be started
│   ├── BinaryMissing      a program is not installed
│   ├── EngineUnavailable  no container engine answers: retry later
│   └── PortTaken          another program listens there
├── Overloaded             a service has as much to do as it takes: retry a little later
├── DeadlineMissed         a question to a service had no answer in time
├── ModelError             a model does not load, or what it answers is no answer (raised in the worker's script)
└── UpdateError            a submitted update does not fit the round (raised in the worker's script)
    └── AggregationError   updates that cannot be aggregated

Each carries its facts as attributes; the sentence says who, what and, where there is something to do, what to do.
`exit_code` is what the command line returns for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path


class EdgeaiError(Exception):
    """Base of all errors of this package. `str()` is one line for a person."""

    exit_code = 1


class ManifestError(EdgeaiError):
    """Refused input of a user. `file`, `line` (1-based) and `field` (dotted path) are set where they are known.

    `others` is what else is wrong with the same input; the sentence only counts it.
    """

    exit_code = 4
    SHOWN = 10
    """How many are shown one by one."""

    def __init__(
        self,
        what: str,
        *,
        file: str = "",
        line: int | None = None,
        field: str = "",
        others: Sequence[ManifestError] = (),
    ) -> None:
        place = file + (f":{line}" if line is not None else "")
        more = f" (and {len(others)} more)" if others else ""
        super().__init__(": ".join(part for part in (place, field, what) if part) + more)
        self.what, self.file, self.line, self.field, self.others = what, file, line, field, tuple(others)

    @staticmethod
    def of(found: Iterable[ManifestError]) -> ManifestError:
        """All that was found (at least one), in this order, as one error."""
        first, *others = (fault for error in found for fault in (error, *error.others))
        return ManifestError(first.what, file=first.file, line=first.line, field=first.field, others=others)


_NOUNS = {
    "FederatedTask": "task",
    "IncrementalLearningJob": "job",
    "JointInferenceService": "service",
    "EdgeNode": "node",
    "Dataset": "dataset",
    "Model": "model",
}


def noun(kind: str) -> str:
    """The word for a kind in a sentence."""
    return _NOUNS.get(kind, kind)


class NotFound(EdgeaiError):
    exit_code = 3

    def __init__(self, kind: str, name: str, hint: str = "", *, what: str = "does not exist") -> None:
        super().__init__(f"{noun(kind)} {name} {what}" + (f"; {hint}" if hint else ""))
        self.kind, self.name = kind, name


class Refused(EdgeaiError):
    """Understood and declined; asking again without a change will not help."""

    exit_code = 4


class Conflict(Refused):
    """Somebody else wrote first. Read again, then retry."""

    def __init__(self, kind: str, name: str, what: str = "was changed by somebody else meanwhile") -> None:
        super().__init__(f"{noun(kind)} {name} {what}")
        self.kind, self.name = kind, name


class WaitTimeout(EdgeaiError):
    exit_code = 124


class TaskFailed(EdgeaiError):
    """The task has ended, and not as was hoped. The sentence holds its own reason."""


class BusError(EdgeaiError):
    exit_code = 5


class BusUnavailable(BusError):
    """No broker answers at `url`. Worth retrying."""

    def __init__(self, url: str, cause: str = "") -> None:
        super().__init__(f"no broker answers at {url}" + (f" ({cause})" if cause else ""))
        self.url = url


class PayloadTooLarge(BusError):
    """The broker would refuse this event. Not worth retrying: split it first (events.chunks)."""

    exit_code = 1

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"{size_bytes} bytes do not fit the broker limit of {limit_bytes}")
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes


class MalformedEvent(EdgeaiError):
    """What arrived is not a valid event. Never worth retrying: count it, set it aside by name, go on."""


class AddressError(MalformedEvent):
    def __init__(self, text: str, what: str) -> None:
        super().__init__(f"{text[:80]!r}: {what}")
        self.text = text[:80]


class StoreError(EdgeaiError):
    pass


class DamagedFile(StoreError):
    """A stored file is not what its digest or format says."""

    def __init__(self, path: Path | str, what: str) -> None:
        super().__init__(f"{path} is damaged: {what}")
        self.path = Path(path)


class LaunchError(EdgeaiError):
    """A program could not be started, or ended before it was ready."""


class BinaryMissing(LaunchError):
    def __init__(self, binary: str, hint: str) -> None:
        super().__init__(f"{binary} is not installed; {hint}")
        self.binary = binary


class EngineUnavailable(LaunchError):
    """No container engine answers at `url`. Worth retrying."""

    exit_code = 5

    def __init__(self, url: str, cause: str = "") -> None:
        what = f"no Docker engine answers at {url}" + (f" ({cause})" if cause else "")
        super().__init__(f"{what}; start it, set DOCKER_HOST, or use the process launcher (--launcher process)")
        self.url = url


class PortTaken(LaunchError):
    """`option`: what chooses another port."""

    def __init__(self, port: int, who: str, option: str = "") -> None:
        other = "choose another port" + (f" ({option})" if option else "")
        super().__init__(f"{who}: port {port} is taken by another program; stop it or {other}")
        self.port = port


class Overloaded(EdgeaiError):
    """A service has as much to do as it takes: refused at once. Worth retrying a little later."""

    exit_code = 5


class DeadlineMissed(EdgeaiError):
    """No answer came in time."""

    exit_code = 124


class ModelError(EdgeaiError):
    """A model does not load, or answers what is no answer: not finite, or of another form than the model before it."""


class UpdateError(EdgeaiError):
    """An update does not fit its round: wrong count, shape, dtype, non-finite values, or submitted twice."""


class AggregationError(UpdateError):
    """No update, no examples in total, or updates whose arrays differ."""
