"""How pages write numbers, sizes, durations and moments. Filters of the templates, pure; `static/js/words.js` writes the same.

What is None is written as an en dash: a page never shows a made-up zero for what nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from typing import Any

NOTHING = "\N{EN DASH}"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_PARTS = ((60, "min", 1, "s"), (3600, "h", 60, "min"), (86400, "d", 3600, "h"))
_THIN = "\N{NARROW NO-BREAK SPACE}"


def size(count: float | None) -> str:
    """Bytes for people: 812 B, 3.4 kB, 12 MB."""
    if count is None:
        return NOTHING
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 9.95 else f"{value:.1f} {unit}"


def seconds(value: float | None) -> str:
    """How long something took: 0.42 s, 3.1 s, 12 s, 4 min 5 s, 2 h 3 min, 3 d 4 h."""
    if value is None:
        return NOTHING
    if value < 9.95:
        return f"{value:.2f} s" if value < 0.995 else f"{value:.1f} s"
    return age(round(value))


def age(value: float | None) -> str:
    """How long ago, in whole seconds, with two parts at most."""
    if value is None:
        return NOTHING
    whole = max(0, int(value))
    if whole < 60:
        return f"{whole} s"
    length, large, unit, small = next(part for part in _PARTS if whole < part[0] * 60 or part is _PARTS[-1])
    rest = whole % length // unit
    return f"{whole // length} {large} {rest} {small}" if rest else f"{whole // length} {large}"


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", _THIN)


def number(value: Any) -> str:
    """A metric, with four significant digits."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        return NOTHING
    if isinstance(value, int) or value == int(value):
        return count(value)
    return f"{value:.4g}" if abs(value) < 1000 else count(value)


def rate(value: float | None) -> str:
    """So much per second."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def cores(value: float | None) -> str:
    """Processors in use, on average."""
    return NOTHING if value is None else f"{value:.2f}"


def short(digest: str | None) -> str:
    """The beginning of a digest or identifier, enough to tell two apart."""
    return digest[:12] if digest else NOTHING


def instant(moment: float | str | None) -> str:
    """ISO 8601 in UTC, from seconds since 1970 or a resource's own text; empty if there is none."""
    if moment is None or isinstance(moment, str):
        return moment or ""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(moment: float | str | None) -> str:
    """What stands in the page until the browser writes the reader's own time: 2026-07-02 14:03:11 UTC."""
    text = instant(moment)
    return f"{text[:10]} {text[11:19]} UTC" if text else NOTHING


def tone(word: str) -> str:
    """The state that the style sheet knows a word by."""
    return word.strip().lower().replace(" ", "-")


FILTERS: dict[str, Callable[..., str]] = {
    "age": age,
    "clock": clock,
    "cores": cores,
    "digits": count,
    "instant": instant,
    "number": number,
    "rate": rate,
    "seconds": seconds,
    "short": short,
    "size": size,
    "tone": tone,
}
