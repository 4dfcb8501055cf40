"""Where a version of a model comes from: what the coordinator wrote down when it was made, and nobody changes afterwards.

A task may be changed or deleted, a dataset may be rewritten: what is written here stays as it was. Versions that were made
before this was written down have no lineage. Who writes it is in `coordinator.registry`; knows no other kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeai.resources.base import Count, DigestOrNone, Part

MAX_SOURCES = 100
"""Of one version: many versions have to fit one document."""
MAX_KNOWN = 1500
"""Of one task."""


class Source(Part):
    """A worker and the dataset it was prepared with: `digest` and `samples` as its node verified them then.

    `rounds`: in how many rounds an update made from it counted. Without a digest, the node has not told what it was.
    """

    worker: str
    node: str
    dataset: str
    digest: DigestOrNone = ""
    samples: Count = 0
    rounds: Count = 0


class Lineage(Part):
    """`kind` and `generation` are those of the task. `sources` are those that counted, by worker: the first of `counted`.

    `base_model` and `base_version`: what training started from; without: the first worker's initial weights. `held_out`: the
    examples of the snapshot that a job evaluated on. `file`: what an imported version was made from. `copy_of`: somebody went
    back to that version, and the rest is its lineage.
    """

    kind: str = ""
    generation: Count = 0
    sources: tuple[Source, ...] = ()
    counted: Count = 0
    base_model: str = ""
    base_version: Count = 0
    held_out: Count = 0
    file: str = ""
    copy_of: Count = 0


def copied(lineage: Lineage | None, version: int) -> Lineage:
    """Of a copy of a version."""
    return (lineage or Lineage()).model_copy(update={"copy_of": version})


def counted_sources(known: Sequence[Source]) -> tuple[tuple[Source, ...], int]:
    """Those whose updates counted, as many as a version keeps, and how many workers there are of them."""
    found = sorted((each for each in known if each.rounds), key=lambda each: each.worker)
    return tuple(found[:MAX_SOURCES]), len({each.worker for each in found})


def prepared(known: tuple[Source, ...], told: Sequence[Source]) -> tuple[Source, ...]:
    """Workers have been prepared. What they had before stays if an update was made from it."""
    newest = {each.worker: each for each in known}
    news = {each.worker: each for each in told if not _same(newest.get(each.worker), each)}
    if not news:
        return known
    return (*(each for each in known if each.worker not in news or each.rounds), *news.values())[-MAX_KNOWN:]


def counted(known: tuple[Source, ...], accepted: Sequence[Source]) -> tuple[Source, ...]:
    """A round is closed: these workers' updates counted, each made from what it was last prepared with.

    `accepted` says what is known of those that were not told of before.
    """
    newest = {each.worker: place for place, each in enumerate(known)}
    rows = list(known)
    for source in accepted:
        place = newest.get(source.worker)
        if place is None:
            rows.append(source.model_copy(update={"rounds": 1}))
        else:
            rows[place] = rows[place].model_copy(update={"rounds": rows[place].rounds + 1})
    return tuple(rows[-MAX_KNOWN:])


def _same(one: Source | None, other: Source) -> bool:
    return one is not None and one.model_copy(update={"rounds": 0}) == other
