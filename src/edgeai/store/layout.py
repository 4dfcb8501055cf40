"""How one document lies in a store: its key, its bytes, its limits. Every store goes through here: they cannot differ.

A key is `<kind>.<name>`. A kind has no dot, a name may have some (`<uid>.1`): the first dot separates, and a watch by
kind is a watch of `<kind>.>`. Values are msgpack, which keeps bytes apart from text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgpack

from edgeai.errors import AddressError, PayloadTooLarge, StoreError
from edgeai.store.base import Document

# A NATS server takes 1 MiB, headers included; a document that outgrows this belongs into a blob.
LIMIT_BYTES = 1_000_000
_KIND = re.compile(r"[A-Za-z][-A-Za-z0-9]{0,63}")
_NAME = re.compile(r"[-_A-Za-z0-9]+(\.[-_A-Za-z0-9]+)*")


def key_of(kind: str, name: str) -> str:
    """Raises AddressError for what cannot be a key."""
    return f"{checked_kind(kind)}.{_checked_name(name)}"


def parse_key(key: str) -> tuple[str, str]:
    """The kind and name of a key."""
    kind, _, name = key.partition(".")
    return kind, name


def checked_kind(kind: str) -> str:
    if not _KIND.fullmatch(kind):
        raise AddressError(kind, "a kind is 1 to 64 letters, digits and -")
    return kind


def checked_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """The kinds of a watch, each once. Raises AddressError; ValueError if there is none."""
    checked = tuple(sorted({checked_kind(kind) for kind in kinds}))
    if not checked:
        raise ValueError("a watch needs at least one kind")
    return checked


def pack(document: Document) -> bytes:
    """Raises PayloadTooLarge; TypeError for values that are neither JSON types nor bytes (our own mistake)."""
    data: bytes = msgpack.packb(dict(document), use_bin_type=True)
    if len(data) > LIMIT_BYTES:
        raise PayloadTooLarge(len(data), LIMIT_BYTES)
    return data


def unpack(key: str, data: bytes) -> dict[str, Any]:
    """Raises StoreError for what `pack` has not written."""
    try:
        document = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except ValueError as error:
        raise StoreError(f"document {key} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise StoreError(f"document {key} is damaged: not a map")
    return document


def _checked_name(name: str) -> str:
    if len(name) > 200 or not _NAME.fullmatch(name):
        raise AddressError(name, "a name in the store is up to 200 letters, digits, - and _, with single dots between")
    return name
