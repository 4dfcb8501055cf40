"""Algorithms of hard-example mining as users name them, with their parameters: which there are, their ranges and defaults.

A manifest is refused at `apply` by the same table by which a worker is set up. What the algorithms compute is in
`learning.hard_examples`; here is only what may be asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from edgeai.resources.base import INTEGER_LIMIT
from edgeai.resources.refusals import FieldRefused, quoted

ENTRY_POINT = "entry point"
MAX_DESCRIBED = 300
_ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


class MiningAlgorithm(StrEnum):
    """How hard examples are told from others; `learning.hard_examples` holds their definitions."""

    THRESHOLD = "Threshold"
    CROSS_ENTROPY = "CrossEntropy"
    IBT = "IBT"
    MARGIN = "Margin"
    ENTROPY = "Entropy"
    LEAST_CONFIDENCE = "LeastConfidence"
    RANDOM = "Random"
    EDGE_ONLY = "EdgeOnly"
    CLOUD_ONLY = "CloudOnly"
    CUSTOM = "Custom"


@dataclass(frozen=True, slots=True)
class MiningKey:
    """A parameter of an algorithm. `kind`: share (0 to 1), whole (from 0 on), flag or entry point. Default None: required."""

    key: str
    kind: str
    default: float | int | bool | None = None
    also: tuple[str, ...] = ()
    """other names under which it is known"""

    def check(self, value: object) -> None:
        """Raises ValueError, by name, unless the value has the right type and range."""
        match self.kind, value:
            case "flag", bool():
                return
            case _, bool():
                pass
            case "share", int() | float() if 0 <= value <= 1:
                return
            case "whole", int() if 0 <= value <= INTEGER_LIMIT:
                return
            case "entry point", str() if len(value) <= 200 and _ENTRY_POINT.fullmatch(value):
                return
        raise ValueError(f"'{self.key}' is {_MEANT[self.kind]}, not {quoted(value)}")


_MEANT = {
    "share": "a number from 0 to 1",
    "whole": "a whole number, not negative",
    "flag": "true or false",
    "entry point": "`module:function` of the inference worker's script",
}
_SOFTMAX = MiningKey("softmax", "flag", False)

MINING_KEYS: dict[MiningAlgorithm, tuple[MiningKey, ...]] = {
    #                                            key              kind     default
    MiningAlgorithm.THRESHOLD: (MiningKey("threshold", "share", 0.5), _SOFTMAX),
    MiningAlgorithm.CROSS_ENTROPY: (MiningKey("threshold", "share", 0.5, ("threshold_cross_entropy",)), _SOFTMAX),
    MiningAlgorithm.IBT: (
        MiningKey("threshold_img", "share", 0.5),
        MiningKey("threshold_box", "share", 0.5, ("threshold",)),
    ),
    MiningAlgorithm.MARGIN: (MiningKey("threshold", "share", 0.2), _SOFTMAX),
    MiningAlgorithm.ENTROPY: (MiningKey("threshold", "share", 0.5), _SOFTMAX),
    MiningAlgorithm.LEAST_CONFIDENCE: (MiningKey("threshold", "share", 0.5), _SOFTMAX),
    MiningAlgorithm.RANDOM: (MiningKey("rate", "share", 0.1), MiningKey("seed", "whole", 0)),
    MiningAlgorithm.EDGE_ONLY: (),
    MiningAlgorithm.CLOUD_ONLY: (),
    MiningAlgorithm.CUSTOM: (MiningKey(ENTRY_POINT, "entry point"),),
}


def described(algorithm: MiningAlgorithm, parameters: Mapping[str, Any]) -> str:
    """One line that is the same for the same mining: `Margin softmax=False threshold=0.3`. Raises FieldRefused."""
    values = check(algorithm, parameters)
    return " ".join([algorithm.value, *(f"{key}={values[key]}" for key in sorted(values))])[:MAX_DESCRIBED]


def check(algorithm: MiningAlgorithm, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an algorithm under their own names, defaults filled in.

    Every other key of `Custom` belongs to its function and is left as it is.

    Raises:
        FieldRefused: a key that is not one of the algorithm's (path: key, "key"), a value out of its range (key, "value"), or
            one that is missing (no path).
    """
    named = {name: each for each in MINING_KEYS[algorithm] for name in (each.key, *each.also)}
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        known = named.get(name)
        if known is None and algorithm is not MiningAlgorithm.CUSTOM:
            raise FieldRefused(_unknown(algorithm, name), name, "key")
        key = known.key if known is not None else name
        if key in values:
            raise FieldRefused(f"{quoted(name)} means the same as another one that is given", name, "key")
        try:
            if known is not None:
                known.check(value)
        except ValueError as error:
            raise FieldRefused(f"{algorithm.value}: {error}", name, "value") from error
        values[key] = value
    for each in MINING_KEYS[algorithm]:
        if each.key not in values and each.default is None:
            raise FieldRefused(f"{algorithm.value} needs the parameter '{each.key}': {_MEANT[each.kind]}")
        values.setdefault(each.key, each.default)
    return values


def _unknown(algorithm: MiningAlgorithm, name: str) -> str:
    known = [each.key for each in MINING_KEYS[algorithm]]
    what = f"{quoted(name)} is not a parameter of {algorithm.value}"
    near = get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    if near:
        return f"{what}; did you mean '{near[0]}'?"
    return f"{what}; it has " + (", ".join(known) or "none")
