"""One round as a training script sees it: what is asked, and the two answers. What is done with them is in `session`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeai.errors import StoreError, UpdateError
from edgeai.events.arrays import table_of
from edgeai.events.catalogue import MAX_EXAMPLES, Outcome, RoundState, Verdict
from edgeai.worker.metrics import checked_metrics

if TYPE_CHECKING:
    from edgeai.worker.session import Session

Weights = list[npt.NDArray[Any]]

_ONLY_VALIDATES = "the round only validates"


class Round:
    """What this worker is asked in one round.

    Attributes:
        number: 1-based; 0 when the initial weights are asked for.
        weights: the model as arrays in the order in which they were submitted; read-only views; empty in round 0.
        train: an update is wanted.
        validate: metrics of `weights` on held-out data are wanted.
        parameters: the worker's parameters, as in the manifest.
    """

    def __init__(
        self,
        session: Session,
        state: RoundState,
        weights: Weights,
        parameters: Mapping[str, Any],
        *,
        opened_s: float | None = None,
    ) -> None:
        """`opened_s`: reading of the session's clock when the round reached this worker; now, if not given."""
        self._session, self._state = session, state
        self._opened_s = session.now() if opened_s is None else opened_s
        self.number, self.train, self.validate = state.number, state.train, state.validate
        self.weights, self.parameters = weights, parameters
        self.submitted = self.reported = False

    @property
    def deadline_s(self) -> float:
        """Seconds left until the round may close without this worker; not below 0."""
        return max(0.0, self._state.deadline_s - (self._session.now() - self._opened_s))

    @property
    def base_digest(self) -> str:
        return self._state.model.digest if self._state.model else ""

    async def report(self, metrics: Mapping[str, float], *, num_examples: int) -> None:
        """Report metrics of `weights` on `num_examples` >= 1 held-out examples; ignored unless `validate`.

        Raises:
            UpdateError: reported twice, metrics that are no numbers, or no number of examples.
        """
        if self.reported:
            raise UpdateError(f"round {self.number} was reported already")
        found = self._checked_metrics(metrics)
        _check_count(num_examples)
        self.reported = True
        if self.validate:
            await self._session.report(self, found, num_examples)

    async def submit(
        self,
        weights: Sequence[npt.ArrayLike],
        *,
        num_examples: int,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Hand in this worker's update; returns when it is safe in the slot directory.

        Args:
            weights: as many arrays as `self.weights`, of the same shapes and dtypes, in the same order. Their values
                are looked at by the aggregation worker: one that is not finite is refused by name.
            num_examples: how many examples it was trained on, at least 1: its weight in the mean.
            metrics: numbers, e.g. the training loss.

        Raises:
            UpdateError: a second submit for this round, or arrays, examples or metrics that do not fit.
            StoreError: the slot directory cannot be written.
        """
        if self.submitted:
            raise UpdateError(f"round {self.number} was submitted already")
        arrays = [_array(index, item) for index, item in enumerate(weights)]
        _check_arrays(self.weights, arrays)
        _check_count(num_examples)
        found = self._checked_metrics(metrics or {})
        self.submitted = True
        if not self.train:
            self._session.log.info("update_dropped", round=self.number, reason=_ONLY_VALIDATES)
            return
        try:
            await self._session.submit(self, arrays, num_examples, found)
        except StoreError:
            self.submitted = False  # may be tried again, with space
            raise

    async def verdict(self) -> Verdict:
        """Wait for what became of the submitted update: `outcome` counted, stale or refused, and `reason`."""
        if not self.submitted:
            raise UpdateError(f"nothing was submitted for round {self.number}")
        if not self.train:
            return Verdict(self._state.task_uid, self.number, "offer", Outcome.STALE, reason=_ONLY_VALIDATES)
        return await self._session.verdict(self.number)

    def _checked_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        return checked_metrics(metrics, self._session.log, round=self.number)


def _array(index: int, item: npt.ArrayLike) -> npt.NDArray[Any]:
    try:
        return np.asarray(item)
    except ValueError as error:
        raise UpdateError(f"array {index} is not an array: {error}") from error


def _check_count(num_examples: int) -> None:
    if not isinstance(num_examples, int | np.integer) or not 1 <= num_examples <= MAX_EXAMPLES:
        raise UpdateError(f"num_examples must be a whole number of at least 1, not {num_examples!r}")


def _check_arrays(expected: Sequence[npt.NDArray[Any]], given: Sequence[npt.NDArray[Any]]) -> None:
    if not given:
        raise UpdateError("the update holds no arrays")
    table_of(given)  # raises if a dtype does not travel
    if not expected:
        return
    if len(given) != len(expected):
        raise UpdateError(f"the update holds {len(given)} arrays, the round's model {len(expected)}")
    for index, (want, have) in enumerate(zip(expected, given, strict=True)):
        if want.shape != have.shape or want.dtype.name != have.dtype.name:
            raise UpdateError(
                f"array {index} is {have.dtype}{list(have.shape)}, the round's model has {want.dtype}{list(want.shape)}"
            )
