"""The reader of CBOR against cbor2 as an independent writer, and at the edges of what it accepts."""

from __future__ import annotations

import math
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.cbor import MAX_DEPTH, MAX_ITEMS, entries
from streamer.records import BadFrame
from tests.strategies import names, plain


def read(message: bytes, **tags: Any) -> dict[str | int, Any]:
    return dict(entries(message, {int(tag.removeprefix("t")): meaning for tag, meaning in tags.items()}))


@given(st.dictionaries(names, plain, max_size=6))
def test_what_cbor2_writes_is_read(value: dict[str, Any]) -> None:
    assert read(cbor2.dumps(value)) == value


@given(st.dictionaries(names, plain, max_size=6))
def test_items_of_unknown_length_are_read(value: dict[str, Any]) -> None:
    assert read(cbor2.dumps(value, indefinite_containers=True)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(noise: bytes) -> None:
    reason = ""
    try:
        read(noise)
        read(b"\xa1\x00" + noise)
    except BadFrame as error:
        reason = error.reason
    assert reason in {"", "truncated", "cbor", "tag", "type"}


@given(st.dictionaries(names, plain, min_size=1, max_size=4))
def test_every_truncation_is_refused_as_truncated(value: dict[str, Any]) -> None:
    message = cbor2.dumps(value)
    for cut in range(len(message)):
        with pytest.raises(BadFrame) as caught:
            read(message[:cut])
        assert caught.value.reason == "truncated"


def test_a_byte_string_is_a_view_of_the_message() -> None:
    message = bytearray(cbor2.dumps({"pixels": b"abc"}))
    found = read(message)["pixels"]  # type: ignore[arg-type]
    message[-1] = ord("z")
    assert bytes(found) == b"abz"


def test_a_byte_string_and_a_text_in_chunks_are_joined() -> None:
    assert read(bytes.fromhex("a2 61 61 5f 42 01 02 41 03 ff 61 62 7f 61 78 62 79 7a ff")) == {
        "a": b"\1\2\3",
        "b": "xyz",
    }


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("f9 3c00", 1.0), ("f9 0001", 5.960464477539063e-8), ("fa 47c35000", 100000.0), ("fb c010666666666666", -4.1),
        ("1b ffffffffffffffff", 2**64 - 1), ("3b ffffffffffffffff", -(2**64)), ("18 18", 24), ("38 63", -100),
        ("f6", None), ("f7", None), ("f4", False), ("f5", True),
    ],
)  # fmt: skip
def test_the_examples_of_rfc_8949_appendix_a_are_read(encoded: str, value: Any) -> None:
    found = read(bytes.fromhex("a1 61 61" + encoded))["a"]
    assert (found, type(found)) == (value, type(value))


def test_not_a_number_is_a_number_here() -> None:
    assert math.isnan(read(bytes.fromhex("a1 61 61 f9 7e00"))["a"])


def test_a_tag_is_read_by_the_function_for_it_and_by_nothing_else() -> None:
    message = cbor2.dumps({"a": cbor2.CBORTag(5000, [1, 2])})
    assert read(message, t5000=sum) == {"a": 3}
    with pytest.raises(BadFrame, match="tag 5000") as caught:
        read(message, t5001=sum)
    assert caught.value.reason == "tag"


def test_the_wrapper_that_says_this_is_cbor_is_passed_over() -> None:
    assert read(cbor2.dumps(cbor2.CBORTag(55799, {"a": 1}))) == {"a": 1}


def test_what_precedes_damage_is_handed_out() -> None:
    damaged = entries(cbor2.dumps({"a": 1, "b": 2, "c": "text"})[:-1], {})
    assert [next(damaged), next(damaged)] == [("a", 1), ("b", 2)]
    with pytest.raises(BadFrame):
        next(damaged)


def test_nesting_is_read_up_to_its_bound_and_not_beyond() -> None:
    assert read(b"\xa1\x61a" + b"\x81" * (MAX_DEPTH - 1) + b"\x80")
    with pytest.raises(BadFrame, match="nested deeper"):
        read(b"\xa1\x61a" + b"\x81" * MAX_DEPTH + b"\x80")


def test_items_are_read_up_to_their_bound_and_not_beyond() -> None:
    assert len(read(cbor2.dumps({"a": [0] * (MAX_ITEMS - 3)}))["a"]) == MAX_ITEMS - 3
    with pytest.raises(BadFrame, match="items in one message"):
        read(cbor2.dumps({"a": [0] * (MAX_ITEMS - 2)}))
