"""JSON headers: what is read, and what is refused without harm."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import headers
from streamer.records import BadFrame


def test_an_object_is_read() -> None:
    assert headers.read(memoryview(b'{"htype": "array-1.0", "shape": [2, 3]}')) == {
        "htype": "array-1.0",
        "shape": [2, 3],
    }


@pytest.mark.parametrize(
    ("part", "found"),
    [
        (b"", "not JSON"),
        (b"[1, 2]", "a JSON list"),
        (b"null", "a JSON NoneType"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'{"a": 1, "a": 2}', "a name twice"),
        (b'{"a": {"b": 1, "b": 2}}', "a name twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a":' * 100_000, "nested beyond reason"),
        (b"[" * 100_000, "nested beyond reason"),
        (b'{"a": ' + b"1" * 5000 + b"}", "an integer of 5000 digits"),
        (b" " * (headers.MAX_BYTES + 1), "expected at most"),
        (b'{"a": [' + b"{}," * headers.MAX_ITEMS + b"{}]}", "more than 100000 values"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else value,
)
def test_what_is_no_plain_object_is_refused_with_the_reason(part: bytes, found: str) -> None:
    with pytest.raises(BadFrame, match=found) as caught:
        headers.read(part)
    assert caught.value.reason == "json"


def test_escaped_characters_are_read() -> None:
    assert headers.read(b'{"a": "\\u00b5\\ud83d\\ude00"}') == {"a": "µ😀"}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(part: bytes) -> None:
    headers.looks_like(part, b"array")
    with suppress(BadFrame):
        assert isinstance(headers.read(part), dict)


@pytest.mark.parametrize("part", [b'{"htype":"dimage-1.0"}', b'{ "htype" : "dimage-1.0"', b'{"htype":["dimage-1.0"]'])
def test_a_header_is_recognised_by_its_beginning(part: bytes) -> None:
    assert headers.looks_like(part, b"array", b"dimage")
    assert not headers.looks_like(part, b"dheader")
