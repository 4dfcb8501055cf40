"""One round as a training script sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeai.errors import UpdateError
from edgeai.events.catalogue import RoundState, Verdict

if TYPE_CHECKING:
    from edgeai.worker.session import Session

Weights = list[npt.NDArray[Any]]


class Round:
    """What this worker is asked in one round.

    Attributes:
        number: 1-based; 0 when the initial weights are asked for.
        weights: the model as arrays in the order in which they were submitted; read-only views; empty in round 0.
        train: an update is wanted.
        validate: metrics of `weights` on held-out data are wanted.
        parameters: the worker's parameters, as in the manifest.
    """

    def __init__(self, session: Session, state: RoundState, weights: Weights, parameters: Mapping[str, Any]) -> None:
        self._session, self._state, self._opened = session, state, session.now()
        self.number, self.train, self.validate = state.number, state.train, state.validate
        self.weights, self.parameters = weights, parameters
        self.submitted = self.reported = False

    @property
    def deadline_s(self) -> float:
        """Seconds left until the round may close without this worker; not below 0."""
        return max(0.0, self._state.deadline_s - (self._session.now() - self._opened))

    @property
    def base_digest(self) -> str:
        return self._state.model.digest if self._state.model else ""

    async def report(self, metrics: Mapping[str, float], *, num_examples: int) -> None:
        """Report metrics of `weights` on `num_examples` >= 1 held-out examples; ignored unless `validate`.

        Raises:
            UpdateError: reported twice, or metrics that are not finite numbers.
        """
        if self.reported:
            raise UpdateError(f"round {self.number} was reported already")
        found = _checked_metrics(metrics)
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
            weights: as many arrays as `self.weights`, of the same shapes and dtypes, in the same order.
            num_examples: how many examples it was trained on, at least 1: its weight in the mean.
            metrics: finite numbers, e.g. the training loss.

        Raises:
            UpdateError: a second submit for this round, or arrays that do not fit.
        """
        if self.submitted:
            raise UpdateError(f"round {self.number} was submitted already")
        arrays = [np.asarray(item) for item in weights]
        _check_arrays(self.weights, arrays)
        _check_count(num_examples)
        found = _checked_metrics(metrics or {})
        self.submitted = True
        if not self.train:
            self._session.log.info("update_dropped", round=self.number, reason="the round only validates")
            return
        await self._session.submit(self, arrays, num_examples, found)

    async def verdict(self) -> Verdict:
        """Wait for what became of the submitted update: `outcome` counted, duplicate, stale or refused, and `reason`."""
        if not self.submitted:
            raise UpdateError(f"nothing was submitted for round {self.number}")
        return await self._session.verdict(self.number)


def _check_count(num_examples: int) -> None:
    if not isinstance(num_examples, int | np.integer) or num_examples < 1:
        raise UpdateError(f"num_examples must be a whole number of at least 1, not {num_examples!r}")


def _checked_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise UpdateError(f"metric {name!r} is not a number: {value!r}") from error
        if not np.isfinite(found[str(name)]):
            raise UpdateError(f"metric {name!r} is not finite: {value!r}")
    return found


def _check_arrays(expected: Sequence[npt.NDArray[Any]], given: Sequence[npt.NDArray[Any]]) -> None:
    if not given:
        raise UpdateError("the update holds no arrays")
    if not expected:
        return
    if len(given) != len(expected):
        raise UpdateError(f"the update holds {len(given)} arrays, the round's model {len(expected)}")
    for index, (want, have) in enumerate(zip(expected, given, strict=True)):
        if want.shape != have.shape or want.dtype != have.dtype:
            raise UpdateError(
                f"array {index} is {have.dtype}{list(have.shape)}, the round's model has {want.dtype}{list(want.shape)}"
            )
