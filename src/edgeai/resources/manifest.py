"""Manifests: YAML or JSON text to resources, or one line that says which file, line and field is not acceptable.

YAML is read from the parser's events, with limits checked before anything is built: no anchors, aliases or tags, no
duplicate keys, keys are text, depth and size are bounded. Plain scalars mean what YAML 1.1 says (`no` is false), except
that dates stay text and `1e-3` is a number, as in JSON. While values are built, the line of every field is noted, so
that what pydantic refuses can be pointed at. JSON is YAML. `read_manifests` is the only input of this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from edgeai.errors import ManifestError
from edgeai.resources.base import Resource
from edgeai.resources.kinds import kind_of
from edgeai.resources.refusals import UNKNOWN_FIELD, Path, dotted, quoted, refusals, shown

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_EVENTS = 30_000  # keys, values and brackets: some 1,000 training workers, read in less than a quarter of a second
_LONGEST_NUMBER = 64  # characters; longer ones cannot be 64-bit integers, and would be slow to read

# libyaml's parser where PyYAML was built with it (all wheels are): ten times faster, the same events.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Lines = dict[Path, int]

# YAML 1.1 takes 1e-3 for text, for want of a dot; JSON, YAML 1.2 and people take it for a number.
_NUMBER_WITH_EXPONENT = re.compile(r"-?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]+$")


class _Resolver(Resolver):
    """What a plain scalar is."""


class _Dumper(yaml.SafeDumper):
    """Writes what `load_manifests` reads: text is quoted where it would be taken for something else; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> yaml.ScalarNode:
        # Only between double quotes do line ends and invisible characters survive.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.text)
for _kind in (_Resolver, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER_WITH_EXPONENT, list("-0123456789"))


def dump_manifests(documents: Iterable[Mapping[str, Any]]) -> str:
    """Documents (`Resource.to_document`) as YAML for people; `load_manifests` reads it back to the same resources."""
    return yaml.dump_all(map(dict, documents), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_manifests(path: FilePath) -> list[Resource]:
    """The resources in a file. Raises ManifestError, also when the file cannot be read or is too large to be read."""
    try:
        if not path.is_file():
            raise ManifestError("is not a file" if path.exists() else "does not exist", file=str(path))
        if path.stat().st_size > MAX_BYTES:
            raise ManifestError(_TOO_LARGE, file=str(path))
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
    except UnicodeDecodeError as error:
        raise ManifestError("is not UTF-8 text", file=str(path)) from error
    except (OSError, ValueError) as error:
        raise ManifestError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=str(path)) from error
    return load_manifests(text, str(path))


def load_manifests(text: str, file: str) -> list[Resource]:
    """The resources in `text`, in order; `file` is only its name for errors. Documents without content are skipped.

    Raises:
        ManifestError: the first thing that is wrong, with the others; what cannot be read as YAML ends the search.
    """
    found: dict[tuple[str, str], Resource] = {}
    refused: list[ManifestError] = []
    try:
        for value, lines in _documents(text, file):
            if value is None:
                continue
            resource = _resource(value, lines, file, refused)
            if resource is not None and (key := (resource.kind, resource.name)) in found:
                what = f"{resource.kind} {resource.name} stands twice in this file"
                refused.append(ManifestError(what, file=file, line=lines[()]))
            elif resource is not None:
                found[key] = resource
    except ManifestError as error:
        raise ManifestError.of((*refused, error)) from error
    if refused:
        raise ManifestError.of(refused)
    if not found:
        raise ManifestError("there is no resource in this file", file=file)
    return list(found.values())


