"""The catalogue: every event has a kind that is a level of an address, a class and a direction, and can be told apart."""

from __future__ import annotations

import ast
import inspect
from dataclasses import is_dataclass

import pytest

from edgeai.errors import MalformedEvent
from edgeai.events import catalogue
from edgeai.events.address import Address, Direction, EventClass
from edgeai.events.catalogue import CATALOGUE, Assignment, BlobRef, Event, Fact, Fetch, Receipt, Role
from edgeai.events.envelope import body_of, value_of

events = pytest.mark.parametrize("event", CATALOGUE.values(), ids=CATALOGUE)
DIGEST = "a" * 64


@events
def test_an_event_is_an_immutable_value(event):
    assert is_dataclass(event)
    assert event.__dataclass_params__.frozen
    assert "__slots__" in vars(event)


@events
def test_an_event_fits_an_address(event):
    address = Address("edge1", event.direction, event.event_class, event.kind)
    assert Address.from_topic(address.topic()) == address


@events
def test_an_event_is_found_under_its_kind(event):
    assert CATALOGUE[event.kind] is event


@events
def test_an_event_says_what_it_means_unless_its_name_does(event):
    documented = inspect.getdoc(event) is not None and not inspect.getdoc(event).startswith(f"{event.__name__}(")
    assert documented or issubclass(event, Fact)


def test_facts_go_up_and_nothing_else_is_a_fact():
    for event in CATALOGUE.values():
        assert issubclass(event, Fact) == (event.event_class is EventClass.FACT)
        assert not issubclass(event, Fact) or event.direction is Direction.UP


def test_every_fact_names_its_task():
    for event in CATALOGUE.values():
        if issubclass(event, Fact):
            assert "task_uid" in event.__dataclass_fields__, event.kind


def test_no_event_of_the_module_is_missing_in_the_catalogue():
    classes = [node for node in ast.parse(inspect.getsource(catalogue)).body if isinstance(node, ast.ClassDef)]
    kinds = [
        statement.value.value
        for node in classes
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.target.id == "kind"
        and isinstance(statement.value, ast.Constant)
    ]
    assert sorted(kinds) == sorted(CATALOGUE)


def test_the_base_of_all_events_is_none():
    assert Event not in CATALOGUE.values()
    assert Fact not in CATALOGUE.values()


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "a" * 62 + "/."]
)
def test_what_becomes_part_of_a_path_is_a_digest_or_refused(digest):
    with pytest.raises(MalformedEvent, match="digest"):
        value_of(BlobRef, {"digest": digest, "size_bytes": 1})
    with pytest.raises(MalformedEvent, match="digest"):
        value_of(Fetch, {"digest": digest, "ranges": []})


@pytest.mark.parametrize("size_bytes", [-1, 2**63, "one", 1.5, None])
def test_a_size_is_a_number_that_a_file_can_have(size_bytes):
    with pytest.raises(MalformedEvent, match="size_bytes"):
        value_of(BlobRef, {"digest": DIGEST, "size_bytes": size_bytes})


@pytest.mark.parametrize("number", [-1, 2**63, 2**64 - 1])
def test_a_sequence_is_a_number_that_a_database_holds(number):
    document = {"source": "edge1", "source_incarnation": 1, "source_sequence": number}
    with pytest.raises(MalformedEvent, match="source_sequence"):
        value_of(Receipt, document)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "a" * 60])
@pytest.mark.parametrize("field", ["task", "worker"])
def test_the_folders_of_a_slot_are_levels(field, name):
    assignment = Assignment("t-0a1b2c3d", "t", "0" * 32, 1, "work0", Role.TRAINING)
    with pytest.raises(MalformedEvent, match=field):
        value_of(Assignment, body_of(assignment) | {field: name})
