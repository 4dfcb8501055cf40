"""Strategies for every event of the catalogue, made from the types of its fields."""

from __future__ import annotations

import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from edgeai.events.catalogue import CATALOGUE, Amount, DigestOrNone, Event, Level
from edgeai.resources.base import Count, Digest

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
NUMBERS = st.floats(allow_nan=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
VALUES = st.recursive(
    st.none() | st.booleans() | INTEGERS | NUMBERS | TEXT | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
_NAMED = {
    Digest: DIGESTS,
    DigestOrNone: st.just("") | DIGESTS,
    Level: st.from_regex(r"[a-z0-9]([-a-z0-9]{0,57}[a-z0-9])?", fullmatch=True),
    Count: st.integers(0, 2**63 - 1),
    Amount: st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    str: TEXT,
    int: INTEGERS,
    float: NUMBERS,
    bool: st.booleans(),
    bytes: st.binary(max_size=100),
    type(None): st.none(),
    Any: VALUES,
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """A strategy for the values of one annotated type."""
    if kind in _NAMED:
        return _NAMED[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return values_of(arguments[0])
    if origin in {Union, types.UnionType}:
        return st.one_of([values_of(each) for each in arguments])
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values_of(each) for each in arguments))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return st.sampled_from(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{item.name: values_of(hints[item.name]) for item in fields(kind)})
    raise AssertionError(f"no strategy for {kind}")


EVENTS: dict[str, st.SearchStrategy[Event]] = {kind: values_of(event) for kind, event in CATALOGUE.items()}
ANY_EVENT = st.one_of(list(EVENTS.values()))
