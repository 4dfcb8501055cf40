"""Topic, subject and Address are three forms of one thing; patterns match what their text says; hostile names are refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeai.errors import AddressError
from edgeai.events.address import Address, Direction, EventClass, Pattern, checked_name, task_level

levels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,57}[a-z0-9])?", fullmatch=True)
few_levels = st.sampled_from(["a", "b", "a-b"])


def addresses(level: st.SearchStrategy[str]) -> st.SearchStrategy[Address]:
    optional = st.one_of(st.just(""), level)
    return st.builds(
        Address, level, st.sampled_from(Direction), st.sampled_from(EventClass), level, task=optional, worker=optional
    )


def patterns(level: st.SearchStrategy[str]) -> st.SearchStrategy[Pattern]:
    required, optional = st.one_of(st.none(), level), st.one_of(st.none(), st.just(""), level)
    return st.builds(
        Pattern,
        required,
        st.one_of(st.none(), st.sampled_from(Direction)),
        st.one_of(st.none(), st.sampled_from(EventClass)),
        required,
        optional,
        optional,
    )


HOSTILE = [
    "+",
    "#",
    "/",
    "$",
    ">",
    "*",
    ".",
    " ",
    "a b",
    "a.b",
    "a/b",
    "A",
    "ü",
    "a\n",
    "\n",
    "-",
    "-a",
    "a-",
    "a" * 60,
    "a\0",
]


@given(addresses(levels))
def test_topic_and_subject_lead_to_the_same_address(address):
    assert Address.from_topic(address.topic()) == Address.from_subject(address.subject()) == address


@given(addresses(levels))
def test_a_subject_is_the_topic_with_dots(address):
    assert address.subject() == address.topic().replace("/", ".")


@given(addresses(levels), addresses(levels))
def test_two_addresses_never_share_a_topic(one, other):
    assert (one.topic() == other.topic()) == (one == other)


def _as_regex(text: str, separator: str, wildcard: str) -> re.Pattern[str]:
    parts = ("[^/.]+" if part == wildcard else re.escape(part) for part in text.split(separator))
    return re.compile(re.escape(separator).join(parts))


@given(patterns(few_levels), addresses(few_levels))
def test_a_pattern_matches_what_a_broker_would_match(pattern, address):
    expected = _as_regex(pattern.topic(), "/", "+").fullmatch(address.topic()) is not None
    assert pattern.matches(address) == expected
    assert (_as_regex(pattern.subject(), ".", "*").fullmatch(address.subject()) is not None) == expected


@given(patterns(levels))
def test_a_pattern_has_one_wildcard_per_level_and_no_other(pattern):
    topic = pattern.topic().split("/")
    assert len(topic) == 8
    assert not {"#", ">", ""} & set(topic)


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
@pytest.mark.parametrize("place", ["node", "kind", "task", "worker"])
def test_a_hostile_level_is_refused_where_an_address_is_made(place, text):
    names = {"node": "edge1", "kind": "heartbeat", "task": "t", "worker": "w", place: text}
    with pytest.raises(AddressError):
        Address(names["node"], Direction.UP, EventClass.FACT, names["kind"], names["task"], names["worker"])


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
@pytest.mark.parametrize("place", ["node", "kind", "task", "worker"])
def test_a_hostile_level_is_refused_in_a_pattern(place, text):
    with pytest.raises(AddressError):
        Pattern(**{place: text})


@pytest.mark.parametrize("place", ["node", "kind"])
def test_node_and_kind_are_never_empty(place):
    names = {"node": "edge1", "kind": "heartbeat", place: ""}
    with pytest.raises(AddressError):
        Address(names["node"], Direction.UP, EventClass.FACT, names["kind"])


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edgeai",
        "edgeai/1",
        "edgeai/1/edge1/up/fact/kind/-",
        "edgeai/1/edge1/up/fact/kind/-/-/-",
        "edgeai/1//up/fact/kind/-/-",
        "edgeai/1/-/up/fact/kind/-/-",
        "edgeai/1/edge1/up/fact/-/-/-",
        "edgeai/1/edge1/up/fact//-/-",
        "edgeai/1/edge1/up/fact/kind//-",
        "edgeai/1/edge1/sideways/fact/kind/-/-",
        "edgeai/1/edge1/up/rumour/kind/-/-",
        "edgeai/1/edge1/up/fact/kind/-/+",
        "/edgeai/1/edge1/up/fact/kind/-",
        "other/1/edge1/up/fact/kind/-/-",
        "$SYS/1/edge1/up/fact/kind/-/-",
        "edgeai.1.edge1.up.fact.kind.-.-",
        "edgeai/1/edge1/up/fact/kind/-/w\n",
    ],
)
def test_a_topic_that_does_not_fit_is_refused(topic):
    with pytest.raises(AddressError):
        Address.from_topic(topic)


def test_another_version_of_the_scheme_is_refused_by_name():
    with pytest.raises(AddressError, match="version '2' is unknown here"):
        Address.from_topic("edgeai/2/edge1/up/fact/kind/-/-")


@pytest.mark.parametrize("length", [513, 100_000])
def test_a_topic_of_more_than_512_characters_is_refused_before_it_is_looked_at(length):
    with pytest.raises(AddressError, match="longer than 512 characters"):
        Address.from_topic("a" * length)


def test_a_refusal_quotes_no_more_than_eighty_characters():
    with pytest.raises(AddressError) as caught:
        Address.from_topic("é" * 400)
    assert len(str(caught.value)) < 200


@given(st.text(max_size=600))
def test_any_text_is_an_address_or_refused(text):
    for parse in (Address.from_topic, Address.from_subject):
        try:
            address = parse(text)
        except AddressError:
            continue
        assert text in {address.topic(), address.subject()}


@pytest.mark.parametrize("name", ["a", "0", "edge-1", "a" * 50])
def test_a_name_is_returned_as_it_is(name):
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "a" * 51, "Edge", "a_b", "a.b", "a/b", "+", "-a", "a-", "a\n"])
def test_a_name_that_is_none_is_refused_with_the_rule(name):
    with pytest.raises(AddressError, match="1 to 50"):
        checked_name(name)


def test_the_longest_name_of_a_task_fits_a_level():
    level = task_level("a" * 50, "0123456789abcdef" * 2)
    assert level == "a" * 50 + "-01234567"
    assert Address("edge1", Direction.UP, EventClass.FACT, "kind", level).task == level
