"""bsread: the schema to the letter, what other senders make of it, and everything that is neither."""

from __future__ import annotations

import hashlib
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
from streamer.wire.bsread import REASONS, REMEMBERED_HEADERS, Bsread
from tests import hostile
from tests.strategies import images, names, numbers

PIXELS = (np.arange(600, dtype=np.uint16) * 7919 % 11).reshape(20, 30)
OCTETS = PIXELS.astype("<u2").tobytes()
TIME = struct.pack("<qq", 1_700_000_000, 250_000_000)
CAMERA = {"name": "CAM:FPICTURE", "type": "uint16", "shape": [30, 20], "encoding": "little"}


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compression.warm()


def pulse(channels: list[dict[str, Any]], *values: bytes, time: bytes = TIME, **fields: Any) -> list[bytes]:
    data_header = json.dumps({"htype": "bsr_d-1.1", "channels": channels}).encode()
    main = {"htype": "bsr_m-1.1", "pulse_id": 7, "hash": hashlib.md5(data_header).hexdigest()} | fields
    return [json.dumps(main).encode(), data_header, *(part for value in values for part in (value, time))]


def decoded(parts: list[bytes], **options: Any) -> Frame:
    (found,) = Bsread(**options).decode(parts)
    assert isinstance(found, Frame)
    return found


def values_of(*channels: tuple[dict[str, Any], bytes]) -> Any:
    """What is kept of channels beside a camera."""
    described = [{"name": f"C{n}"} | channel for n, (channel, _) in enumerate(channels)]
    return decoded(pulse([*described, CAMERA], *(value for _, value in channels), OCTETS)).extra.get("values")


def refusal(parts: list[bytes], wire: Bsread | None = None) -> BadFrame:
    with pytest.raises(BadFrame) as caught:
        (wire or Bsread()).decode(parts)
    return caught.value


def four_bytes(octets: bytes, order: str = "<") -> bytes:
    """lz4 as bsread has it."""
    block: bytes = lz4.block.compress(octets, store_size=False)
    return struct.pack(f"{order}I", len(octets)) + block


def assert_same(found: Any, sent: Frame) -> None:
    assert (found.series, found.number, found.channel) == (sent.series, sent.number, sent.channel)
    assert found.extra == sent.extra
    assert (found.image.dtype, found.image.shape) == (sent.image.dtype, sent.image.shape)
    assert found.image.tobytes() == sent.image.tobytes()


times = st.integers(0, 2**62)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
vectors = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none(), min_size=2, max_size=20)
beside = st.dictionaries(names.map("V:{}".format), scalars | st.text(min_size=1) | vectors, min_size=1, max_size=5)
extras = st.fixed_dictionaries(
    {},
    optional={
        "global_timestamp": st.fixed_dictionaries({"sec": times, "ns": st.integers(0, 999_999_999)}),
        "timestamp": st.lists(times, min_size=2, max_size=2),
        "values": beside,
    },
)


@st.composite
def pulses(draw: st.DrawFn) -> list[Frame]:
    """All channels of one pulse."""
    number, extra = draw(numbers), draw(extras)
    channels = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    return [Frame(draw(images()), SeriesKey(0), number, channel, extra=extra) for channel in channels]


@given(pulses(), st.sampled_from(["bitshuffle_lz4", "lz4", "none"]))
def test_decoding_undoes_encoding(frames: list[Frame], packing: Any) -> None:
    wire = Bsread(compression=packing)
    for found, sent in zip(wire.decode(wire.encode(frames)), frames, strict=True):
        assert_same(found, sent)


def test_a_series_has_no_start_and_no_end_to_send() -> None:
    assert Bsread().encode(SeriesStart(SeriesKey(1))) == Bsread().encode(SeriesEnd(SeriesKey(1))) == []


def test_a_frame_without_a_channel_is_sent_as_image() -> None:
    assert decoded(Bsread().encode([Frame(PIXELS, SeriesKey(0), 7)])).channel == "image"


def test_an_image_is_turned_from_fastest_first() -> None:
    found = decoded(pulse([CAMERA], OCTETS, global_timestamp={"sec": 5, "ns": 6}))
    assert (found.series, found.number, found.channel) == (SeriesKey(0), 7, "CAM:FPICTURE")
    assert np.array_equal(found.image, PIXELS)
    assert (found.start_s, found.stop_s, found.real_s) == (None, None, None)
    assert found.extra == {"global_timestamp": {"sec": 5, "ns": 6}, "timestamp": [1_700_000_000, 250_000_000]}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packing", ["none", "bitshuffle_lz4", "lz4"])
