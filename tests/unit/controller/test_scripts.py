"""Script bundles are unpacked only into their folder; a framework is there in the wanted version, or a sentence says so."""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeai.controller import scripts
from edgeai.controller.scripts import PreparationProblem, require_boot_file, require_framework, unpack
from edgeai.store.bundles import ScriptFields, pack_scripts


def bundle(*entries: tarfile.TarInfo | str, content: bytes = b"print(1)\n") -> bytes:
    """A tar of these entries; a text is the name of a regular file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for each in entries:
            entry = each if isinstance(each, tarfile.TarInfo) else regular(each, len(content))
            archive.addfile(entry, io.BytesIO(content) if entry.isreg() else None)
    return packed.getvalue()


def regular(name: str, size_bytes: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size_bytes
    return entry


def special(kind: bytes, name: str = "main.py", target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "slot" / "script"


def refused(packed: bytes, folder: Path, boot_file: str = "main.py") -> str:
    """Why a bundle is refused; nothing of it is left."""
    before = sorted(folder.parent.rglob("*")) if folder.parent.exists() else []
    with pytest.raises(PreparationProblem) as caught:
        unpack(packed, folder, boot_file)
    assert "\n" not in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before
    return str(caught.value)


def test_what_apply_packs_is_unpacked_as_it_was(tmp_path, folder):
    (tmp_path / "train" / "nets").mkdir(parents=True)
    (tmp_path / "train" / "main.py").write_text("print(1)\n")
    (tmp_path / "train" / "nets" / "cnn.py").write_text("layers = 3\n")
    unpack(pack_scripts(tmp_path / "train", "main.py", ScriptFields.of_training(0)), folder, "main.py")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["main.py", "nets", "nets/cnn.py"]
    assert (folder / "main.py").read_text() == "print(1)\n"


def test_a_new_bundle_replaces_the_whole_folder(folder):
    unpack(bundle("main.py", "old.py"), folder, "main.py")
    unpack(bundle("main.py", "new.py"), folder, "main.py")
    assert sorted(path.name for path in folder.iterdir()) == ["main.py", "new.py"]
    assert [path.name for path in folder.parent.iterdir()] == ["script"]


def test_what_a_crash_has_left_is_replaced(folder):
    left = folder.with_name("script.new")
    left.mkdir(parents=True)
    (left / "half.py").write_text("x")
    unpack(bundle("main.py"), folder, "main.py")
    assert [path.name for path in folder.parent.iterdir()] == ["script"]


def test_a_refused_bundle_leaves_the_folder_as_it_was(folder):
    unpack(bundle("main.py"), folder, "main.py")
    refused(bundle("other.py"), folder)
    assert [path.name for path in folder.iterdir()] == ["main.py"]


@pytest.mark.parametrize(
    "entry",
    [
        special(tarfile.SYMTYPE, target="/etc/passwd"),
        special(tarfile.SYMTYPE, target="other.py"),
        special(tarfile.LNKTYPE, target="/etc/passwd"),
        special(tarfile.FIFOTYPE),
        special(tarfile.CHRTYPE),
        special(tarfile.BLKTYPE),
    ],
    ids=["link out", "link", "hard link", "pipe", "character device", "block device"],
)
def test_links_and_devices_are_refused(folder, entry):
    assert "'main.py', which is neither file nor folder" in refused(bundle("ok.py", entry), folder)


@pytest.mark.parametrize("name", ["../main.py", "a/../../main.py", "/tmp/main.py", "a/../main.py"])
def test_paths_that_lead_out_are_refused(tmp_path, folder, name):
    assert "which leads out of its folder" in refused(bundle("main.py", name), folder)
    assert not list(tmp_path.glob("main.py"))


@pytest.mark.parametrize(
    "packed",
    [b"", b"not a tar" * 100, bundle("main.py")[:700], b"\0" * 100],
    ids=["nothing", "text", "cut", "zeros"],
)
def test_what_is_no_bundle_is_refused(folder, packed):
    assert "the script bundle cannot be unpacked" in refused(packed, folder) or "is not in trainScriptDir" in refused(
        packed, folder
    )


def test_a_compressed_bundle_is_refused_before_it_is_unpacked(folder):
    """A few kilobytes could become any number of gigabytes."""
    assert "cannot be unpacked" in refused(gzip.compress(bundle("main.py", content=bytes(10**7))), folder)


def test_a_bundle_with_too_much_in_it_is_refused(folder, monkeypatch):
    monkeypatch.setattr(scripts, "MAX_BUNDLE_BYTES", 2**20)
    assert "holds more than 1 MiB" in refused(bundle("main.py", content=bytes(2**20 + 1)), folder)


def test_a_bundle_with_too_many_files_is_refused(folder, monkeypatch):
    monkeypatch.setattr(scripts, "MAX_BUNDLE_FILES", 3)
    assert "or 3 files" in refused(bundle(*(f"{number}.py" for number in range(4))), folder)


def test_a_sparse_file_is_refused(folder):
    """It would be small in the bundle and of any size on disk."""
    entry = special(tarfile.GNUTYPE_SPARSE)
    assert refused(bundle(entry), folder)


def test_nothing_in_a_bundle_is_executable_for_others_or_owned_by_somebody_else(folder):
    entry = tarfile.TarInfo("main.py")
    entry.mode, entry.uid, entry.gid = 0o7777, 12345, 12345
    unpack(bundle(entry), folder, "main.py")
    status = (folder / "main.py").stat()
    assert (status.st_uid, status.st_mode & 0o7022) == (os.getuid(), 0)
    assert folder.stat().st_mode & 0o077 == 0


# --- the boot file


@pytest.mark.parametrize(
    "boot_file", ["other.py", "", ".", "nets", "../script/main.py/..", "/etc/passwd", "../outside.py"]
)
def test_a_boot_file_that_is_not_in_the_bundle_is_refused(folder, boot_file):
    folder.parent.mkdir(parents=True)
    (folder.parent / "outside.py").write_text("x")
    assert f"trainScriptBootFile {boot_file} is not in trainScriptDir" in refused(
        bundle("main.py", "nets/a.py"), folder, boot_file
    )


def test_a_boot_file_may_lie_deeper(folder):
    unpack(bundle("nets/main.py"), folder, "nets/main.py")
    require_boot_file(folder, "nets/main.py")


def test_a_boot_file_that_is_a_link_out_of_an_absolute_folder_is_refused(tmp_path):
    (tmp_path / "secret.py").write_text("x")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "main.py").symlink_to(tmp_path / "secret.py")
    with pytest.raises(PreparationProblem, match="is not in trainScriptDir"):
        require_boot_file(tmp_path / "train", "main.py")


# --- frameworks


def test_a_worker_without_a_framework_needs_none():
    require_framework("", "", "edge1")


@pytest.mark.parametrize("wanted", ["", ">=1", f"=={np.__version__}"])
def test_a_framework_that_is_installed_is_accepted(wanted):
    require_framework("numpy", wanted, "edge1")


def test_a_framework_that_is_not_installed_is_named_with_the_command():
    with pytest.raises(PreparationProblem) as caught:
        require_framework("no-such-framework", "", "edge1")
    sentence = str(caught.value)
    assert sentence.startswith("framework no-such-framework is not installed on edge1: run `")
    assert sentence.endswith("-m pip install no-such-framework` there")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What is installed, by distribution."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def test_a_framework_in_another_version_is_named_with_both(installed):
    installed["numpy"] = "1.26.4"
    with pytest.raises(PreparationProblem) as caught:
        require_framework("numpy", ">=2", "edge1")
    assert str(caught.value) == "numpy 1.26.4 on edge1 is not >=2: install another version or change frameworkVersion"


@pytest.mark.parametrize(
    ("framework", "distribution"),
    [
        ("tensorflow", "tensorflow"),
        ("tensorflow", "tensorflow-cpu"),
        ("pytorch", "torch"),
        ("sklearn", "scikit-learn"),
        ("jax", "jax"),
    ],
)
def test_a_framework_is_found_under_the_names_of_its_distributions(installed, framework, distribution):
    installed[distribution] = "2.15.0"
    require_framework(framework, ">=2.15,<3", "edge1")


def test_a_release_candidate_is_a_version(installed):
    installed["tensorflow"] = "2.16.0rc0"
    require_framework("tensorflow", ">=2.15", "edge1")


@pytest.mark.parametrize(("wanted", "version"), [("newest", "2.0"), (">=2", "unknown")])
def test_versions_that_cannot_be_compared_are_a_problem_and_no_crash(installed, wanted, version):
    installed["numpy"] = version
    with pytest.raises(PreparationProblem, match=r"cannot be compared|is not >=2"):
        require_framework("numpy", wanted, "edge1")
