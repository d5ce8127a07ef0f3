"""DECTRIS stream v2: the schema to the letter, what real senders make of it, and everything that is neither."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cbor2
import lz4.block
import numpy as np
import pytest
from cbor2 import CBORTag
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer import compression
from streamer.compression import Scratch
from streamer.records import BadFrame, BadInput, Frame, SeriesEnd, SeriesKey, SeriesStart
from streamer.wire.dectris2 import Dectris2
from tests import hostile
from tests.equality import assert_same
from tests.strategies import exposures, series_ends, series_starts

SERIES = SeriesKey(7, "01HBV3JPF9T4ZDPADX6EMK6XMZ")
PIXELS = (np.arange(600, dtype=np.uint16) * 7919 % 11).reshape(20, 30)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compression.warm()


def frame(number: int = 3, **changes: Any) -> Frame:
    return replace(Frame(PIXELS, SERIES, number, "threshold_1"), **changes)


def image_message(data: dict[str, Any], **fields: Any) -> list[bytes]:
    identity = {"type": "image", "series_id": 7, "series_unique_id": SERIES.unique, "image_id": 3}
    return [cbor2.dumps({**identity, **fields, "data": data})]


def decoded_image(octets: Any, tag: int, shape: tuple[int, int] = (20, 30), multi: int = 40) -> NDArray[Any]:
    (found,) = Dectris2().decode(image_message({"a": CBORTag(multi, [list(shape), CBORTag(tag, octets)])}))
    assert isinstance(found, Frame)
    return found.image


def start_of(**fields: Any) -> SeriesStart:
    (found,) = Dectris2().decode([cbor2.dumps({"type": "start", "series_id": 7, **fields})])
    assert isinstance(found, SeriesStart)
    return found


def refusal(parts: list[bytes], wire: Dectris2 | None = None) -> BadFrame:
    with pytest.raises(BadFrame) as caught:
        (wire or Dectris2()).decode(parts)
    return caught.value


@given(exposures(), st.sampled_from(["bslz4", "lz4", "none"]))
def test_decoding_undoes_encoding_of_an_exposure(frames: list[Frame], packing: Any) -> None:
    wire = Dectris2(compression=packing)
    found = wire.decode(wire.encode(frames))
    assert len(found) == len(frames)
    for ours, theirs in zip(found, frames, strict=True):
        assert_same(ours, theirs)


@given(series_starts(), st.sampled_from(["bslz4", "lz4", "none"]))
def test_decoding_undoes_encoding_of_a_start(start: SeriesStart, packing: Any) -> None:
    wire = Dectris2(compression=packing)
    (found,) = wire.decode(wire.encode(start))
    assert_same(found, start)


@given(series_ends)
def test_decoding_undoes_encoding_of_an_end(end: SeriesEnd) -> None:
    assert Dectris2().decode(Dectris2().encode(end)) == [end]


@given(exposures())
def test_an_encoded_image_is_what_the_schema_says_to_an_independent_reader(frames: list[Frame]) -> None:
    (message,) = Dectris2(compression="none").encode(frames)
    found = cbor2.loads(message)
    assert next(iter(found)) == "type"
    assert (found["type"], found["image_id"], found["series_id"]) == (
        "image",
        frames[0].number,
        frames[0].series.number,
    )
    assert list(found["data"]) == [each.channel for each in frames]
    for each in frames:
        array = found["data"][each.channel]
        shape, typed = array.value
        element = {"|u1": 64, "<u2": 69, "<u4": 70, "<i4": 78, "<f4": 85}[each.image.dtype.str]
        assert (array.tag, tuple(shape), typed.tag) == (40, each.image.shape, element)
        assert typed.value == each.image.tobytes()


def test_kind_is_told_from_the_first_bytes() -> None:
    wire = Dectris2()
    for kind, record in (("start", SeriesStart(SERIES)), ("image", [frame()]), ("end", SeriesEnd(SERIES))):
        (message,) = wire.encode(record)
        for variant in (message, b"\xd9\xd9\xf7" + message, memoryview(message)[:24], bytearray(message)):
            assert wire.kind([variant]) == kind


def test_kind_is_told_whatever_the_size_of_the_map() -> None:
    for fields in (0, 22, 23, 300):
        message = cbor2.dumps({"type": "end", **{f"f{n}": n for n in range(fields)}})
        assert Dectris2().kind([message]) == "end"
    assert Dectris2().kind([b"\xbf" + cbor2.dumps("type") + cbor2.dumps("end") + b"\xff"]) == "end"


@pytest.mark.parametrize("parts", [[], [b""], [b"{}", b""], [b'{"htype":"dimage-1.0"}'], [cbor2.dumps({"id": 1})]])
def test_kind_is_none_where_it_cannot_be_told(parts: list[bytes]) -> None:
    assert Dectris2().kind(parts) is None


def test_an_image_is_identified_without_its_pixels() -> None:
    damaged = image_message({"a": CBORTag(40, [[20, 30], CBORTag(69, CBORTag(56500, ["bslz4", 2, b"damaged"]))])})
    assert Dectris2().identify(damaged) == (SERIES, 3)


def test_a_message_that_cannot_be_identified_is_refused() -> None:
    with pytest.raises(BadFrame) as caught:
        Dectris2().identify([cbor2.dumps({"type": "image", "series_id": 7})])
    assert caught.value.reason == "id"
    assert caught.value.series == SeriesKey(7)


def test_a_refused_message_carries_its_series_and_number_as_far_as_they_were_read() -> None:
    (message,) = image_message({"a": 5})
    error = refusal([message])
    assert (error.series, error.number) == (SERIES, 3)
    error = refusal([message[:-1]])
    assert (error.reason, error.series, error.number) == ("truncated", SERIES, 3)
    error = refusal([message[:20]])
    assert (error.reason, error.series, error.number) == ("truncated", None, None)


TYPED = {
    64: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8", 72: "i1", 73: ">i2",
    74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8", 80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4",
    86: "<f8",
}  # fmt: skip
TAKEN = {"i1": np.int32, "i2": np.int32, "i8": np.int32, "u8": np.uint32, "f2": np.float32, "f8": np.float32}
"""What analyses take in place of types that they do not."""


@pytest.mark.parametrize(("tag", "element"), TYPED.items())
def test_every_typed_array_is_read_in_native_byte_order_as_analyses_take_it(tag: int, element: str) -> None:
    sent = PIXELS.astype(element)
    packed = compression.compress("bslz4", sent.itemsize, sent)
    for octets in (sent.tobytes(), CBORTag(56500, ["bslz4", sent.itemsize, packed])):
        found = decoded_image(octets, tag)
        native = np.dtype(element).newbyteorder("=").str[1:]
        assert found.dtype == {"i1": "i4", "i2": "i4", "i8": "i4", "u8": "u4", "f2": "f4", "f8": "f4"}.get(
            native, native
        )
        assert found.dtype.isnative
        assert np.array_equal(found, PIXELS)


@pytest.mark.parametrize("element", ["<u2", ">u4"])
def test_a_column_major_image_is_turned_into_rows(element: str) -> None:
    tag = {"<u2": 69, ">u4": 66}[element]
    octets = PIXELS.astype(element).tobytes(order="F")
    for scratch in (None, Scratch()):
        message = image_message({"a": CBORTag(1040, [[20, 30], CBORTag(tag, octets)])})
        (found,) = Dectris2().decode(message, scratch=scratch)
        assert found.image.flags.c_contiguous
        assert np.array_equal(found.image, PIXELS)


@pytest.mark.parametrize("algorithm", ["bslz4", "lz4"])
@pytest.mark.parametrize("block", [128, 8192])
def test_compressed_images_are_read(algorithm: str, block: int) -> None:
    packed = compression.compress(algorithm, 2, PIXELS, block)
    assert np.array_equal(
        decoded_image(CBORTag(56500, [algorithm, 2 if algorithm == "bslz4" else 0, packed]), 69), PIXELS
    )


def test_each_channel_is_a_frame_named_by_the_data_not_by_the_start() -> None:
    wire = Dectris2()
    wire.decode([cbor2.dumps({"type": "start", "series_id": 7, "series_unique_id": SERIES.unique, "channels": ["1"]})])
    low, high = CBORTag(69, PIXELS.tobytes()), CBORTag(70, (PIXELS.astype("<u4") + 70_000).tobytes())
    data = {"threshold_1": CBORTag(40, [[20, 30], low]), "difference": CBORTag(40, [[20, 30], high])}
    first, second = wire.decode(image_message(data), received_ns=5)
    assert (first.channel, first.image.dtype, first.number, first.received_ns) == ("threshold_1", np.uint16, 3, 5)
    assert (second.channel, second.image.dtype, second.number, second.received_ns) == ("difference", np.uint32, 3, 5)
    assert np.array_equal(second.image - 70_000, first.image)


def test_times_are_exact() -> None:
    data = {"a": CBORTag(40, [[20, 30], CBORTag(69, PIXELS.tobytes())])}
    (found,) = Dectris2().decode(image_message(data, start_time=[0, 50_000_000], real_time=[215873, 50_000_000]))
    assert (found.start_s, found.stop_s, found.real_s) == (Fraction(0), None, Fraction(215873, 50_000_000))


def test_a_start_is_told_in_the_words_of_the_house() -> None:
    start = start_of(
        series_unique_id="x", number_of_images=10, image_size_x=30, image_size_y=20, image_dtype="uint16",
        channels=["threshold_1", "threshold_2"], saturation_value=21517, frame_time=0.005, count_time=0.004,
        incident_energy=13500, incident_wavelength=0.918, beam_center_x=15.5, beam_center_y=9.25, pixel_size_x=75e-6,
        pixel_size_y=80e-6, detector_translation=[0.15, 0.16, -0.237], detector_description="EIGER2 Si 16M",
        arm_date=CBORTag(0, "2023-10-03T17:47:48+02:00"), threshold_energy={"threshold_1": 6750.0},
    )  # fmt: skip
    assert (start.series, start.images, start.shape, start.dtype) == (SeriesKey(7, "x"), 10, (20, 30), np.uint16)
    assert (start.nodata, start.saturation) == (None, 21517)
    assert (start.frame_time_s, start.count_time_s) == (0.005, 0.004)
    assert (start.energy_eV, start.wavelength_A) == (13500.0, 0.918)
    assert (start.beam_center, start.pixel_size_m) == ((15.5, 9.25), (75e-6, 80e-6))
    assert (start.distance_m, start.extra["detector_translation"]) == (0.237, [0.15, 0.16, -0.237])
    assert (start.channels, start.detector) == (("threshold_1", "threshold_2"), "EIGER2 Si 16M")
    assert start.extra["arm_date"] == "2023-10-03T17:47:48+02:00"
    assert start.extra["threshold_energy"] == {"threshold_1": 6750.0}


def test_everything_but_the_series_may_be_absent_or_null() -> None:
    assert start_of() == SeriesStart(SeriesKey(7))
    names = ["series_unique_id", "image_dtype", "image_size_x", "flatfield", "pixel_mask", "channels", "beam_center_x"]
    assert start_of(**dict.fromkeys(names)).shape is None


@pytest.mark.parametrize(
    "placeholder", [None, b"AAAA" * 1000, {"threshold_1": b"\0\0\0\0"}, {"threshold_1": None}, "FIX"]
)
def test_placeholders_for_flatfield_and_mask_are_passed_over(placeholder: Any) -> None:
    start = start_of(flatfield=placeholder, pixel_mask=placeholder, countrate_correction_lookup_table=b"\0\0\0\0")
    assert (start.mask, start.flatfield, start.extra) == ({}, {}, {})


def test_a_mask_is_true_where_a_pixel_is_not_to_be_used() -> None:
    bits = np.zeros((20, 30), "<u4")
    bits[3, 4], bits[5, 6] = 1, 1 << 31
    for octets in (bits.tobytes(), CBORTag(56500, ["bslz4", 4, compression.compress("bslz4", 4, bits)])):
        array = CBORTag(40, [[20, 30], CBORTag(70, octets)])
        start = start_of(image_size_x=30, image_size_y=20, pixel_mask={"threshold_1": array})
        assert start.mask["threshold_1"].dtype == np.bool_
        assert np.argwhere(start.mask["threshold_1"]).tolist() == [[3, 4], [5, 6]]


def test_extra_holds_plain_values_only() -> None:
    extra = start_of(user_data={"a": [1, float("nan"), b"bytes", {"b": float("inf")}], "when": CBORTag(0, "now")}).extra
    assert extra == {"user_data": {"a": [1, None, None, {"b": None}], "when": "now"}}


def test_a_start_message_of_24_megabytes_is_read() -> None:
    """header_detail = all of an EIGER2 4M: flatfield and mask of 18 MB each before compression."""
    rng = np.random.default_rng(0)
    flat = rng.normal(1, 0.01, (2167, 1400)).astype(np.float32)
    mask = rng.random((2167, 1400)) < 0.001
    start = SeriesStart(SERIES, shape=(2167, 1400), mask={"threshold_1": mask}, flatfield={"threshold_1": flat})
    (message,) = Dectris2(compression="none").encode(start)
    assert len(message) > 24_000_000
    assert_same(Dectris2().decode([message])[0], start)


def test_an_image_larger_than_its_series_announced_is_refused() -> None:
    wire = Dectris2(max_pixels=10_000)
    wire.decode(wire.encode(SeriesStart(SERIES, shape=(20, 30))))
    larger = frame(image=np.zeros((21, 30), np.uint16))
    error = refusal(wire.encode([larger]), wire)
    assert (error.reason, error.series, error.number) == ("size", SERIES, 3)
    assert wire.decode(wire.encode([frame()]))
    assert wire.decode(wire.encode([replace(larger, series=SeriesKey(8))]))


def test_before_any_start_max_pixels_is_the_limit() -> None:
    assert Dectris2(max_pixels=600).decode(Dectris2().encode([frame()]))
    assert refusal(Dectris2().encode([frame()]), Dectris2(max_pixels=599)).reason == "size"


def test_a_start_beyond_max_pixels_says_what_to_do() -> None:
    error = refusal(Dectris2().encode(SeriesStart(SERIES, shape=(20, 30))), Dectris2(max_pixels=599))
    assert "raise max_pixels=599" in str(error)


def test_the_image_sizes_of_the_last_eight_series_are_remembered() -> None:
    wire = Dectris2()
    for number in range(1000):
        wire.decode(wire.encode(SeriesStart(SeriesKey(number), shape=(2, 2))))
    assert [refusal(wire.encode([frame(series=SeriesKey(number))]), wire).reason for number in range(992, 1000)] == (
        ["size"] * 8
    )
    assert wire.decode(wire.encode([frame(series=SeriesKey(991))]))


def test_images_lie_in_the_scratch_and_every_channel_in_its_own_buffer() -> None:
    wire, scratch = Dectris2(), Scratch()
    message = wire.encode([frame(), frame(channel="threshold_2", image=PIXELS + 1)])
    first, second = wire.decode(message, scratch=scratch)
    assert np.array_equal(first.image + 1, second.image)
    scratch.reset()
    again, _ = wire.decode(message, scratch=scratch)
    assert np.shares_memory(first.image, again.image)


def test_a_full_scratch_refuses_the_message_not_the_stream() -> None:
    assert refusal(Dectris2().encode([frame()])[:0] or [b""]).reason == "truncated"
    with pytest.raises(BadFrame) as caught:
        Dectris2().decode(Dectris2().encode([frame()]), scratch=Scratch(limit=1000))
    assert (caught.value.reason, caught.value.number) == ("size", 3)


def test_images_are_writable_and_do_not_change_the_message() -> None:
    wire = Dectris2(compression="none")
    (message,) = wire.encode([frame()])
    before = bytes(message)
    (found,) = wire.decode([message])
    found.image[:] = 0
    assert message == before


def test_several_threads_decode_at_once() -> None:
    wire = Dectris2()
    messages = [wire.encode([frame(n, image=PIXELS + np.uint16(n))]) for n in range(200)]
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda message: wire.decode(message)[0], messages))
    for n, each in enumerate(found):
        assert each.number == n
        assert np.array_equal(each.image, PIXELS + np.uint16(n))


def test_a_frame_without_a_channel_is_sent_as_threshold_1() -> None:
    assert Dectris2().decode(Dectris2().encode([frame(channel="")]))[0].channel == "threshold_1"


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [frame(), frame()],
        [frame(), frame(4, channel="threshold_2")],
        [frame(image=np.zeros(5, np.uint16))],
        [frame(image=np.zeros((2, 2), np.complex64))],
        [frame(extra={"user_data": object()})],
    ],
    ids=["none", "one twice", "two exposures", "one dimension", "complex", "an object"],
)
def test_what_cannot_be_sent_is_the_callers_error(frames: list[Frame]) -> None:
    with pytest.raises(BadInput, match="dectris2: "):
        Dectris2().encode(frames)


def test_numpy_numbers_are_sent_as_numbers() -> None:
    extra = {"user_data": {"n": np.int64(5), "x": np.float32(0.5)}}
    (found,) = Dectris2().decode(Dectris2().encode([frame(np.int64(3), extra=extra)]))
    assert (found.number, found.extra) == (3, {"user_data": {"n": 5, "x": 0.5}})


def test_what_is_attached_to_a_frame_cannot_change_what_it_is() -> None:
    extra = {"type": "end", "series_id": 99, "image_id": 99, "data": {}}
    (found,) = Dectris2().decode(Dectris2().encode([frame(extra=extra)]))
    assert (found.series, found.number, found.extra) == (SERIES, 3, {})


def test_every_truncation_of_every_message_is_refused() -> None:
    for (message,) in hostile.good("dectris2"):
        for cut in range(len(message)):
            assert refusal([message[:cut]]).reason == "truncated"


def unpacked(data: bytes, elem_size: int, blocks: int) -> NDArray[Any]:
    """The first blocks of a bslz4 stream, by definition and with nothing of the package. Returns (n,) little-endian."""
    block = struct.unpack(">I", data[8:12])[0]
    at, pieces = 12, []
    for _ in range(blocks):
        length = struct.unpack(">I", data[at : at + 4])[0]
        plain = lz4.block.decompress(data[at + 4 : at + 4 + length], uncompressed_size=block)
        bits = np.unpackbits(np.frombuffer(plain, np.uint8), bitorder="little").reshape(8 * elem_size, -1)
        pieces.append(np.packbits(bits.T, axis=1, bitorder="little").reshape(-1))
        at += 4 + length
    return np.concatenate(pieces).view(f"<u{elem_size}")


@pytest.mark.peers
def test_an_image_captured_from_a_real_eiger2_is_read(tickit_data: Path) -> None:
    message = (tickit_data / "stream2" / "image.cbor").read_bytes()
    (found,) = Dectris2().decode([message])
    assert (found.image.shape, found.image.dtype, found.channel) == ((4362, 4148), np.uint16, "threshold_1")
    assert (found.series, found.number) == (SeriesKey(15614, "01HBV3JPF9T4ZDPADX6EMK6XMZ"), 0)
    assert found.real_s == Fraction(215873, 50_000_000)
    assert 100 * (found.image == 65535).mean() == pytest.approx(6.93, abs=0.005)
    assert found.image[found.image != 65535].mean() == pytest.approx(0.0008, abs=0.00005)
    data = cbor2.loads(message)["data"]["threshold_1"].value[1].value.value[2]
    whole_blocks = found.image.nbytes // 8192
    judge = unpacked(data, 2, whole_blocks)
    assert np.array_equal(found.image.reshape(-1)[: judge.size], judge)


@pytest.mark.peers
def test_start_and_end_captured_from_a_real_eiger2_are_read(tickit_data: Path) -> None:
    wire = Dectris2()
    (start,) = wire.decode([(tickit_data / "stream2" / "start.cbor").read_bytes()])
    assert (start.shape, start.images, start.saturation, start.dtype) == ((4362, 4148), 1, 21517, None)
    assert (start.channels, list(start.extra["threshold_energy"])) == (("threshold_1",), ["threshold_1", "threshold_2"])
    assert (start.mask, start.flatfield) == ({}, {})
    assert start.distance_m == pytest.approx(0.23716, abs=1e-5)
    (end,) = wire.decode([(tickit_data / "stream2" / "end.cbor").read_bytes()])
    assert end == SeriesEnd(start.series)
    assert wire.decode([(tickit_data / "stream2" / "image.cbor").read_bytes()])
