"""JSON headers of multipart messages: one object, read in some ten microseconds and bounded in every direction.

Detectors that speak JSON send a header of a hundred bytes to a few kilobytes in front of every image. What RFC 8259
leaves to the reader is decided here: a name may come once, NaN and Infinity are not numbers, bytes are UTF-8, and
nesting ends where Python's own reader ends it.

BadFrame reason: "json".
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from streamer.records import BadFrame, Buffer

__all__ = ["MAX_BYTES", "MAX_ITEMS", "looks_like", "read"]


MAX_BYTES = 4 * 2**20
"""The largest header known, the configuration of a DECTRIS detector with its module list, has some 20 kB."""

MAX_ITEMS = 100_000
"""Values in one header. An empty object takes 72 bytes of memory for three of text, so bytes alone bound too little."""

MAX_DIGITS = 400
"""Digits of one number: the longest float that can be written, 1e308, without an exponent."""

_NEAR = 64
"""Where `htype` stands when it is the first entry, as every sender known writes it; spaces included."""


def read(part: Buffer, what: str = "header") -> dict[str, Any]:
    """The JSON object in one part of a message. Raises BadFrame."""
    view = memoryview(part)
    if view.nbytes > MAX_BYTES:
        raise BadFrame("json", f"{what}: {view.nbytes} bytes, expected at most {MAX_BYTES}")
    try:
        text = str(view, "utf-8")
        if len(text) > MAX_ITEMS and sum(map(text.count, "[{,")) > MAX_ITEMS:
            raise BadFrame("json", f"{what}: more than {MAX_ITEMS} values")
        value = _decode(text)
    except UnicodeDecodeError as error:
        raise BadFrame("json", f"{what}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise BadFrame("json", f"{what}: nested beyond reason") from error
    except ValueError as error:
        raise BadFrame("json", f"{what}: not JSON: {str(error)[:120]}") from error
    if "\\u" in text and not _is_unicode(value):
        raise BadFrame("json", f"{what}: half of a surrogate pair is no character")
    if not isinstance(value, dict):
        raise BadFrame("json", f"{what}: a JSON {type(value).__name__}, expected an object")
    return value


def looks_like(part: Buffer, *htypes: bytes) -> bool:
    """Whether a part begins as a JSON object does whose `htype` is, or begins a list with, one of these. Never raises.

    htypes: beginnings, b"dimage" for "dimage-1.0".
    """
    head = bytes(memoryview(part).cast("B")[:_NEAR]).translate(None, b" \t\r\n")
    return any(head.startswith(prefix + htype) for htype in htypes for prefix in (b'{"htype":"', b'{"htype":["'))


def _is_unicode(value: Any) -> bool:
    """Whether all text in it can be written down again; escapes can say what UTF-8 cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name twice in one object")
    return fields


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


_decode = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_constant, parse_int=_integer).decode
