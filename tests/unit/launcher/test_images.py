"""Which image fits a worker, and what an engine is given to build it."""

from __future__ import annotations

import tarfile

import pytest

from edgeai.errors import NotFound, Refused
from edgeai.launcher import images
from edgeai.launcher.images import AGGREGATION, IMAGES, NUMPY, TENSORFLOW, image_for
from edgeai.settings import shipped


@pytest.mark.parametrize(
    ("framework", "image"),
    [("tensorflow", TENSORFLOW), ("numpy", NUMPY), ("scikit-learn", NUMPY), ("", NUMPY)],
)
def test_the_framework_chooses_the_image(framework, image):
    assert image_for(framework) is image


def test_a_framework_without_an_image_is_refused_with_what_to_do():
    with pytest.raises(Refused, match="frameworkType caffe: name an image in the manifest, or use numpy, "):
        image_for("caffe")


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.folder)
def test_every_image_has_a_dockerfile_that_ends_as_a_user_without_rights(image):
    dockerfile = shipped(f"workers/{image.folder}/Dockerfile").read_text()

    assert "USER 10001:10001" in dockerfile.rpartition("FROM ")[2]


def test_a_tag_carries_our_version():
    assert AGGREGATION.tag == f"edgeai/worker-aggregation:{images.own_version()}"


def test_the_engine_is_given_the_folder_and_the_wheels(tmp_path):
    (tmp_path / "federated-numpy").mkdir()
    for name in ("edgeai-0.1.0-py3-none-any.whl", "federated-numpy/numpy-2.4.6-cp311-cp311-linux_x86_64.whl"):
        (tmp_path / name).touch()
    wheels = images._wheels(NUMPY, tmp_path)

    with images._context(shipped("workers/federated-numpy"), wheels) as context, tarfile.open(context) as tar:
        names = tar.getnames()

    assert "Dockerfile" in names
    assert [name for name in names if name.startswith("wheelhouse/")] == [
        f"wheelhouse/{wheel.name}" for wheel in wheels
    ]
    assert images._framework(NUMPY, wheels) == ("numpy", "2.4.6")


def test_an_empty_wheelhouse_is_an_error(tmp_path):
    with pytest.raises(NotFound, match="fill it with `pip wheel"):
        images._wheels(NUMPY, tmp_path)


@pytest.mark.parametrize(
    ("line", "step"), [("Step 3/14 : RUN x", (3, 14)), (" ---> abc", None), ("Step by step", None), ("", None)]
)
def test_steps_are_read_from_what_the_engine_says(line, step):
    assert images._step(line) == step
