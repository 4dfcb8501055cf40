"""Parameters of tasks and workers: the table of keys that the system understands, and how lists of them are merged.

Every other key is the application's own and reaches the worker as it is, with its YAML type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_serializer, model_validator

from edgeai.resources.base import INTEGER_LIMIT, Part
from edgeai.resources.refusals import FieldRefused, quoted


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key with a meaning. A `whole` number is at least 1; others are above 0; both at most `most`."""

    key: str
    default: int | float | None
    whole: bool
    most: float = INTEGER_LIMIT
    rules_rounds: bool = True

    def check(self, value: object) -> None:
        """Raises ValueError, by name, unless the value has the right type and range."""
        match value:
            case bool():
                fits = False
            case int():
                fits = 1 <= value <= self.most
            case float():
                fits = not self.whole and 0 < value <= self.most
            case _:
                fits = False
        if not fits:
            raise ValueError(f"'{self.key}' is {self._rule()}, not {quoted(value)}")

    def _rule(self) -> str:
        least = "a whole number of at least 1" if self.whole else "a number above 0"
        return least + (f" and at most {self.most:g}" if self.most < INTEGER_LIMIT else "")


KNOWN_KEYS = {
    known.key: known
    for known in (
        #        key                           default whole
        KnownKey("batch size", 32, True, rules_rounds=False),
        KnownKey("learning rate", 0.01, False, rules_rounds=False),
        KnownKey("epochs", 1, True, rules_rounds=False),
        KnownKey("rounds", 10, True),
        KnownKey("min node number", 1, True),
        KnownKey("rounds between validations", 1, True),
        KnownKey("round deadline seconds", 300, False, most=30 * 24 * 3600),
        KnownKey("target accuracy", None, False, most=1),
        KnownKey("task deadline seconds", None, False, most=10 * 365 * 24 * 3600),
    )
}


def meant_key(key: str) -> str | None:
    """The known key that an unknown one nearly is, as when it was misspelled."""
    if key in KNOWN_KEYS:
        return None
    return next(iter(get_close_matches(key.lower(), KNOWN_KEYS, n=1, cutoff=0.8)), None)


@dataclass(frozen=True, slots=True)
class RoundRules:
    """The keys that rule the rounds, as values. None: no such limit."""

    rounds: int
    min_node_number: int
    rounds_between_validations: int
    round_deadline_s: float
    target_accuracy: float | None
    task_deadline_s: float | None


def checked_value(value: Any) -> Any:
    """A value that JSON and msgpack carry: text, numbers (finite, 64 bits), flags, null, lists and maps of these."""
    match value:
        case None | bool() | str():
            pass
        case int() if not -INTEGER_LIMIT - 1 <= value <= INTEGER_LIMIT:
            raise ValueError("a whole number must fit into 64 bits")
        case float() if not math.isfinite(value):
            raise ValueError("a number must be finite")
        case int() | float():
            pass
        case list():
            for item in value:
                checked_value(item)
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError("the keys of a map must be text")
                checked_value(item)
        case _:
            raise ValueError("must be text, a number, true, false, null, a list or a map")
    return value


class Parameter(Part):
    key: str = Field(min_length=1, max_length=200)
    value: Annotated[Any, AfterValidator(checked_value)]

    @model_validator(mode="after")
    def _known_keys_have_their_type(self) -> Parameter:
        if known := KNOWN_KEYS.get(self.key):
            try:
                known.check(self.value)
            except ValueError as error:
                raise FieldRefused(str(error), "value") from error
        return self

    @model_serializer
    def _with_value_even_if_null(self) -> dict[str, Any]:
        return {"key": self.key, "value": self.value}


def _without_duplicates(parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    seen: set[str] = set()
    for place, parameter in enumerate(parameters):
        if parameter.key in seen:
            raise FieldRefused(f"{quoted(parameter.key)} is given twice", place, "key")
        seen.add(parameter.key)
    return parameters


def _without_round_rules(parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    for place, parameter in enumerate(parameters):
        if parameter.key in KNOWN_KEYS and KNOWN_KEYS[parameter.key].rules_rounds:
            raise FieldRefused(
                f"'{parameter.key}' rules the rounds of the whole task: set it on the aggregation worker", place, "key"
            )
    return parameters


TaskParameters = Annotated[tuple[Parameter, ...], Field(max_length=1000), AfterValidator(_without_duplicates)]
WorkerParameters = Annotated[TaskParameters, AfterValidator(_without_round_rules)]


def merged(*lists: Iterable[Parameter]) -> dict[str, Any]:
    """Defaults of all known keys, then each list over what was there before it."""
    values: dict[str, Any] = {known.key: known.default for known in KNOWN_KEYS.values()}
    for parameters in lists:
        values.update((parameter.key, parameter.value) for parameter in parameters)
    return values


def round_rules(parameters: Iterable[Parameter]) -> RoundRules:
    """The rules that a task's parameters set, defaults filled in."""
    values = merged(parameters)

    def limit(key: str) -> float | None:
        return None if values[key] is None else float(values[key])

    return RoundRules(
        rounds=values["rounds"],
        min_node_number=values["min node number"],
        rounds_between_validations=values["rounds between validations"],
        round_deadline_s=float(values["round deadline seconds"]),
        target_accuracy=limit("target accuracy"),
        task_deadline_s=limit("task deadline seconds"),
    )