def field_lines(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """Of text that `load_manifests` accepts: by kind and name of a resource, the line of every field (dotted)."""
    return {
        (value["kind"], value["metadata"]["name"]): {dotted(path): line for path, line in lines.items()}
        for value, lines in _documents(text, "")
        if value is not None
    }


def _resource(value: Any, lines: _Lines, file: str, refused: list[ManifestError]) -> Resource | None:
    """What a document says; None, and more in `refused`, if it is not acceptable."""
    if not isinstance(value, dict):
        what = f"a resource is a map of fields, not {quoted(value)}"
        refused.append(ManifestError(what, file=file, line=lines[()]))
        return None
    try:
        kind = kind_of(value)
    except ManifestError as error:
        line = _line(lines, (error.field,))
        refused.append(ManifestError(error.what, file=file, line=line, field=error.field))
        return None
    try:
        return kind.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        for path, what in _by_line(refusals(error, kind), lines):
            refused.append(ManifestError(what, file=file, line=_line(lines, path), field=dotted(path)))
        return None


def _by_line(found: list[tuple[Path, str]], lines: _Lines) -> list[tuple[Path, str]]:
    """But an unknown field comes first before those that its object lacks, whose line is that of the object."""
    found = sorted(found, key=lambda each: (_line(lines, each[0]), dotted(each[0])))
    first = found[0]
    if first[0] in lines:
        return found
    beside = (each for each in found if each[0][:-1] == first[0][:-1] and each[1].startswith(UNKNOWN_FIELD))
    first = next(beside, first)
    return [first, *(each for each in found if each is not first)]


def _start(event: yaml.Event) -> int:
    """The line an event starts on, from 1."""
    return event.start_mark.line + 1 if event.start_mark else 1


def _line(lines: _Lines, path: Path) -> int:
    """The line of a field; for one that is missing, that of the nearest field around it."""
    while path not in lines:
        path = path[:-1]
    return lines[path]


_TOO_LARGE = f"is larger than {MAX_BYTES // 1024} KB"
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_TOO_DEEP_FOR_YAML = "maximum nesting depth"


def _documents(text: str, file: str) -> Iterator[tuple[Any, _Lines]]:
    """Value and lines of every document."""
    try:
        if len(text) > MAX_BYTES or len(text.encode()) > MAX_BYTES:
            raise ManifestError(_TOO_LARGE, file=file)
        events = _bounded(yaml.parse(text, Loader=_Loader), file)
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                reader = _Reader(events, file)
                yield reader.read(), reader.lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"not valid YAML: {error.problem or error.context}"
        if _TOO_DEEP_FOR_YAML in what:  # the scanner reads ahead: its own limit may come before that of `_check`
            what = _TOO_DEEP
        raise ManifestError(what, file=file, line=mark.line + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        raise ManifestError(f"not valid YAML: {error.reason}", file=file) from error
    except UnicodeEncodeError as error:
        raise ManifestError("is not Unicode text", file=file) from error


def _bounded(events: Iterator[yaml.Event], file: str) -> Iterator[yaml.Event]:
    for count, event in enumerate(events):
        if count >= MAX_EVENTS:
            raise ManifestError("has too many fields and values; split it", file=file, line=_start(event))
        yield event


class _Reader:
    """Builds one document from the events that follow its start."""

    def __init__(self, events: Iterator[yaml.Event], file: str) -> None:
        self._events, self._file = events, file
        self._resolve: Any = _Resolver().resolve
        self._constructor = SafeConstructor()
        self.lines: _Lines = {}

    def read(self) -> Any:
        event = next(self._events)
        self.lines[()] = _start(event)
        return self._value(event, ())

    def _value(self, event: yaml.Event, path: Path) -> Any:
        self._check(event, path)
        match event:
            case yaml.MappingStartEvent():
                return self._map(path)
            case yaml.SequenceStartEvent():
                return self._list(path)
        return self._scalar(event, path)

    def _check(self, event: yaml.Event, path: Path) -> None:
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent) or anchor is not None:
            raise self._refused("anchors and aliases (& and *) are not allowed; write it out", event, path)
        if tag is not None:
            raise self._refused(f"tags ({shown(tag)}) are not allowed", event, path)
        if isinstance(event, yaml.CollectionStartEvent) and len(path) >= MAX_DEPTH:
            raise self._refused(_TOO_DEEP, event, ())

    def _map(self, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path)
            if key in values:
                first = self.lines[(*path, key)]
                raise self._refused(f"duplicate key, first on line {first}", event, (*path, key))
            self.lines[(*path, key)] = _start(event)
            values[key] = self._value(next(self._events), (*path, key))
        return values

    def _list(self, path: Path) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            place = (*path, len(values))
            self.lines[place] = _start(event)
            values.append(self._value(event, place))
        return values

    def _key(self, event: yaml.Event, path: Path) -> str:
        self._check(event, path)
        if not isinstance(event, yaml.ScalarEvent):
            raise self._refused("a list or map cannot be a key", event, path)
        key = self._scalar(event, path)
        if not isinstance(key, str) or (key == "<<" and event.implicit[0]):
            raise self._refused(f"the key {quoted(event.value)} is not text; put it in quotes", event, path)
        return key

    def _scalar(self, event: Any, path: Path) -> Any:
        """What a scalar means: text if it is quoted, else what YAML 1.1 makes of it, dates excepted."""
        text: str = event.value
        tag = self._resolve(yaml.ScalarNode, text, event.implicit).rpartition(":")[2]
        if tag == "null":
            return None
        if tag not in ("bool", "int", "float"):
            return text
        node = yaml.ScalarNode(f"tag:yaml.org,2002:{tag}", text)
        try:
            if len(text) > _LONGEST_NUMBER:
                raise ValueError("too long")
            return getattr(self._constructor, f"construct_yaml_{tag}")(node)
        except (ValueError, OverflowError) as error:
            raise self._refused(f"{quoted(text)} is not a number that fits; put text in quotes", event, path) from error

    def _refused(self, what: str, event: yaml.Event, path: Path) -> ManifestError:
        return ManifestError(what, file=self._file, line=_start(event), field=dotted(path))
