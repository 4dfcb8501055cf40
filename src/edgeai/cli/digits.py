"""The example data set, dealt out to the edges of a demo: every edge sees the digits in a different mix.

Reads `config/examples/digits.npz` (arrays `x` and `y`) and writes one `digits.npz` per edge with `x_train`, `y_train`,
`x_test`, `y_test`. The same source and number of edges always give the same shards, so a demo can be repeated. `up` and
`demo` call this; nothing else in the package knows about digits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeai.errors import Refused

Rows = npt.NDArray[np.intp]

SHARD_NAME = "digits.npz"
MAX_EDGES = 100
_SEED = 20
_ALPHA = 0.7  # of the Dirichlet distribution: the smaller, the more an edge's mix of labels differs from the others'
_SMALLEST_SHARE = 0.05  # of every label, on every edge (less when there are more than ten edges)
_HELD_OUT = 0.2


def write_shards(source: Path, folders: Sequence[Path]) -> list[Path]:
    """Deal the examples of `source` out to `folders` (created if missing); return the `digits.npz` written into each.

    Every example goes to exactly one shard, there to training or to the held-out fifth. Existing shards are replaced.

    Raises:
        Refused: no folder, or more than MAX_EDGES.
    """
    if not 1 <= len(folders) <= MAX_EDGES:
        raise Refused(f"the example digits can be dealt out to 1 to {MAX_EDGES} edges, not to {len(folders)}")
    with np.load(source, allow_pickle=False) as arrays:
        x, y = arrays["x"], arrays["y"]
    paths = []
    for folder, rows in zip(folders, _deal(y, len(folders)), strict=True):
        held_out = max(1, round(len(rows) * _HELD_OUT))
        test, train = rows[:held_out], rows[held_out:]
        shard = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
        paths.append(_write(folder / SHARD_NAME, shard))
    return paths


def _deal(labels: npt.NDArray[np.uint8], edges: int) -> list[Rows]:
    """The row numbers of every edge, shuffled. Shares are drawn per label.

    Source: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
    2019 (Dirichlet shares), here with a smallest share so that no edge is left without examples.
    """
    # RandomState, not Generator: its streams are promised to stay the same in every release of NumPy.
    random = np.random.RandomState(_SEED)
    smallest = min(_SMALLEST_SHARE, 1 / (2 * edges))
    hands: list[list[Rows]] = [[] for _ in range(edges)]
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        shares = smallest + (1 - edges * smallest) * random.dirichlet(np.full(edges, _ALPHA))
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.intp)
        for hand, part in zip(hands, np.split(rows, cuts), strict=True):
            hand.append(part)
    return [random.permutation(np.concatenate(hand)) for hand in hands]


def _write(path: Path, arrays: dict[str, npt.NDArray[np.uint8]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return path
