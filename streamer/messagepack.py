"""msgpack as it comes from a control system: a reader that copies nothing large and believes nothing.

    integers, floats, text, nil, true, false   as in Python
    bin                                        memoryview of the part, so an array of any size costs nothing here
    array, map                                 list, dict; keys are text, none twice. (Keys written as bytes, as
                                               msgpack-numpy does, are taken for text.)

There are no extension types, so nothing is ever made of what a sender calls a type. A length is compared with the bytes
that are there before anything is made of that length; the library `msgpack` instead makes room for as many items as
an array announces. Nesting, and the number of items in one message, are bounded.

Source: msgpack/spec.md. BadFrame reasons: "truncated" (bytes are missing), "msgpack" (not well-formed, not a map, or
beyond the bounds of this reader).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from streamer.fields import excerpt
from streamer.records import BadFrame, Buffer

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "Reader"]


MAX_DEPTH = 16
"""Levels of nesting. A train of a Karabo bridge needs six; Python's own stack ends near a thousand."""

MAX_ITEMS = 100_000
"""Items in one message. A train of the European XFEL with hundreds of sources has some ten thousand; each costs a
Python object of some 50 bytes, so a message of nothing but small items stays below 10 MB of memory."""

_WORDS: Mapping[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = dict(zip(range(0xCA, 0xD4), [struct.Struct(f">{code}") for code in "fdBHIQbhiq"], strict=True))


class Reader:
    """Reads the maps in the parts of one message, which share one allowance of items."""

    __slots__ = ("_at", "_left", "_view")

    def __init__(self) -> None:
        self._view = memoryview(b"")
        self._at = 0
        self._left = MAX_ITEMS

    def map(self, part: Buffer) -> dict[str, Any]:
        """The one map that a part is, valid as long as the part is. Raises BadFrame."""
        self._view = memoryview(part).cast("B")
        self._at = 0
        value = self._value(0)
        if not isinstance(value, dict):
            raise BadFrame("msgpack", f"msgpack: {excerpt(value)}, expected a map")
        if self._at != len(self._view):
            raise BadFrame("msgpack", f"msgpack: {len(self._view) - self._at} bytes are left over after a map")
        return value

    def _take(self, length: int) -> memoryview:
        """The next `length` bytes, as a view of the part."""
        first = self._at
        if length > len(self._view) - first:
            raise BadFrame("truncated", f"msgpack: {length} bytes announced, {len(self._view) - first} are there")
        self._at = first + length
        return self._view[first : self._at]

    def _natural(self, width: int) -> int:
        return int.from_bytes(self._take(width), "big")

    def _value(self, depth: int) -> Any:
        """The next item with everything inside it."""
        if depth > MAX_DEPTH:
            raise BadFrame("msgpack", f"msgpack: nested deeper than {MAX_DEPTH} levels")
        self._left -= 1
        if self._left < 0:
            raise BadFrame("msgpack", f"msgpack: more than {MAX_ITEMS} items in one message")
        head = self._natural(1)
        if head < 0x80:
            return head
        if head < 0x90:
            return self._map(head & 15, depth)
        if head < 0xA0:
            return self._array(head & 15, depth)
        if head < 0xC0:
            return self._text(head & 31, depth)
        if head >= 0xE0:
            return head - 0x100
        if head in _WORDS:
            return _WORDS[head]
        if head in _NUMBERS:
            return _NUMBERS[head].unpack(self._take(_NUMBERS[head].size))[0]
        if head in _LENGTHS:
            read, width = _LENGTHS[head]
            return read(self, self._natural(width), depth)
        raise BadFrame("msgpack", f"msgpack: byte {self._at - 1} begins an extension type, or nothing that exists")

    def _octets(self, length: int, _depth: int) -> memoryview:
        return self._take(length)

    def _text(self, length: int, _depth: int) -> str:
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise BadFrame("msgpack", f"msgpack: text that is not UTF-8 ({error.reason})") from error

    def _array(self, length: int, depth: int) -> list[Any]:
        self._expect(length)
        return [self._value(depth + 1) for _ in range(length)]

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        self._expect(2 * length)
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self._value(depth + 1)
            if isinstance(key, memoryview):
                key = self._ascii(key)
            if not isinstance(key, str) or key in found:
                raise BadFrame("msgpack", f"msgpack: {excerpt(key)} as a key, expected text that comes once")
            found[key] = self._value(depth + 1)
        return found

    def _expect(self, items: int) -> None:
        """Every item has a byte at least."""
        if items > len(self._view) - self._at:
            raise BadFrame("truncated", f"msgpack: {items} items announced in {len(self._view) - self._at} bytes")

    @staticmethod
    def _ascii(key: memoryview) -> str:
        try:
            return str(key, "ascii")
        except UnicodeDecodeError as error:
            raise BadFrame("msgpack", "msgpack: bytes as a key that are not ASCII") from error


_LENGTHS: Mapping[int, tuple[Callable[[Reader, int, int], Any], int]] = {
    **dict(zip((0xC4, 0xC5, 0xC6), [(Reader._octets, width) for width in (1, 2, 4)], strict=True)),
    **dict(zip((0xD9, 0xDA, 0xDB), [(Reader._text, width) for width in (1, 2, 4)], strict=True)),
    **dict(zip((0xDC, 0xDD), [(Reader._array, width) for width in (2, 4)], strict=True)),
    **dict(zip((0xDE, 0xDF), [(Reader._map, width) for width in (2, 4)], strict=True)),
}
