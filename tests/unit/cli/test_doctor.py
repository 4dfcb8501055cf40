"""What `edgeai doctor` says of our images."""

from __future__ import annotations

from edgeai.cli.doctor import images_text
from edgeai.launcher.images import DAEMON, IMAGES


def test_the_image_of_daemons_is_listed_when_it_is_there():
    assert images_text([]).split(", ") == [image.tag for image in (*IMAGES, DAEMON)]


def test_the_image_of_daemons_is_not_missed():
    assert images_text([DAEMON]) == ", ".join(image.tag for image in IMAGES)


def test_without_any_image_it_says_what_makes_them():
    assert images_text([*IMAGES, DAEMON]) == "none of our images; `edgeai images build` makes the others"
