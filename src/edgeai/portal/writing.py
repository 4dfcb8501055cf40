"""What the portal writes: manifests that were posted, and changes of one resource, with conflicts noticed.

A manifest that comes through the page has no folder around it: script folders and model files of the sender cannot be packed.
What `edgeai apply` has packed before stays usable: a task whose script folder is unchanged keeps its bundle, so that a manifest
can be shown, edited and applied again. Everything is checked before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from edgeai.client import Applied, Check, Cloud, Script, Task, scripts_of
from edgeai.errors import Conflict, ManifestError, NotFound
from edgeai.resources.base import SCRIPT_ANNOTATION, SOURCE_ANNOTATION, Metadata, Resource
from edgeai.resources.kinds import from_document
from edgeai.resources.manifest import field_lines, load_manifests
from edgeai.resources.model import Model
from edgeai.store.base import Document, ResourceStore, Stored

MANIFEST = "manifest"
RESERVED = (SCRIPT_ANNOTATION, SOURCE_ANNOTATION)
"""Beginnings of the annotations that are not for users."""

_RELATIVE = (
    "a relative script folder is packed by `edgeai apply` from the folder of the manifest, which the portal does not have: "
    "apply it from there, or name an absolute path below an allowed root of the node"
)


@dataclass(frozen=True, slots=True)
class Expected:
    """The version that a caller has seen; what is None is not compared."""

    generation: int | None = None
    resource_version: str | None = None
    uid: str | None = None

    @staticmethod
    def of(metadata: Metadata) -> Expected:
        """What a posted document says of the version it was made from."""
        return Expected(metadata.generation or None, metadata.resource_version, metadata.uid or None)

    def check(self, kind: str, name: str) -> Check:
        def compare(stored: Stored | None) -> None:
            metadata = stored.document.get("metadata", {}) if stored else {}
            for what, mine, theirs in (
                ("uid", self.uid, metadata.get("uid")),
                ("generation", self.generation, metadata.get("generation")),
                ("resourceVersion", self.resource_version, str(stored.revision) if stored else None),
            ):
                if mine is not None and mine != theirs:
                    state = f"has {what} {theirs}" if stored else "does not exist any more"
                    raise Conflict(kind, name, f"{state}, this is about {what} {str(mine)[:60]}: read it again")

        return compare


def read(text: str) -> list[Resource]:
    """The resources of a posted manifest. Raises ManifestError with the line and field."""
    if "\\ud" in text.lower():
        # JSON writes characters beyond 16 bits as two escapes, which YAML does not know.
        with suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text, object_pairs_hook=_unique), ensure_ascii=False)
    return load_manifests(text, MANIFEST)


async def apply(cloud: Cloud, text: str, resources: list[Resource], *, dry: bool) -> list[Applied]:
    """Write them, after all of them have passed. With `dry` only say what would be done.

    Raises:
        ManifestError: something would have to be packed. Refused, Conflict.
    """
    ready, refused = [], []
    for resource in resources:
        try:
            ready.append(await _ready(cloud.resources, resource))
        except ManifestError as error:
            refused += [(resource, fault) for fault in (error, *error.others)]
    if refused:
        raise _placed(text, refused)
    trial = Cloud(cloud.bus, _Trial(cloud.resources), cloud.blobs, cloud.facts)
    tried = [await trial.put(resource, check=_check(resource)) for resource in ready]
    return tried if dry else [await cloud.put(resource, check=_check(resource)) for resource in ready]


async def patch(cloud: Cloud, kind: str, name: str, change: Mapping[str, Any], expected: Expected) -> Applied:
    """Merge `spec`, `metadata.labels` and `metadata.annotations` into a resource (RFC 7396).

    Raises:
        ManifestError: the result is not acceptable. NotFound, Refused, Conflict.
    """

    def changed(before: Resource) -> Resource:
        document = before.to_document()
        metadata = change.get("metadata") or {}
        for part in ("labels", "annotations"):
            document["metadata"][part] = _merged(document["metadata"].get(part, {}), metadata.get(part, {}))
        document["spec"] = _merged(document.get("spec", {}), change.get("spec", {}))
        after = from_document(document)
        _check_reserved(before, after.metadata)
        return _carried(before, after)

    return await cloud.modify(kind, name, changed, check=expected.check(kind, name))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("duplicate key")
    return found


def _check(resource: Resource) -> Check:
    return Expected.of(resource.metadata).check(resource.kind, resource.name)


async def _ready(resources: ResourceStore, resource: Resource) -> Resource:
    try:
        before = from_document((await resources.get(resource.kind, resource.name)).document)
    except NotFound:
        before = None
    _check_reserved(before, resource.metadata)
    return _carried(before, resource)


def _check_reserved(before: Resource | None, metadata: Metadata) -> None:
    """Which bundle belongs to a task is for `edgeai apply` to say."""
    known = before.metadata.annotations if before else {}
    for name, value in metadata.annotations.items():
        if name.startswith(RESERVED) and known.get(name) != value:
            field = f"metadata.annotations.{name[:80]}"
            raise ManifestError("this annotation is set by `edgeai apply`", file=MANIFEST, field=field)


def _carried(before: Resource | None, resource: Resource) -> Resource:
    """The resource with what was packed for it before. Raises ManifestError for what would have to be packed now."""
    kept = {} if before is None else dict(before.metadata.annotations)
    packed: dict[str, str] = {}
    if isinstance(resource, Task):
        packed = _scripts(before, resource, kept)
    elif isinstance(resource, Model) and resource.spec.url is not None:
        same = isinstance(before, Model) and before.spec == resource.spec and SOURCE_ANNOTATION in kept
        if not same:
            raise ManifestError(
                "a model file is read where `edgeai apply` runs: apply this model from there, or leave the url out",
                file=MANIFEST,
                field="spec.url",
            )
        packed = {SOURCE_ANNOTATION: kept[SOURCE_ANNOTATION]}
    own = {key: value for key, value in resource.metadata.annotations.items() if not key.startswith(RESERVED)}
    metadata = resource.metadata.model_copy(update={"annotations": own | packed})
    return resource.model_copy(update={"metadata": metadata})


def _scripts(before: Resource | None, task: Resource, kept: Mapping[str, str]) -> dict[str, str]:
    same_kind = before is not None and before.kind == task.kind
    known: dict[str, Script] = {script.worker: script for script in scripts_of(before)} if same_kind else {}
    packed, refused = {}, []
    for script in scripts_of(task):
        note, old = SCRIPT_ANNOTATION + script.worker, known.get(script.worker)
        if PurePosixPath(script.folder).is_absolute():
            continue
        same = old is not None and (old.folder, old.boot_file) == (script.folder, script.boot_file)
        if not same or note not in kept:
            refused.append(ManifestError(_RELATIVE, file=MANIFEST, field=script.fields.folder))
            continue
        packed[note] = kept[note]
    if refused:
        raise ManifestError.of(refused)
    return packed


def _placed(text: str, refused: Sequence[tuple[Resource, ManifestError]]) -> ManifestError:
    """All of it as one error, each with the line of its field in what was posted, as far as it is known."""
    lines: dict[tuple[str, str], dict[str, int]] = {}
    with suppress(ManifestError):  # JSON with escapes that YAML does not know
        lines = field_lines(text)
    return ManifestError.of(
        ManifestError(fault.what, file=fault.file, line=of.get(fault.field), field=fault.field)
        for resource, fault in refused
        for of in (lines.get((resource.kind, resource.name), {}),)
    )


def _merged(target: Any, change: Any) -> Any:
    """A merge patch: null removes, maps are merged, everything else is replaced. Source: RFC 7396, section 2."""
    if not isinstance(change, Mapping):
        return change
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(merged.get(name), value)
    return merged


class _Trial:
    """A store that reads and only pretends to write."""

    def __init__(self, resources: ResourceStore) -> None:
        self._resources = resources
        self.get, self.list, self.watch = resources.get, resources.list, resources.watch

    async def create(self, kind: str, name: str, document: Document) -> Stored:
        return Stored(kind, name, dict(document), 0)

    async def replace(self, stored: Stored, document: Document) -> Stored:
        return Stored(stored.kind, stored.name, dict(document), stored.revision)

    async def delete(self, stored: Stored) -> None:
        return
