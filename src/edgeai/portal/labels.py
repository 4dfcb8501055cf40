"""Label selectors: `key=value`, `key!=value`, `key`, `!key`, separated by commas; all must hold.

Keys and values are those of Kubernetes: letters, digits, - _ . and /.

Source: Kubernetes documentation, "Labels and Selectors", equality-based requirements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PART = "[-A-Za-z0-9_./]"
_TERM_PATTERN = rf"(!{_PART}+|{_PART}+((==|!=|=){_PART}*)?)"
PATTERN = rf"^({_TERM_PATTERN}(,{_TERM_PATTERN})*)?$"
"""Of a whole selector, for the parameter that takes one: what does not match never gets to `Selector.parse`."""
_TERM = re.compile(rf"(?P<without>!)?(?P<key>{_PART}+)((?P<how>==|!=|=)(?P<value>{_PART}*))?")


@dataclass(frozen=True, slots=True)
class Term:
    key: str
    value: str | None
    negated: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = self.key in labels if self.value is None else labels.get(self.key) == self.value
        return found is not self.negated


@dataclass(frozen=True, slots=True)
class Selector:
    terms: tuple[Term, ...]

    @staticmethod
    def parse(text: str) -> Selector:
        """Of a text that matches PATTERN; an empty one selects everything."""
        return Selector(tuple(_term(part) for part in text.split(","))) if text else Selector(())

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(term.matches(labels) for term in self.terms)


EVERYTHING = Selector(())


def _term(text: str) -> Term:
    found = _TERM.fullmatch(text)
    assert found is not None, "checked by PATTERN"
    return Term(found["key"], found["value"] if found["how"] else None, bool(found["without"]) or found["how"] == "!=")
