"""A clock that stands until a test moves it."""

from __future__ import annotations


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s
