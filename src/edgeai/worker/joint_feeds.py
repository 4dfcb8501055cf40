"""Hard examples of a joint inference service for an incremental learning job on the same node, labelled by the cloud or not.

They are records of the hard log in the slot directory, as an inference worker's are (`hard_log`); one with a label has it under
the key `label`. Which examples are hard, and what the cloud has said, is known in `joint_edge`.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeai.worker.answers import as_json
from edgeai.worker.hard_log import HardLog
from edgeai.worker.inference import as_npy

MAX_WAITING = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """`label` None: nobody has said."""

    id: str
    x: Any
    prediction: Any
    score: float
    label: int | float | str | None = None


class Feeds:
    """A log and the thread that writes it. `dropped`: so many were not kept."""

    def __init__(self, folder: Path) -> None:
        """Blocks. Raises StoreError."""
        self._log = HardLog(folder)
        self._thread = ThreadPoolExecutor(1, "edgeai-keep")
        self._waiting = 0

    @property
    def dropped(self) -> int:
        return self._log.dropped

    async def keep(self, example: Example, until_s: float) -> None:
        """Returns when it would survive the end of this process, or at `until_s`: no answer is late because of this."""
        if self._waiting >= MAX_WAITING:
            self._log.not_kept("the disk does not keep up")
            return
        self._waiting += 1
        kept = asyncio.get_running_loop().run_in_executor(self._thread, self._append, example)
        kept.add_done_callback(self._done)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                await asyncio.shield(kept)

    def close(self) -> None:
        self._thread.submit(self._log.close)
        self._thread.shutdown(wait=False)

    def _done(self, kept: asyncio.Future[None]) -> None:
        self._waiting -= 1
        if not kept.cancelled() and (error := kept.exception()) is not None:
            self._log.not_kept(f"{type(error).__name__}: {error}")

    def _append(self, example: Example) -> None:
        content = as_npy(example.x)
        if content is None:
            self._log.not_kept("its input is no array")
            return
        record = {
            "id": example.id,
            "time": time.time(),
            "input": content,
            "predicted": as_json(example.prediction),
            "score": example.score,
        }
        if example.label is not None:
            record["label"] = example.label
        self._log.append(record)


def label_of(prediction: Any) -> int | float | str | None:
    """What an answer says of its input: the place of the largest score, or the value itself; None: it says no such thing."""
    match prediction:
        case bool() | int() | float() | str():
            return prediction
        case np.generic():
            return label_of(prediction.item())
        case {"probabilities": scores}:
            return label_of(scores)
        case list() | np.ndarray():
            try:
                scores = np.asarray(prediction)
            except ValueError:
                return None
            if scores.dtype.kind not in "biuf" or scores.size == 0 or scores.size != scores.shape[-1:][0]:
                return None
            return int(scores.argmax()) if scores.size > 1 else label_of(scores.reshape(-1)[0])
    return None
