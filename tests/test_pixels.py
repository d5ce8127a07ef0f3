"""Bytes become images, and what cannot fill one becomes none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from streamer import compression
from streamer.compression import Scratch
from streamer.pixels import Packed, dtype_named, unpack, usable
from streamer.records import BadFrame

images = st.sampled_from(["u1", "<u2", ">u2", "<u4", ">i4", "<f4", ">f8", "i1", "<i2"]).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=2, max_dims=3, max_side=9))
)
MANY = 10_000


@given(images, st.booleans())
def test_an_image_comes_out_as_its_bytes_went_in(image: np.ndarray[Any, Any], is_pooled: bool) -> None:
    scratch = Scratch() if is_pooled else None
    out = unpack(image.tobytes(), image.shape, image.dtype, max_pixels=MANY, scratch=scratch)
    np.testing.assert_array_equal(out, image)
    assert out.dtype.isnative
    assert out.flags.c_contiguous


@given(images)
def test_an_image_sent_column_by_column_is_turned(image: np.ndarray[Any, Any]) -> None:
    out = unpack(image.tobytes("F"), image.shape, image.dtype, max_pixels=MANY, order="F")
    np.testing.assert_array_equal(out, image)
    assert out.flags.c_contiguous


@pytest.mark.parametrize("algorithm", ["bslz4", "lz4"])
def test_a_compressed_image_comes_out(algorithm: str) -> None:
    image = np.arange(600, dtype="<u2").reshape(20, 30)
    packed = Packed(algorithm, 2, compression.compress(algorithm, 2, image))
    np.testing.assert_array_equal(unpack(packed, (20, 30), image.dtype, max_pixels=600), image)


@pytest.mark.parametrize(
    ("octets", "shape", "reason"),
    [
        (bytes(12), (2, 4), "shape"),
        (bytes(12), (2, 0), "shape"),
        (b"", (-2, 3), "shape"),
        (bytes(12), (2**40, 2**40), "size"),
        (bytes(12), (101, 100), "size"),
        (Packed("bslz4", 4, bytes(40)), (2, 3), "compression"),
        (Packed("lz4", 2, bytes(12)), (100, 100), "truncated"),
        (Packed("zstd", 2, bytes(12)), (2, 3), "compression"),
    ],
)
def test_what_cannot_fill_its_image_is_refused(octets: bytes | Packed, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(BadFrame) as caught:
        unpack(octets, shape, np.dtype("<u2"), max_pixels=MANY)
    assert caught.value.reason == reason


def test_types_are_known_by_name_in_either_byte_order() -> None:
    assert dtype_named("uint16") == np.dtype("<u2")
    assert dtype_named("float64", ">") == np.dtype(">f8")


@pytest.mark.parametrize("name", ["object", "V8", "U4", "", None, 7, ["uint16"], "complex128", "x" * 1000])
def test_a_type_nobody_sends_is_refused(name: Any) -> None:
    with pytest.raises(BadFrame) as caught:
        dtype_named(name)
    assert caught.value.reason == "dtype"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("given_type", "expected"),
    [
        *[(name, name) for name in ("uint8", "uint16", "uint32", "int32", "float32")],
        *[("bool", "uint8"), ("int8", "int32"), ("int16", "int32"), ("float16", "float32"), ("float64", "float32")],
        *[("uint64", "uint32"), ("int64", "int32")],
    ],
)
def test_pixels_reach_the_analyses_in_a_type_they_take(given_type: str, expected: str) -> None:
    image = np.array([[0, 1], [1, 0]], dtype=given_type)
    out = usable(image)
    assert out.dtype == expected
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize(("dtype", "value"), [("uint64", 2**32), ("int64", -(2**31) - 1), ("complex64", 1)])
def test_pixels_that_fit_no_such_type_are_refused(dtype: str, value: int) -> None:
    with pytest.raises(BadFrame) as caught:
        usable(np.array([[value]], dtype=dtype))
    assert caught.value.reason == "dtype"
