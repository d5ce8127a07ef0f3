"""The msgpack reader: what the library writes is read, and nothing else, whatever the bytes."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.messagepack import MAX_DEPTH, MAX_ITEMS, Reader
from streamer.records import BadFrame

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)
maps = st.dictionaries(st.text(), values)


def readable(value: Any) -> Any:
    """The value with copies of the views in it."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {name: readable(item) for name, item in value.items()}
    return value


def as_text(key: Any) -> Any:
    return key.decode() if isinstance(key, bytes) else key


def refusal(part: bytes) -> BadFrame:
    with pytest.raises(BadFrame) as caught:
        Reader().map(part)
    return caught.value


@given(maps)
def test_what_the_library_writes_is_read(value: dict[str, Any]) -> None:
    packed = msgpack.packb(value)
    expected = msgpack.unpackb(packed)
    for part in (packed, memoryview(packed), bytearray(packed)):
        assert readable(Reader().map(part)) == expected


@given(st.floats(width=32, allow_nan=False))
def test_short_floats_are_read(value: float) -> None:
    assert Reader().map(msgpack.packb({"a": value}, use_single_float=True)) == {"a": value}


@given(st.sampled_from([b"", b"\x81\xa1a", b"\x81\xa1a\x92", b"\x82\xa1a\xc0"]), st.binary(max_size=40))
def test_what_the_library_refuses_is_refused(beginning: bytes, rest: bytes) -> None:
    part = beginning + rest
    found: Any = None
    with contextlib.suppress(BadFrame):
        found = readable(Reader().map(part))
    if found is not None:
        expected = msgpack.unpackb(part, object_pairs_hook=lambda pairs: {as_text(key): value for key, value in pairs})
        assert repr(found) == repr(expected)  # as text, because NaN is not itself


@pytest.mark.parametrize("length", [0, 1, 15, 16, 31, 32, 255, 256, 65535, 65536])
def test_every_width_of_a_length_is_read(length: int) -> None:
    for value in ("a" * length, b"a" * length, [1] * length, {str(n): None for n in range(min(length, 40_000))}):
        assert readable(Reader().map(msgpack.packb({"": value}))) == {"": value}


def test_bytes_are_views_of_the_message() -> None:
    part = bytearray(msgpack.packb({"pixels": bytes(1000)}))
    found = Reader().map(part)["pixels"]
    part[-1] = 7
    assert (found.nbytes, found[-1]) == (1000, 7)


def test_keys_in_bytes_are_text() -> None:
    assert Reader().map(msgpack.packb({b"nd": True})) == {"nd": True}
    assert refusal(msgpack.packb({b"\xff": True})).reason == "msgpack"


def test_nesting_is_bounded() -> None:
    def nested(levels: int) -> bytes:
        return b"\x81\xa1a" + b"\x91" * (levels - 1) + b"\xc0"

    assert readable(Reader().map(nested(MAX_DEPTH))) == msgpack.unpackb(nested(MAX_DEPTH))
    for levels in (MAX_DEPTH + 1, 100_000):
        assert "nested deeper" in str(refusal(nested(levels)))


def test_the_parts_of_a_message_share_one_allowance() -> None:
    reader, part = Reader(), msgpack.packb({"a": [None] * (MAX_ITEMS // 2)})
    reader.map(part)
    with pytest.raises(BadFrame, match=f"more than {MAX_ITEMS} items"):
        reader.map(part)


def test_announcements_take_no_memory() -> None:
    """Of a list in a list in a list, each as long as the message allows, nothing is made."""
    part = b"\x81\xa1a" + b"\xdd\x00\x0f\x00\x00" * 15 + bytes(1 << 20)
    tracemalloc.start()
    assert refusal(part).reason == "msgpack"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