@pytest.mark.parametrize("name", ["uint8", "uint16", "int32", "float32", "float64"])
def test_every_compression_is_read_in_either_byte_order(order: str, packing: str, name: str) -> None:
    pixels = PIXELS.astype(np.dtype(name).newbyteorder(order))
    octets = {
        "none": pixels.tobytes(),
        "bitshuffle_lz4": compression.compress("bslz4", pixels.itemsize, pixels),
        "lz4": four_bytes(pixels.tobytes(), order),
    }[packing]
    camera = CAMERA | {"type": name, "encoding": "big" if order == ">" else "little", "compression": packing}
    found = decoded(pulse([camera], octets, time=struct.pack(f"{order}qq", 5, 6)))
    assert found.image.dtype.isnative
    assert np.array_equal(found.image, PIXELS)
    assert found.extra["timestamp"] == [5, 6]


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_length_before_lz4_is_read_in_either_byte_order_whatever_the_image_is_in(order: str) -> None:
    found = decoded(pulse([CAMERA | {"compression": "lz4"}], four_bytes(OCTETS, order)))
    assert np.array_equal(found.image, PIXELS)


def test_what_the_data_header_does_not_say_is_little_endian_float64_without_compression() -> None:
    found = decoded(pulse([{"name": "CAM", "shape": [30, 20]}], PIXELS.astype("<f8").tobytes()))
    assert found.image.dtype == np.float32
    assert np.array_equal(found.image, PIXELS)


@pytest.mark.parametrize("shape", [[30, 20, 1], [1, 30, 20], [30, 1, 20, 1]])
def test_dimensions_of_one_are_dropped(shape: list[int]) -> None:
    assert np.array_equal(decoded(pulse([CAMERA | {"shape": shape}], OCTETS)).image, PIXELS)


def test_each_image_is_a_channel_of_the_frame() -> None:
    second = CAMERA | {"name": "CAM2:FPICTURE", "type": "uint8", "shape": [2, 3]}
    found = Bsread().decode(pulse([CAMERA, second], OCTETS, bytes(6)))
    assert [(frame.channel, frame.image.shape) for frame in found] == [
        ("CAM:FPICTURE", (20, 30)),
        ("CAM2:FPICTURE", (3, 2)),
    ]


def test_the_channels_that_were_asked_for_are_read_and_no_others() -> None:
    cameras = [CAMERA | {"name": f"CAM{n}"} for n in range(3)]
    parts = pulse(cameras, OCTETS, b"damaged", OCTETS)
    assert [frame.channel for frame in Bsread(channel="CAM2").decode(parts)] == ["CAM2"]
    assert [frame.channel for frame in Bsread(channel="CAM2, CAM0").decode(parts)] == ["CAM0", "CAM2"]
    assert refusal(parts).reason == "shape"


def test_a_line_detector_is_an_image_of_one_row_if_it_is_asked_for() -> None:
    line = {"name": "SPECTRUM", "type": "uint16", "shape": [600]}
    found = decoded(pulse([line], OCTETS), channel="SPECTRUM")
    assert (found.image.shape, found.extra) == ((1, 600), {"timestamp": [1_700_000_000, 250_000_000]})
    assert Bsread().decode(pulse([line], OCTETS)) == []


def test_a_channel_that_is_not_there_is_refused_with_those_that_are() -> None:
    text = {"name": "TEXT", "type": "string", "shape": [1]}
    parts = pulse([CAMERA, text], OCTETS, b"x")
    error = refusal(parts, Bsread(channel="CAM:PICTURE"))
    assert (error.reason, error.number) == ("channel", 7)
    assert "CAM:FPICTURE" in str(error)
    assert refusal(parts, Bsread(channel="TEXT")).reason == "channel"


def test_a_channel_without_a_value_in_this_pulse_is_left_out() -> None:
    second = CAMERA | {"name": "CAM2"}
    (found,) = Bsread().decode([*pulse([CAMERA, second], OCTETS), b"", b""])
    assert (found.channel, found.number) == ("CAM:FPICTURE", 7)


def test_a_pulse_without_an_image_gives_no_frame() -> None:
    assert Bsread().decode([*pulse([CAMERA]), b"", b""]) == []
    assert Bsread(channel="CAM:FPICTURE").decode([*pulse([CAMERA]), b"", b""]) == []
    assert Bsread().decode(pulse([{"name": "X", "shape": [1]}], bytes(8))) == []
    assert Bsread().decode(pulse([])) == []


