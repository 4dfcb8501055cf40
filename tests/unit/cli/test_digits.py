from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgeai.cli.digits import MAX_EDGES, write_shards
from edgeai.errors import Refused

SOURCE = Path(__file__).parents[3] / "config" / "examples" / "digits.npz"
Shard = dict[str, npt.NDArray[np.uint8]]


def load(path: Path) -> Shard:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def deal(folder: Path, edges: int) -> list[Shard]:
    return [load(path) for path in write_shards(SOURCE, [folder / f"edge{number}" / "data" for number in range(edges)])]


def rows(x: npt.NDArray[np.uint8], y: npt.NDArray[np.uint8]) -> list[bytes]:
    return [image.tobytes() + bytes([label]) for image, label in zip(x, y, strict=True)]


def test_the_source_holds_1797_small_images_of_ten_digits() -> None:
    source = load(SOURCE)
    assert (source["x"].shape, source["x"].dtype, source["x"].max()) == ((1797, 8, 8), np.uint8, 16)
    assert (source["y"].shape, source["y"].dtype, np.unique(source["y"]).size) == ((1797,), np.uint8, 10)


@pytest.mark.parametrize("edges", [1, 2, 3, 10, MAX_EDGES])
def test_every_example_goes_to_exactly_one_place(tmp_path: Path, edges: int) -> None:
    source = load(SOURCE)
    dealt = [
        row
        for shard in deal(tmp_path, edges)
        for part in ("train", "test")
        for row in rows(shard[f"x_{part}"], shard[f"y_{part}"])
    ]
    assert len(dealt) == 1797
    assert sorted(dealt) == sorted(rows(source["x"], source["y"]))


@pytest.mark.parametrize("edges", [1, 2, 3, 5, 10])
def test_every_edge_gets_about_five_percent_or_more(tmp_path: Path, edges: int) -> None:
    assert min(len(shard["y_train"]) + len(shard["y_test"]) for shard in deal(tmp_path, edges)) > 0.045 * 1797


@pytest.mark.parametrize("edges", [1, 3, 10, MAX_EDGES])
def test_a_fifth_of_every_shard_is_held_out(tmp_path: Path, edges: int) -> None:
    for shard in deal(tmp_path, edges):
        count = len(shard["y_train"]) + len(shard["y_test"])
        assert len(shard["y_test"]) == max(1, round(count / 5))
        assert len(shard["y_train"]) >= 1


def test_edges_see_the_digits_in_different_mixes(tmp_path: Path) -> None:
    counts = np.array([np.bincount(shard["y_train"], minlength=10) for shard in deal(tmp_path, 3)])
    mixes = counts / counts.sum(axis=1, keepdims=True)
    distances = [np.abs(mixes[a] - mixes[b]).sum() / 2 for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(distances) > 0.25


def test_the_same_number_of_edges_always_gives_the_same_files(tmp_path: Path) -> None:
    deal(tmp_path / "once", 3)
    deal(tmp_path / "again", 3)
    names = [f"edge{number}/data/digits.npz" for number in range(3)]
    assert [(tmp_path / "once" / name).read_bytes() for name in names] == [
        (tmp_path / "again" / name).read_bytes() for name in names
    ]


def test_a_shard_stands_alone_in_its_folder(tmp_path: Path) -> None:
    [path] = write_shards(SOURCE, [tmp_path / "data"])
    write_shards(SOURCE, [tmp_path / "data"])
    assert list((tmp_path / "data").iterdir()) == [path]


@pytest.mark.parametrize("edges", [0, MAX_EDGES + 1])
def test_too_few_or_too_many_edges_are_refused(tmp_path: Path, edges: int) -> None:
    with pytest.raises(Refused, match="1 to 100 edges"):
        deal(tmp_path, edges)
