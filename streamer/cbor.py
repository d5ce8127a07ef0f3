"""CBOR (RFC 8949) as it comes from a detector: a reader that copies nothing large and believes nothing.

A message of a few hundred kilobytes is one byte string of pixels in an envelope of some forty small items. The reader
hands the byte string out as a view of the message and spends some ten microseconds on the envelope. What the sender
says about lengths is compared with the bytes that are there before anything is made of that length.

    integers, text, floats, true, false, null     as in Python; undefined becomes None
    byte string                                   memoryview of the message (joined into bytes if sent in chunks)
    array, map                                    list, dict (keys are text or integers, none twice)
    tag                                           what the caller's function for that tag makes of its content

There is no other way to have a tag read, so big numbers, regular expressions, shared references and cycles do not
exist here. Nesting, and the number of items in one message, are bounded.

BadFrame reasons: "truncated" (bytes are missing), "tag" (a tag nobody reads), "cbor" (not well-formed, or beyond the
bounds of this reader), "type" (the message is not a map).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from streamer.records import BadFrame, Buffer

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "Tags", "entries"]

Tags = Mapping[int, Callable[[Any], Any]]

MAX_DEPTH = 16
"""Levels of nesting inside the map that a message is. An image needs six; Python's own stack ends near a thousand."""

MAX_ITEMS = 100_000
"""Items in one message. A start message needs a few hundred; each item costs a Python object of some 50 bytes, so a
message of nothing but small items stays below 10 MB of memory."""

SELF_DESCRIBED = 55799
"""A tag that says "this is CBOR" and nothing else; some senders put it before every message."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_FALSE, _TRUE, _NULL, _UNDEFINED = 20, 21, 22, 23
_FLOATS = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}
_INDEFINITE = 31
_ENDLESS = -1
_MAY_BE_ENDLESS = (_BYTES, _TEXT, _ARRAY, _MAP)
_BREAK = 0xFF


def entries(message: Buffer, tags: Tags) -> Iterator[tuple[str | int, Any]]:
    """The entries of the map that a message is, one after the other, so that what precedes damage can be used.

    message: contiguous bytes, valid as long as anything that was read from them.  tags: tag → what to make of its
    content; other tags are refused.
    Raises BadFrame.
    """
    reader = _Reader(memoryview(message).cast("B"), tags)
    major, argument = reader.head()
    if major == _TAG and argument == SELF_DESCRIBED:
        major, argument = reader.head()
    if major != _MAP:
        raise BadFrame("type", "the message is not a map")
    yield from reader.pairs(argument, 1)
    if reader.at != reader.size:
        raise BadFrame("cbor", f"{reader.size - reader.at} bytes are left over after the message")


class _Reader:
    """A position in a message. `view` is the message, `size` its length, `at` the next byte to be read."""

    __slots__ = ("at", "items", "size", "tags", "view")

    def __init__(self, view: memoryview, tags: Tags) -> None:
        self.view = view
        self.size = len(view)
        self.tags = tags
        self.at = 0
        self.items = 0

    def head(self) -> tuple[int, int]:
        """Major type of the next item, and the number in its head: value, length or tag; _ENDLESS where it has none.

        Of a simple item or a float, the five bits that say which: what follows is not yet read.
        """
        at = self.at
        if at >= self.size:
            raise BadFrame("truncated", f"the message ends at byte {at}, inside an item")
        self.items += 1
        if self.items > MAX_ITEMS:
            raise BadFrame("cbor", f"more than {MAX_ITEMS} items in one message")
        first = self.view[at]
        self.at = at + 1
        major, info = first >> 5, first & 31
        if info < 24 or major == _SIMPLE:
            return major, info
        if info <= 27:
            return major, int.from_bytes(self.take(1 << (info - 24)), "big")
        if info == _INDEFINITE and major in _MAY_BE_ENDLESS:
            return major, _ENDLESS
        raise BadFrame("cbor", f"byte {at}: an item of a kind that does not exist")

    def take(self, length: int) -> memoryview:
        """The next `length` bytes, as a view of the message."""
        first = self.at
        end = first + length
        if end > self.size:
            raise BadFrame("truncated", f"{length} bytes announced at byte {first}, {self.size - first} are there")
        self.at = end
        return self.view[first:end]

    def value(self, depth: int) -> Any:
        """The next item with everything inside it."""
        if depth > MAX_DEPTH:
            raise BadFrame("cbor", f"nested deeper than {MAX_DEPTH} levels")
        major, argument = self.head()
        if major == _TEXT:
            return self.text(argument) if argument >= 0 else "".join(map(self.text, self.chunks(_TEXT)))
        if major == _UNSIGNED:
            return argument
        if major == _ARRAY:
            return [self.value(depth + 1) for _ in self.count(argument)]
        if major == _TAG:
            return self.tagged(argument, depth)
        if major == _BYTES:
            return self.take(argument) if argument >= 0 else b"".join(map(self.take, self.chunks(_BYTES)))
        if major == _MAP:
            return dict(self.pairs(argument, depth + 1))
        return -1 - argument if major == _NEGATIVE else self.simple(argument)

    def text(self, length: int) -> str:
        octets = self.take(length)
        try:
            return str(octets, "utf-8")
        except UnicodeDecodeError as error:
            raise BadFrame("cbor", f"text before byte {self.at} is not UTF-8") from error

    def chunks(self, expected: int) -> Iterator[int]:
        """The lengths of the pieces of a string of unknown length; each is taken before the next one is asked for."""
        for _ in self.until_break():
            major, length = self.head()
            if major != expected or length == _ENDLESS:
                raise BadFrame("cbor", f"byte {self.at - 1}: a chunk of another type than its string")
            yield length

    def count(self, length: int) -> Iterable[object]:
        """Once per element: as often as the head says, or until the break that ends an item of unknown length."""
        if length == _ENDLESS:
            return self.until_break()
        if length > self.size - self.at:  # every element has at least one byte
            raise BadFrame("truncated", f"{length} elements announced, {self.size - self.at} bytes are there")
        return range(length)

    def until_break(self) -> Iterator[None]:
        while self.at >= self.size or self.view[self.at] != _BREAK:
            yield
        self.at += 1

    def pairs(self, length: int, depth: int) -> Iterator[tuple[str | int, Any]]:
        """The entries of a map whose head was read."""
        keys = set()
        for _ in self.count(length):
            key = self.value(depth)
            if type(key) not in (str, int):
                raise BadFrame("cbor", f"a key before byte {self.at} is neither text nor a number")
            if key in keys:
                raise BadFrame("cbor", f"a key before byte {self.at} comes twice")
            keys.add(key)
            yield key, self.value(depth)

    def tagged(self, tag: int, depth: int) -> Any:
        meaning = self.tags.get(tag)
        if meaning is None:
            raise BadFrame("tag", f"tag {tag} before byte {self.at} is not one this format has")
        return meaning(self.value(depth + 1))

    def simple(self, info: int) -> bool | float | None:
        if info in _FLOATS:
            number: float = _FLOATS[info].unpack(self.take(_FLOATS[info].size))[0]
            return number
        if info in (_FALSE, _TRUE):
            return info == _TRUE
        if info in (_NULL, _UNDEFINED):
            return None
        raise BadFrame("cbor", f"byte {self.at - 1}: a simple value without meaning")
