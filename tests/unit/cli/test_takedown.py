"""What is left of a demo: nothing, unless only its folder knows of a container that is still there."""

from __future__ import annotations

from pathlib import Path

from edgeai.cli.takedown import remove_folder
from edgeai.launcher.records import Record, Records


def test_the_folder_of_a_demo_stays_while_it_names_a_container(tmp_path: Path):
    slot = tmp_path / "demo/edge1/slots/task/work1"
    (slot / ".container").mkdir(parents=True)
    records = Records(slot)
    records.write(Record("owner", "name", "id", "boot", 1))

    remove_folder(tmp_path / "demo")
    assert slot.exists()

    records.forget()
    remove_folder(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
