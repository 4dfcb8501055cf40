"""Which image fits a worker, and what our Dockerfiles have in common."""

from __future__ import annotations

import re

import pytest
import yaml

from edgeai.errors import Refused
from edgeai.launcher import images
from edgeai.launcher.images import AGGREGATION, BASE, DAEMON, IMAGES, NUMPY, TENSORFLOW, image_for
from edgeai.settings import shipped

EACH = pytest.mark.parametrize("image", [*IMAGES, DAEMON], ids=lambda image: image.folder)


@pytest.mark.parametrize(
    ("framework", "image"),
    [("tensorflow", TENSORFLOW), ("numpy", NUMPY), ("scikit-learn", NUMPY), ("", NUMPY)],
)
def test_the_framework_chooses_the_image(framework, image):
    assert image_for(framework) is image


def test_a_framework_without_an_image_is_refused_with_what_to_do():
    with pytest.raises(Refused, match="frameworkType caffe: name an image in the manifest, or use numpy, "):
        image_for("caffe")


@EACH
def test_every_image_has_a_dockerfile_that_ends_as_a_user_without_rights(image):
    dockerfile = (image.context / "Dockerfile").read_text()

    assert re.search(r"^USER (1000[12]):\1$", dockerfile.rpartition("FROM ")[2], re.MULTILINE)


@EACH
def test_every_dockerfile_starts_from_the_base_that_the_builder_names(image):
    assert f"ARG BASE={BASE}\n" in (image.context / "Dockerfile").read_text()


@EACH
def test_every_first_stage_carries_the_label_by_which_it_is_removed(image):
    first = (image.context / "Dockerfile").read_text().split("FROM ")[1]

    assert first.startswith("${BASE} AS build\nARG BUILD\nLABEL edgeai.build=${BUILD}\n")


def test_a_tag_carries_our_version():
    assert AGGREGATION.tag == f"edgeai/worker-aggregation:{images.own_version()}"


def test_a_local_version_becomes_a_tag_that_an_engine_takes(monkeypatch):
    monkeypatch.setattr(images, "own_version", lambda: "1.0+lab.2")
    assert AGGREGATION.tag == "edgeai/worker-aggregation:1.0-lab.2"


def test_the_compose_file_names_the_image_of_this_version():
    services = yaml.safe_load(shipped("brokers/compose.yaml").read_text())["services"]

    assert {each["image"] for each in services.values()} == {
        f"{DAEMON.name}:${{EDGEAI_VERSION:-{images.own_version()}}}"
    }
