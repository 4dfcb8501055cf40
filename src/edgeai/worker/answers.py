"""What a model answers: as arrays and plain values, finite or not, and of which form.

The *form* of answers is what all of them have in common: structure, kind of numbers, number of axes, and the lengths of axes
that never differed. By it a new model is known that answers something else than the one before it. Pure but for asking NumPy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Form = tuple[Any, ...]
"""("array", kind, lengths, None where they differ), ("map", forms by key), ("tuple", forms), ("list", form of all elements),
("value", type), or ("any",) if there is nothing in common."""
_KINDS = {"u": "i", "b": "i", "U": "text", "S": "text", "O": "object"}
MAX_JSON_CHARACTERS = 64 * 1024


def with_batch_axis(x: Any) -> Any:
    """One input as a batch of one: arrays, and the arrays of a dict or tuple of inputs."""
    match x:
        case Mapping():
            return {name: with_batch_axis(value) for name, value in x.items()}
        case tuple():
            return tuple(with_batch_axis(value) for value in x)
    return np.asarray(x)[np.newaxis]


def without_batch_axis(answer: Any) -> Any:
    """The answer for the only input of a batch. Raises ValueError if it is one for several."""
    match answer:
        case Mapping():
            return {name: without_batch_axis(value) for name, value in answer.items()}
        case tuple():
            return tuple(without_batch_axis(value) for value in answer)
        case list() if len(answer) == 1:
            return answer[0]
        case np.ndarray() if answer.ndim and len(answer) == 1:
            return answer[0]
    shown = list(answer.shape) if isinstance(answer, np.ndarray) else type(answer).__name__
    raise ValueError(f"predict got a batch of one input and answered {shown}, whose first axis is not of length 1")


def plain(answer: Any) -> Any:
    """The same with NumPy arrays in place of those of frameworks."""
    match answer:
        case np.ndarray() | np.generic() | str() | bytes() | bool() | int() | float() | None:
            return answer
        case Mapping():
            return {name: plain(value) for name, value in answer.items()}
        case tuple():
            return tuple(plain(value) for value in answer)
        case list():
            return [plain(value) for value in answer]
    return np.asarray(answer) if hasattr(answer, "__array__") else answer


def is_finite(answer: Any) -> bool:
    """No number in it is NaN or infinite."""
    return all(
        bool(np.isfinite(value).all()) if isinstance(value, np.ndarray | np.generic) else math.isfinite(value)
        for value in _numbers(answer)
    )


def _numbers(answer: Any) -> Iterator[Any]:
    match answer:
        case np.ndarray() | np.generic():
            if answer.dtype.kind in "fc":
                yield answer
        case float():
            yield answer
        case Mapping():
            for value in answer.values():
                yield from _numbers(value)
        case list() | tuple():
            for value in answer:
                yield from _numbers(value)


def form_of(answer: Any) -> Form:
    match answer:
        case np.ndarray() | np.generic():
            return "array", _KINDS.get(answer.dtype.kind, answer.dtype.kind), answer.shape
        case bool() | int():
            return "array", "i", ()
        case float():
            return "array", "f", ()
        case Mapping():
            return "map", tuple((str(name), form_of(value)) for name, value in sorted(answer.items(), key=str))
        case tuple():
            return "tuple", tuple(form_of(value) for value in answer)
        case list():
            array = _as_array(answer)
            if array is not None:
                return form_of(array)
            common: Form | None = None
            for value in answer:
                common = joined(common, form_of(value))
            return "list", common
    return "value", type(answer).__name__


def _as_array(values: list[Any]) -> np.ndarray[Any, Any] | None:
    if not values or not all(isinstance(value, bool | int | float | np.generic) for value in values):
        return None
    return np.array(values)


def joined(known: Form | None, seen: Form | None) -> Form:
    """What two forms have in common."""
    if known is None or seen is None:
        return known or seen or ("any",)
    match known, seen:
        case ("array", kind, lengths), ("array", other_kind, others) if (kind, len(lengths)) == (
            other_kind,
            len(others),
        ):
            common = (mine if mine == theirs else None for mine, theirs in zip(lengths, others, strict=True))
            return "array", kind, tuple(common)
        case ("map", mine), ("map", theirs) if [name for name, _ in mine] == [name for name, _ in theirs]:
            return "map", tuple((name, joined(a, b)) for (name, a), (_, b) in zip(mine, theirs, strict=True))
        case ("tuple", mine), ("tuple", theirs) if len(mine) == len(theirs):
            return "tuple", tuple(joined(a, b) for a, b in zip(mine, theirs, strict=True))
        case ("list", mine), ("list", theirs):
            return "list", joined(mine, theirs) if mine or theirs else None
    return known if known == seen else ("any",)


def fits(known: Form | None, seen: Form) -> bool:
    """Whether an answer of the form `seen` is one of those that `known` is the form of."""
    match known, seen:
        case (None | ("any",), _):
            return True
        case ("array", kind, lengths), ("array", other_kind, others):
            alike = kind == other_kind and len(lengths) == len(others)
            return alike and all(mine in (None, theirs) for mine, theirs in zip(lengths, others, strict=True))
        case ("map", mine), ("map", theirs):
            alike = [name for name, _ in mine] == [name for name, _ in theirs]
            return alike and all(fits(a, b) for (_, a), (_, b) in zip(mine, theirs, strict=True))
        case ("tuple", mine), ("tuple", theirs):
            return len(mine) == len(theirs) and all(fits(a, b) for a, b in zip(mine, theirs, strict=True))
        case ("list", mine), ("list", theirs):
            return mine is None or theirs is None or fits(mine, theirs)
    return known == seen


def shown(form: Form | None) -> str:
    """A form as people read it: `f[10]`, `{boxes: f[?, 4], labels: i[?]}`."""
    match form:
        case ("array", kind, lengths):
            return f"{kind}[{', '.join('?' if length is None else str(length) for length in lengths)}]"
        case ("map", parts):
            return f"{{{', '.join(f'{name}: {shown(part)}' for name, part in parts)}}}"
        case ("tuple", parts):
            return f"({', '.join(map(shown, parts))})"
        case ("list", part):
            return f"list of {shown(part)}"
        case ("value", name):
            return str(name)
    return "anything"


def as_json(answer: Any) -> str:
    """The answer for people and labelling tools; empty if it is too long, or cannot be written."""
    try:
        text = json.dumps(answer, default=_jsonable, allow_nan=False)
    except (TypeError, ValueError):
        return ""
    return text if len(text) <= MAX_JSON_CHARACTERS else ""


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError
