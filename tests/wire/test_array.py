"""array-1.0: every sender's way to write it, and everything that is not it."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer import compression
from streamer.compression import Scratch
from streamer.records import BadFrame, BadInput, Frame, SeriesEnd, SeriesKey, SeriesStart
from streamer.wire.array import COLOURS, Array
from tests import hostile
from tests.strategies import images, names, numbers, plain

PIXELS = (np.arange(600, dtype=np.uint16) * 7919 % 11).reshape(20, 30)
HEADER: dict[str, Any] = {"htype": "array-1.0", "shape": [20, 30], "type": "uint16", "frame": 7}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compression.warm()


def message(octets: bytes = PIXELS.astype("<u2").tobytes(), **fields: Any) -> list[bytes]:
    return [json.dumps(HEADER | fields).encode(), octets]


def decoded(parts: list[bytes], **options: Any) -> Frame:
    (found,) = Array(**options).decode(parts)
    assert isinstance(found, Frame)
    return found


def refusal(parts: list[bytes], wire: Array | None = None) -> BadFrame:
    with pytest.raises(BadFrame) as caught:
        (wire or Array()).decode(parts)
    return caught.value


def assert_same(found: Any, sent: Frame) -> None:
    assert (found.series, found.number, found.channel) == (sent.series, sent.number, sent.channel)
    assert found.extra == sent.extra
    assert (found.image.dtype, found.image.shape) == (sent.image.dtype, sent.image.shape)
    assert found.image.tobytes() == sent.image.tobytes()


sources = st.builds(SeriesKey, st.just(0), names | st.just(""))
extras = st.fixed_dictionaries({}, optional={"timeStamp": st.floats(0, 1e10), "ndattr": st.dictionaries(names, plain)})


@given(images(), sources, numbers, extras, st.sampled_from(["bslz4", "lz4", "none"]))
def test_decoding_undoes_encoding(image: Any, series: SeriesKey, number: int, extra: Any, packing: Any) -> None:
    sent = Frame(image, series, number, extra=extra)
    wire = Array(compression=packing)
    (found,) = wire.decode(wire.encode([sent]))
    assert_same(found, sent)


@given(images(dtype=np.dtype("uint8")), numbers, st.sampled_from(["bslz4", "lz4", "none"]))
def test_decoding_undoes_encoding_of_colours(image: Any, number: int, packing: Any) -> None:
    image = np.pad(image, ((0, 3), (0, 3)))
    planes = [Frame(image ^ np.uint8(n), SeriesKey(0), number, colour) for n, colour in enumerate(COLOURS)]
    wire = Array(compression=packing)
    for found, sent in zip(wire.decode(wire.encode(planes)), planes, strict=True):
        assert_same(found, sent)


def test_a_series_has_no_start_and_no_end_to_send() -> None:
    assert Array().encode(SeriesStart(SeriesKey(1))) == Array().encode(SeriesEnd(SeriesKey(1))) == []


def test_the_minimal_header_of_std_daq_is_read() -> None:
    header = b'{"htype":"array-1.0", "shape":[20,30], "type":"uint16", "frame":434}'
    found = decoded([header, PIXELS.tobytes()])
    assert (found.series, found.number, found.channel, found.extra) == (SeriesKey(0), 434, "", {})
    assert np.array_equal(found.image, PIXELS)


AD_HEADER = (
    '{"htype":%s, "type":"uint16", "shape":%s, "frame":12, "timeStamp":1037719800.25, "encoding":"", "ndattr":{%s}}'
)


@pytest.mark.parametrize(
    ("htype", "shape"), [('["array-1.0"]', "[30,20]"), ('"array-1.0"', "[20,30]")], ids=["before 1.4.0", "since 1.4.0"]
)
def test_both_orders_of_area_detector_are_told_by_the_htype(htype: str, shape: str) -> None:
    header = AD_HEADER % (htype, shape, '"ColorMode":0,"Gain":1.5')
    found = decoded([header.encode(), PIXELS.tobytes()])
    assert np.array_equal(found.image, PIXELS)
    assert (found.number, found.start_s) == (12, None)
    assert found.extra == {"timeStamp": 1037719800.25, "ndattr": {"ColorMode": 0, "Gain": 1.5}}


@pytest.mark.parametrize(
    "attributes",
    [
        b'"File":"C:\\data\\x.tif"',
        b'"Sample":"the "good" one"',
        b'"Bits":\x0c',
        b'"T":nan',
        b'"Name":"\xb5m"',
        b'"A":1,',
    ],
    ids=["a backslash", "a quotation mark", "an 8-bit number", "not a number", "Latin-1", "an undefined attribute"],
)
def test_a_frame_is_not_lost_for_its_attributes(attributes: bytes) -> None:
    header = (AD_HEADER % ('"array-1.0"', "[20,30]", "@")).encode().replace(b"@", attributes)
    found = decoded([header, PIXELS.tobytes()])
    assert np.array_equal(found.image, PIXELS)
    assert found.extra == {"timeStamp": 1037719800.25, "ndattr": None}


@pytest.mark.parametrize("name", ["endianness", "endianess"])
@pytest.mark.parametrize(("order", "element"), [("little", "<"), ("big", ">")])
def test_either_spelling_tells_the_byte_order(name: str, order: str, element: str) -> None:
    found = decoded(message(PIXELS.astype(f"{element}u2").tobytes(), **{name: order}))
    assert found.image.dtype == np.uint16
    assert np.array_equal(found.image, PIXELS)


@pytest.mark.parametrize(
    ("sent", "analysed"),
    [
        *[(name, name) for name in ("uint8", "uint16", "uint32", "int32", "float32")],
        *[("int8", "int32"), ("int16", "int32"), ("int64", "int32"), ("uint64", "uint32")],
        *[("float16", "float32"), ("float64", "float32")],
    ],
)
def test_every_element_type_becomes_one_that_analyses_take(sent: str, analysed: str) -> None:
    octets = PIXELS.astype(np.dtype(sent).newbyteorder("<")).tobytes()
    found = decoded(message(octets, type=sent))
    assert found.image.dtype == analysed
    assert np.array_equal(found.image, PIXELS)


@pytest.mark.parametrize("shape", [[1, 20, 30], [20, 30, 1], [20, 1, 30], [1, 1, 20, 30]])
def test_dimensions_of_one_are_dropped(shape: list[int]) -> None:
    assert np.array_equal(decoded(message(shape=shape)).image, PIXELS)


def test_a_line_is_an_image_of_one_row() -> None:
    assert decoded(message(shape=[600])).image.shape == (1, 600)
    assert decoded(message(shape=[600, 1])).image.shape == (600, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_colours_of_an_image_are_its_channels(axis: int) -> None:
    planes = [PIXELS, PIXELS + np.uint16(100), PIXELS + np.uint16(200)]
    cube = np.stack(planes, axis)
    found = Array(max_pixels=600).decode(message(cube.tobytes(), shape=list(cube.shape)))
    assert [frame.channel for frame in found] == ["red", "green", "blue"]
    for frame, plane in zip(found, planes, strict=True):
        assert frame.image.flags.c_contiguous
        assert np.array_equal(frame.image, plane)


def blocks(packed: bytes) -> bytes:
    """What areaDetector's codec makes: the blocks without the header of the HDF5 filter."""
    return packed[12:]


@pytest.mark.parametrize("element", ["<u1", "<u2", ">u2", "<u4", "<f8"])
@pytest.mark.parametrize("count", [600, 5000, 8192, 20_003])
def test_the_codecs_of_area_detector_are_read(element: str, count: int) -> None:
    dtype = np.dtype(element)
    pixels = (np.arange(count) * 7919 % 11).astype(dtype)
    header = {"shape": [1, count], "type": dtype.newbyteorder("=").name, "endianness": "big" if ">" in element else ""}
    shuffled = compression.compress("bslz4", dtype.itemsize, pixels)
    variants = {
        "lz4": [lz4.block.compress(pixels.tobytes(), store_size=False)],
        "bslz4": [blocks(shuffled), shuffled],
        "lz4hdf5": [compression.compress("lz4", 0, pixels, block=1000)],
    }
    for encoding, payloads in variants.items():
        for octets in payloads:
            found = decoded(message(octets, encoding=encoding, **header))
            assert np.array_equal(found.image[0], pixels), encoding


@pytest.mark.parametrize("count", [600, 5000, 8192, 20_003])
def test_blocks_in_a_buffer_that_was_sent_whole_are_read(count: int) -> None:
    pixels = (np.arange(count) * 7919 % 11).astype("<u2")
    packed = blocks(compression.compress("bslz4", 2, pixels))
    for filling in (b"\x00", b"\xff", b"\x07"):
        whole = packed + filling * (pixels.nbytes - len(packed))
        found = decoded(message(whole, encoding="bslz4", shape=[1, count]))
        assert np.array_equal(found.image[0], pixels)


def test_fewer_than_eight_elements_are_what_bitshuffle_leaves_as_they_are() -> None:
    dark = np.zeros((1, 3), "<i4")
    found = decoded(message(dark.tobytes(), encoding="bslz4", shape=[1, 3], type="int32"))
    assert np.array_equal(found.image, dark)


def test_a_codec_that_is_not_understood_is_named() -> None:
    assert "blosc" in str(refusal(message(encoding="blosc")))


def test_the_predecessor_is_recognised_and_refused_with_what_to_do() -> None:
    for htype in ("chunk-1.0", ["chunk-1.0"]):
        parts = message(htype=htype)
        assert Array().kind(parts) == "image"
        assert "have the sender write array-1.0" in str(refusal(parts))


@pytest.mark.parametrize(
    "header",
    [
        b'{"htype":"array-1.0","shape"',
        b'{ "htype" : "array-1.0"',
        b'{"htype":["array-1.0"], "type"',
        b'{\n    "htype" : ["array-1.0"],\n',
    ],
)
def test_kind_is_told_from_the_first_bytes(header: bytes) -> None:
    assert Array().kind([header, b""]) == "image"
    assert Array().kind([memoryview(header), b""]) == "image"


@pytest.mark.parametrize(
    "parts",
    [[], [b""], [b"{}"], [b'{"htype":"dimage-1.0"}'], [b'{"htype":"bsr_m-1.1"}'], [b"\xa2\x64type"], [b"\xff" * 1000]],
)
def test_kind_is_none_where_it_cannot_be_told(parts: list[bytes]) -> None:
    assert Array().kind(parts) is None


def test_an_image_is_identified_without_its_pixels() -> None:
    assert Array().identify(message(b"damaged", source="pco")) == (SeriesKey(0, "pco"), 7)


def test_a_refused_message_carries_its_sender_and_number_as_far_as_they_were_read() -> None:
    error = refusal(message(b"damaged", source="pco"))
    assert (error.series, error.number) == (SeriesKey(0, "pco"), 7)
    error = refusal(message(frame=-1))
    assert (error.series, error.number) == (SeriesKey(0), None)
    with pytest.raises(BadFrame) as caught:
        Array().identify(message(source=5))
    assert (caught.value.reason, caught.value.series) == ("id", None)


def test_no_image_is_larger_than_max_pixels() -> None:
    assert decoded(message(), max_pixels=600)
    assert refusal(message(), Array(max_pixels=599)).reason == "size"


def test_images_lie_in_the_scratch() -> None:
    wire, scratch = Array(), Scratch()
    (first,) = wire.decode(message(), scratch=scratch)
    scratch.reset()
    (again,) = wire.decode(message(), scratch=scratch)
    assert np.shares_memory(first.image, again.image)


def test_images_are_writable_and_do_not_change_the_message() -> None:
    parts = message()
    before = bytes(parts[1])
    decoded(parts).image[:] = 0
    assert parts[1] == before


def test_several_threads_decode_at_once() -> None:
    wire = Array(compression="bslz4")
    messages = [wire.encode([Frame(PIXELS + np.uint16(n), SeriesKey(0), n)]) for n in range(200)]
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda parts: wire.decode(parts)[0], messages))
    for n, each in enumerate(found):
        assert each.number == n
        assert np.array_equal(each.image, PIXELS + np.uint16(n))


def test_the_name_of_a_single_channel_is_not_sent() -> None:
    assert decoded(Array().encode([Frame(PIXELS, SeriesKey(0), 7, "threshold_1")])).channel == ""


FRAME = Frame(PIXELS, SeriesKey(0), 7)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [FRAME, FRAME],
        [replace(FRAME, channel=colour, number=n) for n, colour in enumerate(COLOURS)],
        [replace(FRAME, channel=colour) for colour in ("red", "blue", "green")],
        [replace(FRAME, channel=colour, image=np.zeros((3, 5), np.uint8)) for colour in COLOURS],
        [replace(FRAME, image=np.zeros(5, np.uint16))],
        [replace(FRAME, image=np.zeros((0, 5), np.uint16))],
        [replace(FRAME, image=np.zeros((2, 2), np.complex64))],
        [replace(FRAME, extra={"ndattr": object()})],
        [replace(FRAME, extra={"timeStamp": float("nan")})],
    ],
    ids=[
        "none",
        "one twice",
        "three exposures",
        "another order",
        "three rows of colours",
        "a line",
        "empty",
        "complex",
        "an object",
        "nan",
    ],
)
def test_what_cannot_be_sent_is_the_callers_error(frames: list[Frame]) -> None:
    with pytest.raises(BadInput, match="array: "):
        Array().encode(frames)


def test_what_is_attached_to_a_frame_cannot_change_what_it_is() -> None:
    extra = {"htype": "chunk-1.0", "frame": 99, "shape": [1], "gain": np.float32(0.5)}
    found = decoded(Array().encode([replace(FRAME, number=np.int64(7), extra=extra)]))
    assert (found.number, found.extra) == (7, {"gain": 0.5})


def test_every_truncation_of_a_header_is_refused_or_costs_the_attributes_alone() -> None:
    for header, octets in hostile.good("array"):
        for cut in range(len(header)):
            if b'"ndattr":' in header[:cut]:
                assert Array().decode([header[:cut], octets])
            else:
                assert refusal([header[:cut], octets]).reason == "json"


def test_a_length_of_two_to_the_forty_in_a_block_is_compared_with_what_is_there() -> None:
    octets = struct.pack(">QI", 2**40, 8192) + bytes(100)
    assert refusal(message(octets, encoding="bslz4")).reason == "truncated"
