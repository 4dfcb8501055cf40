"""What `apply` packs: the same bytes for the same content, and a sentence for what cannot be packed."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeai.errors import ManifestError
from edgeai.store import bundles
from edgeai.store.arrays import ArrayFile, write_arrays
from edgeai.store.bundles import ScriptFields, pack_model, pack_scripts
from edgeai.store.files import digest_bytes

FIELDS = ScriptFields.of_training(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "train"
    (made / "nets").mkdir(parents=True)
    (made / "main.py").write_text("print(1)\n")
    (made / "nets" / "cnn.py").write_text("layers = 3\n")
    return made


def names(bundle: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        return archive.getnames()


def refused(folder: Path, boot_file: str = "main.py") -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        pack_scripts(folder, boot_file, FIELDS)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_folder_is_packed_with_what_is_in_it(folder):
    assert names(pack_scripts(folder, "main.py", FIELDS)) == ["main.py", "nets/cnn.py"]


def test_the_same_content_is_the_same_bytes(folder, tmp_path):
    before = pack_scripts(folder, "main.py", FIELDS)
    (folder / "main.py").chmod(0o700)
    os.utime(folder / "main.py", (0, 0))
    other = folder.rename(tmp_path / "elsewhere")
    assert pack_scripts(other, "main.py", FIELDS) == before


def test_another_content_is_other_bytes(folder):
    before = pack_scripts(folder, "main.py", FIELDS)
    (folder / "main.py").write_text("print(2)\n")
    assert pack_scripts(folder, "main.py", FIELDS) != before


def test_nobody_is_named_in_a_bundle(folder):
    with tarfile.open(fileobj=io.BytesIO(pack_scripts(folder, "main.py", FIELDS))) as archive:
        for entry in archive:
            assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime, entry.mode) == (0, 0, "", "", 0, 0o644)


def test_caches_links_and_special_files_are_left_out(folder, tmp_path):
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "main.pyc").write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (tmp_path / "secret").write_text("x")
    (folder / "link.py").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    assert names(pack_scripts(folder, "main.py", FIELDS)) == ["main.py", "nets/cnn.py"]


def test_a_boot_file_may_lie_deeper(folder):
    assert pack_scripts(folder, "nets/cnn.py", FIELDS)
    assert pack_scripts(folder, "./main.py", FIELDS)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    error = refused(tmp_path / "nothing")
    assert (error.field, error.what) == (FIELDS.folder, f"{tmp_path / 'nothing'} is not a folder")


@pytest.mark.parametrize("boot_file", ["other.py", "nets", "../train/main.py"])
def test_a_boot_file_that_is_not_packed_is_refused(folder, boot_file):
    error = refused(folder, boot_file)
    assert (error.field, error.what) == (FIELDS.boot_file, f"{boot_file} is not in {folder}")


def test_a_boot_file_that_is_a_link_is_refused_here_and_not_on_the_node(folder):
    (folder / "boot.py").symlink_to(folder / "main.py")
    assert refused(folder, "boot.py").field == FIELDS.boot_file


def test_a_folder_with_too_much_in_it_is_refused(folder, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_BUNDLE_BYTES", 2 * 2**20)
    (folder / "weights.bin").write_bytes(bytes(3 * 2**20))
    assert "holds more than 2 MiB" in refused(folder).what


def test_a_folder_with_too_many_files_is_refused(folder, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_BUNDLE_FILES", 1)
    assert "or 1 files" in refused(folder).what


def test_a_path_that_is_too_long_for_a_bundle_is_refused(folder):
    (folder / ("a" * 200)).mkdir()
    (folder / ("a" * 200) / ("b" * 150)).write_text("x")
    error = refused(folder)
    assert "cannot be packed" in error.what


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read everything")
def test_a_file_that_cannot_be_read_is_refused(folder):
    (folder / "main.py").chmod(0)
    assert "cannot be packed" in refused(folder).what


# --- models

ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2], np.int64)]


def packed(path: Path, kind: str, tmp_path: Path) -> list[np.ndarray]:
    target = tmp_path / "target"
    digest, size_bytes = pack_model(path, kind, target)
    file = ArrayFile.open(target, digest)
    assert target.stat().st_size == size_bytes
    return [np.array(array) for array in file]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_an_npz_model_keeps_the_order_of_its_file(tmp_path):
    np.savez(tmp_path / "m.npz", z=ARRAYS[0], a=ARRAYS[1])
    assert_same(packed(tmp_path / "m.npz", "npz", tmp_path), ARRAYS)


def test_a_safetensors_model_keeps_the_order_of_its_metadata(tmp_path):
    write_arrays(tmp_path / "m.safetensors", ARRAYS)
    assert_same(packed(tmp_path / "m.safetensors", "safetensors", tmp_path), ARRAYS)


def pickled(path: Path) -> None:
    np.savez(path, x=np.array([object()], dtype=object), allow_pickle=True)


def single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, ARRAYS[0])


def cut(path: Path) -> None:
    np.savez(path, x=ARRAYS[0])
    os.truncate(path, path.stat().st_size - 40)


def bit(path: Path) -> None:
    np.savez(path, x=np.zeros(1000))
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)


def text(path: Path) -> None:
    path.write_text("not a model")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder_instead(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize(
    "make", [pickled, single, cut, bit, text, empty, folder_instead], ids=lambda make: make.__name__
)
def test_what_is_not_a_model_is_refused_in_one_line(tmp_path, kind, make):
    path = tmp_path / f"model.{'npz' if make in (pickled, cut, bit) else kind}"
    make(path)
    with pytest.raises(ManifestError) as caught:
        pack_model(path, kind, tmp_path / "target")
    assert (caught.value.field, str(path) in str(caught.value), "\n" in str(caught.value)) == ("spec.url", True, False)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_model_that_does_not_exist_is_refused(tmp_path, kind):
    with pytest.raises(ManifestError, match="does not exist"):
        pack_model(tmp_path / "nothing", kind, tmp_path / "target")


def test_arrays_that_do_not_travel_are_refused_by_name(tmp_path):
    np.savez(tmp_path / "m.npz", x=np.array(["text"]))
    with pytest.raises(ManifestError, match="does not travel"):
        pack_model(tmp_path / "m.npz", "npz", tmp_path / "target")


@pytest.mark.parametrize("kind", ["keras", "onnx", "file"])
def test_a_model_of_another_format_is_stored_as_the_file_it_is(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        archive.writestr("config.json", "{}")
    digest, size_bytes = pack_model(tmp_path / "m", kind, tmp_path / "target")
    content = (tmp_path / "m").read_bytes()
    assert (tmp_path / "target").read_bytes() == content
    assert (digest, size_bytes) == (digest_bytes(content), len(content))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_no_model(tmp_path, protocol):
    (tmp_path / "m.bin").write_bytes(pickle.dumps({"w": [1.0]}, protocol=protocol))
    with pytest.raises(ManifestError, match="is a pickle, which runs code") as caught:
        pack_model(tmp_path / "m.bin", "file", tmp_path / "target")
    assert caught.value.field == "spec.url"
    assert not (tmp_path / "target").exists()


def test_a_keras_model_is_a_zip_archive(tmp_path):
    (tmp_path / "m.keras").write_text("weights")
    with pytest.raises(ManifestError, match="is not a keras model"):
        pack_model(tmp_path / "m.keras", "keras", tmp_path / "target")


@pytest.mark.parametrize(("make", "what"), [(Path.mkdir, "is a folder"), (lambda _: None, "does not exist")])
def test_a_model_is_one_file(tmp_path, make, what):
    make(tmp_path / "m.onnx")
    with pytest.raises(ManifestError, match=what):
        pack_model(tmp_path / "m.onnx", "onnx", tmp_path / "target")


def test_what_is_wrong_with_the_script_of_a_stage_is_said_by_its_field(tmp_path):
    with pytest.raises(ManifestError) as caught:
        pack_scripts(tmp_path / "nothing", "main.py", ScriptFields.of_stage("eval"))
    assert caught.value.field == "spec.eval.workerSpec.scriptDir"
