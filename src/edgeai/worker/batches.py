"""Several inputs as one batch, and the answers to a batch one by one. Pure.

Inputs are of equal *form* if they can lie along one axis: arrays of one shape and type, texts, or maps and tuples of those.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np


def form_of_input(x: Any) -> Hashable:
    """Equal for inputs that `stacked` makes one batch of; None: it goes alone."""
    match x:
        case str():
            return "text"
        case np.ndarray() | np.generic():
            return x.dtype.str, x.shape
        case bool() | int() | float():
            return type(x).__name__
        case Mapping():
            parts = tuple((name, form_of_input(value)) for name, value in x.items())
            return None if any(form is None for _, form in parts) else ("map", parts)
        case tuple():
            forms = tuple(form_of_input(value) for value in x)
            return None if None in forms else ("tuple", forms)
    return None


def stacked(inputs: Sequence[Any]) -> Any:
    """A batch: arrays with one more axis in front, and maps and tuples of those. The inputs are of equal form."""
    first = inputs[0]
    match first:
        case Mapping():
            return {name: stacked([each[name] for each in inputs]) for name in first}
        case tuple():
            return tuple(stacked([each[place] for each in inputs]) for place in range(len(first)))
    return np.stack([np.asarray(each) for each in inputs]) if isinstance(first, np.ndarray) else np.array(inputs)


def parted(answer: Any, count: int) -> list[Any]:
    """The answer to each of `count` inputs. Raises ValueError if it is no answer to so many."""
    match answer:
        case Mapping():
            columns = {name: parted(value, count) for name, value in answer.items()}
            return [{name: column[place] for name, column in columns.items()} for place in range(count)]
        case tuple():
            columns_ = [parted(value, count) for value in answer]
            return [tuple(column[place] for column in columns_) for place in range(count)]
        case list() if len(answer) == count:
            return list(answer)
        case np.ndarray() if answer.ndim and len(answer) == count:
            return list(answer)
    shown = list(answer.shape) if isinstance(answer, np.ndarray) else type(answer).__name__
    raise ValueError(
        f"predict got a batch of {count} inputs and answered {shown}, whose first axis is not of length {count}"
    )
