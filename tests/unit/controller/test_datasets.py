"""A node's datasets: only what lies under an allowed root and is what its format says; every problem in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeai.controller.datasets import (
    MAX_COLUMNS,
    MAX_LINE,
    MAX_NAME,
    DatasetProblem,
    local_path,
    under_allowed_roots,
    verify,
)
from edgeai.events.catalogue import DatasetObserved, DatasetWanted, Observed
from edgeai.events.envelope import Envelope, Header, decode, encode
from edgeai.store.files import digest_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def found(path: Path | str, root: Path, kind: str = "") -> DatasetObserved:
    return verify(DatasetWanted("d", str(path), kind or Path(path).suffix[1:]), [root])


def problem(path: Path | str, root: Path, kind: str = "") -> str:
    """Why the dataset cannot be used."""
    observed = found(path, root, kind)
    assert (observed.ready, observed.samples, observed.digest, observed.schema) == (False, 0, "", {})
    assert observed.reason
    assert "\n" not in observed.reason
    return observed.reason


def digits(path: Path, samples: int = 10) -> Path:
    np.savez(path, x=np.zeros((samples, 64), np.float32), y=np.zeros(samples, np.int64), x_test=np.zeros((50, 64)))
    return path


# --- what is found


def test_an_npz_file_is_described(root):
    path = digits(root / "d.npz")
    observed = found(path, root)
    assert (observed.ready, observed.samples, observed.digest) == (True, 10, digest_of(path))
    assert observed.schema == {"x": "float32", "y": "int64", "x_test": "float64"}


def test_the_shape_of_one_example_of_an_npz_file_is_told(root):
    assert found(digits(root / "d.npz"), root).shapes == {"x": (64,), "y": (), "x_test": (64,)}


def test_a_compressed_npz_file_is_described(root):
    np.savez_compressed(root / "d.npz", x=np.ones((7, 3)), order=np.ones((2, 2), order="F"), scalar=np.float64(1.0))
    observed = found(root / "d.npz", root)
    assert (observed.samples, observed.schema) == (
        7,
        {"x": "float64", "order": "float64", "scalar": "float64"},
    )


def test_a_csv_file_is_described(root):
    (root / "d.csv").write_text('label,text\n1,a\n\n2,"b,\nc"\n')
    observed = found(root / "d.csv", root)
    assert (observed.ready, observed.samples, observed.schema) == (True, 2, {"label": "text", "text": "text"})


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_path_may_be_a_url(root, form):
    path = digits(root / "d 1.npz")
    url = form.format(path).replace(" ", "%20" if form.startswith("file") else " ")
    assert found(url, root, "npz").ready


def test_a_link_inside_the_root_leads_to_its_file(root):
    (root / "link.npz").symlink_to(digits(root / "d.npz"))
    assert local_path(str(root / "link.npz"), [root]) == root / "d.npz"


def test_one_of_several_roots_is_enough(root, tmp_path):
    assert local_path(str(digits(root / "d.npz")), [tmp_path / "other", root])


def test_a_root_may_be_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    digits(root / "d.npz")
    assert local_path(str(tmp_path / "link" / "d.npz"), [tmp_path / "link"]) == root / "d.npz"


# --- where it may lie


def test_a_file_outside_the_roots_is_refused(root, tmp_path):
    path = digits(tmp_path / "d.npz")
    assert problem(path, root).startswith(f"{path} is not under an allowed root of this node (allowed_roots: {root})")


def test_without_roots_nothing_may_be_read(root):
    path = digits(root / "d.npz")
    observed = verify(DatasetWanted("d", str(path), "npz"), [])
    assert "allowed_roots: none" in observed.reason


def test_whether_a_file_outside_exists_is_not_told(root):
    assert (
        problem("/etc/passwd.npz", root).split(" (")[0] == "/etc/passwd.npz is not under an allowed root of this node"
    )
    assert problem("/etc/passwd", root, "npz").split(" (")[0] == "/etc/passwd is not under an allowed root of this node"


@pytest.mark.parametrize("path", ["../d.npz", "sub/../../d.npz", "./.././d.npz"])
def test_dots_do_not_lead_out(root, tmp_path, path):
    digits(tmp_path / "d.npz")
    assert "is not under an allowed root" in problem(f"{root}/{path}", root)


def test_a_root_is_a_folder_and_not_a_prefix(root, tmp_path):
    beside = tmp_path / "data-of-others"
    beside.mkdir()
    assert "is not under an allowed root" in problem(digits(beside / "d.npz"), root)


def test_a_link_that_leads_out_is_refused(root, tmp_path):
    (root / "d.npz").symlink_to(digits(tmp_path / "d.npz"))
    assert "is not under an allowed root" in problem(root / "d.npz", root)


def test_a_linked_folder_that_leads_out_is_refused(root, tmp_path):
    digits(tmp_path / "d.npz")
    (root / "out").symlink_to(tmp_path)
    assert "is not under an allowed root" in problem(root / "out" / "d.npz", root)


def test_links_in_a_circle_are_refused(root):
    (root / "a.npz").symlink_to(root / "b.npz")
    (root / "b.npz").symlink_to(root / "a.npz")
    assert problem(root / "a.npz", root)


@pytest.mark.parametrize("url", ["d.npz", "./d.npz", "", "file:d.npz", "s3://bucket/d.npz"])
def test_what_is_no_absolute_path_is_refused(root, url):
    assert "is not an absolute path on this node" in problem(url, root, "npz")


@pytest.mark.parametrize("url", ["/data/\0.npz", "/" + "a" * 5000, "file:///%00"], ids=["nul", "long", "nul in a url"])
def test_a_path_that_no_file_system_takes_is_refused(root, url):
    assert problem(url, root, "npz")


def test_a_file_that_does_not_exist_is_said_to(root):
    assert problem(root / "d.npz", root).startswith(f"{root / 'd.npz'} does not exist on this node")


def test_a_folder_is_no_dataset(root):
    (root / "d.npz").mkdir()
    assert "is not a regular file" in problem(root / "d.npz", root)


def test_a_pipe_is_no_dataset(root):
    """Reading one would never end."""
    os.mkfifo(root / "d.npz")
    assert "is not a regular file" in problem(root / "d.npz", root)


def test_a_folder_may_be_asked_for(root):
    assert under_allowed_roots(root, [root], want_file=False) == root
    with pytest.raises(DatasetProblem, match="is not a regular file"):
        under_allowed_roots(root, [root], want_file=True)


# --- what is in it


def test_a_format_that_is_not_supported_is_refused_with_those_that_are(root):
    (root / "d.pickle").write_text("x")
    formats = "npz, csv, jsonl, txt list, image folder, parquet"
    assert problem(root / "d.pickle", root) == f"format pickle is not supported; use {formats}"


def test_pickled_objects_are_never_loaded(root, tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    np.savez(root / "d.npz", x=np.array([Evil()], dtype=object), allow_pickle=True)
    assert "pickled objects" in problem(root / "d.npz", root)
    assert not (tmp_path / "executed").exists()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def short(path: Path) -> None:
    """A header that promises more than there is."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read("x.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content[:-10])


