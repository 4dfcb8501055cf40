"""Finished updates in the slot directory: safe before they are offered, kept until their round is closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from edgeai.crashpoints import crash_point
from edgeai.store.arrays import write_arrays
from edgeai.store.files import write_whole


@dataclass(frozen=True, slots=True)
class KeptUpdate:
    """One update on disk. `outcome` is empty until the verdict."""

    number: int
    base_digest: str
    digest: str
    size_bytes: int
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    outcome: str = ""
    reason: str = ""


_KEPT = TypeAdapter(KeptUpdate)


class UpdateFolder:
    """The folder `updates/` of a slot: `<number>.safetensors` with `<number>.json` beside it, written last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> dict[int, KeptUpdate]:
        found: dict[int, KeptUpdate] = {}
        for file in self._folder.glob("*.json"):
            try:
                kept = _KEPT.validate_json(file.read_bytes())
            except (OSError, ValidationError):
                file.unlink(missing_ok=True)
                continue
            if self.blob(kept.number).exists():
                found[kept.number] = kept
        return found

    def blob(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"

    def write(
        self,
        arrays: Sequence[npt.NDArray[Any]],
        *,
        number: int,
        base_digest: str,
        num_examples: int,
        metrics: dict[str, float],
    ) -> KeptUpdate:
        """Blocking. When it returns, the update survives a crash."""
        digest, size_bytes = write_arrays(self.blob(number), arrays)
        kept = KeptUpdate(number, base_digest, digest, size_bytes, num_examples, metrics)
        self._note(kept)
        crash_point("worker.update_written")
        return kept

    def settle(self, kept: KeptUpdate, outcome: str, reason: str) -> KeptUpdate:
        settled = replace(kept, outcome=outcome, reason=reason)
        self._note(settled)
        return settled

    def drop(self, number: int) -> None:
        (self._folder / f"{number}.json").unlink(missing_ok=True)
        self.blob(number).unlink(missing_ok=True)

    def _note(self, kept: KeptUpdate) -> None:
        write_whole(self._folder / f"{kept.number}.json", _KEPT.dump_json(kept))
