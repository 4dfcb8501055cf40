"""Metrics that a script gives, as they travel: few, named, finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgeai.errors import UpdateError

METRICS_LIMIT, METRIC_NAME_LIMIT = 200, 200


def checked_metrics(metrics: Mapping[str, float], log: Any, **where: Any) -> dict[str, float]:
    """As plain numbers. One that is not finite is left out: training that diverged must not end the worker.

    `where` is added to what `log` is told of those. Raises UpdateError.
    """
    if len(metrics) > METRICS_LIMIT:
        raise UpdateError(f"{len(metrics)} metrics are more than the {METRICS_LIMIT} that an event carries")
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not 0 < len(name) <= METRIC_NAME_LIMIT:
            raise UpdateError(
                f"{str(name)[:50]!r} is no name of a metric: text, at most {METRIC_NAME_LIMIT} characters"
            )
        try:
            found[name] = float(value)
        except (TypeError, ValueError) as error:
            raise UpdateError(f"metric {name!r} is not a number: {str(value)[:50]}") from error
    left_out = [name for name, value in found.items() if not math.isfinite(value)]
    if left_out:
        log.warning("metrics_left_out", **where, metrics=left_out, reason="not finite")
    return {name: value for name, value in found.items() if name not in left_out}