def long(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        content = archive.read("x.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content + bytes(10))


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")


def text(path: Path) -> None:
    path.write_text("not an archive")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [cut, flipped, short, long, no_array, text, empty], ids=lambda damage: damage.__name__
)
def test_a_damaged_npz_file_is_refused(root, damage):
    damage(digits(root / "d.npz"))
    assert "is not an npz file without pickled objects" in problem(root / "d.npz", root)


def test_an_npz_file_without_arrays_is_refused(root):
    np.savez(root / "d.npz")
    assert problem(root / "d.npz", root) == f"{root / 'd.npz'} holds no arrays"


def test_a_csv_file_with_ragged_rows_is_refused_with_the_line(root):
    (root / "d.csv").write_text("a,b\n1,2\n3\n")
    assert problem(root / "d.csv", root) == f"{root / 'd.csv'}: line 3 has 1 columns, the header 2"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\n1,2\n", "is empty"),
        (b"a,b\n", "has a header and no rows"),
        (b"a,b\n\xff\xfe,1\n", "is not a CSV file in UTF-8"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", "is not a CSV file in UTF-8"),
        (b"a,b\n1," + b"x" * MAX_LINE, f"has a line of {MAX_LINE} characters or more"),
    ],
    ids=["nothing", "an empty header", "no rows", "another encoding", "a huge field", "a huge line"],
)
def test_what_is_no_csv_file_is_refused(root, content, why):
    (root / "d.csv").write_bytes(content)
    assert why in problem(root / "d.csv", root)


def test_a_wide_file_is_described_by_its_first_columns(root):
    """The whole of a schema would not fit the node's document, which tells of all its workers as well."""
    header, row = ",".join(f"{number}{'n' * 300}" for number in range(3000)), ",".join("1" * 3000)
    (root / "d.csv").write_text(f"{header}\n{row}\n")
    observed = found(root / "d.csv", root)
    assert (observed.ready, observed.samples, len(observed.schema)) == (True, 1, MAX_COLUMNS)
    assert {len(name) for name in observed.schema} == {MAX_NAME}


def test_what_was_found_can_be_told(root):
    np.savez(root / "d.npz", **{f"array{number}": np.zeros(1) for number in range(3000)})
    event = Observed(1, (), (found(root / "d.npz", root),))
    assert decode(encode(Envelope(Header("edge1"), event))).event == event


MEASURE = """
import resource, sys
from pathlib import Path
from edgeai.controller.datasets import verify
from edgeai.events.catalogue import DatasetWanted

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = verify(DatasetWanted("d", sys.argv[1], Path(sys.argv[1]).suffix[1:]), [Path(sys.argv[1]).parent])
assert found.ready, found.reason
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_memory_does_not_grow_with_the_file(root, kind):
    path = root / f"big.{kind}"
    if kind == "npz":
        np.savez_compressed(path, x=np.zeros((32 * 2**20,), np.float64))
    else:
        path.write_text("a,b\n" + "1,2\n" * 2_000_000)
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert measured.returncode == 0, measured.stderr
    assert int(measured.stdout) < 32 * 2**20
