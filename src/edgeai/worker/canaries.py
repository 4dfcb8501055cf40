"""Inputs that a new model has to answer before it may serve: held-out ones that the controller left, and the last requests.

What it has to answer is what the serving model answers, in form; which model that is, and what follows, is the business of
`serving`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from edgeai.errors import ModelError
from edgeai.worker.answers import Form, fits, joined, shown
from edgeai.worker.predicting import Found, sentence

MAX_CANARIES = 32
log = structlog.get_logger()
Ask = Callable[[], Awaitable[Found]]


def canaries(models: Path, name: str) -> list[Any]:
    """Held-out inputs that the controller put beside the models: npy, or npz whose first array they are. Blocks."""
    if not name:
        return []
    path = models / Path(name).name
    try:
        found = np.load(path, allow_pickle=False)
        inputs = found if isinstance(found, np.ndarray) else found[found.files[0]]
        return list(inputs[:MAX_CANARIES])
    except (OSError, ValueError, IndexError, TypeError) as error:
        log.warning("canary_not_read", path=str(path), reason=str(error))
        return []


async def compared(serving: Ask | None, candidate: Ask, known: Form | None) -> Form | None:
    """The form of answers, with one more input. Raises ModelError if the candidate does not answer as the serving model.

    An input that the serving model cannot answer says nothing: held-out inputs may not look as the script's do. For the
    same reason the first model of all need not answer them; if it does, then finitely.
    """
    try:
        if serving is not None:
            expected = await serving()
            known = joined(known, expected.form) if known else expected.form
    except Exception as error:  # noqa: BLE001 - predict is the script's: anything may come
        log.debug("canary_left_out", cause=sentence(error))
        return known
    try:
        found = await candidate()
    except Exception as error:
        if serving is None and not isinstance(error, ModelError):
            log.debug("canary_left_out", cause=sentence(error))
            return known
        raise ModelError(f"it does not answer: {sentence(error)}") from error
    if serving is None:
        return joined(known, found.form) if known else found.form
    if not fits(known, found.form):
        raise ModelError(f"it answers {shown(found.form)}, the serving model {shown(known)}")
    return known
