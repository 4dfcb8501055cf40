"""Which model an inference worker is trying, noted on disk: what ends the process can only be refused by the next one.

A note is written before another model is loaded beside the one that serves, and removed when it was refused, or has answered
and gone on for a while. A process that finds one knows that the model may have ended the process before it. What to serve
instead is the model that the note names; loading and serving are the business of `serving`. Blocks, except for `look`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from edgeai.errors import StoreError
from edgeai.launcher.slots import TRIAL_FILE, ServingFile
from edgeai.store.files import write_whole

log = structlog.get_logger()

MAX_TRIES = 2
"""One end may have another cause, as when somebody kills the worker."""
TRUST_S = 30.0
"""A model that has answered and served this long is on trial no more."""


@dataclass(frozen=True, slots=True)
class Note:
    """`tries`: processes that have tried the model `digest`. `before`: what served when the first one began."""

    digest: str
    tries: int
    before: ServingFile


_NOTE = TypeAdapter(Note)


class Trial:
    """`note`: what is tried, or was when the process before ended. `blamed`: a digest that is not to be tried again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TRIAL_FILE
        self.note, self.blamed = self._read(), ""
        self._swapped: tuple[float, int] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the model of the note was tried as often as it may be."""
        return self.note is not None and self.note.tries >= MAX_TRIES

    def begin(self, digest: str, before: ServingFile) -> None:
        known = self.note
        if known is not None and known.digest == digest:
            self.note = replace(known, tries=known.tries + 1)
        else:
            self.note = Note(digest, 1, before)
        self._swapped = None
        try:
            write_whole(self._path, _NOTE.dump_json(self.note))
        except StoreError as error:
            log.warning("trial_not_noted", model=digest[:12], reason=str(error))

    def swapped(self, digest: str, now_s: float, answered: int) -> None:
        """The model serves, after so many answers of those before it."""
        if self.note is not None and self.note.digest == digest:
            self._swapped = now_s, answered

    def look(self, now_s: float, answered: int) -> bool:
        """Whether the model on trial may be trusted now."""
        return self._swapped is not None and now_s - self._swapped[0] >= TRUST_S and answered > self._swapped[1]

    def end(self) -> None:
        self.note, self.blamed, self._swapped = None, "", None
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("trial_not_noted", reason=str(error))

    def _read(self) -> Note | None:
        try:
            return _NOTE.validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None
