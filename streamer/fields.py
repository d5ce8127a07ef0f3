"""The entries of one header, each checked when it is asked for, whatever the header was written in.

A header comes from outside: nothing in it is believed. An entry that is absent and one that is null are the same. What
is not as the caller expects is a BadFrame whose text says what was found and what was expected, and whose reason is
"field", or "id" for the numbers that say which frame it is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from streamer.records import BadFrame, SeriesKey

__all__ = ["MAX_PLAIN_DEPTH", "Fields", "excerpt", "is_finite", "is_natural", "naming", "plain"]

MAX_PLAIN_DEPTH = 16
"""Levels of nesting that are kept of whatever a header says beside the fields that are understood."""

LARGEST_NUMBER = 1 << 63
"""Frame and series numbers are 64-bit integers at every sender known."""


class Fields:
    """Typed access to the entries of a map."""

    def __init__(self, values: Mapping[Any, Any] | None = None) -> None:
        self._values: dict[Any, Any] = dict(values or {})

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> Any:
        """The entry as it is, None where it is absent."""
        return self._values.get(name)

    def wrong(self, name: str, expected: str, reason: str = "field") -> BadFrame:
        """The error for an entry that is not what it must be."""
        return BadFrame(reason, f"{name} is {excerpt(self.get(name))}, expected {expected}")

    def natural(self, name: str, reason: str = "id") -> int:
        """An integer from 0 to 2⁶³ − 1 that must be there."""
        value = self.get(name)
        if not is_natural(value):
            raise self.wrong(name, "a natural number", reason)
        return int(value)

    def natural_or_none(self, name: str, reason: str = "field") -> int | None:
        """The same, where it may be absent."""
        return None if self.get(name) is None else self.natural(name, reason)

    def text(self, name: str, reason: str = "field") -> str:
        """Text; "" where it is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "text", reason)
        return value or ""

    def names(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty where it is absent."""
        value = self.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, "a list of names")
        return tuple(value)

    def number(self, name: str) -> float | None:
        """A finite number, None where it is absent."""
        value = self.get(name)
        if value is not None and not is_finite(value):
            raise self.wrong(name, "a finite number")
        return None if value is None else float(value)

    def pair(self, first: str, second: str) -> tuple[float, float] | None:
        """Two numbers; None unless both are there."""
        x, y = self.number(first), self.number(second)
        return None if x is None or y is None else (x, y)


@contextlib.contextmanager
def naming(identity: Callable[[], tuple[SeriesKey | None, int | None]]) -> Iterator[None]:
    """Write series and number on a BadFrame, as far as they are known when it is raised."""
    try:
        yield
    except BadFrame as error:
        error.series, error.number = identity()
        raise


def is_natural(value: Any) -> bool:
    """Whether it is an integer from 0 to 2⁶³ − 1; True and 1.0 are not."""
    return type(value) is int and 0 <= value < LARGEST_NUMBER


def is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    if type(value) is int:
        return abs(value) < LARGEST_NUMBER
    return type(value) is float and math.isfinite(value)


def excerpt(value: Any) -> str:
    """What was found, short enough for a log line, whatever it is."""
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, int):
        return repr(value) if abs(value) < LARGEST_NUMBER else "an integer of more than 64 bits"
    if isinstance(value, float):
        return repr(value)
    if value is None:
        return "absent"
    return f"a {type(value).__name__.lstrip('_').lower()}"


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON knows it; what JSON has no place for, and numbers that are not finite, become None."""
    if value is None or isinstance(value, bool | str | int) or is_finite(value):
        return value
    if depth < MAX_PLAIN_DEPTH and isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    if depth < MAX_PLAIN_DEPTH and isinstance(value, dict):
        return {str(name): plain(item, depth + 1) for name, item in value.items()}
    return None
