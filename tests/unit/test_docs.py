"""Pages that are made from the code are what the code says today."""

from pathlib import Path

from edgeai.events.reference import markdown

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_of_events_is_the_catalogue():
    assert (DOCS / "events.md").read_text() == markdown()
