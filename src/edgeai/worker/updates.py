"""Finished updates in the slot directory: safe before they are offered, kept until their round is closed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from edgeai.crashpoints import crash_point
from edgeai.events.catalogue import Evaluation
from edgeai.store.arrays import write_arrays
from edgeai.store.files import write_whole


@dataclass(frozen=True, slots=True)
class KeptUpdate:
    """One update on disk. `outcome` is empty until the verdict; `evaluation` is that of the model it was trained from."""

    number: int
    base_digest: str
    digest: str
    size_bytes: int
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    outcome: str = ""
    reason: str = ""
    evaluation: Evaluation | None = None


_KEPT = TypeAdapter(KeptUpdate)


class UpdateFolder:
    """The folder `updates/` of a slot: `<number>.safetensors` with `<number>.json` beside it, written last. Blocks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> dict[int, KeptUpdate]:
        """The whole updates by number. What a crash left of others is removed."""
        found: dict[int, KeptUpdate] = {}
        for file in self._folder.glob("*.json"):
            if (kept := self._read(file)) is not None:
                found[kept.number] = kept
        whole = {path.name for number in found for path in (self.blob(number), self._beside(number))}
        for file in self._folder.glob("*"):
            if file.name not in whole and file.is_file():
                file.unlink(missing_ok=True)
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
        evaluation: Evaluation | None = None,
    ) -> KeptUpdate:
        """When it returns, the update survives a crash. Raises UpdateError, StoreError."""
        # An update of this number that was refused: never its description beside the new arrays.
        self._beside(number).unlink(missing_ok=True)
        digest, size_bytes = write_arrays(self.blob(number), arrays)
        kept = KeptUpdate(number, base_digest, digest, size_bytes, num_examples, metrics, evaluation=evaluation)
        self.note(kept)
        crash_point("worker.update_written")
        return kept

    def note(self, kept: KeptUpdate) -> None:
        """Write what is known about an update whose arrays are here. Raises StoreError."""
        write_whole(self._beside(kept.number), _KEPT.dump_json(kept))

    def settle(self, kept: KeptUpdate, outcome: str, reason: str) -> KeptUpdate:
        settled = replace(kept, outcome=outcome, reason=reason)
        self.note(settled)
        return settled

    def drop(self, number: int) -> None:
        self._beside(number).unlink(missing_ok=True)
        self.blob(number).unlink(missing_ok=True)

    def _beside(self, number: int) -> Path:
        return self._folder / f"{number}.json"

    def _read(self, file: Path) -> KeptUpdate | None:
        try:
            kept = _KEPT.validate_json(file.read_bytes())
            whole = file == self._beside(kept.number) and self.blob(kept.number).stat().st_size == kept.size_bytes
        except (OSError, ValidationError):
            return None
        return kept if whole else None
