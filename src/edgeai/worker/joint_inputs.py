"""What is no input of a joint inference service, by name and at once. Pure.

The spec's `inputs` says what an input is; without it whatever can travel is one, if its numbers are finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeai.errors import EdgeaiError, Refused
from edgeai.events.values import MAX_DEPTH, pack
from edgeai.resources.joint import MAX_INPUT_BYTES, Inputs


def checked(x: Any, inputs: Inputs | None) -> Any:
    """The input with NumPy arrays. Raises Refused."""
    found = _plain(x, MAX_DEPTH)
    if (size_bytes := _size(found)) > MAX_INPUT_BYTES:
        raise Refused(f"an input of {size_bytes} bytes is too large: at most {MAX_INPUT_BYTES} are taken")
    if inputs is not None:
        _check_declared(found, inputs)
    if not _is_finite(found):
        raise Refused("the input has values that are not finite")
    return found


def packed(x: Any) -> bytes:
    """A checked input as it travels. Raises Refused."""
    try:
        return pack(x, MAX_INPUT_BYTES)
    except EdgeaiError as error:
        raise Refused(f"the input does not travel: {error}") from error


def _plain(x: Any, depth: int) -> Any:
    match x:
        case np.ndarray() | np.generic():
            found = np.asarray(x)
            if found.dtype.kind not in "biufU":
                raise Refused(f"an array of type {found.dtype} is no input; give numbers or text")
            return found
        case str() | bool() | int() | float():
            return x
        case Mapping():
            if not x:
                raise Refused("an empty map is no input; give one with at least one value")
            if not depth:
                raise Refused(f"an input has at most {MAX_DEPTH} maps inside each other")
            if (wrong := next((key for key in x if not isinstance(key, str)), None)) is not None:
                raise Refused(f"the key {str(wrong)[:40]!r} of an input is not text")
            return {name: _plain(value, depth - 1) for name, value in x.items()}
        case list() | tuple():
            raise Refused(
                f"a {type(x).__name__} is no input; make an array of it, which says of what type its values are"
            )
    if hasattr(x, "__array__"):
        return _plain(np.asarray(x), depth)
    raise Refused(f"a {type(x).__name__} is no input; give an array, text, a number, or a map of those")


def _size(x: Any) -> int:
    match x:
        case np.ndarray():
            return x.nbytes
        case str():
            return len(x)
        case Mapping():
            return sum(map(_size, x.values()))
    return 8


def _check_declared(x: Any, inputs: Inputs) -> None:
    wanted = [length if length is not None else "?" for length in inputs.shape]
    if not isinstance(x, np.ndarray):
        raise Refused(f"a {type(x).__name__} is no input; the service takes an array of shape {_shown(wanted)}")
    alike = len(x.shape) == len(inputs.shape) and all(
        length in (None, found) for length, found in zip(inputs.shape, x.shape, strict=True)
    )
    if not alike:
        raise Refused(f"an input of shape {_shown(x.shape)} does not fit: the service takes {_shown(wanted)}")
    if x.dtype.name != inputs.dtype:
        raise Refused(f"an input of type {x.dtype.name} does not fit: the service takes {inputs.dtype}")


def _shown(shape: Any) -> str:
    return f"[{', '.join(map(str, list(shape)[:16]))}]"


def _is_finite(x: Any) -> bool:
    match x:
        case np.ndarray():
            return x.dtype.kind != "f" or bool(np.isfinite(x).all())
        case float():
            return bool(np.isfinite(x))
        case Mapping():
            return all(map(_is_finite, x.values()))
    return True