def test_the_values_beside_the_images_are_kept() -> None:
    wave = np.linspace(0, 1, 30)
    assert values_of(
        ({"type": "float64", "shape": [1]}, struct.pack("<d", 1.5)),
        ({}, struct.pack("<d", -2.5)),
        ({"type": "int32", "encoding": "big"}, struct.pack(">i", -5)),
        ({"type": "bool", "shape": [1]}, b"\x01"),
        ({"type": "string", "shape": [1]}, "µm".encode()),
        ({"shape": [30], "compression": "bitshuffle_lz4"}, compression.compress("bslz4", 8, wave)),
        ({"shape": [2], "compression": "lz4", "encoding": "big"}, four_bytes(struct.pack(">dd", 1, 2), ">")),
        ({"type": "string", "compression": "lz4"}, four_bytes(b"compressed")),
        ({"type": "string", "compression": "bitshuffle_lz4"}, bytes(8) + struct.pack(">I", 8192)),
    ) == {
        "C0": 1.5,
        "C1": -2.5,
        "C2": -5,
        "C3": True,
        "C4": "µm",
        "C5": wave.tolist(),
        "C6": [1.0, 2.0],
        "C7": "compressed",
        "C8": "",
    }


def test_values_that_are_long_or_not_understood_are_passed_over() -> None:
    assert (
        values_of(
            ({"shape": [100_000]}, bytes(800_000)),
            ({"shape": [2000], "compression": "bitshuffle_lz4"}, compression.compress("bslz4", 8, np.zeros(2000))),
            ({"type": "quaternion"}, bytes(16)),
            ({"compression": "zstd"}, bytes(16)),
            ({"shape": [2, 2, 2]}, bytes(64)),
            ({"type": "string", "shape": [30, 20]}, b"text"),
        )
        is None
    )


def test_values_that_are_not_finite_are_none_and_damaged_text_is_readable() -> None:
    values = values_of(({}, struct.pack("<d", float("nan"))), ({"type": "string"}, b"\xff text"))
    assert values == {"C0": None, "C1": "\ufffd text"}


def test_what_is_kept_beside_the_images_is_bounded() -> None:
    values = values_of(*[({"shape": [1000]}, bytes(8000)) for _ in range(100)])
    assert len(values) == 20


def test_a_compressed_data_header_is_read() -> None:
    main, data, *rest = pulse([CAMERA], OCTETS, dh_compression="lz4")
    for order in "<>":
        assert np.array_equal(decoded([main, four_bytes(data, order), *rest]).image, PIXELS)
    main, data, *rest = pulse([CAMERA], OCTETS, dh_compression="bitshuffle_lz4")
    packed = compression.compress("bslz4", 1, np.frombuffer(data, np.uint8))
    assert np.array_equal(decoded([main, packed, *rest]).image, PIXELS)


def test_a_data_header_that_was_left_empty_is_the_last_one_of_its_hash() -> None:
    wire = Bsread()
    main, data, *rest = pulse([CAMERA], OCTETS)
    assert refusal([main, b"", *rest], wire).reason == "field"
    (first,) = wire.decode([main, data, *rest])
    (again,) = wire.decode([main, b"", *rest])
    assert np.array_equal(first.image, again.image)


def test_a_data_header_that_changed_under_its_hash_is_read_again() -> None:
    wire = Bsread()
    wire.decode(pulse([CAMERA], OCTETS, hash="always the same"))
    turned = CAMERA | {"shape": [20, 30]}
    (found,) = wire.decode(pulse([turned], OCTETS, hash="always the same"))
    assert found.image.shape == (30, 20)


def test_the_last_data_headers_are_remembered() -> None:
    wire = Bsread()
    messages = [pulse([CAMERA | {"name": f"CAM{n}"}], OCTETS) for n in range(REMEMBERED_HEADERS + 1)]
    for parts in messages:
        wire.decode(parts)
    short = [[main, b"", *rest] for main, _, *rest in messages]
    assert refusal(short[0], wire).reason == "field"
    for parts in short[1:]:
        assert wire.decode(parts)


@pytest.mark.parametrize(
    "header", [b'{"htype":"bsr_m-1.1","pulse_id"', b'{"htype": "bsr_m-1.0"', b'{\n  "htype" : "bsr_m-1.1"']
)
def test_kind_is_told_from_the_first_bytes(header: bytes) -> None:
    assert Bsread().kind([header, b""]) == "image"
    assert Bsread().kind([memoryview(header), b""]) == "image"


