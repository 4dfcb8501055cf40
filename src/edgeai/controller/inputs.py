"""What a worker is given is what was verified: looked at before each start, at little cost where nothing has changed.

When a worker is prepared, the stamps of what was verified are noted beside its slot: of its dataset, its script, its models.
A file with the same stamp is the same file; one with another is read again, and its digest decides. What we can bring
again (scripts, models) is repaired; a dataset is its owner's, so a worker whose dataset has changed is not started.

A script folder that lies on the node (an absolute `trainScriptDir`) has no digest and is not looked at. Must not know how a
worker is started (`service.py`).
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

from edgeai.controller.cache import BlobCache
from edgeai.controller.datasets import DatasetProblem, Fingerprint, Stamp, fingerprint, stamp_of
from edgeai.controller.places import Places, Prepared
from edgeai.controller.scripts import PreparationProblem, difference, tree_stamp, unpack
from edgeai.controller.threads import to_its_end
from edgeai.errors import DamagedFile, NotFound, StoreError
from edgeai.events.catalogue import Assignment, DatasetWanted
from edgeai.launcher.slots import SlotDir, model_name
from edgeai.store.files import digest_of, write_whole

log = structlog.get_logger()

BUNDLE_S = 10.0
"""A start does not wait longer for a script that has to come again: it is tried again."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Content of verified.json."""

    dataset: Fingerprint | None = None
    script: str = ""
    models: dict[str, Stamp] = field(default_factory=dict)


_VERIFIED = TypeAdapter(Verified)


class Inputs:
    """Scripts, datasets and models of the workers of one node."""

    def __init__(self, node: str, places: Places, cache: BlobCache) -> None:
        self._node, self._places, self._cache = node, places, cache

    async def bring_script(self, assignment: Assignment, slot: SlotDir) -> str:
        """Unpack the bundle of an assignment; returns the stamp of what lies there now.

        Raises:
            PreparationProblem, NotFound, DamagedFile, StoreError, OSError.
        """
        assert assignment.script is not None
        bundle = await self._cache.bring(assignment.script)
        return await to_its_end(self._unpack, bundle, self._places.script(slot), assignment.boot_file)

    def _unpack(self, bundle: Path, folder: Path, boot_file: str) -> str:
        unpack(bundle.read_bytes(), folder, boot_file)
        self._places.open_up(folder)
        return tree_stamp(folder)

    def note(self, slot: SlotDir, verified: Verified) -> None:
        """Remember what was verified for this slot. Blocks."""
        file = self._file(slot)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(file, _VERIFIED.dump_json(verified))

    async def require(self, assignment: Assignment, prepared: Prepared, wanted: DatasetWanted | None) -> list[str]:
        """See that what is given now is what was verified. Returns the digests of models that were damaged and are gone.

        Raises:
            DatasetProblem: the dataset has changed.
            PreparationProblem: the script has changed, and cannot be had again.
            StoreError: the script has changed and does not arrive now.
        """
        known = await asyncio.to_thread(self._noted, prepared.slot)
        found = known
        if prepared.dataset is not None and wanted is not None:
            found = replace(
                found, dataset=await asyncio.to_thread(self._dataset, prepared.dataset, wanted, known.dataset)
            )
        if assignment.script is not None:
            found = replace(found, script=await self._script(assignment, prepared.slot, known.script))
        models, damaged = await asyncio.to_thread(_models, self._places.models(prepared.slot), known.models)
        found = replace(found, models=models)
        if found != known:
            await to_its_end(self.note, prepared.slot, found)
        return damaged

    def require_mounted(self, prepared: Prepared, wanted: DatasetWanted | None) -> None:
        """The dataset was not replaced between the look at it and the start of its reader. Raises DatasetProblem. Blocks."""
        if prepared.dataset is not None and wanted is not None:
            self._dataset(prepared.dataset, wanted, self._noted(prepared.slot).dataset)

    # --- one by one

    def _dataset(self, path: Path, wanted: DatasetWanted, known: Fingerprint | None) -> Fingerprint:
        try:
            found = known if known is not None and stamp_of(path) == known.stamp else fingerprint(path)
        except (OSError, NotFound, StoreError) as error:
            raise DatasetProblem(f"dataset {wanted.name} on {self._node} cannot be read any more: {error}") from error
        expected = wanted.digest or (known.digest if known else found.digest)
        if found.digest != expected:
            raise DatasetProblem(
                f"dataset {wanted.name} on {self._node} has changed since it was verified: {path} has"
                f" {found.stamp.size_bytes} bytes with digest {found.digest[:12]}, not {_told(known, expected)}; put that file"
                " back, or delete the task and apply it again to train with what is there now"
            )
        return found

    async def _script(self, assignment: Assignment, slot: SlotDir, known: str) -> str:
        assert assignment.script is not None
        folder = self._places.script(slot)
        if known and await asyncio.to_thread(tree_stamp, folder) == known:
            return known
        changed = f"the script of {assignment.worker} on {self._node} is not what was verified"
        try:
            async with asyncio.timeout(BUNDLE_S):
                bundle = await self._cache.bring(assignment.script)
        except TimeoutError as error:
            raise StoreError(f"{changed}, and its bundle does not arrive to put it right") from error
        except (NotFound, DamagedFile) as error:
            raise PreparationProblem(f"{changed}, and its bundle cannot be had again: {error}") from error
        where = await asyncio.to_thread(lambda: difference(bundle.read_bytes(), folder, sealed=self._places.sealed))
        if not where:
            return await asyncio.to_thread(tree_stamp, folder)
        log.warning("script_repaired", task=assignment.task, worker=assignment.worker, changed=where)
        return await to_its_end(self._unpack, bundle, folder, assignment.boot_file)

    # --- what is noted

    def _file(self, slot: SlotDir) -> Path:
        return self._places.notes(slot) / "verified.json"

    def _noted(self, slot: SlotDir) -> Verified:
        """Nothing, if it was lost or an earlier version has prepared this slot: then all is read again."""
        try:
            return _VERIFIED.validate_json(self._file(slot).read_bytes())
        except (OSError, ValidationError):
            return Verified()


def _models(folder: Path, known: Mapping[str, Stamp]) -> tuple[dict[str, Stamp], list[str]]:
    """The models that are what their name says, and the digests of those that were not and are removed."""
    good: dict[str, Stamp] = {}
    damaged: list[str] = []
    for path in folder.glob(model_name("*")):
        digest = path.stem
        try:
            stamp = stamp_of(path)
            if known.get(digest) == stamp or (stat.S_ISREG(path.lstat().st_mode) and digest_of(path) == digest):
                good[digest] = stamp
                continue
        except (FileNotFoundError, NotFound):
            continue
        log.warning("model_damaged", model=digest, folder=str(folder))
        path.unlink(missing_ok=True)
        damaged.append(digest)
    return good, damaged


def _told(known: Fingerprint | None, expected: str) -> str:
    size = f"{known.stamp.size_bytes} bytes with " if known and known.digest == expected else ""
    return f"{size}digest {expected[:12]}"
