"""Why a document is refused, in sentences: pydantic's errors turned into (path, sentence) pairs.

Pure text work; lines and files are added by `manifest`, which knows where each field stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

Path = tuple[str | int, ...]

_SENTENCES = {
    "missing": "this field is required",
    "extra_forbidden": "unknown field",
    "string_type": "must be text (put it in quotes), not {input}",
    "int_type": "must be a whole number, not {input}",
    "float_type": "must be a number, not {input}",
    "bool_type": "must be true or false, not {input}",
    "finite_number": "must be a finite number",
    "dict_type": "must be a map of fields, not {input}",
    "model_type": "must be a map of fields, not {input}",
    "tuple_type": "must be a list, not {input}",
    "too_long": "has too many items: at most {max_length}",
    "enum": "{input} is not known here; there is {expected}",
    "literal_error": "must be {expected}, not {input}",
}


class FieldRefused(ValueError):
    """Raised in a validator that sees more than one field; `path` leads from there to the field that is wrong."""

    def __init__(self, what: str, *path: str | int) -> None:
        super().__init__(what)
        self.path = path


def refusals(error: ValidationError) -> list[tuple[Path, str]]:
    """Path and sentence of everything that is wrong, in the order of the fields; never empty."""
    return [_refusal(details) for details in error.errors(include_url=False)]


def dotted(path: Sequence[str | int]) -> str:
    """`spec.trainingWorkers[0].name`. Parts are shortened: a field's name may be the hostile thing itself."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{shown(part)}" for part in path)
    return text.removeprefix(".")


def shown(value: object) -> str:
    """A value of a user in one short line."""
    match value:
        case Mapping():
            return "a map"
        case list() | tuple():
            return "a list"
        case str() if value.isprintable() and len(value) <= 60:
            return value
        case str():
            return ascii(value[:60])[1:-1] + ("..." if len(value) > 60 else "")
        case None:
            return "null"
        case bool():
            return str(value).lower()
    return str(value)[:60]


def quoted(value: object) -> str:
    """As `shown`, text in quotes."""
    return f"'{shown(value)}'" if isinstance(value, str) else shown(value)


def _refusal(details: Mapping[str, Any]) -> tuple[Path, str]:
    path, context = tuple(details["loc"]), details.get("ctx", {})
    match details["type"], context.get("error"):
        case "value_error", FieldRefused() as refused:
            return path + refused.path, str(refused)
        case "value_error", ValueError() as refused:
            return path, str(refused)
    sentence = _SENTENCES.get(details["type"])
    if sentence is None:
        return path, details["msg"][:1].lower() + details["msg"][1:] + f", not {quoted(details['input'])}"
    return path, sentence.format(**{**context, "input": quoted(details["input"])})