@pytest.mark.parametrize(
    "parts", [[], [b""], [b"{}"], [b'{"htype":"bsr_d-1.1"}'], [b'{"htype":"array-1.0"}'], [b"\xa2\x64type"], [b"\xff"]]
)
def test_kind_is_none_where_it_cannot_be_told(parts: list[bytes]) -> None:
    assert Bsread().kind(parts) is None


def test_an_image_is_identified_by_its_main_header() -> None:
    assert Bsread().identify([*pulse([CAMERA])[:1], b"damaged"]) == (SeriesKey(0), 7)
    with pytest.raises(BadFrame, match="pulse_id is -1"):
        Bsread().identify(pulse([CAMERA], OCTETS, pulse_id=-1))


def test_a_refused_message_carries_its_pulse_id() -> None:
    error = refusal(pulse([CAMERA], b"damaged"))
    assert (error.reason, error.series, error.number) == ("shape", SeriesKey(0), 7)


def test_no_image_is_larger_than_max_pixels_and_all_are_not_larger_than_four() -> None:
    assert decoded(pulse([CAMERA], OCTETS), max_pixels=600)
    assert refusal(pulse([CAMERA], OCTETS), Bsread(max_pixels=599)).reason == "size"
    cameras = [CAMERA | {"name": f"CAM{n}"} for n in range(5)]
    assert len(Bsread(max_pixels=750).decode(pulse(cameras, *[OCTETS] * 5))) == 5
    assert refusal(pulse(cameras, *[OCTETS] * 5), Bsread(max_pixels=749)).reason == "size"


def test_images_lie_in_the_scratch_and_every_channel_in_its_own_buffer() -> None:
    wire, scratch = Bsread(), Scratch()
    second = PIXELS + np.uint16(1)
    parts = pulse([CAMERA, CAMERA | {"name": "CAM2"}], OCTETS, second.tobytes())
    first, other = wire.decode(parts, scratch=scratch)
    assert np.array_equal(first.image + 1, other.image)
    scratch.reset()
    again, _ = wire.decode(parts, scratch=scratch)
    assert np.shares_memory(first.image, again.image)


def test_several_threads_decode_at_once() -> None:
    wire = Bsread()
    messages = [
        wire.encode([Frame(PIXELS + np.uint16(n), SeriesKey(0), n, f"CAM{n % 9}", extra={"values": {"n": n}})])
        for n in range(200)
    ]
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda parts: wire.decode(parts)[0], messages))
    for n, each in enumerate(found):
        assert (each.number, each.channel, each.extra["values"]) == (n, f"CAM{n % 9}", {"n": n})
        assert np.array_equal(each.image, PIXELS + np.uint16(n))


FRAME = Frame(PIXELS, SeriesKey(0), 7, "CAM")


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [FRAME, FRAME],
        [FRAME, replace(FRAME, number=8, channel="CAM2")],
        [replace(FRAME, image=np.zeros(5, np.uint16))],
        [replace(FRAME, image=np.zeros((0, 5), np.uint16))],
        [replace(FRAME, image=np.zeros((2, 2), np.complex64))],
        [replace(FRAME, extra={"values": {"a": object()}})],
        [replace(FRAME, extra={"values": {"a": [[1], [2]]}})],
        [replace(FRAME, extra={"values": {"a": [[1], [2, 3]]}})],
        [replace(FRAME, extra={"values": {"a": 2**70}})],
        [replace(FRAME, extra={"values": {"CAM": 1}})],
        [replace(FRAME, extra={"timestamp": [1, 2, 3]})],
        [replace(FRAME, extra={"global_timestamp": object()})],
    ],
    ids=[
        *("none", "one twice", "two pulses", "a line", "empty", "complex", "an object", "a matrix", "a ragged list"),
        *("a big number", "a value named like the image", "three times", "an object for a time"),
    ],
)
def test_what_cannot_be_sent_is_the_callers_error(frames: list[Frame]) -> None:
    with pytest.raises(BadInput, match="bsread: "):
        Bsread().encode(frames)


def test_every_truncation_of_every_part_is_refused() -> None:
    cameras = [parts for parts in hostile.good("bsread") if b"string" not in parts[1]]
    assert len(cameras) >= 8
    for parts in cameras:
        for at, part in enumerate(parts):
            for cut in {*range(min(len(part), 400)), *range(max(0, len(part) - 20), len(part))}:
                shortened = [*parts[:at], part[:cut], *parts[at + 1 :]]
                if cut == 0 and at >= 2:
                    Bsread().decode(shortened)  # an empty value or time says that there is none
                else:
                    assert refusal(shortened).reason in REASONS
