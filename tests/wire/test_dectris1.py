"""DECTRIS stream v1: the parts to the letter, what real senders make of them, and everything that is neither."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from structlog.testing import capture_logs

from streamer import compression
from streamer.compression import Scratch
from streamer.records import BadFrame, BadInput, Frame, SeriesEnd, SeriesKey, SeriesStart
from streamer.wire.dectris1 import Dectris1
from tests import hostile
from tests.equality import assert_same
from tests.strategies import exposures, series_ends, series_starts

SERIES = SeriesKey(7)
PIXELS = (np.arange(600, dtype=np.uint16) * 7919 % 11).reshape(20, 30)
CONFIG = {"nimages": 10, "ntrigger": 1, "trigger_mode": "ints", "x_pixels_in_detector": 30, "y_pixels_in_detector": 20}
FLATFIELD = np.linspace(0.5, 1.5, 600, dtype="<f4").reshape(20, 30)
MASK = np.zeros((20, 30), "<u4")
MASK[3, 4], MASK[5, 6] = 1, 1 << 31


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    compression.warm()


def frame(number: int = 3, **changes: Any) -> Frame:
    return replace(Frame(PIXELS, SERIES, number), **changes)


def header(detail: str = "basic", series: int = 7) -> bytes:
    return json.dumps({"htype": "dheader-1.0", "series": series, "header_detail": detail}).encode()


def config(**changes: Any) -> bytes:
    return json.dumps(CONFIG | changes).encode()


def table(name: str, values: NDArray[Any], **changes: Any) -> list[bytes]:
    about = {"htype": f"d{name}-1.0", "shape": [*values.shape[::-1]], "type": values.dtype.name}
    return [json.dumps(about | changes).encode(), values.tobytes()]


def image_message(blob: bytes, *, number: int = 3, times: Any = None, **about: Any) -> list[bytes]:
    described = {"htype": "dimage_d-1.0", "shape": [30, 20], "type": "uint16", "encoding": "bs16-lz4<"}
    return [
        json.dumps({"htype": "dimage-1.0", "series": 7, "frame": number, "hash": ""}).encode(),
        json.dumps(described | {"size": len(blob)} | about).encode(),
        blob,
        json.dumps({"htype": "dconfig-1.0"} | (times or {})).encode(),
    ]


def decoded_image(blob: bytes, **about: Any) -> NDArray[Any]:
    (found,) = Dectris1().decode(image_message(blob, **about))
    assert isinstance(found, Frame)
    return found.image


def start_of(*parts: bytes) -> SeriesStart:
    (found,) = Dectris1().decode(parts)
    assert isinstance(found, SeriesStart)
    return found


def refusal(parts: list[bytes], wire: Dectris1 | None = None) -> BadFrame:
    with pytest.raises(BadFrame) as caught:
        (wire or Dectris1()).decode(parts)
    return caught.value


def as_told(start: SeriesStart) -> SeriesStart:
    """What this stream can say of a start: no unique id, no channels, no signed types, one mask, one flatfield."""
    depth = None if start.dtype is None or start.dtype.kind != "u" else start.dtype
    return replace(
        start,
        series=SeriesKey(start.series.number),
        dtype=depth,
        channels=(),
        saturation=start.saturation or None,
        mask=dict(zip([""], start.mask.values(), strict=False)),
        flatfield=dict(zip([""], start.flatfield.values(), strict=False)),
    )


TIMES = ("start_s", "stop_s", "real_s")


def in_63_bits(time: Fraction | None) -> Fraction | None:
    """A time that a detector can tell in nanoseconds."""
    return None if time is None else time % 2**33


@given(exposures(), st.sampled_from(["bslz4", "lz4", "none"]))
def test_decoding_undoes_encoding_of_an_exposure(frames: list[Frame], packing: Any) -> None:
    wire = Dectris1(compression=packing)
    series = SeriesKey(frames[0].series.number)
    names = [""] if len(frames) == 1 else [f"threshold_{number}" for number in range(1, len(frames) + 1)]
    sent = [
        replace(each, series=series, channel=name, **{time: in_63_bits(getattr(each, time)) for time in TIMES})
        for each, name in zip(frames, names, strict=True)
    ]
    found = wire.decode(wire.encode(sent))
    assert len(found) == len(sent)
    for ours, theirs in zip(found, sent, strict=True):
        assert_same(ours, theirs)


@given(series_starts())
def test_decoding_undoes_encoding_of_a_start(start: SeriesStart) -> None:
    wire = Dectris1()
    (found,) = wire.decode(wire.encode(start))
    assert_same(found, as_told(start))


@given(series_starts())
def test_a_start_of_less_detail_tells_less(start: SeriesStart) -> None:
    (basic,) = Dectris1().decode(Dectris1(header_detail="basic").encode(start))
    assert_same(basic, replace(as_told(start), mask={}, flatfield={}))
    (none,) = Dectris1().decode(Dectris1(header_detail="none").encode(start))
    assert none == SeriesStart(SeriesKey(start.series.number))


@given(series_ends)
def test_decoding_undoes_encoding_of_an_end(end: SeriesEnd) -> None:
    assert Dectris1().decode(Dectris1().encode(end)) == [SeriesEnd(SeriesKey(end.series.number))]


@given(exposures())
def test_an_encoded_image_is_what_a_detector_sends_to_an_independent_reader(frames: list[Frame]) -> None:
    sent = replace(frames[0], **{time: in_63_bits(getattr(frames[0], time)) for time in TIMES})
    first, about, blob, times = Dectris1().encode([sent])
    assert json.loads(first) == {
        "htype": "dimage-1.0",
        "series": sent.series.number,
        "frame": sent.number,
        "hash": hashlib.md5(blob, usedforsecurity=False).hexdigest(),
    }
    rows, columns = sent.image.shape
    bits = 8 * sent.image.itemsize
    assert json.loads(about) == {
        "htype": "dimage_d-1.0",
        "shape": [columns, rows],
        "type": sent.image.dtype.name,
        "encoding": f"bs{bits}-lz4<",
        "size": len(blob),
    }
    assert int.from_bytes(blob[:8], "big") == sent.image.nbytes
    told = json.loads(times)
    assert told["htype"] == "dconfig-1.0"
    for name, seconds in (("start_time", sent.start_s), ("stop_time", sent.stop_s), ("real_time", sent.real_s)):
        assert (name in told) == (seconds is not None)
        assert told.get(name) == (None if seconds is None else seconds * 10**9)


def test_plain_and_lz4_images_are_encoded_without_any_framing() -> None:
    _, about, blob, _ = Dectris1(compression="none").encode([frame()])
    assert (json.loads(about)["encoding"], blob) == ("<", PIXELS.tobytes())
    _, about, blob, _ = Dectris1(compression="lz4").encode([frame()])
    assert json.loads(about)["encoding"] == "lz4<"
    assert lz4.block.decompress(blob, uncompressed_size=PIXELS.nbytes) == PIXELS.tobytes()


def test_an_encoded_start_has_the_parts_in_a_detectors_order() -> None:
    start = SeriesStart(SERIES, images=5, shape=(20, 30), mask={"": MASK != 0}, flatfield={"": FLATFIELD})
    parts = Dectris1().encode(replace(start, extra={"header_appendix": "sample 1"}))
    assert [json.loads(part).get("htype") for part in (*parts[:3], parts[4])] == [
        "dheader-1.0",
        None,
        "dflatfield-1.0",
        "dpixelmask-1.0",
    ]
    told = json.loads(parts[1])
    assert (told["nimages"], told["ntrigger"], told["trigger_mode"]) == (5, 1, "ints")
    assert (told["x_pixels_in_detector"], told["y_pixels_in_detector"]) == (30, 20)
    assert json.loads(parts[4]) == {"htype": "dpixelmask-1.0", "shape": [30, 20], "type": "uint32"}
    assert parts[-1] == b"sample 1"
    assert len(Dectris1(header_detail="basic").encode(start)) == 2
    assert len(Dectris1(header_detail="none").encode(start)) == 1


def test_kind_is_told_from_the_first_part() -> None:
    wire = Dectris1()
    for kind, record in (("start", SeriesStart(SERIES)), ("image", [frame()]), ("end", SeriesEnd(SERIES))):
        first, *others = wire.encode(record)
        for variant in (first, memoryview(first), bytearray(first), b" \r\n" + first.replace(b":", b" : ")):
            assert wire.kind([variant, *others]) == kind


def test_kind_is_told_wherever_the_type_stands_among_the_entries() -> None:
    for part in (
        b'{"header_detail": "all", "series": 1, "htype": "dheader-1.0"}',
        b'{"frame":9223372036854775807,"hash":"55a1a362806a08bee87633abdcdbcc5d","htype":"dimage-1.0","series":34}',
        b'{"series": 1, "htype": "dseries_end-1.0"}',
    ):
        assert Dectris1().kind([part]) in ("start", "image", "end")


def test_a_configuration_or_a_table_that_comes_alone_is_of_the_start() -> None:
    assert Dectris1().kind([config()]) == "start"
    assert Dectris1().kind(table("pixelmask", MASK)) == "start"


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"{}", b""],
        [b"\xa2\x64type\x63end\x69series_id\x07"],
        [b'{"htype":"array-1.0","ndattr":{"htype":"dimage-1.0"}}', b""],
        [b'{"htype":"bsr_m-1.1","pulse_id":0}', b"{}"],
        [b'{"htype":["dimage-1.0"]}'],
        [b'["htype":"dimage-1.0"]'],
        [b'{"htype":"dimage-2.0"}'],
        [b'{"htype":"dconfig-1.0"}'],
        [b'{"nimages":1}'],
        [b"\xff" * 300],
        [memoryview(b"")],
    ],
    ids=repr,
)
def test_kind_is_none_where_it_cannot_be_told(parts: list[bytes]) -> None:
    assert Dectris1().kind(parts) is None


def test_an_image_is_identified_without_its_pixels() -> None:
    first = image_message(b"")[0]
    assert Dectris1().identify([first, b"damaged", b"damaged", b"damaged"]) == (SERIES, 3)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "parts"),
        ([b"{"], "json"),
        ([b'{"htype":"dseries_end-1.0","series":7}'], "type"),
        ([b'{"htype":"dimage-1.0","series":7}'], "id"),
        ([b'{"htype":"dimage-1.0","frame":7}'], "id"),
    ],
)
def test_a_message_that_cannot_be_identified_is_refused(parts: list[bytes], reason: str) -> None:
    with pytest.raises(BadFrame) as caught:
        Dectris1().identify(parts)
    assert caught.value.reason == reason


def test_a_refused_message_carries_its_series_and_number_as_far_as_they_were_read() -> None:
    parts = image_message(b"damaged")
    error = refusal(parts)
    assert (error.reason, error.series, error.number) == ("truncated", SERIES, 3)
    error = refusal(parts[:2])
    assert (error.reason, error.series, error.number) == ("parts", SERIES, 3)
    error = refusal([parts[0].replace(b'"frame": 3', b'"frame": -3'), *parts[1:]])
    assert (error.reason, error.series, error.number) == ("id", SERIES, None)
    error = refusal([parts[0][:20], *parts[1:]])
    assert (error.reason, error.series, error.number) == ("json", None, None)


def packed(pixels: NDArray[Any], bits: int) -> bytes:
    return compression.compress("bslz4", bits // 8, pixels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("element", "bits"), [("u1", 8), ("u2", 16), ("u4", 32), ("i4", 32), ("f4", 32)])
def test_every_encoding_of_every_type_is_read_in_native_byte_order(element: str, bits: int, order: str) -> None:
    sent = PIXELS.astype(f"{order}{element}")
    whole = packed(np.frombuffer(sent.tobytes(), f"u{bits // 8}"), bits)
    blobs = {
        f"bs{bits}-lz4{order}": whole,
        f"bs{bits}lz4{order}": whole,
        f"lz4{order}": lz4.block.compress(sent.tobytes(), store_size=False),
        f"-lz4{order}": compression.compress("lz4", 0, sent),
        order: sent.tobytes(),
    }
    for encoding, blob in blobs.items():
        found = decoded_image(blob, encoding=encoding, type=sent.dtype.newbyteorder("=").name)
        assert found.dtype == sent.dtype.newbyteorder("=")
        assert found.dtype.isnative
        assert np.array_equal(found, PIXELS)


def test_without_a_byte_order_pixels_are_little_endian() -> None:
    for encoding, blob in {"": PIXELS.astype("<u2").tobytes(), "bs16-lz4": packed(PIXELS, 16)}.items():
        assert np.array_equal(decoded_image(blob, encoding=encoding), PIXELS)


@pytest.mark.parametrize("shape", [(20, 30), (1, 3), (3, 1), (201, 307)])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_bitshuffled_blob_is_read_with_its_12_bytes_with_zeros_and_without(shape: Any, bits: int) -> None:
    rows, columns = shape
    sent = (np.arange(rows * columns) * 7919 % 250).reshape(shape).astype(f"u{bits // 8}")
    blob = packed(sent, bits)
    about = {"encoding": f"bs{bits}-lz4<", "type": sent.dtype.name, "shape": [columns, rows]}
    for variant in (blob, bytes(12) + blob[12:], blob[12:]):
        assert np.array_equal(decoded_image(variant, **about), sent)


def test_the_shape_is_width_and_height_and_the_image_rows_by_columns() -> None:
    found = decoded_image(PIXELS.tobytes(), encoding="<", shape=[30, 20])
    assert found.shape == (20, 30)
    assert found[0].tolist() == PIXELS.reshape(-1)[:30].tolist()


def test_thresholds_in_one_blob_are_channels() -> None:
    stack = np.stack([PIXELS, PIXELS + 1, PIXELS + 2])
    found = Dectris1().decode(image_message(packed(stack, 16), shape=[30, 20, 3]), received_ns=5)
    assert [each.channel for each in found] == ["threshold_1", "threshold_2", "threshold_3"]
    for each, sent in zip(found, stack, strict=True):
        assert (each.number, each.received_ns) == (3, 5)
        assert np.array_equal(each.image, sent)
    (single,) = Dectris1().decode(image_message(packed(PIXELS, 16), shape=[30, 20, 1]))
    assert (single.channel, single.image.shape) == ("", (20, 30))


def test_times_are_exact_seconds() -> None:
    times = {"start_time": 5396052835800, "stop_time": 5396053335799, "real_time": 0}
    (found,) = Dectris1().decode(image_message(packed(PIXELS, 16), times=times))
    assert (found.start_s, found.stop_s, found.real_s) == (
        Fraction(5396052835800, 10**9),
        Fraction(5396053335799, 10**9),
        Fraction(0),
    )
    (found,) = Dectris1().decode(image_message(packed(PIXELS, 16)))
    assert (found.start_s, found.stop_s, found.real_s) == (None, None, None)


@pytest.mark.parametrize(
    ("appendix", "extra"),
    [
        (b"", {"image_appendix": ""}),
        (b"{}", {"image_appendix": {}}),
        (b'{"motor":[1,2.5]}', {"image_appendix": {"motor": [1, 2.5]}}),
        (b"line 3", {"image_appendix": "line 3"}),
        (b"[1]", {"image_appendix": "[1]"}),
        (b'{"a":NaN}', {"image_appendix": '{"a":NaN}'}),
        (b"[" * 60_000, {"image_appendix": "[" * 60_000}),
        (b"\xff\xfe", {}),
        (b"x" * 70_000, {}),
    ],
    ids=["empty", "an empty map", "a map", "text", "a list", "NaN", "deep", "binary", "long"],
)
def test_an_appendix_is_kept_as_what_it_is(appendix: bytes, extra: dict[str, Any]) -> None:
    (found,) = Dectris1().decode([*image_message(packed(PIXELS, 16)), appendix])
    assert found.extra == extra


def test_a_series_may_change_its_bit_depth() -> None:
    wire = Dectris1()
    for series, element in ((1, "u2"), (2, "u4"), (3, "u1")):
        key, sent = SeriesKey(series), PIXELS.astype(element)
        (start,) = wire.decode(wire.encode(SeriesStart(key, shape=(20, 30), dtype=sent.dtype)))
        (found,) = wire.decode(wire.encode([frame(series=key, image=sent)]))
        assert (start.dtype, found.image.dtype) == (sent.dtype, sent.dtype)


def test_a_start_is_told_in_the_words_of_the_house() -> None:
    start = start_of(
        header("all"),
        config(
            bit_depth_image=32, countrate_correction_count_cutoff=21517, frame_time=0.005, count_time=0.004,
            photon_energy=13500, wavelength=0.918, beam_center_x=15.5, beam_center_y=9.25, x_pixel_size=75e-6,
            y_pixel_size=80e-6, detector_distance=0.237, description="Dectris EIGER2 Si 16M",
            software_version="1.8.0", threshold_energy=6750.0,
        ),
        *table("flatfield", FLATFIELD),
        *table("pixelmask", MASK),
        *table("countrate_table", np.zeros((1000, 2), "<f4")),
        b'{"sample":"lysozyme"}',
    )  # fmt: skip
    assert (start.series, start.images, start.shape, start.dtype) == (SERIES, 10, (20, 30), np.uint32)
    assert (start.nodata, start.saturation, start.channels) == (None, 21517, ())
    assert (start.frame_time_s, start.count_time_s) == (0.005, 0.004)
    assert (start.energy_eV, start.wavelength_A) == (13500.0, 0.918)
    assert (start.beam_center, start.pixel_size_m) == ((15.5, 9.25), (75e-6, 80e-6))
    assert (start.distance_m, start.detector) == (0.237, "Dectris EIGER2 Si 16M")
    assert np.array_equal(start.flatfield[""], FLATFIELD)
    assert start.mask[""].dtype == np.bool_
    assert np.argwhere(start.mask[""]).tolist() == [[3, 4], [5, 6]]
    assert start.extra == {
        "software_version": "1.8.0",
        "threshold_energy": 6750.0,
        "header_appendix": {"sample": "lysozyme"},
    }


def test_zero_for_what_is_not_set_is_none() -> None:
    names = ("detector_distance", "photon_energy", "wavelength", "countrate_correction_count_cutoff")
    start = start_of(header(), config(**dict.fromkeys(names, 0)))
    assert (start.distance_m, start.energy_eV, start.wavelength_A, start.saturation) == (None, None, None, None)


def test_everything_but_series_and_detail_may_be_absent_or_null() -> None:
    assert start_of(header("none")) == SeriesStart(SERIES)
    assert start_of(header("none"), b"text") == SeriesStart(SERIES, extra={"header_appendix": "text"})
    assert start_of(header("basic"), b"{}") == SeriesStart(SERIES)
    assert start_of(header("all"), b'{"nimages":null,"wavelength":null}') == SeriesStart(SERIES)


@pytest.mark.parametrize(
    ("mode", "per_trigger", "triggers", "images"),
    [
        ("ints", 10, 1, 10),
        ("ints", 10, 3, 30),
        ("exts", 10, 3, 30),
        ("exte", 1, 5, 5),
        ("exte", 10, 5, 5),
        ("inte", 10, 5, 5),
        ("inte", 10, None, None),
        ("ints", 10, None, 10),
        ("ints", None, 5, None),
        (None, 10, 2, 20),
        ("eies", 10, 2, 20),
    ],
)
def test_the_announced_images_follow_from_the_trigger_mode(
    mode: str | None, per_trigger: int | None, triggers: int | None, images: int | None
) -> None:
    start = start_of(header(), config(trigger_mode=mode, nimages=per_trigger, ntrigger=triggers))
    assert start.images == images


def test_how_images_are_spread_over_triggers_is_kept_and_sent_again() -> None:
    spread = {"nimages": 10, "ntrigger": 3, "trigger_mode": "exts"}
    start = start_of(header(), config(**spread))
    assert start.extra == spread
    assert_same(start_of(*Dectris1().encode(start)), start)
    fewer = replace(start, images=7)
    assert start_of(*Dectris1().encode(fewer)).images == 7


def test_header_and_configuration_may_come_as_two_messages() -> None:
    wire = Dectris1()
    assert wire.decode([header()]) == []
    (start,) = wire.decode([config(nimages=1, ntrigger=5, trigger_mode="exte")])
    assert (start.series, start.images, start.shape) == (SERIES, 5, (20, 30))
    error = refusal([config()], wire)
    assert error.reason == "parts"


def test_a_configuration_belongs_to_the_last_header_and_to_no_other() -> None:
    wire = Dectris1()
    assert wire.decode([header(series=1)]) == wire.decode([header(series=2)]) == []
    (start,) = wire.decode([config()])
    assert start.series == SeriesKey(2)
    assert wire.decode([header(series=3)]) == []
    refusal([header(series=4), b"{"], wire)
    assert refusal([config()], wire).reason == "parts"


def test_a_damaged_configuration_leaves_its_header_waiting_for_a_good_one() -> None:
    wire = Dectris1()
    wire.decode([header()])
    assert refusal([config()[:-1]], wire).reason == "json"
    assert refusal([config(nimages=-1)], wire).reason == "field"
    (start,) = wire.decode([config()])
    assert start.images == 10


def test_tables_may_come_as_messages_of_their_own() -> None:
    wire = Dectris1()
    assert wire.decode([header("all")]) == []
    (bare,) = wire.decode([config()])
    assert (bare.mask, bare.flatfield) == ({}, {})
    (half,) = wire.decode(table("flatfield", FLATFIELD))
    (whole,) = wire.decode(table("pixelmask", MASK))
    assert wire.decode(table("countrate_table", np.zeros((2, 4), "<f4"))) == []
    assert (half.mask, np.array_equal(half.flatfield[""], FLATFIELD)) == ({}, True)
    assert np.array_equal(whole.mask[""], MASK != 0)
    assert np.array_equal(whole.flatfield[""], FLATFIELD)
    assert bare.series == half.series == whole.series == SERIES


def test_a_header_that_came_whole_is_not_kept() -> None:
    wire = Dectris1()
    wire.decode([header("all"), config(), *table("flatfield", FLATFIELD), *table("pixelmask", MASK)])
    assert wire._header is None


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ([table("flatfield", FLATFIELD)[0], b"flatfield-data-blob-here"], "24 bytes of pixels"),
        ([table("flatfield", FLATFIELD)[0], FLATFIELD.tobytes()[:-1]], "2399 bytes of pixels"),
        (table("flatfield", FLATFIELD, shape=[100, 100]), "shape [100, 100]"),
        (table("flatfield", FLATFIELD, shape=[20, 30]), "shape [20, 30]"),
        (table("flatfield", FLATFIELD, shape=[2**40, 2**40]), "a table of shape"),
        (table("flatfield", FLATFIELD, shape="30x20"), "a shape that is not"),
        (table("flatfield", FLATFIELD, shape=None), "a shape that is not"),
        (table("flatfield", FLATFIELD, type="complex64"), "complex64"),
        (table("flatfield", FLATFIELD, type=None), "expected one of"),
    ],
    ids=["placeholder", "clipped", "another shape", "height first", "2^40", "text", "no shape", "complex", "no type"],
)
def test_a_flatfield_that_cannot_be_used_is_left_out_and_named_and_the_start_stands(
    spoilt: list[bytes], words: str
) -> None:
    with capture_logs() as said:
        start = start_of(header("all"), config(), *spoilt, *table("pixelmask", MASK))
    assert start.flatfield == {}
    assert np.array_equal(start.mask[""], MASK != 0)
    assert words in start.extra["left_out"]["flatfield"]
    (line,) = said
    assert (line["log_level"], line["series"], line["left_out"]) == ("warning", "7", start.extra["left_out"])
    assert "left_out" not in start_of(*Dectris1().encode(start)).extra


def test_a_clipped_mask_is_never_taken_for_a_mask() -> None:
    with capture_logs() as said:
        start = start_of(header("all"), config(), table("pixelmask", MASK)[0], MASK.tobytes()[:-400])
    assert start.mask == {}
    assert list(start.extra["left_out"]) == ["pixel_mask"]
    assert len(said) == 1


def test_tables_without_an_image_size_are_left_out() -> None:
    start = start_of(header("all"), b'{"nimages":1}', *table("pixelmask", MASK))
    assert (start.images, start.mask, [*start.extra["left_out"]]) == (1, {}, ["pixel_mask"])


def test_a_table_of_unknown_type_is_left_out_and_named() -> None:
    about, blob = table("flatfield", np.zeros((20, 30), "<f4"))
    start = start_of(header("all"), config(), about.replace(b"dflat", b"flat"), blob, *table("pixelmask", MASK))
    assert start.flatfield == {}
    assert "flatfield-1.0" in start.extra["left_out"]
    assert start.mask


def test_numbers_beyond_json_are_left_out_of_extra() -> None:
    start = start_of(header(), b'{"a":1e999,"b":[1,1e999],"c":{"d":1e999}}')
    assert start.extra == {"a": None, "b": [1, None], "c": {"d": None}}


def test_start_images_and_end_in_one_message_are_taken_apart() -> None:
    wire = Dectris1()
    messages = [
        wire.encode(SeriesStart(SERIES, shape=(20, 30), mask={"": MASK != 0})),
        wire.encode([frame(0)]),
        wire.encode([frame(1, extra={"image_appendix": "{}"})]),
        wire.encode(SeriesEnd(SERIES)),
    ]
    assert wire.split([part for message in messages for part in message]) == messages
    for message in (*messages, [], [b""], [b"\xff", b"\xfe"]):
        assert wire.split(message) == [message]


def test_stray_parts_are_refused_and_the_next_whole_image_is_decoded() -> None:
    wire = Dectris1()
    one, two = wire.encode([frame(1)]), wire.encode([frame(2)])
    for stray in (one[1:], one[2:], one[3:], one[:2], one[:3], [one[2]]):
        assert refusal(stray, wire).reason in ("parts", "type", "json")
        lost, whole = wire.split([*stray, *two])
        refusal([*lost], wire)
        (found,) = wire.decode(whole)
        assert (found.number, np.array_equal(found.image, PIXELS)) == (2, True)


def test_an_image_larger_than_its_series_announced_is_refused() -> None:
    wire = Dectris1(max_pixels=10_000)
    wire.decode(wire.encode(SeriesStart(SERIES, shape=(20, 30))))
    larger = frame(image=np.zeros((21, 30), np.uint16))
    error = refusal(wire.encode([larger]), wire)
    assert (error.reason, error.series, error.number) == ("size", SERIES, 3)
    assert wire.decode(wire.encode([frame()]))
    assert wire.decode(wire.encode([replace(larger, series=SeriesKey(8))]))


def test_four_full_thresholds_are_the_most() -> None:
    wire = Dectris1(max_pixels=600, compression="none")
    frames = [frame(channel=f"threshold_{number}") for number in range(1, 6)]
    assert len(wire.decode(wire.encode(frames[:4]))) == 4
    assert refusal(wire.encode(frames), wire).reason == "size"


def test_before_any_start_max_pixels_is_the_limit() -> None:
    assert Dectris1(max_pixels=600).decode(Dectris1().encode([frame()]))
    assert refusal(Dectris1().encode([frame()]), Dectris1(max_pixels=599)).reason == "size"


def test_a_start_beyond_max_pixels_says_what_to_do() -> None:
    error = refusal(Dectris1().encode(SeriesStart(SERIES, shape=(20, 30))), Dectris1(max_pixels=599))
    assert "raise max_pixels=599" in str(error)


def test_the_image_sizes_of_the_last_eight_series_are_remembered() -> None:
    wire = Dectris1()
    for number in range(1000):
        wire.decode(wire.encode(SeriesStart(SeriesKey(number), shape=(2, 2))))
    assert [refusal(wire.encode([frame(series=SeriesKey(number))]), wire).reason for number in range(992, 1000)] == (
        ["size"] * 8
    )
    assert wire.decode(wire.encode([frame(series=SeriesKey(991))]))


def test_images_lie_in_the_scratch() -> None:
    wire, scratch = Dectris1(), Scratch()
    message = wire.encode([frame()])
    (first,) = wire.decode(message, scratch=scratch)
    scratch.reset()
    (again,) = wire.decode(message, scratch=scratch)
    assert np.shares_memory(first.image, again.image)
    with pytest.raises(BadFrame) as caught:
        wire.decode(message, scratch=Scratch(limit=1000))
    assert (caught.value.reason, caught.value.number) == ("size", 3)


def test_images_are_writable_and_do_not_change_the_message() -> None:
    wire = Dectris1(compression="none")
    message = wire.encode([frame()])
    before = [bytes(part) for part in message]
    (found,) = wire.decode([memoryview(part).toreadonly() for part in message])
    found.image[:] = 0
    assert message == before


def test_several_threads_decode_at_once() -> None:
    wire = Dectris1()
    messages = [wire.encode([frame(n, image=PIXELS + np.uint16(n))]) for n in range(200)]
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda message: wire.decode(message)[0], messages))
    for n, each in enumerate(found):
        assert each.number == n
        assert np.array_equal(each.image, PIXELS + np.uint16(n))


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [frame(), frame()],
        [frame(channel="threshold_1"), frame(4, channel="threshold_2")],
        [frame(channel="threshold_2"), frame(channel="threshold_1")],
        [frame(channel="threshold_1"), frame(channel="difference")],
        [frame(channel="threshold_1"), frame(channel="threshold_2", image=PIXELS[:-1])],
        [frame(channel="threshold_1"), frame(channel="threshold_2", image=PIXELS.astype(np.uint32))],
        [frame(image=np.zeros(5, np.uint16))],
        [frame(image=np.zeros((0, 5), np.uint16))],
        [frame(image=np.zeros((2, 2), np.complex64))],
        [frame(image=np.zeros((2, 2), np.uint64))],
        [frame(extra={"user_data": object()})],
        [frame(extra={"user_data": float("nan")})],
        [frame(extra={"image_appendix": b"bytes"})],
        [frame(start_s=Fraction(-1))],
        [frame(stop_s=Fraction(2**63, 10**9))],
    ],
    ids=[
        "none",
        "one twice",
        "two exposures",
        "thresholds in disorder",
        "a difference",
        "two shapes",
        "two types",
        "one dimension",
        "no pixel",
        "complex",
        "64 bits",
        "an object",
        "not a number",
        "bytes",
        "before the series",
        "in 300 years",
    ],
)
def test_what_cannot_be_sent_is_the_callers_error(frames: list[Frame]) -> None:
    with pytest.raises(BadInput, match="dectris1: "):
        Dectris1().encode(frames)


def test_numpy_numbers_are_sent_as_numbers() -> None:
    extra = {"user_data": {"n": np.int64(5), "x": np.float32(0.5)}}
    (found,) = Dectris1().decode(Dectris1().encode([frame(np.int64(3), extra=extra)]))
    assert (found.number, found.extra) == (3, {"user_data": {"n": 5, "x": 0.5}})


def test_what_is_attached_to_a_frame_cannot_change_what_it_is() -> None:
    extra = {"htype": "dseries_end-1.0", "series": 99, "frame": 99, "shape": [1, 1], "start_time": -1}
    (found,) = Dectris1().decode(Dectris1().encode([frame(extra=extra)]))
    assert (found.series, found.number, found.extra) == (SERIES, 3, {})


def test_a_real_image_of_an_eiger2_16m_is_decoded(tickit_data: Path) -> None:
    """Captured at a detector; 6.93 % of its pixels are gaps and masked ones, as in the v2 capture of its twin."""
    blob = (tickit_data / "frame_sample").read_bytes()
    found = decoded_image(blob, shape=[4148, 4362])
    assert (found.shape, found.dtype) == ((4362, 4148), np.uint16)
    is_valid = found != 65535
    assert 1 - is_valid.mean() == pytest.approx(0.0693, abs=5e-5)
    assert found[is_valid].mean() < 0.01
    for variant in (bytes(12) + blob[12:], blob[12:]):
        assert np.array_equal(decoded_image(variant, shape=[4148, 4362]), found)
    wrong = refusal(image_message(blob, shape=[4148, 4361]))
    assert wrong.reason in ("size", "compression")


def test_every_truncation_of_every_image_is_refused_or_harmless() -> None:
    """Only the appendix may lose bytes: it is text, and nothing says how much of it there was."""
    wire = Dectris1()
    for message in hostile.good("dectris1"):
        if wire.kind(message) != "image":
            continue
        for place, part in enumerate(message[:4]):
            for cut in range(len(part)):
                error = refusal([*message[:place], part[:cut], *message[place + 1 :]], wire)
                assert error.reason in ("truncated", "json")
