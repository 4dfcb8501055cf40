"""What an engine is given to build an image."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgeai.errors import LaunchError, NotFound
from edgeai.launcher import packing
from edgeai.launcher.images import AGGREGATION, DAEMON, NUMPY, own_version
from edgeai.launcher.packing import framework_in, own_wheel, packed, wheels_for

NUMPY_WHEEL = "numpy-2.4.6-cp311-cp311-linux_x86_64.whl"
OWN = f"edgeai-{own_version()}-py3-none-any.whl"


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    for name in ("rich-15-py3-none-any.whl", f"federated-numpy/{NUMPY_WHEEL}", "daemon/mosquitto_2_amd64.deb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names_in(image, wheelhouse: Path) -> list[str]:
    with packed(image, wheels_for(image, wheelhouse), wheelhouse) as context, tarfile.open(context) as tar:
        return tar.getnames()


def test_the_engine_is_given_the_folder_and_the_wheels_of_the_image(wheelhouse):
    names = names_in(NUMPY, wheelhouse)

    assert {"Dockerfile", "main.py"} <= set(names)
    assert {name for name in names if "/" in name} == {
        f"wheelhouse/{name}" for name in ("rich-15-py3-none-any.whl", NUMPY_WHEEL, OWN)
    }


def test_wheels_of_other_images_stay_here(wheelhouse):
    assert f"wheelhouse/{NUMPY_WHEEL}" not in names_in(AGGREGATION, wheelhouse)


def test_debian_packages_go_with_the_image_that_they_are_for(wheelhouse):
    assert "debs/mosquitto_2_amd64.deb" in names_in(DAEMON, wheelhouse)


def test_edgeai_is_the_one_that_runs_whatever_the_wheelhouse_holds(wheelhouse):
    (wheelhouse / "edgeai-0.0.1-py3-none-any.whl").touch()

    assert [name for name in names_in(AGGREGATION, wheelhouse) if "edgeai" in name] == [f"wheelhouse/{OWN}"]


def test_the_framework_in_a_wheelhouse_gives_the_version(wheelhouse):
    assert framework_in(NUMPY, wheels_for(NUMPY, wheelhouse)) == ("numpy", "2.4.6")


def test_an_empty_wheelhouse_is_an_error(tmp_path):
    with pytest.raises(NotFound, match="fill it with `pip wheel"):
        wheels_for(NUMPY, tmp_path)


def test_nothing_is_left_of_what_the_engine_was_given(wheelhouse):
    with packed(AGGREGATION, [], wheelhouse) as context:
        pass
    assert not context.parent.exists()


def test_a_full_disk_is_told_with_what_to_do(wheelhouse, monkeypatch):
    def full(_: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packing, "own_wheel", full)
    with pytest.raises(LaunchError, match=r"cannot be packed in .*: No space left on device; TMPDIR names"):
        names_in(AGGREGATION, wheelhouse)


def test_our_wheel_is_one_that_installers_take(tmp_path):
    with zipfile.ZipFile(own_wheel(tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    [found] = importlib.metadata.distributions(path=[str(tmp_path / "site")])

    assert (found.name, found.version) == ("edgeai", own_version())
    assert [entry.name for entry in found.entry_points] == ["edgeai"]
    assert any(need.startswith("aiomqtt") for need in found.requires or [])
    assert not any("extra ==" in need for need in found.requires or [])


def test_our_wheel_holds_what_daemons_need_besides_code_and_nothing_of_users(tmp_path):
    names = zipfile.ZipFile(own_wheel(tmp_path)).namelist()

    assert {"edgeai/_shipped/brokers/mosquitto.acl", "edgeai/_shipped/workers/federated-numpy/main.py"} <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".whl", ".deb"))]
