"""Why a document is refused, in sentences: pydantic's errors turned into (path, sentence) pairs.

Pure text work; lines and files are added by `manifest`, which knows where each field stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]

UNKNOWN_FIELD = "unknown field"
"""How the sentence about one begins."""

_SENTENCES = {
    "missing": "this field is required",
    "extra_forbidden": UNKNOWN_FIELD,
    "string_type": "must be text (put it in quotes), not {input}",
    "int_type": "must be a whole number, not {input}",
    "float_type": "must be a number, not {input}",
    "bool_type": "must be true or false, not {input}",
    "finite_number": "must be a finite number",
    "dict_type": "must be a map of fields, not {input}",
    "model_type": "must be a map of fields, not {input}",
    "tuple_type": "must be a list, not {input}",
    "too_short": "has too few items: at least {min_length}",
    "too_long": "has too many items: at most {max_length}",
    "enum": "{input} is not known here; there is {expected}",
    "literal_error": "must be {expected}, not {input}",
}


class FieldRefused(ValueError):
    """Raised in a validator that sees more than one field; `path` leads from there to the field that is wrong."""

    def __init__(self, what: str, *path: str | int) -> None:
        super().__init__(what)
        self.path = path


def refusals(error: ValidationError, model: type[BaseModel] | None = None) -> list[tuple[Path, str]]:
    """Path and sentence of everything that is wrong, in the order of the fields; never empty.

    An unknown field stands before the missing ones of the same object: it may be one of them, misspelled. `model` is the
    class that was validated, so that the field that was probably meant can be named.
    """
    found = error.errors(include_url=False)
    # Items that are wrong are counted as missing as well: what is wrong with them is the news.
    inside = {each["loc"][:length] for each in found for length in range(len(each["loc"]))}
    found = [each for each in found if each["type"] != "too_short" or each["loc"] not in inside]
    unknown = {each["loc"][:-1] for each in found if each["type"] == "extra_forbidden"}
    found.sort(key=lambda each: each["type"] == "missing" and each["loc"][:-1] in unknown)
    return [_refusal(details, model) for details in found]


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


def _meant(name: str, known: Iterable[str]) -> str:
    by_letters = {"".join(filter(str.isalnum, each)).lower(): each for each in known}
    letters = "".join(filter(str.isalnum, name)).lower()
    near = get_close_matches(letters, by_letters, n=1, cutoff=0.75)
    return f"; did you mean {by_letters[near[0]]}?" if near else ""


def _fields_at(model: type[BaseModel], path: Path) -> list[str]:
    """The fields, as documents name them, of the object that a path leads to; none if it is not one of ours."""
    for part in path:
        if isinstance(part, int):
            continue
        field = next((field for name, field in model.model_fields.items() if part in (name, field.alias)), None)
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The class of an object, of the items of a list of objects, or of an optional one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)


def _refusal(details: Mapping[str, Any], model: type[BaseModel] | None) -> tuple[Path, str]:
    path, context = tuple(details["loc"]), details.get("ctx", {})
    match details["type"], context.get("error"):
        case "value_error", FieldRefused() as refused:
            return path + refused.path, str(refused)
        case "value_error", ValueError() as refused:
            return path, str(refused)
    if details["type"] == "extra_forbidden" and model is not None:
        return path, UNKNOWN_FIELD + _meant(str(path[-1]), _fields_at(model, path[:-1]))
    sentence = _SENTENCES.get(details["type"])
    if sentence is None:
        return path, details["msg"][:1].lower() + details["msg"][1:] + f", not {quoted(details['input'])}"
    return path, sentence.format(**{**context, "input": quoted(details["input"])})
